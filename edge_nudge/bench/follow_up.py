"""The second question of a conversation: what is read again, what is new, and how soon the answer begins.

Owns this case and its figures. Never prints.

1. A trial: the pair answers the first question, then the second one with both caches as they are (warm), then the same
   second one again with nothing in them (cold).
2. A prompt token of the second request is known where its text was part of the first request or its answer, at the
   same place, new elsewhere. Known tokens that are not reused are evaluated again: that is what a cache should save.
3. The second answer is short: what is measured is its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edge_nudge.bench.outside import token_texts
from edge_nudge.bench.prompts import FOLLOW_UP, Conversation
from edge_nudge.bench.report import spread
from edge_nudge.bench.trials import COMMON
from edge_nudge.core.continuation import Continuation
from edge_nudge.core.events import Cause, Finished, Piece, Role, Usage
from edge_nudge.core.request import GenerateRequest, build_request

if TYPE_CHECKING:
    from edge_nudge.runtime import Pair

SECOND_TOKENS = 16
COUNTS = ("prompt", "known", "reused", "again", "new")


@dataclass(frozen=True, slots=True)
class ModelFollowUp:
    """Tokens of the second prompt for one model; `again` and `new` are None where the model was not asked."""

    prompt: int
    known: int
    reused: int
    again: int | None
    new: int | None


@dataclass(frozen=True, slots=True)
class FollowUp:
    """One trial; seconds to the first piece are None where the second answer was empty."""

    models: dict[Role, ModelFollowUp]
    warm_s: float | None
    cold_s: float | None


def run_follow_up(
    pair: Pair, max_tokens: int, n_trials: int, say: Callable[[str], None] = lambda line: None
) -> list[FollowUp]:
    """Run the trials; the first answer has `max_tokens` tokens. Raises EngineError, ContextOverflowError."""
    found = []
    for number in range(n_trials):
        say(f"follow-up: trial {number + 1} of {n_trials}")
        found.append(_trial(pair, max_tokens))
    pair.forget()
    return found


def follow_up_document(trials: Sequence[FollowUp], max_tokens: int) -> dict[str, Any]:
    """Return the figures; counts have a spread only where trials differ."""
    return {
        "first_answer_tokens": max_tokens,
        "second_answer_tokens": SECOND_TOKENS,
        "models": {
            role.value: {name: spread(getattr(trial.models[role], name) for trial in trials) for name in COUNTS}
            for role in Role
        },
        "first_piece_s": {
            "warm": spread(trial.warm_s for trial in trials),
            "cold": spread(trial.cold_s for trial in trials),
            "warm/cold": spread(t.warm_s / t.cold_s if t.warm_s and t.cold_s else None for t in trials),
        },
        "trials": [
            {
                "warm_s": trial.warm_s,
                "cold_s": trial.cold_s,
                **{role.value: asdict(of) for role, of in trial.models.items()},
            }
            for trial in trials
        ],
    }


def _trial(pair: Pair, max_tokens: int) -> FollowUp:
    question, more = FOLLOW_UP
    first = build_request(question, max_tokens=max_tokens, **COMMON)
    pair.forget()
    answer, _ = _written(pair, first)
    said: Conversation = ({"role": "assistant", "content": answer},) if answer else ()
    second = build_request((*question, *said, *more), max_tokens=SECOND_TOKENS, **COMMON)
    _, warm = _written(pair, second)
    pair.forget()
    _, cold = _written(pair, second)
    models = {role: _counted(pair, role, first, answer, second, warm) for role in Role}
    return FollowUp(models, warm.first_piece_s, cold.first_piece_s)


def _written(pair: Pair, request: GenerateRequest) -> tuple[str, Usage]:
    pieces = []
    for event in pair.answer(request):
        if isinstance(event, Piece):
            pieces.append(event.text)
        elif isinstance(event, Finished):
            return "".join(pieces), event.usage
    raise AssertionError("an answer ends with Finished")


def _counted(
    pair: Pair, role: Role, first: GenerateRequest, answer: str, second: GenerateRequest, usage: Usage
) -> ModelFollowUp:
    backend = pair.backends[role]
    prompt_of = pair.base_prompt if role is Role.BASE else pair.nudging_prompt
    now = datetime.now().astimezone()
    before = prompt_of(first, now)
    text = b"".join(token_texts(backend, [*before.head, *backend.tokenize(before.tail)])) + answer.encode()
    pieces = token_texts(backend, Continuation(prompt_of(second, now), backend).ids(b"")[0])
    n_known = n_known_tokens(text, pieces)
    own = usage.of(role)
    n_evaluated = own.evaluated[Cause.PROMPT]
    was_asked = n_evaluated > 0
    n_new = min(len(pieces) - n_known, n_evaluated)
    return ModelFollowUp(
        len(pieces), n_known, own.n_reused, n_evaluated - n_new if was_asked else None, n_new if was_asked else None
    )


def n_known_tokens(before: bytes, pieces: Sequence[bytes]) -> int:
    """Return how many of the pieces lie whole in the text `before`, from its beginning on."""
    at = 0
    for number, piece in enumerate(pieces):
        if not before.startswith(piece, at):
            return number
        at += len(piece)
    return len(pieces)
