"""Tables on standard output: aligned, wrapped on a terminal, one line for each row in a pipe.

Owns the look. Every cell is shown with control characters written out.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence

from edge_nudge.cli.render import is_terminal
from edge_nudge.core.visible import one_line

_ENDLESS = 4000  # columns: where no one reads, no line is broken


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Return a table, ending with a newline; the columns named in `right` are numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        is_number = title in right
        grid.add_column(Text(title), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else _ENDLESS
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(grid)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def facts(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Return lines of a name and a value, those without a value left out, wrapped under their value."""
    import textwrap

    shown = [(name, one_line(value)) for name, value in pairs if value]
    indent = max((len(name) for name, _ in shown), default=0) + 2
    columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else _ENDLESS
    lines = []
    for name, value in shown:
        wrapped = textwrap.wrap(value, max(columns - indent, 24), break_on_hyphens=False) or [""]
        lines += [f"{name:<{indent}}{wrapped[0]}", *(f"{'':<{indent}}{rest}" for rest in wrapped[1:])]
    return "".join(f"{line.rstrip()}\n" for line in lines)
