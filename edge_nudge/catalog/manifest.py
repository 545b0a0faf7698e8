"""Pair manifests: which two models make a pair, and exactly which bytes they are.

Owns the fields of models/*.toml, their validation, and finding the shipped ones. Never fetches anything and
never looks at a model file.

1. A model file is named by size and sha256; nothing else is accepted in its place.
2. The shipped manifests are resources of `edge_nudge.models`: the same from a wheel, an editable install or a checkout.
3. Every fault is an InputError that names the manifest and the field.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_nudge.core.request import describe
from edge_nudge.errors import InputError

# tomllib came with Python 3.11. Imported by name, because no single environment has both for the type checker.
_toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_Strict = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_Line = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\r\n]+$")]
_Bytes = Annotated[int, Field(gt=0)]
_FileName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Licence(BaseModel):
    """Under which terms a model may be used; shown before it is fetched."""

    model_config = _Strict
    name: _Line
    url: Annotated[str, Field(pattern=r"^https://\S+$")]
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


class ModelEntry(BaseModel):
    """One model file: what it is and where it comes from."""

    model_config = _Strict
    file: _FileName
    sha256: _Sha256
    size_bytes: _Bytes
    licence: Licence
    source: WheelSource


class BaseModelEntry(ModelEntry):
    """The base model; `prompt_format` names the text put around a conversation (core/prompt.py)."""

    prompt_format: _Line


class NudgingModelEntry(ModelEntry):
    """The nudging model; `chat_template` is used instead of the one in the file."""

    chat_template: Annotated[str, Field(min_length=1)] | None = None


class PairManifest(BaseModel):
    """One pair, as written in models/NAME.toml."""

    model_config = _Strict
    name: Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
    title: _Line
    gamma: Annotated[float, Field(ge=0.0, le=1.0)]
    base: BaseModelEntry
    nudging: NudgingModelEntry

    @model_validator(mode="after")
    def _a_name_stands_for_one_content(self) -> PairManifest:
        if self.base.file == self.nudging.file and self.base.sha256 != self.nudging.sha256:
            raise ValueError(f"base.file and nudging.file are both {self.base.file}, with different sha256")
        return self


def parse_manifest(text: str, *, where: str) -> PairManifest:
    """Validate the text of a manifest; `where` names it in messages.

    Raises InputError naming `where` and the field.
    """
    try:
        data = _toml.loads(text)
    except ValueError as error:  # TOMLDecodeError of either library is one
        raise InputError(f"{where}: not valid TOML: {error}") from None
    try:
        return PairManifest.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from None


def list_manifests() -> tuple[str, ...]:
    """Return the names of the shipped pairs, sorted."""
    return tuple(sorted(_shipped()))


def load_manifest(name: str) -> PairManifest:
    """Return a shipped pair's manifest.

    Raises InputError for a name that is unknown or no name, listing the known ones.
    """
    shipped = _shipped()
    if not _NAME.fullmatch(name) or name not in shipped:
        raise InputError(f"unknown pair {name!r}: the known pairs are {', '.join(sorted(shipped)) or 'none'}")
    where = f"models/{name}.toml"
    manifest = parse_manifest(shipped[name], where=where)
    if manifest.name != name:
        raise InputError(f"{where}: name: is {manifest.name!r}, must be {name!r} as in the file's name")
    return manifest


def _shipped() -> dict[str, str]:
    """Read the text of every shipped manifest, by name."""
    try:
        folder = files("edge_nudge.models")
    except ModuleNotFoundError:  # run from a checkout that is not installed
        folder = Path(__file__).resolve().parents[2] / "models"
        if not folder.is_dir():
            raise
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }
