"""Batch-cost curves, kept from one run to the next: measured once for a model on a machine.

Owns the files and the key of a curve. Never decides by a curve and never loads a model; engine/costs.py measures.

1. A curve is kept for everything that timings and bits depend on: the model file, the llama.cpp build, threads,
   layers on a GPU, flash attention, the type of the cache, an adapter, the processor, the sizes the context allows.
   Another one of these is another file.
2. What is read is validated like anything from outside. A damaged or foreign file is measured anew and replaced.
3. Keeping is a convenience: a folder or a model file that cannot be read or written only costs a measurement at each
   start, and a line in the log.
4. A file is whole or not there. Of two processes that measure at once the last one wins: both are right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_nudge.catalog.store import cache_dir, write_whole
from edge_nudge.core.backend import Backend
from edge_nudge.core.costs import BatchCost, CostCurve
from edge_nudge.engine.costs import EXACT_WITHIN, SIZES, measure_quick
from edge_nudge.engine.machine import package_version, processor

FORMAT = 2  # of the files; also to be raised where what is measured changes its meaning
_END_BYTES = 1 << 20
_BLOCK_BYTES = 4096
_N_BLOCKS = 62
_MOST_BYTES = 1 << 16  # of a kept file; real ones have 2 kB

_log = logging.getLogger("edge_nudge.catalog")
_Strict = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]


class _Cost(BaseModel):
    model_config = _Strict
    n_tokens: _Count
    last_s: _Seconds
    every_s: _Seconds


class _Curve(BaseModel):
    model_config = _Strict
    n_vocab: _Count
    n_context: _Count
    n_rounds: _Count
    reset_by: Literal["rewind", "re-evaluation"]
    costs: Annotated[tuple[_Cost, ...], Field(min_length=1)]
    exact: Annotated[int, Field(ge=1, le=SIZES[-1])]
    exact_within: Annotated[int, Field(ge=1, le=EXACT_WITHIN)]

    @model_validator(mode="after")
    def _ascends_from_one(self) -> _Curve:
        sizes = [cost.n_tokens for cost in self.costs]
        if sizes[0] != 1 or any(low >= high for low, high in pairwise(sizes)):
            raise ValueError(f"sizes {sizes} must ascend from 1")
        return self


class _Kept(BaseModel):
    """One file. `key` in full: a digest in the file's name could not tell what it is of."""

    model_config = _Strict
    key: dict[str, str | int | float | bool | None]
    curve: _Curve


def costs_dir() -> Path:
    """Return the folder of the kept curves; it may not exist yet."""
    return cache_dir() / "costs"


def curve_of(
    backend: Backend,
    path: Path,
    *,
    n_threads: int,
    directory: Path,
    say: Callable[[str], None],
) -> CostCurve:
    """Return the curve to decide by of a model loaded from `path`: the kept one, or measured now and kept.

    Measuring takes one to ten seconds, after telling `say`, and leaves the cache empty: it is for a backend that
    nobody has used yet. Raises EngineError.
    """
    try:
        key = _key(backend, path, n_threads)
    except OSError as error:
        _log.info("%s cannot be read (%s): its batch costs are measured and not kept", path, error)
        key = None
    place = directory / f"{_digest(key)}.json" if key else None
    kept = _read(place, key, backend) if place and key else None
    if kept is not None:
        return kept.ascending()
    say(f"Measuring what batches cost {backend.info.name} on this machine, once.")
    curve = measure_quick(backend)
    if place and key:
        _write(place, key, curve)
    return curve.ascending()


def fingerprint(path: Path) -> str:
    """Return a digest of a file's size, its first and last MiB and 62 blocks of 4 KiB evenly spaced between them.

    A key for timings: it tells models and quantisations apart without reading gigabytes. It is no proof of identity,
    two files may differ elsewhere; what a download must be is checked by sha256 in the store. Of a split model it is
    the first part's.

    Raises OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        blocks = [(0, _END_BYTES)]
        between = size - 2 * _END_BYTES
        if between > 0:
            blocks += [(_END_BYTES + between * i // _N_BLOCKS, _BLOCK_BYTES) for i in range(_N_BLOCKS)]
        if size > _END_BYTES:
            blocks.append((max(_END_BYTES, size - _END_BYTES), _END_BYTES))
        for start, n_bytes in blocks:
            file.seek(start)
            digest.update(file.read(n_bytes))
    return digest.hexdigest()


def _key(backend: Backend, path: Path, n_threads: int) -> dict[str, str | int | float | bool | None]:
    info, adapter = backend.info, getattr(backend, "adapter", None)
    return {
        "format": FORMAT,
        "adapter": fingerprint(adapter) if adapter else None,
        "model": fingerprint(path),
        "llama-cpp-python": package_version("llama-cpp-python"),
        "build": getattr(backend, "build", None),  # what only a real engine has
        "n_gpu_layers": getattr(backend, "n_gpu_layers", None),
        "flash_attention": getattr(backend, "flash_attention", None),
        "kv_type": getattr(backend, "kv_type", None),
        "processor": processor(),
        "machine": platform.machine(),
        "n_threads": n_threads,
        "n_batch": min(info.n_batch, SIZES[-1]),
        "n_ctx": min(info.n_ctx, EXACT_WITHIN),
    }


def _digest(key: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read(place: Path, key: dict[str, Any], backend: Backend) -> CostCurve | None:
    """Return a kept curve, None where there is none that can be used."""
    try:
        with place.open("rb") as file:
            kept = _Kept.model_validate_json(file.read(_MOST_BYTES + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.info("the kept batch costs of %s cannot be read: %s", backend.info.name, error)
        return None
    except ValidationError as error:
        _log.info("the kept batch costs in %s are damaged (%d faults): measured anew", place, error.error_count())
        return None
    curve = kept.curve
    if kept.key != key or curve.n_vocab != backend.info.n_vocab:
        _log.info("the batch costs in %s are of another model or machine: measured anew", place)
        return None
    costs = tuple(BatchCost(cost.n_tokens, cost.last_s, cost.every_s) for cost in curve.costs)
    return CostCurve(
        curve.n_vocab, curve.n_context, curve.n_rounds, curve.reset_by, costs, curve.exact, curve.exact_within
    )


def _write(place: Path, key: dict[str, Any], curve: CostCurve) -> None:
    """Keep a curve, whole or not at all."""
    costs = [{"n_tokens": cost.n_tokens, "last_s": cost.last_s, "every_s": cost.every_s} for cost in curve.costs]
    document = {
        "key": key,
        "curve": {
            "n_vocab": curve.n_vocab, "n_context": curve.n_context, "n_rounds": curve.n_rounds,
            "reset_by": curve.reset_by, "costs": costs, "exact": curve.exact, "exact_within": curve.exact_within,
        },
    }  # fmt: skip
    try:
        write_whole(place, json.dumps(document))
    except OSError as error:
        _log.info("batch costs cannot be kept in %s (%s): they are measured at each start", place.parent, error)
