"""Kept answers: one line for each, written as soon as it is there, so that a break costs one answer at most.

Owns the files under `answers/`. Never asks a model.

1. An answer is known by everything that made it: question, limit, settings. Another setting is another answer.
2. A line that a break cut short is dropped; the next run writes that answer again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from edge_nudge.errors import InputError
from edge_nudge.evaluate.results import ItemResult


def key_of(task: str, row_id: str, request: dict[str, Any]) -> str:
    """Return the name under which an answer is kept."""
    text = json.dumps([task, row_id, request], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_name(system: str) -> str:
    """Return a file name for a system, legal everywhere and different for different systems."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]", "_", system)[:80]
    mark = "" if plain == system else "-" + hashlib.sha256(system.encode()).hexdigest()[:8]
    return f"{plain}{mark}.jsonl"


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
        whole = data[: data.rfind(b"\n") + 1]
        for n, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                self._items[str(record["key"])] = ItemResult.model_validate(record)
            except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
                raise InputError(
                    f"{self.path}, line {n}: no answer of an evaluation; remove the file or choose another folder"
                ) from None
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
