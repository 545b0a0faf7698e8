"""The batch-cost curve: what lies between its figures, how exactness is found, how it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import straight_curve

from edge_nudge.catalog.curves import curve_of, fingerprint
from edge_nudge.core.costs import BatchCost, CostCurve
from edge_nudge.engine.costs import measure_costs, measure_quick
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

VOCABULARY = ToyVocabulary((" the", "ing"))
SECONDS = st.floats(0.001, 10)


def fake(**options: object) -> FakeBackend:
    return FakeBackend(VOCABULARY, hashed_scores(VOCABULARY), **options)  # type: ignore[arg-type]


class Rounding(FakeBackend):
    """A backend whose larger batches round differently, as real kernels do."""

    first_inexact = 5

    def evaluate(self, tokens: object, rows: object = ()) -> None:
        super().evaluate(tokens, rows)  # type: ignore[arg-type]
        if len(tokens) >= self.first_inexact:  # type: ignore[arg-type]
            for row in self._rows.values():
                row += 1e-3


def ticking(step_s: float) -> Callable[[], float]:
    """Return a clock on which whatever is timed takes `step_s`."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step_s
        return now

    return clock


# --- the curve


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 40))
def test_an_ascending_curve_never_falls(figures: list[tuple[float, float]], n_tokens: int, n_rows: int) -> None:
    costs = tuple(BatchCost(2**i, last, every) for i, (last, every) in enumerate(figures))
    curve = CostCurve(300, 64, 2, "rewind", costs, 1, 256).ascending()
    n_rows = min(n_rows, n_tokens)
    cost = curve.batch_s(n_tokens, n_rows)
    assert cost <= curve.batch_s(n_tokens + 1, n_rows) + 1e-9
    assert cost <= curve.batch_s(n_tokens + 1, n_rows + 1) + 1e-9
    assert cost >= curve.step_s - 1e-9


def test_costs_between_sizes_are_on_the_line() -> None:
    curve = straight_curve(0.1, 0.2)
    assert curve.batch_s(1) == 1.0
    assert curve.batch_s(3) == pytest.approx(1.2)
    assert curve.batch_s(3, 3) == pytest.approx(1.6)
    assert curve.batch_s(32) == pytest.approx(4.1)


def test_prompt_batches_are_as_large_as_the_time_allows() -> None:
    curve = straight_curve(0.1, 0.0)  # n tokens take 0.9 + n / 10 seconds
    assert [curve.prefill_batch(limit_s, 512) for limit_s in (0.1, 26.4, 26.6, 1e9)] == [128, 128, 256, 512]
    assert curve.prefill_batch(1e9, 4) == 4


# --- measuring


@pytest.mark.parametrize("measure", [measure_costs, measure_quick])
def test_exact_is_the_largest_size_below_the_first_that_differs(measure: Callable[..., CostCurve]) -> None:
    assert measure(fake(), clock=ticking(1e-6)).exact == 32
    backend = Rounding(VOCABULARY, hashed_scores(VOCABULARY))
    assert measure(backend, clock=ticking(1e-6)).exact == 4
    assert backend.n_cached == 0
    assert measure(fake(can_rewind=False), clock=ticking(1e-6)).exact == 1


def test_a_slow_model_is_not_measured_for_long() -> None:
    backend = fake()
    curve = measure_quick(backend, clock=ticking(0.5))
    assert curve.costs[0].n_tokens == 1
    assert len(curve.costs) < 6
    assert backend.n_calls < 40


def test_a_moment_of_load_leaves_the_smallest_sizes_in_the_curve() -> None:
    """The first steps are quick, then each call takes a third of a second for a while."""
    backend = fake()
    curve = measure_quick(backend, clock=lambda: 0.01 * backend.n_calls + 0.3 * max(0, min(backend.n_calls, 25) - 2))
    assert [cost.n_tokens for cost in curve.costs][:4] == [1, 2, 3, 4]
    assert curve.exact >= 4


def test_the_smaller_sizes_of_a_slow_model_are_measured() -> None:
    """Steps of 76 ms: a second would hold one size, and nothing would ever be evaluated ahead."""
    backend = Rounding(VOCABULARY, hashed_scores(VOCABULARY))
    backend.first_inexact = 8
    curve = measure_quick(backend, clock=lambda: 0.06 * backend.n_calls + 0.016 * backend.n_rows)
    assert [cost.n_tokens for cost in curve.costs][:6] == [1, 2, 3, 4, 6, 8]
    assert curve.exact == 7


# --- keeping


def kept(backend: FakeBackend, model: Path, directory: Path, said: list[str], **options: int) -> CostCurve:
    return curve_of(backend, model, **{"n_threads": 2, **options}, directory=directory, say=said.append)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights" * 1000)
    return path


def test_a_curve_is_measured_once_for_a_model_and_its_settings(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "costs"
    first = kept(fake(), model, folder, said)
    again = fake()
    assert kept(again, model, folder, said) == first
    assert (again.n_calls, len(said)) == (0, 1)
    kept(fake(), model, folder, said, n_threads=1)
    assert len(said) == 2
    model.write_bytes(b"other weights" * 1000)
    kept(fake(), model, folder, said)
    assert len(said) == 3
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["", "{}", '{"key": {}, "curve": 7}', "negative", "falling sizes", "another key"])
def test_a_damaged_file_is_measured_anew_and_replaced(damage: str, model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "costs"
    kept(fake(), model, folder, said)
    (place,) = folder.iterdir()
    document = json.loads(place.read_text())
    if damage == "negative":
        document["curve"]["costs"][1]["last_s"] = -1.0
    elif damage == "falling sizes":
        document["curve"]["costs"].reverse()
    elif damage == "another key":
        document["key"]["n_threads"] = 64
    place.write_text(damage if damage[:1] in ("", "{") else json.dumps(document))
    kept(fake(), model, folder, said)
    assert len(said) == 2
    kept(fake(), model, folder, said)
    assert len(said) == 2


def test_a_folder_that_cannot_be_written_is_no_error(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "costs").write_text("a file in the way")
    assert kept(fake(), model, tmp_path / "costs", said).exact > 1
    kept(fake(), model, tmp_path / "costs", said)
    assert len(said) == 2


def test_the_fingerprint_sees_size_beginning_and_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    prints = set()
    data = bytearray(3 << 20)
    for change in (None, 0, len(data) - 1, 1 << 20):
        if change is not None:
            data[change] ^= 1
        path.write_bytes(data)
        prints.add(fingerprint(path))
    path.write_bytes(data[:-1])
    assert len(prints | {fingerprint(path)}) == 5
