"""From the harness's generation settings to a request.

Owns which settings there are and what they mean, and the text that stands for messages inside the harness. Never
answers.

1. What the harness's own models understand is understood as they do (lm_eval.models.utils.normalize_gen_kwargs):
   greedy where `do_sample` is false, or where no temperature is given; `until` strings are stop strings.
2. Nudging settings may stand among them, under the names they have in the body of the local API: one --gen_kwargs
   serves both ways. What the system itself sets comes first.
3. A setting that would be ignored is refused, but for those of sampling where nothing is drawn.
4. An answer that is drawn has a seed: that of the settings, or the one that the harness sends to servers. The repeats
   of a question have the seeds behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge_nudge.core.request import GenerateRequest, NudgeParams, build_request
from edge_nudge.errors import InputError
from edge_nudge.evaluate.systems import System

DEFAULT_SEED = 1234  # what lm_eval.models.api_models sends where nothing else is said
_CHAT = "edge-nudge messages: "
_SAMPLING = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed"}
_LENGTH = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NUDGING = (*NudgeParams.model_fields, "cache_prompt")
_KNOWN = ("until", "do_sample", *_LENGTH, *_SAMPLING, *_NUDGING)


def write_messages(messages: list[dict[str, str]]) -> str:
    """Return messages as a text that `request_of` takes apart again."""
    return _CHAT + json.dumps(messages, ensure_ascii=False)


def is_messages(context: str) -> bool:
    """Tell whether a context stands for messages."""
    return context.startswith(_CHAT)


def request_of(
    system: System, context: str, settings: Mapping[str, Any], *, cache_prompt: bool = True
) -> GenerateRequest:
    """Turn a context and the harness's generation settings into a request. Raises InputError naming a setting.

    `cache_prompt` holds where the settings do not say.
    """
    given = _given(settings)
    given.setdefault("cache_prompt", cache_prompt)
    if is_messages(context):
        messages: Any = json.loads(context.removeprefix(_CHAT))
    else:
        if system.base_prompt_format is not None:
            raise InputError(
                f"system {system.name!r} writes the base model's prompt in format {system.base_prompt_format!r}, and "
                "without a chat template the harness's text is the whole prompt: add --apply_chat_template"
            )
        messages, given["raw_prompt"] = context, context
    return build_request(messages, **{**given, **system.request_settings})


def with_seed(request: GenerateRequest, n_repeat: int) -> GenerateRequest:
    """Return the request with a seed where something is drawn; `n_repeat` counts the same request from 0."""
    sampling = request.sampling
    if sampling.temp == 0.0:
        return request
    seed = (DEFAULT_SEED if sampling.seed is None else sampling.seed) + n_repeat
    return request.model_copy(update={"sampling": sampling.model_copy(update={"seed": seed})})


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a request."""
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, value in settings.items():
        if name == "num_beams" and value == 1:
            continue
        if name == "num_beams":
            raise InputError(f"generation setting num_beams is {value!r}: one beam only is written here")
        if name == "max_length":
            raise InputError("generation setting max_length counts the prompt too: give max_gen_toks instead")
        if name not in _KNOWN:
            raise InputError(f"generation setting {name!r} is unknown: there are {', '.join(_KNOWN)}")
    try:
        normal: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings)))
    except (TypeError, ValueError) as error:
        raise InputError(f"the generation settings cannot be used: {error}") from None
    given: dict[str, Any] = {name: normal[name] for name in _NUDGING if normal.get(name) is not None}
    given["max_tokens"] = normal["max_gen_toks"]
    given["stop"] = [stop for stop in normal["until"] if stop is not None and stop != ""]
    given["temp"] = 0.0
    if normal["do_sample"]:
        given |= {ours: normal[name] for name, ours in _SAMPLING.items() if normal.get(name) is not None}
    return given
