"""Getting models from the hub: what a pair's manifest names, or what somebody typed.

Owns the order: ask the hub, say what it is and how much, make sure there is room, fetch, note that it is ours.

1. A revision that is gone is replaced by the repository's present state only if that has the sha256 of the manifest.
2. What is said of sizes comes from the hub's listing, not from a manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_nudge.catalog import hub, hub_cache, hub_fetch, ledger
from edge_nudge.catalog.fields import HubSource, ModelEntry
from edge_nudge.catalog.files import megabytes
from edge_nudge.catalog.progress import Progress
from edge_nudge.errors import FetchError, InputError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class HubModel:
    """One model of a repository, all of its parts, as the hub lists it now. `is_main`: it was asked for without a
    revision."""

    listing: hub.Listing
    files: tuple[hub.HubFile, ...]
    is_main: bool
    sha256: str | None = None  # what it must be

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def left_bytes(self) -> int:
        """What is still to be fetched, an earlier run's bytes counted."""
        return self.size_bytes - sum(hub_fetch.bytes_there(self.listing.repo, file) for file in self.files)


def ask_hub(model: ModelEntry, source: HubSource, *, say: Say) -> HubModel:
    """Return what the hub has of a manifest's model. Raises FetchError."""
    hub.demand_client(f"{source.repo}:{model.file}")
    try:
        listing = hub.list_repo(source.repo, source.revision)
        is_main = source.revision is None
    except FetchError as error:
        if source.revision is None or model.sha256 is None or not hub.is_vanished(error):
            raise
        listing, is_main = hub.list_repo(source.repo), True
        if not any(file.sha256 == model.sha256 for file in listing.files):
            raise
        say(f"{source.repo} no longer has revision {source.revision[:12]}; the same file is in its present state.")
    files = tuple(file for file in listing.files if file.file == model.file)
    if not files and model.sha256 is not None:
        files = tuple(file for file in listing.files if file.sha256 == model.sha256)[:1]
    if not files:
        raise FetchError(
            f"{source.repo} has no file {model.file} any more: its owner renamed or removed it; "
            f"look at {hub.endpoint()}/{source.repo}"
        )
    if model.size_bytes is not None and files[0].size_bytes != model.size_bytes:
        raise FetchError(
            f"{source.repo} has another {model.file} than expected: {files[0].size_bytes} bytes instead of "
            f"{model.size_bytes}; nothing was fetched"
        )
    return HubModel(listing, files, is_main, model.sha256)


def ask_hub_by_name(name: hub.HubName) -> HubModel:
    """Return what the hub has under a name. Raises FetchError, and InputError for a name that fits none or several."""
    hub.demand_client(str(name))
    listing = hub.list_repo(name.repo)
    return HubModel(listing, hub.choose(listing.files, name), is_main=True)


def in_cache(model: HubModel) -> list[Path]:
    """Return which parts of a model the cache has, whole and right."""
    repo, commit = model.listing.repo, model.listing.commit
    places = [(hub_cache.cached_file(repo, file.file, commit), file) for file in model.files]
    return [path for path, file in places if path is not None and hub_fetch.is_right(path, file)]


def fetch(model: HubModel, *, say: Say, progress: Progress) -> list[Path]:
    """Fetch all parts of a model that are not in the cache. Raises FetchError."""
    hub.demand_access(model.listing)
    hub_fetch.check_room(model.left_bytes)
    paths = []
    repo, commit = model.listing.repo, model.listing.commit
    for file in model.files:
        path, is_new = hub_fetch.fetch_file(
            model.listing, file, sha256=model.sha256, is_main=model.is_main, say=say, progress=progress
        )
        if is_new:
            try:
                ledger.note(repo, commit, file.file, file.size_bytes, file.sha256)
            except OSError as error:
                say(f"It cannot be noted that {file.file} was fetched ({error}): 'rm' will not know it.")
        paths.append(path)
    return paths


def fetch_from_hub(model: ModelEntry, source: HubSource, *, role: str, say: Say, progress: Progress) -> Path:
    """Fetch the model of a manifest. Raises FetchError."""
    asked = ask_hub(model, source, say=say)
    announce(asked, role=role, licence=model, say=say)
    try:
        return fetch(asked, say=say, progress=progress)[0]
    except InputError as error:
        raise FetchError(str(error)) from error


def demand_access(model: HubModel) -> None:
    """Raise FetchError where the owner asks for agreement and there is no token to show it."""
    hub.demand_access(model.listing)


def announce(model: HubModel, *, role: str, licence: ModelEntry | None, say: Say) -> None:
    """Say what is about to be fetched."""
    names = ", ".join(file.file for file in model.files)
    rest = model.left_bytes
    left = "" if rest == model.size_bytes else f", {megabytes(rest)} of it left to fetch"
    say(f"{f'{role} model: ' if role else ''}{names}, {megabytes(model.size_bytes)}{left}, from {model.listing.repo}")
    if licence is not None and licence.licence is not None:
        say(f"  licence: {licence.licence.name}, {licence.licence.url}")
        say(f"  {licence.licence.notice}")
