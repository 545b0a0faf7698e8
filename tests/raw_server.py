"""A server on a Unix socket that answers with given bytes, and what a stream of the local API looks like."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOTALS: dict[str, Any] = {
    "rule": "top_prob",
    "gamma": 0.4,
    "lookahead": 1,
    "ratio_tokens": 1 / 3,
    "ratio_chars": 3 / 7,
    "handoffs": 2,
    "evaluated": {
        "base": {"prompt": 5, "own": 1, "catch_up": 2, "reevaluated": 0, "verified": 0, "wasted": 0},
        "nudging": {"prompt": 9, "own": 2, "catch_up": 0, "reevaluated": 1, "verified": 0, "wasted": 0},
    },
    "calls": {"base": 3, "nudging": 4},
    "reused": {"base": 0, "nudging": 7},
    "finish_reason": "stop",
    "finish_detail": "stop_string",
    "stop_string": "###",
    "seed": 7,
    "first_piece_s": 0.25,
    "total_s": 1.5,
    "models": {
        "base": {"n_prompt": 5, "n_written": 2, "n_chars": 4, "n_asked": 4, "native_s": 0.5, "prompt_s": 0.25},
        "nudging": {"n_prompt": 9, "n_written": 1, "n_chars": 3, "n_asked": 2, "native_s": 0.125, "prompt_s": 0.0625},
    },
}
TOKENS = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def piece(text: str, author: str, reason: str, top_prob: float | None = None, n_tokens: int = 1) -> dict[str, Any]:
    nudge = {"author": author, "top_prob": top_prob, "reason": reason, "n_tokens": n_tokens, "instead": None}
    return chunk({"delta": {"content": text}, "finish_reason": None}, nudge=nudge)


def chunk(choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo",
        "choices": [] if choice is None else [{"index": 0, **choice}], **more,
    }  # fmt: skip


ROLE = chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
PIECES = [piece("The", "nudging", "opening"), piece(" sky", "base", "confident", 0.75, 2)]
END = chunk({"delta": {}, "finish_reason": "stop"}, nudge=TOTALS)
USAGE = chunk(None, usage=TOKENS)
ANSWER = [ROLE, *PIECES, END, USAGE]


def stream(*chunks: dict[str, Any], done: bool = True) -> bytes:
    """Return server-sent events, with a ping between each two."""
    lines = [f"data: {json.dumps(one)}\n\n" for one in chunks]
    return ": ping\n\n".join([*lines, *(["data: [DONE]\n\n"] if done else [])]).encode()


@dataclass
class RawServer:
    """Gives every connection to `handle`; `requests` are the ones that came, head and body."""

    path: str
    handle: Callable[[socket.socket], None]
    requests: list[tuple[str, bytes]] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(BrokenPipeError, ConnectionResetError):
                self.requests.append(read_request(connection))
                self.handle(connection)


def read_request(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += read(connection)
    head, body = data.split(b"\r\n\r\n", 1)
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += read(connection)
    return head.decode(), body


def read(connection: socket.socket) -> bytes:
    if not (data := connection.recv(4096)):
        raise ConnectionResetError("the client left before it had asked")
    return data


@contextmanager
def raw_server(handle: Callable[[socket.socket], None]) -> Iterator[RawServer]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own paths can be too long for a socket
        server = RawServer(str(Path(folder, "s")), handle)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(server.path)
            listener.listen()
            thread = threading.Thread(target=server.serve, args=(listener,))
            thread.start()
            try:
                yield server
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def send(connection: socket.socket, data: bytes) -> None:
    """Send one chunk of HTTP."""
    connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
