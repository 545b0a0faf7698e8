"""What a shell is offered: commands, options, pairs, models, files."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from test_found import home, put_ollama, tiny

from edge_nudge.cli.main import COMMANDS, commands

__all__ = ["home", "tiny"]  # fixtures


def offered(*words: str, incomplete: str = "") -> list[str]:
    """Return what is offered; a path that the shell completes itself as "file:" and what is typed of it."""
    found = ShellComplete(commands, {}, "edge-nudge", "_EDGE_NUDGE_COMPLETE").get_completions(list(words), incomplete)
    return [item.value if item.type == "plain" else f"{item.type}:{item.value}" for item in found]


def test_commands_and_options() -> None:
    assert offered() == list(COMMANDS)
    assert offered(incomplete="es") == ["estimate"]
    assert "--base-kv-type" in offered("run", incomplete="--base-")
    assert offered("run", "--base-kv-type", incomplete="q8") == ["q8_0"]
    assert offered("pair") == ["check"]


@pytest.mark.parametrize("command", [("run",), ("serve",), ("bench",), ("estimate",), ("pair", "check")])
def test_pairs_and_models(home: Path, tiny: bytes, command: tuple[str, ...]) -> None:
    (home / "config" / "models").mkdir(parents=True)
    (home / "config" / "models" / "demure.toml").write_text("")
    put_ollama(home, "smollm2:135m", tiny)
    assert offered(*command, "--pair", incomplete="dem") == ["demo", "demure"]
    assert offered(*command, "-m", incomplete="oll") == ["ollama:smollm2:135m"]
    assert offered(*command, "--nudge", incomplete="./b") == ["file:./b"]
    assert offered(*command, "--nudge-lora", incomplete="a") == ["file:a"]


def test_names_that_would_act_on_a_terminal_are_not_offered(home: Path, tiny: bytes) -> None:
    put_ollama(home, "evil\x1b[2J:1", tiny)
    assert offered("run", "-m", incomplete="ollama:") == ["file:ollama:"]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("words", "incomplete", "first"),
    [
        (("run", "--trace"), "t", "file:t"), (("report",), "t", "file:t"), (("report", "-o"), "t", "file:t"),
        (("serve", "--socket"), "/r", "file:/r"), (("serve", "--key-file"), "k", "file:k"),
        (("stop", "--socket"), "/r", "file:/r"), (("show",), "dem", "demo"), (("show",), "./m", "file:./m"),
        (("pull",), "llama-2", "llama-2-70b"), (("rm",), "mine", "mine.gguf"),
    ],
)  # fmt: skip
def test_where_paths_and_names_go(words: tuple[str, ...], incomplete: str, first: str, home: Path) -> None:
    (home / "data" / "models").mkdir(parents=True)
    (home / "data" / "models" / "mine.gguf").write_bytes(b"GGUF")
    assert offered(*words, incomplete=incomplete)[:1] == [first]
