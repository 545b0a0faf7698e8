"""Progress bars of fetching, and the lines said between them.

Owns the look. Never fetches. Where nobody watches there are no bars, only the lines.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from edge_nudge.cli import streams
from edge_nudge.cli.render import is_terminal, wants_color
from edge_nudge.core.visible import one_line, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """The Progress of catalog/progress.py on a terminal; use it in a with statement."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        if self._bars is None:
            streams.tell(line)
            return
        from rich.text import Text

        self._bars.console.print(Text(visible(line)), soft_wrap=True)

    def start(self, what: str, n_bytes: int | None, n_done: int = 0) -> None:
        self.end()
        if not is_terminal(sys.stderr):
            return
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True, no_color=not wants_color("auto", sys.stderr), highlight=False),
            expand=True,
        )
        name = one_line(what)
        name = name if len(name) <= 44 else f"{name[:21]}…{name[-22:]}"
        self._task = self._bars.add_task(name, total=n_bytes, completed=n_done)
        self._bars.start()

    def advance(self, n_bytes: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n_bytes)

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
