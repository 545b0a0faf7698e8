"""The command line: what it prints where, its exit codes, its one line for everything that goes wrong."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from cli_fakes import SHORT, loader, text_of

from edge_nudge import runtime
from edge_nudge.cli import options
from edge_nudge.cli.document import answer_document, to_json
from edge_nudge.cli.main import COMMANDS, EPILOG, commands, exit_status
from edge_nudge.core.events import FinishDetail, Finished, FinishReason, HandoffReason, Piece, Role, Usage
from edge_nudge.core.request import GenerateRequest, NudgeParams, Rule, SamplingParams, build_request
from edge_nudge.core.template import base_format
from edge_nudge.errors import EngineError, FetchError, InputError
from edge_nudge.version import __version__

HEAVY = ("numpy", "pydantic", "rich", "regex", "jinja2", "llama_cpp", "gguf", "filelock", "psutil", "platformdirs")
FILES = ("-m", "base.gguf", "--nudge", "nudging.gguf")


class Stream(io.TextIOWrapper):
    """A standard stream over memory, a terminal or not."""

    def __init__(self, data: bytes = b"", *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", newline="\n", write_through=True)
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    @property
    def text(self) -> str:
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode()


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failure; there is nothing else."""
        assert self.out == ""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removesuffix("\n")


Invoke = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    yield
    from edge_nudge.cli.verbosity import show_log

    show_log(0)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command line in this process, with a fake pair; `stdin` None is a terminal, `tty` names terminals."""

    def run_it(
        *arguments: str, stdin: bytes | None = None, tty: str = "", load: Callable[..., Any] | None = None
    ) -> Ended:
        out, err = Stream(is_terminal="out" in tty), Stream(is_terminal="err" in tty)
        monkeypatch.setattr(sys, "stdin", Stream(stdin or b"", is_terminal=stdin is None))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(runtime, "load_pair", load or loader())
        return Ended(exit_status(arguments), out.text, err.text)

    return run_it


@pytest.fixture
def no_load() -> Callable[..., Any]:
    def load_pair(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be loaded")

    return load_pair


# --- help and start


def test_importing_and_helping_pull_in_nothing_heavy() -> None:
    code = (
        "import sys, edge_nudge.cli.main as m\n"
        f"heavy = lambda: sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "before = heavy()\n"
        "codes = [m.exit_status(a) for a in (['--help'], ['run', '--help'], ['--version'], ['run', '--gama'])]\n"
        "print([before, heavy(), codes], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[[], [], [0, 0, 0, 2]]"


def test_the_module_runs_as_the_program_does() -> None:
    command = [sys.executable, "-m", "edge_nudge.cli.main", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edge-nudge, version {__version__}\n", "")


def test_help_lists_commands_and_exit_codes(invoke: Invoke) -> None:
    ended = invoke("--help")
    assert ended.code == 0
    assert all(f"  {name} " in ended.out for name in COMMANDS)
    assert [int(code) for code in re.findall(r"^ +(\d+)  ", ended.out, re.MULTILINE)] == [0, 1, 2, 3, 4, 130, 141]
    assert EngineError.exit_code == 1
    assert InputError.exit_code == 2
    assert FetchError.exit_code == 4
    assert "--help" in invoke().error


def test_completion_is_clicks_own() -> None:
    environment = {**os.environ, "_EDGE_NUDGE_COMPLETE": "bash_complete", "COMP_WORDS": "edge-nudge run --rule m"}
    done = subprocess.run(
        [sys.executable, "-m", "edge_nudge.cli.main"],
        env={**environment, "COMP_CWORD": "3"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "plain,margin\n"
    assert "_EDGE_NUDGE_COMPLETE" in EPILOG


# --- the options are those of the request


def run_params() -> dict[str, click.Option]:
    command = commands.get_command(click.Context(commands), "run")
    assert command is not None
    return {param.name or "": param for param in command.params if isinstance(param, click.Option)}


def test_every_field_of_a_request_has_its_option() -> None:
    fields = {*SamplingParams.model_fields, *NudgeParams.model_fields, *GenerateRequest.model_fields}
    assert set(options.REQUEST_FIELDS) == fields - {"messages", "sampling", "nudge", "loop_guard"}
    assert set(options.REQUEST_FIELDS) <= set(run_params())


def test_names_that_help_lists_are_those_that_exist() -> None:
    assert tuple(rule.value for rule in Rule) == options.RULES
    for name in options.FORMATS:
        assert base_format(name).name == name
    with pytest.raises(InputError) as error:
        base_format("none")
    assert ", ".join(options.FORMATS) in str(error.value)


@pytest.mark.parametrize("model", [SamplingParams, NudgeParams])
def test_help_states_the_defaults_of_the_request(model: Any) -> None:
    for name, field in model.model_fields.items():
        if name in options.REQUEST_FIELDS and field.default is not None:
            default = field.default.value if isinstance(field.default, Rule) else field.default
            assert re.search(rf"default {re.escape(str(default))}\b", run_params()[name].help or ""), name
    assert f"default {runtime.DEFAULT_CTX_SIZE}." in (run_params()["ctx_size"].help or "")


EVERY_OPTION = (
    "-s Short --gamma 0.3 --rule margin --lookahead 2 --end-prob 0.2 --max-turns 7 -n 9 --temp 0.5 --top-k 3 --top-p 0.8 "
    "--min-p 0.1 --seed 5 --stop a --stop b -c 64 -t 2 --no-loop-guard --base-gpu-layers 4 --nudge-gpu-layers auto "
    "--base-prompt-format plain"
)


def test_options_reach_the_request_and_the_loader(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load_pair(spec: runtime.PairSpec, **settings: Any) -> runtime.Pair:
        seen.update(spec=spec, settings=settings)
        return loader()(spec)

    def answer(pair: runtime.Pair, request: GenerateRequest) -> Any:
        seen["request"] = request
        raise EngineError("enough")

    monkeypatch.setattr(runtime.Pair, "answer", answer)
    ended = invoke("run", *FILES, *shlex.split(EVERY_OPTION), "hi", load=load_pair)
    assert ended.error == "error: enough"
    messages = [{"role": "system", "content": "Short"}, {"role": "user", "content": "hi"}]
    assert seen["request"] == build_request(
        messages, gamma=0.3, rule="margin", lookahead=2, end_prob=0.2, max_turns=7, max_tokens=9, temp=0.5,
        top_k=3, top_p=0.8, min_p=0.1, seed=5, stop=["a", "b"], loop_guard=False,
    )  # fmt: skip
    assert seen["settings"] == {"ctx_size": 64, "threads": 2, "base_gpu_layers": 4}
    assert seen["spec"] == runtime.PairSpec(Path("base.gguf"), Path("nudging.gguf"), base_prompt_format="plain")


# --- the prompt


def prompt_of(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: bytes | None = None) -> str:
    """Return the text that reaches the models."""
    requests: list[GenerateRequest] = []
    original = runtime.Pair.answer

    def answer(pair: runtime.Pair, request: GenerateRequest) -> Any:
        requests.append(request)
        return original(pair, request)

    monkeypatch.setattr(runtime.Pair, "answer", answer)
    assert invoke("run", *FILES, "-n", "1", *arguments, stdin=stdin).code == 0
    return requests[0].messages[-1].content


@pytest.mark.parametrize("data", [b"a\r\nb\n\n", b" \t x ", "日本\u200d\u0301".encode(), b"\0"])
@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_stdin_is_the_prompt_byte_for_byte(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, data: bytes, arguments: tuple[str, ...]
) -> None:
    assert prompt_of(invoke, monkeypatch, *arguments, stdin=data).encode() == data


def test_one_byte_order_mark_at_the_start_is_no_text(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    bom = "\ufeff"
    assert prompt_of(invoke, monkeypatch, stdin=f"{bom}{bom}a{bom}".encode()) == f"{bom}a{bom}"
    assert prompt_of(invoke, monkeypatch, f"{bom}a") == f"{bom}a"


def test_an_argument_goes_before_stdin_and_may_be_empty(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompt_of(invoke, monkeypatch, "hi", stdin=b"not this") == "hi"
    assert prompt_of(invoke, monkeypatch, "", stdin=b"not this") == ""
    assert prompt_of(invoke, monkeypatch, "-", stdin=b"") == ""
    assert prompt_of(invoke, monkeypatch, "--", "--gamma") == "--gamma"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"ab\xff", "standard input is not UTF-8: byte 0xff at position 2; convert it to UTF-8 first"),
        (b"\xef\xbb\xbfa\xc3", "standard input is not UTF-8: byte 0xc3 at position 4; convert it to UTF-8 first"),
        ("hi".encode("utf-16"), "standard input is not UTF-8: byte 0xff at position 0; it looks like UTF-16"),
        (b"\xed\xa0\x80", "standard input is not UTF-8: byte 0xed at position 0; convert it to UTF-8 first"),
        (b"", 'there is no prompt: standard input is empty (an empty prompt on purpose is "").'),
        (None, "there is no prompt: give it as an argument, or pipe it in."),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    invoke: Invoke, no_load: Callable[..., Any], stdin: bytes | None, message: str
) -> None:
    ended = invoke("run", *FILES, stdin=stdin, load=no_load)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("a\udcff",), "PROMPT"), (("-s", "\udcff", "a"), "-s"), (("--stop", "a", "--stop=\udcff", "a"), "--stop")],
)
def test_an_argument_that_was_no_utf8_is_refused(
    invoke: Invoke, no_load: Callable[..., Any], arguments: tuple[str, ...], name: str
) -> None:
    ended = invoke("run", *FILES, *arguments, load=no_load)
    assert ended.code == 2
    assert ended.error == f"error: {name} is not UTF-8: convert it first"


# --- what goes where


def test_piped_output_is_the_answer_and_one_newline(invoke: Invoke) -> None:
    ended = invoke("run", *FILES, "hi")
    assert ended == Ended(0, text_of(SHORT) + "\n", "")


TOTALS = (
    r"3 base \+ 5 nudging tokens · nudging ratio 62\.5% \(75\.0% of characters\) · 5 handoffs · "
    r"[0-9.]+ tokens/s · first word [0-9.]+ s · stop: end of generation\n"
)


def test_totals_are_shown_where_asked_for_or_on_a_terminal(invoke: Invoke) -> None:
    assert re.fullmatch(TOTALS, invoke("run", *FILES, "--totals", "hi").err)
    shown = invoke("run", *FILES, "hi", tty="err").err
    assert re.fullmatch(TOTALS.replace(" · ", r"( · |\n)"), shown.rpartition("\x1b[?25h")[2].lstrip("\r\x1b[12KA\n"))
    assert invoke("run", *FILES, "--no-totals", "hi", tty="err").err.count("tokens/s") == 0


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
    plain = text_of(SHORT) + "\n"
    assert invoke("run", *FILES, "--color", "always", "hi") == Ended(0, GOLDEN + "\n", LEGEND)
    assert invoke("run", *FILES, "--color", "never", "hi", tty="out") == Ended(0, plain, "")
    monkeypatch.setenv("NO_COLOR", "1")
    assert invoke("run", *FILES, "hi", tty="out") == Ended(0, plain, "")
    assert "\x1b[" in invoke("run", *FILES, "--color", "always", "hi").out
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in invoke("run", *FILES, "hi", tty="out").out
    monkeypatch.setenv("TERM", "dumb")
    assert invoke("run", *FILES, "hi", tty="out") == Ended(0, plain, "")


HOSTILE = (("Say", Role.NUDGING), (" \x1b[2J", Role.BASE), (" \u202ex", Role.NUDGING), (" \x9b31m\r", Role.BASE))


def test_control_characters_of_a_model_act_on_no_terminal(invoke: Invoke) -> None:
    load = loader(HOSTILE)
    text = text_of(HOSTILE)
    shown = "Say \\x1b[2J \\u202ex \\x9b31m\\x0d\n"
    assert invoke("run", *FILES, "hi", load=load).out == text + "\n"
    assert invoke("run", *FILES, "--color", "never", "hi", tty="out", load=load).out == shown
    forced = invoke("run", *FILES, "--color", "always", "hi", load=load).out
    assert re.sub(r"\x1b\[[0-9;]*m", "", forced) == shown


def test_a_file_name_acts_on_no_terminal(invoke: Invoke) -> None:
    ended = invoke("run", "-m", "\x1b]8;;x\x07.gguf", "--nudge", "b\n.gguf", "--color", "always", "hi")
    assert re.sub(r"\x1b\[[0-9;]*m", "", ended.err) == "base model \\x1b]8;;x\\x07 · nudging model b\\n\n"


def test_loading_is_said_on_a_terminal_only_and_taken_away(invoke: Invoke) -> None:
    shown = invoke("run", *FILES, "--no-totals", "hi", tty="err").err
    assert "loading base.gguf and nudging.gguf" in shown
    assert shown.rindex("\x1b[2K") > shown.rindex("loading")  # the line is erased
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert "loading" not in invoke("run", *FILES, "hi").err


def test_notes_are_for_terminals_and_defects_for_the_curious(invoke: Invoke) -> None:
    notes = ["both models: no GPU offload", "threads: 2 (as asked for)"]
    load = loader(notes=notes, defects={Role.NUDGING: "it has no token for the bytes 04"})
    defect = "nudging model: it has no token for the bytes 04"
    assert invoke("run", *FILES, "hi", load=load).err == ""
    on_terminal = invoke("run", *FILES, "--no-totals", "hi", load=load, tty="err").err
    assert on_terminal.endswith(f"{notes[0]}\n")
    verbose = invoke("run", *FILES, "-v", "-c", "9000", "hi", load=loader(notes=notes, n_ctx=4096)).err
    assert verbose.splitlines()[:2] == notes
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


EVALUATED = dict.fromkeys(("prompt", "own", "catch_up", "reevaluated"))
MODEL = dict.fromkeys(("name", "file", "path", "sha256", "n_ctx", "gpu_layers", "offload"))
SCHEMA = {
    "text": None,
    "pieces": [dict.fromkeys(("text", "author", "top_prob", "reason", "n_tokens"))],
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
    "timings": dict.fromkeys(("load_s", "first_piece_s", "total_s", "tokens_per_s")),
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
    assert usage["completion_tokens"] == usage["base_completion_tokens"] + usage["nudging_completion_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7
    base = found["pair"]["base"]
    assert (base["file"], base["path"]) == ("base.gguf", str(tmp_path / "base.gguf"))
    assert base["sha256"] == "cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2"


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
        json.loads(invoke("run", "--json", *more, "hi").out)
        for more in ((), ("--gamma", "0"), ("--rule", "margin"), ("--rule", "nudging-only"))
    ]
    assert [(one["nudge"]["gamma"], one["pair"]["name"]) for one in found] == [
        (0.25, "demo"), (0.0, "demo"), (0.2, "demo"), (None, "demo"),
    ]  # fmt: skip
