"""One HTML page of an evaluation, whole in itself: it loads nothing, sends nothing and runs nothing.

Owns what the page shows of a summary; the figures are summary.py's, the drawings plots.py's, the choice of answers
examples.py's, the markup page/evaluation.html.

1. Everything from the results is text: the template escapes it, and characters that would reorder or hide text are
   written as escapes that are marked as such. Only the drawings are markup, and they hold no text of the results.
2. There is no script, and the page's own style is the only one: a content security policy names its hash.
3. What is left out to keep the page small is counted where it would stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from edge_nudge.core.events import FinishDetail, Role
from edge_nudge.core.visible import one_line
from edge_nudge.evaluate import statistics, wording
from edge_nudge.evaluate.examples import Part, find_examples
from edge_nudge.evaluate.plots import Plot, draw_plots
from edge_nudge.evaluate.results import Results
from edge_nudge.evaluate.summary import BASE, NUDGING, REFERENCES, Summary, Verdict
from edge_nudge.evaluate.verdicts import ALL_TASKS, ALONE, lead_system
from edge_nudge.report.markup import flat, page_file, policy, shown
from edge_nudge.report.wording import AUTHORS, ENDINGS, REASONS, count, percent

MAX_SYSTEMS = 40  # in tables
MAX_TASKS = 40
MAX_NAME = 120  # characters of a name, a setting, a file
MAX_LINE = 600  # characters of a command or a machine
N_WARNINGS = 6  # that are seen at once
MAX_WARNINGS = 200

_MODEL_FACTS = {
    "label": "name",
    "file": "file",
    "sha256": "SHA-256",
    "n_ctx": "context in tokens",
    "prompt_format": "prompt format",
    "offload": "runs on",
    "gpu_layers": "layers on the GPU",
}
BADGES = {"helps": "helps", "hurts": "hurts", "unclear": "no help shown", "unknown": "unknown"}


def render_evaluation(results: Results, summary: Summary) -> str:
    """Return the page. Raises InputError where matplotlib is not installed."""
    plots = draw_plots(summary)
    lead = lead_system(summary)
    style = page_file("edge_nudge.report", "common.css") + page_file("edge_nudge.evaluate", "evaluation.css")
    n_more_systems = max(0, len(summary.systems) - MAX_SYSTEMS)
    tasks = summary.tasks[:MAX_TASKS]
    return _template().render(
        policy=policy(style, None),
        style=Markup(style),
        results=results,
        summary=summary,
        systems=summary.systems[:MAX_SYSTEMS],
        tasks=tasks,
        scored_tasks=[task for task in summary.scored_tasks if task in tasks],
        n_more_systems=n_more_systems,
        n_more_tasks=len(summary.tasks) - len(tasks),
        titles={None: ALL_TASKS, **{task.name: task.title for task in summary.tasks}},
        tasks_about={task.name: task for task in results.tasks},
        first_verdicts=_first_verdicts(summary),
        more_verdicts=[verdict for verdict in summary.verdicts if verdict not in _first_verdicts(summary)],
        counted=Counter(
            BADGES[verdict.kind] for verdict in summary.verdicts if verdict not in _first_verdicts(summary)
        ),
        warnings=summary.warnings[:MAX_WARNINGS],
        n_warnings=N_WARNINGS,
        n_more_warnings=max(0, len(summary.warnings) - MAX_WARNINGS),
        plots=[(plot, _drawing(plot)) for plot in plots],
        examples=find_examples(results, summary),
        lead=None if lead is None else lead.system,
        models={role: _model_facts(results.pair.get(role.value)) for role in Role},
        pair_name=_text(results.pair.get("name")),
        title=_title(results),
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shown=shown, flat=flat, name=_name, line=_line, count=count, why=_why, ending=_ending)
    environment.filters.update(share=wording.share, points=wording.points, number=wording.number, p=wording.p_value)
    environment.filters.update(score_range=wording.score_range, difference_range=wording.difference_range)
    environment.filters.update(detectable=wording.detectable, endings=wording.endings)
    environment.filters.update(value=_value, right=_right)
    environment.globals.update(
        badges=BADGES, alone=ALONE, references=REFERENCES, statistics=statistics, base=BASE, nudging=NUDGING
    )
    environment.globals.update(authors={role.value: author for role, author in AUTHORS.items()}, roles=list(Role))
    return environment.from_string(page_file("edge_nudge.evaluate", "evaluation.html"))


def _drawing(plot: Plot) -> Markup:
    return Markup(plot.svg)


def _first_verdicts(summary: Summary) -> list[Verdict]:
    """Return the verdicts over all tasks, or those of the only one."""
    overall = [verdict for verdict in summary.verdicts if verdict.task is None]
    return overall or list(summary.verdicts)


# --- text of the results


def _name(text: str) -> Markup:
    """Escape a name, cut where it is too long to be one."""
    return flat(text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…")


def _line(text: str) -> Markup:
    return flat(text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}… ({len(text) - MAX_LINE} more characters)")


def _text(value: object) -> str | None:
    """Return a value of a document whose shape nobody checked; None where it says nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) or None


def _model_facts(model: object) -> list[tuple[str, str]]:
    """Return what a pair's document says of a model, by names for readers; no path of anybody's machine."""
    if not isinstance(model, Mapping):
        return []
    facts = [(name, _text(model.get(key))) for key, name in _MODEL_FACTS.items()]
    adapter = model.get("adapter")
    if isinstance(adapter, Mapping):
        facts += [("adapter", _text(adapter.get("file"))), ("SHA-256 of the adapter", _text(adapter.get("sha256")))]
    return [(name, text) for name, text in facts if text is not None]


def _title(results: Results) -> str:
    models = (results.pair.get(role.value) for role in Role)
    labels = [_text(model.get("label")) for model in models if isinstance(model, Mapping)]
    known = [label for label in labels if label is not None]
    return " + ".join(known) or _text(results.pair.get("name")) or "evaluation"


def _value(value: str | float | bool | None) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return one_line(value) if isinstance(value, str) else f"{value:g}"


def _why(part: Part) -> str:
    """Say who wrote a part and for what reason."""
    if part.author is None:
        return "it is not known who wrote what"
    reasons = {reason.value: text for reason, text in REASONS.items()}
    text = f"{AUTHORS[Role(part.author)]}: {reasons.get(part.reason) or one_line(part.reason[:MAX_NAME])}"
    return text if part.top_prob is None else f"{text} · the base model's best token here: {percent(part.top_prob)}"


def _ending(detail: str) -> str:
    return ENDINGS[FinishDetail(detail)] if detail in {known.value for known in FinishDetail} else "another end"


def _right(score: float | None) -> str:
    """Say what a score means."""
    if score is None:
        return "not scored"
    return {1.0: "right", 0.0: "wrong"}.get(score) or f"score {score:.2f}"
