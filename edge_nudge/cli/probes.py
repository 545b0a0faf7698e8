"""What `doctor` looks at: each probe finds out one thing and says it in lines.

Owns the questions. Never prints, never repairs, never loads a model.

1. A probe returns its lines and the same as data; what it raises becomes its line, and the others go on.
2. Nothing here goes to a network.
3. Advice is given only for hardware that was seen.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_nudge.cli import configured, places
from edge_nudge.errors import InputError

WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
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
    from edge_nudge.catalog.store import models_dir
    from edge_nudge.engine.memory import mebibytes

    home = models_dir()
    files = {path.name: path.stat().st_size for path in sorted(home.glob("*.gguf"))}
    lines = [
        f"own: {home}, {_counted(len(files), 'model file')}, {mebibytes(sum(files.values()))}",
        *(f"  {name}, {mebibytes(n_bytes)}" for name, n_bytes in files.items()),
    ]
    others = {}
    for name, folders, sizes in _other_stores():
        is_there = any(os.path.isdir(folder) for folder in folders)
        others[name] = {
            "paths": [str(folder) for folder in folders],
            "is_there": is_there,
            "n_files": len(sizes),
            "bytes": sum(sizes),
        }
        held = f"{_counted(len(sizes), 'model file')}, {mebibytes(sum(sizes))}" if is_there else "not there"
        lines.append(f"{name}: {', '.join(map(str, folders))}, {held}")
    return Found(lines, {"own": {"path": str(home), "files": files}, "found": others})


def _other_stores() -> Iterator[tuple[str, Sequence[Path], list[int]]]:
    """Yield each store of other programs: its folders, and the sizes of its files, each blob once."""
    from edge_nudge.catalog import found, hub_cache

    for name, folders, files in (
        ("hugging face", (hub_cache.hub_cache_dir(),), found.hub_files),
        ("ollama", (found.ollama_dir(),), found.ollama_files),
        ("lm studio", found.lm_studio_dirs(), found.lm_studio_files),
        ("llama.cpp", (found.llama_cpp_dir(),), found.llama_cpp_files),
    ):
        yield name, folders, list({os.path.realpath(file.path): file.size_bytes for file in files()}.values())


def pairs() -> Found:
    from edge_nudge.catalog.manifest import known_pairs, user_pairs_dir
    from edge_nudge.catalog.store import find_pair

    known = known_pairs()
    state = {
        pair.name: "broken" if pair.manifest is None else "complete" if find_pair(pair.manifest) else "not here"
        for pair in known
    }
    own = [pair for pair in known if pair.place is not None]
    lines = [
        ", ".join(f"{name} ({what})" for name, what in state.items()),
        f"{_counted(len(own), 'pair')} of your own in {user_pairs_dir()}",
        *(f"  {pair.name}: {pair.fault}" for pair in own if pair.fault),
    ]
    return Found(lines, {"pairs": state, "own": {pair.name: pair.fault for pair in own}})


def servers() -> Found:
    from edge_nudge.endpoint import default_socket, has_unix_sockets, is_running, read_endpoints

    lines, data = [], []
    for endpoint in read_endpoints():
        state = "running" if is_running(endpoint) else "left behind by a crash"
        lines.append(f"{endpoint.model} at {endpoint.address}, process {endpoint.pid}: {state}")
        data.append({"model": endpoint.model, "address": endpoint.address, "pid": endpoint.pid, "state": state})
    socket = default_socket()
    if has_unix_sockets():
        lines.append(f"default socket: {socket}, {_socket_state(socket)}")
    return Found(lines or ["none"], {"servers": data, "default_socket": str(socket)})


def _socket_state(socket: Path) -> str:
    from edge_nudge.endpoint import can_connect

    if not os.path.lexists(socket):
        return "not there"
    try:
        return "somebody listens" if can_connect(socket) else "nobody listens"
    except OSError as error:
        return f"cannot be used ({error.strerror or error})"


def extras() -> Found:
    """What can be installed with edge-nudge[NAME], by the package's own list."""
    from importlib.metadata import PackageNotFoundError, requires

    from edge_nudge.engine.machine import package_version

    try:
        listed = requires("edge-nudge") or []
    except PackageNotFoundError:
        return Found(["edge-nudge is not installed as a package: its extras are not known"], {"extras": {}})
    needed: dict[str, list[str]] = {}
    for requirement in listed:
        match = re.match(r"(?P<package>[\w.-]+).*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"]", requirement)
        if match and match["extra"] != "dev":
            needed.setdefault(match["extra"], []).append(match["package"])
    versions = {extra: {name: package_version(name) for name in names} for extra, names in needed.items()}
    lines = []
    for extra, packages in versions.items():
        missing = [name for name, version in packages.items() if version is None]
        have = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        remedy = f"not installed: pip install 'edge-nudge[{extra}]'"
        lines.append(f"{extra}: {remedy}" if missing else f"{extra}: installed ({have})")
    return Found(lines, {"extras": versions})


def settings() -> Found:
    rows = [(f"{folder.name} folder", str(folder.path), folder.source) for folder in places.folders()]
    rows += [(name, value, "environment") for name, value in places.variables().items()]
    file = configured.config_path()
    rows.append(("settings file", str(file), "there" if file.is_file() else "not there"))
    try:
        of_file = configured.read_settings({})
        rows += [(setting.key, str(setting.value), setting.place) for setting in of_file.values()]
    except InputError as error:
        rows.append(("settings", "cannot be used", str(error)))
    lines = [f"{name}: {value} ({source})" for name, value, source in rows]
    return Found(lines, {name: {"value": value, "source": source} for name, value, source in rows})


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


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
    "pairs": pairs,
    "servers": servers,
    "extras": extras,
    "settings": settings,
    "batch costs": curves,
}
