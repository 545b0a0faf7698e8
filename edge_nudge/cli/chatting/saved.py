"""A conversation as a JSON file: written whole, read with every field checked.

Owns the format and when a file may be replaced. Never changes a conversation that is going on.

1. A file is whole or not there, and readable by its user only.
2. A file that was there before is replaced only if this chat wrote or read it last, and nobody changed it since.
3. What is read is checked to the last field before anything of it is used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from edge_nudge.cli.chatting.conversation import Conversation, Span, Turn
from edge_nudge.cli.chatting.settings import FIELDS
from edge_nudge.core.events import Role
from edge_nudge.core.request import build_request, describe, whole_text
from edge_nudge.core.visible import one_line
from edge_nudge.errors import InputError

MAX_BYTES = 64 << 20
_Text = Annotated[str, AfterValidator(whole_text)]
_Strict = ConfigDict(extra="forbid", strict=True)


class _Part(BaseModel):
    model_config = _Strict
    author: Literal["base", "nudging"]
    text: _Text


class _Turn(BaseModel):
    model_config = _Strict
    user: _Text
    answer: list[_Part]
    ending: str


class _File(BaseModel):
    """The whole file; `models` are for whoever reads it, and nothing is made of them."""

    model_config = _Strict
    format: Literal["edge-nudge conversation"]
    version: Literal[1]
    models: dict[str, str]
    system: _Text | None
    settings: dict[str, Any]
    turns: list[_Turn]


def to_text(conversation: Conversation, settings: Mapping[str, Any], models: Mapping[str, str]) -> str:
    """Write a conversation as JSON, for people too."""
    file = _File(
        format="edge-nudge conversation",
        version=1,
        models=dict(models),
        system=conversation.system,
        settings=dict(settings),
        turns=[
            _Turn(
                user=turn.user,
                answer=[_Part(author=span.author.value, text=span.text) for span in turn.spans],
                ending=turn.ending,
            )
            for turn in conversation.turns
        ],
    )
    return file.model_dump_json(indent=2) + "\n"


def of_text(data: bytes, name: str) -> tuple[Conversation, dict[str, Any]]:
    """Return the conversation and the settings of a file. Raises InputError naming the file and the field."""
    try:
        file = _File.model_validate_json(data)
        if unknown := sorted(set(file.settings) - set(FIELDS)):
            raise InputError(f"there is no {unknown[0]}")
        build_request("", **file.settings)
    except ValidationError as error:
        raise InputError(f"{name} is no saved conversation: {one_line(_first(describe(error)))}") from None
    except InputError as error:
        raise InputError(f"{name} has a setting that cannot be used: {one_line(str(error))}") from None
    turns = tuple(
        Turn(turn.user, tuple(Span(Role(part.author), part.text) for part in turn.answer), turn.ending)
        for turn in file.turns
    )
    return Conversation(file.system, turns), dict(file.settings)


def _first(message: str) -> str:
    parts = message.split("; ")
    return parts[0] if len(parts) == 1 else f"{parts[0]} (and {len(parts) - 1} more)"


class Files:
    """The files that one chat wrote or read."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int, int]] = {}

    def save(self, name: str, text: str) -> Path:
        """Write a file and return its path. Raises InputError where one is there that is not this chat's."""
        path = _path(name)
        try:
            _write(path, text, may_replace=self._is_ours(path))
            self._known[path] = _state(path)
        except FileExistsError:
            why = "was changed by somebody else" if path in self._known else "is there already"
            raise InputError(f"{path} {why}, and nothing is overwritten: choose another name") from None
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
        return path

    def load(self, name: str) -> tuple[Path, bytes]:
        """Return a file's path and bytes. Raises InputError."""
        path = _path(name)
        try:
            if not path.is_file():
                raise InputError(f"{path} is {'no file' if path.exists() else 'not there'}")
            state = _state(path)
            if state[1] > MAX_BYTES:
                raise InputError(f"{path} has {state[1]} bytes: a conversation has at most {MAX_BYTES}")
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        return path, data

    def remember(self, path: Path) -> None:
        """Let a file that was read be replaced later."""
        with suppress(OSError):  # gone meanwhile: there is nothing to replace
            self._known[path] = _state(path)

    def _is_ours(self, path: Path) -> bool:
        return path in self._known and path.exists() and _state(path) == self._known[path]


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name!r} is no file name: {error}") from None


def _state(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _write(path: Path, text: str, *, may_replace: bool) -> None:
    """Write a file whole. Raises FileExistsError where there is one that may not be replaced."""
    if not may_replace and os.path.lexists(path):
        raise FileExistsError
    handle, name = tempfile.mkstemp(prefix=".edge-nudge-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if may_replace or not _link(name, path):
            os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _link(name: str, path: Path) -> bool:
    """Give a file its name if nobody has it; False where the file system has no links, and nobody had it just now."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True
