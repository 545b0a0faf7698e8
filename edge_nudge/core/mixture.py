"""Mixtures: models of one vocabulary write each token together. The baselines that nudging is compared with.

Owns the arithmetic on rows of scores and the loop around it. Never opens a model; the caches are in session.py, what
may be shown in transcript.py.

1. Each model has its own prompt; all read the same answer, as the same ids. Nothing is tokenized behind the prompts.
2. The end token of any model ends the answer. So do a token that is no text and an end string of the base model's
   format, as where the base model writes alone: there is nobody to pass to.
3. Pieces are as for the base model alone (POLICY, its top-1 probability, no `instead`) but for their author; control
   never passes, so there is no Handoff.
4. A token of the answer is counted as each model's own: all of them had a hand in drawing it.
5. Closing the generator, or an error, at any event leaves all sessions ready for the next request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_nudge.core.backend import Backend
from edge_nudge.core.continuation import Continuation
from edge_nudge.core.decoder import CONTEXT_FULL, END_OF_GENERATION, LOOP, MAX_TOKENS, End
from edge_nudge.core.draft import Draft
from edge_nudge.core.events import (
    Event,
    FinishDetail,
    Finished,
    FinishReason,
    HandoffReason,
    ModelUsage,
    Piece,
    Role,
    TokenScore,
    Usage,
)
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import GenerateRequest
from edge_nudge.core.sampling import Reader, Sampler, Scores
from edge_nudge.core.session import Cancelled, Session
from edge_nudge.core.token_scores import TokenScorer
from edge_nudge.core.transcript import Transcript, Unit, Verdict, cut_to_tokens
from edge_nudge.errors import ContextOverflowError, InputError


def average_scores(base: Scores, nudging: Scores) -> Scores:
    """Return the logs of the mean of both models' probabilities."""
    mean = (_probabilities(base) + _probabilities(nudging)) / 2
    with np.errstate(divide="ignore"):  # nothing is left of a token that neither model finds possible
        return np.log(mean).astype(np.float32)


def tuned_scores(base: Scores, nudging: Scores, untuned: Scores, alpha: float) -> Scores:
    """Return the base model's scores, moved by what tuning did to the small model's (Liu et al., arXiv 2401.08565).

    A token that one of the models rules out (minus infinity) is ruled out: differences do not exist there.
    """
    with np.errstate(invalid="ignore"):
        scores: Scores = base + np.float32(alpha) * (nudging - untuned)
    scores[~np.isfinite(scores)] = -np.inf
    return scores


def _probabilities(scores: Scores) -> NDArray[np.float64]:
    # In float32 two scores that are next to each other can change places on the way through exp.
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    weights /= weights.sum()
    return weights


class Mix(Protocol):
    """How rows of scores become one: those of the base model, of the nudging model, and of a third one if needed."""

    @property
    def has_two_authors(self) -> bool:
        """Whether a piece belongs to the model that finds it more probable; else all belong to the base model."""
        ...

    def combine(self, rows: Sequence[Scores]) -> Scores:
        """Return a row of its own: scores whose softmax is the mixture."""
        ...


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The average ensemble: the mean of the two models' probabilities.

    A piece belongs to the model that finds its tokens, together, more probable; to the base model on a tie.
    """

    has_two_authors: ClassVar[bool] = True

    def combine(self, rows: Sequence[Scores]) -> Scores:
        base, nudging = rows
        return average_scores(base, nudging)


@dataclass(frozen=True, slots=True)
class ProxyTuning:
    """Proxy tuning: the base model's scores and `alpha` times what tuning changed in the small model's.

    All pieces belong to the base model: it is the base model that is tuned here. The small models only move its
    scores, and what one of them finds probable by itself does not matter: where both agree, nothing is moved.
    """

    alpha: float = 1.0
    has_two_authors: ClassVar[bool] = False

    def combine(self, rows: Sequence[Scores]) -> Scores:
        base, nudging, untuned = rows
        return tuned_scores(base, nudging, untuned, self.alpha)


def check_vocabularies(what: str, models: Mapping[str, Backend]) -> None:
    """Raise InputError where a token of the first model is another one, or none, of a further model.

    A token is compared by its spelling, not by what a file says of its kind: of a base model a chat marker is often
    ordinary text. Takes a microsecond or two for each token of each model.
    """
    (first, base), *others = models.items()
    spellings = [base.spelling(token) for token in range(base.info.n_vocab)]
    for name, model in others:
        sizes = len(spellings), model.info.n_vocab
        n_alike = next(
            (token for token in range(min(sizes)) if model.spelling(token) != spellings[token]),
            min(sizes),
        )
        if n_alike == max(sizes):
            continue
        if n_alike == min(sizes):
            where = f"the first {n_alike} are the same"
        else:
            where = f"the first difference is token {n_alike}, {spellings[n_alike]!r} and {model.spelling(n_alike)!r}"
        raise InputError(
            f"{what} needs models of one vocabulary: the {first} model has {sizes[0]} tokens and the {name} model "
            f"{sizes[1]}, and {where}; take models of one family, or nudging, which works with any two"
        )


class Member:
    """One model of a mixture in one request; `name` is "base", "nudging" or "untuned"."""

    def __init__(self, name: str, backend: Backend, session: Session, prompt: Prompt) -> None:
        self.name = name
        self.backend = backend
        self.session = session
        self.end_strings = prompt.end_strings
        self.ids, self.overlap = Continuation(prompt, backend).ids(b"")
        self.reader = Reader(backend.info.n_vocab, name)

    def __repr__(self) -> str:
        return f"<Member {self.name}: {self.session!r}>"

    @property
    def full(self) -> End:
        """What ends an answer where this model's context is full; the untuned model stands beside the nudging model."""
        return CONTEXT_FULL[Role.BASE if self.name == Role.BASE.value else Role.NUDGING]

    def has_room(self, n_ids: int) -> bool:
        """Tell whether a token can follow so many: as in Writer, one place is left for it."""
        return n_ids < self.backend.info.n_ctx

    def row(self) -> Scores:
        """Return the scores behind the text. Raises NonFiniteScoresError."""
        scores = self.session.scores
        self.reader.top(scores)
        return scores

    def log_prob(self, token: int) -> float:
        scores = self.session.scores
        return float(scores[token]) - self.reader.log_total(scores)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A token, with what its piece is told of it."""

    token: int
    score: TokenScore | None
    top_prob: float  # the base model's, where the token stands
    favour: float  # log of how many times more probable the nudging model finds it


class MixtureDecoder:
    """Writes one answer. Use `run` once.

    `members` are the base model, the nudging model and, where the mix needs it, the untuned one, whose counts are in
    `untuned_usage`: Usage knows two models.
    """

    def __init__(
        self,
        members: Sequence[Member],
        mix: Mix,
        request: GenerateRequest,
        *,
        seed: int,
        clock: Callable[[], float],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._members = tuple(members)
        self._base, self._nudging = self._members[:2]
        self._mix = mix
        self._seed = seed
        self._max_tokens = request.max_tokens
        self._cache_prompt = request.cache_prompt
        self._drops_lead = request.raw_prompt is None  # as in the decoder
        self._reader = Reader(self._base.backend.info.n_vocab, "mixed")
        self._sampler = Sampler(request.sampling, Role.BASE, seed)
        self._scorer = (
            None if request.logprobs is None else TokenScorer(self._base.backend, self._reader, request.logprobs)
        )
        self._transcript = Transcript(
            [string.encode() for string in request.stop],
            self._base.end_strings,
            loop_guard=request.nudge.loop_guard,
            is_shared=False,
        )
        self._drawn: deque[_Drawn] = deque()  # tokens that no piece has begun with yet
        self._clock = clock
        self._is_cancelled = is_cancelled
        self._started = 0.0
        self.usage = Usage()
        self.untuned_usage = ModelUsage()

    def check(self) -> None:
        """Raise ContextOverflowError if the prompt leaves a model no room for one token."""
        for member in self._members:
            if not member.has_room(len(member.ids)):
                raise ContextOverflowError(member.name, len(member.ids), member.backend.info.n_ctx)

    def run(self) -> Iterator[Event]:
        """Yield the events of the answer; the last one is Finished. Raises EngineError."""
        self._started = self._clock()
        usages = (self.usage.base, self.usage.nudging, self.untuned_usage)
        for member, usage in zip(self._members, usages, strict=False):
            usage.n_prompt = len(member.ids)
            member.session.begin(
                len(member.ids), usage, self._is_cancelled, self._clock, reuses_cache=self._cache_prompt
            )
        try:
            end = yield from self._answer()
        except Cancelled:
            end = End(FinishReason.CANCELLED, FinishDetail.CANCELLED)
        yield from self._counted(self._transcript.flush())
        self.usage.total_s = self._clock() - self._started
        yield Finished(end.reason, end.detail, self.usage, self._seed, self._transcript.stop_string)

    def _answer(self) -> Generator[Event, None, End]:
        if self._max_tokens == 0:
            return MAX_TOKENS
        self._transcript.begin_turn(Role.BASE)  # the end strings of its format count
        if full := self._full(len(member.ids) for member in self._members):
            return full
        for member in self._members:
            member.session.sync(member.ids)
        draft = Draft(self._base.overlap, opens_answer=self._drops_lead)
        while True:
            drawn = self._draw()
            if any(member.backend.is_eog(drawn.token) for member in self._members):
                return END_OF_GENERATION
            piece = self._piece(drawn.token)
            if not piece or not draft.can_take(piece):
                return End(FinishReason.STOP, FinishDetail.CONTROL_TOKEN)
            draft.push(piece, drawn.score)
            self._drawn.append(drawn)
            if size := draft.whole_size():
                end = self._accept(self._unit(draft, size))
                yield from self._counted(self._transcript.show())
                if end is not None:
                    return end
            if (n_room := self._n_room) is not None and draft.n_tokens >= n_room:
                return MAX_TOKENS  # what would come of these tokens is beyond the limit
            if full := self._full(len(member.session) + 1 for member in self._members):
                return full
            for member in self._members:
                member.session.advance(drawn.token)

    def _draw(self) -> _Drawn:
        rows = [member.row() for member in self._members]
        top_prob = self._base.reader.probe(rows[0]).top_prob
        scores = self._mix.combine(rows)
        token = self._sampler.draw(scores, self._reader, len(self._base.session))
        score = None if self._scorer is None else self._scorer.score(scores, token)
        favour = self._nudging.log_prob(token) - self._base.log_prob(token) if self._mix.has_two_authors else 0.0
        return _Drawn(token, score, top_prob, favour)

    def _piece(self, token: int) -> bytes:
        """Return the text of a token; none where it is a control token of any model."""
        pieces = [member.backend.piece(token) for member in self._members]
        return pieces[0] if all(pieces) else b""

    def _full(self, sizes: Iterator[int]) -> End | None:
        """Return what ends the answer where a model has no room behind so many ids."""
        for member, n_ids in zip(self._members, sizes, strict=True):
            if not member.has_room(n_ids):
                return member.full
        return None

    def _unit(self, draft: Draft, size: int) -> Unit:
        data, token_starts, tokens = draft.take(size)
        drawn = [self._drawn.popleft() for _ in token_starts]
        favours_nudging = sum(token.favour for token in drawn) > 0
        author = Role.NUDGING if favours_nudging else Role.BASE
        return Unit(author, data, token_starts, drawn[0].top_prob, HandoffReason.POLICY, tokens)

    @property
    def _n_room(self) -> int | None:
        """Tokens the answer may still grow by."""
        return None if self._max_tokens is None else self._max_tokens - self._transcript.n_tokens

    def _accept(self, unit: Unit) -> End | None:
        """Add a unit to the answer, within the token limit; return what ended it, or None to go on."""
        is_last = False
        if (n_room := self._n_room) is not None:
            is_last = len(unit.token_starts) >= n_room
            unit = cut_to_tokens(unit, n_room)
        match self._transcript.append(unit) if unit.data else Verdict.GO_ON:
            case Verdict.STOP_STRING:
                return End(FinishReason.STOP, FinishDetail.STOP_STRING)
            case Verdict.TURN_END:
                return END_OF_GENERATION
            case Verdict.LOOP:
                return LOOP
            case Verdict.GO_ON:
                return MAX_TOKENS if is_last else None

    def _counted(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Yield what is shown now, counting it."""
        for piece in pieces:
            self.usage.count(piece, self._clock, self._started)
            yield piece
