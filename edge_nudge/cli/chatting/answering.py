"""One message and its answer: ask, stream, stop, keep.

Owns the order of these. Never reads a key and never decides what a conversation is.

1. Whatever ends an answer, what was shown of it is in the conversation, or the message goes back to the input line.
2. The first Ctrl-C stops the answer. Another one within a second is the same wish typed twice; later it is told that
   the models are still busy, and the one after that ends the process.
3. SIGTERM stops the answer and then ends the chat.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_nudge.cli.chatting import words
from edge_nudge.cli.chatting.conversation import spans_of
from edge_nudge.cli.chatting.keyboard import no_echo
from edge_nudge.cli.chatting.screen import TerminalScreen
from edge_nudge.cli.chatting.state import Chat
from edge_nudge.cli.interrupts import Interrupted, Interrupts
from edge_nudge.cli.streams import OutputError
from edge_nudge.core.events import Finished, Piece
from edge_nudge.errors import ContextOverflowError, EdgeNudgeError, NoServerError, ServerLostError

if TYPE_CHECKING:
    from edge_nudge.client import Stream
    from edge_nudge.core.request import GenerateRequest
    from edge_nudge.runtime import Answer

TWICE_S = 1.0


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers messages: `ask` is a pair's or a client's."""

    chat: Chat
    screen: TerminalScreen
    ask: Callable[[GenerateRequest], Answer | Stream]

    def answer(self, text: str, *, is_anew: bool = False) -> str:
        """Answer a message, and return what belongs into the input line.

        Raises InputError for a message that cannot be sent, Interrupted after SIGTERM.
        """
        request = self.chat.request(text, is_anew=is_anew)
        heard = _Heard()
        error: EdgeNudgeError | None = None
        try:
            self._stream(request, heard)
        except Interrupted as interrupt:  # it came just before the answer, or just behind it
            heard.signum = interrupt.signum
        except OutputError:
            raise
        except EdgeNudgeError as caught:
            error = caught
        is_kept = self.chat.keep(text, heard.pieces, heard.finished, is_anew=is_anew)
        if error is None:
            self._tell_end(heard, is_kept=is_kept, is_anew=is_anew)
        else:
            self._tell_error(error, is_kept=is_kept, is_anew=is_anew)
        if heard.signum == signal.SIGTERM:
            raise Interrupted(signal.SIGTERM)
        return "" if is_kept or is_anew else text

    def _stream(self, request: GenerateRequest, heard: _Heard) -> None:
        """Show an answer while it comes."""
        view = self.screen.view()
        with Interrupts() as interrupts, no_echo() as restore_echo, closing(self.ask(request)) as answer:
            stopper = _Stopper(answer.cancel, interrupts, self.screen.say)
            try:
                with interrupts.asking(stopper.ask, restore_echo):
                    for event in answer:
                        if isinstance(event, Piece):
                            heard.pieces.append(event)
                            view.show(event)
                        elif isinstance(event, Finished):
                            heard.finished = event
                            heard.signum = interrupts.signum
                            return
            finally:
                if heard.pieces:
                    view.end()
        raise AssertionError("an answer ends with Finished")

    def _tell_end(self, heard: _Heard, *, is_kept: bool, is_anew: bool) -> None:
        pieces, finished = heard.pieces, heard.finished
        if not is_kept:
            what = "the answer before stays" if is_anew else "the message is back in the input line"
            self.screen.say(f"(stopped before the first word: {what})")
            return
        if finished is None:
            return
        if not pieces:
            self.screen.say("(the answer is empty)")
        if self.chat.has_nudges and pieces:
            room = self.screen.width - 2
            self.screen.say(f"({words.authorship(spans_of(pieces), finished, room)})")
        if (why := words.ending(self.chat, finished)) is not None:
            self.screen.say(f"({why})")

    def _tell_error(self, error: EdgeNudgeError, *, is_kept: bool, is_anew: bool) -> None:
        if isinstance(error, ContextOverflowError):
            self.screen.say(f"error: {words.overflow(error, is_anew=is_anew)}")
            return
        self.screen.say(f"error: {error}")
        if isinstance(error, ServerLostError | NoServerError):
            self.screen.say("(/save FILE keeps the conversation; a new chat loads the pair itself, and /load goes on)")
        if is_kept:
            self.screen.say("(what there is of the answer stays in the conversation)")


@dataclass(slots=True)
class _Heard:
    """What came of an answer: the pieces shown, its end if it got there, the signal that stopped it."""

    pieces: list[Piece] = field(default_factory=list)
    finished: Finished | None = None
    signum: int | None = None


class _Stopper:
    """What the first, the second and the third Ctrl-C of one answer do."""

    def __init__(self, cancel: Callable[[], object], interrupts: Interrupts, say: Callable[[str], None]) -> None:
        self._cancel, self._interrupts, self._say = cancel, interrupts, say
        self._asked_s: float | None = None

    def ask(self) -> None:
        """Cancel; called from the thread that a signal wakes."""
        now = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now
            self._cancel()
        elif now - self._asked_s > TWICE_S:
            self._say("(the models are still busy with a batch: Ctrl-C once more ends the program)")
            return
        if self._interrupts.signum == signal.SIGINT:
            self._interrupts.signum = None  # so that the next one asks again
