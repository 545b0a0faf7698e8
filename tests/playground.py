"""A server that answers by script, in the shapes of the local API, and a browser to look at the page with.

The script of an answer is a list of steps: bytes are written as they are, an Event holds the stream until it is set.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from edge_nudge.server.pages import page_routes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

WAIT_S = 60.0
Step = bytes | threading.Event
CHROMIUM_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
TOTALS = {
    "rule": "top_prob", "gamma": 0.4, "lookahead": 1, "ratio_tokens": 0.3125, "ratio_chars": 0.41, "handoffs": 7,
    "evaluated": {"base": {"prompt": 9}, "nudging": {"prompt": 12}}, "finish_reason": "stop", "finish_detail": "loop",
    "stop_string": None, "seed": 2**53 - 1, "first_piece_s": 0.131, "total_s": 1.25,
}  # fmt: skip
TIMINGS = {"prompt_n": 9, "prompt_ms": 12.0, "predicted_n": 32, "predicted_ms": 1280.0, "predicted_per_second": 25.0}
USAGE = {"prompt_tokens": 9, "completion_tokens": 32, "total_tokens": 41}


def event(data: Mapping[str, Any] | str) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    if "logprobs" in more:
        choice["logprobs"] = more.pop("logprobs")
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
    return event({**head, "choices": [choice], **more})


def piece(
    text: str, author: str = "base", top_prob: float | None = 0.83, reason: str = "confident", **more: Any
) -> bytes:
    nudge = {"author": author, "top_prob": top_prob, "reason": reason, "n_tokens": 1, "instead": None}
    return chunk({"content": text}, nudge=nudge, **more)


def nudged(text: str, top_prob: float | None = 0.21, reason: str = "unsure", **more: Any) -> bytes:
    return piece(text, "nudging", top_prob, reason, **more)


def scores(*tokens: tuple[str, float, Sequence[tuple[str, float]]]) -> dict[str, Any]:
    """Return logprobs as a chunk carries them, from (token, probability, alternatives)."""

    def score(text: str, share: float) -> dict[str, Any]:
        return {"token": text, "logprob": math.log(share), "bytes": list(text.encode())}

    return {
        "content": [
            {**score(text, share), "top_logprobs": [score(*one) for one in top]} for text, share, top in tokens
        ],
        "refusal": None,
    }


START = chunk({"role": "assistant", "content": ""})


def end(finish_reason: str = "stop") -> list[bytes]:
    usage = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [], "usage": USAGE}
    return [chunk({}, finish_reason, nudge=TOTALS, timings=TIMINGS), event(usage), event("[DONE]")]


def answer(*pieces: Step) -> list[Step]:
    return [START, *pieces, *end()]


SKY = answer(
    nudged("The", None, "opening"), piece(" sky", top_prob=0.913), piece(" is"), nudged(" blue"), piece(" by day.\n"),
    nudged("Later"), piece(" it is black."),
)  # fmt: skip
SKY_TEXT = "The sky is blue by day.\nLater it is black."

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class ScriptedServer:
    """What the server says, and what it was asked; `refusal` is answered instead of the script where there is one."""

    url: str
    script: Sequence[Step] = field(default_factory=lambda: SKY)
    refusal: tuple[int, Any, Mapping[str, str]] | None = None
    key: str | None = None
    model: str = "demo"
    trouble: str | None = None  # why it is not ready: "loading", "failed"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        fresh = ScriptedServer(self.url)
        self.__dict__.update(fresh.__dict__)

    def is_allowed(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    async def health(self, _request: Request) -> Response:
        if self.trouble is None:
            return JSONResponse({"status": "ok", "state": "ready"})
        return JSONResponse({"error": {"message": f"the service is {self.trouble}", "code": self.trouble}}, 503)

    async def models(self, request: Request) -> Response:
        if not self.is_allowed(request):
            return JSONResponse({"error": {"message": "no valid key"}}, 401)
        return JSONResponse({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def chat(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        if not self.is_allowed(request):
            await JSONResponse({"error": {"message": "no valid key"}}, 401)(scope, receive, send)
        elif self.refusal is not None:
            status, content, headers = self.refusal
            response = Response(content, status) if isinstance(content, str) else JSONResponse(content, status)
            response.headers.update(headers)
            await response(scope, receive, send)
        else:
            await self._stream(receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        is_gone = asyncio.ensure_future(receive())  # the body was read: what comes now is the disconnect
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for step in list(self.script):
            if isinstance(step, bytes):
                await send({"type": "http.response.body", "body": step, "more_body": True})
                continue
            while not step.is_set() and not is_gone.done():
                await asyncio.sleep(0.005)
            if is_gone.done():
                self.gone.set()
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        is_gone.cancel()
        with suppress(asyncio.CancelledError):
            await is_gone


class _Chat:
    """An ASGI application for a Route: Starlette calls a class instance with scope, receive and send."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self.server.chat(scope, receive, send)


@contextmanager
def serving(app: Any, listener: socket.socket) -> Iterator[None]:
    """Run an ASGI application on a bound socket, in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = ScriptedServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        routes = [
            *page_routes(),
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", _Chat(server), methods=["POST"]),
        ]
        with serving(Starlette(routes=[*routes, Mount("/behind/proxy", routes=routes)]), listener):
            yield server


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a headless Chromium; without one, the test is skipped."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'edge-nudge[dev]'"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("EDGE_NUDGE_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    with api.sync_playwright() as playwright:
        if found is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip(
                "no Chromium here: install it, or name one in EDGE_NUDGE_BROWSER, or: playwright install chromium"
            )
        started = playwright.chromium.launch(executable_path=found, args=list(CHROMIUM_OPTIONS))
        try:
            yield started
        finally:
            started.close()


@dataclass
class Visit:
    """A page, and what went on in it: every address it asked for, every complaint."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    is_refusal_expected: bool = False

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        # The browser itself reports each answer from 400 on; a page cannot keep it from that.
        is_refusal = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not (is_refusal and self.is_refusal_expected):
            self.complaints.append(message.text)

    def ask(self, question: str) -> None:
        self.page.get_by_label("Your question").fill(question)
        self.page.keyboard.press("Enter")

    def wait_until_answered(self) -> None:
        self.page.locator(".turn:last-child:not(.busy)").wait_for()

    @property
    def words(self) -> str:
        return self.page.locator(".turn:last-child .words").evaluate("words => words.textContent")

    @property
    def totals(self) -> list[str]:
        return self.page.locator(".turn:last-child .totals .part").all_text_contents()


Open = Callable[..., Visit]


def visits(browser: Browser, server: ScriptedServer) -> Iterator[Open]:
    """Make a fixture that opens the page of the scripted server.

    In the end nothing may have left the origin, and nothing may have been complained about.
    """
    opened: list[Visit] = []

    def open_page(address: str = "", *, is_refusal_expected: bool = False, **context: Any) -> Visit:
        settings = {"viewport": {"width": 1200, "height": 800}, **context}
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(WAIT_S * 1000)
        opened.append(Visit(page, is_refusal_expected=is_refusal_expected))
        page.goto(f"{server.url}/{address}")
        return opened[-1]

    yield open_page
    for one in opened:
        assert one.asked
        assert [address for address in one.asked if not address.startswith(f"{server.url}/")] == []
        assert one.complaints == []
        one.page.context.close()
