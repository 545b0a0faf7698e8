"""`edge-nudge doctor`: what this program finds on this machine, to be read and to be copied into a bug report.

Owns the order, the masking of what is personal, and the JSON object. What is looked at is in probes.py.

1. It always ends with 0: a probe that fails says so in its line, and nothing is repaired.
2. The home folder is written ~, and the names of user and machine are never shown; --paths shows paths as they are.
"""

from __future__ import annotations

import getpass
import json
import logging
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edge_nudge.cli import streams
from edge_nudge.cli.probes import PROBES, Found
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.visible import visible
from edge_nudge.document import to_json


@click.command(short_help="Show what was found on this machine.")
@click.option("--paths", is_flag=True, help="Show paths as they are, with the names of user and machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
def doctor(paths: bool, as_json: bool, verbose: int) -> None:
    """Show what was found on this machine: library, devices, threads, memory, stores, servers, settings.

    The text can be copied into a bug report: the home folder is written ~, and names of user and machine are left out.

    Reads only, asks no network, repairs nothing. The exit code is always 0: what cannot be found out says so.

    \b
    Example: edge-nudge doctor > doctor.txt
    """
    show_log(verbose)
    found = {topic: _ask(topic) for topic in PROBES}
    mask = str if paths else Mask()
    if as_json:
        data = {topic: answer.data or {"failed": list(answer.lines)} for topic, answer in found.items()}
        streams.write_out(to_json(_masked(data, mask)) + "\n")
        return
    width = max(map(len, found))
    lines = [
        f"{topic if not i else '':{width}}  {visible(mask(line))}"
        for topic, answer in found.items()
        for i, line in enumerate(answer.lines)
    ]
    streams.write_out("\n".join(lines) + "\n")


def _ask(topic: str) -> Found:
    try:
        return PROBES[topic]()
    except Exception as error:  # whatever it is, the others are still worth asking
        logging.getLogger("edge_nudge.cli").info("probe %s", topic, exc_info=error)
        return Found([f"could not be found out: {type(error).__name__}: {error}"])


class Mask:
    """Takes what is personal out of a text."""

    def __init__(self) -> None:
        home = _home()
        self._home = re.compile(re.escape(home) + r"(?=$|[/\\\s\"',;:)])") if len(home) > 1 else None
        names = [name for name in (_user(), platform.node()) if len(name) > 1]
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)") if names else None

    def __call__(self, text: str) -> str:
        if self._home:
            text = self._home.sub("~", text)
        return self._names.sub("***", text) if self._names else text


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # no such folder can be found out: then none can be shown
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in some containers
        return ""


def _masked(data: Mapping[str, Any], mask: Any) -> dict[str, Any]:
    """Return the data with every text in it masked, also the keys."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return mask(value)
        if isinstance(value, dict):
            return {mask(key): walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list) else value

    masked: dict[str, Any] = walk(json.loads(json.dumps(data)))
    return masked
