"""Settings of the next answers, by the names of the options of `run`.

Owns the way from a typed name and value to a field of a request, and back. Never checks a range itself: click reads
the value and the request checks it, with the messages that `run` has.

1. A change that is refused changes nothing.
2. What was not set is not there: the request's and the pair's own defaults hold.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

import click

from edge_nudge.cli import options
from edge_nudge.core.request import build_request
from edge_nudge.errors import InputError

DEFAULT_WORDS = ("default", "none")
_SWITCHES = {"on": True, "off": False}
_FLAGS = ("loop_guard", "verify_ahead")
FIELDS = (*options.REQUEST_FIELDS, *_FLAGS)


@click.command(add_help_option=False)
@options.request_options
def _request_command(**values: Any) -> None:
    """Carry the options of a request; it is never run."""


_PARAMS = {
    opt.lstrip("-"): param
    for param in _request_command.params
    if isinstance(param, click.Option) and param.name != "system"
    for opt in (*param.opts, *(("loop-guard",) if param.name == "no_loop_guard" else ()))
} | {"verify-ahead": next(param for param in _request_command.params if param.name == "no_verify_ahead")}

NAMES = tuple(sorted(name for name in _PARAMS if len(name) > 1 and not name.startswith("no-")))


def change(settings: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """Return the settings with one of them changed, or back at its default for "default".

    `name` is an option's, with or without dashes in front; "" lists what there is. Raises InputError.
    """
    word = name.lstrip("-").replace("_", "-")
    param = _PARAMS.get(word) or _PARAMS.get(word.lower())
    if param is None:
        near = difflib.get_close_matches(word.lower(), NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(NAMES)}"
        raise InputError(
            "the system message is set with /system TEXT"
            if word == "system"
            else f"no setting is called {word}: {hint}"
        )
    field = (param.name or "").removeprefix("no_")
    if text.lower() in DEFAULT_WORDS:
        return {key: value for key, value in settings.items() if key != field}
    if field in _FLAGS:
        return {**settings, field: _switch(word, text) is not word.startswith("no-")}
    long = max(param.opts, key=len)
    typed = [f"{long}={value}" for value in (_strings(text) if field == "stop" else [text])]
    try:
        context = _request_command.make_context("/set", typed, obj=tuple(typed))
    except click.UsageError as error:
        message = error.format_message().removesuffix(".").replace(f"'{long}'", long.lstrip("-"))
        raise InputError(message[:1].lower() + message[1:]) from None
    changed = {**settings, field: context.params[field]}
    try:
        build_request("", **changed)
    except InputError as error:
        raise InputError(str(options.in_users_terms(error, context)).replace(long, long.lstrip("-"))) from None
    return changed


def described(settings: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that was made."""
    return [f"{field.replace('_', '-')} {_written(value)}" for field, value in settings.items()]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(json.dumps(text, ensure_ascii=False) for text in value)
    return str(value)


def _switch(word: str, text: str) -> bool:
    if text.lower() not in _SWITCHES:
        raise InputError(f"{word} is on or off, not {text!r}")
    return _SWITCHES[text.lower()]


def _strings(text: str) -> list[str]:
    """Read stop strings: one plain text, or any number of JSON strings, which may hold newlines as \\n."""
    if not text.startswith('"'):
        return [text]
    found: list[str] = []
    decoder, rest = json.JSONDecoder(), text
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError:
            value = None
        if not isinstance(value, str):
            raise InputError(f'stop: {rest!r} is no text in double quotes: /set stop "one" "two"')
        found.append(value)
        rest = rest[end:].lstrip()
    return found
