"""What the YAML files call: rows, questions, right answers, and what an answer is worth.

The harness imports this file by its path. Where the data is: `--metadata '{"data": "FOLDER"}'`, or the environment
variable EDGE_NUDGE_EVAL_DATA; `limit`, `seed` and `half` choose among the rows, as in edge-nudge eval.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_nudge.errors import InputError
from edge_nudge.evaluate.answers import find_answer, is_right
from edge_nudge.evaluate.questions import TASKS, Task, ask, gold_of
from edge_nudge.evaluate.rows import choose, read_rows


def rows(task: str, data: str | None = None, **metadata: Any) -> dict[str, Any]:
    """Return the chosen rows of a task as its test split; each as JSON, since columns would fill up with nulls."""
    from datasets import Dataset

    folder = data or os.environ.get("EDGE_NUDGE_EVAL_DATA")
    if folder is None:
        raise InputError('where is the data? give it as --metadata \'{"data": "FOLDER"}\' or in EDGE_NUDGE_EVAL_DATA')
    found = read_rows(TASKS[task], Path(folder).expanduser())
    limit, seed, half = metadata.get("limit"), metadata.get("seed", 0), metadata.get("half")
    limit = limit.get(task) if isinstance(limit, Mapping) else limit
    if (limit is not None and (type(limit) is not int or limit < 1)) or type(seed) is not int:
        raise InputError(f"limit ({limit!r}) and seed ({seed!r}) of the metadata are whole numbers, limit from 1")
    if half not in (None, "first", "second"):
        raise InputError(f"half ({half!r}) of the metadata is first or second")
    places = choose(len(found), limit=limit, seed=seed, half=half)
    if not places:
        raise InputError(f"task {task}: nothing is left to ask of {len(found)} rows")
    return {"test": Dataset.from_list([{"task": task, "row": json.dumps(found[i])} for i in places])}


def row_of(doc: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(doc["row"])
    return row


def question(doc: dict[str, Any]) -> str:
    return ask(TASKS[doc["task"]], row_of(doc))


def gold(doc: dict[str, Any]) -> str:
    return gold_of(TASKS[doc["task"]], row_of(doc))


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Return 1 for a right answer, and whether an answer was found at all."""
    return score(TASKS[doc["task"]], row_of(doc), answers[0])


def score(task: Task, row: dict[str, Any], answer: str) -> dict[str, float]:
    if task.is_instructions:
        from edge_nudge.evaluate.instructions import score_instructions

        figures = score_instructions(row, answer)
        return {name: value for name, value in figures.items() if name != "n_instructions"}
    kind = task.kind_of(row)
    if kind is None:
        return {"answered": float(answer.strip() != "")}
    found = find_answer(kind, answer, row.get("choices") or ())
    return {"acc": float(is_right(kind, found, str(row["answer"]))), "answered": float(found is not None)}
