"""What a batch costs: milliseconds by number of tokens, with scores for the last token only and for every token.

Owns the measurement, thorough for a report and quick for the first load of a model, against the Backend protocol.
Never decides and never keeps anything.

1. A batch is timed behind a short context, from the call until a score has been read: a GPU is done then. Where a
   model cannot rewind the context is read again between two batches; that is not timed.
2. Thorough: sizes and rows are taken in turn, round by round, so that a slower moment of the machine meets all of
   them; the figure is the median of the rounds, the lower one of two: what disturbs a batch only ever makes it longer.
   Rounds end at the budget, which comparing does not count in; where not even the first one fits, sizes not reached
   within twice the budget are left out.
3. Quick: size by size, the lower of two timings, one where a step is long; a size that would not fit into the budget
   ends it. A size that seems dearer than a larger one is timed once more while there is time. The budget is a second,
   or as many steps as the first 8 sizes take: where they take longest they decide most. It begins when the weights
   have been read once: a prompt would have had to wait for that too.
4. Single tokens are always measured.
5. Exact is what has the bits of single steps: each row of a batch, and a step behind it, which reads all that the batch
   left in the cache. Sizes are tried in ascending order up to the first that differs; sizes between two tried ones
   count like these. A model that cannot rewind has no use for it and is not tried.
6. The cache is empty before and afterwards: whoever mirrors it has to forget it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_nudge.core.backend import Backend
from edge_nudge.core.costs import BatchCost, CostCurve
from edge_nudge.errors import EngineError

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
COMPARED = (2, 3, 4, 5, 6, 7, 8, 12, 16, 32)  # llama.cpp changes kernels at 8 rows, and at 4 where weights are repacked
N_CONTEXT = 64
BUDGET_S = 2.0
MAX_ROUNDS = 9
QUICK_CONTEXT = (4, 16)  # tokens, at least and at most
QUICK_BUDGET_S = 1.0
QUICK_BUDGET_STEPS = 40  # a 1.5B Q4_K_M on 2 cores takes about 35 steps of 76 ms for 1 to 8 tokens
QUICK_MOST_S = 10.0
QUICK_LEAST = 4  # tokens: sizes that are measured also where the budget does not hold them
QUICK_TIMINGS = 2
LONG_STEP_S = 0.02  # so long a step is not doubled by what else happens on a machine
# llama.cpp pads what attention reads to a multiple of this, and chooses kernels by that length: with several threads a
# single token behind more than 256 others is split among them, a batch is not. What is measured in the first 256
# tokens holds in these only (ggml_compute_forward_flash_attn_ext_f16: use_split_kv_path).
EXACT_WITHIN = 256
_TEXT = (
    b"The river rises in the hills behind the village, and where it leaves them it is wide enough for a boat. In the "
    b"spring it brings wood and stones, in the summer children swim in it, and the old mill still turns when the rain "
    b"has been good. Nobody remembers who built the bridge. It has seven arches, one of them walled up, and "
    b"under the third one there lives an owl. "
)

Clock: TypeAlias = Callable[[], float]
Timings: TypeAlias = dict[tuple[int, bool], list[float]]  # seconds by size and whether every token had scores


def measure_costs(
    backend: Backend, *, clock: Clock = time.perf_counter, budget_s: float = BUDGET_S, max_rounds: int = MAX_ROUNDS
) -> CostCurve:
    """Measure a model's curve thoroughly; sizes that batch, context or budget do not hold are left out.

    Raises EngineError, also where the context is too small for any of it.
    """
    sizes = _sizes(backend)
    stand = _Stand(backend, clock, N_CONTEXT, sizes[-1])
    started = clock()
    stand.run(sizes[-1], True)  # the largest one once: buffers grow now, not in a figure
    stand.reset()
    timed: Timings = {}
    round_started = clock()
    compared_s = 0.0
    for size in _steps_of(sizes):
        if timed and clock() - started > 2 * budget_s:
            break
        compare_started = clock()
        stand.approach(size)
        compared_s += clock() - compare_started
        if size in sizes:
            for every in (False, True):
                stand.reset()
                timed[size, every] = [stand.run(size, every)]
        compare_started = clock()
        stand.compare(size)
        compared_s += clock() - compare_started
    stand.reset()
    n_rounds, round_s = 1, clock() - round_started - compared_s
    while n_rounds < max_rounds and clock() - started - compared_s + round_s <= budget_s:
        round_started = clock()
        for (size, every), seconds in timed.items():
            seconds.append(stand.run(size, every))
            stand.reset()
        n_rounds, round_s = n_rounds + 1, clock() - round_started
    backend.clear()
    return stand.curve({key: statistics.median_low(seconds) for key, seconds in timed.items()}, n_rounds)


def measure_quick(backend: Backend, *, clock: Clock = time.perf_counter) -> CostCurve:
    """Measure a model's curve in one to ten seconds: as many sizes as fit, the smallest ones first.

    Raises EngineError, also where the context is too small for any of it.
    """
    sizes = _sizes(backend)
    step_s = _first_step(backend, clock)
    budget_s = min(max(QUICK_BUDGET_S, QUICK_BUDGET_STEPS * step_s), QUICK_MOST_S)
    n_timings = QUICK_TIMINGS if step_s < LONG_STEP_S else 1
    started = clock()
    least, most = QUICK_CONTEXT
    # A slow model would spend the budget on reading a context.
    n_context = most if 4 * most * step_s <= budget_s else max(least, int(budget_s / (4 * step_s)))
    stand = _Stand(backend, clock, n_context, sizes[-1])
    timed: Timings = {}
    for size in _steps_of(sizes):
        # On a machine that is busy just now the budget may be over at once, and the curve is kept for good.
        limit_s = QUICK_MOST_S if size <= QUICK_LEAST else budget_s
        if timed and clock() - started + _predicted_s(stand, timed, size, n_timings) > limit_s:
            break
        stand.approach(size)
        if size in sizes:
            for every in (False, True) * (n_timings if size > 1 else 1):
                stand.reset()
                timed.setdefault((size, every), []).append(stand.run(size, every))
        if size == 1:  # its last row is every row: both timings are of the same batch
            timed[1, False] = timed[1, True] = timed[1, False] + timed[1, True]
        stand.compare(size)
    stand.reset()
    _time_again(stand, timed, lambda seconds: clock() - started + seconds <= budget_s)
    backend.clear()
    return stand.curve({key: min(seconds) for key, seconds in timed.items()}, n_timings)


def _predicted_s(stand: _Stand, timed: Timings, size: int, n_timings: int) -> float:
    """Return about how long the next size takes: on the line from one token to the largest size so far."""
    step_s, largest = min(timed[1, False]), max(n for n, _ in timed)
    slope = (sum(min(timed[largest, every]) for every in (False, True)) - 2 * step_s) / max(1, largest - 1)
    batches_s = 2 * step_s + (slope if largest > 1 else 2 * step_s) * (size - 1)
    n_times = n_timings if size in SIZES else 0.5  # only compared: once, with all rows
    return n_times * batches_s + stand.n_steps_for(size) * step_s


def _time_again(stand: _Stand, timed: Timings, fits: Callable[[float], bool]) -> None:
    """Time what is dearer than a larger size once more."""
    for (size, every), seconds in timed.items():
        larger = (min(others) for (n, rows), others in timed.items() if n > size and rows == every)
        if min(seconds) > min(larger, default=min(seconds)) and fits(max(seconds)):
            seconds.append(stand.run(size, every))
            stand.reset()


class _Stand:
    """A model with a short context in its cache, behind which batches are run and compared with single steps.

    While the search for `exact` goes on, `compare` leaves in the cache what it has shown to be as after single steps,
    and `approach` goes on from there: so each step is taken once.
    """

    def __init__(self, backend: Backend, clock: Clock, n_context: int, n_most: int) -> None:
        info = backend.info
        n_context = min(n_context, info.n_ctx - n_most)
        ids = _some_ids(backend, min(n_context + n_most + 1, info.n_ctx))
        self._backend, self._clock = backend, clock
        self._context, self._rest = ids[:n_context], ids[n_context:]
        self._bits: list[NDArray[np.uint32]] = []  # of the single steps so far
        self._is_searching = info.can_rewind
        self.exact = 1
        self._fill()

    def run(self, size: int, every: bool) -> float:
        """Evaluate a batch and return its seconds; it stays in the cache."""
        rows = tuple(range(size)) if every else (size - 1,)
        started = self._clock()
        self._backend.evaluate(self._rest[:size], rows)
        float(self._backend.scores(size - 1)[0])
        return self._clock() - started

    def n_steps_for(self, size: int) -> int:
        """Return how many single steps it takes to find out whether `size` is exact."""
        return size + 2 - len(self._bits) if self._is_searching and size in COMPARED else 0

    def approach(self, size: int) -> None:
        """Take the single steps that a batch of `size` is compared with: its own and one behind it.

        Those of smaller sizes are in the cache, from the comparison that has just been made.
        """
        if size not in COMPARED or not self._is_searching:
            return
        if size >= len(self._rest):  # no room for the step behind it
            self._is_searching = False
            return
        for token in self._rest[len(self._bits) : size + 1]:
            self._backend.evaluate((token,), (0,))
            self._bits.append(np.array(self._backend.scores(0)).view(np.uint32))

    def compare(self, size: int) -> None:
        """Find out whether a batch of `size` is exact; one with all scores may have been run just now."""
        if size not in COMPARED or not self._is_searching:
            self.reset()
            return
        if size not in SIZES:
            self.reset()
            self.run(size, True)
        self._is_searching = all(self._is_same(row, row) for row in range(size))
        if self._is_searching:
            self._backend.evaluate((self._rest[size],), (0,))
            self._is_searching = self._is_same(0, size)
        if self._is_searching:
            self.exact = size
        else:
            self._bits.clear()

    def reset(self) -> None:
        """Take back what is behind the context."""
        n_context = len(self._context)
        if self._backend.n_cached == n_context:
            return
        if not (self._backend.info.can_rewind and self._backend.rewind(n_context)):
            self._fill()

    def curve(self, seconds: dict[tuple[int, bool], float], n_rounds: int) -> CostCurve:
        info = self._backend.info
        sizes = [size for size, every in seconds if every]
        costs = tuple(BatchCost(size, seconds[size, False], seconds[size, True]) for size in sizes)
        how = "rewind" if info.can_rewind else "re-evaluation"
        return CostCurve(
            info.n_vocab, len(self._context), n_rounds, how, costs, self.exact, min(EXACT_WITHIN, info.n_ctx)
        )

    def _is_same(self, row: int, step: int) -> bool:
        return np.array_equal(np.asarray(self._backend.scores(row)).view(np.uint32), self._bits[step])

    def _fill(self) -> None:
        self._backend.clear()
        n_batch = self._backend.info.n_batch
        for start in range(0, len(self._context), n_batch):
            batch = self._context[start : start + n_batch]
            self._backend.evaluate(batch, (len(batch) - 1,))
            float(self._backend.scores(len(batch) - 1)[0])


def _sizes(backend: Backend) -> list[int]:
    info = backend.info
    sizes = [size for size in SIZES if size <= min(info.n_batch, info.n_ctx - 1)]
    if not sizes:
        raise EngineError(f"{info.name}: a context of {info.n_ctx} is too small to measure: raise --ctx-size")
    return sizes


def _steps_of(sizes: Sequence[int]) -> list[int]:
    """Return the sizes to be timed and those only compared, ascending."""
    return sorted({*sizes, *(size for size in COMPARED if size <= sizes[-1])})


def _first_step(backend: Backend, clock: Clock) -> float:
    """Return the seconds of one token in an empty cache, when the weights have been read once."""
    token = _some_ids(backend, 1)
    seconds = 0.0
    for _ in range(2):
        backend.clear()
        started = clock()
        backend.evaluate(token, (0,))
        float(backend.scores(0)[0])
        seconds = clock() - started
    return seconds


def _some_ids(backend: Backend, n_ids: int) -> list[int]:
    """Return ids of ordinary text, after BOS where the model wants one."""
    info = backend.info
    head = [info.bos] if info.adds_bos and info.bos is not None else []
    text = backend.tokenize(_TEXT)
    n_times = n_ids // len(text) + 1
    return [*head, *(text * n_times)][:n_ids]
