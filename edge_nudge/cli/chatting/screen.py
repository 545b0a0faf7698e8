"""The scrollback of a chat: answers as they come, notes and errors, all on the terminal.

Owns what is written between two prompts. Never reads a key, and never decides what is kept.

1. What a model or a file says is shown with its control characters made visible.
2. What the user typed is shown again by /show and /load only.
3. Notes break between words. An answer is not broken here: what is copied from the terminal is what was written.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from edge_nudge.cli import streams
from edge_nudge.cli.chatting.conversation import Turn
from edge_nudge.cli.render import AnswerView, Painter, legend, wants_color
from edge_nudge.core.visible import visible

PROMPT = "> "


class TerminalScreen:
    """Writes to the terminal; `is_painted` says at any time whether the nudging model's words are coloured."""

    def __init__(self, values: Mapping[str, Any], is_painted: Callable[[], bool]) -> None:
        self.has_color = wants_color(values["color"], sys.stdout)
        self._is_painted = is_painted

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns

    def say(self, text: str, indent: int = 0) -> None:
        """Write a note; what has no room in a line goes on in the next one, behind `indent` blanks."""
        for line in visible(text).split("\n"):
            parts = textwrap.wrap(
                line, max(self.width, 2 * indent), subsequent_indent=" " * indent, expand_tabs=False,
                replace_whitespace=False, break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            streams.write_out("\n".join(parts) + "\n")

    def show_turn(self, turn: Turn) -> None:
        streams.write_out(visible(PROMPT + turn.user) + "\n")
        view = self.view()
        for span in turn.spans:
            view.write(span.text, span.author)
        view.end()

    def legend(self, models: Mapping[str, str]) -> None:
        streams.write_out(legend(models["base"], models["nudging"], self._painter()) + "\n")

    def view(self) -> AnswerView:
        """Return where an answer is written."""
        return AnswerView(streams.write_out, self._painter(), is_terminal=True)

    def _painter(self) -> Painter:
        return Painter(sys.stdout, self.has_color and self._is_painted())
