"""The terminal while an answer comes: keys typed then are not echoed into the answer, and Ctrl-C still is a signal.

Owns the terminal's echo. Never reads a key: what was typed waits for the next prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def no_echo() -> Iterator[Callable[[], None]]:
    """Switch the echo off where a terminal can; yield what switches it on again, for a process that ends at once."""
    if sys.platform == "win32":  # its console echoes only what is being read
        yield lambda: None
        return
    import termios

    handle = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(handle)
    except termios.error:  # no terminal any more
        yield lambda: None
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO

    def restore() -> None:
        termios.tcsetattr(handle, termios.TCSANOW, before)

    termios.tcsetattr(handle, termios.TCSANOW, quiet)
    try:
        yield restore
    finally:
        restore()
