"""The fast decoder against the oracle, and the permanent laws of the loop, on generated worlds."""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise

import numpy as np
import pytest
from worlds import GUESSING, World, decoded, random_world, referred, straight_curve

from edge_nudge.core.costs import CostCurve
from edge_nudge.core.events import Cause, Finished, Handoff, HandoffReason, ModelUsage, Piece, Role
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import build_request
from edge_nudge.errors import ContextOverflowError, EngineError, NonFiniteScoresError
from edge_nudge.testing import FakeBackend, Scorer, ToyVocabulary, hashed_scores, scripted_scores


def worlds(numbers: range, **fixed: object) -> list[tuple[int, World]]:
    return [(number, random_world(number, **fixed)) for number in numbers]


def assert_equals_reference(numbers: range, curve: CostCurve | None = None, scout_step: float = 1.0) -> set[str]:
    seen: set[str] = set()
    for number, world in worlds(numbers):
        world.curve, world.scout_step = curve, scout_step
        answer = world.answer()
        assert answer == referred(world.reference()), f"world {number}"
        seen |= {answer.detail, *(unit[3] for unit in answer.units)}
    return seen


def test_equals_the_reference() -> None:
    assert_equals_reference(range(100))


@pytest.mark.parametrize("curve", [GUESSING, straight_curve(0.1, 0.2, exact=3), straight_curve(0.4, 0.5)])
def test_guesses_change_nothing(curve: CostCurve) -> None:
    assert_equals_reference(range(100, 160), curve)


@pytest.mark.parametrize("curve", [GUESSING, straight_curve(0.1, 0.2, exact=3)])
def test_runs_of_the_nudging_model_change_nothing(curve: CostCurve) -> None:
    assert_equals_reference(range(300, 360), curve, scout_step=0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("scout_step", [1.0, 0.1, 0.0])
def test_guesses_change_nothing_in_a_thousand_worlds(scout_step: float) -> None:
    assert_equals_reference(range(6000, 7000), GUESSING, scout_step)


def test_a_run_of_the_nudging_model_saves_calls_where_it_writes_what_the_base_model_writes() -> None:
    """Two copies of one model: runs come true where the text is tokenized as it was drawn."""
    counts = {}
    for scout_step in (1.0, 0.02):
        base, nudging = ModelUsage(), ModelUsage()
        fixed = {"gamma": 0.0, "max_tokens": 60, "temp": 0.0, "end_prob": 2.0, "stop": [], "loop_guard": False}
        for _, world in worlds(range(400, 440), rule="top_prob", **fixed):
            world.nudging, world.nudging_prompt = world.base, world.base_prompt
            world.curve, world.scout_step = straight_curve(0.05, 0.05), scout_step
            events = list(world.decoder().run())
            assert decoded(events) == referred(world.reference())
            finished = events[-1]
            assert isinstance(finished, Finished)
            for total, usage in ((base, finished.usage.base), (nudging, finished.usage.nudging)):
                total.n_calls += usage.n_calls
                for cause, n_tokens in usage.evaluated.items():
                    total.evaluated[cause] += n_tokens
        counts[scout_step] = base, nudging
    (base, nudging), (base_with, nudging_with) = counts[1.0], counts[0.02]
    assert base_with.n_calls < 0.8 * base.n_calls
    assert base_with.evaluated[Cause.VERIFIED] > 2 * base.evaluated[Cause.VERIFIED]
    assert nudging_with.evaluated[Cause.VERIFIED] > 10 * nudging.evaluated[Cause.VERIFIED]


def test_guesses_come_true_and_save_calls() -> None:
    """Worlds that forget most of the past repeat themselves: there most guesses are right."""
    usages = {}
    for curve in (None, GUESSING):
        usages[curve] = ModelUsage()
        fixed = {"gamma": 0.5, "max_tokens": 60, "temp": 0.0, "end_prob": 2.0, "stop": [], "loop_guard": False}
        for _, world in worlds(range(200, 300), rule="top_prob", **fixed):
            world.curve = curve
            *_, finished = world.decoder().run()
            assert isinstance(finished, Finished)
            usages[curve].n_calls += finished.usage.base.n_calls
            for cause, n_tokens in finished.usage.base.evaluated.items():
                usages[curve].evaluated[cause] += n_tokens
    plain, guessing = usages[None], usages[GUESSING]
    assert plain.evaluated[Cause.VERIFIED] == plain.evaluated[Cause.WASTED] == 0
    assert guessing.evaluated[Cause.VERIFIED] > 100
    assert guessing.n_calls < 0.95 * plain.n_calls
    known = (Cause.PROMPT, Cause.OWN, Cause.CATCH_UP, Cause.REEVALUATED)
    assert sum(guessing.evaluated[c] for c in (*known, Cause.VERIFIED)) == sum(plain.evaluated[c] for c in known)


@pytest.mark.thorough
def test_equals_the_reference_in_thousands_of_worlds() -> None:
    seen = assert_equals_reference(range(1000, 5000))
    # the worlds are worth something only if they reach every ending and every reason
    assert seen >= {
        "end_of_generation", "control_token", "restart_guard", "stop_string", "loop", "max_tokens", "base_context",
        "nudging_context", "max_turns", "opening", "unsure", "base_end", "unusable", "confident", "agreed", "policy",
        "blended",
    }  # fmt: skip


FAULTS = {
    "batches of one": {"n_batch": 1},
    "one batch": {"n_batch": 512},
    "no rewind": {"can_rewind": False},
    "no rewind, small batches": {"can_rewind": False, "n_batch": 2},
    "refuses every rewind": {"refuse": lambda n_keep: True},
    "refuses some rewinds": {"refuse": lambda n_keep: n_keep % 3 == 0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_never_changes_a_result(fault: str) -> None:
    for number, world in worlds(range(5000, 5030)):
        assert world.answer(**FAULTS[fault]) == world.answer(), f"world {number}"


def test_no_cache_gives_the_same_answer() -> None:
    for number, world in worlds(range(5100, 5140)):
        warm = world.sessions()
        first = decoded(list(world.decoder(warm).run()))
        second = decoded(list(world.decoder(warm).run()))
        assert first == second, f"world {number}"


def test_a_second_request_reuses_the_prompt() -> None:
    world = random_world(7, rule="top_prob", gamma=0.5, max_tokens=20, stop=[], max_turns=1000)
    sessions = world.sessions()
    list(world.decoder(sessions).run())
    *_, finished = world.decoder(sessions).run()
    assert isinstance(finished, Finished)
    nudging = finished.usage.nudging
    assert nudging.n_reused == nudging.n_prompt - 1
    assert sum(model.evaluated[cause] for model in (nudging,) for cause in nudging.evaluated if cause == "prompt") == 1


def test_counts_add_up() -> None:
    """Every evaluated token has one cause, and what is shown is what is counted."""
    for number, world in worlds(range(5200, 5230)):
        base, nudging = world.sessions()
        events = list(world.decoder((base, nudging)).run())
        finished = events[-1]
        assert isinstance(finished, Finished)
        pieces = [event for event in events if isinstance(event, Piece)]
        for role, session in ((Role.BASE, base), (Role.NUDGING, nudging)):
            usage = finished.usage.of(role)
            assert isinstance(session._backend, FakeBackend)
            assert usage.n_evaluated == session._backend.n_evaluated, f"world {number}"
            assert usage.n_calls == session._backend.n_calls
            assert usage.n_written == sum(piece.n_tokens for piece in pieces if piece.author is role)
            assert usage.n_chars == sum(len(piece.text) for piece in pieces if piece.author is role)
        assert finished.usage.n_handoffs == sum(isinstance(event, Handoff) for event in events)
        if world.request.max_tokens is not None:
            assert finished.usage.n_completion <= world.request.max_tokens


def test_a_longer_limit_only_adds() -> None:
    for number, world in worlds(range(5300, 5330), loop_guard=False, stop=[]):
        texts = []
        for limit in (5, 6, 20, 40):
            request = world.request.model_copy(update={"max_tokens": limit})
            texts.append(dataclasses.replace(world, request=request).answer().text)
        for shorter, longer in pairwise(texts):
            assert longer.startswith(shorter), f"world {number}"


# --- leaving early: a few worlds each time, and many in the thorough run

LEAVING = [pytest.param(4, id="some"), pytest.param(40, id="many", marks=pytest.mark.thorough)]


@pytest.mark.parametrize("n_worlds", LEAVING)
def test_closing_at_any_event_leaves_both_sessions_ready(n_worlds: int) -> None:
    for number, world in worlds(range(5400, 5400 + n_worlds), max_tokens=20):
        whole = world.answer()
        sessions = world.sessions()
        for n_events in range(len(list(world.decoder().run()))):
            stream = world.decoder(sessions).run()
            for _ in range(n_events):
                next(stream)
            stream.close()  # type: ignore[attr-defined]
            assert decoded(list(world.decoder(sessions).run())) == whole, f"world {number}, event {n_events}"


@pytest.mark.parametrize("n_worlds", LEAVING)
def test_cancelling_at_any_check_ends_with_one_finished(n_worlds: int) -> None:
    # without guards: a cancel shows what was held back, a loop or a stop string drops it
    for number, world in worlds(range(5500, 5500 + n_worlds), max_tokens=20, loop_guard=False, stop=[]):
        whole = world.answer()
        sessions = world.sessions()
        for n_checks in range(0, 60, 3):
            left = iter(range(n_checks))
            cancelled = decoded(list(world.decoder(sessions, lambda left=left: next(left, None) is None).run()))
            assert cancelled.detail in ("cancelled", whole.detail)
            assert whole.text.startswith(cancelled.text), f"world {number}, check {n_checks}"
            assert decoded(list(world.decoder(sessions).run())) == whole, f"world {number}, check {n_checks}"


@pytest.mark.parametrize("can_rewind", [True, False])
@pytest.mark.parametrize("n_worlds", LEAVING)
def test_an_engine_error_at_any_call_leaves_both_sessions_ready(can_rewind: bool, n_worlds: int) -> None:
    for number, world in worlds(range(5600, 5600 + n_worlds), max_tokens=15):
        whole = world.answer()
        for n_call in range(0, 30, 2):
            failing = [n_call]

            def fail(call: int, failing: list[int] = failing) -> int | None:
                return call % 2 if failing and call >= failing[0] and failing.pop() >= 0 else None

            sessions = world.sessions(fail=fail, can_rewind=can_rewind)
            try:
                answer = decoded(list(world.decoder(sessions).run()))
            except EngineError:
                answer = decoded(list(world.decoder(sessions).run()))
            assert answer == whole, f"world {number}, call {n_call}"


# --- the permanent laws


def test_gamma_zero_is_the_base_model_alone_after_the_opening_word() -> None:
    n_compared = 0
    for number, world in worlds(range(5700, 5740), rule="top_prob", gamma=0.0, lookahead=1, loop_guard=False, stop=[]):
        units = world.answer().units
        if len(units) < 2 or units[1][0] is not Role.BASE:
            continue
        n_base = next((i for i, unit in enumerate(units[1:]) if unit[0] is Role.NUDGING), len(units) - 1)
        prompt = dataclasses.replace(world.base_prompt, tail=world.base_prompt.tail + units[0][1].encode())
        alone = dataclasses.replace(world, base_prompt=prompt)
        alone.request = build_request(
            "hi", rule="base-only", loop_guard=False, max_tokens=n_base, temp=world.request.sampling.temp
        )
        got = "".join(unit[1] for unit in units[1 : n_base + 1]).lstrip(" ")  # in front of an answer they are prompt
        assert alone.answer().text[: len(got)] == got, f"world {number}"
        n_compared += 1
    assert n_compared > 12


def test_gamma_above_one_is_the_nudging_model_alone() -> None:
    for rule in ("top_prob", "margin"):
        for number, world in worlds(range(5800, 5840), rule=rule, gamma=1.5):
            nudge = world.request.nudge.model_copy(update={"rule": "nudging-only"})
            alone = dataclasses.replace(world, request=world.request.model_copy(update={"nudge": nudge}))
            assert world.answer() == alone.answer(), f"world {number}"


def test_two_copies_of_one_model_give_its_text() -> None:
    # no token reaches over the end of a word: there the base model is asked where the model alone never is
    vocabulary = ToyVocabulary((" the", " cat", "ing", " a", "ab", "abc", " un", "é", "\n\n"))
    n_mixed = 0
    for seed in range(40):
        by_ids = hashed_scores(vocabulary, seed, eog_rate=0.02, sure=0.5)

        def by_text(ids: tuple[int, ...], by_ids: Scorer = by_ids) -> object:
            text = b"".join(vocabulary.pieces[i] for i in ids)
            return by_ids(
                tuple(text.removeprefix(b"Q\n").lstrip(b" "))
            )  # blanks in front of an answer are the writer's own

        prompt = Prompt((0,), b"Q\n", ())
        settings = {"max_tokens": 40, "loop_guard": False, "end_prob": 0.3}
        make = lambda **options: FakeBackend(vocabulary, by_text, **options)  # type: ignore[arg-type]  # noqa: E731
        mixed = World(build_request("hi", gamma=0.4, **settings), make, make, prompt, prompt)
        alone = World(build_request("hi", rule="nudging-only", **settings), make, make, prompt, prompt)
        got, want = mixed.answer(), alone.answer()
        # the limit counts tokens of the writer, and a handoff may re-tokenize: one text begins the other
        assert got.text.startswith(want.text) or want.text.startswith(got.text), f"seed {seed}"
        n_mixed += len({unit[0] for unit in got.units}) == 2
    assert n_mixed > 20


# --- single behaviours, on scripts

TEXT = ToyVocabulary(
    (" the", " cat", "cat", " sat", " on", " mat", "The", "ple", "as", "er", "Us", "\n\n", ": hello", "assistant")
)


def scripted(base: Scorer, nudging: Scorer, prompt: bytes = b"Q\n", **settings: object) -> World:
    end_strings = settings.pop("end_strings", ())
    return World(
        build_request("hi", **{"max_tokens": 30, **settings}),
        lambda **options: FakeBackend(TEXT, base, name="base", **options),
        lambda **options: FakeBackend(TEXT, nudging, name="nudging", **options),
        Prompt((0,), prompt, end_strings),  # type: ignore[arg-type]
        Prompt((0, 2), b"", ()),
    )


def follow(text: str, then: str = "<eos>", prob: float = 0.9, prompt: str = "") -> Scorer:
    """A model that writes `text` from wherever the answer stands in it, and then something else."""

    def rule(seen: bytes) -> tuple[str | int, float]:
        answer = seen.removeprefix(prompt.encode())
        data = text.encode()
        if data.startswith(answer) and len(answer) < len(data):
            rest = data[len(answer) :]
            return max(
                (i for i, p in enumerate(TEXT.pieces) if p and rest.startswith(p)), key=lambda i: len(TEXT.pieces[i])
            ), prob
        return then, prob

    return scripted_scores(TEXT, rule)


def test_the_first_word_is_shown_before_the_base_model_has_read_anything() -> None:
    world = scripted(follow("The cat sat", prompt="Q\n"), follow("The cat sat"))
    base, nudging = world.sessions()
    stream = world.decoder((base, nudging)).run()
    first = next(stream)
    assert first == Piece("The", Role.NUDGING, None, HandoffReason.OPENING, 1)
    assert len(base) == 0
    assert isinstance(next(stream), Handoff)


def test_a_stop_string_across_a_handoff_never_leaks() -> None:
    """The base model writes the beginning of the stop string, the nudging model the rest (case B13)."""

    def base(seen: bytes) -> tuple[str | int, float]:
        answer = seen.removeprefix(b"Q\n")
        return {b"The": ("\n\n", 0.9), b"The\n\n": ("Us", 0.9)}.get(answer, (" the", 0.1))

    def nudging(seen: bytes) -> tuple[str | int, float]:
        return {
            b"": ("The", 0.9),
            b"The": (" cat", 0.9),
            b"The\n\nUs": ("er", 0.9),
            b"The\n\nUser": (": hello", 0.9),
        }.get(seen, (" mat", 0.9))

    world = scripted(scripted_scores(TEXT, base), scripted_scores(TEXT, nudging), stop=["\n\nUser:"])
    events = list(world.decoder().run())
    answer = decoded(events)
    assert (answer.text, answer.detail, answer.stop_string) == ("The", "stop_string", "\n\nUser:")


@pytest.mark.parametrize("end", ["<eos>", "max_tokens"])
def test_text_held_for_a_stop_string_is_not_lost(end: str) -> None:
    """Case B14: the answer ends with "pleas" although "assistant" is a stop string."""
    limit = {"max_tokens": 2} if end == "max_tokens" else {}
    world = scripted(follow(""), follow("pleas"), stop=["assistant"], rule="nudging-only", **limit)
    assert world.answer().text == "pleas"


def test_a_handoff_never_falls_inside_a_character() -> None:
    """Case B07: the base model writes two thirds of a character and is unsure of the rest."""

    def base(seen: bytes) -> tuple[str | int, float]:
        answer = seen.removeprefix(b"Q\n")
        if answer.endswith(b"The"):
            return TEXT.byte(0xE6), 0.9
        if answer.endswith(b"\xe6"):
            return TEXT.byte(0xAD), 0.9
        return " the", 0.1

    world = scripted(scripted_scores(TEXT, base), follow("The cat sat"))
    answer = world.answer()
    assert answer.text == "The cat sat"
    assert all(unit[0] is Role.NUDGING for unit in answer.units)


def test_a_character_begun_by_one_token_and_ended_by_the_next_is_one_piece() -> None:
    def base(seen: bytes) -> tuple[str | int, float]:
        at = seen.find(b"The") + 3
        done = seen[at:]
        data = "歩".encode()
        return (TEXT.byte(data[len(done)]), 0.9) if data.startswith(done) and len(done) < 3 else (" the", 0.1)

    answer = scripted(scripted_scores(TEXT, base), follow("The歩 cat", then="<eos>")).answer()
    assert ("歩", 3) in [(unit[1], unit[4]) for unit in answer.units if unit[0] is Role.BASE]


def test_the_base_models_own_turn_marker_ends_its_turn_unseen() -> None:
    base = scripted_scores(
        TEXT,
        lambda seen: (
            ("\n\n", 0.9) if seen.endswith(b"sat") else ("Us", 0.9) if seen.endswith(b"\n\n") else (" the", 0.1)
        ),
    )
    nudging = scripted_scores(
        TEXT,
        lambda seen: {b"": ("The", 0.9), b"The": (" cat", 0.9), b"The cat": (" sat", 0.9)}.get(seen, (" on", 0.6)),
        runner_up="The",
    )

    def may_end(ids: tuple[int, ...]) -> object:
        row = nudging(ids)
        row[TEXT.marker("<|end|>")] = row.max() - 0.1
        return row

    answer = scripted(base, may_end, end_strings=(b"\n\nUs",), end_prob=0.2).answer()  # type: ignore[arg-type]
    assert (answer.text, answer.detail) == ("The cat sat", "restart_guard"), answer


def test_the_restart_guard_asks_the_nudging_model() -> None:
    """The base model ends; the nudging model's end token is likely though not its first choice."""
    base = follow("The cat sat", then="<eos>", prompt="Q\n")

    def nudging(seen: bytes) -> tuple[str | int, float]:
        return {b"": ("The", 0.9), b"The": (" cat", 0.9)}.get(seen, (" mat", 0.6))

    likely_end = scripted_scores(TEXT, nudging, runner_up=" the")
    open_ended = scripted(base, likely_end, end_prob=0.2, loop_guard=False).answer()
    assert open_ended.text.startswith("The cat sat mat")

    def with_end(ids: tuple[int, ...]) -> object:
        row = likely_end(ids)
        row[TEXT.marker("<|end|>")] = row.max() - 0.7  # about half as probable as the top token
        return row

    guarded = scripted(base, with_end, end_prob=0.2).answer()  # type: ignore[arg-type]
    assert (guarded.text, guarded.detail) == ("The cat sat", "restart_guard")
    assert scripted(base, with_end, end_prob=2.0, loop_guard=False).answer().text.startswith("The cat sat mat")  # type: ignore[arg-type]


def test_a_loop_is_cut_before_it_is_shown() -> None:
    """Both models repeat one sentence for ever; nothing of the repetition is seen."""

    words = ["The", " cat", " sat", " on", " the", " mat", "."]

    def cycle(prompt: bytes) -> Scorer:
        def rule(seen: bytes) -> tuple[str | int, float]:
            answer = seen.removeprefix(prompt)
            return words[sum(answer.count(word.encode()) for word in words) % len(words)], 0.9

        return scripted_scores(TEXT, rule)

    world = scripted(cycle(b"Q\n"), cycle(b""), max_tokens=200)
    answer = world.answer()
    assert (answer.text, answer.detail) == ("The cat sat on the mat.", "loop")
    unguarded = scripted(cycle(b"Q\n"), cycle(b""), max_tokens=200, loop_guard=False).answer()
    assert unguarded.text.count("The cat sat") > 20


@pytest.mark.parametrize("nudging_word", [" cat", "cat"])
def test_blanks_at_a_handoff_are_never_doubled_and_words_never_glued(nudging_word: str) -> None:
    """Case B05: the base model ends its turn with a blank."""
    base = follow("The sat ", then=" the", prob=0.9, prompt="Q\n")

    def base_ends_unsure(ids: tuple[int, ...]) -> object:
        row = base(ids)
        return row if TEXT.byte(ord(" ")) not in ids else np.zeros_like(row)

    def nudging(seen: bytes) -> tuple[str | int, float]:
        if b"cat" in seen:
            return "<eos>", 0.9
        return {b"": ("The", 0.9), b"The": (" on", 0.9)}.get(seen, (TEXT.word(nudging_word), 0.9))

    assert scripted(base_ends_unsure, scripted_scores(TEXT, nudging)).answer().text == "The sat cat"  # type: ignore[arg-type]


def test_a_base_prompt_that_ends_in_a_blank_is_continued_without_it() -> None:
    world = scripted(follow(" cat sat", prompt="A:"), follow(""), prompt=b"A: ", rule="base-only")
    assert world.answer().text == "cat sat"


def test_blanks_in_front_of_an_answer_belong_to_the_prompt() -> None:
    world = scripted(follow("nothing"), follow(" cat sat"), rule="nudging-only")
    assert world.answer().text == "cat sat"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_non_finite_scores_are_refused_before_any_comparison(value: float, everywhere: bool) -> None:
    """Case B32."""
    healthy = follow("The cat sat", prompt="Q\n")

    def sick(ids: tuple[int, ...]) -> object:
        row = healthy(ids)
        row[slice(None) if everywhere else 7] = value
        return row

    world = scripted(sick, follow("The cat sat"))  # type: ignore[arg-type]
    sessions = world.sessions()
    seen = []
    with pytest.raises(NonFiniteScoresError, match="base model"):
        seen.extend(world.decoder(sessions).run())
    assert [event.text for event in seen if isinstance(event, Piece)] == ["The"]
    assert (
        decoded(list(scripted(follow("The cat sat", prompt="Q\n"), follow("The cat sat")).decoder().run())).text
        == "The cat sat"
    )


def test_a_prompt_longer_than_a_context_says_which_and_how_long() -> None:
    world = random_world(3, rule="top_prob", gamma=0.5)
    long = dataclasses.replace(world, base_prompt=Prompt((), b"x" * 50))
    with pytest.raises(ContextOverflowError, match=r"50 tokens for the base model, its context is 50"):
        long.decoder(long.sessions(n_ctx=50)).check()
    long.decoder(long.sessions(n_ctx=51)).check()


def test_a_prompt_of_one_less_than_the_context_leaves_one_token() -> None:
    """Case B29."""
    world = scripted(follow("a" * 99, prompt="x" * 9), follow(""), prompt=b"x" * 9, rule="base-only", loop_guard=False)
    answer = decoded(list(world.decoder(world.sessions(n_ctx=11)).run()))
    assert (len(answer.text), answer.detail) == (1, "base_context")


def test_random_numbers_do_not_depend_on_the_schedule() -> None:
    """Drafting further ahead with the end out of sight does not change a sampled answer."""
    rng = random.Random(5)
    for number in range(6000, 6030):
        settings = {"temp": 1.0, "rule": "top_prob", "gamma": 0.6, "max_tokens": 25, "stop": [], "loop_guard": False}
        world = random_world(number, lookahead=1, **settings)
        same = random_world(number, lookahead=1, **settings)
        assert world.answer(n_batch=rng.choice([1, 7])) == same.answer()


def test_answers_of_the_same_seed_are_the_same_and_of_others_differ() -> None:
    n_different = n_long = 0
    for number in range(6100, 6120):
        world = random_world(number, temp=1.5, rule="nudging-only", max_tokens=30, stop=[], max_turns=1000)
        answer = world.answer()
        assert answer == dataclasses.replace(world).answer()
        if len(answer.text) > 20:
            n_long += 1
            n_different += answer.text != dataclasses.replace(world, seed=world.seed + 1).answer().text
    assert n_long > 3
    assert n_different > n_long / 2


def test_pieces_say_what_the_other_model_would_have_written() -> None:
    """The worlds hold the decoder to the reference; here is what the field means, by one script."""
    vocabulary = ToyVocabulary((" the", " cat", " sat", " on", " a"))

    def base(text: bytes) -> tuple[str, float]:
        if text.endswith(b" cat sat"):
            return "<eos>", 0.9
        return (" sat", 0.9) if text.endswith(b" cat") else (" a", 0.2)

    def nudging(text: bytes) -> tuple[str, float]:
        order = {b"a": " cat", b" cat": " on", b" sat": " on", b" on": " the", b" the": "<|end|>"}
        return next(((word, 0.9) for end, word in order.items() if text.endswith(end)), ("a", 0.9))

    world = World(
        build_request("hi", gamma=0.5, end_prob=2.0),
        lambda **_: FakeBackend(vocabulary, scripted_scores(vocabulary, base, runner_up="no such piece")),
        lambda **_: FakeBackend(vocabulary, scripted_scores(vocabulary, nudging, runner_up="no such piece")),
        Prompt(head=(0,), tail=b"Q", end_strings=()),
        Prompt(head=(0,), tail=b"Q", end_strings=()),
    )
    pieces = [event for event in world.decoder().run() if isinstance(event, Piece)]
    assert [(piece.text, piece.author, piece.instead) for piece in pieces] == [
        ("a", Role.NUDGING, None),  # the opening: nobody has asked the base model
        (" cat", Role.NUDGING, b" a"),  # its top token, of which it was unsure
        (" sat", Role.BASE, b" on"),  # what the nudging model had drafted
        (" on", Role.NUDGING, b""),  # the base model ended
        (" the", Role.NUDGING, b" a"),
    ]
