"""A running server in place of a pair: which one gives the same answers as a pair loaded here.

Owns that decision. Never starts a server, never loads anything, and never asks for an answer.

1. A server counts if it is this user's, serves the same files under the same name with the same base prompt format,
   and was told the same of each load setting that the user gives.
2. A server that still loads is waited for; one that stops, or does not answer, is passed over.
3. With -v each decision is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_nudge.cli import opening, streams
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.core.visible import one_line
from edge_nudge.errors import EdgeNudgeError

if TYPE_CHECKING:
    from edge_nudge.client import Client
    from edge_nudge.document import PairAbout
    from edge_nudge.endpoint import Endpoint
    from edge_nudge.runtime import PairSpec

_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Attached:
    """A server that has the pair; the client is to be closed."""

    client: Client
    about: PairAbout


def find_server(
    spec: PairSpec, settings: Mapping[str, Any], values: Mapping[str, Any], interrupts: Interrupts
) -> Attached | None:
    """Return a running server with this pair, loaded with these settings; None where there is none."""
    from edge_nudge.endpoint import is_running, read_endpoints

    def tell(line: str) -> None:
        if values["verbose"]:
            streams.tell(one_line(line))

    for endpoint in read_endpoints():
        try:
            if not is_running(endpoint):
                continue
            name = f"the server at {endpoint.address} (process {endpoint.pid})"
            if (why := _difference(endpoint, spec, settings)) is not None:
                tell(f"{name} is not used: {why}")
                continue
            with opening.loading(spec, values, interrupts):
                attached = _attach(endpoint, partial(tell, f"{name} is loading"))
        except (EdgeNudgeError, OSError) as error:
            tell(f"the server at {endpoint.address} is not used: {error}")
            continue
        tell(f"{name} answers: it has the pair loaded")
        return attached
    return None


def _difference(endpoint: Endpoint, spec: PairSpec, settings: Mapping[str, Any]) -> str | None:
    """Return why a server would answer otherwise than a pair loaded here; None where it would not."""
    from edge_nudge.runtime import DEFAULT_CTX_SIZE, DEFAULT_KV_TYPE

    loaded = endpoint.loaded
    files = {"base": spec.base, "nudging": spec.nudging, "nudging_adapter": spec.nudging_adapter}
    for name, path in files.items():
        served = loaded.get(name)
        wanted = None if path is None else os.path.realpath(path.expanduser())
        if wanted != (os.path.realpath(served) if isinstance(served, str) else None):
            return f"its {name.replace('_', ' ')} model is {served}"
    if endpoint.model != spec.served_name:
        return f"it serves the same files as {endpoint.model}, not as {spec.served_name}"
    if loaded.get("base_prompt_format") != spec.base_prompt_format:
        return "its base prompt format is another one"
    kv_types = dict.fromkeys(("base_kv_type", "nudge_kv_type"), DEFAULT_KV_TYPE)
    defaults: dict[str, object] = {"ctx_size": DEFAULT_CTX_SIZE, **kv_types}
    for name, value in {**kv_types, **settings}.items():
        found = defaults.get(name) if loaded.get(name) is None else loaded[name]
        if name != "fit_check" and found != value:
            return f"its {name} is {'chosen by itself' if found is None else found}, not {value}"
    return None


def _attach(endpoint: Endpoint, tell_waiting: Callable[[], None]) -> Attached:
    from edge_nudge.client import Client
    from edge_nudge.document import about_of
    from edge_nudge.errors import ServerError

    client = Client(endpoint)
    try:
        if (state := client.health()) == "loading":
            tell_waiting()
        while state == "loading":
            time.sleep(_TICK_S)
            state = client.health()
        if state not in ("ready", "unloaded"):
            raise ServerError(f"it is {state}")
        try:
            about = about_of(client.models()[0]["meta"]["pair"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ServerError("it does not say what it has loaded: is it of another version?") from None
        return Attached(client, about)
    except BaseException:
        client.close()
        raise
