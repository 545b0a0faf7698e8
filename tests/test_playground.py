"""The playground in a headless Chromium: an answer, its words, the settings, the conversation."""

from __future__ import annotations

import json
import threading

import playground
import pytest
from playground import SKY, SKY_TEXT, WAIT_S, Open, ScriptedServer, answer, nudged, piece, scores

pytestmark = pytest.mark.process


# --- an answer ---


def test_words_are_shown_while_the_answer_is_written(scripted: ScriptedServer, visit: Open) -> None:
    go = threading.Event()
    scripted.script = answer(nudged("The", None, "opening"), piece(" sky"), go, piece(" is blue."))
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


def test_the_request_is_what_the_contract_says(scripted: ScriptedServer, visit: Open) -> None:
    tab = visit()
    tab.page.locator("[data-state=ready]").wait_for()
    tab.ask("Why is the sky blue?")
    tab.wait_until_answered()
    assert scripted.bodies[-1] == {
        "model": "demo",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "rule": "top_prob",
    }
    assert "authorization" not in scripted.headers[-1]


def test_authors_differ_in_colour_and_in_line(scripted: ScriptedServer, visit: Open) -> None:
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


def test_totals_are_those_of_the_last_chunk(scripted: ScriptedServer, visit: Open) -> None:
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


def test_any_cut_of_the_bytes_gives_the_same_answer(scripted: ScriptedServer, visit: Open) -> None:
    script = answer(b": ping\n\n", nudged("Grüße"), piece(" 日本語"), nudged(" 👩‍🚀"), piece(" naïve"))
    scripted.script = [bytes([byte]) for step in script if isinstance(step, bytes) for byte in step]
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


def test_a_long_answer_is_laid_out_a_frame_at_a_time(scripted: ScriptedServer, visit: Open) -> None:
    words = [(nudged if i % 4 == 0 else piece)(f" word{i}") for i in range(4000)]
    scripted.script = answer(piece("\n", "nudging"), b"".join(words))
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


def test_pointing_at_a_word_says_why_it_is_there(scripted: ScriptedServer, visit: Open) -> None:
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


def test_a_finger_can_do_what_a_mouse_can(scripted: ScriptedServer, visit: Open) -> None:
    tab = visit(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    box, tip = tab.page.get_by_label("Your question"), tab.page.get_by_role("tooltip")
    box.fill("one")
    box.press("Enter")
    box.type("two")
    tab.page.get_by_role("button", name="Send").tap()
    tab.wait_until_answered()
    assert scripted.bodies[-1]["messages"][-1]["content"] == "one\ntwo"
    tab.page.get_by_text("sky", exact=True).tap()
    tab.page.wait_for_timeout(300)  # longer than a box waits for a mouse that left
    assert "91.3%" in tip.inner_text()
    tab.page.get_by_role("heading", name="edge-nudge").tap()
    assert not tip.is_visible()


def test_alternatives_are_asked_for_and_shown(scripted: ScriptedServer, visit: Open) -> None:
    top = [(" green", 0.5), (" blue", 0.25), ("\n", 0.125)]
    scripted.script = answer(
        piece(" blue", logprobs=scores((" blue", 0.25, top))), piece("ish", logprobs=scores(("ish", 0.01, [])))
    )
    tab = visit()
    tab.page.get_by_label("alternatives of each token").check()
    tab.ask("Why?")
    tab.wait_until_answered()
    assert (scripted.bodies[-1]["logprobs"], scripted.bodies[-1]["top_logprobs"]) == (True, 5)
    tab.page.get_by_text("blue", exact=True).hover()
    rows = tab.page.get_by_role("tooltip").locator("tr")
    assert [row.split() for row in rows.all_inner_texts()] == [["␣green", "50.0%"], ["␣blue", "25.0%"], ["↵", "12.5%"]]
    assert [row.split()[0] for row in tab.page.locator("tr.chosen").all_inner_texts()] == ["␣blue"]
    tab.page.get_by_text("ish", exact=True).hover()
    assert [row.split() for row in rows.all_inner_texts()] == [["ish", "1.0%"]]


# --- settings ---


def test_settings_go_into_the_request(scripted: ScriptedServer, visit: Open) -> None:
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
    sent = scripted.bodies[-1]
    names = ("rule", "gamma", "max_tokens", "temperature", "seed")
    assert {name: sent[name] for name in names} == {
        "rule": "margin", "gamma": 0.35, "max_tokens": 12, "temperature": 0.7, "seed": 2**53 - 1,
    }  # fmt: skip
    assert sent["messages"][0] == {"role": "system", "content": "Be short."}
    page.get_by_label("Rule").select_option("base-only")
    assert page.get_by_role("slider", name="Gamma").is_disabled()
    tab.ask("And?")
    tab.wait_until_answered()
    assert "gamma" not in scripted.bodies[-1]
    page.get_by_label("Rule").select_option("entropy")
    page.get_by_label("the pair's own").check()
    tab.ask("And?")
    tab.wait_until_answered()
    assert scripted.bodies[-1]["rule"] == "entropy"
    assert "gamma" not in scripted.bodies[-1]


@pytest.mark.parametrize(
    ("label", "value"), [("Max tokens", "0"), ("Max tokens", "1.5"), ("Temperature", "-1"), ("Seed", "-3")]
)
def test_a_bad_number_is_not_sent(scripted: ScriptedServer, visit: Open, label: str, value: str) -> None:
    tab = visit(viewport={"width": 400, "height": 800})  # where the settings are folded away
    tab.page.get_by_text("Settings", exact=True).click()
    tab.page.get_by_label(label).fill(value)
    tab.page.get_by_text("Settings", exact=True).click()
    tab.ask("Why?")
    tab.page.get_by_label(label).wait_for(state="visible")
    assert tab.page.evaluate("() => document.activeElement.validity.valid") is False
    assert scripted.bodies == []
    assert tab.page.get_by_label("Your question").input_value() == "Why?"


# --- the conversation ---


def test_a_follow_up_carries_the_conversation_until_it_is_cleared(scripted: ScriptedServer, visit: Open) -> None:
    tab = visit()
    for question in ("Why?", "Since when?"):
        tab.ask(question)
        tab.wait_until_answered()
    assert scripted.bodies[-1]["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": SKY_TEXT},
        {"role": "user", "content": "Since when?"},
    ]
    assert tab.page.locator(".question").all_text_contents() == ["Why?", "Since when?"]
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.page.locator(".turn").count() == 0
    tab.ask("Anew?")
    tab.wait_until_answered()
    assert scripted.bodies[-1]["messages"] == [{"role": "user", "content": "Anew?"}]


def test_stop_closes_the_connection_and_keeps_what_is_there(scripted: ScriptedServer, visit: Open) -> None:
    scripted.script = answer(nudged("Half"), threading.Event(), piece(" never"))
    tab = visit()
    tab.ask("Why?")
    tab.page.locator(".word", has_text="Half").wait_for()
    assert not scripted.gone.is_set()
    tab.page.get_by_role("button", name="Stop").click()
    assert scripted.gone.wait(WAIT_S)
    tab.wait_until_answered()
    assert tab.words == "Half"
    assert [part for part in tab.totals if not part.startswith("first word")] == [
        "nudging ratio 100.0%", "1 token", "stopped by you",
    ]  # fmt: skip
    assert tab.page.locator(".error").count() == 0
    scripted.script = SKY
    tab.ask("And?")
    tab.wait_until_answered()
    assert scripted.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Half"}


def test_a_question_stopped_before_its_first_word_comes_back(scripted: ScriptedServer, visit: Open) -> None:
    scripted.script = [playground.START, threading.Event()]
    tab = visit()
    tab.ask("Why?")
    tab.page.get_by_role("button", name="Stop").click()
    tab.wait_until_answered()
    assert scripted.gone.wait(WAIT_S)
    assert tab.totals == ["stopped by you"]
    assert tab.page.get_by_label("Your question").input_value() == "Why?"
    scripted.script = SKY
    tab.page.keyboard.press("Enter")
    tab.wait_until_answered()
    assert [one["content"] for one in scripted.bodies[-1]["messages"]] == ["Why?"]


@pytest.mark.parametrize("leave", ["clear", "close"])
def test_leaving_closes_the_connection(scripted: ScriptedServer, visit: Open, leave: str) -> None:
    scripted.script = answer(nudged("Half"), threading.Event(), piece(" never"))
    tab = visit()
    tab.ask("Why?")
    tab.page.locator(".word", has_text="Half").wait_for()
    if leave == "clear":
        tab.page.get_by_role("button", name="Clear").click()
    else:
        tab.page.close()
    assert scripted.gone.wait(WAIT_S)
    if leave == "clear":
        assert tab.page.locator(".turn").count() == 0
        assert tab.page.get_by_role("button", name="Send").is_visible()


def test_a_question_typed_meanwhile_waits(scripted: ScriptedServer, visit: Open) -> None:
    go = threading.Event()
    scripted.script = answer(nudged("Half"), go, piece(" done."))
    tab = visit()
    tab.ask("Why?")
    tab.page.locator(".word", has_text="Half").wait_for()
    tab.ask("Next?")
    go.set()
    tab.wait_until_answered()
    assert len(scripted.bodies) == 1
    assert tab.page.get_by_label("Your question").input_value() == "Next?"


def test_enter_sends_and_shift_enter_does_not(scripted: ScriptedServer, visit: Open) -> None:
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
    assert [one["messages"][-1]["content"] for one in scripted.bodies] == ["one\ntwo"]
    assert box.bounding_box()["height"] == height


def test_copy_gives_the_exact_text(scripted: ScriptedServer, visit: Open) -> None:
    scripted.script = answer(nudged("a\u202eb"), piece("  <b>\n"), nudged("c"))
    tab = visit(permissions=["clipboard-read", "clipboard-write"])
    tab.ask("Why?")
    tab.wait_until_answered()
    tab.page.get_by_role("button", name="Copy answer").click()
    tab.page.get_by_role("button", name="Copied").wait_for()
    assert tab.page.evaluate("() => navigator.clipboard.readText()") == "a\u202eb  <b>\nc"


def test_whole_sentences_are_read_aloud(scripted: ScriptedServer, visit: Open) -> None:
    go = threading.Event()
    scripted.script = answer(
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
