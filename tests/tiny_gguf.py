"""Tiny models with seeded random weights that llama.cpp loads, and headers damaged on purpose.

`write_tiny` goes through gguf.GGUFWriter, so the checks in the package are tried on an independent writer's bytes;
`raw_header` packs bytes itself, to write what no writer would. Same seed, same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter, TokenType
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from edge_nudge.engine.gguf import check_model_file
from edge_nudge.errors import ModelFileError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKERS = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")
_LIST = """
    the a an and of to in is it that was for on you with as are be this have from or one had by word but not what
    all were we when your can said there use each which she do how their if will up other about out many then them
    these so some her would make like him into time has look two more write go see number no way could people my
    than first water been call who oil now find long down day did get come made may part answer question paris
"""
WORDS = _LIST.split()
OTHERS = ("é", "ü", "日", "本", "語", "ไ", "ท", "ย", "Ω", "я", ".\n", "\n\n", "  ", "    ")
_N_EMBD, _N_HEAD, _N_FF, _N_LAYER = 32, 2, 64, 2
WINDOW = 16  # tokens of the sliding window of the gemma3 kind

Array = NDArray[np.float32]


def write_tiny(
    path: Path,
    arch: str = "llama",
    *,
    vocab: str = "spm",
    seed: int = 0,
    n_ctx: int = 256,
    chat_template: str | None = None,
    user_defined: Sequence[str] = (),
    changes: Mapping[str, object] | None = None,
    only_vocabulary: bool = False,
    n_parts: int = 1,
) -> Path:
    """Write a model of kind "llama", "mamba" (cannot rewind), "gemma3" (sliding window) or "bert"; return its path.

    `vocab` is "spm" (blank prefix, byte fallback) or "bpe" (byte level); any text survives both, except that
    llama.cpp puts a blank behind each user-defined token of an "spm" vocabulary. `changes` replaces metadata, or
    removes it where the value is None. With `n_parts` above 1 the path of the first part is returned.
    """
    tokens = _spm() if vocab == "spm" else _bpe()
    tokens |= dict.fromkeys(user_defined, TokenType.USER_DEFINED)
    tensors = {} if only_vocabulary else dict(_tensors(arch, tokens, seed, n_ctx))
    per_part = -(-len(tensors) // n_parts) if n_parts > 1 else 0
    writer = GGUFWriter(path, arch, split_max_tensors=per_part)
    _add_model(writer, arch, n_ctx)
    _add_vocabulary(writer, vocab, tokens)
    writer.add_name(f"tiny {arch} {vocab}")
    writer.add_file_type(0)
    if chat_template is not None:
        writer.add_key_value("tokenizer.chat_template", chat_template, GGUFValueType.STRING)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    for key, value in (changes or {}).items():
        if value is None:
            writer.kv_data[0].pop(key, None)
        else:
            writer.kv_data[0][key] = GGUFValue(value, _value_type(value))
    paths = writer.format_shard_names(path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return paths[0]


def _value_type(value: object) -> GGUFValueType:
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, list: GGUFValueType.ARRAY}
    return kinds[type(value)] if type(value) in kinds else GGUFValueType.get_type(value)


def _add_model(writer: GGUFWriter, arch: str, n_ctx: int) -> None:
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(_N_EMBD)
    writer.add_block_count(_N_LAYER)
    if arch == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * _N_EMBD)
        writer.add_ssm_state_size(8)
        writer.add_ssm_time_step_rank(4)
        writer.add_layer_norm_rms_eps(1e-5)
        return
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(_N_HEAD)
    if arch == "bert":
        writer.add_layer_norm_eps(1e-5)
        writer.add_token_type_count(2)
        writer.add_causal_attention(False)
        writer.add_uint32("bert.pooling_type", 1)
        return
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if arch == "gemma3":
        writer.add_key_length(_N_EMBD // _N_HEAD)
        writer.add_value_length(_N_EMBD // _N_HEAD)
        writer.add_sliding_window(WINDOW)
        writer.add_sliding_window_pattern(2)  # layer 0 sees the window, layer 1 everything
    else:
        writer.add_rope_dimension_count(_N_EMBD // _N_HEAD)


def _add_vocabulary(writer: GGUFWriter, vocab: str, tokens: dict[str, TokenType]) -> None:
    ids = {token: index for index, token in enumerate(tokens)}
    writer.add_tokenizer_model("llama" if vocab == "spm" else "gpt2")
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    if vocab == "spm":
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_unk_token_id(ids["<unk>"])
        writer.add_bos_token_id(ids["<s>"])
        writer.add_eos_token_id(ids["</s>"])
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(True)
    else:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([f"{first} {second}" for first, second in _merges()])
        writer.add_bos_token_id(ids["<|endoftext|>"])
        writer.add_eos_token_id(ids["<|im_end|>"])
        writer.add_add_bos_token(False)


def _spm() -> dict[str, TokenType]:
    """Return the pieces of a SentencePiece vocabulary; every prefix of a word is one, as merging needs them."""
    tokens = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    tokens |= {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    tokens |= dict.fromkeys(MARKERS, TokenType.CONTROL)
    letters = ["\u2581", *(chr(code) for code in range(0x21, 0x7F))]
    words = ["\u2581" + word[:n] for word in WORDS for n in range(1, len(word) + 1)]
    pieces = [other.replace(" ", "\u2581") for other in OTHERS]
    return tokens | dict.fromkeys(
        [*sorted(dict.fromkeys(words), key=len, reverse=True), *pieces, *letters], TokenType.NORMAL
    )


def _bpe() -> dict[str, TokenType]:
    tokens = dict.fromkeys(_byte_letters().values(), TokenType.NORMAL)
    tokens |= dict.fromkeys((first + second for first, second in _merges()), TokenType.NORMAL)
    tokens |= dict.fromkeys(("<|endoftext|>", *MARKERS), TokenType.CONTROL)
    return tokens


def _merges() -> list[tuple[str, str]]:
    """Return the merges that build each word letter by letter from the left."""
    letters = _byte_letters()
    merges: dict[tuple[str, str], None] = {}
    for word in [*(" " + word for word in WORDS[::2]), *OTHERS]:
        spelled = "".join(letters[byte] for byte in word.encode())
        merges |= {(spelled[:n], spelled[n]): None for n in range(1, len(spelled))}
    made: dict[str, tuple[str, str]] = {}
    for pair in merges:
        made.setdefault("".join(pair), pair)
    return list(made.values())


def _byte_letters() -> dict[int, str]:
    """Return GPT-2's printable letter for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _output(tokens: dict[str, TokenType], random: np.random.Generator) -> Array:
    """Return output weights whose softmax is sometimes sharp and sometimes flat (scores of deviation 4).

    Bytes above ASCII, markers and single control characters keep scores near 0: what is written is mostly text.
    """
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    scale = np.full((len(tokens), 1), 4.0 / np.sqrt(_N_EMBD), dtype=np.float32)
    for index, (token, kind) in enumerate(tokens.items()):
        is_end = token in ("</s>", "<|im_end|>")
        is_odd_byte = len(token) == 1 and not 0x20 <= letters.get(token, ord("a")) < 0x7F
        if (kind != TokenType.NORMAL and not is_end) or is_odd_byte:
            scale[index] *= 0.02
    return (random.standard_normal((len(tokens), _N_EMBD)) * scale).astype(np.float32)


def _tensors(arch: str, tokens: dict[str, TokenType], seed: int, n_ctx: int) -> Iterator[tuple[str, Array]]:
    random = np.random.default_rng([seed, *arch.encode()])

    def matrix(n_out: int, n_in: int, gain: float = 1.5) -> Array:
        return (random.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)

    def ones(n: int = _N_EMBD) -> Array:
        return np.ones(n, dtype=np.float32)

    yield "token_embd.weight", matrix(len(tokens), _N_EMBD, np.sqrt(_N_EMBD) if arch != "gemma3" else 1.0)
    if arch == "bert":
        yield "token_types.weight", matrix(2, _N_EMBD)
        yield "position_embd.weight", matrix(n_ctx, _N_EMBD)
        yield "token_embd_norm.weight", ones()
        yield "token_embd_norm.bias", 0 * ones()
    else:
        yield "output_norm.weight", ones()
        yield "output.weight", _output(tokens, random)
    for layer in range(_N_LAYER):
        block = _mamba_block if arch == "mamba" else _attention_block
        for name, tensor in block(arch, matrix, ones):
            yield f"blk.{layer}.{name}", tensor


def _attention_block(arch: str, matrix: Any, ones: Any) -> Iterator[tuple[str, Array]]:
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield f"{name}.weight", matrix(_N_EMBD, _N_EMBD)
    yield "ffn_up.weight", matrix(_N_FF, _N_EMBD)
    yield "ffn_down.weight", matrix(_N_EMBD, _N_FF)
    if arch == "bert":
        for name in ("attn_output_norm", "layer_output_norm"):
            yield f"{name}.weight", ones()
            yield f"{name}.bias", 0 * ones()
        return
    yield "ffn_gate.weight", matrix(_N_FF, _N_EMBD)
    yield "attn_norm.weight", ones()
    yield "ffn_norm.weight", ones()
    if arch == "gemma3":
        yield "post_attention_norm.weight", ones()
        yield "post_ffw_norm.weight", ones()
        yield "attn_q_norm.weight", ones(_N_EMBD // _N_HEAD)
        yield "attn_k_norm.weight", ones(_N_EMBD // _N_HEAD)


def _mamba_block(_arch: str, matrix: Any, ones: Any) -> Iterator[tuple[str, Array]]:
    n_inner, n_state, n_rank, n_conv = 2 * _N_EMBD, 8, 4, 4
    yield "attn_norm.weight", ones()
    yield "ssm_in.weight", matrix(2 * n_inner, _N_EMBD)
    yield "ssm_conv1d.weight", matrix(n_inner, n_conv)
    yield "ssm_conv1d.bias", 0 * ones(n_inner)
    yield "ssm_x.weight", matrix(n_rank + 2 * n_state, n_inner)
    yield "ssm_dt.weight", matrix(n_inner, n_rank)
    yield "ssm_dt.bias", -ones(n_inner)
    yield "ssm_a", -np.tile(np.arange(1, n_state + 1, dtype=np.float32) / n_state, (n_inner, 1))
    yield "ssm_d", ones(n_inner)
    yield "ssm_out.weight", matrix(_N_EMBD, n_inner, 2.0)


def put(folder: Path, raw: bytes, name: str = "model.gguf") -> Path:
    """Write bytes into a folder; return the path."""
    path = folder / name
    path.write_bytes(raw)
    return path


def refusal(path: Path, role: str = "base") -> str:
    """Return the sentence a file is refused with; it is one line and names its role."""
    with pytest.raises(ModelFileError) as caught:
        check_model_file(path, role=role)
    message = str(caught.value)
    assert message.startswith(f"{role} model file ")
    assert message.isprintable()
    return message


U8, U16, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 6, 7, 8, 9, 10
_LETTERS = {U8: "B", U16: "H", U32: "I", F32: "f", BOOL: "B", U64: "Q"}


def packed_string(text: str | bytes, n: int | None = None) -> bytes:
    """Return a GGUF string; `n` lies about its length."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", (len(raw) if n is None else n) & (2**64 - 1)) + raw


def pair(key: str | bytes, kind: int, value: Any) -> bytes:
    """Return one metadata entry; a bytes value is taken as it is."""
    head = packed_string(key) + struct.pack("<I", kind)
    if isinstance(value, bytes):
        return head + value
    return head + (packed_string(value) if kind == STRING else struct.pack("<" + _LETTERS[kind], value))


def strings(values: Sequence[str | bytes], n: int | None = None) -> bytes:
    """Return the value of an array of strings; `n` lies about its length."""
    return struct.pack("<IQ", STRING, len(values) if n is None else n) + b"".join(map(packed_string, values))


def tensor(name: str | bytes, dims: Sequence[int], offset: int = 0, kind: int = 0, n_dims: int | None = None) -> bytes:
    """Return one entry of the tensor table."""
    dims_raw = b"".join(struct.pack("<Q", dim & (2**64 - 1)) for dim in dims)
    head = packed_string(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return head + dims_raw + struct.pack("<IQ", kind, offset & (2**64 - 1))


def text_model(arch: str = "llama", **more: tuple[int, Any]) -> list[bytes]:
    """Return the least metadata of a model that can write text; `more` with __ for . in a key."""
    entries: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, arch),
        f"{arch}.context_length": (U32, 64),
        f"{arch}.block_count": (U32, 1),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.tokens": (ARRAY, strings(["a", "b", "c"])),
    }
    entries |= {key.replace("__", "."): value for key, value in more.items()}
    return [pair(key, kind, value) for key, (kind, value) in entries.items()]


def raw_header(
    pairs: Sequence[bytes] | None = None,
    tensors: Sequence[bytes] | None = None,
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    weights: bytes = bytes(32),
    alignment: int = 32,
) -> bytes:
    """Return the bytes of a GGUF file of one tensor of 8 values, or of whatever is said instead."""
    pairs = text_model() if pairs is None else pairs
    tensors = [tensor("t", [8])] if tensors is None else tensors
    counts = (len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs)
    raw = b"GGUF" + struct.pack("<IQQ", version, *(n & (2**64 - 1) for n in counts)) + b"".join([*pairs, *tensors])
    return raw + bytes(-len(raw) % alignment) + weights
