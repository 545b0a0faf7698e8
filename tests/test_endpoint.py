"""The endpoint file and the runtime folder: whose they are, who may read them, what a crash leaves behind."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_nudge import endpoint as endpoints
from edge_nudge.endpoint import (
    Endpoint,
    RuntimeDirError,
    default_socket,
    endpoint_path,
    is_running,
    read_endpoint,
    read_endpoints,
    remove_if_ours,
    runtime_dir,
    secure_dir,
    write_endpoint,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EDGE_NUDGE_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "edge-nudge"


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield path


def an_endpoint(**fields: Any) -> Endpoint:
    return Endpoint(**{"pid": os.getpid(), "socket": str(default_socket()), "model": "demo", "started": 1.0} | fields)


def test_the_folder_is_the_users(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert runtime_dir() == home
    assert default_socket() == home / "edge-nudge.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")  # to be ignored, says the specification
    assert runtime_dir().is_absolute()
    assert runtime_dir().name == "edge-nudge"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_dir().name == "edge-nudge"
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(tmp_path / "own"))
    assert runtime_dir() == tmp_path / "own"


def test_an_endpoint_comes_back_as_it_was_written(home: Path, listening: str) -> None:
    written = an_endpoint(socket=listening, url="http://127.0.0.1:7861", key="k" * 40, loaded={"ctx_size": 512})
    path = write_endpoint(written)
    assert path == home / f"endpoint-{os.getpid()}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [file.name for file in home.iterdir()] == [path.name]
    assert read_endpoint() == written
    assert "kkk" not in repr(written)


def test_the_default_socket_has_the_plain_name_and_comes_first(home: Path) -> None:
    later = an_endpoint(socket="/x", started=5.0, pid=os.getpid())
    latest = an_endpoint(socket="/y", started=9.0, pid=os.getppid())
    default = an_endpoint()
    for one in (later, default, latest):
        write_endpoint(one)
    assert endpoint_path(default) == home / "endpoint.json"
    assert read_endpoints() == [default, latest, later]


@POSIX
def test_a_file_left_behind_counts_for_nothing(listening: str) -> None:
    dead = an_endpoint()
    write_endpoint(dead)
    assert read_endpoint() is None
    write_endpoint(an_endpoint(socket=listening))
    assert read_endpoint() == an_endpoint(socket=listening)
    assert read_endpoints()[0] == dead


def test_the_next_server_takes_away_what_a_crash_left_behind(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = write_endpoint(an_endpoint(socket="/x", pid=int(done.stdout)))
    alive = write_endpoint(an_endpoint(socket="/y"))
    assert not dead.exists()
    write_endpoint(an_endpoint(started=7.0))
    assert alive.exists()  # nobody listens yet, but its process is there


@POSIX
def test_a_socket_file_without_a_server_is_dead(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    assert not is_running(an_endpoint(socket=str(tmp_path / "s")))
    (tmp_path / "plain").touch()
    assert not is_running(an_endpoint(socket=str(tmp_path / "plain")))
    assert not is_running(an_endpoint(socket="/" + "x" * 200))


def test_a_port_is_trusted_only_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        fields: dict[str, Any] = {"socket": None, "url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        assert is_running(an_endpoint(**fields, started=time.time()))
        assert not is_running(an_endpoint(**fields, started=1.0))  # this process is younger: the number was given anew
        done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        assert not is_running(an_endpoint(**fields, pid=int(done.stdout), started=time.time()))
    assert not is_running(an_endpoint(**fields, started=time.time()))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 2, "pid": 1, "socket": "/s", "model": "m", "started": 1.0}',
     '{"version": 1, "pid": 1, "model": "m", "started": 1.0}',
     '{"version": 1, "pid": 1, "url": "https://elsewhere/x", "model": "m", "started": 1.0}'],
)  # fmt: skip
def test_a_damaged_file_is_no_endpoint(home: Path, text: str) -> None:
    home.mkdir()
    (home / "endpoint.json").write_text(text)
    assert read_endpoints() == []


@POSIX
def test_a_link_a_pipe_and_a_folder_are_no_endpoint(home: Path) -> None:
    write_endpoint(an_endpoint())
    (home / "endpoint.json").rename(home / "elsewhere")
    (home / "endpoint.json").symlink_to(home / "elsewhere")
    (home / "endpoint-7.json").mkdir()
    os.mkfifo(home / "endpoint-8.json")
    assert read_endpoints() == []


def test_only_our_own_file_is_removed(home: Path) -> None:
    ours = an_endpoint()
    path = write_endpoint(ours)
    path.write_text(an_endpoint(started=2.0).model_dump_json())
    remove_if_ours(ours)
    assert path.exists()
    write_endpoint(ours)
    remove_if_ours(ours)
    remove_if_ours(ours)
    assert list(home.iterdir()) == []


def test_without_unix_sockets_the_server_with_a_port_is_the_default(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "has_unix_sockets", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        written = an_endpoint(socket=None, url=url, key="k", started=time.time())
        assert write_endpoint(written) == home / "endpoint.json"
        assert read_endpoint() == written


# --- the folder


@POSIX
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(RuntimeDirError, match=rf"^others can write to .*{mode:04o}.*chmod 700"):
        secure_dir(home)
    assert stat.S_IMODE(home.stat().st_mode) == mode


@POSIX
def test_a_folder_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(RuntimeDirError, match="others can replace"):
        secure_dir(open_to_all / "mine")
    open_to_all.chmod(0o1777)  # as /tmp is
    secure_dir(open_to_all / "mine")


@POSIX
def test_a_folder_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(RuntimeDirError, match="belongs to user"):
        secure_dir(home)


@POSIX
def test_our_own_folder_is_closed_to_others_and_a_users_folder_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    folder.chmod(0o755)
    secure_dir(folder, is_own=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    secure_dir(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_file_in_place_of_the_folder_is_refused(home: Path) -> None:
    home.touch()
    with pytest.raises(RuntimeDirError, match="is no folder"):
        secure_dir(home)
    with pytest.raises(RuntimeDirError, match="cannot be used"):
        secure_dir(home / "below")
