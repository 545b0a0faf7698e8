"""Model files before the native loader sees them: what is accepted, what is refused, and with which sentence."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from tiny_gguf import (
    ARRAY,
    BOOL,
    CHATML,
    F32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    packed_string,
    put,
    raw_header,
    refusal,
    strings,
    tensor,
    text_model,
    write_tiny,
)

from edge_nudge.engine import gguf
from edge_nudge.engine.gguf import GgufHeader, check_model_file, read_model_file, why_unusable
from edge_nudge.engine.gguf_scan import tensor_types, visible
from edge_nudge.errors import ModelFileError

# --- what is accepted


@pytest.mark.parametrize("arch", ["llama", "mamba", "gemma3"])
@pytest.mark.parametrize("vocab", ["spm", "bpe"])
def test_header_agrees_with_the_gguf_package(tmp_path: Path, arch: str, vocab: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch, vocab=vocab, chat_template=CHATML)
    header = check_model_file(path, role="base")
    reader = GGUFReader(path)
    expected = {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and field.types[0] != ARRAY
    }
    assert dict(header.metadata) == expected
    assert header == GgufHeader(
        path=path, parts=(path,), architecture=arch, name=f"tiny {arch} {vocab}",
        n_vocab=len(reader.fields["tokenizer.ggml.tokens"].data), n_ctx_train=256, n_layers=2,
        n_tensors=len(reader.tensors), size_bytes=path.stat().st_size, quantization="F32", has_chat_template=True,
        metadata=header.metadata, per_layer=header.per_layer,
        n_merges=len(reader.fields["tokenizer.ggml.merges"].data) if vocab == "bpe" else 0,
        tensors={tensor.name: tensor.n_bytes for tensor in reader.tensors},
    )  # fmt: skip


def test_tensor_types_are_those_of_the_gguf_package_and_two_more() -> None:
    known = {kind.value: (kind.name, block, size) for kind, (block, size) in GGML_QUANT_SIZES.items()}
    assert tensor_types() == known | {9: ("Q8_1", 32, 36), 42: ("Q2_0", 64, 18)}


@pytest.mark.parametrize(
    ("file_type", "name"), [(0, "F32"), (2, "Q4_0"), (15, "Q4_K_M"), (32, "BF16"), (4321, None), (True, None)]
)
def test_quantization_is_named(tmp_path: Path, file_type: int, name: str | None) -> None:
    kind = BOOL if file_type is True else U32
    header = check_model_file(put(tmp_path, raw_header(text_model(general__file_type=(kind, file_type)))), role="base")
    assert header.quantization == name


def test_nothing_heavy_is_imported_for_a_check(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edge_nudge.engine.gguf import check_model_file;"
        "check_model_file(Path(sys.argv[1]), role='base');"
        "sys.exit(' '.join({'numpy', 'gguf', 'yaml', 'llama_cpp', 'pydantic'} & set(sys.modules)) or 0)"
    )
    path = put(tmp_path, raw_header(text_model(general__file_type=(U32, 15))))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_every_scalar_type_and_both_versions_are_read(tmp_path: Path) -> None:
    more = {
        "a": (U8, 255),
        "b": (U16, 65535),
        "c": (U64, 2**64 - 1),
        "d": (F32, 0.5),
        "e": (BOOL, 2),
        "f": (STRING, "é"),
    }
    for version in (2, 3):
        header = check_model_file(put(tmp_path, raw_header(text_model(**more), version=version)), role="base")
        assert {key: header.metadata[key] for key in more} == {
            "a": 255,
            "b": 65535,
            "c": 2**64 - 1,
            "d": 0.5,
            "e": True,
            "f": "é",
        }
        assert header.metadata["e"] is True


def test_long_strings_are_cut_and_a_chat_template_is_not(tmp_path: Path) -> None:
    template = "é" * 100_000
    more = {
        "general__license": (STRING, "x" + "é" * 5000),
        "tokenizer__chat_template": (STRING, template),
        "last": (U8, 7),
    }
    header = check_model_file(put(tmp_path, raw_header(text_model(**more))), role="base")
    assert header.metadata["tokenizer.chat_template"] == template
    assert header.metadata["general.license"] == "x" + "é" * 2047
    assert header.metadata["last"] == 7
    message = refusal(put(tmp_path, raw_header(text_model(tokenizer__chat_template=(STRING, "x" * (1 << 20 | 1))))))
    assert "has a chat template of 1048577 bytes, at most 1048576 are read" in message


@pytest.mark.parametrize("template", ["", " \n", None])
def test_an_empty_chat_template_is_none(tmp_path: Path, template: str | None) -> None:
    header = check_model_file(write_tiny(tmp_path / "m.gguf", chat_template=template), role="base")
    assert not header.has_chat_template


def test_text_that_is_not_utf8_is_replaced_in_values(tmp_path: Path) -> None:
    header = check_model_file(
        put(tmp_path, raw_header(text_model(general__name=(STRING, packed_string(b"a\xff"))))), role="base"
    )
    assert header.name == "a\ufffd"


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_alignment_moves_the_weights(tmp_path: Path, alignment: int) -> None:
    tensors = [tensor("a", [3]), tensor("b", [4], -(-12 // alignment) * alignment)]
    weights = bytes(-(-12 // alignment) * alignment + 16)
    pairs = text_model(general__alignment=(U32, alignment))
    raw = raw_header(pairs, tensors, weights=weights, alignment=alignment)
    assert check_model_file(put(tmp_path, raw), role="base").n_tensors == 2
    assert f"is 1 bytes short: {len(raw) - 1} of {len(raw)} bytes are there" in refusal(put(tmp_path, raw[:-1]))


def test_quantised_tensors_are_sized_in_blocks(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q4_K.value
    raw = raw_header(None, [tensor("a", [512, 3], kind=kind)], weights=bytes(6 * 144))
    assert check_model_file(put(tmp_path, raw), role="base").n_tensors == 1
    assert "is 1 bytes short" in refusal(put(tmp_path, raw[:-1]))
    assert "rows of 500 values, Q4_K needs a multiple of 256" in refusal(
        put(tmp_path, raw_header(None, [tensor("a", [500], kind=kind)]))
    )


# --- paths


def test_paths_with_blanks_accents_emoji_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "My Models" / "模型 v1"
    folder.mkdir(parents=True)
    path = folder / "nai\u0308n 🙂.gguf"
    path.write_bytes(raw_header())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    header = check_model_file(Path("~/My Models/模型 v1/nai\u0308n 🙂.gguf"), role="base")
    assert header.path == path
    path.write_bytes(b"GGUF")
    assert f'"{path}"' in refusal(path)


def test_a_link_without_the_ending_is_followed_and_kept(tmp_path: Path) -> None:
    blob = put(tmp_path, raw_header(), "9f86d081884c7d65")
    assert check_model_file(blob, role="base").path == blob
    link = tmp_path / "model"
    link.symlink_to(blob)
    assert check_model_file(link, role="base").path == link


def test_dangling_links_and_loops_say_so(tmp_path: Path) -> None:
    link = tmp_path / "m.gguf"
    link.symlink_to("blobs/gone")
    assert 'is a link to "blobs/gone", which cannot be reached' in refusal(link)
    link.unlink()
    link.symlink_to(link)
    assert "is a link to" in refusal(link)


def test_missing_files_suggest_their_neighbours(tmp_path: Path) -> None:
    put(tmp_path, b"", "SmolLM2-135M-Instruct.Q4_1.gguf")
    put(tmp_path, b"", "notes.txt")
    for typed in ("SmolLM2-135M-Instruct-Q4_1.gguf", "smollm2-135m-instruct.q4_1.GGUF", "SmolLM2"):
        assert 'does not exist; did you mean "SmolLM2-135M-Instruct.Q4_1.gguf"' in refusal(tmp_path / typed)
    assert "does not exist; check the path" in refusal(tmp_path / "gemma.gguf")
    assert f'nor does its folder "{tmp_path / "no"}"' in refusal(tmp_path / "no" / "m.gguf")
    assert 'model file "~nobody-here/m.gguf" does not exist' in refusal(Path("~nobody-here/m.gguf"))


def test_a_relative_path_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f'model file "m.gguf" does not exist in "{tmp_path}"' in refusal(Path("m.gguf"))


def test_folders_pipes_and_impossible_names(tmp_path: Path) -> None:
    assert "is a folder; give a .gguf file" in refusal(tmp_path)
    put(tmp_path, raw_header(), "b.gguf")
    assert 'is a folder; give a file inside it, such as "b.gguf"' in refusal(tmp_path, "nudging")
    assert "no file can have such a name" in refusal(tmp_path / "a\0b.gguf")
    assert "check the path" in refusal(tmp_path / ("x" * 5000))
    assert "does not exist" in refusal(tmp_path / "b.gguf" / "c.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    assert "is a pipe, a device or a socket" in refusal(tmp_path / "m.gguf")
    write_tiny(tmp_path / "s.gguf", n_parts=2)
    (tmp_path / "s-00002-of-00002.gguf").unlink()
    os.mkfifo(tmp_path / "s-00002-of-00002.gguf")
    assert "is a pipe, a device or a socket" in refusal(tmp_path / "s-00001-of-00002.gguf")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gguf, "open", refuse, raising=False)
    assert "cannot be read: Permission denied; check its permissions" in refusal(put(tmp_path, raw_header()))


def test_control_characters_in_names_are_made_visible(tmp_path: Path) -> None:
    assert visible("a\x1b[31m\n\u202e\udc80é\u0308 模🙂") == "a\\x1b[31m\\n\\u202e\\udc80é\u0308 模🙂"
    assert '\\x1b[2J.gguf" does not exist' in refusal(tmp_path / "\x1b[2J.gguf")


# --- files that are something else


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    return buffer.getvalue()


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 253113024\n"
_SAFETENSORS = b'{"__metadata__":{"format":"pt"}}'


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty; fetch it again"),
        (bytes(4096), "begins with 512 zero bytes: its 4096 bytes were reserved and never filled"),
        (b"<!DOCTYPE html>\n<html><head>", "starts with <!DOCTYPE html>: this is a web page, download the file itself"),
        (b"\xef\xbb\xbf\r\n<html lang='en'>", "starts with <html lang='en'>: this is a web page"),
        (b"<?xml version='1.0'?><Error>", "this is a web page"),
        (_LFS, f"is a Git-LFS pointer of {len(_LFS)} bytes that stands for a file of 253113024 bytes"),
        (b"Entry not found", 'starts with "Entry not found": this is text, perhaps the answer of a server'),
        (b'{"error":"gated"}', 'starts with "{"error":"gated"}": this is text'),
        (struct.pack("<Q", len(_SAFETENSORS)) + _SAFETENSORS, "is a safetensors file; convert it"),
        (_zip(), "is a zip archive or a PyTorch checkpoint"),
        (b"\x80\x02}q\x00X", "is a PyTorch pickle"),
        (b"\x1f\x8b\x08\x00", "is a gzip archive"),
        (b"tjgg\x03\0\0\0", "GGML format from before August 2023"),
        (b"FUGG\0\0\0\x03", "is written for the other byte order"),
        (b"\x7fELF\x02\x01\x01\0", 'starts with "\\x7fELF\\x02\\x01\\x01\\x00", not with "GGUF"'),
        (b"\xff\xfe\x00G", 'starts with "\\xff\\xfe\\x00G"'),
        (b"GG", 'starts with "GG"'),
        (b"GGUF", "ends inside its header: 4 bytes are needed at byte 4, 0 are there"),
        (raw_header(version=1), "is GGUF version 1, versions 2 and 3 can be read"),
        (raw_header(version=0), "is GGUF version 0"),
        (raw_header(version=4), "is GGUF version 4"),
        (raw_header(version=0x03000000), "is written for the other byte order"),
    ],
)
def test_other_files_are_named(tmp_path: Path, raw: bytes, said: str) -> None:
    assert said in refusal(put(tmp_path, raw))


# --- kinds of model


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("bert", 'is an embedding model (architecture "bert"); nudging needs a decoder-only language model'),
        ("nomic-bert-moe", "is an embedding model"),
        ("jina-bert-v3", "is an embedding model"),
        ("modern-bert", "is an embedding model"),
        ("eurobert", "is an embedding model"),
        ("neo-bert", "is an embedding model"),
        ("gemma-embedding", "is an embedding model"),
        ("t5encoder", "is an embedding model"),
        ("t5", "is an encoder-decoder model"),
        ("clip", "is the image part (mmproj) of another model"),
        ("dream", "is a diffusion model"),
        ("llada-moe", "is a diffusion model"),
        ("wavtokenizer-dec", "is a speech model"),
        ("eagle3", "is the draft head of another model"),
    ],
)
def test_architectures_that_cannot_write_text(tmp_path: Path, arch: str, said: str) -> None:
    assert said in refusal(put(tmp_path, raw_header(text_model(arch))))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general.type", (STRING, "adapter"), "is a LoRA adapter for another model"),
        ("general.type", (STRING, "imatrix"), "holds the statistics for quantising another model"),
        ("general.type", (STRING, "mmproj"), "is the image part (mmproj) of another model"),
        ("general.architecture", (STRING, ""), "names no general.architecture"),
        ("general.architecture", (U32, 7), "names no general.architecture"),
        ("qwen3.pooling_type", (U32, 3), "is an embedding or ranking model (pooling: last)"),
        ("qwen3.pooling_type", (U32, 4), "is an embedding or ranking model (pooling: rank)"),
        ("qwen3.attention.causal", (BOOL, 0), "is an encoder (its attention is not causal)"),
        ("tokenizer.ggml.tokens", (ARRAY, strings([])), 'has no vocabulary (architecture "qwen3")'),
        ("tokenizer.ggml.tokens", (ARRAY, struct.pack("<IQI", U32, 1, 1)), "has no vocabulary"),
        ("tokenizer.ggml.model", (STRING, "none"), "has no vocabulary"),
        ("qwen3.block_count", (U32, 0), "says it has 0 layers, 1 to 512 are possible"),
        ("qwen3.block_count", (U32, 513), "says it has 513 layers"),
        ("qwen3.context_length", (U32, 0), 'names no "qwen3.context_length"'),
        ("qwen3.context_length", (BOOL, 1), 'names no "qwen3.context_length"'),
        ("qwen3.context_length", (STRING, "4096"), 'names no "qwen3.context_length"'),
    ],
)
def test_models_that_cannot_write_text(tmp_path: Path, key: str, value: tuple[int, object], said: str) -> None:
    assert said in refusal(put(tmp_path, raw_header(text_model("qwen3", **{key.replace(".", "__"): value}))))


@pytest.mark.parametrize(
    ("key", "value"), [("pooling_type", (U32, 0)), ("pooling_type", (U32, 2**32 - 1)), ("attention__causal", (BOOL, 1))]
)
def test_what_a_writing_model_may_say(tmp_path: Path, key: str, value: tuple[int, int]) -> None:
    # 2**32 - 1 is "unspecified", written by llama.cpp itself when it saves a model.
    assert check_model_file(put(tmp_path, raw_header(text_model("qwen3", **{f"qwen3__{key}": value}))), role="base")


def test_a_vocabulary_alone_and_an_embedding_model_can_be_read(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "v.gguf", only_vocabulary=True)
    header = read_model_file(path)
    assert f"holds a vocabulary of {header.n_vocab} tokens and no weights" in refusal(path)
    bert = write_tiny(tmp_path / "b.gguf", "bert")
    assert why_unusable(read_model_file(bert)) == 'is an embedding model (architecture "bert"); ' + gguf._NEEDED
    assert "is an embedding model" in refusal(bert)


def test_a_message_without_a_role_begins_with_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r'^model file "'):
        read_model_file(tmp_path / "m.gguf")
