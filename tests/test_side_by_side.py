"""Answers side by side: nothing is lost or told apart from what it says, and no format acts on foreign text."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from evaluations import OPEN, results_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_nudge.core.visible import visible
from edge_nudge.errors import InputError
from edge_nudge.evaluate.results import ItemResult, Results
from edge_nudge.evaluate.side_by_side import compared, export_side_by_side

SYSTEMS = {"base": ["one", "two", "three"], "nudged": ["eins", "zwei", "drei"], "tuned": ["un", "deux", "trois"]}
# A name gives itself away in no other text than its own, so a blind file must not hold it.
NAMES = tuple(SYSTEMS)
TEXTS = st.text(st.characters(), max_size=60)
ODD = st.lists(st.sampled_from(["`", "```", "~~~", "\n", "\r", "=", "+", "-", "@", ";", "\t", ",", '"', " ", "a"])).map(
    "".join
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, strict=True))


def test_all_answers_stand_beside_each_other(tmp_path: Path) -> None:
    jsonl, markdown, table = export_side_by_side(results_of(SYSTEMS), tmp_path / "new")
    lines = lines_of(jsonl)
    assert [line["id"] for line in lines] == ["item-0", "item-1", "item-2"]
    for n, line in enumerate(lines):
        assert {one["system"]: one["answer"] for one in line["answers"]} == {name: SYSTEMS[name][n] for name in NAMES}
        assert line["question"] == "What is it?"
    assert table_of(table) == [
        ["task", "id", "question", "gold", *NAMES],
        *([OPEN, f"item-{n}", "What is it?", "", *(SYSTEMS[name][n] for name in NAMES)] for n in range(3)),
    ]
    text = markdown.read_text(encoding="utf-8")
    assert text.index("item\\-0") < text.index("one") < text.index("eins") < text.index("un\n") < text.index("item\\-1")


def test_a_missing_answer_is_none_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    jsonl, markdown, table = export_side_by_side(results_of({"a": ["", None], "b": ["x", "y"]}), tmp_path)
    assert [[one["answer"] for one in line["answers"]] for line in lines_of(jsonl)] == [["", "x"], [None, "y"]]
    text = markdown.read_text(encoding="utf-8")
    assert text.count("*no answer*") == 1
    assert text.count("*an empty answer*") == 1
    assert [row[-2:] for row in table_of(table)[1:]] == [["", "x"], ["", "y"]]


def test_blind_files_name_nobody_and_the_key_tells_all(tmp_path: Path) -> None:
    *blind, key_path = export_side_by_side(results_of(SYSTEMS), tmp_path, blind_seed=4)
    for path in blind:
        text = path.read_text(encoding="utf-8")
        assert not any(name in text for name in NAMES), path
        assert not any(word in text for word in ("n_base_tokens", "finish_detail", "score", "blind_seed")), path
    key = json.loads(key_path.read_text(encoding="utf-8"))
    assert key["blind_seed"] == 4
    for n, (line, entry) in enumerate(zip(lines_of(blind[0]), key["items"], strict=True)):
        assert (line["task"], line["id"]) == (entry["task"], entry["id"])
        assert [one["system"] for one in line["answers"]] == ["A", "B", "C"]
        assert {entry["systems"][one["system"]]: one["answer"] for one in line["answers"]} == {
            name: SYSTEMS[name][n] for name in NAMES
        }


def orders(folder: Path, seed: int, answers: dict[str, list[str]]) -> list[list[str]]:
    paths = export_side_by_side(results_of(answers), folder, blind_seed=seed)
    return [list(entry["systems"].values()) for entry in json.loads(paths[-1].read_text(encoding="utf-8"))["items"]]


def test_the_order_is_drawn_for_each_item_from_the_seed(tmp_path: Path) -> None:
    many = {name: [f"{name[0]}{n}" for n in range(60)] for name in NAMES}
    first = orders(tmp_path, 1, many)
    assert first == orders(tmp_path, 1, many)
    assert first != orders(tmp_path, 2, many)
    assert len({tuple(order) for order in first}) == 6
    assert first[:20] == orders(tmp_path, 1, {name: given[:20] for name, given in many.items()})


def test_more_systems_than_letters(tmp_path: Path) -> None:
    many = {f"s{n}": ["x"] for n in range(28)}
    jsonl = export_side_by_side(results_of(many), tmp_path, blind_seed=0)[0]
    labels = [one["system"] for one in lines_of(jsonl)[0]["answers"]]
    assert labels[:2] + labels[-3:] == ["A", "B", "Z", "AA", "AB"]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "  =1",
        "\n=1",
        "＝1",
        "－1",
        '=HYPERLINK("http://x","y")',
        "=cmd|' /C calc'!A0",
    ],
)
def test_no_cell_begins_a_formula(tmp_path: Path, text: str) -> None:
    table = export_side_by_side(results_of({text: [text]}, question=text), tmp_path)[2]
    cells = [cell for row in table_of(table) for cell in row if cell]
    assert len([cell for cell in cells if text.strip() in cell]) == 3  # the system's name, the question, the answer
    assert all(cell.startswith(("'", "task", "id", "question", "gold", OPEN, "item")) for cell in cells), cells


def test_no_cell_begins_a_formula_where_another_separator_cuts(tmp_path: Path) -> None:
    table = export_side_by_side(results_of({"s": ["x;=1;-2\t@3\n+4\n-5\n- a bullet"]}), tmp_path)[2]
    assert table_of(table)[1][-1] == "x;'=1;'-2\t'@3\n'+4\n'-5\n- a bullet"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS | ODD)
def test_any_text_comes_back_from_every_format(tmp_path: Path, text: str) -> None:
    jsonl, markdown, table = export_side_by_side(results_of({"s": [text, "next"]}, question=text), tmp_path)
    assert [line["answers"][0]["answer"] for line in lines_of(jsonl)] == [text, "next"]
    rows = table_of(table)
    assert [len(row) for row in rows] == [5, 5, 5]
    seen = visible(text.replace("\r\n", "\n"))
    for cell in rows[1][2], rows[1][4]:
        assert cell.replace("'", "") == seen.replace("'", "")
        assert not re.match(r"\s*[=+\-@＝＋－＠]", cell)
        assert not re.match(r"[\t\r\n]", cell)
    blocks = fenced_blocks(markdown.read_text(encoding="utf-8"))
    expected = [seen, *([seen] if text.strip() else []), seen, "next"]
    assert blocks == expected


def fenced_blocks(text: str) -> list[str]:
    """Return what stands in fences, as CommonMark reads them: a fence ends with as many backticks at least."""
    blocks, fence, lines = [], "", []
    for line in text.split("\n"):
        if not fence:
            if begins := re.match(r"(`{3,})text$", line):
                fence, lines = begins[1], []
            else:
                assert not line or re.match(r"#{1,3} |\*an empty answer\*$|Right answer:$", line), line
        elif re.match(rf" {{0,3}}`{{{len(fence)},}}\s*$", line):
            blocks.append("\n".join(lines))
            fence = ""
        else:
            lines.append(line)
    assert not fence
    return blocks


def test_names_do_not_become_markup(tmp_path: Path) -> None:
    name = "<b>[x](http://y)\n# `z` *w*"
    markdown = export_side_by_side(results_of({name: ["x"]}), tmp_path)[1].read_text(encoding="utf-8")
    heading = next(line for line in markdown.split("\n") if line.startswith("### "))
    assert heading == "### \\<b\\>\\[x\\]\\(http\\:\\/\\/y\\)\\\\n\\# \\`z\\` \\*w\\*"


def test_only_open_ended_tasks_unless_one_is_named(tmp_path: Path) -> None:
    results = results_of({"s": ["x"]})
    closed = results.tasks[0].model_copy(update={"name": "sums", "is_open_ended": False})
    item = ItemResult(task="sums", id="1", question="1 + 1", gold="2", answer="2", score=1)
    system = results.systems[0].model_copy(update={"items": (*results.systems[0].items, item)})
    both = results.model_copy(update={"tasks": (closed, *results.tasks), "systems": (system,)})
    assert [one.task for one in compared(both)] == [OPEN]
    markdown = export_side_by_side(both, tmp_path, tasks=["sums"])[1].read_text(encoding="utf-8")
    assert "Right answer:\n\n```text\n2\n```" in markdown
    only = both.model_copy(update={"tasks": (closed,)})
    with pytest.raises(InputError, match="none of the tasks sums is open-ended"):
        compared(only)


@pytest.mark.parametrize(
    ("results", "wanted", "message"),
    [
        (results_of(SYSTEMS), {"tasks": ["other"]}, "no task 'other' in these results: there is letters"),
        (results_of(SYSTEMS), {"systems": ["other"]}, "no system 'other'"),
        (results_of({"s": []}), {}, "no answers to letters"),
        (Results(), {}, "none of the tasks nothing is open-ended"),
        (results_of({"s": ["x"]}).model_copy(update={"systems": results_of({"s": ["x"]}).systems * 2}), {}, "one name"),
    ],
)
def test_what_cannot_be_compared_is_told(results: Results, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compared(results, **wanted)


def test_two_answers_of_one_system_are_told() -> None:
    results = results_of({"s": ["x"]})
    system = results.systems[0]
    doubled = system.model_copy(update={"items": system.items * 2})
    with pytest.raises(InputError, match="s has two answers to letters item-0"):
        compared(results.model_copy(update={"systems": (doubled,)}))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another folder"):
        export_side_by_side(results_of(SYSTEMS), tmp_path / "file")
