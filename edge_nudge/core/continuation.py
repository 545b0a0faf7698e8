"""One model's view of the conversation: the ids of its prompt and the answer so far.

Owns re-tokenization at handoffs. Never evaluates anything.

1. The ids are those of the whole text: what stands behind the prompt's last marker is tokenized with the answer,
   so no seam can differ from a cold start.
2. Where words are separate tokens, a long text is tokenized only from its last settled place on: a blank between
   two ASCII letters, which no token crosses. The result is the same (tests: 19 vocabularies); the cost of a
   handoff does not grow with the answer.
3. A text that ends in blanks is given to the model without them: a lone blank is an odd token and costs quality.
   The model writes the blank again; `overlap` says how many blanks of its output are already in the text.
4. Blanks that a model puts in front of the whole answer belong to its prompt, not to the answer.
"""

from __future__ import annotations

from edge_nudge.core.backend import Backend
from edge_nudge.core.prompt import Prompt

LONG_BYTES = 1024  # a shorter text is tokenized as a whole: it costs less than looking at the vocabulary


class Continuation:
    """Prompt and answer of one model in one request."""

    def __init__(self, prompt: Prompt, backend: Backend) -> None:
        self._prompt = prompt
        self._head = prompt.head
        self._tail = prompt.tail
        self._backend = backend
        self._settled = b""  # a beginning of the text that ends at a settled place
        self._settled_ids: list[int] = []

    def ids(self, answer: bytes) -> tuple[list[int], int]:
        """Return the ids of prompt and answer, and the overlap in blanks."""
        text = self._tail + answer
        shown = text.rstrip(b" ")
        if not shown and not self._head:
            shown = text  # a model without BOS has to start from something
        return [*self._head, *self._tokenize(shown)], len(text) - len(shown)

    def add_lead(self, n_blanks: int) -> None:
        """Take blanks that this model wrote in front of the answer into its prompt."""
        self._tail += b" " * n_blanks

    def _tokenize(self, text: bytes) -> list[int]:
        if len(text) < LONG_BYTES or not self._backend.words_are_separate:
            return self._prompt.tokenize(self._backend, text)
        if not self._is_settled_in(text):  # a guard has cut the answer back
            self._settled, self._settled_ids = b"", []
        place = last_settled_place(text, len(self._settled))
        if place is not None:
            self._settled_ids += self._part(text[:place])
            self._settled = text[:place]
        return [*self._settled_ids, *self._part(text)]

    def _is_settled_in(self, text: bytes) -> bool:
        n_settled = len(self._settled)
        return text.startswith(self._settled) and (
            len(text) == n_settled
            or (text[n_settled : n_settled + 1] == b" " and text[n_settled + 1 : n_settled + 2].isalpha())
        )

    def _part(self, text: bytes) -> list[int]:
        """Tokenize what stands behind the settled beginning of `text`."""
        if not self._settled:
            return self._prompt.tokenize(self._backend, text)
        part = text[len(self._settled) :]
        if part and self._backend.info.adds_space_prefix:
            part = part[1:]  # the tokenizer puts the part's own blank in front
        return self._backend.tokenize(part)


def last_settled_place(text: bytes, start: int) -> int | None:
    """Return the last place behind `start` where a blank stands between two ASCII letters, before the blank."""
    place = text.rfind(b" ", start + 1, len(text) - 1)
    while place > start:
        if text[place - 1 : place].isalpha() and text[place + 1 : place + 2].isalpha():
            return place
        place = text.rfind(b" ", start + 1, place)
    return None
