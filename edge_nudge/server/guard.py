"""Guard: what every request has to pass before a route sees it. Pure ASGI.

Owns hosts, origins, the key, the size and the type of bodies. Never looks into a body and never touches the worker.

1. Over the Unix socket whoever can open it may ask; hosts, origins and the key are asked for over TCP only.
2. Over TCP a host must be named exactly: a loopback name or address, any port, any case. That is what keeps web pages
   out that have their own name point here (DNS rebinding).
3. Another origin than the server's own is answered only where it is allowed, letter by letter.
4. Every body is read whole before a route begins, within its limits, and must be JSON: so `receive` of a route tells
   of nothing but the client's leaving.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_nudge.server.faults import Fault
from edge_nudge.server.served import Limits, Served

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_OPEN_PATHS = ("/health", "/", "/docs", "/openapi.json")  # no secrets there, and needed before a key is known
_OPEN_PREFIX = "/page/"
_METHODS = "GET, POST, OPTIONS"
_ALLOWED_HEADERS = "authorization, content-type"


class Guard:
    """See the module's rules."""

    def __init__(self, app: ASGIApp, served: Served, limits: Limits) -> None:
        self._app, self._served, self._limits = app, served, limits
        self._hosts = {*_LOOPBACK, *(host.lower() for host in served.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        headers = _Headers(scope)
        origin = headers.one("origin")
        is_foreign = is_tcp(scope) and origin is not None and origin in self._served.allowed_origins
        if is_foreign:
            send = _with_cors(send, origin or "")
        fault = self._fault(scope, headers)
        if fault is None and scope["method"] == "OPTIONS" and is_foreign:
            await _preflight(send)
            return
        body = b""
        if fault is None and scope["method"] in ("POST", "PUT", "PATCH"):
            fault = _wrong_type(headers)
            if fault is None:
                read = await self._read(headers, receive)
                if read is None:
                    return  # the client left
                body, fault = (b"", read) if isinstance(read, Fault) else (read, _broken(read))
        if fault is not None:
            await fault.response()(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _fault(self, scope: Scope, headers: _Headers) -> Fault | None:
        """Return what is wrong with a request as far as its head tells."""
        if not is_tcp(scope):
            return None
        host = headers.one("host")
        if host is None or not self._is_ours(host, scope):
            return Fault(403, "the Host header names no address of this server", code="forbidden_host")
        origin = headers.one("origin")
        if headers.has("origin") and origin not in self._served.allowed_origins and not _is_own(origin, host):
            return Fault(403, "this origin is not allowed: start the server with --origin", code="forbidden_origin")
        return None if self._is_let_in(scope, headers) else self._no_key(headers)

    def _is_ours(self, host: str, scope: Scope) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower()
        # Naming the very address that the connection came to is no name at all, so no rebinding either.
        address = str(scope["server"][0]).lower()
        return name in self._hosts or name.strip("[]") == address

    def _is_let_in(self, scope: Scope, headers: _Headers) -> bool:
        key, path = self._served.key, scope["path"]
        if key is None or scope["method"] == "OPTIONS" or path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX):
            return True
        kind, _, given = (headers.one("authorization") or "").partition(" ")
        return kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), key.encode())

    def _no_key(self, headers: _Headers) -> Fault:
        what = "is not the right one" if headers.has("authorization") else "is missing"
        return Fault(401, f"the key {what}: send Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"})

    async def _read(self, headers: _Headers, receive: Receive) -> bytes | Fault | None:
        limit = self._limits.body_bytes
        too_large = Fault(413, f"the body has more than {limit} bytes, the most that is taken")
        length = headers.one("content-length")
        if length is not None and length.isdecimal() and int(length) > limit:
            return too_large
        body = bytearray()
        try:
            while True:
                message = await asyncio.wait_for(receive(), self._limits.body_s)
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > limit:
                    return too_large
                if not message.get("more_body", False):
                    return bytes(body)
        except asyncio.TimeoutError:
            return Fault(408, f"the body did not arrive within {self._limits.body_s:g} seconds")


class _Headers:
    """The headers of a request; one that comes twice is as good as none."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def has(self, name: str) -> bool:
        return name in self._values

    def one(self, name: str) -> str | None:
        values = self._values.get(name, [])
        return values[0] if len(values) == 1 else None


def is_tcp(scope: Mapping[str, Any]) -> bool:
    """Tell whether a connection came over TCP; uvicorn gives a Unix socket's path without a port."""
    server = scope.get("server")
    return server is not None and server[1] is not None


def _is_own(origin: str | None, host: str) -> bool:
    return origin is not None and origin.lower() == f"http://{host.lower()}"


def _wrong_type(headers: _Headers) -> Fault | None:
    kind, *parameters = (headers.one("content-type") or "").lower().split(";")
    charsets = [p.strip() for p in parameters if p.strip().startswith("charset")]
    if kind.strip() == "application/json" and all(c.replace('"', "") in _UTF_8 for c in charsets):
        return None
    return Fault(415, "the body must be JSON in UTF-8: send Content-Type: application/json")


_UTF_8 = ("charset=utf-8", "charset=utf8")


def _broken(body: bytes) -> Fault | None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(400, f"the body is no UTF-8: byte {error.start} of it", code="invalid_json")
    return None


def _with_cors(send: Send, origin: str) -> Send:
    async def with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return with_cors


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", _METHODS.encode()),
        (b"access-control-allow-headers", _ALLOWED_HEADERS.encode()),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then what the client does."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if not is_given:
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
