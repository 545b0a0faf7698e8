"""`edge-nudge`: the commands, and what becomes of whatever goes wrong in one.

Owns the exit codes and the one line on stderr. Never imports anything heavy: a command's work is imported when it runs.

1. Whatever goes wrong is one line beginning with "error:"; a traceback is shown only with -v.
2. An EdgeNudgeError has its own exit code, wrong usage has 2; anything unexpected is an internal error and has 1.
3. A closed pipe ends quietly with 141, also at interpreter exit; Ctrl-C with 130.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from traceback import walk_tb
from typing import NoReturn

import click

from edge_nudge.cli import streams
from edge_nudge.cli.interrupts import exit_code
from edge_nudge.core.visible import one_line, visible
from edge_nudge.errors import EdgeNudgeError, FetchError, NoRoomError
from edge_nudge.version import __version__

PROGRAM = "edge-nudge"
CLOSED_PIPE = 141
COMMANDS = {
    "run": "edge_nudge.cli.run:run",
    "chat": "edge_nudge.cli.chat:chat",
    "serve": "edge_nudge.cli.serve:serve",
    "ps": "edge_nudge.cli.servers:ps",
    "stop": "edge_nudge.cli.servers:stop",
    "report": "edge_nudge.cli.report:report",
    "pull": "edge_nudge.cli.pull:pull",
    "list": "edge_nudge.cli.models:list_models",
    "show": "edge_nudge.cli.models:show",
    "rm": "edge_nudge.cli.models:remove",
    "bench": "edge_nudge.cli.bench:bench",
    "eval": "edge_nudge.cli.evaluate:evaluate",
    "compare": "edge_nudge.cli.compare:compare",
    "calibrate": "edge_nudge.cli.calibrate:calibrate",
    "lm-eval": "edge_nudge.cli.harness:lm_eval",
    "estimate": "edge_nudge.cli.estimate:estimate",
    "pair": "edge_nudge.cli.pair:pair",
    "config": "edge_nudge.cli.config:config",
    "doctor": "edge_nudge.cli.doctor:doctor",
}
_COMPLETE = "_EDGE_NUDGE_COMPLETE"

EPILOG = """\b
Exit codes:
    0  the answer is finished; a server was asked to stop
    1  the engine or a model file failed, or output could not be written
    2  wrong usage, or input that cannot be used
    3  the prompt is longer than a model's context
    4  a model could not be fetched
    5  a server is running there already
    6  both models together do not fit into memory
  130  interrupted (Ctrl-C; 143 by SIGTERM): what was written so far stays
  141  whoever read the output closed it

\b
Shell completion: eval "$(_EDGE_NUDGE_COMPLETE=bash_source edge-nudge)"
(zsh_source, fish_source for the other shells)
"""


def _show_help(context: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.default_map = None  # help says what holds where nothing is set, and needs no file of the user's
        streams.write_out(context.get_help() + "\n")
        context.exit()


# Click's own writes past streams.py: where help is longer than the buffer, a full disk would not be named.
HELP = click.Option(
    ["-h", "--help"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_help,
    help="Show this message and exit.",
)


class LazyCommands(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(import_module(module), name)
        if HELP not in command.params:
            command.add_help_option = False
            command.params.append(HELP)
        return command


@click.group(
    cls=LazyCommands,
    invoke_without_command=True,
    add_help_option=False,
    params=[HELP],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def commands(context: click.Context) -> None:
    """A small instruction-tuned model steers a large base model, word by word, on your own machine."""
    if context.invoked_subcommand is None:
        raise click.UsageError(f"which command? There is: {', '.join(COMMANDS)}")


def exit_status(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong has been told by then."""
    try:
        streams.prepare()
        try:
            status = _run(arguments)
        finally:
            streams.settle()
        return status
    except (streams.ClosedPipeError, BrokenPipeError):  # settle has silenced the stream
        return CLOSED_PIPE
    except KeyboardInterrupt as interrupt:
        streams.tell("interrupted")
        return exit_code(interrupt)
    except EdgeNudgeError as error:
        # pip's last lines and a table of memory are worth their lines; any other message is one.
        is_long = isinstance(error, FetchError | NoRoomError)
        streams.tell(f"error: {visible(str(error)) if is_long else one_line(str(error))}")
        return error.exit_code
    except OSError as error:  # of the machine, not of ours: a full disk, a folder without permission
        what = f"standard output cannot be written: {error.strerror}" if _is_of_help(error) else str(error)
        _tell_unexpected(f"error: {what}", error)
        return 1
    except Exception as error:
        _tell_unexpected(
            f"internal error: {type(error).__name__}: {error} (please report; -v shows the traceback)", error
        )
        return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        with commands.make_context(PROGRAM, list(arguments), obj=tuple(arguments)) as context:
            commands.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else PROGRAM
        message = one_line(error.format_message()).removesuffix(".")
        stop = "" if message.endswith("?") else "."
        streams.tell(f"error: {message[:1].lower()}{message[1:]}{stop} Try '{where} --help'.")
        return error.exit_code


def _is_of_help(error: OSError) -> bool:
    """Tell whether click was writing its own text: of a long one nothing is left for the last flush to fail at."""
    return any(frame.f_code is click.echo.__code__ for frame, _ in walk_tb(error.__traceback__))


def _tell_unexpected(message: str, error: Exception) -> None:
    logging.getLogger("edge_nudge.cli").info("traceback", exc_info=error)
    streams.tell(one_line(message))


def main() -> NoReturn:
    """Run the command line of this process."""
    instruction = os.environ.get(_COMPLETE)
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(commands, {}, PROGRAM, _COMPLETE, instruction))
    sys.exit(exit_status(sys.argv[1:]))


if __name__ == "__main__":
    main()
