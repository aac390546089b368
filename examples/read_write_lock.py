"""Readers share a lock; a writer has it alone, and is not starved by those who come after it.

One peer, in memory, and five tasks: with more peers, in processes of their own, it is the same program.
"""

import logging

import structlog
import trio

from replikv import Cluster, Store
from replikv.recipes import ReadWriteLock


async def read(store: Store, name: str) -> None:
    async with ReadWriteLock(store, "catalogue").read():
        print(f"{name} reads version {store.local.get('version', 0)}")
        await trio.sleep(0.2)
        print(f"{name} has read")


async def write(store: Store, name: str) -> None:
    async with ReadWriteLock(store, "catalogue").write() as held:
        print(f"{name} writes alone, with token {held.token}")
        await store.increment("version")
        await trio.sleep(0.1)
        print(f"{name} has written")


async def main() -> None:
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        for task, name in ((read, "ann"), (read, "bob"), (write, "wim"), (read, "cleo"), (read, "dan")):
            nursery.start_soon(task, cluster.store, name)
            await trio.sleep(0.02)  # they come in this order


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
