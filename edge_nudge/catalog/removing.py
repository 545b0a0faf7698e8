"""Removing model files: only what this program fetched.

Owns what belongs to a name and what may go. Never touches a file of another program, and never asks anybody.

1. Ours is what lies in the store under a manifest's name, and what has a note in the ledger. Anything else is refused
   with the program it belongs to.
2. A file that another complete pair needs stays, and is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from edge_nudge.catalog import found, hub, hub_cache, ledger, store
from edge_nudge.catalog.fields import PairManifest, WheelSource
from edge_nudge.catalog.files import models_dir
from edge_nudge.catalog.manifest import known_pairs, list_manifests, load_manifest
from edge_nudge.catalog.names import cached_parts, locate_model
from edge_nudge.errors import InputError, ModelFileError


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing a name means: these files go, those stay and why. `files` may be empty."""

    files: tuple[Path, ...]
    kept: tuple[tuple[Path, str], ...]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files if path.is_file())


def plan_removal(name: str) -> Removal:
    """Return what removing a pair, a model from the hub or a file of the store would do.

    Raises InputError for a name that is nothing, or not ours to remove.
    """
    if name in list_manifests():
        return _of_pair(load_manifest(name))
    path = models_dir() / name
    if "/" not in name and os.sep not in name and os.path.lexists(path) and name.endswith(".gguf"):
        if name not in _wheel_names():
            raise InputError(f"{path} is not of a pair that this program fetches: remove it by hand")
        return Removal((path,), ())
    hub_name = hub.parse_hub_name(name)
    if hub_name is not None and not os.path.exists(name):
        parts = cached_parts(hub_name)
        if not parts:
            raise InputError(f"{name} is not in {hub_cache.hub_cache_dir()}: there is nothing to remove")
        return Removal(tuple(_ours(part) for part in parts), ())
    try:
        path = locate_model(name)
    except ModelFileError as error:
        raise InputError(str(error)) from None
    if not os.path.lexists(path):
        raise InputError(f"there is no pair, model or file {name!r}: 'edge-nudge list' shows what there is")
    return Removal((_ours(path),), ())


def remove(path: Path) -> int:
    """Remove one file that a plan names; return the bytes that are free. Raises InputError and ModelFileError."""
    try:
        return _remove(path)
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be removed ({error.strerror or error}): end what uses it, or check its permissions"
        ) from error


def _remove(path: Path) -> int:
    note = ledger.note_of(path)
    if note is not None:
        freed = hub_cache.remove_cached(path, note.repo)
        ledger.forget(path)
        return freed
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{path.name} is being fetched by another process: wait for it, then try again") from None
    try:
        freed = 0 if path.is_symlink() else path.stat().st_size
        path.unlink()
        path.with_name(f"{path.name}.verified.json").unlink(missing_ok=True)
    finally:
        lock.release()
    with suppress(OSError):
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
    return freed


def _of_pair(manifest: PairManifest) -> Removal:
    others = {path: name for name, paths in _of_other_pairs(manifest.name) for path in paths}
    files, kept = [], []
    for _, model in store.models_of(manifest):
        path = models_dir() / model.file if isinstance(model.source, WheelSource) else store.find_model(model)
        if path is None or not os.path.lexists(path) or path in files:
            continue
        try:
            ours = _ours(path)
        except InputError as error:
            kept.append((path, str(error)))
            continue
        if ours in others:
            kept.append((ours, f"the pair {others[ours]} needs it"))
        else:
            files.append(ours)
    return Removal(tuple(files), tuple(kept))


def _of_other_pairs(name: str) -> Iterator[tuple[str, list[Path]]]:
    """Yield the files of every other pair that is complete."""
    for pair in known_pairs():
        if pair.manifest is None or pair.name == name:
            continue
        paths = [store.find_model(model, is_quick=True) for _, model in store.models_of(pair.manifest)]
        if None not in paths:
            yield pair.name, [path for path in paths if path is not None]


def _ours(path: Path) -> Path:
    """Return the path as it is removed. Raises InputError where the file is not ours."""
    if path.parent == models_dir() and path.name in _wheel_names():
        return path
    if ledger.note_of(path) is not None:
        return path
    raise InputError(f"{path} was not fetched by edge-nudge: remove it with {_owner(path)}")


def _owner(path: Path) -> str:
    places = [
        (hub_cache.hub_cache_dir(), "'hf cache' of huggingface_hub"),
        (found.ollama_dir(), "'ollama rm'"),
        *((folder, "LM Studio") for folder in found.lm_studio_dirs()),
        (found.llama_cpp_dir(), "what fetched it, or by hand"),
    ]
    return next((owner for place, owner in places if path.is_relative_to(place)), "what put it there, or by hand")


def _wheel_names() -> set[str]:
    """Return the file names of all models that come as wheels."""
    manifests = [pair.manifest for pair in known_pairs() if pair.manifest is not None]
    models = [model for manifest in manifests for _, model in store.models_of(manifest)]
    return {model.file for model in models if isinstance(model.source, WheelSource)}
