"""What the plain parts of a peer ask of trio, answered without trio: what time it is, and that a waiting task goes on.

The driver, the proposals and the barriers of a peer never await: they look at the clock and wake tasks. While a
simulation runs, nothing else runs in its thread, so those three public functions of trio are stood in for; in every
other thread they are trio's own. A task that waits for an answer is an :class:`Errand`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import outcome
import structlog
import trio

from replikv.testing.simulator.patching import Patch

__all__ = ["Errand", "Loop"]


class Errand:
    """A coroutine that waits for nothing but what a peer tells it. ``done`` gets its outcome."""

    __slots__ = ("_abort", "_coroutine", "_done", "_loop", "over")

    def __init__(
        self, loop: Loop, coroutine: Coroutine[Any, Any, Any], done: Callable[[outcome.Outcome[Any]], None]
    ) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._done = done
        self._abort: Callable[[Any], Any] | None = None
        self.over = False

    def start(self) -> None:
        """Run until it waits for the first time."""
        self.resume(None)

    def resume(self, value: object) -> None:
        """Go on with what it has waited for."""
        if self.over:
            return
        loop = self._loop
        before, loop.current = loop.current, self
        try:
            trap = self._coroutine.send(value)
            self._abort = trap.abort_func
        except StopIteration as stop:
            self.over = True
            self._done(outcome.Value(stop.value))
        except Exception as exc:  # told to whoever sent it
            self.over = True
            self._done(outcome.Error(exc))
        finally:
            loop.current = before

    def cancel(self) -> None:
        """Whoever waited has gone. ``done`` is not called."""
        if not self.over:
            self.over = True
            if self._abort is not None:
                self._abort(lambda: None)
            self._coroutine.close()

    def forget(self) -> None:
        """The process that it ran in has ended."""
        self.over = True
        self._coroutine.close()


class Loop:
    """The stand-in. ``clock`` is asked for the time wherever trio's would be."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = lambda: 0.0
        self.current: Errand | None = None
        # Woken, and not yet resumed: nobody runs before who has woken him is done.
        self.woken: deque[tuple[Errand, object]] = deque()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Stand in for trio in this thread, and have nothing logged."""
        thread = threading.get_ident()
        current_time, reschedule, current_task = (
            trio.current_time,
            trio.lowlevel.reschedule,
            trio.lowlevel.current_task,
        )

        def time() -> float:
            return self.clock() if threading.get_ident() == thread else current_time()

        def wake(task: Any, value: Any = None) -> None:
            value = value or outcome.Value(None)  # good for one use
            if isinstance(task, Errand):
                self.woken.append((task, value))
            else:
                reschedule(task, value)

        def task() -> Any:
            return self.current if threading.get_ident() == thread else current_task()

        config = structlog.get_config()
        with Patch() as patch:
            patch.set(trio, "current_time", time)
            patch.set(trio.lowlevel, "reschedule", wake)
            patch.set(trio.lowlevel, "current_task", task)
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
            try:
                yield
            finally:
                structlog.configure(**config)

    def resume_woken(self) -> None:
        """Resume whoever was woken."""
        while self.woken:
            errand, value = self.woken.popleft()
            errand.resume(value)
