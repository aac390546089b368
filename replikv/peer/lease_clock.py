"""The clock that leases on reads are counted on (raft/lease.py says what is assumed of it)."""

from __future__ import annotations

import time

import trio

__all__ = ["LeaseClock"]


class LeaseClock:
    """Ticks since some moment, on a clock that goes on while the process is stopped and while the machine sleeps.

    Trio's own clock stands still in a machine that sleeps (CLOCK_MONOTONIC). What it misses is how far CLOCK_BOOTTIME
    gets ahead of it, where the system has one. Under a clock of a test's nothing is missed.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        # Only ever grows: two clocks that are read one after the other differ by a little each time.
        self._asleep_s = asleep_s()

    def now(self) -> float:
        """Never goes back."""
        self._asleep_s = max(self._asleep_s, asleep_s())
        return (trio.current_time() + self._asleep_s) / self._tick_s


def asleep_s() -> float:
    """For how long the machine has slept since it was started; 0 where nobody can tell."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    except (AttributeError, OSError):
        return 0.0
