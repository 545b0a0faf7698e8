"""The tiny models of tiny_gguf.py in llama.cpp itself: they load, decode, keep text, and some cannot rewind."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import (
    WINDOW,
    write_tiny,
)

from edge_nudge.engine.gguf import check_model_file
from edge_nudge.engine.gguf_scan import tensor_types


@dataclass
class Native:
    """One tiny model on the low-level binding, greedy."""

    path: Path
    n_vocab: int = 0

    def __enter__(self) -> Native:
        import llama_cpp

        from edge_nudge.engine import native

        native.start()  # sets the one log callback of the process; another would take it from the other tests
        self.lib = llama_cpp
        of_model = llama_cpp.llama_model_default_params()
        of_model.n_gpu_layers, of_model.use_extra_bufts = 0, False
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), of_model)
        assert self.model
        of_context = llama_cpp.llama_context_default_params()
        of_context.n_ctx, of_context.n_threads, of_context.n_threads_batch = 256, 2, 2
        self.context = llama_cpp.llama_init_from_model(self.model, of_context)
        assert self.context
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        return self

    def __exit__(self, *_error: object) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        raw = text.encode()
        buffer = (self.lib.llama_token * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), False, special)
        return list(buffer[:n])

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = self.lib.llama_token_to_piece(self.vocab, token, buffer, 64, 0, False)
        return buffer.raw[:n]

    def scores(self, tokens: list[int]) -> NDArray[np.float32]:
        ids = (self.lib.llama_token * len(tokens))(*tokens)  # the batch points into it
        assert self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(ids, len(tokens))) == 0
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, -1), shape=(self.n_vocab,)).copy()

    def rewind(self, n_keep: int) -> bool:
        return bool(self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, n_keep, -1))


_TEXT = "Hello wörld, the answer: 日本語 ไทย 👩\u200d🔬\n\n  x\x00\x7f\t<|im_end|> </s> [INST] é e\u0301"


@pytest.mark.native
@pytest.mark.parametrize("arch", ["llama", "mamba", "gemma3"])
@pytest.mark.parametrize("vocab", ["spm", "bpe"])
def test_tiny_models_decode(tmp_path: Path, arch: str, vocab: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch, vocab=vocab)
    assert path.stat().st_size < 2_000_000
    tops = []
    with Native(path) as model:
        assert model.n_vocab == check_model_file(path, role="base").n_vocab
        assert model.lib.llama_model_n_swa(model.model) == (WINDOW if arch == "gemma3" else 0)
        tokens = model.tokenize(_TEXT)
        text = b"".join(map(model.piece, tokens))
        assert text == (" " if vocab == "spm" else "").encode() + _TEXT.encode()
        assert len(model.tokenize("<|im_end|>", special=True)) == 1
        first = scores = model.scores(tokens)
        for _ in range(60):
            assert np.isfinite(scores).all()
            shares = np.exp(scores - scores.max())
            tops.append(float(1 / shares.sum()))
            scores = model.scores([int(scores.argmax())])
        assert model.rewind(len(tokens) - 1) == (arch != "mamba")
        if arch != "mamba":
            assert np.array_equal(model.scores(tokens[-1:]).argsort()[-5:], first.argsort()[-5:])
    assert min(tops) < 0.3
    assert max(tops) > 0.5


@pytest.mark.native
def test_same_seed_same_bytes_and_another_seed_another_model(tmp_path: Path) -> None:
    one, two = (write_tiny(tmp_path / name, seed=7).read_bytes() for name in ("one", "two"))
    assert one == two
    assert write_tiny(tmp_path / "three", seed=8).read_bytes() != one


@pytest.mark.native
def test_a_split_tiny_model_loads_from_its_first_part(tmp_path: Path) -> None:
    whole, first = write_tiny(tmp_path / "w.gguf"), write_tiny(tmp_path / "m.gguf", n_parts=3)
    with Native(whole) as one, Native(check_model_file(first, role="base").path) as two:
        tokens = one.tokenize(_TEXT)
        assert np.array_equal(one.scores(tokens), two.scores(tokens))


@pytest.mark.native
def test_tensor_sizes_are_those_of_the_library() -> None:
    from llama_cpp._ggml import libggml

    libggml.ggml_blck_size.restype = ctypes.c_int64
    libggml.ggml_type_size.restype = ctypes.c_size_t
    for kind, (_name, block, n_bytes) in tensor_types().items():
        assert (libggml.ggml_blck_size(kind), libggml.ggml_type_size(kind)) == (block, n_bytes)
