"""The input line of a chat, on prompt_toolkit: keys, pasted text, history, completion, the status line.

Owns what happens until Enter. Never knows what a command does; prompt_toolkit is imported here only.

1. Enter sends, but breaks the line while a text between quotes is open; pasted text keeps its lines.
2. Ctrl-C throws a text away, into the history; on an empty line it is a hint. Ctrl-D on an empty line leaves.
3. A history that cannot be written costs a line of notice, never the chat.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from edge_nudge.cli.chatting import settings
from edge_nudge.cli.chatting.commands import COMMANDS, is_command, is_unfinished
from edge_nudge.cli.chatting.screen import PROMPT
from edge_nudge.cli.interrupts import Interrupted
from edge_nudge.cli.options import RULES

HINT = "(Ctrl-D or /bye leaves; /help lists the commands)"
_CONTINUED = ". "
_VALUES = {"/nudges": ("on", "off"), "/show": ("all",), "/system": ("none",), "/gamma": ("default",)}


class InputLine:
    """Reads one input after another; `status` gives the line under the prompt, `say` shows a notice."""

    def __init__(
        self, history: Path, *, status: Callable[[], str], say: Callable[[str], None], has_color: bool
    ) -> None:
        self._say = say
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=_History(history, say),
            completer=_Commands(),
            complete_while_typing=Condition(lambda: is_command(self._session.default_buffer.text)),
            multiline=Condition(lambda: is_unfinished(self._session.default_buffer.text)),
            prompt_continuation=lambda width, line, is_wrapped: _CONTINUED if not is_wrapped else "",
            key_bindings=_keys(),
            bottom_toolbar=status,
            style=Style.from_dict({"bottom-toolbar": "noreverse", "bottom-toolbar.text": "noreverse"}),
            color_depth=None if has_color else ColorDepth.DEPTH_1_BIT,
            enable_suspend=True,
        )

    def read(self, text: str = "") -> str:
        """Return what was typed, beginning with `text` in the line. Raises EOFError, Interrupted after SIGTERM."""
        while (typed := self._read_once(text)) is None:
            text = ""
        return typed

    def _read_once(self, text: str) -> str | None:
        """Return what was typed; None after Ctrl-C."""
        try:
            return self._session.prompt(default=text)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            buffer = self._session.default_buffer
            if buffer.text:
                buffer.append_to_history()
            else:
                self._say(HINT)
            return None


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class _History(FileHistory):
    """Earlier inputs in a file that its user alone can read."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._notice = say
        self._is_kept = True
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            os.chmod(path, 0o600)
        except OSError as error:
            self._give_up(error)
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        try:
            yield from super().load_history_strings()
        except OSError as error:
            self._give_up(error)

    def store_string(self, string: str) -> None:
        if not self._is_kept:
            return
        try:
            super().store_string(string)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self._is_kept:
            self._notice(f"(the history is not kept: {error})")
        self._is_kept = False


class _Commands(Completer):
    """Completes commands, the names of settings, and files behind /save and /load."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not is_command(text) or "\n" in text:
            return
        name, blank, argument = text.partition(" ")
        if not blank:
            for found, command in COMMANDS.items():
                if found.startswith(name):
                    yield Completion(found, -len(name), display_meta=command.help)
        elif name in ("/save", "/load"):
            yield from self._files.get_completions(Document(argument), complete_event)
        else:
            word = argument.rpartition(" ")[2]
            for value in _values(name, argument):
                if value.startswith(word) and value != word:
                    yield Completion(value, -len(word))


def _values(name: str, argument: str) -> Iterable[str]:
    """Return what may stand where the cursor is."""
    if name != "/set":
        return () if " " in argument else _VALUES.get(name, ())
    setting, blank, value = argument.partition(" ")
    if not blank:
        return settings.NAMES
    if " " in value:
        return ()
    choices = {"rule": RULES, "loop-guard": ("on", "off"), "verify-ahead": ("on", "off")}
    return (*choices.get(setting, ()), "default")
