"""Rows of a task: JSON lines in a folder of the user's, checked, and the choice of those that are asked.

Owns reading and choosing. Never fetches anything.

1. The choice is that of a seed, and the first k of it do not depend on k: a larger limit asks the same and more.
2. `half` cuts the file in two before anything is chosen: settings are tuned on the first, figures are of the second.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edge_nudge.errors import InputError
from edge_nudge.evaluate.answers import Kind
from edge_nudge.evaluate.questions import Task, letter, row_id

Half = Literal["first", "second"]
MAX_CHOICES = 26


def read_rows(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Return all rows of a task. Raises InputError naming file and line."""
    file = folder / task.file
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{file} is not there: task {task.name} needs it, one JSON object a line (docs/evaluation.md has the format)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for n, line in enumerate(text.split("\n"), 1):  # only \n ends a line of JSON lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {n}: no JSON ({error})") from None
        problem = _problem(task, row)
        if problem is None and row_id(task, row) in seen:
            problem = f"the id {row_id(task, row)!r} was there before"
        if problem is not None:
            raise InputError(f"{file}, line {n}: {problem}")
        seen.add(row_id(task, row))
        rows.append(row)
    if not rows:
        raise InputError(f"{file} has no rows")
    return rows


def choose(n_rows: int, *, limit: int | None, seed: int, half: Half | None) -> list[int]:
    """Return the places of the rows that are asked, in the order of asking."""
    middle = n_rows // 2
    places = list({None: range(n_rows), "first": range(middle), "second": range(middle, n_rows)}[half])
    random.Random(seed).shuffle(places)
    return places if limit is None else places[:limit]


def _problem(task: Task, row: Any) -> str | None:
    """Return what is wrong with a row, None where nothing is."""
    if not isinstance(row, dict):
        return "no JSON object"
    if task.is_instructions:
        ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(row.get("key"), (int, str)) or not _is_text(row.get("prompt")):
            return "it needs a key and a prompt"
        if not _is_texts(ids) or not isinstance(kwargs, list) or len(ids) != len(kwargs):
            return "it needs instruction_id_list and kwargs of one length"
        return None if all(isinstance(part, dict) for part in kwargs) else "each of its kwargs is an object"
    if not isinstance(row.get("id"), (int, str)) or not _is_text(row.get("question")):
        return "it needs an id and a question"
    if not task.is_open_ended and not _is_text(row.get("answer")):
        return "it needs an answer, as a text"
    if task.kind_of(row) is Kind.CHOICE:
        choices = row.get("choices")
        if not _is_texts(choices) or not 2 <= len(choices) <= MAX_CHOICES:
            return f"it needs a list of 2 to {MAX_CHOICES} choices"
        if row["answer"] not in [letter(i) for i in range(len(choices))]:
            return f"its answer is {row['answer']!r}, no letter of one of its {len(choices)} choices"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(part, str) for part in value)
