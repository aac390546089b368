"""What the plain parts of a peer ask of trio, answered without trio: what time it is, and that a waiting task goes on.

The driver, the proposals and the barriers of a peer never await: they look at the clock and wake tasks. While a
simulation runs, nothing else runs in its thread, so the public functions of trio that they and the watches call are
stood in for; in every other thread they are trio's own. A task that waits for an answer is an :class:`Errand`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Self, TypeAlias

import outcome
import structlog
import trio

from replikv.testing.simulator.patching import Patch

__all__ = ["Errand", "Later", "Loop"]


Later: TypeAlias = Callable[..., None]
"""``later(seconds, step, *arguments)`` has a step taken some time from now, if there is somebody to take it."""


class Errand:
    """A coroutine that waits for nothing but what a peer tells it, and for time. ``done`` gets its outcome."""

    __slots__ = ("_abort", "_coroutine", "_done", "_loop", "later", "over")

    def __init__(
        self,
        loop: Loop,
        coroutine: Coroutine[Any, Any, Any],
        done: Callable[[outcome.Outcome[Any]], None],
        later: Later,
    ) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._done = done
        self.later: Final = later
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

    def interrupt(self, error: Exception) -> None:
        """Have it go on with an error instead of what it waits for."""
        if not self.over:
            if self._abort is not None:
                self._abort(lambda: None)
            self.resume(outcome.Error(error))

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


class _TimeUpError(Exception):
    """The time of a block is up."""


class _Within:
    """Stands for the cancel scope of ``trio.move_on_after``."""

    def __init__(self, errand: Errand, seconds: float) -> None:
        self._errand = errand
        self._seconds = seconds
        self._error = _TimeUpError()
        self._inside = False
        self.cancelled_caught = False

    def __enter__(self) -> Self:
        self._inside = True
        self._errand.later(self._seconds, self._expire)
        return self

    def _expire(self) -> None:
        if self._inside:
            self._errand.interrupt(self._error)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self._inside = False
        self.cancelled_caught = error is self._error
        return self.cancelled_caught


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
        trios = (trio.current_time, trio.move_on_after)
        lowlevel = (trio.lowlevel.reschedule, trio.lowlevel.current_task)
        checkpoints = (trio.lowlevel.checkpoint, trio.lowlevel.checkpoint_if_cancelled)

        def here() -> bool:
            return threading.get_ident() == thread

        def time() -> float:
            return self.clock() if here() else trios[0]()

        def move_on_after(seconds: float, *, shield: bool = False) -> Any:
            return _Within(self._running(), seconds) if here() else trios[1](seconds, shield=shield)

        def wake(task: Any, value: Any = None) -> None:
            if isinstance(task, Errand):
                self.wake(task, value)
            else:
                lowlevel[0](task, value or outcome.Value(None))

        def task() -> Any:
            return self.current if here() else lowlevel[1]()

        async def checkpoint() -> None:
            if not here():
                await checkpoints[0]()
                return
            self.wake(self._running())
            await trio.lowlevel.wait_task_rescheduled(_leave)

        async def checkpoint_if_cancelled() -> None:
            if not here():
                await checkpoints[1]()

        config = structlog.get_config()
        with Patch() as patch:
            patch.set(trio, "current_time", time)
            patch.set(trio, "move_on_after", move_on_after)
            patch.set(trio.lowlevel, "reschedule", wake)
            patch.set(trio.lowlevel, "current_task", task)
            patch.set(trio.lowlevel, "checkpoint", checkpoint)
            patch.set(trio.lowlevel, "checkpoint_if_cancelled", checkpoint_if_cancelled)
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
            try:
                yield
            finally:
                structlog.configure(**config)

    def _running(self) -> Errand:
        assert self.current is not None, "nobody runs"
        return self.current

    def wake(self, errand: Errand, value: Any = None) -> None:
        """Have it go on once who runs now is done."""
        self.woken.append((errand, value or outcome.Value(None)))  # an outcome is good for one use

    async def sleep(self, seconds: float) -> None:
        """Have the errand that calls this wait."""
        errand = self._running()
        errand.later(seconds, self.wake, errand)
        await trio.lowlevel.wait_task_rescheduled(_leave)

    def resume_woken(self) -> None:
        """Resume whoever was woken."""
        while self.woken:
            errand, value = self.woken.popleft()
            errand.resume(value)


def _leave(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED
