"""From two checked files and settings to a plan: how each model is loaded, and whether both fit on this machine.

Owns the joining of header, footprint, machine and estimate. Never loads a model.

1. What cannot work (a type of cache that a model's heads cannot have) is an InputError before anything is loaded.
2. The caches of earlier conversations are no part of the estimate: they get what it leaves, at most what was asked for.
3. Layers that were asked for are never changed; where none were asked for and there is a GPU, memory.py chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_nudge.core.events import Role
from edge_nudge.engine.devices import Machine, read_machine
from edge_nudge.engine.footprint import KV_BLOCKS, footprint_of
from edge_nudge.engine.gguf import GgufHeader
from edge_nudge.engine.memory import Estimate, Load, check_fit, choose_layers, estimate
from edge_nudge.errors import InputError


@dataclass(frozen=True, slots=True)
class Plan:
    """How a pair is to be loaded, and what that takes; `asked` are the GPU layers that were asked for."""

    headers: Mapping[Role, GgufHeader]
    estimate: Estimate
    asked: Mapping[Role, int | None]

    @property
    def chosen_layers(self) -> Mapping[Role, int | None]:
        """The GPU layers chosen here; None where they were asked for, or where there is no GPU to choose for."""
        has_gpu = bool(self.estimate.machine.gpus)
        loads = self.estimate.loads
        return {role: loads[role].n_offloaded if has_gpu and n is None else None for role, n in self.asked.items()}

    def cache_ram(self, asked: int) -> tuple[int, list[str]]:
        """Return how many MiB earlier conversations may keep, and what to tell a user where that is less than asked."""
        spare = self.estimate.spare_bytes
        found = asked if spare is None else min(asked, spare >> 20)
        told = f"caches of earlier conversations: {found} MiB instead of {asked}, more is not left of RAM"
        return found, [told] if found < asked else []

    def check(self) -> None:
        """Raise NoRoomError where the pair does not fit."""
        check_fit(self.estimate, self.asked)


def plan_pair(
    headers: Mapping[Role, GgufHeader],
    *,
    ctx_size: int,
    kv_types: Mapping[Role, str],
    gpu_layers: Mapping[Role, int | None],
    adapter: GgufHeader | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Return the plan for two checked files, or one and its adapter; `machine` None: this one, as it is now.

    Raises InputError.
    """
    loads = {}
    for role, header in headers.items():
        check_kv_type(kv_types[role])
        shape = footprint_of(header)
        refusal = shape.refuses(kv_types[role])
        if refusal:
            raise InputError(f"{role.value} model {header.path.name} {refusal}; use f16")
        extra = adapter.size_bytes if adapter and role is Role.NUDGING else 0
        loads[role] = Load(shape, _identity(header.path), ctx_size, kv_types[role], adapter_bytes=extra)
    machine = machine or read_machine()
    return Plan(headers, estimate(choose_layers(loads, machine, gpu_layers), machine), dict(gpu_layers))


def check_kv_type(kv_type: str) -> None:
    """Raise InputError for a type that no cache can have."""
    if kv_type not in KV_BLOCKS:
        raise InputError(f"unknown type of cache {kv_type!r}: choose one of {', '.join(KV_BLOCKS)}")


def _identity(path: Path) -> str:
    """Return a name that two paths share where they are one file."""
    try:
        return str(path.resolve())
    except (OSError, RuntimeError):  # a loop of links; the file has just been read, so it was changed meanwhile
        return str(path)
