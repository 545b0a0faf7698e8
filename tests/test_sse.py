"""Server-sent events, as a browser reads them (the rules of the HTML standard, section 9.2)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge.client.sse import EventReader


def read(data: bytes, *cuts: int) -> list[str]:
    reader = EventReader()
    places = [0, *sorted(cuts), len(data)]
    return [event for start, end in pairwise(places) for event in reader.feed(data[start:end])]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\ndata:b\n\n", ["a", "b"]),
        (b"data:  a\n\n", [" a"]),  # one blank belongs to the format
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", ["a", "b", "c"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data\n\n", [""]),
        (b"data: {\ndata\ndata: }\n\n", ["{\n\n}"]),
        (b": ping\n\n: ping\ndata: a\n: ping\n\n", ["a"]),
        (b"event: x\nid: 7\nretry: 10\ndata: a\ndatum: b\n\n", ["a"]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),  # a mark elsewhere is part of the field's name
        (b"\n\n\ndata: a\n\n\n\n", ["a"]),
        (b"data: a\n\ndata: cut off\n", ["a"]),
        (b"data: a", []),
        (b"", []),
        ("data: \u00e9\u2028\x85\x0b\n\n".encode(), ["\u00e9\u2028\x85\x0b"]),  # no line ends here
        (b"data: \xff\n\n", ["\ufffd"]),
    ],
)
def test_events(data: bytes, events: list[str]) -> None:
    assert read(data) == events
    assert read(data, *range(len(data))) == events  # byte by byte


FIELDS = st.sampled_from([b"data: x", b"data:", b"data", b": ping", b"", b"", b"id: 1", "data: \u65e5".encode()])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(FIELDS, ENDS)), st.data())
def test_any_cut_gives_the_same_events(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    joined = b"".join(line + end for line, end in lines)
    cuts = data.draw(st.lists(st.integers(0, len(joined)), max_size=8))
    assert read(joined, *cuts) == read(joined)
