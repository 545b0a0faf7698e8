"""NativeVocabulary: the tokenizer of one loaded model, bytes to ids and back.

Owns exactness between text and ids. Never evaluates and never adds BOS or a template.

1. Control tokens are reached only with `special`; their pieces are empty.
2. A piece is whole however long it is: the native call is repeated with the size it asks for.
3. A blank that SentencePiece adds stands at the start of a text only, not behind user-defined tokens inside it.
4. U+2581, which SentencePiece reads as a blank, goes in as its three byte tokens instead.
5. A run of 2,048 letters, digits, blanks or signs is tokenized in parts where the library could not stand it.
6. Some BPE vocabularies have no token for some bytes and drop them silently: `defect` says which.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from functools import cached_property
from typing import Any

import llama_cpp
import regex

from edge_nudge.engine import native
from edge_nudge.errors import EngineError

_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
_USER_DEFINED = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
_META_SPACE = "\u2581".encode()
# Never merges with its neighbour in any vocabulary seen: the ids behind its own are those of a text's middle.
_ANCHOR = b"\x01"
# Some pre-tokenizers run on std::regex, which recurses once for each character of a run, 320 bytes deep: 25,000
# letters in a row end a process with a stack of 8 MB, 3,000 one with 1 MB (a thread on Windows).
_LONGEST_RUN = 2048
_LONG_RUN = regex.compile(
    r"(?:[\p{L}\p{M}]{%d}|\p{N}{%d}|\s{%d}|[^\s\p{L}\p{N}]{%d})" % ((_LONGEST_RUN,) * 4)  # noqa: UP031
)
# As the table writes a blank: plainly, byte-level (U+0120), SentencePiece (U+2581).
_LETTER_AND_BLANK = re.compile(rb"[A-Za-z](?: |\xc4\xa0|\xe2\x96\x81)")
_text = native.prototype(llama_cpp.llama_vocab_get_text, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int32)
_PROBE_TEXT = (
    "The quick brown fox can't jump 12345 times over  the\tlazy dog.\r\n\n    def f(x):\n        return x ** 2\n"
    "Größe, naïve, Ελληνικά, русский, العربية, עברית, हिन्दी, ภาษาไทย, 日本語のテキスト, 한국어, 中文 👩‍👩‍👧 é ﬁ １２\n"
)
_PROBE = _PROBE_TEXT.encode()


class NativeVocabulary:
    """The tokenizer of a loaded model; the model must outlive it. `pre` names its pre-tokenizer, for the hash."""

    def __init__(self, handle: int, pre: str = "") -> None:
        self._handle: int | None = handle
        self._pre = pre
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(handle)
        self._is_bpe = llama_cpp.llama_vocab_type(handle) == llama_cpp.LLAMA_VOCAB_TYPE_BPE
        self._is_spm = llama_cpp.llama_vocab_type(handle) == llama_cpp.LLAMA_VOCAB_TYPE_SPM
        self._pieces: dict[int, bytes] = {}
        self._attrs: dict[int, int] = {}
        self._eog: dict[int, bool] = {}
        self.adds_space_prefix = self._pieces_of(self._native_tokenize(b"x", False)).startswith(b" ")

    def close(self) -> None:
        """Forget the model: every later call raises EngineError."""
        self._handle = None
        for table in (self._pieces, self._attrs, self._eog):
            table.clear()

    def tokenize(self, text: bytes, special: bool) -> list[int]:
        """Return the ids of valid UTF-8, without BOS; see Backend.tokenize.

        Raises UnicodeDecodeError (a ValueError) for anything else: a byte-level vocabulary would turn half a
        character into U+FFFD without a word.
        """
        decoded = text.decode("utf-8")
        if not text:
            self._need()
            return []
        if len(text) > _LONGEST_RUN and self._is_bpe and _LONG_RUN.search(decoded):
            return self._tokenize_runs(decoded, special)
        return self._tokenize_whole(text, special)

    def _tokenize_whole(self, text: bytes, special: bool) -> list[int]:
        if _META_SPACE in text and self._meta_space is not None:
            return self._tokenize_meta_spaces(text, special, self._meta_space)
        return self._tokenize_part(text, special)

    def piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._native_piece(self._checked(token), False)
        return piece

    def spelling(self, token: int) -> str:
        return self._native_piece(self._checked(token), True).decode("utf-8", "backslashreplace")

    def is_eog(self, token: int) -> bool:
        ends = self._eog.get(token)
        if ends is None:
            ends = self._eog[token] = bool(llama_cpp.llama_vocab_is_eog(self._need(), self._checked(token)))
        return ends

    def is_control(self, token: int) -> bool:
        return bool(self._attr(token) & _CONTROL)

    def is_user_defined(self, token: int) -> bool:
        return bool(self._attr(token) & (_USER_DEFINED | _CONTROL) == _USER_DEFINED)

    @cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        handle, ends = self._need(), llama_cpp.llama_vocab_is_eog
        return tuple(token for token in range(self.n_tokens) if ends(handle, token))

    @cached_property
    def words_are_separate(self) -> bool:
        """Whether no token of text reaches from an ASCII letter over a blank; see Backend.words_are_separate.

        Known for vocabularies that merge (BPE and SentencePiece's variant): a merge makes tokens of the table
        only, so none can cross such a place, and the merges left and right of it do not see each other.
        """
        if not (self._is_bpe or self._is_spm):
            return False
        handle = self._need()
        table = b"\0".join([_text(handle, token) or b"" for token in range(self.n_tokens)])
        return all(self.is_control(table.count(b"\0", 0, match.start())) for match in _LETTER_AND_BLANK.finditer(table))

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 over every token's text, attributes and score, the pre-tokenizer, and the ids of a probe text.

        The library does not show the merges; the probe stands for them. Costs half a second for a quarter of a
        million tokens.
        """
        handle = self._need()
        digest = hashlib.sha256(f"{llama_cpp.llama_vocab_type(handle)} {self._pre} {self.n_tokens} ".encode())
        text, attr, score = (
            llama_cpp.llama_vocab_get_text,
            llama_cpp.llama_vocab_get_attr,
            llama_cpp.llama_vocab_get_score,
        )
        for token in range(self.n_tokens):
            digest.update(b"%d %d %r " % (token, attr(handle, token), score(handle, token)))
            digest.update(text(handle, token))
        digest.update(repr(self.tokenize(_PROBE, special=False)).encode())
        return digest.hexdigest()

    @cached_property
    def lost_bytes(self) -> frozenset[int]:
        """The bytes of UTF-8 that no token holds: they vanish from a text without an error."""
        return frozenset(byte for char in _probe_characters() for byte in char if byte not in self._read(char))

    @cached_property
    def defect(self) -> str | None:
        """Say where text does not survive tokenizing and joining the pieces; None where it always does."""
        if self._read(_PROBE) != _PROBE:
            return "it changes ordinary text (normalisation or unknown tokens)"
        if self.lost_bytes:
            return f"it has no token for the bytes {' '.join(f'{byte:02X}' for byte in sorted(self.lost_bytes))}"
        if self._read(_META_SPACE) != _META_SPACE:
            return "it reads U+2581 as a blank"
        return None

    def _read(self, text: bytes) -> bytes:
        """Return what the model sees of a text."""
        pieces = self._pieces_of(self.tokenize(text, False))
        return pieces[1:] if self.adds_space_prefix else pieces

    def _pieces_of(self, ids: list[int]) -> bytes:
        return b"".join(self.piece(token) for token in ids)

    @cached_property
    def _user_defined(self) -> frozenset[int]:
        handle, attr = self._need(), llama_cpp.llama_vocab_get_attr
        mask = _USER_DEFINED | _CONTROL
        return frozenset(token for token in range(self.n_tokens) if attr(handle, token) & mask == _USER_DEFINED)

    @cached_property
    def _meta_space(self) -> list[int] | None:
        """The byte tokens that spell U+2581; None where the vocabulary reads it as itself, or has no byte tokens."""
        handle, attr = self._need(), llama_cpp.llama_vocab_get_attr
        if self._pieces_of(self._native_tokenize(b"a" + _META_SPACE, False)).lstrip() != b"a ":
            return None
        is_byte = llama_cpp.LLAMA_TOKEN_ATTR_BYTE
        found = {self.piece(token): token for token in range(self.n_tokens) if attr(handle, token) & is_byte}
        wanted = [found[bytes([byte])] for byte in _META_SPACE if bytes([byte]) in found]
        return wanted if len(wanted) == len(_META_SPACE) else None

    @cached_property
    def _anchor(self) -> list[int]:
        """The ids of the anchor, behind the blank that every text gets, if it gets one."""
        return self._native_tokenize(_ANCHOR, False)

    def _tokenize_runs(self, text: str, special: bool) -> list[int]:
        """Tokenize the text in parts that end behind each piece of a long run; only for BPE, which adds no blank."""
        ends = [match.end() for match in _LONG_RUN.finditer(text)]
        parts = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        return [token for part in parts if part for token in self._tokenize_whole(part.encode(), special)]

    def _tokenize_meta_spaces(self, text: bytes, special: bool, byte_ids: list[int]) -> list[int]:
        first, *rest = text.split(_META_SPACE)
        ids = self._tokenize_part(first, special) if first else self._anchor[:-1]
        for part in rest:
            inner = self._tokenize_part(_ANCHOR + part, special)
            if not self._is_anchored(inner):
                return self._tokenize_part(text, special)
            ids = [*ids, *byte_ids, *inner[len(self._anchor) :]]
        return ids

    def _tokenize_part(self, text: bytes, special: bool) -> list[int]:
        ids = self._native_tokenize(text, special)
        # With `special` the blank behind a control token is what the model was trained on: only plain text is exact.
        if special or not self.adds_space_prefix or self._user_defined.isdisjoint(ids):
            return ids
        exact: list[int] = []
        run: list[int] = []
        for token in ids:
            if token in self._user_defined:
                exact += [*self._without_blank(run, is_first=not exact), token]
                run = []
            else:
                run.append(token)
        return exact + self._without_blank(run, is_first=not exact)

    def _without_blank(self, run: list[int], is_first: bool) -> list[int]:
        """Tokenize what stands between two user-defined tokens again, without the blank it was given."""
        if is_first or not run:
            return run
        ids = self._native_tokenize(_ANCHOR + self._pieces_of(run)[1:], False)
        return ids[len(self._anchor) :] if self._is_anchored(ids) else run

    def _is_anchored(self, ids: list[int]) -> bool:
        return ids[: len(self._anchor)] == self._anchor

    def _native_tokenize(self, text: bytes, special: bool) -> list[int]:
        handle = self._need()
        size = len(text) + 8
        for _ in range(2):
            ids = (ctypes.c_int32 * size)()
            n_ids = llama_cpp.llama_tokenize(handle, text, len(text), ids, size, False, special)
            if n_ids >= 0:
                return ids[:n_ids]
            size = -n_ids
        raise EngineError(f"llama.cpp cannot tokenize a text of {len(text)} bytes")

    def _native_piece(self, token: int, special: bool) -> bytes:
        handle = self._need()
        size = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n_bytes = llama_cpp.llama_token_to_piece(handle, token, buffer, size, 0, special)
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            size = -n_bytes
        raise EngineError(f"llama.cpp cannot give the text of token {token}")

    def _attr(self, token: int) -> int:
        attr = self._attrs.get(token)
        if attr is None:
            attr = self._attrs[token] = llama_cpp.llama_vocab_get_attr(self._need(), self._checked(token))
        return attr

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.n_tokens:
            raise EngineError(f"token {token} is outside the vocabulary of {self.n_tokens}")
        return token

    def _need(self) -> Any:
        if self._handle is None:
            raise EngineError("the model is closed")
        return self._handle


def _probe_characters() -> list[bytes]:
    """Return characters that hold, together, every byte that valid UTF-8 can have."""
    two = [*range(0xC0, 0x100), *range(0x80, 0x800, 0x40)]  # every continuation byte, every leading byte
    three = [max(lead << 12, 0x800) for lead in range(16)]
    four = [0x10000, 0x40000, 0x80000, 0xC0000, 0x100000]
    return [chr(code).encode() for code in (*range(0x80), *two, *three, *four)]
