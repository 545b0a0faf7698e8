"""The report of an evaluation: its figures and sentences for known scores, its tables, plots, page and files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from evaluations import alone, drawn, hostile, item, large, results, system
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_report import Page, text_of
from traces import NASTY

from edge_nudge.core.events import FinishDetail, HandoffReason
from edge_nudge.core.visible import visible
from edge_nudge.errors import InputError
from edge_nudge.evaluate import examples, plots
from edge_nudge.evaluate.examples import find_examples
from edge_nudge.evaluate.markdown import markdown_report, markdown_table
from edge_nudge.evaluate.page import render_evaluation
from edge_nudge.evaluate.plots import draw_plots
from edge_nudge.evaluate.report import MARKDOWN, PAGE, SUMMARY, write_report
from edge_nudge.evaluate.results import ItemResult, Results, SystemResult, TaskAbout, TurnText
from edge_nudge.evaluate.summary import Summary, summarize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def helping(n: int = 60) -> Results:
    """Nudged is right everywhere, each model alone nowhere."""
    return results(*(system(name, {"t": [float(name == "nudged")] * n}) for name in ("base", "nudging", "nudged")))


def unscored() -> Results:
    return results(*(system(name, {"t": [None] * 3}) for name in ("base", "nudging", "nudged")))


def fractional() -> Results:
    shares = {"base": 0.2, "nudging": 0.5, "nudged": 0.7}
    scores = {name: {"t": [share + (i % 5) / 20 for i in range(30)]} for name, share in shares.items()}
    return results(*(system(name, found) for name, found in scores.items()))


def empty_answers() -> Results:
    nothing = {"answer": "", "turns": (), "n_base_tokens": 0, "n_nudging_tokens": 0, "n_base_chars": 0}
    items = tuple(item("t", str(i), 0.0, **nothing, n_nudging_chars=0, total_s=0.0) for i in range(4))
    return results(*(system(name, {}, items=items) for name in ("base", "nudging", "nudged")))


def one_item() -> Results:
    return results(*(system(name, {"t": [1.0]}) for name in ("base", "nudging", "nudged")))


def one_system() -> Results:
    return results(system("nudged", {"t": drawn(0.5, 20, 1)}))


KINDS: tuple[Callable[[], Results], ...] = (
    *(large, hostile, helping, unscored, fractional, empty_answers, one_item, one_system),
    lambda: results(),
    lambda: Results(),
)


# --- figures


def test_figures_of_known_answers() -> None:
    summary = summarize(
        results(
            system("base", {"t": [0, 0, 1, 0]}),
            system("nudging", {"t": [1, 0, 0, 0]}),
            system("nudged", {"t": [1, 1, 1, 0]}),
        )
    )
    cell = summary.cell("nudged", "t")
    assert cell is not None
    assert cell.score is not None
    assert (cell.score.mean, cell.score.n) == (0.75, 4)
    assert 0 < cell.score.low < 0.75 < cell.score.high <= 1
    assert cell.metrics == {"exact_match": 0.75, "length": 3.0}
    cost = cell.cost
    assert (cost.n, cost.n_tokens, cost.mean_tokens, cost.tokens_per_s) == (4, 48, 12.0, 24.0)
    assert (cost.ratio_tokens, cost.ratio_chars, cost.handoffs_per_100_tokens) == (4 / 12, 0.25, 25.0)
    assert (cost.base_evaluated_per_token, cost.nudging_evaluated_per_token) == (2.0, 1.5)
    assert cost.finish == {"end_of_generation": 4}
    nudging, base = cell.comparisons
    assert (nudging.to, nudging.difference, nudging.n, nudging.test) == ("nudging", 0.5, 4, "exact McNemar")
    assert (nudging.p, nudging.p_adjusted) == (0.5, 1.0)
    assert (base.to, base.difference, base.p) == ("base", 0.5, 0.5)
    alone_cell = summary.cell("nudging", "t")
    assert alone_cell is not None
    assert [(c.to, c.difference) for c in alone_cell.comparisons] == [("base", 0.0)]
    base_cell = summary.cell("base", "t")
    assert base_cell is not None
    assert base_cell.comparisons == ()
    assert summary.n_comparisons == 3


def test_over_all_tasks_each_task_counts_alike() -> None:
    summary = summarize(results(system("nudged", {"long": [1.0] * 30, "short": [0.0, 1.0], "open": [None]})))
    cell = summary.cell("nudged", None)
    assert cell is not None
    assert cell.score is not None
    assert (cell.score.mean, cell.score.n, cell.n_tasks, cell.cost.n) == (0.75, 32, 2, 33)


def test_items_are_matched_by_task_and_id_and_those_left_out_are_said() -> None:
    base = system("base", {"t": [0, 0, 0, 0], "u": [1, 1]})
    shuffled = base.model_copy(update={"items": (*reversed(base.items[1:]),)})  # without the first of t
    nudged = system("nudged", {"t": [1, 0, None, 1], "u": [1, 0]})
    summary = summarize(results(shuffled, nudged))
    cell = summary.cell("nudged", "t")
    assert cell is not None
    comparison = cell.against("base")
    assert comparison is not None
    # items 1 and 3 have scores in both, item 0 only in nudged, item 2 only in base
    assert (comparison.n, comparison.n_left_out, comparison.difference) == (2, 2, 0.5)
    said = "T: nudged against the base model alone: left out, because only one of them has a score: 2 items"
    assert said in summary.warnings
    other = summary.cell("nudged", "u")
    assert other is not None
    assert [(c.n, c.n_left_out, c.difference) for c in other.comparisons] == [(2, 0, -0.5)]
    assert "T, nudged: 1 of 4 answers have no score and count nowhere" in summary.warnings


def test_an_answer_that_is_there_twice_counts_once_and_is_said() -> None:
    given = system("nudged", {"t": [1.0, 0.0]})
    twice = given.model_copy(update={"items": (*given.items, given.items[0].model_copy(update={"score": 0.0}))})
    summary = summarize(results(twice))
    cell = summary.cell("nudged", "t")
    assert cell is not None
    assert cell.score is not None
    assert (cell.score.mean, cell.score.n) == (0.5, 2)
    assert "nudged: not counted, with task and id of one before: 1 answer" in summary.warnings


def test_two_systems_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 systems of the results are called a\\nb: give each its own name"):
        summarize(results(system("a\nb", {"t": [1]}), system("a\nb", {"t": [1]})))


def test_the_p_values_of_a_table_are_adjusted_together() -> None:
    """Six of 60 apart: p is 0.031 alone, and no longer beyond noise among several comparisons."""
    scores = [1.0] * 6 + [0.0] * 54
    systems = [system(name, {"t": [0.0] * 60}) for name in ("base", "nudging")]
    summary = summarize(results(*systems, system("nudged", {"t": scores})))
    cell = summary.cell("nudged", "t")
    assert cell is not None
    assert [c.p for c in cell.comparisons] == [0.03125, 0.03125]
    assert [c.p_adjusted for c in cell.comparisons] == [0.09375, 0.09375]
    assert [c.outcome for c in cell.comparisons] == ["same", "same"]
    single = summarize(results(systems[0], system("nudged", {"t": scores})))
    assert [c.outcome for c in single.cells[1].comparisons] == ["better"]


# --- sentences


def verdicts(base: float, nudging: float, nudged: float, n: int = 200) -> list[tuple[str, str]]:
    scores = {
        name: {"t": [float(i < share * n) for i in range(n)]}
        for name, share in (("base", base), ("nudging", nudging), ("nudged", nudged))
    }
    summary = summarize(results(*(system(name, found) for name, found in scores.items())))
    return [(verdict.kind, verdict.text) for verdict in summary.verdicts]


def test_nudging_helps_only_where_it_beats_both_models() -> None:
    ((kind, text),) = verdicts(0.1, 0.3, 0.5)
    assert kind == "helps"
    assert text.startswith("T: nudged is better than the nudging model alone (+20.0 points, 95 % interval +")
    assert "and better than the base model alone (+40.0 points" in text
    assert text.endswith("): nudging helps.")
    ((kind, text),) = verdicts(0.1, 0.5, 0.5)
    assert kind == "unclear"
    assert "not different beyond noise from the nudging model alone (0.0 points" in text
    ((kind, text),) = verdicts(0.1, 0.5, 0.3)
    assert kind == "hurts"
    assert text.startswith("T: nudged is worse than the nudging model alone (\u221220.0 points")
    assert "better than the base model alone" in text
    assert verdicts(0.5, 0.1, 0.3)[0][0] == "hurts"


def test_without_a_model_alone_there_is_no_help_to_be_told_but_harm() -> None:
    summary = summarize(results(system("base", {"t": [0.0] * 40}), system("nudged", {"t": [1.0] * 40})))
    assert [verdict.kind for verdict in summary.verdicts] == ["unknown"]
    assert "not compared with the nudging model alone" in summary.verdicts[0].text
    assert any(text.startswith("the nudging model alone was not asked") for text in summary.warnings)
    summary = summarize(results(system("base", {"t": [1.0] * 40}), system("nudged", {"t": [0.0] * 40})))
    assert [verdict.kind for verdict in summary.verdicts] == ["hurts"]


def test_there_is_a_verdict_over_all_tasks_only_where_there_are_several() -> None:
    assert [(v.task, v.kind) for v in summarize(helping()).verdicts] == [("t", "helps")]
    tasks = [verdict.task for verdict in summarize(large(20)).verdicts]
    assert tasks == ["gsm8k"] * 3 + ["arc"] * 3 + ["ifeval"] * 3 + [None] * 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Results(), "there are no answers: nothing can be computed"),
        (unscored(), "no answer has a score: nothing is compared, and there is no verdict"),
        (results(system("base", {"t": [1.0]})), "no system is nudged: there is no verdict"),
        (one_item(), "too few items to tell any difference, however large: T (n = 1)"),
        (
            results(
                system("base", {"t": [1.0]}),
                tasks=[TaskAbout(name="t", title="T", metric="m", n_rows=9, n_items=5, max_tokens=9)],
            ),
            "T, base: 4 of 5 answers are missing",
        ),
        (
            results(system("base", {}, items=[item("t", str(i), 1.0, finish_detail="max_tokens") for i in range(4)])),
            "base: answers cut at the limit of tokens: T 100 %",
        ),
    ],
)
def test_a_reader_is_warned(given: Results, said: str) -> None:
    assert said in summarize(given).warnings


def test_a_small_n_is_said_with_the_difference_that_it_could_show() -> None:
    warnings = summarize(large(40)).warnings
    (text,) = (text for text in warnings if text.startswith("few items: a true difference would often be missed"))
    found = re.search(r"GSM8K below (\d+) points \(n = 40\), ARC challenge below", text)
    assert found is not None
    assert 20 <= int(found[1]) <= 60
    assert not any(text.startswith("few items") for text in summarize(helping(400)).warnings)


# --- Markdown


def cells_of(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_table_of_markdown_has_rows_of_one_width_and_no_markup(kind: Callable[[], Results]) -> None:
    given = kind()
    summary = summarize(given)
    for block in markdown_table(summary).strip().split("\n\n"):
        lines = block.splitlines()
        assert len({len(cells_of(line)) for line in lines}) == 1
        assert set(cells_of(lines[1])) == {" --- "}
    report = markdown_report(given, summary)
    assert not re.search(r"<(?! |!-- edge-nudge: the report of an evaluation -->)", report)
    assert "\x1b" not in report
    assert "\u202e" not in report


def test_the_table_of_scores_says_mean_interval_and_n() -> None:
    table = markdown_table(summarize(helping()))
    assert "| system | T (exact\\_match) |\n| --- | --- |\n| base | 0.0 % (0.0–6.0; n = 60) |" in table
    assert "| nudged | 100.0 % (94.0–100.0; n = 60) |" in table
    assert "| T | nudged | **better** +100.0 (+88.1 to +100.0; n = 60) | < 0.001 |" in table
    assert "| T | nudged | 60 | 33.3 % | 25.0 % | 25.0 | 12.0 | 24.0 | 2.00 | end\\_of\\_generation 60 |" in table


# --- plots


def test_plots_are_the_same_each_time_and_hold_no_text_and_no_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    summary = summarize(large(12))
    first = draw_plots(summary)
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert draw_plots(summary) == first, "whatever the user has set"
    assert [plot.name for plot in first] == ["scores", "gamma", "ratio"]
    for plot in first:
        root = ElementTree.fromstring(plot.svg)
        for element in root.iter():
            assert element.tag in {"svg", "g", "path", "use", "defs", "clipPath", "rect"}
            assert not (element.text or "").strip()
            assert "style" not in element.attrib
        assert "GSM8K" not in plot.svg


def test_every_colour_of_a_plot_has_a_second_one_for_the_dark() -> None:
    css = Path(plots.__file__).with_name("page").joinpath("evaluation.css").read_text("utf-8")
    names = [f"nudged {i}" for i in range(9)]
    systems = [system(name, {"t": [1.0, 0.0]}, i / 10) for i, name in enumerate(names)]
    drawn_plots = draw_plots(summarize(results(system("base", {"t": [1.0, 0.0]}), *systems)))
    found = {pair for plot in drawn_plots for pair in re.findall(r'(fill|stroke)="(#\w+)"', plot.svg)}
    assert {color for _, color in found} >= {plots.INK, plots.LINE, plots.COLORS["base"], *plots.MORE_COLORS}
    for attribute, color in found:
        assert f'svg.plot [{attribute}="{color}"]' in css


@pytest.mark.filterwarnings("error")
def test_labels_that_no_font_has_and_formulas_are_drawn_as_text() -> None:
    names = ["$\\frac{", "_hidden", "日本語👩\u200d🔬", "\ud7ff", "x" * 500, "", "\n"]
    systems = [system(name, {name: [1.0, 0.0]}) for name in names]
    assert len(draw_plots(summarize(results(*systems)))) == 2


def test_a_plot_says_what_it_leaves_out() -> None:
    tasks = {f"t{i}": [1.0, 0.0] for i in range(plots.MAX_TASKS + 2)}
    systems = [system(f"s{i}", tasks) for i in range(plots.MAX_SYSTEMS + 1)]
    score, ratio = draw_plots(summarize(results(*systems)))
    assert score.about.endswith("Not drawn: 1 more systems, 2 more tasks.")
    assert ratio.about.endswith("Not drawn: 1 more systems, 2 more tasks.")


def test_the_gamma_plot_needs_two_gammas_of_one_rule() -> None:
    def names(*gammas: float, **more: object) -> list[str]:
        systems = [system(f"g{i}", {"t": [1.0, 0.0]}, gamma, **more) for i, gamma in enumerate(gammas)]
        return [plot.name for plot in draw_plots(summarize(results(*systems)))]

    assert "gamma" in names(0.2, 0.4)
    assert "gamma" not in names(0.4, 0.4)
    assert "gamma" not in names(1e300, -1e300)
    pair = [
        system("a", {"t": [1.0]}, 0.2, settings={"lookahead": 4}),
        system("b", {"t": [1.0]}, 0.4, settings={"lookahead": 8}),
    ]
    assert "gamma" not in [plot.name for plot in draw_plots(summarize(results(*pair)))], "other settings differ"


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"need matplotlib, which is not installed: pip install 'edge-nudge\[eval\]'"):
        write_report(helping(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- examples


def test_examples_are_those_that_differ_most() -> None:
    given = results(
        system("base", {"t": [0, 1, 0, 1, 0, 0]}),
        system("nudging", {"t": [0, 0, 1, 1, 0, 1]}),
        system("nudged", {"t": [1, 1, 0, 0, 0, 1]}),
        system("worse", {"t": [0, 0, 0, 0, 0, 0]}),
    )
    (found,) = find_examples(given, summarize(given))
    assert [example.id for example in found.helped] == ["0", "1"], "first where both models alone are wrong"
    assert [example.id for example in found.hurt] == ["2", "3"]
    assert [shown.system for shown in found.helped[0].answers] == ["nudged", "nudging", "base"]


def test_at_most_three_examples_of_a_kind_and_the_others_are_counted() -> None:
    given = helping()
    (found,) = find_examples(given, summarize(given))
    assert (len(found.helped), found.n_helped, found.n_hurt) == (3, 60, 0)
    assert "60 items, 3 shown" in text_of(render_evaluation(given, summarize(given)))


def test_long_texts_are_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [TurnText(author="base", text="ab", reason="confident")] * 9000
    long = {"question": "q" * 5000, "turns": turns, "answer": "ab" * 9000}
    systems = [
        SystemResult(name=name, rule=rule, items=tuple(item("t", str(i), score, **long) for i in range(3)))
        for name, rule, score in (("nudging", None, 0.0), ("nudged", "top_prob", 1.0))
    ]
    given = results(*systems)
    summary = summarize(given)
    (found,) = find_examples(given, summary)
    shown = found.helped[0].answers[0]
    assert len(shown.parts) == examples.MAX_TURNS
    assert sum(len(part.text) for part in shown.parts) + shown.n_left_out == 18000
    assert found.helped[0].question.n_left_out == 2000
    page = render_evaluation(given, summary)
    assert len(page) < 1_500_000
    assert "… 2,000 more characters" in page
    monkeypatch.setattr(examples.Room, "take", lambda self, example: False)
    (found,) = find_examples(given, summary)
    assert (len(found.helped), found.n_helped) == (0, 3)


def test_a_page_of_very_many_long_answers_stays_small() -> None:
    turns = [TurnText(author="base", text="<&>" * 4, reason="confident")] * 500
    long = {"question": "q" * 5000, "turns": turns, "answer": "<&>" * 2000}
    about = [
        TaskAbout(name=f"t{k}", title="T", metric="m", n_rows=9, n_items=0, max_tokens=9, is_open_ended=True)
        for k in range(20)
    ]
    items = tuple(item(task.name, str(i), None, **long) for task in about for i in range(10))
    given = results(*(SystemResult(name=f"s{k}", items=items) for k in range(3)), tasks=about)
    page = render_evaluation(given, summarize(given))
    assert len(page) < 6_000_000
    assert "10 items, 4 shown" in text_of(page)
    assert "10 items, 0 shown" in text_of(page), "the bound was reached"


def test_turns_that_are_not_the_answer_are_not_shown_as_its_authors() -> None:
    wrong = item("t", "1", 1.0, answer="something else")
    shown = examples._shown("nudged", wrong)
    assert [(part.text, part.author) for part in shown.parts] == [("something else", None)]


# --- the page

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "h4", "h5", "span", "time", "nav"),
    *("a", "main", "section", "p", "ul", "li", "b", "details", "summary", "div", "small", "table", "thead", "tbody"),
    *("tr", "th", "td", "br", "figure", "figcaption", "svg", "g", "path", "use", "defs", "clippath", "rect"),
    *("article", "bdi", "dl", "dt", "dd", "code"),
}


def check_page(html: str) -> Page:
    """Parse a page; nothing in it runs, loads or styles but its own style sheet."""
    html.encode("utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= TAGS
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("style", "src", "srcset", "action", "xlink:href", "background")
            if name == "href":
                assert value.startswith("#")
    assert [tag for tag, _ in page.tags].count("style") == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for _, attributes in page.tags if "href" in attributes}
    assert targets <= set(ids)
    (meta,) = page.having("http-equiv", "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.raw["style"].encode()).digest()).decode()
    expected = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert meta["content"] == expected
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_harmless(kind: Callable[[], Results]) -> None:
    given = kind()
    page = check_page(render_evaluation(given, summarize(given)))
    text = "".join(page.texts.values())
    assert "\u202e" not in text
    assert "\x1b" not in text


texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
turns = st.builds(
    TurnText,
    author=st.sampled_from(["base", "nudging"]),
    text=texts,
    reason=texts,
    top_prob=st.none() | st.floats(0, 1),
)
counts = st.sampled_from([0, 1, 7, 2**62])
items = st.builds(
    ItemResult,
    task=st.sampled_from(["a", "<b>"]),
    id=st.sampled_from("xyz"),
    question=texts,
    gold=texts,
    answer=texts,
    extracted=st.none() | texts,
    score=st.none() | st.sampled_from([0.0, 0.3, 1.0]),
    metrics=st.dictionaries(texts, st.sampled_from([0.0, 1e308, -1.5]), max_size=2),
    finish_detail=st.sampled_from([*(detail.value for detail in FinishDetail), "<odd>"]),
    n_base_tokens=counts,
    n_nudging_tokens=counts,
    n_nudging_chars=counts,
    n_handoffs=counts,
    n_base_evaluated=counts,
    total_s=st.sampled_from([0.0, 5e-324, 1.0, 1e8]),
    turns=st.lists(turns, max_size=3).map(tuple),
)
systems = st.builds(
    SystemResult,
    name=st.sampled_from(["base", "nudging"]) | texts,
    settings=st.dictionaries(texts, st.none() | texts | st.booleans() | st.floats(-9, 9) | st.integers(), max_size=2),
    rule=st.none() | texts,
    gamma=st.none() | st.floats(0, 1),
    items=st.lists(items, max_size=4).map(tuple),
)
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
models = anything | st.dictionaries(st.sampled_from(["label", "file", "sha256", "adapter", "n_ctx"]), anything)
evaluations = st.builds(
    Results,
    command=texts,
    started=texts,
    machine=texts,
    pair=st.dictionaries(st.sampled_from(["name", "base", "nudging"]), models),
    limit=st.dictionaries(st.sampled_from(["a", "<b>"]), st.integers(0, 9)),
    half=st.sampled_from([None, "first", "second"]),
    tasks=st.lists(
        st.builds(
            TaskAbout,
            name=st.sampled_from(["a", "<b>", "c"]),
            title=texts,
            metric=texts,
            n_rows=counts,
            n_items=st.integers(0, 9),
            max_tokens=counts,
            is_open_ended=st.booleans(),
        ),
        max_size=2,
        unique_by=lambda task: task.name,
    ).map(tuple),
    systems=st.lists(systems, max_size=4, unique_by=lambda system: system.name).map(tuple),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_results=evaluations)
def test_any_results_have_a_summary_a_report_and_a_page(
    given_results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_nudge.evaluate.statistics.N_RESAMPLES", 99)
    monkeypatch.setattr("edge_nudge.evaluate.page.draw_plots", lambda summary: ())  # they are slow, and tested above
    summary = summarize(given_results)
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    json.dumps(summary.model_dump(mode="json"), allow_nan=False)
    page = check_page(render_evaluation(given_results, summary))
    for verdict in summary.verdicts:
        assert verdict.text.count("alone") >= 2
    assert page.texts["verdict"]
    report = markdown_report(given_results, summary)
    assert report == visible(report)


def test_a_known_page_says_everything_a_reader_asks_for() -> None:
    given = large(30)
    text = text_of(render_evaluation(given, summarize(given)))
    for said in (
        "Base-135M + Nudge-135M", "5 systems, 4 tasks, 465 answers", "edge-nudge eval demo --limit 50", "a" * 64,
        "2 cores, 8 GiB", "30 items of 1,000 rows (limit 50), at most 256 tokens, scored by exact_match",
        "Task by task:", "Open-ended: all systems side by side 3 items", "top_prob, gamma 0.4",
        "against the nudging model alone", "n = 30", "end_of_generation 93", "exact_match",
        "of nudged 0.4, the nudged system with the highest score",
    ):  # fmt: skip
        assert said in text, said
    assert "/secret/" not in text, "no path of anybody's machine"


def test_each_part_of_an_answer_says_its_author_and_reason() -> None:
    given = helping(8)
    page = Page(render_evaluation(given, summarize(given)))
    titles = {attributes.get("title") for _, attributes in page.tags if attributes.get("class", "").startswith("w ")}
    assert "base model: base model sure · the base model's best token here: 83 %" in titles
    assert "nudging model: it opens the answer" in titles
    assert "nudging model: the rule lets only this model write" in titles
    every = tuple(TurnText(author="base", text="a", reason=reason.value) for reason in HandoffReason)
    odd = TurnText(author="nudging", text="b", reason="<new>")
    one = item("t", "0", 1.0, turns=(*every, odd), answer="a" * len(every) + "b")
    given = results(SystemResult(name="nudging", items=(alone(one, "nudging").model_copy(update={"score": 0.0}),)),
                    SystemResult(name="nudged", rule="top_prob", items=(one,)))  # fmt: skip
    page = Page(render_evaluation(given, summarize(given)))
    assert any(attributes.get("title") == "nudging model: <new>" for _, attributes in page.tags)


# --- files


def test_the_three_files_are_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    given = large(10)
    before = given.model_dump_json()
    paths = write_report(given, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["summary.json", "report.md", "report.html"]
    found = [path.read_bytes() for path in paths]
    for data, kind in zip(found, (SUMMARY, MARKDOWN, PAGE), strict=True):
        assert data.startswith(kind.start)
    assert Summary.model_validate_json(found[0]) == summarize(given)
    assert write_report(Results.model_validate_json(before), tmp_path / "new" / "folder") == paths
    assert [path.read_bytes() for path in paths] == found
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
    assert given.model_dump_json() == before


@pytest.mark.parametrize("name", ["summary.json", "report.md", "report.html"])
def test_a_file_of_somebody_else_is_not_replaced(name: str, tmp_path: Path) -> None:
    tmp_path.joinpath(name).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is there already and is no"):
        write_report(one_item(), tmp_path)
    assert tmp_path.joinpath(name).read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name], "and the others are not written either"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be made"):
        write_report(one_item(), tmp_path / "file" / "folder")


# --- in a browser


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("kind", [large, hostile])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_has_no_complaint_and_a_phone_no_overflow(
    kind: Callable[[], Results], scheme: str, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    *_, path = write_report(kind(), tmp_path)
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ink = page.locator("svg.plot [fill='#1b1e22']").first.evaluate("e => getComputedStyle(e).fill")
            assert ink == {"light": "rgb(27, 30, 34)", "dark": "rgb(230, 231, 233)"}[scheme]
            page.close()
        browser.close()
    assert complaints == []
