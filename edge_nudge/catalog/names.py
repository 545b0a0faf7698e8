"""Names of models where a file may be given: a path, `user/repo:QUANT`, or `ollama:name:tag`.

Owns the order in which a text is tried. Never asks the network: what is not on this machine is an error that says how
to get it.

1. What exists as a path is a path, whatever else it looks like.
2. A pair is no model: its name is refused with the option that takes it.
3. A file whose name is a hash is called by the name its owner gives it, or by what it calls itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from edge_nudge.catalog import found, hub, hub_cache
from edge_nudge.catalog.manifest import list_manifests
from edge_nudge.errors import InputError, ModelFileError

_BLOB = re.compile(r"sha256[-:][0-9a-f]{64}")


def locate_model(text: str | Path, *, role: str = "") -> Path:
    """Return the file that a text names; a path is returned unchanged, there or not.

    `role` ("base", "nudging" or "") begins the message. Raises ModelFileError for a model that is not on this machine,
    InputError for a name that is none or stands for several.
    """
    if isinstance(text, Path) or _exists(text):
        return Path(text)
    about = f"{role} model {text}".lstrip()
    if text.startswith(found.OLLAMA_PREFIX):
        name = text.removeprefix(found.OLLAMA_PREFIX)
        path = found.ollama_path(name)
        if path is None:
            raise ModelFileError(
                f"{about} is not on this machine: Ollama has no {name or 'model without a name'} in "
                f"{found.ollama_dir()}; run 'ollama pull {name}', or 'edge-nudge list --all' to see what there is"
            )
        return path
    hub_name = hub.parse_hub_name(text)
    if hub_name is not None:
        return _cached(hub_name, about)
    if text in list_manifests():
        raise InputError(f"{about} is a pair, not a model: use --pair {text}")
    return Path(text)


def model_label(path: Path, own_name: str | None = None) -> str:
    """Return what people know a model file by: its name without the ending; of Ollama's blobs, the name of the model.

    `own_name` is what the file calls itself, if the caller knows. It comes from others: show it made visible.
    """
    if not _BLOB.fullmatch(path.name):
        return path.stem
    known = next((file.name for file in found.ollama_files() if file.path.name == path.name), None)
    return known or own_name or _own_name(path) or path.name


def _own_name(path: Path) -> str | None:
    from edge_nudge.engine.gguf import read_model_file

    try:
        return read_model_file(path).name or None
    except ModelFileError:  # whoever loads it says what is wrong
        return None


def cached_parts(name: hub.HubName) -> tuple[Path, ...]:
    """Return the file that a hub name stands for in the cache, all of its parts; () where the cache has none of the
    repository. Raises InputError where it has others."""
    cached = {file.file: file.path for file in hub_cache.cached_files(name.repo)}
    if not cached:
        return ()
    chosen = hub.choose([hub.HubFile(file, 0, None) for file in cached], name)
    return tuple(cached[file.file] for file in chosen)


def _cached(name: hub.HubName, about: str) -> Path:
    remedy = f"run 'edge-nudge pull {name}', or 'edge-nudge list --all' to see what there is"
    try:
        parts = cached_parts(name)
    except InputError as error:
        raise ModelFileError(f"{about} is not on this machine: in the cache, {error}; or {remedy}") from None
    if not parts:
        raise ModelFileError(f"{about} is not on this machine, as a file or in {hub_cache.hub_cache_dir()}: {remedy}")
    return parts[0]


def _exists(text: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(text))
    except ValueError:
        return False
