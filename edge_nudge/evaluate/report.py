"""The files that an evaluation leaves beside its results: summary.json, report.md, report.html.

Owns their names. Never touches the results, and computes nothing itself.

1. Everything is made before anything is written, and everything is written before the first file gets its name: each
   appears whole, or stays as it was.
2. A file of one of these names that this program did not write is not replaced, nor are the others then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge_nudge.errors import InputError
from edge_nudge.evaluate.results import Results
from edge_nudge.report.output import Kind, Output

if TYPE_CHECKING:
    from edge_nudge.evaluate.summary import Summary

SUMMARY_NAME, MARKDOWN_NAME, PAGE_NAME = "summary.json", "report.md", "report.html"
SUMMARY = Kind("summary of an evaluation", b'{\n  "format": "edge-nudge evaluation summary"')
MARKDOWN = Kind("report of an evaluation", b"<!-- edge-nudge: the report of an evaluation -->")
PAGE = Kind("page of an evaluation", b"<!DOCTYPE html>\n<!-- edge-nudge: the page of an evaluation -->")


def write_report(results: Results, folder: Path, summary: Summary | None = None) -> list[Path]:
    """Write the summary, the tables and the page, and return their paths.

    `summary` is that of `summarize`, from somebody who has it already: it takes seconds.
    Raises InputError where a file cannot be written, or scipy or matplotlib is not installed.
    """
    from edge_nudge.evaluate.markdown import markdown_report
    from edge_nudge.evaluate.page import render_evaluation
    from edge_nudge.evaluate.summary import summarize

    summary = summary or summarize(results)
    document = json.dumps(summary.model_dump(mode="json"), indent=2, allow_nan=False)
    made = [
        (SUMMARY_NAME, f"{document}\n", SUMMARY),
        (MARKDOWN_NAME, markdown_report(results, summary), MARKDOWN),
        (PAGE_NAME, render_evaluation(results, summary), PAGE),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}") from None
    outputs = [Output(folder / name, kind) for name, _, kind in made]
    try:
        for output, (_, text, _) in zip(outputs, made, strict=True):
            output.write(text)
    except BaseException:
        for output in outputs:
            output.discard()
        raise
    for output in outputs:
        output.keep()
    return [output.path for output in outputs]
