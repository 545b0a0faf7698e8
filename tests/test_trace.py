"""Traces: what is recorded, that files stay whole, and that a file from outside ends in a page or in one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import LONG, Invoke, fake_pair, invoker, loader, no_load
from hypothesis import given
from hypothesis import strategies as st
from traces import PAIR, small_lines, write_lines
from worlds import GUESSING, World, random_world

from edge_nudge.core.events import Cause, Event, Finished, Handoff, Piece, Role
from edge_nudge.core.session import NativeCall
from edge_nudge.report import records
from edge_nudge.report.output import Output, write_output
from edge_nudge.report.page import render_page
from edge_nudge.report.records import FailedRecord, FinishedRecord, Trace, TraceError, read_trace
from edge_nudge.report.trace import N_ALTERNATIVES, TRACE, TraceWriter, traced
from edge_nudge.runtime import Answer

POSIX = pytest.mark.skipif(os.name != "posix", reason="pipes, links and signals of POSIX")

invoke = pytest.fixture(invoker)


FORMER = '{"type": "header"}\n'


class WatchedWorld:
    """A world's answer that can be watched like a pair."""

    def __init__(self, world: World) -> None:
        self.sessions = world.sessions()
        self.decoder = world.decoder(self.sessions)

    def watch(self, listener: Callable[[Role, NativeCall], None] | None) -> None:
        for role, session in zip(Role, self.sessions, strict=True):
            session.on_call = None if listener is None else lambda call, role=role: listener(role, call)


def record(world: World, path: Path) -> list[Event]:
    watched = WatchedWorld(world)
    with TraceWriter(path) as writer:
        answer = Answer(watched.decoder.run(), lambda: None)
        followed = writer.follow(watched, answer, world.request, about=PAIR, load_s=0.0)  # type: ignore[arg-type]
        events = list(followed)
    assert all(session.on_call is None for session in watched.sessions)
    return events


def assert_says_the_same(trace: Trace, events: list[Event]) -> None:
    """Every event is in the trace, as it was."""
    pieces = [event for event in events if isinstance(event, Piece)]
    assert [
        (p.text, p.author, p.top_prob, p.reason, p.n_tokens, None if p.instead is None else raw(p.instead))
        for p in trace.pieces
    ] == [(p.text, p.author, p.top_prob, p.reason, p.n_tokens, p.instead) for p in pieces]
    assert [
        [(raw(t), t.id, t.logprob, t.is_rest, [(raw(a), a.logprob) for a in t.top]) for t in p.tokens]
        for p in trace.pieces
    ] == [[(t.data, t.id, t.logprob, t.is_rest, list(t.top)) for t in p.tokens] for p in pieces]
    handoffs = [event for event in events if isinstance(event, Handoff)]
    assert [(h.to, h.reason, h.top_prob) for h in trace.handoffs] == [(h.to, h.reason, h.top_prob) for h in handoffs]
    assert isinstance(trace.end, FinishedRecord)
    assert isinstance(events[-1], Finished)
    assert (trace.end.detail, trace.end.totals.usage()) == (events[-1].detail, events[-1].usage)


def raw(spelled: records.Spelled) -> bytes:
    return spelled.text.encode() if spelled.bytes is None else bytes.fromhex(spelled.bytes)


def assert_calls_add_up(trace: Trace) -> None:
    """The tokens of all calls, by cause, are the totals."""
    assert isinstance(trace.end, FinishedRecord)
    usage = trace.end.totals.usage()
    for role in Role:
        calls = [call for call in trace.calls if call.model is role]
        assert len(calls) == usage.of(role).n_calls
        for cause in Cause:
            assert sum(call.evaluated.get(cause, 0) for call in calls) == usage.of(role).evaluated[cause], cause
        assert [call.start_s for call in calls] == sorted(call.start_s for call in calls)


# --- what is recorded


@pytest.mark.parametrize("numbers", [range(40), pytest.param(range(40, 600), marks=pytest.mark.thorough)])
def test_a_trace_says_what_the_events_say_and_each_token_has_its_cause(numbers: range, tmp_path: Path) -> None:
    seen = dict.fromkeys(Cause, 0)
    for number in numbers:
        world = random_world(number)
        world.request = traced(world.request)
        world.curve = GUESSING if number % 2 else None
        events = record(world, tmp_path / "t.jsonl")
        trace = read_trace(tmp_path / "t.jsonl")
        assert_says_the_same(trace, events)
        assert_calls_add_up(trace)
        for call in trace.calls:
            for cause, n_tokens in call.evaluated.items():
                seen[cause] += n_tokens
    assert all(seen.values()), seen


def test_run_records_what_it_prints(invoke: Invoke, files: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    ended = invoke("run", *files, "--trace", str(path), "--gamma", "0.5", "-s", "Be\u202e brief.", "hi")
    trace = read_trace(path)
    assert (ended.code, ended.err) == (0, "")
    assert trace.text + "\n" == ended.out
    header = trace.header
    assert [message.content for message in header.messages] == ["Be\u202e brief.", "hi"]
    assert (header.settings["gamma"], header.settings["rule"], header.settings["stop"]) == (0.5, "top_prob", ())
    assert (header.pair.base.file, header.pair.base.sha256 is None) == ("base.gguf", False)
    assert all(token.top for piece in trace.pieces for token in piece.tokens)
    assert "".join(token.text for piece in trace.pieces for token in piece.tokens) == trace.text
    assert_calls_add_up(trace)
    data = path.read_bytes()
    assert data.isascii()
    assert str(tmp_path).encode() not in data
    assert list(tmp_path.glob("*.part")) == []


def test_json_and_trace_go_together(invoke: Invoke, files: tuple[str, ...], tmp_path: Path) -> None:
    ended = invoke("run", *files, "--trace", str(tmp_path / "t.jsonl"), "--json", "hi")
    assert json.loads(ended.out)["text"] == read_trace(tmp_path / "t.jsonl").text


def test_without_a_trace_nothing_is_scored_or_watched(
    invoke: Invoke, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = fake_pair()
    asked = []
    monkeypatch.setattr(pair, "watch", lambda listener: pytest.fail("watched"))
    answer = pair.answer
    monkeypatch.setattr(pair, "answer", lambda request: asked.append(request.logprobs) or answer(request))
    assert invoke("run", *files, "hi", load=lambda *_, **__: pair).code == 0
    assert asked == [None]


def test_more_alternatives_than_a_trace_needs_stay() -> None:
    request = random_world(1).request
    assert traced(request).logprobs == N_ALTERNATIVES
    assert traced(request.model_copy(update={"logprobs": 20})).logprobs == 20


# --- files stay whole


def test_an_error_keeps_what_there_is(invoke: Invoke, files: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    ended = invoke("run", *files, "--trace", str(path), "hi", load=loader(fail=lambda call: 0 if call == 4 else None))
    trace = read_trace(path)
    assert ended.code == 1
    assert isinstance(trace.end, FailedRecord)
    assert ended.err == f"error: {trace.end.message}\n"
    assert trace.pieces
    assert trace.text + "\n" == ended.out
    assert trace.end.message in render_page(trace)


def test_a_pair_that_does_not_load_leaves_the_former_trace(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(FORMER)

    def load(*_: Any, **__: Any) -> Any:
        raise TraceError("no such pair")

    assert invoke("run", "-m", "a", "--nudge", "b", "--trace", str(path), "hi", load=load).code == 2
    assert path.read_text() == FORMER
    assert {file.name for file in tmp_path.iterdir()} <= {"t.jsonl", "cache"}


@pytest.mark.parametrize("name", ["", "nowhere/t.jsonl", "n" * 300])
def test_a_place_that_cannot_be_written_is_found_before_loading(invoke: Invoke, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ended = invoke("run", "-m", "a", "--nudge", "b", "--trace", str(path), "hi", load=no_load)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {path} cannot be written: ")


def test_what_is_no_trace_is_never_replaced(invoke: Invoke, tmp_path: Path) -> None:
    model = tmp_path / "base.gguf"
    model.write_bytes(b"GGUF\x03")
    ended = invoke("run", "-m", "a", "--nudge", "b", "--trace", str(model), "hi", load=no_load)
    assert (ended.code, ended.error) == (
        2,
        f"error: {model} is there already and is no trace: name another file",
    )
    assert model.read_bytes() == b"GGUF\x03"
    assert list(tmp_path.glob("*.part")) == []


@POSIX
@pytest.mark.process
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_what_was_recorded_survives_a_signal(signum: int, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(FORMER)
    (tmp_path / "a.gguf").touch()
    fakes, file = str(Path(__file__).with_name("cli_fakes.py")), str(tmp_path / "a.gguf")
    command = [sys.executable, fakes, "long", "0.005", "run", "-m", file, "--nudge", file, "--trace", str(path), "hi"]
    environment = {**os.environ, "EDGE_NUDGE_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        assert child.stdout is not None
        seen = b""
        while b"word9" not in seen:
            seen += os.read(child.stdout.fileno(), 4096)
        child.send_signal(signum)
        seen += child.stdout.read()
    if signum == signal.SIGINT:
        trace = read_trace(path)
        assert isinstance(trace.end, FinishedRecord)
        assert (trace.end.detail.value, trace.text + "\n") == ("cancelled", seen.decode())
    else:
        assert path.read_text() == FORMER
        (part,) = tmp_path.glob("t.jsonl.*.part")
        trace = read_trace(part)
        assert trace.end is None
        # An event is written before it is passed on.
        assert "".join(word for word, _ in LONG).lstrip().startswith(trace.text)
        assert len(trace.text) >= len(seen.decode())
        assert "was stopped before" in render_page(trace)


@POSIX
@pytest.mark.process
def test_a_signal_while_models_load_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("cli_fakes.py")), "stuck", "0", "run", "-m", "a"]
    command += ["--nudge", "b", "--trace", str(tmp_path / "t.jsonl"), "hi"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == b"loading\n"
        child.send_signal(signal.SIGINT)
    assert child.returncode == 130
    assert list(tmp_path.iterdir()) == []


@contextmanager
def file_limit(n_bytes: int) -> Iterator[None]:
    """Let no file grow further, as on a full disk."""
    import resource  # of POSIX

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@POSIX
def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    world = random_world(3, rule="top_prob", gamma=0.5, max_tokens=60, temp=0.0, stop=[], end_prob=2.0)
    with file_limit(2500), pytest.raises(TraceError, match="cannot be written: File too large"):
        record(world, path)
    trace = read_trace(path)
    assert trace.end is None
    assert trace.pieces
    assert path.stat().st_size <= 2500


@POSIX
def test_a_page_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(FORMER)
    with file_limit(1000), pytest.raises(TraceError, match="cannot be written"):
        write_output(path, "x" * 2000, TRACE)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", FORMER)]


@POSIX
def test_links_stay_links_and_devices_devices(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text(FORMER)
    link.symlink_to(real)
    write_output(link, "new", TRACE)
    assert link.is_symlink()
    assert real.read_text() == "new"
    read, write = os.pipe()
    with os.fdopen(read) as reader:
        output = Output(Path(f"/dev/fd/{write}"), TRACE)
        output.write("line\n")
        output.keep()
        os.close(write)
        assert reader.read() == "line\n"
    write_output(Path(os.devnull), "gone", TRACE)
    assert not Path(os.devnull).is_file()


# --- files from outside


def spoiled(change: Callable[[list[dict[str, Any]]], Any]) -> list[dict[str, Any]]:
    lines = small_lines()
    change(lines)
    return lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.clear(), "is empty: edge-nudge run --trace"),
        (lambda lines: lines.pop(0), "line 1: a trace begins with its header"),
        (lambda lines: lines.insert(3, lines[0]), "line 4: a second header"),
        (lambda lines: lines.append(lines[2]), "line 14: the answer has ended above"),
        (lambda lines: lines[0].update(format_version=2), "line 1: edge-nudge .* reads traces of format 1"),
        (lambda lines: lines[0].update(format="other"), "line 1: format: Input should be 'edge-nudge trace'"),
        (lambda lines: lines[2].update(type="surprise"), "line 3 is no record of a trace .*'surprise'"),
        (lambda lines: lines[2].pop("type"), "line 3 is no record of a trace"),
        (lambda lines: lines[2].update(author="somebody"), "line 3: author: Input should be 'base' or 'nudging'"),
        (lambda lines: lines[2].update(top_prob=1.5), "line 3: top_prob: Input should be less than or equal to 1"),
        (lambda lines: lines[2].update(at_s=-1), "line 3: at_s: "),
        (lambda lines: lines[2].update(text=5, n_tokens="1"), "line 3: text: .*; n_tokens: "),
        (lambda lines: lines[2].update(text="\ud800"), "line 3 is no JSON"),
        (lambda lines: lines[2].update(top_prob=float("nan")), "line 3"),
        (lambda lines: lines[1]["evaluated"].update(luck=1), "line 2: evaluated.luck"),
        (lambda lines: lines[8]["instead"].update(bytes="f0f"), "line 9: instead.bytes: "),
        (lambda lines: lines[2]["tokens"][0].update(logprob=1e999), "line 3"),
    ],
)
def test_a_spoiled_trace_is_one_line_with_its_number(
    change: Callable[[list[dict[str, Any]]], Any], message: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "t.jsonl", spoiled(change))
    with pytest.raises(TraceError, match=message) as raised:
        read_trace(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"GGUF\x03\x00\x00\x00", "line 1 is no JSON"),
        ("{}\n".encode("utf-16"), "line 1 is no JSON"),
        (b"[]\n", "line 1 is no record of a trace"),
        (b"1\n", "line 1 is no record of a trace"),
        (b'{"type": "piece"}\n', "line 1: at_s: Field required"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b'{"type": "' + b"x" * 5000 + b'"}\n', r"line 1 is no record of a trace .*\.\.\.\)$"),
    ],
)
def test_a_foreign_file_is_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=message) as raised:
        read_trace(path)
    assert len(str(raised.value)) < 700


def test_a_line_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", small_lines())
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(TraceError, match=r"line 13 is cut off: remove this line"):
        read_trace(path)
    path.write_bytes(data[: data[:-20].rindex(b"\n") + 1])
    assert read_trace(path).end is None


def test_a_byte_order_mark_empty_lines_and_more_fields_are_no_error(tmp_path: Path) -> None:
    lines = small_lines()
    lines[2]["later"] = {"more": 1}
    path = write_lines(tmp_path / "t.jsonl", lines)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_trace(path).text == "Red light bends less\u202e<i>\n"


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 1 << 20)
    path = write_lines(tmp_path / "t.jsonl", small_lines()[:3])
    with path.open("ab") as file:
        file.truncate(1 << 33)  # a hole: no byte of it is on the disk
    with pytest.raises(TraceError, match="over 1 MiB in line 4: no page"):
        read_trace(path)


@pytest.mark.parametrize("name", ["missing.jsonl", ""])
def test_a_file_that_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be read: (No such file|Is a directory)"):
        read_trace(tmp_path / name)


@given(data=st.data())
def test_whatever_becomes_of_the_bytes_there_is_a_page_or_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = "".join(json.dumps(line) + "\n" for line in small_lines()).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    path = tmp_path_factory.mktemp("spoiled") / "t.jsonl"
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:])
    try:
        trace = read_trace(path)
    except TraceError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert render_page(trace)


# --- the demo pair


@pytest.mark.native
@pytest.mark.demo
def test_a_trace_of_the_demo_pair(demo_paths: tuple[Path, Path], tmp_path: Path) -> None:
    from edge_nudge.core.request import build_request
    from edge_nudge.runtime import PairSpec, load_pair

    request = build_request("Why is the sky blue?", gamma=0.4, max_tokens=24, stop=["\n\n\n\n"])
    with load_pair(PairSpec(*demo_paths, name="demo"), ctx_size=512) as pair:
        plain = [event for event in pair.answer(request) if isinstance(event, Piece)]
        pair.forget()
        with TraceWriter(tmp_path / "t.jsonl") as writer:
            list(writer.follow(pair, pair.answer(traced(request)), request, about=PAIR, load_s=0.0))
    trace = read_trace(tmp_path / "t.jsonl")
    # Recording changes nothing.
    assert [(piece.text, piece.author) for piece in trace.pieces] == [(piece.text, piece.author) for piece in plain]
    assert b"".join(raw(token) for piece in trace.pieces for token in piece.tokens).decode() == trace.text
    assert all(token.logprob is not None and len(token.top) >= 5 for piece in trace.pieces for token in piece.tokens)
    asked = [piece for piece in trace.pieces if piece.author is Role.NUDGING and piece.reason.value == "unsure"]
    assert asked
    assert all(piece.instead is not None for piece in asked)
    assert_calls_add_up(trace)
    assert isinstance(trace.end, FinishedRecord)
    calls = sorted(trace.calls, key=lambda call: call.start_s)
    assert all(first.end_s <= second.start_s for first, second in pairwise(calls))
    assert calls[-1].end_s <= trace.end.totals.total_s + 0.1
    usage = trace.end.totals.usage()
    for role in Role:
        native_s = sum(call.end_s - call.start_s for call in trace.calls if call.model is role)
        assert native_s == pytest.approx(usage.of(role).native_s)
    assert render_page(trace)
