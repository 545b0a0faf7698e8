"""What docs/serve.md and the help say of a server is what the code does."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from edge_nudge.cli import serve as serve_command
from edge_nudge.cli.main import commands
from edge_nudge.server import life, listen
from edge_nudge.worker import DEFAULT_KEEP_ALIVE_S, DEFAULT_MAX_QUEUE

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")


def defaults() -> dict[str, object]:
    return {param.name or "": param.default for param in serve_command.serve.params}


def test_the_defaults_in_the_options_are_those_of_the_code() -> None:
    found = defaults()
    assert float(str(found["grace"])) == life.DEFAULT_GRACE_S
    assert float(str(found["keep_alive"])) == DEFAULT_KEEP_ALIVE_S
    assert found["queue"] == DEFAULT_MAX_QUEUE
    assert serve_command._DEFAULT_PORT == listen.DEFAULT_PORT
    told = " ".join(CliRunner().invoke(commands, ["serve", "--help"]).output.split())
    assert "default 10." in told
    assert "default 300." in told
    assert "default 32." in told
    assert f"127.0.0.1:{listen.DEFAULT_PORT}" in told


def test_the_numbers_in_the_docs_are_those_of_the_code() -> None:
    assert f"`--tcp` is 127.0.0.1:{listen.DEFAULT_PORT}," in TEXT
    assert f"`--grace` seconds ({life.DEFAULT_GRACE_S:.0f})" in TEXT
    assert f"no answer for {life._LAST_S:.0f} seconds" in TEXT
    assert f"at least {listen.MIN_KEY} characters" in TEXT
    assert f"exit code {listen.AlreadyRunningError.exit_code}," in TEXT


def test_the_units_work_together() -> None:
    units = [configparser.ConfigParser(interpolation=None) for _ in range(2)]
    for unit, block in zip(units, re.findall(r"```ini\n(.*?)```", TEXT, re.DOTALL), strict=True):
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(block)
    sockets, service = units
    assert sockets["Socket"]["ListenStream"] == "%t/edge-nudge/edge-nudge.sock"  # the default of clients
    assert sockets["Socket"]["SocketMode"] == "0600"  # systemd's own default is open to everybody
    assert sockets["Socket"].get("Accept", "no") == "no"
    _, *arguments = shlex.split(service["Service"]["ExecStart"])
    assert arguments[0] == "serve"
    assert CliRunner().invoke(commands, [*arguments, "--help"]).exit_code == 0
    with serve_command.serve.make_context("serve", arguments[1:]) as context:
        longest = context.params["grace"] + life._LAST_S + life._LAST_WORDS_S
    assert float(service["Service"]["TimeoutStopSec"]) > longest
