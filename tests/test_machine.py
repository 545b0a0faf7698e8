"""The default number of threads on machines, masks and quotas that are folders in tmp_path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edge_nudge.engine.machine import ThreadChoice, default_threads

V2 = "0::/\n"
V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"


class Machine:
    """A fake /proc and /sys, an affinity mask and psutil's answer."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.sys, self._patch = root / "proc", root / "sys", monkeypatch

    def has(
        self, n_cpus: int, *, per_core: int = 1, mask: set[int] | None = None, physical: int | None = None,
        topology: str | None = "core_cpus_list", cgroup: str | None = V2,
    ) -> Machine:  # fmt: skip
        """Make `n_cpus` CPUs, `per_core` of them on one core; siblings are n_cores apart, as on most machines."""
        n_cores = n_cpus // per_core
        for cpu in range(n_cpus):
            siblings = ",".join(str(cpu % n_cores + n_cores * thread) for thread in range(per_core))
            if topology:
                self.write(self.sys / f"devices/system/cpu/cpu{cpu}/topology/{topology}", siblings + "\n")
        if cgroup is not None:
            self.write(self.proc / "self/cgroup", cgroup)
        allowed = set(range(n_cpus)) if mask is None else mask
        self._patch.setattr(os, "sched_getaffinity", lambda _pid: allowed, raising=False)
        self._patch.setattr(os, "cpu_count", lambda: n_cpus)
        self._patch.setattr(psutil, "cpu_count", lambda logical=True: n_cpus if logical else physical)
        return self

    def quota(self, text: str, folder: str = "", file: str = "cpu.max") -> Machine:
        return self.write(self.sys / "fs/cgroup" / folder / file, text)

    def write(self, path: Path, text: str) -> Machine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return self

    def threads(self) -> ThreadChoice:
        return default_threads(proc=self.proc, sys=self.sys)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_plain_machine(machine: Machine) -> None:
    assert machine.has(4).threads() == ThreadChoice(
        4, "4 threads: 4 CPUs allowed, 4 physical cores behind them, no quota"
    )


def test_one_cpu(machine: Machine) -> None:
    assert machine.has(1).threads() == ThreadChoice(1, "1 thread: 1 CPU allowed, 1 physical core behind them, no quota")


@pytest.mark.parametrize("topology", ["core_cpus_list", "thread_siblings_list"])
def test_hyperthreads_count_once(machine: Machine, topology: str) -> None:
    choice = machine.has(16, per_core=2, physical=99, topology=topology).threads()
    assert choice == ThreadChoice(8, "8 threads: 16 CPUs allowed, 8 physical cores behind them, no quota")


@pytest.mark.parametrize(("mask", "n"), [({0, 1}, 2), ({0, 8}, 1), ({0, 8, 3}, 2), (set(range(12)), 8)])
def test_cores_are_counted_within_the_mask(machine: Machine, mask: set[int], n: int) -> None:
    assert machine.has(16, per_core=2, mask=mask, physical=8).threads().n_threads == n


def test_two_cpus_of_quota_on_a_host_of_32(machine: Machine) -> None:
    choice = machine.has(32, per_core=2).quota("200000 100000\n").threads()
    assert choice == ThreadChoice(2, "2 threads: 32 CPUs allowed, 16 physical cores behind them, a quota of 2 CPUs")


@pytest.mark.parametrize(
    ("quota", "n"),
    [
        ("290000 100000", 2),
        ("50000 100000", 1),
        ("1 100000", 1),
        ("max 100000", 8),
        ("max", 8),
        ("", 8),
        ("what 100000", 8),
        ("200000", 8),
        ("200000 0", 8),
        ("-1 100000", 8),
        ("1600000 100000", 8),
    ],
)
def test_a_quota_is_rounded_down_and_garbage_is_none(machine: Machine, quota: str, n: int) -> None:
    assert machine.has(8).quota(quota).threads().n_threads == n


def test_the_least_quota_on_the_way_up_limits(machine: Machine) -> None:
    machine.has(16, cgroup="0::/user.slice/app.scope\n")
    machine.quota("800000 100000", "user.slice/app.scope").quota("300000 100000", "user.slice").quota("max 100000")
    choice = machine.threads()
    assert choice.n_threads == 3
    assert choice.reason.endswith("a quota of 3 CPUs")


def test_a_group_of_the_host_that_is_not_mounted_ends_at_the_mount(machine: Machine) -> None:
    machine.has(16, cgroup="0::/docker/0123abcd\n").quota("400000 100000")
    assert machine.threads().n_threads == 4


@pytest.mark.parametrize("cgroup", ["0::/../other\n", "0::/\n", "", None, "nonsense\n"])
def test_the_mount_itself_is_asked_where_the_group_is_unknown(machine: Machine, cgroup: str | None) -> None:
    machine.has(16, cgroup=cgroup).quota("400000 100000").quota("100000 100000", "../other")
    assert machine.threads().n_threads == (16 if cgroup == "nonsense\n" else 4)


def _set_v1(machine: Machine, folder: str, quota: str) -> None:
    machine.quota(quota, folder, "cpu.cfs_quota_us").quota("100000\n", folder, "cpu.cfs_period_us")


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_control_groups_of_version_1(machine: Machine, mount: str) -> None:
    machine.has(16, cgroup=V1)
    _set_v1(machine, f"{mount}/docker/abc", "250000\n")
    _set_v1(machine, mount, "-1\n")
    choice = machine.threads()
    assert choice.n_threads == 2
    assert choice.reason.endswith("a quota of 2.5 CPUs")


def test_only_the_cpu_controller_of_version_1_counts(machine: Machine) -> None:
    machine.has(16, cgroup="4:memory:/docker/abc\n2:cpuacct:/docker/abc\n")
    _set_v1(machine, "cpu/docker/abc", "250000\n")
    assert machine.threads().n_threads == 16


def test_version_2_beside_version_1(machine: Machine) -> None:
    machine.has(16, cgroup="1:cpu:/\n0::/app\n")
    _set_v1(machine, "cpu", "700000\n")
    assert machine.threads().n_threads == 7
    machine.quota("500000 100000", "unified/app")
    assert machine.threads().n_threads == 5


@pytest.mark.parametrize(("physical", "n"), [(4, 4), (64, 8), (None, 8), (0, 8)])
def test_without_topology_files_psutil_is_asked(machine: Machine, physical: int | None, n: int) -> None:
    choice = machine.has(8, topology=None, physical=physical).threads()
    assert choice.n_threads == n
    assert ("an unknown number of physical cores" in choice.reason) == (not physical)


def test_a_half_readable_topology_is_not_believed(machine: Machine) -> None:
    machine.has(8, physical=4)
    (machine.sys / "devices/system/cpu/cpu3/topology/core_cpus_list").unlink()
    assert machine.threads().n_threads == 4


def _raise(error: type[Exception]) -> Callable[..., object]:
    def fail(*_args: object) -> object:
        raise error

    return fail


def test_a_system_without_affinity_masks(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(8, topology=None, physical=6)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(psutil.Process, "cpu_affinity", _raise(AttributeError), raising=False)
    assert machine.threads() == ThreadChoice(6, "6 threads: 8 CPUs allowed, 6 physical cores behind them, no quota")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.threads().n_threads == 1


def test_windows_asks_psutil_for_the_mask(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(8, topology=None, physical=4)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _self: [0, 1, 2], raising=False)
    assert machine.threads().n_threads == 3


@pytest.mark.parametrize("error", [OSError, psutil.Error])
def test_a_mask_that_cannot_be_read_does_not_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    machine.has(8, topology=None, physical=4)
    monkeypatch.setattr(os, "sched_getaffinity", _raise(error))
    assert machine.threads().n_threads == 4


def test_this_machine_gets_a_number() -> None:
    choice = default_threads()
    assert 1 <= choice.n_threads <= (os.cpu_count() or 1)
    assert choice.reason.startswith(f"{choice.n_threads} thread")
