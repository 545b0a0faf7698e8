"""A user's own questions: a text file with one on each line, or JSON lines, with answers or without.

Owns reading them into the rows that a task has. Never asks a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_nudge.catalog.files import write_whole
from edge_nudge.errors import InputError
from edge_nudge.evaluate.questions import Task, find_task

MOST_BYTES = 16 << 20


def read_own(file: Path, folder: Path) -> Task:
    """Write the questions of a file as rows into `folder` and return the task that asks them.

    Lines of JSON have `question`, and perhaps `answer`, `choices` (then the answer is a letter) and `id`. All lines
    have an answer, or none. Raises InputError naming file and line.
    """
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8, at byte {error.start}: save it as UTF-8") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{file} is longer than {MOST_BYTES} bytes: a few hundred questions are enough")
    lines = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file} has no questions: write one on each line")
    rows = [_row(file, n, line) for n, line in lines]
    answered = [n for (n, _), row in zip(lines, rows, strict=True) if "answer" in row]
    if answered and len(answered) < len(rows):
        without = next(n for (n, _), row in zip(lines, rows, strict=True) if "answer" not in row)
        raise InputError(
            f"{file}: line {answered[0]} has an answer and line {without} has none: give all of them or none"
        )
    task = find_task("questions" if answered else "prompts")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / task.file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return task


def _row(file: Path, n: int, line: str) -> dict[str, Any]:
    if file.suffix not in (".jsonl", ".json", ".ndjson"):
        return {"id": str(n), "question": line}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}, line {n}: no JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("question", row.get("prompt")), str):
        raise InputError(f'{file}, line {n}: it needs a "question", as in {{"question": "2 + 2?", "answer": "4"}}')
    found = {"id": str(row.get("id", n)), "question": row.get("question", row.get("prompt"))}
    if row.get("answer") not in (None, ""):
        found["answer"] = str(row["answer"])
    if row.get("choices"):
        found["choices"] = row["choices"]
    return found
