"""From spans to ids: what a model is given before the answer.

Owns the seam between template text and user text. Never renders a template and never evaluates.

1. Only template text is searched for markers (control and user-defined tokens); in plain text a control token is
   never produced, and a user-defined one neither if it serves as a marker: its spelling is tokenized in two parts.
2. What stands between two markers is tokenized in one call, template and user text together, so that the ids are
   those of the whole text.
3. The text behind the last marker stays text (`tail`): it is tokenized together with the answer.
4. The ids begin with exactly the BOS that the model wants: one where it adds BOS or the template writes it, else none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from edge_nudge.core.backend import Backend
from edge_nudge.core.template import Span
from edge_nudge.errors import InputError

_SPACE = " \t\n\v\f\r"  # what the native tokenizer strips beside a marker
# Bytes that merge with nothing: text tokenized behind one of them is not at a text's start.
_ANCHORS = (b"\x01", b"\n")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One model's prompt: the ids of prompt and answer are `head + tokenize(tail + answer)`.

    `end_strings` are the texts by which a base model begins a new turn of its prompt format. `is_open`: the head ends
    inside a text, so what is tokenized behind it gets no blank in front.
    """

    head: tuple[int, ...]
    tail: bytes
    end_strings: tuple[bytes, ...] = ()
    is_open: bool = False

    def tokenize(self, backend: Backend, text: bytes) -> list[int]:
        """Tokenize what stands behind the head."""
        if not self.is_open or not text:
            return backend.tokenize(text)
        ids = tokenize_inside(backend, text)
        if ids is None:
            raise InputError(
                f"the tokenizer of model {backend.info.name} cannot go on behind token ids: give the prompt as text"
            )
        return ids


def encode_prompt(backend: Backend, spans: Iterable[Span], end_strings: Sequence[str] = ()) -> Prompt:
    """Turn the spans of `render_chat` or `render_base` into a prompt for this model.

    Raises InputError for an empty prompt where the model has no token to start from, and where a marker's
    spelling in user text can be kept from becoming that marker in no exact way.
    """
    encoder = _Encoder(backend)
    parts = encoder.split_markers(spans)
    last = parts.pop() if parts and isinstance(parts[-1], str) else ""
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else encoder.plain_ids(part)
    before, tail = encoder.split_tail(str(last))
    head = encoder.with_bos([*ids, *before])
    if not head and not tail:
        if backend.info.bos is None:
            raise InputError(f"the prompt is empty and model {backend.info.name} has no token to start from: write one")
        head = [backend.info.bos]
    return Prompt(tuple(head), tail.encode(), tuple(text.encode() for text in end_strings))


def encode_raw(backend: Backend, raw: str | Sequence[int]) -> Prompt:
    """Turn a plain text (BOS in front where the model adds it), or ids as they are, into a prompt.

    Raises InputError for an id that the model does not have, and as `encode_prompt` does.
    """
    if isinstance(raw, str):
        return encode_prompt(backend, [Span(raw, True)])
    if not raw:
        raise InputError("the prompt has no token ids: give at least one")
    n_vocab = backend.info.n_vocab
    for token in raw:
        if not isinstance(token, int) or not 0 <= token < n_vocab:
            raise InputError(
                f"token id {token!r} is not in the vocabulary of model {backend.info.name}: "
                f"its ids are 0 to {n_vocab - 1}"
            )
    prompt = Prompt(tuple(raw), b"", is_open=True)
    prompt.tokenize(backend, b"a")  # refused now, not at the first handoff
    return prompt


def tokenize_inside(backend: Backend, text: bytes) -> list[int] | None:
    """Tokenize a text that is not at a start: without the blank that SentencePiece puts there.

    None where the tokenizer cannot be brought to it.
    """
    if not backend.info.adds_space_prefix:
        return backend.tokenize(text)
    for anchor in _ANCHORS:
        ids = backend.tokenize(anchor + text)
        seen = b""
        for n, token in enumerate(ids):
            if seen == b" " + anchor:
                return ids[n:]
            seen += backend.piece(token)
        if seen == b" " + anchor:
            return []
    return None


class _Encoder:
    """One prompt on its way to ids."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._info = backend.info
        self._used: set[int] = set()  # markers of the template text

    def split_markers(self, spans: Iterable[Span]) -> list[int | str]:
        """Split into marker ids and the texts between them, neighbouring texts joined."""
        parts: list[int | str] = []
        is_blank_start = True  # nothing but blanks of the template so far
        for is_user, group in groupby((span for span in spans if span.text), key=lambda span: span.is_user):
            text = "".join(span.text for span in group)
            for part in [text] if is_user else self._markers(text):
                if is_blank_start and part == self._info.bos:
                    parts.clear()  # a line end before BOS is sloppy writing, and would hide BOS from `with_bos`
                is_blank_start = is_blank_start and not is_user and isinstance(part, str) and not part.strip()
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part != "":
                    parts.append(part)
        return parts

    def _markers(self, text: str) -> list[int | str]:
        """Split template text; blanks go where the marker beside them swallows blanks (as Phi-3's do)."""
        parts: list[int | str] = []
        at, swallows = 0, False
        for token in self._backend.tokenize(text.encode(), special=True):
            spelling = self._backend.spelling(token)
            found = text.find(spelling, at) if self._is_marker(token, spelling) else -1
            if found < 0:
                continue
            self._used.add(token)
            swallows_before, swallows_after = self._swallows(spelling)
            between = text[at:found].lstrip(_SPACE) if swallows else text[at:found]
            parts += [between.rstrip(_SPACE) if swallows_before else between, token]
            at, swallows = found + len(spelling), swallows_after
        return [*parts, text[at:].lstrip(_SPACE) if swallows else text[at:]]

    def _is_marker(self, token: int, spelling: str) -> bool:
        """Tell markers from words and runs of blanks, which may be user-defined tokens too."""
        if self._backend.is_control(token):
            return True
        return self._backend.is_user_defined(token) and len(spelling.strip(_SPACE + "\u2581")) > 1

    def _swallows(self, spelling: str) -> tuple[bool, bool]:
        """Tell whether the tokenizer drops blanks before and after this marker."""
        before, after = (
            self._backend.tokenize(text.encode(), special=True) for text in ("\n" + spelling, spelling + "\n")
        )
        return b"\n" not in self._pieces(before), b"\n" not in self._pieces(after)

    def plain_ids(self, text: str) -> list[int]:
        """Tokenize plain text so that no marker comes out."""
        return [token for _, ids in self._cut(text) for token in ids]

    def split_tail(self, text: str) -> tuple[list[int], str]:
        """Split the last text into ids that are safe from the answer and the rest, which stays text."""
        if not text:
            return [], ""
        *before, (rest, _) = self._cut(text)
        ids = [token for _, piece_ids in before for token in piece_ids]
        if before and self._info.adds_space_prefix:
            # Tokenizing the rest puts a blank in front of it: so let it begin behind a blank of its own.
            more, blank, rest = rest.partition(" ")
            if not blank:
                raise self._inseparable(rest or more)
            ids += self._unprefixed(more) if more else []
        return ids, rest

    def with_bos(self, ids: list[int]) -> list[int]:
        bos = self._info.bos
        if bos is None:
            return ids
        n_bos = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        return ids[n_bos - 1 :] if n_bos else [bos] * self._info.adds_bos + ids

    def _cut(self, text: str) -> list[tuple[str, list[int]]]:
        """Cut text inside the spellings of markers; return the pieces with their ids."""
        cuts: set[int] = set()
        while True:
            pieces = [text[start:end] for start, end in pairwise(sorted({0, len(text), *cuts}))]
            first, *others = pieces
            ids = [self._backend.tokenize(first.encode()), *map(self._unprefixed, others)]
            wrong = {self._backend.spelling(token) for piece_ids in ids for token in piece_ids if self._is_wrong(token)}
            places = {match.start() + 1 for spelling in wrong for match in re.finditer(re.escape(spelling), text)}
            if not places:
                return list(zip(pieces, ids, strict=True))
            if places <= cuts:
                raise self._inseparable(text)
            cuts |= places

    def _is_wrong(self, token: int) -> bool:
        """Tell whether a token must not come out of plain text."""
        if self._backend.is_control(token) or token in self._used:
            return True
        if not self._backend.is_user_defined(token):
            return False
        spelling = self._backend.spelling(token)
        return spelling.startswith(("<|", "<｜")) or spelling.endswith(("|>", "｜>"))

    def _unprefixed(self, text: str) -> list[int]:
        ids = tokenize_inside(self._backend, text.encode())
        if ids is None:
            raise self._inseparable(text)
        return ids

    def _inseparable(self, text: str) -> InputError:
        return InputError(
            f"a message spells a marker of model {self._info.name} near {text[:40]!r}, "
            f"and its tokenizer cannot keep the two apart: write it differently"
        )

    def _pieces(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._backend.piece, ids))
