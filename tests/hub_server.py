"""A small hub for tests: what huggingface_hub asks of one, over real sockets, with faults on demand.

It answers `GET /api/models/REPO[/revision/REV]`, `GET /api/models/REPO/tree/REV`, and `HEAD` and `GET` of
`/REPO/resolve/REV/FILE`, which lead to a second server on another port, as the real one leads to its content network.
Every request is noted.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test_token"


@dataclass
class Repo:
    """One repository. `gate` asks for a token; `announced` are the bytes that sizes and hashes are said of."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gate: bool = False
    private: bool = False
    revisions: set[str] = field(default_factory=set)
    announced: dict[str, bytes] = field(default_factory=dict)

    def said(self, name: str) -> bytes:
        return self.announced.get(name, self.files[name])


@dataclass
class Faults:
    """What goes wrong. `drop_after` bytes of a body the connection breaks, `n_drops` times."""

    drop_after: int | None = None
    n_drops: int = 0
    reset: bool = False  # with a reset instead of an orderly end
    ignore_range: bool = False
    status: int | None = None  # for every request to the API
    slow_s: float = 0.0


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    is_content: bool
    token: str | None
    range: str | None


class HubServer:
    """The two servers, their repositories, and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self.started = threading.Event()  # content was asked for
        self._hub = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, is_content=False))
        self._content = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, is_content=True))
        for server in (self._hub, self._content):
            server.daemon_threads = False
            server.block_on_close = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def content_url(self) -> str:
        return f"http://localhost:{self._content.server_port}"  # another host, as the real one

    def content_requests(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.is_content and asked.method == "GET"]

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in (self._hub, self._content)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for server in (self._hub, self._content):
                server.shutdown()
            with self.lock:
                for connection in self.connections:  # kept alive by clients: their threads wait for more
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
            for server in (self._hub, self._content):
                server.server_close()
            for thread in threads:
                thread.join()


def _handler(hub: HubServer, *, is_content: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with hub.lock:
                hub.connections.append(self.connection)

        def log_message(self, *_: Any) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("Authorization")
            with hub.lock:
                hub.asked.append(Asked(self.command, path, is_content, token, self.headers.get("Range")))
            if is_content:
                self._content(path)
            elif hub.faults.status is not None:
                self._refuse(hub.faults.status, "", "the server is out of order")
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"), token)
            else:
                self._resolve(path.lstrip("/"), token)

        def _api(self, rest: str, token: str | None) -> None:
            parts = rest.split("/")
            name, what = "/".join(parts[:2]), parts[2:]
            repo = hub.repos.get(name)
            if repo is None or (repo.private and token != f"Bearer {TOKEN}"):
                return self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
            revision = what[1] if len(what) > 1 else "main"
            if not self._knows(repo, revision):
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if what[:1] == ["tree"]:
                return self._json([self._entry(repo, file) for file in sorted(repo.files)])
            return self._json({"id": name, "sha": repo.commit, "gated": "manual" if repo.gate else False})

        def _entry(self, repo: Repo, file: str) -> dict[str, Any]:
            data = repo.said(file)
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return {"type": "file", "oid": "f" * 40, "size": len(data), "path": file, "lfs": lfs}

        def _resolve(self, rest: str, token: str | None) -> None:
            place, _, rest = rest.partition("/resolve/")
            revision, _, file = rest.partition("/")
            repo = hub.repos.get(place)
            if repo is None:
                return self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
            if repo.gate and token != f"Bearer {TOKEN}":
                return self._refuse(401 if token is None else 403, "GatedRepo", "Access to it is restricted")
            if not self._knows(repo, revision):
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if file not in repo.files:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            data = repo.said(file)
            self.send_response(302)
            self.send_header("Location", f"{hub.content_url}/{place}/{file}")
            self.send_header("X-Repo-Commit", repo.commit)
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _content(self, path: str) -> None:
            user, name, file = path.lstrip("/").split("/", 2)
            data = hub.repos[f"{user}/{name}"].files[file]
            start, status = 0, 200
            asked = self.headers.get("Range")
            if asked and not hub.faults.ignore_range:
                start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            body = data[start:]
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            hub.started.set()
            self._send(body)

        def _send(self, body: bytes) -> None:
            with hub.lock:
                drops = hub.faults.drop_after is not None and hub.faults.n_drops > 0
                hub.faults.n_drops -= drops
            n_sent = min(hub.faults.drop_after or 0, len(body)) if drops else len(body)
            try:
                for at in range(0, n_sent, 1 << 16):
                    self.wfile.write(body[at : min(at + (1 << 16), n_sent)])
                    if hub.faults.slow_s:
                        threading.Event().wait(hub.faults.slow_s)
            except OSError:  # the other side has had enough
                self.close_connection = True
            if drops:
                self.close_connection = True
                if hub.faults.reset:
                    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        def _knows(self, repo: Repo, revision: str) -> bool:
            return revision in {"main", repo.commit, *repo.revisions}

        def _json(self, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str, message: str) -> None:
            body = json.dumps({"error": message}).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
