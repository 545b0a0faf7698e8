"""From trials to figures: medians, quartiles, paired ratios, counts per output token.

Owns the names and the shape of the figures, the same in JSON and in the tables. Never measures, never prints.

1. A ratio is of two answers of one trial to one prompt; what is reported is the median of these ratios.
2. Counts are exact: tokens and calls of all trials over output tokens of all trials; the prompt is counted apart.
   Of a loop beside the pair only its completions are known, and they are its calls.
3. A figure that cannot be computed is None, never NaN.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edge_nudge.bench.best import Curves, over_best, over_foreseen
from edge_nudge.bench.trials import COMMON, MODES, Plan, Trial
from edge_nudge.core.costs import CostCurve
from edge_nudge.core.events import Cause, ModelUsage, Role

Figure = Callable[[Trial], "float | None"]

SPEED_RATIOS = (
    ("nudged", "base"), ("nudged", "nudging"),
    ("reference", "base"), ("reference", "nudging"), ("nudged", "reference"),
    ("plain", "base"), ("nudged", "plain"), ("nudged", "naive"), ("nudged", "server"),
)  # fmt: skip
FIRST_RATIOS = (("nudged", "nudging"), ("reference", "nudging"), ("nudged", "naive"), ("nudged", "server"))


def trials_document(trials: Sequence[Trial], plan: Plan, curves: Curves) -> dict[str, Any]:
    """Return all figures: for each prompt, over all prompts, and each single answer."""
    by_prompt = {name: [trial for trial in trials if trial.prompt == name] for name in plan.prompts}
    return {
        "prompts": {
            name: {"prompt_tokens": _prompt_tokens(found), **_section(found, plan, curves)}
            for name, found in by_prompt.items()
        },
        "all": _section(trials, plan, curves),
        "early_ends": [
            {
                "trial": trial.number, "prompt": trial.prompt, "mode": trial.mode,
                "n_tokens": trial.n_tokens, "max_tokens": plan.max_tokens, "detail": trial.detail.value,
            }
            for trial in trials
            if trial.n_tokens < plan.max_tokens
        ],
        "answers": [_answer(trial) for trial in trials],
    }  # fmt: skip


def settings_document(plan: Plan, gamma: float) -> dict[str, Any]:
    """Return what was asked; `gamma` is the threshold of the nudged answers."""
    return {
        "max_tokens": plan.max_tokens,
        "trials": plan.n_trials,
        "prompts": list(plan.prompts),
        "gamma": gamma,
        **COMMON,
        "modes": {mode: dict(MODES[mode]) for mode in plan.modes},
        "caches": "dropped before each answer: reading the prompt is part of it",
        "warm_up": "every mode once on the first prompt, not counted",
    }


def costs_document(curve: CostCurve) -> dict[str, Any]:
    """Return a batch-cost curve in milliseconds and in steps of one token."""
    step_s = curve.step_s

    def steps(seconds: float) -> float | None:
        return seconds / step_s if step_s else None

    return {
        "n_vocab": curve.n_vocab,
        "context_tokens": curve.n_context,
        "rounds": curve.n_rounds,
        "reset_by": curve.reset_by,
        "exact": curve.exact,
        "exact_within": curve.exact_within,
        "batches": [
            {
                "n_tokens": cost.n_tokens,
                "last_ms": cost.last_s * 1e3,
                "last_steps": steps(cost.last_s),
                "every_ms": cost.every_s * 1e3,
                "every_steps": steps(cost.every_s),
            }
            for cost in curve.costs
        ],
    }


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return median and quartiles of the values there are."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    if len(found) == 1:
        return {"median": found[0], "q1": found[0], "q3": found[0]}
    q1, _, q3 = statistics.quantiles(found, n=4, method="inclusive")
    return {"median": statistics.median(found), "q1": q1, "q3": q3}


def paired_ratios(trials: Sequence[Trial], mode: str, other: str, figure: Figure) -> list[float]:
    """Return figure(mode) / figure(other) for each trial and prompt that has both."""
    found = {(trial.number, trial.prompt, trial.mode): figure(trial) for trial in trials}
    ratios = []
    for (number, prompt, name), value in found.items():
        divisor = found.get((number, prompt, other))
        if name == mode and value is not None and divisor:
            ratios.append(value / divisor)
    return ratios


def _tokens_per_s(trial: Trial) -> float | None:
    return trial.tokens_per_s


def _first_piece_s(trial: Trial) -> float | None:
    return trial.usage.first_piece_s


def _section(trials: Sequence[Trial], plan: Plan, curves: Curves) -> dict[str, Any]:
    def ratios(pairs: Sequence[tuple[str, str]], figure: Figure) -> dict[str, Any]:
        return {
            f"{mode}/{other}": spread(paired_ratios(trials, mode, other, figure))
            for mode, other in pairs
            if mode in plan.modes and other in plan.modes
        }

    return {
        "modes": {mode: _mode([trial for trial in trials if trial.mode == mode], curves) for mode in plan.modes},
        "ratios": {
            "tokens_per_s": ratios(SPEED_RATIOS, _tokens_per_s),
            "first_piece_s": ratios(FIRST_RATIOS, _first_piece_s),
        },
    }


def _mode(trials: Sequence[Trial], curves: Curves) -> dict[str, Any]:
    n_tokens = sum(trial.n_tokens for trial in trials)
    is_outside = any(trial.is_outside for trial in trials)
    return {
        "n_tokens": [trial.n_tokens for trial in trials],
        "tokens_per_s": spread(trial.tokens_per_s for trial in trials),
        "first_piece_s": spread(trial.usage.first_piece_s for trial in trials),
        "outside_native": spread(trial.outside_native for trial in trials),
        "over_best": spread(None if trial.is_outside else over_best(trial.usage, curves) for trial in trials),
        "over_foreseen": spread(None if trial.is_outside else over_foreseen(trial.usage, curves) for trial in trials),
        "per_token": {
            role.value: _per_token([trial.usage.of(role) for trial in trials], n_tokens, is_outside) for role in Role
        },
        "handoffs_per_token": _share(sum(trial.usage.n_handoffs for trial in trials), n_tokens),
        "nudging_ratio": _share(sum(trial.usage.nudging.n_written for trial in trials), n_tokens),
    }


def _per_token(usages: Sequence[ModelUsage], n_tokens: int, is_outside: bool) -> dict[str, float | None]:
    """Return tokens evaluated by cause, and native calls, for each output token of both models."""
    causes = {
        cause.value: None if is_outside else _share(sum(usage.evaluated[cause] for usage in usages), n_tokens)
        for cause in Cause
        if cause is not Cause.PROMPT
    }
    return {**causes, "calls": _share(sum(usage.n_calls for usage in usages), n_tokens)}


def _share(count: int, n_tokens: int) -> float | None:
    return count / n_tokens if n_tokens else None


def _prompt_tokens(trials: Sequence[Trial]) -> Mapping[str, int]:
    """Return how long the prompt is for each model; a model that is not asked counts none."""
    return {role.value: max((trial.usage.of(role).n_prompt for trial in trials), default=0) for role in Role}


def _answer(trial: Trial) -> dict[str, Any]:
    usage = trial.usage
    return {
        "trial": trial.number,
        "prompt": trial.prompt,
        "mode": trial.mode,
        "n_tokens": trial.n_tokens,
        "detail": trial.detail.value,
        "total_s": usage.total_s,
        "first_piece_s": usage.first_piece_s,
        "handoffs": usage.n_handoffs,
        **{
            role.value: {
                "written": usage.of(role).n_written,
                "native_s": usage.of(role).native_s,
                "calls": usage.of(role).n_calls,
                "evaluated": None
                if trial.is_outside
                else {cause.value: n for cause, n in usage.of(role).evaluated.items()},
            }
            for role in Role
        },
    }
