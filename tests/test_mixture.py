"""Mixtures: the arithmetic against plain numpy, the loop against an oracle that evaluates everything from nothing."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from worlds import BASE_VOCABULARY, Answer, World, decoded, random_scorer

from edge_nudge.core.events import Finished, HandoffReason, Piece, Role, TokenScore
from edge_nudge.core.mixture import (
    Ensemble,
    Member,
    Mix,
    MixtureDecoder,
    ProxyTuning,
    average_scores,
    check_vocabularies,
    tuned_scores,
)
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.core.sampling import Reader, Sampler
from edge_nudge.core.session import Session
from edge_nudge.errors import ContextOverflowError, EngineError, InputError, NonFiniteScoresError
from edge_nudge.testing import FakeBackend, Scorer, ToyVocabulary, hashed_scores, scripted_scores

Row = NDArray[np.float32]
NAMES = ("base", "nudging", "untuned")

# --- the arithmetic


def softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """The textbook's, in double precision."""
    weights = np.exp(np.asarray(scores, dtype=np.float64) - np.max(scores))
    return np.asarray(weights / np.sum(weights))


def rows(n_rows: int, *, impossible: bool = False) -> st.SearchStrategy[list[Row]]:
    score = st.floats(-60, 60, width=32)
    values = st.one_of(score, st.just(-float("inf"))) if impossible else score

    def of_size(n_vocab: int) -> st.SearchStrategy[list[Row]]:
        row = st.lists(values, min_size=n_vocab, max_size=n_vocab).filter(lambda row: max(row) > -np.inf)
        return st.lists(row.map(lambda row: np.array(row, dtype=np.float32)), min_size=n_rows, max_size=n_rows)

    return st.integers(1, 12).flatmap(of_size)


@given(rows(2, impossible=True))
def test_the_ensemble_is_the_mean_of_the_probabilities(pair: list[Row]) -> None:
    base, nudging = pair
    mean = np.mean([softmax(base), softmax(nudging)], axis=0)
    mixed = average_scores(base, nudging)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(np.exp(mixed.astype(np.float64)), mean, rtol=2e-5, atol=1e-12)


@given(rows(1))
def test_the_ensemble_of_a_row_with_itself_keeps_its_order(only: list[Row]) -> None:
    row = only[0]
    mixed = average_scores(row, row)
    np.testing.assert_allclose(softmax(mixed), softmax(row), rtol=2e-5, atol=1e-12)
    assert np.all(np.diff(mixed[np.argsort(row, kind="stable")]) >= 0)


@given(rows(3), st.floats(0, 100))
def test_proxy_tuning_adds_the_difference(three: list[Row], alpha: float) -> None:
    base, nudging, untuned = (row.astype(np.float64) for row in three)
    wanted = base + alpha * (nudging - untuned)
    np.testing.assert_allclose(tuned_scores(*three, alpha), wanted, rtol=1e-5, atol=1e-5 * (1 + alpha))


@given(rows(2), st.floats(0, 100))
def test_proxy_tuning_that_changes_nothing_is_the_base_model_bit_for_bit(pair: list[Row], alpha: float) -> None:
    base, other = pair
    assert np.array_equal(tuned_scores(base, other, other, alpha), base)
    assert np.array_equal(tuned_scores(base, other, base, 0.0), base)


@given(rows(3, impossible=True), st.floats(0, 10))
def test_what_a_model_rules_out_is_not_written(three: list[Row], alpha: float) -> None:
    mixed = tuned_scores(*three, alpha)
    is_possible = np.isfinite(three).all(axis=0)
    assert np.array_equal(np.isfinite(mixed), is_possible)
    assert np.all(mixed[~is_possible] == -np.inf)


# --- worlds: three models of one vocabulary


@dataclass
class MixtureWorld:
    """Everything one answer needs; fresh backends each time they are asked for."""

    request: GenerateRequest
    mix: Mix
    models: list[Callable[..., FakeBackend]]
    prompts: list[Prompt]
    seed: int = 1

    def sessions(self, **options: Any) -> list[Session]:
        return [Session(make(**options)) for make in self.models]

    def decoder(
        self, sessions: list[Session] | None = None, is_cancelled: Callable[[], bool] = lambda: False
    ) -> MixtureDecoder:
        members = [
            Member(name, session._backend, session, prompt)
            for name, session, prompt in zip(NAMES, sessions or self.sessions(), self.prompts, strict=False)
        ]
        clock = iter(range(1 << 30))
        return MixtureDecoder(
            members, self.mix, self.request, seed=self.seed, clock=lambda: next(clock), is_cancelled=is_cancelled
        )

    def answer(self, **options: Any) -> Answer:
        return decoded(list(self.decoder(self.sessions(**options)).run()))

    def base_alone(self) -> Answer:
        """The base model's answer by the decoder."""
        request = self.request.model_copy(
            update={"nudge": self.request.nudge.model_copy(update={"rule": "base-only"})},
        )
        world = World(request, self.models[0], self.models[0], self.prompts[0], self.prompts[0], seed=self.seed)
        return world.answer()


def random_mixture(number: int, **fixed: Any) -> MixtureWorld:
    """Return world `number`; `fixed` overrides request settings and, by `mix`, the mix."""
    rng = random.Random(number)
    mix: Mix = rng.choice([Ensemble(), ProxyTuning(), ProxyTuning(rng.choice([0.3, 2.0]))])
    settings: dict[str, Any] = {
        "max_tokens": rng.choice([None, 0, 1, 2, 7, 30, 60]),
        "temp": rng.choice([0.0, 0.0, 0.7, 1.5]),
        "stop": rng.choice([[], [], [], [" the"], ["cat s", "e c"], ["at", "a"], ["\n\n"]]),
        "loop_guard": rng.random() < 0.8,
        "logprobs": (None, 0, 1, 3)[number % 4],
        "raw_prompt": rng.choice([None, None, "raw"]),
    }
    mix = fixed.pop("mix", mix)
    settings.update(fixed)
    n_models = 2 if isinstance(mix, Ensemble) else 3
    ends = rng.choice([(), (b"Q:",), (b"\n\n", b" Q:")])
    prompts = [
        Prompt((0,) if rng.random() < 0.8 else (), rng.choice([b"Q: hi\nA: ", b"the cat", b"a "]), ends),
        Prompt((0, 2, 41, 3), rng.choice([b"", b"a\n", b"x "])),
        Prompt((0,), rng.choice([b"Q: hi\nA: ", b"the cat"]), ends),
    ]
    n_ctx = 60 if settings["max_tokens"] is None else 4096
    sizes = [{"n_ctx": rng.choice([n_ctx, n_ctx, 30, 45]), "n_batch": rng.choice([512, 512, 1, 3])} for _ in prompts]
    scorers = [random_scorer(rng, BASE_VOCABULARY) for _ in prompts]

    def maker(name: str, scorer: Scorer, size: dict[str, int]) -> Callable[..., FakeBackend]:
        return lambda **options: FakeBackend(BASE_VOCABULARY, scorer, **{"name": name, **size, **options})

    models = [maker(*given) for given in zip(NAMES, scorers, sizes, strict=True)]
    return MixtureWorld(build_request("hi", **settings), mix, models[:n_models], prompts[:n_models], seed=number)


def mixtures(numbers: range, **fixed: Any) -> list[tuple[int, MixtureWorld]]:
    return [(number, random_mixture(number, **fixed)) for number in numbers]


# --- the oracle


@dataclass
class Written:
    """A stretch of the oracle's answer: a whole character, or several, and the tokens that begin in it."""

    data: bytes
    starts: list[int]  # of the tokens, in the data
    author: Role
    top_prob: float


class Oracle:
    """The mixture written plainly: each step evaluates all texts from nothing, each guard looks at the whole answer."""

    def __init__(self, world: MixtureWorld) -> None:
        self.world, self.request = world, world.request
        self.backends = [make() for make in world.models]
        self.answer_ids: list[int] = []
        self.units: list[Written] = []
        self.rest = b""  # of a character
        self.waiting: list[tuple[int, float, float, float]] = []  # start in `rest`, top_prob, p of base and nudging
        self.n_left = 0
        self.stop_string: str | None = None
        self.run_floor = 0
        self.scores: list[tuple[int, float]] = []

    @property
    def text(self) -> bytes:
        return b"".join(unit.data for unit in self.units)

    @property
    def n_tokens(self) -> int:
        return sum(len(unit.starts) for unit in self.units)

    def run(self) -> str:
        prompts = [self.prompt_ids(*given) for given in zip(self.backends, self.world.prompts, strict=True)]
        tail = self.world.prompts[0].tail
        n_blanks = len(tail) - len(tail.rstrip(b" ")) if tail.strip(b" ") or self.world.prompts[0].head else 0
        self.n_left = n_blanks if self.request.raw_prompt is not None else 10**6
        limit = self.request.max_tokens
        if limit == 0:
            return "max_tokens"
        while True:
            for name, backend, ids in zip(NAMES, self.backends, prompts, strict=False):
                if len(ids) + len(self.answer_ids) >= backend.info.n_ctx:
                    return "base_context" if name == "base" else "nudging_context"
            if (detail := self.step([ids + self.answer_ids for ids in prompts])) is not None:
                return detail
            if limit is not None and len(self.waiting) >= limit - self.n_tokens:
                return "max_tokens"

    @staticmethod
    def prompt_ids(backend: FakeBackend, prompt: Prompt) -> list[int]:
        shown = prompt.tail.rstrip(b" ") if prompt.head or prompt.tail.strip(b" ") else prompt.tail
        return [*prompt.head, *backend.tokenize(shown)]

    def step(self, texts: list[list[int]]) -> str | None:
        found = [self.evaluate(*given) for given in zip(self.backends, texts, strict=True)]
        mix = self.world.mix
        if isinstance(mix, ProxyTuning):
            base, nudging, untuned = found
            mixed = base + np.float32(mix.alpha) * (nudging - untuned)
        else:
            mixed = np.log((softmax(found[0]) + softmax(found[1])) * 0.5).astype(np.float32)
        sampler = Sampler(self.request.sampling, Role.BASE, self.world.seed)
        token = sampler.draw(mixed, Reader(len(mixed), "mixed"), len(texts[0]))
        backend = self.backends[0]
        if backend.is_eog(token):
            return "end_of_generation"
        piece = backend.piece(token)
        if not piece or not self.can_follow(piece):
            return "control_token"
        self.answer_ids.append(token)
        self.scores.append((token, float(np.log(softmax(mixed)[token]))))
        self.push(piece, float(softmax(found[0]).max()), *(float(softmax(row)[token]) for row in found[:2]))
        return self.accept()

    @staticmethod
    def evaluate(backend: FakeBackend, ids: list[int]) -> Row:
        backend.clear()
        for start in range(0, len(ids), backend.info.n_batch):
            batch = ids[start : start + backend.info.n_batch]
            backend.evaluate(batch, [len(batch) - 1])
        return backend.scores(len(batch) - 1).copy()

    def can_follow(self, piece: bytes) -> bool:
        """Tell whether the piece, and perhaps some bytes behind it, are whole characters."""
        data = self.rest + piece
        return any(is_text(data + bytes(more)) for n in range(4) for more in product([0x80, 0x90, 0xA0], repeat=n))

    def push(self, piece: bytes, top_prob: float, p_base: float, p_nudging: float) -> None:
        while self.n_left and piece.startswith(b" "):
            piece, self.n_left = piece[1:], self.n_left - 1
        if piece:
            self.n_left = 0
        self.waiting.append((len(self.rest), top_prob, p_base, p_nudging))
        self.rest += piece

    def accept(self) -> str | None:
        size = next(n for n in range(len(self.rest), -1, -1) if is_text(self.rest[:n]))
        if not size:
            return None
        data, self.rest = self.rest[:size], self.rest[size:]
        taken = [token for token in self.waiting if token[0] < size]
        self.waiting = self.waiting[len(taken) :]
        whole = np.prod([[p_base, p_nudging] for _, _, p_base, p_nudging in taken], axis=0)
        is_nudged = isinstance(self.world.mix, Ensemble) and whole[1] > whole[0]
        author = Role.NUDGING if is_nudged else Role.BASE
        unit = Written(data, [token[0] for token in taken], author, taken[0][1])
        limit = self.request.max_tokens
        n_room = 10**9 if limit is None else limit - self.n_tokens
        is_last = len(unit.starts) >= n_room
        if len(unit.starts) > n_room:
            n_bytes = unit.starts[n_room]
            while not is_text(data[:n_bytes]):
                n_bytes -= 1
            unit = cut(unit, n_bytes)
        if unit.data:
            n_old = len(self.text)
            self.units.append(unit)
            for strings, detail in (
                ([s.encode() for s in self.request.stop], "stop_string"),
                (list(self.world.prompts[0].end_strings), "end_of_generation"),
            ):
                if (found := self.first_match(strings, n_old)) is not None:
                    self.stop_string = found[1].decode() if detail == "stop_string" else None
                    self.cut(found[0] - len(found[1]))
                    return detail
            if self.request.nudge.loop_guard and self.is_loop():
                return "loop"
        return "max_tokens" if is_last else None

    def first_match(self, strings: list[bytes], n_old: int) -> tuple[int, bytes] | None:
        for end in range(n_old + 1, len(self.text) + 1):
            matches = [string for string in strings if self.text[:end].endswith(string)]
            if matches:
                return end, max(matches, key=len)
        return None

    def is_loop(self) -> bool:
        text, at, starts = self.text, 0, []
        for unit in self.units:
            starts.append(at)
            at += len(unit.data)
        for i, start in enumerate(starts):
            places = [place for place in range(start) if text.startswith(text[start:], place)]
            if start < self.run_floor or not places:
                continue
            self.run_floor, run = start, text[start:]
            n_tokens = sum(len(unit.starts) for unit in self.units[i:])
            overlaps = any(place + len(run) > start for place in places)
            if n_tokens < 16 or not overlaps:
                return False
            self.cut(start)
            return True
        self.run_floor = len(text)
        return False

    def cut(self, end: int) -> None:
        kept, at = [], 0
        for unit in self.units:
            if at < end:
                kept.append(cut(unit, end - at))
            at += len(unit.data)
        self.units = kept


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def cut(unit: Written, n_bytes: int) -> Written:
    if n_bytes >= len(unit.data):
        return unit
    return Written(unit.data[:n_bytes], [s for s in unit.starts if s < n_bytes], unit.author, unit.top_prob)


def assert_equals_oracle(numbers: range, **fixed: Any) -> set[str]:
    seen: set[str] = set()
    for number, world in mixtures(numbers, **fixed):
        answer, oracle = world.answer(), Oracle(world)
        detail = oracle.run()
        assert (answer.detail, answer.stop_string) == (detail, oracle.stop_string), f"world {number}"
        got = [(author, text, n_tokens) for author, text, _, _, n_tokens, *_ in answer.units]
        assert got == [(u.author, u.data.decode(), len(u.starts)) for u in oracle.units], f"world {number}"
        assert [unit[2] for unit in answer.units] == pytest.approx([u.top_prob for u in oracle.units], rel=1e-5)
        assert all((unit[3], unit[6]) == (HandoffReason.POLICY.value, None) for unit in answer.units)
        assert_scores(world, answer, oracle)
        seen |= {detail, *(unit[0].value for unit in answer.units)}
    return seen


def assert_scores(world: MixtureWorld, answer: Answer, oracle: Oracle) -> None:
    tokens: list[TokenScore] = [token for unit in answer.units for token in unit[5] if not token.is_rest]
    if world.request.logprobs is None:
        assert tokens == []
        return
    assert "".join(unit[1] for unit in answer.units).encode() == b"".join(
        token.data for unit in answer.units for token in unit[5]
    )
    for token, (wanted_id, wanted) in zip(tokens, oracle.scores, strict=False):
        assert (token.id, token.logprob) == (wanted_id, pytest.approx(wanted, rel=1e-4, abs=1e-4))


def test_equals_the_oracle() -> None:
    assert_equals_oracle(range(300))


@pytest.mark.thorough
def test_equals_the_oracle_in_many_worlds() -> None:
    seen = assert_equals_oracle(range(10000, 12500))
    assert seen >= {
        "end_of_generation", "control_token", "stop_string", "loop", "max_tokens", "base_context", "nudging_context",
        "base", "nudging",
    }  # fmt: skip


def test_proxy_tuning_has_one_author() -> None:
    for number, world in mixtures(range(40), mix=ProxyTuning()):
        assert {unit[0] for unit in world.answer().units} <= {Role.BASE}, f"world {number}"


FAULTS = {
    "batches of one": {"n_batch": 1},
    "no rewind": {"can_rewind": False},
    "no rewind, small batches": {"can_rewind": False, "n_batch": 2},
    "refuses every rewind": {"refuse": lambda n_keep: True},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_never_changes_a_result(fault: str) -> None:
    for number, world in mixtures(range(2000, 2030)):
        sessions = world.sessions(**FAULTS[fault])
        for _ in range(2):
            assert decoded(list(world.decoder(sessions).run())) == world.answer(), f"world {number}"


# --- one model alone


def equals_base_alone(world: MixtureWorld, number: int) -> bool:
    """Compare with the decoder's base-only answer; tell whether there was something to compare."""
    got, wanted = world.answer(), world.base_alone()
    assert got.text == wanted.text, f"world {number}"
    # a mixture does not go on where no more of the answer can be shown
    assert got.detail == wanted.detail or got.detail == "max_tokens", f"world {number}"
    assert got.stop_string == wanted.stop_string
    for mine, theirs in zip(got.units, wanted.units, strict=True):
        assert (mine[0], mine[1], mine[3], mine[4]) == (theirs[0], theirs[1], theirs[3], theirs[4]), f"world {number}"
        if mine[4] == 1:  # of a character in several tokens the decoder tells what it thought at the last one
            assert mine[2] == theirs[2], f"world {number}"
    return len(got.units) > 3


def test_the_ensemble_of_two_copies_is_the_model_alone() -> None:
    n_compared = 0
    for number, world in mixtures(range(3000, 3200), mix=Ensemble()):
        world.models[1], world.prompts[1] = world.models[0], world.prompts[0]
        n_compared += equals_base_alone(world, number)
    assert n_compared > 50


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_proxy_tuning_by_a_model_that_was_not_tuned_is_the_base_model_alone(alpha: float) -> None:
    n_compared = 0
    for number, world in mixtures(range(3100, 3160), mix=ProxyTuning(alpha), max_tokens=30):
        world.models[1:] = [roomy(world.models[1])] * 2
        world.prompts[1:] = [world.prompts[1]] * 2
        n_compared += equals_base_alone(world, number)
    assert n_compared > 15


def test_alpha_zero_is_the_base_model_alone() -> None:
    n_compared = 0
    for number, world in mixtures(range(3200, 3280), mix=ProxyTuning(0.0), max_tokens=30):
        world.models[1:] = map(roomy, world.models[1:])
        n_compared += equals_base_alone(world, number)
        if world.request.logprobs is not None:
            assert [unit[5] for unit in world.answer().units] == [unit[5] for unit in world.base_alone().units]
    assert n_compared > 20


def roomy(make: Callable[..., FakeBackend]) -> Callable[..., FakeBackend]:
    """The same model with a context that never ends the answer."""
    return lambda **options: make(**{"n_ctx": 4096, **options})


# --- guards, limits, text


@given(
    st.integers(0, 10**6),
    st.lists(st.text(" abcdefgh.thecats\n", min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from([Ensemble(), ProxyTuning()]),
)
def test_a_stop_string_cuts_the_text_and_never_leaks(number: int, stop: list[str], mix: Mix) -> None:
    fixed = {"loop_guard": False, "max_tokens": 25, "raw_prompt": "raw"}
    without = random_mixture(number, mix=mix, stop=[], **fixed).answer()
    got = random_mixture(number, mix=mix, stop=stop, **fixed).answer()
    assert not any(string in got.text for string in stop)
    assert without.text.startswith(got.text)
    if got.detail == "stop_string":
        # or the base model's own end of a turn begins with the stop string, and was cut off there
        is_turn_end = (without.text, without.detail) == (got.text, "end_of_generation")
        assert is_turn_end or without.text.startswith(got.text + str(got.stop_string))
    else:
        assert (got.text, got.detail) == (without.text, without.detail)


def test_the_limit_is_exact() -> None:
    """Where every token is a whole character nothing but the limit ends these answers."""
    vocabulary = ToyVocabulary((" the", " cat", "ing"))
    for seed in range(20):
        makers = [maker(vocabulary, hashed_scores(vocabulary, seed * 3 + i, eog_rate=0.0)) for i in range(2)]
        prompts = [Prompt((0,), b"x"), Prompt((0, 2), b"")]
        for limit in (1, 2, 9):
            request = build_request("hi", max_tokens=limit, loop_guard=False, raw_prompt="x")
            sessions = [Session(make()) for make in makers]
            events = list(MixtureWorld(request, Ensemble(), makers, prompts).decoder(sessions).run())
            finished = events[-1]
            assert isinstance(finished, Finished)
            assert finished.detail.value == "max_tokens"
            assert finished.usage.n_completion == limit
            # the last token is drawn, not evaluated
            assert [len(session) for session in sessions] == [2 + limit - 1, 2 + limit - 1]


def test_no_more_is_evaluated_than_the_limit_allows() -> None:
    """Also where blanks in front of the answer, or bytes of a character, show nothing for a long time."""
    vocabulary = ToyVocabulary((" the",))
    blanks = scripted_scores(vocabulary, lambda text: (" ", 0.9))
    makers = [maker(vocabulary, blanks)] * 2
    request = build_request("hi", max_tokens=5)
    sessions = [Session(make()) for make in makers]
    world = MixtureWorld(request, Ensemble(), makers, [Prompt((0,), b"Q"), Prompt((0,), b"Q")])
    answer = decoded(list(world.decoder(sessions).run()))
    assert (answer.text, answer.detail) == ("", "max_tokens")
    assert [len(session) for session in sessions] == [6, 6]


def test_a_longer_limit_only_adds() -> None:
    for number, world in mixtures(range(4000, 4030), loop_guard=False, stop=[]):
        texts = []
        for limit in (3, 4, 15, 40):
            request = world.request.model_copy(update={"max_tokens": limit})
            texts.append(dataclasses.replace(world, request=request).answer().text)
        for shorter, longer in pairwise(texts):
            assert longer.startswith(shorter), f"world {number}"


@pytest.mark.parametrize("mix", [Ensemble(), ProxyTuning()])
def test_characters_in_several_tokens_come_whole(mix: Mix) -> None:
    """Both models write one text, byte by byte; a byte that breaks it would end the answer."""
    wanted = "aé日本👩\u200d🔬ü."
    vocabulary = ToyVocabulary((" the",))
    data = wanted.encode()

    def rule(prompt: bytes) -> Callable[[bytes], tuple[str | int, float]]:
        def next_byte(text: bytes) -> tuple[str | int, float]:
            n_written = len(text) - len(prompt)
            return (vocabulary.byte(data[n_written]), 0.9) if n_written < len(data) else ("<eos>", 0.9)

        return next_byte

    prompts = [b"Q", b"abc", b""]
    makers = [maker(vocabulary, scripted_scores(vocabulary, rule(prompt))) for prompt in prompts]
    n_models = 2 if isinstance(mix, Ensemble) else 3
    world = MixtureWorld(
        build_request("hi", loop_guard=False), mix, makers[:n_models], [Prompt((0,), p) for p in prompts[:n_models]]
    )
    pieces = [event for event in world.decoder().run() if isinstance(event, Piece)]
    assert [piece.text for piece in pieces] == list(wanted)
    assert [piece.n_tokens for piece in pieces] == [len(character.encode()) for character in wanted]
    assert world.answer().detail == "end_of_generation"


def test_a_byte_that_breaks_a_character_ends_the_answer() -> None:
    vocabulary = ToyVocabulary((" the",))
    broken = scripted_scores(vocabulary, lambda text: (vocabulary.byte(0xE6 if text.endswith(b"a") else 0x61), 0.9))
    world = MixtureWorld(build_request("hi"), Ensemble(), [maker(vocabulary, broken)] * 2, [Prompt((0,), b"Q")] * 2)
    assert (world.answer().text, world.answer().detail) == ("a", "control_token")


# --- who is named, and what ends an answer

TEXT = ToyVocabulary((" the", " cat", " sat", " on", "The", "\n\n"))


def maker(vocabulary: ToyVocabulary, scorer: Scorer, name: str = "fake") -> Callable[..., FakeBackend]:
    return lambda **options: FakeBackend(vocabulary, scorer, **{"name": name, **options})


def scripted(base: Scorer, nudging: Scorer, **settings: Any) -> MixtureWorld:
    makers = [maker(TEXT, base, "base"), maker(TEXT, nudging, "nudging")]
    return MixtureWorld(
        build_request("hi", **settings), Ensemble(), makers, [Prompt((0,), b"Q\n"), Prompt((0, 2), b"")]
    )


def follow(*words: tuple[str, float], prompt: str = "", runner_up: str = " the") -> Scorer:
    """A model that finds these words so probable, in their order, whatever was really written, and then ends."""

    def rule(text: bytes) -> tuple[str | int, float]:
        n_words = sum(text.count(piece) for piece in (b"The", b" cat", b" sat", b" on"))
        return words[n_words] if n_words < len(words) else ("<eos>", 0.9)

    return scripted_scores(TEXT, rule, runner_up=runner_up)


def test_a_piece_belongs_to_the_model_that_finds_it_more_probable() -> None:
    base = follow(("The", 0.9), (" cat", 0.4), (" sat", 0.6))
    nudging = follow(("The", 0.5), (" on", 0.9), (" sat", 0.6))
    pieces = [event for event in scripted(base, nudging).decoder().run() if isinstance(event, Piece)]
    assert [(piece.text, piece.author) for piece in pieces] == [
        ("The", Role.BASE),
        (" on", Role.NUDGING),
        (" sat", Role.BASE),  # a tie
    ]
    assert [piece.top_prob for piece in pieces] == pytest.approx([0.9, 0.6, 0.6], abs=0.01)


def test_counts_follow_the_author_and_a_full_answer_is_one_stream() -> None:
    for number, world in mixtures(range(4100, 4140)):
        sessions = world.sessions()
        decoder = world.decoder(sessions)
        events = list(decoder.run())
        pieces, finished = [event for event in events if isinstance(event, Piece)], events[-1]
        assert isinstance(finished, Finished)
        assert len(pieces) == len(events) - 1, f"world {number}"
        assert finished.usage.n_handoffs == 0
        usages = [finished.usage.base, finished.usage.nudging, decoder.untuned_usage]
        for session, usage in zip(sessions, usages, strict=False):
            backend = session._backend
            assert isinstance(backend, FakeBackend)
            assert (usage.n_evaluated, usage.n_calls) == (backend.n_evaluated, backend.n_calls), f"world {number}"
        if len(sessions) == 2:
            assert decoder.untuned_usage.n_evaluated == decoder.untuned_usage.n_prompt == 0
        for role in Role:
            usage = finished.usage.of(role)
            assert usage.n_written == sum(piece.n_tokens for piece in pieces if piece.author is role)
            assert usage.n_chars == sum(len(piece.text) for piece in pieces if piece.author is role)
        if world.request.max_tokens is not None:
            assert finished.usage.n_completion <= world.request.max_tokens
        assert (finished.usage.first_piece_s is None) == (not pieces)


def test_the_end_token_of_either_model_ends_the_answer() -> None:
    """Another token than the base model's own; where it ends nothing it is a control token still."""
    others = ToyVocabulary(TEXT.words, eog=("<eos>", "<|end|>", "<|turn|>"))
    turn = scripted_scores(TEXT, lambda text: ("<|turn|>" if text.endswith(b"The") else "The", 0.9))
    for vocabulary, detail in ((TEXT, "control_token"), (others, "end_of_generation")):
        makers = [maker(TEXT, turn), maker(vocabulary, turn)]
        world = MixtureWorld(build_request("hi"), Ensemble(), makers, [Prompt((0,), b"Q\n"), Prompt((0,), b"a")])
        assert (world.answer().text, world.answer().detail) == ("The", detail)


def test_a_marker_of_either_model_is_no_text() -> None:
    """Files of base models often have chat markers as ordinary text."""

    class WithoutMarker(FakeBackend):
        def piece(self, token: int) -> bytes:
            return b"<|turn|>" if token == TEXT.marker("<|turn|>") else super().piece(token)

    turn = scripted_scores(TEXT, lambda text: ("<|turn|>" if text.endswith(b"The") else "The", 0.9))
    prompts = [Prompt((0,), b"Q\n"), Prompt((0,), b"a")]
    makers = [lambda **options: WithoutMarker(TEXT, turn, **options), maker(TEXT, turn)]
    answer = MixtureWorld(build_request("hi"), Ensemble(), makers, prompts).answer()
    assert (answer.text, answer.detail) == ("The", "control_token")


def test_the_base_formats_own_turn_ends_the_answer_unseen() -> None:
    writes = follow(("The", 0.9), ("\n\n", 0.9), prompt="Q\n", runner_up="\n\n")
    world = scripted(writes, writes)
    world.prompts[0] = dataclasses.replace(world.prompts[0], end_strings=(b"\n\n",))
    assert (world.answer().text, world.answer().detail) == ("The", "end_of_generation")


@pytest.mark.parametrize("sick", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_by_the_models_name(sick: int, value: float) -> None:
    healthy = follow(("The", 0.9), (" cat", 0.9))

    def ill(ids: tuple[int, ...]) -> Row:
        row = healthy(ids)
        if TEXT.word("The") in ids:
            row[7] = value
        return row

    makers = [maker(TEXT, ill if i == sick else healthy) for i in range(3)]
    world = MixtureWorld(build_request("hi"), ProxyTuning(), makers, [Prompt((0,), b"Q\n")] * 3)
    seen = []
    with pytest.raises(NonFiniteScoresError, match=f"the {NAMES[sick]} model"):
        seen.extend(world.decoder().run())
    assert [event.text for event in seen if isinstance(event, Piece)] == ["The"]


@pytest.mark.parametrize(("small", "detail"), [(0, "base_context"), (1, "nudging_context"), (2, "nudging_context")])
def test_a_full_context_of_any_model_ends_the_answer(small: int, detail: str) -> None:
    vocabulary = ToyVocabulary((" the",))
    scorer = scripted_scores(vocabulary, lambda text: (vocabulary.byte(97 + len(text) % 20), 0.9))

    def make(n_ctx: int) -> Callable[..., FakeBackend]:
        return lambda **options: FakeBackend(vocabulary, scorer, **{"n_ctx": n_ctx, **options})

    world = MixtureWorld(
        build_request("hi", loop_guard=False), ProxyTuning(), [make(13 if i == small else 99) for i in range(3)],
        [Prompt((0,), b"x" * 9)] * 3,
    )  # fmt: skip
    answer = world.answer()
    assert (len(answer.text), answer.detail) == (
        3,
        detail,
    )  # 10 tokens are the prompt; one place is left for each token


@pytest.mark.parametrize("small", range(3))
def test_a_prompt_longer_than_a_context_says_whose(small: int) -> None:
    world = random_mixture(5, mix=ProxyTuning())
    world.prompts[small] = Prompt((), b"x" * 50)
    with pytest.raises(ContextOverflowError, match=rf"50 tokens for the {NAMES[small]} model, its context is 50"):
        world.decoder(world.sessions(n_ctx=50)).check()
    world.decoder(world.sessions(n_ctx=51)).check()


# --- leaving early

LEAVING = [pytest.param(4, id="some"), pytest.param(30, id="many", marks=pytest.mark.thorough)]


@pytest.mark.parametrize("n_worlds", LEAVING)
def test_closing_at_any_event_leaves_all_sessions_ready(n_worlds: int) -> None:
    for number, world in mixtures(range(5000, 5000 + n_worlds), max_tokens=20):
        whole, sessions = world.answer(), world.sessions()
        for n_events in range(len(list(world.decoder().run()))):
            stream = world.decoder(sessions).run()
            for _ in range(n_events):
                next(stream)
            stream.close()  # type: ignore[attr-defined]
            assert decoded(list(world.decoder(sessions).run())) == whole, f"world {number}, event {n_events}"


@pytest.mark.parametrize("n_worlds", LEAVING)
def test_cancelling_at_any_check_ends_with_one_finished(n_worlds: int) -> None:
    for number, world in mixtures(range(5100, 5100 + n_worlds), max_tokens=15, loop_guard=False, stop=[]):
        whole, sessions = world.answer(), world.sessions()
        for n_checks in range(0, 50, 2):
            left = iter(range(n_checks))
            cancelled = decoded(list(world.decoder(sessions, lambda left=left: next(left, None) is None).run()))
            assert cancelled.detail in ("cancelled", whole.detail)
            assert whole.text.startswith(cancelled.text), f"world {number}, check {n_checks}"
            assert decoded(list(world.decoder(sessions).run())) == whole, f"world {number}, check {n_checks}"


@pytest.mark.parametrize("can_rewind", [True, False])
@pytest.mark.parametrize("n_worlds", LEAVING)
def test_an_engine_error_at_any_call_leaves_all_sessions_ready(can_rewind: bool, n_worlds: int) -> None:
    for number, world in mixtures(range(5200, 5200 + n_worlds), max_tokens=12):
        whole = world.answer()
        for n_call in range(16):
            failing = [n_call]

            def fail(call: int, failing: list[int] = failing) -> int | None:
                return call % 2 if failing and call >= failing[0] and failing.pop() >= 0 else None

            sessions = world.sessions(fail=fail, can_rewind=can_rewind)
            try:
                answer = decoded(list(world.decoder(sessions).run()))
            except EngineError:
                answer = decoded(list(world.decoder(sessions).run()))
            assert answer == whole, f"world {number}, call {n_call}"


def test_a_second_request_reuses_the_prompts() -> None:
    world = random_mixture(8, mix=ProxyTuning(), max_tokens=5, stop=[])
    sessions = world.sessions()
    list(world.decoder(sessions).run())
    decoder = world.decoder(sessions)
    *_, finished = decoder.run()
    assert isinstance(finished, Finished)
    for usage in (finished.usage.base, finished.usage.nudging, decoder.untuned_usage):
        assert usage.n_reused == usage.n_prompt - 1


# --- vocabularies


def vocabulary_of(*words: str) -> FakeBackend:
    vocabulary = ToyVocabulary(words)
    return FakeBackend(vocabulary, hashed_scores(vocabulary))


def test_models_of_one_vocabulary_pass() -> None:
    check_vocabularies("an ensemble", {name: vocabulary_of(" the", " cat") for name in NAMES})
    check_vocabularies("an ensemble", {"base": vocabulary_of(" the")})


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((" the", " dog"), "base model has 262 tokens and the nudging model 262, .* is token 261, ' cat' and ' dog';"),
        ((" a",), "base model has 262 tokens and the nudging model 261, .* is token 260, ' the' and ' a';"),
        ((" the",), "base model has 262 tokens and the nudging model 261, and the first 261 are the same;"),
        ((" the", " cat", " x"), "262 tokens and the nudging model 263, and the first 262 are the same;"),
    ],
)
def test_other_vocabularies_are_refused_with_the_first_difference(words: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(InputError, match=f"an ensemble needs models of one vocabulary: .*{wanted} take") as caught:
        check_vocabularies("an ensemble", {"base": vocabulary_of(" the", " cat"), "nudging": vocabulary_of(*words)})
    assert "\n" not in str(caught.value)


def test_the_third_vocabulary_is_compared_as_well() -> None:
    models = {"base": vocabulary_of(" a"), "nudging": vocabulary_of(" a"), "untuned": vocabulary_of(" b")}
    with pytest.raises(InputError, match="and the untuned model 261, and the first difference is token 260"):
        check_vocabularies("proxy tuning", models)
