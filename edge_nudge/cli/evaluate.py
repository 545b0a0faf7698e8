"""`edge-nudge eval`: does nudging help, on this machine, with this pair.

Owns the options and the order of things in this command. What is asked and how it is counted is in evaluate/.

1. What is wrong in an option, a task or a row is found before anything is fetched or loaded.
2. Every answer is kept as soon as it is there: the first Ctrl-C ends the answer that is being written, and the same
   command goes on from there.
3. The table goes to stdout when all is answered; progress to stderr.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from edge_nudge.cli import opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.names import complete_files, complete_models
from edge_nudge.cli.render import is_terminal, wants_color
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.visible import one_line
from edge_nudge.errors import CancelledError, InputError

if TYPE_CHECKING:
    from edge_nudge.evaluate.plan import Plan
    from edge_nudge.evaluate.results import Results
    from edge_nudge.evaluate.runner import Step
    from edge_nudge.spec import PairSpec

# Written here so that --help imports nothing of the evaluation; a test compares them.
DEFAULT_SYSTEMS = "base,nudging,nudged,urial"
SAY_EVERY_S = 10.0  # where stderr is no terminal


@click.command("eval", cls=Configured, short_help="Find out whether a pair answers better nudged than not.")
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@options.model_options
@click.option(
    "--data", metavar="DIR", shell_complete=complete_files, help="Folder with the rows of the tasks, as JSON lines."
)
@click.option(
    "-o", "--out", metavar="DIR", shell_complete=complete_files, help="Folder of this evaluation; default: evaluation."
)
@click.option("--systems", metavar="LIST", default=DEFAULT_SYSTEMS, help=f"Who answers; default {DEFAULT_SYSTEMS}.")
@click.option("--limit", metavar="COUNTS", help="Most items of each task, as 100 or 100,ifeval=150; default: all.")
@click.option(
    "-n", "--max-tokens", metavar="COUNTS", help="Most tokens of an answer, likewise; default: the task's own."
)
@click.option(
    "--half",
    type=click.Choice(("first", "second")),
    help="Only this half of each file: tune on the first, report the second.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Which items a limit chooses; default 0.")
@click.option(
    "--aligned", metavar="MODEL", shell_complete=complete_models, help="A large aligned model, for system aligned."
)
@click.option(
    "--untuned",
    metavar="MODEL",
    shell_complete=complete_models,
    help="The nudging model's own base model, for system proxy.",
)
@click.option("--list", "is_list", is_flag=True, help="List the tasks and their files, and do nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the summary, instead of the table.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
@click.pass_context
def evaluate(context: click.Context, /, **values: Any) -> None:
    """Ask a pair, and each of its models alone, the questions of each TASK; count who answers better, and how sure
    that is.

    Answers are written greedily and kept in the folder of the evaluation, each with what was written by whom and why.
    A command that was interrupted goes on where it was when it is given again. At the end the folder holds
    results.json, summary.json, report.md and report.html.

    \b
    Systems (--systems, with commas):
      base, nudging    one model of the pair alone
      nudged           both; with other settings nudged:rule=margin+gamma=0.3, nudged:lookahead=16
      urial            the base model alone behind three constant examples
      aligned          a large aligned model, --aligned MODEL
      ensemble         the average of both models, where they have one vocabulary
      proxy            proxy tuning, with --untuned MODEL, likewise

    \b
    Examples:
      edge-nudge eval --list
      edge-nudge eval gsm8k csqa --data DIR --limit 50 --max-tokens 160
    """
    show_log(values["verbose"])
    options.check_text(context)
    if values["is_list"]:
        streams.write_out(_list(values["as_json"]))
        return
    need_extra("edge-nudge eval")
    with Interrupts() as interrupts:
        try:
            plan = _plan(values)
            spec, settings = opening.find(context, values)
            results = ask_all(context, plan, spec, settings, interrupts)
        except InputError as error:
            raise options.in_users_terms(error, context) from None
        except CancelledError:
            stopped(context, plan.folder, interrupts)
        _report(plan, results, values)


def stopped(context: click.Context, folder: Path, interrupts: Interrupts) -> NoReturn:
    """Say where the answers are, and leave as after a signal."""
    streams.tell(f"stopped; what was answered is kept in {one_line(str(folder))}: the same command goes on")
    context.exit(128 + (interrupts.signum or signal.SIGINT))


def need_extra(command: str) -> None:
    """Raise InputError where the packages of the evaluation are not there."""
    missing = [name for name in ("lm_eval", "scipy", "matplotlib", "nltk", "langdetect") if find_spec(name) is None]
    if missing:
        raise InputError(f"{command} needs {', '.join(missing)}: pip install 'edge-nudge[eval]'")


def _list(as_json: bool) -> str:
    from edge_nudge.document import to_json
    from edge_nudge.evaluate.questions import TASKS

    rows = [
        {
            "task": task.name,
            "title": task.title,
            "file": task.file,
            "max_tokens": task.max_tokens,
            "metric": task.metric or None,
        }
        for task in TASKS.values()
    ]
    if as_json:
        return to_json({"tasks": rows}) + "\n"
    from edge_nudge.cli.columns import table

    heads = ("TASK", "TITLE", "FILE", "MOST TOKENS", "SCORE")
    cells = [[str(row[key] or "none: answers are read, or judged") for key in row] for row in rows]
    return table(heads, cells, right=("MOST TOKENS",))


def _plan(values: dict[str, Any]) -> Plan:
    from edge_nudge.catalog.names import locate_model
    from edge_nudge.evaluate.plan import Plan, parse_counts, parse_tasks
    from edge_nudge.evaluate.systems import parse_systems

    tasks = parse_tasks(values["tasks"])
    if values["data"] is None:
        raise InputError("where are the rows? name their folder with --data DIR (docs/evaluation.md has the format)")
    files = {
        role: None if values[role] is None else locate_model(values[role], role=role) for role in ("aligned", "untuned")
    }
    plan = Plan(
        tasks,
        tuple(parse_systems(values["systems"])),
        Path(values["data"]).expanduser(),
        Path(values["out"] or "evaluation").expanduser(),
        {} if values["limit"] is None else parse_counts(values["limit"], tasks),
        values["seed"],
        values["half"],
        {} if values["max_tokens"] is None else parse_counts(values["max_tokens"], tasks),
        files["aligned"],
        files["untuned"],
    )
    plan.check()
    return plan


def ask_all(
    context: click.Context, plan: Plan, spec: PairSpec, settings: dict[str, Any], interrupts: Interrupts
) -> Results:
    """Ask everything, with progress on stderr. Raises CancelledError after a signal, and what evaluating raises."""
    from edge_nudge.evaluate import runner
    from edge_nudge.evaluate.answering import Stop

    stop = Stop()
    with progress() as on_step, interrupts.asking(stop.ask):
        return runner.evaluate(
            plan,
            spec,
            load=settings,
            command=shlex.join(["edge-nudge", *(context.find_root().obj or ())]),
            machine=_machine(),
            on_step=on_step,
            stop=stop,
        )


def _machine() -> str:
    from edge_nudge.bench.machine import machine_document

    about = machine_document("")
    versions = (f"{name} {version}" for name, version in about["versions"].items())
    return "; ".join((str(about["processor"]), f"{about['logical_cores']} logical cores", about["platform"], *versions))


def _report(plan: Plan, results: Results, values: dict[str, Any]) -> None:
    from edge_nudge.evaluate.markdown import markdown_table
    from edge_nudge.evaluate.report import write_report
    from edge_nudge.evaluate.summary import summarize

    summary = summarize(results)
    files = write_report(results, plan.folder, summary)
    if values["as_json"]:
        streams.write_out(summary.model_dump_json(indent=1) + "\n")
    else:
        streams.write_out(markdown_table(summary) + "\n")
    for file in files:
        streams.tell(one_line(str(file)))


@contextmanager
def progress() -> Iterator[Callable[[Step], None]]:
    """Yield what tells how far an evaluation is, and how long it will take; a line now and then without a terminal."""
    pace = Pace(time.monotonic)
    if not is_terminal(sys.stderr):
        last = time.monotonic()

        def tell(step: Step) -> None:
            nonlocal last
            line = pace.line(step)
            if time.monotonic() - last >= SAY_EVERY_S or step.n_done == step.n_all:
                last = time.monotonic()
                streams.tell(line)

        yield tell
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, no_color=not wants_color("auto", sys.stderr))
    with console.status(Text("loading")) as status:
        yield lambda step: status.update(Text(pace.line(step)))


class Pace:
    """How far an evaluation is, and when it will be done if it goes on as it does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._n_asked = 0

    def line(self, step: Step) -> str:
        """Return what to show behind a step."""
        self._n_asked += not step.is_kept
        line = f"{step.system} {step.task}: {step.n_done} of {step.n_all} answers"
        if not self._n_asked or step.n_done == step.n_all:
            return line
        left = (step.n_all - step.n_done) * (self._clock() - self._started) / self._n_asked
        return f"{line}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
