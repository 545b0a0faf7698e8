"""What a request may say: bodies of the local API, checked and turned into requests of ours.

Owns the field names, OpenAI's and ours, and what is refused. Never looks at a model and never answers.

1. Null means not given. A field that is wrong is a 400 that names it; a missing one too.
2. A known field that would change the answer, and does not work here, is refused; harmless extras are ignored.
3. Text is whole: a lone surrogate never reaches a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from edge_nudge.core.request import (
    MAX_LOGPROBS,
    MAX_STOP_STRINGS,
    GenerateRequest,
    Rule,
    build_request,
    gamma_fault,
    whole_text,
)
from edge_nudge.server.faults import RequestError

MAX_PROMPTS = 64
MAX_STOP_CHARS = 1024
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; a base model left alone does not end by itself

Prompt: TypeAlias = "str | tuple[int, ...]"

_Strict = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="allow")


def _join_parts(value: Any) -> Any:
    """Return the text of a content: a string, nothing, or parts that are all text."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get(kind) if isinstance(part, Mapping) and kind in ("text", "refusal") else None
        if not isinstance(text, str):
            shown = kind if isinstance(kind, str) and kind.isidentifier() and len(kind) < 30 else type(part).__name__
            raise ValueError(f"a part of type {shown} is not supported: only text parts are")
        texts.append(text)
    return "".join(texts)


def _stops(value: Any) -> tuple[str, ...]:
    """Return the stop strings: null is none, a text is a list of one."""
    strings = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError("a text or a list of texts is needed")
    if len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"{len(strings)} stop strings are too many: at most {MAX_STOP_STRINGS}")
    if any(not 0 < len(string) <= MAX_STOP_CHARS for string in strings):
        raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARS} characters")
    return tuple(whole_text(string) for string in strings)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """Return the prompts of a completion: one text, one list of ids, or a list of either."""
    if isinstance(value, str):
        return (whole_text(value),)
    if not isinstance(value, list) or not value:
        raise ValueError("a text, a list of token ids, or a list of one of these is needed")
    if _is_ids(value):
        return (tuple(value),)
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts are too many: at most {MAX_PROMPTS} in one request")
    if all(isinstance(item, str) for item in value):
        return tuple(whole_text(item) for item in value)
    if all(isinstance(item, list) and item and _is_ids(item) for item in value):
        return tuple(tuple(item) for item in value)
    raise ValueError("prompts must be all texts or all lists of token ids (whole numbers from 0 on), none of them []")


def _is_ids(value: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < 1 << 31 for item in value)


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}, "minItems": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        {
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1},
                "minItems": 1,
            },
            "minItems": 1,
            "maxItems": MAX_PROMPTS,
        },
    ]
}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "null"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
    ]
}
_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        {"type": "null"},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
            "maxItems": MAX_STOP_STRINGS,
        },
    ]
}


class ChatMessage(BaseModel):
    """One turn. Content null or missing is an empty text; parts are joined; further fields are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str, BeforeValidator(_join_parts), AfterValidator(whole_text), WithJsonSchema(_CONTENT_SCHEMA)
    ] = ""


class StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    include_usage: bool | None = None


class Settings(BaseModel):
    """What both kinds of completion may set."""

    model_config = _Strict
    model: str | None = Field(None, description="the served id or an alias; null: the served one")
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31, description="most tokens of both models together")
    temperature: float | None = Field(None, ge=0.0, le=100.0, description="default 0: always the best token")
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0, lt=1 << 31)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=-1, lt=1 << 64, description="null or -1: drawn, and reported")
    stop: Annotated[tuple[Any, ...], BeforeValidator(_stops), WithJsonSchema(_STOP_SCHEMA)] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    rule: Annotated[Rule, Field(strict=False)] | None = Field(None, description="who writes when")
    gamma: float | None = Field(None, ge=0.0, description="threshold of the rule; null: the pair's or the rule's own")
    lookahead: int | None = Field(None, ge=1, le=256)
    end_prob: float | None = Field(None, gt=0.0)
    max_turns: int | None = Field(None, ge=1, lt=1 << 31)
    loop_guard: bool | None = None
    verify_ahead: bool | None = None
    cache_prompt: bool | None = Field(None, description="false: the answer depends on nothing asked before; slower")

    @property
    def is_stream(self) -> bool:
        return bool(self.stream)

    @property
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatBody(Settings):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0, lt=1 << 31, description="wins over max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="needs logprobs true")


class CompletionBody(Settings):
    """POST /v1/completions. Several prompts are answered in their order."""

    prompt: Annotated[tuple[Any, ...], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31, description=f"default {DEFAULT_COMPLETION_TOKENS}")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = Field(None, description="give the prompt back in front; with logprobs the base model scores it")


_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("n", "best_of", "repeat_penalty", "repetition_penalty", "typical_p"), lambda v: v == 1),
    **dict.fromkeys(
        (
            *("frequency_penalty", "presence_penalty", "min_tokens", "mirostat", "dry_multiplier", "xtc_probability"),
            *("dynatemp_range", "logit_bias", "tools", "functions", "json_schema", "grammar", "guided_json"),
            *("guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "suffix", "audio"),
            *("web_search_options", "n_predict", "ignore_eos", "stop_token_ids", "bad_words", "prompt_logprobs"),
            *("continue_final_message", "chat_template", "chat_template_kwargs", "use_beam_search", "lora", "echo"),
        ),
        lambda v: not v,
    ),
    "tool_choice": lambda v: v in ("none", "auto"),
    "function_call": lambda v: v in ("none", "auto"),
    "response_format": lambda v: isinstance(v, dict) and v.get("type") == "text",
    "modalities": lambda v: v == ["text"],
    "add_generation_prompt": lambda v: v is True,
}
_REMEDIES = {"n": "send as many requests", "n_predict": "max_tokens is what limits an answer"}


def refuse_unsupported(body: Settings) -> None:
    """Raise RequestError for a field that would change the answer and does not work here."""
    extra = body.model_extra or {}
    for name, value in extra.items():
        if value is None or name not in _HARMLESS or _HARMLESS[name](value):
            continue
        if name == "tools" and extra.get("tool_choice") == "none":
            continue  # nothing is to be called
        remedy = _REMEDIES.get(name, "leave it out")
        raise RequestError(f"{name}: this value is not supported: {remedy}", name, code="unsupported_parameter")


def chat_request(body: ChatBody) -> GenerateRequest:
    """Return the request that a chat body is. Raises RequestError, InputError."""
    refuse_unsupported(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs: it needs logprobs: true", "top_logprobs")
    settings = _settings(body)
    if body.max_completion_tokens is not None:
        settings["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        settings["logprobs"] = body.top_logprobs or 0
    return build_request([_message(message) for message in body.messages], **settings)


def completion_settings(body: CompletionBody) -> dict[str, Any]:
    """Return the settings for each of the prompts, checked. Raises RequestError, InputError."""
    refuse_unsupported(body)
    settings = _settings(body)
    settings.setdefault("max_tokens", DEFAULT_COMPLETION_TOKENS)
    if body.logprobs is not None:
        settings["logprobs"] = body.logprobs
    build_request("", **settings)
    return settings


def _message(message: ChatMessage) -> dict[str, str]:
    # A tool's result is text for the models: no template gets a role it may not know.
    role = {"developer": "system", "tool": "user"}.get(message.role, message.role)
    return {"role": role, "content": message.content}


def _settings(body: Settings) -> dict[str, Any]:
    names = (
        *("max_tokens", "top_p", "top_k", "min_p", "stop"),
        *("rule", "gamma", "lookahead", "end_prob", "max_turns", "loop_guard", "verify_ahead", "cache_prompt"),
    )
    settings = {name: value for name in names if (value := getattr(body, name)) is not None}
    if (fault := gamma_fault(body.rule, body.gamma)) is not None:
        raise RequestError(f"gamma: {fault}", "gamma")
    if body.temperature is not None:
        settings["temp"] = body.temperature
    if body.seed not in (None, -1):
        settings["seed"] = body.seed
    return settings
