"""Linearizable reads of this peer: who waits, which round of ReadIndex serves them, and when they may go on.

All that wait when a round begins share it; those that come later wait for the next (thesis 6.4). A round that gets no
answer is given up and its waiters join the next one: a read changes nothing, so asking again is always sound.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import outcome
import trio

__all__ = ["Barriers"]

ROUNDS_MAX = 2
"""Rounds under way at once: one that is being confirmed, and one for who came since."""


class Waiter:
    """One task that waits for a barrier."""

    __slots__ = ("deadline", "task")

    def __init__(self, task: trio.lowlevel.Task, deadline: float) -> None:
        # None when the task is gone: cancelled, or told that time was up.
        self.task: trio.lowlevel.Task | None = task
        self.deadline = deadline


class Barriers:
    """The reads in flight. Waiters are kept in the order of their deadlines, which is that of their coming."""

    def __init__(self, first_context: int) -> None:
        # Not in any round yet.
        self._waiting: deque[Waiter] = deque()
        # Context -> (ticks when it began, who it serves).
        self._rounds: dict[int, tuple[int, list[Waiter]]] = {}
        # (index that must be applied, context to break ties, who waits for it): a heap.
        self._confirmed: list[tuple[int, int, list[Waiter]]] = []
        # A leader may still hold a read of the process that this peer was before, and answer it now: at an index that
        # is too old for ours. So contexts begin at a random number in each process, and never meet.
        self._context = first_context

    async def wait(self, deadline: float) -> None:
        """Wait until this peer's replica is as fresh as the cluster was at the call. The driver must be woken."""
        waiter = Waiter(trio.lowlevel.current_task(), deadline)
        self._waiting.append(waiter)
        await self._sleep(waiter)

    async def wait_applied(self, index: int, deadline: float) -> None:
        """Wait until the entry at ``index`` is applied here. The driver must be woken."""
        waiter = Waiter(trio.lowlevel.current_task(), deadline)
        self._context += 1
        heapq.heappush(self._confirmed, (index, self._context, [waiter]))
        await self._sleep(waiter)

    @staticmethod
    async def _sleep(waiter: Waiter) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            waiter.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    # -- the driver's --------------------------------------------------------------------------------------------------

    def begin_round(self, now_ticks: int) -> int | None:
        """A context to ask the leader with, for everybody who waits; None when nobody does or enough are under way."""
        if not self._waiting or len(self._rounds) >= ROUNDS_MAX:
            return None
        waiters = [waiter for waiter in self._waiting if waiter.task is not None]
        self._waiting.clear()
        if not waiters:
            return None
        self._context += 1
        self._rounds[self._context] = (now_ticks, waiters)
        return self._context

    def confirm(self, context: int, index: int) -> None:
        """The round is confirmed: its waiters go on when ``index`` is applied. Unknown contexts are old answers."""
        found = self._rounds.pop(context, None)
        if found is not None:
            heapq.heappush(self._confirmed, (index, context, found[1]))

    def give_up_rounds(self, before_ticks: int | None = None) -> None:
        """Have the waiters of unanswered rounds (begun before that tick, or all) asked for again, first in line."""
        for context, (began, waiters) in reversed(list(self._rounds.items())):
            if before_ticks is None or began < before_ticks:
                del self._rounds[context]
                self._waiting.extendleft(reversed(waiters))

    def release(self, applied: int) -> None:
        """Wake everybody whose index is applied."""
        while self._confirmed and self._confirmed[0][0] <= applied:
            for waiter in heapq.heappop(self._confirmed)[2]:
                if waiter.task is not None:
                    trio.lowlevel.reschedule(waiter.task)
                    waiter.task = None

    def expire(self, now: float, error: Callable[[], Exception]) -> None:
        """Tell everybody whose time is up."""
        groups = [self._waiting, *(waiters for _, waiters in self._rounds.values()), *(c[2] for c in self._confirmed)]
        for group in groups:
            for waiter in group:
                if waiter.deadline > now:
                    break
                if waiter.task is not None:
                    trio.lowlevel.reschedule(waiter.task, outcome.Error(error()))
                    waiter.task = None
        while self._waiting and self._waiting[0].task is None:
            self._waiting.popleft()

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """The peer stops: tell everybody."""
        self.expire(float("inf"), error)
