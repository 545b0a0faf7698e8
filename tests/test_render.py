"""What a terminal shows: escapes, colours, the end of an answer, totals."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge.cli.render import AnswerView, Painter, legend, one_line, totals, visible, wants_color
from edge_nudge.core.events import FinishDetail, Finished, FinishReason, HandoffReason, ModelUsage, Piece, Role, Usage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x1b[2J\x00\x7f\r\n", "\\x1b[2J\\x00\\x7f\\x0d\n"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("\u202egnp\u2069", "\\u202egnp\\u2069"),
        ("a\u200bb\ufeff\u2028", "a\\u200bb\\ufeff\\u2028"),
        ("👩\u200d🔬 e\u0301 ❤\ufe0f می\u200cخواهم", "👩\u200d🔬 e\u0301 ❤\ufe0f می\u200cخواهم"),
        ("日本 שלום \u200f", "日本 שלום \u200f"),
        ("a\udcffb", "a\\udcffb"),
    ],
)
def test_what_a_terminal_would_act_on_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(), st.text())
def test_visible_text_holds_no_control_character_wherever_a_piece_is_cut(a: str, b: str) -> None:
    shown = visible(a) + visible(b)
    assert shown == visible(a + b) == visible(shown)
    assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in shown if c not in "\n\t")
    assert not any(unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF") for c in shown)


def test_every_control_character_is_covered() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]:
        if chr(code) not in "\n\t":
            assert visible(chr(code)).isascii()
            assert visible(chr(code)).isprintable()


def test_a_name_is_one_line() -> None:
    assert one_line("a\n\tb\x1b") == "a\\n\\tb\\x1b"


def test_colour_is_for_terminals_that_have_it() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    assert wants_color("auto", terminal, {"TERM": "xterm"})
    assert wants_color("auto", terminal, {"NO_COLOR": ""})
    assert not wants_color("auto", terminal, {"NO_COLOR": "1"})
    assert not wants_color("auto", terminal, {"TERM": "dumb"})
    assert not wants_color("auto", pipe, {"TERM": "xterm"})
    assert wants_color("always", pipe, {"NO_COLOR": "1"})
    assert not wants_color("never", terminal, {"TERM": "xterm"})


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"TERM": "xterm"}, "1;35"),
        ({"TERM": "xterm-256color"}, "1;38;5;133"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "1;38;5;133"),
        ({"TERM": "dumb"}, "1;35"),  # colour was forced
    ],
)
def test_the_colour_suits_the_terminal(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: str) -> None:
    for name in ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    painter = Painter(io.StringIO(), True)
    assert painter(" [bold]x[/] :smile:\t\r", Role.NUDGING) == f"\x1b[{code}m [bold]x[/] :smile:\t\r\x1b[0m"
    assert painter("x", Role.BASE) == "x"
    assert painter("", Role.NUDGING) == ""
    assert Painter(io.StringIO(), False)("x", Role.NUDGING) == "x"


def shown(texts: list[str], *, is_terminal: bool, is_on: bool = False, is_interrupted: bool = False) -> str:
    out: list[str] = []
    view = AnswerView(out.append, Painter(io.StringIO(), is_on), is_terminal=is_terminal)
    for text in texts:
        view.show(Piece(text, Role.BASE, None, HandoffReason.CONFIDENT, 1))
    view.end(is_interrupted=is_interrupted)
    assert len(out) >= len(texts)  # each piece is on its way at once
    return "".join(out)


def test_a_pipe_gets_the_answer_and_one_newline() -> None:
    assert shown(["a\r", "\n\x1b"], is_terminal=False) == "a\r\n\x1b\n"
    assert shown(["a\n"], is_terminal=False) == "a\n\n"
    assert shown([], is_terminal=False) == "\n"


def test_a_terminal_gets_an_ended_line() -> None:
    assert shown(["a", "b"], is_terminal=True) == "ab\n"
    assert shown(["a\n"], is_terminal=True) == "a\n"
    assert shown([], is_terminal=True) == ""
    assert shown(["a\n"], is_terminal=True, is_interrupted=True) == "a\n\n"  # behind the terminal's own ^C
    assert shown(["a"], is_terminal=False, is_interrupted=True) == "a\n"


def test_forced_colour_escapes_too_because_a_pager_would_act() -> None:
    assert shown(["\x1b[2J"], is_terminal=False, is_on=True) == "\\x1b[2J\n"


def test_the_legend_names_both_models_and_hides_nothing() -> None:
    painter = Painter(io.StringIO(), False)
    assert legend("a\x1b", "b\n", painter) == "base model a\\x1b · nudging model b\\n"


def finished(detail: FinishDetail, stop_string: str | None = None, **usage: float) -> Finished:
    reason = FinishReason.CANCELLED if detail is FinishDetail.CANCELLED else FinishReason.STOP
    base, nudging = ModelUsage(n_written=30, n_chars=150), ModelUsage(n_written=10, n_chars=50)
    return Finished(reason, detail, Usage(base, nudging, 1, **usage), 99, stop_string)


def test_totals_tell_numbers_and_the_end() -> None:
    whole = finished(FinishDetail.STOP_STRING, "\n#\x1b", first_piece_s=0.126, total_s=4.0)
    assert totals(whole, is_drawn=True, width=999) == (
        "30 base + 10 nudging tokens · nudging ratio 25.0% (25.0% of characters) · 1 handoff · 10.0 tokens/s · "
        "first word 0.13 s · seed 99 · stop: stop string '\\n#\\x1b'"
    )
    assert totals(finished(FinishDetail.CANCELLED), is_drawn=False, width=999) == (
        "30 base + 10 nudging tokens · nudging ratio 25.0% (25.0% of characters) · 1 handoff · cancelled"
    )
    assert Usage().tokens_per_s is None


@pytest.mark.parametrize("width", [1, 40, 80, 120])
def test_totals_break_between_their_parts_only(width: int) -> None:
    event = finished(FinishDetail.RESTART_GUARD, first_piece_s=0.1, total_s=1.0)
    lines = totals(event, is_drawn=False, width=width).split("\n")
    assert " · ".join(lines) == totals(event, is_drawn=False, width=999)
    assert all(len(line) <= width or " · " not in line for line in lines)
