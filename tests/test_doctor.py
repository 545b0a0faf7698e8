"""`edge-nudge doctor`: what is shown, what never is, and that it always ends."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cli_fakes import Invoke, invoker

from edge_nudge import endpoint
from edge_nudge.cli import doctor, probes
from edge_nudge.engine import devices, machine, native
from edge_nudge.engine.devices import Gpu, GroupLimit, Machine

pytestmark = pytest.mark.native
GIB = 1 << 30


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Invoke]:
    """A command line of a person whose names would be noticed in a text."""
    home = tmp_path / "homes" / "wilhelmina"
    home.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr(getpass, "getuser", lambda: "wilhelmina")
    monkeypatch.setattr(platform, "node", lambda: "attic-machine")
    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", str(home / "models of wilhelmina"))
    for invoke in invoker(monkeypatch, tmp_path):
        monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(home / "cache"))
        yield invoke


def test_every_probe_says_something(invoke: Invoke) -> None:
    ended = invoke("doctor")
    assert (ended.code, ended.err) == (0, "")
    topics = [line.split("  ")[0].strip() for line in ended.out.splitlines() if not line.startswith(" ")]
    assert topics == list(probes.PROBES)
    assert "could not be found out" not in ended.out
    assert "llama.cpp " in ended.out
    assert "RPC: " in ended.out
    assert "demo (not here)" in ended.out


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_nothing_personal_is_shown(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]) -> None:
    monkeypatch.setenv("EDGE_NUDGE_API_KEY", "swordfish")
    monkeypatch.setenv("EDGE_NUDGE_NOTE", "on attic-machine")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:swordfish@hub.example")
    out = invoke("doctor", *how).out
    for word in ("wilhelmina", "attic-machine", "swordfish"):
        assert word not in out
    assert "~/models of ***" in out
    assert "(set, not shown)" in out
    shown = invoke("doctor", "--paths", *how).out
    assert "homes/wilhelmina/models of wilhelmina" in shown
    assert "swordfish" not in shown


def test_a_probe_that_fails_says_so_and_ends_nothing(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> probes.Found:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(doctor, "PROBES", {"first": fail, "memory": probes.memory})
    ended = invoke("doctor")
    assert ended.code == 0
    first, *rest = ended.out.splitlines()
    assert first.startswith("first   could not be found out: PermissionError: [Errno 13] Permission denied")
    assert rest
    document = json.loads(invoke("doctor", "--json").out)
    assert "PermissionError" in document["first"]["failed"][0]
    assert document["memory"]["total_bytes"] > 0


def test_values_say_where_they_come_from(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(invoke("doctor", "--json").out)
    assert document["settings"]["data folder"]["source"] == "EDGE_NUDGE_DATA_DIR"
    monkeypatch.delenv("EDGE_NUDGE_DATA_DIR")
    document = json.loads(invoke("doctor", "--json").out)
    assert document["settings"]["data folder"]["source"] == "default"


def test_limits_and_gpus_are_listed(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = GroupLimit("memory.max", 4 * GIB, GIB)
    monkeypatch.setattr(devices, "read_machine", lambda with_gpus: Machine(64 * GIB, 32 * GIB, 2 * GIB, (limit,)))
    monkeypatch.setattr(devices, "find_gpus", lambda: (Gpu("CUDA0", "RTX 4060", 5 * GIB, 8 * GIB),))
    out = invoke("doctor").out
    assert "32.0 GiB of 64.0 GiB RAM available, 2.0 GiB swap free, not counted" in out
    assert "control group: memory.max 4.0 GiB, 1.0 GiB used" in out
    assert "room for models: 3.0 GiB (limited by the control group's memory.max)" in out
    assert "CUDA0: RTX 4060, 5.0 GiB of 8.0 GiB free" in out


# --- stores, pairs, servers, extras


def put_ollama(home: Path, *tags: str) -> None:
    blobs = home / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"sha256-{'a' * 64}").write_bytes(b"x" * 3 * (1 << 20))
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}", "size": 1}
    folder = home / "manifests" / "registry.ollama.ai" / "library" / "m"
    folder.mkdir(parents=True)
    for tag in tags:
        (folder / tag).write_text(json.dumps({"layers": [layer]}))


def test_stores_of_other_programs_are_counted_each_file_once(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama = Path.home() / "ollama"
    put_ollama(ollama, "1b", "latest")
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama))
    monkeypatch.setenv("LLAMA_CACHE", str(Path.home() / "nowhere"))
    out = invoke("doctor").out
    assert "ollama: ~/ollama, 1 model file, 3 MiB" in out
    assert "llama.cpp: ~/nowhere, not there" in out
    document = json.loads(invoke("doctor", "--json").out)["stores"]["found"]
    assert set(document) == {"hugging face", "ollama", "lm studio", "llama.cpp"}
    assert document["ollama"] == {"paths": ["~/ollama"], "is_there": True, "n_files": 1, "bytes": 3 << 20}


def test_pairs_of_the_user_and_what_is_wrong_with_them(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path.home() / "config"
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(config))
    (config / "models").mkdir(parents=True)
    (config / "models" / "bad.toml").write_text("gamma = 5")
    (config / "models" / "good.toml").write_text('extends = "demo"\ngamma = 0.5\n')
    out = invoke("doctor").out
    assert "2 pairs of your own in ~/config/models" in out
    assert "bad: ~/config/models/bad.toml: title: Field required" in out
    document = json.loads(invoke("doctor", "--json").out)["pairs"]
    assert document["own"]["good"] is None
    assert (document["pairs"]["bad"], document["pairs"]["good"]) == ("broken", "not here")


@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")
def test_servers_are_told_from_what_a_crash_left(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(folder))
    assert f"default socket: {folder}/edge-nudge.sock, not there" in invoke("doctor").out
    path = endpoint.default_socket()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        endpoint.write_endpoint(
            endpoint.Endpoint(pid=os.getpid(), socket=str(path), key="swordfish", model="demo", started=time.time())
        )
        out = invoke("doctor").out
        assert f"demo at {path}, process {os.getpid()}: running" in out
        assert "edge-nudge.sock, somebody listens" in out
        assert "swordfish" not in out + invoke("doctor", "--json").out
    assert f"demo at {path}, process {os.getpid()}: left behind by a crash" in invoke("doctor").out
    assert "edge-nudge.sock, nobody listens" in invoke("doctor").out


def test_extras_are_those_of_the_package(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "numpy>=1.26", "lm-eval[api]>=0.4; extra == 'lm-eval'", 'there>=1 ; extra == "hub"', "ruff; extra == 'dev'",
    ]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.requires", lambda name: listed)
    monkeypatch.setattr(machine, "package_version", lambda name: "2.0" if name == "there" else None)
    out = invoke("doctor").out
    assert "lm-eval: not installed: pip install 'edge-nudge[lm-eval]'" in out
    assert "hub: installed (there 2.0)" in out
    monkeypatch.undo()
    assert {"hub", "metrics", "lm-eval"} <= set(probes.extras().data["extras"])


# --- cards that are not used


@pytest.mark.skipif(sys.platform == "darwin", reason="Metal comes with every build")
@pytest.mark.parametrize(
    ("cards", "state", "parts"),
    [
        (["NVIDIA"], {"has_driver": True}, ["whl/cu124"]),
        (["NVIDIA"], {"has_driver": False}, ["no driver answers", "-DGGML_CUDA=on"]),
        (["AMD", "Intel"], {}, ["-DGGML_HIP=on", "-DGGML_VULKAN=on"]),
        (["NVIDIA"], {"can_offload": True}, ["is its driver installed?"]),
        (["NVIDIA"], {"is_used": True}, []),
        ([], {}, []),
    ],
)
def test_advice_is_for_cards_that_are_there(cards: list[str], state: dict[str, bool], parts: list[str]) -> None:
    advice = probes.gpu_advice(cards, **{"has_driver": False, "is_used": False, "can_offload": False} | state)
    assert len(advice) == len(parts)
    for line, part in zip(advice, parts, strict=True):
        assert part in line


def test_what_the_library_can_do_is_what_it_says() -> None:
    import llama_cpp

    able = native.abilities()
    assert able.can_rpc is bool(llama_cpp.llama_supports_rpc())
    text = llama_cpp.llama_print_system_info().decode()
    assert all(f"{feature} = 1" in text for feature in able.features)
    assert len(able.features) == text.count(" = 1")
