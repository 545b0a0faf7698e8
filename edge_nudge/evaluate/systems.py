"""Systems: who answers. One name, one way of answering, with every setting that differs from the defaults.

Owns the names and what they mean. Never loads and never answers.

A name is a kind, perhaps with settings behind a colon, joined by plus signs:
1. `base`, `nudging`: one model of the pair alone.
2. `nudged`: both, by the pair's own rule; `nudged:rule=entropy+gamma=2.0`, `nudged:lookahead=16`,
   `nudged:loop_guard=off+end_prob=2`, `nudged:format=plain`: the same with other settings.
3. `urial`: the base model alone behind three constant examples (Lin et al., arXiv 2312.01552, in our wording).
4. `aligned`: a large aligned model of the user's, alone.
5. `ensemble`, `proxy`: the baselines of core/mixture.py, for pairs with one vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge_nudge.core.request import NudgeParams, Rule, SamplingParams, build_request
from edge_nudge.core.template import base_format
from edge_nudge.errors import InputError

Setting = str | float | int | bool


class Kind(str, Enum):
    BASE = "base"
    NUDGING = "nudging"
    NUDGED = "nudged"
    URIAL = "urial"
    ALIGNED = "aligned"
    ENSEMBLE = "ensemble"
    PROXY = "proxy"

    @property
    def is_mixture(self) -> bool:
        return self in (Kind.ENSEMBLE, Kind.PROXY)


_SOLO = {
    Kind.BASE: Rule.BASE_ONLY,
    Kind.URIAL: Rule.BASE_ONLY,
    Kind.NUDGING: Rule.NUDGING_ONLY,
    Kind.ALIGNED: Rule.NUDGING_ONLY,
}
_WORDS = {"on": True, "off": False, "true": True, "false": False}
_NUMBERS = ("gamma", "end_prob", "temp", "top_p", "min_p", "alpha")
_OF_BASE = (Kind.BASE, Kind.NUDGED, Kind.ENSEMBLE, Kind.PROXY)  # where the base model's prompt format can be chosen
MOST_ALPHA = 100.0
_NUDGE = ("rule", "gamma", "lookahead", "end_prob", "max_turns", "loop_guard")
_SAMPLING = tuple(SamplingParams.model_fields)


@dataclass(frozen=True, slots=True)
class System:
    """One way of answering. `settings` are fields of a request; `base_prompt_format` None: the pair's own."""

    name: str
    kind: Kind
    settings: dict[str, Setting] = field(default_factory=dict)
    base_prompt_format: str | None = None
    alpha: float = 1.0  # of proxy tuning

    @property
    def request_settings(self) -> dict[str, Any]:
        """Return what a request needs beside the messages and the limit: the settings, and the rule of a solo model."""
        rule = _SOLO.get(self.kind)
        return dict(self.settings) if rule is None else {**self.settings, "rule": rule.value}

    @property
    def shown_settings(self) -> dict[str, Setting]:
        own = {} if self.base_prompt_format is None else {"format": self.base_prompt_format}
        return {**self.settings, **own, **({"alpha": self.alpha} if self.kind is Kind.PROXY else {})}


def parse_systems(text: str) -> list[System]:
    """Return the systems of a list with commas. Raises InputError naming what is wrong."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("no system is named: give at least one, as in --systems base,nudging,nudged")
    systems = [parse_system(name) for name in names]
    for i, system in enumerate(systems):
        if system.name in names[:i]:
            raise InputError(f"system {system.name!r} is named twice")
    return systems


def parse_system(name: str) -> System:
    """Return one system by its name. Raises InputError."""
    kind_name, colon, rest = name.partition(":")
    try:
        kind = Kind(kind_name)
    except ValueError:
        raise InputError(
            f"there is no system {kind_name!r}: choose from {', '.join(kind.value for kind in Kind)}, "
            "with settings as in nudged:rule=entropy+gamma=2"
        ) from None
    settings: dict[str, Setting] = {}
    for part in rest.split("+") if colon else ():
        key, sign, value = part.partition("=")
        if not (key and sign and value):
            raise InputError(f"system {name!r}: {part!r} is no setting: write {key or 'gamma'}=VALUE")
        if key in settings:
            raise InputError(f"system {name!r}: {key} is given twice")
        if key not in _known(kind):
            raise InputError(f"system {name!r} has no setting {key!r}: it has {', '.join(_known(kind))}")
        settings[key] = _value(name, key, value)
    return _checked(name, kind, settings)


def _known(kind: Kind) -> tuple[str, ...]:
    own = ("format",) if kind in _OF_BASE else ()
    nudge = _NUDGE if kind is Kind.NUDGED else ()
    return (*own, *nudge, *_SAMPLING, *(("alpha",) if kind is Kind.PROXY else ()))


def _value(name: str, key: str, text: str) -> Setting:
    """Read a value as its setting wants it; whether it may be so is the request's to say."""
    if key in ("format", "rule") or len(text) > 40:
        return text
    if text in _WORDS:
        return _WORDS[text]
    try:
        number = float(text) if key in _NUMBERS else int(text)
    except ValueError:
        return text
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"system {name!r}: {key} is {text}, no finite number")
    return number


def _checked(name: str, kind: Kind, settings: dict[str, Setting]) -> System:
    text_format = settings.pop("format", "urial" if kind is Kind.URIAL else None)
    alpha = settings.pop("alpha", 1.0)
    if isinstance(alpha, (bool, str)) or not 0 <= alpha <= MOST_ALPHA:
        raise InputError(f"system {name!r}: alpha is {alpha!r}: it is a number from 0 to {MOST_ALPHA:g}")
    system = System(name, kind, settings, None if text_format is None else str(text_format), float(alpha))
    try:
        if system.base_prompt_format is not None:
            base_format(system.base_prompt_format)
        build_request("a question", **system.request_settings)
    except InputError as error:
        raise InputError(f"system {name!r}: {error}") from None
    return system


assert set(_NUDGE) <= set(NudgeParams.model_fields)
