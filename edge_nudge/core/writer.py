"""Writer: one model in one request, as the nudging loop sees it.

Owns the bundle of session, prompt view, reader and sampler, and the token drawn but not yet evaluated. Never
decides who writes.

1. At most one token is pending: it is evaluated only when scores behind it are needed.
2. Guesses cost nothing where no call is made: they are made inside a call only.
3. A prompt and answer of n_ctx - 1 tokens leave room for one more token; a full context answers None or False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from edge_nudge.core.backend import Backend
from edge_nudge.core.continuation import Continuation
from edge_nudge.core.events import ModelUsage, Role, TokenScore
from edge_nudge.core.foresight import Foresight
from edge_nudge.core.policy import NudgePolicy
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import SamplingParams
from edge_nudge.core.sampling import Probe, Reader, Sampler, Scores
from edge_nudge.core.session import Session
from edge_nudge.core.token_scores import TokenScorer
from edge_nudge.core.words import whole_characters
from edge_nudge.errors import NonFiniteScoresError


class Writer:
    """One model, one prompt, one answer."""

    def __init__(
        self,
        role: Role,
        backend: Backend,
        session: Session,
        prompt: Prompt,
        sampling: SamplingParams,
        seed: int,
        foresight: Foresight | None = None,
        n_top: int | None = None,
    ) -> None:
        self.role = role
        self.end_strings = prompt.end_strings
        self.pending: int | None = None
        self.overlap = 0  # blanks that this model writes again, at the last sync
        self._top: int | None = None  # the top token at the scores that are at hand, once it has been looked for
        self._drawn: int | None = None  # the token drawn from them, once a rule has asked for it
        self._backend = backend
        self._session = session
        self._foresight = foresight  # None: nothing is evaluated ahead
        self._continuation = Continuation(prompt, backend)
        self._reader = Reader(backend.info.n_vocab, role.value)
        self._sampler = Sampler(sampling, role, seed)
        self._scorer = None if n_top is None else TokenScorer(backend, self._reader, n_top)
        self.n_ctx = backend.info.n_ctx
        self.n_prompt = len(self._continuation.ids(b"")[0])
        self.add_lead = self._continuation.add_lead
        self.piece = backend.piece
        self.is_eog = backend.is_eog

    def __repr__(self) -> str:
        return f"<Writer {self.role.value}: {self._session!r}, pending {self.pending}>"

    def begin(
        self, usage: ModelUsage, is_cancelled: Callable[[], bool], clock: Callable[[], float], *, reuses_cache: bool
    ) -> None:
        self._session.begin(self.n_prompt, usage, is_cancelled, clock, reuses_cache=reuses_cache)

    def sync(self, answer: bytes, drafted: bytes = b"") -> int | None:
        """Evaluate prompt and answer as far as they are new; return the overlap in blanks, None if full.

        `drafted` is what the other model has written behind the answer: this one may come to write the same.
        """
        self._forget_place()
        ids, overlap = self._continuation.ids(answer)
        if len(ids) >= self.n_ctx:
            return None
        self.overlap = overlap
        if self._foresight is None:
            self._session.sync(ids)
        else:
            self._foresight.follow(ids, self._tokenize_alone(b" " * overlap + drafted) if drafted else ())
            self._session.sync(ids, self._foresight.guess)
        return overlap

    def evaluate_pending(self, draft: Callable[[int], bytes] | None = None) -> bool:
        """Evaluate the pending token, if any, so that the next one can be drawn; False if full.

        `draft` lets the other model write on behind that token; it is called where that pays, and only for a guess.
        """
        token = self.pending
        if token is not None:
            if len(self._session) + 1 >= self.n_ctx:
                return False
            if self._foresight is None:
                self._session.advance(token)
            else:
                self._foresight.push(token)
                scout = None if draft is None else partial(self._tokens_of, draft)
                self._session.advance(token, partial(self._foresight.guess, scout=scout))
            self._forget_place()
        return True

    @property
    def n_ids(self) -> int:
        """Number of ids of prompt and answer that are evaluated."""
        return len(self._session)

    def ids(self, answer: bytes) -> list[int]:
        """Return the ids of prompt and answer."""
        return self._continuation.ids(answer)[0]

    def foresee(self, answer: bytes, n_tokens: int) -> bytes:
        """Write on behind `answer` for the other model's foresight: up to `n_tokens` of the most probable tokens."""
        self._forget_place()
        ids, overlap = self._continuation.ids(answer)
        if not self._backend.info.can_rewind or len(ids) + n_tokens >= self.n_ctx:
            return b""
        self._session.sync(ids, is_asked=False)
        if self._session.has_guesses:
            return b""  # the run would begin behind them
        text = bytearray()
        for n_left in range(n_tokens, 0, -1):
            try:
                token = self._reader.top(self._session.scores_ahead)
            except NonFiniteScoresError:
                break  # whoever draws from such scores says so; a guess may not end an answer
            if not (piece := self._backend.piece(token)):
                break
            text += piece
            if n_left > 1:
                self._session.try_ahead(token)
        return bytes(text.removeprefix(b" " * overlap))

    def _think(self, scores: Scores, place: int, policy: NudgePolicy) -> Probe:
        probe = self._reader.probe(scores, with_second=policy.needs_second, with_entropy=policy.needs_entropy)
        if not policy.needs_drawn:
            return probe
        drawn = probe.top_id if self._sampler.is_greedy else self._sampler.draw(scores, self._reader, place)
        prob = probe.top_prob if drawn == probe.top_id else self._reader.prob_of(scores, (drawn,))
        return replace(probe, drawn=drawn, drawn_prob=prob)

    def _forget_place(self) -> None:
        self.pending = self._top = self._drawn = None

    def _tokens_of(self, draft: Callable[[int], bytes], n_tokens: int) -> list[int]:
        return self._tokenize_alone(draft(n_tokens))

    def _tokenize_alone(self, text: bytes) -> list[int]:
        """Tokenize what follows the answer without the answer: good enough for a guess."""
        if self._backend.info.adds_space_prefix:
            text = text.removeprefix(b" ")
        n_whole = whole_characters(text)
        return [] if n_whole is None else self._backend.tokenize(text[:n_whole])

    def probe(self, policy: NudgePolicy) -> Probe:
        """Read what the model thinks, as much of it as the policy needs. Raises NonFiniteScoresError."""
        probe = self._think(self._session.scores, len(self._session), policy)
        self._top = probe.top_id
        self._drawn = probe.drawn if policy.needs_drawn else None
        return probe

    def top_prob(self) -> float:
        """Return the probability of the top token. Raises NonFiniteScoresError."""
        probe = self._reader.probe(self._session.scores)
        self._top = probe.top_id
        return probe.top_prob

    def weights(self) -> tuple[Scores, float]:
        """Return the softmax before it is divided by its sum, and the sum; valid until this model is read again.

        Raises NonFiniteScoresError.
        """
        return self._reader.weights(self._session.scores)

    def draw(self, banned: Sequence[int] = ()) -> int:
        """Draw the next token. Raises NonFiniteScoresError."""
        if self._drawn is not None and not banned:
            return self._drawn
        if self._top is not None and self._sampler.is_greedy and not banned:
            return self._top
        return self._sampler.draw(self._session.scores, self._reader, len(self._session), banned)

    def score(self, token: int) -> TokenScore | None:
        """Score a token by the scores it was drawn from, if tokens are scored; ask before the next native call."""
        return None if self._scorer is None else self._scorer.score(self._session.scores, token)

    def end_prob(self) -> float:
        """Return the probability that the generation ends here."""
        return self._reader.prob_of(self._session.scores, self._backend.eog_tokens)
