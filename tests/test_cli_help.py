"""Every command explains itself: one line, what it reads and writes, an example that is right, --json."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from edge_nudge.cli.main import COMMANDS, commands

INTERACTIVE = {"chat"}
PASSED_ON = {"lm-eval"}  # another program's arguments and output


def every_command() -> Iterator[tuple[str, click.Command]]:
    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from below(f"{path} {name}", inner)

    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        yield from below(name, command)


ALL = dict(every_command())


def help_of(name: str) -> str:
    context = click.Context(ALL[name], info_name=f"edge-nudge {name}", max_content_width=100, terminal_width=100)
    return ALL[name].get_help(context)


@pytest.mark.parametrize("name", ALL)
def test_the_first_line_is_a_sentence_and_the_list_has_one_too(name: str) -> None:
    command = ALL[name]
    first = (command.help or "").split("\n\n")[0]
    assert re.fullmatch(r"[A-Z].*\.", first, re.DOTALL), first
    assert re.fullmatch(r"[A-Z].{5,60}\.", command.short_help or ""), command.short_help


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_does(name: str) -> None:
    for param in ALL[name].params:
        if isinstance(param, click.Option):
            assert (param.help or "").endswith("."), param.name
    assert max(map(len, help_of(name).splitlines())) <= 100


@pytest.mark.parametrize("name", ALL)
def test_examples_are_there_and_right(name: str) -> None:
    text = help_of(name)
    assert re.search(r"^ *Examples?:", text, re.MULTILINE), name
    after = text[text.index("Example") :]
    examples = [
        match[1] for match in re.finditer(r"edge-nudge ((?:\"[^\"]*\"|[^\n|<>)\"])+)", after.split("Options:")[0])
    ]
    assert any(example.startswith(name) for example in examples), examples
    for example in examples:
        words = shlex.split(example)
        command = ALL[words[0]]
        rest = words[1:]
        if isinstance(command, click.Group) and rest:
            command, rest = ALL[f"{words[0]} {rest[0]}"], rest[1:]
        command.make_parser(click.Context(command)).parse_args(rest)  # raises for an option that is none


@pytest.mark.parametrize("name", sorted(set(ALL) - INTERACTIVE - PASSED_ON))
def test_json_is_everywhere(name: str) -> None:
    if not isinstance(ALL[name], click.Group):
        assert "--json" in {option for param in ALL[name].params for option in param.opts}
