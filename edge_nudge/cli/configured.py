"""Defaults that a user sets once: config.toml in the configuration folder, and variables EDGE_NUDGE_<OPTION>.

Owns which options can be set there, how they are read and checked, and what wins. Never writes the file.

1. File < environment < command line. A key is the option's long name: `ctx-size = 8192`, EDGE_NUDGE_CTX_SIZE.
2. Each value is checked where it is read: a message names the file and the line, or the variable, and the remedy.
3. What was chosen nearer to the user sends away what excludes it: with --pair on the command line the files of
   config.toml are not meant, and the other way round.
4. --help works whatever is in the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edge_nudge.cli import options
from edge_nudge.errors import InputError

FILE, ENVIRONMENT = "file", "environment"
_LEVELS = {FILE: 1, ENVIRONMENT: 2}
_TYPED = 3  # on the command line
_EXCLUDE = (("pair", "base"), ("pair", "nudge"), ("pair", "nudge_lora"), ("nudge", "nudge_lora"))


@click.command(add_help_option=False)
@options.model_options
@options.request_options
def _all_options(**_: Any) -> None:
    """Hold the options that can be set; never run."""


PARAMS: Mapping[str, click.Option] = {
    str(param.name): param for param in _all_options.params if isinstance(param, click.Option)
}
KEYS: Mapping[str, str] = {max(param.opts, key=len).removeprefix("--"): name for name, param in PARAMS.items()}


@dataclass(frozen=True, slots=True)
class Setting:
    """A default that was set; `place` says where, for a reader."""

    name: str
    key: str
    value: Any
    source: str  # FILE or ENVIRONMENT
    place: str


def config_path() -> Path:
    """Return the settings file, there or not."""
    from edge_nudge.catalog.files import config_dir

    return config_dir() / "config.toml"


def variable_of(key: str) -> str:
    """Return the environment variable of an option."""
    return f"EDGE_NUDGE_{key.upper().replace('-', '_')}"


def read_settings(environment: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """Return what is set in file and environment, by parameter name; each value is checked. Raises InputError."""
    found = os.environ if environment is None else environment
    settings = _of_file(config_path())
    for key, name in KEYS.items():
        variable = variable_of(key)
        if found.get(variable):
            value = _converted(PARAMS[name], found[variable], variable)
            settings[name] = Setting(name, key, value, ENVIRONMENT, variable)
    for setting in settings.values():
        _check(setting)
    return settings


class _Defaults(MutableMapping[str, Any]):
    """What click looks defaults up in; file and environment are read when it first does: not for --help."""

    def __init__(self, read: Callable[[], dict[str, Setting]]) -> None:
        self._read = read
        self._settings: dict[str, Setting] | None = None

    @property
    def settings(self) -> dict[str, Setting]:
        if self._settings is None:
            self._settings = self._read()
        return self._settings

    def __getitem__(self, name: str) -> Any:
        return self.settings[name].value

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("what the user has set is not changed")

    def __delitem__(self, name: str) -> None:
        del self.settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


class Configured(click.Command):
    """A command whose options have defaults of the user."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        ctx.default_map = defaults = _Defaults(lambda: self._own(read_settings()))
        rest = super().parse_args(ctx, args)
        _send_away(ctx, defaults.settings)
        return rest

    def _own(self, settings: Mapping[str, Setting]) -> dict[str, Setting]:
        names = {param.name for param in self.params}
        # Where no request is set, an option of that name means something else: the tokens of a benchmark.
        known = PARAMS if "gamma" in names else {param.name for param in _MODEL_PARAMS}
        return {name: setting for name, setting in settings.items() if name in names and name in known}


@click.command(add_help_option=False)
@options.model_options
def _model_options(**_: Any) -> None:
    """Hold the options of a model; never run."""


_MODEL_PARAMS = tuple(_model_options.params)


def is_typed(context: click.Context, name: str) -> bool:
    """Tell whether an option was given on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _send_away(context: click.Context, settings: dict[str, Setting]) -> None:
    def level(name: str) -> int:
        if is_typed(context, name):
            return _TYPED
        return _LEVELS[settings[name].source] if name in settings else 0

    levels = {name: level(name) for pair in _EXCLUDE for name in pair}
    for pair in _EXCLUDE:
        for name, other in (pair, pair[::-1]):
            if name in settings and levels[name] < levels[other]:
                context.params[name] = None
                settings.pop(name)


def _of_file(path: Path) -> dict[str, Setting]:
    from edge_nudge.catalog.files import read_typed

    text = read_typed(path, "settings file")
    if text is None:
        return {}
    from edge_nudge.catalog.fields import parse_toml

    settings = {}
    for key, value in parse_toml(text, where=str(path)).items():
        place = _place(path, text, key)
        if key not in KEYS:
            raise InputError(f"{place}: {_unknown(key, value)}")
        name = KEYS[key]
        settings[name] = Setting(
            name, key, _converted(PARAMS[name], _plain(PARAMS[name], value, place), place), FILE, place
        )
    return settings


def _place(path: Path, text: str, key: str) -> str:
    """Name the file, and the line of a key where it can be found."""
    named = re.compile(rf"\s*(?:\[+\s*)?(?:{re.escape(key)}|\"{re.escape(key)}\"|'{re.escape(key)}')\s*[=.\]]")
    lines = (i for i, line in enumerate(text.splitlines(), 1) if named.match(line))
    line = next(lines, None)
    return str(path) if line is None else f"{path}, line {line}"


def _unknown(key: str, value: object) -> str:
    if isinstance(value, dict):
        return f"there are no tables here, and {key!r} is one: write options without it, as in: gamma = 0.4"
    near = get_close_matches(key.replace("_", "-").lower(), KEYS, 1)
    meant = f"did you mean {near[0]}?" if near else "the keys are the long options of 'edge-nudge run'"
    return f"unknown key {key!r}: {meant} ('edge-nudge config show' lists them)"


def _plain(param: click.Option, value: object, place: str) -> Any:
    """Return a value of the kind that the option has. Raises InputError."""
    kinds: tuple[type, ...] = (str,)
    what = "a text in quotes"
    if param.is_flag:
        kinds, what = (bool,), "true or false"
    elif param.multiple:
        kinds, what = (str, list), "a text, or a list of texts"
    elif param.callback is not None:
        kinds, what = (int, str), 'a number of layers, or "auto"'
    elif param.type is click.INT:
        kinds, what = (int,), "a whole number"
    elif param.type is click.FLOAT:
        kinds, what = (int, float), "a number"
    is_list = isinstance(value, list)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not fits or (is_list and not all(isinstance(item, str) for item in value)):  # type: ignore[attr-defined]
        raise InputError(f"{place}: {_key(param)} must be {what}: correct it there")
    return value


def _converted(param: click.Option, value: Any, place: str) -> Any:
    """Return the value as the option has it. Raises InputError."""
    if param.multiple and not isinstance(value, list):
        value = [value]
    context = click.Context(_all_options)
    try:
        converted = param.type_cast_value(context, value)
        if param.callback is not None:
            param.callback(context, param, converted)
    except click.BadParameter as error:
        raise InputError(f"{place}: {_key(param)}: {error.message.removesuffix('.')}; correct it there") from None
    return converted


def _check(setting: Setting) -> None:
    """Raise InputError for a value that no request or model can have."""
    from edge_nudge import runtime
    from edge_nudge.core.request import build_request

    name, value = setting.name, setting.value
    texts = value if isinstance(value, tuple) else (value,)
    try:
        if any(isinstance(text, str) and not text.strip() for text in texts) and name != "stop":
            raise InputError(f"{name}: it is empty")
        if name in options.REQUEST_FIELDS:
            build_request("", **{name: value})
        elif name in ("ctx_size", "threads"):
            runtime.check_load_settings(**{name: value})
        elif name.endswith("gpu_layers"):
            layers = PARAMS[name].callback(click.Context(_all_options), PARAMS[name], value)  # type: ignore[misc]
            runtime.check_load_settings(**{name: layers})
        elif name == "base_prompt_format":
            _check_format(value)
    except InputError as error:
        message = re.sub(rf"^{name}(?:\.\d+)?(?=: | is )", setting.key, str(error))
        raise InputError(f"{setting.place}: {message}; correct it there") from None


def _check_format(value: str) -> None:
    from edge_nudge.core.template import base_format

    try:
        base_format(value)
    except InputError as error:
        raise InputError(f"base_prompt_format: {error}") from None


def _key(param: click.Option) -> str:
    return max(param.opts, key=len).removeprefix("--")
