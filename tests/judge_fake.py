"""A chat server on loopback that judges by a rule of the test, with faults in front on demand."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str, str, str], str]


@dataclass
class Fault:
    """What comes instead of a reply, once; `status` 0 breaks the connection off."""

    status: int = 503
    body: bytes = b"busy"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class JudgeFake:
    url: str
    rule: Rule
    faults: list[Fault] = field(default_factory=list)  # for the next requests, in order
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)  # path, headers, body

    @property
    def cases(self) -> list[tuple[str, str, str]]:
        return [case_of(body) for _, _, body in self.requests]


def case_of(body: dict[str, Any]) -> tuple[str, str, str]:
    """Return question, answer A and answer B of a request."""
    text = body["messages"][1]["content"]
    found = re.fullmatch(
        r"<<question (\w+)>>\n(.*)\n<<end \1>>\n\n"
        r"<<answer A \1>>\n(.*)\n<<end \1>>\n\n<<answer B \1>>\n(.*)\n<<end \1>>",
        text,
        re.DOTALL,
    )
    assert found, text
    return found[2], found[3], found[4]


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    fake: JudgeFake


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake = self.server.fake
        fake.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        if fake.faults:
            fault = fake.faults.pop(0)
            if not fault.status:
                self.close_connection = True
                return
            self.reply(fault.status, fault.body, fault.headers)
        else:
            self.reply(200, completion(fake.rule(*case_of(body))), {})

    def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def judge_fake(rule: Rule) -> Iterator[JudgeFake]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.fake = JudgeFake(f"http://127.0.0.1:{server.server_address[1]}/v1", rule)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.fake
        finally:
            server.shutdown()
            thread.join()
