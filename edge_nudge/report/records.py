"""The trace format: JSON lines, one record each, and reading them with every line checked.

Owns names, shapes and limits of the format. Never trusts a file: what is read here is input from outside.

1. The first line is the header, the last one says how the answer ended; a file without it is of a run that was stopped.
2. Times are seconds since the answer was asked for; calls may stand a few lines behind the events of their time.
3. The texts of all pieces, joined, are the answer. Bytes that are no whole characters are hexadecimal in `bytes`,
   and `text` is a reading of them.
4. Fields that are not known are passed over; a record or a `format_version` that is not known is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edge_nudge.core.events import Cause, FinishDetail, FinishReason, HandoffReason, ModelUsage, Role, Usage
from edge_nudge.errors import InputError
from edge_nudge.version import __version__

FORMAT = "edge-nudge trace"
FORMAT_VERSION = 1
MAX_BYTES = 32 << 20  # some 60,000 tokens with five alternatives each: more is no page that a browser likes to show
MAX_MESSAGE = 300
_BOM = b"\xef\xbb\xbf"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Seconds = Annotated[float, Field(ge=0, le=1e8)]
Probability = Annotated[float, Field(ge=0, le=1.001)]  # a sum of float32 is not exact
LogProb = Annotated[float, Field(le=0.001)]
Setting: TypeAlias = bool | int | float | str | tuple[str, ...] | None


class TraceError(InputError):
    """A file is no trace, or a trace cannot be written."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Spelled(_Part):
    """Text that a model made of bytes."""

    text: str
    bytes: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] | None = None


class Alternative(Spelled):
    logprob: LogProb | None


class Token(Spelled):
    """A token of the answer; see events.TokenScore."""

    id: Count
    logprob: LogProb | None
    is_rest: bool = False
    top: tuple[Alternative, ...] = ()


class Turn(_Part):
    """A message of the conversation."""

    role: str
    content: str


class Adapter(_Part):
    file: str
    sha256: str | None = None


class Model(_Part):
    name: str
    label: str | None = None  # what people know the file by
    file: str | None = None
    sha256: str | None = None
    n_ctx: Count | None = None
    offload: str | None = None
    prompt_format: str | None = None
    adapter: Adapter | None = None

    @property
    def shown(self) -> str:
        """What a reader is told: the file's name, the label where that is a bare hash, the adapter over it."""
        file = self.file or self.name
        name = self.label if self.label and not file.endswith(".gguf") else file
        return name if self.adapter is None else f"{file} with {self.adapter.file}"


class PairRecord(_Part):
    name: str | None = None
    base: Model
    nudging: Model

    def of(self, role: Role) -> Model:
        return self.base if role is Role.BASE else self.nudging


class Header(_Part):
    type: Literal["header"]
    format: Literal["edge-nudge trace"]
    format_version: Literal[1]
    version: str  # of the program that wrote it
    created: str  # ISO 8601, with the zone
    messages: tuple[Turn, ...]
    settings: dict[str, Setting]
    pair: PairRecord
    load_s: Seconds | None = None
    warnings: tuple[str, ...] = ()


class PieceRecord(_Part):
    type: Literal["piece"]
    at_s: Seconds
    text: str
    author: Role
    top_prob: Probability | None
    reason: HandoffReason
    n_tokens: Count
    instead: Spelled | None = None
    tokens: tuple[Token, ...] = ()


class HandoffRecord(_Part):
    type: Literal["handoff"]
    at_s: Seconds
    to: Role
    reason: HandoffReason
    top_prob: Probability | None


class CallRecord(_Part):
    """One native call; guesses that came true are `verified`, the others `wasted`."""

    type: Literal["call"]
    model: Role
    start_s: Seconds
    end_s: Seconds
    evaluated: dict[Cause, Count]


class ModelTotals(_Part):
    n_prompt: Count
    n_written: Count
    n_chars: Count
    n_calls: Count
    n_asked: Count
    native_s: Seconds
    prompt_s: Seconds
    evaluated: dict[Cause, Count]
    n_reused: Count

    def usage(self) -> ModelUsage:
        return ModelUsage(**{**dict(self), "evaluated": dict.fromkeys(Cause, 0) | self.evaluated})


class Totals(_Part):
    base: ModelTotals
    nudging: ModelTotals
    n_handoffs: Count
    first_piece_s: Seconds | None
    total_s: Seconds

    def usage(self) -> Usage:
        return Usage(self.base.usage(), self.nudging.usage(), self.n_handoffs, self.first_piece_s, self.total_s)


class FinishedRecord(_Part):
    type: Literal["finished"]
    at_s: Seconds
    reason: FinishReason
    detail: FinishDetail
    stop_string: str | None
    seed: Seed
    totals: Totals


class FailedRecord(_Part):
    """The answer was not finished: an error, or somebody would not wait."""

    type: Literal["failed"]
    at_s: Seconds
    message: str


Record: TypeAlias = Annotated[
    Header | PieceRecord | HandoffRecord | CallRecord | FinishedRecord | FailedRecord, Field(discriminator="type")
]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer as it was recorded; `end` is None where the program was stopped before it could say anything."""

    header: Header
    pieces: tuple[PieceRecord, ...]
    handoffs: tuple[HandoffRecord, ...]
    calls: tuple[CallRecord, ...]
    end: FinishedRecord | FailedRecord | None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def read_trace(path: Path) -> Trace:
    """Read a trace. Raises TraceError, with the number of the line where there is one."""
    try:
        with path.open("rb") as file:
            return _collect(path.name, _records(path.name, file))
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None


def _collect(name: str, records: Iterator[tuple[int, Record]]) -> Trace:
    header: Header | None = None
    end: FinishedRecord | FailedRecord | None = None
    pieces: list[PieceRecord] = []
    handoffs: list[HandoffRecord] = []
    calls: list[CallRecord] = []
    for n_line, record in records:
        if end is not None:
            raise TraceError(f"{name}, line {n_line}: the answer has ended above; a trace is of one answer")
        if (header is None) is not isinstance(record, Header):
            wrong = "a trace begins with its header" if header is None else "a second header; a trace is of one answer"
            raise TraceError(f"{name}, line {n_line}: {wrong}")
        match record:
            case Header():
                header = record
            case PieceRecord():
                pieces.append(record)
            case HandoffRecord():
                handoffs.append(record)
            case CallRecord():
                calls.append(record)
            case _:
                end = record
    if header is None:
        raise TraceError(f"{name} is empty: edge-nudge run --trace FILE writes a trace")
    return Trace(header, tuple(pieces), tuple(handoffs), tuple(calls), end)


def _records(name: str, file: BinaryIO) -> Iterator[tuple[int, Record]]:
    n_line, n_left = 0, MAX_BYTES
    while line := file.readline(n_left + 1):
        n_line += 1
        n_left -= len(line)
        if n_left < 0:
            raise TraceError(
                f"{name} is over {MAX_BYTES >> 20} MiB in line {n_line}: no page is made of so much; record a shorter "
                f"answer (--max-tokens)"
            )
        text = line.removeprefix(_BOM) if n_line == 1 else line
        if not text.strip():
            continue
        try:
            yield n_line, _RECORD.validate_json(text)
        except ValidationError as error:
            raise TraceError(_explain(name, n_line, line, error)) from None


def _explain(name: str, n_line: int, line: bytes, error: ValidationError) -> str:
    """Say what is wrong with a line, and what can be done."""
    items = error.errors(include_url=False, include_context=False, include_input=False)
    kind = items[0]["type"]
    where = f"{name}, line {n_line}"
    if kind == "json_invalid":
        if not line.endswith(b"\n") and n_line > 1:
            return f"{where} is cut off: remove this line to see what stands before it"
        return f"{where} is no JSON ({_short(items[0]['msg'])}): this is no trace of edge-nudge"
    if not items[0]["loc"]:
        return f"{where} is no record of a trace ({_short(items[0]['msg'])})"
    if any(item["loc"][-1:] == ("format_version",) for item in items):
        return f"{where}: edge-nudge {__version__} reads traces of format {FORMAT_VERSION}, this is another: update it"
    return f"{where}: {_short('; '.join(_one(item) for item in items[:3]))}"


def _one(item: Any) -> str:
    return f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}"


def _short(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
