"""Reply: from the worker thread's items to one HTTP response, whole or as server-sent events.

Owns the bridge between thread and event loop, pings, disconnects and slow readers. Never shapes an answer.

1. The client's leaving cancels the job: streaming or not, waiting or running.
2. A response begins when there is a first piece, so that an error before it has a status of its own; only where
   reading the prompts takes longer than `first_ping_s` it begins before, and pings follow.
3. Behind the beginning an error is one `data: {"error": ...}` line, and the stream ends without `[DONE]`.
4. A reader never holds up the worker: items wait here, and a context bounds an answer. One that takes nothing for
   `stall_s` is dropped.
5. Where the server stops, a stream ends with its last chunk (finish_reason "cancelled"); a whole answer is a 503.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge_nudge.document import to_json
from edge_nudge.errors import EdgeNudgeError, StoppingError
from edge_nudge.server.faults import Fault, JsonResponse, fault_of
from edge_nudge.server.jobs import Ended, Item, ItemWork, Opened
from edge_nudge.server.served import Limits
from edge_nudge.server.shapes import Shape, is_cancelled
from edge_nudge.worker import Done, Failed, Job, Worker

_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_log = logging.getLogger(__name__)


class _Inbox:
    """What the worker thread said, for one task to read."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item | Done | Failed] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def listen(self, item: Any) -> None:
        """Take an item, in whatever thread. Raises RuntimeError where the loop has been closed."""
        self._loop.call_soon_threadsafe(self._put, item)

    def _put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiter is not None:
            _wake(self._waiter)

    async def take(self, timeout_s: float | None) -> list[Item | Done | Failed]:
        """Return all that is there, at least one item; nothing where the time is over."""
        if not self._items:
            # asyncio.wait_for would make a task for each piece: time that the models' threads would have.
            waiter = self._waiter = self._loop.create_future()
            timer = None if timeout_s is None else self._loop.call_later(timeout_s, _wake, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        items = list(self._items)
        self._items.clear()
        return items


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Reply(Response):
    """The response to one request for the pair; `observe` sees each item on its way."""

    def __init__(
        self,
        worker: Worker,
        work: ItemWork,
        shape: Shape,
        *,
        is_stream: bool,
        limits: Limits,
        observe: Callable[[Item | Done | Failed], object],
    ) -> None:
        super().__init__()
        self._worker, self._work, self._shape = worker, work, shape
        self._is_stream, self._limits, self._observe = is_stream, limits, observe
        self._is_started = self._is_stalled = self._has_end = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inbox = _Inbox()
        try:
            job = self._worker.submit(self._work, inbox.listen, job_id=self._shape.id)
        except EdgeNudgeError as error:
            await fault_of(error).response()(scope, receive, send)
            return
        leaving = asyncio.create_task(_cancel_on_leaving(receive, job))
        try:
            if self._is_stream:
                await self._send_events(inbox, scope, receive, send)
            else:
                await self._send_whole(inbox, scope, receive, send)
        except asyncio.CancelledError:
            if not self._is_stalled:
                raise
            _log.warning("%s: the reader took nothing for %g s: dropped", job.id, self._limits.stall_s)
        except Exception as error:  # a bug of ours: rule 3 holds all the same
            _log.exception("%s failed on its way out", job.id)
            job.cancel()
            await self._end(Failed(error), [], scope, receive, send)
        finally:
            job.cancel()
            leaving.cancel()

    async def _send_whole(self, inbox: _Inbox, scope: Scope, receive: Receive, send: Send) -> None:
        items: list[Item] = []
        ending: Done | Failed | None = None
        while ending is None:
            for item in await inbox.take(None):
                self._observe(item)
                if isinstance(item, Done | Failed):
                    ending = item
                else:
                    items.append(item)
        response: Response
        if isinstance(ending, Failed):
            response = self._fault(ending.error).response()
        elif ending.is_cancelled or is_cancelled(items):
            response = fault_of(_stopped()).response()  # where it is the client that left, nobody reads it
        else:
            response = JsonResponse(self._shape.whole(items))
        await self._watched(response(scope, receive, send))

    async def _send_events(self, inbox: _Inbox, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = False  # the prompts are being read
        while True:
            wait_s = self._limits.ping_s if self._is_started else self._limits.first_ping_s if is_open else None
            items = await inbox.take(wait_s)
            if not items:
                await self._send(send, _PING)
                continue
            data: list[bytes] = []
            for item in items:
                self._observe(item)
                is_open = is_open or isinstance(item, Opened)
                self._has_end = self._has_end or isinstance(item, Ended)
                if isinstance(item, Failed | Done):
                    await self._end(item, data, scope, receive, send)
                    return
                data += map(_event, self._shape.chunks(item))
            if data:
                await self._send(send, b"".join(data))

    async def _end(self, ending: Done | Failed, data: list[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(ending, Done) and not self._has_end:
            ending = Failed(_stopped())  # cut short before there was a last event
        if isinstance(ending, Done):
            data += [*map(_event, self._shape.end()), _DONE]
        elif self._is_started or data:
            data.append(_event(self._fault(ending.error).document))
        else:
            await self._watched(self._fault(ending.error).response()(scope, receive, send))
            return
        await self._send(send, b"".join(data))
        # A server holds up a send for what the reader has not taken of the ones before: an end of its own makes it
        # hold up for the last piece too, which may be the whole answer.
        await self._watched(send({"type": "http.response.body", "body": b"", "more_body": False}))

    def _fault(self, error: BaseException) -> Fault:
        return fault_of(error, self._shape.prompt_field)

    async def _send(self, send: Send, data: bytes) -> None:
        if not self._is_started:
            self._is_started = True
            data = b"".join(map(_event, self._shape.begin())) + data
            await self._watched(send({"type": "http.response.start", "status": 200, "headers": _HEADERS}))
        await self._watched(send({"type": "http.response.body", "body": data, "more_body": True}))

    async def _watched(self, sending: Awaitable[object]) -> None:
        """Wait for a send, but not for ever."""
        task = asyncio.current_task()
        assert task is not None

        def drop() -> None:
            self._is_stalled = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._limits.stall_s, drop)
        try:
            await sending
        finally:
            timer.cancel()


async def _cancel_on_leaving(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()


def _stopped() -> StoppingError:
    return StoppingError("the service is stopping: the request was not answered")


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + to_json(document).encode("ascii") + b"\n\n"
