"""The client for asyncio: the same calls, awaited.

Owns an httpx client. Never decides what is sent or what came back: calls.py and answer.py do, for both clients.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from edge_nudge.client import calls
from edge_nudge.client.answer import Exchange
from edge_nudge.client.calls import Call
from edge_nudge.client.failures import FAILURES, connection_error
from edge_nudge.client.target import find_target
from edge_nudge.core.events import Event, Finished, TokenScore
from edge_nudge.core.request import GenerateRequest, Message
from edge_nudge.endpoint import Endpoint

T = TypeVar("T")


class AsyncStream(AsyncIterator[Event]):
    """The events of one answer, as blocking.Stream has them; `aclose` drops it at once."""

    def __init__(self, http: httpx.AsyncClient, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events = self._read(http)

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def cancel(self) -> None:
        self._exchange.cancel()

    async def aclose(self) -> None:
        await self._events.aclose()

    async def finish(self) -> Finished:
        """Run the answer to its end and return the last event."""
        async for event in self:
            if isinstance(event, Finished):
                return event
        raise AssertionError("an answer ends with Finished")

    async def _trace(self, name: str, info: Mapping[str, Any]) -> None:
        self._exchange.trace(name, info)

    async def _read(self, http: httpx.AsyncClient) -> AsyncGenerator[Event, None]:
        exchange = self._exchange
        try:
            async with http.stream(**exchange.begin(), extensions={"trace": self._trace}) as response:
                if response.is_error:
                    raise exchange.refusal(response.status_code, await response.aread())
                async for data in response.aiter_bytes():
                    for event in exchange.feed(data):
                        yield event
                    if exchange.is_over:
                        return
                for event in exchange.end():
                    yield event
        except FAILURES as error:
            yield exchange.broken_off(error)


class AsyncClient:
    """The local API, with the arguments and calls of blocking.Client; those that return no stream are awaited."""

    def __init__(
        self,
        endpoint: Endpoint | None = None,
        *,
        socket: str | Path | None = None,
        url: str | None = None,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.target = find_target(endpoint, socket=socket, url=url, key=key)
        self._http = httpx.AsyncClient(
            **self.target.options(), transport=transport or httpx.AsyncHTTPTransport(**self.target.transport_options())
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    def chat(self, messages: str | Sequence[Mapping[str, Any] | Message], **settings: Any) -> AsyncStream:
        return AsyncStream(self._http, Exchange(calls.chat(messages, settings), self.target))

    def answer(self, request: GenerateRequest) -> AsyncStream:
        return AsyncStream(self._http, Exchange(calls.generate(request), self.target))

    def complete(self, prompt: str | Sequence[int], **settings: Any) -> AsyncStream:
        return AsyncStream(self._http, Exchange(calls.complete(prompt, settings), self.target))

    async def score(self, prompt: str | Sequence[int], n_top: int = 0) -> list[TokenScore]:
        return await self._do(calls.score(prompt, n_top))

    async def tokenize(self, text: str, **fields: Any) -> list[int]:
        return await self._do(calls.tokenize(text, fields))

    async def detokenize(self, tokens: Sequence[int], **fields: Any) -> str:
        return await self._do(calls.detokenize(tokens, fields))

    async def models(self) -> list[dict[str, Any]]:
        return await self._do(calls.MODELS)

    async def health(self) -> str:
        return await self._do(calls.HEALTH)

    async def slots(self) -> list[dict[str, Any]]:
        return await self._do(calls.SLOTS)

    async def _do(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(**call.arguments())
        except FAILURES as error:
            raise connection_error(error, self.target) from error
        return call.result(response.status_code, response.content)
