"""Walk the header of one GGUF file: bounded, forward only, no long arrays kept.

Owns the byte format (versions 2 and 3, the machine's byte order) and the size arithmetic. Never reads a weight, never
trusts a number before comparing it with the file's size, never raises anything but HeaderError for what it reads.

1. Counts and lengths are compared with the bytes that are left before a loop starts or a byte is read.
2. Arrays of more than 512 numbers are skipped by arithmetic; arrays of strings are walked, their total is limited.
3. What llama.cpp's own reader refuses is refused here with a sentence: doubled names, gaps between tensors, nesting.
4. A HeaderError continues the sentence 'model file "x" ...'.

gguf.GGUFReader is not used: it keeps an array per token, 9.4 s and 734 MB for Gemma-3 270M; this takes 0.06 s and 4 MB.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import BinaryIO

Scalar = int | float | bool | str

# Far above any real model (Gemma-4: 776,000 strings in 17 MB; unfused mixtures of experts: 50,000 tensors), low
# enough that the worst header costs less than 1 s and 50 MB.
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 4096
MAX_KEY_BYTES = 65535
MAX_TENSORS = 100_000
MAX_TENSOR_NAME_BYTES = 63
MAX_STRINGS = 3_000_000
MAX_TEMPLATE_BYTES = 1 << 20
MAX_KEPT_NUMBERS = 512  # llama.cpp's most layers
KEPT_STRING_BYTES = 4096
CHAT_TEMPLATE = "tokenizer.chat_template"

STRING, ARRAY, UINT16, UINT32 = 8, 9, 2, 4
_BOOL = 7
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "b", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct("=" + letter) for kind, letter in _FORMATS.items()}
_U32, _U64, _I64 = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("=q")
_WINDOW_BYTES = 256 << 10
_MAX_I64 = 2**63 - 1
# What the gguf package (0.19) has otherwise than llama.cpp: name, values per block, bytes per block.
_CORRECTED_TYPES = {9: ("Q8_1", 32, 36), 42: ("Q2_0", 64, 18)}


class HeaderError(Exception):
    """The header cannot be read; the text is a predicate: 'is damaged: ...'."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What the header of one file says."""

    size_bytes: int
    scalars: dict[str, Scalar]
    kinds: dict[str, int]  # value type of each scalar, as the format numbers them
    arrays: dict[str, tuple[int, int]]  # key -> (type of the elements, how many)
    tensors: dict[bytes, int]  # name -> bytes
    numbers: dict[str, tuple[Scalar, ...]]  # arrays of numbers short enough to be one value for each layer


def visible(text: str) -> str:
    """Return `text` with control characters and half surrogates written out, everything readable unchanged."""
    shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return "".join(shown)


def scan_header(file: BinaryIO, size: int) -> Scan:
    """Read the header of an open GGUF file of `size` bytes whose first four bytes are "GGUF".

    Raises HeaderError.
    """
    window = _Window(file, size)
    window.skip(4)
    _check_version(window.u32())
    n_tensors, n_keys = window.i64(), window.i64()
    _check_count("tensors", n_tensors, MAX_TENSORS, window.left // 24)
    _check_count("metadata keys", n_keys, MAX_KEYS, window.left // 13)
    scan = Scan(size, {}, {}, {}, {}, {})
    strings = _Budget(MAX_STRINGS)
    for _ in range(n_keys):
        _read_pair(window, scan, strings)
    data_end = _read_tensors(window, n_tensors, _alignment(scan), scan.tensors)
    if data_end > size:
        raise HeaderError(
            f"is {data_end - size} bytes short: {size} of {data_end} bytes are there; "
            f"the download or copy was cut off, fetch the file again"
        )
    return scan


def file_type_name(file_type: Scalar | None) -> str | None:
    """Return the name of a general.file_type, such as "Q4_K_M", or None where it is unknown."""
    if not isinstance(file_type, int) or isinstance(file_type, bool):
        return None
    names = {member.value: member.name for member in _constants().LlamaFileType}
    name: str | None = names.get(file_type)
    return name.removeprefix("MOSTLY_").removeprefix("ALL_") if name else None


@cache
def tensor_types() -> dict[int, tuple[str, int, int]]:
    """Return the name, values per block and bytes per block of each tensor type."""
    sizes = _constants().GGML_QUANT_SIZES
    return {kind.value: (kind.name, block, n_bytes) for kind, (block, n_bytes) in sizes.items()} | _CORRECTED_TYPES


@cache
def _constants() -> ModuleType:
    """Load gguf.constants without its package.

    The package imports numpy, yaml and, where installed, sentencepiece and mistral_common: 80 ms and more, this 8 ms.
    """
    if "gguf.constants" in sys.modules:
        return sys.modules["gguf.constants"]
    package = importlib.util.find_spec("gguf")
    for folder in (package and package.submodule_search_locations) or ():
        spec = importlib.util.spec_from_file_location("edge_nudge_gguf_constants", f"{folder}/constants.py")
        if spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return importlib.import_module("gguf.constants")


class _Budget:
    """A number of strings that all arrays of a header share."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, n: int, key: str) -> None:
        if n > self.left:
            raise _damaged(f'metadata "{visible(key)}" announces {n} strings, at most {MAX_STRINGS} are read')
        self.left -= n


class _Window:
    """A file read forward through a small buffer; every step is checked against the end of the file first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._chunk, self._at, self._start = b"", 0, 0

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self._size - self.position

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def i64(self) -> int:
        return int(_I64.unpack(self.take(8))[0])

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes; callers keep n at or below MAX_TEMPLATE_BYTES."""
        self._fill(n)
        taken = self._chunk[self._at : self._at + n]
        self._at += n
        return taken

    def skip(self, n: int) -> None:
        self._check_room(n)
        self._at += n

    def skip_strings(self, n: int) -> None:
        """Step over `n` strings, each a length of 8 bytes and its bytes: 0.1 us each."""
        length_at = _U64.unpack_from
        while n:
            self._fill(8)
            chunk, at, last = self._chunk, self._at, len(self._chunk) - 8
            while n and at <= last:
                at += 8 + length_at(chunk, at)[0]
                n -= 1
            self.skip(at - self._at)

    def _check_room(self, n: int) -> None:
        if n > self.left:
            raise HeaderError(
                f"ends inside its header: {n} bytes are needed at byte {self.position}, {max(self.left, 0)} are there; "
                f"the download was cut off or the file is damaged, fetch it again"
            )
        if self.position + n > MAX_HEADER_BYTES:
            raise _damaged(f"its header is longer than {MAX_HEADER_BYTES} bytes")

    def _fill(self, n: int) -> None:
        """Make `n` bytes available at the position."""
        if self._at + n <= len(self._chunk):
            return
        self._check_room(n)
        self._start, self._at = self.position, 0
        self._file.seek(self._start)
        self._chunk = self._file.read(min(max(n, _WINDOW_BYTES), self._size - self._start))
        if len(self._chunk) < n:
            raise HeaderError("became shorter while it was read; wait until it is complete and try again")


def _damaged(what: str) -> HeaderError:
    return HeaderError(f"is damaged: {what}; fetch the file again")


def _check_version(version: int) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0 and version != 0:
        raise HeaderError(
            f"is written for the other byte order (this machine is {sys.byteorder}-endian); "
            f"get the {sys.byteorder}-endian file"
        )
    raise HeaderError(f"is GGUF version {version}, versions 2 and 3 can be read; get a newly converted file")


def _check_count(what: str, n: int, most: int, n_fitting: int) -> None:
    if not 0 <= n <= most:
        raise _damaged(f"it announces {n} {what}, at most {most} are read")
    if n > n_fitting:
        raise HeaderError(
            f"ends inside its header: it announces {n} {what}, there is room for {max(n_fitting, 0)}; "
            f"the download was cut off or the file is damaged, fetch it again"
        )


def _read_pair(window: _Window, scan: Scan, strings: _Budget) -> None:
    """Read one metadata key with its value into `scan`."""
    n = window.u64()
    if not 0 < n <= MAX_KEY_BYTES:
        raise _damaged(f"a metadata key has {n} bytes, 1 to {MAX_KEY_BYTES} are possible")
    try:
        key = window.take(n).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(f"metadata key {len(scan.scalars) + len(scan.arrays) + 1} is not UTF-8") from error
    if key in scan.scalars or key in scan.arrays:
        raise _damaged(f'metadata key "{visible(key)}" is there twice')
    kind = window.u32()
    if kind == ARRAY:
        kind, n = _array_head(window)
        scan.arrays[key] = kind, n
        if kind in _SCALARS and n <= MAX_KEPT_NUMBERS:
            scan.numbers[key] = _read_numbers(window, kind, n)
        else:
            _skip_array(window, key, kind, n, strings)
        return
    scan.kinds[key] = kind
    if kind == STRING:
        scan.scalars[key] = _read_string(window, key)
        return
    if kind not in _SCALARS:
        raise _damaged(f'metadata "{visible(key)}" has the unknown type {kind}')
    number = _SCALARS[kind]
    (value,) = number.unpack(window.take(number.size))
    scan.scalars[key] = value != 0 if kind == _BOOL else value


def _array_head(window: _Window) -> tuple[int, int]:
    """Return the type of an array's elements and their number."""
    return window.u32(), window.u64()


def _read_numbers(window: _Window, kind: int, n: int) -> tuple[Scalar, ...]:
    number = _SCALARS[kind]
    values = (number.unpack(window.take(number.size))[0] for _ in range(n))
    return tuple(value != 0 if kind == _BOOL else value for value in values)


def _skip_array(window: _Window, key: str, kind: int, n: int, strings: _Budget) -> None:
    if kind == STRING:
        strings.spend(n, key)
        window.skip_strings(n)
    elif kind in _SCALARS:
        window.skip(n * _SCALARS[kind].size)
    else:
        what = "an array inside an array" if kind == ARRAY else f"an array of the unknown type {kind}"
        raise _damaged(f'metadata "{visible(key)}" is {what}')


def _read_string(window: _Window, key: str) -> str:
    """Read a string value: chat templates whole, all else up to KEPT_STRING_BYTES."""
    n = window.u64()
    if key == CHAT_TEMPLATE and n > MAX_TEMPLATE_BYTES and n <= window.left:
        raise HeaderError(f"has a chat template of {n} bytes, at most {MAX_TEMPLATE_BYTES} are read; get another file")
    n_kept = min(n, MAX_TEMPLATE_BYTES if key == CHAT_TEMPLATE else KEPT_STRING_BYTES)
    kept = window.take(min(n_kept, n))
    window.skip(n - n_kept)
    return kept.decode("utf-8", "ignore" if n_kept < n else "replace")


def _alignment(scan: Scan) -> int:
    value = scan.scalars.get("general.alignment", 32)
    if scan.kinds.get("general.alignment", UINT32) != UINT32 or not isinstance(value, int):
        raise _damaged("general.alignment is not a 32-bit number")
    if value == 0 or value & (value - 1) or value > 1 << 20:
        raise _damaged(f"general.alignment is {value}, a power of two up to {1 << 20} is possible")
    return value


def _read_tensors(window: _Window, n_tensors: int, alignment: int, tensors: dict[bytes, int]) -> int:
    """Read the tensor table into `tensors`; return the size the file must have for all the weights."""
    offset, end, type_of = 0, 0, tensor_types().get
    for _ in range(n_tensors):
        n = window.u64()
        if n > MAX_TENSOR_NAME_BYTES:
            raise _damaged(f"a tensor name has {n} bytes, at most {MAX_TENSOR_NAME_BYTES} are possible")
        name = window.take(n)
        if name in tensors:
            raise _damaged(f"tensor {_shown(name)} is there twice")
        n_bytes = tensors[name] = _tensor_bytes(window, name, type_of)
        stated = window.u64()
        if stated != offset:
            raise _damaged(f"tensor {_shown(name)} is at byte {stated} of the weights, it must be at byte {offset}")
        end = offset + n_bytes
        offset = end + -end % alignment
    if not n_tensors:
        return window.position
    data_start = window.position + -window.position % alignment
    return data_start + end


def _tensor_bytes(window: _Window, name: bytes, type_of: Callable[[int], tuple[str, int, int] | None]) -> int:
    """Read shape and type of one tensor; return its size in bytes."""
    n_dims = window.u32()
    if n_dims > 4:
        raise _damaged(f"tensor {_shown(name)} has {n_dims} dimensions, at most 4 are possible")
    dims: tuple[int, ...] = struct.unpack(f"={n_dims}q", window.take(8 * n_dims))
    n_values = 1
    for dim in dims:
        if dim < 1:
            raise _damaged(f"tensor {_shown(name)} has a dimension of {dim}")
        n_values *= dim
    kind = window.u32()
    known = type_of(kind)
    if known is None:
        raise HeaderError(
            f"uses the tensor type {kind} in {_shown(name)}, which this version does not know; "
            f"update edge-nudge and gguf, or get another quantisation of the model"
        )
    type_name, block, block_bytes = known
    row = dims[0] if dims else 1
    if row % block:
        raise _damaged(f"tensor {_shown(name)} has rows of {row} values, {type_name} needs a multiple of {block}")
    n_bytes = n_values // block * block_bytes
    if n_bytes > _MAX_I64:
        raise _damaged(f"tensor {_shown(name)} has {n_values} values, more than any machine can address")
    return n_bytes


def _shown(name: bytes) -> str:
    return f'"{visible(name.decode("utf-8", "replace"))}"'
