"""Six crawlers, of which two at a time may bother the site; whoever waits longest is next."""

import logging

import structlog
import trio

from replikv import Cluster, Store
from replikv.recipes import Semaphore


async def crawl(store: Store, number: int) -> None:
    semaphore = Semaphore(store, "crawlers", limit=2, owner=number)
    async with semaphore:
        print(f"crawler {number} is in; inside: {semaphore.owners()}")
        assert len(semaphore.owners()) <= 2
        await trio.sleep(0.1)


async def main() -> None:
    # One peer here, in memory; of several, in processes of their own, two at a time in all of them.
    async with Cluster("a") as cluster:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(crawl, cluster.store, number)
                await trio.sleep(0.01)

        one, other = (Semaphore(cluster.store, "licences", limit=1) for _ in range(2))
        async with one:
            try:
                async with other.acquire_nowait():
                    print("there were two licences")
            except trio.WouldBlock:
                print("the licence is taken, and nobody waits for it here")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
