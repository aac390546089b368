"""Holders of locks and leases in one process, who write down until when they were sure to hold them.

What is written is a belief: the time was read *before* the holder asked his clock whether his time is up. So no delay
in between makes a true belief out of a false one, and one that nobody should have had is a violation.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterator
from typing import Final

import trio

from replikv.cluster import Cluster
from replikv.errors import ClusterClosedError, LeaseExpiredError, OutcomeUnknownError, UnavailableError
from replikv.leadership import PREFIX as LEADING
from replikv.store.leases import Lease
from replikv.store.txn import Put
from replikv.testing.chaos.records import Lines

__all__ = ["FENCED", "HELD", "LEASED", "LOCKS", "Holders"]

LOCKS: Final = 2
"""Different ones, that all processes compete for."""
FENCED: Final = "fenced/"
"""Keys that holders of locks write their tokens to, on the condition that they hold them."""
LEASED: Final = "leased/"
"""Keys that are put with leases."""
HELD: Final = (LEADING, LEASED)
"""What vanishes with its holder."""

_BEAT_S: Final = 0.02


class Holders:
    """Those of one process.

    Args:
        name: another one at each start.
        ttl_s: of locks and leases.
        chance: what they draw from.
    """

    def __init__(self, name: str, cluster: Cluster, lines: Lines, ttl_s: float, chance: random.Random) -> None:
        self._name = name
        self._cluster = cluster
        self._lines = lines
        self._ttl_s = ttl_s
        self._chance = chance
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Hold locks and leases for short times, again and again, until stopped or closed."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                for number in range(LOCKS):
                    self._nursery.start_soon(self._again, self._hold_lock, f"lock/{number}")
                self._nursery.start_soon(self._again, self._hold_lease, LEASED)

    def stop(self) -> None:
        """Have them let go."""
        self._scope.cancel()

    async def _again(self, hold: object, name: str) -> None:
        assert callable(hold)
        for number in itertools.count():
            try:
                with contextlib.suppress(LeaseExpiredError, UnavailableError, OutcomeUnknownError):
                    await hold(name, number)
            except ClusterClosedError:
                return
            await trio.sleep(self._chance.uniform(0.05, 0.3))

    async def _hold_lock(self, name: str, _: int) -> None:
        async with self._cluster.leading(name, ttl_s=self._ttl_s) as leadership:
            with self._believing(leadership.lease, name, leadership.key, leadership.token):
                until = trio.current_time() + self._chance.uniform(0.1, 1.0)
                while trio.current_time() < until:
                    with contextlib.suppress(UnavailableError, OutcomeUnknownError):
                        await self._cluster.store.txn([leadership.fence], [Put(FENCED + name, leadership.token)])
                    await trio.sleep(_BEAT_S)

    async def _hold_lease(self, prefix: str, number: int) -> None:
        async with self._cluster.store.lease(self._ttl_s) as lease:
            key = f"{prefix}{self._name}/{number}"
            token = await self._cluster.store.put(key, self._name, lease=lease)
            with self._believing(lease, key, key, token):
                await trio.sleep(self._chance.uniform(0.2, 1.5))

    @contextlib.contextmanager
    def _believing(self, lease: Lease, name: str, key: str, token: int) -> Iterator[None]:
        """Write down, as long as the block lasts, that it is held."""
        scope = trio.CancelScope()
        self._nursery.start_soon(self._believe, scope, lease, name, key, token)
        try:
            yield
        finally:
            scope.cancel()

    async def _believe(self, scope: trio.CancelScope, lease: Lease, name: str, key: str, token: int) -> None:
        entered = time.monotonic()
        with scope:
            while True:
                looked = time.monotonic()
                if lease.remaining_s > 0:
                    hold = {"name": name, "key": key, "token": token, "who": self._name}
                    self._lines.write({**hold, "entered": entered, "believed": looked})
                await trio.sleep(_BEAT_S)
