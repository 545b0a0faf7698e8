"""How probable a model finds a prompt, token by token.

Owns reading a prompt for its scores, and the scores of the last prompt. Never writes anything.

1. The score of a token comes from the row behind the token before it; the first token has none.
2. The blocks that a prompt shares with the last one are not scored again: the same context is often asked for with
   several continuations. Their tokens are evaluated again only where the cache has lost them.
3. A score depends on the prompt alone, never on what was asked before: batches of other sizes give other scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from edge_nudge.core.backend import Backend
from edge_nudge.core.events import ModelUsage, Role, TokenScore
from edge_nudge.core.prompt import encode_raw
from edge_nudge.core.request import MAX_LOGPROBS, whole_text
from edge_nudge.core.sampling import Reader, Scores
from edge_nudge.core.session import Session, common_prefix
from edge_nudge.core.token_scores import TokenScorer, without_blanks
from edge_nudge.errors import ContextOverflowError, InputError

# What is evaluated in one call and, by rule 3, reused as a whole or not at all: a smaller one reads a prompt slower,
# of a larger one more has to be read again. In other batches the demo pair's logs differ by up to 0.3.
BLOCK = 32
ROWS_BYTES = 32 << 20  # of one call; the engine keeps the room for good. 32 rows of the largest vocabularies
MAX_KEPT = 1 << 16  # scores of the last prompt, alternatives counted: about 10 MB


class PromptScorer:
    """Scores prompts with one model; shares its session with whatever else the model does."""

    def __init__(self, role: Role, backend: Backend, session: Session) -> None:
        self._role = role
        self._backend = backend
        self._session = session
        self._reader = Reader(backend.info.n_vocab, role.value)
        self._n_block = max(1, min(BLOCK, backend.info.n_batch, ROWS_BYTES // (4 * backend.info.n_vocab)))
        self._last_ids: list[int] = []
        self._last: list[TokenScore] = []  # of `_last_ids`
        self._is_last_whole = False
        self._last_n_top = 0

    def forget(self) -> None:
        """Drop the scores of the last prompt."""
        self._last_ids, self._last, self._is_last_whole = [], [], False

    def score(
        self,
        prompt: str | Sequence[int],
        n_top: int,
        usage: ModelUsage,
        *,
        is_cancelled: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        clock: Callable[[], float],
    ) -> list[TokenScore]:
        """Return the scores of all tokens of a prompt; see Pair.score. Raises Cancelled."""
        if not 0 <= n_top <= MAX_LOGPROBS:
            raise InputError(f"{n_top} alternatives for each token: give 0 to {MAX_LOGPROBS}")
        ids, n_lead = self._ids_of(prompt)
        n_ctx = self._backend.info.n_ctx
        if len(ids) > n_ctx:
            raise ContextOverflowError(self._role.value, len(ids), n_ctx)

        def stops() -> bool:
            on_progress(len(self._session), len(ids))
            return is_cancelled()

        usage.n_prompt = len(ids)
        self._session.begin(len(ids), usage, stops, clock)
        scored = self._score(ids, n_top)[n_lead:]
        on_progress(len(ids), len(ids))
        first = replace(scored[0], logprob=None, top=())
        if isinstance(prompt, str) and self._backend.info.adds_space_prefix:
            first = without_blanks(first, 1)
        return [first, *scored[1:]]

    def _ids_of(self, prompt: str | Sequence[int]) -> tuple[list[int], int]:
        """Return the ids, and how many of them in front are not of the prompt: a BOS before a text."""
        if not isinstance(prompt, str):
            return list(encode_raw(self._backend, prompt).head), 0
        if not prompt:
            raise InputError("the prompt is empty: there is nothing to score")
        try:
            raw = encode_raw(self._backend, whole_text(prompt))
        except ValueError as error:
            raise InputError(f"the prompt cannot be scored: {error}") from None
        has_bos = raw.head[:1] == (self._backend.info.bos,)
        return [*raw.head, *raw.tokenize(self._backend, raw.tail)], int(has_bos)

    def _score(self, ids: list[int], n_top: int) -> list[TokenScore]:
        n_known = self._n_known(ids) if n_top == self._last_n_top else 0
        first = TokenScore(self._backend.piece(ids[0]), ids[0], None)
        scored = self._last[: n_known + 1] if n_known else [first]
        scorer = TokenScorer(self._backend, self._reader, n_top)

        def take(position: int, scores: Scores) -> None:
            scored.append(scorer.score(scores, ids[position + 1]))

        try:
            if len(scored) < len(ids):
                self._session.read(ids[:-1], n_known, self._n_block, take)
        finally:
            n_kept = min(len(scored), MAX_KEPT // (1 + n_top))
            self._last_ids, self._last, self._last_n_top = ids[:n_kept], scored[:n_kept], n_top
            self._is_last_whole = n_kept == len(ids)
        return scored

    def _n_known(self, ids: list[int]) -> int:
        """Return how many rows need not be asked for: those of the same prompt, or of the blocks shared with the last.

        The token behind the last of these rows is shared, too.
        """
        if self._is_last_whole and ids == self._last_ids:
            return len(ids) - 1
        n_shared = max(0, min(common_prefix(self._last_ids, ids), len(ids), len(self._last_ids)) - 1)
        return n_shared - n_shared % self._n_block
