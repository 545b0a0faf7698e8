"""`edge-nudge bench`: measure a pair on this machine.

Owns the order of things in this command. What is asked for is in bench_options.py, what is measured in bench/ and
engine/costs.py, the tables are in bench_tables.py.

1. What is wrong in an option is found before anything is fetched or loaded; so is a server that does not answer.
2. The report goes to stdout when everything is measured; progress to stderr, where that is a terminal.
3. Ctrl-C leaves at once, and nothing is reported then: half a run compares nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import bench_options, opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import is_terminal, wants_color
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import Role
from edge_nudge.document import about_pair, pair_document, to_json
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.bench.server_loop import ServerCompleter
    from edge_nudge.bench.trials import Plan
    from edge_nudge.core.costs import CostCurve
    from edge_nudge.core.text_loop import TextLoop
    from edge_nudge.runtime import Pair

Say = Callable[[str], None]


@click.command(cls=Configured, short_help="Measure a pair on this machine.")
@options.model_options
@bench_options.bench_options
@click.pass_context
def bench(context: click.Context, /, **values: Any) -> None:
    """Measure a pair on this machine.

    Fixed prompts are answered by the base model alone, by the nudging model alone, and nudged, in turn and with cold
    caches, reading the prompt included. The report compares the answers of one trial with each other, and counts
    what was evaluated for each token of an answer.

    With --against naive or server, a loop that sends text is measured beside the pair; such loops are slow, so the
    defaults are the prompt short and 16 tokens then, in every mode.

    With --costs, the time of batches of 1 to 32 tokens instead, and which of them have the bits of single steps: two
    to three seconds for each model. With --fake, what the decoder itself takes for each token, without any model.

    The report goes to standard output. What batches cost is measured once and kept in the cache folder.

    \b
    Examples:
      edge-nudge bench --prompt short --trials 5
      edge-nudge bench --costs --json > costs.json
    """
    show_log(values["verbose"])
    with Interrupts() as interrupts:
        _bench(context, {**values, "color": "auto"}, interrupts)


def _bench(context: click.Context, values: dict[str, Any], interrupts: Interrupts) -> None:
    options.check_text(context)
    try:
        kind = bench_options.kind_of(values, context)
        plan = bench_options.plan_of(values) if kind == "trials" else None
        urls = bench_options.urls_of(values)
    except InputError as error:
        raise options.in_users_terms(error, context) from None
    document = _fake(interrupts) if kind == "fake" else _loaded(context, values, interrupts, plan, urls)
    if values["as_json"]:
        streams.write_out(to_json({"kind": kind, **document}) + "\n")
    else:
        from edge_nudge.cli.bench_tables import report_text

        streams.write_out(report_text({"kind": kind, **document}))


def _loaded(
    context: click.Context,
    values: dict[str, Any],
    interrupts: Interrupts,
    plan: Plan | None,
    urls: Mapping[Role, str],
) -> dict[str, Any]:
    """Measure a pair; without a plan, what batches cost it."""
    from edge_nudge.bench.machine import PEAK_MEMORY_INCLUDES, machine_document, peak_memory_bytes

    with ExitStack() as stack:
        servers, served = _servers(urls, interrupts, stack)
        pair, load_s = opening.open_pair(context, values, interrupts)
        stack.enter_context(pair)
        about = about_pair(pair)
        opening.tell_notes(about, values)
        with _progress(interrupts) as say:
            say("reading the files for their hashes")
            document: dict[str, Any] = {
                "machine": machine_document(pair.threads),
                "pair": pair_document(about),
                "load_s": load_s,
                "warnings": opening.warnings(about, values),
            }
            if plan is None:
                document |= _costs(pair, say)
            else:
                loop, notes = _beside(pair, plan, values, servers, served, say, stack)
                document |= {"notes": notes, **_measured(pair, plan, loop, say)}
        return {**document, "peak_memory": {"bytes": peak_memory_bytes(), "includes": PEAK_MEMORY_INCLUDES}}


def _servers(
    urls: Mapping[Role, str], interrupts: Interrupts, stack: ExitStack
) -> tuple[dict[Role, ServerCompleter], dict[Role, str | None]]:
    """Return the servers, and what models they say they have. Raises EngineError."""
    servers: dict[Role, ServerCompleter] = {}
    served: dict[Role, str | None] = {}
    if urls:
        from edge_nudge.bench.server_loop import ServerCompleter

        with interrupts.at_once():
            for role, url in urls.items():
                servers[role] = stack.enter_context(closing(ServerCompleter(url)))
                served[role] = servers[role].check(with_prob=role is Role.BASE)
    return servers, served


def _beside(
    pair: Pair,
    plan: Plan,
    values: Mapping[str, Any],
    servers: Mapping[Role, ServerCompleter],
    served: Mapping[Role, str | None],
    say: Say,
    stack: ExitStack,
) -> tuple[TextLoop | None, list[str]]:
    """Return the loop beside the pair and its notes; none where the plan has none."""
    from edge_nudge.bench import outside

    if "server" in plan.modes:
        return stack.enter_context(outside.server_loop(pair, servers, served))
    if "naive" not in plan.modes:
        return None, []
    from edge_nudge.engine.machine import default_threads

    say("loading both models once more, for the naive loop")
    n_threads = values["threads"] or default_threads().n_threads
    return stack.enter_context(outside.naive_loop(pair, plan.prompts, plan.max_tokens, n_threads))


def _measured(pair: Pair, plan: Plan, loop: TextLoop | None, say: Say) -> dict[str, Any]:
    from edge_nudge.bench.follow_up import follow_up_document, run_follow_up
    from edge_nudge.bench.report import settings_document, trials_document
    from edge_nudge.bench.trials import request_of, run_trials

    gamma = pair.spec.resolve(request_of(plan, "short", "nudged")).nudge.threshold
    # The follow-up first: its second prompt is known only when it is there, and may not fit.
    follow_up = None
    if plan.follow_up:
        follow_up = follow_up_document(run_follow_up(pair, plan.max_tokens, plan.n_trials, say), plan.max_tokens)
    curves = {role: curve.ascending() for role, curve in _curves(pair, say).items()} if plan.prompts else {}
    return {
        "settings": settings_document(plan, gamma),
        **trials_document(run_trials(pair, plan, say, loop), plan, curves),
        "follow_up": follow_up,
    }


def _costs(pair: Pair, say: Say) -> dict[str, Any]:
    from edge_nudge.bench.report import costs_document

    return {"costs": {role.value: costs_document(curve) for role, curve in _curves(pair, say).items()}}


def _curves(pair: Pair, say: Say) -> dict[Role, CostCurve]:
    """Measure what batches cost both models."""
    from edge_nudge.engine.costs import measure_costs

    curves = {}
    for role, backend in pair.backends.items():
        say(f"{role.value} model: batches of 1 to 32 tokens")
        curves[role] = measure_costs(backend)
    pair.forget()
    return curves


def _fake(interrupts: Interrupts) -> dict[str, Any]:
    from edge_nudge.bench.machine import machine_document
    from edge_nudge.bench.python_cost import measure_python

    with _progress(interrupts) as say:
        return {"machine": machine_document(""), "fake": measure_python(say=say)}


@contextmanager
def _progress(interrupts: Interrupts) -> Iterator[Say]:
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
