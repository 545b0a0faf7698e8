"""`edge-nudge run` with a running server: the same output and exit codes as with a pair of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from children import LONG_TEXT, check_cancelled, read_until
from cli_fakes import SHORT, Invoke, invoker, no_load, text_of
from raw_server import raw_server
from serving import FILES, TIMEOUT_S, Server, Start, starter

from edge_nudge import runtime
from edge_nudge.client import Client
from edge_nudge.core.events import Finished, Piece
from edge_nudge.document import about_document, about_of, about_pair
from edge_nudge.endpoint import Endpoint, write_endpoint
from edge_nudge.errors import ContextOverflowError

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.name != "posix", reason="signals and sockets of POSIX"),
]

start = pytest.fixture(starter)
invoke = pytest.fixture(invoker)


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "timings": sorted(document["timings"]), "seed": None}


def plain(text: str) -> str:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)
    text = re.sub(r"[0-9.]+ tokens/s · first word [0-9.]+ s", "RATE", text)
    return text.replace("loading base.gguf and nudging.gguf", "")


# --- the same output


def test_the_output_is_the_same(start: Start, invoke: Invoke) -> None:
    start().ready()
    for tty in ("", "out", "out err"):
        for more in ((), ("--totals",), ("-n", "3"), ("--stop", "black"), ("--rule", "base-only")):
            served = invoke("run", *FILES, *more, "hi", tty=tty, load=no_load)
            here = invoke("run", *FILES, *more, "--no-server", "hi", tty=tty)
            assert (served.code, served.out) == (here.code, here.out)
            assert plain(served.err).split() == plain(here.err).split()


def test_the_json_is_the_same(start: Start, invoke: Invoke, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    for name in names:
        Path(name).write_bytes(name.encode())
    start("-m", names[0], "--nudge", names[1]).ready()
    arguments = ("run", "-m", names[0], "--nudge", names[1], "--json", "--temp", "0.5", "--seed", "7", "hi")
    served, here = invoke(*arguments, load=no_load), invoke(*arguments, "--no-server")
    found = [json.loads(ended.out) for ended in (served, here)]
    assert without_times(found[0]) == without_times(found[1])
    assert found[0]["seed"] == 7
    assert found[0]["timings"]["load_s"] == 0.0


def test_verbose_says_who_answers(start: Start, invoke: Invoke) -> None:
    server = start().ready()
    ended = invoke("run", *FILES, "-v", "hi", load=no_load)
    name = f"the server at {server.socket} (process {server.process.pid})"
    assert ended.err.splitlines()[0] == f"{name} answers: it has the pair loaded"
    assert "server" not in invoke("run", *FILES, "-v", "--no-server", "hi").err
    assert "server" not in invoke("run", *FILES, "hi", load=no_load).err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-m", "other.gguf", "--nudge", "nudging.gguf"), "its base model is"),
        (("-m", "base.gguf", "--nudge", "other.gguf"), "its nudging model is"),
        ((*FILES, "--base-prompt-format", "chat"), "its base prompt format is another one"),
        ((*FILES, "-c", "512"), "its ctx_size is 4096, not 512"),
        ((*FILES, "-t", "2"), "its threads is chosen by itself, not 2"),
        ((*FILES, "--base-gpu-layers", "0"), "its base_gpu_layers is chosen by itself, not 0"),
    ],
)
def test_another_pair_is_loaded_here(start: Start, invoke: Invoke, arguments: tuple[str, ...], why: str) -> None:
    start().ready()
    ended = invoke("run", *arguments, "-v", "hi")
    assert ended.out == text_of(SHORT) + "\n"
    assert why in ended.err


def test_given_settings_that_the_server_has_are_no_difference(start: Start, invoke: Invoke) -> None:
    start("-t", "2", "-c", "4096").ready()
    for more in ((), ("-t", "2"), ("-c", "4096", "-t", "2")):
        assert invoke("run", *FILES, *more, "hi", load=no_load).out == text_of(SHORT) + "\n"


def test_a_name_and_its_files_are_two_things(start: Start, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    start().ready()
    spec = runtime.PairSpec(Path("base.gguf"), Path("nudging.gguf"), name="named")
    monkeypatch.setattr(runtime, "find_pair", lambda *_, **__: spec)
    assert "not as named" in invoke("run", "-v", "hi").err


def test_the_same_file_by_another_path_is_the_same(start: Start, invoke: Invoke, tmp_path: Path) -> None:
    start().ready()
    (tmp_path / "base.gguf").symlink_to(Path("base.gguf").absolute())
    ended = invoke("run", "-m", str(tmp_path / "base.gguf"), "--nudge", "./nudging.gguf", "hi", load=no_load)
    assert ended.out == text_of(SHORT) + "\n"


# --- servers that cannot be used


def test_what_a_crash_left_behind_is_passed_over(start: Start, invoke: Invoke) -> None:
    server = start().ready()
    server.kill()
    assert server.left_behind
    assert invoke("run", *FILES, "hi").out == text_of(SHORT) + "\n"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"state": "ready"}, "it does not say what it has loaded: is it of another version?"),
        ({"error": {"code": "stopping"}}, "it is stopping"),
        ({"state": 7, "status": None}, "it is 7"),
        ([], "was answered otherwise than edge-nudge does"),
    ],
)
def test_a_server_that_cannot_be_used_is_passed_over(
    state: Any, why: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves the same files, as far as its endpoint file says."""
    monkeypatch.setenv("EDGE_NUDGE_RUNTIME_DIR", str(tmp_path / "run"))
    bodies = [state, {"data": [{"id": "base+nudging", "meta": {"base": "base.gguf"}}]}]

    def handle(connection: socket.socket) -> None:
        body = json.dumps(bodies.pop(0)).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with raw_server(handle) as server:
        loaded = {"base": os.path.abspath("base.gguf"), "nudging": os.path.abspath("nudging.gguf")}
        endpoint = Endpoint(
            pid=os.getpid(),
            socket=server.path,
            model="base+nudging",
            started=1.0,
            loaded={**loaded, "base_prompt_format": "qa"},
        )
        write_endpoint(endpoint)
        ended = invoke("run", *FILES, "-v", "hi")
    assert (ended.code, ended.out) == (0, text_of(SHORT) + "\n")
    assert f"the server at {server.path} is not used: " in ended.err
    assert why in ended.err


def test_a_server_that_loads_is_waited_for(start: Start) -> None:
    start(script="stuck").wait_for("loading\n")
    with run("-v", "hi") as child:
        assert child.stderr is not None
        assert b"is loading" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=TIMEOUT_S)[0] == b""
        assert child.returncode == 130


# --- errors, cancels, ends


def run(*arguments: str) -> subprocess.Popen[bytes]:
    """Start `edge-nudge run` with files that nothing could be loaded from: a server has to answer."""
    fakes = str(Path(__file__).with_name("cli_fakes.py"))
    command = [sys.executable, fakes, "stuck", "0", "run", *FILES, *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_prompt_that_is_too_long_has_its_exit_code(start: Start, invoke: Invoke) -> None:
    start().ready()
    served = invoke("run", *FILES, "x" * 9000, tty="out err", load=no_load)
    here = invoke("run", *FILES, "--no-server", "x" * 9000, tty="out err")
    assert (served.code, served.out) == (here.code, here.out) == (3, "")
    assert served.err.splitlines()[-1] == here.err.splitlines()[-1]
    with Client() as client, pytest.raises(ContextOverflowError) as raised:
        client.chat("x" * 9000).finish()
    assert raised.value.n_ctx == 4096


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_keeps_the_text_and_stops_the_server(start: Start, signum: signal.Signals, code: int) -> None:
    start(script="long", delay_s=0.005).ready()
    with run("--totals", "hi") as child:
        check_cancelled(child, signum, code)
    idle_again()


def idle_again() -> None:
    with Client() as client:
        deadline = time.monotonic() + TIMEOUT_S
        while client.slots()[0]["job"] is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.slots()[0]["counts"]["cancelled"] == 1


def test_a_cancel_while_the_prompt_is_read(start: Start) -> None:
    server = start(script="long", delay_s=3).ready()
    with run("hi") as child:
        server.wait_for("evaluating")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out, err) == (130, b"\n", b"")
    idle_again()


def test_a_cancelled_answer_is_json_too(start: Start, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    for name in names:
        Path(name).write_bytes(b"")
    server = start("-m", names[0], "--nudge", names[1], script="long", delay_s=0.005).ready()
    with run("-m", names[0], "--nudge", names[1], "--json", "hi") as child, Client() as client:
        deadline = time.monotonic() + TIMEOUT_S
        while (client.slots()[0]["job"] or {"n_tokens": 0})["n_tokens"] < 3:
            assert time.monotonic() < deadline
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=TIMEOUT_S)
    found = json.loads(out)
    assert (child.returncode, found["finish_reason"]) == (130, "cancelled")
    assert LONG_TEXT.startswith(found["text"])
    assert found["warnings"] == ["cancelled: what the server had evaluated by then is not known here"]
    server.kill()


def test_a_server_that_vanishes_is_an_error_and_the_text_stays(start: Start) -> None:
    server = start(script="long", delay_s=0.005).ready()
    with run("hi") as child:
        seen = read_until(child.stdout, b"word3")
        server.kill()
        out, err = child.communicate(timeout=TIMEOUT_S)
    text = (seen + out).decode()
    assert child.returncode == 1
    assert LONG_TEXT.startswith(text.removesuffix("\n"))
    assert err.decode().startswith(f"error: the server at {server.socket} went away in the middle of an answer")
    assert err.count(b"\n") == 1


def test_a_server_that_is_told_to_stop_ends_the_answer(start: Start) -> None:
    server = start("--grace", "0", script="long", delay_s=0.005).ready()
    with run("--totals", "hi") as child:
        seen = read_until(child.stdout, b"word3")
        server.send(signal.SIGTERM)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert LONG_TEXT.startswith((seen + out).decode().removesuffix("\n"))
    assert err.decode().endswith("· cancelled\n")
    assert server.end() == 0


# --- over TCP, and what is said of a pair


def test_the_client_over_tcp_with_the_key(start: Start) -> None:
    server: Server = start("--tcp", "127.0.0.1:0").ready()
    with Client(url=server.endpoint["url"] + "/v1", key=server.endpoint["key"]) as client:
        events = list(client.chat("hi"))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == text_of(SHORT)
    assert isinstance(events[-1], Finished)


def test_what_a_pair_says_of_itself_survives_json() -> None:
    from cli_fakes import fake_pair

    about = about_pair(fake_pair(notes=["no GPU"], threads="2"))
    about = replace(about, defects=dict.fromkeys(about.models, "it has none"))
    assert about_of(json.loads(json.dumps(about_document(about)))) == about
    assert asdict(about)["base"]["name"] == "fake base"
