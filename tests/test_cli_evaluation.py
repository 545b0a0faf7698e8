"""eval, calibrate, compare and report DIR as a user types them, with a pair without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import B, Ended, Invoke, N, Script, fake_pair, invoker

from edge_nudge.catalog.manifest import load_manifest, user_pairs_dir
from edge_nudge.cli import report
from edge_nudge.cli.evaluate import DEFAULT_SYSTEMS, Pace
from edge_nudge.evaluate import runner
from edge_nudge.evaluate.plan import DEFAULT_SYSTEMS as PLANNED_SYSTEMS
from edge_nudge.evaluate.runner import Step
from edge_nudge.runtime import Pair, PairSpec

for package in ("lm_eval", "scipy", "matplotlib", "tomlkit"):
    pytest.importorskip(package)

# One word in eight is the nudging model's: nudging ratios as they should be.
EIGHTH: Script = tuple(
    (f" {word}", N if i % 8 == 0 else B) for i, word in enumerate(("so the sky is blue at noon or " * 3).split())
)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Invoke]:
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(tmp_path / "config"))
    yield from invoker(monkeypatch, tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions whose answer is blue, and one that wants a number."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"id": str(i), "question": f"What colour has sky number {i}?", "answer": "blue"} for i in range(4)]
    rows.append({"id": "n", "question": "How many skies?", "answer": "1"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"id": str(i), "question": f"Tell me of sky {i}."} for i in range(3)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the fake pair is asked, a word for each answer: its rule."""
    rules: list[str] = []
    monkeypatch.setattr(runner, "load_pair", fake_loader(rules))
    return rules


def fake_loader(rules: list[str], **script: Any) -> Callable[..., Pair]:
    def load(spec: PairSpec, **settings: Any) -> Pair:
        pair = fake_pair(spec=spec, **script)
        answer = pair.answer

        def counted(request: Any) -> Any:
            rules.append(request.nudge.rule.value)
            return answer(request)

        pair.check = lambda request: answer(request).close()  # type: ignore[method-assign]
        pair.answer = counted  # type: ignore[method-assign]
        return pair

    return load


def evaluate(
    invoke: Invoke, files: tuple[str, ...], data: Path, out: Path, *more: str, tasks: str = "questions"
) -> Ended:
    options = ("--systems", "base,nudging,nudged", "-n", "20", "--data", str(data), "-o", str(out))
    return invoke("eval", *tasks.split(), *files, *options, *more)


# --- eval


def test_a_pair_is_evaluated_and_its_pages_are_written(
    invoke: Invoke, files: tuple[str, ...], data: Path, tmp_path: Path, asked: list[str]
) -> None:
    ended = evaluate(invoke, files, data, tmp_path / "out")
    assert ended.code == 0, ended.err
    assert asked == ["base-only"] * 5 + ["nudging-only"] * 5 + ["top_prob"] * 5
    assert "| nudged | 80.0 %" in ended.out
    assert "| base | 0.0 %" in ended.out
    folder = tmp_path / "out"
    names = ("results.json", "summary.json", "report.md", "report.html", "run.json")
    assert all((folder / name).stat().st_size > 0 for name in names)
    assert [path.name for path in sorted((folder / "answers").iterdir())] == [
        "base.jsonl",
        "nudged.jsonl",
        "nudging.jsonl",
    ]
    results = json.loads((folder / "results.json").read_text())
    assert results["command"].startswith("edge-nudge eval questions")
    item = next(item for item in results["systems"][2]["items"] if item["id"] == "0")
    assert (item["score"], item["answer"]) == (1.0, "The sky is blue by day and\nblack later.")
    assert "".join(turn["text"] for turn in item["turns"]) == item["answer"]
    assert str(tmp_path / "out" / "report.html") in ended.err


def test_the_same_command_again_asks_nothing(
    invoke: Invoke, files: tuple[str, ...], data: Path, tmp_path: Path, asked: list[str]
) -> None:
    first = evaluate(invoke, files, data, tmp_path / "out", "--limit", "2")
    assert len(asked) == 6
    again = evaluate(invoke, files, data, tmp_path / "out", "--limit", "2")
    assert again.out == first.out
    assert len(asked) == 6
    more = evaluate(invoke, files, data, tmp_path / "out", "--limit", "3", "--json")
    assert len(asked) == 9
    assert json.loads(more.out)["format"] == "edge-nudge evaluation summary"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no task is named"),
        ("gsm9k", "there is no task 'gsm9k'"),
        ("questions questions", "task 'questions' is named twice"),
        ("questions --systems base,base", "system 'base' is named twice"),
        ("questions --systems oracle", "there is no system 'oracle'"),
        ("questions --systems nudged:gamma", "write gamma=VALUE"),
        ("questions --systems aligned", "name it with --aligned MODEL"),
        ("questions --limit 0", "'0' is no count"),
        ("questions --limit 5,gsm8k=3", "task 'gsm8k' is not asked"),
        ("gsm8k", "gsm8k.jsonl is not there"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    invoke: Invoke, files: tuple[str, ...], data: Path, asked: list[str], arguments: str, message: str
) -> None:
    ended = invoke("eval", *arguments.split(), *files, "--data", str(data))
    assert ended.code == 2
    assert message in ended.error
    assert asked == []


def test_data_has_no_default(invoke: Invoke) -> None:
    assert "name their folder with --data DIR" in invoke("eval", "gsm8k").error


def test_the_tasks_are_listed(invoke: Invoke) -> None:
    text = invoke("eval", "--list")
    assert "ARC-Challenge" in text.out
    document = json.loads(invoke("eval", "--list", "--json").out)
    assert {"task", "title", "file", "max_tokens", "metric"} == set(document["tasks"][0])


def test_the_default_systems_are_the_plans() -> None:
    assert DEFAULT_SYSTEMS == PLANNED_SYSTEMS


def test_the_time_left_is_of_answers_that_are_asked() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.line(Step("base", "svamp", 1, 40, True)) == "base svamp: 1 of 40 answers"
    now = 30.0
    assert pace.line(Step("base", "svamp", 2, 40, False)) == "base svamp: 2 of 40 answers, about 19 min left"
    now = 60.0
    assert pace.line(Step("base", "svamp", 39, 40, False)).endswith("about 30 s left")
    assert pace.line(Step("base", "svamp", 40, 40, False)).endswith("40 of 40 answers")


# --- report and compare


def test_pages_are_made_anew(
    invoke: Invoke, files: tuple[str, ...], data: Path, tmp_path: Path, asked: list[str]
) -> None:
    evaluate(invoke, files, data, tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    before = page.read_text()
    page.unlink()
    ended = invoke("report", str(tmp_path / "out"))
    assert ended.code == 0
    assert page.read_text() == before
    assert "has no meaning" in invoke("report", str(tmp_path / "out"), "-o", "x.html").error
    assert "cannot be read" in invoke("report", str(tmp_path)).error
    assert report.RESULTS_FILE == runner.RESULTS_FILE


def test_answers_are_put_side_by_side(
    invoke: Invoke, files: tuple[str, ...], data: Path, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "out"
    evaluate(invoke, files, data, out, tasks="prompts")
    ended = invoke("compare", str(out))
    assert ended.code == 0, ended.err
    assert "The sky is blue" in (out / "side_by_side.md").read_text()
    blind = invoke("compare", str(out), "--blind", "1", "--json")
    names = [Path(name).name for name in json.loads(blind.out)["files"]]
    assert names[-1].startswith("side_by_side_key")
    assert "nudging" not in (out / "side_by_side_blind.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--first nudged", "--first is for a judge"),
        ("--judge-url http://127.0.0.1:9/v1", "--judge-model NAME"),
        ("--judge-url http://127.0.0.1:9/v1 --judge-model x --blind 1", "a judge sees no names"),
        ("", "run edge-nudge eval first"),
    ],
)
def test_a_comparison_that_cannot_be_made(invoke: Invoke, tmp_path: Path, arguments: str, message: str) -> None:
    assert message in invoke("compare", str(tmp_path), *arguments.split()).error


# --- calibrate


def test_a_threshold_that_is_no_better_is_not_written(
    invoke: Invoke, files: tuple[str, ...], data: Path, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "cal"
    file = str(data / "questions.jsonl")
    ended = invoke("calibrate", file, *files, "--gammas", "0.3,0.95", "-n", "20", "-o", str(out))
    assert ended.code == 0, ended.err
    assert "recommended: top_prob at 0.4, as it is" in ended.out
    assert "nudging is not shown to help" in ended.out
    assert asked.count("top_prob") == 15
    assert not user_pairs_dir().exists()
    found = json.loads((out / "calibration.json").read_text())
    assert [point["setting"]["gamma"] for point in found["points"]] == [0.3, 0.4, 0.95]
    assert (out / "report.html").exists()


def test_a_better_ratio_is_written_into_the_users_manifest(
    invoke: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    rules: list[str] = []
    monkeypatch.setattr(runner, "load_pair", fake_loader(rules, script=EIGHTH))
    _, base, _, nudge = files
    user_pairs_dir().mkdir(parents=True)
    manifest = user_pairs_dir() / "mine.toml"
    manifest.write_text(
        '# my own\ntitle = "Mine"\ngamma = 0.95\n[base]\nprompt_format = "qa"\n'
        f'[base.source]\nkind = "file"\npath = "{base}"\n'
        f'[nudging.source]\nkind = "file"\npath = "{nudge}"\n'
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Why {i}?\n" for i in range(10)))
    options = ("--pair", "mine", "--gammas", "0.4", "-n", "24", "-o", str(tmp_path / "cal"))
    dry = invoke("calibrate", str(prompts), *options, "--no-write")
    assert dry.code == 0, dry.err
    assert load_manifest("mine").gamma == 0.95
    ended = invoke("calibrate", str(prompts), *options)
    assert ended.code == 0, ended.err
    assert "recommended: top_prob at 0.4:" in ended.out
    assert f"written: {manifest}" in ended.err
    assert load_manifest("mine").gamma == 0.4
    assert manifest.read_text().startswith("# my own\n")
    assert len(rules) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "which questions?"),
        ("--task gsm8k", "name their folder with --data DIR"),
        ("questions.txt --rules none", "'none' is nothing to calibrate"),
        ("questions.txt --rules top_prob,margin --gammas 0.2", "2 rules cannot be given as one list"),
        ("questions.txt --gammas x", "thresholds are numbers"),
        ("questions.txt --gammas 7", "gamma 7 is no threshold for top_prob"),
        ("missing.txt", "missing.txt cannot be read"),
    ],
)
def test_a_calibration_that_cannot_be_made(
    invoke: Invoke, files: tuple[str, ...], tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch,
    arguments: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("questions.txt").write_text("Why?\n")
    ended = invoke("calibrate", *arguments.split(), *files)
    assert ended.code == 2
    assert message in ended.error
    assert asked == []
