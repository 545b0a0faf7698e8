"""Words, characters, drafts, stop strings, loops, transcript: text alone, without a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_nudge.core.draft import Draft
from edge_nudge.core.events import HandoffReason, Role
from edge_nudge.core.loops import MIN_TOKENS, MIN_WORDS, LoopGuard, Repetition
from edge_nudge.core.matching import StopMatcher
from edge_nudge.core.transcript import Transcript, Unit, Verdict, cut_to_tokens
from edge_nudge.core.words import MAX_CLUSTERS, first_word_end, whole_characters

TEXTS = st.text(
    st.sampled_from(
        [*"ab c.\n\r\t", "é", "日", "か", "ก", "ั", "\u0301", "👩", "\u200d", "🔬", "🇩", "🇪", "\ufe0f", "🏽"]
    )
)


def unit(data: bytes | str, role: Role = Role.BASE, n_tokens: int = 1) -> Unit:
    raw = data.encode() if isinstance(data, str) else data
    return Unit(role, raw, (0,) * n_tokens, None, HandoffReason.CONFIDENT)


# --- words


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Hello", None), ("Hello ", "Hello"), (" Hello world", " Hello"), ("\n\n1. x", "\n\n1."), ("  ", None),
        ("漢字", "漢"), ("漢。字", "漢。"), ("abc漢", "abc"), ("漢abc", "漢"), ("か\u3099な", "か\u3099"),
        ("สวัสดีครับ", "สวัสดีครั"), ("e\u0301", None), ("e\u0301 x", "e\u0301"), ("👩\u200d🔬", None),
        ("👩\u200d🔬 x", "👩\u200d🔬"), ("🇩🇪 🇫🇷", "🇩🇪"), ("👍🏽 ok", "👍🏽"), ("❤\ufe0f ok", "❤\ufe0f"),
        ("a" * 70, "a" * MAX_CLUSTERS), (" " * 70, " " * MAX_CLUSTERS), ("\r\n\r\nx y", "\r\n\r\nx"),
        ("naïve café", "naïve"),
    ],
)  # fmt: skip
def test_first_word(text: str, word: str | None) -> None:
    end = first_word_end(text)
    assert (None if end is None else text[:end]) == word


@given(TEXTS, TEXTS)
def test_a_known_word_end_never_changes_when_text_is_appended(text: str, more: str) -> None:
    end = first_word_end(text)
    if end is not None:
        assert first_word_end(text + more) == end
        assert 0 < end < len(text)


@given(TEXTS)
def test_ascii_words_end_where_clusters_say(text: str) -> None:
    """The short cut for ASCII is the general rule: a character beyond ASCII far behind changes nothing."""
    end = first_word_end(text)
    if text.isascii() and end is not None:
        assert first_word_end(text + " é") == end


@given(st.binary(max_size=12))
def test_whole_characters(data: bytes) -> None:
    size = whole_characters(data)
    can_become_valid = any(
        _is_valid(data + tail)
        for tail in (
            b"",
            b"\x80",
            b"\xa0",
            b"\x90",
            b"\x80\x80",
            b"\xa0\x80",
            b"\x90\x80",
            b"\x80\x80\x80",
            b"\x90\x80\x80",
        )
    )
    assert (size is not None) == can_become_valid
    if size is not None:
        assert _is_valid(data[:size])
        assert not any(_is_valid(data[:longer]) for longer in range(size + 1, len(data) + 1))


def _is_valid(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- drafts


@given(TEXTS, st.randoms(use_true_random=False), st.integers(0, 3), st.booleans())
def test_a_draft_loses_nothing(text: str, rng: random.Random, overlap: int, opens_answer: bool) -> None:
    """Whatever the cuts, the words taken are the text without the blanks that were there already."""
    data = text.encode()
    draft = Draft(overlap, opens_answer=opens_answer)
    taken, n_tokens, n_pushed = b"", 0, 0
    at = 0
    while at < len(data):
        size = rng.randint(1, 5)
        assert draft.can_take(data[at : at + size])
        draft.push(data[at : at + size])
        n_pushed += 1
        at += size
        while (word := draft.word_size()) is not None and rng.random() < 0.7:
            got, starts, _ = draft.take(word)
            taken += got
            n_tokens += len(starts)
    rest, starts, _ = draft.take(draft.whole_size())
    n_blanks = len(data) - len(data.lstrip(b" "))
    n_swallowed = n_blanks if opens_answer else min(overlap, n_blanks)
    assert taken + rest == data[n_swallowed:]
    assert n_tokens + len(starts) + draft.n_tokens == n_pushed
    assert draft.n_lead == max(0, n_swallowed - overlap)


def test_a_draft_refuses_bytes_that_can_become_no_text() -> None:
    draft = Draft(0, opens_answer=True)
    draft.push(b"\xe6\xad")
    assert not draft.can_take(b"a")
    assert not draft.can_take(b"\xe6")
    assert draft.can_take(b"\xa9")
    assert not Draft(0, opens_answer=True).can_take(b"\xa9")


# --- stop strings


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    st.randoms(use_true_random=False),
)
def test_any_cut_of_the_text_gives_the_same_answer_and_no_leak(text: str, stop: list[str], rng: random.Random) -> None:
    """One character at a time is the definition; any other cut shows the same text, and a stop string never."""

    def run(sizes: list[int]) -> tuple[str, str | None]:
        transcript = Transcript([s.encode() for s in stop], loop_guard=False)
        shown, at = "", 0
        for size in sizes:
            if not text[at : at + size]:
                break
            verdict = transcript.append(unit(text[at : at + size]))
            shown += "".join(piece.text for piece in transcript.show())
            assert not any(s in shown for s in stop)
            if verdict is Verdict.STOP_STRING:
                break
            at += size
        shown += "".join(piece.text for piece in transcript.flush())
        assert shown.encode() == transcript.text
        return shown, transcript.stop_string

    assert run([rng.randint(1, 6) for _ in range(40)]) == run([1] * 40)


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_what_is_held_back_is_what_may_become_a_match(text: str, stop: list[str]) -> None:
    assume(not any(s in text for s in stop))
    hold = StopMatcher([s.encode() for s in stop]).hold_from(bytearray(text.encode()))
    starts = [i for i in range(len(text)) if any(s.startswith(text[i:]) and s != text[i:] for s in stop)]
    assert hold == (starts[0] if starts else len(text))


def test_a_stop_string_only_partly_written_is_shown_in_the_end() -> None:
    transcript = Transcript([b"assistant"])
    transcript.append(unit("ple"))
    transcript.append(unit("as"))
    assert [piece.text for piece in transcript.show()] == ["ple"]
    assert [piece.text for piece in transcript.flush()] == ["as"]


def test_a_match_cuts_inside_a_unit_and_counts_only_what_is_left() -> None:
    transcript = Transcript([b"STOP"])
    verdict = transcript.append(Unit(Role.NUDGING, b"one STOP two", (0, 4, 6, 8), None, HandoffReason.OPENING))
    assert verdict is Verdict.STOP_STRING
    assert (transcript.text, transcript.n_tokens) == (b"one ", 1)
    assert [(p.text, p.n_tokens) for p in transcript.flush()] == [("one ", 1)]


def test_end_strings_count_only_inside_one_turn_of_the_base_model() -> None:
    transcript = Transcript(end_strings=[b"\nQ:"], loop_guard=False)
    transcript.begin_turn(Role.NUDGING)
    assert transcript.append(unit("a\nQ:", Role.NUDGING)) is Verdict.GO_ON
    transcript.append(unit("\n", Role.NUDGING))
    transcript.begin_turn(Role.BASE)
    assert transcript.append(unit("Q:")) is Verdict.GO_ON
    assert transcript.append(unit("b\nQ")) is Verdict.GO_ON
    assert transcript.append(unit(": c")) is Verdict.TURN_END
    assert transcript.text == b"a\nQ:\nQ:b"


# --- loops


SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen."


def said_again(author: Role, *, is_shared: bool = True, n_copies: int = 2) -> tuple[Verdict, str, str]:
    """Return the last verdict, what was shown and the text; something stands between two copies of a sentence."""
    transcript = Transcript(is_shared=is_shared)
    shown, verdict = "", Verdict.GO_ON
    words = f"{SENTENCE} Well, {(SENTENCE + ' ') * (n_copies - 1)}"
    for word in words.split():
        verdict = transcript.append(unit(word + " ", author, n_tokens=2))
        shown += "".join(piece.text for piece in transcript.show())
        if verdict is not Verdict.GO_ON:
            break
    return verdict, shown, transcript.text.decode()


def test_what_the_base_model_says_again_is_never_shown() -> None:
    assert said_again(Role.BASE) == (Verdict.LOOP, f"{SENTENCE} Well, ", f"{SENTENCE} Well, ")


@pytest.mark.parametrize(("author", "is_shared"), [(Role.NUDGING, True), (Role.NUDGING, False), (Role.BASE, False)])
def test_who_would_end_the_answer_by_it_may_say_something_again(author: Role, is_shared: bool) -> None:
    verdict, _, text = said_again(author, is_shared=is_shared)
    assert (verdict, text) == (Verdict.GO_ON, f"{SENTENCE} Well, {SENTENCE} ")


@pytest.mark.parametrize(("author", "is_shared"), [(Role.NUDGING, True), (Role.NUDGING, False), (Role.BASE, False)])
def test_a_text_that_goes_round_is_cut_whoever_writes(author: Role, is_shared: bool) -> None:
    """The second copy might have been the last; the third one follows it at once, and the fourth shows why."""
    verdict, shown, text = said_again(author, is_shared=is_shared, n_copies=5)
    assert verdict is Verdict.LOOP
    assert shown == text == f"{SENTENCE} Well, {SENTENCE} "


def test_a_repetition_that_turns_into_something_new_is_shown() -> None:
    transcript = Transcript()
    shown = ""
    text = "one two three four. one two three five. one two three four six."
    for word in text.split(" "):
        assert transcript.append(unit(word + " ")) is Verdict.GO_ON
        shown += "".join(piece.text for piece in transcript.show())
    shown += "".join(piece.text for piece in transcript.flush())
    assert shown == text + " "


def test_a_short_cycle_is_a_loop_however_few_its_words() -> None:
    transcript = Transcript()
    verdicts = [transcript.append(unit("-=", n_tokens=1)) for _ in range(MIN_TOKENS + 1)]
    assert verdicts[:-1] == [Verdict.GO_ON] * MIN_TOKENS
    assert verdicts[-1] is Verdict.LOOP
    assert transcript.text == b"-="


def test_a_long_repetition_of_few_words_elsewhere_is_no_loop() -> None:
    transcript = Transcript()
    for _ in range(2):
        for piece in ["| ---"] * MIN_WORDS:
            assert transcript.append(unit(piece, n_tokens=6)) is not None
        transcript.append(unit(" something else"))
    assert b"something else| ---" in transcript.text


@given(st.lists(st.tuples(st.sampled_from(["a", "b ", "ab", " c"]), st.integers(1, 9)), max_size=40))
def test_the_run_is_the_longest_repeated_end_of_the_text(units: list[tuple[str, int]]) -> None:
    guard, text, starts, floor = LoopGuard(), bytearray(), [], 0
    for data, n_tokens in units:
        n_old = len(text)
        starts.append((n_old, n_tokens))
        text += data.encode()
        repetition = guard.extend(text, n_old, n_tokens)
        plain = bytes(text)
        found = [s for s, _ in starts if s >= floor and plain.find(plain[s:], 0, len(plain) - 1) >= 0]
        floor = found[0] if found else len(plain)
        assert guard.start == floor
        n_run = sum(n for s, n in starts if s >= floor)
        run = plain[floor:]
        overlaps = any(plain.startswith(run, at) and at + len(run) > floor for at in range(floor))
        is_long = bool(found) and n_run >= MIN_TOKENS
        assert (repetition is Repetition.CYCLE) == (is_long and overlaps)
        assert (repetition is Repetition.AGAIN) == (is_long and not overlaps and len(run.split()) > MIN_WORDS)


# --- the token limit


def test_a_unit_is_cut_to_tokens_and_whole_characters() -> None:
    whole = Unit(Role.NUDGING, " naïve é".encode(), (0, 3, 4, 8), None, HandoffReason.OPENING)
    assert cut_to_tokens(whole, 9) is whole
    assert cut_to_tokens(whole, 3).data == " naïve ".encode()
    assert cut_to_tokens(whole, 2).data == b" na"  # the second token is the first half of a character
    assert cut_to_tokens(whole, 1).token_starts == (0,)
