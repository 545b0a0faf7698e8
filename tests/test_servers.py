"""`edge-nudge ps` and `stop` against servers in processes of their own, and against what is no server."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Ended, Invoke, invoker
from serving import CHAT, Start, events_of, starter, wait_until

from edge_nudge import endpoint as endpoints
from edge_nudge.cli import servers
from edge_nudge.endpoint import Endpoint, write_endpoint

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.name != "posix", reason="signals and sockets of POSIX"),
]
STREAM = {**CHAT, "stream": True}

start = pytest.fixture(starter)
invoke = pytest.fixture(invoker)


def found_by(invoke: Invoke) -> list[dict[str, Any]]:
    ended = invoke("ps", "--json")
    assert ended.code == 0
    found: list[dict[str, Any]] = json.loads(ended.out)["servers"]
    return found


# --- ps


def test_no_server_is_an_answer(start: Start, invoke: Invoke) -> None:
    assert invoke("ps") == Ended(0, "", "no server runs: start one with edge-nudge serve\n")
    assert invoke("stop") == Ended(0, "", "no server runs\n")
    assert json.loads(invoke("ps", "--json").out) == {"servers": []}
    assert json.loads(invoke("stop", "--json").out) == {"stopped": False, "pid": None, "address": None}
    assert invoke("stop", "--socket", "/nowhere/s").err == "no server runs on /nowhere/s\n"


def test_ps_shows_what_a_server_does(start: Start, invoke: Invoke) -> None:
    server = start("--tcp", "127.0.0.1:0", script="long", delay_s=0.05).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        next(events), next(events), next(events)
        (found,) = found_by(invoke)
        job = found.pop("job")
        assert job["n_tokens"] >= 1
        assert job["running_s"] > 0
        assert job["id"].startswith("chatcmpl-")
        assert found == {
            "model": "base+nudging", "pid": server.process.pid, "socket": str(server.socket),
            "url": server.endpoint["url"], "state": "ready", "queued": 0, "started": server.endpoint["started"],
        }  # fmt: skip
        shown = invoke("ps")
    assert shown.err == ""
    head, row = shown.out.splitlines()
    assert head.split() == ["MODEL", "PID", "ADDRESS", "STATE", "QUEUE", "JOB", "TOKENS", "SINCE"]
    assert row.split()[:6] == ["base+nudging", str(server.process.pid), str(server.socket), server.endpoint["url"],
                               "ready", "0"]  # fmt: skip
    assert server.endpoint["key"] not in shown.out


def test_ps_on_a_terminal(start: Start, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    server = start().ready()
    shown = invoke("ps", tty="out")
    assert max(len(line) for line in shown.out.splitlines()) <= 90
    assert str(server.process.pid) in shown.out
    assert "…" not in shown.out


def test_ps_while_models_load(start: Start, invoke: Invoke) -> None:
    server = start(script="stuck")
    server.wait_for("loading\n")
    assert [one["state"] for one in found_by(invoke)] == ["loading"]


def test_ps_tells_a_crash_from_a_server(start: Start, invoke: Invoke) -> None:
    dead = start().ready()
    dead.kill()
    ended = invoke("ps")
    assert "left behind by a crash" in ended.out
    assert ended.err == "no server runs: start one with edge-nudge serve\n"
    assert [one["state"] for one in found_by(invoke)] == ["dead"]
    assert invoke("stop").err == "no server runs\n"
    alive = start().ready()
    assert [(one["pid"], one["state"]) for one in found_by(invoke)] == [(alive.process.pid, "ready")]


# --- stop


def test_stop_waits_for_the_end(start: Start, invoke: Invoke) -> None:
    server = start().ready()
    ended = invoke("stop")
    assert ended == Ended(0, f"stopped base+nudging, pid {server.process.pid}, on {server.socket}\n", "")
    assert server.end() == 0
    assert server.left_behind == []


@pytest.mark.parametrize("is_now", [False, True])
def test_stop_lets_an_answer_end_unless_told_otherwise(start: Start, invoke: Invoke, is_now: bool) -> None:
    server = start("--grace", "60", script="long", delay_s=0.01).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        next(events), next(events)
        result: list[Ended] = []
        stopping = threading.Thread(target=lambda: result.append(invoke("stop", "--json", *(["--now"] * is_now))))
        stopping.start()
        *_, last, done = events
        stopping.join(60)
    assert done == "[DONE]"
    assert (last["choices"][0]["finish_reason"] == "cancelled") is is_now
    assert result[0].code == 0
    assert json.loads(result[0].out) == {
        "stopped": True, "pid": server.process.pid, "address": str(server.socket),
    }  # fmt: skip
    assert server.end() == 0


def test_stop_does_not_wait_for_ever(start: Start, invoke: Invoke) -> None:
    server = start("--grace", "3600", script="long", delay_s=0.05).ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        next(events)
        ended = invoke("stop", "--wait", "0.2")
        assert ended.code == 1
        assert ended.error.startswith(f"error: the server with pid {server.process.pid} on {server.socket} is still")
        assert [one["state"] for one in found_by(invoke)] == ["stopping"]
        assert invoke("stop", "--now").code == 0  # it can still be asked, and asked for more
        assert list(events)[-1] == "[DONE]"
    assert server.end() == 0


def test_stop_by_socket(start: Start, invoke: Invoke, tmp_path: Path) -> None:
    one = start().ready()
    two = start("--socket", str(tmp_path / "two")).ready()
    (two.folder / f"endpoint-{two.process.pid}.json").unlink()  # known by nothing but its socket
    assert invoke("stop", "--socket", str(tmp_path / "two")).code == 0
    assert two.end() == 0
    with one.client() as client:
        assert client.get("/health").status_code == 200


# --- without Unix sockets, and what is no server of ours


class Foreign(BaseHTTPRequestHandler):
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["authorization"]))
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A web server of something else on a port; its URL and what it was asked."""
    asked: list[tuple[str, str | None]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Foreign,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_key_goes_to_the_process_that_wrote_it_only(
    start: Start, invoke: Invoke, foreign: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(endpoints, "has_unix_sockets", lambda: False)
    url, asked = foreign
    fields: dict[str, Any] = {"url": url, "key": "k", "model": "m", "socket": None}
    write_endpoint(Endpoint(pid=os.getpid(), started=1.0, **fields))  # of a process before this one
    assert [one["state"] for one in found_by(invoke)] == ["dead"]
    assert asked == []
    write_endpoint(Endpoint(pid=os.getpid(), started=time.time(), **fields))
    assert [one["state"] for one in found_by(invoke)] == ["unknown"]
    assert asked == [("/slots", "Bearer k")]
    ended = invoke("stop")
    assert (ended.code, asked[-1]) == (1, ("/shutdown", "Bearer k"))
    assert "answers 404 when it is asked to stop: is it an edge-nudge server?" in ended.error


def test_who_listens_and_says_nothing(
    start: Start, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_ANSWER_S", 0.2)
    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        write_endpoint(Endpoint(pid=os.getpid(), started=1.0, socket=path, model="m"))
        assert [one["state"] for one in found_by(invoke)] == ["no answer"]
        ended = invoke("stop")
        assert ended.code == 1
        assert "does not answer: timed out" in ended.error


def test_stop_of_a_server_over_tcp(start: Start, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start("--tcp", "127.0.0.1:0").ready()
    about = Endpoint(**{**server.endpoint, "socket": None})
    monkeypatch.setattr(servers, "_find", lambda _: about)
    assert invoke("stop").code == 0
    assert server.end() == 0


def test_a_crash_in_between_is_no_error(start: Start, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start().ready()
    about = Endpoint(**server.endpoint)
    server.send(signal.SIGKILL)
    server.end()
    wait_until(lambda: not endpoints.is_running(about))
    monkeypatch.setattr(servers, "_find", lambda _: about)
    assert invoke("stop") == Ended(0, "", "no server runs\n")
