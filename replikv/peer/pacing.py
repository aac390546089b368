"""How much leaves at once of what must leave room for others: so many at a time, and so many bytes a second."""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio

__all__ = ["Pacer", "Turns"]

BURST_S: Final = 0.1
"""What may be made up for after a pause, as seconds of the rate: sleeps that end late must not lower it."""


class Pacer:
    """Spreads bytes over time: a token bucket that holds ``BURST_S`` of the rate, and lets its users go into debt.

    So a chunk may be larger than the bucket, and who comes next waits for it.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        # When all that was reserved has left at the rate.
        self._even_at = -math.inf

    def reserve(self, size: int) -> float:
        """When the bytes may leave, by trio's clock; a time that has passed is at once. What is reserved is spent."""
        due = max(self._even_at, trio.current_time() - BURST_S)
        self._even_at = due + size / self._bytes_per_s
        return due


class Turns:
    """So many at once; whoever else comes waits, and has his turn in the order in which all came."""

    def __init__(self, count: int) -> None:
        # Free turns. Nobody waits while there is one.
        self._free = count
        # Those who wait, the first one first; each event is set, and taken out, when its turn has come.
        self._line: collections.deque[trio.Event] = collections.deque()

    @contextlib.asynccontextmanager
    async def turn(
        self, reassure: Callable[[], Awaitable[None]] | None = None, every_s: float = math.inf
    ) -> AsyncIterator[None]:
        """Wait for a turn and have it within the block; meanwhile call ``reassure`` from time to time.

        Cancelled while it waits, or when ``reassure`` raises, it leaves the line.
        """
        come = trio.Event()
        if self._free:
            self._free -= 1
            come.set()
        else:
            self._line.append(come)
        try:
            while not come.is_set():
                with trio.move_on_after(every_s):
                    await come.wait()
                if reassure is not None and not come.is_set():
                    await reassure()
            yield
        finally:
            if not come.is_set():
                self._line.remove(come)
            elif self._line:
                self._line.popleft().set()
            else:
                self._free += 1
