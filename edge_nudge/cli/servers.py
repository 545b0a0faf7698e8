"""`edge-nudge ps` and `edge-nudge stop`: the servers of this user.

Owns what is asked of a server that runs, and how it is shown. Never signals a process: a server is asked over its
socket, or over loopback with its key.

1. That no server runs is an answer, not an error: exit code 0.
2. What a crash left behind is called that, and is never asked.
3. `stop` waits until the process has ended, and fails where that takes longer than was allowed.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import options, streams
from edge_nudge.cli.names import complete_files
from edge_nudge.cli.render import is_terminal
from edge_nudge.core.visible import one_line
from edge_nudge.errors import EdgeNudgeError

if TYPE_CHECKING:
    from edge_nudge.endpoint import Endpoint

_ANSWER_S = 5.0
_TICK_S = 0.05
_DEAD = "left behind by a crash"
_COLUMNS = ("MODEL", "PID", "ADDRESS", "STATE", "QUEUE", "JOB", "TOKENS", "SINCE")
_WIDE = 1 << 12  # columns: no line of a file is broken


class ServerError(EdgeNudgeError):
    """A server does not answer, or does not end."""


# --- ps


@click.command(short_help="Show the servers that run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ps(*, as_json: bool) -> None:
    """Show this user's servers: the model, the address, what it is doing.

    Reads the endpoint files in the runtime folder, and asks each server. The exit code is 0 where none runs as well.

    \b
    Example: edge-nudge ps --json
    """
    from edge_nudge.endpoint import read_endpoints

    servers = [_look_at(endpoint) for endpoint in read_endpoints()]
    if as_json:
        from edge_nudge.document import to_json

        streams.write_out(to_json({"servers": servers}) + "\n")
    elif servers:
        streams.write_out(_table(servers))
    if not any(server["state"] != "dead" for server in servers):
        streams.tell("no server runs: start one with edge-nudge serve")


def _look_at(endpoint: Endpoint) -> dict[str, Any]:
    from edge_nudge.endpoint import is_running

    shown: dict[str, Any] = {
        "model": endpoint.model,
        "pid": endpoint.pid,
        "socket": endpoint.socket,
        "url": endpoint.url,
        "state": "dead",
        "queued": None,
        "job": None,
        "started": endpoint.started,
    }
    if not is_running(endpoint):
        return shown
    try:
        status, found = ask(endpoint, "GET", "/slots")
    except ServerError:
        return {**shown, "state": "no answer"}
    if status != 200 or not isinstance(found, list) or not found or not isinstance(found[0], dict):
        return {**shown, "state": "unknown"}
    return {**shown, **_of_slot(found[0])}


def _of_slot(slot: dict[str, Any]) -> dict[str, Any]:
    """Return what a server says of its one slot."""
    job = slot.get("job")
    names = ("id", "running_s", "n_tokens")
    return {
        "state": slot.get("state", "unknown"),
        "queued": slot.get("n_queued"),
        "job": {name: job.get(name) for name in names} if isinstance(job, dict) else None,
    }


def _table(servers: Sequence[dict[str, Any]]) -> str:
    """Return the table as text: as wide as the terminal, or as wide as it needs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if is_terminal(sys.stdout) else None, pad_edge=False, header_style="")
    for name in _COLUMNS:  # an address is what gives way, and every character of it stays
        table.add_column(name, overflow="fold", no_wrap=name != "ADDRESS", min_width=10 if name == "ADDRESS" else None)
    for server in servers:
        table.add_row(*(Text(one_line(cell)) for cell in _cells(server)))
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else _WIDE
    console = Console(file=sys.stdout, width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _cells(server: dict[str, Any]) -> tuple[str, ...]:
    job = server["job"]
    state = _DEAD if server["state"] == "dead" else server["state"]
    since = datetime.fromtimestamp(server["started"]).isoformat(" ", "seconds")
    return (
        server["model"],
        str(server["pid"]),
        " ".join(address for address in (server["socket"], server["url"]) if address),
        state,
        "" if server["queued"] is None else str(server["queued"]),
        "" if job is None else f"{job['id']} ({job['running_s'] or 0.0:.1f} s)",
        "" if job is None else str(job["n_tokens"]),
        since,
    )


# --- stop


@click.command(short_help="Stop a server.")
@click.option(
    "--socket",
    metavar="PATH",
    shell_complete=complete_files,
    help="The server on this Unix socket; default: the one ps shows first.",
)
@click.option("--now", is_flag=True, help="Cancel running answers instead of giving them the server's grace time.")
@click.option("--wait", type=click.FloatRange(0, 3600), default=None, metavar="S",
              help="Seconds to wait for its end; default: what the server says it needs, and 10 more.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def stop(context: click.Context, /, *, socket: str | None, now: bool, wait: float | None, as_json: bool) -> None:
    """Ask a server to stop and wait until it has.

    It takes no new requests, lets running answers end within its grace time, and cancels the rest. Where no server
    runs there is nothing to do, and the exit code is 0 as well.

    A server that does not end in time is told of, and the exit code is 1: no process is killed.

    \b
    Example: edge-nudge stop --now
    """
    options.check_text(context)
    endpoint = _find(socket)
    pid = None if endpoint is None else _stop(endpoint, is_now=now, wait_s=wait)
    if as_json:
        from edge_nudge.document import to_json

        address = None if endpoint is None or pid is None else endpoint.address
        streams.write_out(to_json({"stopped": pid is not None, "pid": pid, "address": address}) + "\n")
    elif endpoint is None or pid is None:
        streams.tell("no server runs" if socket is None else f"no server runs on {one_line(socket)}")
    else:
        streams.write_out(f"stopped {one_line(endpoint.model)}, pid {pid}, on {one_line(endpoint.address)}\n")


def _find(socket: str | None) -> Endpoint | None:
    """Return the endpoint that is meant: one that the folder knows, or just the socket."""
    from edge_nudge.endpoint import Endpoint, is_running, read_endpoint, read_endpoints

    if socket is None:
        return read_endpoint()
    path = str(Path(socket).expanduser().absolute())
    known = [endpoint for endpoint in read_endpoints() if endpoint.socket == path]
    endpoint = known[0] if known else Endpoint(pid=1, socket=path, model="the server", started=0.0)
    return endpoint if is_running(endpoint) else None


def _stop(endpoint: Endpoint, *, is_now: bool, wait_s: float | None) -> int | None:
    """Stop a server and return its pid; None where it has gone by itself."""
    from edge_nudge.endpoint import is_running

    if not is_running(endpoint):
        return None
    try:
        status, found = ask(endpoint, "POST", "/shutdown", {"now": is_now})
    except ServerError:
        if is_running(endpoint):
            raise
        return None
    if status != 202 or not isinstance(found, dict) or not isinstance(found.get("pid"), int):
        raise ServerError(
            f"what listens on {endpoint.address} answers {status} when it is asked to stop: {_told(found)}"
        )
    pid = int(found["pid"])
    allowed_s = float(found.get("within_s", 0.0)) + 10 if wait_s is None else wait_s
    if not _has_ended(pid, allowed_s):
        raise ServerError(
            f"the server with pid {pid} on {endpoint.address} is still there after {allowed_s:.0f} s: "
            f"wait longer with --wait, or end it with kill {pid}"
        )
    return pid


def _has_ended(pid: int, wait_s: float) -> bool:
    import psutil

    deadline = time.monotonic() + wait_s
    try:
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_TICK_S)
    except psutil.NoSuchProcess:
        pass
    return True


def _told(found: Any) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else "is it an edge-nudge server?"


# --- asking


def ask(endpoint: Endpoint, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send one request to a server; return the status and the JSON it answered. Raises ServerError."""
    import httpx

    from edge_nudge.endpoint import has_unix_sockets

    uds = endpoint.socket if has_unix_sockets() else None
    headers = {} if endpoint.key is None or uds is not None else {"authorization": f"Bearer {endpoint.key}"}
    url = "http://localhost" if uds is not None else str(endpoint.url)
    transport = httpx.HTTPTransport(uds=uds, verify=False)  # no certificates over a socket or loopback
    try:
        with httpx.Client(transport=transport, base_url=url, timeout=_ANSWER_S, trust_env=False) as client:
            answer = client.request(method, path, json=body, headers=headers)
            return answer.status_code, answer.json()
    except (httpx.HTTPError, ValueError) as error:
        what = f"{error}".strip() or type(error).__name__
        raise ServerError(f"the server on {endpoint.address} does not answer: {what}") from None
