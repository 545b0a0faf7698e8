"""Protocol Backend: the operations of one loaded model that everything above is written against.

Owns the contract. LlamaBackend (engine/llama.py) and FakeBackend (testing.py) keep it; one conformance suite
in tests/ runs on both.

1. A backend holds one sequence of evaluated tokens, its cache; positions are 0, 1, 2, ... without holes.
2. A row of scores is a view into native memory: valid until the next evaluate, rewind, clear, restore or load.
3. A refusal (`rewind` or `restore` answering False) leaves the cache as it was; a `load` that fails leaves it empty.
4. After an exception from `evaluate`, `n_cached` says what the cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model says of itself; sizes in tokens."""

    name: str
    architecture: str
    n_vocab: int
    n_ctx: int  # the real context, as the library rounded it
    n_ctx_train: int
    n_batch: int  # most tokens in one evaluate
    bos: int | None
    eos: int | None
    adds_bos: bool  # the model wants BOS in front of a prompt
    adds_space_prefix: bool  # tokenize puts a blank before its text (SentencePiece)
    can_rewind: bool  # False: recurrent or hybrid, `rewind` refuses
    chat_template: str | None


class Backend(Protocol):
    """One loaded model with one sequence."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def n_cached(self) -> int:
        """Number of tokens in the cache."""
        ...

    def tokenize(self, text: bytes, *, special: bool = False) -> list[int]:
        """Turn valid UTF-8 into ids, without BOS.

        With `special` False the spelling of a control token is ordinary text. The pieces of the result,
        joined, are `text`, with one blank in front where `info.adds_space_prefix` says so and text is not empty.
        """
        ...

    @property
    def words_are_separate(self) -> bool:
        """Tell whether no token of text reaches from an ASCII letter over a blank.

        Then a blank between two ASCII letters is a place where a text can be tokenized in two parts. Looked up
        once, which may take a tenth of a second.
        """
        ...

    def piece(self, token: int) -> bytes:
        """Return the bytes a token adds to the text, whole, empty for a control token."""
        ...

    def spelling(self, token: int) -> str:
        """Return how a token is written in a template, also for a control token."""
        ...

    def is_eog(self, token: int) -> bool:
        """Tell whether a token ends the generation."""
        ...

    @property
    def eog_tokens(self) -> tuple[int, ...]:
        """All tokens that end the generation, ascending."""
        ...

    def is_control(self, token: int) -> bool:
        """Tell whether a token is a control token (no text; never to be reached by a user's text)."""
        ...

    def is_user_defined(self, token: int) -> bool:
        """Tell whether a token is matched by its spelling in ordinary text too."""
        ...

    def evaluate(self, tokens: Sequence[int], rows: Sequence[int] = ()) -> None:
        """Append tokens to the cache in one native call and keep score rows for the given indices of `tokens`.

        At most `info.n_batch` tokens, not past `info.n_ctx`; `rows` ascending.
        Raises EngineError.
        """
        ...

    def scores(self, row: int) -> NDArray[np.float32]:
        """Return the raw scores after `tokens[row]` of the last evaluate, shape (n_vocab,), without copying."""
        ...

    def rewind(self, n_keep: int) -> bool:
        """Drop all but the first `n_keep` tokens; False where the model cannot."""
        ...

    def clear(self) -> None:
        """Drop all tokens; always possible."""
        ...

    def save(self) -> bytes:
        """Return the state that `rewind` cannot bring back, to be given to `restore` at the same n_cached."""
        ...

    def restore(self, state: bytes, n_cached: int) -> bool:
        """Go back to the saved moment at which the cache held `n_cached` tokens; False where that fails."""
        ...

    def store(self, most_bytes: int) -> bytearray | None:
        """Return the whole cache for `load`; None where that is more than `most_bytes` or could not be brought back."""
        ...

    def load(self, state: bytearray, ids: Sequence[int]) -> bool:
        """Make the cache what it was when it held `ids` and was stored; False, with an empty cache, where that fails.

        Scores behind the last token are not part of it.
        """
        ...

    def close(self) -> None:
        """Free the model; further calls raise EngineError. Closing twice is allowed."""
        ...
