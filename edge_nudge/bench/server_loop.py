"""A model behind an OpenAI-compatible server, as the paper's script drives it: POST /v1/completions.

Owns the HTTP of the benchmark and the errors a user can act on; core/text_loop.py is the loop. Never starts a server
and sends nothing but the benchmark's own texts.

1. Only http and https, no redirects, no proxies: what is measured is the server that was named.
2. One connection is kept; where the server has closed it meanwhile, it is opened once more.
3. A server that cannot be reached, or gives no probabilities, is found before a model is loaded (`check`).
4. What a server keeps of earlier texts is its own business: `forget` does nothing.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from edge_nudge.core.text_loop import Completion
from edge_nudge.errors import EngineError, InputError

TIMEOUT_S = 120.0
_MOST_BYTES = 8 << 20
_EXCERPT = 200  # characters of a body worth telling


def check_url(url: str, field: str) -> str:
    """Return the URL without what `/v1/completions` follows. Raises InputError that begins with the field."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{field}: not a URL ({error})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{field}: only http://HOST[:PORT] and https://HOST[:PORT] can be asked")
    if parts.username or parts.query or parts.fragment or any(c.isspace() or not c.isascii() for c in url):
        raise InputError(f"{field}: only scheme, host, port and path may be in the URL")
    return url.rstrip("/").removesuffix("/v1")


class ServerCompleter:
    """A Completer on a running server; `url` as check_url returns it."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        parts = urlsplit(url)
        self._path = parts.path
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        self._timeout_s = timeout_s
        self._model: str | None = None

    def __repr__(self) -> str:
        return f"<ServerCompleter {self._url}>"

    def check(self, *, with_prob: bool) -> str | None:
        """Ask what model is served and for one token; return the model's name. Raises EngineError."""
        models = self._asked("GET", "/v1/models", None).get("data")
        first = models[0] if isinstance(models, list) and models else None
        name = first.get("id") if isinstance(first, Mapping) else None
        self._model = name if isinstance(name, str) else None
        self.complete("The capital of France is", 1, with_prob=with_prob)
        return self._model

    def complete(self, prompt: str, max_tokens: int, *, with_prob: bool) -> Completion:
        """Return a greedy completion; see core/text_loop.py."""
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        if self._model is not None:
            body["model"] = self._model
        if with_prob:
            body["logprobs"] = 1
        answer = self._asked("POST", "/v1/completions", json.dumps(body))
        try:
            choice = answer["choices"][0]
            text, is_end = choice["text"], choice["finish_reason"] == "stop"
        except (KeyError, IndexError, TypeError):
            raise self._unusable("is no completion", json.dumps(answer)) from None
        if not isinstance(text, str):
            raise self._unusable("is no completion", json.dumps(answer))
        prob = _top_prob(choice.get("logprobs")) if with_prob else None
        if with_prob and text and prob is None:
            raise EngineError(
                f"{self._url}: the answer has no logprobs, and without them nobody knows how sure the model is: "
                f"start the server so that it gives them (llama_cpp.server: --logits_all true)"
            )
        return Completion(text, is_end, prob)

    def forget(self) -> None:
        """Do nothing: a server's cache cannot be dropped from outside."""

    def close(self) -> None:
        """Close the connection; closing twice is allowed."""
        self._connection.close()

    def _asked(self, method: str, path: str, body: str | None) -> Mapping[str, Any]:
        status, data = self._sent(method, self._path + path, body)
        text = data.decode("utf-8", "replace")
        if status != 200:
            raise EngineError(f"{self._url}{path}: HTTP {status}: {_excerpt(text)}")
        try:
            answer = json.loads(text)
        except ValueError:
            raise self._unusable("is no JSON", text) from None
        if not isinstance(answer, dict):
            raise self._unusable("is no JSON object", text)
        return answer

    def _sent(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        """Send a request and return status and body, on the kept connection or on a new one."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        is_kept = self._connection.sock is not None
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            data = response.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise EngineError(f"{self._url}: the answer is longer than {_MOST_BYTES >> 20} MiB")
            return response.status, data
        except TimeoutError:
            self._connection.close()
            raise EngineError(f"{self._url}: no answer within {self._timeout_s:g} seconds") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: a host name that is none
            self._connection.close()
            if is_kept and isinstance(error, ConnectionError):
                return self._sent(method, path, body)
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise EngineError(f"{self._url}: cannot be asked ({why}): is the server running there?") from error
        except BaseException:
            self._connection.close()  # half an answer is still on its way
            raise

    def _unusable(self, what: str, text: str) -> EngineError:
        return EngineError(f"{self._url}: the answer {what}: {_excerpt(text)}")


def _excerpt(text: str) -> str:
    shown = " ".join(text.split())
    return (shown[:_EXCERPT] + " ..." if len(shown) > _EXCERPT else shown) or "no body"


def _top_prob(logs: Any) -> float | None:
    """Return the probability of the first token, which greedily is the top one, in either shape servers use."""
    try:
        found = logs["token_logprobs"][0] if "token_logprobs" in logs else logs["content"][0]["logprob"]
        prob = math.exp(found)
    except (KeyError, IndexError, TypeError, OverflowError):
        return None
    return prob if math.isfinite(prob) else None
