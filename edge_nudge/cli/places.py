"""The folders that this program uses and the environment variables that it reads: where each value comes from.

Owns the list of them, for `config` and `doctor`. Never creates a folder and never shows a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT = "default"
# Read by other programs as well, and by what we use of them.
FOREIGN = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OLLAMA_MODELS", "LLAMA_CACHE", "NO_COLOR")
KEY_VARIABLE = "EDGE_NUDGE_API_KEY"
_PREFIX = "EDGE_NUDGE_"
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_HIDDEN = "(set, not shown)"


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder; `source` is "default" or the variable that names it."""

    name: str
    path: Path
    variable: str
    source: str
    what: str


def folders(environment: Mapping[str, str] | None = None) -> tuple[Folder, ...]:
    """Return the folders, there or not."""
    from edge_nudge.catalog.files import cache_dir, config_dir, data_dir, state_dir
    from edge_nudge.endpoint import runtime_dir

    found = os.environ if environment is None else environment

    def folder(name: str, path: Path, what: str) -> Folder:
        variable = f"{_PREFIX}{name.upper()}_DIR"
        names = (variable, "XDG_RUNTIME_DIR") if name == "runtime" else (variable,)
        return Folder(name, path, variable, next((n for n in names if found.get(n)), DEFAULT), what)

    return (
        folder("config", config_dir(), "config.toml, and your own pairs in models/"),
        folder("data", data_dir(), "models that came as wheels"),
        folder("cache", cache_dir(), "hashes of files, measured batch costs"),
        folder("state", state_dir(), "the history of chat, and conversations that it rescued"),
        folder("runtime", runtime_dir(), "the server's socket and endpoint file"),
    )


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what is set of the variables that are read, folders apart; no secret is among the values."""
    found = os.environ if environment is None else environment
    of_folders = {folder.variable for folder in folders(found)}
    names = [name for name in found if name.startswith(_PREFIX) and name not in of_folders]
    names += [name for name in FOREIGN if found.get(name)]
    return {name: _HIDDEN if any(word in name for word in _SECRET) else _shown(found[name]) for name in sorted(names)}


def _shown(value: str) -> str:
    """Take a user's name and password out of an address."""
    return re.sub(r"//[^/@\s]*@", "//***@", value)
