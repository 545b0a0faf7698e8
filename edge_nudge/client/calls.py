"""What is sent for each call, and what its answer means.

Owns paths, bodies and the reading of answers that come whole. Never touches a connection.

1. Settings are checked as for a pair in this process, by the same code, before anything is sent.
2. Sampling settings are always sent: other servers of this shape have other defaults. Nudging settings are sent where
   they were given, so that the server's pair decides the rest.
3. An answer that lacks what was asked for is a ServerError, never a KeyError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edge_nudge.client.failures import refusal
from edge_nudge.client.scores import legacy_scores
from edge_nudge.core.events import TokenScore
from edge_nudge.core.request import GenerateRequest, Message, build_request
from edge_nudge.errors import ServerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request whose answer comes whole; `read` makes a value of its JSON."""

    method: str
    path: str
    body: Mapping[str, Any] | None
    read: Callable[[Any], T]
    other_status: int | None = None  # that is an answer as well

    def arguments(self) -> dict[str, Any]:
        """Return what httpx is told."""
        return {"method": self.method, "url": self.path, "json": self.body}

    def result(self, status: int, content: bytes) -> T:
        """Return the value. Raises the error that the server answered with, ServerError for what is no answer."""
        if status not in (200, self.other_status):
            raise refusal(status, content)
        try:
            return self.read(json.loads(content))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ServerError(
                f"{self.method} {self.path} was answered otherwise than edge-nudge does ({error!r}): "
                f"is it another server?"
            ) from error


@dataclass(frozen=True, slots=True)
class Generation:
    """One request whose answer is streamed."""

    path: str
    body: Mapping[str, Any]

    def arguments(self) -> dict[str, Any]:
        """Return what httpx is told."""
        return {"method": "POST", "url": self.path, "json": self.body}


def chat(messages: str | Sequence[Mapping[str, Any] | Message], settings: Mapping[str, Any]) -> Generation:
    """Return the request for an answer in a conversation. Raises InputError."""
    return generate(build_request(messages, **settings))


def complete(prompt: str | Sequence[int], settings: Mapping[str, Any]) -> Generation:
    """Return the request for a plain completion. Raises InputError."""
    raw = prompt if isinstance(prompt, str) else tuple(prompt)
    return generate(build_request("", raw_prompt=raw, **settings))


def generate(request: GenerateRequest) -> Generation:
    """Return the request as the routes of OpenAI have it."""
    body: dict[str, Any] = {"stream": True, **_sampling(request)}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    body |= request.nudge.model_dump(mode="json", exclude_unset=True)
    if request.raw_prompt is not None:
        raw = request.raw_prompt
        body["prompt"] = raw if isinstance(raw, str) else list(raw)
        return Generation("/v1/completions", body | _legacy_logprobs(request))
    body["messages"] = [message.model_dump() for message in request.messages]
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    return Generation("/v1/chat/completions", body)


def _legacy_logprobs(request: GenerateRequest) -> dict[str, Any]:
    return {} if request.logprobs is None else {"logprobs": request.logprobs}


def _sampling(request: GenerateRequest) -> dict[str, Any]:
    fields = request.sampling.model_dump(exclude_none=True)
    return {"temperature": fields.pop("temp"), **fields}


def score(prompt: str | Sequence[int], n_top: int) -> Call[list[TokenScore]]:
    """Return the call that scores a prompt and writes nothing. Raises InputError."""
    raw = prompt if isinstance(prompt, str) else tuple(prompt)
    build_request("", raw_prompt=raw, logprobs=n_top)
    body = {
        "prompt": raw if isinstance(raw, str) else list(raw), "echo": True, "logprobs": n_top, "max_tokens": 0,
    }  # fmt: skip
    return Call(
        "POST", "/v1/completions", body, lambda found: list(legacy_scores(found["choices"][0]["logprobs"], n_top))
    )


def tokenize(text: str, fields: Mapping[str, Any]) -> Call[list[int]]:
    """Return the call that turns a text into ids."""
    return Call("POST", "/tokenize", {"content": text, **fields}, lambda found: [int(id) for id in found["tokens"]])


def detokenize(tokens: Sequence[int], fields: Mapping[str, Any]) -> Call[str]:
    """Return the call that turns ids into text."""
    return Call("POST", "/detokenize", {"tokens": list(tokens), **fields}, lambda found: str(found["content"]))


def _list(found: Any) -> list[dict[str, Any]]:
    return [dict(item) for item in found]


MODELS = Call("GET", "/v1/models", None, lambda found: _list(found["data"]))


def _state(found: Any) -> str:
    return str(found["error"]["code"] if "error" in found else found["state"])


HEALTH = Call("GET", "/health", None, _state, other_status=503)
SLOTS = Call("GET", "/slots", None, _list)
