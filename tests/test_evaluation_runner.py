"""A whole evaluation through lm-evaluation-harness, with answers from a script; and one with the demo pair."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import fake_pair
from filelock import FileLock

from edge_nudge.core.events import Event, FinishDetail, Finished, FinishReason, HandoffReason, Piece, Role, Usage
from edge_nudge.core.request import GenerateRequest
from edge_nudge.errors import CancelledError, ContextOverflowError, EngineError, InputError, ModelFileError
from edge_nudge.evaluate import runner
from edge_nudge.evaluate.answering import Stop, read_answer
from edge_nudge.evaluate.answers import find_answer
from edge_nudge.evaluate.plan import Plan, parse_tasks
from edge_nudge.evaluate.questions import TASKS, gold_of, row_id
from edge_nudge.evaluate.results import ItemResult, Results
from edge_nudge.evaluate.rows import read_rows
from edge_nudge.evaluate.runner import RESULTS_FILE, RUN_FILE, Step, evaluate, read_results
from edge_nudge.evaluate.systems import parse_systems
from edge_nudge.runtime import Answer, Pair, PairSpec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'edge-nudge[eval]'"
)

CHOICES = ["grass", "a cherry", "the sea"]
N_NUMBERS, N_CHOICES, N_POEMS = 5, 3, 2
N_ALL = N_NUMBERS + N_CHOICES + N_POEMS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {
        "gsm8k": [
            {"id": f"n-{i}", "question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(N_NUMBERS)
        ],
        "csqa": [
            {"id": f"c-{i}", "question": f"Which is {i}?", "answer": "ABC"[i], "choices": CHOICES}
            for i in range(N_CHOICES)
        ],
        "just_eval": [{"id": i, "question": f"Write poem {i}.", "answer": ""} for i in range(N_POEMS)],
    }
    for task, of_task in rows.items():
        (folder / TASKS[task].file).write_text("".join(json.dumps(row) + "\n" for row in of_task), encoding="utf-8")
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> PairSpec:
    for name in ("base", "nudging"):
        (tmp_path / f"{name}.gguf").write_bytes(name.encode())
    return PairSpec(tmp_path / "base.gguf", tmp_path / "nudging.gguf", "fake", gamma=0.4)


@dataclass
class Script:
    """What stands in for load_pair. It answers right but for n-1 and c-1, and counts and notes what it is asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)  # rule and question
    loads: list[dict[str, Any]] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)  # of the base model's prompts
    n_ctx: int = 8192
    n_open: int = 0
    before: Callable[[int, Answer | None], None] = lambda n_asked, answer: None
    inside: Callable[[int], None] = lambda n_asked: None

    def load_pair(self, spec: PairSpec, **settings: Any) -> Pair:
        self.loads.append({"spec": spec, **settings})
        pair = fake_pair(spec=spec, n_ctx=self.n_ctx)
        close = pair.close

        def closed() -> None:
            self.n_open -= 1
            close()

        self.n_open += 1
        tokenized = pair.answer
        pair.check = lambda request: tokenized(request).close()  # type: ignore[method-assign]
        pair.answer = lambda request: self.answer(request, pair)  # type: ignore[method-assign]
        pair.close = closed  # type: ignore[method-assign]
        return pair

    def answer(self, request: GenerateRequest, pair: Pair) -> Answer:
        question = request.messages[-1].content
        self.formats.append(pair.spec.base_prompt_format)
        self.asked.append((request.nudge.rule.value, question))
        n_asked, cancelled = len(self.asked), False
        assert request.cache_prompt is False
        assert request.sampling.temp == 0.0

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True

        def events() -> Iterator[Event]:
            first, rest = self.text(question)
            usage = Usage(total_s=float(n_asked))
            yield Piece(first, Role.NUDGING, None, HandoffReason.OPENING, 1)
            self.inside(n_asked)
            if cancelled:
                yield Finished(FinishReason.CANCELLED, FinishDetail.CANCELLED, usage, 0)
                return
            for word in rest:
                yield Piece(word, Role.BASE, 0.9, HandoffReason.CONFIDENT, 1)
            usage.nudging.n_written, usage.nudging.n_chars = 1, len(first)
            usage.base.n_written, usage.base.n_chars = len(rest), sum(map(len, rest))
            usage.n_handoffs = 1
            yield Finished(FinishReason.STOP, FinishDetail.END_OF_GENERATION, usage, 0)

        answer = Answer(events(), cancel)
        self.before(n_asked, answer)
        return answer

    @staticmethod
    def text(question: str) -> tuple[str, list[str]]:
        if question.startswith("What is"):
            n = int(question.split()[2])
            return "The", [" answer", f" is {2 * n if n != 1 else 3}."]
        if question.startswith("Which is"):
            return "It", [f" is ({'ABC'[int(question[9])] if question[9] != '1' else 'C'})."]
        return "A", [" poem."]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(runner, "load_pair", script.load_pair)
    return script


@pytest.fixture
def plan(data: Path, tmp_path: Path) -> Plan:
    return Plan(
        parse_tasks(["gsm8k", "csqa", "just_eval"]), tuple(parse_systems("base,nudged")), data, tmp_path / "out"
    )


def timeless(results: Results) -> Any:
    document = json.loads(results.model_dump_json(exclude={"started"}))
    for system in document["systems"]:
        for item in system["items"]:
            item["total_s"] = 0
    return document


def kept_items(folder: Path, system: str) -> dict[tuple[str, str], dict[str, Any]]:
    lines = (folder / "answers" / f"{system}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    records = [json.loads(line) for line in lines]
    return {(record["task"], record["id"]): record for record in records}


# One run


def test_a_run_asks_everything_and_counts_what_is_right(plan: Plan, spec: PairSpec, script: Script) -> None:
    steps: list[Step] = []
    results = evaluate(plan, spec, load={"ctx_size": 512}, command="c", machine="m", on_step=steps.append)
    assert read_results(plan.folder) == results == read_results(plan.folder / RESULTS_FILE)
    assert (results.command, results.machine, results.seed, results.half) == ("c", "m", 0, None)
    assert [system.name for system in results.systems] == ["base", "nudged"]
    assert [(task.name, task.n_rows, task.n_items) for task in results.tasks] == [
        ("gsm8k", 5, 5),
        ("csqa", 3, 3),
        ("just_eval", 2, 2),
    ]
    for system in results.systems:
        assert len({(item.task, item.id) for item in system.items}) == len(system.items) == N_ALL
        scores = {(item.task, item.id): item.score for item in system.items}
        assert scores == {
            **{("gsm8k", f"n-{i}"): float(i != 1) for i in range(N_NUMBERS)},
            **{("csqa", f"c-{i}"): float(i != 1) for i in range(N_CHOICES)},
            **{("just_eval", str(i)): None for i in range(N_POEMS)},
        }
        for item in system.items:
            assert "".join(turn.text for turn in item.turns) == item.answer
            assert [turn.author for turn in item.turns] == ["nudging", "base"]
            assert item.turns[1].top_prob == 0.9
            assert (item.n_nudging_tokens, item.n_handoffs, item.finish_detail) == (1, 1, "end_of_generation")
            assert item.n_base_chars + item.n_nudging_chars == len(item.answer)
    wrong = {item.id: item for item in results.systems[0].items if item.score == 0}
    assert (wrong["n-1"].extracted, wrong["n-1"].gold) == ("3", "2")
    assert (wrong["c-1"].extracted, wrong["c-1"].gold) == ("C", "B")
    base, nudged = results.systems
    assert (base.rule, base.gamma, base.is_nudged) == (None, None, False)
    assert (nudged.rule, nudged.gamma, nudged.is_nudged) == ("top_prob", 0.4, True)
    assert [step.n_done for step in steps] == list(range(1, 2 * N_ALL + 1))
    assert {step.n_all for step in steps} == {2 * N_ALL}
    assert not any(step.is_kept for step in steps)
    assert {rule for rule, _ in script.asked} == {"base-only", "top_prob"}
    assert len(script.loads) == 1  # one pair answers for both
    assert script.loads[0]["ctx_size"] == 512
    assert script.n_open == 0


def test_a_system_with_its_own_format_needs_no_second_load(plan: Plan, spec: PairSpec, script: Script) -> None:
    plan = replace(
        plan, systems=tuple(parse_systems("base,urial,nudging")), limit={"gsm8k": 1, "csqa": 1, "just_eval": 1}
    )
    results = evaluate(plan, spec, load={})
    assert [load["spec"].base_prompt_format for load in script.loads] == ["qa"]
    assert script.formats == ["qa"] * 3 + ["urial"] * 3 + ["qa"] * 3
    assert script.n_open == 0
    assert results.systems[1].settings == {"format": "urial"}
    base = results.pair["base"]
    assert isinstance(base, dict)
    assert base["prompt_format"] == "qa"  # the pair's own


def test_half_limit_and_seed_choose_the_same_items_for_all(plan: Plan, spec: PairSpec, script: Script) -> None:
    plan = replace(plan, half="second", limit={"gsm8k": 2}, seed=3, max_tokens={"gsm8k": 7})
    results = evaluate(plan, spec, load={})
    by_system = [[(item.task, item.id) for item in system.items] for system in results.systems]
    assert by_system[0] == by_system[1]
    chosen = [f"n-{i}" for i in plan.items_of(TASKS["gsm8k"], N_NUMBERS)]
    assert [id_ for task, id_ in by_system[0] if task == "gsm8k"] == chosen
    assert set(chosen) <= {"n-2", "n-3", "n-4"}
    assert {task.name: task.max_tokens for task in results.tasks} == {"gsm8k": 7, "csqa": 192, "just_eval": 512}


# Prompts that do not fit


@pytest.mark.parametrize(
    ("systems", "n_ctx", "message"),
    [
        # a token of the fake models is a byte, and the constant examples of urial are longer than all else
        ("base,nudging,urial", 1200, r"system urial: too long are 10 of 10 prompts, the longest task gsm8k, item n-3"),
        ("nudged", 512, r"system nudged: too long are 1 of 10 prompts, the longest task gsm8k, item n-3: prompt is "),
    ],
)
def test_a_prompt_that_does_not_fit_is_found_before_the_first_answer(
    plan: Plan, spec: PairSpec, script: Script, systems: str, n_ctx: int, message: str
) -> None:
    file = plan.data / TASKS["gsm8k"].file
    file.write_text(file.read_text().replace("What is 3 and 3?", f"What is 3 and {3 * 'three ' * 40}?"))
    script.n_ctx = n_ctx
    with pytest.raises(ContextOverflowError, match=message) as caught:
        evaluate(replace(plan, systems=tuple(parse_systems(systems))), spec, load={})
    assert f"its context is {n_ctx}: raise --ctx-size" in str(caught.value)
    assert caught.value.n_prompt > n_ctx
    assert script.asked == []
    assert script.n_open == 0


# Broken off, and gone on


@pytest.mark.parametrize("n_before", [0, 1, 6, N_ALL, N_ALL + 4, 2 * N_ALL - 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("no")])
def test_a_run_in_two_parts_gives_what_a_run_in_one_gives(
    n_before: int, error: Any, plan: Plan, spec: PairSpec, script: Script, tmp_path: Path
) -> None:
    whole = evaluate(replace(plan, folder=tmp_path / "whole"), spec, load={})
    script.asked.clear()

    def break_off(n_asked: int) -> None:
        if n_asked > n_before:
            raise error

    script.inside = break_off
    with pytest.raises((KeyboardInterrupt, EngineError)):
        evaluate(plan, spec, load={})
    assert len(script.asked) == n_before + 1
    assert script.n_open == 0
    assert (plan.folder / RESULTS_FILE).exists() == (n_before >= N_ALL)
    if n_before >= N_ALL:
        assert timeless(read_results(plan.folder))["systems"] == timeless(whole)["systems"][:1]
    script.inside = lambda n_asked: None
    script.asked.clear()
    steps: list[Step] = []
    results = evaluate(plan, spec, load={}, on_step=steps.append)
    assert len(script.asked) == 2 * N_ALL - n_before
    assert [step.is_kept for step in steps].count(True) == n_before
    assert timeless(results) == timeless(whole)
    script.asked.clear()
    assert evaluate(plan, spec, load={}).systems == results.systems  # now the times too
    assert script.asked == []


def test_an_answer_that_was_stopped_is_not_kept(plan: Plan, spec: PairSpec, script: Script) -> None:
    stop = Stop()
    script.inside = lambda n_asked: stop.ask() if n_asked == 4 else None
    with pytest.raises(CancelledError):
        evaluate(plan, spec, load={}, stop=stop)
    assert len(script.asked) == 4  # none is begun after it
    assert len(kept_items(plan.folder, "base")) == 3
    assert script.n_open == 0


def test_a_larger_limit_asks_what_is_new(plan: Plan, spec: PairSpec, script: Script) -> None:
    first = evaluate(replace(plan, limit={"gsm8k": 2, "csqa": 1, "just_eval": 1}), spec, load={})
    assert len(script.asked) == 2 * 4
    former = {question for _, question in script.asked}
    script.asked.clear()
    second = evaluate(replace(plan, limit={"gsm8k": 4, "csqa": 1, "just_eval": 1}), spec, load={})
    assert len(script.asked) == 2 * 2
    assert not former & {question for _, question in script.asked}
    by_id = {(item.task, item.id): item for item in second.systems[0].items}
    assert all(by_id[item.task, item.id] == item for item in first.systems[0].items)
    script.asked.clear()
    evaluate(replace(plan, limit={"gsm8k": 1, "csqa": 1, "just_eval": 1}), spec, load={})
    assert script.asked == []


def test_another_setting_is_another_answer(plan: Plan, spec: PairSpec, script: Script) -> None:
    plan = replace(plan, tasks=parse_tasks(["csqa"]), systems=tuple(parse_systems("nudged")))
    evaluate(plan, spec, load={})
    for changed, of_spec in (
        (replace(plan, max_tokens={"csqa": 9}), spec),
        (plan, replace(spec, gamma=0.3)),
        (replace(plan, systems=tuple(parse_systems("nudged:rule=margin"))), spec),
    ):
        script.asked.clear()
        evaluate(changed, of_spec, load={})
        assert len(script.asked) == N_CHOICES
    script.asked.clear()
    evaluate(plan, spec, load={})
    assert script.asked == []


def test_kept_answers_are_judged_anew(plan: Plan, spec: PairSpec, script: Script, data: Path) -> None:
    """A right answer that was wrong in the file is set right without asking again."""
    evaluate(plan, spec, load={})
    file = data / TASKS["gsm8k"].file
    file.write_text(file.read_text().replace('"answer": "2"', '"answer": "3"'))
    script.asked.clear()
    results = evaluate(plan, spec, load={})
    assert script.asked == []
    assert next(item.score for item in results.systems[0].items if item.id == "n-1") == 1.0


# The folder


def test_the_results_are_whole_at_every_moment(plan: Plan, spec: PairSpec, script: Script) -> None:
    seen = []

    def look(step: Step) -> None:
        file = plan.folder / RESULTS_FILE
        seen.append(len(read_results(plan.folder).systems) if file.exists() else None)

    evaluate(plan, spec, load={}, on_step=look)
    assert seen == [None] * N_ALL + [1] * N_ALL
    assert not [path for path in plan.folder.iterdir() if path.name not in (RESULTS_FILE, RUN_FILE, ".lock", "answers")]


def test_another_pair_is_refused(plan: Plan, spec: PairSpec, script: Script, tmp_path: Path) -> None:
    evaluate(plan, spec, load={"ctx_size": 512})
    before = {path: path.read_bytes() for path in plan.folder.rglob("*") if path.is_file()}
    script.asked.clear()
    other = tmp_path / "other.gguf"
    other.write_bytes(b"other")
    (tmp_path / "same").mkdir()
    same_name = tmp_path / "same" / "base.gguf"
    same_name.write_bytes(b"changed")
    for changed, load, said in (
        (replace(spec, base=other), {"ctx_size": 512}, r"base: base\.gguf \w{8}, now other\.gguf \w{8}"),
        (replace(spec, base=same_name), {"ctx_size": 512}, "base"),
        (replace(spec, nudging=other), {"ctx_size": 512}, "nudging"),
        (replace(spec, nudging_adapter=other), {"ctx_size": 512}, "nudging"),
        (replace(spec, base_prompt_format="chat"), {"ctx_size": 512}, "base_prompt_format: qa, now chat"),
        (replace(spec, chat_template="{{ messages }}"), {"ctx_size": 512}, "chat_template"),
        (spec, {"ctx_size": 1024}, "ctx_size: 512, now 1024"),
        (spec, {}, "ctx_size: 512, now none"),
        (spec, {"ctx_size": 512, "base_kv_type": "q8_0"}, "base_kv_type"),
    ):
        with pytest.raises(InputError, match=f"holds answers of another pair or other settings .*{said}"):
            evaluate(plan, changed, load=load)
    assert {path: path.read_bytes() for path in plan.folder.rglob("*") if path.is_file()} == before
    assert script.asked == []
    (tmp_path / "moved").mkdir()
    moved = spec.base.rename(tmp_path / "moved" / "base.gguf")
    evaluate(plan, replace(spec, base=moved), load={"ctx_size": 512, "threads": 1})  # a file may lie elsewhere
    assert script.asked == []


def test_a_changed_aligned_model_is_refused(plan: Plan, spec: PairSpec, script: Script, tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    large.write_bytes(b"large")
    alone = replace(plan, systems=tuple(parse_systems("aligned")), aligned=large)
    evaluate(plan, spec, load={})
    evaluate(alone, spec, load={})
    assert script.loads[-1]["spec"].nudging == large
    evaluate(plan, spec, load={})
    script.asked.clear()
    evaluate(alone, spec, load={})
    assert script.asked == []
    large.write_bytes(b"another one under its name")
    with pytest.raises(InputError, match=r"aligned: large\.gguf"):
        evaluate(alone, spec, load={})
    evaluate(plan, spec, load={})


def test_one_process_works_in_a_folder(plan: Plan, spec: PairSpec, script: Script) -> None:
    plan.folder.mkdir()
    with FileLock(plan.folder / ".lock"), pytest.raises(InputError, match="another evaluation works in"):
        evaluate(plan, spec, load={})
    assert script.loads == []
    evaluate(plan, spec, load={})  # the lock is gone with its holder

    def again(step: Step) -> None:
        with pytest.raises(InputError, match="another evaluation works in"):
            evaluate(plan, spec, load={})

    evaluate(plan, spec, load={}, on_step=again)


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "null", "\x00", '"edge_nudge"', "[" * 100_000])
def test_a_folder_of_another_program_is_refused(text: str, plan: Plan, spec: PairSpec, script: Script) -> None:
    plan.folder.mkdir()
    (plan.folder / RUN_FILE).write_text(text)
    with pytest.raises(InputError, match=r"run\.json (cannot be read|is no file of an evaluation)"):
        evaluate(plan, spec, load={})
    assert (plan.folder / RUN_FILE).read_text() == text
    assert script.loads == []


def test_what_cannot_be_read_or_written_is_told(
    plan: Plan, spec: PairSpec, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelFileError, match=r"none\.gguf cannot be read"):
        evaluate(plan, replace(spec, base=tmp_path / "none.gguf"), load={})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be used"):
        evaluate(replace(plan, folder=tmp_path / "file"), spec, load={})
    with pytest.raises(InputError, match="cannot be used"):
        evaluate(replace(plan, folder=tmp_path / "file" / "out"), spec, load={})

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_whole", full)
    with pytest.raises(InputError, match=r"run\.json cannot be written: No space left"):
        evaluate(replace(plan, folder=tmp_path / "full"), spec, load={})
    assert script.asked == []


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there: run edge-nudge eval first"):
        read_results(tmp_path)
    for text in ("", "{", "[]", '{"format": "x"}', '{"format_version": 2}', '{"systems": [{"name": 1}]}', "[" * 10_000):
        (tmp_path / RESULTS_FILE).write_text(text)
        with pytest.raises(InputError, match=r"results\.json holds no evaluation") as caught:
            read_results(tmp_path)
        assert "\n" not in str(caught.value)


# What it leaves behind, and what it never does


def test_nothing_is_fetched(plan: Plan, spec: PairSpec, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(*args: Any, **settings: Any) -> Any:
        tried.append(str(args))
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    evaluate(plan, spec, load={})
    assert tried == []


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_environment_and_the_loggers_are_as_before(
    is_broken: bool, plan: Plan, spec: PairSpec, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.evaluator
    import lm_eval.tasks  # noqa: F401  # importing them sets levels of their own

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    before, inside = dict(os.environ), []
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logger.level)
        logger.setLevel(logging.INFO)

    def look(n_asked: int) -> None:
        inside.append(
            {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE")}
        )
        if is_broken:
            raise EngineError("no")

    script.inside = look
    if is_broken:
        with pytest.raises(EngineError, match="no"):
            evaluate(plan, spec, load={})
    else:
        evaluate(plan, spec, load={})
    assert set(inside[0].values()) == {"1"}
    assert dict(os.environ) == before
    assert [logger.level for logger in loggers] == [logging.INFO] * 3


def test_an_error_of_the_system_in_the_middle_is_not_blamed_on_the_folder(
    plan: Plan, spec: PairSpec, script: Script
) -> None:
    def fail(n_asked: int) -> None:
        raise OSError("a driver is gone")

    script.inside = fail
    with pytest.raises(OSError, match="a driver is gone"):
        evaluate(plan, spec, load={})


def test_neighbours_of_one_author_and_reason_are_one_turn() -> None:
    pieces = [
        Piece("a", Role.NUDGING, None, HandoffReason.OPENING, 1),
        Piece(" b", Role.BASE, 0.9, HandoffReason.CONFIDENT, 1),
        Piece(" c", Role.BASE, 0.7, HandoffReason.CONFIDENT, 1),
        Piece(" d", Role.NUDGING, 0.1, HandoffReason.UNSURE, 1),
        Piece(" e", Role.NUDGING, 0.2, HandoffReason.LOOP, 1),
    ]
    end = Finished(FinishReason.STOP, FinishDetail.END_OF_GENERATION, Usage(), 0)
    answered = read_answer(iter([*pieces, end]))
    assert answered.text == "a b c d e"
    assert [(turn.text, turn.top_prob) for turn in answered.turns] == [
        ("a", None),
        (" b c", 0.9),
        (" d", 0.1),
        (" e", 0.2),
    ]
    assert read_answer(iter([end])).turns == ()


# The real thing


@pytest.mark.demo
@pytest.mark.native
def test_the_demo_pair(data: Path, demo_paths: tuple[Path, Path], tmp_path: Path) -> None:
    tasks = parse_tasks(["gsm8k", "csqa"])
    systems = tuple(parse_systems("base,nudging,nudged,urial"))
    plan = Plan(tasks, systems, data, tmp_path / "out", {"gsm8k": 2, "csqa": 2}, max_tokens={"gsm8k": 12, "csqa": 8})
    spec = PairSpec(*demo_paths, gamma=0.4)
    results = evaluate(plan, spec, load={"ctx_size": 512, "threads": 1})
    assert [system.name for system in results.systems] == ["base", "nudging", "nudged", "urial"]
    for system in results.systems:
        kept = kept_items(plan.folder, system.name)
        assert len(kept) == len(system.items) == 4
        for task in tasks:
            rows = {row_id(task, row): row for row in read_rows(task, data)}
            items = [item for item in system.items if item.task == task.name]
            assert [item.id for item in items] == [list(rows)[i] for i in plan.items_of(task, len(rows))]
            for item in items:
                check_item(item, kept[task.name, item.id], rows[item.id], system.name)
                assert item.n_tokens <= plan.limit_of(task)
    again = evaluate(plan, spec, load={"ctx_size": 512, "threads": 1})
    assert again.systems == results.systems


def check_item(item: ItemResult, record: dict[str, Any], row: dict[str, Any], system: str) -> None:
    task = TASKS[item.task]
    assert item.answer == record["answer"] == "".join(turn["text"] for turn in record["turns"])
    assert item.gold == gold_of(task, row) == row["answer"]
    assert row["question"] in item.question
    assert task.kind is not None
    found = find_answer(task.kind, record["answer"], row.get("choices") or ())
    assert item.extracted == found
    is_same = found is not None and (
        float(found) == float(row["answer"]) if item.task == "gsm8k" else found == row["answer"]
    )
    assert item.score == item.metrics["acc"] == float(is_same)
    assert item.metrics["answered"] == float(found is not None)
    assert item.n_base_chars == sum(len(turn["text"]) for turn in record["turns"] if turn["author"] == "base")
    assert item.n_nudging_chars == sum(len(turn["text"]) for turn in record["turns"] if turn["author"] == "nudging")
    writers = {"base": {"base"}, "urial": {"base"}, "nudging": {"nudging"}, "nudged": {"base", "nudging"}}[system]
    assert {turn["author"] for turn in record["turns"]} <= writers
    assert item.n_tokens > 0
