"""Scores of prompts: against plain arithmetic, whatever the model was asked before."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_fakes import TEMPLATE

from edge_nudge.core import prompt_scores as prompt_scores_module
from edge_nudge.core.events import Cause, ModelUsage, TokenScore
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.core.session import common_prefix
from edge_nudge.errors import CancelledError, ContextOverflowError, EngineError, InputError, NonFiniteScoresError
from edge_nudge.runtime import Pair, PairSpec
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

BLOCK = 4
WORDS = (" the", " cat", " sat", "ing", "ab", "é", "\n\n")
VOCABULARY = ToyVocabulary(WORDS)
SCORER = hashed_scores(VOCABULARY, 11)
IDS = [0, *VOCABULARY.tokenize("the cat sat, the cat sat on é".encode())]


def make_pair(
    vocabulary: ToyVocabulary = VOCABULARY, scorer: Any = None, kind: type[FakeBackend] = FakeBackend, **options: Any
) -> Pair:
    scorer = scorer or hashed_scores(vocabulary, 11)
    return Pair(
        kind(vocabulary, scorer, name="base", **options),
        FakeBackend(vocabulary, scorer, name="nudging", chat_template=TEMPLATE),
        PairSpec(Path("base.gguf"), Path("nudging.gguf")),
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of a few tokens cross blocks."""
    monkeypatch.setattr(prompt_scores_module, "BLOCK", BLOCK)


def base_of(pair: Pair) -> FakeBackend:
    assert isinstance(pair.base, FakeBackend)
    return pair.base


def direct(ids: Sequence[int], n_top: int = 0, vocabulary: ToyVocabulary = VOCABULARY) -> list[TokenScore]:
    """The scores of ids by plain arithmetic, one from nothing for each token."""
    backend = FakeBackend(vocabulary, hashed_scores(vocabulary, 11))
    tokens = [TokenScore(backend.piece(ids[0]), ids[0], None)]
    for i, token in enumerate(ids[1:], 1):
        row = np.asarray(backend._scorer(tuple(ids[:i])), dtype=np.float64)
        logs = row - row.max() - math.log(np.exp(row - row.max()).sum())
        best = sorted(range(len(row)), key=lambda j: (-row[j], j))[:n_top]
        if n_top and token not in best:
            best.append(token)
        top = tuple((backend.piece(j) or backend.spelling(j).encode(), pytest.approx(logs[j], abs=1e-4)) for j in best)
        tokens.append(TokenScore(backend.piece(token), token, pytest.approx(logs[token], abs=1e-4), top))
    return tokens


@pytest.mark.parametrize("n_top", [0, 1, 5])
@pytest.mark.parametrize("options", [{}, {"n_batch": 3}, {"can_rewind": False}, {"n_ctx": len(IDS)}], ids=str)
def test_ids_are_scored_as_they_are(options: dict[str, Any], n_top: int) -> None:
    with make_pair(**options) as pair:
        want = direct(IDS, n_top)
        assert pair.score(IDS, n_top) == want
        assert want[0].logprob is None
        assert pair.score(tuple(IDS[1:]), n_top) == direct(IDS[1:], n_top)  # no BOS is added


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("space_prefix", [True, False])
def test_a_text_is_read_behind_bos_where_the_model_adds_it(adds_bos: bool, space_prefix: bool) -> None:
    vocabulary = ToyVocabulary(WORDS, space_prefix=space_prefix)
    text = "the cat <eos> sat "
    with make_pair(vocabulary, adds_bos=adds_bos) as pair:
        tokens = pair.score(text, 2)
        ids = [*([0] if adds_bos else []), *vocabulary.tokenize(text.encode())]
        assert [token.id for token in tokens] == ids[adds_bos:]
        assert b"".join(token.data for token in tokens) == text.encode()
        assert tokens[0].logprob is None
        assert tokens[0].top == ()
        assert tokens[1:] == direct(ids, 2, vocabulary)[1 + adds_bos :]
        assert not any(pair.base.is_control(token.id) for token in tokens)


def test_the_same_context_with_several_continuations_is_scored_once() -> None:
    with make_pair() as pair:
        last: list[int] = []
        for more in ([30], [31, 32], [31, 40, 41], [31, 40, 41], []):
            ids = [*IDS, *more]
            usage = ModelUsage()
            n_evaluated, n_rows = base_of(pair).n_evaluated, base_of(pair).n_rows
            assert pair.score(ids, 1, usage=usage) == direct(ids, 1)
            n_shared = (common_prefix(last, ids) - 1) // BLOCK * BLOCK if last else 0
            n_new = 0 if ids == last else len(ids) - 1 - n_shared  # nothing is read behind the last token
            assert n_new < 10 or not last
            assert base_of(pair).n_evaluated - n_evaluated == base_of(pair).n_rows - n_rows == n_new
            assert usage.n_evaluated == usage.evaluated[Cause.PROMPT] == n_new
            assert usage.n_calls == math.ceil(n_new / BLOCK)
            assert usage.n_reused == (n_shared if n_new else 0)
            assert usage.n_prompt == len(ids)
            last = ids


class Shaped(FakeBackend):
    """A model whose scores depend on the batches that its tokens were evaluated in, as those of a real one do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shapes: list[int] = []

    def evaluate(self, tokens: Sequence[int], rows: Sequence[int] = ()) -> None:
        n_before = len(self._ids)
        super().evaluate(tokens, rows)
        self.shapes[n_before:] = [len(tokens)] * len(tokens)
        for row in rows:
            shapes = tuple(self.shapes[: n_before + row + 1])
            self._rows[row] *= np.float32(1 + hash(shapes) % 1000 / 1e4)


@pytest.mark.parametrize("options", [{}, {"can_rewind": False}, {"refuse": lambda n_keep: n_keep % 3 == 0}], ids=str)
def test_a_score_depends_on_the_prompt_alone(options: dict[str, Any]) -> None:
    rng = random.Random(8)
    with make_pair(kind=Shaped, **options) as pair, make_pair(kind=Shaped, **options) as fresh:
        n_reused = 0
        for _ in range(150):
            ids = [*IDS[: rng.randint(1, len(IDS))], *rng.choices(range(4, 260), k=rng.randint(0, 9))]
            if rng.random() < 0.3:
                pair.answer(raw_request(ids, rule="base-only")).finish()
            usage = ModelUsage()
            got = pair.score(ids, 1, usage=usage)
            n_reused += usage.n_reused
            fresh.forget()
            assert got == fresh.score(ids, 1)
        assert n_reused > 100 or options


def test_other_alternatives_are_scored_anew() -> None:
    with make_pair() as pair:
        for n_top in (0, 3, 1):
            assert pair.score(IDS, n_top) == direct(IDS, n_top)


def test_scores_do_not_depend_on_what_was_asked_before() -> None:
    """Prompts and answers in any order: the scores are right, and so are the answers."""
    rng = random.Random(5)
    with make_pair() as pair, make_pair() as fresh:
        for _ in range(120):
            ids = [*IDS[: rng.randint(1, len(IDS))], *rng.choices(range(4, 260), k=rng.randint(0, 4))]
            match rng.randint(0, 4):
                case 0:
                    fresh.forget()
                    text = rng.choice(["the cat", "ab sat", "é"])
                    settings = {"max_tokens": 12, "gamma": 0.6, "logprobs": rng.choice([None, 2])}
                    assert list(pair.stream(text, **settings))[:-1] == list(fresh.stream(text, **settings))[:-1]
                case 1:
                    stream = pair.stream("the cat sat", max_tokens=12)
                    next(stream)  # left under way
                case 2:
                    left = iter(range(rng.randint(0, 3)))
                    with suppress(CancelledError):
                        pair.score(ids, 1, is_cancelled=lambda left=left: next(left, None) is None)
                case 3:
                    pair.answer(raw_request(ids, rule="base-only")).finish()
                case 4:
                    pair.forget()
            assert pair.score(ids, 1) == direct(ids, 1)
            assert pair.score(ids, 1) == direct(ids, 1)


def raw_request(ids: Sequence[int], **settings: Any) -> GenerateRequest:
    return build_request("x", raw_prompt=list(ids), max_tokens=3, **settings)


def test_an_answer_behind_a_scored_prompt_reuses_it() -> None:
    with make_pair() as pair:
        pair.score(IDS)
        finished = pair.answer(raw_request(IDS, rule="base-only")).finish()
        assert finished.usage.base.n_reused == len(IDS) - 1
        assert finished.usage.base.evaluated[Cause.PROMPT] == 1


def test_rows_are_asked_for_in_batches_of_limited_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scores_module, "ROWS_BYTES", 3 * 4 * len(VOCABULARY) + 3)
    with make_pair() as pair:
        progress: list[tuple[int, int]] = []
        assert pair.score(IDS, on_progress=lambda n, n_all: progress.append((n, n_all))) == direct(IDS)
        n = len(IDS)
        assert base_of(pair).n_calls == math.ceil((n - 1) / 3)
        assert progress == [*((at, n) for at in range(0, n - 1, 3)), (n, n)]


@pytest.mark.parametrize("n_batches", [0, 1, 2])
def test_a_cancel_is_answered_between_two_batches(n_batches: int) -> None:
    with make_pair(n_batch=3) as pair:
        asked = iter(range(n_batches))
        with pytest.raises(CancelledError, match="cancelled"):
            pair.score(IDS, is_cancelled=lambda: next(asked, None) is None)
        assert base_of(pair).n_calls == n_batches
        assert pair.score(IDS) == direct(IDS)
        assert base_of(pair).n_evaluated == len(IDS) - 1  # what was read stays read


@pytest.mark.parametrize("n_done", [0, 1])
def test_an_engine_error_leaves_the_pair_ready(n_done: int) -> None:
    with make_pair(n_batch=3, fail=lambda call: n_done if call == 2 else None) as pair:
        with pytest.raises(EngineError, match="decode failed"):
            pair.score(IDS)
        assert pair.score(IDS) == direct(IDS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_scores_are_refused(bad: float) -> None:
    """Case B32."""
    is_broken = [True]

    def broken(ids: tuple[int, ...]) -> np.ndarray:
        row = SCORER(ids)
        if is_broken and len(ids) == 6:
            row[9] = bad
        return row

    with make_pair(scorer=broken) as pair:
        with pytest.raises(NonFiniteScoresError, match="base model"):
            pair.score(IDS)
        is_broken.clear()
        assert pair.score(IDS) == direct(IDS)


def test_the_scores_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scores_module, "MAX_KEPT", 10)
    with make_pair() as pair:
        for n_top, n_kept in ((1, 5), (4, 2), (20, 0)):
            assert pair.score(IDS, n_top) == direct(IDS, n_top)
            assert len(pair._prompt_scorer._last) == len(pair._prompt_scorer._last_ids) == n_kept
            assert pair.score(IDS, n_top) == direct(IDS, n_top)


def test_one_token_costs_nothing() -> None:
    with make_pair() as pair:
        assert pair.score([7]) == [TokenScore(VOCABULARY.pieces[7], 7, None)]
        assert base_of(pair).n_calls == 0


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with make_pair(n_ctx=len(IDS) - 1) as pair:
        with pytest.raises(ContextOverflowError, match=f"prompt is {len(IDS)} tokens for the base model") as caught:
            pair.score(IDS)
        assert (caught.value.n_prompt, caught.value.n_ctx) == (len(IDS), len(IDS) - 1)
        assert pair.score(IDS[:-1]) == direct(IDS[:-1])


@pytest.mark.parametrize(
    ("prompt", "n_top", "words"),
    [
        ("", 0, "empty"), ([], 0, "at least one"), ([0, len(VOCABULARY)], 0, str(len(VOCABULARY))), ([-1], 0, "-1"),
        (["a"], 0, "'a'"), ("a", 21, "21"), ("a", -1, "-1"), ("\ud800", 0, "surrogate"),
    ],
)  # fmt: skip
def test_a_bad_prompt_is_refused(prompt: Any, n_top: int, words: str) -> None:
    with make_pair() as pair, pytest.raises(InputError, match=words):
        pair.score(prompt, n_top)
