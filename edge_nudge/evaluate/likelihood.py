"""Log-likelihoods of texts under the base model, cut into context and continuation as lm-evaluation-harness cuts them.

Owns where a continuation begins, and what is left out where a text is longer than the context. Never generates.

1. Context and continuation are tokenized together; the continuation begins behind as many tokens as the context alone
   has. Blanks at the context's end go with the continuation: no token ends in the blank before a word.
2. BOS stands in front where the model wants it; where there is no context something has to: BOS, or the end token.
3. What is too long loses the beginning of its context, as with the harness's own models, but never its BOS; this is
   told once, and counted. A continuation is never cut.
4. A whole text that is too long is read in windows, each token scored once, with the harness's own cutting.
5. The lengths leave a token of room, as the harness's API models do: both ways cut alike.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_nudge.core.prompt import encode_raw
from edge_nudge.errors import InputError
from edge_nudge.runtime import Pair


class Likelihoods:
    """Scores of one pair's base model. `n_cut` counts the contexts that lost their beginning."""

    def __init__(self, pair: Pair, warn: Callable[[str], None]) -> None:
        self._pair = pair
        self._warn = warn
        self.n_cut = 0

    def continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        """Return how probable a continuation is, and whether it is the greedy one. Raises InputError, EngineError."""
        n_blanks = len(context) - len(context.rstrip())
        if n_blanks:
            context, continuation = context[:-n_blanks], context[-n_blanks:] + continuation
        if not continuation:
            raise InputError("the continuation is empty: it has no likelihood")
        whole = self._ids(context + continuation)
        # Where all of a continuation melts into the context's last token, that token is scored.
        n_context = min(len(self._ids(context)), len(whole) - 1)
        lead = self._lead()
        n_room = self._pair.base.info.n_ctx - 1 - len(lead) - len(whole)
        n_left_out = max(0, -n_room)
        if n_left_out and n_left_out > n_context - (0 if lead else 1):
            raise InputError(
                f"a continuation of {len(whole) - n_context} tokens does not fit into the base model's context of "
                f"{self._pair.base.info.n_ctx}: raise ctx_size"
            )
        if n_left_out:
            self._tell_cut(len(lead) + len(whole))
        before = [*lead, *whole[n_left_out:n_context]] or [self._first()]
        return self._score(before, whole[n_context:])

    def rolling(self, text: str) -> float:
        """Return how probable a whole text is. Raises InputError, EngineError."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        n_window = self._pair.base.info.n_ctx - 2
        if n_window < 1:
            raise InputError(f"a context of {self._pair.base.info.n_ctx} tokens has no room for a text: raise ctx_size")
        windows = get_rolling_token_windows(self._ids(text), self._first(), n_window, 1)
        return sum(self._score(*make_disjoint_window(window))[0] for window in windows)

    def _score(self, before: list[int], tokens: list[int]) -> tuple[float, bool]:
        total, is_greedy = 0.0, True
        for score in self._pair.score([*before, *tokens], 1)[len(before) :]:
            assert score.logprob is not None, "only the first token has no score"
            total += score.logprob
            is_greedy = is_greedy and score.top[0][1] == score.logprob
        return total, is_greedy

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a text as Pair.score reads it, without BOS."""
        if not text:
            return []
        backend = self._pair.base
        prompt = encode_raw(backend, text)
        ids = [*prompt.head, *prompt.tokenize(backend, prompt.tail)]
        return ids[len(self._lead()) :]

    def _lead(self) -> list[int]:
        info = self._pair.base.info
        return [info.bos] if info.adds_bos and info.bos is not None else []

    def _first(self) -> int:
        info = self._pair.base.info
        first = info.eos if info.bos is None else info.bos
        if first is None:
            raise InputError(
                f"model {info.name} has neither a BOS nor an end token: it cannot score a text without a context"
            )
        return first

    def _tell_cut(self, n_ids: int) -> None:
        if not self.n_cut:
            self._warn(
                f"a context and its continuation are {n_ids} tokens, the base model's context is "
                f"{self._pair.base.info.n_ctx}: the beginning of this context is left out, and of others as long "
                "(told once; raise ctx_size to keep it)"
            )
        self.n_cut += 1
