"""The options of `edge-nudge bench`, and what is measured by them.

Owns their spelling and which of them go together. Never measures.

1. Options that have no meaning together are an error, not ignored.
2. Loops beside the pair are slow: with one, the defaults are one prompt and few tokens, the same in every mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_nudge.bench.prompts import FOLLOW_UP_NAME, PROMPTS
from edge_nudge.cli import options
from edge_nudge.cli.configured import is_typed
from edge_nudge.core.events import Role
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.bench.trials import Plan

F = TypeVar("F", bound=Callable[..., Any])

# Written here so that --help does not import bench.trials; a test compares them.
DEFAULT_MAX_TOKENS, DEFAULT_TRIALS = 100, 3
AGAINST = ("plain", "reference", "naive", "server")
BESIDE = ("naive", "server")
BESIDE_PROMPTS, BESIDE_MAX_TOKENS = ("short",), 16
_URLS = {"base_url": Role.BASE, "nudge_url": Role.NUDGING}
_OF_TRIALS = ("max_tokens", "trials", "prompt", "against", *_URLS)
_OF_MODELS = (
    "base", "nudge", "pair", "ctx_size", "threads", "base_gpu_layers", "nudge_gpu_layers", "base_prompt_format",
)  # fmt: skip


def bench_options(function: F) -> F:
    """Add what chooses what is measured."""
    names = (*PROMPTS, FOLLOW_UP_NAME)
    added = (
        click.option(
            "-n", "--max-tokens", type=int, metavar="N",
            help=f"Tokens of each answer, of both models together; default {DEFAULT_MAX_TOKENS}.",
        ),
        click.option(
            "--trials", type=int, metavar="N", help=f"Times everything is answered; default {DEFAULT_TRIALS}."
        ),
        click.option(
            "--prompt", type=click.Choice(names), multiple=True, metavar="NAME",
            help=f"Only this prompt: {', '.join(PROMPTS)}; or {FOLLOW_UP_NAME}, the second question of a conversation; "
            f"may be given several times; default: all but {FOLLOW_UP_NAME}.",
        ),
        click.option(
            "--against", type=click.Choice(AGAINST), metavar="WHAT",
            help="Also measure another loop: plain, the pair without verifying ahead; reference, the paper's lookahead "
            "of 16 tokens; naive, a first script on llama_cpp.Llama; server, two OpenAI-compatible servers.",
        ),
        click.option("--base-url", metavar="URL", help="Server of the base model, for --against server."),
        click.option("--nudge-url", metavar="URL", help="Server of the nudging model, for --against server."),
        click.option(
            "--costs", is_flag=True, help="Measure what a batch of tokens costs each model, and no answers."
        ),
        click.option("--fake", is_flag=True, help="Measure the decoder alone, without models."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every single answer in it."),
        click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too."),
    )  # fmt: skip
    for option in reversed(added):
        function = option(function)
    return function


def kind_of(values: Mapping[str, Any], context: click.Context) -> str:
    """Return "trials", "costs" or "fake". Raises InputError for an option without meaning there."""
    if values["fake"]:
        _refuse(("costs", *_OF_MODELS, *_OF_TRIALS), values, context, "--fake: no model is loaded")
        return "fake"
    if values["costs"]:
        _refuse(_OF_TRIALS, values, context, "--costs: no answers are measured")
        return "costs"
    if values["against"] != "server":
        _refuse(tuple(_URLS), values, context, f"--against {values['against'] or 'WHAT left out'}: no server is asked")
    return "trials"


def plan_of(values: Mapping[str, Any]) -> Plan:
    """Return what is to be answered. Raises InputError."""
    from edge_nudge.bench.trials import ALWAYS, Plan

    against = values["against"]
    is_beside = against in BESIDE
    asked = values["prompt"] or (BESIDE_PROMPTS if is_beside else tuple(PROMPTS))
    if against and tuple(asked) == (FOLLOW_UP_NAME,):
        raise InputError(f"against: it has no meaning with --prompt {FOLLOW_UP_NAME} alone")
    max_tokens = BESIDE_MAX_TOKENS if is_beside else DEFAULT_MAX_TOKENS
    return Plan(
        prompts=tuple(name for name in PROMPTS if name in asked),
        modes=(*ALWAYS, against) if against else ALWAYS,
        n_trials=DEFAULT_TRIALS if values["trials"] is None else values["trials"],
        max_tokens=max_tokens if values["max_tokens"] is None else values["max_tokens"],
        follow_up=FOLLOW_UP_NAME in asked,
    )


def urls_of(values: Mapping[str, Any]) -> dict[Role, str]:
    """Return the servers to be asked; none without --against server. Raises InputError."""
    if values["against"] != "server":
        return {}
    from edge_nudge.bench.server_loop import check_url

    missing = [f"--{name.replace('_', '-')} URL" for name in _URLS if values[name] is None]
    if missing:
        raise InputError(f"--against server asks two running servers: {' and '.join(missing)} missing")
    return {role: check_url(values[name], name) for name, role in _URLS.items()}


def _refuse(names: tuple[str, ...], values: Mapping[str, Any], context: click.Context, why: str) -> None:
    for param in context.command.params:
        is_set = values[str(param.name)] not in (None, (), False) if param.name in names else False
        if is_set and is_typed(context, str(param.name)):  # a default of the user's is for other benchmarks
            raise InputError(f"{options.spelled(param, context)} has no meaning with {why}")
