"""The terminal between two prompts: keys typed into an answer are not echoed, and a late Ctrl-C ends nothing.

Owns the terminal's echo, and Ctrl-C while neither a prompt nor an answer waits for it. Never reads a key: what was
typed waits for the next prompt.
"""

from __future__ import annotations

import signal
import sys
import threading
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


@contextmanager
def late_ctrl_c_ignored() -> Iterator[None]:
    """Let a Ctrl-C that comes just behind an answer do nothing; prompts and answers bring handlers of their own."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    before = signal.signal(signal.SIGINT, lambda signum, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
