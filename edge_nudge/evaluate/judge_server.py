"""A chat server with OpenAI's API, asked for one reply at a time.

Owns the address, the key, and what is tried again. Never reads a reply for its meaning.

1. Nothing is sent but to the URL that was given: no redirect is followed. Proxies of the environment are used, but not
   for an address on this machine.
2. The key stands in one header and nowhere else: in no message, no representation, no file; a reply that holds it is
   changed. It does not leave this machine or its private network unencrypted.
3. Too many requests, faults of the server and broken connections are tried again, later each time or when the server
   says. Everything else is an error at once: the next reply would be the same.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

import httpx

from edge_nudge.core.visible import one_line
from edge_nudge.document import to_json
from edge_nudge.errors import AccessError, EdgeNudgeError, InputError, ServerError

KEY_VARIABLE = "EDGE_NUDGE_JUDGE_KEY"
N_TRIES = 6
MAX_TOKENS = 1024

_ANSWER_S = 600.0  # for a whole reply
_TIMEOUT = httpx.Timeout(180.0, connect=15.0)
_LONGEST_WAIT_S = 120.0
_MOST_BYTES = 4 << 20
_MOST_QUOTED = 300


def key_from_environment() -> str | None:
    """Return the judge's key, None where none is set."""
    return os.environ.get(KEY_VARIABLE, "").strip() or None


class JudgeServer:
    """One server; `wait` sleeps for some seconds. Raises InputError for an address or a key that cannot be used."""

    def __init__(self, url: str, key: str | None, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._url, self.address, is_local = _parts(url, has_key=key is not None)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise InputError(f"the key in {KEY_VARIABLE} holds characters that no key has: set it anew")
        self._key = key
        self._wait = wait
        self._http = httpx.Client(
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=_TIMEOUT,
            trust_env=not is_local,
            verify=self._url.startswith("https:"),
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"JudgeServer({self.address!r})"

    def __enter__(self) -> JudgeServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ask(self, model: str, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the reply of a model at temperature 0, "" where it says nothing.

        Raises AccessError, InputError and ServerError.
        """
        body = to_json({"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}).encode()
        fault, asked_s = "", 0.0
        for n_tried in range(N_TRIES):
            if n_tried:
                self._wait(min(max(2.0 ** (n_tried - 1), asked_s), _LONGEST_WAIT_S))
            try:
                status, asked_s, content = self._post(body)
            except httpx.RequestError as error:
                fault, asked_s = one_line(str(error)).rstrip(".") or type(error).__name__, 0.0
                continue
            if status == 200:
                reply = _reply(content)
                if reply is not None:
                    return self._without_key(reply)
                fault = f"no reply in {self._quoted(content)}"
            elif status in (408, 429) or status >= 500:
                fault = f"status {status}: {self._quoted(content)}"
            else:
                raise self._refusal(status, content)
        raise ServerError(
            f"the judge at {self.address} gave no reply in {N_TRIES} tries ({fault}): try again later, the verdicts so "
            f"far are kept"
        )

    def _post(self, body: bytes) -> tuple[int, float, bytes]:
        """Return status, seconds that the server asks to wait, and body. Raises httpx.RequestError and ServerError."""
        until = time.monotonic() + _ANSWER_S
        content = bytearray()
        with self._http.stream("POST", self._url, content=body) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise ServerError(
                        f"the judge at {self.address} sends more than {_MOST_BYTES >> 20} MiB for a reply"
                    )
                if time.monotonic() > until:
                    raise httpx.ReadTimeout(f"the reply was not complete after {_ANSWER_S:.0f} s")
            after = response.headers.get("retry-after", "")
            after_s = float(after[:9]) if after.isascii() and after.isdigit() else 0.0
            return response.status_code, after_s, bytes(content)

    def _refusal(self, status: int, content: bytes) -> EdgeNudgeError:
        if status in (401, 403):  # what such a server says may hold a part of the key
            fault = "does not take the key in" if self._key else "wants a key, in"
            return AccessError(f"the judge at {self.address} {fault} {KEY_VARIABLE} (status {status}): set it")
        if 300 <= status < 400:
            return InputError(
                f"the judge at {self.address} sends requests elsewhere (status {status}): give that address"
            )
        return InputError(
            f"the judge at {self.address} refuses the request (status {status}: {self._quoted(content)}): check the "
            f"URL and the model's name"
        )

    def _quoted(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        try:
            text = str(json.loads(text)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            text = text.strip()
        return repr(self._without_key(text)[:_MOST_QUOTED])

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _reply(content: bytes) -> str | None:
    """Return the text of a chat completion, None where this is none."""
    try:
        message = json.loads(content)["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if text is None:  # a refusal, or all tokens spent on thoughts
        return ""
    return text if isinstance(text, str) else None


def _parts(url: str, *, has_key: bool) -> tuple[str, str, bool]:
    """Return where requests go, what to show of it, and whether it is on this machine. Raises InputError."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        httpx.URL(url.strip())
    except (ValueError, httpx.InvalidURL):
        raise InputError("the judge's URL cannot be read: it must be like https://host/v1") from None
    if parts.username is not None or parts.password is not None:
        raise InputError(f"the judge's URL holds a name or a password: leave it out, and set {KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("the judge's URL must begin with http:// or https:// and name a host, as https://host/v1 does")
    address = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}" + (f":{port}" if port else "")
    is_local, is_near = _nearness(host)
    if has_key and parts.scheme == "http" and not is_near:
        raise InputError(
            f"{address} is not encrypted and the key in {KEY_VARIABLE} would go over the network: give an https:// "
            f"address, or unset the key"
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else path + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), address, is_local


def _nearness(host: str) -> tuple[bool, bool]:
    """Return whether a host is this machine, and whether it is that or in a private network."""
    if host == "localhost":
        return True, True
    try:
        place = ipaddress.ip_address(host)
    except ValueError:
        return False, False
    return place.is_loopback, place.is_loopback or place.is_private or place.is_link_local
