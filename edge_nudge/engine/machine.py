"""Decide how many threads decoding gets, one for each core this process may really use; name processor and packages.

Owns the reading of affinity, core topology and container quotas. Never starts a thread, never changes an affinity,
never fails: what cannot be read does not limit.

1. The number is the least of physical cores within the affinity mask and the quota rounded down, and at least 1.
2. A quota of any parent group counts too; the least one on the way up limits.
3. The reason is a sentence with every number that was looked at.

One thread more than there are free cores costs a factor of 6 (2 to 12 ms a step), one fewer a part: so round down.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

V2_MOUNTS = ("fs/cgroup", "fs/cgroup/unified")
_V1_MOUNTS = ("fs/cgroup/cpu", "fs/cgroup/cpu,cpuacct", "fs/cgroup/cpuacct,cpu")


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """A number of threads and the sentence that explains it."""

    n_threads: int
    reason: str


def default_threads(*, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> ThreadChoice:
    """Choose the number of threads for one decode step; `proc` and `sys` are the roots that Linux mounts there."""
    allowed = _allowed_cpus()
    n_allowed = len(allowed) if allowed else os.cpu_count() or 1
    n_cores = _cores_within(allowed, sys)
    quota = _quota(proc, sys)
    limits = [n_allowed, *([n_cores] if n_cores else []), *([int(quota)] if quota is not None else [])]
    n_threads = max(1, min(limits))
    cores = _counted(n_cores, "physical core") if n_cores else "an unknown number of physical cores"
    quota_part = "no quota" if quota is None else f"a quota of {quota:.4g} CPUs"
    reason = f"{_counted(n_threads, 'thread')}: {_counted(n_allowed, 'CPU')} allowed, {cores} behind them, {quota_part}"
    return ThreadChoice(n_threads, reason)


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


def package_version(package: str) -> str | None:
    """Return the version of an installed package, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _allowed_cpus() -> frozenset[int]:
    """Return the CPUs this process may run on; empty where the system does not say (macOS)."""
    try:
        if hasattr(os, "sched_getaffinity"):
            return frozenset(os.sched_getaffinity(0))
        return frozenset(psutil.Process().cpu_affinity())  # Windows, FreeBSD
    except (AttributeError, OSError, psutil.Error):
        return frozenset()


def _cores_within(allowed: frozenset[int], sys: Path) -> int | None:
    """Count the physical cores behind the allowed CPUs; two hyperthreads of one core count once."""
    siblings = {_siblings(sys / f"devices/system/cpu/cpu{cpu}/topology") for cpu in allowed}
    if siblings and None not in siblings:
        return len(siblings)
    n_cores: int | None = psutil.cpu_count(logical=False)
    return n_cores or None


def _siblings(topology: Path) -> str | None:
    """Return the list of CPUs on one core, the same text for each of them; the first name is the newer one."""
    return text_of(topology / "core_cpus_list") or text_of(topology / "thread_siblings_list")


def _quota(proc: Path, sys: Path) -> float | None:
    """Return the least CPU quota, in CPUs, of this process's control group and its parents; None without one."""
    quotas: list[float] = []
    for line in (text_of(proc / "self/cgroup") or "0::/").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0" and not controllers:
            quotas += [q for folder in groups_upward(sys, V2_MOUNTS, group) if (q := _v2_quota(folder)) is not None]
        elif "cpu" in controllers.split(","):
            quotas += [q for folder in groups_upward(sys, _V1_MOUNTS, group) if (q := _v1_quota(folder)) is not None]
    return min(quotas, default=None)


def groups_upward(sys: Path, mounts: tuple[str, ...], group: str) -> list[Path]:
    """Return the folders of a group and its parents under each mount.

    A container may see its group's path on the host, of which nothing is mounted: the walk then ends at the mount
    itself, which is the container's own group. A path with ".." lies outside what is mounted.
    """
    steps = [step for step in group.split("/") if step]
    steps = [] if ".." in steps else steps
    return [sys.joinpath(mount, *steps[:n]) for mount in mounts for n in range(len(steps), -1, -1)]


def _v2_quota(folder: Path) -> float | None:
    quota, _, period = (text_of(folder / "cpu.max") or "max").partition(" ")
    return _share(quota, period)


def _v1_quota(folder: Path) -> float | None:
    return _share(text_of(folder / "cpu.cfs_quota_us") or "-1", text_of(folder / "cpu.cfs_period_us") or "")


def _share(quota: str, period: str) -> float | None:
    """Return quota / period, both in microseconds; None for "max", -1 and anything that is not a number."""
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except (OSError, ValueError):
        return None
