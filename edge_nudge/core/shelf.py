"""Shelf: the caches of conversations that are not being written just now.

Owns their memory budget. Never evaluates and never decides what a text is: a session puts away what it is about to
lose, and takes out what has more in common with its new text than its own cache has.

1. All sessions of a pair share the budget; whatever was used least recently goes first.
2. A state larger than the budget is not kept, and one that a backend cannot keep exactly neither: the text is read
   again then.
3. A conversation that grew replaces what was kept of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_nudge.core.prefix import common_prefix

LEAST_TOKENS = 32  # fewer are sooner read again than copied


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The cache of one session at one moment."""

    owner: object
    ids: list[int]
    state: bytearray


class Shelf:
    """Kept caches, at most `most_bytes` of them together."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: list[Kept] = []  # least recently used first

    def __repr__(self) -> str:
        return f"<Shelf {len(self)} caches, {self.n_bytes} of {self._most_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        return sum(len(kept.state) for kept in self._kept)

    def put(self, owner: object, ids: Sequence[int], store: Callable[[int], bytearray | None]) -> None:
        """Keep the cache of `owner`, which holds `ids`; `store` returns it if it is not larger than its argument."""
        for kept in self._of(owner):
            n_common = common_prefix(kept.ids, ids)
            if n_common == len(ids):  # what is kept goes on from there
                self._use(kept)
                return
            if n_common == len(kept.ids):
                self._kept.remove(kept)
        state = store(self._most_bytes)
        if state is None:
            return
        n_free = self._most_bytes - len(state)
        while self._kept and self.n_bytes > n_free:
            del self._kept[0]
        self._kept.append(Kept(owner, list(ids), state))

    def find(self, owner: object, ids: Sequence[int], *, needs_whole: bool) -> tuple[Kept | None, int]:
        """Return what has most in common with the beginning of `ids`, and how many tokens that is.

        `needs_whole`: the owner cannot cut a cache, so all of it has to be the beginning of a longer text.
        """
        best, n_best = None, 0
        for kept in self._of(owner):
            n_common = common_prefix(kept.ids, ids)
            if needs_whole and (n_common < len(kept.ids) or n_common == len(ids)):
                continue
            if n_common > n_best:
                best, n_best = kept, n_common
        return best, n_best

    def take(self, kept: Kept, n_used: int) -> None:
        """Note that a session goes on from `kept`, whose first `n_used` tokens it needs.

        What is needed as good as whole lives in the session from now on.
        """
        if kept not in self._kept:  # what was put since has taken its place
            return
        if len(kept.ids) - n_used < LEAST_TOKENS:
            self._kept.remove(kept)
        else:
            self._use(kept)

    def clear(self) -> None:
        self._kept.clear()

    def _of(self, owner: object) -> list[Kept]:
        return [kept for kept in self._kept if kept.owner is owner]

    def _use(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self._kept.append(kept)
