"""Requests made up by machines: none ends in a 500, none in a traceback, and the server answers the next one."""

from __future__ import annotations

import asyncio
import json
import logging
import string
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from cli_fakes import fake_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_fakes import SHORT_TEXT, a_client, a_worker, chat, reached

from edge_nudge.server.app import Served, make_app
from edge_nudge.server.wire import ChatBody, CompletionBody
from edge_nudge.worker import Worker

pytestmark = pytest.mark.thorough

POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
GOOD = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [7]},
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with a_worker() as worker:
        yield worker


@pytest.fixture(autouse=True)
def no_bug(worker: Worker, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The log has no error of ours, and a plain request is answered as ever."""
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert sent(worker, "/v1/chat/completions", json.dumps(chat()).encode()).json()["choices"][0]["message"] == {
        "role": "assistant", "content": SHORT_TEXT, "refusal": None,
    }  # fmt: skip


def sent(worker: Worker, path: str, body: bytes, kind: str = "application/json") -> httpx.Response:
    async def run() -> httpx.Response:
        async with a_client(worker) as client:
            return await client.post(path, content=body, headers={"content-type": kind})

    return asyncio.run(run())


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    assert "Traceback" not in response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error)


some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.just("a" * 3000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.printable), inner, max_size=4),
    max_leaves=8,
)
field_names = st.sampled_from(
    sorted({*ChatBody.model_fields, *CompletionBody.model_fields, "n", "tools", "response_format", "logit_bias"})
)
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzed
@given(path=st.sampled_from(POSTS), body=st.binary(max_size=200))
def test_any_bytes(worker: Worker, path: str, body: bytes) -> None:
    response = sent(worker, path, body)
    check(response)
    assert response.status_code == 400


@fuzzed
@given(path=st.sampled_from(POSTS), body=some_json)
def test_any_json(worker: Worker, path: str, body: Any) -> None:
    check(sent(worker, path, json.dumps(body).encode()))


@fuzzed
@given(path=st.sampled_from(POSTS[:2]), fields=st.dictionaries(field_names, some_json, min_size=1, max_size=3))
def test_any_value_in_any_field(worker: Worker, path: str, fields: dict[str, Any]) -> None:
    check(sent(worker, path, json.dumps({**GOOD[path], "max_tokens": 2, **fields}).encode()))


@fuzzed
@given(path=st.sampled_from(POSTS), data=st.data())
def test_a_good_body_with_a_few_bytes_changed(worker: Worker, path: str, data: st.DataObject) -> None:
    body = bytearray(json.dumps(GOOD[path]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check(sent(worker, path, bytes(body)))


@fuzzed
@given(path=st.sampled_from(POSTS), kind=st.text(string.printable, max_size=30).map(str.strip))
def test_any_content_type(worker: Worker, path: str, kind: str) -> None:
    try:
        httpx.Headers({"content-type": kind})
    except ValueError:
        return
    assert sent(worker, path, b"{}", kind).status_code in (400, 415)


class Late:
    """The schema is read when tests are collected; its requests go to the application of the test."""

    def __init__(self) -> None:
        self.app: Any = reached(make_app(Worker(fake_pair), served=Served("fake")))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


late = Late()
schema = schemathesis.openapi.from_asgi("/openapi.json", late)


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_made_from_the_schema(worker: Worker, case: Any) -> None:
    late.app = reached(make_app(worker, served=Served("fake")))
    if isinstance(case.body, dict) and case.path.endswith("completions"):
        case.body["max_tokens"] = 2
    response = case.call()
    assert response.status_code < 500, response.text
    assert "Traceback" not in response.text
    if response.status_code >= 400:
        assert set(response.json()) == {"error"}
