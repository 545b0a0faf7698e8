"""Answers on their way: clients that leave or do not read, errors at any moment, pings, the end of the service.

Sockets are real where it is the socket that counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_fakes import LONG, fake_pair, text_of
from server_fakes import (
    KEY,
    SHORT_TEXT,
    WAIT_S,
    Listening,
    a_client,
    a_worker,
    chat,
    events,
    listening,
    wait_for,
    wait_until_loaded,
)

from edge_nudge.runtime import Pair
from edge_nudge.server import shapes
from edge_nudge.server.app import Limits
from edge_nudge.server.stream import _Inbox
from edge_nudge.worker import Worker, WorkerState

PATH = "/v1/chat/completions"
LONG_TEXT = text_of(LONG).lstrip()


def send(connection: socket.socket, body: Any, path: str = PATH) -> None:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)


def read_until(connection: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        more = connection.recv(4096)
        assert more, data
        data += more
    return data


class Gate:
    """Lets the nudging model's calls through one by one, or all."""

    def __init__(self) -> None:
        self._may_go = threading.Semaphore(0)
        self.is_open = False
        self.n_calls = 0

    def __call__(self) -> Pair:
        pair = fake_pair(LONG)
        evaluate = pair.nudging.evaluate

        def gated(tokens: Any, rows: Any = ()) -> None:
            self.n_calls += 1
            if not self.is_open:
                assert self._may_go.acquire(timeout=WAIT_S)
            evaluate(tokens, rows)

        pair.nudging.evaluate = gated  # type: ignore[method-assign]
        return pair

    def let(self, n_calls: int = 1) -> None:
        self._may_go.release(n_calls)

    def open(self) -> None:
        self.is_open = True
        self._may_go.release(100)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def served_again(server: Listening) -> None:
    """The next request starts at once and is answered whole."""
    with server.client() as client:
        answer = client.post(PATH, json=chat(max_tokens=6)).json()
    assert answer["choices"][0]["message"]["content"].strip() == text_of(LONG[:6]).strip()


# --- leaving (B49)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_while_it_is_answered(tmp_path: Path, is_stream: bool) -> None:
    with listening(tmp_path, delay_s=0.005) as server:
        connection = server.connect()
        send(connection, chat(stream=is_stream))
        if is_stream:
            read_until(connection, b"word1")
        wait_for(lambda: (job := server.worker.describe().job) is not None and job.n_tokens > 2)
        connection.close()
        wait_for(lambda: server.worker.describe().job is None)
        counts = server.worker.describe().counts
        assert (counts["cancelled"], counts["done"]) == (1, 0)
        served_again(server)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_while_its_prompt_is_read(tmp_path: Path, gate: Gate, is_stream: bool) -> None:
    with listening(tmp_path, load=gate) as server:
        connection = server.connect()
        send(connection, chat(stream=is_stream, messages=[{"role": "user", "content": "x" * 3000}]))
        wait_for(lambda: gate.n_calls == 1)
        connection.close()
        wait_for(lambda: (job := server.worker.describe().job) is not None and job.is_cancelled)
        gate.let()
        wait_for(lambda: server.worker.describe().job is None)
        assert gate.n_calls == 1  # of seven batches
        gate.open()
        served_again(server)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_the_queue(tmp_path: Path, gate: Gate, is_stream: bool) -> None:
    with listening(tmp_path, load=gate) as server:
        first, second = server.connect(), server.connect()
        send(first, chat(max_tokens=3))
        wait_for(lambda: gate.n_calls == 1)
        send(second, chat(stream=is_stream))
        wait_for(lambda: server.worker.describe().n_queued == 1)
        second.close()
        wait_for(lambda: server.worker.describe().n_queued == 0)
        assert server.worker.describe().counts["cancelled"] == 1
        gate.open()
        read_until(first, b'"finish_reason": "length"')


def test_a_client_that_leaves_before_its_body_is_there(tmp_path: Path) -> None:
    with listening(tmp_path) as server:
        connection = server.connect()
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{".encode()
        )
        connection.close()
        served_again(server)


def test_a_body_that_never_arrives_is_not_waited_for(tmp_path: Path) -> None:
    with listening(tmp_path, limits=Limits(body_s=0.05)) as server:
        connection = server.connect()
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{".encode()
        )
        assert b" 408 " in read_until(connection, b"}}")
        connection.close()
        served_again(server)


# --- not reading (B56)


def test_a_client_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    with listening(tmp_path) as server:
        connection = server.connect_tcp()
        send(connection, chat(stream=True, max_tokens=300))  # 100 kB
        wait_for(lambda: server.worker.describe().counts["done"] == 1)
        served_again(server)
        assert b'"finish_reason": "length"' in read_until(connection, b"[DONE]")  # and it still gets everything


@pytest.mark.parametrize("is_at_once", [False, True])
def test_a_client_that_does_not_read_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_at_once: bool
) -> None:
    """Is_at_once: a loop so busy that the whole answer waits for it, 130 kB that leave in one send."""
    caplog.set_level(logging.WARNING, "edge_nudge")
    take = _Inbox.take

    async def take_all(self: _Inbox, timeout_s: float | None) -> list[Any]:
        while not server.worker.describe().counts["done"]:
            await asyncio.sleep(0.002)
        return await take(self, timeout_s)

    with listening(tmp_path, limits=Limits(stall_s=0.3)) as server:
        connection = server.connect_tcp()
        with monkeypatch.context() as patch:
            if is_at_once:
                patch.setattr(_Inbox, "take", take_all)
            send(connection, chat(stream=True))
            wait_for(lambda: "dropped" in caplog.text)
        wait_for(lambda: server.worker.describe().job is None)
        data = b""
        while more := connection.recv(1 << 16):
            data += more
        assert b"word1" in data
        assert not data.endswith(b"0\r\n\r\n")  # the end of a whole body
        served_again(server)


# --- errors (B50, B32)


def everything(worker: Worker, *bodies: Any, limits: Limits | None = None) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with a_client(worker, limits=limits) as client:
            return [await client.post(PATH, json=body) for body in bodies]

    return asyncio.run(run())


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("at", range(9))
def test_an_engine_that_fails_at_any_call(at: int, is_stream: bool) -> None:
    calls = iter(range(10_000))
    with a_worker(fail=lambda _: 0 if next(calls) == at else None) as worker:
        failed, after = everything(worker, chat(stream=is_stream), chat())
        assert after.json()["choices"][0]["message"]["content"] == SHORT_TEXT
        if at < 3 or not is_stream:  # the prompt, and the word behind the one that is not whole yet
            assert failed.status_code == 500
            error = failed.json()["error"]
        else:
            assert failed.status_code == 200
            first, *pieces, last = events(failed.text)
            error = last["error"]
            assert first["choices"][0]["delta"]["role"] == "assistant"
            text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in pieces)
            assert text
            assert SHORT_TEXT.startswith(text)
        assert error["type"] == "server_error"
        assert "decode failed" in error["message"]
        assert "Traceback" not in failed.text


def test_scores_that_are_no_numbers_are_an_error_and_no_token() -> None:  # B32
    with a_worker() as worker, worker.borrow() as pair:
        scores = pair.base.scores
        n_rows = iter(range(100))

        def broken(row: int) -> Any:
            found = scores(row)
            if next(n_rows) == 0:
                found.fill(float("nan"))
            return found

        pair.base.scores = broken  # type: ignore[method-assign]
        failed, after = everything(worker, chat(), chat())
        assert failed.status_code == 500
        assert "finite" in failed.json()["error"]["message"]
        assert after.json()["choices"][0]["message"]["content"] == SHORT_TEXT


def test_a_bug_of_ours_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with a_worker() as worker, worker.borrow() as pair:
        answer = pair.answer

        def broken(request: Any) -> Any:
            pair.answer = answer  # type: ignore[method-assign]
            raise ZeroDivisionError("secret detail")

        pair.answer = broken  # type: ignore[method-assign]
        failed, after = everything(worker, chat(stream=True), chat())
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "internal_error"
        assert "secret" not in failed.text
        assert "secret detail" in caplog.text
        assert after.status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_bug_on_the_way_out_is_told_and_ends_its_own_answer(is_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    name = "piece_document" if is_stream else "_usage"
    document = getattr(shapes, name)

    def broken(what: Any) -> Any:
        if next(calls) == (3 if is_stream else 0):
            raise ZeroDivisionError("secret")
        return document(what)

    monkeypatch.setattr(shapes, name, broken)
    with a_worker() as worker:
        failed, after = everything(worker, chat(stream=is_stream), chat())
    assert after.json()["choices"][0]["message"]["content"] == SHORT_TEXT
    error = events(failed.text)[-1]["error"] if is_stream and failed.status_code == 200 else failed.json()["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in failed.text


# --- pings


def test_a_long_prompt_is_accompanied_by_pings(tmp_path: Path, gate: Gate) -> None:
    with listening(tmp_path, load=gate, limits=Limits(first_ping_s=0.02, ping_s=0.02)) as server:
        connection = server.connect()
        send(connection, chat(stream=True, max_tokens=3))
        head = read_until(connection, b": ping\n\n").partition(b": ping")[0]
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'"role": "assistant"' in head
        assert head.count(b"data: ") == 1
        read_until(connection, b": ping\n\n")
        gate.open()
        read_until(connection, b"data: [DONE]\n\n")


def test_an_error_behind_a_ping_is_an_event(tmp_path: Path, gate: Gate) -> None:
    def load() -> Pair:
        pair = gate()

        def broken(row: int) -> Any:
            raise ZeroDivisionError

        pair.nudging.scores = broken  # type: ignore[method-assign]
        return pair

    with listening(tmp_path, load=load, limits=Limits(first_ping_s=0.01, ping_s=0.01)) as server:
        connection = server.connect()
        send(connection, chat(stream=True))
        read_until(connection, b": ping\n\n")
        gate.open()
        read_until(connection, b'"code": "internal_error"')


# --- the queue and the end


def test_a_full_queue_is_a_429(gate: Gate) -> None:
    async def run(worker: Worker) -> httpx.Response:
        async with a_client(worker) as client:
            waiting = []
            for n_queued in (0, 1):
                waiting.append(asyncio.create_task(client.post(PATH, json=chat(max_tokens=2))))
                while (view := worker.describe()).job is None or view.n_queued < n_queued:
                    await asyncio.sleep(0.002)
            refused = await client.post(PATH, json=chat(stream=True))
            gate.open()
            assert [(await task).status_code for task in waiting] == [200, 200]
            return refused

    with a_worker(gate, max_queue=1) as worker:
        refused = asyncio.run(run(worker))
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")


@pytest.mark.parametrize("is_stream", [False, True])
def test_where_the_service_stops(tmp_path: Path, is_stream: bool) -> None:  # B53
    with listening(tmp_path, delay_s=0.005) as server, server.client() as client:
        found: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: found.append(client.post(PATH, json=chat(stream=is_stream))))
        thread.start()
        wait_for(lambda: (job := server.worker.describe().job) is not None and job.n_tokens > 2)
        server.worker.stop()
        thread.join(WAIT_S)
        (response,) = found
        if is_stream:
            *pieces, end, done = events(response.text)
            assert done == "[DONE]"
            assert end["choices"][0]["finish_reason"] == "cancelled"
            text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in pieces)
            assert text
            assert LONG_TEXT.startswith(text.lstrip())
        else:
            assert response.status_code == 503
        assert client.post(PATH, json=chat()).status_code == 503
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json()["error"]["code"] in ("stopping", "stopped")


def test_where_the_service_stops_while_a_prompt_is_scored() -> None:
    is_scoring = threading.Event()

    def load() -> Pair:
        pair = fake_pair(LONG)
        score = pair.score

        def slow(*arguments: Any, is_cancelled: Callable[[], bool], **more: Any) -> Any:
            is_scoring.set()
            wait_for(is_cancelled)
            return score(*arguments, is_cancelled=is_cancelled, **more)

        pair.score = slow  # type: ignore[method-assign]
        return pair

    async def run(worker: Worker, is_stream: bool) -> httpx.Response:
        async with a_client(worker, limits=Limits(first_ping_s=0.01, ping_s=0.01)) as client:
            body = {"prompt": "a b", "echo": True, "logprobs": 1, "stream": is_stream}
            asking = asyncio.create_task(client.post("/v1/completions", json=body))
            await asyncio.to_thread(is_scoring.wait, WAIT_S)
            await asyncio.sleep(0.05)
            worker.stop()
            return await asking

    for is_stream in (True, False):
        is_scoring.clear()
        with a_worker(load) as worker:
            response = asyncio.run(run(worker, is_stream))
        error = events(response.text)[-1]["error"] if is_stream else response.json()["error"]
        assert response.status_code == (200 if is_stream else 503)  # pings had begun
        assert error["type"] == "unavailable_error"


def test_while_the_models_load_requests_are_a_503() -> None:
    may_load = threading.Event()

    def load() -> Pair:
        assert may_load.wait(WAIT_S)
        return fake_pair()

    async def run(worker: Worker) -> None:
        async with a_client(worker) as client:
            for response in (
                await client.post(PATH, json=chat(stream=True)),
                await client.post("/tokenize", json={"content": "hi"}),
                await client.get("/health"),
            ):
                assert response.status_code == 503
                assert response.json()["error"]["type"] == "unavailable_error"
            assert (await client.get("/v1/models")).status_code == 200
            may_load.set()
            await asyncio.to_thread(wait_until_loaded, worker)
            assert (await client.get("/health")).json() == {"status": "ok", "state": "ready"}

    worker = Worker(load)
    worker.start()
    asyncio.run(run(worker))
    worker.stop()
    assert worker.join(WAIT_S)


def test_an_unloaded_pair_is_loaded_by_a_request() -> None:
    with a_worker(keep_alive_s=0.01) as worker:
        wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)

        async def run() -> tuple[httpx.Response, httpx.Response]:
            async with a_client(worker) as client:
                return await client.get("/health"), await client.post(PATH, json=chat())

        health, answer = asyncio.run(run())
        assert health.json() == {"status": "ok", "state": "unloaded"}
        assert answer.json()["choices"][0]["message"]["content"] == SHORT_TEXT
        assert worker.describe().counts["loads"] == 2


def test_clients_beside_each_other_get_their_own_answers(tmp_path: Path) -> None:
    with listening(tmp_path) as server:
        found: dict[int, str] = {}

        def one(n_tokens: int) -> None:
            with server.client() as client:
                text = client.post(PATH, json=chat(stream=True, max_tokens=n_tokens)).text
            found[n_tokens] = "".join(c["choices"][0]["delta"].get("content", "") for c in events(text)[:-1])

        threads = [threading.Thread(target=one, args=(n,)) for n in range(1, 21)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        for n_tokens, text in found.items():
            assert text.strip() == text_of(LONG[:n_tokens]).strip()
        assert len(found) == 20
