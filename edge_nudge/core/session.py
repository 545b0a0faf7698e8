"""Session: the token ids of one model and the cache that mirrors them.

Owns prefix reuse, rewinding and the count of every evaluated token by cause. Never tokenizes and never decides.

1. The cache holds the text and, behind it, perhaps guesses: tokens evaluated ahead in the same call. `ids` is exactly
   the text, also after an error, a cancel or an interrupt; guesses are dropped when the next call needs their place.
2. A backend may refuse to rewind: then a checkpoint or a full re-evaluation gives the same result, later; such a
   model is never asked about guesses.
3. After `sync` and `advance` the scores behind the last token are at hand; they are valid until the next of
   these calls. A full prefix hit whose scores are gone evaluates the last token again.
4. Where the text comes out as guessed, its scores are at hand without a call.
5. Between two native calls of a long evaluation the request can be cancelled.
6. Where a request begins another conversation, the cache of the one before goes to the shelf and can come back.
7. `read` is for whoever wants the scores behind every token; it keeps no more of them than one call gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edge_nudge.core.backend import Backend
from edge_nudge.core.events import Cause, ModelUsage
from edge_nudge.core.prefix import common_prefix
from edge_nudge.core.sampling import Scores
from edge_nudge.core.shelf import LEAST_TOKENS, Shelf
from edge_nudge.errors import EngineError

SEAM = 4  # tokens at the end of a text that change, at most, when text is appended: measured on 12 vocabularies
N_CHECKPOINTS = 4


class Cancelled(Exception):
    """The request was cancelled between two native calls; leaves neither the decoder nor Pair.score."""


@dataclass(frozen=True, slots=True)
class SyncCost:
    """What a sync did, in tokens."""

    reused: int
    dropped: int
    evaluated: int


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A call of the engine that is over; its last `n_guessed` tokens were guesses.

    Times are those of the session's clock. `usage` goes on counting: tokens of the text are counted by cause before
    the call, but for the model's own token, which is counted behind it.
    """

    started_s: float
    ended_s: float
    n_tokens: int
    n_guessed: int
    usage: ModelUsage


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    n_ids: int
    state: bytes


Guess: TypeAlias = Callable[[int], Sequence[int]]


def _no_guess(n_tokens: int) -> Sequence[int]:
    return ()


def _never() -> bool:
    return False


def _no_time() -> float:
    return 0.0


class Session:
    """One sequence of one backend.

    A text is read in batches of at most `n_batch` tokens (None: the backend's own): a cancel waits for one of them.
    Without a shelf only the last conversation is kept.
    """

    def __init__(self, backend: Backend, n_batch: int | None = None, shelf: Shelf | None = None) -> None:
        self._backend = backend
        self._shelf = shelf
        self._n_batch = min(n_batch or backend.info.n_batch, backend.info.n_batch)
        self._ids: list[int] = []  # what the cache holds
        self._n_text = 0  # so many of them are the text, the others are guesses
        self._rows: dict[int, int] = {}  # position -> row of the last call: the scores behind that token
        self._checkpoints: deque[_Checkpoint] = deque(maxlen=N_CHECKPOINTS)
        self._n_in_blocks = 0  # so many at the start of the cache were evaluated in whole blocks by `read`
        self._n_prompt = 0
        self._n_seen = 0
        self._reuses_cache = True
        self._is_cancelled: Callable[[], bool] = _never
        self._clock: Callable[[], float] = _no_time
        self.usage = ModelUsage()
        self.on_call: Callable[[NativeCall], None] | None = None  # told about each call, where somebody wants to know

    def __repr__(self) -> str:
        return f"<Session {self._backend.info.name}: {self._n_text} ids, {self.usage.n_evaluated} evaluated>"

    def __len__(self) -> int:
        return self._n_text

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids[: self._n_text])

    def begin(
        self,
        n_prompt: int,
        usage: ModelUsage,
        is_cancelled: Callable[[], bool] = _never,
        clock: Callable[[], float] = _no_time,
        *,
        reuses_cache: bool = True,
    ) -> None:
        """Start counting for a request whose prompt is `n_prompt` tokens; without `reuses_cache` it is read anew."""
        self._n_prompt, self._n_seen = n_prompt, 0
        self._is_cancelled, self._clock = is_cancelled, clock
        self.usage = usage
        self._n_text = len(self._ids)  # the guesses of the request before are as good as any other text now
        self._rows.clear()  # a prompt's last token is evaluated in every request, and always alone
        self._reuses_cache = reuses_cache

    def sync(self, ids: Sequence[int], guess: Guess = _no_guess, *, is_asked: bool = True) -> SyncCost:
        """Make the text exactly `ids` (not empty), reusing the longest common prefix.

        `guess` is asked when there is something to evaluate: it gets the number of tokens in the last batch and
        returns what may follow `ids`, to be evaluated along with them. `is_asked`: a decision waits for the scores.
        Raises EngineError and Cancelled; then the session holds a prefix of `ids`.
        """
        if len(self._ids) != self._backend.n_cached:  # an interrupt came between the engine and us
            self.forget()
        self.usage.n_asked += is_asked
        n_before = self._n_text
        if self._n_seen == 0:
            if not self._reuses_cache:
                self._put_away(0)
                self.forget()
            elif self._shelf is not None:
                self._change_conversation(self._shelf, ids)
        n_common = common_prefix(self._ids, ids)
        if n_common == len(ids) and n_common - 1 in self._rows:
            self._extend_text(n_common)
            return SyncCost(n_common, n_before - min(n_common, n_before), 0)
        n_keep = self._cut_back(min(n_common, len(ids) - 1))
        is_first = self._n_seen == 0
        if is_first:
            self.usage.n_reused = min(n_keep, self._n_prompt)
        self._extend_text(n_keep)
        self._count_tail(n_keep, len(ids))
        if self._backend.info.can_rewind:
            # The prompt's last token goes alone, as it does when the same request comes again and only that token is
            # evaluated: a batch is not bit-equal to single steps, and an answer must not depend on the cache.
            n_alone = len(ids) - 1 if is_first else n_keep
            self._evaluate(ids[n_keep:n_alone], is_end=False)
            self._evaluate(ids[n_alone:], guess)
        else:
            self._evaluate_with_checkpoint(ids, n_keep)
        if is_first:
            self.usage.prompt_s = self.usage.native_s
        return SyncCost(n_keep, n_before - min(n_keep, n_before), len(ids) - n_keep)

    def read(self, ids: Sequence[int], n_known: int, n_block: int, take: Callable[[int, Scores], None]) -> None:
        """Make the text exactly `ids`; give `take` each position from `n_known` on and the scores behind its token.

        Reads blocks of `n_block` tokens from the start, the last one shorter, and reuses only what was read so: then
        the scores are those of a cold start. `n_known` is a multiple of `n_block`, which is always the same.
        Raises EngineError and Cancelled, and what `take` raises; then the session holds a prefix of `ids`.
        """
        if len(self._ids) != self._backend.n_cached:  # an interrupt came between the engine and us
            self.forget()
        n_common = common_prefix(self._ids, ids)
        self._put_away(n_common)
        start = min(n_common, self._n_in_blocks, n_known)
        start = self._cut_back(start - start % n_block)
        if start % n_block:  # a checkpoint is anywhere
            start = self._cut_back(0)
        self._extend_text(start)
        self.usage.n_reused = start
        while start < len(ids):
            if self._is_cancelled():
                raise Cancelled
            batch = ids[start : start + n_block]
            rows = range(len(batch)) if start >= n_known else ()
            self._count_tail(start, start + len(batch))
            self._evaluate_batch(batch, len(batch), rows)
            if len(batch) == n_block:
                self._n_in_blocks = start + n_block
            for row in rows:
                take(start + row, self._backend.scores(row))
            start += len(batch)

    def advance(self, token: int, guess: Guess = _no_guess) -> None:
        """Add one more token, written by this model, to the text; `guess` as in sync.

        Raises EngineError and Cancelled.
        """
        if self._is_cancelled():
            raise Cancelled
        self.usage.n_asked += 1
        n_text = self._n_text
        if n_text in self._rows and self._ids[n_text] == token:
            self._extend_text(n_text + 1)
            return
        if n_text < len(self._ids):
            text = self._ids[:n_text]
            n_keep = self._cut_back(n_text)
            if n_keep < n_text:
                self._count_tail(n_keep, n_text)
                self._evaluate(text[n_keep:], is_end=False)
        self._evaluate((token,), guess)
        self.usage.evaluated[Cause.OWN] += 1
        self._n_seen = max(self._n_seen, n_text + 1)

    def try_ahead(self, token: int) -> None:
        """Evaluate one guess behind the text and the guesses that stand there; `scores_ahead` are those behind it.

        For a model that can rewind. Raises EngineError and Cancelled.
        """
        if self._is_cancelled():
            raise Cancelled
        self.usage.evaluated[Cause.WASTED] += 1  # until it comes true
        self._evaluate_batch((token,), 0, (0,))

    @property
    def has_guesses(self) -> bool:
        """Whether guesses stand behind the text."""
        return self._n_text < len(self._ids)

    @property
    def scores(self) -> Scores:
        """The scores behind the last token, shape (n_vocab,): a view, valid until the next call that evaluates."""
        return self._backend.scores(self._rows[self._n_text - 1])

    @property
    def scores_ahead(self) -> Scores:
        """The scores behind the last guess, or behind the text where there is none; a view as `scores`."""
        return self._backend.scores(self._rows[len(self._ids) - 1])

    def _change_conversation(self, shelf: Shelf, ids: Sequence[int]) -> None:
        """Put away what this text is about to cost, and take out what has more in common with it.

        Where all is lost in a failure the text is read from its beginning, as ever.
        """
        n_common = common_prefix(self._ids, ids)
        kept, n_kept = shelf.find(self, ids, needs_whole=not self._backend.info.can_rewind)
        self._put_away(n_common)
        if kept is None or n_kept - n_common < LEAST_TOKENS:
            return
        self._rows.clear()
        self._checkpoints.clear()
        shelf.take(kept, n_kept)
        if not self._backend.load(kept.state, kept.ids):
            self.forget()
            return
        self._ids = list(kept.ids)
        self._n_text = len(self._ids)
        self._n_in_blocks = 0

    def _put_away(self, n_common: int) -> None:
        """Put the cache on the shelf if all behind the first `n_common` tokens is about to be lost and worth it."""
        if self._shelf is not None and len(self._ids) - n_common >= LEAST_TOKENS:
            self._shelf.put(self, self._ids, self._backend.store)

    def _extend_text(self, n_text: int) -> None:
        """Let the text be the first `n_text` tokens of the cache: guesses among them have come true."""
        n_true = max(0, n_text - self._n_text)
        self.usage.evaluated[Cause.WASTED] -= n_true
        self.usage.evaluated[Cause.VERIFIED] += n_true
        self._n_text = n_text
        self._n_seen = max(self._n_seen, n_text)

    def _cut_back(self, n_keep: int) -> int:
        """Shorten the cache to at most `n_keep` ids and return how many it holds then."""
        if n_keep >= len(self._ids):
            return len(self._ids)
        self._rows.clear()
        if n_keep > 0 and self._backend.info.can_rewind and self._backend.rewind(n_keep):
            self._shorten(n_keep)
            return n_keep
        while self._checkpoints:
            checkpoint = self._checkpoints.pop()
            if checkpoint.n_ids <= n_keep and self._backend.restore(checkpoint.state, checkpoint.n_ids):
                self._shorten(checkpoint.n_ids)
                self._checkpoints.append(checkpoint)
                return checkpoint.n_ids
        self.forget()
        return 0

    def forget(self) -> None:
        """Drop everything: the next sync evaluates its whole text."""
        self._rows.clear()
        self._checkpoints.clear()
        self._backend.clear()
        self._shorten(0)

    def _shorten(self, n_ids: int) -> None:
        """Note that the cache holds `n_ids` tokens at most."""
        del self._ids[n_ids:]
        self._n_text = min(self._n_text, n_ids)
        self._n_in_blocks = min(self._n_in_blocks, n_ids)

    def _count_tail(self, n_keep: int, n_ids: int) -> None:
        """Give each of the tokens [n_keep, n_ids) its cause."""
        n_again = max(0, min(self._n_seen, n_ids) - n_keep)
        n_prompt = max(0, min(self._n_prompt, n_ids) - max(n_keep, self._n_seen))
        evaluated = self.usage.evaluated
        evaluated[Cause.REEVALUATED] += n_again
        evaluated[Cause.PROMPT] += n_prompt
        evaluated[Cause.CATCH_UP] += n_ids - n_keep - n_again - n_prompt
        self._n_seen = max(self._n_seen, n_ids)

    def _evaluate_with_checkpoint(self, ids: Sequence[int], n_keep: int) -> None:
        """Evaluate the tail, saving the state before the part that the next handoff may change."""
        n_save = max(n_keep, len(ids) - SEAM)
        self._evaluate(ids[n_keep:n_save], is_end=False)
        if n_save and not (self._checkpoints and self._checkpoints[-1].n_ids == n_save):
            self._checkpoints.append(_Checkpoint(n_save, self._backend.save()))
        self._evaluate(ids[n_save:])

    def _evaluate(self, tokens: Sequence[int], guess: Guess = _no_guess, *, is_end: bool = True) -> None:
        n_batch = self._n_batch
        for start in range(0, len(tokens), n_batch):
            if self._is_cancelled():
                raise Cancelled
            batch = tokens[start : start + n_batch]
            if is_end and start + n_batch >= len(tokens):
                self._evaluate_last(batch, guess)
            else:
                self._evaluate_batch(batch, len(batch), ())

    def _evaluate_last(self, batch: Sequence[int], guess: Guess) -> None:
        """Evaluate the end of the text, and guesses behind it as far as there is room."""
        n_text = len(batch)
        info = self._backend.info
        guessed = guess(n_text) if info.can_rewind else ()
        n_room = min(info.n_batch - n_text, info.n_ctx - n_text - len(self._ids))
        guessed = guessed[: max(0, n_room)]
        self.usage.evaluated[Cause.WASTED] += len(guessed)  # until they come true
        self._evaluate_batch((*batch, *guessed), n_text, range(n_text - 1, n_text + len(guessed)))

    def _evaluate_batch(self, tokens: Sequence[int], n_text: int, rows: Sequence[int]) -> None:
        """Evaluate tokens behind what the cache holds, the first `n_text` of them text."""
        self._rows.clear()
        self.usage.n_calls += 1
        n_before = len(self._ids)
        started = self._clock()
        try:
            self._backend.evaluate(tokens, rows)
        except EngineError:
            self._ids.extend(tokens)
            self._n_text += n_text
            self._shorten(self._backend.n_cached)
            raise
        finally:
            ended = self._clock()
            self.usage.native_s += ended - started
            if self.on_call is not None:
                self.on_call(NativeCall(started, ended, len(tokens), len(tokens) - n_text, self.usage))
        self._ids.extend(tokens)
        self._n_text += n_text
        for row in rows:
            self._rows[n_before + row] = row
