"""The plots of an evaluation: scores with their intervals, scores against gamma, scores against the nudging ratio.

Owns what is drawn, by matplotlib's objects, and how its SVG becomes part of a page. Never opens a window, touches no
state of pyplot, and computes no figure.

1. The same summary gives the same bytes: fixed ids, no date, matplotlib's own default style and font whatever the
   user has set.
2. Text becomes outlines of the font that matplotlib ships; what this font lacks is drawn as a box. No text of the
   results is left in the SVG, and none of it is read as a formula.
3. A plot has no style of its own: styles are attributes, which a page's policy allows, and its style sheet gives each
   colour a second one for the dark.
4. What is too much to be read is left out, and the plot says how much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING, Any

from edge_nudge.core.visible import one_line
from edge_nudge.errors import InputError
from edge_nudge.evaluate.summary import BASE, NUDGING, Cell, Estimate, Summary, SystemAbout
from edge_nudge.report.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SYSTEMS = 16
MAX_TASKS = 12
MAX_LABEL = 34  # characters
MAX_GAMMA = 1e6  # beyond, it is no threshold of anything, and axes overflow
WIDTH_IN = 5.4  # of a phone: its text is as large there as on a desk
ROW_IN = 0.2
PANEL_IN = 2.1
BOX = "\u25a1"

INK, LINE = "#1b1e22", "#dcdee2"
COLORS = {BASE: "#1c4f94", NUDGING: "#a01f69"}
MORE_COLORS = ("#23855b", "#b9731a", "#7a5cc4", "#0e7c86", "#c2402f", "#6b7480")
MORE_MARKERS = "DvP^X<>*"  # base is a circle, nudging a square: shape tells what colour does
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "edge-nudge",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with what it shows in words; `svg` is markup of this module, without text from the results."""

    name: str
    title: str
    about: str
    svg: str


def draw_plots(summary: Summary) -> tuple[Plot, ...]:
    """Draw what the summary has figures for. Raises InputError where matplotlib is not installed."""
    try:
        from matplotlib import style
    except ImportError:
        raise InputError(
            "the plots of an evaluation need matplotlib, which is not installed: pip install 'edge-nudge[eval]'"
        ) from None
    if not summary.scored_tasks:
        return ()
    with style.context(["default", _STYLE]):
        drawn = (_score_plot(summary), _gamma_plot(summary), _ratio_plot(summary))
    return tuple(plot for plot in drawn if plot is not None)


# --- scores of systems and tasks


def _score_plot(summary: Summary) -> Plot:
    systems = [about for about in summary.systems if _score(summary, about.name, None)]
    places: list[tuple[str | None, str]] = [(task.name, task.title) for task in summary.scored_tasks]
    systems, n_systems_out = systems[:MAX_SYSTEMS], max(0, len(systems) - MAX_SYSTEMS)
    places, n_tasks_out = places[:MAX_TASKS], max(0, len(places) - MAX_TASKS)
    if len(places) > 1:
        places.append((None, "mean of all tasks"))
    looks = _looks(summary)
    y, ticks = 0.0, []
    figure, (axes,) = _panels(1, len(places) * (len(systems) + 1.6) * ROW_IN + 0.7, n_columns=1)
    for name, title in places:
        ticks.append((y, title, True))
        for about in systems:
            score = _score(summary, about.name, name)
            if score is None:
                continue
            y += 1
            ticks.append((y, about.name, False))
            color, marker = looks[about.name]
            axes.errorbar(
                [score.mean * 100],
                [y],
                xerr=_bars(score),
                fmt=marker,
                color=color,
                markersize=5,
                elinewidth=1.4,
                capsize=2.5,
            )
        y += 1.6
    axes.set_yticks([at for at, _, _ in ticks], [_label(text) for _, text, _ in ticks])
    for tick, (_, _, is_head) in zip(axes.yaxis.get_major_ticks(), ticks, strict=True):
        tick.label1.set_fontweight("bold" if is_head else "normal")
        tick.tick1line.set_visible(False)
        tick.gridline.set_visible(not is_head)
    axes.set_ylim(y - 0.6, -0.8)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("score in %, with its 95 % interval")
    asked = f"{count(len(systems), 'system')} on {count(len(places) - (len(places) > 1), 'task')}"
    about_plot = f"Mean score and its 95 % interval of {asked}; "
    left_out = _left_out((n_systems_out, "systems"), (n_tasks_out, "tasks"))
    return Plot(
        "scores",
        "Scores with their intervals",
        f"{about_plot}the figures are in the table of scores.{left_out}",
        _svg(figure, "p1"),
    )


# --- scores against gamma


def _gamma_plot(summary: Summary) -> Plot | None:
    """Draw a line for each rule and its other settings, where there are several gammas."""
    lines: dict[tuple[str, str], list[SystemAbout]] = {}
    for about in summary.systems:
        if about.rule is not None and about.gamma is not None and abs(about.gamma) < MAX_GAMMA:
            others = {key: value for key, value in sorted(about.settings.items()) if key not in ("gamma", "rule")}
            more = ", ".join(f"{name} {value}" for name, value in others.items())
            lines.setdefault((about.rule, more), []).append(about)
    lines = {key: found for key, found in lines.items() if len({about.gamma for about in found}) > 1}
    rules = list(dict.fromkeys(rule for rule, _ in lines))
    places = [(rule, task) for task in summary.scored_tasks for rule in rules]
    if not places:
        return None
    kept = places[:MAX_TASKS]
    figure, panels = _panels(len(kept), -(-len(kept) // 2) * PANEL_IN + 0.5)
    shown: dict[str, Any] = {}
    for axes, (rule, task) in zip(panels, kept, strict=True):
        axes.set_title(_label(task.title if len(rules) == 1 else f"{task.title}: {rule}"))
        _alone_lines(axes, summary, task.name, shown)
        for i, ((line_rule, more), systems) in enumerate(lines.items()):
            if line_rule != rule:
                continue
            found = [(about.gamma or 0.0, _score(summary, about.name, task.name)) for about in systems]
            known = sorted(((gamma, score) for gamma, score in found if score), key=lambda point: point[0])
            if known:
                label = f"{rule} ({more})" if more else rule
                color = MORE_COLORS[i % len(MORE_COLORS)]
                shown[label] = _errorbar_line(axes, known, color, _marker(i))
        axes.set_ylim(-3, 103)
        axes.set_ylabel("score, %")
        axes.set_xlabel("gamma")
    _legend(figure, shown)
    left_out = _left_out((len(places) - len(kept), "panels"))
    about_plot = f"Score against gamma, with each model alone as a dashed line.{left_out}"
    return Plot("gamma", "Scores against gamma", about_plot, _svg(figure, "p2"))


def _alone_lines(axes: Axes, summary: Summary, task: str, shown: dict[str, Any]) -> None:
    for name in (BASE, NUDGING):
        score = _score(summary, name, task)
        if score is not None:
            dashes = (0, (5, 2)) if name == BASE else (0, (2, 2))
            shown[name] = axes.axhline(score.mean * 100, color=COLORS[name], linestyle=dashes, linewidth=1.2)


def _errorbar_line(axes: Axes, known: Sequence[tuple[float, Estimate]], color: str, marker: str) -> Any:
    bars = [_bars(score) for _, score in known]
    return axes.errorbar(
        [gamma for gamma, _ in known],
        [score.mean * 100 for _, score in known],
        yerr=[[bar[0][0] for bar in bars], [bar[1][0] for bar in bars]],
        fmt=f"{marker}-",
        color=color,
        markersize=4.5,
        linewidth=1.3,
        elinewidth=1,
        capsize=2.5,
    )


# --- scores against the nudging ratio


def _ratio_plot(summary: Summary) -> Plot | None:
    systems = [about for about in summary.systems if _score(summary, about.name, None)]
    if not any(about.is_nudged for about in systems):
        return None
    kept = summary.scored_tasks[:MAX_TASKS]
    looks = _looks(summary)
    figure, panels = _panels(
        len(kept), -(-len(kept) // 2) * PANEL_IN + 0.22 * (len(systems[:MAX_SYSTEMS]) + 1) / 2 + 0.3
    )
    shown: dict[str, Any] = {}
    for axes, task in zip(panels, kept, strict=True):
        axes.set_title(_label(task.title))
        for about in systems[:MAX_SYSTEMS]:
            cell = summary.cell(about.name, task.name)
            if cell is None or cell.score is None or cell.cost.ratio_tokens is None:
                continue
            color, marker = looks[about.name]
            shown[about.name] = axes.errorbar(
                [cell.cost.ratio_tokens * 100],
                [cell.score.mean * 100],
                yerr=_bars(cell.score),
                fmt=marker,
                color=color,
                markersize=5,
                elinewidth=1,
                capsize=2.5,
            )
        axes.set_xlim(-5, 105)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("score, %")
        axes.set_xlabel("tokens by the nudging model, %")
    _legend(figure, shown)
    left_out = _left_out(
        (max(0, len(systems) - MAX_SYSTEMS), "systems"), (len(summary.scored_tasks) - len(kept), "tasks")
    )
    about_plot = f"Score against the share of tokens that the nudging model wrote.{left_out}"
    return Plot("ratio", "Scores against the nudging ratio", about_plot, _svg(figure, "p3"))


# --- shared by all


def _score(summary: Summary, system: str, task: str | None) -> Estimate | None:
    cell: Cell | None = summary.cell(system, task)
    return None if cell is None else cell.score


def _bars(score: Estimate) -> list[list[float]]:
    """Return how far the interval reaches below and above the mean, in points."""
    return [[max(0.0, score.mean - score.low) * 100], [max(0.0, score.high - score.mean) * 100]]


def _looks(summary: Summary) -> dict[str, tuple[str, str]]:
    """Give each system its colour and its marker."""
    looks = {BASE: (COLORS[BASE], "o"), NUDGING: (COLORS[NUDGING], "s")}
    others = [about.name for about in summary.systems if about.name not in looks]
    return looks | {name: (MORE_COLORS[i % len(MORE_COLORS)], _marker(i)) for i, name in enumerate(others)}


def _marker(i: int) -> str:
    return MORE_MARKERS[i % len(MORE_MARKERS)]


def _panels(n: int, height_in: float, n_columns: int = 2) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, max(1.2, height_in)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_visible(False)
    n_columns = min(n, n_columns)
    found = figure.subplots(-(-n // n_columns), n_columns, squeeze=False).flatten().tolist()
    for axes in found:
        axes.patch.set_visible(False)
    for axes in found[n:]:
        axes.remove()
    return figure, found[:n]


def _legend(figure: Figure, shown: dict[str, Any]) -> None:
    figure.legend(
        list(shown.values()), [_label(name) for name in shown], loc="outside lower center", ncols=2, columnspacing=2.5
    )


def _label(text: str) -> str:
    """Make a text one that the font can draw; matplotlib would hide what begins with a line."""
    text = one_line(text)
    if len(text) > MAX_LABEL:  # systems often differ in their last setting
        text = f"{text[: MAX_LABEL // 2]}…{text[1 - MAX_LABEL // 2 :]}"
    drawn = "".join(character if ord(character) in _characters() else BOX for character in text)
    return f" {drawn}" if drawn.startswith("_") else drawn


@cache
def _characters() -> frozenset[int]:
    """Return what the font has, upright and bold."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = (FontProperties(family=["DejaVu Sans"], weight=weight) for weight in ("normal", "bold"))
    first, second = (frozenset(get_font(findfont(font, fallback_to_default=False)).get_charmap()) for font in fonts)
    return first & second


def _left_out(*parts: tuple[int, str]) -> str:
    said = [f"{n} more {what}" for n, what in parts if n]
    return f" Not drawn: {', '.join(said)}." if said else ""


def _svg(figure: Figure, prefix: str) -> str:
    """Return the drawing as an element of a page, its ids beginning with `prefix`."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, body = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL).split(">", 1)
    view = re.search(r'viewBox="[\d. ]+"', head)
    assert view is not None, "matplotlib writes one"
    substitutions: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r' style="([^"]*)"', lambda found: _attributes(found[1])),
        (r' id="', f' id="{prefix}-'),
        (r'xlink:href="#', f'href="#{prefix}-'),
        (r"url\(#", f"url(#{prefix}-"),
        (r"\s*\n\s*", "\n"),
        # A marker takes its colour from where it is used: a browser may not look for the style of its own there.
        (r"<defs>.*?</defs>", lambda found: re.sub(r' stroke="#\w+"', "", found[0])),
        (r"<metadata>.*?</metadata>|<defs>\s*</defs>\n?", ""),
    )
    for pattern, new in substitutions:
        body = re.sub(pattern, new, body, flags=re.DOTALL)
    return (
        f'<svg {view[0]} class="plot" aria-hidden="true" stroke-linejoin="round" stroke-linecap="butt">{body.strip()}'
    )


def _attributes(style: str) -> str:
    """Write declarations of a style as attributes of the same names."""
    pairs = [part.split(":", 1) for part in style.split(";") if ":" in part]
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)
