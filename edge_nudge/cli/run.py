"""`edge-nudge run`: one prompt, one answer.

Owns the order of things in this command. Never checks a value, never formats one.

1. What is wrong in a request is found before anything is fetched, loaded or asked of a server.
2. The answer goes to stdout, everything else to stderr; with --json an answer that failed prints nothing there.
3. The models are freed whatever happens.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import attach, opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import AnswerView, Painter, is_terminal, legend, totals, wants_color
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import FinishDetail, Finished, Piece
from edge_nudge.document import PairAbout, about_pair, answer_document, pair_document, to_json
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.client import Stream
    from edge_nudge.core.request import GenerateRequest
    from edge_nudge.report.trace import TraceWriter
    from edge_nudge.runtime import Answer, Pair

_ENDLESS_LINE = 1 << 30  # characters: no line of a file is broken


@click.command(cls=Configured, short_help="Answer one prompt.")
@click.argument("prompt", required=False)
@options.model_options
@options.request_options
@options.output_options
@options.server_option
@click.pass_context
def run(context: click.Context, /, **values: Any) -> None:
    """Answer one PROMPT.

    Without PROMPT, or with "-", the prompt is read from standard input as UTF-8 and used unchanged (but for a byte
    order mark at its start). Without a pair or files the demo pair is used, fetched on first use.

    On a terminal the nudging model's words are coloured, and control characters from a model are made visible.
    Piped, the output is exactly the answer and one newline, in UTF-8.

    The answer goes to standard output, all else to standard error. What batches cost on this machine is measured once
    and kept in the cache folder. Defaults come from config.toml and EDGE_NUDGE_<OPTION>: see edge-nudge config.

    Exit codes: 3 the prompt is longer than the context; 4 the pair could not be fetched; 6 it does not fit into
    memory; 130 interrupted, and the answer so far stays.

    \b
    Examples:
      edge-nudge run -n 100 "Why is the sky blue?"
      edge-nudge run -m base.gguf --nudge ollama:smollm2:135m < question.txt
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
    with ExitStack() as stack:
        # A folder that cannot be written is found before anything is fetched or loaded.
        trace = None if values["trace"] is None else stack.enter_context(_open_trace(values["trace"]))
        spec, settings = opening.find(context, values)
        request = spec.resolve(request)
        # The native calls of a trace are those of this process.
        attaches = not values["no_server"] and trace is None
        server = attach.find_server(spec, settings, values, interrupts) if attaches else None
        if server is not None:
            stack.enter_context(server.client)
            _answer(server.client.answer, server.about, request, values, interrupts)
            return
        pair, load_s = opening.load(context, spec, settings, values, interrupts)
        stack.enter_context(pair)
        ask = pair.answer if trace is None else _recorded(pair, trace, values, interrupts, load_s)
        _answer(ask, about_pair(pair), request, values, interrupts, load_s=load_s)


def _open_trace(file: str) -> TraceWriter:
    from edge_nudge.report.trace import TraceWriter

    return TraceWriter(Path(file))


def _recorded(
    pair: Pair, trace: TraceWriter, values: dict[str, Any], interrupts: Interrupts, load_s: float
) -> Callable[[GenerateRequest], Answer]:
    """Return what answers a request and writes a trace of it."""
    from edge_nudge.report.trace import traced

    about = about_pair(pair)
    with interrupts.at_once():  # a large file is read for its hash, once
        document = pair_document(about)

    def ask(request: GenerateRequest) -> Answer:
        answer = pair.answer(traced(request))
        warnings = opening.warnings(about, values)
        return trace.follow(pair, answer, request, about=document, load_s=load_s, warnings=warnings)

    return ask


def _request(prompt: str, values: dict[str, Any]) -> GenerateRequest:
    from edge_nudge.core.request import build_request

    messages = [{"role": "user", "content": prompt}]
    if values["system"] is not None:
        messages.insert(0, {"role": "system", "content": values["system"]})
    return build_request(messages, **options.request_settings(values))


def _answer(
    ask: Callable[[GenerateRequest], Answer | Stream],
    about: PairAbout,
    request: GenerateRequest,
    values: dict[str, Any],
    interrupts: Interrupts,
    *,
    load_s: float | None = None,
) -> None:
    """Ask, and show the answer; without `load_s` it is a server that answers, and nothing was loaded for it."""
    opening.tell_notes(about, values)
    answer = ask(request)
    if values["as_json"]:
        with interrupts.at_once():  # a large file is read for its hash, once
            pair = pair_document(about)
        pieces: list[Piece] = []
        finished = _follow(answer, pieces.append, interrupts)
        warnings = opening.warnings(about, values)
        if load_s is None and finished.detail is FinishDetail.CANCELLED:
            warnings.append("cancelled: what the server had evaluated by then is not known here")
        document = answer_document(
            pieces, finished, request=request, pair=pair, load_s=load_s or 0.0, warnings=warnings
        )
        streams.write_out(to_json(document) + "\n")
    else:
        finished = _follow_on_screen(answer, about, values, interrupts)
    if is_terminal(sys.stderr) if values["totals"] is None else values["totals"]:
        width = shutil.get_terminal_size().columns if is_terminal(sys.stderr) else _ENDLESS_LINE
        streams.tell(totals(finished, is_drawn=request.sampling.temp > 0, width=width))


def _follow_on_screen(
    answer: Answer | Stream, about: PairAbout, values: dict[str, Any], interrupts: Interrupts
) -> Finished:
    painter = Painter(sys.stdout, wants_color(values["color"], sys.stdout))
    view = AnswerView(streams.write_out, painter, is_terminal=is_terminal(sys.stdout))
    has_begun = False

    def show(piece: Piece) -> None:
        nonlocal has_begun
        if not has_begun and painter.is_on and sys.stderr is not None:
            # Not what a file calls itself inside: that is often its parent's name.
            base, nudging = (model.label or Path(model.path).stem for model in (about.base, about.nudging))
            streams.tell_as_is(legend(base, nudging, Painter(sys.stderr, wants_color(values["color"], sys.stderr))))
        has_begun = True
        view.show(piece)

    finished: Finished | None = None
    try:
        finished = _follow(answer, show, interrupts)
    finally:
        if has_begun or finished is not None:  # a request that was refused leaves no line
            view.end(is_interrupted=interrupts.signum is not None)
    return finished


def _follow(answer: Answer | Stream, show: Callable[[Piece], None], interrupts: Interrupts) -> Finished:
    """Show the pieces of an answer and return its end; the first Ctrl-C cancels it."""
    with interrupts.asking(answer.cancel):
        for event in answer:
            if isinstance(event, Piece):
                show(event)
            elif isinstance(event, Finished):
                return event
    raise AssertionError("an answer ends with Finished")
