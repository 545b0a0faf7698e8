"""Server-sent events: bytes as they come from a connection -> the data of each event.

Owns the lines and fields of the format. Never looks into the data and never touches a connection.

1. Any cut of the bytes gives the same events.
2. A line ends with LF, CR LF or CR; one byte order mark at the start is no data.
3. Comments and fields other than `data` say nothing to us; several `data` lines of one event are joined by LF.
4. An event is complete with the empty line behind it; what comes after the last one is none.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class EventReader:
    """Takes bytes, gives the data of the events that they complete."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that has not ended yet
        self._data: list[bytes] = []  # of the event that has not ended yet
        self._is_first_line = True
        self._is_after_cr = False  # a LF that comes now belongs to the line before

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes. A broken character becomes U+FFFD, as the format has it."""
        if self._is_after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._is_after_cr = False
        if not data:
            return []
        self._is_after_cr = data.endswith(b"\r")
        events = []
        for line in data.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            self._parts.append(text)
            if len(text) < len(line) and (event := self._end_line()) is not None:
                events.append(event)
        return events

    def _end_line(self) -> str | None:
        line = b"".join(self._parts)
        self._parts.clear()
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        if not self._data:
            return None
        event = b"\n".join(self._data).decode("utf-8", "replace")
        self._data.clear()
        return event
