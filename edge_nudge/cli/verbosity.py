"""The package's loggers on stderr, for -v.

Owns one handler of the logger `edge_nudge`. Never touches the root logger.
"""

from __future__ import annotations

import logging
import sys

from edge_nudge.cli.render import visible


class _VisibleFormatter(logging.Formatter):
    """Keeps lines and tabs, for tracebacks; a model file's own words cannot act on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def show_log(verbosity: int, *, shows_errors: bool = False) -> logging.Handler | None:
    """Show log messages: 0 none (or errors), 1 those of this program and the warnings of llama.cpp, 2 everything.

    Returns what shows them, if anything does.
    """
    logger, native = logging.getLogger("edge_nudge"), logging.getLogger("edge_nudge.llama")
    for handler in [h for h in logger.handlers if isinstance(h.formatter, _VisibleFormatter)]:
        logger.removeHandler(handler)
    logger.setLevel((logging.NOTSET, logging.INFO, logging.DEBUG)[min(verbosity, 2)])
    native.setLevel(logging.WARNING if verbosity == 1 else logging.NOTSET)
    if sys.stderr is None or not (verbosity or shows_errors):
        return None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(name)s: %(message)s"))
    if not verbosity:
        handler.setLevel(logging.ERROR)
    logger.addHandler(handler)
    return handler
