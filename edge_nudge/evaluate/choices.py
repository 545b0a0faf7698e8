"""A user's own choice for a pair: rule and threshold, written into the user's manifest.

Owns changing these two values and nothing else: comments, order and all other fields stay as they are. Needs the `eval`
extra, because only what measures a pair makes such a choice.

1. A shipped pair gets a manifest of the user's that extends it; a pair of two files one that names them.
2. The new text is validated as a manifest before the old file is replaced, and the file is replaced whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_nudge.catalog.fields import NAME, parse_toml, validate_manifest
from edge_nudge.catalog.files import write_whole
from edge_nudge.catalog.manifest import list_manifests, load_manifest, user_pairs_dir
from edge_nudge.core.request import Rule
from edge_nudge.errors import InputError
from edge_nudge.spec import PairSpec


def save_choice(spec: PairSpec, name: str, rule: Rule, gamma: float) -> Path:
    """Write rule and threshold of the pair `name` into the user's manifest and return its path.

    Raises InputError where the name is none, is another pair's, or the manifest cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a pair: use small letters, digits and '-', '_', '.'")
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = user_pairs_dir() / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else _beginning(spec, name)
        document = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    _check_owner(spec, name)
    document["rule"] = rule.value
    document["gamma"] = round(gamma, 6)
    text = tomlkit.dumps(document)
    if "extends" not in document:
        validate_manifest({"name": name, **parse_toml(text, where=str(path))}, where=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    load_manifest(name)
    return path


def _check_owner(spec: PairSpec, name: str) -> None:
    """Raise InputError where the name belongs to another pair than the one that was measured."""
    if spec.name == name or name not in list_manifests():
        return
    known = load_manifest(name)
    files = [getattr(model.source, "path", None) for model in (known.base, known.nudging)]
    if files != [str(path.resolve()) for path in (spec.base, spec.nudging)]:
        raise InputError(f"there is a pair {name!r} of other models: choose another name")


def _beginning(spec: PairSpec, name: str) -> str:
    """Return a manifest that says which pair this is, and no more."""
    import tomlkit

    document: Any = tomlkit.document()
    if spec.name is not None:
        document.add(tomlkit.comment(f"Own settings for the pair {spec.name}."))
        document["extends"] = spec.name
        return str(tomlkit.dumps(document))
    if spec.nudging_adapter is not None:
        raise InputError("a pair of a base model and an adapter has no manifest: give rule and gamma as options")
    document.add(tomlkit.comment("A pair of two files on this machine."))
    document["title"] = f"{spec.base.name} nudged by {spec.nudging.name}"
    document["gamma"] = 0.0  # replaced at once; it has to stand before the tables
    document["rule"] = Rule.TOP_PROB.value
    document["name"] = name
    for role, file in (("base", spec.base), ("nudging", spec.nudging)):
        model = tomlkit.table()
        if role == "base":
            model["prompt_format"] = spec.base_prompt_format
        source = tomlkit.table()
        source["kind"], source["path"] = "file", str(file.resolve())
        model["source"] = source
        document[role] = model
    return str(tomlkit.dumps(document))
