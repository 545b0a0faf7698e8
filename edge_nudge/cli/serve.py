"""`edge-nudge serve`: the pair as a local service.

Owns the options of the server, its key, and the order: addresses, files, models. Never answers a request.

1. Addresses are open before anything is fetched or loaded; a second server on them ends before that.
2. A first signal lets running answers end, and the exit code is 0; a second one ends at once.
3. A key is read from a file or the environment, never from the command line, which every user can see. One that is
   made here is told once on stderr and kept in the endpoint file; no log has it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.interrupts import Interrupted, Interrupts
from edge_nudge.cli.names import complete_files
from edge_nudge.cli.verbosity import show_log
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    import socket

    from edge_nudge.endpoint import Endpoint
    from edge_nudge.runtime import Pair, PairSpec
    from edge_nudge.server.listen import Listeners, Wanted
    from edge_nudge.server.served import Served

_log = logging.getLogger(__name__)
KEY_VARIABLE = "EDGE_NUDGE_API_KEY"
_DEFAULT_PORT = 16834  # server/listen.py has it too; --help imports no server
_MOST_KEY_BYTES = 4096
_MOST_S = 7 * 24 * 3600.0
_SYSTEMD = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_HANGUP = tuple(int(getattr(signal, name)) for name in ("SIGHUP",) if hasattr(signal, name))


class _Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of seconds; "never" is None where that is allowed."""

    name = "seconds"

    def __init__(self, *, has_never: bool = False) -> None:
        self._has_never = has_never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if self._has_never and str(value).lower() == "never":
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= _MOST_S:
            or_never = " or never" if self._has_never else ""
            self.fail(f"{value!r} is no number of seconds from 0 to {_MOST_S:.0f}{or_never}", param, ctx)
        return seconds


@click.command(cls=Configured, short_help="Serve the pair over a local socket.")
@options.model_options
@click.option(
    "--socket",
    metavar="PATH",
    shell_complete=complete_files,
    help="Unix socket; default: in the user's runtime directory.",
)
@click.option(
    "--tcp",
    metavar="[HOST:PORT]",
    is_flag=False,
    flag_value=f"127.0.0.1:{_DEFAULT_PORT}",
    help=f"Listen on TCP as well, with a key; default 127.0.0.1:{_DEFAULT_PORT}, port 0 is a free one.",
)
@click.option(
    "--key-file",
    metavar="FILE",
    shell_complete=complete_files,
    help=f"File with the key for TCP; default: ${KEY_VARIABLE}, else one is made.",
)
@click.option("--origin", multiple=True, metavar="URL", help="Web page origin that may use TCP; exact, repeatable.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Host name by which TCP may be called; repeatable.")
@click.option("--metrics", is_flag=True, help="Serve /metrics for Prometheus.")
@click.option(
    "--keep-alive",
    type=_Seconds(has_never=True),
    default="300",
    metavar="S|never",
    help="Unload the models after so many idle seconds; default 300.",
)
@click.option(
    "--cache-ram",
    type=click.IntRange(0, 1 << 24),
    metavar="MIB",
    help="Memory for the caches of earlier conversations; default 512, 0 keeps none.",
)
@click.option("--queue", type=click.IntRange(0, 10_000), default=32, metavar="N", help="Waiting requests; default 32.")
@click.option(
    "--grace",
    type=_Seconds(),
    default="10",
    metavar="S",
    help="Seconds that running answers have to end after a first signal; default 10.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout when the server listens.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
@click.pass_context
def serve(context: click.Context, /, **values: Any) -> None:
    """Serve the pair over a local socket with OpenAI's API.

    Without --tcp only this user can reach it, through a Unix socket. Started by systemd with sockets, it uses those.

    Ctrl-C or SIGTERM takes no new requests and lets running ones end; a second one ends at once. The exit code is 0
    when the server was asked to stop, 5 when another one has the socket.

    Writes the socket and an endpoint file, for this user only, into the runtime folder, and removes them at the end.

    \b
    Example: edge-nudge serve --pair demo --tcp --keep-alive never
    """
    from edge_nudge.server.listen import inherited_sockets

    inherited = inherited_sockets(os.environ, os.getpid())
    for name in _SYSTEMD:  # they are for this process and for no child of it
        os.environ.pop(name, None)
    try:
        with Interrupts(more=_HANGUP) as interrupts:
            is_ended = _serve(context, values, interrupts, inherited)
    except Interrupted:  # before anything was served
        is_ended = True
    streams.tell("stopped")
    if not is_ended:  # native code is still at work in a thread: leaving in an orderly way would free what it uses
        streams.settle()
        os._exit(0)


def _serve(
    context: click.Context, values: dict[str, Any], interrupts: Interrupts, inherited: Sequence[socket.socket]
) -> bool:
    from edge_nudge.server.app import make_app
    from edge_nudge.server.life import Life
    from edge_nudge.server.listen import open_listeners
    from edge_nudge.worker import Worker

    handler = show_log(values["verbose"], shows_errors=True)
    options.check_text(context)
    wanted = _wanted(values)
    with open_listeners(wanted, inherited) as listeners:
        spec, settings = opening.find(context, values)
        endpoint = _endpoint(listeners, spec, settings)
        life = Life(listeners, endpoint, grace_s=values["grace"], say=streams.tell)
        if handler is not None:
            handler.addFilter(lambda record: life.error is None)  # that one is told when everything is cleaned up
        about: dict[str, Any] = {name: Path(str(endpoint.loaded[name])).name for name in ("base", "nudging")}
        served = _served(listeners, endpoint, values, about)
        load = life.watch(_loader(spec, settings, values, about))
        worker = Worker(load, max_queue=values["queue"], keep_alive_s=values["keep_alive"])
        app = make_app(worker, served=served)
        with interrupts.asking(life.stop, life.remove_names):
            tell = partial(_tell_addresses, listeners, endpoint, values)
            try:
                return life.run(app, worker, on_listening=tell, logs_access=values["verbose"] > 0)
            except InputError as error:
                raise options.in_users_terms(error, context) from None


def _wanted(values: dict[str, Any]) -> Wanted:
    from edge_nudge.server.listen import Wanted, parse_tcp

    key = os.environ.pop(KEY_VARIABLE, None) or None  # no child needs it
    if values["key_file"] is not None:
        key = _read_key(values["key_file"])
    return Wanted(
        None if values["socket"] is None else Path(values["socket"]),
        None if values["tcp"] is None else parse_tcp(values["tcp"]),
        key,
    )


def _read_key(path: str) -> str:
    """Return the key in a file, without the newline at its end. Raises InputError."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MOST_KEY_BYTES)
        key = data.decode("ascii").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InputError(f"the key file {path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(f"the key file {path} is not ASCII: a key is one line of visible ASCII characters") from None
    if not key:
        raise InputError(f"the key file {path} is empty: it must have a key on its first line")
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        streams.tell(f"warning: others can read the key file {path} (mode {stat.S_IMODE(mode):04o}): chmod 600 it")
    return key


def _loader(
    spec: PairSpec, settings: dict[str, Any], values: dict[str, Any], about: dict[str, Any]
) -> Callable[[], Pair]:
    """Return what loads the pair, and says in `about` what it is then."""
    has_loaded = False

    def load() -> Pair:
        nonlocal has_loaded
        from edge_nudge import runtime
        from edge_nudge.document import about_document, about_pair

        say = streams.tell if not has_loaded else _log.info  # anew after an idle time: nobody has asked for that line
        say(f"loading {opening.loading_names(spec)}")
        pair = runtime.load_pair(spec, **settings)
        found = about_pair(pair)
        about["pair"] = about_document(found)
        if not has_loaded:
            opening.tell_notes(found, values)
        has_loaded = True
        return pair

    return load


def _endpoint(listeners: Listeners, spec: PairSpec, settings: dict[str, Any]) -> Endpoint:
    from edge_nudge.endpoint import Endpoint

    names = ("ctx_size", "threads", "base_gpu_layers", "nudge_gpu_layers", "base_kv_type", "nudge_kv_type")
    adapter = spec.nudging_adapter
    return Endpoint(
        pid=os.getpid(),
        socket=listeners.socket_path,
        url=listeners.url,
        key=listeners.key,
        model=spec.served_name,
        started=time.time(),
        loaded={
            "base": str(spec.base.expanduser().absolute()),
            "nudging": str(spec.nudging.expanduser().absolute()),
            "nudging_adapter": None if adapter is None else str(adapter.absolute()),
            "base_prompt_format": spec.base_prompt_format,
            **{name: settings.get(name) for name in names},
        },
    )


def _served(listeners: Listeners, endpoint: Endpoint, values: dict[str, Any], about: Mapping[str, Any]) -> Served:
    from edge_nudge.server.served import Served

    return Served(
        endpoint.model,
        created=int(endpoint.started),
        key=listeners.key,
        allowed_origins=tuple(values["origin"]),
        has_metrics=values["metrics"],
        allowed_hosts=tuple(values["allow_host"]),
        about=about,
    )


def _tell_addresses(listeners: Listeners, endpoint: Endpoint, values: dict[str, Any]) -> None:
    from edge_nudge.document import to_json
    from edge_nudge.endpoint import endpoint_path

    path = endpoint_path(endpoint)
    for address in listeners.addresses:
        streams.tell(f"listening on {address}")
    if listeners.key is not None and listeners.is_key_ours:
        streams.tell(f"key {listeners.key} (also in {path})")
    if values["as_json"]:
        told = endpoint.model_dump(exclude={"key"}) | {"endpoint_file": str(path)}
        streams.write_out(to_json(told) + "\n")
