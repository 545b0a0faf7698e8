"""Rows of tasks, counts, kept answers, and the files that the harness reads."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge.errors import InputError
from edge_nudge.evaluate.answers import Kind
from edge_nudge.evaluate.kept import KeptAnswers, file_name, key_of
from edge_nudge.evaluate.plan import Plan, parse_counts, parse_tasks
from edge_nudge.evaluate.questions import TASKS, ask, find_task, gold_of
from edge_nudge.evaluate.results import ItemResult, TurnText
from edge_nudge.evaluate.rows import Half, choose, read_rows
from edge_nudge.evaluate.systems import parse_systems

NUMBER = {"id": "n-1", "question": "One and one?", "answer": "2", "choices": None, "context": None}
CHOICE = {"id": "c-1", "question": "What is red?", "answer": "B", "choices": ["grass", "a cherry"]}
ORDER = {"key": 7, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
ROWS: dict[Kind | None, dict[str, Any]] = {
    Kind.NUMBER: NUMBER,
    Kind.CHOICE: CHOICE,
    Kind.YES_NO: {**NUMBER, "answer": "true"},
    Kind.PLAUSIBLE: {**NUMBER, "answer": "implausible"},
    Kind.DATE: {**NUMBER, "answer": "05/01/2021"},
    Kind.LETTERS: {**NUMBER, "answer": "nkrA"},
    None: {"id": 1, "question": "Write a poem.", "answer": ""},
}


def write(folder: Path, task: str, *lines: Any) -> Path:
    file = folder / TASKS[task].file
    texts = [line if isinstance(line, (str, bytes)) else json.dumps(line, ensure_ascii=False) for line in lines]
    file.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return file


# Reading


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("questions", "ifeval")])
def test_every_task_reads_its_rows(name: str, tmp_path: Path) -> None:
    row = ROWS[TASKS[name].kind]
    write(tmp_path, name, row)
    assert read_rows(find_task(name), tmp_path) == [row]


def test_instructions_and_questions_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "ifeval", ORDER)
    assert read_rows(find_task("ifeval"), tmp_path) == [ORDER]
    write(tmp_path, "questions", NUMBER, {**NUMBER, "id": 2, "answer": "two"}, {**CHOICE, "id": 3})
    assert len(read_rows(find_task("questions"), tmp_path)) == 3


def test_a_byte_order_mark_windows_lines_and_empty_lines(tmp_path: Path) -> None:
    more = [{**NUMBER, "id": f"n-{i}"} for i in range(3)]
    file = write(tmp_path, "gsm8k", *more)
    data = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + data + b"\r\n\r\n  \r\n")
    assert read_rows(find_task("gsm8k"), tmp_path) == more


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_only_a_line_feed_ends_a_line(sign: str, tmp_path: Path) -> None:
    raw = json.dumps({**NUMBER, "question": "One @ one?"}).replace(
        "@", sign if sign > "\x20" else json.dumps(sign)[1:-1]
    )
    write(tmp_path, "gsm8k", raw)
    assert read_rows(find_task("gsm8k"), tmp_path)[0]["question"] == f"One {sign} one?"


WRONG: list[tuple[str, Any, str]] = [
    ("gsm8k", "not json", "no JSON"),
    ("gsm8k", "[" * 100_000, "no JSON"),
    ("gsm8k", '{"id": 1', "no JSON"),
    ("gsm8k", "[1]", "no JSON object"),
    ("gsm8k", "null", "no JSON object"),
    ("gsm8k", {**NUMBER, "id": None}, "an id and a question"),
    ("gsm8k", {**NUMBER, "id": True}, "an id and a question"),
    ("gsm8k", {**NUMBER, "id": 1.5}, "an id and a question"),
    ("gsm8k", {**NUMBER, "id": " "}, "an id and a question"),
    ("gsm8k", {**NUMBER, "question": "  "}, "an id and a question"),
    ("gsm8k", {**NUMBER, "question": ["x"]}, "an id and a question"),
    ("gsm8k", {**NUMBER, "answer": ""}, "an answer"),
    ("gsm8k", {**NUMBER, "answer": 2}, "an answer"),
    ("gsm8k", {**NUMBER, "answer": "two"}, "'two', which is no number"),
    ("gsm8k", {**NUMBER, "answer": "1e9999999"}, "which is no number"),
    ("gsm8k", {**NUMBER, "choices": 5}, "choices"),
    ("gsm8k", {**NUMBER, "context": 5}, "context"),
    ("gsm8k", '{"id": "1", "question": "\\ud800?", "answer": "1"}', "lone surrogate"),
    ("gsm8k", {**NUMBER, "id": "n-0"}, "'n-0' was there before, in line 1"),
    ("gsm8k", b'{"id": "\xff"}', "no UTF-8"),
    ("csqa", {**CHOICE, "choices": None}, "2 to 26 choices"),
    ("csqa", {**CHOICE, "choices": ["grass"]}, "2 to 26 choices"),
    ("csqa", {**CHOICE, "choices": ["x"] * 27}, "2 to 26 choices"),
    ("csqa", {**CHOICE, "choices": ["x", 1]}, "choices are a list of texts"),
    ("csqa", {**CHOICE, "choices": "ab"}, "choices are a list of texts"),
    ("csqa", {**CHOICE, "answer": "C"}, "'C', no letter of one of its 2 choices"),
    ("csqa", {**CHOICE, "answer": "b"}, "'b', no letter"),
    ("csqa", {**CHOICE, "answer": "a cherry"}, "no letter"),
    ("strategyqa", {**NUMBER, "answer": "maybe"}, "yes, no, true or false"),
    ("sports", {**NUMBER, "answer": "yes"}, "plausible or implausible"),
    ("date", {**NUMBER, "answer": "31/12/2021"}, "MM/DD/YYYY"),
    ("last_letters", {**NUMBER, "answer": "n k"}, "which is no word"),
    ("questions", {**NUMBER, "answer": "?!"}, "words or numbers"),
    ("questions", {**CHOICE, "answer": "z"}, "no letter"),
    ("ifeval", {**ORDER, "key": None}, "a key and a prompt"),
    ("ifeval", {**ORDER, "prompt": ""}, "a key and a prompt"),
    ("ifeval", {**ORDER, "kwargs": []}, "of one length"),
    ("ifeval", {**ORDER, "kwargs": {}}, "of one length"),
    ("ifeval", {**ORDER, "instruction_id_list": "x"}, "of one length"),
    ("ifeval", {**ORDER, "kwargs": [None]}, "each of its kwargs is an object"),
    ("just_eval", {"id": 1}, "an id and a question"),
]


@pytest.mark.parametrize(("task", "line", "said"), WRONG)
def test_a_wrong_row_is_told_with_its_file_and_line(task: str, line: Any, said: str, tmp_path: Path) -> None:
    good = ORDER if task == "ifeval" else {**ROWS[TASKS[task].kind], "id": "n-0"}
    if task == "questions":
        good = {**NUMBER, "id": "n-0"}
    file = write(tmp_path, task, good, "", line)
    with pytest.raises(InputError) as caught:
        read_rows(find_task(task), tmp_path)
    assert str(caught.value).startswith(f"{file}, line 3: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_empty_or_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gsm8k\.jsonl is not there: task gsm8k needs it"):
        read_rows(find_task("gsm8k"), tmp_path)
    file = write(tmp_path, "gsm8k", "", " ")
    with pytest.raises(InputError, match="has no rows"):
        read_rows(find_task("gsm8k"), tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"gsm8k\.jsonl cannot be read"):
        read_rows(find_task("gsm8k"), tmp_path)


def test_what_is_asked_and_what_is_right() -> None:
    row = {**CHOICE, "context": "Subject: botany"}
    lines = ask(find_task("mmlu"), row).split("\n")
    assert lines[:4] == ["Subject: botany", "What is red?", "A. grass", "B. a cherry"]
    assert lines[4].endswith("the letter of the right choice.")
    assert gold_of(find_task("mmlu"), row) == "B"
    assert ask(find_task("just_eval"), ROWS[None]) == "Write a poem."
    assert gold_of(find_task("just_eval"), ROWS[None]) == ""
    assert ask(find_task("ifeval"), ORDER) == "Write."
    assert gold_of(find_task("ifeval"), ORDER) == "punctuation:no_comma"


# Choosing

SIZES = st.integers(0, 200)
HALVES = st.sampled_from((None, "first", "second"))


@given(SIZES, st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**70), HALVES)
def test_a_larger_limit_asks_the_same_and_more(n_rows: int, few: int, more: int, seed: int, half: Half | None) -> None:
    few, more = sorted((few, more))
    chosen = choose(n_rows, limit=more, seed=seed, half=half)
    assert choose(n_rows, limit=few, seed=seed, half=half) == chosen[:few]
    assert choose(n_rows, limit=None, seed=seed, half=half)[:more] == chosen
    assert len(set(chosen)) == len(chosen) <= more


@given(SIZES, st.integers(0, 2**70))
def test_the_halves_share_nothing_and_are_all(n_rows: int, seed: int) -> None:
    first, second = (choose(n_rows, limit=None, seed=seed, half=half) for half in ("first", "second"))
    assert sorted([*first, *second]) == list(range(n_rows))
    assert not set(first) & set(second)
    assert len(second) - len(first) in (0, 1)


def test_the_choice_is_that_of_a_seed() -> None:
    chosen = [choose(1000, limit=5, seed=seed, half=None) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == [439, 621, 160, 549, 237]  # kept answers are of these rows: another order would ask anew


# Plans


def test_counts() -> None:
    tasks = parse_tasks(["gsm8k", "ifeval"])
    assert parse_counts("160", tasks) == {"gsm8k": 160, "ifeval": 160}
    assert (
        parse_counts("160,ifeval=256", tasks)
        == parse_counts(" ifeval=256 , 160 ", tasks)
        == {"gsm8k": 160, "ifeval": 256}
    )
    assert parse_counts("ifeval=5", tasks) == {"ifeval": 5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "x",
        "0",
        "-1",
        "1.5",
        "1000001",
        "9" * 5000,
        "²",
        "gsm8k=",
        "gsm8k=x",
        "=5",
        "svamp=5",
        "5,6",
        "ifeval=1,ifeval=2",
    ],
)
def test_wrong_counts(text: str) -> None:
    with pytest.raises(InputError, match=r"count|is not asked"):
        parse_counts(text, parse_tasks(["gsm8k", "ifeval"]))


def test_wrong_tasks() -> None:
    with pytest.raises(InputError, match="no task is named"):
        parse_tasks([])
    with pytest.raises(InputError, match="there is no task 'gsm': choose from gsm8k"):
        parse_tasks(["gsm"])
    with pytest.raises(InputError, match="'svamp' is named twice"):
        parse_tasks(["svamp", "gsm8k", "svamp"])


def test_a_plan_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    def plan(systems: str, half: Half | None = None, **files: Path) -> Plan:
        return Plan(
            parse_tasks(["gsm8k"]), tuple(parse_systems(systems)), tmp_path, tmp_path / "out", half=half, **files
        )

    write(tmp_path, "gsm8k", NUMBER)
    model = tmp_path / "model.gguf"
    model.touch()
    assert plan("base").check() == {"gsm8k": (1, 1)}
    assert plan("aligned,proxy", aligned=model, untuned=model).check() == {"gsm8k": (1, 1)}
    for wrong, said in (
        (plan("base", "first"), "gsm8k: nothing is left to ask of 1 rows"),
        (plan("aligned"), "--aligned MODEL"),
        (plan("proxy"), "--untuned MODEL"),
        (plan("base", aligned=model), "--aligned is for system aligned"),
        (plan("proxy", untuned=tmp_path / "none.gguf"), "none.gguf is not there"),
    ):
        with pytest.raises(InputError, match=said):
            wrong.check()
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match="seed is"):
            replace(plan("base"), seed=seed).check()
    assert not (tmp_path / "out").exists()


# The harness's files


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_file_says_what_its_task_says(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    import edge_nudge.evaluate.tasks as package

    task, folder = TASKS[name], Path(package.__file__).parent

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        """Reads `!function x` as its name."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    text = (folder / f"{task.harness_name}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# {task.title}\n")
    own = yaml.load(text, Loader)
    common = yaml.load((folder / own.pop("include")).read_text(encoding="utf-8"), Loader)
    metrics = [metric["metric"] for metric in own.pop("metric_list")]
    assert own.pop("metadata") == {"version": 1.0}
    assert own == {
        "task": task.harness_name,
        "dataset_kwargs": {"task": name},
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": task.max_tokens},
    }
    assert common["num_fewshot"] == 0
    assert common["output_type"] == "generate_until"
    kinds = ["prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc"]
    assert metrics == (kinds if task.is_instructions else ["answered"] if task.is_open_ended else ["acc", "answered"])
    assert task.metric in ("", *metrics)


def test_there_is_a_file_for_each_task_and_no_other() -> None:
    import edge_nudge.evaluate.tasks as package

    files = {file.stem for file in Path(package.__file__).parent.glob("*.yaml")}
    assert files == {task.harness_name for task in TASKS.values()}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": {"gsm8k": 1.5}}, "limit"),
        ({"seed": "x"}, "seed"),
        ({"half": "third"}, "half"),
        ({"half": "first"}, "nothing is left"),
    ],
)
def test_wrong_metadata_of_the_harness(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from edge_nudge.evaluate.tasks.functions import rows

    write(tmp_path, "gsm8k", NUMBER)
    assert len(rows("gsm8k", str(tmp_path), version=1.0)["test"]) == 1
    with pytest.raises(InputError, match=said):
        rows("gsm8k", str(tmp_path), **metadata)


def test_the_harness_is_told_where_the_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from edge_nudge.evaluate.tasks.functions import gold, question, results, rows

    monkeypatch.delenv("EDGE_NUDGE_EVAL_DATA", raising=False)
    with pytest.raises(InputError, match="EDGE_NUDGE_EVAL_DATA"):
        rows("csqa")
    write(tmp_path, "csqa", CHOICE)
    monkeypatch.setenv("EDGE_NUDGE_EVAL_DATA", str(tmp_path))
    (doc,) = rows("csqa")["test"]
    assert question(doc) == ask(TASKS["csqa"], CHOICE)
    assert gold(doc) == "B"
    assert results(doc, ["The answer is B."]) == {"acc": 1.0, "answered": 1.0}
    assert results(doc, ["The answer is A."]) == {"acc": 0.0, "answered": 1.0}
    assert results(doc, ["Who knows?"]) == {"acc": 0.0, "answered": 0.0}


# Kept answers

ITEMS = [
    ItemResult(
        task="gsm8k",
        id=f"n-{i}",
        question="One and one?\u2028 é",
        gold="2",
        answer=f"It is {i}.\n\u2028日本",
        turns=(TurnText(author="base", text="x", reason="policy", top_prob=0.5),),
    )
    for i in range(3)
]
KEYS = [key_of("gsm8k", item.id, {"max_tokens": 5}) for item in ITEMS]


def fill(folder: Path, system: str = "base") -> Path:
    with KeptAnswers(folder, system) as kept:
        for key, item in zip(KEYS, ITEMS, strict=True):
            kept.put(key, item)
    return kept.path


def test_answers_come_back(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "answers")
    with KeptAnswers(tmp_path / "deep" / "answers", "base") as kept:
        assert [kept.get(key) for key in KEYS] == ITEMS
        assert len(kept) == 3
        assert kept.get("none") is None


def test_a_key_is_that_of_everything_that_makes_an_answer() -> None:
    keys = {
        key_of(task, row, settings)
        for task in ("gsm8k", "svamp")
        for row in ("1", "2")
        for settings in ({}, {"gamma": 0.4}, {"gamma": 0.5}, {"gamma": 0.5, "temp": 1.0})
    }
    assert len(keys) == 16
    assert key_of("a", "b", {"x": 1, "y": 2}) == key_of("a", "b", {"y": 2, "x": 1})
    assert key_of("gsm8k", "1", {"gamma": 0.4}) == "0d064c678e59e3a6a58d6dd78386c028"  # what is kept stays findable


def test_two_systems_do_not_mix(tmp_path: Path) -> None:
    fill(tmp_path, "nudged:gamma=1e1")
    for other in ("nudged:gamma=1E1", "nudged", "nudged:gamma=1e+1"):
        with KeptAnswers(tmp_path, other) as kept:
            assert len(kept) == 0


def test_a_line_that_was_cut_anywhere_is_dropped_and_the_rest_lives(tmp_path: Path) -> None:
    data = fill(tmp_path).read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    assert len(ends) == 3
    for cut in range(len(data) + 1):
        path = tmp_path / "cut" / file_name("base")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[:cut])
        n_whole = sum(end <= cut for end in ends)
        with KeptAnswers(path.parent, "base") as kept:
            assert len(kept) == n_whole
            for key, item in list(zip(KEYS, ITEMS, strict=True))[n_whole:]:
                kept.put(key, item)
        assert path.read_bytes() == data


FOREIGN = [
    b"my notes, without a line end",
    b"my notes\n",
    b"[1, 2]\n",
    b"{}\n",
    b'{"key": "x"}\n',
    b'{"name": "another program',
    b"\xff\xfe\x00",
    b"\n",
    b"\x00" * 20,
    b"[" * 100_000 + b"\n",
    b'{"key": "x", "task": 5}\n',
]


@pytest.mark.parametrize("data", FOREIGN)
@pytest.mark.parametrize("is_behind", [False, True])
def test_what_is_not_ours_is_refused_untouched(data: bytes, is_behind: bool, tmp_path: Path) -> None:
    path = fill(tmp_path)
    data = path.read_bytes() + data if is_behind else data
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"base\.jsonl, line {4 if is_behind else 1}: no answer of an evaluation"):
        KeptAnswers(tmp_path, "base")
    assert path.read_bytes() == data


class _Full:
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = close = lambda self: self.write("")


def test_a_full_disk_is_told_and_no_answer_counts_as_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path)
    data = path.read_bytes()
    kept = KeptAnswers(tmp_path, "base")
    kept._file.close()
    monkeypatch.setattr(kept, "_file", _Full())
    with pytest.raises(InputError, match=r"answers cannot be kept in .*base\.jsonl: .*No space left"), kept:
        kept.put("new", ITEMS[0])
    assert kept.get("new") is None
    assert path.read_bytes() == data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_at_the_flush(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path, "base")
    kept._file.close()
    kept._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(InputError, match="No space left"), kept:
        kept.put("new", ITEMS[0])
    assert kept._file.closed


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="answers cannot be kept"):
        KeptAnswers(tmp_path / "file" / "answers", "base")
    (tmp_path / "base.jsonl").mkdir()
    with pytest.raises(InputError, match="answers cannot be kept"):
        KeptAnswers(tmp_path, "base")

    def refuse(path: Path, *args: Any, **settings: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    opening: Callable[..., Any] = refuse  # root may write everywhere, so permissions alone refuse nothing here
    monkeypatch.setattr(Path, "open", opening)
    with pytest.raises(InputError, match=r"answers cannot be kept in .*Permission denied"):
        KeptAnswers(tmp_path / "read-only", "nudged")
