"""The package's loggers on stderr, for -v.

Owns one handler of the logger `edge_nudge`. Never touches the root logger.
"""

from __future__ import annotations

import logging
import sys

from edge_nudge.core.visible import visible


class _VisibleFormatter(logging.Formatter):
    """Keeps lines and tabs, for tracebacks; a model file's own words cannot act on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def show_log(verbosity: int) -> None:
    """Show log messages: 0 none, 1 those of this program and the warnings of llama.cpp, 2 everything."""
    logger, native = logging.getLogger("edge_nudge"), logging.getLogger("edge_nudge.llama")
    for handler in [h for h in logger.handlers if isinstance(h.formatter, _VisibleFormatter)]:
        logger.removeHandler(handler)
    logger.setLevel((logging.NOTSET, logging.INFO, logging.DEBUG)[min(verbosity, 2)])
    native.setLevel(logging.WARNING if verbosity == 1 else logging.NOTSET)
    if verbosity and sys.stderr is not None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_VisibleFormatter("%(name)s: %(message)s"))
        logger.addHandler(handler)
