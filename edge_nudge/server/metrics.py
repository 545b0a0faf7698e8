"""Figures for Prometheus: what the service has done since it started.

Owns names and labels. Never measures by itself: it adds up what answers and the worker say.

1. Off unless asked for; then the package prometheus_client is needed, and its absence is an error at the start.
2. Nothing of a request's text, and no client's address, is ever in a label.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from edge_nudge.core.events import Role
from edge_nudge.errors import InputError
from edge_nudge.server.jobs import Ended
from edge_nudge.worker import Worker, WorkerState

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meter(Protocol):
    """Adds up what goes by."""

    def observe(self, item: Any) -> None:
        """Take note of one of the worker's items."""
        ...

    def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        ...


class NoMeter:
    """Counts nothing."""

    def observe(self, item: Any) -> None:
        pass

    def text(self) -> bytes:
        return b""


class PrometheusMeter:
    """A Meter, and the collector that prometheus_client asks for its families."""

    def __init__(self, worker: Worker) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError:
            raise InputError(
                "metrics need the package prometheus_client, which is not installed: pip install 'edge-nudge[metrics]'"
            ) from None
        self._worker = worker
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, item: Any) -> None:
        if not isinstance(item, Ended):
            return
        usage = item.finished.usage
        with self._lock:
            self._add("answers", 1, item.finished.reason.value)
            self._add("handoffs", usage.n_handoffs)
            self._add("answer_seconds", usage.total_s)
            if usage.first_piece_s is not None:
                self._add("first_piece_seconds", usage.first_piece_s)
                self._add("answers_with_text", 1)
            for role in Role:
                of = usage.of(role)
                self._add("prompt_tokens", of.n_prompt, role.value)
                self._add("reused_tokens", of.n_reused, role.value)
                self._add("written_tokens", of.n_written, role.value)
                self._add("native_seconds", of.native_s, role.value)
                for cause, n_tokens in of.evaluated.items():
                    self._add("evaluated_tokens", n_tokens, role.value, cause.value)

    def _add(self, name: str, amount: float, *labels: str) -> None:
        key = (name, labels)
        self._totals[key] = self._totals.get(key, 0) + amount

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families; called by prometheus_client."""
        yield from self._of_answers()
        yield from self._of_the_worker()

    def _of_answers(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        with self._lock:
            totals = dict(self._totals)
        for name, text, labels in (
            ("answers", "Answers by what ended them.", ["finish_reason"]),
            ("answers_with_text", "Answers that have a first piece.", []),
            ("handoffs", "Changes of author.", []),
            ("answer_seconds", "Seconds from the start of a request to its end.", []),
            ("first_piece_seconds", "Seconds from the start of a request to its first piece.", []),
            ("prompt_tokens", "Tokens of prompts, of each model's own.", ["model"]),
            ("reused_tokens", "Tokens of prompts that were found in the cache.", ["model"]),
            ("written_tokens", "Tokens of answers by who wrote them.", ["model"]),
            ("evaluated_tokens", "Tokens evaluated by why.", ["model", "cause"]),
            ("native_seconds", "Seconds inside native calls.", ["model"]),
        ):
            family = CounterMetricFamily(f"edge_nudge_{name}", text, labels=labels)
            for (of, values), amount in totals.items():
                if of == name:
                    family.add_metric(list(values), amount)
            if not labels and not any(of == name for of, _ in totals):
                family.add_metric([], 0)
            yield family

    def _of_the_worker(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        view = self._worker.describe()
        jobs = CounterMetricFamily("edge_nudge_jobs", "Jobs by what became of them.", labels=["outcome"])
        for outcome in ("done", "failed", "cancelled", "refused"):
            jobs.add_metric([outcome], view.counts[outcome])
        yield jobs
        yield CounterMetricFamily("edge_nudge_loads", "Times the models were loaded.", value=view.counts["loads"])
        yield GaugeMetricFamily("edge_nudge_queue_length", "Jobs that wait.", value=view.n_queued)
        yield GaugeMetricFamily("edge_nudge_jobs_running", "Jobs that run: 0 or 1.", value=int(view.job is not None))
        states = GaugeMetricFamily("edge_nudge_state", "1 for the state the models are in.", labels=["state"])
        for state in WorkerState:
            states.add_metric([state.value], int(state is view.state))
        yield states


def make_meter(worker: Worker, *, is_on: bool) -> Meter:
    """Return what counts. Raises InputError where figures are asked for and the package is not there."""
    return PrometheusMeter(worker) if is_on else NoMeter()
