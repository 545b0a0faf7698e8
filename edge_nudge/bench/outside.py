"""Loops beside the pair, to compare with: on the binding's high-level class, and on two servers.

Owns how such a loop gets the pair's own prompts, and what a reader of its figures has to know (`notes`). The loop
is core/text_loop.py, where completions come from is engine/naive.py and server_loop.py.

1. The prompts are the pair's, as text: the base model's plain one and the nudging model's chat template. A BOS that
   the model adds itself is left out.
2. Tokens are counted with the pair's tokenizers, so that tokens/s mean the same in all modes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from edge_nudge.bench.prompts import PROMPTS
from edge_nudge.core.events import Role
from edge_nudge.core.request import build_request
from edge_nudge.core.text_loop import PAPER_LOOKAHEAD, Completer, TextAnswer, TextLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_nudge.bench.server_loop import ServerCompleter
    from edge_nudge.core.backend import Backend
    from edge_nudge.core.prompt import Prompt
    from edge_nudge.core.request import GenerateRequest
    from edge_nudge.runtime import Pair

# A text can be this many times more tokens for the model that did not write it.
_FOREIGN = 4
_CTX_STEP = 256  # the library rounds a context up to a multiple of it
_SHORT = (
    "all modes are asked for answers of the same length; in a short one reading the prompt is a large part, so a ratio "
    "is not that of the writing alone"
)
_CALLS = (
    "calls are completions asked for, native_s in the JSON is the time inside them; what was evaluated is not known"
)


def written_outside(loop: TextLoop, pair: Pair, request: GenerateRequest) -> TextAnswer:
    """Answer one request with a text loop. Raises EngineError."""
    request = pair.spec.resolve(request)
    assert request.max_tokens is not None, "the benchmark asks for a length"
    return loop.answer(
        prompt_texts(pair, request),
        gamma=request.nudge.threshold,
        max_tokens=request.max_tokens,
        lookahead=request.nudge.lookahead,
    )


def prompt_texts(pair: Pair, request: GenerateRequest) -> dict[Role, str]:
    """Return both prompts as the text that a completion is asked for."""
    now = datetime.now().astimezone()
    return {
        Role.BASE: _text(pair.base, pair.base_prompt(request, now)),
        Role.NUDGING: _text(pair.nudging, pair.nudging_prompt(request, now)),
    }


def text_loop(pair: Pair, completers: Mapping[Role, Completer]) -> TextLoop:
    """Return a loop that counts tokens as the pair does."""
    return TextLoop(
        completers, count=lambda role, text: len(pair.backends[role].tokenize(text.encode())), clock=time.perf_counter
    )


@contextmanager
def naive_loop(
    pair: Pair, prompts: Sequence[str], max_tokens: int, n_threads: int
) -> Iterator[tuple[TextLoop, list[str]]]:
    """Yield a loop on two objects of the binding's high-level class, and its notes.

    Raises ModelFileError, EngineError.
    """
    from edge_nudge.engine.naive import NaiveCompleter

    sizes = context_sizes(pair, prompts, max_tokens)
    paths = {Role.BASE: pair.spec.base, Role.NUDGING: pair.spec.nudging}
    with ExitStack() as stack:
        completers: dict[Role, Completer] = {}
        for role, backend in pair.backends.items():
            completer = NaiveCompleter(
                paths[role].expanduser(),
                n_ctx=sizes[role],
                n_threads=n_threads,
                n_gpu_layers=getattr(backend, "n_gpu_layers", 0),
                with_probs=role is Role.BASE,
            )
            completers[role] = stack.enter_context(closing(completer))
        n_bytes = sizes[Role.BASE] * pair.base.info.n_vocab * 4
        yield (
            text_loop(pair, completers),
            [
                f"naive: the same loop on llama_cpp.Llama.create_completion, two more models of the same files, "
                f"{PAPER_LOOKAHEAD} tokens drafted, logprobs=1 for the base model only, else the class's own defaults",
                f"naive: contexts of {sizes[Role.BASE]} (base) and {sizes[Role.NUDGING]} tokens, the smallest that "
                f"hold prompt and answer: logprobs need logits_all, which keeps context x vocabulary scores, here "
                f"{n_bytes / 1e6:.0f} MB; peak memory includes all of it",
                "naive: for each logprob the class goes over the scores of all text so far: the longer, the dearer",
                f"naive: {_SHORT}",
                f"naive: {_CALLS}",
            ],
        )


def context_sizes(pair: Pair, prompts: Sequence[str], max_tokens: int) -> dict[Role, int]:
    """Return for each model the smallest context, a multiple of 256, that holds every prompt and its answer."""
    n_prompt = dict.fromkeys(Role, 0)
    for name in prompts:
        for role, text in prompt_texts(pair, build_request(PROMPTS[name])).items():
            n_prompt[role] = max(n_prompt[role], len(pair.backends[role].tokenize(text.encode(), special=True)))
    room = _FOREIGN * (max_tokens + PAPER_LOOKAHEAD) + 2  # BOS, and a context is never filled to its last token
    return {role: -(-(n + room) // _CTX_STEP) * _CTX_STEP for role, n in n_prompt.items()}


@contextmanager
def server_loop(
    pair: Pair, servers: Mapping[Role, ServerCompleter], models: Mapping[Role, str | None]
) -> Iterator[tuple[TextLoop, list[str]]]:
    """Yield a loop on two servers that have been checked, and its notes."""
    served = ", ".join(f"{role.value}: {server!r} {models[role] or ''}".rstrip() for role, server in servers.items())
    yield (
        text_loop(pair, servers),
        [
            f"server: the same loop on /v1/completions, {PAPER_LOOKAHEAD} tokens drafted; {served}",
            "server: which models it runs is not known; tokens are counted with the tokenizers of the pair above",
            "server: its cache cannot be dropped from outside, so it may know a prompt that it has read before",
            f"server: {_SHORT}",
            f"server: {_CALLS}",
        ],
    )


def token_texts(backend: Backend, ids: Sequence[int]) -> list[bytes]:
    """Return the text of each token; control tokens as they are spelled."""
    return [backend.spelling(i).encode() if backend.is_control(i) else backend.piece(i) for i in ids]


def _text(backend: Backend, prompt: Prompt) -> str:
    info = backend.info
    head = prompt.head[1:] if info.adds_bos and prompt.head[:1] == (info.bos,) else prompt.head
    pieces = token_texts(backend, head)
    if info.adds_space_prefix and head and not backend.is_control(head[0]):
        pieces[0] = pieces[0].removeprefix(b" ")  # the tokenizer's own blank: it puts one there again
    return (b"".join(pieces) + prompt.tail).decode("utf-8", "replace")
