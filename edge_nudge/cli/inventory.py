"""What `list` and `show` print: pairs, files, and what is known of them, as plain values.

Owns the names of the fields in --json and the wording of `show`. Never prints, and reads no more of a file than its
header.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge.catalog import found, ledger, store
from edge_nudge.catalog.fields import ModelEntry, PairManifest
from edge_nudge.catalog.files import megabytes, models_dir
from edge_nudge.catalog.manifest import KnownPair, known_pairs, list_manifests, load_manifest
from edge_nudge.catalog.names import locate_model
from edge_nudge.cli import needs
from edge_nudge.core.events import Role
from edge_nudge.errors import InputError, ModelFileError

if TYPE_CHECKING:
    from edge_nudge.engine.gguf import GgufHeader


def pairs() -> list[dict[str, Any]]:
    """Return every pair, whether its files are here, and what would have to be fetched."""
    return [_pair(pair) for pair in known_pairs()]


def own_files() -> list[dict[str, Any]]:
    """Return the files that this program fetched."""
    paths = [(file.name, file.path) for file in found.own_files()]
    paths += [(f"{note.repo}:{note.file}", note.path) for note in ledger.notes()]
    users = _pairs_of_paths()
    return [
        {"name": name, "path": str(path), "size_bytes": _size(path), "pairs": users.get(path, [])}
        for name, path in paths
    ]


def found_files() -> list[dict[str, Any]]:
    """Return the files that other programs hold, each with what its header says."""
    return [_found(file) for file in found.found_files() if file.store != "edge-nudge" and not _is_noted(file)]


def one(name: str) -> dict[str, Any]:
    """Return everything about a pair or a file. Raises InputError and ModelFileError."""
    if name in list_manifests():
        return {"pair": _full_pair(load_manifest(name))}
    return {"file": _file(name)}


def facts_of(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return what `show` prints, in its order."""
    return _pair_facts(document["pair"]) if "pair" in document else _file_facts(document["file"])


def size_text(n_bytes: int | None, *, is_rounded: bool = False) -> str:
    """Write a size for people; "?" where it is not known."""
    if n_bytes is None:
        return "?"
    if is_rounded and n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return megabytes(n_bytes)


def _pair(pair: KnownPair) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": pair.name,
        "place": None if pair.place is None else str(pair.place),
        "fault": pair.fault,
        "title": None, "is_complete": False, "n_here": 0, "fetch_bytes": None,
        "memory_bytes": None, "memory_from": None, "rule": None, "gamma": None,
    }  # fmt: skip
    if pair.manifest is None:
        return document
    manifest, paths = pair.manifest, _paths(pair.manifest)
    missing = [store.Wanted(role, model) for role, model in store.models_of(manifest) if paths[role] is None]
    sizes = [wanted.download_bytes for wanted in missing]
    return {
        **document,
        "title": manifest.title,
        "rule": manifest.rule.value,
        "gamma": manifest.gamma,
        "is_complete": not missing,
        "n_here": 2 - len(missing),
        "fetch_bytes": None if None in sizes else sum(size or 0 for size in sizes),
        **_memory(manifest, paths),
        **{role.value: _model(model, paths[role]) for role, model in store.models_of(manifest)},
    }


def _model(model: ModelEntry, path: Path | None) -> dict[str, Any]:
    return {
        "file": model.file,
        "quantization": model.quantization,
        "size_bytes": model.size_bytes,
        "about_bytes": model.nominal_bytes,
        "sha256": model.sha256,
        "source": model.source.model_dump(mode="json"),
        "path": None if path is None else str(path),
    }


def _full_pair(manifest: PairManifest) -> dict[str, Any]:
    place = next((pair.place for pair in known_pairs() if pair.name == manifest.name), None)
    document = _pair(KnownPair(manifest.name, manifest, place))
    plan = needs.plan_of_files(_paths(manifest))
    document["figures"] = None if manifest.figures is None else manifest.figures.model_dump()
    for role, model in store.models_of(manifest):
        document[role.value] |= {
            "licence": None if model.licence is None else model.licence.model_dump(),
            "verified": model.verified,
            "memory_bytes": model.memory_bytes() if plan is None else needs.bytes_of(plan, role),
        }
    document["base"]["prompt_format"] = manifest.base.prompt_format
    document["nudging"]["has_own_template"] = manifest.nudging.chat_template is not None
    document["nudging"]["thinking"] = manifest.nudging.thinking
    return document


def _pair_facts(pair: dict[str, Any]) -> list[tuple[str, str | None]]:
    figures = pair["figures"] or {}
    lines: list[tuple[str, str | None]] = [
        ("pair", pair["name"]),
        ("title", pair["title"]),
        ("manifest", pair["place"] or "shipped with edge-nudge"),
        ("here", _here_text(pair)),
        ("memory", _memory_text(pair)),
        ("gamma", f"{pair['gamma']:g}, rule {pair['rule']}"),
        ("figures", figures.get("summary", "none published")),
        ("from", figures.get("source")),
    ]
    for role in Role:
        model = pair[role.value]
        sha256 = model["sha256"] or "unknown: the hub's own listing says it when the file is fetched"
        size = size_text(model["about_bytes"])
        about = "" if model["size_bytes"] else "about "
        lines += [
            (f"{role.value} model", f"{model['file']}, {about}{size}"),
            ("  lies at", model["path"] or "not on this machine"),
            ("  source", _source_text(model["source"])),
            ("  sha256", sha256 if model["source"]["kind"] in ("wheels", "hub") else model["sha256"]),
            ("  licence", _licence_text(model["licence"])),
            ("  verified", model["verified"]),
        ]
        if role is Role.BASE:
            lines.append(("  prompt", f"format {model['prompt_format']}"))
        else:
            lines.append(("  template", "of the manifest" if model["has_own_template"] else "of the file"))
            lines.append(("  thinking", "switched off" if model["thinking"] == "off" else "has none"))
    return lines


def _memory(manifest: PairManifest, paths: dict[Role, Path | None]) -> dict[str, Any]:
    plan = needs.plan_of_files(paths)
    if plan is not None:
        return {"memory_bytes": needs.bytes_of(plan), "memory_from": "files"}
    n_bytes = manifest.memory_bytes()
    return {"memory_bytes": n_bytes, "memory_from": None if n_bytes is None else "manifest"}


def _memory_text(pair: dict[str, Any]) -> str:
    if pair["memory_from"] is None:
        return "not known before the files are here"
    where = "the files" if pair["memory_from"] == "files" else "the manifest: the files are not all here"
    size = size_text(pair["memory_bytes"], is_rounded=True)
    return f"about {size} with a context of 4096 tokens each, by {where}"


def _here_text(pair: dict[str, Any]) -> str:
    if pair["is_complete"]:
        return f"complete; use it with --pair {pair['name']}"
    size = size_text(pair["fetch_bytes"], is_rounded=True)
    return f"{pair['n_here']} of 2 models; 'edge-nudge pull {pair['name']}' gets the rest, about {size}"


def _source_text(source: dict[str, Any]) -> str:
    match source["kind"]:
        case "wheels":
            wheels = ", ".join(f"{wheel['package']} {wheel['version']}" for wheel in source["wheels"])
            return f"package index, through pip: {wheels}"
        case "hub":
            revision = f" at {source['revision']}" if source["revision"] else ""
            token = "; gated, needs a token" if source["needs_token"] else ""
            return f"hub, {source['repo']}{revision}{token}"
        case "ollama":
            return f"Ollama, {source['model']}"
    return f"file {source['path']}"


def _licence_text(licence: dict[str, str] | None) -> str | None:
    return None if licence is None else f"{licence['name']}, {licence['url']}"


def _found(file: found.FoundFile) -> dict[str, Any]:
    looked = found.look(file)
    return {
        "name": file.name,
        "store": file.store,
        "path": str(file.path),
        "size_bytes": looked.size_bytes or file.size_bytes,
        "sha256": file.sha256,
        "architecture": looked.architecture,
        "quantization": looked.quantization,
        "n_ctx_train": looked.n_ctx_train,
        "kind": looked.kind.kind if looked.kind else None,
        "why": looked.kind.why if looked.kind else None,
        "unusable": looked.unusable,
        "fault": looked.fault,
    }


def _file(name: str) -> dict[str, Any]:
    """Return what the header of a file says, and whose it is."""
    from edge_nudge.catalog.kinds import kind_of
    from edge_nudge.engine.gguf import read_model_file, why_unusable

    path = models_dir() / name if _is_stored(name) else locate_model(name)
    if not os.path.lexists(os.path.expanduser(path)) and os.sep not in name and not name.endswith(".gguf"):
        known = ", ".join(list_manifests())
        raise InputError(f"there is no pair, model or file {name!r}: the known pairs are {known}")
    header = read_model_file(path)
    kind = kind_of(header, (name, path.name))
    return {
        "path": str(header.path.absolute()),
        "parts": [str(part.absolute()) for part in header.parts],
        "owner": _owner(header.path.expanduser().absolute()),
        "name": header.name or None,
        "architecture": header.architecture or None,
        "quantization": header.quantization,
        "size_bytes": header.size_bytes,
        "n_ctx_train": header.n_ctx_train or None,
        "n_layers": header.n_layers or None,
        "n_vocab": header.n_vocab or None,
        "n_tensors": header.n_tensors,
        "licence": header.metadata.get("general.license"),
        "has_chat_template": header.has_chat_template,
        "can_switch_thinking": _can_switch_thinking(header),
        "kind": kind.kind,
        "why": kind.why,
        "unusable": why_unusable(header),
        "memory_bytes": None if why_unusable(header) else needs.bytes_of_file(header),
    }


def _file_facts(file: dict[str, Any]) -> list[tuple[str, str | None]]:
    licence = file["licence"]
    return [
        ("file", file["path"]),
        ("parts", str(len(file["parts"])) if len(file["parts"]) > 1 else None),
        ("of", file["owner"]),
        ("name", file["name"]),
        ("architecture", file["architecture"]),
        ("quantisation", file["quantization"]),
        ("size", f"{size_text(file['size_bytes'])} ({file['size_bytes']} bytes)"),
        ("context", f"trained for {file['n_ctx_train']} tokens" if file["n_ctx_train"] else None),
        ("layers", None if file["n_layers"] is None else str(file["n_layers"])),
        ("vocabulary", None if file["n_vocab"] is None else f"{file['n_vocab']} tokens"),
        ("memory", _file_memory_text(file["memory_bytes"])),
        ("licence", None if licence is None else str(licence)),
        ("template", _template_text(file)),
        ("kind", f"{file['kind']}: {file['why']}"),
        ("use", f"cannot be used: it {file['unusable']}" if file["unusable"] else _use_text(file)),
    ]


def _file_memory_text(n_bytes: int | None) -> str | None:
    if n_bytes is None:
        return None
    return f"about {size_text(n_bytes, is_rounded=True)} with a context of 4096 tokens, without the other model"


def _template_text(file: dict[str, Any]) -> str:
    if not file["has_chat_template"]:
        return "none"
    return "yes; thinking can be switched off, and is" if file["can_switch_thinking"] else "yes"


def _use_text(file: dict[str, Any]) -> str:
    if file["has_chat_template"]:
        return "as base model (-m) or as nudging model (--nudge)"
    return "as base model (-m); a nudging model needs a chat template"


def _can_switch_thinking(header: GgufHeader) -> bool:
    template = str(header.metadata.get("tokenizer.chat_template", ""))
    return any(word in template for word in ("enable_thinking", "thinking_budget", "thinking_mode"))


def _owner(path: Path) -> str:
    if path.parent == models_dir() or ledger.note_of(path) is not None:
        return "fetched by edge-nudge"
    mine = next((file.store for file in found.found_files() if file.path == path), None)
    return "a file of yours" if mine is None else f"another program's store ({mine}), used in place"


def _paths(manifest: PairManifest) -> dict[Role, Path | None]:
    """Return where the models are; a damaged store of another program counts as nothing."""
    return {role: _path(model) for role, model in store.models_of(manifest)}


def _path(model: ModelEntry) -> Path | None:
    try:
        return store.find_model(model, is_quick=True)
    except ModelFileError:
        return None


def _pairs_of_paths() -> dict[Path, list[str]]:
    users: dict[Path, list[str]] = {}
    for pair in known_pairs():
        if pair.manifest is not None:
            for path in _paths(pair.manifest).values():
                if path is not None:
                    users.setdefault(path, []).append(pair.name)
    return users


def _is_stored(name: str) -> bool:
    return "/" not in name and os.sep not in name and not os.path.exists(name) and (models_dir() / name).is_file()


def _is_noted(file: found.FoundFile) -> bool:
    return file.store == "hugging face" and ledger.note_of(file.path) is not None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
