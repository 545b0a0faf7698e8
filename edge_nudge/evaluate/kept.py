"""Kept answers: one line for each, written as soon as it is there, so that a break costs one answer at most.

Owns the files under `answers/`. Never asks a model.

1. An answer is known by everything that made it: question, limit, settings. Another setting is another answer.
2. A line that a break cut short is dropped; the next run writes that answer again.
3. What is not ours is refused and left as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_nudge.errors import InputError
from edge_nudge.evaluate.results import ItemResult

_LINE_START = b'{"key": "'


def key_of(task: str, row_id: str, request: dict[str, Any]) -> str:
    """Return the name under which an answer is kept."""
    text = json.dumps([task, row_id, request], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_name(system: str) -> str:
    """Return a file name for a system, legal everywhere and different for different systems."""
    if re.fullmatch("[a-z]{1,80}", system):
        return f"{system}.jsonl"
    plain = re.sub(r"[^A-Za-z0-9._=+-]", "_", system)[:80]  # the hash tells apart what differs in its case alone
    return f"{plain}-{hashlib.sha256(system.encode()).hexdigest()[:8]}.jsonl"


class KeptAnswers:
    """The answers of one system in one folder; use it in a with statement.

    Raises InputError where the file is none of ours or cannot be written.
    """

    def __init__(self, folder: Path, system: str) -> None:
        self.path = folder / file_name(system)
        self._items: dict[str, ItemResult] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._read()
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(f"answers cannot be kept in {self.path}: {error}") from None

    def __enter__(self) -> KeptAnswers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # every line was flushed; what a full disk refused was said when it did
            self._file.close()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> ItemResult | None:
        return self._items.get(key)

    def put(self, key: str, item: ItemResult) -> None:
        """Keep an answer. Raises InputError where the disk refuses."""
        line = json.dumps({"key": key, **item.model_dump(mode="json")}, ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"answers cannot be kept in {self.path}: {error}") from None
        self._items[key] = item

    def _read(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        self._items = dict(self._record(line, n) for n, line in enumerate(lines[:-1], 1))
        if (rest := lines[-1]) and rest[: len(_LINE_START)] != _LINE_START[: len(rest)]:
            raise self._foreign(len(lines))
        if rest:
            os.truncate(self.path, len(data) - len(rest))

    def _record(self, line: bytes, n: int) -> tuple[str, ItemResult]:
        try:
            record = json.loads(line)
            return str(record["key"]), ItemResult.model_validate(record)
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._foreign(n) from None

    def _foreign(self, n: int) -> InputError:
        return InputError(
            f"{self.path}, line {n}: no answer of an evaluation; remove the file or choose another folder"
        )
