"""The life of a server in this process: what happens in which order, with a small app and a scripted worker."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from edge_nudge.endpoint import Endpoint, can_connect, read_endpoint, read_endpoints
from edge_nudge.errors import ModelFileError
from edge_nudge.server import life as lives
from edge_nudge.server.life import Life, with_shutdown
from edge_nudge.server.listen import Listeners, Wanted, open_listeners

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Unix sockets")
KEY = "0123456789abcdef"
BIG = b"x" * (4 << 20)  # more than the kernel and uvicorn take from a reader that does not read


class ScriptedWorker:
    """Does what it is told; `job` is what runs."""

    def __init__(self, load: Callable[[], Any] = lambda: None) -> None:
        self.job: object | None = None
        self.stops: list[float] = []
        self.is_hanging = False  # in native code: nothing stops it
        self.cancelled = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(load,))

    @staticmethod
    def _run(load: Callable[[], Any]) -> None:
        try:
            load()
        except ModelFileError:
            return

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace_s: float = 0.0) -> None:
        self.stops.append(grace_s)
        if grace_s <= 0:
            self.cancelled.set()

    def join(self, timeout_s: float | None = None) -> bool:
        if self._thread.ident is not None:
            self._thread.join()
        return not self.is_hanging

    def describe(self) -> Any:
        return SimpleNamespace(job=self.job, n_queued=0, state="ready")


class Running:
    """A server in a thread."""

    def __init__(self, listeners: Listeners, *, grace_s: float = 5.0, load: Callable[[], Any] = lambda: None) -> None:
        self.said: list[str] = []
        self.listeners = listeners
        self.endpoint = Endpoint(
            pid=os.getpid(), socket=listeners.socket_path, url=listeners.url, key=listeners.key, model="m", started=1.0
        )
        self.life = Life(listeners, self.endpoint, grace_s=grace_s, say=self._hear)
        self.worker = ScriptedWorker(self.life.watch(load))
        self.outcome: bool | BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _hear(self, line: str) -> None:
        if not line.startswith("ready after"):  # test_serve.py waits for that one
            self.said.append(line)

    def _run(self) -> None:
        try:
            self.outcome = self.life.run(self.app, self.worker)
        except BaseException as error:
            self.outcome = error

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every path at once, but for /stream, whose end comes with a cancel or `job` None."""
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/stream":
            self.worker.job = object()
            self.beside = asyncio.ensure_future(asyncio.sleep(3600))
            await send({"type": "http.response.body", "body": b"first ", "more_body": True})
            while self.worker.job is not None and (self.worker.is_hanging or not self.worker.cancelled.is_set()):
                await asyncio.sleep(0.01)
            self.worker.job = self.worker.job if self.worker.is_hanging else None
        if scope["path"] == "/big":
            await send({"type": "http.response.body", "body": BIG, "more_body": True})
        await send({"type": "http.response.body", "body": b"last"})

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=self.listeners.socket_path, verify=False)
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=20)

    def wait(self) -> bool | BaseException | None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(tmp_path))
    started: list[Running] = []

    def start_one(wanted: Wanted = Wanted(), **settings: Any) -> Running:  # noqa: B008
        one = Running(open_listeners(wanted), **settings)
        started.append(one)
        one.thread.start()
        return one

    yield start_one
    for one in started:
        one.worker.is_hanging, one.worker.job = False, None
        one.life.stop(is_now=True)
        one.thread.join(20)


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """What -v would show."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("edge_nudge"), Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def nothing_is_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_the_address_is_known_before_anything_is_loaded(start: Start, tmp_path: Path) -> None:
    go_on = threading.Event()
    found = []

    def load() -> None:
        found.append(read_endpoint())
        go_on.wait(10)

    server = start(load=load)
    try:
        with server.client() as client:
            assert client.get("/").text == "last"  # while it loads
            assert not any(name == "server" for name in client.get("/").headers)
    finally:
        go_on.set()
    assert found == [server.endpoint]
    server.life.stop()
    assert server.wait() is True
    assert nothing_is_left(tmp_path)


def test_a_first_load_that_fails_ends_the_server(start: Start, tmp_path: Path) -> None:
    def load() -> None:
        raise ModelFileError("it is damaged")

    server = start(load=load)
    error = server.wait()
    assert isinstance(error, ModelFileError)
    assert server.said == []
    assert nothing_is_left(tmp_path)


def test_a_later_load_that_fails_does_not(start: Start) -> None:
    server = start()
    loads = iter([None, ModelFileError("it has gone")])

    def load() -> None:
        error = next(loads)
        if error:
            raise error

    watched = server.life.watch(load)
    watched()
    with pytest.raises(ModelFileError):
        watched()
    with server.client() as client:
        assert client.get("/").text == "last"


def test_a_running_answer_may_end_within_the_grace_time(start: Start, tmp_path: Path) -> None:
    server = start()
    with server.client() as client, client.stream("GET", "/stream") as answer:
        text = answer.iter_text()
        assert next(text) == "first "
        server.life.stop()
        wait_until(lambda: server.said)
        assert server.said == ["stopping: 1 request has up to 5 s to end; a second signal ends at once"]
        assert can_connect(server.endpoint.socket or "")  # who comes now is told so, and not left in the dark
        server.worker.job = None
        assert "".join(text) == "last"
    assert server.wait() is True
    assert server.worker.stops[0] > 4  # the grace time is the worker's too
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("is_now", [False, True])
def test_what_does_not_end_in_time_is_cancelled_and_still_heard(start: Start, is_now: bool) -> None:
    server = start(grace_s=60.0 if is_now else 0.3)
    with server.client() as client, client.stream("GET", "/stream") as answer:
        text = answer.iter_text()
        assert next(text) == "first "
        server.life.stop(is_now=is_now)
        assert "".join(text) == "last"
    assert server.wait() is True
    assert server.worker.stops[-1] == 0.0


def test_the_earliest_moment_counts(start: Start) -> None:
    server = start(grace_s=60.0)
    with server.client() as client, client.stream("GET", "/stream") as answer:
        text = answer.iter_text()
        next(text)
        server.life.stop()
        server.life.stop(is_now=True)
        server.life.stop()
        assert "".join(text) == "last"
    assert server.wait() is True


def test_a_native_call_that_does_not_come_back_holds_nobody_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(lives, "_LAST_S", 0.2)
    monkeypatch.setattr(lives, "_LAST_WORDS_S", 1)
    server = start(grace_s=0.0)
    with server.client() as client, client.stream("GET", "/stream") as answer:
        text = answer.iter_text()
        next(text)
        server.worker.is_hanging = True
        server.life.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            "".join(text)
    assert server.wait() is False
    assert nothing_is_left(tmp_path)
    assert server.beside.cancelled()
    assert [record for record in log if record.levelno > logging.INFO] == []


def test_a_stop_before_the_start_loads_nothing(start: Start, tmp_path: Path) -> None:
    one = Running(open_listeners(Wanted()), load=lambda: pytest.fail("loaded"))
    one.life.stop()
    assert one.life.run(one.app, one.worker) is True
    assert nothing_is_left(tmp_path)


def test_a_slow_reader_of_a_finished_answer_has_the_grace_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "_LAST_WORDS_S", 1)
    server = start()
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(server.endpoint.socket or "")
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        seen = slow.recv(4096)
        server.life.stop()
        wait_until(lambda: server.said)
        time.sleep(1.3)  # longer than the last words have
        while data := slow.recv(1 << 20):
            seen += data
        assert b"last" in seen
        assert len(seen) > len(BIG)
    assert server.wait() is True


def test_what_is_not_ours_stays(start: Start, tmp_path: Path) -> None:
    server = start()
    wait_until(lambda: read_endpoints())
    other = server.endpoint.model_copy(update={"started": 2.0})
    (tmp_path / "endpoint.json").write_text(other.model_dump_json())
    os.unlink(server.endpoint.socket or "")
    Path(server.endpoint.socket or "").write_text("precious")
    server.life.stop()
    server.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge-nudge.sock", "endpoint.json"]


# --- logs


def test_access_lines_and_clients_faults_are_for_those_who_ask(start: Start, log: list[logging.LogRecord]) -> None:
    server = start()
    with server.client() as client:
        client.get("/")
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(server.endpoint.socket or "")
        rude.sendall(b"\x00garbage\r\n\r\n")
        assert b"400" in rude.recv(4096)
    assert [(record.levelname, record.getMessage()) for record in log] == [
        ("INFO", "Invalid HTTP request received.")  # a warning of uvicorn's: whoever can connect could fill a log
    ]


def test_access_lines_with_v(log: list[logging.LogRecord]) -> None:
    lives._config(lambda *_: None, logs_access=True)  # type: ignore[arg-type,return-value]
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "c", "GET", "/x", "1.1", 200)
    assert [record.getMessage() for record in log] == ['c - "GET /x HTTP/1.1" 200']


# --- POST /shutdown


def ask(
    scope: dict[str, Any], body: bytes = b"", *, headers: dict[str, str] | None = None, key: str | None = KEY
) -> tuple[int, dict[str, Any], list[bool]]:
    """Return the status, the answer, and the stops that were asked for."""
    stops: list[bool] = []
    sent: list[dict[str, Any]] = []
    life = SimpleNamespace(
        endpoint=SimpleNamespace(key=key), stop=lambda *, is_now: stops.append(is_now), remaining_s=lambda: 10.0
    )

    async def app(*_: Any) -> None:
        sent.append({"status": 999})
        sent.append({"body": b"{}"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": len(body) > 5000}

    async def send(message: Any) -> None:
        sent.append(message)

    full = {
        "type": "http", "method": "POST", "path": "/shutdown", "server": ("/run/s", None),
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()], **scope,
    }  # fmt: skip
    asyncio.run(with_shutdown(app, life)(full, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], json.loads(sent[1]["body"]), stops


JSON = {"content-type": "application/json"}
TCP = {"server": ("127.0.0.1", 80)}


@pytest.mark.parametrize(("body", "is_now"), [(b"", False), (b"{}", False), (b'{"now": true}', True)])
def test_whoever_has_the_socket_may_stop_the_server(body: bytes, is_now: bool) -> None:
    status, answer, stops = ask({}, body, headers=JSON)
    assert (status, stops) == (202, [is_now])
    assert answer == {"status": "stopping", "pid": os.getpid(), "within_s": 17.0}


@pytest.mark.parametrize(
    ("scope", "headers", "status"),
    [
        ({"method": "GET"}, JSON, 405),
        ({}, {}, 415),
        ({}, {"content-type": "text/plain"}, 415),
        ({}, {"content-type": "application/x-www-form-urlencoded"}, 415),
        (TCP, JSON, 401),
        (TCP, {**JSON, "authorization": "Bearer wrong"}, 401),
        (TCP, {**JSON, "authorization": KEY}, 401),
        (TCP, {**JSON, "authorization": f"Bearer {KEY}"}, 202),
        (TCP, {**JSON, "authorization": f"bearer {KEY}"}, 202),
        ({"server": None}, JSON, 401),
        ({"path": "/shutdown/"}, JSON, 999),
        ({"path": "/other"}, JSON, 999),
        ({"type": "lifespan"}, JSON, 999),
    ],
)
def test_nobody_else_may(scope: dict[str, Any], headers: dict[str, str], status: int) -> None:
    found, answer, stops = ask(scope, b"{}", headers=headers)
    assert found == status
    assert len(stops) == (status == 202)
    assert status in (202, 999) or set(answer["error"]) == {"message", "type", "param", "code"}


def test_without_a_key_tcp_cannot() -> None:
    assert ask(TCP, b"{}", headers={**JSON, "authorization": "Bearer "}, key=None)[0] == 401


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"null", b'{"now": 1}', b"\xff", b"[" * 1000, b" " * 6000])
def test_a_body_that_makes_no_sense(body: bytes) -> None:
    status, _, stops = ask({}, body, headers=JSON)
    assert (status, stops) == (400, [])


def test_over_a_real_socket(start: Start, tmp_path: Path) -> None:
    server = start(Wanted(tcp=("127.0.0.1", 0)))
    with httpx.Client(base_url=server.listeners.url or "", trust_env=False) as client:
        assert client.post("/shutdown", json={}).status_code == 401
        headers = {"authorization": f"Bearer {server.listeners.key}"}
        assert client.post("/shutdown", json={}, headers=headers).status_code == 202
    assert server.wait() is True
    assert server.said == ["stopping"]
    assert nothing_is_left(tmp_path)
