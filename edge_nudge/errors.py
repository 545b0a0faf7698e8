"""The errors a user can meet: each is one sentence with the numbers and the remedy.

Owns the tree, the exit codes and the HTTP statuses. Never formats a traceback and never holds a native handle.

1. A class stands for one remedy; the message says what happened, the numbers, and what to do.
2. `exit_code` is what the command line returns, `http_status` what the local API answers.
3. Anything raised that is not an EdgeNudgeError is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class EdgeNudgeError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class InputError(EdgeNudgeError):
    """The request or an option has a value that cannot be used."""

    exit_code = 2
    http_status = 400


class TemplateError(InputError):
    """A chat template cannot be compiled, cannot be rendered, or refused the messages."""


class ContextOverflowError(InputError):
    """The prompt alone fills a model's context.

    `model` is "base" or "nudging"; `n_prompt` and `n_ctx` are in tokens of that model.
    """

    exit_code = 3

    def __init__(self, model: str, n_prompt: int, n_ctx: int) -> None:
        super().__init__(
            f"prompt is {n_prompt} tokens for the {model} model, its context is {n_ctx}: "
            f"raise --ctx-size or shorten the prompt"
        )
        self.model, self.n_prompt, self.n_ctx = model, n_prompt, n_ctx


class CancelledError(EdgeNudgeError):
    """Whoever asked for it does not want it any more; an answer that is cancelled ends with Finished instead."""

    exit_code = 130
    http_status = 499


class ModelFileError(EdgeNudgeError):
    """A model file is missing, damaged, incomplete, or of a kind that cannot be used here."""

    http_status = 400


class EngineError(EdgeNudgeError):
    """The native engine failed or lacks a capability that was asked for."""


class NonFiniteScoresError(EngineError):
    """A model produced NaN or infinite scores; no token is drawn from such a row."""


class NoRoomError(EngineError):
    """Both models together need more memory than there is.

    `lines` are a table of what is needed where, and what would fit instead.
    """

    exit_code = 6
    http_status = 503

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *lines]))
        self.lines = tuple(lines)


class FetchError(EdgeNudgeError):
    """A model could not be fetched: no network, wrong checksum, no room."""

    exit_code = 4
    http_status = 502


class BusyError(EdgeNudgeError):
    """The service cannot take this request now: the same request may succeed later."""

    http_status = 503
    retry_after_s: ClassVar[int] = 1


class QueueFullError(BusyError):
    """As many requests wait as may wait."""

    http_status = 429


class LoadingError(BusyError):
    """The models are being loaded for the first time."""


class StoppingError(BusyError):
    """The service is stopping and takes nothing new."""


class ServerError(EdgeNudgeError):
    """The local API answered what no such server answers, or its connection failed."""

    http_status = 502


class NoServerError(ServerError):
    """Nobody listens where a server was looked for."""


class ServerLostError(ServerError):
    """The connection ended in the middle of an answer: what came until then is right, and the rest is missing."""


class AccessError(ServerError):
    """The server wants a key, or another one."""

    http_status = 401
