"""POST /v1/chat/completions: shapes, settings, refusals."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from server_fakes import QUESTION, SERVED, SHORT_TEXT, ask, chat, events

from edge_nudge.core.request import NudgeParams, SamplingParams
from edge_nudge.server.wire import ChatBody

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


def fault(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object, which is all there is, in its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    error = document["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in response.text
    assert isinstance(error, dict)
    return error


# --- shapes


def test_a_whole_answer() -> None:
    document = ask(PATH, chat()).json()
    assert document["id"].startswith("chatcmpl-")
    assert document["object"] == "chat.completion"
    assert document["model"] == "fake"
    (choice,) = document["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": SHORT_TEXT, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = document["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (34, 8, 42)
    assert usage["base_completion_tokens"] + usage["nudging_completion_tokens"] == 8
    assert document["nudge"]["finish_detail"] == "end_of_generation"
    assert document["nudge"]["ratio_tokens"] == 0.5
    assert set(document["timings"]) == {
        *("prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "cache_n"),
        *("predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"),
    }
    assert (document["timings"]["prompt_n"], document["timings"]["predicted_n"]) == (34, 8)


def test_a_stream_has_a_role_pieces_an_end_and_done() -> None:
    response = ask(PATH, chat(stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *pieces, end, done = events(response.text)
    assert done == "[DONE]"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in pieces) == SHORT_TEXT
    assert end["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *pieces])
    for name in ("id", "created", "object", "model"):
        assert len({chunk[name] for chunk in [first, *pieces, end]}) == 1
    assert first["object"] == "chat.completion.chunk"
    assert not any("usage" in chunk for chunk in [first, *pieces, end])
    assert {chunk["nudge"]["author"] for chunk in pieces} == {"base", "nudging"}
    assert pieces[0]["nudge"] == {
        "author": "nudging",
        "top_prob": None,
        "reason": "opening",
        "n_tokens": 1,
        "instead": None,
    }
    assert sum(chunk["nudge"]["n_tokens"] for chunk in pieces) == 8
    assert end["nudge"]["handoffs"] == 6
    assert end["timings"]["predicted_n"] == 8


def test_usage_comes_last_where_it_is_asked_for() -> None:
    response = ask(PATH, chat(stream=True, stream_options={"include_usage": True}))
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 42
    assert last["id"] == chunks[0]["id"]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_the_totals_are_those_of_run_json() -> None:
    from cli_fakes import fake_pair

    from edge_nudge.core.events import Finished
    from edge_nudge.core.request import build_request
    from edge_nudge.document import nudge_document, usage_document

    document = ask(PATH, chat(seed=5)).json()
    with fake_pair() as pair:
        request = build_request(QUESTION, seed=5)
        *_, finished = pair.answer(request)
        assert isinstance(finished, Finished)
        assert nudge_document(finished.usage, request).items() <= document["nudge"].items()
        assert usage_document(finished.usage).items() <= document["usage"].items()
    assert document["nudge"]["seed"] == 5


# --- what is accepted


def test_every_setting_of_ours_can_be_given() -> None:
    fields = ChatBody.model_fields
    names = {"temp": "temperature"}
    for field in (*NudgeParams.model_fields, *SamplingParams.model_fields):
        assert names.get(field, field) in fields, field


@pytest.mark.parametrize(
    ("fields", "of_nudge"),
    [
        ({"gamma": 0.95}, {"gamma": 0.95}),
        ({"rule": "margin", "gamma": 0.1}, {"rule": "margin", "gamma": 0.1}),
        ({"rule": "token"}, {"rule": "token", "gamma": 0.4}),
        ({"rule": "bet"}, {"rule": "bet", "gamma": 0.2}),
        ({"rule": "blend"}, {"rule": "blend", "gamma": 0.4}),
        ({"rule": "base-only"}, {"rule": "base-only", "gamma": None, "ratio_tokens": 0.0}),
        ({"rule": "nudging-only"}, {"rule": "nudging-only", "ratio_tokens": 1.0}),
        ({"lookahead": 3}, {"lookahead": 3}),
        ({"seed": 77}, {"seed": 77}),
        ({"gamma": None, "rule": None, "seed": None, "top_p": None}, {"gamma": 0.4}),
    ],
)
def test_nudging_settings_arrive(fields: dict[str, Any], of_nudge: dict[str, Any]) -> None:
    document = ask(PATH, chat(max_tokens=3, **fields)).json()
    assert of_nudge.items() <= document["nudge"].items()


@pytest.mark.parametrize(
    ("fields", "n_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 7}, 5),
        ({"max_completion_tokens": None, "max_tokens": 4}, 4),
        ({"max_tokens": 0}, 0),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_the_newer_name_of_the_limit_wins(fields: dict[str, Any], n_tokens: int, is_stream: bool) -> None:  # B67
    response = ask(PATH, chat(stream=is_stream, **fields))
    end = events(response.text)[-2] if is_stream else response.json()
    assert end["choices"][0]["finish_reason"] == "length"
    assert end["timings"]["predicted_n"] == n_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True, "metadata": {"a": "b"}, "parallel_tool_calls": True, "user": "u", "n": 1},
        {"messages": [{"role": "user", "content": "hi", "id": "7", "name": "x", "created": 1}]},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "service_tier": "auto", "what": {"is": [1]}},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"stop": None},
        {"stop": []},
        {"stream_options": None, "stream": None, "logprobs": None, "top_logprobs": None, "model": None},
        {"model": "fake-latest"},
    ],
)
def test_what_is_harmless_is_ignored(fields: dict[str, Any]) -> None:  # B70, B17
    response = ask(PATH, chat(**fields))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == SHORT_TEXT


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, ""),
        ({"role": "assistant"}, ""),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"role": "user", "content": []}, ""),
        ({"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "c"}]}, "c"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"role": "developer", "content": "d"}, "d"),
    ],
)
def test_contents_become_text(message: dict[str, Any], text: str) -> None:  # B64, B65
    document = ask(PATH, chat(messages=[message, USER])).json()
    other = {"role": {"tool": "user", "developer": "system"}.get(message["role"], message["role"]), "content": text}
    plain = ask(PATH, chat(messages=[other, USER])).json()
    assert document["usage"] == plain["usage"]


def test_a_stop_string_ends_the_answer_before_it() -> None:  # B13: it lies across a handoff
    for stop in ("e by day and\nb", ["zzz", "e by day and\nb"]):
        document = ask(PATH, chat(stop=stop)).json()
        assert document["choices"][0]["message"]["content"] == "The sky is blu"
        assert document["choices"][0]["finish_reason"] == "stop"
        assert document["nudge"]["stop_string"] == "e by day and\nb"
    text = ask(PATH, chat(stop="e by day and\nb", stream=True)).text
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in events(text)[:-1]) == "The sky is blu"


def test_text_held_back_for_a_stop_string_is_not_lost() -> None:  # B14
    document = ask(PATH, chat(stop="later. And")).json()
    assert document["choices"][0]["message"]["content"] == SHORT_TEXT


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": ["", "###"]}, "stop"),
        ({"stop": ["x"] * 40}, "stop"),
        ({"stop": 7}, "stop"),
        ({"stop": [None]}, "stop"),
        ({"stop": "\ud83d"}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": {"messages": []}}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "banana", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "user", "content": 7}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]}, "messages.0.content"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"gamma": -1}, "gamma"),
        ({"rule": "coin"}, "rule"),
        ({"rule": "bet", "gamma": 1.5}, "gamma"),
        ({"lookahead": 0}, "lookahead"),
        ({"loop_guard": "yes"}, "loop_guard"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 7}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"repeat_penalty": 1.3}, "repeat_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"n_predict": 5}, "n_predict"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_bad_field_is_named(fields: dict[str, Any], param: str, is_stream: bool) -> None:  # B17, B19, B64, B68, B70
    error = fault(ask(PATH, {**chat(), **({"stream": True} if is_stream else {}), **fields}))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"]


def test_a_misspelt_field_is_missed() -> None:  # B70
    error = fault(ask(PATH, {"model": "fake", "message": QUESTION}))
    assert (error["param"], error["message"]) == ("messages", "messages: Field required")


def test_an_unknown_role_is_told_the_known_ones() -> None:  # B65
    message = fault(ask(PATH, chat(messages=[{"role": "banana"}])))["message"]
    for role in ("system", "developer", "user", "assistant", "tool"):
        assert role in message


def test_an_unknown_model_is_told_what_is_served() -> None:
    for name in ("gpt-4", "", "\ud83d", "FAKE"):
        error = fault(ask(PATH, chat(model=name)), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert ", ".join(SERVED.names) in error["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_prompt_that_does_not_fit(is_stream: bool) -> None:  # B50
    for n_ctx, model in ((30, "base"), (36, None)):
        response = ask(PATH, chat(stream=is_stream, max_tokens=1), n_ctx=n_ctx)
        if model is None:
            assert response.status_code == 200
            continue
        error = fault(response)
        assert (error["type"], error["code"]) == ("exceed_context_size_error", "context_length_exceeded")
        assert (error["n_prompt_tokens"], error["n_ctx"], error["model"]) == (34, 30, "base")
        assert "34" in error["message"]
        assert "30" in error["message"]


# --- bodies that are none


@pytest.mark.parametrize(
    "body",
    [
        b"{:", b"", b" ", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"{\"messages\": \xff}", b"[" * 100_000,
        b'{"messages":' * 50_000, b"1" * 5_000, b'{"messages": [' + b"1" * 5_000 + b"]}", b"\x00", b"\xef\xbb\xbf{",
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "{}".encode("utf-16"), b"{} {}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_request(body: bytes) -> None:  # B55
    for path in (PATH, "/v1/completions", "/tokenize", "/detokenize"):
        assert fault(ask(path, body))["type"] == "invalid_request_error"


def test_a_body_in_utf_8_with_a_byte_order_mark_is_read() -> None:
    assert ask(PATH, b"\xef\xbb\xbf" + json.dumps(chat()).encode()).status_code == 200


@pytest.mark.parametrize("depth", [100, 500, 900, 990, 5_000])
def test_nesting_is_no_way_to_a_500(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for name in (b"messages", b"what", b"stop", b"logit_bias", b"response_format"):
        body = b'{"messages": [{"role": "user", "content": "hi"}], "' + name + b'": ' + deep + b"}"
        assert ask(PATH, body).status_code in (200, 400)


def test_a_long_name_is_not_sent_back() -> None:
    assert len(ask(PATH, chat(model="x" * 100_000)).text) < 1000
    part = {"type": "x" * 100_000}
    assert len(ask(PATH, chat(messages=[{"role": "user", "content": [part]}])).text) < 1000
