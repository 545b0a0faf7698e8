"""`edge-nudge serve` as a process: addresses, keys, signals at every moment, what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_fakes import LONG, SHORT, text_of
from serving import CHAT, SIGNALS, TIMEOUT_S, Start, events_of, starter, text_of_events, wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.name != "posix", reason="signals and sockets of POSIX"),
]
KEY = "0123456789abcdef"
STREAM = {**CHAT, "stream": True}

start = pytest.fixture(starter)


# --- serving


def test_it_serves_and_stops(start: Start) -> None:
    server = start().ready()
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE((server.folder / "endpoint.json").stat().st_mode) == 0o600
    with server.client() as client:
        assert client.get("/health").status_code == 200
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == text_of(SHORT)
        assert "server" not in answer.headers
        assert client.get("/v1/models").json()["data"][0]["id"] == "base+nudging"
    about = server.endpoint
    assert about["pid"] == server.process.pid
    assert (about["socket"], about["url"], about["key"]) == (str(server.socket), None, None)
    assert about["loaded"] == {
        "base": os.path.abspath("base.gguf"), "nudging": os.path.abspath("nudging.gguf"), "base_prompt_format": "qa",
        "ctx_size": None, "threads": None, "base_gpu_layers": None, "nudge_gpu_layers": None,
        "base_kv_type": None, "nudge_kv_type": None, "nudging_adapter": None,
    }  # fmt: skip
    server.send(signal.SIGTERM)
    assert server.end() == 0
    assert server.out == ""
    assert server.err.splitlines()[0] == f"listening on {server.socket}"
    assert server.err.splitlines()[1] == "loading base.gguf and nudging.gguf"
    assert server.err.splitlines()[-2:] == ["stopping", "stopped"]
    assert server.left_behind == []


def test_the_address_is_there_before_the_models_are(start: Start) -> None:
    server = start("--json", script="stuck")
    server.wait_for("loading\n")
    with server.client() as client:
        assert client.get("/health").status_code == 503
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "the models are being loaded: try again in a moment"
    server.send(signal.SIGTERM)  # nothing can be lost: it ends at once
    assert server.end() == 0
    told = json.loads(server.out)
    assert told["socket"] == str(server.socket)
    assert told["endpoint_file"] == str(server.folder / "endpoint.json")
    assert "key" not in told
    assert server.left_behind == []


def test_who_reads_that_it_listens_finds_the_endpoint_file(start: Start) -> None:
    server = start("--json", script="stuck")
    assert server.process.stdout is not None
    told = json.loads(server.process.stdout.readline())
    assert server.endpoint["pid"] == told["pid"] == server.process.pid
    server.send(signal.SIGINT)
    assert server.end() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_ends_it(start: Start) -> None:
    with open("/dev/full", "wb") as full:
        server = start("--json", stdout=full)
        assert server.end() == 1
    assert server.err.splitlines()[-1].startswith("error: standard output cannot be written")
    assert server.left_behind == []


def test_a_load_that_fails_is_one_line_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    server = start()
    server.kill()
    command = [sys.executable, "-m", "edge_nudge.cli.main", "serve", "-m", str(tmp_path / "a"), "--nudge", "b"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=False)
    *before, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert last.startswith("error: base model file")
    assert last.endswith("does not exist; check the path")
    assert [line.split()[0] for line in before] == ["listening", "loading"]
    assert server.left_behind == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tcp", "::1:5"), "is no address"),
        (("--tcp", "0.0.0.0:0"), "can be reached from outside this machine"),
        (("--grace", "-1"), "is no number of seconds"),
        (("--grace", "nan"), "is no number of seconds"),
        (("--grace", "never"), "is no number of seconds"),
        (("--keep-alive", "soon"), "is no number of seconds from 0 to 604800 or never"),
        (("--queue", "-1"), "-1 is not in the range"),
        (("--key-file", "/nowhere"), "the key file /nowhere cannot be read"),
        (("--socket", "/" + "x" * 149), "the socket path has 150 bytes"),
        (("-c", "0"), "-c is 0"),
    ],
)
def test_what_is_wrong_is_found_first(start: Start, arguments: tuple[str, ...], message: str) -> None:
    server = start(*arguments)
    assert server.end() == 2
    assert message in server.err
    assert "loading" not in server.err
    assert server.err.count("\n") == 1
    assert server.left_behind == []


# --- signals


@pytest.mark.parametrize("signum", [*SIGNALS, signal.SIGHUP])
def test_a_stream_may_end_within_the_grace_time(start: Start, signum: int) -> None:
    server = start("--grace", "60", script="long", delay_s=0.001).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        seen = [next(events), next(events), next(events)]
        server.send(signum)
        server.wait_for("stopping: 1 request has up to 60 s to end")
        with server.client() as late:
            refused = late.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            assert "stopping" in refused.json()["error"]["message"]
            assert late.get("/health").status_code == 503
        seen += events
    assert seen[-1] == "[DONE]"
    assert LONG_TEXT.startswith(text_of_events(seen))
    assert seen[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.end() == 0
    assert server.left_behind == []


LONG_TEXT = text_of(LONG).lstrip()


def test_a_stream_that_is_too_long_gets_a_final_event(start: Start) -> None:
    server = start("--grace", "0.3", script="long", delay_s=0.02).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        seen = [next(events), next(events), next(events)]
        server.send(signal.SIGTERM)
        seen += events
    text = text_of_events(seen)
    assert seen[-1] == "[DONE]"
    assert seen[-2]["choices"][0]["finish_reason"] == "cancelled"
    assert LONG_TEXT.startswith(text)
    assert len(text) < len(LONG_TEXT)
    assert server.end() == 0
    assert server.left_behind == []


SLOW_READER = """
import sys, time
import cli_fakes
from edge_nudge.testing import FakeBackend
evaluate = FakeBackend.evaluate
def slow(self, *arguments, **more):
    sys.stderr.write("evaluating\\n")
    time.sleep(0.5)
    return evaluate(self, *arguments, **more)
FakeBackend.evaluate = slow
cli_fakes.main()
"""


def test_a_long_prompt_is_left_between_two_batches(start: Start) -> None:
    server = start("--grace", "0.2", script="long", code=SLOW_READER).ready()
    long = {**STREAM, "messages": [{"role": "user", "content": "x" * 3000}]}  # six batches for each model
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=long) as answer:
        server.wait_for("evaluating")
        server.send(signal.SIGTERM)
        seen = list(events_of(answer))
    assert seen[-1] == "[DONE]"
    assert seen[-2]["choices"][0]["finish_reason"] == "cancelled"
    assert text_of_events(seen) == ""
    assert server.end() == 0
    assert server.err.count("evaluating") < 6
    assert server.left_behind == []


@pytest.mark.parametrize(("first", "second", "code"), [
    (signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGTERM, signal.SIGINT, 130),
])  # fmt: skip
def test_a_second_signal_ends_at_once(start: Start, first: int, second: int, code: int) -> None:
    server = start("--grace", "3600", script="long", delay_s=60).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        server.wait_for("evaluating")  # in a native call that takes a minute
        server.send(first)
        server.wait_for("stopping")
        server.send(second)
        with pytest.raises(httpx.HTTPError):
            list(answer.iter_lines())
    assert server.end() == code
    assert server.left_behind == []


def test_a_native_call_that_does_not_come_back_does_not_hold_the_end_up(start: Start) -> None:
    server = start("--grace", "0", script="long", delay_s=60).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        server.wait_for("evaluating")
        server.send(signal.SIGTERM)
        with pytest.raises(httpx.HTTPError):
            list(answer.iter_lines())
    assert server.end() == 0
    assert server.left_behind == []
    assert "Traceback" not in server.err


def test_what_waits_in_the_queue_is_told(start: Start) -> None:
    server = start("--grace", "0.3", script="long", delay_s=0.02).ready()
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        with client.stream("POST", "/v1/chat/completions", json=STREAM) as running:
            events = events_of(running)
            next(events)
            waiting = pool.submit(client.post, "/v1/chat/completions", json=CHAT)
            wait_until(lambda: client.get("/slots").json()[0]["n_queued"] == 1)
            server.send(signal.SIGTERM)
            assert list(events)
        assert waiting.result(TIMEOUT_S).status_code == 503
    assert server.end() == 0
    assert server.left_behind == []


def test_a_server_that_was_told_to_ignore_hangups_does(start: Start) -> None:
    server = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)).ready()
    server.send(signal.SIGHUP)
    with server.client() as client:
        assert client.get("/health").status_code == 200
    server.send(signal.SIGINT)
    assert server.end() == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(start: Start, closed: str) -> None:
    server = start()
    server.kill()
    fakes = Path(__file__).with_name("cli_fakes.py")
    line = f'exec "$0" "{fakes}" short 0 serve -m a.gguf --nudge b.gguf {closed}'
    with subprocess.Popen(["sh", "-c", line, sys.executable], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        wait_until(lambda: (server.folder / "endpoint.json").exists())
        with server.client() as client:
            wait_until(lambda: client.get("/health").status_code == 200)
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0
    assert b"Traceback" not in out + err
    assert server.left_behind == []


def test_a_terminal_that_goes_away_does_no_harm(start: Start) -> None:
    read, write = os.pipe()
    server = start(stderr=write)
    os.close(write)
    os.read(read, 1)
    os.close(read)  # whoever read what it says has gone
    with server.client() as client:
        wait_until(lambda: (server.folder / "endpoint.json").exists())
        wait_until(lambda: client.get("/health").status_code == 200)
    server.send(signal.SIGHUP)
    assert server.end() == 0
    assert server.left_behind == []


def test_the_terminal_it_was_started_in_may_go_away(start: Start) -> None:
    import fcntl
    import pty
    import termios

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    controller, terminal = pty.openpty()
    server = start("--grace", "60", script="long", delay_s=0.001, stdin=terminal, stdout=terminal, stderr=terminal,
                   preexec_fn=own_terminal)  # fmt: skip
    os.close(terminal)
    seen = b""
    while b"ready after" not in seen:
        seen += os.read(controller, 4096)
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        next(events)
        os.close(controller)  # the kernel sends SIGHUP, and whatever is written now fails
        *_, last, done = events
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.process.wait(TIMEOUT_S) == 0
    assert server.left_behind == []


# --- two of them


def test_a_second_server_is_refused_and_the_first_undisturbed(start: Start) -> None:
    first = start().ready()
    second = start()
    assert second.end() == 5
    assert second.err.startswith(f"error: a server is already running with pid {first.process.pid} on {first.socket}")
    assert "loading" not in second.err
    with first.client() as client:
        assert client.get("/health").status_code == 200
    third = start("--socket", str(first.folder / "other.sock")).ready()  # another address is another server
    assert f"endpoint-{third.process.pid}.json" in first.left_behind
    for server in (first, third):
        server.send(signal.SIGTERM)
        assert server.end() == 0
    assert first.left_behind == []


def test_after_kill_9_a_restart_takes_over(start: Start) -> None:
    first = start(script="long", delay_s=0.02).ready()
    with first.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        next(events)
        first.kill()
        with pytest.raises(httpx.HTTPError):
            list(events)
    assert first.left_behind == ["edge-nudge.sock", "edge-nudge.sock.lock", "endpoint.json"]
    second = start().ready()
    with second.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert second.endpoint["pid"] == second.process.pid
    second.send(signal.SIGTERM)
    assert second.end() == 0
    assert second.left_behind == []


def test_of_two_starts_at_once_over_a_dead_socket_one_wins(start: Start) -> None:
    start().ready().kill()
    servers = [start(), start(), start()]
    wait_until(lambda: sum(server.process.poll() is not None for server in servers) == 2)
    (winner,) = [server for server in servers if server.process.poll() is None]
    losers = [server for server in servers if server is not winner]
    assert [server.end() for server in losers] == [5, 5]
    assert all(f"already running with pid {winner.process.pid}" in server.err for server in losers)
    with winner.ready().client() as client:
        assert client.get("/health").status_code == 200
    winner.send(signal.SIGTERM)
    assert winner.end() == 0
    assert winner.left_behind == []


# --- TCP and keys


def test_tcp_has_a_key_that_is_told_once(start: Start) -> None:
    server = start("--tcp", "127.0.0.1:0", "--json", "-vv").ready()
    key, url = server.endpoint["key"], server.endpoint["url"]
    assert f"listening on {url}\n" in server.err
    with server.tcp_client() as client:
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
        assert client.post("/v1/chat/completions", json=CHAT, headers=server.bearer()).status_code == 200
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200  # the socket needs none
    assert key.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    server.send(signal.SIGTERM)
    assert server.end() == 0
    assert server.err.count(key) == 1
    assert f"key {key} (also in {server.folder / 'endpoint.json'})" in server.err
    assert key not in server.out
    assert json.loads(server.out)["url"] == url
    assert '"POST /v1/chat/completions HTTP/1.1" 200' in server.err  # -v shows access lines


def test_a_key_of_the_environment_is_kept_from_children(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_NUDGE_API_KEY", KEY)
    server = start("--tcp", "127.0.0.1:0").ready()
    assert server.endpoint["key"] == KEY
    with server.tcp_client() as client:
        assert client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    server.send(signal.SIGTERM)
    assert server.end() == 0
    assert KEY not in server.err


@pytest.mark.parametrize(("data", "key"), [(b"k3y", "k3y"), (b"k3y\n", "k3y"), (b"k3y\r\n", "k3y")])
def test_a_key_file(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, key: str) -> None:
    monkeypatch.setenv("EDGE_NUDGE_API_KEY", KEY)  # the option wins
    file = tmp_path / "key"
    file.write_bytes(data)
    file.chmod(0o644)
    server = start("--tcp", "[::1]:0", "--key-file", str(file)).ready()
    assert server.endpoint["key"] == key
    assert server.endpoint["url"].startswith("http://[::1]:")
    assert f"warning: others can read the key file {file} (mode 0644): chmod 600 it\n" in server.err


@pytest.mark.parametrize("data", [b"", b"\n", b"two words", b"two\nlines", b"\xff", b"x" * 600])
def test_a_file_that_is_no_key(start: Start, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(data)
    file.chmod(0o600)
    server = start("--tcp", "--key-file", str(file))
    assert server.end() == 2
    assert "error: the key" in server.err
    assert server.err.count("\n") == 1


def ask_as(server: Any, host: str | None, *, tcp: bool) -> int:
    """Send a request with exactly this Host header, or none; return the status."""
    family = socket.AF_INET if tcp else socket.AF_UNIX
    address: Any = ("127.0.0.1", int(server.endpoint["url"].rsplit(":", 1)[1])) if tcp else str(server.socket)
    lines = ["GET /v1/models HTTP/1.1", f"Authorization: Bearer {server.endpoint['key']}", "Connection: close"]
    lines += [] if host is None else [f"Host: {host}"]
    with socket.socket(family) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(address)
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(client.makefile("rb").readline().split()[1])


def test_hosts_are_exact_over_tcp_and_free_over_the_socket(start: Start) -> None:
    server = start("--tcp", "127.0.0.1:0", "--allow-host", "box.example").ready()
    for host in ("evil.example:8080", ":8080", "", "localhost.evil.example", "127.0.0.1.nip.io", "0.0.0.0"):
        assert ask_as(server, host, tcp=True) == 403, host
        assert ask_as(server, host, tcp=False) == 200, host
    assert ask_as(server, None, tcp=True) in (400, 403)
    for host in ("[::1]:8080", "LOCALHOST:8080", "127.0.0.1", "box.example:1"):
        assert ask_as(server, host, tcp=True) == 200, host


# --- systemd

ACTIVATE = """
import os, socket, sys
path, port, n_fds, *command = sys.argv[1:]
sockets = [socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", int(port)))]
if os.path.exists(path): os.unlink(path)
sockets[0].bind(path); sockets[0].listen(); os.chmod(path, 0o600)
copies = [os.dup2(s.fileno(), 100 + i, inheritable=False) for i, s in enumerate(sockets)]
for i, copy in enumerate(copies): os.dup2(copy, 3 + i, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=n_fds, LISTEN_FDNAMES=":".join("ab"[:int(n_fds)]))
os.execv(command[0], command)
"""


def test_sockets_of_systemd(start: Start) -> None:
    server = start()
    command = server.process.args
    server.kill()
    server.folder.joinpath("edge-nudge.sock").unlink(missing_ok=True)
    activated = start()
    activated.kill()
    assert isinstance(command, list)
    path = server.folder / "edge-nudge.sock"
    server.process = subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, str(path), "0", "2", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    server.err = ""
    server.ready()
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    with server.tcp_client() as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers=server.bearer()).status_code == 200
    second = start()  # by hand, beside it
    assert second.end() == 5
    server.send(signal.SIGTERM)
    assert server.end() == 0
    assert path.exists()  # it is systemd's


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate")
def test_a_server_starts_at_the_first_connection(start: Start) -> None:
    server = start()
    command = server.process.args
    server.kill()
    assert isinstance(command, list)
    path = server.folder / "activated"
    passed = [f"--setenv={name}={os.environ[name]}" for name in ("EDGE_NUDGE_RUNTIME_DIR", "PYTHONPATH")]
    umask = os.umask(0o177)
    try:
        server.process = subprocess.Popen(
            ["systemd-socket-activate", f"--listen={path}", "--fdname=api", *passed, *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(path.exists)
    finally:
        os.umask(umask)
    with server.client(path) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    about = json.loads((server.folder / f"endpoint-{server.process.pid}.json").read_text())
    assert about["socket"] == str(path)
    server.send(signal.SIGTERM)
    assert server.end() == 0
    assert path.exists()


def test_descriptors_that_make_no_sense_are_an_error(start: Start) -> None:
    server = start()
    command = server.process.args
    server.kill()
    assert isinstance(command, list)
    code = "import os, sys; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.closerange(3, 50);"
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: descriptor 3 from LISTEN_FDS is not open (Bad file descriptor)\n"
