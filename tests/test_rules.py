"""The rules token, bet and blend: their formulas, their limits, and the loop that provides what they need."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from worlds import GUESSING, World, decoded, random_world, referred

from edge_nudge.core.blending import AGREEMENT, END, NO_TEXT, Blender, TextTable, shares
from edge_nudge.core.draft import Draft
from edge_nudge.core.events import Cause, Finished, HandoffReason, Role
from edge_nudge.core.policy import Bet, Blend, Solo, TokenProb, make_policy
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import DEFAULT_GAMMA, NudgeParams, Rule, SamplingParams, build_request
from edge_nudge.core.sampling import Probe
from edge_nudge.core.session import Session
from edge_nudge.core.writer import Writer
from edge_nudge.errors import InputError
from edge_nudge.spec import PairSpec
from edge_nudge.testing import FakeBackend, Scorer, ToyVocabulary, hashed_scores, scripted_scores

NEW = ("token", "bet", "blend")
ROWS = npst.arrays(np.float32, st.integers(3, 30), elements=st.floats(-8, 8, width=32), unique=True)


def softmax(row: np.ndarray) -> np.ndarray:
    exps = np.exp(row.astype(np.float64) - float(row.max()))
    return exps / exps.sum()


def writer_of(row: np.ndarray, role: Role = Role.BASE, *, temp: float = 0.0, seed: int = 0, **options: Any) -> Writer:
    """A writer whose scores are always `row`: control tokens at 0 to 3, then bytes."""
    vocabulary = options.pop("vocabulary", VOCABULARY)
    full = np.full(len(vocabulary), -50.0, dtype=np.float32)
    full[: len(row)] = row
    backend = FakeBackend(vocabulary, lambda _ids: full)
    writer = Writer(role, backend, Session(backend), Prompt((0,), b"Q", ()), SamplingParams(temp=temp), seed)
    assert writer.sync(b"x") is not None
    return writer


VOCABULARY = ToyVocabulary((" the", " cat"))

# --- formulas


@given(ROWS, st.floats(0.0, 1.0), st.integers(0, 50), st.sampled_from([0.0, 0.7, 1.5]))
def test_token_is_about_the_token_drawn(row: np.ndarray, gamma: float, seed: int, temp: float) -> None:
    writer = writer_of(row, temp=temp, seed=seed)
    policy = TokenProb(gamma)
    probe = writer.probe(policy)
    token = writer.draw()
    assert token == probe.drawn == probe.candidate
    want = softmax(np.concatenate([row, np.full(len(VOCABULARY) - len(row), -50.0, dtype=np.float32)]))[token]
    assert probe.drawn_prob == pytest.approx(want, rel=1e-4)
    if abs(want - gamma) > 1e-5:
        assert policy.is_sure(probe) == (want >= gamma)


def test_a_draw_of_a_rule_is_the_draw_of_the_sampler() -> None:
    """Whether a rule looks at the token drawn or not, the same one is drawn."""
    row = np.zeros(60, dtype=np.float32)
    drawn = {writer_of(row, temp=1.0, seed=seed).draw() for seed in range(20)}
    for seed in range(20):
        writer = writer_of(row, temp=1.0, seed=seed)
        assert writer.probe(TokenProb(0.1)).drawn == writer.draw() == writer_of(row, temp=1.0, seed=seed).draw()
    assert len(drawn) > 5


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_bet_compares_the_token_with_the_other_models_best(p: float, q: float, margin: float) -> None:
    probe = Probe(7, 0.9, drawn=3, drawn_prob=p, other_prob=q)
    assert Bet(margin).is_sure(probe) == (not p < q - margin)
    assert Bet(margin).is_sure(dataclasses.replace(probe, other_prob=math.nan)), "no opinion is no objection"


def test_bet_of_a_whole_margin_never_loses() -> None:
    assert Bet(1.0).is_sure(Probe(0, 1e-9, drawn=0, drawn_prob=1e-9, other_prob=1.0))


PROBS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[npst.arrays(np.float64, n, elements=st.floats(0.001, 1)) for _ in range(2)])
)


@given(PROBS)
def test_the_mix_is_weighted_as_published(probs: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = (row / row.sum() for row in probs)
    weight = min(1.0, q.max() / (p.max() + q.max()) + 0.1 * p[np.argmax(q)])
    of_base, of_nudging = shares(p, q)
    np.testing.assert_allclose(of_base, (1 - weight) * p)
    np.testing.assert_allclose(of_nudging, weight * q)
    assert (of_base + of_nudging).sum() == pytest.approx(1.0)


def test_shares_of_nothing_are_nothing() -> None:
    of_base, of_nudging = shares(np.zeros(3), np.zeros(3))
    assert not (of_base + of_nudging).any()


# --- which tokens are one text

LEFT = ToyVocabulary((" cat", "cat", " dog", "  "))
RIGHT = ToyVocabulary(("cat", " cats", " dog"), markers=("<s>", "<pad>", "<end>"), eog=("<end>",))


def test_tokens_with_the_same_bytes_are_one_text() -> None:
    texts = TextTable(FakeBackend(LEFT, hashed_scores(LEFT)), FakeBackend(RIGHT, hashed_scores(RIGHT))).texts(0, 0)
    for token, piece in enumerate(LEFT.pieces):
        assert texts.data[texts.base[token]] == piece
    for token, piece in enumerate(RIGHT.pieces):
        assert texts.data[texts.nudging[token]] == piece
    assert texts.base[LEFT.word("cat")] == texts.nudging[RIGHT.word("cat")]
    assert texts.base[LEFT.word(" cat")] not in texts.nudging
    assert len(set(texts.data[2:])) == len(texts.data) - 2
    ends = [LEFT.marker("<eos>"), LEFT.marker("<|end|>")]
    assert set(texts.base[ends]) == {END} == {texts.nudging[RIGHT.marker("<end>")]}
    assert texts.base[LEFT.marker("<bos>")] == texts.nudging[RIGHT.marker("<pad>")] == NO_TEXT


def test_blanks_that_stand_in_the_text_are_no_part_of_what_is_added() -> None:
    table = TextTable(FakeBackend(LEFT, hashed_scores(LEFT)), FakeBackend(RIGHT, hashed_scores(RIGHT)))
    texts = table.texts(0, 1)
    assert texts.base[LEFT.word("cat")] == texts.nudging[RIGHT.word("cat")]
    assert texts.base[LEFT.byte(ord("d"))] == texts.nudging[RIGHT.byte(ord("d"))]
    assert texts.base[LEFT.word(" dog")] not in texts.nudging
    assert texts.data[texts.nudging[RIGHT.word(" dog")]] == b"dog"
    assert texts.data[texts.nudging[RIGHT.byte(ord(" "))]] == b""
    texts = table.texts(1, 1)
    assert texts.base[LEFT.word(" dog")] == texts.nudging[RIGHT.word(" dog")]
    assert texts.base[LEFT.word(" cat")] == texts.base[LEFT.word("cat")] == texts.nudging[RIGHT.word("cat")]
    assert texts.data[texts.base[LEFT.word("  ")]] == b" "
    assert table.texts(0, 0).data[table.texts(0, 0).base[LEFT.word(" cat")]] == b" cat", "one table for each case"


def blend(
    base: dict[int, float],
    nudging: dict[int, float],
    answer: bytes = b"x",
    vocabularies: tuple[ToyVocabulary, ToyVocabulary] = (LEFT, RIGHT),
    **sampling: Any,
) -> Any:
    """Draw from two given distributions; what they leave is on a control token."""
    writers = []
    for role, vocabulary, probs in zip(Role, vocabularies, (base, nudging), strict=True):
        row = np.full(len(vocabulary), 1e-12)
        for token, prob in probs.items():
            row[token] = prob
        row[0 if vocabulary is LEFT else 1] += max(0.0, 1.0 - row.sum())
        backend = FakeBackend(vocabulary, lambda _ids, row=row: np.log(row).astype(np.float32))
        params = SamplingParams(**sampling)
        writers.append(Writer(role, backend, Session(backend), Prompt((0,), b"Q", ()), params, 1))
    overlap = writers[0].sync(answer)
    table = TextTable(*(writer._backend for writer in writers))
    return Blender(*writers, table, SamplingParams(**sampling), 1).draw(answer, overlap)


def test_what_both_give_to_one_text_adds_up() -> None:
    """Neither model's best text wins: both have the same second one."""
    cat, dog, cats = LEFT.word("cat"), LEFT.word(" dog"), RIGHT.word(" cats")
    mixed = blend({dog: 0.4, cat: 0.35}, {cats: 0.4, RIGHT.word("cat"): 0.38})
    assert (mixed.author, mixed.token, mixed.instead) == (Role.NUDGING, RIGHT.word("cat"), b" dog")
    weight = 0.4 / (0.4 + 0.4) + AGREEMENT * 0.0
    assert weight * 0.38 + (1 - weight) * 0.35 > weight * 0.4


def test_a_tie_is_the_base_models() -> None:
    """The weight is one half where both are equally sure and the base model gives nothing to the other's best text."""
    base, nudging = {LEFT.byte(65): 0.5, LEFT.byte(66): 0.0}, {LEFT.byte(65): 0.0, LEFT.byte(66): 0.5}
    with np.errstate(divide="ignore"):
        mixed = blend(base | {LEFT.word("cat"): 0.4}, nudging | {LEFT.word("cat"): 0.4}, vocabularies=(LEFT, LEFT))
    assert (mixed.author, mixed.token) == (Role.BASE, LEFT.word("cat"))


def test_several_tokens_of_one_text_add_up_and_the_best_one_is_written() -> None:
    """Behind a blank " cat" and "cat" are the same."""
    base = {LEFT.word(" cat"): 0.25, LEFT.word("cat"): 0.3, LEFT.word(" dog"): 0.4}
    mixed = blend(base, {RIGHT.byte(65): 0.01}, answer=b"x ")
    assert (mixed.author, mixed.token) == (Role.BASE, LEFT.word("cat"))


def test_bytes_that_are_no_text_cannot_be_drawn() -> None:
    mixed = blend({LEFT.byte(0xFF): 0.9, LEFT.marker("<bos>"): 0.05, LEFT.byte(65): 0.04}, {RIGHT.byte(0x80): 0.9})
    assert (mixed.author, mixed.token) == (Role.BASE, LEFT.byte(65))


def test_nothing_to_draw_is_no_draw() -> None:
    """All of both models is on a control token; the rest is too little for a float."""
    certain = dict.fromkeys(range(len(LEFT)), 1e-300)
    with np.errstate(divide="ignore"):
        assert blend(certain | {0: 1.0}, {**dict.fromkeys(range(len(RIGHT)), 1e-300), 1: 1.0}) is None


def test_draws_from_the_mix_follow_it() -> None:
    p, q = {LEFT.byte(65): 0.5, LEFT.byte(66): 0.3, LEFT.byte(67): 0.2}, {RIGHT.byte(66): 0.6, RIGHT.byte(68): 0.4}
    weight = 0.6 / 1.1 + 0.1 * 0.3
    want = {65: (1 - weight) * 0.5, 66: weight * 0.6 + (1 - weight) * 0.3, 67: (1 - weight) * 0.2, 68: weight * 0.4}
    counts: dict[int, int] = dict.fromkeys(want, 0)
    for length in range(1, 1500):
        mixed = blend(p, q, b"x" * length, temp=1.0, top_k=0, top_p=1.0, min_p=0.0)
        vocabulary = LEFT if mixed.author is Role.BASE else RIGHT
        counts[vocabulary.pieces[mixed.token][0]] += 1
    for byte, prob in want.items():
        assert counts[byte] / 1499 == pytest.approx(prob, abs=0.04)


# --- thresholds


def test_defaults_and_limits() -> None:
    assert (DEFAULT_GAMMA[Rule.TOKEN], DEFAULT_GAMMA[Rule.BET], DEFAULT_GAMMA[Rule.BLEND]) == (0.4, 0.2, 0.4)
    assert isinstance(make_policy(NudgeParams(rule=Rule.TOKEN, gamma=1.1)), Solo)
    assert isinstance(make_policy(NudgeParams(rule=Rule.BLEND, gamma=1.1)), Blend)
    assert isinstance(make_policy(NudgeParams(rule=Rule.BET, gamma=1.0)), Bet)
    with pytest.raises(InputError, match=r"^gamma: for the rule bet it is a difference .* 1.5 is above"):
        build_request("hi", rule="bet", gamma=1.5)


def test_the_pairs_own_threshold_is_for_the_rules_about_the_base_models_own_probability() -> None:
    spec = PairSpec(*[__import__("pathlib").Path("x")] * 2, gamma=0.3)
    for rule in Rule:
        own = spec.resolve(build_request("hi", rule=rule)).nudge.threshold
        assert (own == 0.3) == (rule in (Rule.TOP_PROB, Rule.TOKEN, Rule.BLEND))


def test_a_draft_knows_how_sure_its_rest_was_drawn() -> None:
    draft = Draft(1, opens_answer=False)
    draft.push(b" ", top_prob=0.1)
    draft.push(b"one two", top_prob=0.2)
    draft.push(b" three", top_prob=0.3)
    draft.push(b" four", top_prob=0.4)
    seen = []
    while size := draft.word_size():
        draft.take(size)
        seen.append((draft.rest, draft.rest_prob))
    assert seen == [(b" two three four", 0.2), (b" three four", 0.3), (b" four", 0.4)]


# --- against the oracle


def assert_equals_reference(numbers: range, rule: str, curve: Any = None, **options: Any) -> None:
    for number in numbers:
        world = random_world(number, rule=rule)
        world.curve = curve
        assert world.answer(**options) == referred(world.reference()), f"world {number}"


@pytest.mark.parametrize("rule", NEW)
def test_the_new_rules_equal_the_reference(rule: str) -> None:
    assert_equals_reference(range(50), rule)
    assert_equals_reference(range(50, 80), rule, GUESSING)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", NEW)
def test_the_new_rules_equal_the_reference_in_thousands_of_worlds(rule: str) -> None:
    assert_equals_reference(range(30000, 32000), rule)
    assert_equals_reference(range(32000, 32500), rule, GUESSING)


FAULTS: dict[str, dict[str, Any]] = {
    "batches of one": {"n_batch": 1},
    "batches of three": {"n_batch": 3},
    "no rewind": {"can_rewind": False},
    "refuses every rewind": {"refuse": lambda n_keep: True},
    "refuses some rewinds": {"refuse": lambda n_keep: n_keep % 3 == 0},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rule", ["bet", "blend"])
def test_no_refusal_changes_a_result(rule: str, fault: str) -> None:
    assert_equals_reference(range(80, 95), rule, **FAULTS[fault])


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rule", ["bet", "blend"])
def test_no_refusal_changes_a_result_in_many_worlds(rule: str, fault: str) -> None:
    assert_equals_reference(range(33000, 33200), rule, **FAULTS[fault])


def test_one_model_that_cannot_rewind_and_one_that_can() -> None:
    for number in range(140, 170):
        world = random_world(number, rule="bet")
        for can_rewind in ((True, False), (False, True)):
            sessions = (Session(world.base(can_rewind=can_rewind[0])), Session(world.nudging(can_rewind=can_rewind[1])))
            assert decoded(list(world.decoder(sessions).run())) == referred(world.reference()), f"world {number}"


@pytest.mark.parametrize("rule", NEW)
def test_counts_add_up(rule: str) -> None:
    for number in range(170, 200):
        world = random_world(number, rule=rule)
        sessions = world.sessions()
        *_, finished = world.decoder(sessions).run()
        assert isinstance(finished, Finished)
        for role, session in zip(Role, sessions, strict=True):
            usage, backend = finished.usage.of(role), session._backend
            assert isinstance(backend, FakeBackend)
            assert (usage.n_evaluated, usage.n_calls) == (backend.n_evaluated, backend.n_calls), f"world {number}"
            assert min(usage.evaluated.values()) >= 0


def test_the_nudging_model_is_asked_only_where_the_bet_can_be_lost() -> None:
    """Of a base model that is very sure nothing is asked in its turn; of one that is not, at each place."""
    asked = {}
    for prob in (0.9, 0.5):
        base = {b"The": (" cat", prob), b" cat": (" sat", prob), b" sat": (" on", prob), b" on": (" mat", prob)}
        nudging = {b"Q": ("The", 0.5), b"The": (" mat", 0.5)} | dict.fromkeys((b"t", b" on"), ("<eos>", 0.5))
        world = scripted(base, nudging, rule="bet", gamma=0.2, max_tokens=5)
        *_, finished = world.decoder().run()
        assert isinstance(finished, Finished)
        assert world.answer().text == "The cat sat on mat"
        asked[prob] = finished.usage.nudging
        assert finished.usage.base.evaluated[Cause.WASTED] == 0, "nothing is written ahead"
    assert asked[0.5].n_calls == asked[0.9].n_calls + 3
    assert asked[0.5].evaluated[Cause.CATCH_UP] == asked[0.9].evaluated[Cause.CATCH_UP] + 3


# --- laws


def test_token_is_top_prob_where_nothing_is_sampled() -> None:
    for number in range(300, 340):
        token = random_world(number, rule="token", temp=0.0)
        assert token.answer() == random_world(number, rule="top_prob", temp=0.0).answer(), f"world {number}"
    differ = [
        random_world(number, rule="token", temp=1.5, gamma=0.3).answer().text
        != random_world(number, rule="top_prob", temp=1.5, gamma=0.3).answer().text
        for number in range(300, 340)
    ]
    assert sum(differ) > 3


@pytest.mark.parametrize(("rule", "gamma"), [("token", 0.0), ("bet", 1.0), ("blend", 0.0)])
def test_the_other_end_is_the_base_model_alone_after_the_opening_word(rule: str, gamma: float) -> None:
    """As top_prob with gamma 0, which test_decoder.py compares with the base model itself."""
    for number in range(5700, 5730):
        settings: dict[str, Any] = (
            {"temp": 0.0} if rule != "bet" else {"temp": random.Random(number).choice([0.0, 0.8])}
        )
        got = random_world(number, rule=rule, gamma=gamma, **settings).answer()
        want = random_world(number, rule="top_prob", gamma=0.0, **settings).answer()
        assert got == want, f"world {number}"


def test_token_above_one_is_the_nudging_model_alone() -> None:
    for number in range(340, 360):
        world = random_world(number, rule="token", gamma=1.5)
        assert world.answer() == random_world(number, rule="nudging-only").answer(), f"world {number}"


def twins(seed: int, sure: float = 0.5, **settings: Any) -> World:
    """Two copies of one model, of which no token reaches over the end of a word."""
    vocabulary = ToyVocabulary((" the", " cat", "ing", " a", "ab", "abc", " un", "é", "\n\n"))
    by_ids = hashed_scores(vocabulary, seed, eog_rate=0.02, sure=sure)

    def by_text(ids: tuple[int, ...]) -> Any:
        text = b"".join(vocabulary.pieces[i] for i in ids)
        return by_ids(tuple(text.removeprefix(b"Q\n").lstrip(b" ")))

    make = lambda **options: FakeBackend(vocabulary, by_text, **options)  # noqa: E731
    request = build_request("hi", **{"max_tokens": 40, "loop_guard": False, "end_prob": 0.3, **settings})
    return World(request, make, make, Prompt((0,), b"Q\n", ()), Prompt((0,), b"Q\n", ()))


@pytest.mark.parametrize(
    ("rule", "gamma"), [("token", 0.4), ("bet", 0.1), ("bet", 0.0), ("blend", 0.4), ("blend", 2.0)]
)
def test_two_copies_of_one_model_give_its_text(rule: str, gamma: float) -> None:
    n_mixed = 0
    for seed in range(20):
        mixed, alone = twins(seed, rule=rule, gamma=gamma), twins(seed, rule="nudging-only")
        got, want = mixed.answer(), alone.answer()
        assert got.text.startswith(want.text) or want.text.startswith(got.text), f"seed {seed}"
        n_mixed += len({unit[0] for unit in got.units}) == 2
    if gamma <= 1.0:  # above, both draw everywhere, and the nudging model gives more to whatever is best
        assert n_mixed > 8


# --- single behaviours, on scripts

WORDS = ToyVocabulary((" the", " cat", "cat", " sat", " on", " mat", "The", " cats"))


def scripted(base: dict[bytes, Any], nudging: dict[bytes, Any], **settings: Any) -> World:
    """Each model's next token and its probability by how the text ends; the runner-up is spread over all."""

    def scorer(table: dict[bytes, Any]) -> Scorer:
        def rule(text: bytes) -> tuple[str | int, float]:
            return next((found for end, found in table.items() if text.endswith(end)), ("<eos>", 0.9))

        return scripted_scores(WORDS, rule, runner_up="no such piece")

    base_scorer, nudging_scorer = scorer(base), scorer(nudging)
    return World(
        build_request("hi", **{"max_tokens": 20, "end_prob": 2.0, **settings}),
        lambda **options: FakeBackend(WORDS, base_scorer, **options),
        lambda **options: FakeBackend(WORDS, nudging_scorer, **options),
        Prompt((0,), b"Q", ()),
        Prompt((0,), b"Q", ()),
    )


def units(world: World) -> list[tuple[str, str, str]]:
    assert world.answer() == referred(world.reference())
    return [(unit[0].value, unit[1], unit[3]) for unit in world.answer().units]


def test_the_base_models_turn_ends_where_the_bet_is_lost() -> None:
    base = {b"The": (" cat", 0.7), b" cat": (" sat", 0.5), b" sat": (" on", 0.3), b" on": (" the", 0.9)}
    nudging = {b"Q": ("The", 0.9), b"The": (" mat", 0.6), b" cat": (" mat", 0.65), b" sat": (" mat", 0.9)}
    world = scripted(base, nudging | {b" mat": ("<eos>", 0.9)}, rule="bet", gamma=0.2)
    assert units(world) == [
        ("nudging", "The", "opening"),
        ("base", " cat", "confident"),  # 0.7 against 0.6
        ("base", " sat", "confident"),  # 0.5 against 0.65, within the margin
        ("nudging", " mat", "unsure"),  # 0.3 against 0.9
    ]


def test_inside_a_token_of_the_nudging_model_there_is_no_opinion() -> None:
    """The base model writes " cat" and "s", the nudging model knows " cats" as one token."""
    nudging_words = ToyVocabulary((" cats", " cat", " mat", "The"))
    base = {b"The": (" cat", 0.9), b" cat": ("s", 0.1), b" cats": (" sat", 0.9), b" sat": (" on", 0.1)}
    nudging = {b"Q": ("The", 0.9), b"The": (" mat", 0.6), b" cat": (" mat", 0.9), b" cats": (" mat", 0.6)}
    world = scripted(base, nudging, rule="bet", gamma=0.2)
    scorer = scripted_scores(
        nudging_words,
        lambda text: next((found for end, found in nudging.items() if text.endswith(end)), ("<eos>", 0.9)),
        runner_up="no such piece",
    )
    world.nudging = lambda **options: FakeBackend(nudging_words, scorer, **options)
    assert [unit[:2] for unit in units(world)][:4] == [
        ("nudging", "The"), ("base", " cat"), ("base", "s"), ("base", " sat"),
    ]  # fmt: skip


def test_what_is_drawn_from_the_mix_is_the_authors() -> None:
    base = {b"The": (" cat", 0.3), b" cat": (" sat", 0.9), b" sat": (" on", 0.2), b" on": ("<eos>", 0.9)}
    nudging = {b"Q": ("The", 0.9), b"The": (" mat", 0.2), b" sat": (" mat", 0.6), b" mat": ("<eos>", 0.9)}
    world = scripted(base, nudging, rule="blend", gamma=0.4)
    assert units(world) == [
        ("nudging", "The", "opening"),
        ("base", " cat", "blended"),  # 0.3 against 0.2
        ("base", " sat", "blended"),  # sure: the turn goes on
        ("nudging", " mat", "blended"),  # 0.2 against 0.6
    ]


def test_the_base_model_goes_on_with_what_was_drawn_in_its_turn() -> None:
    base = {b"The": (" cat", 0.9), b" cat": (" sat", 0.35), b" sat": (" on", 0.9), b" on": ("<eos>", 0.9)}
    nudging = {b"Q": ("The", 0.9), b"The": (" mat", 0.9), b" cat": (" mat", 0.3), b" on": (" mat", 0.9)}
    world = scripted(base, nudging | {b" mat": ("<eos>", 0.9)}, rule="blend", gamma=0.4)
    assert units(world)[:4] == [
        ("nudging", "The", "opening"),
        ("base", " cat", "confident"),
        ("base", " sat", "confident"),
        ("base", " on", "confident"),
    ]
    assert world.answer().units[2][6] == b" mat", "what the nudging model would have written"


@pytest.mark.parametrize("nudging_end", [0.6, 0.01])
def test_only_the_nudging_models_end_ends_a_mix(nudging_end: float) -> None:
    """Behind " cat" both are unsure; the end is the best text, and its author says what it means."""
    base = {b"The": (" cat", 0.9), b" cat": ("<eos>", 0.35), b" sat": ("<eos>", 0.9)}
    nudging = {
        b"Q": ("The", 0.9), b"The": (" mat", 0.9), b" cat": ("<eos>", 0.6), b" sat": ("<eos>", 0.9),
    }  # fmt: skip
    if nudging_end < 0.1:
        nudging[b" cat"] = (" sat", 0.08)
    world = scripted(base, nudging, rule="blend", gamma=0.4)
    if nudging_end > 0.1:
        assert units(world) == [("nudging", "The", "opening"), ("base", " cat", "confident")]
        assert world.answer().detail == "end_of_generation"
    else:
        assert units(world)[2] == ("nudging", " sat", HandoffReason.BASE_END.value)


def test_inside_a_character_the_nudging_model_takes_over_without_a_mix() -> None:
    first, second = "é".encode()
    base = {
        b"The": (WORDS.byte(first), 0.9), bytes([first]): (WORDS.byte(second), 0.1), b" mat": ("<eos>", 0.9),
    }  # fmt: skip
    world = scripted(
        base, {b"Q": ("The", 0.9), b"The": (" mat", 0.6), b" mat": ("<eos>", 0.9)}, rule="blend", gamma=0.4
    )
    assert units(world) == [("nudging", "The", "opening"), ("nudging", " mat", "unsure")]
