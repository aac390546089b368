"""What a network partition does, and what it does not: five peers, cut three to two, with the leader among the two.

All of them run in this process over a MemoryNetwork, which loses what it is told to: so you can test your own
application against partitions, too. Every claim below is checked; the exit code says whether all of them held.
"""

import contextlib
import logging

import structlog
import trio

from replikv import Cluster, MemoryNetwork, MemoryTransport, OutcomeUnknownError, Settings, Store, UnavailableError

NAMES = ["a", "b", "c", "d", "e"]

# Impatient, so that the errors come soon. The defaults are 1 s and 10 s.
SETTINGS = Settings(heartbeat_interval_s=0.05, election_timeout_s=0.3, request_timeout_s=1.0)


async def main() -> None:
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        clusters = {
            name: await stack.enter_async_context(
                Cluster(
                    name,
                    members={name: name for name in NAMES},  # in memory, any string is an address
                    transport=MemoryTransport(network),
                    settings=SETTINGS,
                )
            )
            for name in NAMES
        }
        with trio.fail_after(20):
            await story(network, clusters)


async def story(network: MemoryNetwork, clusters: dict[str, Cluster]) -> None:
    acknowledged: dict[int, tuple[str, str]] = {}  # revision -> what was put at it

    old_leader = await clusters["a"].wait_leader()
    minority = [old_leader, next(name for name in NAMES if name != old_leader)]
    majority = [name for name in NAMES if name not in minority]
    acknowledged[await clusters[minority[1]].store.put("city", "Rome")] = ("city", "Rome")
    for cluster in clusters.values():
        await cluster.store.barrier()
        assert cluster.store["city"] == "Rome"
    old_term = clusters[old_leader].status().term
    print(f"{old_leader} leads in term {old_term}, and all five hold city = Rome")

    network.partition(minority, majority)
    print(f"\nThe network is cut: {' and '.join(minority)} | {', '.join(majority)}")
    for name in minority:
        await refuses(clusters[name])

    store = clusters[majority[0]].store
    acknowledged[await store.put("city", "Cairo")] = ("city", "Cairo")
    acknowledged[await store.put("river", "Nile")] = ("river", "Nile")
    status = clusters[majority[0]].status()
    assert status.leader in majority, status
    assert status.term > old_term, status
    print(f"\n{', '.join(majority)} go on: {status.leader} leads in term {status.term}, and city = {store['city']}")

    network.heal()
    print("\nThe network is whole again")
    for cluster in clusters.values():
        assert await cluster.store.get("city") == "Cairo"
        assert await history(cluster.store) == acknowledged
    status = clusters[old_leader].status()
    assert status.role == "follower", status
    assert status.term > old_term, status
    print(f"{old_leader} has stepped down: a follower of {status.leader}, in term {status.term}")
    print("the history is the same on all five, nothing but what was acknowledged:", list(acknowledged.values()))
    digests = {cluster.digest() for cluster in clusters.values()}
    while len(digests) > 1:  # the last heartbeats are still on their way
        await trio.sleep(SETTINGS.heartbeat_interval_s)
        digests = {cluster.digest() for cluster in clusters.values()}
    print("and the replicas are equal, byte for byte:", store.local)


async def refuses(cluster: Cluster) -> None:
    """A minority neither changes anything nor claims to know what is current; it says so, and why."""
    name, store, led = cluster.status().node_id, cluster.store, cluster.is_leader
    try:
        await store.put("city", "Paris")
    except OutcomeUnknownError as error:
        # It was the leader, and had the put in its log before it knew better. What becomes of it others will decide.
        assert led
        print(f"put on {name}: OutcomeUnknownError: {error}")
    except UnavailableError as error:
        assert not led
        print(f"put on {name}: UnavailableError: {error}")
    else:
        raise AssertionError("a minority has acknowledged a put")
    try:
        await store.get("city")
    except UnavailableError as error:
        print(f"get on {name}: UnavailableError: {error}")
    else:
        raise AssertionError("a minority has claimed to know what is current")
    assert store["city"] == "Rome"
    print(f"reads of {name}'s own replica go on: city =", store["city"])


async def history(store: Store) -> dict[int, tuple[str, str]]:
    """Every change that this replica has seen."""
    seen: dict[int, tuple[str, str]] = {}
    async with store.watch(since=0) as changes:
        while max(seen, default=0) < store.revision:
            change = await anext(changes)
            seen[change.revision] = (change.key, change.value)
    return seen


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, not a word, since the trouble is wanted.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    trio.run(main)
