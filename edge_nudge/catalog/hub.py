"""Model repositories on the hub: their names, what is in them, and what the hub's refusals mean.

Owns `user/repo:QUANT` and the translation of every failure into a sentence. The requests themselves are
huggingface_hub's, an extra, imported on first use. Never writes a file; hub_fetch.py does.

1. A quantisation is matched as a whole word of a file's name: Q4_K never stands for Q4_K_M. All parts of a split
   model are one choice. Where several files answer to a name, none is taken and all are listed.
2. The hub's own listing says size and sha256 of a file before anything is fetched.
3. The endpoint is HF_ENDPOINT where that is set; offline (HF_HUB_OFFLINE, --offline) nothing is asked.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edge_nudge.catalog.hub_cache import is_offline
from edge_nudge.errors import FetchError, InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_QUANT = "Q4_K_M"
TIMEOUT_S = 20.0
_N_LISTED = 12
_PREFIX = re.compile(r"(?:https://)?(?:huggingface\.co|hf\.co)/")
_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<choice>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"-(?P<part>\d{5})-of-(?P<count>\d{5})(?=\.gguf$)", re.IGNORECASE)
_QUANT = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|F16|F32|FP16|FP32|MXFP4\w*)", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub as people write it: `user/repo`, `user/repo:QUANT` or `user/repo:FILE.gguf`."""

    repo: str
    choice: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}:{self.choice}" if self.choice else self.repo


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at one commit."""

    file: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The GGUF files of a repository at one commit. `is_gated`: its owner asks for agreement first."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    is_gated: bool


def parse_hub_name(text: str) -> HubName | None:
    """Return the hub name that a text is, None where it is none."""
    match = _NAME.fullmatch(_PREFIX.sub("", text, count=1))
    if match is None or (match["choice"] is None and text.lower().endswith(".gguf")):
        return None
    return HubName(match["repo"], match["choice"])


def endpoint() -> str:
    """Return the address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def quantisation(file: str) -> str | None:
    """Return the quantisation that a file's name states, None where it states none."""
    path = PurePosixPath(_PART.sub("", file))
    words = re.split(r"[.-](?!XL|K_XL)|/", path.as_posix().removesuffix(".gguf"))
    found = [word for word in words if _QUANT.fullmatch(word)]
    if not found:
        return None
    return f"UD-{found[-1]}" if f"UD-{found[-1]}".lower() in file.lower() else found[-1]


def choose(files: Sequence[HubFile], name: HubName) -> tuple[HubFile, ...]:
    """Return the file that `name` stands for, all of its parts in order.

    Raises InputError, listing what there is.
    """
    models: dict[str, list[HubFile]] = {}
    for file in files:
        if not _NO_MODEL.search(PurePosixPath(file.file).name):
            models.setdefault(_PART.sub("", file.file), []).append(file)
    if not models:
        raise InputError(f"{name.repo} has no GGUF file: choose a repository with GGUF in its name")
    chosen = _matching(list(models), name.choice or DEFAULT_QUANT)
    if not chosen and name.choice is None and len(models) == 1:
        chosen = list(models)
    if len(chosen) != 1:
        wanted = name.choice or f"{DEFAULT_QUANT} (the default)"
        what = "no file" if not chosen else f"{len(chosen)} files"
        listed = _listed(chosen or list(models))
        raise InputError(f"{name.repo} has {what} for {wanted}: name one as {name.repo}:FILE; there is {listed}")
    parts = sorted(models[chosen[0]], key=lambda file: file.file)
    match = _PART.search(parts[0].file)
    if match and len(parts) != int(match["count"]):
        raise InputError(
            f"{name.repo} has {len(parts)} of the {int(match['count'])} parts of {chosen[0]}: nothing to run"
        )
    return tuple(parts)


def _matching(models: list[str], choice: str) -> list[str]:
    lowered = _PART.sub("", choice).lower()
    exact = [model for model in models if lowered in (model.lower(), PurePosixPath(model).name.lower())]
    if exact or lowered.endswith(".gguf"):
        return exact
    named = [model for model in models if (quantisation(model) or "").lower() == lowered]
    return named or [model for model in models if (quantisation(model) or "").lower() == f"ud-{lowered}"]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _N_LISTED} more" if len(names) > _N_LISTED else ""
    return ", ".join(sorted(names)[:_N_LISTED]) + more


def list_repo(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub what a repository holds at `revision`, or now. Raises FetchError."""
    client = _client(repo)
    from huggingface_hub.hf_api import RepoFile

    with explained(repo, revision):
        info = client.model_info(repo, revision=revision, timeout=TIMEOUT_S)
        commit = info.sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise FetchError(f"{endpoint()} names no commit for {repo}: is it a hub?")
        files = []
        for entry in client.list_repo_tree(repo, recursive=True, revision=commit):
            if isinstance(entry, RepoFile) and entry.path.lower().endswith(".gguf"):
                sha256 = entry.lfs.sha256 if entry.lfs else None
                files.append(HubFile(entry.path, entry.lfs.size if entry.lfs else entry.size, sha256))
    return Listing(repo, commit, tuple(files), bool(info.gated))


def demand_access(listing: Listing) -> None:
    """Raise FetchError where a repository asks for agreement and there is no token to show it."""
    from huggingface_hub import get_token

    if listing.is_gated and not get_token():
        raise FetchError(_gated(listing.repo, has_token=False))


def demand_client(what: str) -> None:
    """Raise FetchError where the hub cannot be asked: offline, or without huggingface_hub."""
    if is_offline():
        raise FetchError(
            f"{what} is not on this machine, and the network is switched off (--offline or HF_HUB_OFFLINE): "
            f"try again without that"
        )
    if find_spec("huggingface_hub") is None:
        raise FetchError(
            f"{what} comes from the hub, and the package for that is missing: run "
            f"'python -m pip install \"edge-nudge[hub]\"' or 'python -m pip install huggingface_hub'"
        )


def _client(repo: str) -> HfApi:
    demand_client(repo)
    # Over plain HTTP a fetch is resumed at the byte where it stopped; must be set before the first import.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi

    library = logging.getLogger("huggingface_hub")
    if library.level == logging.WARNING and not logging.getLogger("edge_nudge").isEnabledFor(logging.INFO):
        library.setLevel(logging.ERROR)  # it warns of every try; what comes of them is told in the end
    return HfApi(endpoint=endpoint(), library_name="edge-nudge")


@contextmanager
def explained(repo: str, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into a FetchError that says what to do."""
    from huggingface_hub import errors

    # The HTTP library under it has changed once and may again: its errors are known by their common ancestor.
    ancestors = (base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    transport: type[BaseException] = next(ancestors, errors.HfHubHTTPError)
    try:
        yield
    except FetchError:
        raise
    except (errors.HfHubHTTPError, errors.HFValidationError, transport) as error:
        raise FetchError(_reason(error, repo, revision, file)) from error
    except (errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        raise FetchError(_unreachable(error)) from error


def is_vanished(error: BaseException) -> bool:
    """Tell whether a FetchError says that a revision is gone."""
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.RevisionNotFoundError)


def is_unreachable(error: BaseException) -> bool:
    """Tell whether a FetchError says that nobody answered."""
    return error.__cause__ is not None and getattr(error.__cause__, "response", None) is None


def _reason(error: BaseException, repo: str, revision: str | None, file: str | None) -> str:
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.GatedRepoError):
        return _gated(repo, has_token=bool(get_token()))
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision} any more: its owner replaced the files; look at {endpoint()}/{repo}"
    if isinstance(error, errors.RepositoryNotFoundError):
        token = "your token has no access to it" if get_token() else "it needs a token (HF_TOKEN or 'hf auth login')"
        return f"{endpoint()} knows no repository {repo}: check the spelling; if it is private, {token}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repo} has no file {file or ''} any more: its owner renamed or removed it; look at {endpoint()}/{repo}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo} cannot be the name of a repository: {error}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 429:
        return f"{endpoint()} asks to wait (too many requests): try again in a few minutes, or set HF_TOKEN"
    if status == 401:
        return f"{endpoint()} does not accept your token: make a new one, then 'hf auth login' or HF_TOKEN"
    if status is not None:
        return f"{endpoint()} answered with HTTP status {status} for {repo}: try again later"
    return _unreachable(error)


def _unreachable(error: BaseException) -> str:
    said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
    return (
        f"no connection to {endpoint()} ({said}): check the network and proxy (HTTPS_PROXY); "
        f"what is on this machine works without"
    )


def _gated(repo: str, *, has_token: bool) -> str:
    page = f"{endpoint()}/{repo}"
    if has_token:
        return (
            f"{repo} is gated, and your token may not read it: agree to its terms at {page} with the token's account, "
            f"or use a token that may read gated repositories"
        )
    return (
        f"{repo} is gated: agree to its terms at {page}, make a token at {endpoint()}/settings/tokens, "
        f"then run 'hf auth login' or set HF_TOKEN"
    )
