"""Writer: one model in one request, as the nudging loop sees it.

Owns the bundle of session, prompt view, reader and sampler, and the token drawn but not yet evaluated. Never
decides who writes.

1. At most one token is pending: it is evaluated only when scores behind it are needed.
2. A prompt and answer of n_ctx - 1 tokens leave room for one more token; a full context answers None or False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_nudge.core.backend import Backend
from edge_nudge.core.continuation import Continuation
from edge_nudge.core.events import ModelUsage, Role
from edge_nudge.core.policy import NudgePolicy
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import SamplingParams
from edge_nudge.core.sampling import Probe, Reader, Sampler
from edge_nudge.core.session import Session


class Writer:
    """One model, one prompt, one answer."""

    def __init__(
        self, role: Role, backend: Backend, session: Session, prompt: Prompt, sampling: SamplingParams, seed: int
    ) -> None:
        self.role = role
        self.end_strings = prompt.end_strings
        self.pending: int | None = None
        self._top: int | None = None  # the top token at the scores that are at hand, once it has been looked for
        self._backend = backend
        self._session = session
        self._continuation = Continuation(prompt, backend)
        self._reader = Reader(backend.info.n_vocab, role.value)
        self._sampler = Sampler(sampling, role, seed)
        self.n_ctx = backend.info.n_ctx
        self.n_prompt = len(self._continuation.ids(b"")[0])
        self.add_lead = self._continuation.add_lead
        self.piece = backend.piece
        self.is_eog = backend.is_eog

    def __repr__(self) -> str:
        return f"<Writer {self.role.value}: {self._session!r}, pending {self.pending}>"

    def begin(self, usage: ModelUsage, is_cancelled: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._session.begin(self.n_prompt, usage, is_cancelled, clock)

    def sync(self, answer: bytes) -> int | None:
        """Evaluate prompt and answer as far as they are new; return the overlap in blanks, None if full."""
        self.pending = self._top = None
        ids, overlap = self._continuation.ids(answer)
        if len(ids) >= self.n_ctx:
            return None
        self._session.sync(ids)
        return overlap

    def evaluate_pending(self) -> bool:
        """Evaluate the pending token, if any, so that the next one can be drawn; False if full."""
        if self.pending is not None:
            if len(self._session) + 1 >= self.n_ctx:
                return False
            self._session.advance(self.pending)
            self.pending = self._top = None
        return True

    def probe(self, policy: NudgePolicy) -> Probe:
        """Read what the model thinks, as much of it as the policy needs. Raises NonFiniteScoresError."""
        probe = self._reader.probe(
            self._session.scores, with_second=policy.needs_second, with_entropy=policy.needs_entropy
        )
        self._top = probe.top_id
        return probe

    def draw(self, banned: Sequence[int] = ()) -> int:
        """Draw the next token. Raises NonFiniteScoresError."""
        if self._top is not None and self._sampler.is_greedy and not banned:
            return self._top
        return self._sampler.draw(self._session.scores, self._reader, len(self._session), banned)

    def end_prob(self) -> float:
        """Return the probability that the generation ends here."""
        return self._reader.prob_of(self._session.scores, self._backend.eog_tokens)
