"""What a figure was measured on: the machine, the libraries, the memory the process took.

Owns how these are found. Never fails: what a system does not say is None.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import psutil

from edge_nudge.engine.machine import package_version, processor, text_of
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
            "llama-cpp-python": package_version("llama-cpp-python"),
            "numpy": package_version("numpy"),
            "python": platform.python_version(),
        },
    }


def peak_memory_bytes() -> int | None:
    """Return the peak of this process's resident memory; see PEAK_MEMORY_INCLUDES."""
    # getrusage begins with the peak of the process that started this one, where that was larger.
    peak_line = re.search(r"^VmHWM:\s+(\d+) kB$", text_of(Path("/proc/self/status")) or "", re.MULTILINE)
    if peak_line:
        return int(peak_line[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
