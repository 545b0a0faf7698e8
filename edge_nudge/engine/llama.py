"""LlamaBackend: one model on llama.cpp's low-level binding, one sequence, scores read in place.

Owns the native model, its context and the batch. Never decides, samples or renders. The files engine/llama.py,
loading.py, native.py, vocabulary.py and, for the benchmark, naive.py are the only ones that touch llama_cpp and ctypes.

1. For one thread at a time. A native call releases the GIL, so other threads go on meanwhile.
2. `_ids` is what the cache holds; after any failure it is cut to what the library says, or cleared.
3. A refusal is found out before native memory changes; a failure behind that point clears the cache and raises.
4. Flash attention is on: with it a batch comes closest to single steps. Where a GPU has no kernel for a
   model's heads the library switches it off; `flash_attention` says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge_nudge.core.backend import ModelInfo
from edge_nudge.core.closing import Closing
from edge_nudge.engine import loading, native
from edge_nudge.engine.fitting import check_kv_type
from edge_nudge.engine.vocabulary import NativeVocabulary
from edge_nudge.errors import EngineError, ModelFileError

_PARTIAL_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: only what seq_rm cannot bring back
_STATE_HEADER = struct.Struct("<4sI16s")  # magic, n_cached, digest of the ids
_STATE_MAGIC = b"ENS1"
_N_VIEWS = 64

_decode = native.prototype(llama_cpp.llama_decode, ctypes.c_int32, ctypes.c_void_p, llama_cpp.llama_batch)
_logits_ith = native.prototype(llama_cpp.llama_get_logits_ith, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)


class LlamaBackend(Closing):
    """A Backend on a GGUF file; see core/backend.py for the contract.

    `offload` is a sentence that says what runs on a GPU and why; `n_gpu_layers` how many layers really do;
    `flash_attention` whether it is on; `build` which llama.cpp computes; `defect` what the tokenizer loses, None
    where it is exact; `kv_type` the type of the cache: f16, q8_0, q4_0.
    With `is_chosen` the number of layers is what fits, not what somebody asked for.
    `shares` is another backend whose weights are used instead of loading `path` again; `adapter` a LoRA adapter that
    only this one computes with.
    With `vocab_only` the model can tokenize and nothing else.

    Raises InputError (an impossible number), ModelFileError (the file), EngineError (the machine).
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_batch: int = 512,
        n_threads: int,
        n_gpu_layers: int | None = None,
        is_chosen: bool = False,
        kv_type: str = "f16",
        vocab_only: bool = False,
        name: str | None = None,
        shares: LlamaBackend | None = None,
        adapter: Path | None = None,
    ) -> None:
        self._context: Any = None
        self._memory: Any = None
        self._ids: list[int] = []
        self._rows: tuple[int, ...] = ()
        self._views: dict[int, NDArray[np.float32]] = {}
        loading.check_numbers(n_ctx, n_batch, n_threads)
        check_kv_type(kv_type)
        self.kv_type = kv_type
        path = Path(path)
        native.start()
        if shares:
            offload = native.Offload(shares.n_gpu_layers, shares.offload)
        else:
            offload = native.choose_offload(0 if vocab_only else n_gpu_layers, _file_bytes(path), is_chosen=is_chosen)
        handles = self._handles = loading.Handles()
        self.adapter = adapter
        # Also runs at interpreter exit, while the log callback still works; Metal aborts on what is left behind.
        self._free = weakref.finalize(self, handles.free)
        try:
            if shares:
                handles.weights = shares.weights.share()
            else:
                handles.weights = loading.Weights(loading.load_model(path, offload.n_gpu_layers, vocab_only))
            shown = (
                name
                or (adapter.stem if adapter else None)
                or loading.metadata(handles.model, "general.name")
                or path.stem
            )
            self._open(handles, shown, offload, vocab_only, n_ctx, n_batch, n_threads)
        except BaseException:
            self._free()
            raise

    def _open(
        self, handles: loading.Handles, name: str, offload: native.Offload, vocab_only: bool,
        n_ctx: int, n_batch: int, n_threads: int,
    ) -> None:  # fmt: skip
        model = handles.model
        pre = loading.metadata(model, "tokenizer.ggml.pre") or ""
        self._vocabulary = NativeVocabulary(llama_cpp.llama_model_get_vocab(model), pre)
        n_layers = int(llama_cpp.llama_model_n_layer(model)) + 1  # the output layer counts
        self.n_gpu_layers = n_layers if offload.n_gpu_layers < 0 else min(offload.n_gpu_layers, n_layers)
        self.offload = offload.sentence
        self.build = native.build()
        self.flash_attention = False
        self._is_hybrid = bool(llama_cpp.llama_model_is_hybrid(model))
        self._keeps_state = self._is_hybrid or bool(llama_cpp.llama_model_is_recurrent(model))
        n_ctx_train = int(llama_cpp.llama_model_n_ctx_train(model))
        if not vocab_only:
            loading.refuse_other_kinds(model, name)
            if 0 < n_ctx_train < n_ctx:
                native.log.info("%s: a context of %d was asked for, the model has %d", name, n_ctx, n_ctx_train)
                n_ctx = n_ctx_train
            self._context, self._memory, self.flash_attention = loading.make_context(
                model, name, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, on_gpu=self.n_gpu_layers > 0,
                kv_type=self.kv_type,
            )  # fmt: skip
            handles.context = self._context
            if self.adapter:
                loading.add_adapter(handles, self.adapter, name)
            n_ctx, n_batch = llama_cpp.llama_n_ctx(self._context), llama_cpp.llama_n_batch(self._context)
            self._make_batch(n_batch, n_ctx)
            native.log.info("%s: %s", name, self.offload)
        self._info = self._describe(model, name, n_ctx, n_batch, n_ctx_train)

    def _make_batch(self, n_batch: int, n_ctx: int) -> None:
        """Allocate the one batch; token and position arrays are written through numpy."""
        self._tokens = np.zeros(n_batch, dtype=np.int32)
        self._positions = np.zeros(n_batch, dtype=np.int32)
        self._flags = np.zeros(n_batch, dtype=np.int8)
        self._all_positions = np.arange(n_ctx, dtype=np.int32)
        self._n_seq_id = np.ones(n_batch, dtype=np.int32)
        self._seq_zero = ctypes.c_int32(0)
        one_sequence = ctypes.POINTER(ctypes.c_int32)
        self._seq_ids = (one_sequence * n_batch)(*[ctypes.pointer(self._seq_zero)] * n_batch)

        def pointer(array: NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        self._batch = llama_cpp.llama_batch(
            n_tokens=0, token=pointer(self._tokens, ctypes.c_int32), embd=None,
            pos=pointer(self._positions, ctypes.c_int32), n_seq_id=pointer(self._n_seq_id, ctypes.c_int32),
            seq_id=ctypes.cast(self._seq_ids, ctypes.POINTER(one_sequence)),
            logits=pointer(self._flags, ctypes.c_int8),
        )  # fmt: skip

    def _describe(self, model: Any, name: str, n_ctx: int, n_batch: int, n_ctx_train: int) -> ModelInfo:
        vocab = llama_cpp.llama_model_get_vocab(model)
        bos, eos = int(llama_cpp.llama_vocab_bos(vocab)), int(llama_cpp.llama_vocab_eos(vocab))
        template = llama_cpp.llama_model_chat_template(model, None)
        return ModelInfo(
            name=name,
            architecture=loading.metadata(model, "general.architecture") or "unknown",
            n_vocab=self._vocabulary.n_tokens,
            n_ctx=n_ctx,
            n_ctx_train=n_ctx_train,
            n_batch=n_batch,
            bos=bos if bos >= 0 else None,
            eos=eos if eos >= 0 else None,
            adds_bos=bos >= 0 and bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
            adds_space_prefix=self._vocabulary.adds_space_prefix,
            can_rewind=not self._keeps_state,
            chat_template=template.decode("utf-8", "replace") if template else None,
        )

    def __repr__(self) -> str:
        state = "closed" if not self._free.alive else f"{len(self._ids)} of {self._info.n_ctx} cached"
        return f"<LlamaBackend {self._info.name}: {state}>"

    @property
    def weights(self) -> loading.Weights:
        """What another backend may share. Raises EngineError where the model is closed."""
        if self._handles.weights is None:
            raise EngineError(f"model {self._info.name} is closed")
        return self._handles.weights

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def n_cached(self) -> int:
        return len(self._ids)

    @property
    def defect(self) -> str | None:
        """Say where this model's tokenizer loses text, None where it never does; a millisecond, then kept."""
        return self._vocabulary.defect

    @property
    def lost_bytes(self) -> frozenset[int]:
        """The bytes of UTF-8 this model cannot read: they vanish from its ids, and from nothing else."""
        return self._vocabulary.lost_bytes

    def token_table_hash(self) -> str:
        """Return a hash that two models share only if they tokenize alike; up to half a second, then kept."""
        return self._vocabulary.table_hash

    def tokenize(self, text: bytes, *, special: bool = False) -> list[int]:
        return self._vocabulary.tokenize(text, special)

    @property
    def words_are_separate(self) -> bool:
        return self._vocabulary.words_are_separate

    def piece(self, token: int) -> bytes:
        return self._vocabulary.piece(token)

    def spelling(self, token: int) -> str:
        return self._vocabulary.spelling(token)

    def is_eog(self, token: int) -> bool:
        return self._vocabulary.is_eog(token)

    @property
    def eog_tokens(self) -> tuple[int, ...]:
        return self._vocabulary.eog_tokens

    def is_control(self, token: int) -> bool:
        return self._vocabulary.is_control(token)

    def is_user_defined(self, token: int) -> bool:
        return self._vocabulary.is_user_defined(token)

    def evaluate(self, tokens: Sequence[int], rows: Sequence[int] = ()) -> None:
        """See Backend.evaluate. Without rows a GPU may still be computing when this returns."""
        self._need_context()
        n_tokens, n_before = len(tokens), len(self._ids)
        self._check_evaluate(tokens, n_tokens, rows)
        self._rows = ()
        self._tokens[:n_tokens] = tokens
        self._positions[:n_tokens] = self._all_positions[n_before : n_before + n_tokens]
        self._flags[:n_tokens] = 0
        for row in rows:
            self._flags[row] = 1
        self._batch.n_tokens = n_tokens
        code = None
        try:
            self._ids += tokens
            code = _decode(self._context, self._batch)
        finally:
            # Also where an interrupt arrives between the call and its result.
            if code != 0:
                self._resync()
        if code != 0:
            raise EngineError(_decode_failure(self._info.name, int(code or 0), n_tokens, n_before))
        native.raise_held_interrupt()
        self._rows = tuple(rows)

    def scores(self, row: int) -> NDArray[np.float32]:
        """See Backend.scores; the array is read-only."""
        self._need_context()
        if row not in self._rows:
            raise EngineError(f"no scores kept for row {row}; kept: {list(self._rows)}")
        address = _logits_ith(self._context, row)
        if not address:
            raise EngineError(f"{self._info.name}: llama.cpp has no scores for row {row}")
        view = self._views.get(address)
        return self._make_view(address) if view is None else view

    def _make_view(self, address: int) -> NDArray[np.float32]:
        if len(self._views) >= _N_VIEWS:
            self._views.clear()
        row = (ctypes.c_float * self._info.n_vocab).from_address(address)
        view: NDArray[np.float32] = np.frombuffer(row, dtype=np.float32)  # type: ignore[call-overload]
        view.flags.writeable = False
        self._views[address] = view
        return view

    def rewind(self, n_keep: int) -> bool:
        self._need_context()
        if not 0 <= n_keep < len(self._ids):
            raise EngineError(f"rewind to {n_keep} of {len(self._ids)} tokens removes nothing or is out of range")
        if self._keeps_state or not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_keep, -1):
            return False
        self._rows = ()
        del self._ids[n_keep:]
        return True

    def clear(self) -> None:
        self._need_context()
        self._rows = ()
        self._ids.clear()
        # Cells are forgotten, not zeroed: nothing reads them before they are written again.
        llama_cpp.llama_memory_clear(self._memory, False)

    def save(self) -> bytes:
        """See Backend.save: a few bytes, and the recurrent state where a model has one."""
        self._need_context()
        header = _STATE_HEADER.pack(_STATE_MAGIC, len(self._ids), _digest(self._ids))
        if not self._keeps_state or not self._ids:
            return header
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, 0, _PARTIAL_ONLY)
        buffer = (ctypes.c_uint8 * size)()
        if not size or llama_cpp.llama_state_seq_get_data_ext(self._context, buffer, size, 0, _PARTIAL_ONLY) != size:
            raise EngineError(f"{self._info.name}: llama.cpp cannot save the state of {len(self._ids)} tokens")
        return header + bytes(buffer)

    def restore(self, state: bytes, n_cached: int) -> bool:
        """See Backend.restore: False for a foreign state, or one whose tokens the cache does not begin with.

        Raises EngineError, with the cache empty, where the library refuses a state of ours.
        """
        self._need_context()
        if len(state) < _STATE_HEADER.size or n_cached > len(self._ids):
            return False
        magic, n_saved, digest = _STATE_HEADER.unpack_from(state)
        if magic != _STATE_MAGIC or n_saved != n_cached or digest != _digest(self._ids[:n_cached]):
            return False
        if n_cached == 0:
            self.clear()
        elif n_cached < len(self._ids):
            if not self._keeps_state:
                return self.rewind(n_cached)
            self._restore_native(state[_STATE_HEADER.size :], n_cached)
        self._rows = ()
        return True

    def store(self, most_bytes: int) -> bytearray | None:
        """See Backend.store; 16 to 30 kB for each token of a small model, copied in milliseconds.

        None, too, for a text longer than the window of a model with sliding-window attention: llama.cpp leaves
        out what is behind the window and puts new tokens into its place, so that a rewind would lose a part of the
        window (its issue 25295; seen here with Gemma-3 270M and 600 tokens).
        """
        self._need_context()
        window = int(llama_cpp.llama_model_n_swa(llama_cpp.llama_get_model(self._context)))
        if not self._ids or 0 < window <= len(self._ids):
            return None
        size = int(llama_cpp.llama_state_seq_get_size(self._context, 0))
        if not 0 < size <= most_bytes:
            return None
        state = bytearray(size)
        buffer = (ctypes.c_uint8 * size).from_buffer(state)
        return state if llama_cpp.llama_state_seq_get_data(self._context, buffer, size, 0) == size else None

    def load(self, state: bytearray, ids: Sequence[int]) -> bool:
        self.clear()
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        n_read = llama_cpp.llama_state_seq_set_data(self._context, buffer, len(state), 0)
        if n_read != len(state) or llama_cpp.llama_memory_seq_pos_max(self._memory, 0) != len(ids) - 1:
            self.clear()
            return False
        self._ids.extend(ids)
        return True

    def close(self) -> None:
        self._views.clear()
        self._rows = ()
        self._ids.clear()
        self._context = self._memory = None
        self._vocabulary.close()
        self._free()

    def _restore_native(self, state: bytes, n_cached: int) -> None:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        n_read = llama_cpp.llama_state_seq_set_data_ext(self._context, buffer, len(state), 0, _PARTIAL_ONLY)
        is_restored = n_read == len(state)
        if is_restored and self._is_hybrid:  # the attention part still holds the tokens behind that moment
            is_restored = bool(llama_cpp.llama_memory_seq_rm(self._memory, 0, n_cached, -1))
        if not is_restored or llama_cpp.llama_memory_seq_pos_max(self._memory, 0) != n_cached - 1:
            self.clear()
            raise EngineError(f"{self._info.name}: llama.cpp refused a saved state of {n_cached} tokens")
        self._rows = ()
        del self._ids[n_cached:]

    def _check_evaluate(self, tokens: Sequence[int], n_tokens: int, rows: Sequence[int]) -> None:
        info, n_before = self._info, len(self._ids)
        if not n_tokens:
            raise EngineError("nothing to evaluate")
        if n_tokens > info.n_batch:
            raise EngineError(f"{n_tokens} tokens in one call, the batch size is {info.n_batch}")
        if n_before + n_tokens > info.n_ctx:
            raise EngineError(f"{n_before} + {n_tokens} tokens do not fit into a context of {info.n_ctx}")
        last = -1
        for row in rows:
            if not last < row < n_tokens:
                raise EngineError(f"rows {list(rows)} must be ascending indices of {n_tokens} tokens")
            last = row
        if min(tokens) < 0 or max(tokens) >= info.n_vocab:
            wrong = next(token for token in tokens if not 0 <= token < info.n_vocab)
            raise EngineError(f"token {wrong} is outside the vocabulary of {info.n_vocab}")

    def _resync(self) -> None:
        """Cut `_ids` to what the cache holds after a failed call."""
        self._rows = ()
        if self._keeps_state:
            # The library notes the position of a failed batch as reached, though its state is not computed.
            self.clear()
        else:
            del self._ids[llama_cpp.llama_memory_seq_pos_max(self._memory, 0) + 1 :]

    def _need_context(self) -> None:
        if self._context is None:
            if self._free.alive:
                raise EngineError(f"model {self._info.name} was opened for its vocabulary only")
            raise EngineError(f"model {self._info.name} is closed")


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ModelFileError(f"{path}: the model file cannot be read: {error.strerror}") from error


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).digest()


def _decode_failure(name: str, code: int, n_tokens: int, n_before: int) -> str:
    why = {1: "no room in the cache", 2: "the call was aborted", -1: "the batch was refused"}.get(
        code, "llama.cpp failed to compute"
    )
    return f"{name}: {n_tokens} tokens after {n_before} were not evaluated: {why} (code {code})"
