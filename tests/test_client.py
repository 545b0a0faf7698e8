"""The client of the local API: what is sent, what comes of any answer, and how a connection ends."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_fakes import SHORT, fake_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_server import ANSWER, END, HEAD, PIECES, ROLE, TOTALS, USAGE, chunk, piece, raw_server, send, stream
from server_fakes import Listening, listening

from edge_nudge.client import AsyncClient, Client
from edge_nudge.core.events import (
    Cause,
    Event,
    FinishDetail,
    Finished,
    FinishReason,
    Handoff,
    HandoffReason,
    ModelUsage,
    Piece,
    Role,
    Usage,
)  # fmt: skip
from edge_nudge.endpoint import Endpoint
from edge_nudge.errors import (
    AccessError,
    BusyError,
    ContextOverflowError,
    EdgeNudgeError,
    EngineError,
    InputError,
    NoServerError,
    QueueFullError,
    ServerError,
    ServerLostError,
)  # fmt: skip

KINDS = ("sync", "async")
NUDGING, BASE = Role.NUDGING, Role.BASE
THE = Piece("The", NUDGING, None, HandoffReason.OPENING, 1)
SKY = Piece(" sky", BASE, 0.75, HandoffReason.CONFIDENT, 2)
TO_BASE = Handoff(BASE, HandoffReason.CONFIDENT, 0.75)


def collect(kind: str, call: str, *arguments: Any, where: dict[str, Any], into: list[Event] | None = None, **more: Any):
    """Make one call with one of the two clients; return its events, or its value."""
    events: list[Event] = [] if into is None else into

    async def do() -> Any:
        async with AsyncClient(**where) as client:
            made = getattr(client, call)(*arguments, **more)
            if not hasattr(made, "__aiter__"):
                return await made
            async for event in made:
                events.append(event)  # noqa: PERF401 - what came before an error has to be there
            return events

    if kind == "async":
        return asyncio.run(do())
    with Client(**where) as client:
        made = getattr(client, call)(*arguments, **more)
        if not hasattr(made, "__next__"):
            return made
        events.extend(made)
        return events


def mock(answer: bytes | Callable[[httpx.Request], httpx.Response], status: int = 200) -> dict[str, Any]:
    """Return the arguments of a client that has this answer to everything."""

    def handle(request: httpx.Request) -> httpx.Response:
        return answer(request) if callable(answer) else httpx.Response(status, content=answer)

    return {"url": "http://localhost:5", "transport": httpx.MockTransport(handle)}


both = pytest.mark.parametrize("kind", KINDS)


# --- answers


@both
def test_an_answer_is_the_events_of_a_pair(kind: str) -> None:
    *events, finished = collect(kind, "chat", "hi", where=mock(stream(*ANSWER)))
    assert events == [THE, TO_BASE, SKY]
    base = ModelUsage(5, 2, 4, 3, 4, 0.5, 0.25, {Cause(name): n for name, n in TOTALS["evaluated"]["base"].items()}, 0)
    nudging = ModelUsage(
        9, 1, 3, 4, 2, 0.125, 0.0625, {Cause(name): n for name, n in TOTALS["evaluated"]["nudging"].items()}, 7
    )
    usage = Usage(base, nudging, 2, 0.25, 1.5)
    assert finished == Finished(FinishReason.STOP, FinishDetail.STOP_STRING, usage, 7, "###")


@both
def test_what_is_behind_the_end_is_not_read(kind: str) -> None:
    events = collect(kind, "chat", "hi", where=mock(stream(*ANSWER) + b"data: {\n\n"))
    assert isinstance(events[-1], Finished)
    assert len(events) == 4


@settings(max_examples=50)
@given(st.lists(st.integers(0, len(stream(*ANSWER)))))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    data = stream(*ANSWER)
    places = [0, *sorted(cuts), len(data)]

    def answer(request: httpx.Request) -> httpx.Response:
        parts = [data[start:end] for start, end in pairwise(places)]
        return httpx.Response(200, content=iter(parts))

    assert collect("sync", "chat", "hi", where=mock(answer))[:-1] == [THE, TO_BASE, SKY]


def test_handoffs_stand_between_authors() -> None:
    again = piece("!", "base", "confident", 0.5)
    events = collect("sync", "chat", "hi", where=mock(stream(*PIECES, again, PIECES[0], END, USAGE)))
    kinds = "".join("P" if isinstance(event, Piece) else "H" if isinstance(event, Handoff) else "F" for event in events)
    assert kinds == "PHPPHPF"


# --- what is sent


def sent(call: str, *arguments: Any, **more: Any) -> tuple[str, str, dict[str, Any]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=stream(*ANSWER))

    collect("sync", call, *arguments, where={**mock(answer), "key": "k"}, **more)
    assert seen[0].headers["authorization"] == "Bearer k"
    return seen[0].method, seen[0].url.path, json.loads(seen[0].content)


DEFAULTS = {"temperature": 0.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
STREAMED = {"stream": True}


def test_a_plain_question_leaves_the_nudging_to_the_server() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **DEFAULTS, **STREAMED}
    assert sent("chat", "hi") == ("POST", "/v1/chat/completions", body)


def test_every_setting_is_sent() -> None:
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]
    sampling = {"top_k": 3, "top_p": 0.5, "min_p": 0.25, "seed": 7}
    nudge = {
        "rule": "margin", "gamma": 0.25, "lookahead": 2, "end_prob": 0.5, "max_turns": 9, "loop_guard": False,
        "verify_ahead": False,
    }  # fmt: skip
    given_ones = {**sampling, **nudge, "temp": 0.5, "max_tokens": 12, "stop": "###", "logprobs": 2}
    _, _, body = sent("chat", messages, **given_ones)
    assert body == {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5, "max_tokens": 12, "stop": ["###"], "logprobs": True, "top_logprobs": 2,
        **sampling, **nudge, **STREAMED,
    }  # fmt: skip


@pytest.mark.parametrize(("prompt", "as_sent"), [("Once", "Once"), ((5, 6), [5, 6])])
def test_a_completion_is_sent_as_it_is(prompt: Any, as_sent: Any) -> None:
    assert sent("complete", prompt, logprobs=1, max_tokens=3) == (
        "POST", "/v1/completions", {"prompt": as_sent, "logprobs": 1, "max_tokens": 3, **DEFAULTS, **STREAMED},
    )  # fmt: skip


@both
def test_a_bad_setting_is_refused_before_anything_is_sent(kind: str) -> None:
    with pytest.raises(InputError, match="gamma"):
        collect(kind, "chat", "hi", gamma="x", where=mock(lambda request: pytest.fail("it was sent")))


# --- calls that come whole


@both
def test_short_calls(kind: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"null")
        match request.url.path:
            case "/tokenize":
                return httpx.Response(200, json={"tokens": [1, len(body["content"])], "extra": body.get("model")})
            case "/detokenize":
                return httpx.Response(200, json={"content": "t" * len(body["tokens"])})
            case "/health":
                return httpx.Response(503, json={"error": {"code": "loading"}})
            case "/slots":
                return httpx.Response(200, json=[{"id": 0}])
            case path:
                return httpx.Response(200, json={"data": [{"id": path}]})

    where = mock(answer)
    assert collect(kind, "tokenize", "abc", where=where, model="nudging") == [1, 3]
    assert collect(kind, "detokenize", [1, 2], where=where) == "tt"
    assert collect(kind, "health", where=where) == "loading"
    assert collect(kind, "slots", where=where) == [{"id": 0}]
    assert collect(kind, "models", where=where) == [{"id": "/v1/models"}]


@both
@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"<html>", b'{"data": 7}', b'{"data": [7]}', b"\xff"])
def test_another_servers_answer_is_told_so(kind: str, body: bytes) -> None:
    with pytest.raises(ServerError, match="answered otherwise"):
        collect(kind, "models", where=mock(body))


# --- errors


def error_body(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": None, **more}}).encode()


@both
@pytest.mark.parametrize("call", ["chat", "tokenize"])
@pytest.mark.parametrize(
    ("status", "kind_of_error"),
    [
        (400, InputError), (404, InputError), (413, InputError), (415, InputError), (401, AccessError),
        (403, AccessError), (429, QueueFullError), (500, EngineError), (503, BusyError), (502, ServerError),
    ],
)  # fmt: skip
def test_an_error_keeps_its_class_and_message(
    kind: str, call: str, status: int, kind_of_error: type[EdgeNudgeError]
) -> None:
    with pytest.raises(EdgeNudgeError) as raised:
        collect(kind, call, "hi", where=mock(error_body("what to do"), status))
    assert (type(raised.value), str(raised.value)) == (kind_of_error, "what to do")


@both
def test_an_overflow_keeps_its_numbers(kind: str) -> None:
    body = error_body(
        "too long", type="exceed_context_size_error", code="context_length_exceeded", n_prompt_tokens=5000, n_ctx=4096,
        model="base",
    )  # fmt: skip
    with pytest.raises(ContextOverflowError) as raised:
        collect(kind, "chat", "hi", where=mock(body, 400))
    assert (raised.value.model, raised.value.n_prompt, raised.value.n_ctx) == ("base", 5000, 4096)
    assert "5000 tokens for the base model, its context is 4096" in str(raised.value)


@pytest.mark.parametrize("body", [b"<h1>no</h1>", b"{}", b"[]", b'{"error": "text"}', b'{"error": {}}', b"\xff\xfe"])
def test_a_refusal_that_is_not_ours_is_quoted(body: bytes) -> None:
    with pytest.raises(ServerError, match="status 404"):
        collect("sync", "chat", "hi", where=mock(body, 404))


@both
def test_an_error_in_the_middle_is_raised_there(kind: str) -> None:
    broken = {"error": {"message": "native call failed", "type": "server_error", "param": None, "code": None}}
    events: list[Event] = []
    with pytest.raises(EngineError, match="native call failed"):
        collect(kind, "chat", "hi", where=mock(stream(ROLE, PIECES[0], broken)), into=events)
    assert events == [THE]


@both
@pytest.mark.parametrize("data", [b"", stream(ROLE, done=False), stream(ROLE, *PIECES, done=True)])
def test_a_stream_without_an_end_was_broken_off(kind: str, data: bytes) -> None:
    with pytest.raises(ServerLostError, match="broke an answer off"):
        collect(kind, "chat", "hi", where=mock(data))


BAD_PIECE = {"author": "somebody", "top_prob": None, "reason": "opening", "n_tokens": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"data: {\n\n",
        b"data: 7\n\n",
        stream({}),
        stream(chunk({"delta": {"content": "no author"}})),
        stream(chunk({"delta": {"content": "x"}}, nudge=BAD_PIECE)),
        stream(*PIECES, chunk({"delta": {}, "finish_reason": "stop"}), USAGE),
        stream(*PIECES, chunk({"delta": {}, "finish_reason": "stop"}, nudge={**TOTALS, "evaluated": {}}), USAGE),
    ],
)
def test_another_servers_stream_is_told_so(data: bytes) -> None:
    with pytest.raises(ServerError, match="is it another server"):
        collect("sync", "chat", "hi", where=mock(data))


# --- where the server is


# httpcore 1.0.9 leaves a Unix socket that could not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@both
def test_nobody_listens(kind: str, tmp_path: Any) -> None:
    for call in ("chat", "tokenize"):
        with pytest.raises(NoServerError, match="edge-nudge serve"):
            collect(kind, call, "hi", where={"socket": tmp_path / "none"})
        with pytest.raises(NoServerError, match=r"127\.0\.0\.1:9"):
            collect(kind, call, "hi", where={"url": "http://127.0.0.1:9/v1/"})
    gc.collect()


def test_no_server_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(NoServerError, match="no server runs: start one with edge-nudge serve"):
        Client()


def test_places() -> None:
    url = Endpoint(pid=1, url="http://127.0.0.1:5", key="k", model="m", started=1.0)
    with Client(url) as client:
        assert (client.target.url, client.target.key, client.target.socket) == ("http://127.0.0.1:5", "k", None)
    with Client(url.model_copy(update={"socket": "/s"})) as client:
        assert (client.target.socket, client.target.key, client.target.address) == ("/s", None, "/s")
    for wrong in ({"socket": "/s", "url": "http://a"}, {"url": "localhost:5"}, {"url": "unix:///s"}):
        with pytest.raises(InputError):
            Client(**wrong)


def test_the_environments_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with raw_server(whole) as server, Client(socket=server.path) as client:
        assert isinstance(client.chat("hi").finish(), Finished)


# --- real connections


def whole(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    send(connection, stream(*ANSWER))
    send(connection, b"")


@both
def test_a_server_that_goes_away_is_told(kind: str) -> None:
    def handle(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        send(connection, stream(ROLE, PIECES[0], done=False))

    events: list[Event] = []
    with raw_server(handle) as server, pytest.raises(ServerLostError, match="in the middle of an answer"):
        collect(kind, "chat", "hi", where={"socket": server.path}, into=events)
    assert events == [THE]
    with raw_server(lambda connection: None) as server, pytest.raises(ServerLostError, match="before it answered"):
        collect(kind, "chat", "hi", where={"socket": server.path})


def until_gone(connection: socket.socket) -> None:
    """Send one piece, then wait for the client to leave."""
    connection.sendall(HEAD)
    send(connection, stream(ROLE, PIECES[0], done=False))
    assert connection.recv(1) == b""


def test_leaving_early_closes_the_connection() -> None:
    with raw_server(until_gone) as server, Client(socket=server.path) as client:
        with client.chat("hi") as answer:
            assert next(answer) == THE
        with pytest.raises(StopIteration):
            next(answer)


def test_leaving_early_closes_the_connection_async() -> None:
    async def leave(path: str) -> None:
        async with AsyncClient(socket=path) as client:
            async with client.chat("hi") as answer:
                assert await anext(answer) == THE
            task = asyncio.create_task(client.chat("hi").finish())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with raw_server(until_gone) as server:
        asyncio.run(leave(server.path))
        assert len(server.requests) == 2


def mute(connection: socket.socket) -> None:
    assert connection.recv(1) == b""


@pytest.fixture(params=[until_gone, mute])
def waiting(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that lets its client wait for more, or for anything."""
    with raw_server(request.param) as server:
        yield server.path


@both
def test_a_cancel_from_another_thread_ends_the_answer(kind: str, waiting: str) -> None:
    def cancel_soon(answer: Any) -> threading.Timer:
        timer = threading.Timer(0.2, answer.cancel)
        timer.start()
        return timer

    async def ask() -> list[Event]:
        async with AsyncClient(socket=waiting) as client:
            answer = client.chat("hi", seed=5)
            timer = cancel_soon(answer)
            events = [event async for event in answer]
            timer.join()
            return events

    if kind == "async":
        events = asyncio.run(ask())
    else:
        with Client(socket=waiting) as client:
            answer = client.chat("hi", seed=5)
            timer = cancel_soon(answer)
            events = list(answer)
            timer.join()
            answer.cancel()  # too late, and harmless
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.detail, finished.seed) == (FinishReason.CANCELLED, FinishDetail.CANCELLED, 5)
    assert finished.usage.n_completion == len(events) - 1
    assert finished.usage.total_s > 0


def test_a_cancel_before_the_answer_is_asked_for(waiting: str) -> None:
    with Client(socket=waiting) as client:
        answer = client.chat("hi")
        answer.cancel()
        assert answer.finish().reason is FinishReason.CANCELLED


# --- with the server itself


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Listening]:
    with listening(tmp_path, script=SHORT) as server:
        yield server


def pieces_of(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Piece)]


@both
@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_pieces_and_scores_are_those_of_the_pair(kind: str, logprobs: int | None, served: Listening) -> None:
    with fake_pair(SHORT) as pair:
        expected = list(pair.stream("hi", logprobs=logprobs, temp=0.5, seed=3))
        raw = list(pair.stream("The", raw_prompt="The", logprobs=logprobs, max_tokens=5))
    where = {"socket": served.socket_path}
    found = collect(kind, "chat", "hi", where=where, logprobs=logprobs, temp=0.5, seed=3)
    assert pieces_of(found) == pieces_of(expected)
    ends = [replace(events[-1], usage=without_times(events[-1].usage)) for events in (found, expected)]
    assert ends[0] == ends[1]
    completed = collect(kind, "complete", "The", where=where, logprobs=logprobs, max_tokens=5)
    assert pieces_of(completed) == pieces_of(raw)


def without_times(usage: Usage) -> Usage:
    models = [replace(usage.of(role), native_s=0.0, prompt_s=0.0) for role in Role]
    return Usage(*models, usage.n_handoffs, None, 0.0)


@both
@pytest.mark.parametrize("n_top", [0, 3])
@pytest.mark.parametrize("prompt", ["The sky is \u00e9\U0001f600", (70, 71, 200)])
def test_scores_of_a_prompt_are_those_of_the_pair(kind: str, n_top: int, prompt: Any, served: Listening) -> None:
    with fake_pair(SHORT) as pair:
        expected = pair.score(prompt, n_top)
    found = collect(kind, "score", prompt, n_top, where={"socket": served.socket_path})
    assert [(score.data, score.id, score.logprob) for score in found] == [
        (score.data, score.id, score.logprob) for score in expected
    ]
    if n_top:
        assert [dict(score.top) for score in found] == [dict(score.top) for score in expected]


@both
def test_the_short_calls_of_the_server(kind: str, served: Listening) -> None:
    where = {"socket": served.socket_path}
    assert collect(kind, "health", where=where) == "ready"
    ids = collect(kind, "tokenize", "The sky", where=where)
    assert collect(kind, "detokenize", ids, where=where) == "The sky"
    assert collect(kind, "models", where=where)[0]["id"] == "fake"
    assert collect(kind, "slots", where=where)[0]["n_queued"] == 0
    with pytest.raises(ContextOverflowError):
        collect(kind, "chat", "x" * 9000, where=where)
    served.worker.stop()
    with pytest.raises(BusyError):
        collect(kind, "chat", "hi", where=where)
