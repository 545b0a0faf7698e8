"""The nudging loop: two models, one answer, one stream of events.

Owns the order of things: who writes, when the other one is asked, why a turn ends. What a model thinks is in
sampling.py, who may write in policy.py, what may be shown in transcript.py, the caches in session.py.
reference.py beside it is the same algorithm written plainly; tests hold this one to it, exactly.

1. The nudging model opens; its first word is accepted unseen by the base model, so it is shown at once.
2. The base model is asked after each nudging word; drafting goes on only as far as the next question needs.
   Where the rule is a mix (blending.py) and the base model is unsure, what is drafted is dropped and both draw.
3. Only the nudging model ends an answer (a solo model ends its own).
4. Closing the generator, or an error, at any event leaves both sessions ready for the next request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from edge_nudge.core.betting import with_opinion
from edge_nudge.core.blending import Blender, Mixed, TextTable
from edge_nudge.core.draft import Draft
from edge_nudge.core.events import (
    Event,
    FinishDetail,
    Finished,
    FinishReason,
    Handoff,
    HandoffReason,
    Piece,
    Role,
    Usage,
)
from edge_nudge.core.policy import make_policy
from edge_nudge.core.request import GenerateRequest
from edge_nudge.core.sampling import Probe
from edge_nudge.core.session import Cancelled
from edge_nudge.core.transcript import Transcript, Unit, Verdict, cut_to_tokens
from edge_nudge.core.writer import Writer
from edge_nudge.errors import ContextOverflowError


@dataclass(frozen=True, slots=True)
class Turn:
    """A run of text by one model, about to begin; a base turn, and one drawn from a mix, brings its first token."""

    role: Role
    reason: HandoffReason
    top_prob: float | None = None
    token: int = -1
    overlap: int = 0
    instead: bytes | None = None  # of its first piece


@dataclass(frozen=True, slots=True)
class End:
    """The answer is finished."""

    reason: FinishReason
    detail: FinishDetail


Outcome: TypeAlias = Turn | End
Steps: TypeAlias = Generator[Event, None, Outcome]

CONTEXT_FULL = {
    Role.BASE: End(FinishReason.LENGTH, FinishDetail.BASE_CONTEXT),
    Role.NUDGING: End(FinishReason.LENGTH, FinishDetail.NUDGING_CONTEXT),
}
MAX_TOKENS = End(FinishReason.LENGTH, FinishDetail.MAX_TOKENS)
END_OF_GENERATION = End(FinishReason.STOP, FinishDetail.END_OF_GENERATION)
LOOP = End(FinishReason.STOP, FinishDetail.LOOP)


class Decoder:
    """Writes one answer. Use `run` once."""

    def __init__(
        self,
        base: Writer,
        nudging: Writer,
        request: GenerateRequest,
        *,
        seed: int,
        clock: Callable[[], float],
        is_cancelled: Callable[[], bool],
        texts: TextTable,
    ) -> None:
        self._seed = seed
        self._base = base
        self._nudging = nudging
        self._params = request.nudge
        self._max_tokens = request.max_tokens
        self._cache_prompt = request.cache_prompt
        self._drops_lead = request.raw_prompt is None  # a plain completion keeps the blanks it begins with
        self._policy = make_policy(request.nudge)
        self._draft = self._foresee if self._policy.solo is None else None
        self._blender = Blender(base, nudging, texts, request.sampling, seed)
        self._transcript = Transcript(
            [string.encode() for string in request.stop],
            base.end_strings,
            loop_guard=request.nudge.loop_guard,
            is_shared=self._policy.solo is None,
        )
        self._clock = clock
        self._is_cancelled = is_cancelled
        self._started = 0.0
        self._n_nudging_turns = 0
        self.usage = Usage()

    def run(self) -> Iterator[Event]:
        """Yield the events of the answer; the last one is Finished. Raises EngineError."""
        self._started = self._clock()
        for writer in self._asked():
            self.usage.of(writer.role).n_prompt = writer.n_prompt
            usage = self.usage.of(writer.role)
            writer.begin(usage, self._is_cancelled, self._clock, reuses_cache=self._cache_prompt)
        try:
            end: End = yield from self._answer()
        except Cancelled:
            end = End(FinishReason.CANCELLED, FinishDetail.CANCELLED)
        yield from self._counted(self._transcript.flush())
        self.usage.total_s = self._clock() - self._started
        yield Finished(end.reason, end.detail, self.usage, self._seed, self._transcript.stop_string)

    def check(self) -> None:
        """Raise ContextOverflowError if the prompt leaves a model no room for one token."""
        for writer in self._asked():
            if writer.n_prompt >= writer.n_ctx:
                raise ContextOverflowError(writer.role.value, writer.n_prompt, writer.n_ctx)

    def _asked(self) -> list[Writer]:
        return [w for w in (self._base, self._nudging) if self._policy.solo in (None, w.role)]

    def _answer(self) -> Generator[Event, None, End]:
        if self._max_tokens == 0:
            return MAX_TOKENS
        solo = self._policy.solo
        if solo is Role.BASE:
            outcome: Outcome = self._open_with_base()
        else:
            outcome = Turn(Role.NUDGING, HandoffReason.POLICY if solo else HandoffReason.OPENING)
        while isinstance(outcome, Turn):
            turn = outcome
            self._transcript.begin_turn(turn.role)
            steps = self._nudging_turn(turn) if turn.role is Role.NUDGING else self._base_turn(turn)
            outcome = yield from steps
            if isinstance(outcome, Turn) and outcome.role is not turn.role:
                self.usage.n_handoffs += 1
                yield Handoff(outcome.role, outcome.reason, outcome.top_prob)
        return outcome

    # --- the nudging model's turn

    def _nudging_turn(self, turn: Turn) -> Steps:
        self._n_nudging_turns += 1
        if self._n_nudging_turns > self._params.max_turns:
            return End(FinishReason.LENGTH, FinishDetail.MAX_TURNS)
        overlap = self._nudging.sync(self._transcript.text)
        if overlap is None:
            return CONTEXT_FULL[Role.NUDGING]
        if turn.reason in (HandoffReason.BASE_END, HandoffReason.LOOP) and self._is_finished():
            return End(FinishReason.STOP, FinishDetail.RESTART_GUARD)
        opens_answer = self._drops_lead and len(self._transcript) == 0
        draft = Draft(overlap, opens_answer=opens_answer)
        if turn.token >= 0:
            self._push(draft, turn.token)
        top_prob, probe, instead = turn.top_prob, None, turn.instead
        while True:
            if (size := draft.word_size()) is None:
                end = self._extend(draft)
                if opens_answer:
                    self._nudging.add_lead(draft.n_lead)
                    opens_answer = False
                if end is not None:
                    return (yield from self._accept_rest(draft, turn.reason, top_prob, instead, end))
                size = draft.word_size()
                assert size is not None, "a draft ends with a whole word or with an end"
            if probe is not None and self._agrees(probe, draft.word(size)):
                return Turn(Role.BASE, HandoffReason.AGREED, probe.top_prob, probe.candidate, instead=draft.rest)
            outcome = self._accept(self._unit(Role.NUDGING, draft, size, turn.reason, top_prob, instead))
            yield from self._counted(self._transcript.show())
            if outcome is not None:
                return outcome
            if self._policy.solo is None:
                answer = self._ask_base(draft)
                if not isinstance(answer, Probe):
                    return answer
                probe, top_prob, instead = answer, answer.top_prob, self._base.piece(answer.candidate)
                mixed = self._mix(probe, self._base.overlap, Role.NUDGING)
                if isinstance(mixed, Mixed):
                    draft = Draft(self._nudging.overlap, opens_answer=False)
                    self._push(draft, mixed.token)
                    probe, instead = None, mixed.instead
                elif mixed is not None:
                    return mixed

    def _extend(self, draft: Draft) -> End | None:
        """Draft until there is a whole word and at least `lookahead` tokens, or an end.

        The end of generation anywhere in the draft makes the whole draft part of the answer; a full context
        ends the answer only when there is no whole word left to ask the base model about. A word that does not
        fit into the token limit is not drafted to its end.
        """
        nudging = self._nudging
        while draft.n_tokens < self._params.lookahead or draft.word_size() is None:
            if self._n_room is not None and draft.n_tokens >= max(self._n_room, self._params.lookahead):
                return MAX_TOKENS
            if not nudging.evaluate_pending():
                return CONTEXT_FULL[Role.NUDGING] if draft.word_size() is None else None
            top_prob = nudging.top_prob() if self._policy.needs_other else math.nan
            banned: list[int] = []
            while True:
                token = nudging.draw(banned)
                if nudging.is_eog(token):
                    return END_OF_GENERATION
                piece = nudging.piece(token)
                if not piece:
                    return End(FinishReason.STOP, FinishDetail.CONTROL_TOKEN)
                if draft.can_take(piece):
                    break
                banned.append(token)  # no text can come of it: the next best one
            self._push(draft, token, top_prob)
        return None

    def _push(self, draft: Draft, token: int, top_prob: float = math.nan) -> None:
        """Add a token of the nudging model, drawn from the scores at hand, to its draft."""
        draft.push(self._nudging.piece(token), self._nudging.score(token), top_prob)
        self._nudging.pending = token

    def _ask_base(self, draft: Draft) -> Probe | Outcome:
        """Ask the base model behind the last word taken from a draft: an unsure probe, or what comes next."""
        overlap = self._base.sync(self._transcript.text, draft.rest)
        if overlap is None:
            return CONTEXT_FULL[Role.BASE]
        probe = self._base.probe(self._policy)
        if self._policy.needs_other:
            probe = replace(probe, other_prob=draft.rest_prob)
        if not self._policy.is_sure(probe):
            return probe
        token = self._base.draw()
        if self._base.is_eog(token):
            return Turn(Role.NUDGING, HandoffReason.BASE_END, probe.top_prob, instead=b"")
        if not Draft(overlap, opens_answer=False).can_take(piece := self._base.piece(token)) or not piece:
            return probe
        return Turn(Role.BASE, HandoffReason.CONFIDENT, probe.top_prob, token, overlap, draft.rest or None)

    def _mix(self, probe: Probe, n_blanks: int, writer: Role) -> Mixed | Outcome | None:
        """Draw from the mix, where the rule is one: a token of the writer, or what else comes of it.

        None where there is no mix: the rule is another one, or nothing can be drawn.
        """
        mixed = self._blender.draw(self._transcript.text, n_blanks) if self._policy.is_mixed else None
        if isinstance(mixed, Role):
            return CONTEXT_FULL[mixed]
        if mixed is None or (mixed.author is writer and not mixed.is_end):
            return mixed
        if not mixed.is_end:
            overlap = self._base.overlap if mixed.author is Role.BASE else self._nudging.overlap
            blended, top_prob = HandoffReason.BLENDED, probe.top_prob
            return Turn(mixed.author, blended, top_prob, mixed.token, overlap, mixed.instead)
        if mixed.author is Role.NUDGING:
            return END_OF_GENERATION
        return Turn(Role.NUDGING, HandoffReason.BASE_END, probe.top_prob, instead=b"")

    def _agrees(self, probe: Probe, word: bytes) -> bool:
        """Tell whether what the base model would write begins the nudging model's next word."""
        piece = self._base.piece(probe.candidate)
        return piece.strip() != b"" and word.startswith(piece)

    def _is_finished(self) -> bool:
        """Tell whether the nudging model would end here as well: the restart guard."""
        return self._nudging.end_prob() >= self._params.end_prob

    # --- the base model's turn

    def _open_with_base(self) -> Outcome:
        overlap = self._base.sync(b"")
        if overlap is None:
            return CONTEXT_FULL[Role.BASE]
        probe = self._base.probe(self._policy)
        return Turn(Role.BASE, HandoffReason.POLICY, probe.top_prob, self._base.draw(), overlap)

    def _base_turn(self, turn: Turn) -> Steps:
        base = self._base
        token, top_prob, instead = turn.token, turn.top_prob, turn.instead
        opens_answer = self._drops_lead and len(self._transcript) == 0
        draft = Draft(turn.overlap, opens_answer=opens_answer)
        while True:
            if base.is_eog(token):
                return self._to_nudging(HandoffReason.BASE_END, top_prob, b"")
            piece = base.piece(token)
            if not piece or not draft.can_take(piece):
                return self._to_nudging(HandoffReason.UNUSABLE, top_prob, piece)
            draft.push(piece, base.score(token))
            if size := draft.whole_size():
                if opens_answer:
                    base.add_lead(draft.n_lead)
                    opens_answer = False
                outcome = self._accept(self._unit(Role.BASE, draft, size, turn.reason, top_prob, instead))
                instead = None
                yield from self._counted(self._transcript.show())
                if outcome is not None:
                    return outcome
            base.pending = token
            if not base.evaluate_pending(None if draft.rest else self._draft):
                return CONTEXT_FULL[Role.BASE]
            probe = self._judge(base.probe(self._policy), draft)
            if probe is None:
                return CONTEXT_FULL[Role.NUDGING]
            top_prob = probe.top_prob
            if self._policy.is_sure(probe):
                token = base.draw()
            else:
                mixed = None if draft.has_rest else self._mix(probe, draft.n_blanks, Role.BASE)
                if not isinstance(mixed, Mixed):
                    return mixed or self._to_nudging(HandoffReason.UNSURE, top_prob, base.piece(probe.candidate))
                token, instead = mixed.token, mixed.instead

    def _judge(self, probe: Probe, draft: Draft) -> Probe | None:
        """Add what the nudging model thinks at the same place where the rule is about that; None if it is full."""
        if not self._policy.needs_other:
            return probe
        return with_opinion(probe, self._policy, self._base, self._nudging, self._transcript.text, draft)

    def _foresee(self, n_tokens: int) -> bytes:
        """Let the nudging model guess how the base model goes on."""
        return self._nudging.foresee(self._transcript.text, n_tokens)

    def _to_nudging(self, reason: HandoffReason, top_prob: float | None, instead: bytes | None = None) -> Outcome:
        if self._policy.solo is None:
            return Turn(Role.NUDGING, reason, top_prob, instead=instead)
        if reason is HandoffReason.UNUSABLE:
            return End(FinishReason.STOP, FinishDetail.CONTROL_TOKEN)
        return LOOP if reason is HandoffReason.LOOP else END_OF_GENERATION

    # --- what both turns share

    @property
    def _n_room(self) -> int | None:
        """Tokens the answer may still grow by."""
        return None if self._max_tokens is None else self._max_tokens - self._transcript.n_tokens

    def _unit(
        self,
        role: Role,
        draft: Draft,
        size: int,
        reason: HandoffReason,
        top_prob: float | None,
        instead: bytes | None,
    ) -> Unit:
        data, token_starts, tokens = draft.take(size)
        return Unit(role, data, token_starts, top_prob, reason, tokens, instead)

    def _accept(self, unit: Unit) -> Outcome | None:
        """Add a unit to the answer, within the token limit; return what follows, or None to go on."""
        transcript = self._transcript
        is_last = False
        if (n_room := self._n_room) is not None:
            is_last = len(unit.token_starts) >= n_room
            unit = cut_to_tokens(unit, n_room)
        verdict = transcript.append(unit) if unit.data else Verdict.GO_ON
        match verdict:
            case Verdict.STOP_STRING:
                return End(FinishReason.STOP, FinishDetail.STOP_STRING)
            case Verdict.TURN_END:
                return self._to_nudging(HandoffReason.BASE_END, unit.top_prob)
            case Verdict.LOOP:
                # where the nudging model began the repetition, it would only begin it again
                return LOOP if transcript.loop_author is Role.NUDGING else self._to_nudging(HandoffReason.LOOP, None)
            case Verdict.GO_ON:
                return MAX_TOKENS if is_last else None

    def _accept_rest(
        self, draft: Draft, reason: HandoffReason, top_prob: float | None, instead: bytes | None, end: End
    ) -> Steps:
        """Accept all that is drafted, word by word, unless something ends the answer before."""
        while size := (draft.word_size() or draft.whole_size()):
            outcome = self._accept(self._unit(Role.NUDGING, draft, size, reason, top_prob, instead))
            instead = None
            yield from self._counted(self._transcript.show())
            if outcome is not None:
                return outcome
        return end

    def _counted(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Yield what is shown now, counting it."""
        for piece in pieces:
            self.usage.count(piece, self._clock, self._started)
            yield piece
