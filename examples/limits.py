"""A limit that all replicas keep: whoever is over it may delete, and go on.

One peer in memory; with more of them all refuse alike. Every claim below is checked.
"""

import logging

import structlog
import trio

from replikv import Cluster, QuotaExceededError, Settings


async def main() -> None:
    async with Cluster("a", settings=Settings(keys_max=3)) as cluster:
        store = cluster.store
        await store.update({"a": 1, "b": 2, "c": 3})
        print("three keys are there, and as many are allowed")
        try:
            await store.put("d", 4)
        except QuotaExceededError as error:
            print("refused:", error)
        await store.put("a", "changed")  # a key that is there makes the map no larger
        await store.delete("b")
        await store.put("d", 4)
        print("after a delete there is room:", dict(store.items()))
        print("the doctor:", *cluster.doctor())


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, not a word.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    trio.run(main)
