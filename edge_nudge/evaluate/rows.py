"""Rows of a task: JSON lines in a folder of the user's, checked, and the choice of those that are asked.

Owns reading and choosing. Never fetches anything.

1. Every row is checked for what asking and scoring need of it, so a run does not fail on one after hours.
2. The choice is that of a seed, and the first k of it do not depend on k: a larger limit asks the same and more.
3. `half` cuts the file in two before anything is chosen: settings are tuned on the first, figures are of the second.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal, TypeGuard

from edge_nudge.errors import InputError
from edge_nudge.evaluate.answers import Kind, is_answer
from edge_nudge.evaluate.questions import Task, letter, row_id

Half = Literal["first", "second"]
MAX_CHOICES = 26
_FORMS = {
    Kind.NUMBER: "number",
    Kind.YES_NO: "yes, no, true or false",
    Kind.PLAUSIBLE: "plausible or implausible",
    Kind.DATE: "date as MM/DD/YYYY",
    Kind.LETTERS: "word",
    Kind.TEXT: "text with words or numbers",
}


def read_rows(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Return all rows of a task. Raises InputError naming file and line."""
    file = folder / task.file
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"{file} is not there: task {task.name} needs it, one JSON object a line; docs/evaluation.md has the format"
        ) from None
    except UnicodeDecodeError as error:
        n = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {n}: no UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for n, line in enumerate(text.split("\n"), 1):  # only \n ends a line of JSON lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {n}: no JSON ({error})") from None
        problem = _problem(task, row)
        if problem is None and row_id(task, row) in seen:
            problem = f"the id {row_id(task, row)!r} was there before, in line {seen[row_id(task, row)]}"
        if problem is not None:
            raise InputError(f"{file}, line {n}: {problem}")
        seen[row_id(task, row)] = n
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
    if not _is_whole(row):
        return "it holds a lone surrogate, which is no text"
    if task.is_instructions:
        ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        if not _is_name(row.get("key")) or not _is_text(row.get("prompt")):
            return "it needs a key and a prompt"
        if not _is_texts(ids) or not isinstance(kwargs, list) or len(ids) != len(kwargs):
            return "it needs instruction_id_list and kwargs of one length"
        return None if all(isinstance(part, dict) for part in kwargs) else "each of its kwargs is an object"
    if not _is_name(row.get("id")) or not _is_text(row.get("question")):
        return "it needs an id and a question"
    if not task.is_open_ended and not _is_text(row.get("answer")):
        return "it needs an answer, as a text"
    choices: list[str] | None = row.get("choices")
    context = row.get("context")
    if not isinstance(context, (str, type(None))) or not (choices is None or _is_texts(choices)):
        return "its context is a text or null, its choices are a list of texts or null"
    kind = task.kind_of(row)
    if kind is Kind.CHOICE:
        if choices is None or not 2 <= len(choices) <= MAX_CHOICES:
            return f"it needs a list of 2 to {MAX_CHOICES} choices"
        if row["answer"] not in [letter(i) for i in range(len(choices))]:
            return f"its answer is {row['answer']!r}, no letter of one of its {len(choices)} choices"
    elif kind is not None and not is_answer(kind, row["answer"]):
        return f"its answer is {row['answer']!r}, which is no {_FORMS[kind]}"
    return None


def _is_whole(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_name(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or _is_text(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
