"""Standard input and output as bytes and lines: decoded once, written exactly, closed pipes noticed.

Owns the three standard streams of the process. Never formats an answer and never exits.

1. Input is read once and decoded as strict UTF-8; nothing is stripped or rewritten but one byte order mark at the
   very start, which is a signature of the encoding and no text.
2. Output that is not a terminal is UTF-8 with plain newlines on every system, whatever the locale says.
3. A stream that failed is pointed at the null device, so that the interpreter's last flush cannot fail again.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

import click

from edge_nudge.cli.render import is_terminal
from edge_nudge.core.visible import visible
from edge_nudge.errors import EdgeNudgeError, InputError

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_CLOSED = (errno.EPIPE, errno.EINVAL) if os.name == "nt" else (errno.EPIPE,)


class ClosedPipeError(Exception):
    """Whoever read our output has gone."""


class OutputError(EdgeNudgeError):
    """Output cannot be written for another reason: a full disk, a closed descriptor."""


def prepare() -> None:
    """Make the standard streams ready for any text."""
    if sys.platform == "win32":  # click brings colorama there
        from colorama import just_fix_windows_console

        just_fix_windows_console()
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        if is_terminal(sys.stdout):
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="strict", newline="\n")


def write_out(text: str) -> None:
    """Write to stdout at once. Raises ClosedPipeError and OutputError."""
    if sys.stdout is None:
        raise OutputError("standard output is closed: there is nowhere to write the answer")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        if error.errno in _CLOSED:
            raise ClosedPipeError from None
        raise OutputError(f"standard output cannot be written: {error.strerror or error}") from None


def tell(line: str) -> None:
    """Write a line to stderr, control characters made visible; whoever closed stderr wants no lines."""
    tell_as_is(visible(line))


def tell_as_is(line: str) -> None:
    """Write a line to stderr that may hold colours."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO | None) -> None:
    """Point a failed stream at the null device."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        finally:
            os.close(null)
    except (OSError, ValueError, AttributeError):  # no descriptor behind it: nothing will be flushed there
        return


def settle() -> None:
    """Flush stdout for the last time. Raises ClosedPipeError and OutputError."""
    if sys.stdout is not None and not sys.stdout.closed:
        write_out("")


def read_prompt(argument: str | None) -> str:
    """Return the prompt: the argument, or stdin for "-" and where there is no argument.

    Raises InputError for bytes that are not UTF-8, click.UsageError where there is no prompt at all.
    """
    if argument not in (None, "-"):
        assert argument is not None
        return argument
    if argument is None and (sys.stdin is None or is_terminal(sys.stdin)):
        raise click.UsageError("there is no prompt: give it as an argument, or pipe it in")
    if sys.stdin is None:
        raise InputError("standard input is closed: there is no prompt to read")
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror or error}") from None
    if argument is None and not data:
        raise click.UsageError('there is no prompt: standard input is empty (an empty prompt on purpose is "")')
    return decode(data)


def decode(data: bytes) -> str:
    """Decode what was piped in. Raises InputError naming the first wrong byte, counted from 0."""
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (len(_BOM) if data.startswith(_BOM) else 0)
        hint = "it looks like UTF-16" if data.startswith(_UTF16_BOMS) else "convert it to UTF-8 first"
        raise InputError(f"standard input is not UTF-8: byte 0x{data[at]:02x} at position {at}; {hint}") from None
