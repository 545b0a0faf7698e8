"""The commands of a chat, all beginning with a slash, and how what was typed is read.

Owns names, meanings and help texts. Never reads a key and never asks a model.

1. What is typed is a command if it begins with a slash; a blank in front makes it a message.
2. A text between two three double quotes may have several lines and begin with anything; the quotes are no part of it.
3. A command that cannot be done says why and changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_nudge.cli.chatting import saved, settings, words
from edge_nudge.cli.chatting.conversation import Turn
from edge_nudge.cli.chatting.state import Chat
from edge_nudge.core.visible import one_line
from edge_nudge.errors import InputError

QUOTES = '"""'


class Screen(Protocol):
    """Where commands show things."""

    def say(self, text: str, indent: int = 0) -> None: ...

    def show_turn(self, turn: Turn) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes after a command: a text for the input line, a message to be answered anew, or the end."""

    text: str = ""
    asks_anew: str | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what may follow its name, what it does in a few words, and the function that does it."""

    argument: str
    help: str
    do: Callable[[Desk, str], Outcome]


@dataclass(frozen=True, slots=True)
class Desk:
    """What commands work on."""

    chat: Chat
    screen: Screen
    files: saved.Files


def is_unfinished(text: str) -> bool:
    """Tell whether a text between quotes has begun and not ended."""
    block = _block(text)
    return block is not None and not (len(block.rstrip()) >= len(QUOTES) and block.rstrip().endswith(QUOTES))


def unquoted(text: str) -> str:
    """Return a text without the quotes around it and the line ends beside them."""
    block = _block(text)
    if block is None:
        return text
    inner = block.rstrip().removesuffix(QUOTES)
    return inner.removeprefix("\n").removesuffix("\n")


def _block(text: str) -> str | None:
    """Return what stands behind the opening quotes; None where there are none."""
    text = text.lstrip().removeprefix("/system").lstrip()
    return text.removeprefix(QUOTES) if text.startswith(QUOTES) else None


def is_command(text: str) -> bool:
    return text.startswith("/")


def run_command(desk: Desk, line: str) -> Outcome:
    """Do what a line beginning with a slash says. Raises InputError."""
    name, _, argument = line.partition(" ")
    name, first_break, rest = name.partition("\n")
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else "/help lists them"
        raise InputError(f"no command is called {one_line(name)}: {hint} (a blank in front makes it a message)")
    argument = (rest + first_break + argument).strip()
    if argument and not command.argument:
        raise InputError(f"{name} stands alone, nothing follows it")
    return command.do(desk, argument)


def _help(desk: Desk, _: str) -> Outcome:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        desk.screen.say(f"  {f'{name} {command.argument}'.ljust(width)}  {command.help}", width + 4)
    for line in (
        f"\n  {QUOTES} begins a text of several lines and ends it; Alt-Enter breaks a line, as pasting does.",
        "  Ctrl-C stops an answer and keeps what there is; Ctrl-D leaves; arrow up: earlier messages.",
        f"  Settings: {', '.join(settings.NAMES)}.",
    ):
        desk.screen.say(line, 2)
    return Outcome()


def _bye(_: Desk, __: str) -> Outcome:
    return Outcome(is_over=True)


def _clear(desk: Desk, _: str) -> Outcome:
    n_turns = len(desk.chat.conversation.turns)
    desk.chat.clear()
    desk.screen.say("a new conversation begins" + (" (/undo brings the old one back)" if n_turns else ""))
    return Outcome()


def _regen(desk: Desk, _: str) -> Outcome:
    turns = desk.chat.conversation.turns
    if not turns:
        raise InputError("there is no answer yet that could be given anew")
    sampling = desk.chat.request("").sampling
    if sampling.temp == 0 or sampling.seed is not None:
        what = "temp is 0" if sampling.temp == 0 else f"seed is {sampling.seed}"
        remedy = "/set temp 0.8" if sampling.temp == 0 else "/set seed default"
        desk.screen.say(f"{what}, so the answer may well be the same: {remedy} varies it")
    return Outcome(asks_anew=turns[-1].user)


def _undo(desk: Desk, _: str) -> Outcome:
    turn = desk.chat.undo()
    n_turns = len(desk.chat.conversation.turns)
    left = f"{n_turns} turn{'s' * (n_turns != 1)}"
    if turn is None:
        desk.screen.say(f"the earlier conversation is back: {left}")
        return Outcome()
    desk.screen.say(f"the last turn is taken back, {left} left; its message is in the input line")
    return Outcome(text=_typed(turn.user))


def _typed(text: str) -> str:
    """Return a message as it would have to be typed."""
    return f"{QUOTES}{text}{QUOTES}" if is_command(text) or text.lstrip().startswith(QUOTES) else text


def _system(desk: Desk, text: str) -> Outcome:
    chat = desk.chat
    if text:
        plain = unquoted(text)
        chat.conversation = chat.conversation.with_system(None if plain in ("", '""', "none") else plain)
    system = chat.conversation.system
    remark = " (/system none removes it)" if system is not None else ""
    desk.screen.say(f"system message: {'none' if system is None else system}{remark}")
    return Outcome()


def _set(desk: Desk, argument: str) -> Outcome:
    name, _, value = argument.partition(" ")
    if name and value.strip():
        desk.chat.settings = settings.change(desk.chat.settings, name, value.strip())
    elif name:
        raise InputError(f"what should {one_line(name)} be? /set {one_line(name)} VALUE, or default")
    made = settings.described(desk.chat.settings)
    desk.screen.say(f"settings: {one_line(', '.join(made)) or 'all at their defaults'}")
    return Outcome()


def _gamma(desk: Desk, value: str) -> Outcome:
    if value:
        desk.chat.settings = settings.change(desk.chat.settings, "gamma", value)
    nudge = desk.chat.request("").nudge
    source = "" if "gamma" in desk.chat.settings else ", the default"
    desk.screen.say(f"gamma {nudge.threshold:g}{source} (rule {nudge.rule.value})")
    return Outcome()


def _nudges(desk: Desk, value: str) -> Outcome:
    if value not in ("", "on", "off"):
        raise InputError(f"/nudges is on or off, not {one_line(value)}")
    desk.chat.has_nudges = desk.chat.has_nudges if not value else value == "on"
    desk.screen.say(f"who wrote what is {'shown' if desk.chat.has_nudges else 'not shown'}")
    return Outcome()


def _show(desk: Desk, what: str) -> Outcome:
    if what not in ("", "all"):
        raise InputError(f"/show alone, or /show all with the whole conversation, not {one_line(what)}")
    for line in words.about(desk.chat):
        desk.screen.say(line)
    for turn in desk.chat.conversation.turns if what else ():
        desk.screen.show_turn(turn)
    return Outcome()


def _stats(desk: Desk, _: str) -> Outcome:
    for line in words.counts(desk.chat):
        desk.screen.say(line)
    return Outcome()


def _save(desk: Desk, name: str) -> Outcome:
    if not name:
        raise InputError("where to? /save FILE")
    chat = desk.chat
    path = desk.files.save(name, saved.to_text(chat.conversation, chat.settings, chat.models))
    n_turns = len(chat.conversation.turns)
    desk.screen.say(f"{n_turns} turn{'s' * (n_turns != 1)} saved in {one_line(str(path))}")
    return Outcome()


def _load(desk: Desk, name: str) -> Outcome:
    if not name:
        raise InputError("which one? /load FILE")
    path, data = desk.files.load(name)
    conversation, made = saved.of_text(data, one_line(str(path)))
    had_turns = bool(desk.chat.conversation.turns)
    desk.chat.replace(conversation, made)
    desk.files.remember(path)
    n_turns = len(conversation.turns)
    back = " (/undo brings the conversation before back)" if had_turns else ""
    desk.screen.say(f"{n_turns} turn{'s' * (n_turns != 1)} loaded from {one_line(str(path))}{back}")
    for turn in conversation.turns[-1:]:
        desk.screen.show_turn(turn)
    return Outcome()


COMMANDS = {
    "/help": Command("", "this list", _help),
    "/bye": Command("", "leave", _bye),
    "/clear": Command("", "begin a new conversation; the system message and settings stay", _clear),
    "/regen": Command("", "answer the last message anew", _regen),
    "/undo": Command("", "take back the last turn, or a /clear or /load", _undo),
    "/system": Command("[TEXT]", "show or set the system message; none removes it", _system),
    "/set": Command(
        "[NAME VALUE]", "a setting by its option name, from the next answer on; VALUE may be default", _set
    ),
    "/show": Command("[all]", "models and settings, or the whole conversation too", _show),
    "/stats": Command("", "counts of the last answer and of this chat", _stats),
    "/save": Command("FILE", "write the conversation into a new file", _save),
    "/load": Command("FILE", "go on with a saved conversation", _load),
    "/gamma": Command("[X]", "show or set the threshold below which the base model is nudged", _gamma),
    "/nudges": Command("[on|off]", "colour, and after each answer who wrote what", _nudges),
}
