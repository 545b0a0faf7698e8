"""What memory there is: free RAM, the limits of control groups and their parents, swap, GPUs.

Owns the reading of these. Never loads a model and never decides whether something fits.

1. Nothing here fails: what cannot be read does not limit, and is None.
2. A control group's room is its limit less what it uses, where pages of files that can be dropped are not used; the
   least room on the way up limits (version 2: memory.max and memory.high; version 1: limit_in_bytes).
3. Swap is told, and never counted as room: a model that is swapped out writes a word in minutes.
4. The GPUs are llama.cpp's; where NVML (nvidia-ml-py) knows one by the same name, the lower free memory counts.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from edge_nudge.engine.machine import V2_MOUNTS, groups_upward, text_of

_V1_MOUNTS = ("fs/cgroup/memory",)
_ENDLESS = 1 << 60  # version 1 writes no limit as the largest number of pages


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """One limit of a control group; `used_bytes` without what can be dropped."""

    name: str  # "memory.max", "memory.high", "memory.limit_in_bytes"
    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that llama.cpp can use; `is_shared`: its memory is the RAM."""

    name: str
    description: str
    free_bytes: int  # 0 where nobody says
    total_bytes: int
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory of this machine as this process may use it; None where the system does not say."""

    total_bytes: int | None
    available_bytes: int | None
    swap_free_bytes: int | None
    limits: tuple[GroupLimit, ...] = ()
    gpus: tuple[Gpu, ...] = ()

    @property
    def room_bytes(self) -> int | None:
        """What may still be taken without swapping."""
        rooms = [limit.free_bytes for limit in self.limits]
        return min([*rooms, *([] if self.available_bytes is None else [self.available_bytes])], default=None)

    @property
    def room_reason(self) -> str:
        """Say what the room is limited by."""
        room = self.room_bytes
        by_group = next((limit for limit in self.limits if limit.free_bytes == room), None)
        if by_group is not None and room != self.available_bytes:
            return f"limited by the control group's {by_group.name}"
        return "available RAM"


def read_machine(*, with_gpus: bool = True, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Machine:
    """Read what is free now; with GPUs the native library is started."""
    total, available = _ram()
    return Machine(total, available, _swap(), tuple(group_limits(proc, sys)), find_gpus() if with_gpus else ())


def _ram() -> tuple[int | None, int | None]:
    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError, psutil.Error):
        return None, None
    return int(memory.total), int(memory.available)


def _swap() -> int | None:
    try:
        return int(psutil.swap_memory().free)
    except (OSError, RuntimeError, psutil.Error):  # needs /proc/vmstat, which some containers hide
        return None


def group_limits(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> list[GroupLimit]:
    """Return every memory limit of this process's control groups and their parents, the least room first."""
    found: list[GroupLimit] = []
    for line in (text_of(proc / "self/cgroup") or "0::/").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0" and not controllers:
            for folder in groups_upward(sys, V2_MOUNTS, group):
                found += _limits(folder, ("memory.max", "memory.high"), "memory.current", "")
        elif "memory" in controllers.split(","):
            for folder in groups_upward(sys, _V1_MOUNTS, group):
                found += _limits(folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")
    return sorted(found, key=lambda limit: limit.free_bytes)


def _limits(folder: Path, names: Sequence[str], usage: str, prefix: str) -> list[GroupLimit]:
    limits = {name: _number(folder / name) for name in names}
    if all(limit is None or limit >= _ENDLESS for limit in limits.values()):
        return []
    stat = dict(line.split(" ", 1) for line in (text_of(folder / "memory.stat") or "").splitlines() if " " in line)
    pages = (stat.get(f"{prefix}{kind}_file", "") for kind in ("inactive", "active"))
    droppable = sum(int(n) for n in pages if n.isdecimal())
    used = max(0, (_number(folder / usage) or 0) - droppable)
    return [GroupLimit(name, n, used) for name, n in limits.items() if n is not None and n < _ENDLESS]


def _number(path: Path) -> int | None:
    text = text_of(path) or ""
    return int(text) if text.isdecimal() else None


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that the llama.cpp build can use."""
    from edge_nudge.engine import native

    gpus = [
        Gpu(device.name, device.description, device.free_bytes, device.total_bytes, device.is_shared)
        for device in native.gpu_devices()
    ]
    return tuple(_with_nvml(gpus, nvidia_gpus()))


def _with_nvml(gpus: Sequence[Gpu], known: Sequence[Gpu]) -> list[Gpu]:
    """Take NVML's figure where one card, and only one, has the same name on both sides."""
    names = Counter(gpu.description for gpu in gpus)
    by_name = {
        gpu.description: gpu for gpu in known if sum(other.description == gpu.description for other in known) == 1
    }
    merged = []
    for gpu in gpus:
        seen = by_name.get(gpu.description) if names[gpu.description] == 1 else None
        frees = [n for n in (gpu.free_bytes, seen.free_bytes if seen else 0) if n]
        merged.append(replace(gpu, free_bytes=min(frees)) if frees else gpu)
    return merged


def nvidia_gpus() -> list[Gpu]:
    """Return the NVIDIA cards that NVML knows, whatever llama.cpp can use; empty without nvidia-ml-py or driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # the module is missing, or the driver: each its own class
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_nvml_gpu(nvml, index, handle) for index, handle in enumerate(handles)]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    name = nvml.nvmlDeviceGetName(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return Gpu(f"NVML{index}", text, int(memory.free), int(memory.total))


_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def cards_present(*, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[str]:
    """Return the vendors of the graphics cards that Linux shows, whatever this program can use of them."""
    found = {_VENDORS[vendor] for path in _glob(sys / "class/drm", "card*/device/vendor")
             if (vendor := text_of(path) or "") in _VENDORS}  # fmt: skip
    if _glob(dev, "nvidia[0-9]*"):
        found.add("NVIDIA")
    if (dev / "kfd").exists():
        found.add("AMD")
    return sorted(found)


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
