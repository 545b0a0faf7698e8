"""`edge-nudge run` as a child of a test: its output read until something has come, and its end by a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import IO

from cli_fakes import LONG, text_of

LONG_TEXT = text_of(LONG).lstrip()
_TIMEOUT_S = 60.0


def read_until(pipe: IO[bytes] | None, text: bytes) -> bytes:
    """Return what comes until `text` has come."""
    assert pipe is not None
    seen = b""
    while text not in seen:
        data = os.read(pipe.fileno(), 4096)
        assert data, f"it ended: {seen!r}"
        seen += data
    return seen


def check_cancelled(child: subprocess.Popen[bytes], signum: signal.Signals, code: int) -> None:
    """Send a signal in the middle of the long answer: its text so far stays, with the totals and the exit code."""
    seen = read_until(child.stdout, b"word3")
    child.send_signal(signum)
    out, err = child.communicate(timeout=_TIMEOUT_S)
    text = (seen + out).decode()
    assert child.returncode == code
    assert text.endswith("\n")
    assert LONG_TEXT.startswith(text.removesuffix("\n"))
    assert len(text) < len(LONG_TEXT)
    assert re.fullmatch(r"\d+ base \+ \d+ nudging tokens .* · cancelled\n", err.decode())
