"""One file from the hub into the Hugging Face cache: resumed, checked, whole or not there.

Owns the partial file and its lock. huggingface_hub makes the requests and knows the layout of its cache; what it does
not do is resume in another run and check the sha256.

1. A partial file has the name of its content, so it can only be continued by the same content. An interrupted fetch
   keeps it; a wrong hash drops it, and if it had been continued, the file is fetched once more from its start.
2. A broken connection is tried again at the byte where it broke, as long as bytes keep coming.
3. The token goes to the hub only, never to the host that the hub sends us to.
4. One process fetches a file, others wait for it and find it whole.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from edge_nudge.catalog import hub, hub_cache
from edge_nudge.catalog.files import fetch_lock, hash_file, megabytes, remember_hash, sha256_file, write_whole
from edge_nudge.catalog.progress import Progress
from edge_nudge.errors import FetchError, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfFileMetadata

_N_TRIES = 2  # without a byte between them; huggingface_hub tries 5 times in each of them
_CHUNK_BYTES = 1 << 18
_PAUSE_S = 1.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SUFFIX = ".edge-nudge.incomplete"

Say = Callable[[str], None]


def bytes_there(repo: str, file: hub.HubFile) -> int:
    """Return how many bytes of a file an earlier run has left."""
    return _size(_blobs(repo) / f"{file.sha256}{_SUFFIX}") if file.sha256 else 0


def is_right(path: Path, file: hub.HubFile) -> bool:
    """Tell whether a file in the cache is what the hub lists; its sha256 is read once and remembered."""
    if _size(path) != file.size_bytes:
        return False
    try:
        return file.sha256 is None or sha256_file(path) == file.sha256
    except ModelFileError:
        return False


def check_room(n_bytes: int) -> None:
    """Raise FetchError where the disk of the cache has no room for `n_bytes`."""
    place = hub_cache.hub_cache_dir()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise FetchError(
            f"fetching needs {megabytes(n_bytes)} in {place}, {megabytes(free)} are free there: make room, or set "
            f"HF_HOME to a folder on a larger disk"
        )


def fetch_file(
    listing: hub.Listing, file: hub.HubFile, *, sha256: str | None, is_main: bool, say: Say, progress: Progress
) -> tuple[Path, bool]:
    """Return where a file lies in the cache, and whether it was fetched now.

    `sha256`, if known, must be what the hub announces too. With `is_main` the cache learns that `main` is at this
    commit. Raises FetchError.
    """
    if sha256 and file.sha256 and sha256 != file.sha256:
        raise FetchError(
            f"{listing.repo} has another {file.file} than expected: sha256 {file.sha256} instead of {sha256}; nothing "
            f"was fetched"
        )
    found = hub_cache.cached_file(listing.repo, file.file, listing.commit)
    if found is not None and is_right(found, file):
        return found, False
    if found is not None:
        say(f"{found} is damaged: it is not what the hub has under this name. It is fetched again.")
    hub.demand_access(listing)
    is_new = False
    with _kept(listing.repo):
        metadata = _metadata(listing, file)
        blob = _blobs(listing.repo) / str(metadata.etag)
        locks = hub_cache.hub_cache_dir() / ".locks" / hub_cache.repo_folder(listing.repo).name
        locks.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with fetch_lock(locks / f"{metadata.etag}.edge-nudge.lock", file.file, say):
            if not (blob.is_file() and is_right(blob, file)):
                known = sha256 or file.sha256 or (blob.name if len(blob.name) == 64 else None)
                _fetch_blob(listing, file, metadata, blob, known, say, progress)
                is_new = found is None  # what was there before is not ours, damaged or not
            if found is not None and not found.is_symlink():
                found.unlink()  # a copy, where the system has no links
            path = _linked(listing, file)
        if is_main:
            write_whole(hub_cache.repo_folder(listing.repo) / "refs" / "main", listing.commit)
    return path, is_new


def _fetch_blob(
    listing: hub.Listing,
    file: hub.HubFile,
    metadata: HfFileMetadata,
    blob: Path,
    sha256: str | None,
    say: Say,
    progress: Progress,
) -> None:
    partial = blob.with_name(f"{blob.name}{_SUFFIX}")
    for is_second in (False, True):
        n_before = _size(partial)
        if n_before > file.size_bytes:
            partial.unlink()
            n_before = 0
        if n_before:
            say(f"Going on with {file.file}: {megabytes(n_before)} of {megabytes(file.size_bytes)} are there.")
        _download(listing, file, metadata, partial, progress)
        found = _checked(partial, file, progress) if sha256 else None
        if found == sha256:
            break
        partial.unlink()
        if n_before and not is_second:
            say(f"{file.file} is damaged: what an earlier run had left was. It is fetched again from its start.")
            continue
        raise FetchError(
            f"{file.file} as fetched from {listing.repo} has {file.size_bytes} bytes and sha256 {found}, expected "
            f"{sha256}: nothing was kept; try again, and if that does not help, tell the owner of the repository"
        )
    os.replace(partial, blob)
    if sha256:
        remember_hash(blob, sha256)


def _download(
    listing: hub.Listing, file: hub.HubFile, metadata: HfFileMetadata, partial: Path, progress: Progress
) -> None:
    """Bring the partial file to its full size, over any number of broken connections."""
    url = hub_url(listing, file)
    headers = _headers()
    if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)
    with partial.open("ab") as out:
        progress.start(file.file, file.size_bytes, out.tell())
        try:
            n_left = _N_TRIES
            while (n_done := out.seek(0, os.SEEK_END)) < file.size_bytes:
                error = _try(metadata.location, out, headers, n_done, file, progress)
                if error is None:
                    continue
                n_left = _N_TRIES if out.seek(0, os.SEEK_END) > n_done else n_left - 1
                if n_left <= 0 or not _is_transient(error):
                    kept = f"{megabytes(out.tell())} of {megabytes(file.size_bytes)}"
                    raise FetchError(f"{error}; {kept} are kept, the next try goes on there") from error.__cause__
                time.sleep(_PAUSE_S)
            out.flush()
            os.fsync(out.fileno())
        finally:
            progress.end()


def _try(
    url: str, out: BinaryIO, headers: dict[str, str], n_done: int, file: hub.HubFile, progress: Progress
) -> FetchError | None:
    """Fetch the rest of a file once; return what stopped it. A disk that is full is raised."""
    try:
        _get(url, out, headers, n_done, file, progress)
    except FetchError as error:
        return error
    return None


def _get(url: str, out: BinaryIO, headers: dict[str, str], n_done: int, file: hub.HubFile, progress: Progress) -> None:
    """Fetch the rest of a file once. Raises FetchError."""
    from huggingface_hub.file_download import http_get

    class Bar:
        """What http_get tells, as the progress of ours."""

        def __init__(self, *_: object, **__: object) -> None:
            return

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def update(self, n_bytes: int) -> None:
            progress.advance(n_bytes)

    bar: Any = Bar
    with hub.explained(file.file), _short_is_transient(), _small_chunks():
        try:
            http_get(
                url, out, resume_size=n_done, headers=headers, expected_size=file.size_bytes,
                displayed_filename=file.file, tqdm_class=bar,
            )  # fmt: skip
        except ValueError as error:  # huggingface_hub's limit for plain HTTP
            raise FetchError(
                f"{file.file} has {megabytes(file.size_bytes)}, too much for a plain fetch: use 'hf download' with "
                f"hf_xet, the file is then found in the cache"
            ) from error


@contextmanager
def _small_chunks() -> Iterator[None]:
    """Let bytes be written as they come: chunks of 10 MB make a bar jump, and a broken connection loses one."""
    from huggingface_hub import constants

    usual = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = usual


class _ShortError(Exception):
    """Fewer or more bytes came than were announced."""


@contextmanager
def _short_is_transient() -> Iterator[None]:
    """Tell an answer of the wrong length from a disk that is full: both are an OSError without a class of their own."""
    try:
        yield
    except OSError as error:
        if error.errno is None and "onsistency check" in str(error):
            raise FetchError("the connection ended early") from _ShortError()
        raise


def _is_transient(error: FetchError) -> bool:
    """Tell whether a broken connection is behind an error, and no answer of the hub."""
    return getattr(error.__cause__, "response", None) is None


def _checked(partial: Path, file: hub.HubFile, progress: Progress) -> str:
    progress.start(f"checking {file.file}", file.size_bytes)
    try:
        return hash_file(partial, progress.advance)
    finally:
        progress.end()


def _metadata(listing: hub.Listing, file: hub.HubFile) -> HfFileMetadata:
    """Ask where a file is; its etag is the name of its blob."""
    from huggingface_hub import get_hf_file_metadata

    with hub.explained(listing.repo, listing.commit, file.file):
        metadata = get_hf_file_metadata(
            hub_url(listing, file), timeout=hub.TIMEOUT_S, headers=_headers(), endpoint=hub.endpoint()
        )
    if metadata.etag is None or not _BLOB.fullmatch(metadata.etag) or metadata.size != file.size_bytes:
        raise FetchError(
            f"{hub.endpoint()} says two things of {file.file}: {file.size_bytes} bytes in the list, {metadata.size} "
            f"bytes and etag {metadata.etag} for the file; try again later"
        )
    return metadata


def _linked(listing: hub.Listing, file: hub.HubFile) -> Path:
    """Let huggingface_hub put the blob, which is there, into the snapshot."""
    from huggingface_hub import hf_hub_download

    with hub.explained(listing.repo, listing.commit, file.file):
        return Path(
            hf_hub_download(
                listing.repo, file.file, revision=listing.commit, cache_dir=hub_cache.hub_cache_dir(),
                endpoint=hub.endpoint(), library_name="edge-nudge",
            )
        )  # fmt: skip


def hub_url(listing: hub.Listing, file: hub.HubFile) -> str:
    """Return the address of a file at its commit."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repo, file.file, revision=listing.commit, endpoint=hub.endpoint())


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    headers: dict[str, str] = build_hf_headers(library_name="edge-nudge")
    return headers


@contextmanager
def _kept(repo: str) -> Iterator[None]:
    """Say what a disk that is full or forbidden means."""
    try:
        yield
    except OSError as error:
        place = hub_cache.repo_folder(repo)
        if error.errno in _NO_ROOM:
            raise FetchError(
                f"the disk of {place} is full ({error.strerror}): make room and try again, what is there is kept and "
                f"continued; or set HF_HOME to a folder on a larger disk"
            ) from error
        raise FetchError(
            f"{place} cannot be written ({error}): give access there, or set HF_HOME to another folder"
        ) from error


def _blobs(repo: str) -> Path:
    return hub_cache.repo_folder(repo) / "blobs"


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
