"""The JSON objects of an answer: what `--json` prints, and the totals that the local API gives in the same shape.

Owns the names and the shape. Never prints, and never computes what an event already says.

1. The texts of `pieces`, joined, are `text`.
2. No NaN and no infinity: a number that is not finite is null.
3. Hashes are of the whole files, remembered by the store; a split model lists each of its parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge.core.events import Cause, FinishDetail, Finished, FinishReason, ModelUsage, Piece, Role, Usage

if TYPE_CHECKING:
    from edge_nudge.core.backend import Backend
    from edge_nudge.core.request import GenerateRequest
    from edge_nudge.runtime import Pair

_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps makes an encoder for each call, and streams make many


def answer_document(
    pieces: Sequence[Piece],
    finished: Finished,
    *,
    request: GenerateRequest,
    pair: Mapping[str, Any],
    load_s: float,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return everything about an answer; `request` with the threshold that was used, `pair` of `pair_document`."""
    usage = finished.usage
    return {
        "text": "".join(piece.text for piece in pieces),
        "pieces": [{"text": piece.text, **piece_document(piece)} for piece in pieces],
        "finish_reason": finished.reason.value,
        "finish_detail": finished.detail.value,
        "stop_string": finished.stop_string,
        "usage": usage_document(usage),
        "nudge": nudge_document(usage, request),
        "timings": {
            "load_s": finite(load_s),
            "first_piece_s": finite(usage.first_piece_s),
            "total_s": finite(usage.total_s),
            "tokens_per_s": finite(usage.tokens_per_s),
            "base_native_s": finite(usage.base.native_s),
            "nudging_native_s": finite(usage.nudging.native_s),
        },
        "seed": finished.seed,
        "pair": dict(pair),
        "warnings": list(warnings),
    }


def piece_document(piece: Piece) -> dict[str, Any]:
    """Return what is known of a piece beside its text."""
    return {
        "author": piece.author.value,
        "top_prob": finite(piece.top_prob),
        "reason": piece.reason.value,
        "n_tokens": piece.n_tokens,
        "instead": _text(piece.instead),
    }


def _text(data: bytes | None) -> str | None:
    """Return bytes as text, None where they are none: a token may end within a character."""
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def usage_document(usage: Usage) -> dict[str, int]:
    """Return the token counts: OpenAI's three, whose prompt is the base model's, and those of each model."""
    return {
        "prompt_tokens": usage.base.n_prompt,
        "nudging_prompt_tokens": usage.nudging.n_prompt,
        "completion_tokens": usage.n_completion,
        "base_completion_tokens": usage.base.n_written,
        "nudging_completion_tokens": usage.nudging.n_written,
        "total_tokens": usage.base.n_prompt + usage.n_completion,
    }


@dataclass(frozen=True, slots=True)
class ModelAbout:
    """What a loaded model is; `gpu_layers` and `offload` are None where there is nothing to place.

    `label` is what people know the file by, `adapter` the path of a LoRA adapter over it.
    """

    name: str
    path: str
    n_ctx: int
    gpu_layers: int | None
    offload: str | None
    label: str = ""
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class PairAbout:
    """What a loaded pair is, and what its user should know: see runtime.Pair for notes, threads and defects."""

    name: str | None
    base: ModelAbout
    nudging: ModelAbout
    base_prompt_format: str
    notes: tuple[str, ...]
    threads: str
    defects: dict[Role, str]

    @property
    def models(self) -> dict[Role, ModelAbout]:
        return {Role.BASE: self.base, Role.NUDGING: self.nudging}


def about_pair(pair: Pair) -> PairAbout:
    """Say what a pair is."""
    spec = pair.spec
    base = _about_model(pair.base, spec.base)
    nudging = _about_model(pair.nudging, spec.nudging, spec.nudging_adapter)
    return PairAbout(
        spec.name, base, nudging, spec.base_prompt_format, tuple(pair.notes), pair.threads, dict(pair.defects)
    )


def _about_model(backend: Backend, path: Path, adapter: Path | None = None) -> ModelAbout:
    from edge_nudge.catalog.names import model_label

    # Only a native backend has layers to place.
    layers, offload = getattr(backend, "n_gpu_layers", None), getattr(backend, "offload", None)
    path, n_ctx = path.expanduser().absolute(), backend.info.n_ctx
    label = model_label(adapter or path, backend.info.name)
    own = None if adapter is None else str(adapter.expanduser().absolute())
    return ModelAbout(backend.info.name, str(path), n_ctx, layers, offload, label, own)


def about_document(about: PairAbout) -> dict[str, Any]:
    """Return it as JSON has it."""
    return {**asdict(about), "defects": {role.value: defect for role, defect in about.defects.items()}}


def about_of(document: Mapping[str, Any]) -> PairAbout:
    """Return what `about_document` was made of. Raises KeyError, TypeError, ValueError."""
    defects = {Role(role): str(defect) for role, defect in document["defects"].items()}
    return PairAbout(
        document["name"],
        ModelAbout(**document["base"]),
        ModelAbout(**document["nudging"]),
        str(document["base_prompt_format"]),
        tuple(map(str, document["notes"])),
        str(document["threads"]),
        defects,
    )


def pair_document(about: PairAbout) -> dict[str, Any]:
    """Return what the pair is: names, files, hashes. Reads a file it has not seen before. Raises ModelFileError."""
    return {
        "name": about.name,
        "base": {**_model(about.base), "prompt_format": about.base_prompt_format},
        "nudging": _model(about.nudging),
    }


def to_json(document: Mapping[str, Any]) -> str:
    """Write a document on one line of ASCII: control characters and bidi overrides are escaped by the format."""
    return _encode(document)


def nudge_document(usage: Usage, request: GenerateRequest) -> dict[str, Any]:
    """Return the totals of the nudging; `request` with the threshold that was used."""
    is_solo = request.nudge.rule.value in ("base-only", "nudging-only")
    return {
        "rule": request.nudge.rule.value,
        "gamma": None if is_solo else request.nudge.threshold,
        "lookahead": request.nudge.lookahead,
        "ratio_tokens": finite(usage.ratio_tokens),
        "ratio_chars": finite(usage.ratio_chars),
        "handoffs": usage.n_handoffs,
        "evaluated": {role.value: _evaluated(usage.of(role)) for role in Role},
        "calls": {role.value: usage.of(role).n_calls for role in Role},
        "reused": {role.value: usage.of(role).n_reused for role in Role},
    }


def finished_document(finished: Finished, request: GenerateRequest) -> dict[str, Any]:
    """Return all that the last event says: the totals of the nudging, the end, and each model's counts and times."""
    usage = finished.usage
    return {
        **nudge_document(usage, request),
        "finish_reason": finished.reason.value,
        "finish_detail": finished.detail.value,
        "stop_string": finished.stop_string,
        "seed": finished.seed,
        "first_piece_s": finite(usage.first_piece_s),
        "total_s": finite(usage.total_s),
        "models": {
            role.value: {
                "n_prompt": usage.of(role).n_prompt,
                "n_written": usage.of(role).n_written,
                "n_chars": usage.of(role).n_chars,
                "n_asked": usage.of(role).n_asked,
                "native_s": finite(usage.of(role).native_s),
                "prompt_s": finite(usage.of(role).prompt_s),
            }
            for role in Role
        },
    }


def finished_of(document: Mapping[str, Any]) -> Finished:
    """Return the last event that `finished_document` was made of. Raises KeyError, ValueError, TypeError."""
    usage = Usage(
        **{role.value: _usage_of(document, role) for role in Role},
        n_handoffs=document["handoffs"],
        first_piece_s=document["first_piece_s"],
        total_s=_number(document["total_s"]),
    )
    reason, detail = FinishReason(document["finish_reason"]), FinishDetail(document["finish_detail"])
    return Finished(reason, detail, usage, document["seed"], document["stop_string"])


def _usage_of(document: Mapping[str, Any], role: Role) -> ModelUsage:
    name = role.value
    model = document["models"][name]
    return ModelUsage(
        n_prompt=model["n_prompt"],
        n_written=model["n_written"],
        n_chars=model["n_chars"],
        n_calls=document["calls"][name],
        n_asked=model["n_asked"],
        native_s=_number(model["native_s"]),
        prompt_s=_number(model["prompt_s"]),
        evaluated={cause: document["evaluated"][name][cause.value] for cause in Cause},
        n_reused=document["reused"][name],
    )


def _evaluated(usage: ModelUsage) -> dict[str, int]:
    return {cause.value: n_tokens for cause, n_tokens in usage.evaluated.items()}


def _model(about: ModelAbout) -> dict[str, Any]:
    from edge_nudge.catalog.store import sha256_file

    first, *more = _parts(Path(about.path))
    model = {
        "name": about.name,
        "label": about.label or first.stem,
        "file": first.name,
        "path": str(first),
        "sha256": sha256_file(first),
        "n_ctx": about.n_ctx,
        "gpu_layers": about.gpu_layers,
        "offload": about.offload,
    }
    if about.adapter is not None:
        adapter = Path(about.adapter)
        model["adapter"] = {"file": adapter.name, "path": str(adapter), "sha256": sha256_file(adapter)}
    if more:
        model["more_parts"] = [{"file": part.name, "sha256": sha256_file(part)} for part in more]
    return model


def _parts(path: Path) -> tuple[Path, ...]:
    """Return all files of a model, the first one first."""
    if "-of-" not in path.name:
        return (path.expanduser().absolute(),)
    from edge_nudge.engine.gguf import read_model_file

    return tuple(part.absolute() for part in read_model_file(path).parts)


def _number(value: float | None) -> float:
    """Return what `finite` was given, as far as that is known."""
    return math.nan if value is None else value


def finite(number: float | None) -> float | None:
    """Return the number, or None where JSON has no word for it."""
    return number if number is not None and math.isfinite(number) else None
