"""The clients that people have: the openai package over the Unix socket and over TCP, curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from cli_fakes import SHORT
from server_fakes import KEY, QUESTION, SHORT_TEXT, Listening, chat, listening

httpx_of_openai = pytest.importorskip("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Listening]:
    with listening(tmp_path, script=SHORT) as listening_:
        yield listening_


@pytest.fixture(params=["unix", "tcp"])
def client(request: pytest.FixtureRequest, server: Listening) -> Iterator[openai.OpenAI]:
    settings: dict[str, Any] = {"max_retries": 0, "timeout": 20}
    if request.param == "tcp":
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, **settings) as client:
            yield client
        return
    transport = httpx_of_openai.HTTPTransport(uds=str(server.socket_path))
    with (
        httpx_of_openai.Client(transport=transport) as http_client,
        openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http_client, **settings) as client,
    ):
        yield client


def test_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=QUESTION)
    assert answer.choices[0].message.content == SHORT_TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 42
    assert answer.model_extra is not None
    assert answer.model_extra["nudge"]["handoffs"] == 6
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "edge-nudge"


def test_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="fake", messages=QUESTION, stream=True, stream_options={"include_usage": True},
        extra_body={"gamma": 0.4}, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    text, authors, n_scores, usage = "", set(), 0, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.delta.content:
                assert choice.logprobs is not None
                n_scores += len(choice.logprobs.content or ())
                authors.add((chunk.model_extra or {})["nudge"]["author"])
    assert text == SHORT_TEXT
    assert authors == {"base", "nudging"}
    assert usage is not None
    assert n_scores >= usage.completion_tokens == 8


def test_a_plain_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt="The", max_tokens=2, logprobs=2, extra_body={"rule": "base-only"}
    )
    (choice,) = answer.choices
    assert choice.text == " sky is"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == [" sky", " is"]
    assert choice.logprobs.text_offset == [0, 4]


def test_errors_are_those_of_the_package(client: openai.OpenAI, server: Listening) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake", messages=QUESTION, n=2)
    assert bad.value.param == "n"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * 9000}], stream=True)
    assert long.value.code == "context_length_exceeded"
    server.worker.stop()
    with pytest.raises(openai.InternalServerError) as stopped:
        client.chat.completions.create(model="fake", messages=QUESTION)
    assert stopped.value.status_code == 503


def test_a_wrong_key(server: Listening) -> None:
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.process
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Listening) -> None:
    def curl(*arguments: str) -> str:
        command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(server.socket_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    json_type = "content-type: application/json"
    url = "http://localhost/v1/chat/completions"
    answer = json.loads(curl(url, "-H", json_type, "-d", json.dumps(chat())))
    assert answer["choices"][0]["message"]["content"] == SHORT_TEXT
    assert curl(url, "-N", "-H", json_type, "-d", json.dumps(chat(stream=True))).endswith("data: [DONE]\n\n")
    assert "application/json" in json.loads(curl(url, "-d", "{}"))["error"]["message"]
    assert json.loads(curl("http://localhost/health"))["status"] == "ok"
