"""Who is there: each process puts a key with a lease, and the key goes when the process does, one way or the other.

Three peers run in this process over a MemoryNetwork. One leaves, and its key is gone at once; one is cut off, and stops
by itself before the others see its key go. Every claim below is checked.
"""

import logging

import structlog
import trio

from replikv import Cluster, LeaseExpiredError, MemoryNetwork, MemoryTransport, Settings

NAMES = ["a", "b", "c"]

# Impatient, so that you need not wait. The defaults are 0.1 s and 1 s.
SETTINGS = Settings(heartbeat_interval_s=0.05, election_timeout_s=0.5)
TTL_S = 3.0


async def be_present(cluster: Cluster, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Have a key under presence/ for as long as this runs, and not much longer, whatever happens."""
    name = cluster.status().node_id
    with trio.CancelScope() as scope:
        try:
            async with cluster.store.lease(ttl_s=TTL_S) as lease:
                await cluster.store.put(f"presence/{name}", "at work", lease=lease)
                task_status.started(scope)
                await trio.sleep_forever()  # in real life, the work
        except LeaseExpiredError as error:
            print(f"{name} stops: {error}")


async def main() -> None:
    network = MemoryNetwork()
    clusters = {
        name: Cluster(
            name,
            members={name: name for name in NAMES},
            transport=MemoryTransport(network),
            settings=SETTINGS,
        )
        for name in NAMES
    }
    async with trio.open_nursery() as nursery:
        for cluster in clusters.values():
            await nursery.start(cluster.run)
        with trio.fail_after(40):
            await story(network, clusters)
        for cluster in clusters.values():
            await cluster.shutdown()


async def story(network: MemoryNetwork, clusters: dict[str, Cluster]) -> None:
    store = clusters["a"].store
    async with store.watch("presence/") as changes, trio.open_nursery() as nursery:
        scopes = {name: await nursery.start(be_present, clusters[name]) for name in NAMES}
        for _ in NAMES:
            change = await anext(changes)
            print(f"a sees {change.key}: {change.value}")

        await trio.sleep(1.5 * TTL_S)
        assert len(list(store.keys("presence/"))) == 3
        print("longer than the time to live later all three are there: they keep their leases alive")

        scopes["b"].cancel()
        change = await anext(changes)
        assert (change.key, change.kind) == ("presence/b", "expire"), change
        print("b has left its block, and a sees its key go")

        network.isolate("c")
        change = await anext(changes)
        assert (change.key, change.kind) == ("presence/c", "expire"), change
        print("c was cut off, and a sees its key go, too; by then c had stopped")
        network.heal()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, not a word, since the trouble is wanted.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    trio.run(main)
