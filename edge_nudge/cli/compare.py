"""`edge-nudge compare`: the answers of an evaluation side by side, for people, or for a judge model.

Owns the options and the words of the finding. How files are written and verdicts counted is in evaluate/.

1. Nothing is sent anywhere unless --judge-url names a place, and then questions and answers are.
2. The key of a judge is read from EDGE_NUDGE_JUDGE_KEY only: a command line is seen by others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import options, streams
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.names import complete_files
from edge_nudge.cli.render import is_terminal
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.visible import one_line
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.evaluate.judge import JudgeSummary, Tally

_OF_JUDGE = ("judge_model", "first", "second")


@click.command(short_help="Put answers side by side, or let a judge compare them.")
@click.argument("folder", metavar="[DIR]", default="evaluation", shell_complete=complete_files)
@click.option("--task", multiple=True, metavar="TASK", help="Only this task; default: those without a known answer.")
@click.option(
    "--blind",
    type=click.IntRange(0),
    metavar="SEED",
    help="Hide the systems' names and shuffle them; a key is written apart.",
)
@click.option("--judge-url", metavar="URL", help="OpenAI-compatible server of a judge model; answers are sent there.")
@click.option("--judge-model", metavar="NAME", help="The judge's model, as its server calls it.")
@click.option("--first", metavar="SYSTEM", help="For the judge: this system; default nudged.")
@click.option("--second", metavar="SYSTEM", help="For the judge: against this one; default nudging.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr.")
@click.pass_context
def compare(context: click.Context, /, **values: Any) -> None:
    """Put the answers of an evaluation side by side: DIR is the folder that edge-nudge eval wrote, default evaluation.

    Writes side_by_side.jsonl, .md and .csv into DIR, for people to read and rate. With --blind the files name no
    system, and the key to them is a file apart.

    With --judge-url, a model behind an OpenAI-compatible server compares two systems' answers instead, each pair in
    both orders; a key for it is taken from EDGE_NUDGE_JUDGE_KEY. Verdicts are kept, and a command that was interrupted
    goes on.

    \b
    Examples:
      edge-nudge compare --blind 1
      edge-nudge compare --judge-url http://127.0.0.1:8080/v1 --judge-model qwen
    """
    show_log(values["verbose"])
    options.check_text(context)
    from edge_nudge.evaluate.runner import read_results

    folder = Path(values["folder"]).expanduser()
    if values["judge_url"] is None:
        for name in _OF_JUDGE:
            if values[name] is not None:
                raise InputError(f"--{name.replace('_', '-')} is for a judge: name its server with --judge-url URL")
        from edge_nudge.evaluate.side_by_side import export_side_by_side

        files = export_side_by_side(
            read_results(folder), folder, blind_seed=values["blind"], tasks=values["task"] or None
        )
        if values["as_json"]:
            from edge_nudge.document import to_json

            streams.write_out(to_json({"files": [str(file) for file in files]}) + "\n")
        for file in files if not values["as_json"] else ():
            streams.write_out(f"{one_line(str(file))}\n")
        return
    if values["blind"] is not None:
        raise InputError("--blind is for people: a judge sees no names")
    if values["judge_model"] is None:
        raise InputError("which model is the judge? name it with --judge-model NAME")
    found = _judged(values, folder)
    streams.write_out(found.model_dump_json(indent=1) + "\n" if values["as_json"] else _text(found))


def _judged(values: dict[str, Any], folder: Path) -> JudgeSummary:
    from edge_nudge.evaluate.judge import judge
    from edge_nudge.evaluate.judge_server import key_from_environment
    from edge_nudge.evaluate.runner import read_results

    shows = is_terminal(sys.stderr)

    def tell(n_done: int, n_all: int) -> None:
        if shows and (n_done % 20 == 0 or n_done == n_all):
            streams.tell(f"{n_done} of {n_all} replies")

    with Interrupts():
        return judge(
            read_results(folder),
            values["first"] or "nudged",
            values["second"] or "nudging",
            url=values["judge_url"],
            model=values["judge_model"],
            key=key_from_environment(),
            folder=folder,
            on_progress=tell,
            tasks=values["task"] or None,
        )


def _text(found: JudgeSummary) -> str:
    from edge_nudge.cli.columns import facts, table

    titles = ("TASK", "ITEMS", "WON", "TIED", "LOST", "UNCLEAR", "SAYS A", "SAYS B")
    rows = [_row(task, tally) for task, tally in found.by_task.items()]
    rows += [_row("all", found.total)] if len(rows) > 1 else []
    about = [("first", found.first), ("second", found.second), ("judge", found.model)]
    asked = f"{found.n_asked} replies now, {found.n_kept} from before"
    return facts([*about, ("asked", asked)]) + "\n" + table(titles, rows, right=titles[1:])


def _row(name: str, tally: Tally) -> list[str]:
    counts = (
        tally.n_items,
        tally.n_wins,
        tally.n_ties,
        tally.n_losses,
        tally.n_unclear,
        tally.n_says_a,
        tally.n_says_b,
    )
    return [name, *map(str, counts)]
