"""The figures of an evaluation: for each system and task, over all tasks, and against each model alone.

Owns shapes of `summary.json` and how answers become figures. Never asks a model, and puts nothing in words: that is
verdicts.py.

1. Items of two systems are matched by task and id; one that either lacks, or has no score for, is left out of their
   comparison and counted.
2. "Over all tasks" is the mean of the tasks' means, so a long task counts no more than a short one.
3. P-values are adjusted by Holm over all comparisons of a table: one table is of the tasks, one of the averages.
4. Ratios and speeds are of sums: all tokens by all seconds, so a long answer counts more than a short one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from edge_nudge.core.visible import one_line
from edge_nudge.document import finite
from edge_nudge.errors import InputError
from edge_nudge.evaluate import statistics
from edge_nudge.evaluate.results import ItemResult, Results, SystemResult
from edge_nudge.report.wording import count
from edge_nudge.version import __version__

BASE, NUDGING = "base", "nudging"  # the systems of one model alone, which every other one is compared with
REFERENCES = (NUDGING, BASE)

Outcome: TypeAlias = Literal["better", "worse", "same"]
VerdictKind: TypeAlias = Literal["helps", "hurts", "unclear", "unknown"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Estimate(_Part):
    """A mean score with its interval, and of how many answers."""

    mean: float
    low: float
    high: float
    n: int


class Comparison(_Part):
    """How much better a system is than another one on the same items; `n_left_out` items had no match.

    `outcome` goes by `p_adjusted`: "same" means no difference beyond noise. `detectable` is about how large a true
    difference must be to be found here; see statistics.detectable_difference.
    """

    to: str
    difference: float
    low: float
    high: float
    n: int
    n_left_out: int
    test: statistics.TestName
    p: float
    p_adjusted: float
    outcome: Outcome
    detectable: float


class Cost(_Part):
    """What answers took; a figure is None where it would be a division by nothing."""

    n: int
    n_tokens: int
    mean_tokens: float | None
    tokens_per_s: float | None
    ratio_tokens: float | None  # by the nudging model
    ratio_chars: float | None
    handoffs_per_100_tokens: float | None
    base_evaluated_per_token: float | None
    nudging_evaluated_per_token: float | None
    finish: dict[str, int]


class Cell(_Part):
    """A system on a task, or over all tasks where `task` is None: then `n_tasks` have scores."""

    system: str
    task: str | None
    n_tasks: int
    score: Estimate | None
    metrics: dict[str, float]  # means of all figures of the task; empty over all tasks
    cost: Cost
    comparisons: tuple[Comparison, ...]

    def against(self, name: str) -> Comparison | None:
        return next((comparison for comparison in self.comparisons if comparison.to == name), None)


class Verdict(_Part):
    """Whether nudging helps: better than each model alone. `text` says it."""

    system: str
    task: str | None
    kind: VerdictKind
    text: str


class SystemAbout(_Part):
    name: str
    is_nudged: bool
    rule: str | None
    gamma: float | None
    settings: dict[str, str | float | int | bool | None]


class TaskFacts(_Part):
    name: str
    title: str
    metric: str
    is_open_ended: bool


class Summary(_Part):
    """Everything that was computed; the tables and the page say no other figure."""

    format: Literal["edge-nudge evaluation summary"] = "edge-nudge evaluation summary"
    format_version: Literal[1] = 1
    edge_nudge: str = __version__
    confidence: float = statistics.CONFIDENCE
    n_resamples: int = statistics.N_RESAMPLES
    systems: tuple[SystemAbout, ...]
    tasks: tuple[TaskFacts, ...]
    cells: tuple[Cell, ...]
    overall: tuple[Cell, ...]
    n_comparisons: int  # that the p-values of `cells` are adjusted for
    n_overall_comparisons: int
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]

    def cell(self, system: str, task: str | None) -> Cell | None:
        cells = self.overall if task is None else self.cells
        return next((cell for cell in cells if (cell.system, cell.task) == (system, task)), None)

    @property
    def scored_tasks(self) -> tuple[TaskFacts, ...]:
        names = {cell.task for cell in self.cells if cell.score is not None}
        return tuple(task for task in self.tasks if task.name in names)


Items: TypeAlias = dict[str, dict[str, ItemResult]]  # by task and id


@dataclass(frozen=True, slots=True)
class Asked:
    """The answers of all systems by name, task and id, in the order of the file."""

    systems: dict[str, Items]
    warnings: tuple[str, ...]


def summarize(results: Results) -> Summary:
    """Compute all figures. Raises InputError where two systems have one name, or scipy is not installed."""
    from edge_nudge.evaluate.verdicts import all_verdicts, all_warnings

    asked = by_item(results)
    tasks = _tasks(results)
    names = [task.name for task in tasks]
    cells, n_cells = _cells(asked, [(system, [name], name) for name in names for system in asked.systems])
    overall, n_overall = _cells(asked, [(system, names, None) for system in asked.systems])
    summary = Summary(
        systems=tuple(_about(system) for system in results.systems),
        tasks=tasks,
        cells=cells,
        overall=overall,
        n_comparisons=n_cells,
        n_overall_comparisons=n_overall,
        verdicts=(),
        warnings=(),
    )
    warnings = (*asked.warnings, *all_warnings(summary, results))
    return summary.model_copy(update={"verdicts": all_verdicts(summary), "warnings": warnings})


def by_item(results: Results) -> Asked:
    """Sort answers by system, task and id; of answers with one id the first one counts. Raises InputError."""
    counted = Counter(system.name for system in results.systems)
    name, n_times = max(counted.items(), key=lambda found: found[1], default=("", 0))
    if n_times > 1:
        raise InputError(f"{n_times} systems of the results are called {one_line(name)}: give each its own name")
    systems: dict[str, Items] = {}
    warnings = []
    for system in results.systems:
        items = systems[system.name] = {}
        for item in system.items:
            items.setdefault(item.task, {}).setdefault(item.id, item)
        n_twice = len(system.items) - sum(map(len, items.values()))
        if n_twice:
            warnings.append(
                f"{one_line(system.name)}: not counted, with task and id of one before: {count(n_twice, 'answer')}"
            )
    return Asked(systems, tuple(warnings))


def _tasks(results: Results) -> tuple[TaskFacts, ...]:
    """Return the tasks of the header, then those that only answers name."""
    about = {task.name: TaskFacts(**task.model_dump(include=set(TaskFacts.model_fields))) for task in results.tasks}
    for system in results.systems:
        for item in system.items:
            if item.task not in about:
                about[item.task] = TaskFacts(name=item.task, title=item.task, metric="score", is_open_ended=False)
    return tuple(about.values())


def _about(system: SystemResult) -> SystemAbout:
    return SystemAbout(
        name=system.name,
        is_nudged=system.is_nudged,
        rule=system.rule,
        gamma=system.gamma,
        settings=system.settings,
    )


# --- one system


def _groups(scores: Iterable[Iterable[float | None]]) -> list[list[float]]:
    """Return the scores that are known; a task without any is no group."""
    known = ([score for score in group if score is not None] for group in scores)
    return [group for group in known if group]


def _estimate(groups: Sequence[Sequence[float]]) -> Estimate | None:
    if not groups:
        return None
    interval = statistics.score_interval(groups)
    mean = statistics.mean_of_means(groups)
    return Estimate(mean=mean, low=interval.low, high=interval.high, n=sum(map(len, groups)))


def _metrics(items: Sequence[ItemResult]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for item in items:
        for name, value in item.metrics.items():
            found.setdefault(name, []).append(value)
    return {name: sum(value / len(values) for value in values) for name, values in found.items()}


def _cost(items: Sequence[ItemResult]) -> Cost:
    n_nudging = sum(item.n_nudging_tokens for item in items)
    n_tokens = sum(item.n_tokens for item in items)
    n_nudging_chars = sum(item.n_nudging_chars for item in items)
    n_chars = n_nudging_chars + sum(item.n_base_chars for item in items)
    return Cost(
        n=len(items),
        n_tokens=n_tokens,
        mean_tokens=_share(n_tokens, len(items)),
        tokens_per_s=_share(n_tokens, sum(item.total_s for item in items)),
        ratio_tokens=_share(n_nudging, n_tokens),
        ratio_chars=_share(n_nudging_chars, n_chars),
        handoffs_per_100_tokens=_share(100 * sum(item.n_handoffs for item in items), n_tokens),
        base_evaluated_per_token=_share(sum(item.n_base_evaluated for item in items), n_tokens),
        nudging_evaluated_per_token=_share(sum(item.n_nudging_evaluated for item in items), n_tokens),
        finish=dict(Counter(item.finish_detail for item in items).most_common()),
    )


def _share(part: float, whole: float) -> float | None:
    return finite(part / whole) if whole else None


# --- two systems


@dataclass(frozen=True, slots=True)
class Pairing:
    """Differences of a system from `to`, by task and item, and how many scored items have no match."""

    to: str
    groups: list[list[float]]
    n_left_out: int


def _cells(asked: Asked, wanted: Sequence[tuple[str, Sequence[str], str | None]]) -> tuple[tuple[Cell, ...], int]:
    """Return a table, of systems and their tasks, and how many comparisons its p-values are adjusted for."""
    rows = [(system, tasks, task, _pairings(asked, system, tasks)) for system, tasks, task in wanted]
    tests = [statistics.paired_test(pairing.groups) for *_, pairings in rows for pairing in pairings]
    judged = iter(zip(tests, statistics.holm([test.p for test in tests]), strict=True))
    cells = []
    for system, tasks, task, pairings in rows:
        comparisons = tuple(_comparison(pairing, *next(judged), len(tests)) for pairing in pairings)
        answers = [asked.systems[system].get(name, {}).values() for name in tasks]
        items = [item for group in answers for item in group]
        if not items:
            continue
        groups = _groups([item.score for item in group] for group in answers)
        cells.append(
            Cell(
                system=system,
                task=task,
                n_tasks=len(groups),
                score=_estimate(groups),
                metrics={} if task is None else _metrics(items),
                cost=_cost(items),
                comparisons=comparisons,
            )
        )
    return tuple(cells), len(tests)


def _pairings(asked: Asked, system: str, tasks: Sequence[str]) -> list[Pairing]:
    """Pair a system with each model alone, as far as both have scores; the base model's row has no comparison."""
    found = []
    for other in REFERENCES[1:] if system == NUDGING else REFERENCES:
        if other not in asked.systems or system in (other, BASE):
            continue
        pairs = [
            _differences(asked.systems[system].get(task, {}), asked.systems[other].get(task, {})) for task in tasks
        ]
        groups = [differences for differences, _ in pairs if differences]
        if groups:
            found.append(Pairing(other, groups, sum(n_lost for _, n_lost in pairs)))
    return found


def _differences(own: Mapping[str, ItemResult], other: Mapping[str, ItemResult]) -> tuple[list[float], int]:
    own_scores, other_scores = (
        {key: item.score for key, item in items.items() if item.score is not None} for items in (own, other)
    )
    differences = [score - other_scores[key] for key, score in own_scores.items() if key in other_scores]
    return differences, len(own_scores) + len(other_scores) - 2 * len(differences)


def _comparison(pairing: Pairing, test: statistics.Test, p_adjusted: float, n_comparisons: int) -> Comparison:
    interval = statistics.difference_interval(pairing.groups)
    difference = statistics.mean_of_means(pairing.groups)
    is_told = p_adjusted < statistics.ALPHA and difference != 0
    return Comparison(
        to=pairing.to,
        difference=difference,
        low=interval.low,
        high=interval.high,
        n=sum(map(len, pairing.groups)),
        n_left_out=pairing.n_left_out,
        test=test.name,
        p=test.p,
        p_adjusted=p_adjusted,
        outcome=("better" if difference > 0 else "worse") if is_told else "same",
        detectable=statistics.detectable_difference(pairing.groups, statistics.ALPHA / n_comparisons),
    )
