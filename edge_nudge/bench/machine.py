"""What a figure was measured on: the machine, the libraries, the memory the process took.

Owns how these are found. Never fails: what a system does not say is None.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from edge_nudge.version import __version__

PEAK_MEMORY_INCLUDES = (
    "the most memory of this process since it started: both models' weights as far as they were read, both caches, "
    "compute buffers, Python; not what a GPU holds"
)


def machine_document(threads: str) -> dict[str, Any]:
    """Return machine and versions; `threads` is the pair's own sentence."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "threads": threads,
        "versions": {
            "edge-nudge": __version__,
            "llama-cpp-python": _version("llama-cpp-python"),
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's name, with the vector and matrix units that decide about its speed where Linux tells."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
    units = [unit for unit in ("avx2", "avx512f", "amx_tile") if unit in fields.get("flags", "").split()]
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(units)})" if name and units else name or None


def peak_memory_bytes() -> int | None:
    """Return the peak of this process's resident memory; see PEAK_MEMORY_INCLUDES."""
    try:
        import resource
    except ImportError:  # Windows
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
