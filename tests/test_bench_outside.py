"""Loops beside the pair: the loop on texts by hand-made answers, a server in a thread, the high-level class."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_fakes import LONG, SHORT, Invoke, fake_pair, invoker, loader, no_load, text_of

from edge_nudge.bench import outside
from edge_nudge.bench.prompts import PROMPTS
from edge_nudge.bench.server_loop import ServerCompleter, check_url
from edge_nudge.bench.trials import ALWAYS, Plan, request_of, run_trials
from edge_nudge.core.events import FinishDetail, Finished, Piece, Role
from edge_nudge.core.request import build_request
from edge_nudge.core.sampling import Reader
from edge_nudge.core.text_loop import Completion, TextAnswer, TextLoop
from edge_nudge.errors import EngineError, InputError
from edge_nudge.runtime import Pair
from edge_nudge.testing import FakeBackend

invoke = pytest.fixture(invoker)
B, N = Role.BASE, Role.NUDGING


# --- the loop, by hand-made answers


class Hand:
    """Answers given by hand, for the end of the text that asks; the first key that fits wins."""

    def __init__(self, answers: Mapping[str, Completion]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int, bool]] = []
        self.n_forgotten = 0

    def complete(self, prompt: str, max_tokens: int, *, with_prob: bool) -> Completion:
        self.asked.append((prompt, max_tokens, with_prob))
        return next(answer for end, answer in self.answers.items() if prompt.endswith(end))

    def forget(self) -> None:
        self.n_forgotten += 1


def sure(text: str) -> Completion:
    return Completion(text, False, 0.9)


def unsure(text: str) -> Completion:
    return Completion(text, False, 0.2)


def draft(text: str, *, is_end: bool = False) -> Completion:
    return Completion(text, is_end)


def written(base: Hand, nudging: Hand, *, max_tokens: int = 100, gamma: float = 0.4) -> TextAnswer:
    clock = iter(range(1000))
    loop = TextLoop({B: base, N: nudging}, count=lambda role, text: len(text.split()), clock=lambda: next(clock))
    return loop.answer({B: "Q: ", N: "<u>"}, gamma=gamma, max_tokens=max_tokens)


def test_the_base_model_takes_over_where_it_is_sure_and_ends_nothing() -> None:
    base = Hand({"Q: The": unsure(" no"), "The sky": sure(" is"), " is": sure(" blue"), " blue": unsure("?")})
    nudging = Hand({"<u>": draft("The sky has a"), " blue": draft(" today.", is_end=True)})
    answer = written(base, nudging)
    assert answer.text == "The sky is blue today."
    assert (answer.detail, answer.usage.n_handoffs) == (FinishDetail.END_OF_GENERATION, 2)
    assert (answer.usage.base.n_written, answer.usage.nudging.n_written) == (2, 3)
    assert (answer.usage.base.n_calls, answer.usage.nudging.n_calls) == (4, 2)
    assert answer.usage.base.n_chars + answer.usage.nudging.n_chars == len(answer.text)
    assert nudging.asked == [("<u>", 16, False), ("<u>The sky is blue", 16, False)]
    assert base.asked[0] == ("Q: The", 1, True)
    assert base.n_forgotten == nudging.n_forgotten == 1
    # a tick at each reading of the clock: two for each completion, one at the first piece, one at start and end
    assert (answer.usage.base.native_s, answer.usage.nudging.native_s) == (4, 2)
    assert (answer.usage.first_piece_s, answer.usage.total_s) == (7, 14)


def test_the_base_model_takes_over_where_it_agrees() -> None:
    base = Hand({"The": unsure(" s"), " s": unsure("ky")})
    nudging = Hand({"<u>": draft("The sky has"), " s": draft("ky", is_end=True)})
    assert written(base, nudging).text == "The sky"
    assert [text for text, _, _ in base.asked] == ["Q: The", "Q: The s"]


def test_without_a_sure_base_model_all_words_but_the_last_are_taken() -> None:
    base = Hand({"": unsure(" no")})
    nudging = Hand({"<u>": draft("One two  thr"), "two": draft(" three", is_end=True)})
    answer = written(base, nudging)
    assert answer.text == "One two three"
    assert [text for text, _, _ in base.asked] == ["Q: One", "Q: One two"]
    assert answer.usage.n_handoffs == 0


def test_a_single_word_is_taken_whole_and_the_base_models_end_is_no_end() -> None:
    base = Hand({"": Completion("", True, None)})
    nudging = Hand({"<u>": draft("Well"), "Well": draft(", yes it"), "yes": draft(" is", is_end=True)})
    answer = written(base, nudging)
    assert (answer.text, answer.detail) == ("Well, yes is", FinishDetail.END_OF_GENERATION)


@pytest.mark.parametrize(("max_tokens", "n_nudging", "text"), [(1, 1, "a b"), (3, 2, "a b c"), (4, 2, "a b c d")])
def test_the_limit_counts_tokens_as_far_as_it_goes(max_tokens: int, n_nudging: int, text: str) -> None:
    base = Hand({"a": unsure("no"), "b": sure(" c"), "c": sure(" d"), "d": sure(" e")})
    answer = written(base, Hand({"": draft("a b c")}), max_tokens=max_tokens)
    assert (answer.text, answer.detail) == (text, FinishDetail.MAX_TOKENS)
    assert (answer.usage.nudging.n_written, answer.usage.n_completion) == (n_nudging, max_tokens)


def test_a_draft_without_text_ends_the_answer() -> None:
    answer = written(Hand({}), Hand({"": draft("")}))
    assert (answer.text, answer.detail) == ("", FinishDetail.CONTROL_TOKEN)
    assert answer.usage.first_piece_s is None


# --- completions of a fake pair


class FakeCompleter:
    """Completes texts with a FakeBackend, as a server or the class would: greedily, from the text alone."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.n_forgotten = 0

    def complete(self, prompt: str, max_tokens: int, *, with_prob: bool) -> Completion:
        backend = self.backend
        reader = Reader(backend.info.n_vocab, "fake")
        backend.clear()
        bos = [backend.info.bos] if backend.info.adds_bos and backend.info.bos is not None else []
        ids, text, prob = [*bos, *backend.tokenize(prompt.encode(), special=True)], b"", None
        for number in range(max_tokens):
            backend.evaluate(ids, (len(ids) - 1,))
            probe = reader.probe(backend.scores(len(ids) - 1))
            if backend.is_eog(probe.top_id):
                return Completion(text.decode(), True, prob)
            if number == 0 and with_prob:
                prob = probe.top_prob
            text += backend.piece(probe.top_id)
            ids = [probe.top_id]
        return Completion(text.decode("utf-8", "replace"), False, prob)

    def forget(self) -> None:
        self.n_forgotten += 1


def completers_of(pair: Pair) -> dict[Role, FakeCompleter]:
    assert isinstance(pair.base, FakeBackend)
    assert isinstance(pair.nudging, FakeBackend)
    return {B: FakeCompleter(pair.base), N: FakeCompleter(pair.nudging)}


def test_the_loop_writes_what_the_pair_writes() -> None:
    pair = fake_pair(LONG)
    nudged = list(pair.answer(request_of(Plan(("code",), max_tokens=10), "code", "nudged")))
    loop = outside.text_loop(pair, completers_of(fake_pair(LONG)))
    answer = outside.written_outside(loop, pair, request_of(Plan(("code",), max_tokens=10), "code", "naive"))
    finished = nudged[-1]
    assert isinstance(finished, Finished)
    assert answer.text.strip() == "".join(event.text for event in nudged if isinstance(event, Piece))
    assert (answer.usage.base.n_written, answer.usage.nudging.n_written) == (6, 4)
    assert (finished.usage.base.n_written, finished.usage.nudging.n_written) == (6, 4)
    assert (answer.usage.n_handoffs, answer.detail) == (finished.usage.n_handoffs, FinishDetail.MAX_TOKENS)


def test_an_answer_that_ends_within_the_draft_is_the_draft() -> None:
    loop = outside.text_loop(fake_pair(), completers_of(fake_pair()))
    answer = outside.written_outside(loop, fake_pair(), request_of(Plan(("code",), max_tokens=50), "code", "naive"))
    assert (answer.text, answer.detail) == (text_of(SHORT), FinishDetail.END_OF_GENERATION)
    assert (answer.usage.base.n_calls, answer.usage.nudging.n_calls) == (0, 1)


def test_prompts_are_those_of_the_pair_without_the_bos_that_the_model_adds() -> None:
    texts = outside.prompt_texts(fake_pair(), build_request("Why?"))
    assert texts == {B: "Question: Why?\nAnswer: ", N: "<|turn|>user\nWhy?<|end|><|turn|>assistant"}


def test_contexts_are_the_smallest_multiples_that_hold_prompt_and_answer() -> None:
    pair = fake_pair()
    short = outside.context_sizes(pair, ("short",), 16)
    assert set(short.values()) == {256}
    for role, text in outside.prompt_texts(pair, build_request(PROMPTS["long"])).items():
        size = outside.context_sizes(pair, ("short", "long"), 16)[role]
        n_needed = len(pair.base.tokenize(text.encode(), special=True)) + 4 * (16 + 16) + 2
        assert size % 256 == 0
        assert n_needed <= size < n_needed + 256


def test_trials_of_a_loop_beside_the_pair_are_paired_cold_and_of_equal_length() -> None:
    pair, completers = fake_pair(), completers_of(fake_pair())
    plan = Plan(("short",), (*ALWAYS, "naive"), n_trials=2, max_tokens=5)
    found = run_trials(pair, plan, loop=outside.text_loop(pair, completers))
    assert [trial.mode for trial in found] == [*ALWAYS, "naive", "nudging", "nudged", "naive", "base"]
    assert {trial.n_tokens for trial in found} == {5}
    assert completers[B].n_forgotten == 3  # the warm-up too
    assert [trial.outside_native is None for trial in found] == [trial.mode == "naive" for trial in found]


# --- a server


class Handler(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; `spoil` may answer something else."""

    protocol_version = "HTTP/1.1"
    completer: FakeCompleter
    spoil: Callable[[str, dict[str, Any]], tuple[int, bytes] | None]
    shape: str
    requests: list[dict[str, Any]]
    ports: set[int]

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "fake-model"}]}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        self.ports.add(self.client_address[1])
        done = self.completer.complete(body["prompt"], body["max_tokens"], with_prob="logprobs" in body)
        logs: Any = None
        if "logprobs" in body:
            found = [] if done.top_prob is None else [math.log(done.top_prob)]
            logs = {"token_logprobs": found}
            if self.shape == "content":
                logs = {"content": [{"token": "?", "logprob": log} for log in found]}
        reason = "stop" if done.is_end else "length"
        self.reply({"choices": [{"text": done.text, "logprobs": logs, "finish_reason": reason}]}, body)

    def reply(self, answer: dict[str, Any], body: dict[str, Any]) -> None:
        status, data = self.spoil(self.path, body) or (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def nothing_spoilt(path: str, body: dict[str, Any]) -> None:
    return None


@contextmanager
def serving(
    completer: FakeCompleter, spoil: Callable[..., Any] = nothing_spoilt, shape: str = "tokens"
) -> Iterator[tuple[str, type[Handler]]]:
    """Run a server in a thread; yield its URL and its handler, which keeps what was asked."""
    own = {"completer": completer, "spoil": staticmethod(spoil), "shape": shape, "requests": [], "ports": set()}
    handler = type("OwnHandler", (Handler,), own)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        server.daemon_threads = True
        server.block_on_close = False  # a kept connection would wait for its end
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", handler
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def asking(spoil: Callable[..., Any] = nothing_spoilt, shape: str = "tokens") -> Iterator[ServerCompleter]:
    with serving(completers_of(fake_pair())[B], spoil, shape) as (url, _), closing(ServerCompleter(url)) as completer:
        yield completer


@pytest.mark.parametrize("shape", ["tokens", "content"])
def test_a_server_completes_and_tells_how_sure_it_is(shape: str) -> None:
    with asking(shape=shape) as completer:
        assert completer.check(with_prob=True) == "fake-model"
        done = completer.complete("The", 2, with_prob=True)
    assert (done.text, done.is_end) == (" sky is", False)
    assert done.top_prob == pytest.approx(0.9, rel=1e-3)


def test_a_request_is_greedy_and_goes_over_one_connection() -> None:
    completer = completers_of(fake_pair())[B]
    with serving(completer) as (url, handler), closing(ServerCompleter(url)) as server:
        server.check(with_prob=True)
        server.complete("The", 2, with_prob=False)
    plain = {"prompt": "The", "max_tokens": 2, "temperature": 0.0, "model": "fake-model"}
    assert handler.requests[1] == plain
    assert handler.requests[0]["logprobs"] == 1
    assert len(handler.ports) == 1


def test_a_connection_that_the_server_closed_is_opened_once_more() -> None:
    with asking() as completer:
        completer.complete("The", 1, with_prob=True)
        sock = completer._connection.sock
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        assert completer.complete("The", 1, with_prob=True).text == " sky"


def answering(status: int, data: bytes) -> Callable[..., Any]:
    return lambda path, body: (status, data) if path.endswith("completions") else None


@pytest.mark.parametrize(
    ("status", "data", "message"),
    [
        (503, b"model is\n   loading", "/v1/completions: HTTP 503: model is loading"),
        (404, b"", "HTTP 404: no body"),
        (302, b"moved", "HTTP 302: moved"),
        (500, b"x" * 300, "x" * 200 + " ..."),
        (200, b"<html>", "the answer is no JSON: <html>"),
        (200, b"[]", "the answer is no JSON object: []"),
        (200, b'{"choices": []}', "the answer is no completion"),
        (200, b'{"choices": [{"text": null, "finish_reason": "stop"}]}', "the answer is no completion"),
        (200, b'{"choices": [{"text": "a", "finish_reason": "length"}]}', "has no logprobs"),
        (200, b'{"choices": [{"text": "a", "finish_reason": "length", "logprobs": null}]}', "has no logprobs"),
        (
            200,
            b'{"choices": [{"text": "a", "finish_reason": "length", "logprobs": {"token_logprobs": [null]}}]}',
            "has no logprobs",
        ),
    ],
)
def test_an_answer_that_cannot_be_used_is_told(status: int, data: bytes, message: str) -> None:
    with asking(answering(status, data)) as completer:
        with pytest.raises(EngineError, match="http://127") as caught:
            completer.check(with_prob=True)
        assert message in str(caught.value)


def test_an_end_needs_no_probability() -> None:
    end = b'{"choices": [{"text": "", "finish_reason": "stop", "logprobs": {"token_logprobs": []}}]}'
    with asking(answering(200, end)) as completer:
        assert completer.complete("The", 1, with_prob=True) == Completion("", True, None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_nobody_there_and_nobody_answering() -> None:
    refused = r"cannot be asked \(Connection refused\): is the server running there\?"
    url = f"http://127.0.0.1:{free_port()}"
    with closing(ServerCompleter(url)) as completer, pytest.raises(EngineError, match=refused):
        completer.check(with_prob=True)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        late = r"no answer within 0\.1 seconds"
        with closing(ServerCompleter(url, timeout_s=0.1)) as completer, pytest.raises(EngineError, match=late):
            completer.check(with_prob=True)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://host:8000", "http://host:8000"),
        ("https://host/", "https://host"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("http://[::1]:8000/some/v1", "http://[::1]:8000/some"),
    ],
)
def test_urls(url: str, path: str) -> None:
    assert check_url(url, "base_url") == path


@pytest.mark.parametrize(
    "url",
    ["", "host:8000", "ftp://host", "file:///etc/hosts", "http://", "http://host:x", "http://u:p@host", "http://h/?q=1",
     "http://h/#a", "http://h o", "http://hö"],
)  # fmt: skip
def test_no_other_urls(url: str) -> None:
    with pytest.raises(InputError, match=r"^base_url: "):
        check_url(url, "base_url")


# --- the command


def test_against_two_servers(invoke: Invoke, files: tuple[str, ...]) -> None:
    base, nudging = completers_of(fake_pair(LONG)).values()
    with serving(base) as (base_url, _), serving(nudging) as (nudge_url, _):
        urls = ("--base-url", base_url, "--nudge-url", f"{nudge_url}/v1")
        arguments = ("bench", *files, "-n", "5", "--trials", "1", "--against", "server", *urls)
        ended = invoke(*arguments, "--json", load=loader(LONG))
        text = invoke(*arguments, load=loader(LONG))
    assert (ended.code, ended.err, text.code) == (0, "", 0)
    document = json.loads(ended.out)
    assert document["settings"]["prompts"] == ["short"]
    assert [answer["n_tokens"] for answer in document["answers"]] == [5] * 4
    assert document["all"]["ratios"]["tokens_per_s"]["nudged/server"]["median"] > 0
    of_server = document["all"]["modes"]["server"]
    assert of_server["outside_native"] is None
    assert of_server["per_token"]["base"]["own"] is None
    assert of_server["per_token"]["base"]["calls"] > 0
    assert document["answers"][3]["base"]["evaluated"] is None
    for note in document["notes"]:
        assert note in text.out
    assert f"base: <ServerCompleter {base_url}> fake-model" in text.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--against", "server"), 2, "--against server asks two running servers: --base-url URL and --nudge-url URL"),
        (("--against", "server", "--base-url", "http://h"), 2, "--against server asks two running servers: --nudge"),
        (("--against", "server", "--base-url", "ftp://h", "--nudge-url", "http://h"), 2, "--base-url ftp://h: only"),
        (("--nudge-url", "http://h"), 2, "--nudge-url has no meaning with --against WHAT left out"),
        (("--against", "naive", "--base-url", "http://h"), 2, "--base-url has no meaning with --against naive"),
        (("--costs", "--base-url", "http://h"), 2, "--base-url has no meaning with --costs"),
    ],
)  # fmt: skip
def test_a_bad_option_is_one_line_and_nothing_is_loaded(
    invoke: Invoke, files: tuple[str, ...], arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended = invoke("bench", *files, *arguments, load=no_load)
    assert ended.code == code
    assert ended.error.startswith(f"error: {message}")


def test_a_server_that_is_not_there_is_found_before_anything_is_loaded(invoke: Invoke, files: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = invoke("bench", *files, "--against", "server", "--base-url", url, "--nudge-url", url, load=no_load)
    assert ended.code == 1
    assert ended.error.startswith(f"error: {url}: cannot be asked")


class FakeNaive(FakeCompleter):
    """Stands in for engine.naive.NaiveCompleter."""

    made: list[dict[str, Any]]

    def __init__(self, path: Path, **settings: Any) -> None:
        pair = fake_pair()
        super().__init__(pair.base if path.name.startswith("base") else pair.nudging)  # type: ignore[arg-type]
        self.made.append({"name": path.name, "is_open": True, **settings})
        self.own = self.made[-1]

    def close(self) -> None:
        self.own["is_open"] = False


def test_against_the_high_level_class(invoke: Invoke, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNaive.made = []
    module = ModuleType("edge_nudge.engine.naive")
    module.NaiveCompleter = FakeNaive  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge_nudge.engine.naive", module)
    ended = invoke("bench", *files, "--trials", "1", "-t", "3", "--against", "naive", "--json", load=loader(SHORT))
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    common = {"n_ctx": 256, "n_threads": 3, "n_gpu_layers": 0, "is_open": False}
    assert FakeNaive.made == [
        {"name": "base.gguf", "with_probs": True, **common}, {"name": "nudging.gguf", "with_probs": False, **common},
    ]  # fmt: skip
    assert (document["settings"]["max_tokens"], document["settings"]["prompts"]) == (16, ["short"])
    assert document["all"]["ratios"]["tokens_per_s"]["nudged/naive"]["median"] > 0
    n_vocab = fake_pair().base.info.n_vocab
    assert any(f"{256 * n_vocab * 4 / 1e6:.0f} MB" in note for note in document["notes"])


# --- the class itself


@pytest.mark.native
def test_the_class_is_loaded_as_ours_is_and_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import llama_cpp
    from tiny_gguf import write_tiny

    from edge_nudge.engine import naive, native

    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    loaded: list[tuple[bool, bool]] = []
    api: Any = llama_cpp.llama_cpp
    original = api.llama_model_load_from_file

    def load(file: bytes, params: Any) -> Any:
        os.write(1, b"to descriptor 1\n")
        loaded.append((params.use_extra_bufts, params.vocab_only))
        return original(file, params)

    monkeypatch.setattr(api, "llama_model_load_from_file", load)
    monkeypatch.setattr(native, "can_repack", lambda: False)
    default, before = api.llama_model_default_params, native.relay.mark()
    with closing(naive.NaiveCompleter(path, n_ctx=256, n_threads=1, n_gpu_layers=0, with_probs=True)) as completer:
        assert api.llama_model_default_params is default
        done = [completer.complete("ab", 1, with_prob=True) for _ in range(2)]
        assert completer._llama.n_tokens > 0
        completer.forget()
        assert completer._llama.n_tokens == 0
        done.append(completer.complete("ab", 1, with_prob=True))
    assert loaded == [(False, False)]
    assert done[0] == done[1] == done[2]
    assert done[0].top_prob is not None
    assert 0 < done[0].top_prob <= 1
    assert native.relay.since(before)  # native messages went to the log
    out, err = capfd.readouterr()
    assert (out, err) == ("to descriptor 1\n", "")
    with pytest.raises(EngineError, match=r"none\.gguf: llama_cpp\.Llama cannot load it"):
        naive.NaiveCompleter(tmp_path / "none.gguf", n_ctx=256, n_threads=1, n_gpu_layers=0, with_probs=False)
    assert api.llama_model_default_params is default


@pytest.mark.native
def test_the_class_agrees_with_our_backend_on_the_probability(tmp_path: Path) -> None:
    from tiny_gguf import write_tiny

    from edge_nudge.engine.llama import LlamaBackend
    from edge_nudge.engine.naive import NaiveCompleter

    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    with LlamaBackend(path, n_ctx=256, n_threads=1) as backend:
        bos = [backend.info.bos] if backend.info.adds_bos and backend.info.bos is not None else []
        ids = [*bos, *backend.tokenize(b"ab")]
        backend.evaluate(ids, (len(ids) - 1,))
        probe = Reader(backend.info.n_vocab, "tiny").probe(backend.scores(len(ids) - 1))
        piece = backend.piece(probe.top_id)
    with closing(NaiveCompleter(path, n_ctx=256, n_threads=1, n_gpu_layers=0, with_probs=True)) as completer:
        done = completer.complete("ab", 1, with_prob=True)
        with pytest.raises(EngineError, match=r"llama_cpp\.Llama failed"):
            completer.complete("ab " * 400, 1, with_prob=False)
    assert done.text.encode() == piece
    assert done.top_prob == pytest.approx(probe.top_prob, abs=0.01)


@pytest.mark.demo
@pytest.mark.native
def test_the_demo_pair_written_naively(demo_paths: tuple[Path, Path]) -> None:
    from edge_nudge import open_pair

    base, nudging = demo_paths
    with open_pair(base=base, nudging=nudging, ctx_size=256) as pair:
        nudged = "".join(getattr(event, "text", "") for event in pair.answer(the_request("reference")))
        with outside.naive_loop(pair, ("short",), 3, 1) as (loop, notes):
            answer = outside.written_outside(loop, pair, the_request("naive"))
    assert answer.usage.n_completion == 3
    assert answer.text.startswith(nudged.split(" ", 1)[0])  # the first word is the nudging model's own
    assert "268 MB" in " ".join(notes)


def the_request(mode: str) -> Any:
    return request_of(Plan(("short",), max_tokens=3), "short", mode)
