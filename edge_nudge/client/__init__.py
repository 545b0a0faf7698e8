"""The local API from Python: the same events as from a pair in this process.

    from edge_nudge.client import Client

    with Client() as client:
        for event in client.chat("Why is the sky blue?", gamma=0.4):
            ...

Owns nothing itself: target.py says where the server is, calls.py what is sent and what an answer means, answer.py
how chunks become events, failures.py what an error was; blocking.py and asynchronous.py carry the bytes, nothing else.
"""

from __future__ import annotations

from edge_nudge.client.asynchronous import AsyncClient, AsyncStream
from edge_nudge.client.blocking import Client, Stream

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream"]
