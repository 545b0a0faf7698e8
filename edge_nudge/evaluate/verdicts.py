"""What the figures of an evaluation say in plain sentences: whether nudging helps, and what to be careful about.

Owns the sentences. Never computes a figure.

1. A nudged pair helps only where it is better than each of its models alone; worse than one of them, it hurts.
2. Better and worse are beyond noise: by p-values that are adjusted for all comparisons of their table.
3. What cannot be told is said as such, with the smallest difference that could have been.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_nudge.core.visible import one_line
from edge_nudge.evaluate.results import Results
from edge_nudge.evaluate.summary import (
    BASE,
    NUDGING,
    REFERENCES,
    Cell,
    Comparison,
    Summary,
    SystemAbout,
    Verdict,
    VerdictKind,
)
from edge_nudge.evaluate.wording import detectable, difference_range, p_value, points, share
from edge_nudge.report.wording import count

TELLING = 0.1  # a difference as large as this should be found, else the reader is told that it would not be
CUT_SHARE = 0.1  # of answers cut at the limit of tokens: from here on it is worth a warning

ALONE = {BASE: "the base model alone", NUDGING: "the nudging model alone"}
ALL_TASKS = "all tasks together"

_ENDS: dict[VerdictKind, str] = {
    "helps": "nudging helps",
    "hurts": "nudging hurts",
    "unclear": "no help beyond noise",
    "unknown": "whether nudging helps cannot be told",
}


def all_verdicts(summary: Summary) -> tuple[Verdict, ...]:
    """Judge each nudged system on each task with scores, and over all of them where there are several."""
    places: list[tuple[str | None, str]] = [(task.name, one_line(task.title)) for task in summary.scored_tasks]
    if len(places) > 1:
        places.append((None, ALL_TASKS))
    return tuple(
        _verdict(system, name, title, summary)
        for name, title in places
        for system in summary.systems
        if system.is_nudged and summary.cell(system.name, name) is not None
    )


def _verdict(system: SystemAbout, task: str | None, title: str, summary: Summary) -> Verdict:
    cell = summary.cell(system.name, task)
    assert cell is not None, "only what has answers is judged"
    found = [cell.against(name) for name in REFERENCES]
    outcomes = [comparison.outcome for comparison in found if comparison is not None]
    kind: VerdictKind = "unclear"
    if "worse" in outcomes:
        kind = "hurts"
    elif len(outcomes) < len(REFERENCES):
        kind = "unknown"
    elif outcomes == ["better"] * len(REFERENCES):
        kind = "helps"
    clauses = [_clause(name, comparison) for name, comparison in zip(REFERENCES, found, strict=True)]
    text = f"{title}: {one_line(system.name)} is {' and '.join(clauses)}: {_ENDS[kind]}."
    return Verdict(system=system.name, task=task, kind=kind, text=text)


def _clause(name: str, comparison: Comparison | None) -> str:
    if comparison is None:
        return f"not compared with {ALONE[name]} (no scores of the same items)"
    figures = (
        f"{points(comparison.difference)} points, 95 % interval {difference_range(comparison)}, "
        f"adjusted p {p_value(comparison.p_adjusted)}, n = {comparison.n}"
    )
    if comparison.outcome != "same":
        return f"{comparison.outcome} than {ALONE[name]} ({figures})"
    return f"not different beyond noise from {ALONE[name]} ({figures})"


# --- what to be careful about


def all_warnings(summary: Summary, results: Results) -> tuple[str, ...]:
    """Say what a reader has to know before the figures are used."""
    return (
        *_missing_systems(summary),
        *_missing_answers(summary, results),
        *_left_out(summary),
        *_too_small(summary),
        *_cut(summary),
    )


def _missing_systems(summary: Summary) -> Iterator[str]:
    names = {system.name for system in summary.systems}
    if not any(cell.cost.n for cell in summary.cells):
        yield "there are no answers: nothing can be computed"
        return
    if not summary.scored_tasks:
        yield "no answer has a score: nothing is compared, and there is no verdict"
        return
    if not any(system.is_nudged for system in summary.systems):
        yield "no system is nudged: there is no verdict"
    for name in REFERENCES:
        if name not in names:
            yield f'{ALONE[name]} was not asked (no system is called "{name}"): whether nudging helps cannot be told'


def _missing_answers(summary: Summary, results: Results) -> Iterator[str]:
    n_asked = {task.name: task.n_items for task in results.tasks}
    open_ended = {task.name for task in summary.tasks if task.is_open_ended}
    for task in summary.tasks:
        for system in summary.systems:
            cell = summary.cell(system.name, task.name)
            n = 0 if cell is None else cell.cost.n
            wanted = n_asked.get(task.name, n)
            place = f"{one_line(task.title)}, {one_line(system.name)}"
            if n < wanted:
                yield f"{place}: {wanted - n} of {wanted} answers are missing"
            n_scored = 0 if cell is None or cell.score is None else cell.score.n
            if n_scored < n and task.name not in open_ended:
                yield f"{place}: {n - n_scored} of {n} answers have no score and count nowhere"


def _left_out(summary: Summary) -> Iterator[str]:
    titles = _titles(summary)
    for cell in summary.cells:
        for comparison in cell.comparisons:
            if comparison.n_left_out:
                yield (
                    f"{titles[cell.task]}: {one_line(cell.system)} against {ALONE[comparison.to]}: "
                    f"left out, because only one of them has a score: {count(comparison.n_left_out, 'item')}"
                )


def _too_small(summary: Summary) -> Iterator[str]:
    """Warn of the tasks where a difference worth knowing would often be missed."""
    titles = _titles(summary)
    nudged = {system.name for system in summary.systems if system.is_nudged}
    few, small = [], []
    for task in summary.scored_tasks:
        cells = [cell for cell in summary.cells if cell.task == task.name and cell.system in nudged]
        found = [comparison for cell in cells for comparison in cell.comparisons if comparison.outcome == "same"]
        worst = max(found, key=lambda comparison: comparison.detectable, default=None)
        if worst is not None and worst.detectable > 1:
            few.append(f"{titles[task.name]} (n = {worst.n})")
        elif worst is not None and worst.detectable > TELLING:
            small.append(f"{titles[task.name]} below {detectable(worst)} (n = {worst.n})")
    if few:
        yield f"too few items to tell any difference, however large: {', '.join(few)}"
    if small:
        yield f"few items: a true difference would often be missed (in more than one of five runs): {', '.join(small)}"


def _cut(summary: Summary) -> Iterator[str]:
    titles = _titles(summary)
    for system in summary.systems:
        cells = [cell for cell in summary.cells if cell.system == system.name]
        shares = [(cell, cell.cost.finish.get("max_tokens", 0) / cell.cost.n) for cell in cells]
        found = [f"{titles[cell.task]} {share(part, 0)}" for cell, part in shares if part > CUT_SHARE]
        if found:
            yield f"{one_line(system.name)}: answers cut at the limit of tokens: {', '.join(found)}"


def _titles(summary: Summary) -> dict[str | None, str]:
    return {task.name: one_line(task.title) for task in summary.tasks}


def lead_system(summary: Summary) -> Cell | None:
    """Return the nudged system with the highest mean over all tasks, of equal ones the first."""
    nudged = {system.name for system in summary.systems if system.is_nudged}
    cells = [cell for cell in summary.overall if cell.system in nudged and cell.score is not None]
    return max(cells, key=lambda cell: 0.0 if cell.score is None else cell.score.mean, default=None)
