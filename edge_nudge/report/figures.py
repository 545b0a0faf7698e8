"""The two drawings of a page, as numbers: a strip of token probabilities, and a time line of native calls.

Owns where things are drawn. Never writes markup and never colours anything: that is the template's and the style
sheet's matter.

1. A drawing is cut into rows of a fixed width, so a long answer grows downward and can be printed.
2. Coordinates are units of the row's viewBox, rounded to a tenth; nothing lies outside, whatever numbers a trace has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edge_nudge.core.events import Cause, Role
from edge_nudge.report.records import CallRecord

WIDTH = 1000.0
LEFT = 64.0  # of it is for labels

N_PER_ROW = 52  # tokens
CELL = (WIDTH - LEFT) / N_PER_ROW
BAR_WIDTH = CELL - 3
BARS = 90.0  # height of a probability of 1

CALLS_PER_ROW = 80  # of both models, on average
MAX_TIME_ROWS = 400
LEAST_WIDTH = 0.8  # of a call, so that a short one can be seen
LANE = 26.0
_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Bar:
    """A token of the strip; `n_word` is the piece that it belongs to."""

    n_word: int
    author: Role
    x: float
    height: float
    prob: float | None
    base_height: float | None  # the base model's top-1 probability where the piece starts, if it is its first token
    label: str


@dataclass(frozen=True, slots=True)
class StripRow:
    bars: tuple[Bar, ...]
    first: int  # number of its first token, from 1
    last: int
    width: float  # that is used


@dataclass(frozen=True, slots=True)
class StripToken:
    """What the strip needs to know of a token."""

    n_word: int
    author: Role
    prob: float | None
    base_prob: float | None
    label: str


def strip_rows(tokens: Sequence[StripToken]) -> tuple[StripRow, ...]:
    """Draw the tokens of an answer."""
    rows = []
    for start in range(0, len(tokens), N_PER_ROW):
        part = tokens[start : start + N_PER_ROW]
        bars = tuple(
            Bar(
                token.n_word,
                token.author,
                round(LEFT + i * CELL, 1),
                _height(token.prob) or 0.0,
                token.prob,
                _height(token.base_prob),
                token.label,
            )
            for i, token in enumerate(part)
        )
        rows.append(StripRow(bars, start + 1, start + len(part), round(LEFT + len(part) * CELL, 1)))
    return tuple(rows)


def _height(prob: float | None) -> float | None:
    return None if prob is None else round(min(1.0, max(0.0, prob)) * BARS, 1)


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens of one cause in a call; `y` is from the top of the lane."""

    cause: Cause
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class CallBox:
    call: CallRecord
    x: float
    width: float
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A piece that was shown."""

    n_word: int
    x: float


@dataclass(slots=True)
class TimeRow:
    """A stretch of time; `lanes` are the calls of each model."""

    start_s: float
    end_s: float
    lanes: dict[Role, list[CallBox]] = field(default_factory=lambda: {role: [] for role in Role})
    dots: list[Dot] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)


def time_rows(calls: Sequence[CallRecord], shown_s: Sequence[float], total_s: float) -> tuple[TimeRow, ...]:
    """Draw native calls and when each piece was shown (`shown_s`), from 0 to `total_s` or the last of them."""
    if not calls and not shown_s:
        return ()
    end_s = max([total_s, 1e-6, *(max(call.start_s, call.end_s) for call in calls), *shown_s])
    n_rows = min(MAX_TIME_ROWS, max(1, math.ceil(len(calls) / CALLS_PER_ROW)))
    row_s = end_s / n_rows
    rows = [TimeRow(i * row_s, (i + 1) * row_s) for i in range(n_rows)]

    def row_of(time_s: float) -> int:
        return min(n_rows - 1, int(time_s / row_s))

    n_spare = len(Role) * n_rows  # parts of calls that go on in the next row: calls of one model follow each other
    for call in calls:
        blocks = tuple(_blocks(call))
        first = row_of(call.start_s)
        last = min(max(first, row_of(call.end_s)), first + n_spare)
        n_spare -= last - first
        for i in range(first, last + 1):
            start_s, stop_s = max(call.start_s, rows[i].start_s), min(call.end_s, rows[i].end_s)
            x = _x(rows[i], start_s)
            width = max(LEAST_WIDTH, _x(rows[i], stop_s) - x)
            rows[i].lanes[call.model].append(CallBox(call, min(x, WIDTH - LEAST_WIDTH), round(width, 1), blocks))
    for n_word, time_s in enumerate(shown_s):
        row = rows[row_of(time_s)]
        row.dots.append(Dot(n_word, _x(row, time_s)))
    step_s = _step(row_s / 8)
    for row in rows:
        first = math.ceil(row.start_s / step_s - 1e-9)
        last = math.floor(row.end_s / step_s + 1e-9)
        row.ticks = [Tick(_x(row, i * step_s), seconds(i * step_s, step_s)) for i in range(first, last + 1)]
    return tuple(rows)


def _x(row: TimeRow, time_s: float) -> float:
    share = (time_s - row.start_s) / (row.end_s - row.start_s)
    return round(LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT), 1)


def _blocks(call: CallRecord) -> Iterator[Block]:
    """Share the height of the lane among the causes."""
    n_tokens = sum(call.evaluated.values())
    y = 0.0
    for cause in Cause:
        n_cause = call.evaluated.get(cause, 0)
        if n_cause:
            height = LANE * n_cause / n_tokens
            yield Block(cause, round(y, 1), round(height, 1))
            y += height


def _step(least_s: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that is at least `least_s`."""
    power = 10.0 ** math.floor(math.log10(least_s))
    return next((step * power for step in _STEPS if step * power >= least_s), 10 * power)


def seconds(time_s: float, step_s: float = 0.001) -> str:
    """Write a time with as many decimals as its steps need."""
    n_decimals = min(6, max(0, -math.floor(math.log10(step_s) + 1e-9)))
    return f"{time_s:.{n_decimals}f} s"
