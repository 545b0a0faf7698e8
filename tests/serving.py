"""A server in a process of its own, with a pair without weights: started, asked, and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

FILES = ("-m", "base.gguf", "--nudge", "nudging.gguf")
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
TIMEOUT_S = 60  # a machine may be busy; nothing here is about speed


class Server:
    """`edge-nudge serve` and what it says."""

    def __init__(self, command: list[str], folder: Path, **streams: Any) -> None:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        self.folder = folder
        self.process = subprocess.Popen(command, **streams)
        self.err = ""

    @property
    def socket(self) -> Path:
        return self.folder / "edge-nudge.sock"

    @property
    def endpoint(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "endpoint.json").read_text())
        return found

    @property
    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def wait_for(self, text: str) -> str:
        """Read stderr until it has the text."""
        assert self.process.stderr is not None
        while text not in self.err:
            data = os.read(self.process.stderr.fileno(), 4096)
            assert data, f"stderr ended: {self.err!r}"
            self.err += data.decode()
        return self.err

    def ready(self) -> Server:
        self.wait_for("ready after")
        return self

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        self.out, self.err = (out or b"").decode(), self.err + (err or b"").decode()
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def client(self, uds: Path | None = None, **settings: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(uds or self.socket), verify=False)
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=TIMEOUT_S, **settings)

    def tcp_client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.endpoint["url"], timeout=TIMEOUT_S, trust_env=False, **settings)

    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.endpoint['key']}"}


Start = Callable[..., Server]


def kill_all(servers: Iterable[Server]) -> None:
    """End those that still run."""
    for server in servers:
        if server.process.poll() is None:
            server.kill()


def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Make a fixture that starts servers: `start("--tcp", script="long", delay_s=0.01)`."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(folder))
    for name in ("EDGE_NUDGE_API_KEY", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    started: list[Server] = []

    def start(
        *arguments: str, script: str = "short", delay_s: float = 0.0, code: str | None = None, **streams: Any
    ) -> Server:
        """`code` is what runs instead of cli_fakes.py; it finds that module."""
        fakes = [str(Path(__file__).with_name("cli_fakes.py"))] if code is None else ["-c", code]
        command = [sys.executable, *fakes, script, str(delay_s), "serve", *FILES, *arguments]
        server = Server(command, folder, **streams)
        started.append(server)
        return server

    yield start
    kill_all(started)
    for server in started:
        for stream in (server.process.stdout, server.process.stderr):
            if stream is not None:
                stream.close()


def events_of(answer: httpx.Response) -> Iterator[Any]:
    """Yield the events of a stream: objects, and "[DONE]"."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


def text_of_events(events: list[Any]) -> str:
    deltas = [choice.get("delta", {}) for event in events if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
