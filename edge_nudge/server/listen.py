"""The sockets a server listens on: opened here with the modes we want, or inherited from systemd.

Owns binding, the lock, and the removal of names. Never accepts a connection and never loads a model.

1. A Unix socket is bound with mode 0600 from the start, in a folder that nobody else can change.
2. Under the lock of its path one process at a time looks at what is there: nothing or a dead socket is replaced, a
   living one is left alone, whoever it belongs to; any other file is left alone as well.
3. A name is removed only while it is still the socket we bound (device and inode), and before the socket is closed:
   as long as it is open, no other file can have its inode. What systemd opened is never removed.
4. TCP is loopback unless a key was given; there is no TCP without a key, given or made here.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import stat
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from edge_nudge import endpoint as endpoints
from edge_nudge.core.closing import Closing
from edge_nudge.errors import EdgeNudgeError, InputError

DEFAULT_PORT = 16834
MIN_KEY = 16  # characters, of a key that the network can try out
_MOST_KEY = 512
_BACKLOG = 128
_LOCK_WAIT_S = 0.3  # a server that ends holds its lock a moment longer than its socket
_PID_WAIT_S = 0.5  # who has just taken the lock writes its number next
_FIRST_FD = 3
_MOST_FDS = 16


class ListenError(EdgeNudgeError):
    """An address cannot be listened on."""


class AlreadyRunningError(ListenError):
    """Another server has the address."""

    exit_code: ClassVar[int] = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to listen. `socket` None is the default path, `tcp` None no TCP; `key` is one that was given."""

    socket: Path | None = None
    tcp: tuple[str, int] | None = None
    key: str | None = field(default=None, repr=False)


class Listeners(Closing):
    """Open sockets and the names that are to be removed with them. Close it, or use it in a with statement."""

    def __init__(self, key: str | None) -> None:
        self.sockets: list[socket.socket] = []
        self.socket_path: str | None = None
        self.url: str | None = None
        self.is_inherited = False
        self.is_key_ours = key is None
        self._key = key
        self._lock: FileLock | None = None
        self._bound: tuple[str, int, int] | None = None  # path, device, inode

    def __repr__(self) -> str:
        return f"<Listeners {', '.join(self.addresses)}>"

    @property
    def addresses(self) -> list[str]:
        return [address for address in (self.socket_path, self.url) if address is not None]

    @property
    def key(self) -> str | None:
        """The bearer key of TCP; None where there is no TCP."""
        return self._key if self.url is not None else None

    def remove_names(self) -> None:
        """Remove the socket's file if it is still ours, then let others have its path; from any thread, repeatedly."""
        bound, self._bound = self._bound, None
        if bound is not None:
            with suppress(OSError):
                state = os.lstat(bound[0])
                if (state.st_dev, state.st_ino) == bound[1:]:
                    os.unlink(bound[0])
        lock, self._lock = self._lock, None
        if lock is not None:
            with suppress(OSError, ValueError):  # while it is held: who waits for it sees that it has no name any more
                if int(Path(lock.lock_file).read_text(encoding="ascii")) == os.getpid():
                    os.unlink(lock.lock_file)
            lock.release()

    def close(self) -> None:
        """Remove the names, then close the sockets; closing twice is allowed."""
        self.remove_names()
        for one in self.sockets:
            one.close()

    # --- opening

    def take(self, path: Path) -> None:
        """Get the lock of a path. Raises AlreadyRunningError."""
        place = path.with_name(f"{path.name}.lock")
        lock = FileLock(place, mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=_LOCK_WAIT_S, poll_interval=0.02)
        except Timeout:
            raise _already_running(path, _pid_in(place)) from None
        except OSError as error:
            raise ListenError(f"{place} cannot be locked ({error.strerror or error})") from None
        self._lock = lock
        with suppress(OSError):  # on Windows a locked file may not be written
            place.write_text(f"{os.getpid()}\n", encoding="ascii")

    def open_unix(self, path: Path) -> None:
        """Bind a Unix socket. Raises InputError, RuntimeDirError, ListenError."""
        path = path.expanduser().absolute()
        _check_length(path)
        endpoints.secure_dir(path.parent, is_own=path.parent == endpoints.runtime_dir())
        self.take(path)
        _make_room(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(server)
        umask = os.umask(0o177)
        try:
            server.bind(str(path))
        except OSError as error:
            raise ListenError(f"{path} cannot be bound ({error.strerror or error})") from None
        finally:
            os.umask(umask)
        state = os.lstat(path)
        self._bound = (str(path), state.st_dev, state.st_ino)
        server.listen(_BACKLOG)
        self.socket_path = str(path)

    def open_tcp(self, host: str, port: int) -> None:
        """Bind a TCP address; port 0 is one that is free. Raises InputError, ListenError."""
        check_exposure(host, self._key)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.sockets.append(server)
        if sys.platform == "win32":  # there SO_REUSEADDR would share the port with anybody
            server.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            server.bind((host, port))
            server.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ListenError(f"port {port} of {host} is in use: choose another one, or 0 for a free one") from None
            raise ListenError(f"{host} port {port} cannot be bound ({error.strerror or error})") from None
        self._has_tcp(server)

    def inherit(self, server: socket.socket) -> None:
        """Take over a socket that systemd opened. Raises InputError, ListenError."""
        _check_inherited(server)
        self.is_inherited = True
        if endpoints.has_unix_sockets() and server.family == socket.AF_UNIX:
            path = server.getsockname()
            if not isinstance(path, str) or not path:
                raise ListenError(f"descriptor {server.fileno()} is an abstract socket: ListenStream= must name a file")
            _check_inherited_mode(path)
            self.socket_path = self.socket_path or path
        else:
            check_exposure(server.getsockname()[0], self._key)
            self._has_tcp(server)

    def _has_tcp(self, server: socket.socket) -> None:
        host, port = server.getsockname()[:2]
        self._key = self._key or secrets.token_urlsafe(32)
        near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # how this machine reaches it
        self.url = self.url or f"http://{f'[{near}]' if ':' in near else near}:{port}"


def open_listeners(wanted: Wanted, inherited: Sequence[socket.socket] = ()) -> Listeners:
    """Open what is wanted, or take what was inherited: all of it or nothing.

    Raises InputError, RuntimeDirError, AlreadyRunningError, ListenError.
    """
    listeners = Listeners(wanted.key)
    listeners.sockets += inherited
    try:
        if wanted.key is not None:
            check_key(wanted.key)
        if inherited:
            if wanted.socket is not None or wanted.tcp is not None:
                raise InputError("the addresses come from systemd: put --socket and --tcp into ListenStream= instead")
            for server in inherited:
                listeners.inherit(server)
        elif endpoints.has_unix_sockets():
            listeners.open_unix(wanted.socket or endpoints.default_socket())
            if wanted.tcp is not None:
                listeners.open_tcp(*wanted.tcp)
        else:
            _open_without_unix(listeners, wanted)
    except BaseException:
        listeners.close()
        raise
    return listeners


def _open_without_unix(listeners: Listeners, wanted: Wanted) -> None:
    """Open loopback TCP where there are no Unix sockets; one server for each user, as with the default socket."""
    if wanted.socket is not None:
        raise InputError("there are no Unix sockets on this system: use --tcp instead of --socket")
    endpoints.secure_dir(endpoints.runtime_dir())
    listeners.take(endpoints.default_socket())
    listeners.open_tcp(*(wanted.tcp or ("127.0.0.1", DEFAULT_PORT)))


# --- addresses and keys


def parse_tcp(text: str) -> tuple[str, int]:
    """Read HOST:PORT, [IPV6]:PORT, HOST or PORT; what is missing is 127.0.0.1 and our own port. Raises InputError."""
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, port = text, "", ""
    elif not colon:
        host, port = ("", text) if text.isdecimal() else (text, "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare.lower() == "localhost":
        bare = "127.0.0.1"
    try:
        if ":" in bare and bare == host:
            raise ValueError
        address = ipaddress.ip_address(bare or "127.0.0.1")
    except ValueError:
        raise InputError(
            f"{text!r} is no address: write 127.0.0.1:{DEFAULT_PORT}, [::1]:{DEFAULT_PORT} or a port"
        ) from None
    if colon or port:
        is_port = port.isascii() and port.isdecimal() and int(port) < 1 << 16
        if not is_port:
            raise InputError(f"{text!r} is no address: its port must be a number from 0 to 65535")
        return str(address), int(port)
    return str(address), DEFAULT_PORT


def check_exposure(host: str, key: str | None) -> None:
    """Raise InputError where others could reach the server and no key, or a weak one, was given."""
    if ipaddress.ip_address(host).is_loopback:
        return
    if key is None:
        raise InputError(
            f"{host} can be reached from outside this machine: give a key with --key-file or EDGE_NUDGE_API_KEY, "
            f"or listen on 127.0.0.1"
        )
    if len(key) < MIN_KEY:
        raise InputError(
            f"the key has {len(key)} characters, and {host} can be reached from outside this machine: "
            f"it must have at least {MIN_KEY} there"
        )


def check_key(key: str) -> None:
    """Raise InputError for a key that cannot be sent in a header."""
    if not key or len(key) > _MOST_KEY or not all("!" <= character <= "~" for character in key):
        raise InputError(
            f"the key must be 1 to {_MOST_KEY} visible ASCII characters without blanks: {len(key)} were given"
        )


def _check_length(path: Path) -> None:
    limit = 107 if sys.platform == "linux" else 103
    n_bytes = len(os.fsencode(path))
    if n_bytes > limit:
        raise InputError(
            f"the socket path has {n_bytes} bytes, {limit} are allowed on this system: choose a shorter "
            f"--socket PATH, or a shorter XDG_RUNTIME_DIR ({path})"
        )


# --- what is there already


def _make_room(path: Path) -> None:
    """Remove a dead socket. The lock is held. Raises AlreadyRunningError and ListenError for anything else."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(state.st_mode):
        raise ListenError(f"{path} is there and is no socket: move it away, or choose another --socket PATH")
    try:
        is_alive = endpoints.can_connect(path)
    except OSError as error:
        raise ListenError(
            f"{path} is the socket of something else ({error.strerror or error}): choose another --socket PATH"
        ) from None
    if is_alive:
        raise _already_running(path, _peer_pid(path))
    os.unlink(path)


def _already_running(path: Path, pid: int | None) -> AlreadyRunningError:
    who = "" if pid is None else f" with pid {pid}"
    return AlreadyRunningError(
        f"a server is already running{who} on {path}: use it, stop it with edge-nudge stop, or choose another "
        f"--socket PATH"
    )


def _pid_in(place: Path) -> int | None:
    """Return the process number in a lock file that somebody holds."""
    deadline = time.monotonic() + _PID_WAIT_S
    while True:
        with suppress(OSError, ValueError):
            return int(place.read_text(encoding="ascii"))
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def _peer_pid(path: Path) -> int | None:
    """Return the process that listens on a socket, where the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        probe.connect(str(path))
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0]) or None
    return None


# --- systemd


def inherited_descriptors(environ: Mapping[str, str], pid: int) -> tuple[int, ...]:
    """Return the descriptors that systemd's variables say are for us; none where they are for another process.

    Raises ListenError where they are for us and make no sense.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return ()
    n_fds = environ.get("LISTEN_FDS", "")
    if not (n_fds.isascii() and n_fds.isdecimal()) or not 1 <= int(n_fds) <= _MOST_FDS:
        raise ListenError(f"LISTEN_FDS is {n_fds!r}: it must be a number from 1 to {_MOST_FDS}")
    names = environ.get("LISTEN_FDNAMES")
    if names is not None and len(names.split(":")) != int(n_fds):
        raise ListenError(f"LISTEN_FDNAMES has {len(names.split(':'))} names for {n_fds} descriptors")
    return tuple(range(_FIRST_FD, _FIRST_FD + int(n_fds)))


def inherited_sockets(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    """Return the sockets that systemd's variables say are for us.

    To be called before this process opens anything: what is not open could be ours by then. Raises ListenError.
    """
    return [_inherited(descriptor) for descriptor in inherited_descriptors(environ, pid)]


def _inherited(descriptor: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ListenError(f"descriptor {descriptor} from LISTEN_FDS is no socket")
        os.set_inheritable(descriptor, False)
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(f"descriptor {descriptor} from LISTEN_FDS is not open ({error.strerror})") from None


def _check_inherited(server: socket.socket) -> None:
    families = [socket.AF_INET, socket.AF_INET6, *([socket.AF_UNIX] if endpoints.has_unix_sockets() else [])]
    is_stream = server.type == socket.SOCK_STREAM
    is_listening = is_stream and server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if server.family not in families or not is_listening:
        raise ListenError(
            f"descriptor {server.fileno()} from LISTEN_FDS is no listening stream socket: use ListenStream= and "
            f"Accept=no"
        )


def _check_inherited_mode(path: str) -> None:
    """Raise ListenError for a socket that every user can reach: there is no key on a Unix socket."""
    try:
        state, folder = os.stat(path), os.stat(os.path.dirname(path))
    except OSError as error:
        raise ListenError(f"the inherited socket {path} cannot be examined ({error.strerror})") from None
    if state.st_mode & 0o002 and folder.st_mode & 0o001:
        raise ListenError(
            f"every user can reach {path} (mode {stat.S_IMODE(state.st_mode):04o}): set SocketMode=0600 in the "
            f"socket unit"
        )
