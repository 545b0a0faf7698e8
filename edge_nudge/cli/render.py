"""What a terminal shows: the nudging model's words in colour, legend and totals.

Owns the look of an answer. Never decides what an answer is, and never imports rich before colour is wanted.

1. Streamed text is exact: no wrapping, no markup, no highlighting; without colour and terminal it is the bytes
   of the answer and one newline.
2. On a terminal, and wherever colour was forced, a character that could move the cursor, reorder or hide text is
   shown as an escape; core/visible.py says which ones those are.
3. A colour code is written together with its text and its reset, so an interrupted stream leaves no colour behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TextIO

from edge_nudge.core.events import FinishDetail, Finished, Piece, Role
from edge_nudge.core.visible import one_line, visible

_SEPARATOR = " · "

# Contrast on black and on white: color(133) 5.1 and 4.1. Bold is a second sign for whoever sees no difference.
_NUDGING_256, _NUDGING_16 = "bold color(133)", "bold magenta"


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
    style = Style.parse(_NUDGING_16 if system is ColorSystem.STANDARD else _NUDGING_256)
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
        self.write(piece.text, piece.author)

    def write(self, text: str, author: Role) -> None:
        """Write a part of the answer by one author."""
        text = visible(text) if self._is_shown else text
        self._write(self._painter(text, author))
        self._last = text[-1:] or self._last

    def end(self, *, is_interrupted: bool = False) -> None:
        """Write the newline behind the answer: on a terminal only where the line is not ended yet.

        A terminal that was interrupted shows `^C` at the cursor, which ends no line.
        """
        if not self._is_terminal or is_interrupted or self._last not in ("", "\n"):
            self._write("\n")


def legend(base: str, nudging: str, painter: Painter) -> str:
    """Return the line that says which model has which colour."""
    text = f"nudging model {one_line(nudging)}"
    return f"base model {one_line(base)}{_SEPARATOR}{painter(text, Role.NUDGING)}"


def totals(finished: Finished, *, is_drawn: bool, width: int) -> str:
    """Return the totals of an answer; `is_drawn` adds the seed, lines break between parts at `width` characters."""
    usage, rate = finished.usage, finished.usage.tokens_per_s
    parts = [
        f"{usage.base.n_written} base + {usage.nudging.n_written} nudging tokens",
        f"nudging ratio {usage.ratio_tokens:.1%} ({usage.ratio_chars:.1%} of characters)",
        f"{usage.n_handoffs} handoff{'' if usage.n_handoffs == 1 else 's'}",
        *([f"{rate:.1f} tokens/s"] if rate is not None else []),
        *([f"first word {usage.first_piece_s:.2f} s"] if usage.first_piece_s is not None else []),
        *([f"seed {finished.seed}"] if is_drawn else []),
        _ending(finished),
    ]
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(_SEPARATOR) + len(part) <= width:
            lines[-1] += _SEPARATOR + part
        else:
            lines.append(part)
    return "\n".join(lines)


def _ending(finished: Finished) -> str:
    if finished.detail is FinishDetail.CANCELLED:
        return "cancelled"
    string = "" if finished.stop_string is None else f" {finished.stop_string!r}"
    return f"{finished.reason.value}: {finished.detail.value.replace('_', ' ')}{one_line(string)}"
