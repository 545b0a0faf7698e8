"""What one server serves, and its limits: plain values, given once.

Owns defaults. Never reads a file, an option or an environment variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Served:
    """The model that clients see, and who may ask for it over TCP."""

    id: str
    aliases: tuple[str, ...] = ()
    created: int = 0  # unix time
    key: str | None = None  # asked for over TCP only; None: no key
    allowed_origins: tuple[str, ...] = ()  # exact, as browsers send them: scheme://host[:port]
    has_metrics: bool = False
    allowed_hosts: tuple[str, ...] = ()  # exact host names beside the loopback ones
    about: Mapping[str, Any] = field(default_factory=dict)  # shown as `meta` with the model

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds that a client may use."""

    body_bytes: int = 8 << 20
    body_s: float = 60.0  # for a request's body to arrive
    first_ping_s: float = 1.0  # of reading a prompt, before the answer begins with a ping
    ping_s: float = 5.0  # between two pings
    stall_s: float = 60.0  # a reader that takes nothing for so long is dropped
