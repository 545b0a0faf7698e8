"""The options of commands that answer: how they are spelled, and which field of a request each one sets.

Owns names, help texts and the way from an option to a message that names it. Never checks a range: that is done
by the request (core/request.py) and by what opens a pair, whose messages are put in the user's terms here.

1. A parameter that sets a field of a request has the field's name; an option not given leaves the field's default.
2. The defaults named in help texts are the fields' own; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from edge_nudge.cli.names import complete_files, complete_models, complete_pairs
from edge_nudge.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

# The values of request.Rule and the names of template.base_format, written here so that --help imports neither.
RULES = ("top_prob", "entropy", "margin", "token", "bet", "blend", "base-only", "nudging-only")
FORMATS = ("plain", "qa", "chat", "urial")
KV_TYPES = ("f16", "q8_0", "q4_0")  # engine/footprint.py

REQUEST_FIELDS = (
    "gamma", "rule", "lookahead", "end_prob", "max_turns",
    "max_tokens", "temp", "top_k", "top_p", "min_p", "seed", "stop",
)  # fmt: skip
_FIELD = re.compile(r"(?P<start>^|; )(?P<field>[a-z_]+)(?:\.(?P<index>\d+))?(?P<end>: | is )")


def _layers(context: click.Context, param: click.Parameter, value: str) -> int | None:
    """Read a count of layers; "auto" is None."""
    if value.lower() == "auto":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of layers nor auto", context, param)
    return int(value)


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Join decorators so that --help lists the options in the order given here."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_FILES = (
    click.option(
        "-m",
        "--base",
        metavar="MODEL",
        shell_complete=complete_models,
        help="Base model: a GGUF file, user/repo:QUANT, or ollama:name:tag.",
    ),
    click.option(
        "--nudge",
        metavar="MODEL",
        shell_complete=complete_models,
        help="Nudging model, with a chat template: likewise.",
    ),
    click.option(
        "--nudge-lora",
        metavar="FILE",
        shell_complete=complete_files,
        help="LoRA adapter: the base model with it is the nudging model.",
    ),
    click.option(
        "--pair",
        metavar="NAME",
        shell_complete=complete_pairs,
        help="A named pair instead of two models; default demo.",
    ),
)
_LAYERS: dict[str, Any] = {"callback": _layers, "metavar": "N|auto", "default": "auto"}
_KV_TYPE: dict[str, Any] = {"type": click.Choice(KV_TYPES), "metavar": "TYPE"}
_CONTEXT = click.option(
    "-c", "--ctx-size", type=int, metavar="N", help="Context of each model in tokens; default 4096."
)
_THREADS = click.option(
    "-t", "--threads", type=int, metavar="N", help="Threads; default: the cores this process may use."
)
_PLACES = (
    click.option("--base-gpu-layers", **_LAYERS, help="Layers of the base model on a GPU; default auto."),
    click.option("--nudge-gpu-layers", **_LAYERS, help="Layers of the nudging model on a GPU; default auto."),
    click.option("--base-kv-type", **_KV_TYPE, help="Cache of the base model: f16, q8_0, q4_0; default f16."),
    click.option("--nudge-kv-type", **_KV_TYPE, help="Cache of the nudging model; default f16."),
)
_FIT = click.option("--no-fit-check", is_flag=True, help="Load the models even if they do not fit into memory.")
_FORMAT = click.option(
    "--base-prompt-format",
    metavar="NAME|JINJA",
    help=f"Text around the prompt for the base model: {', '.join(FORMATS)}, or a Jinja template; default: the pair's.",
)


_LOOK = (
    click.option(
        "--color",
        type=click.Choice(("auto", "always", "never")),
        default="auto",
        help="Colour the nudging model's words; default auto: on a terminal, without NO_COLOR.",
    ),
    click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too."),
)


def file_options(function: F) -> F:
    """Add what chooses a pair."""
    return _all(*_FILES)(function)


def size_options(function: F) -> F:
    """Add what decides how much memory a pair needs."""
    return _all(_CONTEXT, *_PLACES)(function)


def model_options(function: F) -> F:
    """Add what chooses and loads a pair."""
    return _all(*_FILES, _CONTEXT, _THREADS, *_PLACES, _FIT, _FORMAT)(function)


def request_options(function: F) -> F:
    """Add what one request may set."""
    return _all(
        click.option("-s", "--system", metavar="TEXT", help="System message."),
        click.option(
            "-n",
            "--max-tokens",
            type=int,
            metavar="N",
            help="Most tokens of both models together; default: what the context holds.",
        ),
        click.option(
            "--gamma",
            type=float,
            metavar="X",
            help="Threshold: the base model writes where it is at least this sure; default: the pair's, or the rule's.",
        ),
        click.option(
            "--rule",
            type=click.Choice(RULES),
            metavar="RULE",
            help=f"How sure is measured, or who writes alone: {', '.join(RULES)}; default top_prob, or the pair's.",
        ),
        click.option(
            "--lookahead",
            type=int,
            metavar="N",
            help="Tokens the nudging model drafts before the base model is asked; default 1.",
        ),
        click.option(
            "--end-prob",
            type=float,
            metavar="X",
            help="End where the base model ends and the nudging model ends with this probability; default 0.05.",
        ),
        click.option("--max-turns", type=int, metavar="N", help="Most turns of the nudging model; default 1000."),
        click.option("--no-loop-guard", is_flag=True, help="Let the answer repeat itself."),
        click.option(
            "--no-verify-ahead", is_flag=True, help="Evaluate nothing on a guess: each token by a call, slower."
        ),
        click.option("--temp", type=float, metavar="X", help="Temperature; default 0.0, always the best token."),
        click.option("--top-k", type=int, metavar="N", help="Keep the N best tokens, 0 keeps all; default 40."),
        click.option(
            "--top-p",
            type=float,
            metavar="X",
            help="Keep the best tokens up to this probability; default 0.95.",
        ),
        click.option(
            "--min-p",
            type=float,
            metavar="X",
            help="Keep tokens of this share of the best one; default 0.05.",
        ),
        click.option("--seed", type=int, metavar="N", help="Seed of the random numbers; default: drawn, and reported."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
    )(function)


def output_options(function: F) -> F:
    """Add what decides how an answer is shown."""
    return _all(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is finished."),
        click.option(
            "--trace",
            metavar="FILE",
            shell_complete=complete_files,
            help="Record the answer, its tokens and all native calls in FILE, for edge-nudge report.",
        ),
        click.option("--totals/--no-totals", default=None, help="Totals on stderr; default: where it is a terminal."),
        *_LOOK,
    )(function)


def look_options(function: F) -> F:
    """Add what decides how much is shown, and in which colour."""
    return _all(*_LOOK)(function)


def server_option(function: F) -> F:
    """Add what keeps a running server out of it."""
    return click.option(
        "--no-server", is_flag=True, help="Load the pair here, also where a running server of yours has it."
    )(function)


def request_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a request that were given."""
    given = {name: values[name] for name in REQUEST_FIELDS if values[name] not in (None, ())}
    return {**given, **{name: False for name in ("loop_guard", "verify_ahead") if values[f"no_{name}"]}}


def check_text(context: click.Context) -> None:
    """Raise InputError for an argument that was no UTF-8, which Python hides in lone surrogates."""
    for param in context.command.params:
        value = context.params.get(param.name or "")
        for text in value if isinstance(value, tuple) else (value,):
            # A file's name may be any bytes.
            if isinstance(text, str) and param.metavar not in ("FILE", "MODEL") and not _is_text(text):
                raise InputError(f"{spelled(param, context)} is not UTF-8: convert it first")


def in_users_terms(error: InputError, context: click.Context) -> InputError:
    """Return the error with each field of a request called as the user called it, with the number given."""
    params = {param.name: param for param in context.command.params}

    def named(match: re.Match[str]) -> str:
        param = params.get(match["field"])
        if param is None:
            return match.group()
        value = context.params.get(match["field"])
        if match["index"] is not None and isinstance(value, tuple):
            value = repr(value[int(match["index"])])
        is_short = isinstance(value, int | float | str) and match["end"] == ": "
        return f"{match['start']}{spelled(param, context)}{f' {value}' if is_short else ''}{match['end']}"

    return type(error)(_FIELD.sub(named, str(error))) if type(error) is InputError else error


def spelled(param: click.Parameter, context: click.Context) -> str:
    """Return an option as it was typed, its longest name where that cannot be told; an argument's metavar."""
    if not isinstance(param, click.Option):
        return param.human_readable_name.upper()
    names = [*param.opts, *param.secondary_opts]
    typed: Sequence[str] = context.find_root().obj or ()
    for argument in typed:
        if argument == "--":
            break
        for name in names:
            joint = f"{name}=" if name.startswith("--") else name
            if argument == name or argument.startswith(joint):
                return name
    return max(names, key=len)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
