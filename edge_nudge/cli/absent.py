"""The estimate of a pair that is not on this machine, from the figures of its manifest.

Owns the arithmetic and how it is told. Never fetches, and never looks for a file.

1. All layers are counted for the CPU; what a GPU has free counts as room beside the RAM, because a plan for it needs
   the headers of the files.
2. Every text says that the figures come from the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_nudge.catalog.fields import ModelEntry, PairManifest
from edge_nudge.catalog.store import models_of
from edge_nudge.core.events import Role
from edge_nudge.core.visible import visible


@dataclass(frozen=True, slots=True)
class AbsentEstimate:
    """About what a pair needs; `room_bytes` is None where nobody says."""

    manifest: PairManifest
    n_ctx: int
    kv_types: Mapping[Role, str]
    parts: Mapping[Role, Mapping[str, int]]
    program_bytes: int
    room_bytes: int | None
    room_reason: str

    @property
    def needed_bytes(self) -> int:
        return self.program_bytes + sum(sum(parts.values()) for parts in self.parts.values())

    @property
    def fits(self) -> bool:
        return self.room_bytes is None or self.needed_bytes <= self.room_bytes

    def text(self, remedy: str) -> str:
        """Return it for a reader; `remedy` says how the files are got."""
        from edge_nudge.engine.memory import mebibytes

        lines = []
        for role, model in models_of(self.manifest):
            parts = ", ".join(f"{what} {mebibytes(n)}" for what, n in self.parts[role].items())
            total = mebibytes(sum(self.parts[role].values()))
            kind = model.quantization or "unknown quantisation"
            lines.append(f"{role.value} model: {model.file} ({kind}), {self.kv_types[role]} cache: about {total}")
            lines.append(f"  {parts}")
        free = "unknown" if self.room_bytes is None else mebibytes(self.room_bytes)
        lines += [
            f"program: {mebibytes(self.program_bytes)}",
            f"needed: about {mebibytes(self.needed_bytes)} at a context of {self.n_ctx} tokens; free: {free} "
            f"({self.room_reason})",
            "",
            f"From the manifest, because the files are not all here: {remedy}.",
            "It fits." if self.fits else "It does not fit: try a smaller -c, or a smaller pair.",
        ]
        return "".join(f"{visible(line)}\n" for line in lines)

    def document(self, missing: Sequence[Role]) -> dict[str, Any]:
        """Return it with the names that an estimate by files has; what only files say is null."""
        return {
            "fits": self.fits,
            "source": "manifest",
            "missing": [role.value for role in missing],
            "models": {role.value: self._model(role, model) for role, model in models_of(self.manifest)},
            "parts": [
                {"model": None, "device": "RAM", "what": "program", "bytes": self.program_bytes},
                *(
                    {"model": role.value, "device": "RAM", "what": what, "bytes": n_bytes}
                    for role, parts in self.parts.items()
                    for what, n_bytes in parts.items()
                ),
            ],
            "devices": [
                {"device": "RAM", "needed_bytes": self.needed_bytes, "free_bytes": self.room_bytes,
                 "limited_by": self.room_reason, "fits": self.fits}
            ],
            "proposals": [],
            "measured_peak_bytes": None,
        }  # fmt: skip

    def _model(self, role: Role, model: ModelEntry) -> dict[str, Any]:
        return {
            "file": model.file, "quantization": model.quantization, "n_ctx": self.n_ctx, "n_ctx_train": None,
            "kv_type": self.kv_types[role], "gpu_layers": 0, "layers": None,
        }  # fmt: skip


def estimate_of(manifest: PairManifest, n_ctx: int, kv_types: Mapping[Role, str]) -> AbsentEstimate | None:
    """Return about what a pair needs, None where its manifest does not say."""
    from edge_nudge.engine.devices import read_machine
    from edge_nudge.engine.memory import PROGRAM_BYTES

    parts = {}
    for role, model in models_of(manifest):
        found = model.memory_parts(n_ctx, kv_types[role])
        if found is None:
            return None
        parts[role] = found
    machine = read_machine()
    cards = sum(gpu.free_bytes for gpu in machine.gpus if not gpu.is_shared)
    room = None if machine.room_bytes is None else machine.room_bytes + cards
    reason = f"{machine.room_reason} and GPU memory" if cards else machine.room_reason
    return AbsentEstimate(manifest, n_ctx, kv_types, parts, PROGRAM_BYTES, room, reason)
