"""Pair manifests: which there are, the shipped ones and the user's own.

Owns where manifests are found and how a user's one replaces or extends a shipped one. Never looks at a model file.

1. The shipped manifests are resources of `edge_nudge.models`: the same from a wheel, an editable install or a checkout.
2. A user's `models/NAME.toml` in the configuration folder comes first. With `extends = "PAIR"` it takes a shipped
   pair and replaces the fields it names; without, it stands alone, also under the name of a shipped pair.
3. One faulty manifest of a user never hides the other pairs: its fault is told where it is asked for, and by `list`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from edge_nudge.catalog.fields import (
    NAME,
    BaseModelEntry,
    HubSource,
    Licence,
    ModelEntry,
    NudgingModelEntry,
    OllamaSource,
    PairManifest,
    Wheel,
    WheelSource,
    parse_manifest,
    parse_toml,
    validate_manifest,
)
from edge_nudge.catalog.files import config_dir, read_typed
from edge_nudge.errors import InputError

__all__ = [
    "BaseModelEntry",
    "HubSource",
    "KnownPair",
    "Licence",
    "ModelEntry",
    "NudgingModelEntry",
    "OllamaSource",
    "PairManifest",
    "Wheel",
    "WheelSource",
    "known_pairs",
    "list_manifests",
    "load_manifest",
    "parse_manifest",
    "user_pairs_dir",
]

# What stands for one decision goes as a whole: half of one source and half of another would be neither.
_WHOLE = frozenset({"source", "licence", "shape", "figures"})
# What is said of the bytes of one source is not true of another one.
_OF_A_SOURCE = ("file", "sha256", "size_bytes", "about_bytes", "quantization", "verified", "licence", "shape")


@dataclass(frozen=True, slots=True)
class KnownPair:
    """One pair of the catalog, or why there is none. `place` is None for a shipped one."""

    name: str
    manifest: PairManifest | None
    place: Path | None
    fault: str | None = None


def user_pairs_dir() -> Path:
    """Return the folder of the user's own manifests; it may not exist."""
    return config_dir() / "models"


def list_manifests() -> tuple[str, ...]:
    """Return the names of all pairs, sorted."""
    return tuple(sorted({*_shipped(), *_users()}))


def known_pairs() -> tuple[KnownPair, ...]:
    """Return every pair, sorted by name, the demo pair first; a faulty one with its fault."""
    users = _users()
    names = sorted(list_manifests(), key=lambda name: (name != "demo", name))
    return tuple(_known(name, users.get(name)) for name in names)


def _known(name: str, place: Path | None) -> KnownPair:
    try:
        return KnownPair(name, load_manifest(name), place)
    except InputError as error:
        return KnownPair(name, None, place, str(error))


def load_manifest(name: str) -> PairManifest:
    """Return a pair's manifest, the user's own before a shipped one.

    Raises InputError for a name that is unknown or no name, listing the known ones, and for a fault in a manifest.
    """
    users = _users()
    if name in users:
        return _load_user(name, users[name])
    shipped = _shipped()
    if not NAME.fullmatch(name) or name not in shipped:
        known = ", ".join(sorted({*shipped, *users})) or "none"
        raise InputError(f"unknown pair {name!r}: the known pairs are {known}")
    where = f"models/{name}.toml"
    return _named(parse_manifest(shipped[name], where=where), name, where)


def _load_user(name: str, path: Path) -> PairManifest:
    where = str(path)
    if not NAME.fullmatch(name):
        raise InputError(f"{where}: a pair's name has small letters, digits and '-', '_', '.': rename the file")
    text = read_typed(path, "manifest")
    if text is None:
        raise InputError(f"{where}: is not there: it was removed, or is a link to nothing")
    data = parse_toml(text, where=where)
    if "extends" in data:
        data = _extended(data, where)
    data.setdefault("name", name)
    return _named(validate_manifest(data, where=where), name, where)


def _extended(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of the shipped pair that `extends` names, with those of `data` in their place."""
    asked, shipped = data["extends"], _shipped()
    if not isinstance(asked, str) or asked not in shipped:
        raise InputError(f"{where}: extends: is {asked!r}, the shipped pairs are {', '.join(sorted(shipped))}")
    below = parse_toml(shipped[asked], where=f"models/{asked}.toml")
    del below["name"]  # the new one has the name of its file
    return _merged(below, {key: value for key, value in data.items() if key != "extends"})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    if "source" in above:
        below = {key: value for key, value in below.items() if key not in _OF_A_SOURCE}
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        is_deep = isinstance(value, Mapping) and isinstance(old, Mapping) and key not in _WHOLE
        both[key] = _merged(old, value) if is_deep and isinstance(old, Mapping) else value
    return both


def _named(manifest: PairManifest, name: str, where: str) -> PairManifest:
    if manifest.name != name:
        raise InputError(f"{where}: name: is {manifest.name!r}, must be {name!r} as in the file's name")
    return manifest


def _users() -> dict[str, Path]:
    """Return the paths of the user's manifests, by name."""
    try:
        return {path.name.removesuffix(".toml"): path for path in user_pairs_dir().iterdir() if _is_manifest(path)}
    except OSError:  # there is no such folder, or it cannot be read
        return {}


def _is_manifest(path: Path) -> bool:
    return path.suffix == ".toml" and not path.name.startswith(".")


def _shipped() -> dict[str, str]:
    """Read the text of every shipped manifest, by name."""
    try:
        folder = files("edge_nudge.models")
    except ModuleNotFoundError:  # run from a checkout that is not installed
        folder = Path(__file__).resolve().parents[2] / "models"
        if not folder.is_dir():
            raise
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }
