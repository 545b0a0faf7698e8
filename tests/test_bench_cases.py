"""The benchmark's other cases: the decoder without models, and the second question of a conversation."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import LONG, SHORT, Invoke, fake_pair, invoker, loader, no_load

from edge_nudge.bench import follow_up
from edge_nudge.bench.follow_up import SECOND_TOKENS, follow_up_document, n_known_tokens, run_follow_up
from edge_nudge.bench.python_cost import TableBackend, measure_python, table_pair
from edge_nudge.bench.trials import ALWAYS
from edge_nudge.core.events import Finished, Piece, Role
from edge_nudge.errors import EngineError
from edge_nudge.runtime import Pair

invoke = pytest.fixture(invoker)


# --- without models


def test_the_table_pair_writes_its_circle_of_words() -> None:
    pair = table_pair(512)
    events = list(pair.stream("Hi", max_tokens=20, loop_guard=False, seed=0))
    text = "".join(event.text for event in events if isinstance(event, Piece))
    words = text.split()
    first = int(words[0][1:])
    assert words == [f"w{(first + number) % 16:02}" for number in range(20)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert 4 <= finished.usage.nudging.n_written <= 6  # one in four words, and the opening
    assert pair.base.info.n_vocab == 512


def test_time_inside_the_models_is_taken_off() -> None:
    """The clock ticks at each reading: what a model spends grows with its own readings only."""
    ticks = itertools.count()
    pair = table_pair(512, clock=lambda: float(next(ticks)))
    assert isinstance(pair.base, TableBackend)
    ids = pair.base.tokenize(b" w01x")
    pair.base.evaluate(ids, (0,))
    assert pair.base.scores(0).argmax() == ids[0] + 1
    assert pair.base.spent_s == 2.0
    with pytest.raises(EngineError):
        pair.base.evaluate([0] * 5000)
    assert pair.base.spent_s == 3.0


def test_figures_are_of_the_time_outside_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """With models that take an hour for each evaluation, the figures stay those of the clock's few readings."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1e-6
        return now

    original = TableBackend.scores

    def scores(self: TableBackend, row: int) -> Any:
        nonlocal now
        now += 5e-3  # outside: reading a row is the decoder's time
        return original(self, row)

    class Slow(dict[int, Any]):
        def __getitem__(self, token: int) -> Any:
            nonlocal now
            now += 3600.0
            return super().__getitem__(token)

    monkeypatch.setattr(TableBackend, "scores", scores)
    made = TableBackend.__init__

    def slow(self: TableBackend, *arguments: Any, **more: Any) -> None:
        made(self, *arguments, **more)
        self._table = Slow(self._table)

    monkeypatch.setattr(TableBackend, "__init__", slow)
    found = measure_python(n_vocabs=(512,), n_rounds=2, n_tokens=10, clock=clock)
    modes = found["vocabularies"][0]["modes"]
    assert list(modes) == list(ALWAYS)
    for of in modes.values():
        assert 5e3 <= of["us_per_token"]["median"] < 1e5
        assert len(of["answers_us_per_token"]) == 2
    assert modes["base"]["calls_per_token"]["nudging"] == 0
    assert modes["nudging"]["nudging_ratio"] == 1
    assert 0 < modes["nudged"]["nudging_ratio"] < 0.6


def test_the_report_of_fake(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_python, "__kwdefaults__", {
        **(measure_python.__kwdefaults__ or {}), "n_vocabs": (512, 1024), "n_rounds": 2, "n_tokens": 10,
    })  # fmt: skip
    ended = invoke("bench", "--fake", load=no_load)
    assert (ended.code, ended.err) == (0, "")
    for text in (
        "versions ",
        "microseconds for each token of an answer of 10 tokens",
        "2 rounds",
        "1024",
        "nudging alone",
    ):
        assert text in ended.out
    assert "gguf" not in ended.out
    document = json.loads(invoke("bench", "--fake", "--json", load=no_load).out)
    assert document["kind"] == "fake"
    assert [part["n_vocab"] for part in document["fake"]["vocabularies"]] == [512, 1024]
    for part in document["fake"]["vocabularies"]:
        assert all(of["us_per_token"]["q1"] <= of["us_per_token"]["q3"] for of in part["modes"].values())


@pytest.mark.parametrize(
    "option",
    [("--pair", "demo"), ("-c", "256"), ("-t", "1"), ("--base-gpu-layers", "1"), ("--base-prompt-format", "qa"),
     ("-n", "5"), ("--trials", "1"), ("--prompt", "short"), ("--against", "naive"), ("--base-url", "http://h"),
     ("--costs",), ("--nudge", "b.gguf")],
)  # fmt: skip
def test_fake_goes_with_nothing_that_names_models_or_answers(invoke: Invoke, option: tuple[str, ...]) -> None:
    ended = invoke("bench", "--fake", *option, load=no_load)
    assert ended.code == 2
    assert ended.error == f"error: {option[0]} has no meaning with --fake: no model is loaded"


@pytest.mark.process
def test_fake_needs_no_llama_cpp() -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from edge_nudge.bench.python_cost import measure_python\n"
        "print(measure_python(n_vocabs=(512,), n_rounds=1, n_tokens=5)['rounds'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# --- the second question


def test_known_tokens_lie_whole_in_the_text_before() -> None:
    assert n_known_tokens(b"abc de", [b"ab", b"c", b" d", b"e"]) == 4
    assert n_known_tokens(b"abc de", [b"ab", b"c", b" dex", b"e"]) == 2
    assert n_known_tokens(b"abc", [b"xb", b"c"]) == 0
    assert n_known_tokens(b"abc", []) == 0


def test_a_follow_up_counts_what_is_read_again() -> None:
    found = run_follow_up(fake_pair(SHORT), 50, 2)
    assert len(found) == 2
    for trial in found:
        for of in trial.models.values():
            assert of.again is not None
            assert of.new is not None
            assert of.reused + of.again + of.new == of.prompt
            assert of.known >= of.reused
            assert of.again == of.known - of.reused
            assert 0 < of.new < of.prompt
        assert trial.warm_s is not None
        assert trial.cold_s is not None
    assert found[0].models == found[1].models
    nudging = found[0].models[Role.NUDGING]
    assert nudging.again is not None
    assert nudging.again <= 2  # the seam, at most


def test_a_cache_that_was_lost_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    original = follow_up._written

    def written(pair: Pair, request: Any) -> Any:
        done = original(pair, request)
        pair.forget()
        return done

    monkeypatch.setattr(follow_up, "_written", written)
    of = run_follow_up(fake_pair(SHORT), 50, 1)[0].models[Role.NUDGING]
    assert of.reused == 0
    assert of.again == of.known > 0


def test_the_second_question_is_asked_warm_and_then_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    original, n_cached = follow_up._written, []

    def written(pair: Pair, request: Any) -> Any:
        n_cached.append((pair.base.n_cached, pair.nudging.n_cached))
        return original(pair, request)

    monkeypatch.setattr(follow_up, "_written", written)
    run_follow_up(fake_pair(SHORT), 50, 2)
    for first, warm, cold in (n_cached[:3], n_cached[3:]):
        assert first == cold == (0, 0)
        assert min(warm) > 0


def test_a_first_answer_without_text_is_left_out() -> None:
    found = run_follow_up(fake_pair(()), 50, 1)[0]
    assert (found.warm_s, found.cold_s) == (None, None)
    assert found.models[Role.BASE].again is None  # it was never asked
    document = follow_up_document([found], 50)
    assert document["first_piece_s"] == {"warm": None, "cold": None, "warm/cold": None}


def test_the_report_of_a_follow_up(invoke: Invoke, tmp_path: Path) -> None:
    for name in ("base.gguf", "nudging.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    files = ("-m", str(tmp_path / "base.gguf"), "--nudge", str(tmp_path / "nudging.gguf"))
    arguments = ("bench", *files, "-n", "8", "--trials", "2", "--prompt", "follow-up")
    ended = invoke(*arguments, load=loader(LONG))
    assert (ended.code, ended.err) == (0, "")
    assert "Second question of a conversation, behind an answer of 8 tokens" in ended.out
    assert "Speed" not in ended.out
    assert "warm-up" not in ended.out  # there is none, and no cold caches before each answer
    document = json.loads(invoke(*arguments, "--json", load=loader(LONG)).out)
    case = document["follow_up"]
    assert case["second_answer_tokens"] == SECOND_TOKENS
    assert [trial["base"]["new"] for trial in case["trials"]] == [case["models"]["base"]["new"]["median"]] * 2
    for role in ("base", "nudging"):
        again = case["models"][role]["again"]["median"]
        assert again == case["models"][role]["known"]["median"] - case["models"][role]["reused"]["median"]
    both = json.loads(invoke(*arguments, "--prompt", "short", "--json", load=loader(LONG)).out)
    assert (list(both["prompts"]), both["follow_up"] is not None) == (["short"], True)
