"""`edge-nudge chat`: a conversation in the terminal.

Owns the order of things in this command. Never formats an answer and never changes a conversation itself.

1. Settings are checked before anything is fetched or loaded, as `run` does.
2. Whatever is wrong with one message or command is told, and the chat goes on.
3. What nobody expected ends the chat, and leaves the conversation in a file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import attach, opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import is_terminal
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.visible import one_line
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.cli.chatting.answering import Answering
    from edge_nudge.cli.chatting.commands import Desk
    from edge_nudge.cli.chatting.prompting import InputLine
    from edge_nudge.client import Stream
    from edge_nudge.core.request import GenerateRequest
    from edge_nudge.document import PairAbout
    from edge_nudge.runtime import Answer, PairSpec

Ask = Callable[["GenerateRequest"], "Answer | Stream"]


@click.command(cls=Configured, short_help="Talk in the terminal.")
@options.model_options
@options.request_options
@options.look_options
@options.server_option
@click.pass_context
def chat(context: click.Context, /, **values: Any) -> None:
    """Talk with a pair in the terminal.

    Each line is a message, and three double quotes begin and end one of several lines; /help lists the commands. The
    nudging model's words are coloured. Ctrl-C stops an answer and keeps what there is of it, Ctrl-D leaves. The
    options for answers are those of run, and /set changes them later.

    Without a pair or files the demo pair is used, fetched on first use; where a running server has the pair, it
    answers.

    It reads what is typed and writes to the terminal only, but for the history in the state folder and for /save.

    Example: edge-nudge chat --pair demo -s "Answer in one sentence."
    """
    show_log(values["verbose"])
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        which = "input" if is_terminal(sys.stdout) else "output"
        raise click.UsageError(f"chat needs a terminal, and standard {which} is none: one prompt is answered by run")
    with Interrupts() as interrupts, ExitStack() as stack:
        options.check_text(context)
        _check_settings(context, values)
        spec, settings = opening.find(context, values)
        server = None if values["no_server"] else attach.find_server(spec, settings, values, interrupts)
        if server is not None:
            stack.enter_context(server.client)
            _talk(spec, server.about, server.client.answer, values, source="a running server answers")
            return
        from edge_nudge.document import about_pair

        pair, load_s = opening.load(context, spec, settings, values, interrupts)
        stack.enter_context(pair)
        _talk(spec, about_pair(pair), pair.answer, values, source=f"loaded in {load_s:.1f} s")


def _check_settings(context: click.Context, values: dict[str, Any]) -> None:
    from edge_nudge.core.request import build_request

    messages = [{"role": "user", "content": ""}]
    if values["system"] is not None:
        messages.insert(0, {"role": "system", "content": values["system"]})
    try:
        build_request(messages, **options.request_settings(values))
    except InputError as error:
        raise options.in_users_terms(error, context) from None


def _talk(spec: PairSpec, about: PairAbout, ask: Ask, values: dict[str, Any], *, source: str) -> None:
    """Read and answer until the user leaves."""
    from edge_nudge.catalog.files import state_dir
    from edge_nudge.cli.chatting import words
    from edge_nudge.cli.chatting.answering import Answering
    from edge_nudge.cli.chatting.commands import Desk
    from edge_nudge.cli.chatting.keyboard import late_ctrl_c_ignored
    from edge_nudge.cli.chatting.prompting import InputLine
    from edge_nudge.cli.chatting.saved import Files
    from edge_nudge.cli.chatting.screen import TerminalScreen
    from edge_nudge.cli.chatting.state import Chat

    state = Chat(spec, about, system=values["system"], settings=options.request_settings(values))
    screen = TerminalScreen(values, lambda: state.has_nudges)
    opening.tell_notes(about, values)
    screen.say(f"{one_line(state.name)}: {source}, context {about.base.n_ctx} tokens; /help lists the commands")
    screen.legend({role.value: model.label or Path(model.path).stem for role, model in about.models.items()})
    line = InputLine(
        state_dir() / "chat-history", status=partial(words.status, state), say=screen.say, has_color=screen.has_color
    )
    desk = Desk(state, screen, Files())
    try:
        with late_ctrl_c_ignored():
            _loop(line, desk, Answering(state, screen, ask))
    except (streams.ClosedPipeError, streams.OutputError, KeyboardInterrupt):
        raise
    except Exception:
        if state.conversation.turns:
            _rescue(desk, state_dir())
        raise


def _loop(line: InputLine, desk: Desk, answering: Answering) -> None:
    from edge_nudge.cli.chatting.commands import Outcome, is_command, run_command, unquoted

    text = ""
    while True:
        try:
            typed = line.read(text)
        except EOFError:
            return
        text = ""
        if not typed.strip():
            continue
        try:
            _check(typed)
            if not is_command(typed):
                text = answering.answer(unquoted(typed))
                continue
            outcome: Outcome = run_command(desk, typed)
            if outcome.is_over:
                return
            if outcome.asks_anew is not None:
                answering.answer(outcome.asks_anew, is_anew=True)
            text = outcome.text
        except InputError as error:
            desk.screen.say(f"error: {one_line(str(error))}")


def _check(text: str) -> None:
    """Raise InputError for bytes that are no UTF-8, which come from a terminal as lone surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("what was typed or pasted is not UTF-8: write it anew")


def _rescue(desk: Desk, folder: Path) -> None:
    """Write the conversation of a chat that breaks off into a file."""
    from edge_nudge.cli.chatting import saved

    name = folder / f"rescued-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
    try:
        path = desk.files.save(str(name), saved.to_text(desk.chat.conversation, desk.chat.settings, desk.chat.models))
    except InputError as error:
        streams.tell(f"the conversation is lost: {error}")
        return
    streams.tell(f"the conversation is saved in {one_line(str(path))}: /load it in a new chat")
