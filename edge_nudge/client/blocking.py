"""The client for ordinary code: each call waits for its answer.

Owns an httpx client. Never decides what is sent or what came back: calls.py and answer.py do, for both clients.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from edge_nudge.client import calls
from edge_nudge.client.answer import Exchange
from edge_nudge.client.calls import Call
from edge_nudge.client.failures import FAILURES, connection_error
from edge_nudge.client.target import find_target
from edge_nudge.core.closing import Closing
from edge_nudge.core.events import Event, Finished, TokenScore
from edge_nudge.core.request import GenerateRequest, Message
from edge_nudge.endpoint import Endpoint

T = TypeVar("T")


class Stream(Iterator[Event], Closing):
    """The events of one answer; it is asked for when it is first iterated.

    `cancel`, from any thread or signal handler, ends it with Finished("cancelled"); `close` drops it at once. Both
    close the connection, which stops the work on the server.
    """

    def __init__(self, http: httpx.Client, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events = self._read(http)

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        self._exchange.cancel()

    def close(self) -> None:
        self._events.close()

    def finish(self) -> Finished:
        """Run the answer to its end and return the last event."""
        for event in self:
            if isinstance(event, Finished):
                return event
        raise AssertionError("an answer ends with Finished")

    def _read(self, http: httpx.Client) -> Generator[Event, None, None]:
        exchange = self._exchange
        try:
            with http.stream(**exchange.begin(), extensions={"trace": exchange.trace}) as response:
                if response.is_error:
                    raise exchange.refusal(response.status_code, response.read())
                for data in response.iter_bytes():
                    yield from exchange.feed(data)
                    if exchange.is_over:
                        return
                yield from exchange.end()
        except FAILURES as error:
            yield exchange.broken_off(error)


class Client(Closing):
    """The local API; without arguments that of the server which runs for this user.

    `endpoint`, `socket` (a path) or `url` name another one; `key` is for a url. Close it, or use it in a with
    statement. Raises InputError, NoServerError.
    """

    def __init__(
        self,
        endpoint: Endpoint | None = None,
        *,
        socket: str | Path | None = None,
        url: str | None = None,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.target = find_target(endpoint, socket=socket, url=url, key=key)
        self._http = httpx.Client(
            **self.target.options(), transport=transport or httpx.HTTPTransport(**self.target.transport_options())
        )

    def close(self) -> None:
        self._http.close()

    def chat(self, messages: str | Sequence[Mapping[str, Any] | Message], **settings: Any) -> Stream:
        """Answer a conversation (or one user text); settings as in `Pair.stream`. Raises InputError at once.

        Everything else is raised while iterating: ContextOverflowError, QueueFullError, NoServerError, ...
        """
        return Stream(self._http, Exchange(calls.chat(messages, settings), self.target))

    def answer(self, request: GenerateRequest) -> Stream:
        """Answer a validated request; see `chat`."""
        return Stream(self._http, Exchange(calls.generate(request), self.target))

    def complete(self, prompt: str | Sequence[int], **settings: Any) -> Stream:
        """Write on from a text, or from ids of the base model: nothing is put around it. Settings as in `chat`.

        Without max_tokens the server writes 16 tokens: a base model left alone does not end by itself.
        """
        return Stream(self._http, Exchange(calls.complete(prompt, settings), self.target))

    def score(self, prompt: str | Sequence[int], n_top: int = 0) -> list[TokenScore]:
        """Return the base model's score of every token of a prompt, with its `n_top` best alternatives."""
        return self._do(calls.score(prompt, n_top))

    def tokenize(self, text: str, **fields: Any) -> list[int]:
        """Return the base model's ids of a text; `fields` are passed on (`add_special=True`, `role="nudging"`)."""
        return self._do(calls.tokenize(text, fields))

    def detokenize(self, tokens: Sequence[int], **fields: Any) -> str:
        return self._do(calls.detokenize(tokens, fields))

    def models(self) -> list[dict[str, Any]]:
        """Return what is served, as OpenAI's entries; `meta` in each says what the pair is."""
        return self._do(calls.MODELS)

    def health(self) -> str:
        """Return what the server is: "ready", "unloaded" (it loads on demand), "loading", "failed", "stopping"."""
        return self._do(calls.HEALTH)

    def slots(self) -> list[dict[str, Any]]:
        """Return what the server is doing."""
        return self._do(calls.SLOTS)

    def _do(self, call: Call[T]) -> T:
        try:
            response = self._http.request(**call.arguments())
        except FAILURES as error:
            raise connection_error(error, self.target) from error
        return call.result(response.status_code, response.content)
