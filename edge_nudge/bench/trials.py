"""Paired trials: the same prompts answered by each model alone and by the pair, in one run.

Owns what is asked and in which order. Never formats a figure and never decides what a pair does.

1. Within a trial every prompt is answered in every mode, one after the other, so that a slower minute of the machine
   meets all of them; the order of the modes is rotated from one trial to the next.
2. Both caches are dropped before each answer, so reading the prompt is part of it.
3. Greedy, without loop guard and restart guard: an answer goes on to the limit unless a model ends it, and where
   one did, the trial says so.
4. One warm-up, every mode once on the first prompt, is not counted.
5. The modes of OUTSIDE are written by a text loop beside the pair (outside.py), to the same prompts and limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edge_nudge.bench.outside import written_outside
from edge_nudge.bench.prompts import PROMPTS
from edge_nudge.core.events import FinishDetail, Usage
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.core.text_loop import TextLoop
    from edge_nudge.runtime import Pair

T = TypeVar("T")

# Settings of every answer; a seed is given so that nothing is drawn.
COMMON: Mapping[str, Any] = {"temp": 0.0, "seed": 0, "loop_guard": False, "end_prob": 2.0}
MODES: Mapping[str, Mapping[str, Any]] = {
    # A model alone is what a plain loop makes of it: each token by a call of its own.
    "base": {"rule": "base-only", "verify_ahead": False},
    "nudging": {"rule": "nudging-only", "verify_ahead": False},
    "nudged": {},
    "plain": {"verify_ahead": False},
    "reference": {"lookahead": 16, "verify_ahead": False},  # the paper's schedule
    "naive": {"lookahead": 16},
    "server": {"lookahead": 16},
}
ALWAYS = ("base", "nudging", "nudged")
# What is known of them is text and time: no tokens evaluated, no native calls.
OUTSIDE = ("naive", "server")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: names of PROMPTS and MODES, the answers of each, the tokens of an answer.

    `follow_up` asks for the second question of a conversation as well (follow_up.py).
    """

    prompts: tuple[str, ...]
    modes: tuple[str, ...] = ALWAYS
    n_trials: int = 3
    max_tokens: int = 100
    follow_up: bool = False

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("trials", self.n_trials)):
            if value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")

    @property
    def n_answers(self) -> int:
        """Answers of a whole run, the warm-up included, the follow-up not."""
        return len(self.modes) * (1 + self.n_trials * len(self.prompts)) if self.prompts else 0


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer: trial number, prompt, mode, how it ended and what it took."""

    number: int
    prompt: str
    mode: str
    detail: FinishDetail
    usage: Usage

    @property
    def n_tokens(self) -> int:
        return self.usage.n_completion

    @property
    def is_outside(self) -> bool:
        """Tell whether tokens evaluated and native calls are unknown."""
        return self.mode in OUTSIDE

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of the answer by the time from request to end, reading the prompt included."""
        return self.n_tokens / self.usage.total_s if self.usage.total_s > 0 and self.n_tokens else None

    @property
    def outside_native(self) -> float | None:
        """Share of the time that passed outside native calls, None where they are unknown."""
        usage = self.usage
        if self.is_outside:
            return None
        return 1 - (usage.base.native_s + usage.nudging.native_s) / usage.total_s if usage.total_s > 0 else None


def rotated(items: Sequence[T], number: int) -> tuple[T, ...]:
    """Return the items beginning with item `number`, counted around."""
    start = number % len(items)
    return (*items[start:], *items[:start])


def request_of(plan: Plan, prompt: str, mode: str) -> GenerateRequest:
    """Return what is asked. Raises InputError."""
    return build_request(PROMPTS[prompt], max_tokens=plan.max_tokens, **COMMON, **MODES[mode])


def run_trials(
    pair: Pair, plan: Plan, say: Callable[[str], None] = lambda line: None, loop: TextLoop | None = None
) -> list[Trial]:
    """Run a plan; `say` is told before each answer, `loop` writes the modes of OUTSIDE.

    Raises ContextOverflowError before the first answer, EngineError.
    """
    for prompt in plan.prompts:
        for mode in plan.modes:
            pair.answer(request_of(plan, prompt, mode)).close()  # a prompt that does not fit is found now
    trials = []
    for n_done, (number, prompt, mode) in enumerate(schedule(plan)):
        where = "warm-up" if number is None else f"trial {number + 1} of {plan.n_trials}"
        say(f"answer {n_done + 1} of {plan.n_answers}: {where}, {prompt}, {mode}")
        request = request_of(plan, prompt, mode)
        if mode in OUTSIDE:
            assert loop is not None, "whoever plans a mode of OUTSIDE brings the loop"
            written = written_outside(loop, pair, request)
            detail, usage = written.detail, written.usage
        else:
            pair.forget()
            finished = pair.answer(request).finish()
            detail, usage = finished.detail, finished.usage
        if number is not None:
            trials.append(Trial(number, prompt, mode, detail, usage))
    return trials


def schedule(plan: Plan) -> Iterator[tuple[int | None, str, str]]:
    """Yield trial number (None: warm-up), prompt and mode in the order of the run."""
    for prompt in plan.prompts[:1]:
        for mode in plan.modes:
            yield None, prompt, mode
    for number in range(plan.n_trials):
        for prompt in plan.prompts:
            for mode in rotated(plan.modes, number):
                yield number, prompt, mode
