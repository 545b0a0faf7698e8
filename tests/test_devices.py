"""What memory there is, on machines made of files."""

from __future__ import annotations

import sys as python
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edge_nudge.engine import devices
from edge_nudge.engine.devices import Gpu, GroupLimit, Machine, cards_present, group_limits, nvidia_gpus, read_machine

GIB = 1 << 30


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "proc", tmp_path / "sys"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_version_2_counts_max_and_high_of_every_parent(roots: tuple[Path, Path]) -> None:
    proc, sys = roots
    write(proc, {"self/cgroup": "0::/user/job\n"})
    write(sys / "fs/cgroup", {
        "user/memory.max": "max\n", "user/memory.high": f"{6 * GIB}\n", "user/memory.current": f"{3 * GIB}\n",
        "user/memory.stat": f"anon 5\nactive_file {GIB // 2}\ninactive_file {GIB // 2}\n",
        "user/job/memory.max": f"{8 * GIB}\n", "user/job/memory.high": "max\n",
        "user/job/memory.current": f"{GIB}\n", "user/job/memory.stat": "anon 1\n",
    })  # fmt: skip
    assert group_limits(proc, sys) == [
        GroupLimit("memory.high", 6 * GIB, 2 * GIB), GroupLimit("memory.max", 8 * GIB, GIB),
    ]  # fmt: skip


def test_version_1_knows_no_limit_as_a_large_number(roots: tuple[Path, Path]) -> None:
    proc, sys = roots
    write(proc, {"self/cgroup": "4:memory:/job\n1:cpu:/job\n"})
    write(sys / "fs/cgroup/memory", {
        "memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": f"{9 * GIB}\n",
        "job/memory.limit_in_bytes": f"{2 * GIB}\n", "job/memory.usage_in_bytes": f"{GIB}\n",
        "job/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}\ntotal_active_file 0\n",
    })  # fmt: skip
    assert group_limits(proc, sys) == [GroupLimit("memory.limit_in_bytes", 2 * GIB, GIB * 3 // 4)]


@pytest.mark.parametrize("text", ["", "nonsense", "-1", "12 34", "1e9"])
def test_what_cannot_be_read_does_not_limit(roots: tuple[Path, Path], text: str) -> None:
    proc, sys = roots
    assert group_limits(proc, sys) == []
    write(sys / "fs/cgroup", {"memory.max": text, "memory.current": text, "memory.stat": text})
    assert group_limits(proc, sys) == []


def test_more_is_used_than_allowed(roots: tuple[Path, Path]) -> None:
    proc, sys = roots
    write(sys / "fs/cgroup", {"memory.max": "100", "memory.current": "200"})
    assert [limit.free_bytes for limit in group_limits(proc, sys)] == [0]


def test_the_least_room_limits_and_is_named() -> None:
    limit = GroupLimit("memory.max", 4 * GIB, GIB)
    assert Machine(64 * GIB, 32 * GIB, 0, (limit,)).room_bytes == 3 * GIB
    assert "memory.max" in Machine(64 * GIB, 32 * GIB, 0, (limit,)).room_reason
    assert Machine(64 * GIB, GIB, 0, (limit,)).room_bytes == GIB
    assert Machine(64 * GIB, GIB, 0, (limit,)).room_reason == "available RAM"
    assert Machine(None, None, None).room_bytes is None


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch, roots: tuple[Path, Path]) -> None:
    def refuse() -> None:
        raise OSError("no /proc")

    monkeypatch.setattr(devices.psutil, "virtual_memory", refuse)
    monkeypatch.setattr(devices.psutil, "swap_memory", refuse)
    assert read_machine(with_gpus=False, proc=roots[0], sys=roots[1]) == Machine(None, None, None)


def test_this_machine_says_something() -> None:
    machine = read_machine(with_gpus=False)
    assert machine.total_bytes is not None
    assert machine.available_bytes is not None
    assert 0 < machine.available_bytes <= machine.total_bytes


# --- GPUs


def nvml(monkeypatch: pytest.MonkeyPatch, *cards: tuple[str, int], fails: bool = False) -> list[str]:
    """Put a module in NVML's place; return the calls that open and close it."""
    calls: list[str] = []
    module: Any = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})

    def init() -> None:
        if fails:
            raise module.NVMLError("driver not loaded")
        calls.append("init")

    module.nvmlInit, module.nvmlShutdown = init, lambda: calls.append("shutdown")
    module.nvmlDeviceGetCount = lambda: len(cards)
    module.nvmlDeviceGetHandleByIndex = lambda index: cards[index]
    module.nvmlDeviceGetName = lambda card: card[0].encode()
    module.nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(free=card[1], total=2 * card[1])
    monkeypatch.setitem(python.modules, "pynvml", module)
    return calls


def test_nvml_is_opened_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = nvml(monkeypatch, ("RTX 4060", 5 * GIB))
    assert nvidia_gpus() == [Gpu("NVML0", "RTX 4060", 5 * GIB, 10 * GIB)]
    assert calls == ["init", "shutdown"]


def test_no_nvml_and_no_driver_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(python.modules, "pynvml", None)
    assert nvidia_gpus() == []
    nvml(monkeypatch, fails=True)
    assert nvidia_gpus() == []


def test_the_lower_of_two_figures_counts_where_a_card_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_nudge.engine import native

    found = [native.Device("CUDA0", "RTX 4060", 6 * GIB, 8 * GIB), native.Device("CUDA1", "T4", 0, 0)]
    monkeypatch.setattr(native, "gpu_devices", lambda: found)
    nvml(monkeypatch, ("RTX 4060", 5 * GIB), ("T4", 3 * GIB))
    assert [gpu.free_bytes for gpu in devices.find_gpus()] == [5 * GIB, 3 * GIB]
    nvml(monkeypatch, ("RTX 4060", 5 * GIB), ("RTX 4060", GIB))  # which of the two it is, nobody knows
    assert [gpu.free_bytes for gpu in devices.find_gpus()] == [6 * GIB, 0]


def test_cards_that_linux_shows(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/drm", {"card0/device/vendor": "0x8086\n", "card1/device/vendor": "0x1a03\n"})
    (tmp_path / "dev").mkdir()
    assert cards_present(sys=tmp_path / "sys", dev=tmp_path / "dev") == ["Intel"]
    write(tmp_path / "dev", {"nvidia0": "", "kfd": ""})
    assert cards_present(sys=tmp_path / "sys", dev=tmp_path / "dev") == ["AMD", "Intel", "NVIDIA"]
    assert cards_present(sys=tmp_path / "none", dev=tmp_path / "none") == []
