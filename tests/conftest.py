"""Fixtures that need something big or native; all of it is fetched, loaded and imported on first use only.

`pytest -m "not native and not demo"` needs neither llama_cpp nor a network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from vocabularies import find_vocabularies

if TYPE_CHECKING:
    from playground import Open, ScriptedServer
    from playwright.sync_api import Browser

    from edge_nudge.engine.llama import LlamaBackend

# A deadline measures the machine, which tests share with others.
settings.register_profile("edge-nudge", deadline=None)
settings.load_profile("edge-nudge")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's is used or changed: no cache, no pairs of their own, no running server."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "RUNTIME", "STATE"):
            patch.setenv(f"EDGE_NUDGE_{name}_DIR", str(tmp_path_factory.mktemp(name.lower()[:5])))
        yield


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Two files to be hashed; the fake pair does not read them."""
    for name in ("base.gguf", "nudging.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    return "-m", str(tmp_path / "base.gguf"), "--nudge", str(tmp_path / "nudging.gguf")


@pytest.fixture(scope="session")
def vocab_paths() -> dict[str, Path]:
    """The vocabulary-only GGUF files of the llama-cpp-python source archive, by name ("qwen2", "llama-spm", ...)."""
    return find_vocabularies()


@pytest.fixture(scope="session")
def demo_paths() -> tuple[Path, Path]:
    """The base and the nudging model of the demo pair.

    `EDGE_NUDGE_DEMO_DIR` names a folder that has both; else the pair is fetched into the user's data folder.
    """
    from edge_nudge.catalog.manifest import load_manifest
    from edge_nudge.catalog.store import ensure_pair

    manifest = load_manifest("demo")
    folder = os.environ.get("EDGE_NUDGE_DEMO_DIR")
    if folder:
        return Path(folder) / manifest.base.file, Path(folder) / manifest.nudging.file
    files = ensure_pair(manifest, say=lambda _line: None)
    return files.base, files.nudging


@pytest.fixture(scope="session")
def open_vocab(request: pytest.FixtureRequest) -> Iterator[Callable[[str], LlamaBackend]]:
    """Open a tokenizer by name, once in a session; "base" and "nudging" are those of the demo pair."""
    from edge_nudge.engine.llama import LlamaBackend

    opened: dict[str, LlamaBackend] = {}

    def open_one(name: str) -> LlamaBackend:
        if name not in opened:
            if name in ("base", "nudging"):
                path = request.getfixturevalue("demo_paths")[name == "nudging"]
            else:
                path = request.getfixturevalue("vocab_paths")[name]
            opened[name] = LlamaBackend(path, n_ctx=256, n_threads=1, vocab_only=True)
        return opened[name]

    yield open_one
    for backend in opened.values():
        backend.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; without one the test is skipped."""
    import playground

    with playground.browser() as started:
        yield started


@pytest.fixture(scope="module")
def scripted_server() -> Iterator[ScriptedServer]:
    """A server with the playground that answers by script; `scripted` is what a test takes."""
    import playground

    with playground.scripted_server() as server:
        yield server


@pytest.fixture
def scripted(scripted_server: ScriptedServer) -> ScriptedServer:
    """The scripted server, with the usual script."""
    scripted_server.reset()
    return scripted_server


@pytest.fixture
def visit(browser: Browser, scripted: ScriptedServer) -> Iterator[Open]:
    """Open the page of the scripted server."""
    import playground

    yield from playground.visits(browser, scripted)
