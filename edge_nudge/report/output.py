"""Files that a user names for output: they appear whole under their name.

Owns where the bytes are until then. Never decides what is written.

1. Text goes to NAME.PID.part in the same folder, at once and unbuffered: whatever ends the process, a file that was
   there before is whole, and what was written so far can be read under the name of the part.
2. What could be written in part only (a full disk) is taken back to the text before it.
3. `keep` gives the part its name in one step; `discard` leaves the former file as it was.
4. A file that is there already is replaced only if it is of the same kind, told by how it begins: a slip must not cost
   somebody a model.
5. A link stays a link. What is no regular file (a pipe, /dev/null) is written directly, never replaced.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from edge_nudge.report.records import TraceError


@dataclass(frozen=True, slots=True)
class Kind:
    """What an output is, and how every file of its kind begins."""

    name: str
    start: bytes


class Output:
    """One output file; nothing is there before the first write. Raises TraceError where it cannot be written."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path = path
        self._n_bytes = 0
        self._file: FileIO | None = None
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._is_direct = path.exists() and not path.is_file()
            self._target = path if self._is_direct else Path(os.path.realpath(path))
            name = self._target.name
            self._part = self._target if self._is_direct else self._target.with_name(f"{name}.{os.getpid()}.part")
            if not self._is_direct:
                self._part.touch()
                self._part.unlink()
            start = self._start(len(kind.start))
        except OSError as error:
            raise self._cannot(error) from None
        if start not in (b"", kind.start):
            raise TraceError(f"{path} is there already and is no {kind.name}: name another file")

    def write(self, text: str) -> None:
        """Write all of the text at once."""
        data = memoryview(text.encode("utf-8"))
        n_bytes = self._n_bytes + len(data)
        try:
            file = self._file = self._file or FileIO(self._part, "w")
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            if self._file is not None and not self._is_direct:
                with suppress(OSError):
                    self._file.truncate(self._n_bytes)
            raise self._cannot(error) from None
        self._n_bytes = n_bytes

    def keep(self) -> None:
        """Let the file appear under its name, with what was written so far; nothing follows."""
        self.write("")
        assert self._file is not None, "write opens it"
        try:
            if not self._is_direct:
                os.fsync(self._file.fileno())
            self._file.close()
            if not self._is_direct:
                os.replace(self._part, self._target)
        except OSError as error:
            raise self._cannot(error) from None

    def discard(self) -> None:
        """Leave no file behind."""
        if self._file is not None:
            self._file.close()
            if not self._is_direct:
                self._part.unlink(missing_ok=True)

    def _start(self, n_bytes: int) -> bytes:
        """Return how the file begins that is there already; nothing where there is none."""
        if self._is_direct or not self._target.exists():
            return b""
        with self._target.open("rb") as file:
            return file.read(n_bytes)

    def _cannot(self, error: OSError) -> TraceError:
        return TraceError(f"{self.path} cannot be written: {error.strerror or error}")


def write_output(path: Path, text: str, kind: Kind) -> None:
    """Write a file, whole or not at all. Raises TraceError."""
    output = Output(path, kind)
    try:
        output.write(text)
    except BaseException:
        output.discard()
        raise
    output.keep()
