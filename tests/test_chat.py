"""The conversation of a chat, its settings, commands and files: no terminal and no models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Invoke, fake_pair, invoker, no_load
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge.cli.chatting import saved, settings, words
from edge_nudge.cli.chatting.commands import COMMANDS, Desk, Outcome, is_unfinished, run_command, unquoted
from edge_nudge.cli.chatting.conversation import Conversation, Span, Turn, spans_of
from edge_nudge.cli.chatting.screen import TerminalScreen
from edge_nudge.cli.chatting.state import Chat
from edge_nudge.core.events import FinishDetail, Finished, FinishReason, HandoffReason, Piece, Role, Usage
from edge_nudge.core.request import build_request
from edge_nudge.document import about_pair
from edge_nudge.errors import ContextOverflowError, InputError
from edge_nudge.spec import PairSpec

B, N = Role.BASE, Role.NUDGING
FILES_SPEC = PairSpec(Path("base.gguf"), Path("nudging.gguf"))
SPANS = (Span(N, "The"), Span(B, " sky\nis \x1b[2Jé"))
invoke = pytest.fixture(invoker)


class Paper:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.turns: list[Turn] = []

    def say(self, text: str, indent: int = 0) -> None:
        self.lines.append(text)

    def show_turn(self, turn: Turn) -> None:
        self.turns.append(turn)


@pytest.fixture
def desk() -> Desk:
    with fake_pair() as pair:
        return Desk(Chat(FILES_SPEC, about_pair(pair)), Paper(), saved.Files())


def do(desk: Desk, line: str) -> tuple[Outcome, list[str]]:
    screen = desk.screen
    assert isinstance(screen, Paper)
    screen.lines.clear()
    return run_command(desk, line), screen.lines


def piece(text: str, author: Role) -> Piece:
    return Piece(text, author, None, HandoffReason.OPENING, 1)


def finished(detail: FinishDetail = FinishDetail.END_OF_GENERATION, n_prompt: int = 10) -> Finished:
    usage = Usage()
    usage.base.n_prompt, usage.base.n_written, usage.nudging.n_prompt, usage.nudging.n_written = n_prompt, 2, 12, 1
    return Finished(FinishReason.STOP, detail, usage, 0)


def say(chat: Chat, text: str, *answer: str, detail: FinishDetail = FinishDetail.END_OF_GENERATION) -> bool:
    return chat.keep(text, [piece(part, B) for part in answer], finished(detail))


# --- the conversation


def test_an_answer_goes_back_as_it_came(desk: Desk) -> None:
    chat = desk.chat
    chat.conversation = chat.conversation.with_system("Be brief.")
    assert chat.keep("hi", [piece(" a", N), piece("\n", B), piece("b ", B)], finished())
    assert chat.conversation.turns[0].spans == (Span(N, " a"), Span(B, "\nb "))
    messages = chat.request("and?").messages
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be brief."), ("user", "hi"), ("assistant", " a\nb "), ("user", "and?"),
    ]  # fmt: skip
    assert len(chat.request("hi", is_anew=True).messages) == 2


def test_a_stopped_answer_is_kept_and_no_answer_is_not(desk: Desk) -> None:
    chat = desk.chat
    assert not chat.keep("hi", [], finished(FinishDetail.CANCELLED))
    assert not chat.keep("hi", [], None)
    assert chat.conversation.turns == ()
    assert say(chat, "hi", "wo", detail=FinishDetail.CANCELLED)
    assert chat.keep("more", [piece("x", B)], None)
    assert [(turn.answer, turn.ending) for turn in chat.conversation.turns] == [("wo", "cancelled"), ("x", "error")]
    assert chat.keep("nothing", [], finished())  # the models ended at once: that is an answer


def test_an_answer_anew_replaces_the_old_one_only_if_there_is_one(desk: Desk) -> None:
    chat = desk.chat
    say(chat, "a", "1")
    say(chat, "b", "2")
    assert not chat.keep("b", [], finished(FinishDetail.CANCELLED), is_anew=True)
    assert [turn.answer for turn in chat.conversation.turns] == ["1", "2"]
    assert chat.keep("b", [piece("3", B)], finished(), is_anew=True)
    assert [turn.answer for turn in chat.conversation.turns] == ["1", "3"]


def test_the_context_is_known_but_after_a_server_that_was_hung_up_on(desk: Desk) -> None:
    chat = desk.chat
    assert "base 0 of 4096, nudging 0 of 4096" in words.status(chat)
    say(chat, "a", "1")
    assert "base ~13 of 4096, nudging ~15 of 4096" in words.status(chat)
    chat.keep("b", [piece("2", B)], finished(FinishDetail.CANCELLED, n_prompt=0))
    assert "base ? of 4096" in words.status(chat)
    chat.undo()
    assert "base ~13 of 4096" in words.status(chat)


def test_pieces_of_one_author_are_one_span() -> None:
    assert spans_of([piece("a", B), piece("b", B), piece("", N), piece("c", N)]) == (Span(B, "ab"), Span(N, "c"))


def test_notes_break_between_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    screen = TerminalScreen({"color": "never"}, lambda: False)
    path = "/a-long/path/that-has/no-room/in-a/line.gguf"
    screen.say(f"  /clear  begin a new conversation; all stay\n\nerror: {path} is\x1b not there", 10)
    screen.show_turn(Turn("a message is shown as it was typed in", (), ""))
    assert capsys.readouterr().out == (
        "  /clear  begin a new\n          conversation; all\n          stay\n\n"
        f"error:\n          {path}\n          is\\x1b not there\n"
        "> a message is shown as it was typed in\n"
    )


def test_who_wrote_what_fits_the_line() -> None:
    spans = (Span(N, " one"), Span(B, "x"), Span(N, "two\x1b"), Span(N, " "))
    whole = "base 2, nudging 1 tokens (33% nudging): one · two\\x1b"
    assert words.authorship(spans, finished(), 200) == whole
    for width in range(45, 60):
        line = words.authorship(spans, finished(), width)
        assert len(line) <= width
        assert line == whole or line in ("base 2, nudging 1 tokens (33% nudging): one …", whole.partition(":")[0])


@pytest.mark.parametrize("detail", list(FinishDetail))
def test_every_ending_has_its_words(desk: Desk, detail: FinishDetail) -> None:
    is_normal = detail in (FinishDetail.END_OF_GENERATION, FinishDetail.RESTART_GUARD, FinishDetail.CONTROL_TOKEN)
    assert (words.ending(desk.chat, finished(detail)) is None) == is_normal
    if "context" in detail.value:
        assert "/clear" in str(words.ending(desk.chat, finished(detail)))


def test_a_full_context_says_what_to_do() -> None:
    text = words.overflow(ContextOverflowError("nudging", 5000, 4096))
    for part in ("5000 tokens for the nudging model", "4096", "Nothing is lost", "/clear", "--ctx-size"):
        assert part in text


# --- what was typed


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("hello", "hello"), (" /bye", " /bye"), ('"""a\nb"""', "a\nb"), ('"""\na\n\nb\n"""', "a\n\nb"),
        ('"""/x"""', "/x"), ('/system """\na\nb\n"""', "a\nb"), ('""""""', ""), ('say """x"""', 'say """x"""'),
    ],
)  # fmt: skip
def test_quotes_are_no_part_of_the_text(typed: str, text: str) -> None:
    assert not is_unfinished(typed)
    assert unquoted(typed) == text


@pytest.mark.parametrize("typed", ['"""', '"""a', '"""a\n', '/system """a\n', '""""'])
def test_open_quotes_are_unfinished(typed: str) -> None:
    assert is_unfinished(typed)


@given(st.text())
def test_any_text_can_be_quoted(text: str) -> None:
    typed = f'"""\n{text}\n"""'
    assert not is_unfinished(typed)
    assert unquoted(typed) == text


@given(st.text())
def test_any_command_line_is_done_or_refused(text: str) -> None:
    with fake_pair() as pair:
        desk = Desk(Chat(FILES_SPEC, about_pair(pair)), Paper(), saved.Files())
    before = desk.chat.settings
    for line in (f"/{text}", f"/set {text}", f"/gamma {text}", f"/system {text}", f"/nudges {text}"):
        try:
            run_command(desk, line)
        except InputError:
            assert desk.chat.settings == before
        before = desk.chat.settings


# --- commands


def test_help_lists_all_commands_and_settings(desk: Desk) -> None:
    _, lines = do(desk, "/help")
    text = "\n".join(lines)
    assert all(f"  {name} " in text for name in COMMANDS)
    assert set(COMMANDS) == {
        "/help", "/bye", "/clear", "/regen", "/undo", "/system", "/set", "/show", "/stats", "/save", "/load", "/gamma",
        "/nudges",
    }  # fmt: skip
    for name in ("gamma", "max-tokens", "top-k", "stop", "loop-guard"):
        assert name in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/regne", "no command is called /regne: did you mean /regen?"),
        ("/etc/passwd what", "a blank in front makes it a message"),
        ("/bye now", "stands alone"),
        ("/undo", "nothing to take back"),
        ("/regen", "no answer yet"),
        ("/set temp", "what should temp be?"),
        ("/set tmp 1", "no setting is called tmp: did you mean temp?"),
        ("/set system x", "set with /system"),
        ("/set temp warm", "invalid value for temp: 'warm' is not a valid float"),
        ("/set temp -1", "temp -1.0: Input should be greater than or equal to 0"),
        ("/set --top-p 2", "top-p 2.0: Input should be less than or equal to 1"),
        ("/set rule best", "'best' is not one of 'top_prob'"),
        ("/set seed 1.5", "is not a valid integer"),
        ("/set loop-guard maybe", "loop-guard is on or off"),
        ('/set stop "a', "is no text in double quotes"),
        ("/gamma nan", "gamma"),
        ("/nudges maybe", "on or off"),
        ("/show everything", "/show all"),
        ("/save", "where to?"),
        ("/load", "which one?"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(desk: Desk, line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        run_command(desk, line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert desk.chat.settings == {}


def test_settings_by_their_option_names(desk: Desk) -> None:
    for line in (
        "/set max-tokens 5", "/set -n 6", "/set --TEMP 0.5", "/set top_k 3", "/set rule margin",
        "/set no-loop-guard on", "/set verify-ahead off", r'/set stop "a b" "\n"', "/gamma 0.3",
    ):  # fmt: skip
        do(desk, line)
    assert desk.chat.settings == {
        "max_tokens": 6, "temp": 0.5, "top_k": 3, "rule": "margin", "loop_guard": False, "verify_ahead": False,
        "stop": ("a b", "\n"), "gamma": 0.3,
    }  # fmt: skip
    request = desk.chat.request("x")
    assert (request.nudge.loop_guard, request.stop, request.nudge.threshold) == (False, ("a b", "\n"), 0.3)
    assert do(desk, "/set loop-guard default")[1] == [
        'settings: max-tokens 6, temp 0.5, top-k 3, rule margin, verify-ahead off, stop "a b" "\\n", gamma 0.3'
    ]
    assert "margin gamma 0.3" in words.status(desk.chat)
    assert do(desk, "/gamma default")[1] == ["gamma 0.2, the default (rule margin)"]


def test_every_option_of_a_request_is_a_setting() -> None:
    assert {name.replace("-", "_") for name in settings.NAMES} == set(settings.FIELDS)


def test_undo_gives_the_message_back_and_clear_can_be_undone(desk: Desk) -> None:
    chat = desk.chat
    say(chat, "one", "1")
    say(chat, "/two", "2")
    assert do(desk, "/undo")[0].text == '"""/two"""'
    do(desk, "/clear")
    assert chat.conversation.turns == ()
    assert do(desk, "/undo")[0].text == ""
    assert [turn.user for turn in chat.conversation.turns] == ["one"]
    do(desk, "/clear")
    say(chat, "three", "3")
    assert do(desk, "/undo")[0].text == "three"
    with pytest.raises(InputError):
        run_command(desk, "/undo")


def test_the_system_message_is_set_shown_and_removed(desk: Desk) -> None:
    do(desk, '/system """\nBe\nbrief.\n"""')
    assert desk.chat.request("x").messages[0].content == "Be\nbrief."
    assert "Be\nbrief." in do(desk, "/system")[1][0]
    do(desk, "/clear")
    assert desk.chat.conversation.system == "Be\nbrief."
    do(desk, "/system none")
    assert len(desk.chat.request("x").messages) == 1


def test_regen_says_when_the_answer_will_be_the_same(desk: Desk) -> None:
    say(desk.chat, "hi", "1")
    outcome, lines = do(desk, "/regen")
    assert (outcome.asks_anew, "temp is 0" in lines[0]) == ("hi", True)
    do(desk, "/set temp 0.8")
    assert do(desk, "/regen") == (Outcome(asks_anew="hi"), [])
    do(desk, "/set seed 3")
    assert "seed is 3" in do(desk, "/regen")[1][0]


def test_show_and_stats(desk: Desk) -> None:
    assert do(desk, "/stats")[1] == ["no answer yet"]
    say(desk.chat, "hi", "1", "2")
    assert do(desk, "/stats")[1][-1] == "this chat: 1 answer, written tokens: base 2, nudging 0"
    assert any("conversation: 1 turn, context base ~13 of 4096" in line for line in do(desk, "/show all")[1])
    assert isinstance(desk.screen, Paper)
    assert desk.screen.turns == list(desk.chat.conversation.turns)


# --- files


def test_a_saved_conversation_comes_back_whole(desk: Desk, tmp_path: Path) -> None:
    chat, file = desk.chat, tmp_path / "c.json"
    chat.conversation = Conversation("S", (Turn("hi\n", SPANS, "cancelled"), Turn("", (), "max_tokens")))
    do(desk, "/set temp 0.5")
    do(desk, r'/set stop "x" "\n"')
    kept = chat.conversation
    do(desk, f"/save {file}")
    assert os.name != "posix" or file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    do(desk, "/clear")
    do(desk, "/set temp default")
    chat.conversation = Conversation()
    do(desk, f"/load {file}")
    assert chat.conversation == kept
    assert chat.request("x") == build_request(kept.messages("x"), temp=0.5, stop=["x", "\n"])
    do(desk, f"/save {file}")  # what was read last may be replaced


def test_nothing_foreign_is_overwritten(desk: Desk, tmp_path: Path) -> None:
    file, link = tmp_path / "notes.txt", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is there already, and nothing is overwritten"):
        run_command(desk, f"/save {file}")
    assert file.read_text() == "mine"
    own = tmp_path / "own.json"
    do(desk, f"/save {own}")
    do(desk, f"/save {own}")
    own.write_text("changed")
    with pytest.raises(InputError, match="was changed by somebody else"):
        run_command(desk, f"/save {own}")
    assert own.read_text() == "changed"
    with pytest.raises(InputError, match="cannot be written"):
        run_command(desk, f"/save {tmp_path / 'none' / 'a.json'}")
    with pytest.raises(InputError):
        run_command(desk, f"/save {tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "notes.txt", "own.json"]


def _document(**changes: Any) -> bytes:
    document = {
        "format": "edge-nudge conversation", "version": 1, "models": {}, "system": None, "settings": {},
        "turns": [{"user": "a", "answer": [{"author": "base", "text": "b"}], "ending": "x"}],
    }  # fmt: skip
    return json.dumps({**document, **changes}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no saved conversation"),
        (b"\xff\xfe", "is no saved conversation"),
        (b"[1]", "is no saved conversation"),
        (_document(format="other"), "format"),
        (_document(version=2), "version"),
        (_document(turns=[{"user": 1, "answer": [], "ending": ""}]), "turns.0.user"),
        (_document(turns=[{"user": "", "answer": [{"author": "me", "text": ""}], "ending": ""}]), "turns.0.answer.0"),
        (_document(more=1), "more"),
        (_document(settings={"temp": -1}), "temp"),
        (_document(settings={"messages": []}), "there is no messages"),
        (_document(settings={"\x1b[2J": 1}), "there is no \\x1b[2J"),
        (_document(system="\ud800"), "is no saved conversation"),
    ],
)
def test_a_file_is_checked_before_anything_of_it_is_used(desk: Desk, tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(data)
    say(desk.chat, "hi", "1")
    before = desk.chat.conversation
    with pytest.raises(InputError) as caught:
        run_command(desk, f"/load {file}")
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert desk.chat.conversation is before


def test_a_file_that_is_not_there(desk: Desk, tmp_path: Path) -> None:
    for name, message in ((tmp_path / "no", "is not there"), (tmp_path, "is no file"), ("a\0b", "is no file name")):
        with pytest.raises(InputError, match=message):
            run_command(desk, f"/load {name}")


# --- the command


@pytest.mark.parametrize(("tty", "stdin", "which"), [("out err", b"hi\n", "input"), ("err", None, "output")])
def test_without_a_terminal_chat_points_to_run(invoke: Invoke, tty: str, stdin: bytes | None, which: str) -> None:
    ended = invoke("chat", "-m", "a", "--nudge", "b", tty=tty, stdin=stdin, load=no_load)
    assert ended.code == 2
    assert f"chat needs a terminal, and standard {which} is none: one prompt is answered by run" in ended.error


@pytest.mark.parametrize(("option", "value"), [("--temp", "-1"), ("--top-p", "7"), ("--gamma", "-2")])
def test_a_wrong_option_is_found_before_anything_is_loaded(invoke: Invoke, option: str, value: str) -> None:
    ended = invoke("chat", "-m", "a", "--nudge", "b", option, value, tty="out err", load=no_load)
    assert (ended.code, ended.error.startswith(f"error: {option} {float(value)}: ")) == (2, True)
