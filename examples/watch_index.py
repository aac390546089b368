"""An index that follows the map: which orders are in which state, without a scan, and never a change missed.

A watch brings it up (snapshot=True), keeps it true (values before and after), says from where to go on after a break
(progress=True, since=), and tells a display that is slow no more than it can show (coalesce=True).
"""

import logging
from collections import defaultdict

import structlog
import trio

from replikv import Change, Cluster, Store


class OrdersByState:
    """The index, and the revision up to which it is complete."""

    def __init__(self) -> None:
        self.orders: defaultdict[str, set[str]] = defaultdict(set)
        self.bookmark: int | None = None

    def apply(self, change: Change) -> None:
        """Take the order out of where it was, and put it where it is."""
        self.bookmark = change.revision
        if change.previous is not None:
            self.orders[change.previous].discard(change.key)
        if change.kind == "put":
            self.orders[change.value].add(change.key)
        if change.kind == "progress":
            print(f"complete up to revision {change.revision}: {self}")
        elif change.created:
            print(f"{change.key} came in as {change.value}")
        elif change.previous is not None:
            print(f"{change.key} went from {change.previous} to {change.value or 'the archive'}")

    def __str__(self) -> str:
        return ", ".join(f"{state}: {' '.join(sorted(keys))}" for state, keys in sorted(self.orders.items()) if keys)


async def follow(store: Store, index: OrdersByState, until: int) -> None:
    """Begin with what there is, or go on behind what is known already; here, to a revision, in life for ever."""
    first = index.bookmark is None
    async with store.watch("", since=index.bookmark, snapshot=first, progress=True) as changes:
        async for change in changes:
            index.apply(change)
            if change.kind == "progress" and change.revision >= until:
                break


async def main() -> None:
    async with Cluster("a") as cluster:
        store = cluster.store.scoped("orders/")
        await store.update({"1": "paid", "2": "new", "3": "new"})
        index = OrdersByState()
        await follow(store, index, until=1)

        # Nobody watches while these happen: they are in the history.
        await store.put("2", "paid")
        await store.delete("1")
        revision = await store.put("4", "new")
        await cluster.store.put("elsewhere", 1)
        await follow(store, index, until=revision)

        # A display shows the newest of what came while it was busy, and what it showed before.
        async with store.watch(key="4", coalesce=True, buffer=1) as changes:
            for percent in range(0, 101, 10):
                await store.put("4", f"{percent} % packed")
            change = await anext(changes)
            print(f"the display: {change.key} went from {change.previous} to {change.value}")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
