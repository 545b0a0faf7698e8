"""An answer on its way: its events, and the two ways to end it early.

Owns nothing but the bundle of an event stream and its cancel. Never decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edge_nudge.core.events import Event, Finished


class Answer(Iterator[Event]):
    """The events of one answer. `cancel` ends it with Finished("cancelled"); `close` drops it at once."""

    def __init__(self, events: Iterator[Event], cancel: Callable[[], None]) -> None:
        self._events = events
        self.cancel = cancel

    def __next__(self) -> Event:
        return next(self._events)

    def finish(self) -> Finished:
        """Run the answer to its end and return the last event. Raises EngineError."""
        for event in self:
            if isinstance(event, Finished):
                return event
        raise AssertionError("an answer ends with Finished")

    def close(self) -> None:
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
