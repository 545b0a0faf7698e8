"""What is asked: messages, sampling and nudging settings, validated once.

Owns field names, ranges and defaults; names are llama.cpp's and OpenAI's where they exist. Never renders and
never looks at a model.

1. Frozen values: a request is never changed after validation.
2. Numbers are strict: no booleans, no strings, no fractions where a count is meant.
3. A stop list that is null or empty adds nothing; an empty stop string is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from edge_nudge.errors import InputError

MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20  # as many as OpenAI's servers give


class Rule(str, Enum):
    """Decision rules; see core/policy.py for each."""

    TOP_PROB = "top_prob"
    ENTROPY = "entropy"
    MARGIN = "margin"
    TOKEN = "token"
    BET = "bet"
    BLEND = "blend"
    BASE_ONLY = "base-only"
    NUDGING_ONLY = "nudging-only"


DEFAULT_GAMMA: Mapping[Rule, float] = {
    Rule.TOP_PROB: 0.4,  # the paper's value for Llama-2; 0.2 to 0.5 all work there
    Rule.ENTROPY: 2.0,  # nats
    Rule.MARGIN: 0.2,  # difference of the two highest probabilities
    Rule.TOKEN: 0.4,  # as top_prob: the two are one rule where nothing is sampled
    Rule.BET: 0.2,  # how much less probable than the nudging model's best token; the source's value
    Rule.BLEND: 0.4,  # as top_prob; the source's value, too
    Rule.BASE_ONLY: 0.0,
    Rule.NUDGING_ONLY: 0.0,
}


def gamma_fault(rule: Rule | None, gamma: float | None) -> str | None:
    """Return what is wrong with a threshold for a rule, None if nothing is."""
    if rule is not Rule.BET or gamma is None or gamma <= 1.0:
        return None
    return (
        f"for the rule bet it is a difference of two probabilities, 0 to 1, and {gamma:g} is above: "
        f"1 lets the base model write everything behind the opening word"
    )


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


_Strict = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_Count = Annotated[int, Field(strict=True)]
_Number = Annotated[float, Field(strict=True)]


def whole_text(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("it holds a lone surrogate, which is no text")
    return text


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "ids" if isinstance(value, (list, tuple)) else None


RawPrompt: TypeAlias = Annotated[
    Annotated[str, AfterValidator(whole_text), Tag("text")]
    | Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(strict=False, min_length=1), Tag("ids")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="raw_prompt_type",
        custom_error_message="Input should be a text or a list of token ids",
    ),
]


class Message(BaseModel):
    """One turn of the conversation."""

    model_config = _Strict
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, AfterValidator(whole_text)]

    @model_validator(mode="before")
    @classmethod
    def _developer_is_system(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("role") == "developer":
            return {**data, "role": "system"}
        return data


class SamplingParams(BaseModel):
    """How whoever writes draws a token. Temperature 0 is greedy; the filters work in the order given here."""

    model_config = _Strict
    temp: _Number = Field(default=0.0, ge=0.0, le=100.0)
    top_k: _Count = Field(default=40, ge=0, description="keep the k best tokens; 0 keeps all")
    top_p: _Number = Field(default=0.95, gt=0.0, le=1.0, description="keep the best tokens up to this much probability")
    min_p: _Number = Field(
        default=0.05, ge=0.0, le=1.0, description="keep tokens of at least this share of the best one"
    )
    seed: _Count | None = Field(default=None, ge=0, lt=2**64, description="none: drawn, and reported")


class NudgeParams(BaseModel):
    """Who writes when."""

    model_config = _Strict
    rule: Annotated[Rule, Field(strict=False)] = Rule.TOP_PROB
    gamma: _Number | None = Field(
        default=None, ge=0.0, description="threshold of the rule; none: the rule's own default"
    )
    lookahead: _Count = Field(
        default=1,
        ge=1,
        le=256,
        description="tokens the nudging model drafts, at least, before the base model is asked",
    )
    end_prob: _Number = Field(
        # On 32 prompts of four kinds the demo pair's base model ended 26 times: 7 times behind a finished answer, where
        # the nudging model's end tokens had 0.05 to 0.40, and elsewhere, where they had 0.015 at most.
        default=0.05,
        gt=0.0,
        description="restart guard: the answer ends where the base model ended and the nudging "
        "model's end tokens together are at least this probable; above 1 switches the guard off",
    )
    max_turns: _Count = Field(default=1000, ge=1, description="most nudging turns in one answer")
    loop_guard: bool = True
    verify_ahead: bool = Field(
        default=True,
        description="evaluate guessed tokens along with known ones where the measured costs say that it pays",
    )

    @field_validator("gamma")
    @classmethod
    def _gamma_fits_the_rule(cls, gamma: float | None, info: ValidationInfo) -> float | None:
        if (fault := gamma_fault(info.data.get("rule"), gamma)) is not None:
            raise ValueError(fault)
        return gamma

    @property
    def threshold(self) -> float:
        return DEFAULT_GAMMA[self.rule] if self.gamma is None else self.gamma


class GenerateRequest(BaseModel):
    """One request for one answer."""

    model_config = _Strict
    messages: Annotated[tuple[Message, ...], Field(strict=False, min_length=1)]
    max_tokens: _Count | None = Field(
        default=None, ge=0, description="most tokens of both models together; none: the context"
    )
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...],
        BeforeValidator(_as_list),
        Field(strict=False, max_length=MAX_STOP_STRINGS),
    ] = ()
    cache_prompt: bool = Field(
        default=True,
        description="reuse what the caches hold of the prompt. Without it the answer depends on the request alone, bit "
        "for bit: a prompt read in other pieces can change a decision that was nearly a tie",
    )
    sampling: SamplingParams = SamplingParams()
    nudge: NudgeParams = NudgeParams()
    logprobs: _Count | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="score each token of the answer, with so many of the best ones at its place; none: no scores",
    )
    raw_prompt: RawPrompt | None = Field(
        default=None,
        description="what the base model is given instead of the messages: this text without a prompt format, or these "
        "token ids without a BOS; the nudging model is given the messages",
    )


def build_request(messages: Sequence[Mapping[str, Any] | Message] | str, **settings: Any) -> GenerateRequest:
    """Build a request from messages (or one user text) and flat settings (`gamma=0.4, temp=0.8, stop=[...]`).

    Raises InputError naming the field.
    """
    data: dict[str, Any] = {
        "messages": [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    }
    nested: dict[str, dict[str, Any]] = {"sampling": {}, "nudge": {}}
    for name, value in settings.items():
        if name in SamplingParams.model_fields:
            nested["sampling"][name] = value
        elif name in NudgeParams.model_fields:
            nested["nudge"][name] = value
        else:
            data[name] = value
    try:
        return GenerateRequest.model_validate({**data, **nested})
    except ValidationError as error:
        raise InputError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """Turn pydantic's report into one line that names each field."""
    items = error.errors(include_url=False, include_context=False)
    places = [item["loc"] for item in items]
    parts = []
    for item in items:
        if any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places):
            continue  # what holds a bad value is bad because of it
        where = ".".join(str(part) for part in item["loc"] if part not in ("sampling", "nudge")) or "request"
        parts.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)
