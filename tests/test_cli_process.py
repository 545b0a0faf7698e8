"""The command line as a process: closed pipes, full disks, Ctrl-C at every moment, a real terminal, the demo pair."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from children import LONG_TEXT, check_cancelled, read_until
from cli_fakes import Invoke, invoker, no_load

from edge_nudge import runtime
from edge_nudge.cli.interrupts import Interrupted, Interrupts

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
FILES = ("-m", "base.gguf", "--nudge", "nudging.gguf")

invoke = pytest.fixture(invoker)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Where Python is told not to buffer, a flush that is missing cannot be seen.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(tmp_path / "cache"))


def start(script: str, delay_s: float, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start edge-nudge with a fake pair, all its streams being pipes."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | streams
    fakes = str(Path(__file__).with_name("cli_fakes.py"))
    return subprocess.Popen([sys.executable, fakes, script, str(delay_s), "run", *FILES, *arguments], **streams)


# --- pipes


@POSIX
def test_a_closed_pipe_ends_quietly() -> None:
    with start("long", 0.005, "hi") as child:
        read_until(child.stdout, b"word0")
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert (child.stderr.read(), child.wait(timeout=30)) == (b"", 141)


@POSIX
@pytest.mark.parametrize("arguments", [("--help",), ("--json", "hi"), ("hi",)])
def test_a_pipe_closed_from_the_start_ends_quietly(arguments: tuple[str, ...], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    file = str(tmp_path / "a.gguf")
    Path(file).touch()
    try:
        with start("short", 0, "-m", file, "--nudge", file, *arguments, stdout=write) as child:
            assert child.communicate(timeout=30)[1] == b""
            assert child.returncode == 141
    finally:
        os.close(write)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("--help",), ("hi",)])
def test_a_full_disk_is_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full, start("short", 0, *arguments, stdout=full) as child:
        err = child.communicate(timeout=30)[1].decode()
        assert (child.returncode, err) == (1, "error: standard output cannot be written: No space left on device\n")


def test_output_is_utf8_whatever_the_locale() -> None:
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
    }
    code = (
        r"import sys, cli_fakes as f; f.SCRIPTS['short'] = (('\u65e5\u672c', f.N), (' \r\n', f.B), ('\xe9', f.N));"
        "sys.argv = ['', 'short', '0', 'run', '-m', 'a', '--nudge', 'b', 'hi']; f.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "日本 \r\né\n", b"")


# --- signals


@POSIX
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_cancels_and_keeps_the_text(signum: signal.Signals, code: int) -> None:
    with start("long", 0.005, "--totals", "hi") as child:
        check_cancelled(child, signum, code)


@POSIX
def test_a_cancelled_answer_is_json_too(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.touch()
    with start("long", 0.005, "-v", "-m", str(file), "--nudge", str(file), "--json", "-c", "9999", "hi") as child:
        read_until(child.stderr, b"it has")  # a note: the answer begins
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=30)
    found = json.loads(out)
    assert (child.returncode, found["finish_reason"]) == (130, "cancelled")
    assert LONG_TEXT.startswith(found["text"])


@POSIX
def test_the_second_signal_ends_at_once_even_in_a_native_call() -> None:
    with start("long", 60, "hi") as child:
        read_until(child.stderr, b"evaluating")
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert child.poll() is None  # the first one waits for the call to come back
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=10) == 130
        assert child.communicate() == (b"", b"")


@POSIX
def test_a_signal_while_loading_ends_at_once() -> None:
    with start("stuck", 0, "hi") as child:
        read_until(child.stderr, b"loading")
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=10) == 130
        assert child.communicate() == (b"", b"")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_fetching_unwinds(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int
) -> None:
    cleaned = []

    def find_pair(*_: Any, **__: Any) -> Any:
        try:
            signal.raise_signal(signum)
            time.sleep(5)
        finally:
            cleaned.append("up")

    before = signal.signal(signum, signal.default_int_handler)
    try:
        monkeypatch.setattr(runtime, "find_pair", find_pair)
        ended = invoke("run", "hi", load=no_load)
        assert signal.getsignal(signum) is signal.default_int_handler
    finally:
        signal.signal(signum, before)
    assert (ended.code, ended.error, cleaned) == (code, "interrupted", ["up"])


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts, interrupts.asking(lambda: pytest.fail("asked")):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
        assert interrupts.signum is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_just_before_a_phase_is_not_lost() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupts() as interrupts:
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGINT)
            deadline = time.monotonic() + 10
            while interrupts._missed is None and time.monotonic() < deadline:
                time.sleep(0.001)
            with pytest.raises(Interrupted), interrupts.at_once():
                pytest.fail("the phase began")
    finally:
        signal.signal(signal.SIGINT, before)


def test_asking_comes_first_and_cleaning_up_before_leaving() -> None:
    said: list[object] = []

    def send_and_wait(n_said: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while len(said) < n_said and time.monotonic() < deadline:
            time.sleep(0.001)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Interrupts(leave=said.append) as interrupts:
            with interrupts.asking(lambda: said.append("asked")):
                send_and_wait(1)
                send_and_wait(2)
            with interrupts.at_once(lambda: said.append("cleaned")):
                send_and_wait(4)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == ["asked", 143, "cleaned", 143]


# --- a terminal


@POSIX
def test_ctrl_c_on_a_terminal_stops_the_answer() -> None:
    import pty

    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "", "COLUMNS": "200"}
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with start("long", 0.005, "hi", env=environment, preexec_fn=_own_terminal, **streams) as child:
        os.close(terminal)
        seen = b""
        while b"word3" not in seen:
            seen += os.read(controller, 4096)
        os.write(controller, b"\x03")
        while data := _read_terminal(controller):
            seen += data
        assert child.wait(timeout=30) == 130
    os.close(controller)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", seen.decode())
    assert "base model base · nudging model nudging\nword0 word1" in text
    assert "\x1b[1;38;5;133m" in seen.decode()
    assert re.search(r"nudging ratio .* · cancelled\n$", text)


def _own_terminal() -> None:
    """Make the standard input the controlling terminal, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_terminal(controller: int) -> bytes:
    try:
        return os.read(controller, 4096)
    except OSError:  # how Linux says that nobody has the other end open
        return b""


# --- the README


@pytest.fixture
def update_readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_help_in_the_readme_is_up_to_date(update_readme: ModuleType) -> None:
    assert update_readme.main(["--check"]) == 0, "run python scripts/update_readme.py"


def test_update_readme_writes_help_between_markers(
    update_readme: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- help: edge-nudge -->\nold\n<!-- /help -->\ny\n", encoding="utf-8")
    assert update_readme.main(["--check"], readme) == 1
    assert "old" in readme.read_text(encoding="utf-8")
    assert update_readme.main([], readme) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# x\n<!-- help: edge-nudge -->\n```text\n$ edge-nudge --help\nUsage: edge-nudge [OPTIONS]")
    assert text.endswith("\n```\n<!-- /help -->\ny\n")
    assert "Exit codes:" in text
    assert update_readme.main(["--check"], readme) == 0
    assert "out of date: edge-nudge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# x\n", "has no help block"),
        ("<!-- help: edge-nudge -->\n<!-- /help -->\n<!-- help: edge-nudge run -->\n", "2 starts and 1 ends"),
        ("<!-- help: rm -->\n<!-- /help -->\n", "must begin with edge-nudge"),
    ],
)
def test_update_readme_refuses_broken_markers(
    update_readme: ModuleType, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        update_readme.main(["--check"], tmp_path / "README.md")


# --- the demo pair


@pytest.mark.native
@pytest.mark.demo
def test_the_demo_pair_answers_as_json(demo_paths: tuple[Path, Path]) -> None:
    base, nudging = map(str, demo_paths)
    command = [sys.executable, "-m", "edge_nudge.cli.main", "run", "--json", "--seed", "1", "-n", "40"]
    done = subprocess.run(
        [*command, "-m", base, "--nudge", nudging, "Why is the sky blue?"],
        stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert "".join(piece["text"] for piece in found["pieces"]) == found["text"] != ""
    assert {piece["author"] for piece in found["pieces"]} == {"base", "nudging"}
    assert 0 < found["usage"]["completion_tokens"] <= 40
    assert found["seed"] == 1
    assert [len(found["pair"][role]["sha256"]) for role in ("base", "nudging")] == [64, 64]
    assert found["pair"]["base"]["offload"]
