"""The program's own folders, hashes of files anywhere, small files read and written whole, the lock of a fetch.

Owns where data, cache, configuration and state lie, and when a file has to be read again for its hash. Never fetches
and never knows a pair.

1. A hash is remembered with the size and modification time it was taken at; any change of these reads the file again.
2. Nothing is written beside a file that is not ours: its stamp lies in the cache folder.
3. A small file is whole or not there. Of a file that a person wrote only so much is read as such a file can have.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path, user_state_path

from edge_nudge.errors import InputError, ModelFileError

_APP = "edge-nudge"
CHUNK_BYTES = 1 << 20
_TYPED_BYTES = 1 << 20  # the most of a file that a person wrote


@dataclass(frozen=True, slots=True)
class Stamp:
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


def config_dir() -> Path:
    """Return the user's configuration folder, `EDGE_NUDGE_CONFIG_DIR` where that is set; it may not exist yet."""
    return _folder("EDGE_NUDGE_CONFIG_DIR") or user_config_path(_APP, appauthor=False)


def state_dir() -> Path:
    """Return the user's state folder, `EDGE_NUDGE_STATE_DIR` where that is set; it may not exist yet."""
    return _folder("EDGE_NUDGE_STATE_DIR") or user_state_path(_APP, appauthor=False)


def models_dir() -> Path:
    """Return the folder of the model files that came as wheels."""
    return data_dir() / "models"


def megabytes(n_bytes: int) -> str:
    """Write a size for people, in thousands, millions or thousand millions of bytes."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB" if n_bytes < 10e9 else f"{n_bytes / 1e9:.1f} GB"
    if n_bytes >= 1e5:
        return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 10e6 else f"{n_bytes / 1e6:.1f} MB"
    return f"{n_bytes / 1e3:.1f} kB" if n_bytes >= 1000 else f"{n_bytes} bytes"


def sha256_file(path: Path, *, advance: Callable[[int], None] | None = None) -> str:
    """Return a file's sha256, read anew only if its size or modification time changed since the last time.

    `advance` is told how many bytes were read. Raises ModelFileError.
    """
    path = path.expanduser().resolve()
    place, name = stamp_place(path)
    try:
        before = path.stat()
        known = read_stamp(place)
        if known and (known.path, known.size, known.mtime_ns) == (name, before.st_size, before.st_mtime_ns):
            return known.sha256
        digest = hash_file(path, advance)
        after = path.stat()
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read ({error.strerror or error}): check the path and its permissions"
        ) from error
    if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
        write_stamp(place, Stamp(name, after.st_size, after.st_mtime_ns, digest))
    return digest


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Read a file for its sha256. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


def remember_hash(path: Path, sha256: str) -> None:
    """Note the hash of a file that has just been read or written. Raises OSError."""
    place, name = stamp_place(path.resolve())
    state = path.stat()
    write_stamp(place, Stamp(name, state.st_size, state.st_mtime_ns, sha256))


def stamp_place(path: Path) -> tuple[Path, str]:
    """Return where a file's stamp lies and the path written in it."""
    if path.parent == models_dir().resolve():
        return path.with_name(f"{path.name}.verified.json"), ""
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return cache_dir() / "hashes" / f"{key}.json", str(path)


def read_stamp(path: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, unreadable, or of another shape: the file is read again
        return None


def write_stamp(path: Path, stamp: Stamp) -> None:
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


def read_typed(path: Path, what: str) -> str | None:
    """Return a file that a person wrote, None where there is none; `what` it should be: "settings file".

    Raises InputError.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_TYPED_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}): check what it is, and its permissions"
        ) from None
    if len(data) > _TYPED_BYTES:
        raise InputError(f"{path}: is longer than {_TYPED_BYTES} bytes: this is no {what}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8, at byte {error.start}: save it as UTF-8") from None


@contextmanager
def fetch_lock(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a fetch; where another process has it, say so and wait for it. Raises OSError."""
    from filelock import FileLock, Timeout  # it brings asyncio

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is fetching {what}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can (Windows opens no folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems refuse it
                os.fsync(handle)
        finally:
            os.close(handle)


def _folder(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None
