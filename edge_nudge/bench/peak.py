"""How much memory a pair really takes: loaded and used in a process of its own, whose peak is read.

Owns that process. Never estimates; engine/memory.py does.

1. The process is fresh: nothing that was there before counts, and nothing stays.
2. It takes what the estimate counts with: one batch with as many rows of scores as batches are measured with, a prompt
   of half the context (at most 600 tokens), and a short answer.
3. What a GPU holds is not seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge.bench.machine import peak_memory_bytes
from edge_nudge.errors import EngineError

if TYPE_CHECKING:
    from edge_nudge.core.backend import Backend
    from edge_nudge.runtime import PairSpec

N_PROMPT = 600
N_ANSWER = 16
_TEXT = "The river rises in the hills behind the village, and where it leaves them it is wide. "


def measure_peak(spec: PairSpec, settings: Mapping[str, Any]) -> int:
    """Return the peak of a process that loads and uses the pair, in bytes. Raises EngineError."""
    task = json.dumps({"spec": asdict(spec), "settings": dict(settings)}, default=str)  # paths
    command = [sys.executable, "-m", "edge_nudge.bench.peak"]
    ended = subprocess.run(command, input=task, capture_output=True, text=True, encoding="utf-8", check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the process that was to be measured ended with code {ended.returncode}: {last}")
    peak = json.loads(ended.stdout)["peak_bytes"]
    if peak is None:
        raise EngineError("this system does not tell the peak memory of a process: there is nothing to compare with")
    return int(peak)


def use_pair(spec: PairSpec, settings: Mapping[str, Any]) -> None:
    """Load the pair and let it do what takes most memory."""
    from edge_nudge.runtime import load_pair

    with load_pair(spec, fit_check=False, **settings) as pair:
        for backend in pair.backends.values():
            _score_rows(backend)
        n_prompt = min(N_PROMPT, min(backend.info.n_ctx for backend in pair.backends.values()) // 2)
        n_sentence = len(pair.base.tokenize(_TEXT.encode()))
        pair.stream(_TEXT * max(1, n_prompt // n_sentence), max_tokens=N_ANSWER).finish()


def _score_rows(backend: Backend) -> None:
    from edge_nudge.engine.footprint import N_ROWS

    ids = backend.tokenize(_TEXT.encode() * N_ROWS)[: min(N_ROWS, backend.info.n_batch)]
    backend.evaluate(ids, range(len(ids)))
    float(backend.scores(len(ids) - 1)[0])
    backend.clear()


def _main() -> None:
    from edge_nudge.runtime import PairSpec

    task = json.load(sys.stdin)
    fields = task["spec"]
    for name in ("base", "nudging", "nudging_adapter"):
        fields[name] = fields[name] and Path(fields[name])
    spec = PairSpec(**fields)
    use_pair(spec, task["settings"])
    sys.stdout.write(json.dumps({"peak_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    _main()
