"""The worker: order, limits, cancels, and what must not bring it down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cli_fakes import LONG, fake_pair, text_of
from server_fakes import WAIT_S, wait_for, wait_until_loaded

from edge_nudge.core.events import Finished, FinishReason, Piece
from edge_nudge.core.request import build_request
from edge_nudge.errors import EngineError, InputError, LoadingError, QueueFullError, StoppingError
from edge_nudge.runtime import Pair
from edge_nudge.worker import Done, Failed, Job, Worker, WorkerState


class Heard:
    """A listener that keeps what it was told, and can be waited for."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, item: Any) -> None:
        with self._changed:
            self.items.append(item)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait(self, n_items: int = 0) -> list[Any]:
        """Wait for so many items, or else for the end."""
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: len(self.items) >= n_items if n_items else any(map(is_end, self.items)), WAIT_S
            )
            assert is_there, self.items
            return list(self.items)

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.items if isinstance(item, Piece))


def is_end(item: Any) -> bool:
    return isinstance(item, Done | Failed)


class Loads:
    """Loads fake pairs, in order: a failure where `fails` says so."""

    def __init__(self, fails: tuple[int, ...] = (), **settings: Any) -> None:
        self.pairs: list[Pair] = []
        self.n_loads = 0
        self._fails, self._settings = fails, settings

    def __call__(self) -> Pair:
        self.n_loads += 1
        if self.n_loads in self._fails:
            raise EngineError(f"load {self.n_loads} fails")
        self.pairs.append(fake_pair(LONG, **self._settings))
        return self.pairs[-1]


Make = Callable[..., Worker]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make workers that are started, loaded, and stopped at the end."""
    made: list[Worker] = []

    def make_one(load: Callable[[], Pair] | None = None, *, is_loaded: bool = True, **settings: Any) -> Worker:
        worker = Worker(load or Loads(), **settings)
        made.append(worker)
        worker.start()
        if is_loaded:
            wait_until_loaded(worker)
        return worker

    yield make_one
    for worker in made:
        worker.stop()
        assert worker.join(WAIT_S)


def answer(n_tokens: int = 12) -> Callable[[Pair, Job], Iterator[Any]]:
    """Return work that writes an answer, as the server does it."""

    def work(pair: Pair, job: Job) -> Iterator[Any]:
        events = pair.answer(build_request("hi", max_tokens=n_tokens))
        job.on_cancel(events.cancel)
        for event in events:
            job.n_tokens += getattr(event, "n_tokens", 0)
            yield event

    return work


class Held:
    """Work that runs until it is let go, or cancelled."""

    def __init__(self) -> None:
        self.is_running = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, pair: Pair, job: Job) -> Iterator[Any]:
        job.on_cancel(self.may_end.set)
        self.is_running.set()
        yield "held"
        assert self.may_end.wait(WAIT_S)

    def wait(self) -> None:
        assert self.is_running.wait(WAIT_S)


def expected(n_words: int) -> str:
    return text_of(LONG[:n_words]).lstrip()


def check_alive(worker: Worker) -> None:
    """One more answer, whole and as ever."""
    heard = Heard()
    worker.submit(answer(), heard)
    assert heard.wait()[-1] == Done()
    assert heard.text.strip() == expected(12)


# --- order and limits


def test_jobs_run_in_their_order_and_one_at_a_time(make: Make) -> None:
    worker = make()
    log: list[str] = []

    def work(name: str) -> Callable[[Pair, Job], Iterator[Any]]:
        def run(pair: Pair, job: Job) -> Iterator[str]:
            log.append(f"{name} begins")
            yield name
            log.append(f"{name} ends")

        return run

    all_heard = [Heard() for _ in range(5)]
    for i, heard in enumerate(all_heard):
        worker.submit(work(str(i)), heard)
    for i, heard in enumerate(all_heard):
        assert heard.wait() == [str(i), Done()]
        assert heard.threads == {"worker"}
    assert log == [f"{i} {what}" for i in range(5) for what in ("begins", "ends")]
    assert worker.describe().counts == {"done": 5, "failed": 0, "cancelled": 0, "refused": 0, "loads": 1}


def test_a_full_queue_refuses_and_a_job_that_leaves_makes_room(make: Make) -> None:
    worker = make(max_queue=2)
    held, heard = Held(), [Heard() for _ in range(4)]
    worker.submit(held, heard[0])
    held.wait()
    second = worker.submit(answer(), heard[1])
    worker.submit(answer(), heard[2])
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        worker.submit(answer(), heard[3])
    view = worker.describe()
    assert (view.n_queued, view.max_queue, view.counts["refused"]) == (2, 2, 1)
    second.cancel()
    assert heard[1].wait() == [Done(is_cancelled=True)]  # while the first one is still running
    worker.submit(answer(), heard[3])
    held.may_end.set()
    for each in heard[2:]:
        assert each.wait()[-1] == Done()
        assert each.text.strip() == expected(12)


def test_the_running_job_is_described(make: Make) -> None:
    worker = make()
    held = Held()
    job = worker.submit(held, Heard(), job_id="chatcmpl-7")
    held.wait()
    job.n_tokens = 3
    view = worker.describe()
    assert view.job is not None
    assert (view.job.id, view.job.n_tokens, view.job.is_cancelled) == ("chatcmpl-7", 3, False)
    assert view.state is WorkerState.READY
    assert view.idle_s == 0.0
    assert "chatcmpl-7" in repr(worker)


# --- cancelling


def test_a_running_job_ends_within_one_token(make: Make) -> None:
    worker = make(Loads(delay_s=0.005))
    heard = Heard()
    job = worker.submit(answer(400), heard)
    heard.wait(3)
    n_before = len(heard.items)
    job.cancel()
    *items, finished, done = heard.wait()
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.CANCELLED
    assert done == Done(is_cancelled=True)
    assert len(items) <= n_before + 3  # what was on its way, and what had been held back
    check_alive(worker)


def test_a_prompt_that_is_being_read_is_left_between_two_batches(make: Make) -> None:
    loads = Loads(delay_s=0.0)
    worker = make(loads)
    pair = loads.pairs[0]
    evaluate, n_calls = pair.nudging.evaluate, 0
    first_is_in, may_go_on = threading.Event(), threading.Event()

    def slow(tokens: Any, rows: Any = ()) -> None:
        nonlocal n_calls
        n_calls += 1
        evaluate(tokens, rows)
        first_is_in.set()
        assert may_go_on.wait(WAIT_S)

    pair.nudging.evaluate = slow  # type: ignore[method-assign]

    def long_prompt(pair: Pair, job: Job) -> Iterator[Any]:
        events = pair.answer(build_request("x" * 3000))  # 6 batches of 512
        job.on_cancel(events.cancel)
        yield from events

    heard = Heard()
    job = worker.submit(long_prompt, heard)
    assert first_is_in.wait(WAIT_S)
    job.cancel()
    may_go_on.set()
    finished, done = heard.wait()
    assert finished.reason is FinishReason.CANCELLED
    assert done.is_cancelled
    assert n_calls == 1
    pair.nudging.evaluate = evaluate  # type: ignore[method-assign]
    check_alive(worker)


def test_cancelling_twice_or_late_does_nothing(make: Make) -> None:
    worker = make()
    heard = Heard()
    job = worker.submit(answer(), heard)
    heard.wait()
    calls: list[int] = []
    job.cancel()
    job.cancel()
    job.on_cancel(lambda: calls.append(1))  # too late to be waited for: called at once
    assert calls == [1]
    assert heard.items.count(Done()) == 1
    assert worker.describe().counts["cancelled"] == 0


# --- what must not bring it down


def bad_input(pair: Pair, job: Job) -> Iterator[Any]:
    raise InputError("no")
    yield


def bug_at_once(pair: Pair, job: Job) -> Iterator[Any]:
    raise ZeroDivisionError


def bug_later(pair: Pair, job: Job) -> Iterator[Any]:
    yield from answer(4)(pair, job)
    raise SystemExit("out")


def bug_in_closing(pair: Pair, job: Job) -> Iterator[Any]:
    try:
        yield 1
    finally:
        raise RuntimeError("in finally")


def no_iterator(pair: Pair, job: Job) -> Any:
    return 7


@pytest.mark.parametrize("work", [bad_input, bug_at_once, bug_later, bug_in_closing, no_iterator])
def test_a_job_that_raises_touches_no_other(make: Make, work: Any) -> None:
    worker = make()
    heard, after = Heard(), Heard()
    worker.submit(work, heard)
    worker.submit(answer(), after)
    assert isinstance(heard.wait()[-1], Failed)
    assert after.wait()[-1] == Done()
    assert after.text.strip() == expected(12)
    assert worker.describe().counts["failed"] == 1
    assert worker.describe().counts["loads"] == 1


@pytest.mark.parametrize("at", range(8))
def test_an_engine_that_fails_at_any_call_serves_the_next_request(make: Make, at: int) -> None:
    calls = iter(range(10_000))
    worker = make(Loads(fail=lambda _: 0 if next(calls) == at else None))
    heard = Heard()
    worker.submit(answer(), heard)
    ending = heard.wait()[-1]
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, EngineError)
    check_alive(worker)


def test_a_listener_that_raises_ends_its_own_job_only(make: Make) -> None:
    worker = make(Loads(delay_s=0.002))
    seen: list[Any] = []

    def listen(item: Any) -> None:
        seen.append(item)
        raise RuntimeError("gone")

    worker.submit(answer(400), listen)
    check_alive(worker)
    assert is_end(seen[-1])
    assert len(seen) < 10


def test_caches_that_cannot_be_cleared_are_loaded_anew(make: Make) -> None:
    loads = Loads()
    worker = make(loads)

    def break_it() -> None:
        raise EngineError("it cannot be cleared")

    loads.pairs[0].forget = break_it  # type: ignore[method-assign]
    heard = Heard()
    worker.submit(bug_at_once, heard)
    heard.wait()
    check_alive(worker)
    assert loads.n_loads == 2


def test_a_failing_close_is_no_end(make: Make) -> None:
    loads = Loads()
    worker = make(loads, keep_alive_s=0.05)

    def break_it() -> None:
        raise EngineError("it cannot be closed")

    loads.pairs[0].close = break_it  # type: ignore[method-assign]
    wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)
    check_alive(worker)
    assert loads.n_loads == 2


# --- loading and unloading


def test_while_it_loads_for_the_first_time_requests_are_refused(make: Make) -> None:
    may_load = threading.Event()

    def load() -> Pair:
        assert may_load.wait(WAIT_S)
        return fake_pair(LONG)

    worker = make(load, is_loaded=False)
    assert worker.describe().state is WorkerState.LOADING
    with pytest.raises(LoadingError):
        worker.submit(answer(), Heard())
    with pytest.raises(LoadingError), worker.borrow():
        pass
    may_load.set()
    wait_until_loaded(worker)
    check_alive(worker)


def test_a_load_that_fails_is_told_and_tried_again(make: Make) -> None:
    loads = Loads(fails=(1, 2, 3))
    worker = make(loads, is_loaded=False)
    wait_for(lambda: worker.describe().state is WorkerState.FAILED)
    assert worker.describe().error == "load 1 fails"
    heard = Heard()
    worker.submit(answer(), heard)
    (ending,) = heard.wait()
    assert str(ending.error) == "load 2 fails"
    with pytest.raises(EngineError, match="load 3"), worker.borrow():
        pass
    check_alive(worker)
    assert worker.describe().error is None


def test_an_idle_pair_is_unloaded_and_loaded_on_demand(make: Make) -> None:
    loads = Loads()
    worker = make(loads, keep_alive_s=0.02)
    for n_loads in (1, 2):
        wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)
        with pytest.raises(EngineError, match="closed"):
            loads.pairs[-1].base.evaluate([1])
        assert loads.n_loads == n_loads
        check_alive(worker)
    wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)
    with worker.borrow() as pair:
        assert pair is loads.pairs[-1]
        assert pair.base.tokenize(b"hi")
    assert loads.n_loads == 4
    wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)


def test_keep_alive_zero_unloads_at_once_and_none_never(make: Make) -> None:
    loads = Loads()
    worker = make(loads, keep_alive_s=0.0)
    check_alive(worker)
    with worker.borrow() as pair:  # loaded for this alone, and not unloaded before it is looked at
        time.sleep(0.02)
        assert pair.base.tokenize(b"hi")
    wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)
    assert make(keep_alive_s=None)._remaining_s() is None


def test_borrowing_waits_for_no_job_and_keeps_the_pair(make: Make) -> None:
    worker = make(keep_alive_s=0.01)
    held, heard = Held(), Heard()
    worker.submit(held, heard)
    held.wait()
    with worker.borrow() as pair:
        held.may_end.set()
        heard.wait()
        time.sleep(0.05)
        assert worker.describe().state is WorkerState.READY
        assert pair.base.tokenize(b"hi")
    wait_for(lambda: worker.describe().state is WorkerState.UNLOADED)


# --- stopping


def test_a_stop_ends_what_runs_and_what_waits(make: Make) -> None:
    loads = Loads(delay_s=0.005)
    worker = make(loads)
    running, waiting = Heard(), Heard()
    worker.submit(answer(400), running)
    running.wait(2)
    worker.submit(answer(), waiting)
    worker.stop()
    assert waiting.wait() == [Done(is_cancelled=True)]
    *_, finished, done = running.wait()
    assert (finished.reason, done) == (FinishReason.CANCELLED, Done(is_cancelled=True))
    assert worker.join(WAIT_S)
    assert worker.describe().state is WorkerState.STOPPED
    for call in (lambda: worker.submit(answer(), Heard()), lambda: worker.borrow().__enter__()):
        with pytest.raises(StoppingError):
            call()
    with pytest.raises(EngineError, match="closed"):
        loads.pairs[0].base.evaluate([1])


def test_within_its_grace_time_work_ends_by_itself(make: Make) -> None:
    worker = make()
    held, heard, waiting = Held(), Heard(), Heard()
    worker.submit(held, heard)
    held.wait()
    worker.submit(answer(), waiting)
    worker.stop(grace_s=WAIT_S)
    with pytest.raises(StoppingError):
        worker.submit(answer(), Heard())
    held.may_end.set()
    assert heard.wait() == ["held", Done()]
    assert waiting.wait()[-1] == Done()
    assert worker.join(WAIT_S)


def test_after_its_grace_time_work_is_cancelled(make: Make) -> None:
    worker = make()
    held, heard = Held(), Heard()
    worker.submit(held, heard)
    held.wait()
    worker.stop(grace_s=0.02)
    assert heard.wait()[-1] == Done(is_cancelled=True)
    assert worker.join(WAIT_S)


def test_a_second_stop_shortens_the_grace_time(make: Make) -> None:
    worker = make()
    held, heard = Held(), Heard()
    worker.submit(held, heard)
    held.wait()
    worker.stop(grace_s=600)
    worker.stop()
    assert heard.wait()[-1] == Done(is_cancelled=True)
    assert worker.join(WAIT_S)


def test_many_threads_at_once(make: Make) -> None:
    worker = make(max_queue=1000)
    listeners = [Heard() for _ in range(60)]

    def client(first: int) -> None:
        for i in range(first, 60, 6):
            job = worker.submit(answer(12), listeners[i])
            if i % 3 == 0:
                job.cancel()
            with worker.borrow() as pair:
                assert pair.base.tokenize(b"a word")

    threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    for heard in listeners:
        *_, ending = heard.wait()
        assert isinstance(ending, Done)
        if not ending.is_cancelled:
            assert heard.text.strip() == expected(12)
    view = worker.describe()
    assert view.counts["done"] + view.counts["cancelled"] == 60
    assert (view.n_queued, view.job) == (0, None)
