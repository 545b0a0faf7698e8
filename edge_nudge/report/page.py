"""One HTML page of a trace, whole in itself: it loads nothing and sends nothing.

Owns what the page shows of a trace; where drawings have their lines is figures.py, what is said in words wording.py,
the markup page/report.html.

1. Everything from a trace is text: the template escapes it, and characters that would reorder or hide text, or end
   a line, are written as escapes that are marked as such.
2. The page's own style and script are the only ones that may run: a content security policy names their hashes.
3. Without the script the page says the same; the script adds a card, keys and a switch of colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from edge_nudge.core.events import Cause, HandoffReason, Role, Usage
from edge_nudge.core.visible import one_line
from edge_nudge.report import figures
from edge_nudge.report.markup import flat, page_file, policy, shown, sign
from edge_nudge.report.output import Kind
from edge_nudge.report.records import FailedRecord, FinishedRecord, PieceRecord, Spelled, Token, Trace
from edge_nudge.report.wording import AUTHORS, CAUSES, ENDINGS, OPEN_END, REASONS, count, percent, spoken

PAGE = Kind("page of a trace", b"<!DOCTYPE html>\n<!-- edge-nudge: the page of a trace -->")
_PACKAGE = "edge_nudge.report"
N_SHADES = 10
LABEL_LENGTH = 14  # characters of a token under its bar


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that its model wrote or might have written."""

    text: str
    prob: float | None
    is_written: bool


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of the answer; `lead` and `tail` are the blanks around its `core`."""

    n: int
    piece: PieceRecord
    lead: str
    core: str
    tail: str
    prob: float | None  # of all its tokens together, the geometric mean
    is_first_of_turn: bool
    choices: tuple[tuple[Choice, ...], ...]  # for each of its tokens

    @property
    def author(self) -> str:
        return self.piece.author.value

    @property
    def is_unsure(self) -> bool:
        return self.prob is not None and self.prob < 0.5

    @property
    def shade(self) -> int | None:
        """How sure its author was, from 0 to 9."""
        return None if self.prob is None else min(N_SHADES - 1, int(self.prob * N_SHADES))

    @property
    def instead(self) -> str | None:
        """What the other model would have written, None where that is not known; empty for no text."""
        return None if self.piece.instead is None else _text(self.piece.instead)

    @property
    def is_shared(self) -> bool:
        """Whether the other model would have written the same, or begun to."""
        instead = (self.instead or "").strip()
        return instead != "" and (self.core.startswith(instead) or instead.startswith(self.core or instead))

    @property
    def title(self) -> str:
        """The same as the card says, for a reader without the script."""
        lines = [f"{AUTHORS[self.piece.author]} · {percent(self.prob)} · {REASONS[self.piece.reason]}"]
        if self.piece.top_prob is not None:
            lines.append(f"the base model's best token here: {percent(self.piece.top_prob)}")
        if self.instead is not None:
            instead = one_line(self.instead.strip(" ") or self.instead) or "(no text)"
            lines.append(f"the {AUTHORS[self.piece.author.other]} instead: {instead}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Turn:
    """Words by one author for one reason; a handoff of which no text came has none."""

    author: Role
    reason: HandoffReason
    top_prob: float | None
    at_s: float
    words: tuple[Word, ...]


_BY_TOP_PROB = ("top_prob", "blend")  # the rules that compare gamma with the top-1 probability


def render_page(trace: Trace) -> str:
    """Return the page of a trace."""
    words = list(_words(trace))
    tokens = [token for word in words for token in _strip_tokens(word)]
    usage = _usage(trace)
    settings = trace.header.settings
    gamma = settings.get("gamma")
    shows_gamma = settings.get("rule") in _BY_TOP_PROB and isinstance(gamma, int | float) and 0 <= gamma <= 1
    style = page_file(_PACKAGE, "common.css") + page_file(_PACKAGE, "report.css")
    script = page_file(_PACKAGE, "report.js")
    return _template().render(
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        header=trace.header,
        words=words,
        turns=_turns(trace, words),
        ending=_ending(trace),
        usage=usage,
        end=trace.end,
        is_finished=isinstance(trace.end, FinishedRecord),
        has_failed=isinstance(trace.end, FailedRecord) or trace.end is None,
        strip=figures.strip_rows(tokens),
        gamma=gamma if shows_gamma else None,
        time=figures.time_rows(trace.calls, [piece.at_s for piece in trace.pieces], usage.total_s),
        n_scored=sum(token.prob is not None for token in tokens),
        used_causes=[cause for cause in Cause if usage.base.evaluated[cause] or usage.nudging.evaluated[cause]],
        figures=figures,
        roles=list(Role),
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shown=shown, cell=_cell, flat=flat, percent=percent, count=count, spoken=spoken)
    environment.filters.update(seconds=figures.seconds, line=one_line)
    environment.globals.update(authors=AUTHORS, reasons=REASONS, causes=CAUSES)
    return environment.from_string(page_file(_PACKAGE, "report.html"))


# --- text


def _cell(text: str) -> Markup:
    """Escape a token for a line of a table: newlines, tabs and blanks at its ends are marked."""
    core = text.strip(" ")
    n_lead = len(text) - len(text.lstrip(" ")) if core else len(text)
    n_tail = len(text) - n_lead - len(core)
    return Markup("{}{}{}").format(sign("·") * n_lead, flat(core), sign("·") * n_tail)


def _text(spelled: Spelled) -> str:
    """Return a text of bytes; what is no character is written as it is in the file."""
    return spelled.text if spelled.bytes is None else bytes.fromhex(spelled.bytes).decode("utf-8", "backslashreplace")


# --- the answer


def _words(trace: Trace) -> Iterator[Word]:
    before: PieceRecord | None = None
    for n, piece in enumerate(trace.pieces):
        core = piece.text.strip()
        lead = piece.text[: len(piece.text) - len(piece.text.lstrip())] if core else piece.text
        is_first = before is None or (before.author, before.reason) != (piece.author, piece.reason)
        yield Word(
            n,
            piece,
            lead,
            core,
            piece.text[len(lead) + len(core) :],
            _mean_prob(piece.tokens),
            is_first,
            tuple(_choices(token) for token in piece.tokens if not token.is_rest),
        )
        before = piece


def _mean_prob(tokens: Sequence[Token]) -> float | None:
    logs = [token.logprob for token in tokens if token.logprob is not None and not token.is_rest]
    return min(1.0, math.exp(sum(logs) / len(logs))) if logs else None


def _prob(logprob: float | None) -> float | None:
    return None if logprob is None else min(1.0, math.exp(logprob))


def _choices(token: Token) -> tuple[Choice, ...]:
    """Return the token and the others at its place, the most probable first."""
    found = [Choice(_text(other), _prob(other.logprob), False) for other in token.top]
    written = next((i for i, other in enumerate(token.top) if other.logprob == token.logprob), None)
    own = Choice(_text(token), _prob(token.logprob), True)
    if written is None:
        return (*found, own)
    return (*found[:written], own, *found[written + 1 :])


def _strip_tokens(word: Word) -> Iterator[figures.StripToken]:
    base_prob = word.piece.top_prob
    for token in word.piece.tokens:
        if token.is_rest:
            continue
        text = _text(token)
        label = one_line(text.strip(" ") or text.replace(" ", "·")).replace("\\n", "⏎")
        label = label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"
        yield figures.StripToken(word.n, word.piece.author, _prob(token.logprob), base_prob, label)
        base_prob = None


def _turns(trace: Trace, words: Sequence[Word]) -> list[Turn]:
    """Return the turns in order, with those handoffs at their places of which no text came."""
    turns: list[Turn] = []
    handoffs = list(trace.handoffs)
    start = 0
    for end in range(1, len(words) + 1):
        if end < len(words) and not words[end].is_first_of_turn:
            continue
        first = words[start].piece
        matches = (i for i, h in enumerate(handoffs) if (h.to, h.reason) == (first.author, first.reason))
        n_empty = next(matches, None)
        if start and n_empty is not None:
            turns += [Turn(h.to, h.reason, h.top_prob, h.at_s, ()) for h in handoffs[:n_empty]]
            del handoffs[: n_empty + 1]
        turns.append(Turn(first.author, first.reason, first.top_prob, first.at_s, tuple(words[start:end])))
        start = end
    turns += [Turn(h.to, h.reason, h.top_prob, h.at_s, ()) for h in handoffs]
    return turns


# --- totals


def _ending(trace: Trace) -> str:
    match trace.end:
        case FinishedRecord() as end:
            string = "" if end.stop_string is None else f": {one_line(end.stop_string)!r}"
            return f"{ENDINGS[end.detail]}{string}"
        case FailedRecord() as end:
            return one_line(end.message)
    return OPEN_END


def _usage(trace: Trace) -> Usage:
    """Return the totals, of what was recorded where the answer has no end."""
    if isinstance(trace.end, FinishedRecord):
        return trace.end.totals.usage()
    usage = Usage()
    for piece in trace.pieces:
        model = usage.of(piece.author)
        model.n_written += piece.n_tokens
        model.n_chars += len(piece.text)
    for call in trace.calls:
        model = usage.of(call.model)
        model.n_calls += 1
        model.native_s += max(0.0, call.end_s - call.start_s)
        for cause, n_tokens in call.evaluated.items():
            model.evaluated[cause] += n_tokens
    usage.n_handoffs = len(trace.handoffs)
    times = [piece.at_s for piece in trace.pieces] + [handoff.at_s for handoff in trace.handoffs]
    times += [call.end_s for call in trace.calls]
    usage.first_piece_s = trace.pieces[0].at_s if trace.pieces else None
    usage.total_s = max(times, default=0.0)
    return usage
