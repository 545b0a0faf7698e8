"""Ctrl-C and SIGTERM: ask first, end at once on the second, also while native code computes.

Owns the handlers while a command runs, and puts the former ones back. Never touches an answer or a file.

1. Ordinarily a signal raises Interrupted in the main thread: files are left whole by whoever holds them.
2. Under `asking` the first signal asks (an answer is cancelled and stays) and the second ends the process.
3. Under `at_once` the first ends the process: nothing is being written, and a model may take long to load.
4. Python runs handlers between two of its own steps only, so 2 and 3 are done by a thread that the signal wakes.
5. A signal that was ignored when we came (nohup, a background job) stays ignored.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked us to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + int(getattr(interrupt, "signum", signal.SIGINT))


class Interrupts:
    """The signals of one command, `more` beside Ctrl-C and SIGTERM. Outside the main thread it does nothing.

    `signum` is the signal that was asked to stop under `asking`; `leave` ends the process and is there for tests.
    """

    def __init__(self, leave: Callable[[int], Any] = os._exit, *, more: Sequence[int] = ()) -> None:
        self.signum: int | None = None
        self._signals = (*_SIGNALS, *more)
        self._leave = leave
        self._lock = threading.Lock()
        self._is_watched = False  # the thread acts, not the handler
        self._ask: Callable[[], Any] | None = None
        self._clean_up: Callable[[], Any] | None = None
        self._missed: int | None = None
        self._former: dict[int, Any] = {}
        self._wires: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._wires = socket.socketpair()
        ours, natives = self._wires
        natives.setblocking(False)
        self._former_wire = signal.set_wakeup_fd(natives.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(ours,), name="interrupts", daemon=True)
        self._thread.start()
        for signum in self._signals:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                self._former[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wires is None or self._thread is None:
            return
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._former_wire)
        ours, natives = self._wires
        natives.close()
        self._thread.join()
        ours.close()

    @contextmanager
    def asking(self, ask: Callable[[], Any], clean_up: Callable[[], Any] | None = None) -> Iterator[None]:
        """Let the first signal call `ask`, from another thread, and the second one end the process after `clean_up`."""
        with self._watching(ask, clean_up):
            yield

    @contextmanager
    def at_once(self, clean_up: Callable[[], Any] | None = None) -> Iterator[None]:
        """Let a signal end the process, after `clean_up`, called from another thread."""
        with self._watching(None, clean_up):
            yield

    @contextmanager
    def _watching(self, ask: Callable[[], Any] | None, clean_up: Callable[[], Any] | None) -> Iterator[None]:
        with self._lock:
            self._ask, self._clean_up = ask, clean_up
            self._is_watched = True
            missed = self._missed
        try:
            if missed is not None:  # it came when the thread still left it to the handler
                raise Interrupted(missed)
            yield
        finally:
            with self._lock:
                self._is_watched = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._is_watched:
            raise Interrupted(signum)

    def _watch(self, wire: socket.socket) -> None:
        while data := wire.recv(1):
            with self._lock:
                self._act(data[0])

    def _act(self, signum: int) -> None:
        if signum not in self._former:
            return
        if not self._is_watched:
            self._missed = signum
        elif self._ask is not None and self.signum is None:
            self.signum = signum
            self._ask()
        else:
            try:
                if self._clean_up is not None:
                    self._clean_up()
            finally:
                self._leave(128 + signum)
