"""`edge-nudge estimate`, and what `run` says where a pair does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Invoke, invoker
from tiny_gguf import CHATML, write_tiny

from edge_nudge import runtime
from edge_nudge.bench import peak
from edge_nudge.cli import options
from edge_nudge.engine import devices, fitting
from edge_nudge.engine.devices import GroupLimit, Machine
from edge_nudge.engine.footprint import KV_BLOCKS
from edge_nudge.errors import EngineError, NoRoomError
from edge_nudge.spec import plan_load

REAL_LOAD = runtime.load_pair
MIB = 1 << 20


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Invoke]:
    yield from invoker(monkeypatch, tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, ...]:
    base = write_tiny(tmp_path / "base.gguf", n_ctx=32768)
    nudging = write_tiny(tmp_path / "nudging.gguf", vocab="bpe", n_ctx=2048, chat_template=CHATML)
    return "-m", str(base), "--nudge", str(nudging)


def on(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    for module in (fitting, devices):
        monkeypatch.setattr(module, "read_machine", lambda: machine)


def test_option_names_are_the_engines() -> None:
    assert tuple(KV_BLOCKS) == options.KV_TYPES


def test_a_pair_that_fits(invoke: Invoke, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, Machine(8 << 30, 4 << 30, 0))
    ended = invoke("estimate", *tiny, "-c", "5000")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "base model: base.gguf (F32), context 5120 of 32768, f16 cache"
    assert lines[1] == "nudging model: nudging.gguf (F32), context 2048 of 2048, f16 cache"
    assert lines[-1] == "It fits."
    assert max(map(len, lines)) < 100


def test_a_pair_that_does_not(invoke: Invoke, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, Machine(8 << 30, 4 << 30, 0, (GroupLimit("memory.max", 120 * MIB, 20 * MIB),)))
    arguments = ("estimate", *tiny, "-c", "32768")
    ended = invoke(*arguments)
    assert (ended.code, ended.err) == (NoRoomError.exit_code, "")
    assert "It fits with: --ctx-size " in ended.out
    assert "limited by the control group's memory.max" in ended.out
    document = json.loads(invoke(*arguments, "--json").out)
    assert document["fits"] is False
    proposal = document["proposals"][0].split()
    assert invoke("estimate", *tiny, *proposal).code == 0
    (room,) = document["devices"]
    assert room["needed_bytes"] == sum(part["bytes"] for part in document["parts"]) > room["free_bytes"] == 100 * MIB
    assert document["models"]["nudging"]["n_ctx"] == 2048


def test_run_refuses_with_the_table_and_loads_nothing(
    invoke: Invoke, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(8 << 30, 100 * MIB, 0))
    ended = invoke("run", *tiny, "-c", "32768", "hi", load=REAL_LOAD)
    assert (ended.code, ended.out) == (6, "")
    first, *lines = ended.err.splitlines()
    assert first.startswith("error: the pair does not fit: RAM: ")
    assert any(line.startswith("RAM  KV cache") for line in lines)
    assert lines[-1] == "To load it anyway: --no-fit-check"


@pytest.mark.native
def test_run_loads_it_anyway_where_that_is_asked_for(
    invoke: Invoke, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(8 << 30, 10 * MIB, 0))
    ended = invoke("run", *tiny, "-c", "256", "--no-fit-check", "-n", "3", "hi", load=REAL_LOAD)
    assert (ended.code, ended.err) == (0, "")
    assert invoke("run", *tiny, "-c", "256", "-n", "3", "hi", load=REAL_LOAD).code == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "0"), "error: -c is 0: it must be at least 1"),
        (("--base-kv-type", "q3"), "error: invalid value for '--base-kv-type'"),
        (("--base-kv-type", "q8_0"), "error: base model base.gguf cannot have a q8_0 cache: its heads have 16 values"),
    ],
)
def test_wrong_settings(invoke: Invoke, tiny: tuple[str, ...], arguments: tuple[str, ...], message: str) -> None:
    ended = invoke("estimate", *tiny, *arguments)
    assert ended.code == 2
    assert ended.error.startswith(message)


def test_a_file_that_is_no_model(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("no")
    ended = invoke("estimate", "-m", str(tmp_path / "a.gguf"), "--nudge", str(tmp_path / "a.gguf"))
    assert ended.code == 1
    assert "this is text" in ended.error


# --- measuring


@pytest.mark.native
@pytest.mark.process
def test_a_measured_peak_is_a_process_of_its_own(invoke: Invoke, tiny: tuple[str, ...]) -> None:
    ended = invoke("estimate", *tiny, "-c", "512", "--measure", "--json")
    assert ended.code == 0, ended.err
    assert 30 * MIB < json.loads(ended.out)["measured_peak_bytes"] < 200 * MIB


@pytest.mark.process
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    with pytest.raises(EngineError, match=r"ended with code 1: .*none.gguf"):
        peak.measure_peak(runtime.PairSpec(missing, missing), {})


def test_the_measured_line(invoke: Invoke, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {}

    def measure(_spec: runtime.PairSpec, given: dict[str, Any]) -> int:
        settings.update(given)
        return 200 * MIB

    monkeypatch.setattr(peak, "measure_peak", measure)
    out = invoke("estimate", *tiny, "-c", "512", "--measure", "--base-gpu-layers", "0").out
    assert "Measured peak in RAM: 200 MiB; the estimate is -" in out
    assert settings == {"ctx_size": 512, "base_gpu_layers": 0}


@pytest.mark.demo
@pytest.mark.process
def test_the_estimate_of_the_demo_pair_is_within_a_tenth(
    demo_paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_nudge.core.events import Role

    spec = runtime.PairSpec(*demo_paths)
    plan = plan_load(spec, ctx_size=1024, kv_types=dict.fromkeys(Role, "f16"), gpu_layers=dict.fromkeys(Role, 0))
    needed = plan.estimate.rooms[0].needed_bytes
    assert needed == pytest.approx(peak.measure_peak(spec, {"ctx_size": 1024}), rel=0.10)


# --- a pair that is not here


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pair is on this machine, and whoever fetches fails the test."""
    from edge_nudge.catalog import store

    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(store, "fetch_missing", fetch)
    monkeypatch.setattr(store, "_found_elsewhere", lambda *_: None)


@pytest.mark.usefixtures("nothing_here")
def test_a_pair_that_is_not_here_is_estimated_by_its_manifest(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(monkeypatch, Machine(8 << 30, 4 << 30, 0))
    ended = invoke("estimate", "--pair", "demo", "-c", "2048")
    assert (ended.code, ended.err) == (0, "")
    assert (
        "From the manifest, because the files are not all here: 'edge-nudge pull demo' gets them, 331 MB" in ended.out
    )
    assert ended.out.endswith("It fits.\n")
    document = json.loads(invoke("estimate", "-c", "2048", "--json").out)
    assert (document["source"], document["missing"]) == ("manifest", ["base", "nudging"])
    (device,) = document["devices"]
    assert device["needed_bytes"] == sum(part["bytes"] for part in document["parts"])
    f16 = {part["model"]: part["bytes"] for part in document["parts"] if part["what"] == "KV cache"}
    smaller = json.loads(invoke("estimate", "-c", "2048", "--base-kv-type", "q8_0", "--json").out)
    q8 = {part["model"]: part["bytes"] for part in smaller["parts"] if part["what"] == "KV cache"}
    assert (q8["base"], q8["nudging"]) == (f16["base"] * 34 // 64, f16["nudging"])
    assert not (tmp_path / "data").exists()
    on(monkeypatch, Machine(1 << 30, 400 * MIB, 0))
    assert invoke("estimate").code == NoRoomError.exit_code


@pytest.mark.usefixtures("nothing_here")
def test_what_a_manifest_cannot_say(invoke: Invoke, tmp_path: Path) -> None:
    ended = invoke("estimate", "--measure")
    assert ended.code == 4
    assert "the demo pair is not here and cannot be measured: 'edge-nudge pull demo' gets them, 331 MB" in ended.error
    pairs = tmp_path / "config" / "models"
    pairs.mkdir(parents=True)
    (pairs / "mine.toml").write_text(
        'title = "Mine"\ngamma = 0.4\n[base]\nprompt_format = "qa"\nfile = "b.gguf"\n'
        'source = { kind = "ollama", model = "b:1" }\n[nudging]\nfile = "n.gguf"\n'
        'source = { kind = "ollama", model = "n:1" }\n'
    )
    ended = invoke("estimate", "--pair", "mine")
    assert ended.code == 4
    assert "its manifest does not say how large it is" in ended.error


@pytest.mark.usefixtures("nothing_here")
def test_pair_check_says_what_is_missing(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, Machine(8 << 30, 4 << 30, 0))
    ended = invoke("pair", "check", "--pair", "demo", "--try")
    assert (ended.code, ended.err) == (4, "")
    lines = ended.out.splitlines()
    assert lines[0] == "fault   missing file: base model: gemma-3-270m-q4_k_m.gguf is not on this machine"
    assert "remedy: 'edge-nudge pull demo' gets them, 331 MB to fetch; then check again" in lines[2]
    assert "needed by the manifest, 4.0 GiB free" in lines[3]
    assert lines[-1] == "The pair is not here."
    document = json.loads(invoke("pair", "check", "--json").out)
    assert (document["verdict"], document["works"], document["tried"]) == ("is not here", False, None)
