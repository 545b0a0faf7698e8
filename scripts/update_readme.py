"""Bring the help texts in README.md up to date: each block between these two markers is what the command prints.

    <!-- help: edge-nudge run -->
    <!-- /help -->

Needs an environment in which edge-nudge is installed. With --check nothing is written, and the exit status is 1
where a text differs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
WIDTH = 100
PROGRAM = "edge-nudge"
_BLOCK = re.compile(r"(?P<start><!-- help: (?P<command>[^\n]+?) -->\n)(?P<old>.*?)(?P<end><!-- /help -->)", re.DOTALL)


def help_of(command: str) -> str:
    """Return what a command prints with --help, on a terminal of WIDTH columns."""
    program, *words = shlex.split(command)
    if program != PROGRAM:
        raise SystemExit(f"README.md: a help block for {command!r}: it must begin with {PROGRAM}")
    done = subprocess.run(
        [sys.executable, "-m", "edge_nudge.cli.main", *words, "--help"],
        env={**os.environ, "COLUMNS": str(WIDTH), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{command} --help failed: {done.stderr.strip()}")
    return done.stdout.rstrip()


def updated(text: str) -> tuple[str, list[str]]:
    """Return the text with fresh help blocks, and the commands whose block was out of date."""
    stale = []

    def fresh(match: re.Match[str]) -> str:
        command = match["command"]
        block = f"```text\n$ {command} --help\n{help_of(command)}\n```\n"
        if block != match["old"]:
            stale.append(command)
        return match["start"] + block + match["end"]

    new, n_blocks = _BLOCK.subn(fresh, text)
    n_started, n_ended = text.count("<!-- help: "), text.count("<!-- /help -->")
    if not n_blocks:
        raise SystemExit(f"README.md has no help block: put <!-- help: {PROGRAM} run --> and <!-- /help --> into it")
    if not n_blocks == n_started == n_ended:
        raise SystemExit(f"README.md: {n_started} starts and {n_ended} ends of help blocks, {n_blocks} pairs")
    return new, stale


def main(arguments: list[str], readme: Path = README) -> int:
    parser = argparse.ArgumentParser(prog="update_readme.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a help text differs")
    is_check = parser.parse_args(arguments).check
    if not readme.is_file():
        raise SystemExit(f"{readme} is not there")
    text = readme.read_text(encoding="utf-8")
    new, stale = updated(text)
    if not stale:
        return 0
    if is_check:
        print(f"README.md: out of date: {', '.join(stale)}; run python scripts/update_readme.py", file=sys.stderr)
        return 1
    readme.write_text(new, encoding="utf-8", newline="\n")
    print(f"README.md: brought up to date: {', '.join(stale)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
