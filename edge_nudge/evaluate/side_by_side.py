"""The answers of all systems side by side, for people to read and rate: JSON lines, Markdown and CSV.

Owns which items stand beside each other, what a blind reader may see, and how foreign text is kept harmless in each
format. Never rates an answer.

1. Items are matched by task and id. A system that has no answer to one has none there, which is not an empty answer.
2. Blind files name no system and hold nothing but question, right answer and answers, in an order drawn for each item;
   the file of the key says who wrote which. The order follows from the seed, the task and the id alone.
3. JSON lines hold every text exactly. In Markdown a text stands in a fence that it cannot close, its hidden and
   reordering characters as escapes; what stands outside of a fence is escaped.
4. A spreadsheet takes no cell of the CSV for a formula: an apostrophe goes before what could begin one, also where
   another separator than the comma would cut.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_nudge.catalog.files import write_whole
from edge_nudge.core.visible import one_line, visible
from edge_nudge.document import to_json
from edge_nudge.errors import InputError
from edge_nudge.evaluate.results import ItemResult, Results

NAME = "side_by_side"
BLIND_NAME = "side_by_side_blind"
KEY_NAME = "side_by_side_key"

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# What may begin a formula, in full width as well; after a line break a bullet of a list stays as it is.
_FORMULA = re.compile(r"(?:^|(?<=[;\t]))(?=\s*[=+\-@＝＋－＠])|(?<=\n)(?=[=+@＝＋＠]|-(?! ))|^(?=[\t\n])")


@dataclass(frozen=True, slots=True)
class Compared:
    """One item and what each system answered, by its name; a system that has no answer is left out."""

    task: str
    id: str
    question: str
    gold: str
    answers: Mapping[str, ItemResult]


@dataclass(frozen=True, slots=True)
class _Shown:
    """One answer under the name that the reader sees; `item` is None where there is none."""

    label: str
    system: str
    item: ItemResult | None


_Row = tuple[Compared, tuple[_Shown, ...]]


def export_side_by_side(
    results: Results, folder: Path, *, blind_seed: int | None = None, tasks: Sequence[str] | None = None
) -> list[Path]:
    """Write the answers of all systems side by side, and return the files; with `blind_seed` the key is the last.

    `tasks` are the open-ended ones where none are named. Raises InputError.
    """
    names = [system.name for system in results.systems]
    rows = [(item, _shown(item, names, blind_seed)) for item in compared(results, tasks=tasks)]
    is_blind = blind_seed is not None
    name = BLIND_NAME if is_blind else NAME
    files = {
        folder / f"{name}.jsonl": "".join(to_json(_line(*row, is_blind=is_blind)) + "\n" for row in rows),
        folder / f"{name}.md": _markdown(rows),
        # The mark tells spreadsheets that this is UTF-8; programs have the JSON lines.
        folder / f"{name}.csv": "\ufeff" + _table(rows),
    }
    if is_blind:
        files[folder / f"{KEY_NAME}.json"] = to_json({"blind_seed": blind_seed, "items": _key(rows)}) + "\n"
    try:
        for path, text in files.items():
            write_whole(path, text)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): give another folder") from error
    return list(files)


def compared(
    results: Results, *, tasks: Sequence[str] | None = None, systems: Sequence[str] | None = None
) -> list[Compared]:
    """Return the items of some tasks with the answers of some systems, in the order of the results.

    `tasks` None: the open-ended ones; `systems` None: all. Raises InputError for names that are not there, and where
    nothing is left.
    """
    chosen = _chosen([task.name for task in results.tasks], tasks, "task")
    if tasks is None:
        chosen = [task.name for task in results.tasks if task.is_open_ended]
        if not chosen:
            raise InputError(f"none of the tasks {_list(task.name for task in results.tasks)} is open-ended: name one")
    names = [system.name for system in results.systems]
    if len(set(names)) < len(names):
        raise InputError(f"two of the systems {_list(names)} have one name: their answers cannot be told apart")
    wanted = set(_chosen(names, systems, "system"))
    found: dict[str, dict[str, dict[str, ItemResult]]] = {task: {} for task in chosen}
    for system in results.systems:
        for item in system.items if system.name in wanted else ():
            if item.task not in found:
                continue
            answers = found[item.task].setdefault(item.id, {})
            if system.name in answers:
                raise InputError(f"{one_line(system.name)} has two answers to {item.task} {one_line(item.id)}")
            answers[system.name] = item
    items = [_compared(task, id_, answers) for task in chosen for id_, answers in found[task].items()]
    if not items:
        raise InputError(f"there are no answers to {_list(chosen)} in these results")
    return items


def _compared(task: str, id_: str, answers: Mapping[str, ItemResult]) -> Compared:
    one = next(iter(answers.values()))
    return Compared(task, id_, one.question, one.gold, answers)


def _chosen(there: Sequence[str], wanted: Sequence[str] | None, what: str) -> list[str]:
    for name in wanted or ():
        if name not in there:
            raise InputError(f"no {what} {one_line(name)!r} in these results: there is {_list(there)}")
    return [name for name in there if wanted is None or name in wanted]


def _list(names: Iterable[str]) -> str:
    return ", ".join(one_line(name) for name in names) or "nothing"


def _shown(item: Compared, names: Sequence[str], blind_seed: int | None) -> tuple[_Shown, ...]:
    if blind_seed is None:
        return tuple(_Shown(name, name, item.answers.get(name)) for name in names)
    order = list(names)
    random.Random(to_json({"seed": blind_seed, "task": item.task, "id": item.id})).shuffle(order)
    return tuple(_Shown(_letters(n), name, item.answers.get(name)) for n, name in enumerate(order))


def _letters(n: int) -> str:
    """Return A to Z for 0 to 25, then AA, AB and so on."""
    return (_letters(n // 26 - 1) if n >= 26 else "") + chr(ord("A") + n % 26)


def _line(item: Compared, shown: Sequence[_Shown], *, is_blind: bool) -> dict[str, Any]:
    answers = [
        {"system": one.label, "answer": one.item and one.item.answer, **({} if is_blind else _figures(one.item))}
        for one in shown
    ]
    return {"task": item.task, "id": item.id, "question": item.question, "gold": item.gold, "answers": answers}


def _figures(item: ItemResult | None) -> dict[str, Any]:
    """Return what tells more of an answer; it could tell as well who wrote it."""
    if item is None:
        return {}
    return {
        "finish_detail": item.finish_detail,
        "n_base_tokens": item.n_base_tokens,
        "n_nudging_tokens": item.n_nudging_tokens,
        "score": item.score,
    }


def _key(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    return [
        {"task": item.task, "id": item.id, "systems": {one.label: one.system for one in shown}} for item, shown in rows
    ]


def _markdown(rows: Sequence[_Row]) -> str:
    def parts() -> Iterator[str]:
        yield "# Answers side by side"
        for item, shown in rows:
            yield f"## {_escaped(item.task)} {_escaped(item.id)}"
            yield _fenced(item.question)
            if item.gold:
                yield "Right answer:"
                yield _fenced(item.gold)
            for one in shown:
                yield f"### {_escaped(one.label)}"
                if one.item is None:
                    yield "*no answer*"
                else:
                    yield _fenced(one.item.answer) if one.item.answer.strip() else "*an empty answer*"

    return "\n\n".join(parts()) + "\n"


def _escaped(text: str) -> str:
    """Return a name as Markdown shows it, on one line."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text))


def _fenced(text: str) -> str:
    text = visible(text.replace("\r\n", "\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _table(rows: Sequence[_Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    labels = [one.label for one in rows[0][1]]
    writer.writerow(map(_cell, ["task", "id", "question", "gold", *labels]))
    for item, shown in rows:
        answers = [one.item.answer if one.item else "" for one in shown]
        writer.writerow(map(_cell, [item.task, item.id, item.question, item.gold, *answers]))
    return file.getvalue()


def _cell(text: str) -> str:
    return _FORMULA.sub("'", visible(text.replace("\r\n", "\n")))
