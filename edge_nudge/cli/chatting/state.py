"""One chat: its conversation, its settings, what was counted, and how to take a step back.

Owns what a chat remembers. Never touches a terminal, and asks nobody: it makes the request and keeps the answer.

1. A message without any answer is not kept: whoever typed it gets it back.
2. An answer that is asked for anew replaces the old one only when there is something of it.
3. One /undo takes back the last turn, or the last /clear or /load where nothing was said since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_nudge.cli.chatting.conversation import Conversation, Turn, spans_of
from edge_nudge.core.events import Finished, Piece, Role, Usage
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.document import PairAbout
from edge_nudge.errors import InputError
from edge_nudge.spec import PairSpec

FAILED = "error"  # the ending of an answer that an error broke off


class Chat:
    """The state of a chat; `has_nudges` says whether it is shown who wrote what."""

    def __init__(
        self, spec: PairSpec, about: PairAbout, *, system: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.spec, self.about = spec, about
        self.conversation = Conversation(system)
        self.settings: dict[str, Any] = dict(settings or {})
        self.has_nudges = True
        self.last: Finished | None = None
        self.n_answers = 0
        self.n_written = dict.fromkeys(Role, 0)
        self._before: tuple[Conversation, dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return self.spec.served_name

    @property
    def models(self) -> dict[str, str]:
        """The names of the files of both models."""
        return {role.value: Path(model.path).name for role, model in self.about.models.items()}

    @property
    def n_context(self) -> Mapping[Role, int] | None:
        """About how many tokens the conversation takes in each model; None where that is not known."""
        turns = self.conversation.turns
        return turns[-1].n_context if turns else dict.fromkeys(Role, 0)

    def request(self, text: str, *, is_anew: bool = False) -> GenerateRequest:
        """Return the request for an answer to `text`; anew: in place of the last one. Raises InputError."""
        conversation = self.conversation.without_last() if is_anew else self.conversation
        return self.spec.resolve(build_request(conversation.messages(text), **self.settings))

    def keep(self, text: str, pieces: Sequence[Piece], finished: Finished | None, *, is_anew: bool = False) -> bool:
        """Keep an answer, whole or not; return whether there was anything to keep.

        `finished` is None where an error broke it off.
        """
        spans = spans_of(pieces)
        is_stopped = finished is None or finished.detail.value == "cancelled"
        if finished is not None:
            self.last = finished
        if is_stopped and not spans:
            return False
        ending = FAILED if finished is None else finished.detail.value
        usage = None if finished is None else finished.usage
        conversation = self.conversation.without_last() if is_anew else self.conversation
        self.conversation = conversation.with_turn(Turn(text, spans, ending, _context(usage)))
        self._before = None
        self.n_answers += 1
        for piece in pieces:
            self.n_written[piece.author] += piece.n_tokens
        return True

    def clear(self) -> None:
        """Begin anew; the system message stays."""
        self.replace(Conversation(self.conversation.system), self.settings)

    def replace(self, conversation: Conversation, settings: Mapping[str, Any]) -> None:
        """Go on with another conversation and other settings."""
        if self.conversation.turns:
            self._before = self.conversation, self.settings
        self.conversation, self.settings = conversation, dict(settings)

    def undo(self) -> Turn | None:
        """Take back the last turn and return it; None where a /clear or /load was taken back. Raises InputError."""
        if self._before is not None:
            (self.conversation, self.settings), self._before = self._before, None
            return None
        if not self.conversation.turns:
            raise InputError("there is nothing to take back: the conversation is empty")
        turn = self.conversation.turns[-1]
        self.conversation = self.conversation.without_last()
        return turn


def _context(usage: Usage | None) -> dict[Role, int] | None:
    """Count about what an answer left in each context: tokens of the other model are not quite one's own."""
    if usage is None or not usage.base.n_prompt:  # a server that was hung up on does not say
        return None
    return {role: usage.of(role).n_prompt + usage.n_completion for role in Role}
