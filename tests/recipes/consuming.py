"""Queues under test, and consumers that tell what they have in hand."""

from __future__ import annotations

import contextlib
from typing import Any

import trio
from clusters import peer_of

from replikv import Cluster, Store
from replikv.recipes import Queue

VISIBILITY_S = 3.0
"""Three election timeouts: a change of leader alone costs nobody an item."""
EXPIRED_S = 2 * VISIBILITY_S + 3.0
"""Within this time the item of a consumer that is cut off or dead can be had, even if it led the cluster."""


def queue_of(store: Store, *, max_deliveries: int | None = None) -> Queue:
    return Queue(store, "mails", visibility_s=VISIBILITY_S, max_deliveries=max_deliveries)


def left_behind(cluster: Cluster) -> tuple[list[str], int]:
    """The keys that are there but for the number given out last, and how many leases, as this replica knows."""
    keys = [key for key in cluster.store if key != "queues/mails/number"]
    return keys, len(peer_of(cluster).replica.map.leases)


async def take_all(queue: Queue) -> list[Any]:
    """Take and acknowledge until there is nothing left."""
    taken = []
    with contextlib.suppress(trio.WouldBlock):
        while True:
            async with queue.take_nowait() as item:
                taken.append(item)
    return taken


class Hands:
    """Consumers that tell what they have in hand."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.let_go = trio.Event()

    async def hold(self, queue: Queue) -> None:
        """Take one, and hold it until the event."""
        async with queue.take() as item:
            self.items.append(item)
            await self.let_go.wait()

    async def until(self, count: int) -> None:
        """Wait until so many were taken."""
        with trio.fail_after(EXPIRED_S):
            while len(self.items) < count:  # noqa: ASYNC110  # a test may look
                await trio.sleep(0.01)
