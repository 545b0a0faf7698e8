"""One model's view of the conversation: the ids of its prompt and the answer so far.

Owns re-tokenization at handoffs. Never evaluates anything.

1. The ids are those of the whole text: what stands behind the prompt's last marker is tokenized in one call with
   the answer, so no seam can differ from a cold start.
2. A text that ends in blanks is given to the model without them: a lone blank is an odd token and costs quality.
   The model writes the blank again; `overlap` says how many blanks of its output are already in the text.
3. Blanks that a model puts in front of the whole answer belong to its prompt, not to the answer.
"""

from __future__ import annotations

from edge_nudge.core.backend import Backend
from edge_nudge.core.prompt import Prompt


class Continuation:
    """Prompt and answer of one model in one request."""

    def __init__(self, prompt: Prompt, backend: Backend) -> None:
        self._head = prompt.head
        self._tail = prompt.tail
        self._backend = backend

    def ids(self, answer: bytes) -> tuple[list[int], int]:
        """Return the ids of prompt and answer, and the overlap in blanks."""
        text = self._tail + answer
        shown = text.rstrip(b" ")
        if not shown and not self._head:
            shown = text  # a model without BOS has to start from something
        return [*self._head, *self._backend.tokenize(shown)], len(text) - len(shown)

    def add_lead(self, n_blanks: int) -> None:
        """Take blanks that this model wrote in front of the answer into its prompt."""
        self._tail += b" " * n_blanks
