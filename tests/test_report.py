"""The page of a trace: its structure for any trace, its words for a known one, its drawings, and the command."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import typing
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli_fakes import Invoke, invoker
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import small_lines, small_trace, traces, write_lines

from edge_nudge.core.events import Cause, FinishDetail, HandoffReason, Role
from edge_nudge.core.visible import visible
from edge_nudge.report import figures
from edge_nudge.report.page import render_page
from edge_nudge.report.records import CallRecord, Record, Trace, read_trace
from edge_nudge.report.wording import CAUSES, ENDINGS, REASONS, percent

invoke = pytest.fixture(invoker)

VOID = {"meta", "br", "input"}
# A character that HTML gives another meaning or does not know ends up as something else than it was.
PLAIN = str.maketrans({"\r": "\n"})


class Page(HTMLParser):
    """A parsed page: every tag with its attributes, the tree's balance, and the text of parts of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inside: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.raw: dict[str, str] = {"style": "", "script": ""}
        self.feed(html)
        self.close()
        assert self.inside == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self.inside.append((tag, found))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag = self.inside[-1][0] if self.inside else ""
        if tag in self.raw:
            self.raw[tag] += data
        elif not any(name in ("rt", "title") for name, _ in self.inside):
            for _, attrs in self.inside:
                if "id" in attrs:
                    self.texts[attrs["id"]] = self.texts.get(attrs["id"], "") + data

    def having(self, name: str, value: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.tags if attributes.get(name) == value]


@settings(max_examples=40)
@given(trace=traces)
def test_any_trace_is_a_page_that_is_whole_harmless_and_says_the_answer(trace: Trace) -> None:
    html = render_page(trace)
    html.encode("utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= TAGS
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("style", "src", "srcset", "action", "xlink:href", "background")
            if name == "href":
                assert value.startswith("#")
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in page.tags].count("style") == 1
    assert page.texts.get("words", "") == visible(trace.text).translate(PLAIN)
    assert len(page.having("role", "alert")) == (trace.end is None or trace.end.type == "failed")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    numbers = [a["data-n"] for _, a in page.tags if a.get("class", "").startswith("w ") and "data-n" in a]
    assert numbers == [str(n) for n in range(len(trace.pieces))]


TAGS = {
    "html", "head", "meta", "title", "style", "body", "svg", "defs", "pattern", "rect", "circle", "header", "p",
    "span", "time", "nav", "a", "button", "main", "section", "details", "summary", "div", "b", "fieldset",
    "legend", "label", "input", "ruby", "rt", "kbd", "h1", "h2", "h3", "line", "text", "g", "table", "thead",
    "tbody", "tr", "th", "td", "bdi", "small", "i", "ol", "li", "progress", "br", "dl", "dt", "dd", "code",
    "ul", "script",
}  # fmt: skip


def test_the_policy_names_the_hashes_of_the_only_style_and_script(tmp_path: Path) -> None:
    page = Page(render_page(small_trace(tmp_path)))
    (meta,) = page.having("http-equiv", "Content-Security-Policy")
    policy = meta["content"]
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def text_of(html: str) -> str:
    """Return what a reader sees, roughly: tags gone, blanks single."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_a_known_trace_says_everything_a_reader_asks_for(tmp_path: Path) -> None:
    html = render_page(small_trace(tmp_path))
    text = text_of(html)
    for said in (
        "Why &lt;b&gt;?", "60 % of the tokens by the nudging model", "5 tokens: 2 base, 3 nudging", "4 handoffs",
        "it opens the answer not asked Red not known", "base model sure 80 % light the same: lig",
        "bends → goes 20 %", "less → \\xf0\\x9f 30 %", "base model ended its text here",
        "70 % nothing was shown of this turn", "the end: the base model ended, and so would the nudging model",
        "other 22 %", "gamma 0.4", "loading took 1.50 s", "b.gguf",
    ):  # fmt: skip
        assert said in text, said
    assert "7 tokens: 4 prompt, 1 guessed right, 2 guessed wrong" in html
    assert '<span class="esc">\\u202e</span>&lt;i&gt;' in html
    assert "\u202e" not in html


def test_words_stand_for_every_reason_ending_and_cause() -> None:
    assert (set(REASONS), set(ENDINGS), set(CAUSES)) == (set(HandoffReason), set(FinishDetail), set(Cause))


def test_every_record_has_an_own_type() -> None:
    union = typing.get_args(typing.get_args(Record)[0])
    kinds = [typing.get_args(kind.model_fields["type"].annotation) for kind in union]
    assert len(set(kinds)) == len(union) == 6


@pytest.mark.parametrize(
    ("prob", "said"),
    [
        (None, "not known"), (0.0, "0 %"), (1e-9, "< 0.1 %"), (0.004, "0.4 %"), (0.0096, "1 %"), (0.5, "50 %"),
        (0.994, "99 %"), (0.996, "99.6 %"), (0.99999, "> 99.9 %"), (1.0, "100 %"), (1.0004, "100 %"),
    ],
)  # fmt: skip
def test_percent(prob: float | None, said: str) -> None:
    assert percent(prob) == said


# --- drawings

calls = st.builds(
    CallRecord,
    type=st.just("call"),
    model=st.sampled_from(Role),
    start_s=st.floats(0, 1e8),
    end_s=st.floats(0, 1e8),
    evaluated=st.dictionaries(st.sampled_from(Cause), st.integers(0, 2**62)),
)


@given(calls=st.lists(calls, max_size=200), shown_s=st.lists(st.floats(0, 1e8), max_size=5), total_s=st.floats(0, 1e8))
def test_the_time_line_holds_every_call_and_nothing_lies_outside(
    calls: list[CallRecord], shown_s: list[float], total_s: float
) -> None:
    rows = figures.time_rows(calls, shown_s, total_s)
    boxes = [box for row in rows for boxes in row.lanes.values() for box in boxes]
    assert len(calls) <= len(boxes) <= len(calls) + len(Role) * len(rows)
    assert {id(box.call) for box in boxes} == {id(call) for call in calls}
    assert sum(len(row.dots) for row in rows) == len(shown_s)
    for box in boxes:
        assert box.x >= figures.LEFT
        assert box.width >= figures.LEAST_WIDTH
        assert box.x + box.width <= figures.WIDTH + 0.11
        if any(box.call.evaluated.values()):
            assert math.isclose(sum(block.height for block in box.blocks), figures.LANE, abs_tol=0.3)
    for row in rows:
        assert len(row.ticks) <= 20
        assert all(figures.LEFT <= tick.x <= figures.WIDTH for tick in row.ticks)


def test_a_call_lies_where_its_time_is() -> None:
    call = CallRecord(type="call", model=Role.BASE, start_s=1.0, end_s=3.0, evaluated={Cause.OWN: 1, Cause.WASTED: 3})
    (row,) = figures.time_rows([call], [2.0], 4.0)
    (box,) = row.lanes[Role.BASE]
    span = figures.WIDTH - figures.LEFT
    assert (box.x, box.width) == (figures.LEFT + span / 4, span / 2)
    assert [(block.cause, block.height) for block in box.blocks] == [(Cause.OWN, 6.5), (Cause.WASTED, 19.5)]
    assert row.dots[0].x == figures.LEFT + span / 2
    assert [tick.label for tick in row.ticks] == [
        "0.0 s",
        "0.5 s",
        "1.0 s",
        "1.5 s",
        "2.0 s",
        "2.5 s",
        "3.0 s",
        "3.5 s",
        "4.0 s",
    ]


@given(probs=st.lists(st.one_of(st.none(), st.floats(0, 1.001)), max_size=150))
def test_the_strip_has_a_bar_for_every_token(probs: list[float | None]) -> None:
    tokens = [figures.StripToken(i, Role.BASE, prob, None, "x") for i, prob in enumerate(probs)]
    rows = figures.strip_rows(tokens)
    bars = [bar for row in rows for bar in row.bars]
    assert [bar.n_word for bar in bars] == list(range(len(probs)))
    assert all(0 <= bar.height <= figures.BARS and bar.x + figures.BAR_WIDTH <= figures.WIDTH for bar in bars)
    assert [row.first for row in rows] == list(range(1, len(probs) + 1, figures.N_PER_ROW))


# --- the command


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "t.jsonl", small_lines())


def test_the_page_lies_beside_the_trace(invoke: Invoke, trace_file: Path) -> None:
    ended = invoke("report", str(trace_file))
    page = trace_file.with_suffix(".html")
    assert (ended.code, ended.out, ended.err) == (0, "", f"page: {page}\n")
    assert page.read_text(encoding="utf-8") == render_page(read_trace(trace_file))


def test_the_page_goes_where_it_is_asked_to(invoke: Invoke, trace_file: Path, tmp_path: Path) -> None:
    ended = invoke("report", str(trace_file), "-o", "-")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("<!DOCTYPE html>")
    ended = invoke("report", str(trace_file), "-o", str(tmp_path / "p"), "--json")
    assert json.loads(ended.out) == {
        "page": str(tmp_path / "p"),
        "n_bytes": (tmp_path / "p").stat().st_size,
        "n_pieces": 5,
        "n_calls": 2,
        "is_finished": True,
    }
    assert invoke("report", str(trace_file), "-o", "-", "--json").code == 2


def test_the_trace_is_never_overwritten(invoke: Invoke, trace_file: Path, tmp_path: Path) -> None:
    before = trace_file.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(trace_file)
    for output in (trace_file, link):
        assert "is the trace itself: name another file" in invoke("report", str(trace_file), "-o", str(output)).error
    html = trace_file.rename(tmp_path / "t.html")
    assert "is the trace itself" in invoke("report", str(html)).error
    assert html.read_bytes() == before


def test_what_is_no_page_is_never_replaced(invoke: Invoke, trace_file: Path) -> None:
    page = trace_file.with_suffix(".html")
    page.write_text("<!DOCTYPE html>\n<p>my own")
    assert "is there already and is no page of a trace" in invoke("report", str(trace_file)).error
    assert page.read_text() == "<!DOCTYPE html>\n<p>my own"
    page.unlink()
    assert [invoke("report", str(trace_file)).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "/", ""])
def test_what_cannot_be_read_is_one_line(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = invoke("report", name)
    assert ended.code == 2
    assert "cannot be read: " in ended.error


def test_a_bad_trace_leaves_the_former_page(invoke: Invoke, trace_file: Path, tmp_path: Path) -> None:
    page = trace_file.with_suffix(".html")
    page.write_text(render_page(read_trace(trace_file)), encoding="utf-8")
    former = page.read_bytes()
    trace_file.write_bytes(trace_file.read_bytes()[:-9])
    ended = invoke("report", str(trace_file))
    assert (ended.code, ended.error) == (
        2,
        "error: t.jsonl, line 13 is cut off: remove this line to see what stands before it",
    )
    assert page.read_bytes() == former
    assert (
        "cannot be written" in invoke("report", str(write_lines(trace_file, small_lines())), "-o", str(tmp_path)).error
    )
