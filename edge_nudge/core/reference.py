"""The nudging algorithm written plainly and slowly: the oracle that the decoder is held to.

Owns nothing but the order of decisions. Every question evaluates its whole text from nothing (reference_model.py);
stop strings and loops are searched from scratch after every addition; nothing is cached, held back or streamed.

Source: Fei, Razeghi, Singh, "Nudging: Inference-time Alignment of LLMs via Guided Decoding" (arXiv 2410.09300).
What differs from the paper:
1. `lookahead` tokens are drafted and then as many more as make one whole word; the paper drafts 16.
2. The last, perhaps cut word of a draft is completed before it is compared, not compared as it is.
3. The guards act on units before they are shown, not on blocks of 16 tokens afterwards.
4. The base model's own end asks the nudging model whether the answer is finished (restart guard).
5. The rules bet and blend, whose sources are named in policy.py and blending.py.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np

from edge_nudge.core.draft import Draft
from edge_nudge.core.events import FinishDetail, HandoffReason, Role
from edge_nudge.core.loops import MIN_TOKENS, MIN_WORDS
from edge_nudge.core.policy import make_policy
from edge_nudge.core.reference_model import Finish
from edge_nudge.core.reference_model import Model as Model
from edge_nudge.core.request import GenerateRequest, Rule
from edge_nudge.core.sampling import Probe, Sampler
from edge_nudge.core.transcript import Unit, cut_to_tokens
from edge_nudge.core.words import whole_characters


class ToNudging(Exception):
    """The turn is over; the nudging model writes on, beginning with `token` if there is one."""

    def __init__(
        self, reason: HandoffReason, top_prob: float | None, instead: bytes | None, token: int | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.top_prob, self.instead, self.token = reason, top_prob, instead, token


class ToBase(Exception):
    """The turn is over; the base model writes on, beginning with `token`."""

    def __init__(self, reason: HandoffReason, top_prob: float | None, token: int, instead: bytes | None) -> None:
        super().__init__(reason)
        self.reason, self.top_prob, self.token, self.instead = reason, top_prob, token, instead


class Go(Exception):
    """The model that writes goes on with a token that both drew."""

    def __init__(self, token: int, instead: bytes) -> None:
        super().__init__(token)
        self.token, self.instead = token, instead


@dataclass
class Reference:
    """One answer; after `run`, `units` is what the user sees."""

    base: Model
    nudging: Model
    request: GenerateRequest
    units: list[Unit] = field(default_factory=list)
    base_turn_start: int | None = None
    run_floor: int = 0  # a repetition cannot begin before this offset
    n_turns: int = 0
    stop_string: str | None = None
    instead: bytes | None = None  # of the unit that comes next
    first: int | None = None  # token of the nudging turn that comes next

    def __post_init__(self) -> None:
        self.rule = self.request.nudge.rule
        self.mixer = Sampler(self.request.sampling, None, self.base.seed)

    def run(self) -> FinishDetail:
        """Write the answer and return what ended it."""
        policy = make_policy(self.request.nudge)
        reason, top_prob = HandoffReason.POLICY if policy.solo else HandoffReason.OPENING, None
        try:
            if self.request.max_tokens == 0:
                return FinishDetail.MAX_TOKENS
            if policy.solo is Role.BASE:
                ids = self.base.ids(b"")
                self.base_turn(self.base.draw(ids, []), reason, self.base.probe(ids).top_prob)
            while True:
                reason, top_prob = self.both_turns(reason, top_prob)
        except Finish as finish:
            return finish.detail

    def both_turns(self, reason: HandoffReason, top_prob: float | None) -> tuple[HandoffReason, float | None]:
        """Let the nudging model and then the base model write; return why the nudging model is to go on."""
        try:
            try:
                self.nudging_turn(reason, top_prob)
            except ToBase as turn:
                self.instead = turn.instead
                self.base_turn(turn.token, turn.reason, turn.top_prob)
        except ToNudging as turn:
            self.instead, self.first = turn.instead, turn.token
            return turn.reason, turn.top_prob

    def nudging_turn(self, reason: HandoffReason, top_prob: float | None) -> NoReturn:
        """Write words until the base model is sure, agrees, or the answer ends."""
        self.base_turn_start = None
        self.n_turns += 1
        if self.n_turns > self.request.nudge.max_turns:
            raise Finish(FinishDetail.MAX_TURNS)
        ids = self.nudging.ids(self.text)
        after_end = reason in (HandoffReason.BASE_END, HandoffReason.LOOP)
        if after_end and self.nudging.end_prob(ids) >= self.request.nudge.end_prob:
            raise Finish(FinishDetail.RESTART_GUARD)
        opens_answer = self.request.raw_prompt is None and not self.text
        draft = Draft(self.nudging.overlap(self.text), opens_answer=opens_answer)
        if self.first is not None:
            self.push(draft, ids, self.first)
            self.first = None
        unsure: Probe | None = None
        while True:
            end = self.extend(draft, ids) if draft.word_size() is None else None
            if opens_answer:
                self.nudging.lead += b" " * draft.n_lead
                opens_answer = False
            if end is not None:
                while size := draft.word_size() or draft.whole_size():
                    self.accept(Role.NUDGING, draft, size, reason, top_prob)
                raise Finish(end)
            word_size = draft.word_size()
            assert word_size is not None, "a draft ends with a whole word or with an end"
            if unsure is not None and self.agrees(unsure, draft.word(word_size)):
                raise ToBase(HandoffReason.AGREED, unsure.top_prob, self.candidate(unsure), draft.rest)
            self.accept(Role.NUDGING, draft, word_size, reason, top_prob)
            if make_policy(self.request.nudge).solo is None:
                unsure = self.ask_base(draft)
                top_prob, self.instead = unsure.top_prob, self.base.backend.piece(self.candidate(unsure))
                try:
                    self.mix(Role.NUDGING, self.base.ids(self.text), self.base.overlap(self.text), unsure)
                except Go as go:
                    ids, draft = self.nudging.ids(self.text), Draft(self.nudging.overlap(self.text), opens_answer=False)
                    self.push(draft, ids, go.token)
                    unsure, self.instead = None, go.instead

    def extend(self, draft: Draft, ids: list[int]) -> FinishDetail | None:
        """Draft on; `ids` grows by what is drafted. Return what ended the draft, if anything did."""
        while draft.n_tokens < self.request.nudge.lookahead or draft.word_size() is None:
            if self.request.max_tokens is not None and draft.n_tokens >= max(self.n_room, self.request.nudge.lookahead):
                return FinishDetail.MAX_TOKENS
            if len(ids) >= self.nudging.backend.info.n_ctx:
                return FinishDetail.NUDGING_CONTEXT if draft.word_size() is None else None
            banned: list[int] = []
            token = self.nudging.draw(ids, banned)
            while not draft.can_take(self.nudging.backend.piece(token)):
                banned.append(token)
                token = self.nudging.draw(ids, banned)
            if self.nudging.backend.is_eog(token):
                return FinishDetail.END_OF_GENERATION
            if not self.nudging.backend.piece(token):
                return FinishDetail.CONTROL_TOKEN
            self.push(draft, ids, token)
        return None

    def push(self, draft: Draft, ids: list[int], token: int) -> None:
        top_prob = self.nudging.probe(ids).top_prob if self.rule is Rule.BET else math.nan
        draft.push(self.nudging.backend.piece(token), self.nudging.score(ids, token), top_prob)
        ids.append(token)

    def candidate(self, probe: Probe) -> int:
        """What the base model would write here: two rules are about the token drawn."""
        return probe.drawn if self.rule in (Rule.TOKEN, Rule.BET) else probe.top_id

    def ask_base(self, draft: Draft) -> Probe:
        """Return the base model's probe if it is unsure; else its turn begins, in place of what is drafted."""
        ids = self.base.ids(self.text)
        probe = replace(self.base.probe(ids), other_prob=draft.rest_prob)
        if make_policy(self.request.nudge).is_sure(probe):
            token = self.base.draw(ids, [])
            if self.base.backend.is_eog(token):
                raise ToNudging(HandoffReason.BASE_END, probe.top_prob, b"")
            piece = self.base.backend.piece(token)
            if piece and Draft(0, opens_answer=False).can_take(piece):
                raise ToBase(HandoffReason.CONFIDENT, probe.top_prob, token, draft.rest or None)
        return probe

    def opinion(self, draft: Draft, probe: Probe) -> float:
        """The nudging model's best probability where the base model is about to write a token behind a draft.

        Not asked where no answer could be high enough.
        """
        if probe.drawn_prob >= 1.0 - self.request.nudge.threshold:
            return math.nan
        before = self.text + draft.rest
        if whole_characters(before) != len(before):
            return math.nan
        draft, piece = copy.deepcopy(draft), self.base.backend.piece(probe.drawn)
        if piece and draft.can_take(piece):
            draft.push(piece)
        behind = self.nudging.all_ids(self.text + draft.word(draft.whole_size()))
        ids = self.nudging.all_ids(before)
        if behind[: len(ids)] != ids:
            return math.nan
        self.nudging.check_room(ids)
        return self.nudging.probe(ids).top_prob

    def mix(self, writer: Role, base_ids: list[int], n_blanks: int, probe: Probe) -> None:
        """Where the rule is blend, let both draw; return only if there is no mix."""
        if self.rule is not Rule.BLEND:
            return
        ids = {Role.NUDGING: self.nudging.ids(self.text), Role.BASE: base_ids}
        p, tokens_of_base = self.base.texts(base_ids, n_blanks)
        q, tokens_of_nudging = self.nudging.texts(ids[Role.NUDGING], self.nudging.overlap(self.text))
        best_p, best_q = max(p, key=p.__getitem__), max(q, key=q.__getitem__)
        both = p[best_p] + q[best_q]
        weight = min(q[best_q] / both + 0.1 * p.get(best_q, 0.0), 1.0) if both else 0.0
        texts = [*p, *(text for text in q if text not in p)]
        mix = {text: (1.0 - weight) * p.get(text, 0.0) + weight * q.get(text, 0.0) for text in texts}
        while mix[best := max(texts, key=mix.__getitem__)] > 0.0:
            with np.errstate(divide="ignore"):
                logs = np.log(np.array([mix[text] for text in texts]))
            text = texts[self.mixer.pick(logs, texts.index(best), len(base_ids))]
            if text is None or whole_characters(text) is not None:
                is_nudging = weight * q.get(text, 0.0) > (1.0 - weight) * p.get(text, 0.0)
                token = (tokens_of_nudging if is_nudging else tokens_of_base)[text]
                other, of_other = (self.base, base_ids) if is_nudging else (self.nudging, ids[Role.NUDGING])
                instead = other.backend.piece(other.probe(of_other).top_id)
                self.go_on(writer, Role.NUDGING if is_nudging else Role.BASE, text, token, instead, probe)
            mix[text] = 0.0

    def go_on(
        self, writer: Role, author: Role, text: bytes | None, token: int, instead: bytes, probe: Probe
    ) -> NoReturn:
        """Let the author of what was drawn write it."""
        if text is None:
            if author is Role.NUDGING:
                raise Finish(FinishDetail.END_OF_GENERATION)
            raise ToNudging(HandoffReason.BASE_END, probe.top_prob, b"")
        if author is writer:
            raise Go(token, instead)
        if author is Role.BASE:
            raise ToBase(HandoffReason.BLENDED, probe.top_prob, token, instead)
        raise ToNudging(HandoffReason.BLENDED, probe.top_prob, instead, token)

    def agrees(self, probe: Probe, word: bytes) -> bool:
        piece = self.base.backend.piece(self.candidate(probe))
        return piece.strip() != b"" and word.startswith(piece)

    def base_turn(self, token: int, reason: HandoffReason, top_prob: float | None) -> NoReturn:
        """Write tokens while the base model is sure."""
        self.base_turn_start = len(self.text)
        ids = self.base.ids(self.text)
        opens_answer = self.request.raw_prompt is None and not self.text
        draft = Draft(self.base.overlap(self.text), opens_answer=opens_answer)
        while True:
            piece = self.base.backend.piece(token)
            if self.base.backend.is_eog(token):
                self.leave_base(HandoffReason.BASE_END, top_prob, b"")
            if not piece or not draft.can_take(piece):
                self.leave_base(HandoffReason.UNUSABLE, top_prob, piece)
            draft.push(piece, self.base.score(ids, token))
            ids.append(token)
            if size := draft.whole_size():
                if opens_answer:
                    self.base.lead += b" " * draft.n_lead
                    opens_answer = False
                self.accept(Role.BASE, draft, size, reason, top_prob)
            self.base.check_room(ids)
            probe = self.base.probe(ids)
            if self.rule is Rule.BET:
                probe = replace(probe, other_prob=self.opinion(draft, probe))
            top_prob, token = probe.top_prob, probe.drawn
            if not make_policy(self.request.nudge).is_sure(probe):
                try:
                    if not draft.rest:
                        self.mix(Role.BASE, ids, draft.n_blanks, probe)
                    self.leave_base(HandoffReason.UNSURE, top_prob, self.base.backend.piece(self.candidate(probe)))
                except Go as go:
                    token, self.instead = go.token, go.instead

    def leave_base(self, reason: HandoffReason, top_prob: float | None, instead: bytes | None = None) -> NoReturn:
        if make_policy(self.request.nudge).solo is None:
            raise ToNudging(reason, top_prob, instead)
        endings = {HandoffReason.UNUSABLE: FinishDetail.CONTROL_TOKEN, HandoffReason.LOOP: FinishDetail.LOOP}
        raise Finish(endings.get(reason, FinishDetail.END_OF_GENERATION))

    # --- the answer and its guards, each searched from scratch

    @property
    def text(self) -> bytes:
        return b"".join(unit.data for unit in self.units)

    @property
    def n_room(self) -> int:
        """Tokens the answer may still grow by."""
        assert self.request.max_tokens is not None, "asked only where there is a limit"
        return self.request.max_tokens - sum(len(unit.token_starts) for unit in self.units)

    def accept(self, role: Role, draft: Draft, size: int, reason: HandoffReason, top_prob: float | None) -> None:
        data, token_starts, tokens = draft.take(size)
        unit = Unit(role, data, token_starts, top_prob, reason, tokens, self.instead)
        self.instead = None
        is_last = False
        if self.request.max_tokens is not None:
            is_last = len(unit.token_starts) >= self.n_room
            unit = cut_to_tokens(unit, self.n_room)
        if unit.data:
            n_old = len(self.text)
            self.units.append(unit)
            self.check_stop_strings(n_old)
            self.check_turn_end(n_old, top_prob)
            self.check_loop()
        if is_last:
            raise Finish(FinishDetail.MAX_TOKENS)

    def check_stop_strings(self, n_old: int) -> None:
        found = self.first_match([string.encode() for string in self.request.stop], n_old, 0)
        if found is not None:
            end, string = found
            self.cut(end - len(string))
            self.stop_string = string.decode()
            raise Finish(FinishDetail.STOP_STRING)

    def check_turn_end(self, n_old: int, top_prob: float | None) -> None:
        if self.base_turn_start is not None:
            found = self.first_match(list(self.base.prompt.end_strings), n_old, self.base_turn_start)
            if found is not None:
                end, string = found
                self.cut(end - len(string))
                self.leave_base(HandoffReason.BASE_END, top_prob)

    def first_match(self, strings: list[bytes], n_old: int, floor: int) -> tuple[int, bytes] | None:
        """Return the end of the match that is complete first, byte by byte, and its string, the longest."""
        text = self.text
        for end in range(n_old + 1, len(text) + 1):
            matches = [s for s in strings if text[:end].endswith(s) and end - len(s) >= floor]
            if matches:
                return end, max(matches, key=len)
        return None

    def check_loop(self) -> None:
        if not self.request.nudge.loop_guard:
            return
        text = self.text
        starts = [len(b"".join(unit.data for unit in self.units[:i])) for i in range(len(self.units))]
        repeated = [
            i
            for i, start in enumerate(starts)
            if start >= self.run_floor and any(text.startswith(text[start:], at) for at in range(start))
        ]
        if not repeated:
            self.run_floor = len(text)
            return
        start = self.run_floor = starts[repeated[0]]
        run = text[start:]
        n_tokens = sum(len(unit.token_starts) for unit in self.units[repeated[0] :])
        overlaps = any(text.startswith(run, at) and at + len(run) > start for at in range(start))
        author = self.units[repeated[0]].author
        is_shared = make_policy(self.request.nudge).solo is None
        is_base_again = author is Role.BASE and is_shared and len(run.split()) > MIN_WORDS
        if n_tokens >= MIN_TOKENS and (overlaps or is_base_again):
            self.cut(start)
            if author is Role.NUDGING:
                raise Finish(FinishDetail.LOOP)
            self.leave_base(HandoffReason.LOOP, None)

    def cut(self, end: int) -> None:
        """Drop everything from offset `end` on."""
        kept, position = [], 0
        for unit in self.units:
            part = unit if position + len(unit.data) <= end else unit.cut(max(0, end - position))
            position += len(unit.data)
            if part.data:
                kept.append(part)
        self.units = kept
        self.run_floor = end
