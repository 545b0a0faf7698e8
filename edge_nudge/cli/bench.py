"""`edge-nudge bench`: measure a pair on this machine.

Owns the order of things in this command. What is measured is in bench/ and engine/costs.py, the tables are in
bench_tables.py.

1. What is wrong in an option is found before anything is fetched or loaded.
2. The report goes to stdout when everything is measured; progress to stderr, where that is a terminal.
3. Ctrl-C leaves at once, and nothing is reported then: half a run compares nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.bench.prompts import PROMPTS
from edge_nudge.cli import opening, options, streams
from edge_nudge.cli.document import pair_document, to_json
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import is_terminal, wants_color
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import Role
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.bench.trials import Plan
    from edge_nudge.runtime import Pair

# Written here so that --help does not import bench.trials; a test compares them.
DEFAULT_MAX_TOKENS, DEFAULT_TRIALS = 100, 3
AGAINST = ("reference",)
_OF_TRIALS = ("max_tokens", "trials", "prompt", "against")


@click.command(short_help="Measure a pair on this machine.")
@options.model_options
@click.option(
    "-n", "--max-tokens", type=int, metavar="N",
    help=f"Tokens of each answer, of both models together; default {DEFAULT_MAX_TOKENS}.",
)  # fmt: skip
@click.option("--trials", type=int, metavar="N", help=f"Times everything is answered; default {DEFAULT_TRIALS}.")
@click.option(
    "--prompt", type=click.Choice(tuple(PROMPTS)), multiple=True, metavar="NAME",
    help=f"Only this prompt: {', '.join(PROMPTS)}; may be given several times; default: all.",
)  # fmt: skip
@click.option(
    "--against", type=click.Choice(AGAINST), metavar="WHAT",
    help="Also measure another schedule: reference, the paper's lookahead of 16 tokens.",
)  # fmt: skip
@click.option("--costs", is_flag=True, help="Measure what a batch of tokens costs each model, and no answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every single answer in it.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
@click.pass_context
def bench(context: click.Context, /, **values: Any) -> None:
    """Measure a pair on this machine.

    Fixed prompts are answered by the base model alone, by the nudging model alone, and nudged, in turn and with cold
    caches, reading the prompt included. The report compares the answers of one trial with each other, and counts
    what was evaluated for each token of an answer.

    With --costs, the time of batches of 1 to 32 tokens instead, and which of them have the bits of single steps: two
    to three seconds for each model.
    """
    show_log(values["verbose"])
    with Interrupts() as interrupts:
        _bench(context, {**values, "color": "auto"}, interrupts)


def _bench(context: click.Context, values: dict[str, Any], interrupts: Interrupts) -> None:
    options.check_text(context)
    try:
        plan = _plan(values, context)
    except InputError as error:
        raise options.in_users_terms(error, context) from None
    from edge_nudge.bench.machine import PEAK_MEMORY_INCLUDES, machine_document, peak_memory_bytes

    pair, load_s = opening.open_pair(context, values, interrupts)
    with pair:
        opening.tell_notes(pair, values)
        with _progress(interrupts) as say:
            say("reading the files for their hashes")
            document: dict[str, Any] = {
                "machine": machine_document(pair.threads),
                "pair": pair_document(pair),
                "load_s": load_s,
                "warnings": opening.warnings(pair, values),
                **(_measured(pair, plan, say) if plan else _costs(pair, say)),
            }
        peak = {"bytes": peak_memory_bytes(), "includes": PEAK_MEMORY_INCLUDES}
        document = {"kind": "trials" if plan else "costs", **document, "peak_memory": peak}
    if values["as_json"]:
        streams.write_out(to_json(document) + "\n")
    else:
        from edge_nudge.cli.bench_tables import report_text

        streams.write_out(report_text(document))


def _plan(values: dict[str, Any], context: click.Context) -> Plan | None:
    """Return what is to be answered, None for --costs. Raises InputError."""
    if values["costs"]:
        for param in context.command.params:
            if param.name in _OF_TRIALS and values[param.name] not in (None, ()):
                raise InputError(
                    f"{options.spelled(param, context)} has no meaning with --costs: no answers are measured"
                )
        return None
    from edge_nudge.bench.trials import ALWAYS, Plan

    return Plan(
        prompts=tuple(name for name in PROMPTS if name in values["prompt"]) or tuple(PROMPTS),
        modes=(*ALWAYS, values["against"]) if values["against"] else ALWAYS,
        n_trials=DEFAULT_TRIALS if values["trials"] is None else values["trials"],
        max_tokens=DEFAULT_MAX_TOKENS if values["max_tokens"] is None else values["max_tokens"],
    )


def _measured(pair: Pair, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    from edge_nudge.bench.report import settings_document, trials_document
    from edge_nudge.bench.trials import request_of, run_trials

    gamma = pair.spec.resolve(request_of(plan, plan.prompts[0], "nudged")).nudge.threshold
    return {"settings": settings_document(plan, gamma), **trials_document(run_trials(pair, plan, say), plan)}


def _costs(pair: Pair, say: Callable[[str], None]) -> dict[str, Any]:
    from edge_nudge.bench.report import costs_document
    from edge_nudge.engine.costs import measure_costs

    costs = {}
    for role, backend in ((Role.BASE, pair.base), (Role.NUDGING, pair.nudging)):
        say(f"{role.value} model: batches of 1 to 32 tokens")
        costs[role.value] = costs_document(measure_costs(backend))
    pair.forget()
    return {"costs": costs}


@contextmanager
def _progress(interrupts: Interrupts) -> Iterator[Callable[[str], None]]:
    """Yield what tells how far things are, on a terminal only; a signal ends the process meanwhile."""
    if not is_terminal(sys.stderr):
        with interrupts.at_once():
            yield lambda line: None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, no_color=not wants_color("auto", sys.stderr))
    with console.status(Text("measuring")) as status, interrupts.at_once(status.stop):
        yield lambda line: status.update(Text(line))
