"""From options to a loaded pair: what every command that loads models does alike.

Owns the order: settings are checked, files found (or fetched), models loaded. Never decides what is done with them.

1. What is wrong in a setting is found before anything is fetched or loaded, and is named as it was typed.
2. While models load, a signal ends the process at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import options, streams
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import is_terminal, wants_color
from edge_nudge.core.visible import one_line
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.document import PairAbout
    from edge_nudge.runtime import Pair, PairSpec


def open_pair(context: click.Context, values: Mapping[str, Any], interrupts: Interrupts) -> tuple[Pair, float]:
    """Find and load the pair that the model options name; return it and the seconds that loading took.

    Raises InputError in the user's terms, and what fetching and loading raise.
    """
    spec, settings = find(context, values)
    return load(context, spec, settings, values, interrupts)


def load(
    context: click.Context,
    spec: PairSpec,
    settings: Mapping[str, Any],
    values: Mapping[str, Any],
    interrupts: Interrupts,
) -> tuple[Pair, float]:
    """Load what `find` found; return it and the seconds that took."""
    from edge_nudge import runtime

    try:
        started = time.perf_counter()
        with loading(spec, values, interrupts):
            pair = runtime.load_pair(spec, **settings)
    except InputError as error:
        raise options.in_users_terms(error, context) from None
    return pair, time.perf_counter() - started


def find(context: click.Context, values: Mapping[str, Any]) -> tuple[PairSpec, dict[str, Any]]:
    """Return the files of the pair that the model options name, fetched if need be, and the settings to load it with.

    Raises InputError in the user's terms, FetchError.
    """
    from edge_nudge import runtime
    from edge_nudge.core.template import base_format

    settings = _load_settings(values)
    try:
        if values["base_prompt_format"] is not None:
            base_format(values["base_prompt_format"])
        runtime.check_load_settings(**settings)
        spec = runtime.find_pair(
            values["pair"],
            base=values["base"],
            nudging=values["nudge"],
            adapter=values["nudge_lora"],
            base_prompt_format=values["base_prompt_format"],
            say=streams.tell,
        )
    except InputError as error:
        raise options.in_users_terms(error, context) from None
    return spec, settings


def tell_notes(about: PairAbout, values: Mapping[str, Any]) -> None:
    """Tell what runs where: on a terminal what a GPU does, with -v all."""
    if values["verbose"]:
        for line in (*about.notes, about.threads, *warnings(about, values)):
            streams.tell(one_line(line))
    elif is_terminal(sys.stderr):
        for line in about.notes:
            streams.tell(one_line(line))


def warnings(about: PairAbout, values: Mapping[str, Any]) -> list[str]:
    """Return what is not as one might think: text that a tokenizer loses, a context smaller than asked for."""
    found = [f"{role.value} model: {defect}" for role, defect in about.defects.items()]
    asked = values["ctx_size"]
    for role, model in about.models.items():
        if asked is not None and model.n_ctx < asked:
            found.append(f"{role.value} model: a context of {asked} tokens was asked for, it has {model.n_ctx}")
    return found


def _load_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what load_pair is told; what was not given keeps its default there."""
    names = ("ctx_size", "threads", "base_gpu_layers", "nudge_gpu_layers", "base_kv_type", "nudge_kv_type", "cache_ram")
    given = {name: values[name] for name in names if values.get(name) is not None}
    return {**given, "fit_check": False} if values["no_fit_check"] else given


def loading_names(spec: PairSpec) -> str:
    """Say what is being loaded."""
    from edge_nudge.catalog.names import model_label

    paths = spec.base, spec.nudging_adapter or spec.nudging
    names = (path.name if path.suffix else model_label(path) for path in paths)
    return " and ".join(map(one_line, names))


@contextmanager
def loading(spec: PairSpec, values: Mapping[str, Any], interrupts: Interrupts) -> Iterator[None]:
    """Say on a terminal that models are being loaded, and take it away again."""
    if not is_terminal(sys.stderr) or values["verbose"]:
        with interrupts.at_once():
            yield
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, no_color=not wants_color(values["color"], sys.stderr))
    what = Text(f"loading {loading_names(spec)}")
    with console.status(what) as status, interrupts.at_once(status.stop):
        yield
