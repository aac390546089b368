"""A peer in a process of its own whose tasks contend for one thing; told what to do as ``child.py`` is.

Of each stay it writes a line when it is in, one for each write under its fence that the cluster took, and one when it
is out: so ``kill -9`` hides nothing that counts. Times are of CLOCK_MONOTONIC, which is the machine's, whatever the
clock of this process's event loop has been told to show.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import math
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog
import trio
from child import PR_SET_PDEATHSIG, Child, Pauses, main

from replikv import Claim, Cluster, LeaseExpiredError, Put
from replikv.recipes import Election, Lock


class SkewedClock(trio.abc.Clock):
    """A clock that is wrong, and does not run as others do."""

    def __init__(self, ahead_s: float, rate: float) -> None:
        self._ahead_s = ahead_s
        self._rate = rate

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._ahead_s + self._rate * time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return math.inf if deadline == math.inf else (deadline - self.current_time()) / self._rate


class Contending(Child):
    """What is done with the cluster, by command."""

    def __init__(self, cluster: Cluster, nursery: trio.Nursery, history: Path, pauses: Pauses) -> None:
        super().__init__(cluster, nursery, history, pauses)
        self._stays = history.with_suffix(".stays").open("a", encoding="utf-8", buffering=1)
        self._numbers = itertools.count()
        self._stopping = trio.Event()

    async def do_hold_by_turns(self, recipe: str, tasks: int, ttl_s: float, careless: bool = False) -> None:
        """Have so many tasks take it, again and again, until they are told to stop; answered when they have.

        ``careless``: they do not stop when they are told that they have lost it.
        """
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(self._contend, recipe, number, ttl_s, careless)

    async def do_hold(self, recipe: str, ttl_s: float, seconds: float = 1e6) -> None:
        """Take it, and write whatever happens, for so long or until a write is refused: answered then."""
        got_in = False
        while not got_in:  # one with a slow clock may lose its place in the line
            with contextlib.suppress(LeaseExpiredError):
                async with self._block(recipe, ttl_s) as held:
                    got_in = True
                    until = time.monotonic() + seconds
                    pauses_s = itertools.takewhile(lambda _: time.monotonic() < until, itertools.repeat(0.01))  # noqa: B023
                    with trio.CancelScope(shield=True):
                        await self._stay(held, pauses_s)

    async def do_stop_holding(self) -> None:
        self._stopping.set()

    async def _contend(self, recipe: str, number: int, ttl_s: float, careless: bool) -> None:
        chance = random.Random(f"{os.getpid()}/{number}")
        while not self._stopping.is_set():
            with contextlib.suppress(LeaseExpiredError, TimeoutError):
                async with self._block(recipe, ttl_s) as held:
                    with trio.CancelScope(shield=careless):
                        await self._stay(held, [chance.uniform(0.0, 0.02) for _ in range(chance.randrange(1, 20))])
            await trio.sleep(chance.uniform(0.0, 0.05))

    def _block(self, recipe: str, ttl_s: float) -> AbstractAsyncContextManager[Claim]:
        return Lock(self.cluster.store, "job", ttl_s=ttl_s) if recipe == "lock" else self._led(ttl_s)

    @contextlib.asynccontextmanager
    async def _led(self, ttl_s: float) -> AsyncGenerator[Claim]:
        async with Election(self.cluster.store, "job", ttl_s=ttl_s).campaign() as elected:
            yield elected.claim

    async def _stay(self, held: Claim, pauses_s: Iterable[float]) -> None:
        stay = f"{os.getpid()}/{next(self._numbers)}"
        self._note(stay, "in", token=held.token)
        try:
            for pause_s in pauses_s:
                done = await self.cluster.store.txn([held.fence], [Put("resource", held.token)])
                self._note(stay, "wrote" if done.succeeded else "refused", token=held.token, revision=done.revision)
                if not done.succeeded:
                    break
                await trio.sleep(pause_s)
        finally:
            self._note(stay, "out", token=held.token)

    def _note(self, stay: str, event: str, **fields: int) -> None:
        self._stays.write(json.dumps({"stay": stay, "event": event, "at": time.monotonic(), **fields}) + "\n")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    given = json.loads(sys.argv[1])
    clock = given.pop("clock", None)
    if clock is not None:
        wrong = clock["ahead_s"] + time.time()
        time.time = lambda: wrong  # the time of day: asked by nobody, or it would matter
    trio.run(main, given, Contending, clock=None if clock is None else SkewedClock(**clock))
