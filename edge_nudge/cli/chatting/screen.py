"""The scrollback of a chat: answers as they come, notes and errors, all on the terminal.

Owns what is written between two prompts. Never reads a key, and never decides what is kept.

1. What a model or a file says is shown with its control characters made visible.
2. What the user typed is shown again by /show and /load only.
"""

from __future__ import annotations

import shutil
import sys
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

    def say(self, line: str) -> None:
        streams.write_out(visible(line) + "\n")

    def show_turn(self, turn: Turn) -> None:
        self.say(PROMPT + turn.user)
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
