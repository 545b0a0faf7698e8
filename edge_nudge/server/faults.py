"""Errors as the local API tells them: a status and OpenAI's error object.

Owns the words `type` and `code`, and which field an error is about. Never raises and never shows a traceback.

1. Every error body is `{"error": {"message", "type", "param", "code"}}`; more fields may follow where they help.
2. What is not an EdgeNudgeError is a bug of ours: 500, and its message stays in the log.
3. Nothing a client sent is quoted unless it is escaped: bodies are ASCII.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from edge_nudge.document import to_json
from edge_nudge.errors import BusyError, ContextOverflowError, EdgeNudgeError, InputError, QueueFullError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "unavailable_error"}
_CODES = {
    401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 408: "timeout",
    413: "too_large", 415: "unsupported_media_type",
}  # fmt: skip


class RequestError(InputError):
    """A request cannot be answered; `param` is the field that is why."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True, slots=True)
class Fault:
    """An error on its way to a client."""

    status: int
    message: str
    param: str | None = None
    type: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        kind = self.type or _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        code = self.code or _CODES.get(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code, **self.more}}

    def response(self) -> JsonResponse:
        return JsonResponse(self.document, self.status, dict(self.headers))


class JsonResponse(Response):
    """A JSON body in ASCII: whatever text is in it, it can be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content).encode("ascii")


def fault_of(error: BaseException, prompt_field: str = "messages") -> Fault:
    """Return what a client is told of an error; `prompt_field` is where its prompt was."""
    message = str(error)
    if isinstance(error, RequestError):
        return Fault(error.status, message, error.param, code=error.code)
    if isinstance(error, ContextOverflowError):
        return Fault(
            400,
            message,
            prompt_field,
            "exceed_context_size_error",
            "context_length_exceeded",
            more={"n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx, "model": error.model},
        )
    if isinstance(error, BusyError):
        code = "queue_full" if isinstance(error, QueueFullError) else "unavailable"
        return Fault(error.http_status, message, code=code, headers={"retry-after": str(error.retry_after_s)})
    if isinstance(error, EdgeNudgeError):
        return Fault(error.http_status, message)
    return Fault(500, "an error inside the server: its log says more", code="internal_error")


def fault_of_validation(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """Return a fault for pydantic's report on a request; `param` is the first field it names."""
    parts: list[str] = []
    param: str | None = None
    for error in errors:
        place = [str(part) for part in error["loc"] if part != "body"]
        if error["type"] == "json_invalid":
            why = error.get("ctx", {}).get("error", "")
            return Fault(400, f"the body is no JSON ({why} at character {place[0]})", code="invalid_json")
        if not place and error["type"] == "missing":
            return Fault(400, "the body is empty: a JSON object is needed", code="invalid_json")
        name = ".".join(place)
        param = param or name or None
        text = str(error["msg"]).removeprefix("Value error, ")
        parts.append(f"{name}: {text}" if name else f"the body: {text}")
    return Fault(400, "; ".join(parts[:5]), param)
