"""`edge-nudge config`, and which of file, environment and command line says what a setting is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Invoke, invoker, loader, no_load
from click.core import ParameterSource

from edge_nudge import runtime
from edge_nudge.cli import configured
from edge_nudge.cli.configured import KEYS, variable_of
from edge_nudge.cli.main import COMMANDS, commands
from edge_nudge.runtime import PairSpec

CONFIGURED = [name for name in ("run", "chat", "serve", "bench", "estimate") if name in COMMANDS]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    for key in KEYS:
        monkeypatch.delenv(variable_of(key), raising=False)
    return tmp_path


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> Iterator[Invoke]:
    yield from invoker(monkeypatch, tmp_path)


def write(home: Path, text: str) -> Path:
    path = home / "config" / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def params_of(command: str, *arguments: str) -> dict[str, Any]:
    """Return what a command is given, without running it."""
    found: Any = commands
    for word in command.split():
        found = found.get_command(None, word)
    with found.make_context(command, list(arguments)) as context:
        return dict(context.params)


# --- what wins


def test_file_then_environment_then_command_line(
    home: Path, invoke: Invoke, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []

    def load(spec: PairSpec, **settings: Any) -> runtime.Pair:
        loaded.append(settings)
        return loader()(spec, **settings)

    def answer(*arguments: str) -> tuple[float, int, int]:
        document = json.loads(invoke("run", *files, "--json", *arguments, "hi", load=load).out)
        return document["nudge"]["gamma"], document["seed"], loaded[-1].get("ctx_size", 0)

    assert answer("--seed", "1") == (0.4, 1, 0)
    write(home, "gamma = 0.1\nseed = 11\nctx-size = 1111\n")
    assert answer() == (0.1, 11, 1111)
    monkeypatch.setenv("EDGE_NUDGE_GAMMA", "0.2")
    monkeypatch.setenv("EDGE_NUDGE_SEED", "22")
    assert answer() == (0.2, 22, 1111)
    assert answer("--gamma", "0.3", "-c", "333") == (0.3, 22, 333)
    monkeypatch.setenv("EDGE_NUDGE_SEED", "")  # as if it were not set
    assert answer() == (0.2, 11, 1111)


@pytest.mark.parametrize("command", [*CONFIGURED, "pair check"])
def test_every_command_that_loads_a_pair_has_the_same_defaults(
    home: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'base = "b.gguf"\nnudge = "n.gguf"\nbase-kv-type = "q8_0"\n'
    write(home, f'{text}base-gpu-layers = 7\nnudge-gpu-layers = "auto"\n')
    monkeypatch.setenv("EDGE_NUDGE_CTX_SIZE", "512")
    found = params_of(command)
    assert (found["base"], found["nudge"]) == ("b.gguf", "n.gguf")
    assert (found["base_kv_type"], found["ctx_size"]) == ("q8_0", 512)
    assert (found["base_gpu_layers"], found["nudge_gpu_layers"]) == (7, None)


def test_every_key_reaches_run(home: Path) -> None:
    values: dict[str, Any] = {
        "base": "b.gguf", "nudge": "n.gguf", "nudge-lora": "l.gguf", "pair": "demo", "ctx-size": 512, "threads": 3,
        "base-gpu-layers": 1, "nudge-gpu-layers": 2, "base-kv-type": "q8_0", "nudge-kv-type": "q4_0",
        "no-fit-check": True, "base-prompt-format": "plain", "system": "Be brief.", "max-tokens": 9, "gamma": 0.5,
        "rule": "entropy", "lookahead": 2, "end-prob": 0.5, "max-turns": 7, "no-loop-guard": True,
        "no-verify-ahead": True, "temp": 1, "top-k": 5, "top-p": 0.5, "min-p": 0.1, "seed": 3, "stop": ["a", "b"],
    }  # fmt: skip
    assert set(values) == set(KEYS)
    for key, value in values.items():
        write(home, f"{key} = {json.dumps(value)}\n")
        found = params_of("run")[KEYS[key]]
        assert found == (tuple(value) if isinstance(value, list) else value), key


def test_a_benchmark_has_its_own_answers(home: Path, invoke: Invoke) -> None:
    write(home, 'max-tokens = 7\nthreads = 2\npair = "demo"\n')
    assert params_of("run")["max_tokens"] == 7
    assert (params_of("bench")["max_tokens"], params_of("bench")["threads"]) == (None, 2)
    assert invoke("bench", "--fake", "--json").code == 0  # it says no model was asked for
    assert "--threads has no meaning with --fake" in invoke("bench", "--fake", "--threads", "2").error


def test_what_is_nearer_sends_away_what_excludes_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, 'base = "b.gguf"\nnudge = "n.gguf"\n')

    def pair(*arguments: str) -> list[str | None]:
        found = params_of("run", *arguments)
        return [found[name] for name in ("pair", "base", "nudge", "nudge_lora")]

    assert pair() == [None, "b.gguf", "n.gguf", None]
    assert pair("--pair", "demo") == ["demo", None, None, None]
    assert pair("--nudge", "other") == [None, "b.gguf", "other", None]
    assert pair("--nudge-lora", "l") == [None, "b.gguf", None, "l"]
    monkeypatch.setenv("EDGE_NUDGE_PAIR", "llama-3-8b")
    assert pair() == ["llama-3-8b", None, None, None]
    assert pair("-m", "x", "--nudge", "y") == [None, "x", "y", None]
    assert pair("--pair", "demo", "-m", "x")[:2] == ["demo", "x"]  # both typed: told as an error, as ever


# --- what is wrong


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("gamma = 0.4\nctx_size = 8\n", 2, "unknown key 'ctx_size': did you mean ctx-size? ('edge-nudge config show'"),
        ("zzz = 1", 1, "unknown key 'zzz': the keys are the long options of 'edge-nudge run'"),
        ("# x\n[run]\ngamma = 1", 2, "there are no tables here, and 'run' is one"),
        ("temp = 'hot'", 1, "temp must be a number: correct it there"),
        ("temp = true", 1, "temp must be a number"),
        ("\n\ntemp = -1", 3, "temp: Input should be greater than or equal to 0; correct it there"),
        ("ctx-size = 1.5", 1, "ctx-size must be a whole number"),
        ("ctx-size = 0", 1, "ctx-size is 0: it must be at least 1; correct it there"),
        ("base-gpu-layers = 'many'", 1, "base-gpu-layers: 'many' is neither a number of layers nor auto"),
        ("base-gpu-layers = -1", 1, "base-gpu-layers: '-1' is neither a number of layers nor auto"),
        ('base-kv-type = "q9"', 1, "base-kv-type: 'q9' is not one of 'f16', 'q8_0', 'q4_0'"),
        ("no-loop-guard = 1", 1, "no-loop-guard must be true or false"),
        ("stop = [1]", 1, "stop must be a text, or a list of texts"),
        ('stop = ["a", ""]', 1, "stop: String should have at least 1 character"),
        ('base = ""', 1, "base: it is empty"),
        ('base-prompt-format = "{{"', 1, "base-prompt-format"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_its_line(
    home: Path, invoke: Invoke, text: str, line: int, message: str
) -> None:
    path = write(home, text)
    for arguments in (("run", "hi"), ("config", "show")):
        ended = invoke(*arguments, load=no_load)
        assert ended.code == 2
        assert ended.error.startswith(f"error: {path}, line {line}: "), ended.error
        assert message in ended.error
    assert invoke("run", "--help").code == 0
    assert invoke("config", "path").out == f"{path}\n"
    assert f"cannot be used ({path}, line {line}" in invoke("doctor", "--paths").out


def test_a_file_that_is_none(home: Path, invoke: Invoke) -> None:
    path = write(home, "gamma = = 1")
    assert re.fullmatch(rf"error: {re.escape(str(path))}: not valid TOML: .*line 1.*", invoke("run", "hi").error)
    path.write_bytes(b"system = '\xff'")
    assert invoke("run", "hi").error == f"error: {path}: is not UTF-8, at byte 10: save it as UTF-8"
    path.write_bytes(b"#" * (2 << 20))
    assert invoke("run", "hi").error == f"error: {path}: is longer than 1048576 bytes: this is no settings file"
    path.unlink()
    path.mkdir()
    assert invoke("run", "hi").error.startswith(f"error: {path}: cannot be read (")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EDGE_NUDGE_TEMP", "hot", "EDGE_NUDGE_TEMP: temp: 'hot' is not a valid float; correct it there"),
        ("EDGE_NUDGE_TOP_P", "2", "EDGE_NUDGE_TOP_P: top-p: Input should be less than or equal to 1; correct it there"),
        ("EDGE_NUDGE_NO_LOOP_GUARD", "perhaps", "EDGE_NUDGE_NO_LOOP_GUARD: no-loop-guard: 'perhaps' is not a valid"),
    ],
)
def test_a_mistake_in_a_variable_is_named_by_it(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    ended = invoke("run", "hi", load=no_load)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")


def test_flags_and_lists_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_NUDGE_NO_LOOP_GUARD", "yes")
    monkeypatch.setenv("EDGE_NUDGE_STOP", "one, two")
    found = params_of("run")
    assert (found["no_loop_guard"], found["stop"]) == (True, ("one, two",))


# --- config path and show


def test_show_says_where_each_value_comes_from(home: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(home, '# mine\n\npair = "demo"\nstop = ["a"]\ntemp = 0.5\n')
    monkeypatch.setenv("EDGE_NUDGE_TEMP", "0.7")
    monkeypatch.setenv("EDGE_NUDGE_API_KEY", "swordfish")
    document = json.loads(invoke("config", "show", "--json").out)
    options = document["options"]
    assert options["pair"] == {"value": "demo", "source": "file", "place": f"{path}, line 3"}
    assert options["temp"] == {"value": 0.7, "source": "environment", "place": "EDGE_NUDGE_TEMP"}
    assert options["top-k"] == {"value": 40, "source": "default", "place": None}
    assert (options["ctx-size"]["value"], options["gamma"]["value"]) == (runtime.DEFAULT_CTX_SIZE, None)
    assert document["file"] == {"path": str(path), "exists": True}
    assert document["folders"]["config"]["source"] == "EDGE_NUDGE_CONFIG_DIR"
    assert set(document["folders"]) == {"config", "data", "cache", "state", "runtime"}
    assert document["variables"]["EDGE_NUDGE_TEMP"] == "0.7"
    text = invoke("config", "show").out
    assert re.search(r"^temp +0\.7 +EDGE_NUDGE_TEMP$", text, re.MULTILINE)
    assert re.search(rf"^stop +'a' +{re.escape(str(path))}, line 4$", text, re.MULTILINE)
    assert re.search(r"^max-tokens +- +default$", text, re.MULTILINE)
    assert "swordfish" not in text + json.dumps(document)


def test_without_a_file(home: Path, invoke: Invoke) -> None:
    path = configured.config_path()
    assert json.loads(invoke("config", "path", "--json").out) == {"path": str(path), "exists": False}
    assert invoke("config", "show").out.startswith(f"settings file: {path} (not there)\n")
    assert invoke("config").code == 2
    context = commands.make_context("edge-nudge", ["run"])
    assert context.get_parameter_source("gamma") in (None, ParameterSource.DEFAULT)
