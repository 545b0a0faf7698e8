"""edge-nudge: a small instruction-tuned model steers a large base model at decoding time, token by token.

    from edge_nudge import open_pair

    with open_pair("demo") as pair:
        for event in pair.stream("Why is the sky blue?", gamma=0.4):
            ...

Importing this package is cheap; the native library is loaded when a pair is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_nudge.version import __version__

if TYPE_CHECKING:
    from edge_nudge.client import AsyncClient, Client
    from edge_nudge.core.events import Event, Finished, Handoff, Piece, Role, TokenScore
    from edge_nudge.runtime import Pair, open_pair

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Finished",
    "Handoff",
    "Pair",
    "Piece",
    "Role",
    "TokenScore",
    "__version__",
    "open_pair",
]

_HOMES = {
    "AsyncClient": "edge_nudge.client",
    "Client": "edge_nudge.client",
    "Event": "edge_nudge.core.events",
    "Finished": "edge_nudge.core.events",
    "Handoff": "edge_nudge.core.events",
    "Piece": "edge_nudge.core.events",
    "Role": "edge_nudge.core.events",
    "TokenScore": "edge_nudge.core.events",
    "Pair": "edge_nudge.runtime",
    "open_pair": "edge_nudge.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
