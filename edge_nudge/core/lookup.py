"""Lookup: what followed the last time when a text ended like this.

Owns an index over the tokens of one text, prompt and answer: the cheapest draft there is (prompt lookup decoding,
n-gram speculation). Knows nothing of models or costs.

1. The longest match of up to 3 tokens wins, the most recent one of those.
2. A cut text leaves stale entries behind; what they point at is compared before it is believed.
3. Following the text costs the same for each token, however long the text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_nudge.core.prefix import common_prefix

MAX_ORDER = 3
MAX_MATCH = 8  # a longer match says nothing more


@dataclass(frozen=True, slots=True)
class Found:
    """What may follow, and how many tokens before it are the same in both places (at most MAX_MATCH, 0: nothing)."""

    tokens: Sequence[int]
    n_match: int


NOTHING = Found((), 0)


class Lookup:
    """Index of one growing text."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._behind: list[dict[tuple[int, ...], int]] = [{} for _ in range(MAX_ORDER)]

    def __repr__(self) -> str:
        return f"<Lookup over {len(self._ids)} tokens>"

    def __len__(self) -> int:
        return len(self._ids)

    def follow(self, ids: Sequence[int]) -> None:
        """Let the text be `ids`."""
        n_common = common_prefix(self._ids, ids)
        del self._ids[n_common:]
        for token in ids[n_common:]:
            self.push(token)

    def push(self, token: int) -> None:
        """Let the text be one token longer."""
        ids = self._ids
        place = len(ids)
        for order in range(1, min(MAX_ORDER, place) + 1):
            self._behind[order - 1][tuple(ids[-order:])] = place
        ids.append(token)

    def find(self, tail: Sequence[int], n_tokens: int) -> Found:
        """Return `n_tokens` tokens that may follow the text and `tail` behind it, or NOTHING."""
        ids = self._ids
        end = [*ids[-MAX_MATCH:], *tail][-MAX_MATCH:]
        for order in range(min(MAX_ORDER, len(end)), 0, -1):
            place = self._behind[order - 1].get(tuple(end[-order:]))
            if place is None or place >= len(ids) or ids[place - order : place] != end[-order:]:
                continue
            before = ids[max(0, place - MAX_MATCH) : place]
            n_match = order
            while n_match < min(len(before), len(end)) and before[-1 - n_match] == end[-1 - n_match]:
                n_match += 1
            behind = [*ids[place : place + n_tokens], *tail][:n_tokens]
            n_times = -(-n_tokens // len(behind))  # a text that repeats itself goes on in circles
            return Found((behind * n_times)[:n_tokens], n_match)
        return NOTHING
