"""Check model files before the native loader sees them: there, whole, GGUF, and able to write text.

Owns the path (links, split models, near misses), what a file is when it is not GGUF, and which kinds of model can be
used. Never imports llama_cpp, never reads weights, never changes a file; the bytes are read in gguf_scan.py.

1. Everything that is wrong with a file is one ModelFileError: what, with the numbers, and what to do.
2. Any part of a split model stands for all of them; `path` is always the first.
3. Links are followed but never resolved in names: the parts of a cached split model have their names only as links.
4. A file is refused for its kind only where the engine could not draw a single token of text from it.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from edge_nudge.engine.gguf_scan import (
    CHAT_TEMPLATE,
    STRING,
    UINT16,
    HeaderError,
    Scalar,
    Scan,
    file_type_name,
    scan_header,
    visible,
)
from edge_nudge.errors import ModelFileError

_HEAD_BYTES = 512
_N_LISTED = 8  # names in one message
_N_NEARBY = 1000  # names looked at for a near miss; some folders hold a hundred thousand
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
# Pieces of one file cut by size, to be joined byte by byte: x.gguf.part1of2, x.gguf-split-a, x.gguf.aa, x.part00.
_RAW_PIECE = re.compile(
    r"(?P<whole>.+?\.gguf)(?:[.-](?:part|split)[-_.]?(?:\d+(?:of\d+)?|[a-z]{1,2})|\.\d{2,3}|\.a[a-z])"
    r"|(?P<stem>.+)\.part-?(?:\d+of\d+|\d{2,3}|[a-z]{2})",
    re.IGNORECASE,
)

_DIGITS = re.compile(r"([0-9]+)")

_EMBEDDING = "is an embedding model"
_DRAFT_HEAD = "is the draft head of another model"
_KINDS = {
    "t5": "is an encoder-decoder model",
    "clip": "is the image part (mmproj) of another model",
    "controlvector": "is a control vector for another model",
    **dict.fromkeys(["bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert"], _EMBEDDING),
    **dict.fromkeys(["jina-bert-v2", "jina-bert-v3", "gemma-embedding", "llama-embed", "t5encoder"], _EMBEDDING),
    **dict.fromkeys(["eagle3", "dflash", "gemma4-assistant"], _DRAFT_HEAD),
    **dict.fromkeys(["dream", "llada", "llada-moe", "rnd1"], "is a diffusion model"),
    **dict.fromkeys(["wavtokenizer-dec", "qwen3tts", "pockettts"], "is a speech model"),
}
_TYPES = {
    "adapter": "is a LoRA adapter for another model",
    "imatrix": "holds the statistics for quantising another model",
    "mmproj": _KINDS["clip"],
}
_NEEDED = "nudging needs a decoder-only language model"
_MAX_LAYERS = 512  # llama.cpp ends the process, not the load, above this and for 0
_POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}  # other values, 2**32 - 1 among them, mean "not stated"


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a model file says of itself; 0 and "" where it says nothing."""

    path: Path  # the first part
    parts: tuple[Path, ...]
    architecture: str
    name: str
    n_vocab: int  # tokens in the vocabulary
    n_ctx_train: int
    n_layers: int
    n_tensors: int
    size_bytes: int  # all parts
    quantization: str | None
    has_chat_template: bool
    metadata: Mapping[str, Scalar] = field(repr=False, hash=False)  # no arrays; long strings cut, the template whole
    n_merges: int = 0
    per_layer: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict, repr=False, hash=False)  # short arrays
    tensors: Mapping[str, int] = field(default_factory=dict, repr=False, hash=False)  # bytes by name, all parts


def check_model_file(path: Path, *, role: str) -> GgufHeader:
    """Return the header of a whole model that can write text.

    `role` ("base", "nudging" or "") begins the message. Costs 0.1 us per vocabulary entry, 0.06 s for Gemma-3.
    Raises ModelFileError.
    """
    header = read_model_file(path, role=role)
    reason = why_unusable(header)
    if reason:
        raise ModelFileError(_sentence(role, header.path, reason))
    return header


def read_model_file(path: Path, *, role: str = "") -> GgufHeader:
    """Return the header of a whole GGUF model of any kind, all its parts checked.

    Raises ModelFileError.
    """
    path = _expanded(path)
    parts = _parts(path, role)
    scans = [_scan(part, role) for part in parts]
    try:
        _check_split(parts, scans)
    except HeaderError as error:
        raise ModelFileError(_sentence(role, path, str(error))) from error
    return _header(parts, scans)


def why_unusable(header: GgufHeader) -> str | None:
    """Return why a model cannot write text, as a predicate ('is a LoRA adapter ...'), or None where it can."""
    arch, of = header.architecture, header.metadata.get
    kind = str(of("general.type", ""))
    if kind in _TYPES:
        return f"{_TYPES[kind]}; {_NEEDED}"
    if not arch:
        return "names no general.architecture; get another conversion of the model"
    if arch in _KINDS:
        return f'{_KINDS[arch]} (architecture "{arch}"); {_NEEDED}'
    pooling = of(f"{arch}.pooling_type")
    if isinstance(pooling, int) and pooling in _POOLING:
        return f"is an embedding or ranking model (pooling: {_POOLING[pooling]}); {_NEEDED}"
    if of(f"{arch}.attention.causal") is False:
        return f"is an encoder (its attention is not causal); {_NEEDED}"
    if not header.n_tensors:
        return f"holds a vocabulary of {header.n_vocab} tokens and no weights; get the file with the weights"
    if not header.n_vocab or of("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return f'has no vocabulary (architecture "{visible(arch)}"); {_NEEDED}'
    if not 0 < header.n_layers <= _MAX_LAYERS:
        return f"says it has {header.n_layers} layers, 1 to {_MAX_LAYERS} are possible; get another conversion"
    if header.n_ctx_train <= 0:
        return f'names no "{visible(arch)}.context_length"; get another conversion of the model'
    return None


def quoted(path: Path) -> str:
    """Return a path for a message: in quotes, with control characters made visible."""
    return f'"{visible(str(path))}"'


def _sentence(role: str, path: Path, predicate: str) -> str:
    return f"{role} model file {quoted(path)} {predicate}".lstrip()


def _expanded(path: Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user: the file is then reported missing under the name that was typed
        return Path(path)


def _parts(path: Path, role: str) -> tuple[Path, ...]:
    """Return the paths of all parts of a model, each of them an existing regular file."""
    match = _PART_NAME.fullmatch(path.name)
    n_parts = int(match["count"]) if match else 1
    if match is None or n_parts <= 1:
        _demand_file(path, role)
        return (path,)
    if not 1 <= int(match["part"]) <= n_parts:
        raise ModelFileError(_sentence(role, path, f"is named part {int(match['part'])} of {n_parts}; rename it"))
    names = [f"{match['stem']}-{part:05d}-of-{match['count']}.gguf" for part in range(1, n_parts + 1)]
    absent = (name for name in names if not os.path.exists(os.path.join(path.parent, name)))
    missing = list(islice(absent, _N_LISTED + 1))
    if len(missing) == min(n_parts, _N_LISTED + 1):
        _demand_file(path, role)
    if missing:
        what = f"is one of {n_parts} parts, of which {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise ModelFileError(_sentence(role, path, f"{what} in {quoted(path.parent)}; fetch the rest"))
    parts = tuple(path.with_name(name) for name in names)
    for part in parts:
        _demand_file(part, role)
    return parts


def _demand_file(path: Path, role: str) -> None:
    problem = _problem(path)
    if problem:
        raise ModelFileError(_sentence(role, path, problem))


def _problem(path: Path) -> str | None:
    """Return why nothing can be read at `path`, as a predicate, or None where a regular file is."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        return "cannot exist: no file can have such a name; check the path"
    except OSError as error:
        if os.path.islink(path):
            target = visible(os.readlink(path))
            reason = error.strerror or error
            return f'is a link to "{target}", which cannot be reached ({reason}); mend the link or fetch the file again'
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return _missing(path)
        return f"cannot be reached: {error.strerror or error}; check the path and its permissions"
    if stat.S_ISDIR(mode):
        found = sorted(name for name in _names(path) if name.lower().endswith(".gguf"))
        inside = f"a file inside it, such as {_listed(found[:3])}" if found else "a .gguf file"
        return f"is a folder; give {inside}"
    if not stat.S_ISREG(mode):
        return "is a pipe, a device or a socket; give a .gguf file"
    return None


def _missing(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f"does not exist, nor does its folder {quoted(path.parent)}; check the path"
    by_folded = {name.casefold(): name for name in _names(path.parent)}
    folded = path.name.casefold()
    near = [folded] if folded in by_folded else difflib.get_close_matches(folded, by_folded, 3, 0.7)
    near = near or [name for name in by_folded if len(folded) > 2 and name.startswith(folded)][:3]
    hint = f"did you mean {_listed(by_folded[name] for name in near)}" if near else "check the path"
    return f"does not exist{_looked_in(path)}; {hint}"


def _looked_in(path: Path) -> str:
    try:
        return "" if path.is_absolute() else f" in {quoted(Path.cwd())}"
    except OSError:  # the working folder itself is gone
        return ""


def _raw_piece(path: Path) -> str:
    match = _RAW_PIECE.fullmatch(path.name)
    whole = (match and (match["whole"] or match["stem"])) or path.name
    names = (name for name in _names(path.parent) if name.startswith(whole) and _RAW_PIECE.fullmatch(name))
    pieces = sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in _DIGITS.split(name)])
    return (
        f"is a piece of a file that was cut by size; join the pieces in order ({_listed(pieces)}) "
        f'into one file, such as "{visible(whole)}", and give that'
    )


def _names(folder: Path) -> list[str]:
    """Return up to _N_NEARBY names in a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _N_NEARBY)]
    except OSError:
        return []


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = " and more" if len(names) > _N_LISTED else ""
    return ", ".join(f'"{visible(name)}"' for name in names[:_N_LISTED]) + more


def _scan(path: Path, role: str) -> Scan:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            if head[:4] != b"GGUF":
                raise HeaderError(describe_stranger(head, size))
            return scan_header(file, size)
    except HeaderError as error:
        reason = _raw_piece(path) if _RAW_PIECE.fullmatch(path.name) else str(error)
        raise ModelFileError(_sentence(role, path, reason)) from error
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}; check its permissions and the disk"
        raise ModelFileError(_sentence(role, path, reason)) from error


_BINARY_STARTS: Mapping[bytes, str] = {
    b"PK\x03\x04": "is a zip archive or a PyTorch checkpoint; unpack it, or convert it to GGUF",
    b"\x80\x02": "is a PyTorch pickle; convert it with llama.cpp's convert_hf_to_gguf.py",
    b"\x80\x03": "is a PyTorch pickle; convert it with llama.cpp's convert_hf_to_gguf.py",
    b"\x80\x04": "is a PyTorch pickle; convert it with llama.cpp's convert_hf_to_gguf.py",
    b"\x89HDF": "is an HDF5 file; convert the model to GGUF",
    b"\x1f\x8b": "is a gzip archive; unpack it first",
    b"\xfd7zXZ": "is an xz archive; unpack it first",
    b"(\xb5/\xfd": "is a zstd archive; unpack it first",
    b"7z\xbc\xaf": "is a 7z archive; unpack it first",
    b"BZh": "is a bzip2 archive; unpack it first",
    b"FUGG": "is written for the other byte order; get the file for this machine",
    **dict.fromkeys(
        (b"lmgg", b"fmgg", b"tjgg", b"algg"),
        "is in a GGML format from before August 2023, which llama.cpp no longer reads; get a GGUF file",
    ),
}


def describe_stranger(head: bytes, size: int) -> str:
    """Say what a file that does not start with "GGUF" is, as a predicate, from its first bytes."""
    if not head:
        return "is empty; fetch it again"
    if not head.strip(b"\0"):
        return f"begins with {len(head)} zero bytes: its {size} bytes were reserved and never filled; fetch it again"
    for magic, what in _BINARY_STARTS.items():
        if head.startswith(magic):
            return what
    if head[8:9] == b"{" and 2 < int.from_bytes(head[:8], "little") <= size:
        return "is a safetensors file; convert it with llama.cpp's convert_hf_to_gguf.py, or get a GGUF file"
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    start = visible(text[:40])
    if text.startswith("version https://git-lfs"):
        stated = re.search(r"\nsize (\d{1,20})", text)
        real = f" of {stated[1]} bytes" if stated else ""
        return f'is a Git-LFS pointer of {size} bytes that stands for a file{real}; run "git lfs pull" in its folder'
    if text[:1] == "<":
        return f"starts with {start.split('>')[0]}>: this is a web page, download the file itself"
    if text[:1] in "{[" or (text.isascii() and text.replace("\n", " ").isprintable()):
        return f'starts with "{start}": this is text, perhaps the answer of a server; download the file itself'
    return f'starts with "{visible(head[:8].decode("ascii", "backslashreplace"))}", not with "GGUF"; give a GGUF file'


def _check_split(parts: tuple[Path, ...], scans: list[Scan]) -> None:
    """Compare what the parts say of their split with their names and with one another."""
    n_parts = len(parts)
    if n_parts == 1:
        stated = _whole(scans[0].scalars.get("split.count"))
        if stated > 1:
            raise HeaderError(
                f"is part {_ordinal(scans[0])} of {stated} of a split model, but its name does not say so; "
                f'name the parts like "model-00001-of-{stated:05d}.gguf" and give the first'
            )
        return
    seen: set[bytes] = set()
    for index, (part, scan) in enumerate(zip(parts, scans, strict=True)):
        name = visible(part.name)
        if scan.scalars.get("split.count") != n_parts or scan.scalars.get("split.no") != index:
            says = f"part {_ordinal(scan)} of {scan.scalars.get('split.count', 'nothing')}"
            raise HeaderError(
                f'has a part named "{name}" that calls itself {says}; fetch all parts again from one source'
            )
        if scan.kinds["split.no"] != UINT16:  # llama.cpp ends the process over another type
            raise HeaderError(f'has a part "{name}" whose split.no is not a 16-bit number; fetch the parts again')
        doubled = seen & scan.tensors.keys()
        if doubled:
            tensor = visible(min(doubled).decode("utf-8", "replace"))
            raise HeaderError(
                f'has the tensor "{tensor}" in "{name}" and before; fetch all parts again from one source'
            )
        seen |= scan.tensors.keys()
    announced = scans[0].scalars.get("split.tensors.count")
    if announced != len(seen):
        raise HeaderError(
            f"has {len(seen)} tensors in its {n_parts} parts, {announced} are announced; fetch all parts again"
        )


def _ordinal(scan: Scan) -> int | str:
    index = scan.scalars.get("split.no")
    return index + 1 if isinstance(index, int) else "unknown"


def _header(parts: tuple[Path, ...], scans: list[Scan]) -> GgufHeader:
    of = scans[0].scalars
    arch = _text(of.get("general.architecture"))
    kind, n_tokens = scans[0].arrays.get("tokenizer.ggml.tokens", (STRING, 0))
    return GgufHeader(
        path=parts[0],
        parts=parts,
        architecture=arch,
        name=_text(of.get("general.name")),
        n_vocab=n_tokens if kind == STRING else 0,
        n_ctx_train=_whole(of.get(f"{arch}.context_length")),
        n_layers=_whole(of.get(f"{arch}.block_count")),
        n_tensors=sum(len(scan.tensors) for scan in scans),
        size_bytes=sum(scan.size_bytes for scan in scans),
        quantization=file_type_name(of.get("general.file_type")),
        has_chat_template=bool(_text(of.get(CHAT_TEMPLATE)).strip()),
        metadata=of,
        n_merges=scans[0].arrays.get("tokenizer.ggml.merges", (STRING, 0))[1],
        per_layer=scans[0].numbers,
        tensors={name.decode("utf-8", "replace"): n for scan in scans for name, n in scan.tensors.items()},
    )


def _text(value: Scalar | None) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Scalar | None) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
