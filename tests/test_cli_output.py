"""What the command line prints where: pipes, terminals, colour, totals, JSON."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import SHORT, Ended, Invoke, invoker, loader, text_of
from tiny_gguf import write_tiny

from edge_nudge import runtime
from edge_nudge.core.events import FinishDetail, Finished, FinishReason, HandoffReason, Piece, Role, Usage
from edge_nudge.core.request import build_request
from edge_nudge.document import answer_document, to_json

FILES = ("-m", "base.gguf", "--nudge", "nudging.gguf")

invoke = pytest.fixture(invoker)


def plain(text: str) -> str:
    """Return a terminal's text without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)


# --- what goes where


def test_piped_output_is_the_answer_and_one_newline(invoke: Invoke) -> None:
    ended = invoke("run", *FILES, "hi")
    assert ended == Ended(0, text_of(SHORT) + "\n", "")


TOTALS = re.compile(
    r"4 base \+ 4 nudging tokens · nudging ratio 50\.0% \(51\.3% of characters\) · 6 handoffs · "
    r"[0-9.]+ tokens/s · first word [0-9]+\.[0-9]{2} s · stop: end of generation"
)


def test_totals_are_shown_where_asked_for_or_on_a_terminal(invoke: Invoke) -> None:
    assert TOTALS.fullmatch(invoke("run", *FILES, "--totals", "hi").err.removesuffix("\n"))
    lines = plain(invoke("run", *FILES, "hi", tty="err").err).splitlines()
    assert TOTALS.fullmatch(" · ".join(lines[-2:]))  # 80 columns
    assert max(map(len, lines[-2:])) <= 80
    assert "tokens/s" not in invoke("run", *FILES, "--no-totals", "hi", tty="err").err


def test_a_drawn_answer_says_its_seed(invoke: Invoke) -> None:
    assert " · seed 5 · " in invoke("run", *FILES, "--totals", "--temp", "0.1", "--seed", "5", "hi").err


NUDGED = "\x1b[1;38;5;133m{}\x1b[0m".format
GOLDEN = f"{NUDGED('The')} sky is{NUDGED(' blue')}{NUDGED(' by')}{NUDGED(' day')} and\n{NUDGED('black')} later."
LEGEND = "base model base · \x1b[1;38;5;133mnudging model nudging\x1b[0m\n"


def test_a_terminal_shows_who_wrote_what(invoke: Invoke) -> None:
    ended = invoke("run", *FILES, "--no-totals", "hi", tty="out")
    assert ended == Ended(0, GOLDEN + "\n", "base model base · nudging model nudging\n")
    assert invoke("run", *FILES, "--no-totals", "hi", tty="out err").err.endswith(LEGEND)


def test_colour_follows_the_option_then_no_color_then_the_terminal(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(SHORT) + "\n"
    assert invoke("run", *FILES, "--color", "always", "hi") == Ended(0, GOLDEN + "\n", LEGEND)
    assert invoke("run", *FILES, "--color", "never", "hi", tty="out") == Ended(0, text, "")
    monkeypatch.setenv("NO_COLOR", "1")
    assert invoke("run", *FILES, "hi", tty="out") == Ended(0, text, "")
    assert "\x1b[" in invoke("run", *FILES, "--color", "always", "hi").out
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in invoke("run", *FILES, "hi", tty="out").out
    monkeypatch.setenv("TERM", "dumb")
    assert invoke("run", *FILES, "hi", tty="out") == Ended(0, text, "")


HOSTILE = (("Say", Role.NUDGING), (" \x1b[2J", Role.BASE), (" \u202ex", Role.NUDGING), (" \x9b31m\r", Role.BASE))


def test_control_characters_of_a_model_act_on_no_terminal(invoke: Invoke) -> None:
    load = loader(HOSTILE)
    text = text_of(HOSTILE)
    shown = "Say \\x1b[2J \\u202ex \\x9b31m\\x0d\n"
    assert invoke("run", *FILES, "hi", load=load).out == text + "\n"
    assert invoke("run", *FILES, "--color", "never", "hi", tty="out", load=load).out == shown
    forced = invoke("run", *FILES, "--color", "always", "hi", load=load).out
    assert plain(forced) == shown


def test_a_file_name_acts_on_no_terminal(invoke: Invoke) -> None:
    ended = invoke("run", "-m", "\x1b]8;;x\x07.gguf", "--nudge", "b\n.gguf", "--color", "always", "hi")
    assert plain(ended.err) == "base model \\x1b]8;;x\\x07 · nudging model b\\n\n"


def test_loading_is_said_on_a_terminal_only_and_taken_away(invoke: Invoke) -> None:
    shown = invoke("run", *FILES, "--no-totals", "hi", tty="err").err
    assert "loading base.gguf and nudging.gguf" in shown
    assert shown.rindex("\x1b[2K") > shown.rindex("loading")  # the line is erased
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert "loading" not in invoke("run", *FILES, "hi").err


def test_notes_are_for_terminals_and_defects_for_the_curious(invoke: Invoke) -> None:
    notes, threads = ["both models: no GPU offload"], "threads: 2 (as asked for)"
    load = loader(notes=notes, threads=threads, defects={Role.NUDGING: "it has no token for the bytes 04"})
    defect = "nudging model: it has no token for the bytes 04"
    assert invoke("run", *FILES, "hi", load=load).err == ""
    on_terminal = invoke("run", *FILES, "--no-totals", "hi", load=load, tty="err").err
    assert on_terminal.endswith(f"{notes[0]}\n")
    verbose = invoke("run", *FILES, "-v", "-c", "9000", "hi", load=load).err
    assert verbose.splitlines()[:2] == [*notes, threads]
    assert "base model: a context of 9000 tokens was asked for, it has 4096" in verbose
    assert defect in invoke("run", *FILES, "-v", "hi", load=load).err.splitlines()


# --- JSON


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    for name in ("base", "nudging"):
        (tmp_path / f"{name}.gguf").write_bytes(name.encode())
    return "-m", str(tmp_path / "base.gguf"), "--nudge", str(tmp_path / "nudging.gguf")


def keys_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: keys_of(item) for key, item in value.items()}
    return [keys_of(value[0])] if isinstance(value, list) and value else None


EVALUATED = dict.fromkeys(("prompt", "own", "catch_up", "reevaluated", "verified", "wasted"))
MODEL = dict.fromkeys(("name", "label", "file", "path", "sha256", "n_ctx", "gpu_layers", "offload"))
SCHEMA = {
    "text": None,
    "pieces": [dict.fromkeys(("text", "author", "top_prob", "reason", "n_tokens", "instead"))],
    "finish_reason": None,
    "finish_detail": None,
    "stop_string": None,
    "usage": dict.fromkeys(
        (
            "prompt_tokens", "nudging_prompt_tokens", "completion_tokens", "base_completion_tokens",
            "nudging_completion_tokens", "total_tokens",
        )
    ),
    "nudge": {
        **dict.fromkeys(("rule", "gamma", "lookahead", "ratio_tokens", "ratio_chars", "handoffs")),
        "evaluated": {"base": EVALUATED, "nudging": EVALUATED},
        "calls": dict.fromkeys(("base", "nudging")),
        "reused": dict.fromkeys(("base", "nudging")),
    },
    "timings": dict.fromkeys(
        ("load_s", "first_piece_s", "total_s", "tokens_per_s", "base_native_s", "nudging_native_s")
    ),
    "seed": None,
    "pair": {"name": None, "base": {**MODEL, "prompt_format": None}, "nudging": MODEL},
    "warnings": None,
}  # fmt: skip


def test_json_is_one_object_with_everything(invoke: Invoke, files: tuple[str, ...], tmp_path: Path) -> None:
    ended = invoke("run", *files, "--json", "--seed", "7", "--stop", "black", "hi")
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    found = json.loads(ended.out)
    assert keys_of(found) == SCHEMA
    assert found["text"] == text_of(SHORT[:6])
    assert "".join(piece["text"] for piece in found["pieces"]) == found["text"]
    assert [piece["author"] for piece in found["pieces"]][:3] == ["nudging", "base", "base"]
    assert (found["finish_reason"], found["finish_detail"], found["stop_string"]) == ("stop", "stop_string", "black")
    assert (found["seed"], found["nudge"]["gamma"], found["nudge"]["rule"]) == (7, 0.4, "top_prob")
    usage = found["usage"]
    assert usage["completion_tokens"] == usage["base_completion_tokens"] + usage["nudging_completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    base = found["pair"]["base"]
    assert (base["file"], base["path"]) == ("base.gguf", str(tmp_path / "base.gguf"))
    assert base["sha256"] == "cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2"


def test_json_hashes_every_part_of_a_split_model(invoke: Invoke, tmp_path: Path) -> None:
    write_tiny(tmp_path / "m.gguf", n_parts=3)
    parts = [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    hashes = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    ended = invoke("run", "--json", "-n", "1", "-m", str(parts[1]), "--nudge", str(parts[0]), "hi")
    base = json.loads(ended.out)["pair"]["base"]
    assert [(base["file"], base["sha256"]), *((part["file"], part["sha256"]) for part in base["more_parts"])] == [
        (part.name, sha256) for part, sha256 in zip(parts, hashes, strict=True)
    ]


def test_json_is_ascii_and_loses_nothing(invoke: Invoke, files: tuple[str, ...]) -> None:
    ended = invoke("run", *files, "--json", "hi", tty="out", load=loader(HOSTILE))
    assert ended.out.isascii()
    assert json.loads(ended.out)["text"] == text_of(HOSTILE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ended.out)


def test_json_holds_no_nan(invoke: Invoke) -> None:
    piece = Piece("a", Role.BASE, math.nan, HandoffReason.CONFIDENT, 1)
    finished = Finished(FinishReason.STOP, FinishDetail.LOOP, Usage(first_piece_s=math.inf), 1)
    request = build_request("hi", rule="base-only")
    made = answer_document([piece], finished, request=request, pair={}, load_s=math.nan, warnings=["w"])
    assert made["pieces"][0]["top_prob"] is made["timings"]["first_piece_s"] is made["timings"]["load_s"] is None
    assert made["timings"]["tokens_per_s"] is made["nudge"]["gamma"] is None
    assert json.loads(to_json(made)) == made


def test_the_pairs_own_threshold_is_reported(
    invoke: Invoke, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = runtime.PairSpec(Path(files[1]), Path(files[3]), name="demo", gamma=0.25)
    monkeypatch.setattr(runtime, "find_pair", lambda *_, **__: spec)
    found = [
        json.loads(invoke("run", "--json", "-n", "3", *more, "hi").out)
        for more in ((), ("--gamma", "0"), ("--rule", "margin"), ("--rule", "nudging-only"))
    ]
    assert [(one["nudge"]["gamma"], one["pair"]["name"]) for one in found] == [
        (0.25, "demo"), (0.0, "demo"), (0.2, "demo"), (None, "demo"),
    ]  # fmt: skip
