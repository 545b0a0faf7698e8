"""Cut, crafted and random headers: a sentence in less than a second and 50 MB, never another exception."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import (
    ARRAY,
    CHATML,
    F32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    packed_string,
    pair,
    put,
    raw_header,
    refusal,
    strings,
    tensor,
    text_model,
    write_tiny,
)

from edge_nudge.engine.gguf import check_model_file, read_model_file, why_unusable
from edge_nudge.engine.gguf_scan import HeaderError, scan_header
from edge_nudge.errors import ModelFileError

# --- cut off


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    raw = raw_header(text_model(tokenizer__chat_template=(STRING, CHATML)))
    n_header = len(raw) - 32
    path = put(tmp_path, raw)
    assert check_model_file(path, role="base")
    for n in reversed(range(len(raw))):
        os.truncate(path, n)
        message = refusal(path)
        if n >= n_header:
            assert f"is {len(raw) - n} bytes short: {n} of {len(raw)} bytes are there" in message
        elif n >= 4:
            assert "ends inside its header" in message or "bytes short" in message


def test_nine_tenths_of_a_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 9 // 10])
    n_short = len(raw) - len(raw) * 9 // 10
    assert f'nudging model file "{path}" is {n_short} bytes short: {len(raw) * 9 // 10} of {len(raw)} ' in refusal(
        path, "nudging"
    )


def test_a_file_that_shrinks_while_it_is_read() -> None:
    raw = raw_header()
    with pytest.raises(HeaderError, match="became shorter"):
        scan_header(io.BytesIO(raw[:-200]), len(raw))


# --- crafted

_DEEP = struct.pack("<IQIQI", ARRAY, 1, ARRAY, 1, U8)
_CRAFTED: dict[str, tuple[bytes, str]] = {
    "keys": (raw_header(n_pairs=2**63 - 1), "announces 9223372036854775807 metadata keys, at most 4096 are read"),
    "negative keys": (raw_header(n_pairs=-1), "announces -1 metadata keys"),
    "more keys than fit": (raw_header(n_pairs=4000), "announces 4000 metadata keys, there is room for"),
    "tensors": (raw_header(n_tensors=2**62), "announces 4611686018427387904 tensors, at most 100000 are read"),
    "more tensors than fit": (raw_header(n_tensors=99_999), "announces 99999 tensors, there is room for"),
    "long string": (raw_header([pair("k", STRING, packed_string(b"x", 2**40))]), "ends inside its header"),
    "longest string": (raw_header([pair("k", STRING, packed_string(b"x", 2**64 - 1))]), "ends inside its header"),
    "long key": (raw_header([packed_string(b"x", 2**40)], n_pairs=1), "a metadata key has 1099511627776 bytes"),
    "empty key": (raw_header([pair("", U8, 1)]), "a metadata key has 0 bytes, 1 to 65535 are possible"),
    "key bytes": (raw_header([pair(b"\xff\xfe", U8, 1)]), "metadata key 1 is not UTF-8"),
    "key twice": (raw_header([*text_model(), pair("a", U8, 1), pair("a", U8, 1)]), 'key "a" is there twice'),
    "key and array twice": (
        raw_header([pair("a", ARRAY, strings([])), pair("a", U8, 1)]),
        'key "a" is there twice',
    ),
    "value type": (raw_header([pair("k\n", 13, b"")]), 'metadata "k\\n" has the unknown type 13'),
    "array type": (raw_header([pair("k", ARRAY, struct.pack("<IQ", 99, 1))]), "is an array of the unknown type 99"),
    "nested array": (raw_header([pair("k", ARRAY, _DEEP)]), "is an array inside an array"),
    "long array": (raw_header([pair("k", ARRAY, struct.pack("<IQ", U64, 2**61))]), "ends inside its header"),
    "many strings": (raw_header([pair("k", ARRAY, strings([], 2**63))]), "announces 9223372036854775808 strings"),
    "missing strings": (raw_header([pair("k", ARRAY, strings([], 1000))]), "ends inside its header"),
    "string in array": (
        raw_header([pair("k", ARRAY, struct.pack("<IQQ", STRING, 2, 2**64 - 8))]),
        "ends inside its header",
    ),
    "alignment 0": (raw_header(text_model(general__alignment=(U32, 0))), "general.alignment is 0, a power of two"),
    "alignment 24": (raw_header(text_model(general__alignment=(U32, 24))), "general.alignment is 24"),
    "alignment 2**30": (raw_header(text_model(general__alignment=(U32, 2**30))), "general.alignment is 1073741824"),
    "alignment type": (
        raw_header(text_model(general__alignment=(U64, 32))),
        "general.alignment is not a 32-bit number",
    ),
    "tensor name": (raw_header(None, [tensor("x" * 64, [8])]), "a tensor name has 64 bytes, at most 63 are possible"),
    "tensor twice": (raw_header(None, [tensor("t", [8]), tensor("t", [8], 32)]), 'tensor "t" is there twice'),
    "dimensions": (raw_header(None, [tensor("t", [1] * 99)]), "has 99 dimensions, at most 4 are possible"),
    "many dimensions": (raw_header(None, [tensor("t", [8], n_dims=2**32 - 1)]), "has 4294967295 dimensions"),
    "dimension 0": (raw_header(None, [tensor("t", [8, 0])]), "has a dimension of 0"),
    "negative dimension": (raw_header(None, [tensor("t", [8, -5])]), "has a dimension of -5"),
    "too many values": (raw_header(None, [tensor("t", [2**40, 2**40, 2**40])]), "more than any machine can address"),
    "too many bytes": (raw_header(None, [tensor("t", [2**62])]), "more than any machine can address"),
    "values that wrap": (raw_header(None, [tensor("t", [2**32, 2**32])]), "more than any machine can address"),
    "tensor type": (raw_header(None, [tensor("t", [8], kind=200)]), 'uses the tensor type 200 in "t"'),
    "removed type": (raw_header(None, [tensor("t", [8], kind=4)]), "uses the tensor type 4"),
    "offset past the end": (raw_header(None, [tensor("t", [8], 2**40)]), "at byte 1099511627776 of the weights"),
    "overlap": (raw_header(None, [tensor("a", [8]), tensor("b", [8])]), 'tensor "b" is at byte 0'),
    "gap": (raw_header(None, [tensor("a", [8]), tensor("b", [8], 64)]), "must be at byte 32"),
    "far too large": (raw_header(None, [tensor("t", [2**40])]), "bytes short"),
}


@pytest.mark.parametrize("name", _CRAFTED)
def test_crafted_headers_are_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    raw, said = _CRAFTED[name]
    path = put(tmp_path, raw)
    tracemalloc.start()
    began = time.process_time()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in message
    assert time.process_time() - began < 1
    assert peak < 5_000_000


def _many_tensors() -> bytes:
    name, shape = struct.pack("<Q", 6), struct.pack("<IQI", 1, 8, 0)
    entries = b"".join(name + b"%06d" % i + shape + struct.pack("<Q", 32 * i) for i in range(100_000))
    return raw_header(None, [entries], n_tensors=100_000, weights=b"")


_LARGEST: dict[str, Callable[[], bytes]] = {
    "strings": lambda: raw_header([pair("k", ARRAY, strings([], 3_000_000))], []),
    "keys": lambda: raw_header([pair(f"k{i}", STRING, "x" * 4100) for i in range(4096)], []),
    "tensors": _many_tensors,
}


# VmHWM and not getrusage: that one begins with the peak of the process that started this one.
_MEASURE = """
import sys, time
from pathlib import Path
from edge_nudge.engine.gguf import read_model_file
from edge_nudge.errors import ModelFileError
def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
before = peak()
for name in sys.argv[1:]:
    began = time.process_time()
    try:
        read_model_file(Path(name))
    except ModelFileError:
        pass
    print(time.process_time() - began)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.thorough
def test_the_largest_headers_are_bounded(tmp_path: Path) -> None:
    paths = [put(tmp_path, make(), name) for name, make in _LARGEST.items()]
    os.truncate(paths[0], 24_000_200)  # sparse: the strings are empty
    done = subprocess.run([sys.executable, "-c", _MEASURE, *paths], capture_output=True, text=True, check=True)
    *seconds, megabytes = map(float, done.stdout.split())
    assert len(seconds) == 3
    assert max(seconds) < 1
    assert megabytes < 50


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, raw_header([pair("k", ARRAY, struct.pack("<IQ", U8, 300 << 20))], weights=b""))
    os.truncate(path, 400 << 20)  # sparse
    assert "its header is longer than 268435456 bytes" in refusal(path)


_FUZZED = raw_header(
    text_model(
        general__alignment=(U32, 32), general__name=(STRING, "tiny"), split__count=(U16, 1),
        tokenizer__ggml__scores=(ARRAY, struct.pack("<IQ3f", F32, 3, 1, 2, 3)),
    ),
    [tensor("a", [4, 2]), tensor("b", [32], 32, kind=8)],
    weights=bytes(32 + 34),
)  # fmt: skip
_EDGES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def fuzzed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.touch()
    return path


def _said(path: Path, raw: bytes) -> str | None:
    """Return what is said of the bytes, None where they are a model that can be used."""
    with path.open("r+b") as file:  # truncating a file to write it again costs 4 ms on ext4
        file.write(raw)
        file.truncate()
    try:
        return why_unusable(read_model_file(path))
    except ModelFileError as error:
        return str(error)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(4, len(_FUZZED) - 1), st.integers(0, 255)), max_size=6),
    st.lists(
        st.tuples(st.integers(4, len(_FUZZED) - 8), st.sampled_from(_EDGES), st.sampled_from([1, 4, 8])), max_size=2
    ),
    st.integers(0, len(_FUZZED)) | st.just(len(_FUZZED)),
)
def test_mutated_files_give_a_header_or_a_refusal(
    fuzzed_path: Path, changes: list[tuple[int, int]], edges: list[tuple[int, int, int]], n: int
) -> None:
    raw = bytearray(_FUZZED)
    for at, value in changes:
        raw[at] = value
    for at, value, width in edges:
        raw[at : at + width] = struct.pack("<Q", value)[:width]
    assert (_said(fuzzed_path, bytes(raw[:n])) or "").isprintable()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"GGUF", b"GGUF\3\0\0\0", _FUZZED[:24], _FUZZED[:60]]))
def test_any_bytes_give_a_header_or_a_refusal(fuzzed_path: Path, raw: bytes, start: bytes) -> None:
    assert (_said(fuzzed_path, start + raw) or "").isprintable()


def test_the_fuzzed_file_is_good(fuzzed_path: Path) -> None:
    fuzzed_path.write_bytes(_FUZZED)
    assert check_model_file(fuzzed_path, role="base").n_tensors == 2
