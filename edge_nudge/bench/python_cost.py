"""What the decoder costs without any model: microseconds of Python for each token of an answer.

Owns the models that compute nothing and the measurement. Needs neither llama_cpp nor files.

1. The models know one circle of words; a row of scores depends on the last token alone and is made beforehand. The
   base model is unsure before each fourth word, where the nudging model writes one word.
2. Time inside a model (evaluate, tokenize, rewind) is taken off: what is left is our own code, numpy included.
3. Two vocabularies: a small one, where the passes over a row cost nothing, and one of 262,144 tokens, where they count.
4. Trials are paired as in trials.py: every mode in each round, in rotating order, cold caches, one round not counted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_nudge.bench.report import spread
from edge_nudge.bench.trials import ALWAYS, COMMON, MODES, rotated
from edge_nudge.core.events import Role, Usage
from edge_nudge.core.request import build_request
from edge_nudge.errors import EngineError
from edge_nudge.runtime import Pair, PairSpec
from edge_nudge.testing import FakeBackend, ToyVocabulary

N_VOCABS = (512, 262_144)
N_TOKENS = 200
N_ROUNDS = 15
_N_WORDS = 16
_EVERY = 4  # the base model is unsure before each fourth word
_N_FIRST = 4 + 256  # control tokens and single bytes of a toy vocabulary
_TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}<|turn|>assistant\n"
_PART = re.compile(rb" w\d\d|.", re.DOTALL)


class TableBackend(FakeBackend):
    """A model that looks its scores up, and counts the seconds spent in itself."""

    def __init__(
        self, vocabulary: ToyVocabulary, rows: dict[int, NDArray[np.float32]], clock: Callable[[], float], **more: Any
    ) -> None:
        super().__init__(vocabulary, lambda ids: self._table[ids[-1]], **more)
        first = next(iter(rows.values()))
        self._table = dict.fromkeys(range(_N_FIRST), first) | rows
        self._clock = clock
        self._ids_of = {piece: token for token, piece in enumerate(vocabulary.pieces[: _N_FIRST + _N_WORDS]) if piece}
        self.spent_s = 0.0

    @property
    def words_are_separate(self) -> bool:
        return True  # known; FakeBackend would look at every piece each time

    def tokenize(self, text: bytes, *, special: bool = False) -> list[int]:
        with self._timed():
            if special:
                return super().tokenize(text, special=True)
            return [self._ids_of[part] for part in _PART.findall(text)]

    def evaluate(self, tokens: Sequence[int], rows: Sequence[int] = ()) -> None:
        with self._timed():
            if not tokens or len(self._ids) + len(tokens) > self._info.n_ctx:
                raise EngineError(f"{len(tokens)} tokens cannot be evaluated after {len(self._ids)}")
            self._rows = {row: self._table[tokens[row]] for row in rows}
            self._ids.extend(tokens)

    def rewind(self, n_keep: int) -> bool:
        with self._timed():
            return super().rewind(n_keep)

    def _poison(self) -> None:
        self._rows.clear()  # the rows are shared, and writing to them costs as much as a decision

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        finally:
            self.spent_s += self._clock() - started


def table_pair(n_vocab: int, clock: Callable[[], float] = time.perf_counter) -> Pair:
    """Return a pair with so many tokens in its vocabulary."""
    words = [f" w{number:02}" for number in range(_N_WORDS)]
    fillers = (f" filler{number}" for number in range(n_vocab - _N_FIRST - _N_WORDS))
    vocabulary = ToyVocabulary((*words, *fillers))
    ids = [_N_FIRST + number for number in range(_N_WORDS)]
    base, nudging = {}, {}
    for number, token in enumerate(ids):
        following = ids[(number + 1) % _N_WORDS]
        base[token] = _row(n_vocab, following, 0.9 if (number + 1) % _EVERY else 0.2)
        nudging[token] = _row(n_vocab, following, 0.8)
    return Pair(
        TableBackend(vocabulary, base, clock, name="table base"),
        TableBackend(vocabulary, nudging, clock, name="table nudging", chat_template=_TEMPLATE),
        PairSpec(Path("base"), Path("nudging")),
    )


def measure_python(
    *,
    n_vocabs: Sequence[int] = N_VOCABS,
    n_rounds: int = N_ROUNDS,
    n_tokens: int = N_TOKENS,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Return microseconds for each output token by vocabulary and mode, every single answer too."""
    return {
        "tokens": n_tokens,
        "rounds": n_rounds,
        "vocabularies": [
            {"n_vocab": n_vocab, "modes": _measured(n_vocab, n_rounds, n_tokens, clock, say)} for n_vocab in n_vocabs
        ],
    }


def _measured(
    n_vocab: int, n_rounds: int, n_tokens: int, clock: Callable[[], float], say: Callable[[str], None]
) -> dict[str, Any]:
    found: dict[str, list[float]] = {mode: [] for mode in ALWAYS}
    usages: dict[str, Usage] = {}
    with table_pair(n_vocab, clock) as pair:
        for number in range(-1, n_rounds):  # the first round warms up
            say(f"{n_vocab} tokens in the vocabulary: round {max(number, 0) + 1} of {n_rounds}")
            for mode in rotated(ALWAYS, number):
                seconds, usages[mode] = _answered(pair, mode, n_tokens, clock)
                if number >= 0:
                    found[mode].append(seconds / n_tokens * 1e6)
    return {
        mode: {
            "us_per_token": spread(values),
            "handoffs_per_token": usages[mode].n_handoffs / n_tokens,
            "nudging_ratio": usages[mode].ratio_tokens,
            "calls_per_token": {role.value: usages[mode].of(role).n_calls / n_tokens for role in Role},
            "answers_us_per_token": values,
        }
        for mode, values in found.items()
    }


def _answered(pair: Pair, mode: str, n_tokens: int, clock: Callable[[], float]) -> tuple[float, Usage]:
    """Return the seconds an answer took outside its models, and its totals."""
    request = build_request("Count the words.", max_tokens=n_tokens, **COMMON, **MODES[mode])
    pair.forget()
    answer = pair.answer(request)
    backends = [backend for backend in (pair.base, pair.nudging) if isinstance(backend, TableBackend)]
    spent_s = sum(backend.spent_s for backend in backends)
    started = clock()
    usage = answer.finish().usage
    outside_s = clock() - started - (sum(backend.spent_s for backend in backends) - spent_s)
    assert usage.n_completion == n_tokens, "the circle of words never ends"
    return outside_s, usage


def _row(n_vocab: int, top: int, prob: float) -> NDArray[np.float32]:
    """Return scores whose softmax gives `top` the probability and the others equal shares."""
    row = np.full(n_vocab, np.log((1 - prob) / (n_vocab - 1)), dtype=np.float32)
    row[top] = np.log(prob)
    return row
