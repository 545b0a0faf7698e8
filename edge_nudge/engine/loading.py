"""Opening a model file on llama.cpp: parameters, refusals, and errors a user can read.

Owns the native handles of one model until they are freed. Never tokenizes and never evaluates.

1. A number that cannot be is an InputError before anything native happens.
2. A file that does not load, or loads as another kind of model, is a ModelFileError with the library's reason.
3. Flash attention and a full sliding window are on: rewinds and batches stay close to exact.
4. A quantised cache needs flash attention. The library would then compute it on the CPU where a GPU has none for the
   model's heads, layer by layer and without a word: that is refused.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import llama_cpp

from edge_nudge.engine import native
from edge_nudge.errors import EngineError, InputError, ModelFileError

_MOST_THREADS = 512  # GGML_MAX_N_THREADS
_MOST_TOKENS = 1 << 24
_UBATCH = 512  # tokens computed at once; more costs memory and is hardly faster
KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}
_NO_FLASH_ATTENTION = ("Flash Attention not supported", "flash_attn is not compatible")


class Weights:
    """A native model, freed with the last of the backends that use it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._n_users = 1

    def share(self) -> Weights:
        self._n_users += 1
        return self

    def release(self) -> None:
        self._n_users -= 1
        if not self._n_users:
            model, self.model = self.model, None
            llama_cpp.llama_model_free(model)


class Handles:
    """The native objects of one backend, apart from it so that they can be freed when it is gone."""

    def __init__(self) -> None:
        self.weights: Weights | None = None
        self.context: Any = None
        self.adapter: Any = None

    @property
    def model(self) -> Any:
        return self.weights.model if self.weights else None

    def free(self) -> None:
        context, self.context = self.context, None
        adapter, self.adapter = self.adapter, None
        weights, self.weights = self.weights, None
        if context:
            llama_cpp.llama_free(context)
        if adapter:
            llama_cpp.llama_adapter_lora_free(adapter)
        if weights:
            weights.release()


def check_numbers(n_ctx: int, n_batch: int, n_threads: int) -> None:
    """Raise InputError for a size that no model can have."""
    numbers = {"context size": n_ctx, "batch size": n_batch, "number of threads": n_threads}
    for what, number in numbers.items():
        most = _MOST_THREADS if what == "number of threads" else _MOST_TOKENS
        if not 1 <= number <= most:
            raise InputError(f"a {what} of {number} is not possible: use 1 to {most}")


def load_model(path: Path, n_gpu_layers: int, vocab_only: bool) -> Any:
    """Return the native model; -1 layers are all layers."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = n_gpu_layers, vocab_only
    params.use_extra_bufts = native.can_repack()
    mark = native.relay.mark()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot load this file: {native.relay.reason(mark)}")
    return model


def add_adapter(handles: Handles, path: Path, name: str) -> None:
    """Let a context compute with a LoRA adapter; other contexts of the same model compute without it."""
    mark = native.relay.mark()
    handles.adapter = llama_cpp.llama_adapter_lora_init(handles.model, os.fsencode(path))
    if not handles.adapter:
        raise ModelFileError(f"{path}: llama.cpp cannot load this adapter: {native.relay.reason(mark)}")
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handles.adapter)
    scales = (ctypes.c_float * 1)(1.0)
    if llama_cpp.llama_set_adapters_lora(handles.context, adapters, 1, scales):
        raise EngineError(f"{name}: llama.cpp refused the adapter {path}: {native.relay.reason(mark)}")


def refuse_other_kinds(model: Any, name: str) -> None:
    """Raise ModelFileError for a model that does not write text from left to right."""
    encoder, decoder = llama_cpp.llama_model_has_encoder(model), llama_cpp.llama_model_has_decoder(model)
    kind = None
    if encoder and decoder:
        kind = "an encoder-decoder model"
    elif not decoder:
        kind = "an encoder"
    elif llama_cpp.llama_model_is_diffusion(model):
        kind = "a diffusion model"
    elif metadata(model, f"{metadata(model, 'general.architecture')}.pooling_type") not in (None, "0"):
        kind = "an embedding model"
    if kind:
        raise ModelFileError(f"{name} is {kind}: only decoders that write text from left to right can be used")


def make_context(
    model: Any, name: str, *, n_ctx: int, n_batch: int, n_threads: int, on_gpu: bool, kv_type: str = "f16"
) -> tuple[Any, Any, bool]:
    """Return the native context, its memory, and whether flash attention is on."""
    if on_gpu and kv_type != "f16" and not _gpu_has_flash_attention(model):
        raise EngineError(
            f"{name}: a {kv_type} cache needs flash attention, which this GPU does not have for this model: "
            f"use an f16 cache, or 0 GPU layers"
        )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, min(n_batch, _UBATCH)
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = n_threads
    # On the CPU every head size works. On a GPU only AUTO looks whether the device can; ENABLED would
    # silently compute attention on the CPU, layer by layer.
    auto, enabled = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.flash_attn_type = auto if on_gpu else enabled
    params.swa_full = True  # without it a rewind silently loses a part of the window
    params.type_k = params.type_v = KV_TYPES[kv_type]
    params.no_perf = True
    mark = native.relay.mark()
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        reason = native.relay.reason(mark)
        if kv_type != "f16" and "block size" in reason:
            raise InputError(f"{name} cannot have a {kv_type} cache ({reason}): use f16")
        raise EngineError(
            f"{name}: no context of {n_ctx} tokens could be made ({reason}): a smaller --ctx-size needs less memory"
        )
    memory = llama_cpp.llama_get_memory(context)
    if not memory or not llama_cpp.llama_get_causal_attn(context):
        llama_cpp.llama_free(context)
        raise ModelFileError(f"{name} is not a causal language model: it cannot write text")
    flash_attention = not any(text in line for _, line in native.relay.since(mark) for text in _NO_FLASH_ATTENTION)
    if not flash_attention:
        native.log.info("%s: no flash attention: a batch may differ from single steps", name)
    return context, memory, flash_attention


def _gpu_has_flash_attention(model: Any) -> bool:
    """Find out with a context of the smallest size, the only way the library offers."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 8
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    mark = native.relay.mark()
    context = llama_cpp.llama_init_from_model(model, params)
    if context:
        llama_cpp.llama_free(context)
    return bool(context) and not any(_NO_FLASH_ATTENTION[0] in line for _, line in native.relay.since(mark))


def metadata(model: Any, key: str) -> str | None:
    """Return one value of the file's metadata as text, None where there is none."""
    size = 256
    for _ in range(2):
        buffer = ctypes.create_string_buffer(size)
        n_bytes = llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, size)
        if n_bytes < 0:
            return None
        if n_bytes < size:
            return buffer.raw[:n_bytes].decode("utf-8", "replace")
        size = n_bytes + 1
    return None
