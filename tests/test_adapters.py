"""One file of weights and a LoRA adapter are a pair."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from cli_fakes import invoker
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray
from tiny_gguf import CHATML, write_tiny

from edge_nudge.core.events import Role
from edge_nudge.engine.devices import Gpu, Machine
from edge_nudge.engine.gguf import check_model_file
from edge_nudge.engine.memory import RAM, WEIGHTS, Load, choose_layers, estimate
from edge_nudge.errors import EngineError, ModelFileError
from edge_nudge.runtime import PairSpec, load_pair
from edge_nudge.spec import plan_load

pytestmark = pytest.mark.native

RANK, ALPHA = 4, 8.0
CHANGED = ("blk.0.attn_q.weight", "blk.1.ffn_up.weight")
Change = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def changes(base: Path) -> Change:
    random = np.random.default_rng(7)
    shapes = {tensor.name: tensor.data.shape for tensor in GGUFReader(base).tensors if tensor.name in CHANGED}
    return {
        name: (random.standard_normal((RANK, n_in)).astype(np.float32),
               random.standard_normal((n_out, RANK)).astype(np.float32) * 0.3)
        for name, (n_out, n_in) in shapes.items()
    }  # fmt: skip


def write_adapter(path: Path, change: Change, *, arch: str = "llama", kind: str = "adapter", how: str = "lora") -> Path:
    writer = GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_string("adapter.type", how)
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, (a, b) in change.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merged(path: Path, change: Change, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the same model with the adapter added to its weights."""
    plain = tiny_gguf._tensors

    def changed(*arguments: object) -> object:
        for name, tensor in plain(*arguments):  # type: ignore[arg-type]
            a, b = change.get(name, (None, None))
            yield name, tensor if a is None else tensor + (ALPHA / RANK) * (b @ a)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_gguf, "_tensors", changed)
        return write_tiny(path, vocab="bpe", chat_template=CHATML)


@pytest.fixture
def spec(tmp_path: Path) -> PairSpec:
    base = write_tiny(tmp_path / "base.gguf", vocab="bpe", chat_template=CHATML)
    return PairSpec(base, base, nudging_adapter=write_adapter(tmp_path / "small.gguf", changes(base)))


def row(backend: object) -> NDArray[np.float32]:
    ids = backend.tokenize(b"the people in the house are")  # type: ignore[attr-defined]
    backend.clear()  # type: ignore[attr-defined]
    backend.evaluate(ids, [len(ids) - 1])  # type: ignore[attr-defined]
    scores = np.array(backend.scores(len(ids) - 1))  # type: ignore[attr-defined]
    backend.clear()  # type: ignore[attr-defined]
    return scores


def test_the_adapter_changes_one_model_and_not_the_other(
    spec: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged(tmp_path / "merged.gguf", changes(spec.base), monkeypatch)
    with (
        load_pair(spec, ctx_size=256, threads=1) as pair,
        load_pair(PairSpec(spec.base, whole), ctx_size=256, threads=1) as two,
    ):
        assert pair.nudging.weights is pair.base.weights  # type: ignore[attr-defined]
        assert np.array_equal(row(pair.base), row(two.base))
        assert np.abs(row(pair.nudging) - row(two.nudging)).max() < 0.02
        assert np.abs(row(pair.nudging) - row(pair.base)).max() > 0.5
        assert pair.nudging.info.name == "small"
        assert pair.stream("the house", gamma=0.4, max_tokens=24, temp=0.0).finish().usage.n_completion > 0


@pytest.mark.parametrize("first", ["base", "nudging"])
def test_the_weights_stay_until_both_are_closed(spec: PairSpec, first: str) -> None:
    pair = load_pair(spec, ctx_size=256, threads=1)
    closing, other = (pair.base, pair.nudging) if first == "base" else (pair.nudging, pair.base)
    weights = pair.base.weights  # type: ignore[attr-defined]
    before = row(other)
    closing.close()
    assert np.array_equal(row(other), before)
    with pytest.raises(EngineError, match="closed"):
        row(closing)
    other.close()
    assert weights.model is None
    pair.close()


def test_what_batches_cost_is_kept_for_each(spec: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(tmp_path / "cache"))
    load_pair(spec, ctx_size=256, threads=1).close()
    assert len(list((tmp_path / "cache/costs").glob("*.json"))) == 2


def test_memory_counts_the_weights_once_and_the_adapter(spec: PairSpec) -> None:
    assert spec.nudging_adapter is not None
    settings = {"ctx_size": 256, "kv_types": dict.fromkeys(Role, "f16"), "gpu_layers": dict.fromkeys(Role)}
    found = plan_load(spec, **settings).estimate  # type: ignore[arg-type]
    assert found.bytes_of(RAM, WEIGHTS, Role.NUDGING) == spec.nudging_adapter.stat().st_size
    assert found.bytes_of(RAM, "vocabulary", Role.NUDGING) == 0
    assert found.bytes_of(RAM, "KV cache", Role.NUDGING) == found.bytes_of(RAM, "KV cache", Role.BASE) > 0
    shape = found.loads[Role.BASE].footprint
    loads = {Role.BASE: Load(shape, "f", 256), Role.NUDGING: Load(shape, "f", 256, adapter_bytes=1000)}
    machine = Machine(1 << 40, 1 << 40, 0, gpus=(Gpu("CUDA0", "card", 1 << 40, 1 << 40),))
    for asked, layers in ((None, 3), (2, 2), (0, 0)):
        chosen = choose_layers(loads, machine, {Role.BASE: asked, Role.NUDGING: None})
        assert {load.n_gpu_layers for load in chosen.values()} == {layers}
        on_gpu = estimate(chosen, machine).bytes_of("CUDA0", WEIGHTS, Role.NUDGING)
        assert on_gpu == (1000 if layers else 0)


@pytest.mark.parametrize(
    ("fields", "names", "part"),
    [
        ({"kind": "model"}, CHANGED, "is not a LoRA adapter"),
        ({"how": "other"}, CHANGED, "is not a LoRA adapter"),
        ({"arch": "gemma3"}, CHANGED, 'for the architecture "gemma3", the base model has "llama"'),
        ({}, ("blk.7.attn_q.weight",), "changes blk.7.attn_q.weight"),
        ({}, (), "changes nothing"),
    ],
)
def test_adapters_of_other_models(
    spec: PairSpec, tmp_path: Path, fields: dict[str, str], names: tuple[str, ...], part: str
) -> None:
    change = next(iter(changes(spec.base).values()))
    wrong = write_adapter(tmp_path / "wrong.gguf", dict.fromkeys(names, change), **fields)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="adapter file") as caught:
        load_pair(replace(spec, nudging_adapter=wrong))
    assert part in str(caught.value)


def test_an_adapter_that_does_not_fit_the_weights_is_the_librarys_refusal(spec: PairSpec, tmp_path: Path) -> None:
    a, b = changes(spec.base)[CHANGED[0]]
    wrong = write_adapter(tmp_path / "wrong.gguf", {CHANGED[0]: (np.ascontiguousarray(a[:, :16]), b)})
    with pytest.raises(ModelFileError, match="cannot load this adapter"):
        load_pair(replace(spec, nudging_adapter=wrong), ctx_size=256, threads=1)
    assert check_model_file(spec.base, role="base").n_layers == 2


def test_everything_that_names_the_pair_names_the_adapter(
    spec: PairSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert spec.nudging_adapter is not None
    sha256 = hashlib.sha256(spec.nudging_adapter.read_bytes()).hexdigest()
    files = ("-m", str(spec.base), "--nudge-lora", str(spec.nudging_adapter), "-c", "256")
    trace = tmp_path / "t.jsonl"
    for invoke in invoker(monkeypatch, tmp_path):
        ended = invoke("run", *files, "-n", "3", "--trace", str(trace), "--json", "hi", load=load_pair)
        pair = json.loads(ended.out)["pair"]
        named = {"file": "small.gguf", "path": str(spec.nudging_adapter), "sha256": sha256}
        assert pair["nudging"]["adapter"] == named
        assert (pair["nudging"]["label"], pair["base"]["label"]) == ("small", "base")
        assert "adapter" not in pair["base"]
        header = json.loads(trace.read_text().splitlines()[0])["pair"]["nudging"]
        assert header["adapter"] == {"file": "small.gguf", "sha256": sha256}
        invoke("report", str(trace))
        page = trace.with_suffix(".html").read_text()
        assert "base.gguf with small.gguf" in page
        assert sha256 in page
        bench = ("bench", *files, "-n", "2", "--trials", "1", "--prompt", "short")
        assert f"with adapter small.gguf, sha256 {sha256}" in invoke(*bench, load=load_pair).out
        shown = invoke("run", *files, "-n", "3", "hi", tty="out err", load=load_pair).err
        assert "base model base · " in shown
        assert "nudging model small" in shown


def test_the_command_line_knows_adapters(spec: PairSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert spec.nudging_adapter is not None
    files = ("-m", str(spec.base), "--nudge-lora", str(spec.nudging_adapter))
    for invoke in invoker(monkeypatch, tmp_path):
        ended = invoke("run", *files, "-c", "256", "-n", "3", "hi", load=load_pair)
        assert (ended.code, ended.err) == (0, "")
        checked = invoke("pair", "check", *files)
        assert checked.code == 0, checked.out
        assert "one: the nudging model is the base model with an adapter" in checked.out
        assert "Measured peak" in invoke("estimate", *files, "-c", "256", "--measure").out
        alone = invoke("run", "--nudge-lora", "a.gguf", "hi")
        assert alone.error == "error: an adapter (--nudge-lora) goes with --base FILE, without --nudge and --pair"
