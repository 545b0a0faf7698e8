"""How getting files tells how far it is: a small protocol, so that only the command line knows what a bar is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One thing at a time: `start`, any number of `advance`, `end`."""

    def start(self, what: str, n_bytes: int | None, n_done: int = 0) -> None:
        """Begin something of `n_bytes`, of which `n_done` are there already."""

    def advance(self, n_bytes: int) -> None:
        """Tell that so many bytes more are done; fewer than zero where some have to be done again."""

    def end(self) -> None:
        """Tell that it is over, done or not; without a start before it means nothing."""


class Silent:
    """Progress that nobody watches."""

    def start(self, what: str, n_bytes: int | None, n_done: int = 0) -> None:
        return

    def advance(self, n_bytes: int) -> None:
        return

    def end(self) -> None:
        return
