"""What is closed when its with statement ends, however it ends.

Owns the two methods that make it so, once for everything that has a `close`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

T = TypeVar("T", bound="Closing")


class Closing(ABC):
    """Has a `close`, which may be called twice."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held."""

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
