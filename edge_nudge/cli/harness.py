"""`edge-nudge lm-eval`: the command line of lm-evaluation-harness, with our model and our tasks in it.

Owns what is added to its arguments, and what becomes of its errors. Never reads an argument itself.

1. Everything behind `lm-eval` is the harness's, in its words, with its help and its exit codes.
2. Added are the model `edge_nudge`, which is the default, and the folder of our tasks, before the user's own.
3. An error of ours inside the harness is one line and has our exit code; so has one of the harness's, with 1.
4. What the harness fetches for its own tasks, it fetches: nobody is kept offline here.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from traceback import walk_tb
from typing import Any

import click

from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.verbosity import show_log
from edge_nudge.errors import EdgeNudgeError, InputError

MODEL = "edge_nudge"
_LEVEL = "LMEVAL_LOG_LEVEL"  # the harness's own variable


class HarnessError(EdgeNudgeError):
    """The harness failed, mostly at its arguments or at a data set."""


class PassedOn(click.Command):
    """A command whose arguments are another program's; only help in front of them is ours."""

    ignore_unknown_options = True
    allow_interspersed_args = False


@click.command("lm-eval", cls=PassedOn, short_help="Run lm-evaluation-harness with a pair as its model.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
@click.pass_context
def lm_eval(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness with a pair as its model and the tasks of edge-nudge eval among its own.

    All ARGUMENTs are the harness's ("edge-nudge lm-eval run --help" shows them); its model is edge_nudge where --model
    does not say otherwise. --model_args say who answers: system=nudged (the default), base, nudging, urial; pair=NAME,
    or base=FILE,nudging=FILE; ctx_size, threads and what else loads a pair; gamma, rule and other nudging settings.

    Reads and writes what the harness does: the table of results goes to stdout, its log to stderr. Needs the
    extra "eval"; docs/lm-eval.md tells more.

    \b
    Examples:
        edge-nudge lm-eval ls tasks
        EDGE_NUDGE_EVAL_DATA=rows edge-nudge lm-eval run --tasks nudge_gsm8k --apply_chat_template
        edge-nudge lm-eval run --tasks hellaswag --limit 100 --model_args pair=demo,system=base
    """
    if find_spec("lm_eval") is None:
        raise InputError("lm-evaluation-harness is not installed: pip install 'edge-nudge[eval]'")
    if os.environ.get(_LEVEL, "").upper() == "DEBUG":
        show_log(1)
    with Interrupts():
        context.exit(run_harness(arguments))


def run_harness(arguments: Sequence[str]) -> int:
    """Run a command line of the harness in this process and return its exit code.

    Raises EdgeNudgeError; KeyboardInterrupt and OSError as they come.
    """
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness cannot be used ({error}): pip install --upgrade 'edge-nudge[eval]'"
        ) from None
    import edge_nudge.evaluate.harness  # noqa: F401  # registers the model

    setup_logging()
    try:
        program = HarnessCLI()
        with _as_arguments(arguments):
            namespace = program.parse_args()
        _add_ours(namespace)
        program.execute(namespace)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (EdgeNudgeError, OSError):
        raise
    except Exception as error:
        if _is_ours(error):
            raise
        logging.getLogger("edge_nudge.cli").info("traceback", exc_info=error)
        raise HarnessError(
            f"lm-evaluation-harness failed: {type(error).__name__}: {error} ({_LEVEL}=DEBUG shows where)"
        ) from error
    return 0


def _add_ours(namespace: Namespace) -> None:
    """Add the model and the tasks to what the user said, on the command line or in the file of --config."""
    from edge_nudge.evaluate.runner import TASKS_FOLDER

    file = _settings_file(namespace)
    if hasattr(namespace, "include_path"):
        given = namespace.include_path or file.get("include_path") or []
        # the harness takes the last of two tasks with one name
        namespace.include_path = [str(TASKS_FOLDER), *([given] if isinstance(given, str) else given)]
    if hasattr(namespace, "model") and namespace.model is None and not file.get("model"):
        namespace.model = MODEL


def _settings_file(namespace: Namespace) -> dict[str, Any]:
    if not getattr(namespace, "config", None):
        return {}
    from lm_eval.config.evaluate_config import EvaluatorConfig

    settings: dict[str, Any] = EvaluatorConfig.load_yaml_config(namespace.config)
    return settings


@contextmanager
def _as_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Let the harness, which reads them there, find its arguments in sys.argv."""
    former = sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        yield
    finally:
        sys.argv = former


def _is_ours(error: Exception) -> bool:
    """Tell whether our own code was at work: then it is a bug of ours, and to be reported."""
    names = (str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__))
    return any(name.startswith("edge_nudge.") and name != __name__ for name in names)
