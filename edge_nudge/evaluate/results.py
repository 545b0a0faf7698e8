"""What an evaluation found: one record for each answer, and the file that holds them all.

Owns names and shapes of `results.json`. Never computes a figure and never asks a model.

1. Every system answers the same items, so items of two systems are compared in pairs, by task and id.
2. `score` is 1 for a right answer and 0 for a wrong one (or a share between them); None where nobody knows the answer.
3. The texts of `turns`, joined, are the answer.
4. Fields that are not known are passed over; a `format_version` that is not known is an error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge_nudge.version import __version__

FORMAT = "edge-nudge evaluation"
FORMAT_VERSION = 1

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e8)]
Score = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TurnText(_Part):
    """A run of text by one model; `top_prob` is the base model's where the turn begins, if it was asked."""

    author: Literal["base", "nudging"]
    text: str
    reason: str
    top_prob: float | None = None


class ItemResult(_Part):
    """One answer of one system. Tokens are those of the writer."""

    task: str
    id: str
    question: str  # what the system was asked, in full
    gold: str  # the right answer, "" where there is none
    answer: str
    extracted: str | None = None  # what was taken for the answer, None where nothing was found or sought
    score: Score | None = None
    metrics: dict[str, float] = {}  # all figures of the task for this answer; `score` is one of them
    finish_detail: str = "end_of_generation"
    n_base_tokens: Count = 0
    n_nudging_tokens: Count = 0
    n_base_chars: Count = 0
    n_nudging_chars: Count = 0
    n_handoffs: Count = 0
    n_base_evaluated: Count = 0
    n_nudging_evaluated: Count = 0
    total_s: Seconds = 0.0
    turns: tuple[TurnText, ...] = ()

    @property
    def n_tokens(self) -> int:
        return self.n_base_tokens + self.n_nudging_tokens


class SystemResult(_Part):
    """All answers of one system. `name` is as it was asked for, `settings` what differs from the defaults."""

    name: str
    settings: dict[str, str | float | int | bool | None] = {}
    rule: str | None = None  # the decision rule and its threshold, where two models share an answer
    gamma: float | None = None
    items: tuple[ItemResult, ...] = ()

    @property
    def is_nudged(self) -> bool:
        return self.rule is not None


class TaskAbout(_Part):
    """What a task is: `metric` is the one that `score` gives."""

    name: str
    title: str
    metric: str
    n_rows: Count  # in the file
    n_items: Count  # asked
    max_tokens: Count
    is_open_ended: bool = False


class Results(_Part):
    """One evaluation. `pair` is `document.pair_document`."""

    format: Literal["edge-nudge evaluation"] = "edge-nudge evaluation"
    format_version: Literal[1] = 1
    edge_nudge: str = __version__
    command: str = ""
    started: str = ""  # ISO 8601
    machine: str = ""
    pair: dict[str, object] = {}
    seed: Count = 0
    limit: dict[str, Count] = {}  # by task, where there is one
    half: Literal["first", "second"] | None = None
    tasks: tuple[TaskAbout, ...] = ()
    systems: tuple[SystemResult, ...] = ()
