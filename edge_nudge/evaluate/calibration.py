"""Which rule and threshold for a pair: from answers of the same questions under several of them.

Owns what is tried and what is recommended. Never asks a model and writes no file.

1. Where answers are known, accuracy decides; a change is recommended only where it is no noise: better than the present
   setting by a paired test, corrected for the number of settings tried.
2. Where they are not, only the nudging ratio is left: the setting nearest to what worked for the method's authors is
   recommended, among those below the share above which pairs tend to fail.
3. A pair helps only if it beats both of its models alone. Where no setting does, that is said first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edge_nudge.core.request import DEFAULT_GAMMA, Rule
from edge_nudge.engine.pairing import MOST_NUDGED
from edge_nudge.errors import InputError
from edge_nudge.evaluate.results import ItemResult, Results, SystemResult
from edge_nudge.evaluate.statistics import (
    ALPHA,
    detectable_difference,
    difference_interval,
    holm,
    mean_of_means,
    paired_test,
    score_interval,
)
from edge_nudge.evaluate.systems import System, parse_system

# Tried where nothing is said. The paper's thresholds are 0.2 to 0.5; the others cover what moves the nudging ratio.
GRIDS: Mapping[str, tuple[float, ...]] = {
    "top_prob": (0.2, 0.3, 0.4, 0.5, 0.6),
    "margin": (0.05, 0.1, 0.2, 0.3, 0.4),
    "entropy": (1.0, 1.5, 2.0, 2.5, 3.0),
    "bet": (0.0, 0.1, 0.2, 0.3, 0.4),
    "blend": (0.2, 0.3, 0.4, 0.5, 0.6),
}
# By characters, of the paper's published answers: 10, 12 and 17 % for its three families of models.
USUAL_RATIO = 0.13
LEAST_PROMPTS = 10  # the ratio of a single answer can be anything


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Setting(_Part):
    """A rule and its threshold."""

    rule: str
    gamma: float

    @property
    def system(self) -> str:
        return f"nudged:rule={self.rule}+gamma={self.gamma:g}"

    def __str__(self) -> str:
        return f"{self.rule} at {self.gamma:g}"


class Point(_Part):
    """What one setting gave. Scores only where answers are known; `change` is against the present setting."""

    setting: Setting
    n: int
    ratio_tokens: float
    ratio_chars: float
    handoffs_per_100: float
    tokens_per_s: float | None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    p: float | None = None  # Holm, over all settings but the present one


class Alone(_Part):
    """One model alone on the same questions, and the recommended setting against it."""

    name: Literal["base", "nudging"]
    score: float
    gain: float
    gain_low: float
    gain_high: float
    p: float


class Calibration(_Part):
    """The finding: what to use, why, and what to beware of."""

    present: Setting
    recommended: Setting
    is_change: bool
    by: Literal["accuracy", "ratio"]
    reason: str
    warnings: tuple[str, ...] = ()
    points: tuple[Point, ...]
    alone: tuple[Alone, ...] = ()


def settings_to_try(rules: Sequence[str], gammas: Sequence[float], present: Setting) -> list[Setting]:
    """Return the settings of some rules, by rule and threshold; the present one is always among them.

    `gammas` are for a single rule; without them each rule has its own. Raises InputError.
    """
    unknown = [rule for rule in rules if rule not in GRIDS]
    if unknown:
        raise InputError(f"rule {unknown[0]!r} is nothing to calibrate: choose from {', '.join(GRIDS)}")
    if gammas and len(rules) != 1:
        raise InputError(
            f"thresholds of {len(rules)} rules cannot be given as one list: name one rule, or no thresholds"
        )
    high = [gamma for gamma in gammas if gamma > 1 and rules[0] != Rule.ENTROPY.value]
    if high:
        raise InputError(f"gamma {high[0]:g} is no threshold for {rules[0]}: it lies between 0 and 1")
    found = [Setting(rule=rule, gamma=gamma) for rule in rules for gamma in (gammas or GRIDS[rule])]
    return sorted({*found, present}, key=lambda setting: (setting.rule != present.rule, setting.rule, setting.gamma))


def systems_of(settings: Sequence[Setting], *, is_scored: bool) -> tuple[System, ...]:
    """Return who is asked: each setting and, where answers are known, both models alone."""
    alone = ["base", "nudging"] if is_scored else []
    return tuple(parse_system(name) for name in (*alone, *(setting.system for setting in settings)))


def default_setting(rule: Rule, gamma: float | None) -> Setting:
    return Setting(rule=rule.value, gamma=DEFAULT_GAMMA[rule] if gamma is None else gamma)


def calibrate(results: Results, present: Setting) -> Calibration:
    """Return what the answers of a run recommend. Raises InputError where the present setting was not asked."""
    systems = {system.name: system for system in results.systems}
    nudged = [(_setting_of(system), system) for system in results.systems if system.is_nudged]
    own = systems.get(present.system)
    if own is None:
        raise InputError(f"the present setting, {present}, was not asked")
    is_scored = all(item.score is not None for item in own.items) and bool(own.items)
    points = [_point(setting, system, own if is_scored and system is not own else None) for setting, system in nudged]
    if not is_scored:
        return _by_ratio(points, present)
    changed = [i for i, point in enumerate(points) if point.setting != present]
    adjusted = holm([points[i].p or 0.0 for i in changed])
    for i, p in zip(changed, adjusted, strict=True):
        points[i] = points[i].model_copy(update={"p": p})
    return _by_accuracy(points, present, systems)


def _setting_of(system: SystemResult) -> Setting:
    assert system.rule is not None, "a nudged system has a rule"
    assert system.gamma is not None, "and a threshold"
    return Setting(rule=system.rule, gamma=system.gamma)


def _by_accuracy(points: list[Point], present: Setting, systems: Mapping[str, SystemResult]) -> Calibration:
    now = next(point for point in points if point.setting == present)
    best = max(points, key=lambda point: (point.score or 0.0, point.setting == present, -point.ratio_tokens))
    warnings = []
    chosen = now
    if best.setting == present:
        reason = f"{present} scores best of {len(points)} settings: {_percent(now.score)}"
    elif best.p is not None and best.p < ALPHA:
        chosen = best
        reason = (
            f"{best.setting} scores {_percent(best.score)}, {present} {_percent(now.score)}: better beyond noise "
            f"(p = {best.p:.3g}, corrected for {len(points) - 1} comparisons)"
        )
    else:
        least = detectable_difference(_differences(systems[best.setting.system], systems[present.system]))
        reason = (
            f"no setting is better than {present} ({_percent(now.score)}) beyond noise; {best.setting} has "
            f"{_percent(best.score)} (p = {best.p or 1.0:.2g}). {best.n} answers show a difference of "
            f"{_percent(min(1.0, least))} at best: ask more questions to see smaller ones"
        )
    alone = [_alone(name, systems, chosen) for name in ("base", "nudging") if name in systems]
    behind = [model for model in alone if model.p >= ALPHA or model.gain <= 0]
    if behind:
        names = " and the ".join(f"{model.name} model alone ({_percent(model.score)})" for model in behind)
        warnings.append(
            f"nudging is not shown to help: {chosen.setting} has {_percent(chosen.score)}, not more than the {names} "
            "beyond noise"
        )
    warnings += _ratio_warning(chosen)
    return _calibration(points, present, chosen, "accuracy", reason, warnings, alone)


def _by_ratio(points: list[Point], present: Setting) -> Calibration:
    usable = [point for point in points if point.ratio_tokens <= MOST_NUDGED]
    if not usable:
        least = min(points, key=lambda point: point.ratio_tokens)
        now = next(point for point in points if point.setting == present)
        reason = f"no setting lets the nudging model write less than {_percent(MOST_NUDGED)} of the tokens"
        warning = (
            f"the least is {_percent(least.ratio_tokens)}, with {least.setting}: pairs above about "
            f"{_percent(MOST_NUDGED)} tend to fail; try another pair, or questions with known answers"
        )
        return _calibration(points, present, now, "ratio", reason, [warning], [])
    best = min(usable, key=lambda point: (abs(point.ratio_chars - USUAL_RATIO), point.setting != present))
    if best.n < LEAST_PROMPTS and best.setting != present:
        now = next(point for point in points if point.setting == present)
        reason = f"{best.n} prompts are too few to change anything for {best.setting}: give {LEAST_PROMPTS} or more"
        return _calibration(points, present, now, "ratio", reason, _ratio_warning(now), [])
    reason = (
        f"with {best.setting} the nudging model writes {_percent(best.ratio_chars)} of the characters, nearest to the "
        f"{_percent(USUAL_RATIO)} of the method's published answers"
    )
    warning = "chosen by the nudging ratio alone: questions with known answers say more"
    return _calibration(points, present, best, "ratio", reason, [warning], [])


def _calibration(
    points: list[Point],
    present: Setting,
    chosen: Point,
    by: Literal["accuracy", "ratio"],
    reason: str,
    warnings: Sequence[str],
    alone: Sequence[Alone],
) -> Calibration:
    return Calibration(
        present=present,
        recommended=chosen.setting,
        is_change=chosen.setting != present,
        by=by,
        reason=reason,
        warnings=tuple(warnings),
        points=tuple(points),
        alone=tuple(alone),
    )


def _ratio_warning(point: Point) -> list[str]:
    if point.ratio_tokens <= MOST_NUDGED:
        return []
    return [
        f"the nudging model writes {_percent(point.ratio_tokens)} of the tokens: above about {_percent(MOST_NUDGED)} "
        "the base model is hardly heard, and pairs tend to fail"
    ]


def _point(setting: Setting, system: SystemResult, present: SystemResult | None) -> Point:
    items = system.items
    n_tokens, n_chars = sum(item.n_tokens for item in items), sum(len(item.answer) for item in items)
    total_s = sum(item.total_s for item in items)
    point = Point(
        setting=setting,
        n=len(items),
        ratio_tokens=sum(item.n_nudging_tokens for item in items) / n_tokens if n_tokens else 0.0,
        ratio_chars=sum(item.n_nudging_chars for item in items) / n_chars if n_chars else 0.0,
        handoffs_per_100=100 * sum(item.n_handoffs for item in items) / n_tokens if n_tokens else 0.0,
        tokens_per_s=n_tokens / total_s if total_s else None,
    )
    scores = _groups(items)
    if not scores:
        return point
    interval = score_interval(scores)
    update: dict[str, float] = {"score": mean_of_means(scores), "low": interval.low, "high": interval.high}
    if present is not None:
        differences = _differences(system, present)
        change = difference_interval(differences)
        update |= {"change": mean_of_means(differences), "change_low": change.low, "change_high": change.high}
        update["p"] = paired_test(differences).p
    return point.model_copy(update=update)


def _alone(name: Literal["base", "nudging"], systems: Mapping[str, SystemResult], chosen: Point) -> Alone:
    differences = _differences(systems[chosen.setting.system], systems[name])
    interval = difference_interval(differences)
    return Alone(
        name=name,
        score=mean_of_means(_groups(systems[name].items)),
        gain=mean_of_means(differences),
        gain_low=interval.low,
        gain_high=interval.high,
        p=paired_test(differences).p,
    )


def _groups(items: Sequence[ItemResult]) -> list[list[float]]:
    """Return the scores, a list for each task."""
    groups: dict[str, list[float]] = {}
    for item in items:
        if item.score is not None:
            groups.setdefault(item.task, []).append(item.score)
    return list(groups.values())


def _differences(first: SystemResult, second: SystemResult) -> list[list[float]]:
    """Return first minus second, item by item, a list for each task."""
    others = {(item.task, item.id): item.score for item in second.items}
    groups: dict[str, list[float]] = {}
    for item in first.items:
        other = others.get((item.task, item.id))
        if item.score is not None and other is not None:
            groups.setdefault(item.task, []).append(item.score - other)
    return list(groups.values())


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
