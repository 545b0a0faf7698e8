"""Recording a trace: each event of an answer and each native call becomes a line as it happens.

Owns what is recorded and when. Never changes an answer: events pass through as they are.

1. Events are written before they are passed on; a call is written when the next one of its model is over, or at the
   end: only then is it known which of its guesses came true.
2. A trace that holds anything is kept, also after an error or an interrupt, whose message is its last line; without a
   header nothing is kept. How files stay whole is output.py's matter.
3. Lines are ASCII: control characters and bidi overrides are escaped by the format.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_nudge.core.events import Cause, Event, Finished, Handoff, ModelUsage, Piece, Role, TokenScore
from edge_nudge.core.request import GenerateRequest
from edge_nudge.core.session import NativeCall
from edge_nudge.document import finite
from edge_nudge.errors import EdgeNudgeError
from edge_nudge.report.output import Kind, Output
from edge_nudge.report.records import FORMAT, FORMAT_VERSION, TraceError
from edge_nudge.runtime import Answer
from edge_nudge.version import __version__

if TYPE_CHECKING:
    from edge_nudge.runtime import Pair

N_ALTERNATIVES = 5  # of each token: what else its model might have written
TRACE = Kind("trace", b'{"type": "header"')
_COUNTED_BEFORE = (Cause.REEVALUATED, Cause.PROMPT, Cause.CATCH_UP)  # a call, and in the order of the text


def traced(request: GenerateRequest) -> GenerateRequest:
    """Return the request that also asks for what a trace shows of each token."""
    return request.model_copy(update={"logprobs": max(request.logprobs or 0, N_ALTERNATIVES)})


class TraceWriter:
    """The trace of one answer, to be used in a with statement. Raises TraceError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._output = Output(path, TRACE)
        self._has_begun = self._has_ended = False
        self._started_s = time.perf_counter()
        self._calls: dict[Role, _Calls] = {}

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._has_begun:
            self._output.discard()
        elif error is None:
            self._output.keep()
        else:
            with suppress(TraceError):  # what went wrong before is what has to be told
                if not self._has_ended:
                    self._line("failed", at_s=self._now(), message=_message(error))
            with suppress(TraceError):
                self._output.keep()

    def follow(
        self,
        pair: Pair,
        answer: Answer,
        request: GenerateRequest,
        *,
        about: Mapping[str, Any],
        load_s: float,
        warnings: Sequence[str] = (),
    ) -> Answer:
        """Return the same answer, recorded while it is iterated; `request` as it was asked, `about` the pair.

        `about` is what `--json` says of a pair (document.py); where its files lie is left out: traces are shown around.
        """
        models = {role.value: _without_paths(about[role.value]) for role in Role}
        self._line(
            "header",
            format=FORMAT,
            format_version=FORMAT_VERSION,
            version=__version__,
            created=datetime.now().astimezone().isoformat(timespec="seconds"),
            messages=[message.model_dump(mode="json") for message in request.messages],
            settings=_settings(request),
            pair={"name": about["name"], **models},
            load_s=finite(load_s),
            warnings=list(warnings),
        )
        self._has_begun = True
        return Answer(self._recorded(pair, answer), answer.cancel)

    def _recorded(self, pair: Pair, answer: Answer) -> Iterator[Event]:
        self._started_s = time.perf_counter()
        self._calls = {role: _Calls() for role in Role}
        pair.watch(self._call)
        try:
            for event in answer:
                if isinstance(event, Finished):
                    self._write_held(*Role)
                self._event(event)
                yield event
        finally:
            pair.watch(None)
            answer.close()
            with suppress(TraceError):  # after a whole answer there are none
                self._write_held(*Role)

    def _event(self, event: Event) -> None:
        match event:
            case Piece():
                self._line(
                    "piece",
                    at_s=self._now(),
                    text=event.text,
                    author=event.author.value,
                    top_prob=finite(event.top_prob),
                    reason=event.reason.value,
                    n_tokens=event.n_tokens,
                    instead=None if event.instead is None else _spelled(event.instead),
                    tokens=[_token(token) for token in event.tokens],
                )
            case Handoff():
                self._line(
                    "handoff",
                    at_s=self._now(),
                    to=event.to.value,
                    reason=event.reason.value,
                    top_prob=finite(event.top_prob),
                )
            case Finished():
                self._line(
                    "finished",
                    at_s=self._now(),
                    reason=event.reason.value,
                    detail=event.detail.value,
                    stop_string=event.stop_string,
                    seed=event.seed,
                    totals={
                        **{role.value: _model_totals(event.usage.of(role)) for role in Role},
                        "n_handoffs": event.usage.n_handoffs,
                        "first_piece_s": finite(event.usage.first_piece_s),
                        "total_s": event.usage.total_s,
                    },
                )
                self._has_ended = True

    def _call(self, role: Role, call: NativeCall) -> None:
        self._write_held(role)
        self._calls[role].hold(call)

    def _write_held(self, *roles: Role) -> None:
        for role in roles:
            call = self._calls[role].take()
            if call is not None:
                self._line(
                    "call",
                    model=role.value,
                    start_s=max(0.0, call.native.started_s - self._started_s),
                    end_s=max(0.0, call.native.ended_s - self._started_s),
                    evaluated={cause.value: n for cause, n in call.evaluated.items() if n},
                )

    def _now(self) -> float:
        return time.perf_counter() - self._started_s

    def _line(self, kind: str, **fields: Any) -> None:
        self._output.write(json.dumps({"type": kind, **fields}, allow_nan=False) + "\n")


@dataclass(slots=True)
class _HeldCall:
    native: NativeCall
    evaluated: dict[Cause, int]
    n_verified_before: int


class _Calls:
    """The calls of one model: gives each of their tokens its cause, by what the session has counted."""

    def __init__(self) -> None:
        self._held: _HeldCall | None = None
        self._counted = dict.fromkeys(_COUNTED_BEFORE, 0)
        self._due: list[tuple[Cause, int]] = []  # counted, and evaluated in this call or the next ones

    def hold(self, call: NativeCall) -> None:
        """Keep a call until it is known what became of its guesses."""
        for cause in _COUNTED_BEFORE:
            n_tokens = call.usage.evaluated[cause] - self._counted[cause]
            self._counted[cause] += n_tokens
            if n_tokens:
                self._due.append((cause, n_tokens))
        evaluated = dict.fromkeys(Cause, 0)
        n_left = call.n_tokens - call.n_guessed
        while n_left and self._due:
            cause, n_due = self._due.pop(0)
            n_tokens = min(n_left, n_due)
            evaluated[cause] += n_tokens
            n_left -= n_tokens
            if n_due > n_tokens:
                self._due.insert(0, (cause, n_due - n_tokens))
        evaluated[Cause.OWN] += n_left  # counted behind the call
        evaluated[Cause.WASTED] += call.n_guessed
        self._held = _HeldCall(call, evaluated, call.usage.evaluated[Cause.VERIFIED])

    def take(self) -> _HeldCall | None:
        """Return the held call, if any, with what became of its guesses by now; it is held no longer."""
        held, self._held = self._held, None
        if held is not None:
            n_true = held.native.usage.evaluated[Cause.VERIFIED] - held.n_verified_before
            held.evaluated[Cause.VERIFIED] += n_true
            held.evaluated[Cause.WASTED] -= n_true
        return held


def _message(error: BaseException) -> str:
    if isinstance(error, EdgeNudgeError):
        return str(error)
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped by {type(error).__name__}"


def _without_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in document.items() if name != "path"}
    return {name: _without_paths(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _settings(request: GenerateRequest) -> dict[str, Any]:
    """Return all settings of a request by the names that build_request takes."""
    settings = request.model_dump(mode="json", exclude={"messages", "sampling", "nudge", "logprobs", "raw_prompt"})
    nudge = {**request.nudge.model_dump(mode="json"), "gamma": request.nudge.threshold}
    return {**nudge, **request.sampling.model_dump(mode="json"), **settings}


def _token(token: TokenScore) -> dict[str, Any]:
    return {
        **_spelled(token.data),
        "id": token.id,
        "logprob": finite(token.logprob),
        **({"is_rest": True} if token.is_rest else {}),
        "top": [{**_spelled(data), "logprob": finite(logprob)} for data, logprob in token.top],
    }


def _spelled(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"text": data.decode("utf-8", "replace"), "bytes": data.hex()}


def _model_totals(usage: ModelUsage) -> dict[str, Any]:
    return {
        "n_prompt": usage.n_prompt,
        "n_written": usage.n_written,
        "n_chars": usage.n_chars,
        "n_calls": usage.n_calls,
        "n_asked": usage.n_asked,
        "native_s": usage.native_s,
        "prompt_s": usage.prompt_s,
        "evaluated": {cause.value: n_tokens for cause, n_tokens in usage.evaluated.items()},
        "n_reused": usage.n_reused,
    }
