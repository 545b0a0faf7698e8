"""How much memory one model needs, by arithmetic on the header of its file: weights, cache, buffers, tables.

Owns the formulas. Never opens a file and never asks a machine; memory.py puts two models beside what is free.

1. Counts are llama.cpp's own: the cache is exact, a test compares it with what the library reserves.
2. The cache of a sliding-window layer is as long as any other: the engine keeps full windows (see loading.py).
3. Compute buffers are an upper bound: formulas fitted to what the library reserves for dense models, 512 tokens at
   once. A CPU touches less of them than a GPU allocates: `touched_bytes` and `reserved_bytes`.
4. What differs between builds (fused kernels, repacked weights, indexers of sparse attention in full) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_nudge.core.session import N_CHECKPOINTS
from edge_nudge.engine.gguf import GgufHeader

KV_BLOCKS: Mapping[str, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}  # values, bytes
N_BATCH = 512  # tokens computed at once
N_ROWS = 32  # most tokens with scores in one call: as many as the largest batch that is measured
CTX_STEP = 256  # llama.cpp rounds a context up to a multiple of this

_F32 = 4
_MASK_BYTES = 2  # for each token of a batch and cell of the cache
# Native tables and the Python side of one vocabulary; measured on 19 real ones, each within 8 % or 2 MB.
TOKEN_BYTES, MERGE_BYTES = 185, 135
_INPUT_TENSORS = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_RECURRENT = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
_BY_INTERVAL = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01")  # hybrid: every nth layer has attention
_BY_HEADS = (  # hybrid: layers without KV heads are recurrent
    "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe",
    "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next",
)  # fmt: skip
_BOTH = ("falcon-h1",)  # hybrid: each layer has both
_CACHED_FROM_START = {"gemma3n": 20}  # the layers behind these read the cache of others


@dataclass(frozen=True, slots=True)
class Footprint:
    """The sizes of one model that memory depends on; bytes where the name says so, else values."""

    name: str
    n_ctx_train: int
    n_vocab: int
    n_merges: int
    input_bytes: int  # weights that stay with the CPU: embeddings
    output_bytes: int  # weights of the output; a GPU needs the embeddings again where they are tied
    layer_bytes: tuple[int, ...]
    kv_values: tuple[tuple[int, int], ...]  # keys and values of a token, by layer
    head_sizes: frozenset[int]  # of keys and values
    state_bytes: tuple[int, ...]  # of a recurrent layer
    is_tied: bool
    n_embd: int
    n_widest: int  # values of a token in the widest part of a layer
    n_masks: int

    @property
    def n_layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def can_rewind(self) -> bool:
        """Tell whether some tokens can be taken back from the cache; recurrent layers cannot."""
        return not any(self.state_bytes)

    def n_ctx(self, asked: int) -> int:
        """Return the context that a model gets: never more than it was trained for, rounded up by the library."""
        return -(-min(asked, self.n_ctx_train) // CTX_STEP) * CTX_STEP

    def refuses(self, kv_type: str) -> str | None:
        """Return why the cache cannot be of this type, as a predicate, None where it can."""
        block = KV_BLOCKS[kv_type][0]
        odd = sorted(size for size in self.head_sizes if size % block)
        if odd:
            return f"cannot have a {kv_type} cache: its heads have {odd[0]} values, the type needs multiples of {block}"
        return None

    def cache_bytes(self, layer: int, n_ctx: int, kv_type: str) -> int:
        """Return what a layer keeps of the text: keys and values for each cell, or its state."""
        block, n_bytes = KV_BLOCKS[kv_type]
        return sum(n // block * n_bytes for n in self.kv_values[layer]) * n_ctx + self.state_bytes[layer]

    @property
    def checkpoint_bytes(self) -> int:
        """States kept so that a recurrent model can go back."""
        return N_CHECKPOINTS * sum(self.state_bytes)

    @property
    def vocabulary_bytes(self) -> int:
        return self.n_vocab * TOKEN_BYTES + self.n_merges * MERGE_BYTES

    @property
    def row_bytes(self) -> int:
        """One row of scores."""
        return self.n_vocab * _F32

    def touched_bytes(self, n_ctx: int) -> int:
        """Return what of the compute buffer a CPU really uses: the layers, and scores where they are wanted."""
        return self._layer_stage(n_ctx) + N_ROWS * self.row_bytes

    def reserved_bytes(self, n_ctx: int) -> int:
        """Return the whole compute buffer, as a GPU allocates it: scores for every token of a batch."""
        n_tokens = min(N_BATCH, n_ctx)
        output_stage = n_tokens * (self.row_bytes + 2 * _F32 * self.n_embd)
        return max(self._layer_stage(n_ctx), output_stage)

    def inputs_bytes(self, n_ctx: int) -> int:
        """Return what a CPU prepares for a GPU: masks and embeddings."""
        n_tokens = min(N_BATCH, n_ctx)
        return n_tokens * (self.n_masks * _MASK_BYTES * n_ctx + _F32 * self.n_embd)

    def _layer_stage(self, n_ctx: int) -> int:
        n_tokens = min(N_BATCH, n_ctx)
        return n_tokens * (_F32 * (self.n_widest + 4 * self.n_embd) + self.n_masks * _MASK_BYTES * n_ctx)


def footprint_of(header: GgufHeader) -> Footprint:
    """Return the sizes of a model; `header` of a file that can be used (gguf.check_model_file)."""
    keys = _Keys(header)
    inputs = sum(n for name, n in header.tensors.items() if name.startswith(_INPUT_TENSORS))
    layers = [0] * header.n_layers
    outputs = 0
    for name, n_bytes in header.tensors.items():
        layer = _layer_of(name)
        if layer is not None and layer < header.n_layers:
            layers[layer] += n_bytes
        elif not name.startswith(_INPUT_TENSORS):
            outputs += n_bytes
    is_recurrent = _recurrent_layers(keys)
    state = _state_values(keys) * _F32
    kv_values = tuple(_kv_values(keys, layer, is_recurrent[layer]) for layer in range(header.n_layers))
    return Footprint(
        name=header.path.name,
        n_ctx_train=header.n_ctx_train,
        n_vocab=header.n_vocab,
        n_merges=header.n_merges,
        input_bytes=inputs,
        output_bytes=outputs,
        layer_bytes=tuple(layers),
        kv_values=kv_values,
        head_sizes=frozenset(size for layer in range(header.n_layers) for size in _head_sizes(keys, layer)),
        state_bytes=tuple(state if has_state else 0 for has_state in is_recurrent),
        is_tied="output.weight" not in header.tensors,
        n_embd=keys.number("embedding_length"),
        n_widest=_widest(keys, kv_values),
        n_masks=(2 if keys.number("attention.sliding_window") else 1) if any(map(any, kv_values)) else 0,
    )


class _Keys:
    """The numbers of a header under its architecture's name."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.architecture, self.n_layers = header.architecture, header.n_layers

    def number(self, key: str, default: int = 0) -> int:
        value = self._header.metadata.get(f"{self.architecture}.{key}", default)
        return int(value) if isinstance(value, int) else default

    def at(self, key: str, layer: int, default: int = 0) -> int:
        """Return one layer's value of a key that is a number or an array with one for each layer."""
        values = self._header.per_layer.get(f"{self.architecture}.{key}")
        if values is None:
            return self.number(key, default)
        return int(values[layer]) if layer < len(values) and not isinstance(values[layer], str) else default

    def has_array(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._header.per_layer

    def most(self, key: str) -> int:
        return max((self.at(key, layer) for layer in range(self.n_layers)), default=0)


def _layer_of(name: str) -> int | None:
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if head == "blk" and number.isdecimal() else None


def _recurrent_layers(keys: _Keys) -> list[bool]:
    """Return, by layer, whether it keeps a state instead of keys and values (or beside them: _BOTH)."""
    layers, arch = range(keys.n_layers), keys.architecture
    if arch in (*_RECURRENT, *_BOTH):
        return [True for _ in layers]
    if arch in _BY_HEADS:
        is_bare = arch.startswith("nemotron_h")  # its feed-forward layers have no heads either, and keep nothing
        heads = [keys.at("attention.head_count_kv", layer) for layer in layers]
        return [not heads[i] and not (is_bare and keys.at("feed_forward_length", i)) for i in layers]
    if arch in _BY_INTERVAL:
        if keys.has_array("attention.recurrent_layers"):
            return [bool(keys.at("attention.recurrent_layers", layer)) for layer in layers]
        every = keys.number("full_attention_interval", 4)
        return [(layer + 1) % max(every, 1) != 0 for layer in layers]
    return [False for _ in layers]


def _kv_values(keys: _Keys, layer: int, is_recurrent: bool) -> tuple[int, int]:
    """Return how many values of keys and of values a layer keeps for each token."""
    arch = keys.architecture
    n_cached = keys.n_layers - keys.number("attention.shared_kv_layers")
    if (is_recurrent and arch not in _BOTH) or layer >= _CACHED_FROM_START.get(arch, n_cached):
        return 0, 0
    n_kv_heads = keys.at("attention.head_count_kv", layer, keys.at("attention.head_count", layer))
    sizes = [n_kv_heads * size for size in _head_sizes(keys, layer)]
    if keys.number("attention.key_length_mla") and keys.number("attention.value_length_mla"):
        sizes[1] = 0  # what is kept for the keys holds the values
    return sizes[0] + keys.number("attention.indexer.key_length"), sizes[1]


def _head_sizes(keys: _Keys, layer: int) -> tuple[int, int]:
    """Return how many values one head of a layer has: of keys, of values."""
    n_heads = keys.at("attention.head_count", 0)
    default = keys.number("embedding_length") // n_heads if n_heads else 0
    pattern = "attention.sliding_window_pattern"
    is_window = keys.has_array(pattern) and bool(keys.at(pattern, layer))
    sizes = [keys.number(f"attention.{kind}_length", default) for kind in ("key", "value")]
    if is_window:
        sizes = [
            keys.number(f"attention.{kind}_length_swa", n) for kind, n in zip(("key", "value"), sizes, strict=True)
        ]
    return sizes[0], sizes[1]


def _state_values(keys: _Keys) -> int:
    """Return how many values a recurrent layer keeps: its last inputs and its state."""
    n_embd = keys.number("embedding_length")
    wkv, short, kda = keys.number("wkv.head_size"), keys.number("shortconv.l_cache"), keys.number("kda.head_dim")
    n_conv = max(keys.number("ssm.conv_kernel", 4) - 1, 0)
    if wkv:
        return n_embd * (keys.number("token_shift_count", 2) + wkv)
    if short:
        return n_embd * (short - 1)
    if kda:
        n_heads = keys.at("attention.head_count", 0)
        return n_heads * kda * (3 * n_conv + kda)
    n_inner, n_state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    return n_conv * (n_inner + 2 * keys.number("ssm.group_count") * n_state) + n_state * n_inner


def _widest(keys: _Keys, kv_values: tuple[tuple[int, int], ...]) -> int:
    """Return the values of a token that live at once in attention, feed-forward or state, whichever is most."""
    head = keys.number("attention.key_length_mla") or keys.number("attention.key_length")
    n_heads = keys.most("attention.head_count")
    n_query = n_heads * (head or keys.number("embedding_length") // max(n_heads, 1))
    n_expert = keys.number("expert_used_count") * keys.most("expert_feed_forward_length")
    n_forward = max(keys.most("feed_forward_length"), n_expert + keys.number("expert_shared_feed_forward_length"))
    n_kv = max((sum(values) for values in kv_values), default=0)
    return max(3 * n_forward, 3 * n_query + n_kv, 6 * keys.number("ssm.inner_size"))
