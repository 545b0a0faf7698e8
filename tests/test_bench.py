"""The benchmark: what is asked in which order, figures against hand-made counts, costs against a counting fake."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import LONG, SHORT, Invoke, fake_pair, invoker, loader, no_load
from worlds import straight_curve

from edge_nudge import runtime
from edge_nudge.bench import machine, report, trials
from edge_nudge.bench.best import over_best, over_foreseen
from edge_nudge.bench.prompts import PROMPTS
from edge_nudge.bench.trials import ALWAYS, COMMON, MODES, Plan, Trial, rotated, run_trials, schedule
from edge_nudge.cli import bench_options
from edge_nudge.cli.bench_tables import report_text
from edge_nudge.core.costs import CostCurve
from edge_nudge.core.events import Cause, FinishDetail, ModelUsage, Role, Usage
from edge_nudge.core.request import GenerateRequest
from edge_nudge.engine.costs import COMPARED, SIZES, measure_costs
from edge_nudge.errors import ContextOverflowError, EngineError, InputError
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

invoke = pytest.fixture(invoker)
FILES = ("-m", "base.gguf", "--nudge", "nudging.gguf")


# --- what is asked, and in which order


def test_each_trial_answers_every_prompt_in_every_mode_and_rotates_the_modes() -> None:
    plan = Plan(("short", "code"), n_trials=3)
    warm_up, rest = list(schedule(plan))[:3], list(schedule(plan))[3:]
    assert warm_up == [(None, "short", mode) for mode in ALWAYS]
    assert [number for number, _, _ in rest] == sorted(number for number, _, _ in rest if number is not None)
    for number in range(3):
        for prompt in plan.prompts:
            own = [mode for n, p, mode in rest if (n, p) == (number, prompt)]
            assert tuple(own) == rotated(ALWAYS, number)
    for place in range(3):  # over three trials, each mode had each place once
        assert {rotated(ALWAYS, number)[place] for number in range(3)} == set(ALWAYS)
    assert len(warm_up) + len(rest) == plan.n_answers


def test_every_answer_is_greedy_unguarded_and_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = fake_pair(SHORT)
    seen: list[tuple[GenerateRequest, int, int]] = []
    original = runtime.Pair.answer

    def answer(self: runtime.Pair, request: GenerateRequest) -> Any:
        seen.append((request, self.base.n_cached, self.nudging.n_cached))
        return original(self, request)

    monkeypatch.setattr(runtime.Pair, "answer", answer)
    plan = Plan(("short",), (*ALWAYS, "reference"), n_trials=2, max_tokens=5)
    found = run_trials(pair, plan)
    asked = seen[4:]  # the first four only ask whether the prompt fits
    assert len(asked) == plan.n_answers == 12
    assert [(n_base, n_nudging) for _, n_base, n_nudging in asked] == [(0, 0)] * 12
    for request, _, _ in asked:
        assert (request.sampling.temp, request.nudge.loop_guard, request.nudge.end_prob) == (0.0, False, 2.0)
        assert request.max_tokens == 5
    rules = [(request.nudge.rule.value, request.nudge.lookahead) for request, _, _ in asked[:4]]
    assert rules == [("base-only", 1), ("nudging-only", 1), ("top_prob", 1), ("top_prob", 16)]
    assert all(trial.usage.base.n_reused == trial.usage.nudging.n_reused == 0 for trial in found)
    assert [trial.number for trial in found] == [0] * 4 + [1] * 4


def test_prompts_are_different_texts_and_the_long_one_is_long() -> None:
    assert list(PROMPTS) == ["short", "long", "code", "list", "multi-turn", "quote", "rewrite"]
    assert [message["role"] for message in PROMPTS["multi-turn"]] == ["user", "assistant"] * 2 + ["user"]
    days = [line for line in PROMPTS["long"][0]["content"].splitlines() if line.startswith("Day ")]
    assert len({line.split(": ", 1)[1] for line in days}) == len(days)
    assert 900 < len(PROMPTS["long"][0]["content"].split()) < 1300
    for name in PROMPTS:
        trials.request_of(Plan((name,)), name, "nudged")
    assert len({str(conversation) for conversation in PROMPTS.values()}) == len(PROMPTS)


def test_what_is_to_be_repeated_is_long_and_the_file_is_python() -> None:
    instruction, _, text = PROMPTS["quote"][0]["content"].partition("\n\n")
    assert "word by word" in instruction
    assert len(text.split()) > 100  # an answer of 100 tokens has something to repeat all along
    file = PROMPTS["rewrite"][0]["content"].split("```python\n")[1].split("```")[0]
    compile(file, "planks.py", "exec")
    assert file.count("total_length") == 2
    assert 20 <= file.count("\n") <= 30


def test_a_prompt_that_does_not_fit_is_found_before_the_first_answer() -> None:
    said: list[str] = []
    with pytest.raises(ContextOverflowError):
        run_trials(fake_pair(SHORT, n_ctx=400), Plan(("short", "long")), said.append)
    assert said == []


# --- figures against hand-made counts


def made(number: int, mode: str, total_s: float, first_s: float | None, n: tuple[int, int], **more: Any) -> Trial:
    base = ModelUsage(n_prompt=7, n_written=n[0], n_calls=more.get("calls", 0), native_s=more.get("native_s", 0.0))
    base.evaluated.update({Cause.PROMPT: 7, **more.get("evaluated", {})})
    usage = Usage(base, ModelUsage(n_prompt=9, n_written=n[1]), more.get("handoffs", 0), first_s, total_s)
    return Trial(number, more.get("prompt", "short"), mode, more.get("detail", FinishDetail.MAX_TOKENS), usage)


def test_ratios_are_of_answers_of_one_trial_and_prompt() -> None:
    found = [
        made(0, "base", 1.0, 0.1, (10, 0)), made(0, "nudged", 2.0, 0.2, (5, 5)),  # 0.5
        made(1, "base", 4.0, 0.1, (10, 0)), made(1, "nudged", 4.0, 0.4, (5, 5)),  # 1.0
        made(2, "base", 1.0, 0.1, (10, 0)), made(2, "nudged", 4.0, 0.3, (10, 10)),  # 0.5, twice as many tokens
        made(0, "base", 9.0, 0.1, (10, 0), prompt="code"),  # no nudged answer to compare with
        made(3, "nudged", 9.0, 0.1, (10, 0)), made(3, "base", 0.0, None, (0, 0)),  # nothing to divide by
    ]  # fmt: skip
    assert report.paired_ratios(found, "nudged", "base", report._tokens_per_s) == [0.5, 1.0, 0.5]
    document = report.trials_document(found, Plan(("short", "code"), ("base", "nudged"), n_trials=4, max_tokens=10), {})
    assert document["all"]["ratios"]["tokens_per_s"] == {"nudged/base": {"median": 0.5, "q1": 0.5, "q3": 0.75}}
    assert document["prompts"]["code"]["ratios"]["tokens_per_s"] == {"nudged/base": None}
    assert document["all"]["ratios"]["first_piece_s"] == {}  # the nudging model alone was not measured


def test_counts_are_exact_for_each_output_token() -> None:
    evaluated = {Cause.OWN: 3, Cause.CATCH_UP: 4, Cause.REEVALUATED: 1, Cause.VERIFIED: 2, Cause.WASTED: 3}
    found = [
        made(0, "nudged", 2.0, 0.2, (6, 2), evaluated=evaluated, calls=5, handoffs=3, native_s=1.5),
        made(1, "nudged", 2.0, 0.2, (5, 3), evaluated={Cause.OWN: 1}, calls=3, handoffs=1, native_s=1.5),
    ]
    document = report.trials_document(found, Plan(("short",), ("nudged",), n_trials=2, max_tokens=8), {})
    section = document["prompts"]["short"]
    assert section["prompt_tokens"] == {"base": 7, "nudging": 9}
    figures = section["modes"]["nudged"]
    assert figures["per_token"]["base"] == {
        "own": 0.25, "catch_up": 0.25, "reevaluated": 1 / 16, "verified": 0.125, "wasted": 3 / 16, "calls": 0.5,
    }  # fmt: skip
    assert set(figures["per_token"]["nudging"].values()) == {0.0}
    assert (figures["handoffs_per_token"], figures["nudging_ratio"]) == (0.25, 5 / 16)
    assert figures["tokens_per_s"]["median"] == 4.0
    assert figures["outside_native"]["median"] == 0.25
    assert document["answers"][0]["base"]["evaluated"] == {
        "prompt": 7, "own": 3, "catch_up": 4, "reevaluated": 1, "verified": 2, "wasted": 3,
    }  # fmt: skip
    assert document["early_ends"] == []


def test_causes_that_never_came_have_no_column(invoke: Invoke, files: tuple[str, ...]) -> None:
    document = json.loads(invoke("bench", *files, "--json", "-n", "5", "--trials", "1", "--prompt", "short").out)
    per_token = document["prompts"]["short"]["modes"]["nudged"]["per_token"]
    per_token["base"]["wasted"] = per_token["nudging"]["verified"] = 0.0
    for mode in ALWAYS:
        document["prompts"]["short"]["modes"][mode]["per_token"]["base"]["verified"] = 0.0
    assert "wasted" not in report_text(document)
    assert "base: verified" not in report_text(document)
    per_token["base"]["wasted"] = 0.25
    per_token["nudging"]["verified"] = 0.5
    titles = next(line for line in report_text(document).splitlines() if "base: own" in line)
    assert titles.index("base: own") < titles.index("base: wasted") < titles.index("base: calls")
    assert titles.index("base: calls") < titles.index("nudging: verified") < titles.index("nudging: calls")
    assert "nudging: wasted" not in titles


def test_what_the_writing_could_have_taken() -> None:
    """A step is one second, each further token of a batch costs a tenth, its row two tenths."""
    curves = dict.fromkeys(Role, straight_curve(0.1, 0.2))
    base = ModelUsage(n_asked=11, prompt_s=3.0)
    base.evaluated.update({Cause.OWN: 6, Cause.CATCH_UP: 10, Cause.VERIFIED: 4, Cause.WASTED: 9, Cause.REEVALUATED: 2})
    usage = Usage(base, ModelUsage(n_asked=1), total_s=3.0 + 22.0)
    # 20 tokens for 10 questions: 10 batches of 2, of 1.1 seconds each
    assert over_best(usage, curves) == pytest.approx(22.0 / 11.0 - 1)
    # 20 tokens in batches of 16 with all rows, 1 + 15 * 0.3 seconds for each 16
    assert over_foreseen(usage, curves) == pytest.approx(22.0 / (20 * 5.5 / 16) - 1)
    assert over_best(Usage(total_s=1.0), curves) is None


def test_quartiles() -> None:
    assert report.spread([]) is report.spread([None]) is None
    assert report.spread([3.0, None]) == {"median": 3.0, "q1": 3.0, "q3": 3.0}
    assert report.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


def test_an_answer_without_tokens_or_time_has_no_figures_and_no_nan() -> None:
    found = [made(0, mode, 0.0, None, (0, 0), detail=FinishDetail.END_OF_GENERATION) for mode in ALWAYS]
    document = report.trials_document(found, Plan(("short",), n_trials=1), {})
    json.dumps(document, allow_nan=False)
    assert document["all"]["modes"]["base"]["tokens_per_s"] is None
    assert document["all"]["modes"]["base"]["nudging_ratio"] is None
    assert [(end["mode"], end["n_tokens"], end["detail"]) for end in document["early_ends"]] == [
        (mode, 0, "end_of_generation") for mode in ALWAYS
    ]


# --- costs


def counting(**options: Any) -> FakeBackend:
    vocabulary = ToyVocabulary((" the", "ing"))
    return FakeBackend(vocabulary, hashed_scores(vocabulary), **options)


def ticking(backend: FakeBackend) -> Callable[[], float]:
    """A clock that stands for what was evaluated: a millisecond for each token, ten for each row."""
    return lambda: backend.n_evaluated * 1e-3 + backend.n_rows * 1e-2


def test_costs_are_medians_by_size_and_rows() -> None:
    backend = counting()
    curve = measure_costs(backend, clock=ticking(backend), budget_s=1e9, max_rounds=3)
    assert (curve.n_context, curve.n_rounds, curve.reset_by) == (64, 3, "rewind")
    assert [cost.n_tokens for cost in curve.costs] == list(SIZES)
    for cost in curve.costs:
        assert cost.last_s == pytest.approx(cost.n_tokens * 1e-3 + 1e-2)
        assert cost.every_s == pytest.approx(cost.n_tokens * 1.1e-2)
    # the context, one warm-up of the largest size, then each size twice a round; rewinding evaluates nothing
    timed = 64 + 32 + 3 * 2 * sum(SIZES)
    # 33 single steps to compare with, the sizes that are compared and not timed, a step behind each compared size
    only_compared = [size for size in COMPARED if size not in SIZES]
    assert backend.n_evaluated == timed + 33 + sum(only_compared) + len(COMPARED)
    assert backend.n_calls == 1 + 1 + 3 * 2 * len(SIZES) + 33 + len(only_compared) + len(COMPARED)
    assert backend.n_cached == 0


def test_a_model_that_cannot_rewind_reads_the_context_again_untimed() -> None:
    backend = counting(can_rewind=False)
    curve = measure_costs(backend, clock=ticking(backend), budget_s=1e9, max_rounds=1)
    assert curve.reset_by == "re-evaluation"
    assert curve.costs[0].last_s == pytest.approx(1.1e-2)
    assert backend.n_evaluated == 64 + 96 + sum(2 * (64 + size) for size in SIZES)


def test_costs_keep_within_batch_context_and_budget() -> None:
    small = measure_costs(counting(n_batch=4), max_rounds=1)
    assert [cost.n_tokens for cost in small.costs] == [1, 2, 3, 4]
    short = measure_costs(counting(n_ctx=10), max_rounds=1)
    assert [cost.n_tokens for cost in short.costs] == [1, 2, 3, 4, 6, 8]
    assert short.n_context == 2
    with pytest.raises(EngineError, match="too small to measure"):
        measure_costs(counting(n_ctx=1))
    backend = counting()
    slow = measure_costs(backend, clock=ticking(backend), budget_s=0.0)
    assert ([cost.n_tokens for cost in slow.costs], slow.n_rounds) == ([1], 1)


def test_steps_are_those_of_one_token_and_a_clock_that_stands_gives_none() -> None:
    backend = counting()
    curve = measure_costs(backend, clock=ticking(backend), budget_s=1e9, max_rounds=1)
    batch = report.costs_document(curve)["batches"][1]
    assert batch["last_ms"] == pytest.approx(12.0)
    assert batch["every_steps"] == pytest.approx(2.0)
    still = report.costs_document(measure_costs(counting(), clock=lambda: 0.0, max_rounds=1))
    assert still["batches"][1]["every_steps"] is None
    assert isinstance(curve, CostCurve)


@pytest.mark.native
@pytest.mark.parametrize(("arch", "how"), [("llama", "rewind"), ("mamba", "re-evaluation")])
def test_costs_of_native_models(tmp_path: Path, arch: str, how: str) -> None:
    from tiny_gguf import write_tiny

    from edge_nudge.engine.llama import LlamaBackend

    with LlamaBackend(write_tiny(tmp_path / "tiny.gguf", arch), n_ctx=256, n_threads=1) as backend:
        curve = measure_costs(backend, max_rounds=2)
        assert (curve.reset_by, backend.n_cached) == (how, 0)
    assert [cost.n_tokens for cost in curve.costs] == list(SIZES)
    assert all(cost.last_s > 0 and cost.every_s > 0 for cost in curve.costs)


# --- the command


def test_json_is_one_object_without_nan(invoke: Invoke, files: tuple[str, ...]) -> None:
    arguments = ("--json", "-n", "5", "--trials", "2", "--prompt", "code", "--prompt", "short", "--prompt", "code")
    ended = invoke("bench", *files, *arguments, "--against", "reference", load=loader(LONG))
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    document = json.loads(ended.out, parse_constant=lambda name: pytest.fail(name))
    assert document["kind"] == "trials"
    assert document["settings"]["prompts"] == ["short", "code"]
    assert document["settings"]["modes"] == {mode: dict(MODES[mode]) for mode in (*ALWAYS, "reference")}
    assert {name: document["settings"][name] for name in COMMON} == COMMON
    assert len(document["answers"]) == 2 * 2 * 4
    assert all(len(document["pair"][role]["sha256"]) == 64 for role in ("base", "nudging"))
    assert document["peak_memory"]["bytes"] > 0
    assert document["machine"]["versions"]["edge-nudge"]
    nudged = document["all"]["modes"]["nudged"]
    assert nudged["n_tokens"] == [5] * 4
    own = [a for a in document["answers"] if (a["prompt"], a["mode"]) == ("short", "nudged")]
    assert own[0]["base"]["evaluated"] == own[1]["base"]["evaluated"]  # greedy and cold: the same counts
    ratios = document["prompts"]["short"]["ratios"]["tokens_per_s"]
    assert set(ratios) == {f"{a}/{b}" for a, b in report.SPEED_RATIOS if not {a, b} & {"plain", *trials.OUTSIDE}}
    assert (document["notes"], document["follow_up"]) == ([], None)
    assert math.isfinite(ratios["nudged/base"]["median"])


def test_the_report_names_what_was_measured_and_what_ended_early(invoke: Invoke, files: tuple[str, ...]) -> None:
    ended = invoke("bench", *files, "-n", "50", "--trials", "2", "--prompt", "short")
    assert (ended.code, ended.err) == (0, "")
    for name in ("machine ", "versions ", "base.gguf", "nudging.gguf", "sha256 ", "50 tokens, 2 trials", "gamma 0.4"):
        assert name in ended.out
    assert "  short, nudged: 8 tokens (end of generation), 2 of 2 trials\n" in ended.out
    assert "\x1b" not in ended.out
    assert "\n\nall" not in ended.out  # of one prompt, all is the same


def test_progress_is_told_to_a_terminal_only(invoke: Invoke, files: tuple[str, ...]) -> None:
    ended = invoke("bench", *files, "-n", "2", "--trials", "1", "--prompt", "short", tty="err")
    assert ended.code == 0
    assert "measuring" in ended.err or "answer " in ended.err
    assert "\x1b" not in ended.out


def test_costs_of_both_models(invoke: Invoke, files: tuple[str, ...]) -> None:
    ended = invoke("bench", *files, "--costs")
    assert (ended.code, ended.err) == (0, "")
    assert "base model, " in ended.out
    assert "nudging model, " in ended.out
    document = json.loads(invoke("bench", *files, "--costs", "--json").out)
    assert document["kind"] == "costs"
    for role in ("base", "nudging"):
        assert [batch["n_tokens"] for batch in document["costs"][role]["batches"]] == list(SIZES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-n", "0"), "-n is 0: it must be at least 1"),
        (("--max-tokens", "-3"), "--max-tokens is -3: it must be at least 1"),
        (("--trials", "0"), "--trials is 0: it must be at least 1"),
        (("-t", "0"), "-t is 0: it must be at least 1"),
        (("--costs", "--trials", "2"), "--trials has no meaning with --costs: no answers are measured"),
        (("--prompt", "short", "--costs"), "--prompt has no meaning with --costs: no answers are measured"),
        (("--base-prompt-format", "none"), "unknown base prompt format 'none'"),
        (("--prompt", "none"), "invalid value for '--prompt'"),
        (("--against", "none"), "invalid value for '--against'"),
        (("--fake",), "-m has no meaning with --fake: no model is loaded"),
        (("--against", "naive", "--prompt", "follow-up"), "--against naive: it has no meaning with --prompt follow-up"),
        (("hi",), "got unexpected extra argument"),
    ],
)
def test_a_bad_option_is_one_line_and_nothing_is_loaded(
    invoke: Invoke, arguments: tuple[str, ...], message: str
) -> None:
    ended = invoke("bench", *FILES, *arguments, load=no_load)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")


def test_defaults_and_names_in_the_help_are_those_of_the_plan() -> None:
    plan = Plan(("short",))
    assert (plan.max_tokens, plan.n_trials) == (bench_options.DEFAULT_MAX_TOKENS, bench_options.DEFAULT_TRIALS)
    assert {*ALWAYS, *bench_options.AGAINST} == set(MODES)
    assert bench_options.BESIDE == trials.OUTSIDE
    with pytest.raises(InputError):
        Plan(("short",), n_trials=0)


def test_the_processor_is_named_where_it_can_be(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Nice CPU\nflags\t\t: fpu avx2 amx_tile\n\nprocessor\t: 1\n")
    assert machine.processor(cpuinfo) == "Nice CPU (avx2, amx_tile)"
    machine.processor(tmp_path / "none")
    assert machine.package_version("no-such-package-here") is None


# --- as a process


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_leaves_at_once(files: tuple[str, ...]) -> None:
    fakes = str(Path(__file__).with_name("cli_fakes.py"))
    line = [sys.executable, fakes, "long", "30", "bench", *files, "--prompt", "short"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == b"evaluating\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (130, b"", b"")


@pytest.mark.demo
@pytest.mark.process
@pytest.mark.native
def test_the_demo_pair_is_measured(demo_paths: tuple[Path, Path]) -> None:
    base, nudging = map(str, demo_paths)
    line = [sys.executable, "-m", "edge_nudge.cli.main", "bench", "-m", base, "--nudge", nudging, "-c", "256"]
    line += ["-n", "8", "--trials", "1", "--prompt", "short", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert [answer["n_tokens"] for answer in document["answers"]] == [8, 8, 8]
    for answer in document["answers"]:
        native_s = sum(answer[role.value]["native_s"] for role in Role)
        assert 0 < native_s < answer["total_s"]
    assert document["prompts"]["short"]["ratios"]["first_piece_s"]["nudged/nudging"]["median"] > 0
