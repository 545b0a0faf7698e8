"""`edge-nudge report`: a trace, or an evaluation, as one HTML page.

Owns which file the page goes to. Never looks into a trace.

1. Without -o the page lies beside the trace, named as it is with .html; "-" is standard output.
2. The trace itself is never overwritten, and a page is written whole or not at all.
3. An evaluation is a folder with results.json; its page, table and summary are written there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edge_nudge.cli import streams
from edge_nudge.cli.names import complete_files
from edge_nudge.cli.verbosity import show_log
from edge_nudge.errors import InputError

STDOUT = "-"
RESULTS_FILE = "results.json"  # of an evaluation: evaluate/runner.py


@click.command(short_help="Make a page of a recorded answer, or of an evaluation.")
@click.argument("file", metavar="FILE", shell_complete=complete_files)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=complete_files,
    help='The page; default: beside the trace, as .html; "-" is stdout.',
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the page instead of its name.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr.")
def report(**values: Any) -> None:
    """Make one HTML page of FILE, a trace that edge-nudge run --trace FILE has recorded.

    The page shows the answer with each word in the colour of its author, the probability of every token, each handoff
    with its reason, what the other model would have written where that is known, the totals, and when each model
    computed. It is whole in itself: it loads nothing, and can be read without JavaScript, printed and sent.

    Writes the page beside FILE, as .html, whole or not at all. The exit code is 1 where FILE is no trace.

    Where FILE is the folder of an evaluation, its report.html, report.md and summary.json are written anew.

    \b
    Examples:
      edge-nudge report answer.jsonl -o answer.html
      edge-nudge report evaluation
    """
    show_log(values["verbose"])
    trace_path = Path(values["file"])
    if (trace_path / RESULTS_FILE).is_file():
        _evaluation(trace_path, values)
        return
    output = _output(trace_path, values["output"])
    if output is None and values["as_json"]:
        raise click.UsageError('--json and the page cannot both go to standard output: name a file with "-o"')
    from edge_nudge.report.output import write_output
    from edge_nudge.report.page import PAGE, render_page
    from edge_nudge.report.records import read_trace

    trace = read_trace(trace_path)
    page = render_page(trace)
    if output is None:
        streams.write_out(page)
        return
    write_output(output, page, PAGE)
    if not values["as_json"]:
        streams.tell(f"page: {output}")
        return
    from edge_nudge.document import to_json

    about = {
        "page": str(output),
        "n_bytes": len(page.encode()),
        "n_pieces": len(trace.pieces),
        "n_calls": len(trace.calls),
        "is_finished": trace.end is not None and trace.end.type == "finished",
    }
    streams.write_out(to_json(about) + "\n")


def _evaluation(folder: Path, values: dict[str, Any]) -> None:
    if values["output"] is not None:
        raise InputError(f"{folder} is an evaluation: its pages lie in it, so -o has no meaning")
    from edge_nudge.cli.evaluate import need_extra
    from edge_nudge.evaluate.report import write_report
    from edge_nudge.evaluate.runner import read_results

    need_extra("the report of an evaluation")
    files = [str(file) for file in write_report(read_results(folder), folder)]
    if values["as_json"]:
        from edge_nudge.document import to_json

        streams.write_out(to_json({"files": files}) + "\n")
        return
    for file in files:
        streams.tell(f"page: {file}")


def _output(trace: Path, asked: str | None) -> Path | None:
    """Return where the page goes, None for standard output. Raises InputError where that is the trace itself."""
    if asked == STDOUT:
        return None
    try:
        output = trace.with_suffix(".html") if asked is None else Path(asked)
        is_trace = output == trace or (output.exists() and os.path.samefile(output, trace))
    except (OSError, ValueError):  # the trace is not there, or has no name: reading it says so
        return Path(asked or f"{trace}.html")
    if is_trace:
        raise InputError(f"{output} is the trace itself: name another file for the page (-o FILE)")
    return output
