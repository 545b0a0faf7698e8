"""What comes back from a request: one stream of events for terminal, JSON and every other surface.

Owns the event types and the totals. Never decides anything and never touches a model.

1. The stream is any number of Piece and Handoff events and then exactly one Finished, also after a cancel.
2. The texts of all pieces, joined, are the answer, byte for byte; each is whole characters.
3. Shown text is never taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias


class Role(str, Enum):
    """The two models of a pair."""

    BASE = "base"
    NUDGING = "nudging"

    @property
    def other(self) -> Role:
        return Role.NUDGING if self is Role.BASE else Role.BASE


class HandoffReason(str, Enum):
    """Why control passed to the model that writes now."""

    OPENING = "opening"  # the nudging model writes the first word
    UNSURE = "unsure"  # the rule found the base model unsure
    BASE_END = "base_end"  # the base model ended, or began a new turn of its own prompt format
    LOOP = "loop"  # the base model repeated itself; the repetition was dropped unseen
    UNUSABLE = "unusable"  # the base model's token is no text: a control token or broken UTF-8
    CONFIDENT = "confident"  # the rule found the base model sure
    AGREED = "agreed"  # the base model's top token begins the nudging model's next word
    BLENDED = "blended"  # the base model was unsure; what both drew together is rather this model's
    POLICY = "policy"  # the rule always chooses this model (base-only, nudging-only)


class FinishReason(str, Enum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class FinishDetail(str, Enum):
    """What exactly ended the answer."""

    END_OF_GENERATION = "end_of_generation"  # the nudging model (or the only model) ended it
    CONTROL_TOKEN = "control_token"  # the nudging model wrote a control token that is not an end token
    RESTART_GUARD = "restart_guard"  # the base model ended and the nudging model's end token is likely
    STOP_STRING = "stop_string"
    LOOP = "loop"  # the answer could only go on by repeating itself
    MAX_TOKENS = "max_tokens"
    BASE_CONTEXT = "base_context"
    NUDGING_CONTEXT = "nudging_context"
    MAX_TURNS = "max_turns"
    CANCELLED = "cancelled"


class Cause(str, Enum):
    """Why a token was evaluated; every evaluated token has exactly one cause."""

    PROMPT = "prompt"
    OWN = "own"  # written by this model
    CATCH_UP = "catch_up"  # written by the other model
    REEVALUATED = "reevaluated"  # known before, dropped at a seam or by a rewind, evaluated once more
    VERIFIED = "verified"  # guessed and evaluated ahead, and the text came out so: each saved work later
    WASTED = "wasted"  # guessed and evaluated ahead, and the text came out otherwise


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token and how probable its model found it: natural logs of the plain softmax.

    `data` is what of the token stands in the text: blanks that were there already and what a stop string cut off are
    not in it. `logprob` is None only for the first token of a scored prompt. `top` are the best tokens at its place,
    best first, ties by id, each as it would have been added there (a control token by its spelling); the token itself
    comes last where it is none of them. A token can lie across two pieces: then each has its part, and the second one
    `is_rest`, with a `logprob` of 0 because nothing is chosen there any more.
    """

    data: bytes
    id: int
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()
    is_rest: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the answer by one author.

    `top_prob` is the base model's top-1 probability at the place where this piece starts, or None where the
    base model was not asked. `reason` is why its author was writing. `n_tokens` counts tokens of the author.
    `tokens` are scored where the request asks for it, by the author; their joined data is the text.
    `instead` is what the other model would have written here, where that is known without asking it: the base model's
    token where it was unsure, or what the nudging model had drafted. It is empty for no text (an end, a control
    token) and None where it is not known; its last character may be cut.
    """

    text: str
    author: Role
    top_prob: float | None
    reason: HandoffReason
    n_tokens: int
    tokens: tuple[TokenScore, ...] = ()
    instead: bytes | None = None


@dataclass(frozen=True, slots=True)
class Handoff:
    """Control passes to `to`; `top_prob` as in Piece."""

    to: Role
    reason: HandoffReason
    top_prob: float | None


@dataclass(slots=True)
class ModelUsage:
    """Counts for one model; tokens are that model's own."""

    n_prompt: int = 0
    n_written: int = 0  # tokens of the answer this model wrote and the user saw
    n_chars: int = 0  # characters of the answer this model wrote
    n_calls: int = 0  # native decode calls
    n_asked: int = 0  # times that scores behind the text were needed, with a call or without
    native_s: float = 0.0  # seconds inside the calls
    prompt_s: float = 0.0  # of those, until the scores behind the prompt were there
    evaluated: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))
    n_reused: int = 0  # prompt tokens found in the cache

    @property
    def n_evaluated(self) -> int:
        return sum(self.evaluated.values())


@dataclass(slots=True)
class Usage:
    """Totals of one answer. Times are seconds on a monotonic clock, from the start of the request."""

    base: ModelUsage = field(default_factory=ModelUsage)
    nudging: ModelUsage = field(default_factory=ModelUsage)
    n_handoffs: int = 0  # changes of author after the opening
    first_piece_s: float | None = None
    total_s: float = 0.0

    def of(self, role: Role) -> ModelUsage:
        return self.base if role is Role.BASE else self.nudging

    def count(self, piece: Piece, clock: Callable[[], float], started: float) -> None:
        """Count a piece that is shown; `clock` is asked for the first one only."""
        if self.first_piece_s is None:
            self.first_piece_s = clock() - started
        usage = self.of(piece.author)
        usage.n_written += piece.n_tokens
        usage.n_chars += len(piece.text)

    @property
    def n_completion(self) -> int:
        return self.base.n_written + self.nudging.n_written

    @property
    def ratio_tokens(self) -> float:
        """Nudging ratio in tokens of the writer, 0 for an empty answer."""
        return self.nudging.n_written / self.n_completion if self.n_completion else 0.0

    @property
    def ratio_chars(self) -> float:
        """Nudging ratio in characters, 0 for an empty answer."""
        total = self.base.n_chars + self.nudging.n_chars
        return self.nudging.n_chars / total if total else 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of both models by the time from request to end; None where no time passed."""
        return self.n_completion / self.total_s if self.total_s > 0 else None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every stream."""

    reason: FinishReason
    detail: FinishDetail
    usage: Usage
    seed: int  # of the random numbers, drawn or given; greedy answers do not depend on it
    stop_string: str | None = None  # the one that matched


Event: TypeAlias = Piece | Handoff | Finished
