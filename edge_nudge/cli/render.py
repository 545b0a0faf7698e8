"""What a terminal shows: visible control characters, the nudging model's words in colour, legend and totals.

Owns the look of an answer. Never decides what an answer is, and never imports rich before colour is wanted.

1. Streamed text is exact: no wrapping, no markup, no highlighting; without colour and terminal it is the bytes
   of the answer and one newline.
2. On a terminal, and wherever colour was forced, a character that could move the cursor, reorder or hide text is
   shown as an escape (`\\x1b`, `\\u202e`). Joiners, marks and variation selectors stay: scripts and emoji need them.
3. A colour code is written together with its text and its reset, so an interrupted stream leaves no colour behind.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from edge_nudge.core.events import FinishDetail, Finished, Piece, Role, Usage

if TYPE_CHECKING:
    from rich.style import Style

# C0 but tab and newline, DEL, C1; line and paragraph separators; bidi embeddings, overrides and isolates (the
# "Trojan source" set); zero-width and invisible operators that no script needs; interlinear annotation.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")
_SEPARATOR = " · "

# Contrast on black and on white: color(133) 5.1 and 4.1. Bold is a second sign for whoever sees no difference.
_NUDGING_256, _NUDGING_16 = "bold color(133)", "bold magenta"


def visible(text: str) -> str:
    """Write what a terminal would act on, reorder or hide as escapes; newlines and tabs stay."""
    return _HIDDEN.sub(lambda match: _escape(match.group()), text)


def one_line(text: str) -> str:
    """Write a text as `visible` does, newlines and tabs as well: for names and messages."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def wants_color(choice: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether to colour: `auto` means a terminal that is not dumb, without NO_COLOR (no-color.org)."""
    if choice != "auto":
        return choice == "always"
    return is_terminal(stream) and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a person reads this stream."""
    return stream is not None and not stream.closed and stream.isatty()


class Painter:
    """Writes text in the colour of its author, or plainly where `is_on` is False."""

    def __init__(self, stream: TextIO, is_on: bool) -> None:
        self.is_on = is_on
        self._paint = _rich_paint(stream) if is_on else str

    def __call__(self, text: str, author: Role) -> str:
        return self._paint(text) if author is Role.NUDGING and text else text


def _rich_paint(stream: TextIO) -> Callable[[str], str]:
    """Return what colours a text on this terminal; rich knows how many colours it has."""
    from rich.color import ColorSystem
    from rich.console import Console
    from rich.style import Style

    found = Console(file=stream, force_terminal=True, no_color=False).color_system
    system = {"256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}.get(found or "", ColorSystem.STANDARD)
    style: Style = Style.parse(_NUDGING_16 if system is ColorSystem.STANDARD else _NUDGING_256)
    return lambda text: style.render(text, color_system=system)


class AnswerView:
    """The stream of an answer as text; `write` puts a string on its way at once."""

    def __init__(self, write: Callable[[str], None], painter: Painter, *, is_terminal: bool) -> None:
        self._write, self._painter = write, painter
        self._is_shown = is_terminal or painter.is_on  # to a person, sooner or later
        self._is_terminal = is_terminal
        self._last = ""

    def show(self, piece: Piece) -> None:
        """Write one piece."""
        text = visible(piece.text) if self._is_shown else piece.text
        self._write(self._painter(text, piece.author))
        self._last = text[-1:] or self._last

    def end(self) -> None:
        """Write the newline behind the answer: on a terminal only where the line is not ended yet."""
        if not self._is_terminal or self._last not in ("", "\n"):
            self._write("\n")
        self._last = "\n" if self._is_terminal else self._last


def legend(base: str, nudging: str, painter: Painter) -> str:
    """Return the line that says which model has which colour."""
    text = f"nudging model {one_line(nudging)}"
    return f"base model {one_line(base)}{_SEPARATOR}{painter(text, Role.NUDGING)}"


@dataclass(frozen=True, slots=True)
class Speed:
    """The times of an answer in seconds; `tokens_per_s` counts both models, from request to end."""

    first_piece_s: float | None
    total_s: float
    tokens_per_s: float | None


def speed(usage: Usage) -> Speed:
    rate = usage.n_completion / usage.total_s if usage.total_s > 0 else None
    return Speed(usage.first_piece_s, usage.total_s, rate)


def totals(finished: Finished, *, is_drawn: bool, width: int) -> str:
    """Return the totals of an answer; `is_drawn` adds the seed, `width` (characters) breaks between the parts."""
    usage, times = finished.usage, speed(finished.usage)
    parts = [
        f"{_counted(usage.base.n_written, 'base token')}",
        f"{_counted(usage.nudging.n_written, 'nudging token')} "
        f"({usage.ratio_tokens:.1%} of tokens, {usage.ratio_chars:.1%} of characters)",
        _counted(usage.n_handoffs, "handoff"),
        *([f"{times.tokens_per_s:.1f} tokens/s"] if times.tokens_per_s is not None else []),
        *([f"first word {times.first_piece_s:.2f} s"] if times.first_piece_s is not None else []),
        *([f"seed {finished.seed}"] if is_drawn else []),
        _ending(finished),
    ]
    # Parts are never broken: their blanks are hidden from the wrapping.
    line = _SEPARATOR.join(part.replace(" ", "\0") for part in parts)
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _ending(finished: Finished) -> str:
    if finished.detail is FinishDetail.CANCELLED:
        return "cancelled"
    string = "" if finished.stop_string is None else f" {finished.stop_string!r}"
    return f"{finished.reason.value}: {finished.detail.value.replace('_', ' ')}{one_line(string)}"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
