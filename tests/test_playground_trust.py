"""The playground in a headless Chromium: the key, errors, hostile text, looks, and the application itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import playground
import pytest
from cli_fakes import LONG, SHORT, text_of
from playground import SKY, SKY_TEXT, Open, ScriptedServer, Visit, answer, nudged, piece, scores
from server_fakes import KEY, listening

from edge_nudge.core.events import Role

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.process


# --- the key ---


def test_the_key_is_asked_for_once_and_kept_in_this_tab(scripted: ScriptedServer, visit: Open) -> None:
    scripted.key = "right"
    tab = visit(is_refusal_expected=True)
    dialog = tab.page.get_by_role("dialog")
    dialog.wait_for()
    for wrong in ("wrong", "no key \u2026"):
        dialog.get_by_label("Key", exact=True).fill(wrong)
        dialog.get_by_role("button", name="Use this key").click()
        tab.page.get_by_text("The key you gave was refused.").wait_for()
        assert dialog.get_by_label("Key", exact=True).input_value() == ""
    dialog.get_by_label("Key", exact=True).fill("right")
    tab.page.keyboard.press("Enter")
    tab.page.locator("[data-state=ready]").wait_for()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.words == SKY_TEXT
    assert scripted.headers[-1]["authorization"] == "Bearer right"
    stores = "() => [Object.values({...sessionStorage}), {...localStorage}, document.cookie, document.body.innerText]"
    kept, local, cookie, text = tab.page.evaluate(stores)
    assert (kept, local, cookie) == (["right"], {}, "")
    assert "right" not in text
    tab.page.reload()
    tab.page.locator("[data-state=ready]").wait_for()
    assert not dialog.is_visible()


def test_a_reader_without_a_key_is_told_so_and_can_try_again(scripted: ScriptedServer, visit: Open) -> None:
    scripted.key = "right"
    tab = visit(is_refusal_expected=True)
    dialog = tab.page.get_by_role("dialog")
    dialog.wait_for()
    tab.page.keyboard.press("Escape")
    tab.page.get_by_text("a key is needed").wait_for()
    tab.ask("Why?")
    dialog.wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    assert tab.page.get_by_role("alert").inner_text() == "This server answers only with its key."
    tab.page.keyboard.press("Enter")
    dialog.get_by_label("Key", exact=True).fill("right")
    tab.page.keyboard.press("Enter")
    tab.wait_until_answered()
    assert tab.words == SKY_TEXT
    assert tab.page.locator(".turn").count() == 1
    tab.page.locator("[data-state=ready]").wait_for()


def test_a_key_in_the_address_is_taken_and_removed(scripted: ScriptedServer, visit: Open) -> None:
    scripted.key = "a/b+c d"
    tab = visit("#key=a%2Fb+c%20d")
    tab.page.locator("[data-state=ready]").wait_for()
    assert tab.page.url == f"{scripted.url}/"
    assert tab.page.evaluate("() => history.length") <= 2
    tab.ask("Why?")
    tab.wait_until_answered()
    assert scripted.headers[-1]["authorization"] == "Bearer a/b+c d"
    assert not any("a%2Fb" in address.partition("#")[0] for address in tab.asked)


def test_behind_a_proxy_the_page_works_under_any_path(scripted: ScriptedServer, visit: Open) -> None:
    tab = visit("behind/proxy/")
    tab.page.locator("[data-state=ready]").wait_for()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.words == SKY_TEXT
    assert all(address.startswith(f"{scripted.url}/behind/proxy/") for address in tab.asked)


def test_a_server_that_loads_is_waited_for(scripted: ScriptedServer, visit: Open) -> None:
    scripted.trouble = "failed"
    tab = visit(is_refusal_expected=True)
    tab.page.get_by_text("the service is failed").wait_for()
    scripted.trouble = "loading"
    tab.page.get_by_text("loading the models").wait_for()
    scripted.trouble = None
    tab.page.locator("[data-state=ready]").wait_for()
    assert tab.page.get_by_role("status").inner_text() == "demo"


# --- errors ---

OVERFLOW = "prompt is 5120 tokens for the base model, its context is 4096: raise --ctx-size or shorten the prompt"
REFUSALS = [
    (
        (400, {"error": {"message": OVERFLOW, "type": "exceed_context_size_error"}}, {}),
        OVERFLOW.capitalize()[0] + OVERFLOW[1:] + ".",
    ),
    ((429, {"error": {"message": "32 requests wait"}}, {"retry-after": "3"}), "32 requests wait. Try again in 3 s."),
    ((502, "<html>Bad gateway</html>", {}), "The server answered 502 Bad Gateway."),
    ((500, {"error": {}}, {}), "The server answered 500 Internal Server Error."),
    ((500, {"error": "in one word"}, {}), "In one word."),
]


@pytest.mark.parametrize(("refusal", "words"), REFUSALS)
def test_a_refusal_is_said_in_words_and_the_question_comes_back(
    scripted: ScriptedServer, visit: Open, refusal: Any, words: str
) -> None:
    scripted.refusal = refusal
    tab = visit(is_refusal_expected=True)
    tab.ask("Why?")
    assert tab.page.get_by_role("alert").inner_text() == words
    assert tab.page.get_by_label("Your question").input_value() == "Why?"
    scripted.refusal = None
    tab.page.keyboard.press("Enter")
    tab.wait_until_answered()
    assert [one["content"] for one in scripted.bodies[-1]["messages"]] == ["Why?"]
    assert tab.page.locator(".turn").count() == 1
    assert tab.page.get_by_role("alert").count() == 0


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ([playground.event({"error": {"message": "the model wrote NaN", "code": 500}})], "The model wrote NaN."),
        ([], "The connection ended before the answer did."),
        ([b'data: {"choices": [\n\n'], 'The server sent a line that is no JSON: {"choices": ['),
    ],
)
def test_an_error_in_the_stream_keeps_what_was_shown(
    scripted: ScriptedServer, visit: Open, rest: list[bytes], words: str
) -> None:
    scripted.script = [playground.START, nudged("Half"), *rest]
    tab = visit()
    tab.ask("Why?")
    assert tab.page.get_by_role("alert").inner_text().removesuffix(".") == words.removesuffix(".")
    assert tab.words == "Half"
    assert tab.page.get_by_label("Your question").input_value() == ""
    scripted.script = SKY
    tab.ask("And?")
    tab.wait_until_answered()
    assert scripted.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Half"}


def test_a_server_that_is_not_there_is_said_in_words(scripted: ScriptedServer, visit: Open) -> None:
    tab = visit(is_refusal_expected=True)
    tab.page.locator("[data-state=ready]").wait_for()
    tab.page.context.set_offline(True)
    tab.ask("Why?")
    assert tab.page.get_by_role("alert").inner_text() == "The server cannot be reached. Does it still run?"
    tab.page.get_by_text("no connection").wait_for()
    tab.page.context.set_offline(False)
    tab.page.keyboard.press("Enter")
    tab.wait_until_answered()
    assert tab.words == SKY_TEXT
    tab.page.locator("[data-state=ready]").wait_for()


# --- text that would do harm ---

HOSTILE = '<img src=x onerror="window.harm=1"><script>window.harm=1</script>\u202eevil\u2066\x1b[31m\x00\u200b&lt;'
HARMLESS = (
    '<img src=x onerror="window.harm=1"><script>window.harm=1</script>\\u202eevil\\u2066\\x1b[31m\\x00\\u200b&lt;'
)


def test_hostile_text_stays_text_everywhere(scripted: ScriptedServer, visit: Open) -> None:
    scripted.model = HOSTILE
    scripted.script = answer(
        nudged(HOSTILE, logprobs=scores((HOSTILE, 0.5, [(HOSTILE, 0.5)])), reason=HOSTILE), piece(" 👩‍🚀 é")
    )
    tab = visit(is_refusal_expected=True)
    tab.ask(HOSTILE)
    tab.wait_until_answered()
    assert tab.words == f"{HARMLESS} 👩‍🚀 é"
    assert tab.page.locator(".question").text_content() == HARMLESS
    tab.page.locator(".word").first.hover()
    assert tab.page.get_by_role("tooltip").inner_text().count("\\u202e") == 3
    assert tab.page.get_by_role("status").text_content() == HARMLESS
    scripted.refusal = (400, {"error": {"message": HOSTILE}}, {})
    tab.ask("Why?")
    assert tab.page.get_by_role("alert").text_content() == f"{HARMLESS}."
    assert tab.page.locator("img, body script").count() == 0
    assert tab.page.evaluate("() => window.harm") is None


def test_the_page_cannot_make_markup_of_text(visit: Open) -> None:
    tab = visit()
    tried = tab.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch (e) { return e.name; } }"
    )
    assert tried == "TypeError"
    tab.complaints.clear()  # the browser reports what it refused


# --- looks ---


def contrast(first: list[float], second: list[float]) -> float:
    """The contrast of two colours by WCAG 2."""

    def luminance(colour: list[float]) -> float:
        parts = [one / 255 for one in colour]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(scripted: ScriptedServer, visit: Open, scheme: str) -> None:
    tab = visit(color_scheme=scheme)
    tab.ask("Why?")
    tab.wait_until_answered()
    rgb = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name].match(/[\\d.]+/g).map(Number)"
    ground = tab.page.evaluate(rgb, ["body", "backgroundColor"])
    assert (sum(ground) > 384) == (scheme == "light")
    for selector in (".word.base", ".word.nudging", ".totals", ".question", ".model", ".help", ".keys", ".copy"):
        assert contrast(tab.page.evaluate(rgb, [selector, "color"]), ground) >= 4.5, selector


@pytest.mark.parametrize("width", [320, 400, 900, 1600])
def test_nothing_is_cut_off_at_any_width(scripted: ScriptedServer, visit: Open, width: int) -> None:
    top = [(f" alternative{i}", 0.1) for i in range(5)]
    scripted.script = answer(
        nudged("Donaudampfschifffahrtsgesellschaft" * 6, logprobs=scores(*[(" token", 0.1, top)] * 4)), *SKY[1:-3]
    )
    tab = visit(viewport={"width": width, "height": 700})
    tab.ask("x" * 300)
    tab.wait_until_answered()
    tab.page.locator(".word").first.focus()
    assert tab.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    box = tab.page.get_by_role("tooltip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["y"] >= 0
    assert box["x"] + box["width"] <= width
    assert tab.page.locator("#fold").evaluate("fold => fold.open") == (width > 896)
    asked = tab.page.get_by_label("Your question").bounding_box()
    assert asked is not None
    assert asked["y"] + asked["height"] <= 700


def test_the_end_stays_in_sight_unless_the_reader_scrolls_away(scripted: ScriptedServer, visit: Open) -> None:
    go, on = threading.Event(), threading.Event()
    lines = [piece(f"line {i}\n") for i in range(60)]
    scripted.script = answer(*lines, go, *lines, nudged("middle\n"), on, *lines)
    tab = visit()
    left = "() => { const r = document.scrollingElement; return r.scrollHeight - r.scrollTop - r.clientHeight; }"
    tab.ask("Why?")
    tab.page.locator(".word", has_text="line 59").wait_for()
    assert tab.page.evaluate(left) < 2
    go.set()
    tab.page.locator(".word", has_text="middle").wait_for()
    assert tab.page.evaluate(left) < 2
    tab.page.evaluate("() => scrollTo(0, 100)")
    on.set()
    tab.wait_until_answered()
    assert tab.page.evaluate("() => scrollY") == 100


# --- the application itself ---


def test_the_page_and_the_real_routes_understand_each_other(tmp_path: Path, browser: Browser) -> None:
    with listening(tmp_path, script=SHORT) as served:
        tab = Visit(browser.new_page(), is_refusal_expected=True)
        tab.page.goto(f"http://127.0.0.1:{served.port}/")
        dialog = tab.page.get_by_role("dialog")
        dialog.wait_for()
        dialog.get_by_label("Key", exact=True).fill(KEY)
        tab.page.keyboard.press("Enter")
        tab.page.get_by_role("status").get_by_text("fake", exact=True).wait_for()
        for label, value in (
            ("Max tokens", "50"),
            ("Temperature", "0"),
            ("Seed", "7"),
            ("System message", "Be short."),
        ):
            tab.page.get_by_label(label).fill(value)
        tab.page.get_by_role("slider", name="Gamma").fill("1")
        tab.page.get_by_role("slider", name="Gamma").fill("0.5")
        tab.page.get_by_label("alternatives of each token").check()
        tab.ask("What colour is the sky?")
        tab.wait_until_answered()
        assert tab.page.get_by_role("alert").all_text_contents() == []
        assert tab.words == text_of(SHORT)
        nudging = [word for text, author in SHORT if author is Role.NUDGING for word in text.split()]
        assert tab.page.locator(".word.nudging").all_text_contents() == nudging
        assert tab.totals[0].startswith("nudging ratio ")
        assert "gamma 0.5" in tab.totals
        assert tab.totals[-1] == "ended by itself"
        tab.page.locator(".word", has_text="blue").hover()
        tip = tab.page.get_by_role("tooltip")
        assert "not sure enough" in tip.inner_text()
        assert tip.locator("tr.chosen").count() >= 1
        tab.ask("And by night?")
        tab.wait_until_answered()
        assert tab.page.get_by_role("alert").all_text_contents() == []
        assert tab.complaints == []
        tab.page.close()


def test_stop_ends_the_work_of_the_real_worker(tmp_path: Path, browser: Browser) -> None:
    with listening(tmp_path, script=LONG, delay_s=0.01) as served:
        tab = Visit(browser.new_page())
        tab.page.goto(f"http://127.0.0.1:{served.port}/#key={KEY}")
        tab.ask("Why?")
        tab.page.locator(".word", has_text="word3").first.wait_for()
        tab.page.get_by_role("button", name="Stop").click()
        tab.wait_until_answered()
        assert "stopped by you" in tab.totals
        for _ in range(2000):
            if served.worker.describe().job is None:
                break
            time.sleep(0.01)
        assert served.worker.describe().job is None
        assert not tab.words.endswith("word399")
        assert tab.complaints == []
        tab.page.close()
