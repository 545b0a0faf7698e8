"""Names of models where a file may be given: a path, `user/repo:QUANT`, or `ollama:name:tag`.

Owns the order in which a text is tried. Never asks the network: what is not on this machine is an error that says how
to get it.

1. What exists as a path is a path, whatever else it looks like.
2. A pair is no model: its name is refused with the option that takes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from edge_nudge.catalog import found, hub, hub_cache
from edge_nudge.catalog.manifest import list_manifests
from edge_nudge.errors import InputError, ModelFileError


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
