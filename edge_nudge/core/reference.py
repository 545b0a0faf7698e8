"""The nudging algorithm written plainly and slowly: the oracle that the decoder is held to.

Owns nothing but the order of decisions. Every question evaluates its whole text from nothing; stop strings and
loops are searched from scratch after every addition; nothing is cached, held back or streamed.

Source: Fei, Razeghi, Singh, "Nudging: Inference-time Alignment of LLMs via Guided Decoding" (arXiv 2410.09300).
What differs from the paper:
1. `lookahead` tokens are drafted and then as many more as make one whole word; the paper drafts 16.
2. The last, perhaps cut word of a draft is completed before it is compared, not compared as it is.
3. The guards act on units before they are shown, not on blocks of 16 tokens afterwards.
4. The base model's own end asks the nudging model whether the answer is finished (restart guard).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from edge_nudge.core.backend import Backend
from edge_nudge.core.draft import Draft
from edge_nudge.core.events import FinishDetail, HandoffReason, Role, TokenScore
from edge_nudge.core.loops import MIN_TOKENS, MIN_WORDS
from edge_nudge.core.policy import make_policy
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import GenerateRequest
from edge_nudge.core.sampling import Probe, Reader, Sampler, Scores
from edge_nudge.core.token_scores import TokenScorer
from edge_nudge.core.transcript import Unit, cut_to_tokens


class Finish(Exception):
    """The answer is finished."""

    def __init__(self, detail: FinishDetail) -> None:
        super().__init__(detail)
        self.detail = detail


class ToNudging(Exception):
    """The turn is over; the nudging model writes on."""

    def __init__(self, reason: HandoffReason, top_prob: float | None) -> None:
        super().__init__(reason)
        self.reason, self.top_prob = reason, top_prob


class ToBase(Exception):
    """The turn is over; the base model writes on, beginning with `token`."""

    def __init__(self, reason: HandoffReason, top_prob: float | None, token: int) -> None:
        super().__init__(reason)
        self.reason, self.top_prob, self.token = reason, top_prob, token


class Model:
    """One model, asked from nothing each time."""

    def __init__(self, role: Role, backend: Backend, prompt: Prompt, request: GenerateRequest, seed: int) -> None:
        self.role, self.backend, self.prompt = role, backend, prompt
        self.reader = Reader(backend.info.n_vocab, role.value)
        self.sampler = Sampler(request.sampling, role, seed)
        self.scorer = None if request.logprobs is None else TokenScorer(backend, self.reader, request.logprobs)
        self.lead = b""  # blanks this model wrote in front of the answer

    def ids(self, answer: bytes) -> list[int]:
        """Ids of prompt and answer, without the blanks at the end. Raises Finish if there is no room to write."""
        text = self.prompt.tail + self.lead + answer
        ids = [*self.prompt.head, *self.prompt.tokenize(self.backend, text[: len(text) - self.overlap(answer)])]
        self.check_room(ids)
        return ids

    def overlap(self, answer: bytes) -> int:
        """How many blanks at the end of the text the model writes again."""
        text = self.prompt.tail + self.lead + answer
        if not self.prompt.head and not text.strip(b" "):
            return 0
        return len(text) - len(text.rstrip(b" "))

    def check_room(self, ids: list[int]) -> None:
        if len(ids) >= self.backend.info.n_ctx:
            raise Finish(FinishDetail.BASE_CONTEXT if self.role is Role.BASE else FinishDetail.NUDGING_CONTEXT)

    def scores(self, ids: list[int]) -> Scores:
        self.backend.clear()
        n_batch = self.backend.info.n_batch
        for start in range(0, len(ids), n_batch):
            batch = ids[start : start + n_batch]
            self.backend.evaluate(batch, [len(batch) - 1])
        row: Scores = self.backend.scores(len(batch) - 1).copy()
        return row

    def draw(self, ids: list[int], banned: list[int]) -> int:
        return self.sampler.draw(self.scores(ids), self.reader, len(ids), banned)

    def probe(self, ids: list[int]) -> Probe:
        return self.reader.probe(self.scores(ids), with_second=True, with_entropy=True)

    def score(self, ids: list[int], token: int) -> TokenScore | None:
        return None if self.scorer is None else self.scorer.score(self.scores(ids), token)

    def end_prob(self, ids: list[int]) -> float:
        return self.reader.prob_of(self.scores(ids), self.backend.eog_tokens)


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
                self.base_turn(turn.token, turn.reason, turn.top_prob)
        except ToNudging as turn:
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
                raise ToBase(HandoffReason.AGREED, unsure.top_prob, unsure.top_id)
            self.accept(Role.NUDGING, draft, word_size, reason, top_prob)
            if make_policy(self.request.nudge).solo is None:
                unsure = self.ask_base()
                top_prob = unsure.top_prob

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
            draft.push(self.nudging.backend.piece(token), self.nudging.score(ids, token))
            ids.append(token)
        return None

    def ask_base(self) -> Probe:
        """Return the base model's probe if it is unsure; else its turn begins."""
        ids = self.base.ids(self.text)
        probe = self.base.probe(ids)
        if make_policy(self.request.nudge).is_sure(probe):
            token = self.base.draw(ids, [])
            if self.base.backend.is_eog(token):
                raise ToNudging(HandoffReason.BASE_END, probe.top_prob)
            piece = self.base.backend.piece(token)
            if piece and Draft(0, opens_answer=False).can_take(piece):
                raise ToBase(HandoffReason.CONFIDENT, probe.top_prob, token)
        return probe

    def agrees(self, probe: Probe, word: bytes) -> bool:
        piece = self.base.backend.piece(probe.top_id)
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
                self.leave_base(HandoffReason.BASE_END, top_prob)
            if not piece or not draft.can_take(piece):
                self.leave_base(HandoffReason.UNUSABLE, top_prob)
            draft.push(piece, self.base.score(ids, token))
            ids.append(token)
            if size := draft.whole_size():
                if opens_answer:
                    self.base.lead += b" " * draft.n_lead
                    opens_answer = False
                self.accept(Role.BASE, draft, size, reason, top_prob)
            self.base.check_room(ids)
            probe = self.base.probe(ids)
            top_prob = probe.top_prob
            if not make_policy(self.request.nudge).is_sure(probe):
                self.leave_base(HandoffReason.UNSURE, top_prob)
            token = self.base.draw(ids, [])

    def leave_base(self, reason: HandoffReason, top_prob: float | None) -> NoReturn:
        if make_policy(self.request.nudge).solo is None:
            raise ToNudging(reason, top_prob)
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
        unit = Unit(role, data, token_starts, top_prob, reason, tokens)
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
        if n_tokens >= MIN_TOKENS and (overlaps or len(run.split()) > MIN_WORDS):
            author = self.units[repeated[0]].author
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
