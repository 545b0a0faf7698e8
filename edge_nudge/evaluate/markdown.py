"""The tables of an evaluation in Markdown, for a page of documentation or an issue.

Owns rows and columns. Never computes a figure, and leaves no name of the results that could become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edge_nudge.core.visible import one_line
from edge_nudge.evaluate.results import Results
from edge_nudge.evaluate.summary import REFERENCES, Cell, Comparison, Summary
from edge_nudge.evaluate.verdicts import ALL_TASKS, ALONE
from edge_nudge.evaluate.wording import (
    NOTHING,
    detectable,
    difference_range,
    endings,
    number,
    p_value,
    points,
    score_range,
    share,
)

MARK = "<!-- edge-nudge: the report of an evaluation -->"
MAX_NAME = 120


def markdown_table(summary: Summary) -> str:
    """Return three tables: scores, differences on the same items, costs."""
    parts = [_scores(summary), _differences(summary), _costs(summary)]
    return "\n".join(part for part in parts if part)


def markdown_report(results: Results, summary: Summary) -> str:
    """Return the tables with what they are of, the verdicts and the warnings."""
    facts = [("command", results.command), ("started", results.started), ("machine", results.machine)]
    lines = [MARK, "# Evaluation", ""]
    lines += [f"- {name}: {plain(value)}" for name, value in facts if value]
    lines += [f"- seed: {results.seed}, edge-nudge {plain(results.edge_nudge)}", ""]
    for title, texts in (
        ("Verdicts", [verdict.text for verdict in summary.verdicts]),
        ("Before you use these figures", summary.warnings),
    ):
        if texts:
            lines += [f"## {title}", "", *(f"- {plain(text, n_most=None)}" for text in texts), ""]
    return "\n".join(lines) + "\n" + markdown_table(summary)


def plain(text: str, n_most: int | None = MAX_NAME) -> str:
    """Write a text so that Markdown shows it as it is."""
    text = one_line(text if n_most is None or len(text) <= n_most else f"{text[:n_most]}…")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$!@])", r"\\\1", text)


def _scores(summary: Summary) -> str:
    tasks = summary.scored_tasks
    if not tasks:
        return ""
    has_mean = len(tasks) > 1
    heads = ["system", *(f"{plain(task.title)} ({plain(task.metric)})" for task in tasks), *["all tasks"] * has_mean]
    places = [task.name for task in tasks]
    rows = (
        [plain(system.name)]
        + [_score(summary.cell(system.name, place)) for place in places]
        + [_score(summary.cell(system.name, None))] * has_mean
        for system in summary.systems
    )
    return _table(heads, rows)


def _score(cell: Cell | None) -> str:
    if cell is None or cell.score is None:
        return NOTHING
    return f"{share(cell.score.mean)} ({score_range(cell.score)}; n = {cell.score.n})"


def _differences(summary: Summary) -> str:
    heads = ["task", "system"]
    for name in REFERENCES:
        heads += [f"points against {ALONE[name]} (95 %)", "adjusted p", "found from"]
    rows = [
        [*_place(summary, cell), *(text for name in REFERENCES for text in _against(cell.against(name)))]
        for cell in (*summary.cells, *(summary.overall if len(summary.scored_tasks) > 1 else ()))
        if cell.comparisons
    ]
    return _table(heads, rows) if rows else ""


def _against(comparison: Comparison | None) -> tuple[str, str, str]:
    if comparison is None:
        return NOTHING, NOTHING, NOTHING
    left_out = f"; {comparison.n_left_out} left out" if comparison.n_left_out else ""
    figures = f"{points(comparison.difference)} ({difference_range(comparison)}; n = {comparison.n}{left_out})"
    told = figures if comparison.outcome == "same" else f"**{comparison.outcome}** {figures}"
    return told, p_value(comparison.p_adjusted).removeprefix("= "), detectable(comparison)


def _costs(summary: Summary) -> str:
    heads = [
        *("task", "system", "answers", "nudging tokens", "nudging characters", "handoffs per 100 tokens"),
        *("tokens per answer", "tokens/s", "base tokens evaluated per token", "ended by"),
    ]
    rows = (
        [
            *_place(summary, cell),
            str(cell.cost.n),
            share(cell.cost.ratio_tokens),
            share(cell.cost.ratio_chars),
            number(cell.cost.handoffs_per_100_tokens),
            number(cell.cost.mean_tokens),
            number(cell.cost.tokens_per_s),
            number(cell.cost.base_evaluated_per_token, 2),
            ", ".join(f"{plain(detail)} {n}" for detail, n in endings(cell.cost)),
        ]
        for cell in (*summary.cells, *(summary.overall if len(summary.tasks) > 1 else ()))
    )
    return _table(heads, rows)


def _place(summary: Summary, cell: Cell) -> tuple[str, str]:
    title = next((task.title for task in summary.tasks if task.name == cell.task), ALL_TASKS)
    return plain(title), plain(cell.system)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
