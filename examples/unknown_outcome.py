"""A payment whose answer was lost: was it made or not? Found out for good, by a token that outlives the process.

All peers run in this process over a MemoryNetwork, which loses what it is told to.
"""

import contextlib
import json
import logging

import structlog
import trio

from replikv import Cluster, MemoryNetwork, MemoryTransport, OutcomeUnknownError, Settings

NAMES = ["a", "b", "c"]

# Impatient, so that the errors come soon. The default is 10 s.
SETTINGS = Settings(request_timeout_s=3.0)


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
        with trio.fail_after(60):
            await lost_on_the_way_there(network, clusters)
            await lost_on_the_way_back(network, clusters)


async def lost_on_the_way_there(network: MemoryNetwork, clusters: dict[str, Cluster]) -> None:
    """The leader is cut off with the payment in its log; the others go on without it."""
    leader = await clusters["a"].wait_leader()
    await clusters[leader].store.put("paid", 0)
    network.isolate(leader)
    token = await pay(clusters[leader], 100)
    rest = [name for name in NAMES if name != leader]
    await clusters[rest[0]].store.put("shop", "open")
    network.heal()

    outcome = await clusters[rest[1]].outcome(token)  # any peer can tell
    print(f"the first payment: applied={outcome.applied}, {outcome.reason}")
    assert not outcome
    # However late an attempt of it comes: it has no effect any more. So it is safe to pay again.
    await clusters[rest[0]].store.increment("paid", 100)
    print("paid again, in all:", await clusters[leader].store.get("paid"))


async def lost_on_the_way_back(network: MemoryNetwork, clusters: dict[str, Cluster]) -> None:
    """A follower's payment reaches the leader, and is made; the follower does not hear of it."""
    leader = await clusters["a"].wait_leader()
    follower = next(name for name in NAMES if name != leader)
    await clusters[follower].store.barrier()  # it knows who leads
    for name in NAMES:
        if name != follower:
            network.cut(name, follower)  # one way only
    written = json.dumps(
        await pay(clusters[follower], 50)
    )  # two integers: keep them where your process finds them after a crash

    network.heal()

    session, sequence = json.loads(written)
    outcome = await clusters[follower].outcome((session, sequence))
    print(f"the second payment: applied={outcome.applied}")
    assert outcome
    print("not paid again, in all:", await clusters[follower].store.get("paid"))


async def pay(cluster: Cluster, amount: int) -> tuple[int, int]:
    try:
        await cluster.store.increment("paid", amount)
    except OutcomeUnknownError as error:
        print(f"{amount}: no answer; paid or not?")
        return error.token
    raise AssertionError("it was answered")


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, not a word, since the trouble is wanted.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    trio.run(main)
