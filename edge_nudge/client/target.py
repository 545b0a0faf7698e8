"""Where a server is, and how a connection to it is made.

Owns the choice between socket, URL and endpoint file. Never connects.

1. Each request has its own connection: closing it is how a request is cancelled, and none meets a connection that the
   server was about to close.
2. Nothing but the address decides where a request goes: proxies of the environment and `.netrc` are not looked at.
3. A connection is made within `CONNECT_S`; an answer may take as long as it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from edge_nudge.client.failures import REMEDY
from edge_nudge.endpoint import Endpoint, read_endpoint
from edge_nudge.errors import InputError, NoServerError

CONNECT_S = 5.0
_HOST_BEHIND_A_SOCKET = "http://localhost"


@dataclass(frozen=True, slots=True)
class Target:
    """One server: `socket` is a path, else `url` is used; `key` is for TCP."""

    socket: str | None
    url: str
    key: str | None

    @property
    def address(self) -> str:
        """Return what to show a user."""
        return self.socket or self.url

    def options(self) -> dict[str, Any]:
        """Return the arguments of an httpx client."""
        return {
            "base_url": self.url,
            "timeout": httpx.Timeout(None, connect=CONNECT_S),
            "trust_env": False,
            "headers": {} if self.key is None else {"Authorization": f"Bearer {self.key}"},
        }

    def transport_options(self) -> dict[str, Any]:
        """Return the arguments of an httpx transport."""
        # Certificates take a tenth of a second to read, and http:// has none.
        needs_tls = self.socket is None and self.url.startswith("https:")
        limits = httpx.Limits(max_keepalive_connections=0)
        return {"uds": self.socket, "verify": needs_tls, "trust_env": False, "limits": limits}


def find_target(
    endpoint: Endpoint | None = None,
    *,
    socket: str | Path | None = None,
    url: str | None = None,
    key: str | None = None,
) -> Target:
    """Return the server that the arguments name; without any, the one that runs for this user.

    Raises InputError, and NoServerError where none runs.
    """
    if sum(place is not None for place in (endpoint, socket, url)) > 1:
        raise InputError("give one of endpoint, socket and url: they are places of a server")
    if socket is not None:
        return Target(str(socket), _HOST_BEHIND_A_SOCKET, key)
    if url is not None:
        return Target(None, _root(url), key)
    found = endpoint or read_endpoint()
    if found is None:
        raise NoServerError(f"no server runs: {REMEDY}")
    if found.socket is not None:
        return Target(found.socket, _HOST_BEHIND_A_SOCKET, None)
    if found.url is None:
        raise InputError("the endpoint has neither a socket nor a url")
    return Target(None, _root(found.url), key or found.key)


def _root(url: str) -> str:
    """Return a server's URL without the `/v1` that OpenAI's clients want behind it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"the server's url is {url!r}: it must begin with http:// and name a host")
    return url.rstrip("/").removesuffix("/v1")
