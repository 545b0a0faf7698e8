"""What `--model_args` of the harness may hold: who answers, and how the pair is loaded.

Owns the names and their types. Never loads anything.

1. The harness guesses types from what was typed; a wrong one is refused here, with the name.
2. A nudging setting beside `system` is the same as one inside it: `system=nudged,gamma=0.3` is `nudged:gamma=0.3`.
   Sampling is the tasks' own matter, or --gen_kwargs: a `seed` here would choose other rows, too.
3. None is as good as not given; `trust_remote_code` is put among them by the harness, and concerns data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_nudge.errors import InputError
from edge_nudge.evaluate.systems import Kind, System, parse_system

LOAD: Mapping[str, type] = {
    "pair": str,
    "base": str,
    "nudging": str,
    "adapter": str,
    "ctx_size": int,
    "threads": int,
    "base_gpu_layers": int,
    "nudge_gpu_layers": int,
    "base_kv_type": str,
    "nudge_kv_type": str,
    "fit_check": bool,
    "cache_ram": int,
}
NUDGING = ("rule", "gamma", "lookahead", "end_prob", "max_turns", "loop_guard")
FORMAT = "base_prompt_format"
_TYPES = {str: "a text", int: "a whole number", bool: "true or false"}
_OF_THE_HARNESS = ("trust_remote_code",)
_ANSWERING = (Kind.BASE, Kind.NUDGING, Kind.NUDGED, Kind.URIAL)


def split_model_args(system: str, given: Mapping[str, Any]) -> tuple[System, dict[str, Any]]:
    """Return the system and the settings of open_pair. Raises InputError naming an argument."""
    arguments = {name: value for name, value in given.items() if value is not None and name not in _OF_THE_HARNESS}
    load = {name: _checked(name, arguments.pop(name)) for name in LOAD if name in arguments}
    own = {
        "format" if name == FORMAT else name: arguments.pop(name) for name in (*NUDGING, FORMAT) if name in arguments
    }
    if arguments:
        known = ("system", *LOAD, FORMAT, *NUDGING, "cache_prompt")
        raise InputError(f"model argument {next(iter(arguments))!r} is unknown: there are {', '.join(known)}")
    found = _with_settings(parse_system(system), own)
    if found.kind not in _ANSWERING:
        raise InputError(
            f"system {found.name!r} needs other models: 'edge-nudge eval' has it, here are "
            f"{', '.join(kind.value for kind in _ANSWERING)}"
        )
    if found.base_prompt_format is not None:
        load[FORMAT] = found.base_prompt_format
    return found, load


def checked_flag(name: str, value: Any) -> bool:
    """Return an argument that is true or false. Raises InputError."""
    if not isinstance(value, bool):
        raise _wrong_type(name, value, bool)
    return value


def _with_settings(system: System, own: Mapping[str, Any]) -> System:
    if not own:
        return system
    joined = "+".join(f"{name}={_written(value)}" for name, value in own.items())
    return parse_system(f"{system.name}{'+' if ':' in system.name else ':'}{joined}")


def _written(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _checked(name: str, value: Any) -> Any:
    wanted = LOAD[name]
    if type(value) is not wanted:
        raise _wrong_type(name, value, wanted)
    return value


def _wrong_type(name: str, value: Any, wanted: type) -> InputError:
    hint = ": write it in quotes" if wanted is str else ""
    return InputError(f"model argument {name} is {value!r}, not {_TYPES[wanted]}{hint}")
