"""What an evaluation is asked to do, checked before anything is loaded.

Owns the plan and the reading of its parts. Never loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_nudge.errors import InputError
from edge_nudge.evaluate.questions import Task, find_task
from edge_nudge.evaluate.rows import Half, choose, read_rows
from edge_nudge.evaluate.systems import Kind, System

MAX_COUNT = 1_000_000
DEFAULT_SYSTEMS = "base,nudging,nudged,urial"


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks times systems.

    `limit` (items) and `max_tokens` (of an answer) are by task: without one all items, and the task's own tokens.
    """

    tasks: tuple[Task, ...]
    systems: tuple[System, ...]
    data: Path
    folder: Path
    limit: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    half: Half | None = None
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    aligned: Path | None = None
    untuned: Path | None = None

    def items_of(self, task: Task, n_rows: int) -> list[int]:
        """Return the places of the rows that are asked."""
        return choose(n_rows, limit=self.limit.get(task.name), seed=self.seed, half=self.half)

    def limit_of(self, task: Task) -> int:
        return self.max_tokens.get(task.name, task.max_tokens)

    def check(self) -> dict[str, tuple[int, int]]:
        """Return rows and chosen items by task. Raises InputError for what would fail later."""
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}: it is from 0 to {2**63 - 1}")
        kinds = {system.kind for system in self.systems}
        for kind, file, option in ((Kind.ALIGNED, self.aligned, "aligned"), (Kind.PROXY, self.untuned, "untuned")):
            if kind in kinds and file is None:
                raise InputError(f"system {kind.value} needs a model: name it with --{option} MODEL")
            if file is not None and not file.is_file():
                raise InputError(f"--{option}: {file} is not there")
            if kind not in kinds and file is not None:
                raise InputError(f"--{option} is for system {kind.value}, which is not among --systems")
        counts = {}
        for task in self.tasks:
            n_rows = len(read_rows(task, self.data))
            counts[task.name] = (n_rows, len(self.items_of(task, n_rows)))
            if not counts[task.name][1]:
                raise InputError(f"task {task.name}: nothing is left to ask of {n_rows} rows")
        return counts


def parse_tasks(names: Sequence[str]) -> tuple[Task, ...]:
    """Return the tasks of some names, each once. Raises InputError."""
    if not names:
        raise InputError("no task is named")
    tasks = tuple(find_task(name) for name in names)
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"task {name!r} is named twice")
    return tasks


def parse_counts(text: str, tasks: Sequence[Task]) -> dict[str, int]:
    """Read "160" or "160,ifeval=256": a count for all tasks, and counts of single ones. Raises InputError."""
    counts: dict[str, int] = {}
    given: set[str | None] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = part.rpartition("=")
        if not (value.isdecimal() and len(value) < 19 and 1 <= int(value) <= MAX_COUNT):
            raise InputError(f"{part!r} is no count: write COUNT or TASK=COUNT, from 1 to {MAX_COUNT}")
        if sign and name not in {task.name for task in tasks}:
            raise InputError(f"{part!r}: task {name!r} is not asked")
        if (name if sign else None) in given:
            raise InputError(f"{part!r}: the count of {f'task {name!r}' if sign else 'all tasks'} is given twice")
        given.add(name if sign else None)
        counts |= {name: int(value)} if sign else {task.name: int(value) for task in tasks if task.name not in counts}
    if not counts:
        raise InputError("there is no count: write COUNT or TASK=COUNT")
    return counts


def load_changes(system: System, plan: Plan) -> dict[str, Any]:
    """Return what differs from the pair's own files and prompt format when this system is loaded."""
    changes: dict[str, Any] = {}
    if system.base_prompt_format is not None:
        changes["base_prompt_format"] = system.base_prompt_format
    if system.kind is Kind.ALIGNED:
        changes |= {"nudging": plan.aligned, "nudging_adapter": None, "chat_template": None}
    return changes
