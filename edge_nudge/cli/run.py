"""`edge-nudge run`: one prompt, one answer.

Owns the order of things in this command. Never checks a value, never formats one.

1. What is wrong in a request is found before anything is fetched or loaded.
2. The answer goes to stdout, everything else to stderr; with --json an answer that failed prints nothing there.
3. The models are freed whatever happens.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import opening, options, streams
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import AnswerView, Painter, is_terminal, legend, totals, wants_color
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import Finished, Piece
from edge_nudge.document import answer_document, pair_document, to_json
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.core.request import GenerateRequest
    from edge_nudge.runtime import Answer, Pair

_ENDLESS_LINE = 1 << 30  # characters: no line of a file is broken


@click.command(short_help="Answer one prompt.")
@click.argument("prompt", required=False)
@options.model_options
@options.request_options
@options.output_options
@click.pass_context
def run(context: click.Context, /, **values: Any) -> None:
    """Answer one PROMPT.

    Without PROMPT, or with "-", the prompt is read from standard input as UTF-8 and used unchanged (but for a byte
    order mark at its start). Without a pair or files the demo pair is used, fetched on first use.

    On a terminal the nudging model's words are coloured, and control characters from a model are made visible.
    Piped, the output is exactly the answer and one newline, in UTF-8.
    """
    show_log(values["verbose"])
    with Interrupts() as interrupts:
        _run(context, values, interrupts)
    if interrupts.signum is not None:
        context.exit(128 + interrupts.signum)


def _run(context: click.Context, values: dict[str, Any], interrupts: Interrupts) -> None:
    options.check_text(context)
    prompt = streams.read_prompt(values["prompt"])
    try:
        request = _request(prompt, values)
    except InputError as error:
        raise options.in_users_terms(error, context) from None
    pair, load_s = opening.open_pair(context, values, interrupts)
    with pair:
        _answer(pair, pair.spec.resolve(request), values, interrupts, load_s=load_s)


def _request(prompt: str, values: dict[str, Any]) -> GenerateRequest:
    from edge_nudge.core.request import build_request

    messages = [{"role": "user", "content": prompt}]
    if values["system"] is not None:
        messages.insert(0, {"role": "system", "content": values["system"]})
    return build_request(messages, **options.request_settings(values))


def _answer(
    pair: Pair, request: GenerateRequest, values: dict[str, Any], interrupts: Interrupts, *, load_s: float
) -> None:
    opening.tell_notes(pair, values)
    answer = pair.answer(request)
    if values["as_json"]:
        with interrupts.at_once():  # a large file is read for its hash, once
            about = pair_document(pair)
        pieces: list[Piece] = []
        finished = _follow(answer, pieces.append, interrupts)
        warnings = opening.warnings(pair, values)
        document = answer_document(pieces, finished, request=request, pair=about, load_s=load_s, warnings=warnings)
        streams.write_out(to_json(document) + "\n")
    else:
        finished = _follow_on_screen(answer, pair, values, interrupts)
    if is_terminal(sys.stderr) if values["totals"] is None else values["totals"]:
        width = shutil.get_terminal_size().columns if is_terminal(sys.stderr) else _ENDLESS_LINE
        streams.tell(totals(finished, is_drawn=request.sampling.temp > 0, width=width))


def _follow_on_screen(answer: Answer, pair: Pair, values: dict[str, Any], interrupts: Interrupts) -> Finished:
    painter = Painter(sys.stdout, wants_color(values["color"], sys.stdout))
    if painter.is_on and sys.stderr is not None:
        # File names: what a file calls itself inside is often its parent's name.
        names = pair.spec.base.stem, pair.spec.nudging.stem
        streams.tell_as_is(legend(*names, Painter(sys.stderr, wants_color(values["color"], sys.stderr))))
    view = AnswerView(streams.write_out, painter, is_terminal=is_terminal(sys.stdout))
    try:
        return _follow(answer, view.show, interrupts)
    finally:
        view.end(is_interrupted=interrupts.signum is not None)


def _follow(answer: Answer, show: Callable[[Piece], None], interrupts: Interrupts) -> Finished:
    """Show the pieces of an answer and return its end; the first Ctrl-C cancels it."""
    with interrupts.asking(answer.cancel):
        for event in answer:
            if isinstance(event, Piece):
                show(event)
            elif isinstance(event, Finished):
                return event
    raise AssertionError("an answer ends with Finished")
