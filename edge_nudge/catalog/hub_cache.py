"""The Hugging Face cache on disk: where it is, what is in it, and taking out again what this program put there.

Owns the layout (`models--USER--NAME/snapshots/COMMIT/FILE`, links into `blobs`). Never needs huggingface_hub, never
uses the network, and never writes but to remove.

1. A snapshot is named by its commit; `refs/main` says which one `main` was when it was last asked for.
2. A file's blob is removed only when no snapshot of its repository points to it any more.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_FOLDER = re.compile(r"models--(?P<user>[^/]+?)--(?P<name>[^/]+)")
_TRUE = {"1", "on", "yes", "true"}
_MOST_FILES = 20_000  # looked at in one cache


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file of a snapshot. `path` is the place in the snapshot, a link where the system has links."""

    repo: str
    commit: str
    file: str  # with forward slashes
    path: Path


def hub_cache_dir() -> Path:
    """Return the folder of the cache, as huggingface_hub finds it; it may not exist."""
    of = os.environ.get
    direct = of("HF_HUB_CACHE") or of("HUGGINGFACE_HUB_CACHE")
    if direct:
        return Path(os.path.expandvars(direct)).expanduser().absolute()
    home = of("HF_HOME")
    if home:
        return Path(os.path.expandvars(home)).expanduser().absolute() / "hub"
    cache = of("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "huggingface" / "hub"


def is_offline() -> bool:
    """Tell whether the environment forbids the network to hub programs."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def repo_folder(repo: str) -> Path:
    """Return the folder of a repository in the cache."""
    return hub_cache_dir() / f"models--{repo.replace('/', '--')}"


def cached_file(repo: str, file: str, revision: str | None = None) -> Path | None:
    """Return where a file of a repository is cached: of a commit, or of `main` as last seen and then any snapshot."""
    snapshots = repo_folder(repo) / "snapshots"
    if revision is not None:
        path = snapshots / revision / file
        return path if _is_file(path) else None
    return next((path for path in (folder / file for folder in _newest_first(repo)) if _is_file(path)), None)


def cached_files(repo: str) -> tuple[CachedFile, ...]:
    """Return the GGUF files of a repository in the cache, those of `main` first; each name once."""
    found: dict[str, CachedFile] = {}
    for folder in _newest_first(repo):
        for path in _gguf_below(folder):
            file = path.relative_to(folder).as_posix()
            found.setdefault(file, CachedFile(repo, folder.name, file, path))
    return tuple(found.values())


def all_cached() -> tuple[CachedFile, ...]:
    """Return the GGUF files of every repository in the cache."""
    found: list[CachedFile] = []
    for folder in _folders(hub_cache_dir()):
        match = _REPO_FOLDER.fullmatch(folder.name)
        if match:
            found += cached_files(f"{match['user']}/{match['name']}")
        if len(found) > _MOST_FILES:
            break
    return tuple(found)


def remove_cached(path: Path, repo: str) -> int:
    """Remove one file of a snapshot and, where nothing else points to it, its blob; return the bytes that are free.

    Raises OSError.
    """
    home = repo_folder(repo)
    target = path.resolve()
    n_bytes = target.stat().st_size if target.is_file() else 0
    freed = 0 if path.is_symlink() else n_bytes
    path.unlink()
    if target.parent == (home / "blobs").resolve() and not _is_used(home, target):
        target.unlink(missing_ok=True)
        freed = n_bytes
    for folder in (path.parent, *path.parent.parents):
        if folder == home / "snapshots":
            break
        with suppress(OSError):  # not empty: it has other files
            folder.rmdir()
    if not any(names for part in ("snapshots", "blobs") for _, _, names in os.walk(home / part)):
        shutil.rmtree(home, ignore_errors=True)  # what is left are notes about files that are gone
    return freed


def _is_used(home: Path, blob: Path) -> bool:
    return any(
        os.path.islink(os.path.join(root, name)) and Path(os.path.join(root, name)).resolve() == blob
        for root, _, names in os.walk(home / "snapshots")
        for name in names
    )


def _newest_first(repo: str) -> list[Path]:
    """Return the snapshot folders of a repository: that of `main` first, then by time."""
    home = repo_folder(repo)
    try:
        main = (home / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    folders = [folder for folder in _folders(home / "snapshots") if _COMMIT.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: (folder.name != main, -_mtime(folder)))


def _gguf_below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if name.lower().endswith(".gguf") and _is_file(path):
                yield path


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # False where looking is forbidden


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
