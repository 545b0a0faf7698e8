"""The page of a trace in a browser: without its script everything can be read and filtered, with it there is more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from traces import NASTY, small_lines, write_lines

from edge_nudge.report.page import render_page
from edge_nudge.report.records import read_trace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trace, with an answer that tries to be markup behind it."""
    folder = tmp_path_factory.mktemp("page")
    lines = small_lines()
    for text in (*NASTY, "<img src=x onerror=alert(1)>"):
        lines.insert(-2, {**lines[10], "text": text, "tokens": [{**lines[10]["tokens"][0], "text": text}]})
    trace = read_trace(write_lines(folder / "t.jsonl", lines))
    path = folder / "t.html"
    path.write_text(render_page(trace), encoding="utf-8")
    return path


@contextmanager
def opened(browser: Browser, path: Path, *, script: bool, width: int = 1200) -> Iterator[Page]:
    """Open the page; nothing may be loaded, complained about, or popped up."""
    complaints: list[str] = []
    with browser.new_context(java_script_enabled=script, viewport={"width": width, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        yield page
    assert complaints == []


def test_without_the_script_everything_can_be_read(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=False) as page:
        assert page.locator("#words").inner_text().startswith("Red light bends less\\u202e<i>\n")
        assert "<script>alert(1)</script>" in page.locator("#words").inner_text()
        bends = page.locator("#words .w", has_text="bends")
        assert bends.get_attribute("title") == (
            "nudging model · 61 % · base model unsure\nthe base model's best token here: 20 %\n"
            "the base model instead: goes"
        )
        assert page.locator(".keys, #theme, #card").evaluate_all("found => found.every(e => !e.checkVisibility())")
        assert page.locator("svg.strip .tok").count() == 6 + len(NASTY)
        assert page.locator("svg.time .call").count() == 2


def test_filters_need_no_script(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=False) as page:
        red, light = page.locator("#words .w").nth(0), page.locator("#words .w").nth(1)
        rows = page.locator(".turns tbody tr.base")
        note = page.locator("#words rt").first

        def opacity() -> tuple[str, str]:
            # the change is animated
            page.wait_for_timeout(300)
            return tuple(word.evaluate("w => getComputedStyle(w).opacity") for word in (red, light))

        assert opacity() == ("1", "1")
        assert rows.first.is_visible()
        assert not note.is_visible()
        page.get_by_label("nudging model", exact=True).check()
        assert opacity() == ("1", "0.22")
        assert not rows.first.is_visible()
        page.get_by_label("all words", exact=True).check()
        page.get_by_label("the other model's choice").check()
        assert opacity() == ("1", "1")
        assert note.is_visible()


def test_authors_differ_in_more_than_colour(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=False) as page:
        styles = [
            page.locator(f"#words .w.{author}").first.evaluate(
                "w => ['textDecorationLine', 'fontWeight', 'color'].map(name => getComputedStyle(w)[name])"
            )
            for author in ("base", "nudging")
        ]
        assert all(base != nudging for base, nudging in zip(*styles, strict=True))


def test_the_card_follows_the_pointer_and_the_keys(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=True) as page:
        card = page.locator("#card")
        assert not card.is_visible()
        page.locator("#words .w", has_text="bends").hover()
        assert "bends" in card.inner_text()
        assert "base model unsure" in card.inner_text()
        assert "other" in card.inner_text()
        page.mouse.move(0, 0)
        assert not card.is_visible()
        page.locator("svg.strip .tok").nth(1).hover()
        assert "light" in card.inner_text()
        page.mouse.move(0, 0)
        seen = []
        for key in ("ArrowRight", "n", "n", "ArrowRight", "p", "ArrowLeft"):
            page.keyboard.press(key)
            seen.append(card.locator("h4").inner_text().strip("·"))
        assert seen == ["Red", "light", "bends", "less", "bends", "light"]
        assert page.locator("#words .w.on").inner_text() == "light"
        page.keyboard.press("Escape")
        assert not card.is_visible()
        assert page.locator(".on").count() == 0


def test_keys_filter_and_change_colours(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=True) as page:
        page.keyboard.press("2")
        assert page.locator("#only-base").is_checked()
        page.keyboard.press("i")
        assert page.locator("#words rt").first.is_visible()
        colour = "getComputedStyle(document.body).backgroundColor"
        seen = []
        for _ in range(3):
            page.keyboard.press("c")
            seen.append((page.locator("#theme").inner_text(), page.evaluate(colour)))
        assert [name for name, _ in seen] == ["Colours: light", "Colours: dark", "Colours: auto"]
        assert seen[0][1] == seen[2][1] != seen[1][1]


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_is_as_wide_as_the_window(browser: Browser, page_path: Path, width: int) -> None:
    with opened(browser, page_path, script=True, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_narrow_window_cuts_no_column_off(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=True, width=360) as page:
        cells = page.locator(":is(.turns, .totals) :is(td, tbody th, .author)")
        rights = cells.evaluate_all("cells => cells.map(cell => cell.getBoundingClientRect().right)")
        assert max(rights) <= 360 - 20  # the margin of the page
        heads = page.locator(".totals thead .author").evaluate_all(
            "found => found.map(one => [one.getBoundingClientRect().left, one.getBoundingClientRect().right])"
        )
        assert heads[0][1] < heads[1][0]


def test_it_can_be_printed(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, script=True) as page:
        page.keyboard.press("c")
        page.keyboard.press("c")  # dark
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator(".tools").is_visible()
        assert page.pdf().startswith(b"%PDF-")
