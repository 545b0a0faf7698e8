"""How much memory a pair needs, and what of it is not on this machine.

Owns the choice between the two sources: the headers of the files where they are here, the manifest's figures where
they are not. Never fetches and never loads.

1. By files the figure is that of `estimate` and of the check before loading, with all layers on the CPU: it says what
   a pair needs, not what this machine has.
2. Files that cannot be used have no figure of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge.core.events import Role
from edge_nudge.errors import EdgeNudgeError

if TYPE_CHECKING:
    from edge_nudge.catalog.fields import PairManifest
    from edge_nudge.catalog.store import Wanted
    from edge_nudge.engine.fitting import Plan
    from edge_nudge.engine.gguf import GgufHeader

_CTX_SIZE, _KV_TYPE = 4096, "f16"  # catalog/fields.py, DEFAULT_CTX; --help imports no pydantic


def plan_of_files(paths: Mapping[Role, Path | None], *, n_ctx: int = _CTX_SIZE) -> Plan | None:
    """Return the plan for a pair's files on the CPU alone; None where one is missing or cannot be used."""
    from edge_nudge.engine.devices import Machine
    from edge_nudge.spec import PairSpec, plan_load

    base, nudging = paths[Role.BASE], paths[Role.NUDGING]
    if base is None or nudging is None:
        return None
    try:
        return plan_load(
            PairSpec(base, nudging),
            ctx_size=n_ctx,
            kv_types=dict.fromkeys(Role, _KV_TYPE),
            gpu_layers=dict.fromkeys(Role, 0),
            machine=Machine(None, None, None),
        )
    except EdgeNudgeError:  # told by whatever uses the files
        return None


def bytes_of(plan: Plan, role: Role | None = None) -> int:
    """Return what the plan needs, or one model of it."""
    return sum(part.n_bytes for part in plan.estimate.parts if role in (None, part.role))


def bytes_of_file(header: GgufHeader) -> int:
    """Return what one model needs beside the program."""
    from edge_nudge.engine.devices import Machine
    from edge_nudge.engine.fitting import plan_pair

    plan = plan_pair(
        {Role.BASE: header}, ctx_size=_CTX_SIZE, kv_types={Role.BASE: _KV_TYPE}, gpu_layers={Role.BASE: 0},
        machine=Machine(None, None, None),
    )  # fmt: skip
    return bytes_of(plan, Role.BASE)


def not_here(values: Mapping[str, Any]) -> tuple[PairManifest, list[Wanted]] | None:
    """Return the named pair and its models that are missing; None where all is here, or files are given instead.

    Raises InputError, ModelFileError.
    """
    from edge_nudge.catalog.manifest import load_manifest
    from edge_nudge.catalog.store import missing_models

    if any(values[name] is not None for name in ("base", "nudge", "nudge_lora")):
        return None
    manifest = load_manifest(values["pair"] or "demo")
    missing = missing_models(manifest)
    return (manifest, missing) if missing else None


def how_to_get(manifest: PairManifest, missing: list[Wanted]) -> str:
    """Say how the missing models are got, and how much that is."""
    from edge_nudge.catalog.files import megabytes

    sizes = [wanted.download_bytes for wanted in missing]
    size = "" if None in sizes else f", {megabytes(sum(size or 0 for size in sizes))} to fetch"
    return f"'edge-nudge pull {manifest.name}' gets {'it' if len(missing) == 1 else 'them'}{size}"
