"""The life of a server: from open sockets through loading and serving to the last answer.

Owns the order of starting and stopping, the endpoint file, and POST /shutdown. Never handles a signal itself, never
prints: `say` gets lines for the user, and what a signal means is decided by the caller, who calls `stop`.

1. Sockets are open and the endpoint file is written before anything is loaded.
2. A first load that fails ends the server; its error is raised by `run`.
3. A stop takes no new requests, lets running ones go on for the grace time, cancels the rest so that each ends with a
   final event, and then closes the sockets. Own sockets answer 503 until then; inherited ones are left to systemd.
4. Names (socket, lock, endpoint file) are removed before the sockets are closed, whatever happened.
5. POST /shutdown is for whoever has the Unix socket or the key, and for no page of a browser: it must be JSON.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import uvicorn

from edge_nudge import endpoint as endpoints
from edge_nudge.endpoint import Endpoint

if TYPE_CHECKING:
    from edge_nudge.server.listen import Listeners

DEFAULT_GRACE_S = 10.0
_LAST_S = 5.0  # for a native call to come back after a cancel
_LAST_WORDS_S = 2  # for what is on its way to clients then
_TICK_S = 0.02
_KEEP_CONNECTION_S = 60
_MOST_BODY_BYTES = 1024

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)


class Stoppable(Protocol):
    """What the life needs of a worker."""

    def start(self) -> None: ...

    def stop(self, grace_s: float = 0.0) -> None: ...

    def join(self, timeout_s: float | None = None) -> bool: ...

    def describe(self) -> Any: ...


def _nothing() -> None:
    return None


class Life:
    """One server. `stop` and `remove_names` may be called from any thread."""

    def __init__(
        self, listeners: Listeners, endpoint: Endpoint, *, grace_s: float = DEFAULT_GRACE_S, say: Callable[[str], None]
    ) -> None:
        self.listeners, self.endpoint = listeners, endpoint
        self.error: BaseException | None = None  # of the first load
        self._grace_s = grace_s
        self._say = say
        self._lock = threading.Lock()
        self._has_loaded = False
        self._stop_by: float | None = None  # when running answers are cancelled; None: nobody has asked to stop
        self._end_by = 0.0  # when what is still running is left to the end of the process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()

    def watch(self, load: Callable[[], T]) -> Callable[[], T]:
        """Return `load` for the worker; a first load that fails ends the server."""

        def watched() -> T:
            try:
                loaded = load()
            except BaseException as error:
                if not self._has_loaded:
                    self.error = error
                    self.stop(is_now=True)
                raise
            self._has_loaded = True
            return loaded

        return watched

    def stop(self, *, is_now: bool = False) -> None:
        """Ask the server to end, within the grace time or now; the earliest moment asked for counts."""
        stop_by = time.monotonic() + (0.0 if is_now else self._grace_s)
        with self._lock:
            self._stop_by = stop_by if self._stop_by is None else min(stop_by, self._stop_by)
            loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it is closed: the end has come
                loop.call_soon_threadsafe(self._asked.set)

    def remove_names(self) -> None:
        """Remove what tells others about this server."""
        endpoints.remove_if_ours(self.endpoint)
        self.listeners.remove_names()

    def run(
        self, app: App, worker: Stoppable, *, on_listening: Callable[[], object] = _nothing, logs_access: bool = False
    ) -> bool:
        """Serve until `stop`; True if the worker has ended as well, False where a native call holds it still.

        `on_listening` is called when clients can find the server, before anything is loaded.
        Raises what that raises, what the first load raised, RuntimeDirError, OSError.
        """
        is_ended = True
        try:
            endpoints.write_endpoint(self.endpoint)
            on_listening()
            if self._stop_by is not None:  # asked for already: nothing is loaded for that
                return True
            worker.start()
            # On Windows the usual loop takes signals for itself; sockets are all we need.
            loop = asyncio.SelectorEventLoop()
            try:
                asyncio.set_event_loop(loop)
                loop.run_until_complete(self._serve(loop, with_shutdown(app, self), worker, logs_access))
            finally:
                _settle(loop)
                asyncio.set_event_loop(None)
                loop.close()
        finally:
            self.remove_names()
            self.listeners.close()
            worker.stop()
            # A model that is being loaded cannot be stopped; one that failed to load has nothing left to do.
            is_idle = self._has_loaded or self.error is not None
            is_ended = worker.join(max(_TICK_S, self._end_by - time.monotonic()) if is_idle else _TICK_S)
        if self.error is not None:
            raise self.error
        return is_ended

    async def _serve(self, loop: asyncio.AbstractEventLoop, app: App, worker: Stoppable, logs_access: bool) -> None:
        with self._lock:
            self._loop = loop
            if self._stop_by is not None:
                self._asked.set()
        server = _Server(_config(app, logs_access=logs_access))
        serving = asyncio.ensure_future(server.serve(sockets=self.listeners.sockets))
        asking = asyncio.ensure_future(self._asked.wait())
        telling = asyncio.ensure_future(self._tell_when_ready(worker))
        try:
            await asyncio.wait((serving, asking), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await self._drain(server, worker)
                self.remove_names()
                server.should_exit = True
            await serving
        finally:
            for task in (asking, telling):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _tell_when_ready(self, worker: Stoppable) -> None:
        """Say when requests are taken: whoever waits for that line must not be refused."""
        started = time.monotonic()
        while worker.describe().state == "loading" or not self._has_loaded:
            await asyncio.sleep(_TICK_S)
        if self._stop_by is None:
            self._say(f"ready after {time.monotonic() - started:.1f} s")

    async def _drain(self, server: uvicorn.Server, worker: Stoppable) -> None:
        """Let running answers end, cancel those that do not."""
        if self.listeners.is_inherited:
            for one in getattr(server, "servers", ()):  # what comes now waits for the next server
                one.close()
        if self.error is None:
            self._say(self._farewell(worker))
        worker.stop(self.remaining_s())
        while self.remaining_s() > 0 and (_is_busy(worker) or server.server_state.tasks):
            await asyncio.sleep(_TICK_S)
        worker.stop()
        self._end_by = time.monotonic() + _LAST_S
        while time.monotonic() < self._end_by and _is_busy(worker):
            await asyncio.sleep(_TICK_S)

    def remaining_s(self) -> float:
        """Return the seconds until running answers are cancelled; 0 where nobody has asked to stop."""
        with self._lock:
            return 0.0 if self._stop_by is None else max(0.0, self._stop_by - time.monotonic())

    def _farewell(self, worker: Stoppable) -> str:
        view, remaining_s = worker.describe(), self.remaining_s()
        n_jobs = view.n_queued + (view.job is not None)
        if not n_jobs or remaining_s <= 0:
            return "stopping"
        requests = "1 request has" if n_jobs == 1 else f"{n_jobs} requests have"
        return f"stopping: {requests} up to {remaining_s:.3g} s to end; a second signal ends at once"


def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left of requests whose clients or models did not come back."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_WORDS_S))
    loop.run_until_complete(loop.shutdown_asyncgens())


class _Server(uvicorn.Server):
    """uvicorn without handlers of its own: what a signal means is not for it to say."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Forward(logging.Handler):
    """Gives uvicorn's messages to our own logger, one level lower where they are about what a client did."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return  # an answer that nobody read to its end when the server stopped
        if record.levelno < logging.ERROR or "graceful shutdown exceeded" in str(record.msg):
            record.levelno, record.levelname = logging.INFO, "INFO"
        if _log.isEnabledFor(record.levelno):
            _log.handle(record)


def _config(app: App, *, logs_access: bool) -> uvicorn.Config:
    logger = logging.getLogger("uvicorn")
    if not any(isinstance(handler, _Forward) for handler in logger.handlers):
        logger.addHandler(_Forward())
    logger.propagate = False
    logging.getLogger("uvicorn.access").propagate = logs_access
    return uvicorn.Config(
        app,
        loop="none",
        http="h11",
        ws="none",
        log_config=None,
        log_level=logging.INFO if logs_access else logging.WARNING,
        access_log=logs_access,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_CONNECTION_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


def _is_busy(worker: Stoppable) -> bool:
    view = worker.describe()
    return view.job is not None or view.n_queued > 0


# --- POST /shutdown


def with_shutdown(app: App, life: Life) -> App:
    """Return the app with one more route, which asks the server to end: now, where the body is {"now": true}."""

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/shutdown":
            await app(scope, receive, send)
            return
        status, answer = await _shutdown(scope, receive, life)
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == 405:
            headers.append((b"allow", b"POST"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return routed


async def _shutdown(scope: Scope, receive: Receive, life: Life) -> tuple[int, dict[str, Any]]:
    headers = dict(scope["headers"])
    is_unix = scope["server"] is not None and scope["server"][1] is None
    if not is_unix and not _has_key(headers.get(b"authorization", b""), life.endpoint.key):
        return 401, _error("the key is missing or wrong: send Authorization: Bearer KEY", "authentication_error")
    if scope["method"] != "POST":
        return 405, _error(f"/shutdown takes POST, not {scope['method']}", "invalid_request_error")
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        return 415, _error("/shutdown takes Content-Type: application/json", "invalid_request_error")
    try:
        found = json.loads(await _body(receive) or b"{}")
        is_now = found.get("now", False)
        if not isinstance(is_now, bool):
            raise ValueError
    except (ValueError, AttributeError, RecursionError):
        return 400, _error('/shutdown takes {} or {"now": true}', "invalid_request_error")
    life.stop(is_now=is_now)
    return 202, {
        "status": "stopping",
        "pid": os.getpid(),
        "within_s": round(life.remaining_s() + _LAST_S + _LAST_WORDS_S, 1),
    }


def _has_key(authorization: bytes, key: str | None) -> bool:
    scheme, _, given = authorization.partition(b" ")
    return key is not None and scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), key.encode())


async def _body(receive: Receive) -> bytes:
    """Read a small body. Raises ValueError for a large one."""
    body: bytes = b""
    while len(body) <= _MOST_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body
    raise ValueError


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
