"""Imports point down only, and the native library is touched at the engine's edge alone."""

from __future__ import annotations

import ast
from pathlib import Path

import edge_nudge

PACKAGE = Path(edge_nudge.__file__).parent
# each room may import from those before it
ORDER = [
    *("version", "errors", "core", "testing", "engine", "catalog", "spec", "runtime", "mixing", "document", "worker"),
    *("endpoint", "client", "server", "report", "bench", "evaluate", "cli"),
]
PURE_FORBIDDEN = {"ctypes", "threading", "socket", "llama_cpp", "gguf", "pathlib", "os", "subprocess", "rich", "click"}
NATIVE = {"llama_cpp", "ctypes"}


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_point_down_only() -> None:
    n_checked = 0
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "edge_nudge" and len(parts) > 1 and parts[1] in ORDER:
                n_checked += 1
                assert ORDER.index(parts[1]) <= ORDER.index(room), f"{path} imports {name}"
    assert n_checked > 50


def test_the_core_is_pure() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & PURE_FORBIDDEN, f"{path}: {tops & PURE_FORBIDDEN}"


def test_the_native_library_is_imported_in_the_engine_only() -> None:
    touching = {room_of(path) for path in PACKAGE.rglob("*.py") if NATIVE & {n.split(".")[0] for n in imports_of(path)}}
    assert touching == {"engine"}


def test_files_and_functions_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
