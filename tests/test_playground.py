"""The playground in a headless Chromium, against a server that answers by script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import playground
import pytest
from cli_fakes import LONG, SHORT, text_of
from playground import SKY, SKY_TEXT, ScriptedServer, Visit, answer, nudged, piece, scores
from server_fakes import KEY, listening

from edge_nudge.core.events import Role

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.process
Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ScriptedServer]:
    with playground.scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playground.browser() as started:
        yield started


@pytest.fixture
def server(shared_server: ScriptedServer) -> ScriptedServer:
    shared_server.reset()
    shared_server.script = SKY
    return shared_server


@pytest.fixture
def visit(browser: Browser, server: ScriptedServer) -> Iterator[Open]:
    """Open the page; in the end, nothing may have left the origin, and nothing may have been complained about."""
    visits: list[Visit] = []

    def open_page(fragment: str = "", *, is_refusal_expected: bool = False, **context: Any) -> Visit:
        settings = {"viewport": {"width": 1200, "height": 800}, **context}
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(60_000)
        visits.append(Visit(page, is_refusal_expected=is_refusal_expected))
        page.goto(f"{server.url}/{fragment}")
        return visits[-1]

    yield open_page
    for one in visits:
        assert one.asked
        assert [address for address in one.asked if not address.startswith(f"{server.url}/")] == []
        assert one.complaints == []
        one.page.context.close()


def body(server: ScriptedServer) -> dict[str, Any]:
    return server.bodies[-1]


# --- an answer ---


def test_words_are_shown_while_the_answer_is_written(server: ScriptedServer, visit: Open) -> None:
    go = threading.Event()
    server.script = answer(nudged("The", None, "opening"), piece(" sky"), go, piece(" is blue."))
    tab = visit()
    tab.page.get_by_label("Your question").fill("Why?")
    tab.page.get_by_role("button", name="Send").click()
    tab.page.locator(".word", has_text="sky").wait_for()
    assert tab.words == "The sky"
    assert tab.page.get_by_role("button", name="Stop").is_visible()
    assert not tab.page.get_by_role("button", name="Send").is_visible()
    go.set()
    tab.wait_until_answered()
    assert tab.words == "The sky is blue."
    assert tab.page.get_by_role("button", name="Send").is_visible()
    assert tab.page.get_by_label("Your question").input_value() == ""


def test_the_request_is_what_the_contract_says(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    tab.page.locator("[data-state=ready]").wait_for()
    tab.ask("Why is the sky blue?")
    tab.wait_until_answered()
    assert body(server) == {
        "model": "demo",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "rule": "top_prob",
    }
    assert "authorization" not in server.headers[-1]


def test_authors_differ_in_colour_and_in_line(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.words == SKY_TEXT
    assert tab.page.locator(".word.nudging").all_text_contents() == ["The", "blue", "Later"]
    assert tab.page.locator(".word.base").all_text_contents() == ["sky", "is", "by day.", "it is black."]
    looks = "word => [getComputedStyle(word).color, getComputedStyle(word).textDecorationLine]"
    nudging, base = (tab.page.locator(f".word.{name}").first.evaluate(looks) for name in ("nudging", "base"))
    assert nudging[0] != base[0]
    assert (nudging[1], base[1]) == ("underline", "none")
    legend = [
        tab.page.locator(".legend .nudging").evaluate(looks),
        tab.page.locator(".legend .sample").first.evaluate(looks),
    ]
    assert legend == [nudging, base]


def test_totals_are_those_of_the_last_chunk(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    tab.ask("Why?")
    tab.wait_until_answered()
    totals = [
        "nudging ratio 31.3% (41.0% of characters)", "7 handoffs", "gamma 0.4", "32 tokens", "25.6 tokens/s",
        "first word 0.13 s", "ended: it could only repeat itself",
    ]  # fmt: skip
    assert tab.totals == totals
    tab.page.get_by_label("Temperature").fill("0.5")
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.totals == [*totals[:-1], "seed 9007199254740991", totals[-1]]


def test_any_cut_of_the_bytes_gives_the_same_answer(server: ScriptedServer, visit: Open) -> None:
    script = answer(b": ping\n\n", nudged("Grüße"), piece(" 日本語"), nudged(" 👩‍🚀"), piece(" naïve"))
    server.script = [bytes([byte]) for step in script if isinstance(step, bytes) for byte in step]
    tab = visit()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.words == "Grüße 日本語 👩‍🚀 naïve"


def test_the_parser_takes_every_cut_and_every_line_end(visit: Open) -> None:
    tab = visit()
    text = (
        ': ping\n\ndata: {"a": "ä👍"}\n\n'
        "event: x\nid: 7\ndata:no blank\ndata: two\ndata\n\nretry: 1\n\ndata: [DONE]\n\n"
    )
    events = tab.page.evaluate(
        """async (text) => {
          const { EventReader } = await import("/page/stream.js");
          const results = new Set();
          for (const end of ["\\n", "\\r\\n", "\\r"]) {
            const bytes = new TextEncoder().encode(text.replaceAll("\\n", end));
            for (let first = 0; first <= bytes.length; first++) {
              for (const second of [first, Math.min(first + 1, bytes.length), Math.min(first + 2, bytes.length)]) {
                const reader = new EventReader();
                const cuts = [bytes.slice(0, first), bytes.slice(first, second), bytes.slice(second)];
                results.add(JSON.stringify(cuts.flatMap((cut) => reader.push(cut))));
              }
            }
          }
          return [...results];
        }""",
        text,
    )
    assert [json.loads(one) for one in events] == [['{"a": "ä👍"}', "no blank\ntwo\n", "[DONE]"]]


def test_a_long_answer_is_laid_out_a_frame_at_a_time(server: ScriptedServer, visit: Open) -> None:
    words = [(nudged if i % 4 == 0 else piece)(f" word{i}") for i in range(4000)]
    server.script = answer(piece("\n", "nudging"), b"".join(words))
    tab = visit()
    tab.page.evaluate(
        """() => {
          window.n_changes = 0;
          new MutationObserver(() => window.n_changes++).observe(document.getElementById("turns"), {
            childList: true, subtree: true,
          });
        }"""
    )
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.words == "\n" + "".join(f" word{i}" for i in range(4000))
    assert tab.page.locator(".word[tabindex='0']").all_text_contents() == ["word0"]
    assert tab.page.evaluate("() => window.n_changes") < 400


# --- details of a word ---


def test_pointing_at_a_word_says_why_it_is_there(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    tab.ask("Why?")
    tab.wait_until_answered()
    tip = tab.page.get_by_role("tooltip")
    assert not tip.is_visible()
    tab.page.get_by_text("blue", exact=True).hover()
    assert tip.locator("p").all_text_contents() == [
        "blue nudging model", "The base model was not sure enough here.",
        "Base model's top-1 probability 21.0% gamma 0.4",
    ]  # fmt: skip
    tab.page.get_by_text("sky", exact=True).hover()
    assert "base model" in tip.inner_text()
    assert "91.3%" in tip.inner_text()
    tab.page.get_by_text("The", exact=True).hover()
    assert "It opens the answer." in tip.inner_text()
    assert "not asked" in tip.inner_text()
    tab.page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_words_are_one_tab_stop_and_the_arrows_walk(visit: Open) -> None:
    tab = visit()
    tab.ask("Why?")
    tab.wait_until_answered()
    tip, page = tab.page.get_by_role("tooltip"), tab.page
    page.locator(".word").first.focus()
    focused = "() => document.activeElement.textContent"
    seen = [page.evaluate(focused)]
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        page.keyboard.press(key)
        seen.append(page.evaluate(focused))
    assert seen == ["The", "sky", "is", "sky", "it is black.", "it is black.", "The", "The"]
    page.keyboard.press("ArrowRight")
    assert "91.3%" in tip.inner_text()
    assert page.evaluate("() => document.activeElement.getAttribute('aria-describedby')") == "details"
    assert page.locator(".word[tabindex='0']").all_text_contents() == ["sky"]
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Copy answer"
    assert not tip.is_visible()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "sky"


def test_a_finger_can_do_what_a_mouse_can(server: ScriptedServer, visit: Open) -> None:
    tab = visit(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    box, tip = tab.page.get_by_label("Your question"), tab.page.get_by_role("tooltip")
    box.fill("one")
    box.press("Enter")
    box.type("two")
    tab.page.get_by_role("button", name="Send").tap()
    tab.wait_until_answered()
    assert body(server)["messages"][-1]["content"] == "one\ntwo"
    tab.page.get_by_text("sky", exact=True).tap()
    tab.page.wait_for_timeout(300)  # longer than a box waits for a mouse that left
    assert "91.3%" in tip.inner_text()
    tab.page.get_by_role("heading", name="edge-nudge").tap()
    assert not tip.is_visible()


def test_alternatives_are_asked_for_and_shown(server: ScriptedServer, visit: Open) -> None:
    top = [(" green", 0.5), (" blue", 0.25), ("\n", 0.125)]
    server.script = answer(
        piece(" blue", logprobs=scores((" blue", 0.25, top))), piece("ish", logprobs=scores(("ish", 0.01, [])))
    )
    tab = visit()
    tab.page.get_by_label("alternatives of each token").check()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert (body(server)["logprobs"], body(server)["top_logprobs"]) == (True, 5)
    tab.page.get_by_text("blue", exact=True).hover()
    rows = tab.page.get_by_role("tooltip").locator("tr")
    assert [row.split() for row in rows.all_inner_texts()] == [["␣green", "50.0%"], ["␣blue", "25.0%"], ["↵", "12.5%"]]
    assert [row.split()[0] for row in tab.page.locator("tr.chosen").all_inner_texts()] == ["␣blue"]
    tab.page.get_by_text("ish", exact=True).hover()
    assert [row.split() for row in rows.all_inner_texts()] == [["ish", "1.0%"]]


# --- settings ---


def test_settings_go_into_the_request(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    page = tab.page
    page.get_by_label("Rule").select_option("margin")
    gamma = page.get_by_role("slider", name="Gamma")
    assert gamma.input_value() == "0.2"
    gamma.fill("0.35")
    assert not page.get_by_label("the pair's own").is_checked()
    page.get_by_label("Max tokens").fill("12")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Seed").fill("9007199254740991")
    page.get_by_label("System message").fill("Be short.")
    tab.ask("Why?")
    tab.wait_until_answered()
    sent = body(server)
    names = ("rule", "gamma", "max_tokens", "temperature", "seed")
    assert {name: sent[name] for name in names} == {
        "rule": "margin", "gamma": 0.35, "max_tokens": 12, "temperature": 0.7, "seed": 2**53 - 1,
    }  # fmt: skip
    assert sent["messages"][0] == {"role": "system", "content": "Be short."}
    page.get_by_label("Rule").select_option("base-only")
    assert page.get_by_role("slider", name="Gamma").is_disabled()
    tab.ask("And?")
    tab.wait_until_answered()
    assert "gamma" not in body(server)
    page.get_by_label("Rule").select_option("entropy")
    page.get_by_label("the pair's own").check()
    tab.ask("And?")
    tab.wait_until_answered()
    assert body(server)["rule"] == "entropy"
    assert "gamma" not in body(server)


@pytest.mark.parametrize(
    ("label", "value"), [("Max tokens", "0"), ("Max tokens", "1.5"), ("Temperature", "-1"), ("Seed", "-3")]
)
def test_a_bad_number_is_not_sent(server: ScriptedServer, visit: Open, label: str, value: str) -> None:
    tab = visit(viewport={"width": 400, "height": 800})  # where the settings are folded away
    tab.page.get_by_text("Settings", exact=True).click()
    tab.page.get_by_label(label).fill(value)
    tab.page.get_by_text("Settings", exact=True).click()
    tab.ask("Why?")
    tab.page.get_by_label(label).wait_for(state="visible")
    assert tab.page.evaluate("() => document.activeElement.validity.valid") is False
    assert server.bodies == []
    assert tab.page.get_by_label("Your question").input_value() == "Why?"


# --- the conversation ---


def test_a_follow_up_carries_the_conversation_until_it_is_cleared(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    for question in ("Why?", "Since when?"):
        tab.ask(question)
        tab.wait_until_answered()
    assert body(server)["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": SKY_TEXT},
        {"role": "user", "content": "Since when?"},
    ]
    assert tab.page.locator(".question").all_text_contents() == ["Why?", "Since when?"]
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.page.locator(".turn").count() == 0
    tab.ask("Anew?")
    tab.wait_until_answered()
    assert body(server)["messages"] == [{"role": "user", "content": "Anew?"}]


def test_stop_closes_the_connection_and_keeps_what_is_there(server: ScriptedServer, visit: Open) -> None:
    server.script = answer(nudged("Half"), threading.Event(), piece(" never"))
    tab = visit()
    tab.ask("Why?")
    tab.page.locator(".word", has_text="Half").wait_for()
    assert not server.gone.is_set()
    tab.page.get_by_role("button", name="Stop").click()
    assert server.gone.wait(60)
    tab.wait_until_answered()
    assert tab.words == "Half"
    assert [part for part in tab.totals if not part.startswith("first word")] == [
        "nudging ratio 100.0%", "1 token", "stopped by you",
    ]  # fmt: skip
    assert tab.page.locator(".error").count() == 0
    server.script = SKY
    tab.ask("And?")
    tab.wait_until_answered()
    assert body(server)["messages"][1] == {"role": "assistant", "content": "Half"}


def test_a_question_stopped_before_its_first_word_comes_back(server: ScriptedServer, visit: Open) -> None:
    server.script = [playground.START, threading.Event()]
    tab = visit()
    tab.ask("Why?")
    tab.page.get_by_role("button", name="Stop").click()
    tab.wait_until_answered()
    assert server.gone.wait(60)
    assert tab.totals == ["stopped by you"]
    assert tab.page.get_by_label("Your question").input_value() == "Why?"
    server.script = SKY
    tab.page.keyboard.press("Enter")
    tab.wait_until_answered()
    assert [one["content"] for one in body(server)["messages"]] == ["Why?"]


@pytest.mark.parametrize("leave", ["clear", "close"])
def test_leaving_closes_the_connection(server: ScriptedServer, visit: Open, leave: str) -> None:
    server.script = answer(nudged("Half"), threading.Event(), piece(" never"))
    tab = visit()
    tab.ask("Why?")
    tab.page.locator(".word", has_text="Half").wait_for()
    if leave == "clear":
        tab.page.get_by_role("button", name="Clear").click()
    else:
        tab.page.close()
    assert server.gone.wait(60)
    if leave == "clear":
        assert tab.page.locator(".turn").count() == 0
        assert tab.page.get_by_role("button", name="Send").is_visible()


def test_a_question_typed_meanwhile_waits(server: ScriptedServer, visit: Open) -> None:
    go = threading.Event()
    server.script = answer(nudged("Half"), go, piece(" done."))
    tab = visit()
    tab.ask("Why?")
    tab.page.locator(".word", has_text="Half").wait_for()
    tab.ask("Next?")
    go.set()
    tab.wait_until_answered()
    assert len(server.bodies) == 1
    assert tab.page.get_by_label("Your question").input_value() == "Next?"


def test_enter_sends_and_shift_enter_does_not(server: ScriptedServer, visit: Open) -> None:
    tab = visit()
    box = tab.page.get_by_label("Your question")
    box.press("Enter")
    box.type("one")
    height = box.bounding_box()["height"]
    box.press("Shift+Enter")
    box.type("two")
    assert box.bounding_box()["height"] > height
    box.press("Enter")
    tab.wait_until_answered()
    assert [one["messages"][-1]["content"] for one in server.bodies] == ["one\ntwo"]
    assert box.bounding_box()["height"] == height


def test_copy_gives_the_exact_text(server: ScriptedServer, visit: Open) -> None:
    server.script = answer(nudged("a\u202eb"), piece("  <b>\n"), nudged("c"))
    tab = visit(permissions=["clipboard-read", "clipboard-write"])
    tab.ask("Why?")
    tab.wait_until_answered()
    tab.page.get_by_role("button", name="Copy answer").click()
    tab.page.get_by_role("button", name="Copied").wait_for()
    assert tab.page.evaluate("() => navigator.clipboard.readText()") == "a\u202eb  <b>\nc"


def test_whole_sentences_are_read_aloud(server: ScriptedServer, visit: Open) -> None:
    go = threading.Event()
    server.script = answer(
        nudged("The sky"), piece(" is blue."), nudged(" It"), go, piece(" is 3.5 km"), nudged(" high")
    )
    tab = visit()
    tab.ask("Why?")
    spoken = tab.page.get_by_role("log")
    spoken.locator("p").first.wait_for(state="attached")
    assert spoken.get_attribute("aria-live") == "polite"
    assert spoken.locator("p").all_text_contents() == ["The sky is blue."]
    go.set()
    tab.wait_until_answered()
    assert spoken.locator("p").all_text_contents() == ["The sky is blue.", "It is 3.5 km high"]


# --- the key ---


def test_the_key_is_asked_for_once_and_kept_in_this_tab(server: ScriptedServer, visit: Open) -> None:
    server.key = "right"
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
    assert server.headers[-1]["authorization"] == "Bearer right"
    stores = "() => [Object.values({...sessionStorage}), {...localStorage}, document.cookie, document.body.innerText]"
    kept, local, cookie, text = tab.page.evaluate(stores)
    assert (kept, local, cookie) == (["right"], {}, "")
    assert "right" not in text
    tab.page.reload()
    tab.page.locator("[data-state=ready]").wait_for()
    assert not dialog.is_visible()


def test_a_reader_without_a_key_is_told_so_and_can_try_again(server: ScriptedServer, visit: Open) -> None:
    server.key = "right"
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


def test_a_key_in_the_address_is_taken_and_removed(server: ScriptedServer, visit: Open) -> None:
    server.key = "a/b+c d"
    tab = visit("#key=a%2Fb+c%20d")
    tab.page.locator("[data-state=ready]").wait_for()
    assert tab.page.url == f"{server.url}/"
    assert tab.page.evaluate("() => history.length") <= 2
    tab.ask("Why?")
    tab.wait_until_answered()
    assert server.headers[-1]["authorization"] == "Bearer a/b+c d"
    assert not any("a%2Fb" in address.partition("#")[0] for address in tab.asked)


def test_behind_a_proxy_the_page_works_under_any_path(server: ScriptedServer, visit: Open) -> None:
    tab = visit("behind/proxy/")
    tab.page.locator("[data-state=ready]").wait_for()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert tab.words == SKY_TEXT
    assert all(address.startswith(f"{server.url}/behind/proxy/") for address in tab.asked)


def test_a_server_that_loads_is_waited_for(server: ScriptedServer, visit: Open) -> None:
    server.trouble = "failed"
    tab = visit(is_refusal_expected=True)
    tab.page.get_by_text("the service is failed").wait_for()
    server.trouble = "loading"
    tab.page.get_by_text("loading the models").wait_for()
    server.trouble = None
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
    server: ScriptedServer, visit: Open, refusal: Any, words: str
) -> None:
    server.refusal = refusal
    tab = visit(is_refusal_expected=True)
    tab.ask("Why?")
    assert tab.page.get_by_role("alert").inner_text() == words
    assert tab.page.get_by_label("Your question").input_value() == "Why?"
    server.refusal = None
    tab.page.keyboard.press("Enter")
    tab.wait_until_answered()
    assert [one["content"] for one in body(server)["messages"]] == ["Why?"]
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
    server: ScriptedServer, visit: Open, rest: list[bytes], words: str
) -> None:
    server.script = [playground.START, nudged("Half"), *rest]
    tab = visit()
    tab.ask("Why?")
    assert tab.page.get_by_role("alert").inner_text().removesuffix(".") == words.removesuffix(".")
    assert tab.words == "Half"
    assert tab.page.get_by_label("Your question").input_value() == ""
    server.script = SKY
    tab.ask("And?")
    tab.wait_until_answered()
    assert body(server)["messages"][1] == {"role": "assistant", "content": "Half"}


def test_a_server_that_is_not_there_is_said_in_words(server: ScriptedServer, visit: Open) -> None:
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


def test_hostile_text_stays_text_everywhere(server: ScriptedServer, visit: Open) -> None:
    server.model = HOSTILE
    server.script = answer(
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
    server.refusal = (400, {"error": {"message": HOSTILE}}, {})
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
def test_every_text_has_contrast(server: ScriptedServer, visit: Open, scheme: str) -> None:
    tab = visit(color_scheme=scheme)
    tab.ask("Why?")
    tab.wait_until_answered()
    rgb = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name].match(/[\\d.]+/g).map(Number)"
    ground = tab.page.evaluate(rgb, ["body", "backgroundColor"])
    assert (sum(ground) > 384) == (scheme == "light")
    for selector in (".word.base", ".word.nudging", ".totals", ".question", ".model", ".help", ".keys", ".copy"):
        assert contrast(tab.page.evaluate(rgb, [selector, "color"]), ground) >= 4.5, selector


@pytest.mark.parametrize("width", [320, 400, 900, 1600])
def test_nothing_is_cut_off_at_any_width(server: ScriptedServer, visit: Open, width: int) -> None:
    top = [(f" alternative{i}", 0.1) for i in range(5)]
    server.script = answer(
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


def test_the_end_stays_in_sight_unless_the_reader_scrolls_away(server: ScriptedServer, visit: Open) -> None:
    go, on = threading.Event(), threading.Event()
    lines = [piece(f"line {i}\n") for i in range(60)]
    server.script = answer(*lines, go, *lines, nudged("middle\n"), on, *lines)
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
