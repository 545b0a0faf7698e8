"""Worker: the one thread that owns a pair, and the queue in front of it.

Owns loading, unloading and the order of jobs. Never looks into a job's items, never formats them, never opens a socket.

1. Jobs run one after the other in the order they came; at most `max_queue` wait. A new job never disturbs another.
2. Whatever a job, its listener, a load or an unload raises ends that one thing: the thread lives on.
3. Each job tells its listener any number of items and then exactly one Done or Failed.
4. `Job.cancel` ends a waiting job at once; a running one is told through `Job.is_cancelled` and `Job.on_cancel`, and
   its work is expected to end by itself, so that its last items are still heard.
5. A pair that is idle for `keep_alive_s` seconds is unloaded and loaded again by the next job. Never while borrowed.
6. A stop takes nothing new, lets what is there go on for its grace time, cancels the rest, and unloads.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from edge_nudge.errors import EdgeNudgeError, EngineError, LoadingError, QueueFullError, StoppingError

if TYPE_CHECKING:
    from edge_nudge.runtime import Pair

DEFAULT_MAX_QUEUE = 32
DEFAULT_KEEP_ALIVE_S = 300.0
_BORROWERS_WAIT_S = 5.0  # vocabulary work takes milliseconds; a borrower that hangs must not hold up the end

_log = logging.getLogger(__name__)


class WorkerState(str, Enum):
    LOADING = "loading"
    READY = "ready"
    UNLOADED = "unloaded"  # idle: the next job loads
    FAILED = "failed"  # the last load failed: the next job tries again
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Done:
    """A job's work came to its end; a job that was cancelled while it waited has no items."""

    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A job's work raised."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class JobView:
    """The running job, as it was at one moment."""

    id: str
    running_s: float
    n_tokens: int
    is_cancelled: bool


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The worker, as it was at one moment."""

    state: WorkerState
    error: str | None  # of the last load
    n_queued: int
    max_queue: int
    job: JobView | None
    idle_s: float  # since the last job or borrowing; 0 while there is one
    keep_alive_s: float | None
    counts: dict[str, int]  # jobs done, failed, cancelled, refused; loads


Listen: TypeAlias = Callable[[Any], object]
Work: TypeAlias = "Callable[[Pair, Job], Iterator[Any]]"


class Job:
    """One piece of work, waiting or running. `n_tokens` is for the work to count in, and for others to read."""

    def __init__(self, job_id: str, work: Work, listen: Listen, drop: Callable[[Job], None]) -> None:
        self.id = job_id
        self.n_tokens = 0
        self._work = work
        self._listen = listen
        self._drop = drop
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._on_cancel: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.n_tokens} tokens{', cancelled' if self._is_cancelled else ''}>"

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> None:
        """End the job, from any thread; a second call does nothing."""
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
            calls = list(self._on_cancel)
        for call in calls:
            call()
        self._drop(self)

    def on_cancel(self, call: Callable[[], object]) -> None:
        """Have `call` called when the job is cancelled, in the cancelling thread: at once if it is already."""
        with self._lock:
            if not self._is_cancelled:
                self._on_cancel.append(call)
                return
        call()


class Worker:
    """See the module's rules. `load` is called in the worker thread, at start and after each idle unload."""

    def __init__(
        self,
        load: Callable[[], Pair],
        *,
        max_queue: int = DEFAULT_MAX_QUEUE,
        keep_alive_s: float | None = DEFAULT_KEEP_ALIVE_S,
    ) -> None:
        self._load = load
        self._max_queue = max_queue
        self._keep_alive_s = keep_alive_s
        self._changed = threading.Condition()  # guards all that follows
        self._state = WorkerState.LOADING
        self._pair: Pair | None = None
        self._error: BaseException | None = None
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._running_since = 0.0
        self._idle_since = time.monotonic()
        self._n_borrowed = 0
        self._is_wanted = True  # by start, or by a borrower: load
        self._counts = dict.fromkeys(("done", "failed", "cancelled", "refused", "loads"), 0)
        self._n_attempts = 0  # to load
        self._numbers = itertools.count(1)
        self._timer: threading.Timer | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def __repr__(self) -> str:
        return f"<Worker {self._state.value}: {len(self._queue)} waiting, running {self._running}>"

    def start(self) -> None:
        """Start the thread and load the pair in it."""
        self._thread.start()

    def submit(self, work: Work, listen: Listen, *, job_id: str | None = None) -> Job:
        """Queue a job; `work` and `listen` are called in the worker thread.

        `listen` must be quick and is given each item of `work`, then Done or Failed; where a job is cancelled while
        it waits, in the cancelling thread. Raises QueueFullError, LoadingError, StoppingError.
        """
        with self._changed:
            job = Job(job_id or f"job-{next(self._numbers)}", work, listen, self._drop)
            try:
                self._need_open()
                if len(self._queue) >= self._max_queue:
                    raise QueueFullError(f"{self._max_queue} requests wait already: try again later")
            except EdgeNudgeError:
                self._counts["refused"] += 1
                raise
            self._queue.append(job)
            self._changed.notify_all()
        return job

    @contextmanager
    def borrow(self) -> Iterator[Pair]:
        """Give the pair for work with its vocabularies, from any thread, whatever job runs meanwhile.

        Waits for the pair where it was unloaded. Raises LoadingError, StoppingError, and what the load raises.
        """
        pair = self._borrowed()
        try:
            yield pair
        finally:
            with self._changed:
                self._n_borrowed -= 1
                self._idle_since = time.monotonic()
                self._changed.notify_all()

    def describe(self) -> WorkerView:
        """Return what the worker is doing."""
        with self._changed:
            now = time.monotonic()
            job = self._running
            view = None if job is None else JobView(job.id, now - self._running_since, job.n_tokens, job.is_cancelled)
            is_idle = job is None and not self._queue and not self._n_borrowed
            return WorkerView(
                self._state,
                None if self._error is None else str(self._error) or type(self._error).__name__,
                len(self._queue),
                self._max_queue,
                view,
                now - self._idle_since if is_idle else 0.0,
                self._keep_alive_s,
                dict(self._counts),
            )

    def stop(self, grace_s: float = 0.0) -> None:
        """Take nothing new; cancel what is still there after `grace_s` seconds. Returns at once: see `join`.

        A second call may shorten the time that is left.
        """
        with self._changed:
            if self._state is not WorkerState.STOPPED:
                self._state = WorkerState.STOPPING
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if grace_s > 0 and self._thread.is_alive():
                self._timer = threading.Timer(grace_s, self._cancel_all)
                self._timer.daemon = True
                self._timer.start()
            self._changed.notify_all()
        if grace_s <= 0:
            self._cancel_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the thread has freed the pair and ended; False where the time was too short."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        timer = self._timer
        if timer is not None:
            timer.cancel()
        return not self._thread.is_alive()

    # --- called from any thread

    def _need_open(self) -> None:
        if self._state in (WorkerState.STOPPING, WorkerState.STOPPED):
            raise StoppingError("the service is stopping and takes no new requests")
        if self._state is WorkerState.LOADING and not self._counts["loads"]:
            raise LoadingError("the models are being loaded: try again in a moment")

    def _borrowed(self) -> Pair:
        with self._changed:
            n_attempts = self._n_attempts
            self._n_borrowed += 1  # while it waits as well: what is loaded for it is not unloaded before it looks
            try:
                while True:
                    self._need_open()
                    if self._pair is not None:
                        return self._pair
                    if self._n_attempts > n_attempts and self._error is not None:
                        raise self._error
                    self._is_wanted = True
                    self._changed.notify_all()
                    self._changed.wait()
            except BaseException:
                self._n_borrowed -= 1
                raise

    def _drop(self, job: Job) -> None:
        """Take a cancelled job out of the queue and tell its listener; a running one is left to its work."""
        with self._changed:
            try:
                self._queue.remove(job)
            except ValueError:
                return
            self._counts["cancelled"] += 1
            self._changed.notify_all()
        _tell(job, Done(is_cancelled=True))

    def _cancel_all(self) -> None:
        with self._changed:
            jobs = [*([self._running] if self._running else []), *self._queue]
        for job in jobs:
            job.cancel()

    # --- the worker thread

    def _run(self) -> None:
        while True:
            try:
                if self._step():
                    break
            except BaseException:
                _log.exception("the worker goes on after an error of its own")
        self._unload(WorkerState.STOPPED)

    def _step(self) -> bool:
        """Do the next thing there is to do; True if that is to end."""
        job, pair = None, None
        with self._changed:
            while True:
                if self._queue:
                    job = self._running = self._queue.popleft()
                    self._running_since = time.monotonic()
                    break
                if self._state is WorkerState.STOPPING:
                    return True
                if self._is_wanted and self._pair is None:
                    break
                remaining_s = self._remaining_s()
                if remaining_s is not None and remaining_s <= 0:
                    pair, self._pair, self._state = self._pair, None, WorkerState.UNLOADED
                    break
                self._changed.wait(remaining_s)
        if job is not None:
            self._finish(job, self._outcome(job))
        elif pair is not None:
            _close(pair)
        else:
            self._try_to_load()
        return False

    def _remaining_s(self) -> float | None:
        """Return the seconds until the idle pair is unloaded; None for never. The lock is held."""
        if self._pair is None or self._n_borrowed or self._keep_alive_s is None:
            return None
        return self._idle_since + self._keep_alive_s - time.monotonic()

    def _try_to_load(self) -> BaseException | None:
        with self._changed:
            if self._state is not WorkerState.STOPPING:
                self._state = WorkerState.LOADING
        pair: Pair | None = None
        error: BaseException | None = None
        try:
            pair = self._load()
        except BaseException as raised:
            error = raised
            _log.error("loading failed: %s", raised)
        with self._changed:
            self._pair, self._error = pair, error
            self._n_attempts += 1
            self._is_wanted = False
            self._idle_since = time.monotonic()
            if pair is not None:
                self._counts["loads"] += 1
            if self._state is not WorkerState.STOPPING:
                self._state = WorkerState.FAILED if pair is None else WorkerState.READY
            self._changed.notify_all()
        return error

    def _unload(self, state: WorkerState) -> None:
        """Free the pair once nobody has it borrowed; it is left alone where a borrower hangs."""
        with self._changed:
            is_free = self._changed.wait_for(lambda: not self._n_borrowed, _BORROWERS_WAIT_S)
            pair, self._pair = self._pair, None
            if state is WorkerState.STOPPED or self._state is not WorkerState.STOPPING:
                self._state = state
            self._changed.notify_all()
        if pair is not None and is_free:
            _close(pair)

    def _outcome(self, job: Job) -> Done | Failed:
        """Run a job; return what became of it."""
        if job.is_cancelled:
            return Done(is_cancelled=True)
        if self._pair is None and (error := self._try_to_load()) is not None:
            return Failed(error)
        pair = self._pair
        assert pair is not None, "loaded, or an error"
        outcome: Done | Failed
        items: Iterator[Any] | None = None
        try:
            items = iter(job._work(pair, job))
            for item in items:
                if not _tell(job, item):
                    job.cancel()  # nobody hears it
            outcome = Done(job.is_cancelled)
        except BaseException as error:
            outcome = Failed(error)
        if not self._is_clean_after(job, items, outcome):
            self._reset(pair)
        return outcome

    def _is_clean_after(self, job: Job, items: Iterator[Any] | None, outcome: Done | Failed) -> bool:
        """Close the work; tell whether the pair can be trusted as it is."""
        is_clean = True
        if isinstance(outcome, Failed):
            is_ours = isinstance(outcome.error, EdgeNudgeError)
            is_clean = is_ours and not isinstance(outcome.error, EngineError)
            if not is_ours:
                _log.error("%s failed", job.id, exc_info=outcome.error)
        close = getattr(items, "close", None)
        if close is not None:
            try:
                close()
            except BaseException:
                _log.exception("%s: closing its work failed", job.id)
                is_clean = False
        return is_clean

    def _reset(self, pair: Pair) -> None:
        """Begin anew with empty caches; a pair that cannot even do that is unloaded."""
        try:
            pair.forget()
        except BaseException:
            _log.exception("the caches could not be cleared: the pair is loaded anew")
            self._unload(WorkerState.UNLOADED)

    def _finish(self, job: Job, outcome: Done | Failed) -> None:
        with self._changed:
            self._running = None
            self._idle_since = time.monotonic()
            is_failed = isinstance(outcome, Failed)
            self._counts["failed" if is_failed else "cancelled" if job.is_cancelled else "done"] += 1
            self._changed.notify_all()
        if job.is_cancelled:
            _log.info("%s: cancelled", job.id)
        _tell(job, outcome)


def _close(pair: Pair) -> None:
    try:
        pair.close()
        _log.info("unloaded")
    except BaseException:
        _log.exception("unloading failed")


def _tell(job: Job, item: Any) -> bool:
    """Give an item to the listener of a job; False where it raised."""
    try:
        job._listen(item)
    except BaseException:
        _log.exception("%s: its listener failed", job.id)
        return False
    return True
