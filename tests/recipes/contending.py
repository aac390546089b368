"""What contenders saw, and what tests of several recipes ask of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeVar

import trio
from clusters import peer_of

from replikv import Cluster, LeaseExpiredError, Store

T = TypeVar("T")

TTL_S = 6.0
"""Six election timeouts, so that a change of leader alone costs nobody a lease."""
EXPIRED_S = 2 * TTL_S + 3.0
"""Within this time whoever is cut off or dead has lost what it held, even if it led the cluster: a new leader grants
every lease its full time again."""


class Stay(NamedTuple):
    """One holder, from when it came in until it left or was told to."""

    name: str
    token: int
    came: float
    left: float
    kind: str = ""


class Stays:
    """What all of one thing's holders tell."""

    def __init__(self) -> None:
        self.done: list[Stay] = []
        self.inside: list[str] = []
        self.order: list[str] = []

    @contextlib.contextmanager
    def stay(self, name: str, token: int, kind: str = "") -> Iterator[None]:
        """Somebody is in."""
        came = trio.current_time()
        self.inside.append(name)
        self.order.append(name)
        try:
            yield
        finally:
            self.inside.remove(name)
            self.done.append(Stay(name, token, came, trio.current_time(), kind))


def overlaps(stays: Sequence[Stay]) -> list[tuple[Stay, Stay]]:
    """Pairs of stays that were at the same time. One may end in the moment in which another begins."""
    return [
        (one, other)
        for one, other in itertools.combinations(stays, 2)
        if one.came < other.left and other.came < one.left
    ]


def left_behind(cluster: Cluster) -> tuple[list[str], int]:
    """The keys that are there, and how many leases, as this replica knows."""
    return list(cluster.store.keys()), len(peer_of(cluster).replica.map.leases)


async def until_keys(store: Store, prefix: str, count: int) -> None:
    """Wait until so many keys are there."""
    with trio.fail_after(60.0):
        while sum(1 for _ in store.keys(prefix)) != count:  # noqa: ASYNC110  # a test may look
            await trio.sleep(0.01)


async def until_in(stays: Stays, *names: str) -> None:
    """Wait until exactly these are in."""
    with trio.fail_after(60.0):
        while sorted(stays.inside) != sorted(names):  # noqa: ASYNC110  # a test may look
            await trio.sleep(0.01)


async def stay_until(
    block: AbstractAsyncContextManager[Any], stays: Stays, name: str, event: trio.Event, kind: str = ""
) -> None:
    """Enter, and leave when the event comes. A lease that is lost ends it, too."""
    with contextlib.suppress(LeaseExpiredError):
        async with block as held:
            with stays.stay(name, getattr(held, "token", 0), kind):
                await event.wait()
