"""A model behind the binding's high-level class `llama_cpp.Llama`, as a first script uses it.

Owns one such object; core/text_loop.py is the loop on it. Never used to answer anybody: the benchmark compares with it.

1. The class's own settings are left alone but for what makes a comparison fair: threads, layers on a GPU, and no
   repacking of weights where ours are not repacked (see native.can_repack).
2. `logits_all` only where probabilities are asked for: the class needs it for them, and keeps context x vocabulary
   scores then.
3. The class redirects the process's file descriptors 1 and 2 while it loads quietly; here it does not, so nothing that
   others write is lost. Native messages go to the log as always (native.start).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp

from edge_nudge.core.text_loop import Completion
from edge_nudge.engine import native
from edge_nudge.errors import EngineError


class NaiveCompleter:
    """A Completer on `llama_cpp.Llama.create_completion`. Close it. Raises EngineError."""

    def __init__(self, path: Path, *, n_ctx: int, n_threads: int, n_gpu_layers: int, with_probs: bool) -> None:
        self._name = path.name
        native.start()
        mark = native.relay.mark()
        try:
            with _loaded_like_ours():
                self._llama: Any = llama_cpp.Llama(
                    str(path), n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, n_gpu_layers=n_gpu_layers,
                    logits_all=with_probs, verbose=False,
                )  # fmt: skip
        except (ValueError, RuntimeError, MemoryError) as error:
            raise EngineError(
                f"{self._name}: llama_cpp.Llama cannot load it ({error}; {native.relay.reason(mark)})"
            ) from error

    def complete(self, prompt: str, max_tokens: int, *, with_prob: bool) -> Completion:
        """Return a greedy completion; see core/text_loop.py."""
        try:
            done = self._llama.create_completion(
                prompt, max_tokens=max_tokens, temperature=0.0, logprobs=1 if with_prob else None
            )
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{self._name}: llama_cpp.Llama failed: {error}") from error
        choice = done["choices"][0]
        # an end token is in no list
        logs = (choice["logprobs"] or {}).get("token_logprobs") or ()
        return Completion(choice["text"], choice["finish_reason"] == "stop", math.exp(logs[0]) if logs else None)

    def forget(self) -> None:
        """Read the next prompt from its beginning."""
        self._llama.reset()

    def close(self) -> None:
        """Free model and scores; closing twice is allowed."""
        self._llama.close()
        self._llama.scores = None


@contextmanager
def _loaded_like_ours() -> Iterator[None]:
    """While a `Llama` is made: weights repacked as ours are, file descriptors left alone.

    The class has no argument for either; it looks both up by name when it needs them.
    """
    api, default = llama_cpp.llama_cpp, llama_cpp.llama_cpp.llama_model_default_params

    def params() -> Any:
        found = default()
        found.use_extra_bufts = native.can_repack()
        return found

    places = ((api, "llama_model_default_params", params), *_redirections())
    before = [(where, name, getattr(where, name)) for where, name, _ in places]
    try:
        for where, name, other in places:
            setattr(where, name, other)
        yield
    finally:
        for where, name, original in before:
            setattr(where, name, original)


def _redirections() -> tuple[tuple[Any, str, Any], ...]:
    """Return the places that hold the class's redirection, with what stands in for it."""
    from llama_cpp import _internals, llama

    @contextmanager
    def nothing(disable: bool = True) -> Iterator[None]:
        yield

    return tuple((module, "suppress_stdout_stderr", nothing) for module in (llama, _internals))
