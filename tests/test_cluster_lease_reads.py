"""``Settings.lease_reads``: linearizable reads that ask nobody, for as long as nobody else can lead."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import trio
from clusters import id_of, running

from replikv import Cluster, Settings, UnavailableError

LATENCY_S = 0.005
"""Of each frame, one way."""


async def seconds_of_a_get(cluster: Cluster) -> float:
    """How long a get takes; the same for each of several."""
    await trio.sleep(1.0)  # idle: the lease is not kept up by reads
    took: Counter[float] = Counter()
    for _ in range(20):
        before = trio.current_time()
        assert await cluster.store.get("k") == 1
        took[round(trio.current_time() - before, 6)] += 1
        await trio.sleep(0.0123)
    assert 1 == len(took), took
    return next(iter(took))


@pytest.mark.parametrize(
    ("lease_reads", "on_leader_s", "on_follower_s"),
    [(False, 2 * LATENCY_S, 4 * LATENCY_S), (True, 0.0, 2 * LATENCY_S)],
)
async def test_a_lease_saves_a_round_trip(
    autojump_clock: trio.abc.Clock, lease_reads: bool, on_leader_s: float, on_follower_s: float
) -> None:
    """The leader answers at once, and a follower after it has asked the leader, who asks nobody."""
    async with running("abc", lease_reads=lease_reads) as peers:
        await peers["a"].store.put("k", 1)
        peers.network.set_faults(delay_s=(LATENCY_S, LATENCY_S))
        assert on_leader_s == await seconds_of_a_get(await peers.leader())
        assert on_follower_s == await seconds_of_a_get((await peers.followers())[0])


@pytest.mark.parametrize("seed", range(3))
async def test_a_leader_that_is_cut_off_reads_nothing_stale(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """It reads by its lease for a while, and never what another leader has overwritten before the read began."""
    async with running("abc", lease_reads=True, seed=seed) as peers, trio.open_nursery() as nursery:
        await peers["a"].store.put("k", 0)
        old = await peers.leader()
        newest = 0
        phase = "before"
        served = Counter[str]()

        async def read() -> None:
            while True:
                at_least = newest
                try:
                    value = await old.store.get("k")
                except UnavailableError:
                    continue
                assert at_least <= value
                served[phase] += 1
                await trio.sleep(0.001)

        nursery.start_soon(read)
        await trio.sleep(1.0)
        phase = "cut off"
        peers.network.isolate(id_of(old))
        others = [id_of(cluster) for cluster in peers.without(old)]
        leader = await peers.leader(among=others)
        for number in range(1, 100):
            await leader.store.put("k", number)
            newest = number
            await trio.sleep(0.01)
        assert min(served["before"], served["cut off"]) > 100
        phase = "healed"
        peers.network.heal()
        await trio.sleep(1.0)
        assert newest == await old.store.get("k")
        nursery.cancel_scope.cancel()


async def test_promises_that_differ_are_not_counted_on(autojump_clock: trio.abc.Clock) -> None:
    """While a longer election timeout is being rolled out, the others vote earlier than the leader thinks: it asks."""
    settings = Settings(lease_reads=True)
    async with running("abc", absent="abc", settings=settings) as peers:
        await peers.start("a", settings=dataclasses.replace(settings, election_timeout_s=10.0))
        for node_id in "bc":
            await peers.start(node_id)
        await peers["b"].store.put("k", 1)
        await trio.sleep(5)
        if not peers["a"].is_leader:
            await peers["b"].transfer_leadership("a")
        await peers["a"].store.put("k", 2)
        await trio.sleep(3)
        assert peers["a"].is_leader
        peers.network.isolate("a")
        await peers["b"].store.put("k", 3)
        assert peers["a"].is_leader
        with pytest.raises(UnavailableError):
            await peers["a"].store.get("k")
