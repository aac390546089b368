"""Load on one process for the length of a window, and what was measured in it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

__all__ = ["KEYS", "VALUE", "Window", "read_window", "window"]

KEYS: Final = tuple(f"benchmark/{number:06d}" for number in range(4096))
"""16 bytes each, written round and round: the state stays as large as it is, as configuration and locks do."""

VALUE: Final = bytes(range(256))

READS_PER_CHECKPOINT: Final = 1000
"""About a millisecond of local reads: no longer does a peer go without its heartbeats."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What one window has seen. Latencies are None where operations are too short to be timed one by one."""

    operations: int
    elapsed_s: float
    p50_s: float | None = None
    p99_s: float | None = None

    @property
    def per_s(self) -> float:
        """Operations per second."""
        return self.operations / self.elapsed_s


async def window(operation: Callable[[str], Awaitable[object]], concurrency: int, seconds: float) -> Window:
    """Run ``operation(key)`` over and over in so many tasks. It ends when the last one that was begun is answered."""
    clock = time.perf_counter
    keys = itertools.cycle(KEYS)
    latencies: list[float] = []
    start = clock()
    end = start + seconds

    async def client() -> None:
        while (begun := clock()) < end:
            await operation(next(keys))
            latencies.append(clock() - begun)

    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(client)
    elapsed_s = clock() - start
    latencies.sort()
    return Window(len(latencies), elapsed_s, latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)])


async def read_window(read: Callable[[str], object], seconds: float) -> Window:
    """Call ``read(key)`` over and over in one task."""
    clock = time.perf_counter
    keys = itertools.cycle(KEYS)
    operations = 0
    start = clock()
    while clock() < start + seconds:
        for key in itertools.islice(keys, READS_PER_CHECKPOINT):
            read(key)
        operations += READS_PER_CHECKPOINT
        await trio.lowlevel.checkpoint()
    return Window(operations, clock() - start)
