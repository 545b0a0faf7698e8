"""What `doctor` looks at: each probe finds out one thing and says it in lines.

Owns the questions. Never prints, never repairs, never loads a model.

1. A probe returns its lines and the same as data; what it raises becomes its line, and the others go on.
2. Nothing here goes to a network.
3. Advice is given only for hardware that was seen.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_PACKAGES = ("llama-cpp-python", "numpy", "pydantic", "click", "jinja2", "gguf", "psutil", "nvidia-ml-py")


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe has to say: lines for a reader, data for a program."""

    lines: Sequence[str]
    data: dict[str, Any] = field(default_factory=dict)


def program() -> Found:
    from edge_nudge.engine.machine import package_version
    from edge_nudge.version import __version__

    versions = {name: package_version(name) for name in _PACKAGES}
    system = platform.platform()
    lines = [
        f"edge-nudge {__version__}, Python {platform.python_version()} ({platform.python_implementation()}), {system}",
        ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()),
    ]
    data = {"edge-nudge": __version__, "python": platform.python_version(), "platform": system, "packages": versions}
    return Found(lines, data)


def library() -> Found:
    from edge_nudge.engine import native

    able = native.abilities()
    yes_no = {True: "yes", False: "no"}
    lines = [
        f"llama.cpp {able.version}, compiled for: {' '.join(able.features) or 'nothing special'}",
        f"GPU offload: {yes_no[able.can_offload]}; RPC: {yes_no[able.can_rpc]}; mapped files: "
        f"{yes_no[able.can_map]}; locked memory: {yes_no[able.can_lock]}",
    ]
    if not native.can_repack():
        lines.append("weights are not repacked: this build uses AMX, which some compilers break")
    data = {
        "version": able.version, "features": list(able.features), "gpu_offload": able.can_offload,
        "rpc": able.can_rpc, "mmap": able.can_map, "mlock": able.can_lock, "repacks": native.can_repack(),
    }  # fmt: skip
    return Found(lines, data)


def devices() -> Found:
    from edge_nudge.engine import native
    from edge_nudge.engine.devices import cards_present, find_gpus, nvidia_gpus
    from edge_nudge.engine.memory import mebibytes

    gpus, known, cards = find_gpus(), nvidia_gpus(), cards_present()
    can_offload = native.abilities().can_offload
    lines = [
        f"{gpu.name}: {gpu.description}, {mebibytes(gpu.free_bytes)} of {mebibytes(gpu.total_bytes)} free"
        f"{', the memory is the RAM' if gpu.is_shared else ''}"
        for gpu in gpus
    ] or ["no GPU that this build of llama.cpp can use"]
    seen = sorted({*cards, *(["NVIDIA"] if known else [])})
    if seen:
        names = ", ".join(gpu.description for gpu in known)
        lines.append(f"graphics cards present: {', '.join(seen)}{f' ({names})' if names else ''}")
    lines += gpu_advice(seen, has_driver=bool(known), is_used=bool(gpus), can_offload=can_offload)
    data = {
        "gpus": [
            {"name": gpu.name, "description": gpu.description, "free_bytes": gpu.free_bytes,
             "total_bytes": gpu.total_bytes, "is_shared": gpu.is_shared}
            for gpu in gpus
        ],
        "cards": seen,
    }  # fmt: skip
    return Found(lines, data)


def gpu_advice(cards: Sequence[str], *, has_driver: bool, is_used: bool, can_offload: bool) -> list[str]:
    """Return what to install for a card that is present and not used."""
    if is_used:
        return []
    if sys.platform == "darwin":
        is_apple = platform.machine() == "arm64"
        return ["Metal is not used: install llama-cpp-python again, without -DGGML_METAL=off"] if is_apple else []
    advice = []
    for card in cards:
        flag, wheel = {"NVIDIA": ("GGML_CUDA", "cu124"), "AMD": ("GGML_HIP", "rocm72")}.get(
            card, ("GGML_VULKAN", "vulkan")
        )
        if can_offload:
            advice.append(f"{card}: the build can offload, but finds no such card: is its driver installed?")
            continue
        if card == "NVIDIA" and not has_driver:
            advice.append("NVIDIA: no driver answers (NVML): install it, and pip install nvidia-ml-py")
        advice.append(
            f"{card}: present and not used. Install a build for it: pip install llama-cpp-python --force-reinstall "
            f"--no-cache-dir --only-binary llama-cpp-python --extra-index-url {WHEELS}/{wheel}, "
            f'or compile one: CMAKE_ARGS="-D{flag}=on" pip install llama-cpp-python --force-reinstall --no-cache-dir'
        )
    return advice


def threads() -> Found:
    from edge_nudge.engine.machine import default_threads, processor

    choice, name = default_threads(), processor()
    lines = [name or "an unknown processor", choice.reason]
    return Found(lines, {"processor": name, "n_threads": choice.n_threads, "reason": choice.reason})


def memory() -> Found:
    from edge_nudge.engine.devices import read_machine
    from edge_nudge.engine.memory import mebibytes

    machine = read_machine(with_gpus=False)

    def size(n_bytes: int | None) -> str:
        return "unknown" if n_bytes is None else mebibytes(n_bytes)

    swap = f"{size(machine.swap_free_bytes)} swap free, not counted" if machine.swap_free_bytes else "no swap"
    lines = [
        f"{size(machine.available_bytes)} of {size(machine.total_bytes)} RAM available, {swap}",
        *(
            f"control group: {limit.name} {size(limit.limit_bytes)}, {size(limit.used_bytes)} used"
            for limit in machine.limits
        ),
        *([] if machine.limits else ["no control group limits it"]),
        f"room for models: {size(machine.room_bytes)} ({machine.room_reason})",
    ]
    data = {
        "total_bytes": machine.total_bytes, "available_bytes": machine.available_bytes,
        "swap_free_bytes": machine.swap_free_bytes, "room_bytes": machine.room_bytes,
        "limits": [{"name": x.name, "limit_bytes": x.limit_bytes, "used_bytes": x.used_bytes} for x in machine.limits],
    }  # fmt: skip
    return Found(lines, data)


def stores() -> Found:
    from edge_nudge.catalog.manifest import list_manifests, load_manifest
    from edge_nudge.catalog.store import find_pair, models_dir
    from edge_nudge.engine.memory import mebibytes

    home = models_dir()
    files = {path.name: path.stat().st_size for path in sorted(home.glob("*.gguf"))}
    present = {name: find_pair(load_manifest(name)) is not None for name in list_manifests()}
    lines = [
        f"own: {home}, {len(files)} model files, {mebibytes(sum(files.values()))}",
        *(f"  {name}, {mebibytes(n_bytes)}" for name, n_bytes in files.items()),
        "pairs: " + ", ".join(f"{name} ({'complete' if there else 'not here'})" for name, there in present.items()),
    ]
    return Found(lines, {"own": {"path": str(home), "files": files}, "pairs": present})


def settings() -> Found:
    from edge_nudge.catalog.store import cache_dir, data_dir

    rows = []
    for name, variable, value in (
        ("data folder", "EDGE_NUDGE_DATA_DIR", data_dir()),
        ("cache folder", "EDGE_NUDGE_CACHE_DIR", cache_dir()),
    ):
        rows.append((name, str(value), f"from {variable}" if os.environ.get(variable) else "default"))
    named = {"EDGE_NUDGE_DATA_DIR", "EDGE_NUDGE_CACHE_DIR"}
    for variable in sorted(name for name in os.environ if name.startswith("EDGE_NUDGE_") and name not in named):
        is_secret = any(word in variable for word in _SECRET)
        rows.append((variable, "(set, not shown)" if is_secret else os.environ[variable], "environment"))
    lines = [f"{name}: {value} ({source})" for name, value, source in rows]
    return Found(lines, {name: {"value": value, "source": source} for name, value, source in rows})


def curves() -> Found:
    from edge_nudge.catalog.curves import costs_dir

    folder = costs_dir()
    files = sorted(folder.glob("*.json"))
    n_bytes = sum(path.stat().st_size for path in files)
    lines = [f"{len(files)} measured batch costs in {folder}, {n_bytes} bytes; deleting them only measures them anew"]
    return Found(lines, {"path": str(folder), "n_files": len(files)})


PROBES: dict[str, Callable[[], Found]] = {
    "program": program,
    "library": library,
    "devices": devices,
    "threads": threads,
    "memory": memory,
    "stores": stores,
    "settings": settings,
    "batch costs": curves,
}
