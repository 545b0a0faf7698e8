"""The work behind a request: what the worker thread does with the pair, item by item.

Owns the order of prompts, of echo and answer. Never formats anything and never sees a socket.

1. Whether each prompt fits is known before the first token of the first one: such errors have a status of their own.
2. A cancel is handed to whatever runs; then the answer still ends with its last event.
3. A prompt given as ids reaches the base model as it is; the nudging model is given its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edge_nudge.core.events import Finished, Piece, TokenScore
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.errors import CancelledError, InputError
from edge_nudge.server.faults import RequestError
from edge_nudge.server.wire import Prompt

if TYPE_CHECKING:
    from edge_nudge.runtime import Pair
    from edge_nudge.worker import Job


@dataclass(frozen=True, slots=True)
class Opened:
    """The prompts have been checked and are being read."""


@dataclass(frozen=True, slots=True)
class Echoed:
    """A prompt, given back; `tokens` are the base model's scores of it where they were asked for."""

    index: int
    text: str
    tokens: tuple[TokenScore, ...] | None


@dataclass(frozen=True, slots=True)
class Wrote:
    """A piece of answer number `index`."""

    index: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of answer number `index`; `request` has the threshold that was used.

    `end_token` is the base model's end of generation, scored, where an echoed and scored prompt got no token at all.
    """

    index: int
    finished: Finished
    request: GenerateRequest
    end_token: TokenScore | None = None


Item: TypeAlias = "Opened | Echoed | Wrote | Ended"
ItemWork: TypeAlias = "Callable[[Pair, Job], Iterator[Item]]"


def chat_work(request: GenerateRequest) -> ItemWork:
    """Return the work that answers a conversation."""

    def work(pair: Pair, job: Job) -> Iterator[Item]:
        answering = _answer(pair, job, pair.spec.resolve(request), 0)
        yield Opened()
        yield from answering

    return work


def completion_work(prompts: Sequence[Prompt], settings: Mapping[str, Any], *, is_echo: bool) -> ItemWork:
    """Return the work that completes raw prompts, one after the other."""

    def work(pair: Pair, job: Job) -> Iterator[Item]:
        requests = [_raw_request(pair, prompt, settings) for prompt in prompts]
        if len(requests) == 1 and not is_echo:  # the usual case, without reading the prompt's tokens twice
            answering = _answer(pair, job, requests[0], 0)
            yield Opened()
            yield from answering
            return
        for request in requests:
            pair.check(request)
        yield Opened()
        for index, request in enumerate(requests):
            if job.is_cancelled:
                return
            yield from _complete(pair, job, request, index, is_echo=is_echo)

    return work


def _answer(pair: Pair, job: Job, request: GenerateRequest, index: int) -> Iterator[Wrote | Ended]:
    """Begin an answer, which checks it, and return its items."""
    events = pair.answer(request)
    job.on_cancel(events.cancel)

    def items() -> Iterator[Wrote | Ended]:
        for event in events:
            if isinstance(event, Piece):
                job.n_tokens += event.n_tokens
                yield Wrote(index, event)
            elif isinstance(event, Finished):
                yield Ended(index, event, request)

    return items()


def _complete(pair: Pair, job: Job, request: GenerateRequest, index: int, *, is_echo: bool) -> Iterator[Item]:
    scored: tuple[TokenScore, ...] | None = None
    if is_echo:
        prompt = request.raw_prompt
        assert prompt is not None
        if request.logprobs is not None and prompt:
            try:
                scored = tuple(pair.score(prompt, request.logprobs, is_cancelled=lambda: job.is_cancelled))
            except CancelledError:
                return
        yield Echoed(index, request.messages[0].content, scored)
    has_tokens = False
    for item in _answer(pair, job, request, index):
        if isinstance(item, Wrote):
            has_tokens = has_tokens or bool(item.piece.tokens)
        elif isinstance(item, Ended) and scored and not has_tokens and request.max_tokens and not job.is_cancelled:
            item = Ended(index, item.finished, request, _end_token(pair, job, request, scored))
        yield item


def _end_token(pair: Pair, job: Job, request: GenerateRequest, scored: Sequence[TokenScore]) -> TokenScore | None:
    """Score the base model's end token behind the prompt: what stands in for a first token that did not come."""
    info = pair.base.info
    end = info.eos if info.eos is not None else next(iter(pair.base.eog_tokens), None)
    if end is None or len(scored) + 2 > info.n_ctx:
        return None
    lead = [info.bos] if isinstance(request.raw_prompt, str) and info.adds_bos and info.bos is not None else []
    ids = [*lead, *(score.id for score in scored), end]
    try:
        return pair.score(ids, request.logprobs or 0, is_cancelled=lambda: job.is_cancelled)[-1]
    except CancelledError:
        return None


def _raw_request(pair: Pair, prompt: Prompt, settings: Mapping[str, Any]) -> GenerateRequest:
    if isinstance(prompt, str):
        text = prompt
    else:
        n_vocab = pair.base.info.n_vocab
        wrong = next((token for token in prompt if token >= n_vocab), None)
        if wrong is not None:
            raise RequestError(f"prompt: token {wrong} is outside the base model's vocabulary of {n_vocab}", "prompt")
        text = b"".join(map(pair.base.piece, prompt)).decode("utf-8", "replace")
    try:
        return pair.spec.resolve(build_request(text, raw_prompt=prompt, **settings))
    except InputError as error:
        raise RequestError(str(error), "prompt") from None
