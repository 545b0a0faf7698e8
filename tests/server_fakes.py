"""A served fake pair: in this process through ASGI, or behind real sockets.

A server on sockets runs uvicorn in a thread of the test; what it logs is kept, so that a traceback can be looked for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cli_fakes import LONG, SHORT, Script, fake_pair, text_of

from edge_nudge.runtime import Pair
from edge_nudge.server.app import Limits, Served, make_app
from edge_nudge.worker import Worker, WorkerState

WAIT_S = 20.0
SERVED = Served(id="fake", aliases=("fake-latest",), created=1_700_000_000)
KEY = "a-key"
QUESTION = [{"role": "user", "content": "What colour is the sky?"}]
SHORT_TEXT = text_of(SHORT)


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def wait_until_loaded(worker: Worker) -> None:
    """Wait for the first load to end well."""
    wait_for(lambda: worker.describe().state is not WorkerState.LOADING)
    assert worker.describe().error is None


@contextmanager
def a_worker(load: Callable[[], Pair] | None = None, *, script: Script = SHORT, **settings: Any) -> Iterator[Worker]:
    """A worker with a loaded fake pair; settings that the worker does not know go to the pair."""
    own = {name: settings.pop(name) for name in ("max_queue", "keep_alive_s") if name in settings}
    worker = Worker(load or (lambda: fake_pair(script, **settings)), **own)
    worker.start()
    wait_until_loaded(worker)
    try:
        yield worker
    finally:
        worker.stop()
        assert worker.join(WAIT_S)


def reached(app: Any, *, is_tcp: bool = False) -> Any:
    """Return the application as it is over the Unix socket, or over TCP."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        server = ("127.0.0.1", 4711) if is_tcp else ("/run/edge-nudge.sock", None)
        await app({**scope, "server": server}, receive, send)

    return wrapped


@asynccontextmanager
async def a_client(
    worker: Worker, served: Served = SERVED, limits: Limits | None = None, *, is_tcp: bool = False, **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application itself, without sockets: as over the Unix socket, or as over TCP."""
    app = reached(make_app(worker, served=served, limits=limits), is_tcp=is_tcp)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:4711", headers=headers, timeout=WAIT_S
    ) as client:
        yield client


def ask(path: str, body: Any = None, *, script: Script = SHORT, **settings: Any) -> httpx.Response:
    """One request to a served fake pair: POST with a body (bytes as they are), else GET."""

    async def run(worker: Worker) -> httpx.Response:
        async with a_client(worker) as client:
            if body is None:
                return await client.get(path)
            headers = {"content-type": "application/json"}
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await client.post(path, content=content, headers=headers)

    with a_worker(script=script, **settings) as worker:
        return asyncio.run(run(worker))


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": QUESTION, **fields}


def events(text: str) -> list[Any]:
    """Return the data of server-sent events: objects, and the string that ends them; pings are left out."""
    found: list[Any] = []
    for block in text.split("\n\n")[:-1]:
        if block == ": ping":
            continue
        assert block.startswith("data: "), block
        assert "\n" not in block
        data = block.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    assert text == "" or text.endswith("\n\n")
    return found


@dataclass
class Listening:
    """A server on sockets of this test."""

    worker: Worker
    socket_path: Path
    port: int
    connections: ExitStack  # closed with the server, whatever becomes of the test

    def client(self, **settings: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket_path))
        return httpx.Client(transport=transport, base_url="http://server", timeout=WAIT_S, **settings)

    def connect_tcp(self) -> socket.socket:
        connection = self.connections.enter_context(socket.socket(socket.AF_INET))
        connection.settimeout(WAIT_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def connect(self) -> socket.socket:
        connection = self.connections.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(WAIT_S)
        connection.connect(str(self.socket_path))
        return connection


@contextmanager
def listening(
    folder: Path, *, served: Served = SERVED, limits: Limits | None = None, **settings: Any
) -> Iterator[Listening]:
    """Serve a fake pair on a Unix socket and on loopback TCP."""
    settings.setdefault("script", LONG)
    path = folder / "s.sock"
    unix = socket.socket(socket.AF_UNIX)
    # Without the protocol asyncio does not know it for TCP, and small answers wait 40 ms for an acknowledgement.
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    unix.bind(str(path))
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that a reader who does not read is felt soon
    tcp.bind(("127.0.0.1", 0))
    with ExitStack() as connections, a_worker(**settings) as worker:
        app = make_app(worker, served=replace(served, key=served.key or KEY), limits=limits)
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[unix, tcp])), daemon=True)
        thread.start()
        try:
            until = time.monotonic() + WAIT_S
            while not server.started:
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.002)
            yield Listening(worker, path, tcp.getsockname()[1], connections)
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            unix.close()
            tcp.close()
            assert not thread.is_alive()
