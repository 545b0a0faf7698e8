"""The nudging loop over text completions: what a first script does, to compare with.

Owns the order of the questions in the paper's form, once for every place a completion can come from. Never sees ids
or a cache, and knows no guard.

1. Each question sends all text so far; how much of it the model reads again is the completer's business.
2. The nudging model drafts `lookahead` tokens; behind each of their words the base model is asked for one token.
3. The base model writes while its token is at least `gamma` probable; a token below that is dropped.
4. Only the nudging model ends an answer. A draft without text ends it too: it would only come again.
5. Tokens of the nudging model's words are counted by `count`, since text has none; a word that crosses the limit
   counts as far as the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from edge_nudge.core.events import FinishDetail, Role, Usage

PAPER_LOOKAHEAD = 16
_WORD = re.compile(r" *[^ ]+| +$")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote behind a text, greedily."""

    text: str
    is_end: bool  # the model ended it; else the limit did
    top_prob: float | None = None  # of the first token; None where it was not asked for or nothing was written


class Completer(Protocol):
    """One model that completes texts."""

    def complete(self, prompt: str, max_tokens: int, *, with_prob: bool) -> Completion:
        """Return at most `max_tokens` tokens of text. Raises EngineError."""
        ...

    def forget(self) -> None:
        """Drop what is kept between two calls, where that is possible."""
        ...


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """One answer. In `usage` calls are completions, native seconds are those inside them; nothing else is known."""

    text: str
    detail: FinishDetail
    usage: Usage


class TextLoop:
    """Writes answers with two completers; `count` tells how many tokens of a model a text is."""

    def __init__(
        self,
        completers: Mapping[Role, Completer],
        *,
        count: Callable[[Role, str], int],
        clock: Callable[[], float],
    ) -> None:
        self._completers = completers
        self._count = count
        self._clock = clock

    def answer(
        self, prompts: Mapping[Role, str], *, gamma: float, max_tokens: int, lookahead: int = PAPER_LOOKAHEAD
    ) -> TextAnswer:
        """Answer from nothing. Raises EngineError."""
        for completer in self._completers.values():
            completer.forget()
        writing = _Writing(self._completers, self._count, self._clock, prompts, gamma, max_tokens, lookahead)
        detail = writing.run()
        return TextAnswer(writing.text, detail, writing.usage)


@dataclass
class _Writing:
    """One answer on its way."""

    completers: Mapping[Role, Completer]
    count: Callable[[Role, str], int]
    clock: Callable[[], float]
    prompts: Mapping[Role, str]
    gamma: float
    max_tokens: int
    lookahead: int

    def __post_init__(self) -> None:
        self.text = ""
        self.usage = Usage()
        self.started = self.clock()

    def run(self) -> FinishDetail:
        detail = None
        while detail is None:
            found = self.nudging_turn()
            detail = self.base_turn(found) if isinstance(found, Completion) else found
        self.usage.total_s = self.clock() - self.started
        return detail

    def nudging_turn(self) -> FinishDetail | Completion | None:
        """Write words; return the base model's first token, what ended the answer, or None to nudge again."""
        draft = self.ask(Role.NUDGING, self.lookahead)
        if draft.is_end:
            return self.add_words(draft.text) or FinishDetail.END_OF_GENERATION
        if not draft.text:
            return FinishDetail.CONTROL_TOKEN
        words: list[str] = _WORD.findall(draft.text)
        if len(words) == 1:
            return self.add_words(draft.text)
        for n_words in range(1, len(words)):
            before = "".join(words[:n_words])
            token = self.ask(Role.BASE, 1, before)
            agrees = token.text.strip() != "" and words[n_words].startswith(token.text)
            if agrees or self.is_sure(token):
                return self.add_words(before) or token
        return self.add_words("".join(words[:-1]))  # the last one may be cut short

    def base_turn(self, token: Completion) -> FinishDetail | None:
        self.usage.n_handoffs += 1
        while True:
            if (detail := self.add(Role.BASE, token.text, 1)) is not None:
                return detail
            token = self.ask(Role.BASE, 1)
            if not self.is_sure(token):
                self.usage.n_handoffs += 1
                return None

    def is_sure(self, token: Completion) -> bool:
        return token.text != "" and token.top_prob is not None and token.top_prob >= self.gamma

    def ask(self, role: Role, max_tokens: int, words: str = "") -> Completion:
        usage = self.usage.of(role)
        started = self.clock()
        prompt = self.prompts[role] + self.text + words
        completion = self.completers[role].complete(prompt, max_tokens, with_prob=role is Role.BASE)
        usage.native_s += self.clock() - started
        usage.n_calls += 1
        return completion

    def add_words(self, text: str) -> FinishDetail | None:
        # A tokenizer that lacks the bytes of a text counts none, and the limit would never come.
        return self.add(Role.NUDGING, text, max(1, self.count(Role.NUDGING, text))) if text else None

    def add(self, role: Role, text: str, n_tokens: int) -> FinishDetail | None:
        if self.usage.first_piece_s is None:
            self.usage.first_piece_s = self.clock() - self.started
        usage = self.usage.of(role)
        usage.n_written += min(n_tokens, self.max_tokens - self.usage.n_completion)
        usage.n_chars += len(text)
        self.text += text
        return FinishDetail.MAX_TOKENS if self.usage.n_completion >= self.max_tokens else None
