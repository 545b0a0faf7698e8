"""Listening with real sockets: modes, locks, what lies at the path already, TCP and keys, sockets of systemd."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_nudge import endpoint as endpoints
from edge_nudge.endpoint import RuntimeDirError, can_connect, default_socket
from edge_nudge.errors import InputError
from edge_nudge.server.listen import (
    DEFAULT_PORT,
    AlreadyRunningError,
    ListenError,
    Listeners,
    Wanted,
    check_key,
    inherited_descriptors,
    inherited_sockets,
    open_listeners,
    parse_tcp,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="Unix sockets")
KEY = "0123456789abcdef"

OPEN_ONE = """
import sys
from pathlib import Path
from edge_nudge.errors import EdgeNudgeError
from edge_nudge.server.listen import Wanted, open_listeners
sys.stdin.read(1)
try:
    with open_listeners(Wanted(Path(sys.argv[1]))) as listeners:
        print("won", flush=True)
        sys.stdin.read(1)
except EdgeNudgeError as error:
    print(error.exit_code, error, flush=True)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def listen(path: Path | None = None, **wanted: Any) -> Listeners:
    return open_listeners(Wanted(path, **wanted))


def leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)


# --- the Unix socket


@POSIX
def test_only_the_user_can_reach_the_default_socket(home: Path) -> None:
    umask = os.umask(0o022)
    try:
        with listen() as listeners:
            assert listeners.socket_path == str(default_socket()) == str(home / "edge-nudge.sock")
            assert stat.S_IMODE(default_socket().stat().st_mode) == 0o600
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            assert stat.S_IMODE((home / "edge-nudge.sock.lock").stat().st_mode) == 0o600
            assert can_connect(default_socket())  # before anything is loaded: clients wait in line
            assert not any(one.get_inheritable() for one in listeners.sockets)
            assert listeners.key is None
        assert list(home.iterdir()) == []
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)


@POSIX
def test_the_socket_never_has_a_wider_mode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_chmod(*_: Any, **__: Any) -> None:
        raise AssertionError("a mode that is set afterwards is too late")

    monkeypatch.setattr(os, "chmod", no_chmod)
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@POSIX
def test_a_dead_socket_is_replaced(path: Path) -> None:
    leave_dead_socket(path)
    before = path.stat().st_ctime_ns
    with listen(path):
        assert path.stat().st_ctime_ns != before
        assert can_connect(path)
    assert not path.exists()


@POSIX
def test_a_living_server_is_left_alone(path: Path) -> None:
    with listen(path):
        before = path.stat()
        with pytest.raises(AlreadyRunningError, match=rf"already running with pid {os.getpid()} on {path}"):
            listen(path)
        assert path.stat() == before
        assert can_connect(path)
    with listen(path):
        assert can_connect(path)
    assert AlreadyRunningError.exit_code == 5


@POSIX
@pytest.mark.parametrize("backlog", [0, 1])
def test_a_foreign_server_is_left_alone_even_with_a_full_queue(path: Path, backlog: int) -> None:
    waiting = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        for _ in range(backlog + 1):  # it accepts nobody
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            waiting.append(client)
        before = path.stat()
        with pytest.raises(AlreadyRunningError, match=f"already running.* on {path}"):
            listen(path)
        assert path.stat().st_ino == before.st_ino
        assert not path.with_name("s.lock").exists()
    for client in waiting:
        client.close()


@POSIX
@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "link to a socket", "link to nothing"])
def test_anything_else_is_refused_and_untouched(path: Path, kind: str) -> None:
    other = path.with_name("other")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        if kind == "link to a socket":
            leave_dead_socket(other)
        path.symlink_to(other)
    before = os.lstat(path)
    with pytest.raises(ListenError, match="is there and is no socket"):
        listen(path)
    assert os.lstat(path) == before
    if kind == "file":
        assert path.read_text() == "precious"
    assert not path.with_name("s.lock").exists()


@POSIX
def test_a_datagram_socket_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ListenError, match="the socket of something else"):
            listen(path)
        assert path.exists()


@POSIX
@pytest.mark.parametrize("letter", ["x", "é", "日"])
def test_a_path_is_measured_in_bytes(letter: str, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    import tempfile

    limit = 107 if sys.platform == "linux" else 103
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        room = limit - len(folder.encode()) - 1
        size = len(letter.encode())
        fits = Path(folder, letter * (room // size) + "x" * (room % size))
        with listen(fits):
            assert can_connect(fits)
        with pytest.raises(InputError, match=rf"the socket path has {limit + 1} bytes, {limit} are allowed"):
            listen(Path(f"{fits}x"))
        assert os.listdir(folder) == []
    with pytest.raises(InputError, match="the socket path has 150 bytes"):
        listen(Path("/" + "x" * 149))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="104 bytes, 103 are allowed"):
        listen(Path("/" + "x" * 103))


@POSIX
def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RuntimeDirError, match="others can write"):
        listen(folder / "s")
    assert list(folder.iterdir()) == []


@POSIX
def test_what_is_not_ours_any_more_stays(path: Path) -> None:
    with listen(path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"
    path.unlink()
    with listen(path):
        path.unlink()
        leave_dead_socket(path)
    assert path.exists()


@POSIX
def test_names_go_before_the_sockets_are_closed(path: Path) -> None:
    with listen(path) as listeners:
        listeners.remove_names()
        assert not path.exists()
        with listen(path):  # a successor may come while we still end
            listeners.close()
            assert can_connect(path)


@POSIX
@pytest.mark.process
def test_of_many_starts_at_once_over_a_dead_socket_exactly_one_wins(path: Path) -> None:
    leave_dead_socket(path)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_ONE, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, encoding=None,
        )
        for _ in range(6)
    ]  # fmt: skip
    time.sleep(1)  # all have started and wait
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"g")
    said = {}
    for child in children:
        assert child.stdout is not None
        said[child.pid] = child.stdout.readline().decode().strip()
    winners = [pid for pid, line in said.items() if line == "won"]
    assert len(winners) == 1, said
    for pid, line in said.items():
        if pid != winners[0]:
            assert line.startswith(f"5 a server is already running with pid {winners[0]} on {path}")
    assert can_connect(path)
    for child in children:
        child.communicate(b"q", timeout=30)
    assert list(path.parent.iterdir()) == []


@POSIX
@pytest.mark.process
def test_after_kill_9_the_next_start_takes_over(path: Path) -> None:
    command = [sys.executable, "-c", OPEN_ONE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"g")
        child.stdin.flush()
        assert child.stdout.readline() == b"won\n"
        child.kill()
    assert path.exists()
    assert path.with_name("s.lock").exists()
    with listen(path):
        assert can_connect(path)
    assert list(path.parent.iterdir()) == []


# --- TCP


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1234", ("127.0.0.1", 1234)),
        ("0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("127.0.0.1", ("127.0.0.1", DEFAULT_PORT)),
        ("localhost:5", ("127.0.0.1", 5)),
        ("0.0.0.0:5", ("0.0.0.0", 5)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_tcp(text) == address


@pytest.mark.parametrize("text", ["::1:80", "example.org:80", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", "1.2.3:4",
                                  "[127.0.0.1:5", "127.0.0.1:-1", "127.0.0.1:٣", "unix:/s", "99999"])  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        parse_tcp(text)


def test_the_default_port_is_our_own() -> None:
    assert DEFAULT_PORT not in (8080, 8000, 9931, 11434, 1234)
    assert 1024 < DEFAULT_PORT < 32768  # below where systems take ports for connections


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp_is_beside_the_socket_and_has_a_key(path: Path, host: str) -> None:
    with listen(path, tcp=(host, 0)) as listeners, listen(path.with_name("t"), tcp=(host, 0)) as others:
        port = listeners.sockets[-1].getsockname()[1]
        assert listeners.url == f"http://{f'[{host}]' if ':' in host else host}:{port}"
        assert [one.family for one in listeners.sockets][-1] == (socket.AF_INET6 if ":" in host else socket.AF_INET)
        socket.create_connection((host, port)).close()
        assert listeners.is_key_ours
        assert len(listeners.key or "") >= 40
        assert listeners.key != others.key
        assert (listeners.key or "") not in repr(listeners)
        if endpoints.has_unix_sockets():
            assert listeners.addresses[0] == str(path)


def test_a_given_key_is_used(path: Path) -> None:
    with listen(path, tcp=("127.0.0.1", 0), key="k") as listeners:
        assert (listeners.key, listeners.is_key_ours) == ("k", False)
    with listen(path, key="k") as listeners:
        assert listeners.key is None  # it is for TCP
    assert "0123" not in repr(Wanted(key=KEY))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:127.0.0.1", "192.0.2.1"])
def test_the_network_needs_a_given_key(path: Path, host: str) -> None:
    with pytest.raises(InputError, match="can be reached from outside this machine: give a key"):
        listen(path, tcp=(host, 0))
    with pytest.raises(InputError, match="the key has 15 characters"):
        listen(path, tcp=(host, 0), key=KEY[1:])
    assert list(path.parent.iterdir()) == []  # all or nothing


def test_the_network_with_a_key(path: Path) -> None:
    with listen(path, tcp=("0.0.0.0", 0), key=KEY) as listeners:
        assert listeners.key == KEY
        assert listeners.url == f"http://127.0.0.1:{listeners.sockets[-1].getsockname()[1]}"


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "é", "x" * 513])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(InputError, match="visible ASCII characters"):
        check_key(key)


def test_a_port_in_use(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} of 127.0.0.1 is in use"):
            listen(path, tcp=("127.0.0.1", port))
    assert list(path.parent.iterdir()) == []


# --- where there are no Unix sockets


def test_without_unix_sockets_there_is_loopback_and_a_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "has_unix_sockets", lambda: False)
    with pytest.raises(InputError, match="no Unix sockets on this system"):
        listen(home / "s")
    with listen(tcp=("127.0.0.1", 0)) as listeners:
        assert listeners.socket_path is None
        assert (listeners.url or "").startswith("http://127.0.0.1:")
        assert listeners.key
        with pytest.raises(AlreadyRunningError, match=f"with pid {os.getpid()}"):
            listen(tcp=("127.0.0.1", 0))
    assert list(home.iterdir()) == []


def test_without_unix_sockets_the_port_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(endpoints, "has_unix_sockets", lambda: False)
    monkeypatch.setattr(Listeners, "open_tcp", lambda self, *address: opened.append(address))
    listen().close()
    assert opened == [("127.0.0.1", DEFAULT_PORT)]


# --- systemd


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, ()),
        ({"LISTEN_FDS": "1"}, ()),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, ()),
        ({"LISTEN_PID": "07", "LISTEN_FDS": "1"}, ()),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, (3,)),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, (3, 4)),
    ],
)
def test_descriptors_for_us(environ: dict[str, str], found: tuple[int, ...]) -> None:
    assert inherited_descriptors(environ, 7) == found


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": "99999"},
     {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": ""}],
)  # fmt: skip
def test_descriptors_that_make_no_sense(environ: dict[str, str]) -> None:
    with pytest.raises(ListenError, match="LISTEN_FD"):
        inherited_descriptors({"LISTEN_PID": "7", **environ}, 7)


@pytest.fixture
def given() -> Iterator[list[socket.socket]]:
    """Sockets whose descriptors are handed over as systemd does; what is not taken is closed."""
    sockets: list[socket.socket] = []
    yield sockets
    for one in sockets:
        one.close()


def hand_over(sockets: Sequence[socket.socket], key: str | None = None) -> Listeners:
    return open_listeners(Wanted(key=key), [one.dup() for one in sockets])


@POSIX
def test_inherited_sockets_are_used_and_never_removed(given: list[socket.socket], path: Path) -> None:
    given += [socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))]
    given[0].bind(str(path))
    given[0].listen()
    path.chmod(0o600)
    with hand_over(given) as listeners:
        assert listeners.socket_path == str(path)
        assert listeners.url == f"http://127.0.0.1:{given[1].getsockname()[1]}"
        assert listeners.key
        assert listeners.is_inherited
        assert not any(one.get_inheritable() for one in listeners.sockets)
    assert can_connect(path)
    with pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()}"):
        listen(path)  # another start leaves systemd's socket alone


@POSIX
def test_addresses_are_systemds_or_ours(given: list[socket.socket], path: Path) -> None:
    given.append(socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(InputError, match="the addresses come from systemd"):
        open_listeners(Wanted(path), [given[0].dup()])


@POSIX
@pytest.mark.parametrize("kind", ["datagram", "not listening", "connected", "abstract", "everybody"])
def test_an_inherited_descriptor_is_checked(given: list[socket.socket], tmp_path: Path, kind: str) -> None:
    tmp_path.chmod(0o755)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
    given.append(one)
    message = "is no listening stream socket"
    if kind == "connected":
        given += socket.socketpair()
        one = given[-1]
    elif kind == "abstract":
        if sys.platform != "linux":
            pytest.skip("Linux has abstract sockets")
        one.bind(f"\0edge-nudge-test-{os.getpid()}")
        one.listen()
        message = "is an abstract socket"
    elif kind == "everybody":
        one.bind(str(tmp_path / "s"))
        one.listen()
        (tmp_path / "s").chmod(0o666)
        message = r"every user can reach .* \(mode 0666\): set SocketMode=0600"
    with pytest.raises(ListenError, match=message):
        hand_over([one])


@POSIX
def test_descriptors_become_sockets(given: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    given.append(socket.create_server(("127.0.0.1", 0)))
    descriptor = os.dup(given[0].fileno())
    os.set_inheritable(descriptor, True)
    monkeypatch.setattr("edge_nudge.server.listen._FIRST_FD", descriptor)
    (found,) = inherited_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 7)
    assert found.getsockname() == given[0].getsockname()
    assert not found.get_inheritable()
    found.close()
    assert inherited_sockets({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 7) == []
    with pytest.raises(ListenError, match=f"descriptor {descriptor} from LISTEN_FDS is not open"):
        inherited_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 7)
    read, write = os.pipe()
    monkeypatch.setattr("edge_nudge.server.listen._FIRST_FD", read)
    with pytest.raises(ListenError, match=f"descriptor {read} from LISTEN_FDS is no socket"):
        inherited_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 7)
    os.close(read), os.close(write)


@POSIX
def test_an_inherited_port_of_the_network_needs_a_key(given: list[socket.socket]) -> None:
    given.append(socket.create_server(("0.0.0.0", 0)))
    with pytest.raises(InputError, match="can be reached from outside"):
        hand_over(given)
    with hand_over(given, KEY) as listeners:
        assert listeners.key == KEY
