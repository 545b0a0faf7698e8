"""Where a server is: the runtime folder, the default socket, and the file that tells clients about both.

Owns the folder's safety and the endpoint file. Never opens a listening socket and never talks HTTP.

1. The folder is `$EDGE_NUDGE_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/edge-nudge`, else what the system has for a user.
2. A folder that somebody else could change is refused: whoever can rename in it can stand in for the server.
3. The server on the default socket has `endpoint.json`, any other one `endpoint-PID.json`: no two share a file.
4. A file is readable by its user only, written whole, and removed only by the server that wrote it. After a crash it
   stays; it then counts for nothing, because nobody listens at what it names, and the next server takes it away.
5. What is read is validated like anything from outside: a damaged or foreign file is no endpoint.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_nudge.errors import EdgeNudgeError

_APP = "edge-nudge"
VERSION: Literal[1] = 1
_MOST_BYTES = 1 << 16
_PROBE_S = 2.0  # a loopback connection is made by the kernel: a server that is busy answers it as well
_CLOCK_SLACK_S = 2.0  # a process's start is known to a hundredth of a second, and clocks are set


class RuntimeDirError(EdgeNudgeError):
    """The folder of the socket cannot be used, or somebody else could change what is in it."""


class Endpoint(BaseModel):
    """How a server is reached: `socket` is a path, `url` begins with http:// and wants `key`; at least one is there.

    `loaded` says what the server was told to load: base, nudging (absolute paths), base_prompt_format, ctx_size,
    threads, base_gpu_layers, nudge_gpu_layers; None is the default of runtime.load_pair.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    version: Literal[1] = VERSION
    pid: int = Field(ge=1)
    socket: str | None = None
    url: str | None = Field(default=None, pattern=r"^http://[^/]+$")
    key: str | None = Field(default=None, repr=False)
    model: str
    started: float
    loaded: dict[str, str | int | None] = {}

    @property
    def address(self) -> str:
        """Return what to show a user."""
        return self.socket or self.url or ""


def has_unix_sockets() -> bool:
    """Tell whether servers here listen on a Unix socket; Windows has loopback TCP and a key instead."""
    return sys.platform != "win32" and hasattr(socket, "AF_UNIX")


def runtime_dir() -> Path:
    """Return the folder of sockets and endpoint files; it may not exist yet."""
    own = os.environ.get("EDGE_NUDGE_RUNTIME_DIR")
    if own:
        return Path(own).expanduser().absolute()
    home = os.environ.get("XDG_RUNTIME_DIR")
    if home and os.path.isabs(home):
        return Path(home, _APP)
    from platformdirs import user_runtime_path

    with warnings.catch_warnings():  # it warns where the variable is missing, which is no fault of the user
        warnings.simplefilter("ignore")
        return user_runtime_path(_APP, appauthor=False)


def default_socket() -> Path:
    """Return the path of the socket that a server has unless told otherwise."""
    return runtime_dir() / f"{_APP}.sock"


def endpoint_path(endpoint: Endpoint) -> Path:
    """Return the file of a server's endpoint."""
    is_default = endpoint.socket == str(default_socket()) if has_unix_sockets() else endpoint.socket is None
    return runtime_dir() / ("endpoint.json" if is_default else f"endpoint-{endpoint.pid}.json")


def read_endpoint() -> Endpoint | None:
    """Return the endpoint of a server that runs: the default one first, then the one started last."""
    return next((endpoint for endpoint in read_endpoints() if is_running(endpoint)), None)


def read_endpoints() -> list[Endpoint]:
    """Return all endpoints in the folder, those that a crash left behind as well; the default one first."""
    home = runtime_dir()
    default = home / "endpoint.json"
    others = [found for path in home.glob("endpoint-*.json") if (found := _read(path)) is not None]
    others.sort(key=lambda endpoint: endpoint.started, reverse=True)
    first = _read(default)
    return others if first is None else [first, *others]


def is_running(endpoint: Endpoint) -> bool:
    """Tell whether a server listens there.

    A port may have gone to another program after a crash: there the process has to be the one that wrote the file too,
    so that nobody is given a key that is not his.
    """
    if endpoint.socket is not None and has_unix_sockets():
        try:
            return can_connect(endpoint.socket)
        except OSError:
            return False
    if endpoint.url is None or not _is_same_process(endpoint):
        return False
    parts = urlsplit(endpoint.url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=_PROBE_S):
            return True
    except (OSError, ValueError):
        return False


def can_connect(path: str | Path) -> bool:
    """Tell whether somebody listens on a Unix socket. Raises OSError where that cannot be known: no permission."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):  # its queue of connections is full: it lives
            return True
        return True


def write_endpoint(endpoint: Endpoint) -> Path:
    """Write the endpoint's file, whole, for its user only; return its path. Raises RuntimeDirError, OSError."""
    path = endpoint_path(endpoint)
    secure_dir(path.parent)
    for dead in read_endpoints():
        if not psutil.pid_exists(dead.pid) and not is_running(dead):
            endpoint_path(dead).unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(endpoint.model_dump_json() + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def remove_if_ours(endpoint: Endpoint) -> None:
    """Remove the endpoint's file if it still says what we wrote; whatever else is there stays."""
    path = endpoint_path(endpoint)
    if _read(path) == endpoint:
        with suppress(OSError):
            path.unlink()


def secure_dir(folder: Path, *, is_own: bool = True) -> None:
    """Make a folder for the user alone, or check the one that is there.

    `is_own`: it is ours by name, so that others' looking in is ended where it was allowed.
    Raises RuntimeDirError.
    """
    try:
        if is_own and not folder.parent.exists():
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.stat()
        parent = folder.resolve().parent.stat()
    except FileExistsError:
        raise RuntimeDirError(f"{folder} is no folder: move it away, or choose another --socket PATH") from None
    except OSError as error:
        raise RuntimeDirError(
            f"the folder {folder} cannot be used ({error.strerror or error}): choose a folder of your own"
        ) from None
    if not has_unix_sockets():  # Windows: the user's profile is closed to others by its own lists
        return
    _check_dir(folder, state)
    is_parent_safe = not parent.st_mode & 0o022 or parent.st_mode & stat.S_ISVTX
    if parent.st_uid not in (0, os.geteuid()) or not is_parent_safe:
        raise RuntimeDirError(
            f"others can replace {folder}: the folder above it belongs to user {parent.st_uid} and has mode "
            f"{stat.S_IMODE(parent.st_mode):04o}; choose a folder of your own"
        )
    if is_own and stat.S_IMODE(state.st_mode) != 0o700:
        folder.chmod(0o700)


def _check_dir(folder: Path, state: os.stat_result) -> None:
    if state.st_uid != os.geteuid():
        raise RuntimeDirError(
            f"{folder} belongs to user {state.st_uid}, we are user {os.geteuid()}: choose a folder of your own"
        )
    if state.st_mode & 0o022:
        raise RuntimeDirError(
            f"others can write to {folder} (mode {stat.S_IMODE(state.st_mode):04o}): chmod 700 it, or choose a folder "
            f"of your own"
        )


def _is_same_process(endpoint: Endpoint) -> bool:
    """Tell whether the process of that number is at least as old as the endpoint."""
    try:
        return psutil.Process(endpoint.pid).create_time() <= endpoint.started + _CLOCK_SLACK_S
    except psutil.Error:
        return False


def _read(path: Path) -> Endpoint | None:
    try:
        with open(path, "rb", opener=_open_plainly) as file:
            if has_unix_sockets() and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            data = file.read(_MOST_BYTES)
        endpoint = Endpoint.model_validate_json(data)
    except (OSError, ValidationError):
        return None
    return endpoint if endpoint.address else None


def _open_plainly(path: str, flags: int) -> int:
    """Open without following a link and without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
