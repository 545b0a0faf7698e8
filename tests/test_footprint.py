"""The arithmetic of memory, held against what llama.cpp itself reserves."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

from edge_nudge.engine.footprint import KV_BLOCKS, Footprint, footprint_of
from edge_nudge.engine.gguf import GgufHeader, check_model_file
from edge_nudge.errors import InputError

_BUFFER = re.compile(r"(KV|RS|compute|output) buffer size = +([\d.]+) MiB")


def header(arch: str, n_layers: int = 4, arrays: dict[str, Any] | None = None, **numbers: Any) -> GgufHeader:
    """Return a header of an architecture with keys given as attention__head_count=8."""
    metadata = {f"{arch}.{key.replace('__', '.')}": value for key, value in numbers.items()}
    path = Path(f"{arch}.gguf")
    return GgufHeader(
        path, (path,), arch, arch, 1000, 8192, n_layers, 1, 1, None, True, metadata,
        per_layer={f"{arch}.{key}": value for key, value in (arrays or {}).items()},
        tensors={"token_embd.weight": 100, "output.weight": 70} | {f"blk.{i}.w": 10 + i for i in range(n_layers)},
    )  # fmt: skip


def reserved(path: Path, **settings: Any) -> dict[str, float]:
    """Return the sizes that llama.cpp reports for a context, in MiB, summed by kind."""
    from edge_nudge.engine.llama import LlamaBackend

    sizes: dict[str, float] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for kind, size in _BUFFER.findall(record.getMessage()):
                sizes[kind] = sizes.get(kind, 0.0) + float(size)

    logger, collector = logging.getLogger("edge_nudge.llama"), Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        with LlamaBackend(path, n_threads=1, n_gpu_layers=0, **settings):
            return dict(sizes)
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)


def cache_mib(shape: Footprint, n_ctx: int, kv_type: str = "f16") -> float:
    return sum(shape.cache_bytes(i, n_ctx, kv_type) for i in range(shape.n_layers)) / 2**20


@pytest.mark.native
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("n_ctx", [300, 4096, 65536])
def test_the_cache_is_what_the_library_reserves(tmp_path: Path, arch: str, n_ctx: int) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch, n_ctx=65536)
    shape = footprint_of(check_model_file(path, role="base"))
    sizes = reserved(path, n_ctx=n_ctx)
    assert cache_mib(shape, shape.n_ctx(n_ctx)) == pytest.approx(sizes["KV"], abs=0.011)
    assert 1 * shape.row_bytes / 2**20 == pytest.approx(sizes["output"], abs=0.006)


@pytest.mark.native
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("n_ctx", [4096, 65536])
def test_the_compute_buffer_is_bounded(tmp_path: Path, arch: str, n_ctx: int) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch, n_ctx=65536)
    shape = footprint_of(check_model_file(path, role="base"))
    real = reserved(path, n_ctx=n_ctx)["compute"]
    assert real * 0.9 <= shape.reserved_bytes(n_ctx) / 2**20 <= real * 1.2


@pytest.mark.native
def test_a_recurrent_state_is_what_the_library_reserves(tmp_path: Path) -> None:
    changes = {"mamba.ssm.inner_size": 64, "mamba.ssm.state_size": 8}
    path = write_tiny(tmp_path / "m.gguf", "mamba", changes=changes)
    shape = footprint_of(check_model_file(path, role="base"))
    assert shape.state_bytes == (4 * (3 * 64 + 8 * 64),) * 2
    assert not shape.can_rewind
    assert shape.kv_values == ((0, 0), (0, 0))
    assert cache_mib(shape, 256) == pytest.approx(reserved(path, n_ctx=256)["RS"], abs=0.006)
    assert shape.checkpoint_bytes == 4 * sum(shape.state_bytes)


@pytest.mark.native
@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_type_of_cache_that_the_heads_cannot_have(tmp_path: Path, kv_type: str) -> None:
    """Heads of 16 values: the arithmetic and the library refuse alike, the first before anything is loaded."""
    from edge_nudge.runtime import PairSpec, load_pair

    path = write_tiny(tmp_path / "m.gguf", chat_template="{{ messages[0].content }}")
    refusal = footprint_of(check_model_file(path, role="base")).refuses(kv_type)
    assert refusal is not None
    with pytest.raises(InputError, match=f"cannot have a {kv_type} cache"):
        reserved(path, n_ctx=256, kv_type=kv_type)
    with pytest.raises(InputError, match=r"base model .* cannot have") as caught:
        load_pair(PairSpec(path, path), ctx_size=256, base_kv_type=kv_type)
    assert refusal in str(caught.value)


@pytest.mark.demo
@pytest.mark.parametrize("kv_type", list(KV_BLOCKS))
def test_the_demo_pairs_caches(demo_paths: tuple[Path, Path], kv_type: str) -> None:
    for path in demo_paths:
        shape = footprint_of(check_model_file(path, role="base"))
        sizes = reserved(path, n_ctx=1024, kv_type=kv_type)
        assert cache_mib(shape, 1024, kv_type) == pytest.approx(sizes["KV"], abs=0.02)
        assert sizes["compute"] * 0.95 <= shape.reserved_bytes(1024) / 2**20 <= sizes["compute"] * 1.05
        weights = shape.input_bytes + shape.output_bytes + sum(shape.layer_bytes)
        assert 0.99 < weights / path.stat().st_size * (1 + 0.03) < 1.04


# --- shapes that no tiny model has


def test_grouped_heads_by_layer() -> None:
    arrays = {"attention.head_count_kv": (8, 2, 0, 8)}
    shape = footprint_of(header("deci", arrays=arrays, attention__head_count=8, embedding_length=512))
    assert shape.kv_values == ((512, 512), (128, 128), (0, 0), (512, 512))
    assert shape.cache_bytes(1, 256, "f16") == 256 * 256 * 2
    assert shape.cache_bytes(1, 256, "q8_0") == 256 * 8 * 34
    assert shape.cache_bytes(1, 256, "q4_0") == 256 * 8 * 18


def test_latent_attention_keeps_keys_only() -> None:
    shape = footprint_of(header(
        "deepseek2", embedding_length=2048, attention__head_count=16, attention__head_count_kv=1,
        attention__key_length=576, attention__value_length=512, attention__key_length_mla=192,
        attention__value_length_mla=128,
    ))  # fmt: skip
    assert set(shape.kv_values) == {(576, 0)}


def test_window_layers_may_have_other_heads_and_last_layers_none() -> None:
    shape = footprint_of(header(
        "gemma4", 4, {"attention.sliding_window_pattern": (True, True, False, True)}, embedding_length=1024,
        attention__head_count=4, attention__head_count_kv=1, attention__key_length=512, attention__value_length=512,
        attention__key_length_swa=256, attention__value_length_swa=256, attention__sliding_window=512,
        attention__shared_kv_layers=1,
    ))  # fmt: skip
    assert shape.kv_values == ((256, 256), (256, 256), (512, 512), (0, 0))
    assert shape.head_sizes == {256, 512}
    assert shape.n_masks == 2


@pytest.mark.parametrize(
    ("arch", "arrays", "numbers", "has_state"),
    [
        ("jamba", {"attention.head_count_kv": (0, 0, 4, 0)}, {}, [True, True, False, True]),
        ("nemotron_h", {"attention.head_count_kv": (0, 4, 0, 0), "feed_forward_length": (0, 0, 9, 0)}, {},
         [True, False, False, True]),
        ("qwen3next", {}, {"full_attention_interval": 2, "attention__head_count_kv": 4}, [True, False, True, False]),
        ("qwen35", {"attention.recurrent_layers": (1, 0, 0, 1)}, {"attention__head_count_kv": 4},
         [True, False, False, True]),
    ],
)  # fmt: skip
def test_hybrids_keep_a_state_in_some_layers(
    arch: str, arrays: dict[str, Any], numbers: dict[str, Any], has_state: list[bool]
) -> None:
    sizes = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}
    shape = footprint_of(header(arch, 4, arrays, embedding_length=64, attention__head_count=4, **sizes, **numbers))
    assert [bool(n) for n in shape.state_bytes] == has_state
    assert all(not (state and any(kv)) for state, kv in zip(shape.state_bytes, shape.kv_values, strict=True))
    assert not shape.can_rewind


def test_every_layer_of_a_falcon_h1_has_both() -> None:
    numbers = {"attention__head_count": 4, "attention__head_count_kv": 2, "ssm__inner_size": 64, "ssm__state_size": 8}
    shape = footprint_of(header("falcon-h1", embedding_length=64, **numbers))
    assert all(shape.state_bytes)
    assert all(any(kv) for kv in shape.kv_values)


def test_weights_by_layer_and_tied_embeddings() -> None:
    found = header("llama", attention__head_count=4, embedding_length=64)
    shape = footprint_of(found)
    assert (shape.input_bytes, shape.layer_bytes, shape.output_bytes) == (100, (10, 11, 12, 13), 70)
    assert not shape.is_tied


@pytest.mark.parametrize(("asked", "real"), [(64, 256), (256, 256), (257, 512), (8192, 8192), (1 << 20, 8192)])
def test_the_context_is_the_librarys_and_never_above_training(asked: int, real: int) -> None:
    assert footprint_of(header("llama", attention__head_count=4, embedding_length=64)).n_ctx(asked) == real
