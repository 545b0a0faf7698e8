"""The command line: help, options, the prompt, and its one line for everything that goes wrong."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from cli_fakes import Invoke, invoker, loader, no_load

from edge_nudge import runtime
from edge_nudge.cli import options
from edge_nudge.cli.main import COMMANDS, EPILOG, commands
from edge_nudge.core.request import GenerateRequest, NudgeParams, Rule, SamplingParams, build_request
from edge_nudge.core.template import base_format
from edge_nudge.errors import EngineError, FetchError, InputError
from edge_nudge.version import __version__

HEAVY = ("numpy", "pydantic", "rich", "regex", "jinja2", "llama_cpp", "gguf", "filelock", "psutil", "platformdirs")
FILES = ("-m", "base.gguf", "--nudge", "nudging.gguf")

REAL_LOAD = runtime.load_pair

invoke = pytest.fixture(invoker)


# --- help and start


def test_importing_and_helping_pull_in_nothing_heavy() -> None:
    code = (
        "import sys, edge_nudge.cli.main as m\n"
        f"heavy = lambda: sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "before = heavy()\n"
        "lines = ['--help'], ['run', '--help'], ['bench', '--help'], ['--version'], ['run', '--gama']\n"
        "codes = [m.exit_status(a) for a in lines]\n"
        "print([before, heavy(), codes], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[[], [], [0, 0, 0, 0, 2]]"


def test_the_module_runs_as_the_program_does() -> None:
    command = [sys.executable, "-m", "edge_nudge.cli.main", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edge-nudge, version {__version__}\n", "")


def test_help_lists_commands_and_exit_codes(invoke: Invoke) -> None:
    ended = invoke("--help")
    assert ended.code == 0
    assert all(f"  {name} " in ended.out for name in COMMANDS)
    assert [int(code) for code in re.findall(r"^ +(\d+)  ", ended.out, re.MULTILINE)] == [0, 1, 2, 3, 4, 5, 6, 130, 141]
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
    # for programs: a terminal shows no scores, its prompt is a message, and a command's caches begin empty
    of_the_api = {"logprobs", "raw_prompt", "cache_prompt"}
    nested = {"messages", "sampling", "nudge", "loop_guard", "verify_ahead"}
    assert set(options.REQUEST_FIELDS) == fields - nested - of_the_api
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
    "-s Short --gamma 0.3 --rule margin --lookahead 2 --end-prob 0.2 --max-turns 7 -n 9 --temp 0.5 --top-k 3 "
    "--top-p 0.8 --min-p 0.1 --seed 5 --stop a --stop b -c 64 -t 2 --no-loop-guard --base-gpu-layers 4 "
    "--nudge-gpu-layers auto --base-kv-type q8_0 --nudge-kv-type f16 --no-fit-check --base-prompt-format plain"
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
    assert seen["settings"] == {
        "ctx_size": 64, "threads": 2, "base_gpu_layers": 4, "base_kv_type": "q8_0", "nudge_kv_type": "f16",
        "fit_check": False,
    }  # fmt: skip
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
def test_a_prompt_that_cannot_be_read_is_refused(invoke: Invoke, stdin: bytes | None, message: str) -> None:
    ended = invoke("run", *FILES, stdin=stdin, load=no_load)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("a\udcff",), "PROMPT"), (("-s", "\udcff", "a"), "-s"), (("--stop", "a", "--stop=\udcff", "a"), "--stop")],
)
def test_an_argument_that_was_no_utf8_is_refused(invoke: Invoke, arguments: tuple[str, ...], name: str) -> None:
    ended = invoke("run", *FILES, *arguments, load=no_load)
    assert ended.code == 2
    assert ended.error == f"error: {name} is not UTF-8: convert it first"


# --- what goes wrong


BAD_VALUES = [
    ("--gamma -1", "--gamma -1.0: Input should be greater than or equal to 0"),
    ("--gamma nan", "--gamma nan: Input should be a finite number"),
    ("--gamma=x", "invalid value for '--gamma': 'x' is not a valid float. Try 'edge-nudge run --help'."),
    ("--lookahead 0", "--lookahead 0: Input should be greater than or equal to 1"),
    ("--lookahead 1.5", "invalid value for '--lookahead': '1.5' is not a valid integer. Try 'edge-nudge run --help'."),
    ("--end-prob 0", "--end-prob 0.0: Input should be greater than 0"),
    ("--max-turns 0", "--max-turns 0: Input should be greater than or equal to 1"),
    ("-n -1", "-n -1: Input should be greater than or equal to 0"),
    ("--max-tokens=-1", "--max-tokens -1: Input should be greater than or equal to 0"),
    ("--temp -0.1", "--temp -0.1: Input should be greater than or equal to 0"),
    ("--temp inf", "--temp inf: Input should be a finite number"),
    ("--top-k -1", "--top-k -1: Input should be greater than or equal to 0"),
    ("--top-p 1.1", "--top-p 1.1: Input should be less than or equal to 1"),
    ("--min-p 2", "--min-p 2.0: Input should be less than or equal to 1"),
    ("--seed -1", "--seed -1: Input should be greater than or equal to 0"),
    ("--seed 18446744073709551616", "--seed 18446744073709551616: Input should be less than 18446744073709551616"),
    ("--stop a --stop ''", "--stop '': String should have at least 1 character"),
    (" ".join(["--stop a"] * 17), "--stop: Value should have at most 16 items after validation, not 17"),
    (
        "--temp -1 --top-p 0",
        "--temp -1.0: Input should be greater than or equal to 0; --top-p 0.0: Input should be greater than 0",
    ),
    (
        "--rule best",
        "invalid value for '--rule': 'best' is not one of 'top_prob', 'entropy', 'margin', 'token', 'bet', 'blend', "
        "'base-only', 'nudging-only'. Try 'edge-nudge run --help'.",
    ),
    (
        "--rule bet --gamma 1.5",
        "--gamma 1.5: for the rule bet it is a difference of two probabilities, 0 to 1, and 1.5 is above: 1 lets the "
        "base model write everything behind the opening word",
    ),
    (
        "--base-prompt-format none",
        "unknown base prompt format 'none': choose one of plain, qa, chat, urial, "
        "or write a Jinja template with {{ and }}",
    ),
    (
        "--base-gpu-layers -2",
        "invalid value for '--base-gpu-layers': '-2' is neither a number of layers nor auto. "
        "Try 'edge-nudge run --help'.",
    ),
    ("--gama 1", "no such option --gama. Did you mean --gamma? Try 'edge-nudge run --help'."),
    ("a b", "got unexpected extra argument (b). Try 'edge-nudge run --help'."),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_VALUES, ids=[arguments[:24] for arguments, _ in BAD_VALUES])
def test_a_bad_value_is_one_line_that_names_the_option(invoke: Invoke, arguments: str, message: str) -> None:
    words = shlex.split(arguments)
    ended = invoke("run", *FILES, *words, *([] if words == ["a", "b"] else ["hi"]), load=no_load)
    assert ended.code == 2
    # The punctuation of click's sentences changes from one release to the next.
    assert re.sub(r"[:'()]", "", ended.error) == re.sub(r"[:'()]", "", f"error: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "0"), "-c is 0: it must be at least 1"),
        (("--ctx-size", "-5"), "--ctx-size is -5: it must be at least 1"),
        (("-t", "0"), "-t is 0: it must be at least 1"),
    ],
)
def test_what_the_loader_refuses_is_named_as_it_was_typed(
    invoke: Invoke, arguments: tuple[str, ...], message: str
) -> None:
    ended = invoke("run", *FILES, *arguments, "hi", load=REAL_LOAD)
    assert (ended.code, ended.error) == (2, f"error: {message}")


def test_a_missing_file_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    there = tmp_path / "\x1b[2J.gguf"
    ended = invoke("run", "-m", str(there), "--nudge", str(tmp_path / "b.gguf"), "hi", load=REAL_LOAD)
    assert ended.code == 1
    assert ended.error.startswith("error: ")
    assert "\\x1b[2J.gguf" in ended.error


def test_two_models_make_a_pair(invoke: Invoke) -> None:
    for given, missing in (("-m", "--nudge FILE"), ("--nudge", "--base FILE")):
        ended = invoke("run", given, "a.gguf", "hi", load=no_load)
        assert (ended.code, ended.error) == (2, f"error: two models make a pair: {missing} is missing")
    ended = invoke("run", *FILES, "--pair", "demo", "hi", load=no_load)
    assert (ended.code, ended.error) == (2, "error: give either a pair name (demo) or two files, not both")
    ended = invoke("run", "--pair", "none", "hi", load=no_load)
    assert ended.code == 2
    assert ended.error.startswith("error: unknown pair 'none': the known pairs are ")


def test_a_prompt_longer_than_a_context_says_which_and_how_much(invoke: Invoke) -> None:
    ended = invoke("run", *FILES, "-c", "50", "--json", "x" * 100)
    assert ended.code == 3
    assert re.fullmatch(
        r"error: prompt is 1\d\d tokens for the base model, its context is 50: "
        r"raise --ctx-size or shorten the prompt",
        ended.error,
    )


def test_a_pair_that_cannot_be_fetched_exits_with_4(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_pair(*_: Any, say: Any, **__: Any) -> Any:
        say("Fetching \x1b[31m:")
        raise FetchError("pip could not\n  pip: no \x1b[2J network")

    monkeypatch.setattr(runtime, "find_pair", find_pair)
    ended = invoke("run", "hi", load=no_load)
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == "Fetching \\x1b[31m:\nerror: pip could not\n  pip: no \\x1b[2J network\n"


def test_an_engine_failure_keeps_the_text_so_far(invoke: Invoke, tmp_path: Path) -> None:
    load = loader(fail=lambda call: 0 if call == 4 else None)
    ended = invoke("run", *FILES, "hi", load=load)
    assert ended.code == 1
    assert ended.out == "The sky is\n"
    assert ended.err == "error: decode failed after 0 of 1 tokens\n"
    file = tmp_path / "a.gguf"
    file.touch()
    as_json = invoke("run", "-m", str(file), "--nudge", str(file), "--json", "hi", load=load)
    assert (as_json.code, as_json.error) == (1, "error: decode failed after 0 of 1 tokens")


def test_a_bug_of_ours_is_one_line_and_a_traceback_only_with_v(invoke: Invoke) -> None:
    def load_pair(*_: Any, **__: Any) -> Any:
        raise RuntimeError("odd\nthing")

    handlers = list(logging.getLogger("edge_nudge").handlers)
    message = "internal error: RuntimeError: odd\\nthing (please report; -v shows the traceback)"
    ended = invoke("run", *FILES, "hi", load=load_pair)
    assert (ended.code, ended.error) == (1, message)
    loud = invoke("run", *FILES, "-v", "hi", load=load_pair)
    assert "Traceback (most recent call last):" in loud.err
    assert loud.err.endswith(message + "\n")
    assert invoke("run", *FILES, "hi", load=load_pair).error == message  # -v does not last
    assert logging.getLogger("edge_nudge").handlers == handlers


def test_models_are_freed_whatever_happens(invoke: Invoke) -> None:
    pairs: list[runtime.Pair] = []

    def load_pair(spec: runtime.PairSpec, **_: Any) -> runtime.Pair:
        pairs.append(loader(fail=lambda call: 0 if call == 2 else None)(spec))
        return pairs[-1]

    assert invoke("run", *FILES, "hi", load=load_pair).code == 1
    for backend in (pairs[0].base, pairs[0].nudging):
        with pytest.raises(EngineError, match="closed"):
            backend.evaluate([5])
