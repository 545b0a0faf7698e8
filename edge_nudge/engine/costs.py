"""What a batch costs: milliseconds by number of tokens, with scores for the last token only and for every token.

Owns the measurement, against the Backend protocol. Never decides anything; the decoder does not use it yet, and
nothing is kept from one run to the next.

1. A batch is timed behind a context of about 64 tokens, from the call until a score has been read: a GPU is done then.
2. Sizes and rows are taken in turn, round by round, so that a slower moment of the machine meets all of them; the
   figure is the median of the rounds, the lower one of two: what disturbs a batch only ever makes it longer.
3. Rounds end at the budget. Where not even the first one fits, sizes not reached within twice the budget are left out;
   single tokens are always measured.
4. A model that cannot rewind reads the context again between two batches; that is not timed.
5. The cache is empty before and afterwards: whoever mirrors it has to forget it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from edge_nudge.core.backend import Backend
from edge_nudge.core.costs import BatchCost, CostCurve
from edge_nudge.errors import EngineError

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
N_CONTEXT = 64
BUDGET_S = 2.0
MAX_ROUNDS = 9
_TEXT = (
    b"The river rises in the hills behind the village, and where it leaves them it is wide enough for a boat. In the "
    b"spring it brings wood and stones, in the summer children swim in it, and the old mill still turns when the rain "
    b"has been good. Nobody remembers who built the bridge. It has seven arches, one of them walled up, and "
    b"under the third one there lives an owl. "
)


def measure_costs(
    backend: Backend,
    *,
    clock: Callable[[], float] = time.perf_counter,
    budget_s: float = BUDGET_S,
    max_rounds: int = MAX_ROUNDS,
) -> CostCurve:
    """Measure a model's curve; sizes that batch, context or budget do not hold are left out.

    Raises EngineError, also where the context is too small for any of it.
    """
    info = backend.info
    sizes = [size for size in SIZES if size <= min(info.n_batch, info.n_ctx - 1)]
    if not sizes:
        raise EngineError(f"{info.name}: a context of {info.n_ctx} is too small to measure: raise --ctx-size")
    n_context = min(N_CONTEXT, info.n_ctx - sizes[-1])
    ids = _some_ids(backend, n_context + sizes[-1])
    context, rest = ids[:n_context], ids[n_context:]
    _fill(backend, context)
    started = clock()
    _time_batch(backend, rest, True, clock)  # the largest one once: buffers grow now, not in a figure
    _reset(backend, context)
    timed: dict[tuple[int, bool], list[float]] = {}
    round_started = clock()
    for size in sizes:
        if timed and clock() - started > 2 * budget_s:
            sizes = sizes[: sizes.index(size)]
            break
        for every in (False, True):
            timed[size, every] = [_time_batch(backend, rest[:size], every, clock)]
            _reset(backend, context)
    n_rounds, round_s = 1, clock() - round_started
    while n_rounds < max_rounds and clock() - started + round_s <= budget_s:
        round_started = clock()
        for (size, every), seconds in timed.items():
            seconds.append(_time_batch(backend, rest[:size], every, clock))
            _reset(backend, context)
        n_rounds, round_s = n_rounds + 1, clock() - round_started
    backend.clear()
    lower = statistics.median_low
    costs = tuple(BatchCost(size, lower(timed[size, False]), lower(timed[size, True])) for size in sizes)
    how = "rewind" if info.can_rewind else "re-evaluation"
    return CostCurve(info.n_vocab, n_context, n_rounds, how, costs, exact=1)


def _some_ids(backend: Backend, n_ids: int) -> list[int]:
    """Return ids of ordinary text, after BOS where the model wants one."""
    info = backend.info
    head = [info.bos] if info.adds_bos and info.bos is not None else []
    text = backend.tokenize(_TEXT)
    n_times = n_ids // len(text) + 1
    return [*head, *(text * n_times)][:n_ids]


def _time_batch(backend: Backend, tokens: Sequence[int], every: bool, clock: Callable[[], float]) -> float:
    last = len(tokens) - 1
    rows = tuple(range(len(tokens))) if every else (last,)
    started = clock()
    backend.evaluate(tokens, rows)
    float(backend.scores(last)[0])
    return clock() - started


def _reset(backend: Backend, context: Sequence[int]) -> None:
    """Take the batch out of the cache again."""
    if not (backend.info.can_rewind and backend.rewind(len(context))):
        _fill(backend, context)


def _fill(backend: Backend, context: Sequence[int]) -> None:
    backend.clear()
    n_batch = backend.info.n_batch
    for start in range(0, len(context), n_batch):
        batch = context[start : start + n_batch]
        backend.evaluate(batch, (len(batch) - 1,))
        float(backend.scores(len(batch) - 1)[0])
