"""What went wrong: an error body, a status or a broken connection -> the error of errors.py that it stands for.

Owns the names and numbers of errors on the wire, read from outside. Never raises by itself.

1. The server's message is shown as it is; a message of ours says what happened and what to do.
2. An error that names its class by type or code is that class, else its status decides.
3. A body that is no error object of ours is quoted, cut short: a proxy or another program answered.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from edge_nudge.errors import (
    AccessError,
    BusyError,
    ContextOverflowError,
    EdgeNudgeError,
    EngineError,
    InputError,
    NoServerError,
    QueueFullError,
    ServerError,
    ServerLostError,
)

if TYPE_CHECKING:
    from edge_nudge.client.target import Target

# What httpx raises for a connection; a stream that was closed from elsewhere counts as broken too.
FAILURES = (httpx.TransportError, httpx.StreamError)
REMEDY = "start one with edge-nudge serve"
_MOST_QUOTED = 200  # characters of a body that is not ours

_OF_STATUS: dict[int, type[EdgeNudgeError]] = {
    401: AccessError,
    403: AccessError,
    429: QueueFullError,
    500: EngineError,
    503: BusyError,
}
_STATUS_OF_TYPE = {"invalid_request_error": 400, "rate_limit_error": 429, "unavailable_error": 503}


def connection_error(error: Exception, target: Target, *, has_begun: bool = False) -> EdgeNudgeError:
    """Return what a broken connection means; `has_begun`: a part of the answer has come."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NoServerError(f"no server answers at {target.address} ({_reason(error)}): {REMEDY}")
    if has_begun:
        return ServerLostError(
            f"the server at {target.address} went away in the middle of an answer ({_reason(error)})"
        )
    return ServerLostError(f"the server at {target.address} went away before it answered ({_reason(error)})")


def refusal(status: int, body: bytes) -> EdgeNudgeError:
    """Return what an answer that is not 200 stands for."""
    try:
        found = json.loads(body)["error"]
        return of_document(found, status)
    except (ValueError, KeyError, TypeError):
        text = body[: 4 * _MOST_QUOTED].decode("utf-8", "replace")[:_MOST_QUOTED].strip()
        kind = _OF_STATUS.get(status, ServerError) if status in (401, 403, 429, 503) else ServerError
        return kind(f"the server answered with status {status}, not as edge-nudge does: {text!r}")


def of_document(found: Any, status: int | None = None) -> EdgeNudgeError:
    """Return what an `error` object stands for; `status` None: it came in the middle of a stream.

    Raises KeyError or TypeError for what is no error object.
    """
    message = str(found["message"])
    if found.get("code") == "context_length_exceeded" or found.get("type") == "exceed_context_size_error":
        n_prompt, n_ctx, model = found.get("n_prompt_tokens"), found.get("n_ctx"), found.get("model")
        if isinstance(n_prompt, int) and isinstance(n_ctx, int) and isinstance(model, str):
            return ContextOverflowError(model, n_prompt, n_ctx)
        return InputError(message)
    if status is None:
        status = _STATUS_OF_TYPE.get(str(found.get("type")), 500)
    if status in _OF_STATUS:
        return _OF_STATUS[status](message)
    return InputError(message) if 400 <= status < 500 else ServerError(message)


def _reason(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return str(error).rstrip(".").lower() or type(error).__name__
