"""`edge-nudge serve` with the demo pair: curl, signals while it reads and while it writes, a crash and a restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serving import CHAT, TIMEOUT_S, Server, events_of, kill_all, starter, text_of_events, wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.native,
    pytest.mark.demo,
    pytest.mark.skipif(os.name != "posix", reason="signals and sockets of POSIX"),
]
STREAM = {**CHAT, "stream": True, "max_tokens": 2000, "loop_guard": False}
LONG = " ".join(f"Item {i} is a thing." for i in range(220))  # about 1,500 tokens

fake_start = pytest.fixture(starter)
StartDemo = Callable[..., Server]


@pytest.fixture
def start(fake_start: Callable[..., Server], demo_paths: tuple[Path, Path], tmp_path: Path) -> Iterator[StartDemo]:
    servers = []
    base, nudging = map(str, demo_paths)

    def start_demo(*arguments: str) -> Server:
        command = [sys.executable, "-m", "edge_nudge.cli.main", "serve", "-m", base, "--nudge", nudging, *arguments]
        server = Server(command, tmp_path / "run")
        servers.append(server)
        return server

    yield start_demo
    kill_all(servers)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_over_the_socket(start: StartDemo) -> None:
    server = start().ready()
    command = ["curl", "-sS", "--unix-socket", str(server.socket), "http://localhost/v1/chat/completions"]
    body = {
        **CHAT,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 20,
        "temperature": 0,
    }
    headers = ["-H", "Content-Type: application/json"]
    done = subprocess.run(
        [*command, *headers, "-d", json.dumps(body)],
        capture_output=True, encoding="utf-8", timeout=TIMEOUT_S * 5, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"]
    assert 0 < answer["usage"]["completion_tokens"] <= 20
    server.send(signal.SIGTERM)
    assert server.end() == 0
    assert server.left_behind == []


def test_sigterm_while_a_prompt_is_read(start: StartDemo) -> None:
    server = start("--grace", "0.2").ready()
    body = {**STREAM, "messages": [{"role": "user", "content": LONG}]}
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        with server.client() as other:
            wait_until(lambda: other.get("/slots").json()[0]["job"])
        server.send(signal.SIGTERM)
        try:
            seen = list(events_of(answer))
        except httpx.HTTPError:  # one batch took longer than a server that ends can wait
            seen = []
    assert server.end() == 0
    assert server.left_behind == []
    assert "Traceback" not in server.err
    assert text_of_events(seen) == ""


def test_sigterm_while_an_answer_is_written_and_a_restart_after_a_crash(start: StartDemo) -> None:
    server = start("--grace", "0.2").ready()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        seen = [next(events), next(events)]
        server.send(signal.SIGTERM)
        seen += events
    assert seen[-1] == "[DONE]"
    assert seen[-2]["choices"][0]["finish_reason"] in ("cancelled", "stop")
    assert server.end() == 0
    crashing = start().ready()
    with crashing.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer)
        next(events)
        crashing.kill()
    again = start().ready()
    with again.client() as client:
        assert client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5}).status_code == 200
    again.send(signal.SIGINT)
    assert again.end() == 0
    assert again.left_behind == []
