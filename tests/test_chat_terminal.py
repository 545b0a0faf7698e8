"""`edge-nudge chat` at a real terminal: pexpect plays the user, a fake pair or the demo pair answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from cli_fakes import LONG, SHORT, text_of
from serving import FILES, Start, starter

if sys.platform == "win32":
    pytest.skip("pseudo-terminals of POSIX", allow_module_level=True)
import pexpect

pytestmark = pytest.mark.process

HERE = Path(__file__).parent
READY = "\x1b[?2004h"  # the input line takes pasted text: it is there
TIMEOUT_S = 60
SHORT_TEXT, LONG_TEXT = text_of(SHORT), text_of(LONG).lstrip()
start_server = pytest.fixture(starter)


class Talk:
    """A chat at a terminal."""

    def __init__(self, command: list[str], columns: int = 100, more: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
            environment.pop(name, None)
        environment.update(more or {})
        self.child: pexpect.spawn[str] = pexpect.spawn(
            command[0], command[1:], env=environment, encoding="utf-8", timeout=TIMEOUT_S, dimensions=(40, columns)
        )
        self.raw = ""

    def wait(self, text: str = READY) -> str:
        """Wait for a text; return what was shown until then, without colours."""
        self.child.expect_exact(text)
        self.raw = self.child.before + self.child.after
        return plain(self.raw)

    def say(self, text: str) -> str:
        """Type a line and return what is shown until the next prompt."""
        self.child.send(text + "\r")
        return self.wait()

    def paste(self, text: str) -> str:
        self.child.send(f"\x1b[200~{text}\x1b[201~\r")
        return self.wait()

    def end(self) -> str:
        """Leave with Ctrl-D; the exit code is 0."""
        self.child.send("\x04")
        return self.ended(0)

    def ended(self, code: int) -> str:
        self.child.expect(pexpect.EOF)
        rest = plain(self.child.before)
        self.child.close()
        assert (self.child.exitstatus, self.child.signalstatus) == (code, None), rest
        return rest


Open = Callable[..., Talk]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r", "", text)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open chats; `script` is one of cli_fakes.py."""
    for name in ("STATE", "CACHE"):
        monkeypatch.setenv(f"EDGE_NUDGE_{name}_DIR", str(tmp_path / name.lower()))
    talks: list[Talk] = []

    def open_one(
        script: str | Path = "short",
        *arguments: str,
        delay_s: float = 0,
        columns: int = 100,
        more: Mapping[str, str] | None = None,
        program: Sequence[str] | None = None,
    ) -> Talk:
        fake = (str(HERE / "cli_fakes.py"), str(script), str(delay_s), "chat", *FILES)
        talk = Talk([sys.executable, *(program or fake), *arguments], columns, more)
        talks.append(talk)
        talk.wait()
        return talk

    yield open_one
    for talk in talks:
        talk.child.close(force=True)


def saved(talk: Talk, path: Path) -> list[tuple[str, str, str]]:
    """Save the conversation and return its turns: message, answer, ending."""
    assert "saved in" in talk.say(f"/save {path}")
    turns = json.loads(path.read_text(encoding="utf-8"))["turns"]
    return [(turn["user"], "".join(part["text"] for part in turn["answer"]), turn["ending"]) for turn in turns]


def test_an_answer_streams_coloured_with_who_wrote_what(opened: Open) -> None:
    talk = opened()
    shown = talk.say("hello")
    assert SHORT_TEXT in shown
    assert "\x1b[1;38;5;133mThe\x1b[0m sky is" in talk.raw
    assert "(base 4, nudging 4 tokens (50% nudging): The · blue by day · black)" in shown
    talk.say("/nudges off")
    shown = talk.say("again")
    assert SHORT_TEXT in shown
    assert "nudging)" not in shown
    assert "38;5;133" not in talk.raw
    assert talk.say("") == talk.say("   ").replace("   ", "")  # an empty line does nothing
    talk.end()


@pytest.mark.parametrize(("arguments", "more"), [(("--color", "never"), {}), ((), {"NO_COLOR": "1"})])
def test_without_colour_the_note_still_says_who(opened: Open, arguments: tuple[str, ...], more: dict[str, str]) -> None:
    talk = opened("short", *arguments, more=more)
    shown = talk.say("hello")
    assert "The · blue by day · black" in shown
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", talk.raw), talk.raw
    talk.end()


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(opened: Open, tmp_path: Path) -> None:
    talk = opened("long", delay_s=0.01)
    talk.child.send("go\r")
    talk.wait("word5")
    talk.child.send("typed ahead")
    talk.wait("word9")
    talk.child.send("\x03\x03")  # twice, as people do
    shown = talk.wait()
    assert "(stopped; what there is of the answer stays in the conversation)" in shown
    assert "typed ahead" not in shown.partition("(base")[0]
    talk.child.send("\x03")
    talk.wait()
    ((user, answer, ending),) = saved(talk, tmp_path / "c.json")
    assert (user, ending) == ("go", "cancelled")
    assert LONG_TEXT.startswith(answer)
    assert 5 < len(answer.split()) < 400
    talk.end()


def test_stopped_before_the_first_word_gives_the_message_back(opened: Open, tmp_path: Path) -> None:
    talk = opened("long", delay_s=1.5)
    talk.child.send("my message\r")
    talk.wait("evaluating")
    talk.child.send("\x03")
    shown = talk.wait()
    assert "(stopped before the first word: the message is back in the input line)" in shown
    talk.wait("my message")
    talk.child.send("\x03")
    talk.wait()
    assert saved(talk, tmp_path / "c.json") == []
    talk.end()


def test_ctrl_c_at_the_prompt_is_a_hint_and_throws_a_text_away(opened: Open) -> None:
    talk = opened()
    talk.child.send("\x03")
    assert "(Ctrl-D or /bye leaves; /help lists the commands)" in talk.wait()
    talk.child.send("half a mess")
    talk.wait("mess")
    talk.child.send("\x03")
    assert "(Ctrl-D" not in talk.wait()
    talk.child.send("\x1b[A")
    talk.wait("half a mess")
    talk.child.send("\x03")
    talk.wait()
    assert "error: no command is called /by: did you mean /bye?" in talk.say("/by")
    talk.child.send("/bye\r")
    talk.ended(0)


def test_sigterm_ends_the_chat_and_leaves_the_terminal_whole(opened: Open) -> None:
    talk = opened()
    talk.child.kill(signal.SIGTERM)
    assert "interrupted" in talk.ended(143)
    talk = opened("long", delay_s=0.01)
    talk.child.send("go\r")
    talk.wait("word5")
    talk.child.kill(signal.SIGTERM)
    assert "(stopped;" in talk.ended(143)


def test_several_lines_typed_and_pasted(opened: Open, tmp_path: Path) -> None:
    talk = opened()
    for line in ('"""', "/one", ""):
        talk.child.send(line + "\r")
    assert SHORT_TEXT in talk.say('two"""')
    assert SHORT_TEXT in talk.paste("pasted\n\ttab\n\nlines")
    talk.child.send("a\x1b\r")
    assert SHORT_TEXT in talk.say("b")
    users = [user for user, _, _ in saved(talk, tmp_path / "c.json")]
    assert users == ["/one\n\ntwo", "pasted\n\ttab\n\nlines", "a\nb"]
    talk.end()


def test_the_history_outlives_a_chat_and_is_private(opened: Open, tmp_path: Path) -> None:
    talk = opened()
    talk.say("first message")
    talk.end()
    history = tmp_path / "state" / "chat-history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700
    talk = opened()
    talk.child.send("\x1b[A")
    talk.wait("first message")
    assert SHORT_TEXT in talk.say("")
    talk.end()


def test_a_history_that_cannot_be_written_is_a_notice(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "chat-history").mkdir()
    talk = opened()
    assert SHORT_TEXT in talk.say("hi")
    assert SHORT_TEXT in talk.say("hi")
    talk.end()


def test_regen_undo_save_load(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    talk = opened()
    talk.say("one")
    talk.say("/set max-tokens 2")
    shown = talk.say("two")
    assert "The sky\n" in shown
    assert "(ended: max-tokens 2 are written)" in shown
    talk.say("/set max-tokens 3")
    assert "temp is 0" in (shown := talk.say("/regen"))
    assert "The sky is\n" in shown
    one, two = ("one", SHORT_TEXT, "end_of_generation"), ("two", "The sky is", "max_tokens")
    assert saved(talk, file) == [one, two]
    assert "1 turn left" in talk.say("/undo")
    talk.wait("two")
    talk.child.send("\x03")
    talk.wait()
    assert "The sky is\n" in talk.say("three")
    talk.end()
    talk = opened()
    shown = talk.say(f"/load {file}")
    assert "2 turns loaded" in shown
    assert "> two\nThe sky is\n" in shown
    assert "max-tokens 3" in talk.say("/show")
    assert f"> one\n{SHORT_TEXT}\n> two\nThe sky is\n" in talk.say("/show all")
    assert saved(talk, file) == [one, two]
    (tmp_path / "bad.json").write_text("{}")
    assert "is no saved conversation" in talk.say(f"/load {tmp_path / 'bad.json'}")
    talk.end()


def test_a_full_context_loses_nothing(opened: Open, tmp_path: Path) -> None:
    talk = opened("short", "-c", "200")
    n_turns = 0
    while "error" not in (shown := talk.say("a message of some length")) and n_turns < 20:
        n_turns += 1
    assert re.search(
        r"is \d+ tokens for the (base|nudging) model, its context is 200\. Nothing is lost", " ".join(shown.split())
    )
    talk.wait("a message of some length")
    talk.child.send("\x03")
    talk.wait()
    assert len(saved(talk, tmp_path / "c.json")) == n_turns > 1
    talk.say("/clear")
    assert SHORT_TEXT in talk.say("hi")
    talk.end()


def test_resizing_between_and_inside_answers(opened: Open) -> None:
    talk = opened("long", delay_s=0.002, columns=100)
    talk.child.send("go\r")
    talk.wait("word5")
    talk.child.setwinsize(20, 50)
    shown = talk.wait()
    assert "word399" in shown
    note = next(line for line in shown.splitlines() if line.startswith("(base "))
    assert len(note) <= 50
    talk.child.send("/x")
    talk.wait("/x")
    talk.child.setwinsize(30, 120)
    talk.wait("/x")  # the input line is drawn anew
    talk.child.send("\r")
    talk.wait("no command is called /x")
    talk.wait()
    talk.end()


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here")
def test_the_status_line_is_under_the_prompt_and_leaves_nothing_behind(tmp_path: Path) -> None:
    tmux = ["tmux", "-f", "/dev/null", "-S", str(tmp_path / "tmux")]
    words = [sys.executable, str(HERE / "cli_fakes.py"), "short", "0", "chat", *FILES]
    folders = [f"EDGE_NUDGE_{name}_DIR={tmp_path / name.lower()}" for name in ("STATE", "CACHE", "RUNTIME")]

    def screen(wanted: str) -> list[str]:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, encoding="utf-8", check=False)
            if wanted in shown.stdout:
                return shown.stdout.rstrip("\n").split("\n")
            time.sleep(0.05)
        raise AssertionError(shown.stdout + shown.stderr)

    subprocess.run([*tmux, "new-session", "-d", "-x", "90", "-y", "20", "env", *folders, *words], check=True)
    try:
        lines = screen("nudging 0 of 4096")
        assert lines[-1] == "base+nudging · gamma 0.4 · context base 0 of 4096, nudging 0 of 4096 · /help"
        subprocess.run([*tmux, "send-keys", "hi", "Enter"], check=True)
        lines = screen("base ~")
        assert [line for line in lines if "· /help" in line] == lines[-1:]
        assert lines[2:6] == [
            "> hi", "The sky is blue by day and", "black later.",
            "(base 4, nudging 4 tokens (50% nudging): The · blue by day · black)",
        ]  # fmt: skip
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def test_completion_of_commands_and_settings(opened: Open) -> None:
    talk = opened()
    talk.child.send("/sta")
    talk.wait("counts of the last answer")
    talk.child.send("\t")
    talk.wait("ts")  # the rest of the word, where the cursor is
    assert "no answer yet" in talk.say("")
    talk.child.send("/set top-k")
    talk.wait("top-k")
    assert "settings: top-k 7" in talk.say(" 7")
    talk.end()


def test_control_characters_of_a_model_are_made_visible(opened: Open, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport cli_fakes as f\n"
        r"f.SCRIPTS['short'] = (('hi', f.N), (' \x1b]52;c;AAAA\x07', f.B), (' \x1b[2J\u202e', f.N), (' end', f.B))"
        "\nf.main()\n"
    )
    talk = opened(program=(str(evil), "short", "0", "chat", *FILES))
    shown = talk.say("x")
    assert r"hi \x1b]52;c;AAAA\x07" in shown
    assert r" \x1b[2J\u202e end" in shown
    assert "\x1b[2J" not in talk.raw
    assert "\x1b]52" not in talk.raw
    assert r"\x1b[2J\u202e" in talk.say("/show all")
    talk.end()


def test_a_running_server_answers(opened: Open, start_server: Start, tmp_path: Path) -> None:
    start_server().ready()
    talk = opened("stuck")  # nothing may be loaded here: that would never come back
    assert SHORT_TEXT in talk.say("hi")
    assert SHORT_TEXT in talk.say("and?")
    assert "from the cache" in talk.say("/stats")
    assert len(saved(talk, tmp_path / "c.json")) == 2
    talk.end()


# --- the demo pair


@pytest.mark.native
@pytest.mark.demo
def test_a_follow_up_reads_only_what_is_new(opened: Open, demo_paths: tuple[Path, Path]) -> None:
    base, nudging = map(str, demo_paths)
    program = ("-m", "edge_nudge.cli.main", "chat", "--no-server", "-m", base, "--nudge", nudging)
    talk = opened("", "-n", "12", "-t", "1", "-c", "1024", program=program)
    talk.child.timeout = 300  # the machine may be busy
    talk.say("Name three large rivers.")
    talk.say("Which one is the longest?")
    stats = talk.say("/stats")
    found = re.findall(r"prompt of (\d+) tokens, (\d+) from the cache and (\d+) read", stats)
    assert len(found) == 2, stats
    for n_prompt, n_reused, n_read in (map(int, numbers) for numbers in found):
        assert n_reused > n_prompt // 2
        assert n_read <= n_prompt - n_reused
        assert n_read < 30
    talk.end()
