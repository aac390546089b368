"""Three processes want one lock. One gets stuck while it holds it, and is refused when it wakes up.

All of them run in this process over a MemoryNetwork, which can cut one off; yours are processes, and networks cut by
themselves. The lock is lost after ttl_s, and the stuck one does not know: that is what the fence is for.
"""

import contextlib
import logging

import structlog
import trio

from replikv import Cluster, LeaseExpiredError, MemoryNetwork, MemoryTransport, Put, Settings, Store
from replikv.recipes import Lock

SETTINGS = Settings(heartbeat_interval_s=0.05, election_timeout_s=0.3)  # impatient, as this is a demonstration


async def work(name: str, store: Store) -> None:
    async with Lock(store, "report", ttl_s=2, owner=name) as held:
        print(f"{name} has the lock, with token {held.token}")
        done = await store.txn([held.fence], [Put("report", f"written by {name}")])
        assert done.succeeded


async def get_stuck(store: Store, stuck: trio.Event, wake_up: trio.Event) -> None:
    try:
        async with Lock(store, "report", ttl_s=2, owner="c") as held:
            print(f"c has the lock, with token {held.token}, and gets stuck")
            stuck.set()
            with trio.CancelScope(shield=True):  # as a process that is stopped does not hear of anything
                await wake_up.wait()
                done = await store.txn([held.fence], [Put("report", "written by c, too late")])
            print("c wakes up and writes: taken" if done else "c wakes up and writes: refused")
    except LeaseExpiredError:
        print("c is told that the lock is lost")


async def main() -> None:
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        stores = {}
        for name in "abc":
            members = {"a": "a", "b": "b", "c": "c"}  # in memory, any string is an address
            cluster = Cluster(name, members=members, transport=MemoryTransport(network), settings=SETTINGS)
            stores[name] = (await stack.enter_async_context(cluster)).store

        async with trio.open_nursery() as nursery:  # one after the other, first come first served
            nursery.start_soon(work, "a", stores["a"])
            nursery.start_soon(work, "b", stores["b"])

        stuck, wake_up = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get_stuck, stores["c"], stuck, wake_up)
            await stuck.wait()
            await stores["a"].barrier()
            print("the lock is held by", *Lock(stores["a"], "report").owners())
            network.isolate("c")
            await work("b", stores["b"])  # waits until c's lease has expired
            network.heal()
            wake_up.set()
        print("the report was", await stores["a"].get("report"))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    trio.run(main)
