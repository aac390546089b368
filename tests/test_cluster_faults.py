"""What users see while the network fails: nothing acknowledged is lost, nothing applied twice, every await ends."""

from __future__ import annotations

import contextlib
import random

import pytest
import trio
from clusters import Peers, id_of, running

from replikv import ClusterClosedError, OutcomeUnknownError, UnavailableError
from replikv.cluster import Cluster


async def increment_for(
    cluster: Cluster, until: float, acknowledged: list[int], unknown: list[tuple[int, int]]
) -> None:
    """Increment one counter after the other, and note what came of it."""
    while trio.current_time() < until:
        try:
            acknowledged.append(await cluster.store.increment("count"))
        except OutcomeUnknownError as exc:
            unknown.append(exc.token)
        except UnavailableError:
            continue
        await trio.sleep(0.02)


# -- partitions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_ids", ["abc", "abcde"])
async def test_the_majority_goes_on_without_the_leader(autojump_clock: trio.abc.Clock, node_ids: str) -> None:
    """A leader cut off: the others elect a new one and take writes; healed, it follows and has them."""
    async with running(node_ids) as peers:
        old = await peers.leader()
        await old.store.put("key", "old")
        peers.network.isolate(id_of(old))
        rest = [id_of(cluster) for cluster in peers.without(old)]
        for node_id in rest:
            await peers[node_id].store.put(node_id, "new")
        assert id_of(await peers.leader(among=rest)) != id_of(old)
        await trio.sleep(2 * peers.settings.election_timeout_s)
        assert not old.is_leader  # it has noticed
        peers.network.heal()
        await peers.leader()
        await peers.converge()
        assert {"key": "old", **dict.fromkeys(rest, "new")} == dict(old.store.local)


async def test_a_put_in_the_minority_ends_in_time_and_names_who_is_missing(autojump_clock: trio.abc.Clock) -> None:
    """Handed to the log of a leader cut off: OutcomeUnknownError. Not handed to anybody: UnavailableError."""
    async with running(request_timeout_s=4.0) as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        missing = ", ".join(sorted(id_of(cluster) for cluster in await peers.followers()))
        peers.network.isolate(id_of(leader))
        started = trio.current_time()
        with pytest.raises(OutcomeUnknownError, match=f"2 of 3 voters.*: {missing}") as caught:
            await leader.store.put("key", 2)
        assert 3.8 <= trio.current_time() - started <= 4.0
        session, sequence = caught.value.token
        assert session > 0
        assert sequence > 0
        started = trio.current_time()
        with pytest.raises(UnavailableError, match=r"no leader; .*safe to try again"):
            await leader.store.put("key", 3)
        with pytest.raises(UnavailableError, match="no leader"):
            await leader.store.get("key")
        assert 7.6 <= trio.current_time() - started <= 8.0
        assert 1 == leader.store["key"]


async def test_a_follower_cut_off_cannot_read_linearizably(autojump_clock: trio.abc.Clock) -> None:
    """Its own replica may be old: get fails rather than return it, and barrier too. The synchronous read goes on."""
    async with running(request_timeout_s=2.0) as peers:
        follower = (await peers.followers())[0]
        await follower.store.put("key", "old")
        peers.network.isolate(id_of(follower))
        leader = await peers.leader(among=[id_of(cluster) for cluster in peers.without(follower)])
        await leader.store.put("key", "new")
        for read in (follower.store.get("key"), follower.store.barrier()):
            with pytest.raises(UnavailableError):
                await read
        assert "old" == follower.store["key"]
        peers.network.heal()
        assert "new" == await follower.store.get("key")


async def test_an_old_leader_that_does_not_know_it_yet_serves_no_stale_read(autojump_clock: trio.abc.Clock) -> None:
    """While it still takes itself for the leader: get asks a majority, and has none."""
    async with running(request_timeout_s=30.0) as peers:
        old = await peers.leader()
        await old.store.put("key", "old")
        peers.network.isolate(id_of(old))
        got: list[object] = []

        async def get() -> None:
            got.append(await old.store.get("key"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            rest = [id_of(cluster) for cluster in peers.without(old)]
            await peers[rest[0]].store.put("key", "new")
            peers.network.heal()
        assert ["new"] == got


async def test_what_nobody_acknowledged_is_overwritten_for_good(autojump_clock: trio.abc.Clock) -> None:
    """Entries in the log of a leader cut off give way to acknowledged ones, whose order nothing changes any more."""
    async with running(request_timeout_s=8.0) as peers:
        old = await peers.leader()
        await old.store.put("key", "first")
        peers.network.isolate(id_of(old))
        async with trio.open_nursery() as nursery:

            async def put_in_vain() -> None:
                with pytest.raises(OutcomeUnknownError):
                    await old.store.put("key", "lost")

            nursery.start_soon(put_in_vain)
            rest = [id_of(cluster) for cluster in peers.without(old)]
            revision = await peers[rest[0]].store.put("key", "second")
        peers.network.heal()
        await peers.leader()
        assert revision + 1 == await peers[rest[1]].store.put("other", 0)
        await peers.converge()
        assert ["second"] * 3 == [cluster.store["key"] for cluster in peers.all]
        await trio.sleep(10)
        assert revision == old.store.entry("key").mod_revision


async def test_in_a_bridge_partition_writes_resume(autojump_clock: trio.abc.Clock) -> None:
    """Two halves that reach each other only over one peer: within ten election timeouts writes go on, and stay on."""
    async with running("abcde") as peers:
        await peers.leader()
        peers.network.partition("abc", "cde")
        with trio.fail_after(10.0):
            await peers["c"].store.put("key", 1)
        term = peers["c"].status().term
        for value in range(50):
            await peers["c"].store.put("key", value)
            await trio.sleep(0.1)
        assert peers["c"].status().term <= term + 1


async def test_a_flap_changes_the_term_at_most_once(autojump_clock: trio.abc.Clock) -> None:
    """A follower that was away does not depose the leader when it is back (thesis 9.6)."""
    async with running() as peers:
        leader = await peers.leader()
        term = leader.status().term
        follower = (await peers.followers())[0]
        for _ in range(3):
            peers.network.isolate(id_of(follower))
            await trio.sleep(5.0)
            peers.network.heal()
            await peers.leader()
            await peers.converge()
        assert (term, leader) == (leader.status().term, await peers.leader())


async def test_a_flap_of_the_leader_costs_one_term(autojump_clock: trio.abc.Clock) -> None:
    """Another one is elected while it is away; when it is back it follows, and nothing more happens."""
    async with running() as peers:
        leader = await peers.leader()
        term = leader.status().term
        peers.network.isolate(id_of(leader))
        await trio.sleep(5.0)
        peers.network.heal()
        await peers.leader()
        await peers.converge()
        await trio.sleep(10.0)
        assert {term + 1} == {cluster.status().term for cluster in peers.all}


@pytest.mark.parametrize("node_ids", ["abc", "abcde"])
async def test_a_leader_without_a_quorum_steps_down(autojump_clock: trio.abc.Clock, node_ids: str) -> None:
    """By itself, within two election timeouts, whoever of a minority it still hears (thesis 6.2)."""
    async with running(node_ids) as peers:
        leader = await peers.leader()
        others = [id_of(other) for other in peers.without(leader)]
        minority = others[: len(node_ids) // 2 - 1]
        peers.network.partition([*minority, id_of(leader)], others[len(minority) :])
        with trio.fail_after(2 * peers.settings.election_timeout_s + peers.settings.heartbeat_interval_s):
            while leader.is_leader:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.01)


async def test_an_asymmetric_cut_ends_with_a_leader_that_works(autojump_clock: trio.abc.Clock) -> None:
    """The leader still reaches a majority one way only: it must not hold the others for ever."""
    async with running() as peers:
        leader = await peers.leader()
        others = peers.without(leader)
        for other in others:
            peers.network.cut(id_of(other), id_of(leader))
        with trio.fail_after(10.0):
            await others[0].store.put("key", 1)


async def test_a_put_in_flight_survives_a_change_of_leader(autojump_clock: trio.abc.Clock) -> None:
    """Forwarded to a leader that is lost before it could answer: handed to the next one, and applied once."""
    async with running() as peers:
        leader = await peers.leader()
        followers = await peers.followers()
        await followers[0].store.put("count", 0)
        peers.network.set_faults(delay_s=(0.02, 0.02))
        async with trio.open_nursery() as nursery:
            for follower in followers:
                for _ in range(10):
                    nursery.start_soon(follower.store.increment, "count")
            await trio.sleep(0.03)  # proposed by the leader, acknowledged by nobody
            peers.network.isolate(id_of(leader))
        peers.network.heal()
        assert 20 == await leader.store.get("count")


async def test_a_put_goes_to_the_new_leader_as_soon_as_it_is_known(autojump_clock: trio.abc.Clock) -> None:
    """It was handed to the one before, which never heard of it: nobody waits until its answer is overdue."""
    async with running() as peers:
        leader = await peers.leader()
        caller = peers.without(leader)[0]
        await caller.store.put("before", 1)
        peers.network.isolate(id_of(leader))
        await trio.sleep(peers.settings.election_timeout_s / 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.store.put, "key", 1)
            await peers.leader(among=[id_of(cluster) for cluster in peers.without(leader)])
            known = trio.current_time()
        assert trio.current_time() - known <= 0.3 * peers.settings.election_timeout_s


async def test_a_read_whose_question_was_lost_is_asked_again(autojump_clock: trio.abc.Clock) -> None:
    """Within an election timeout, by the same leader, and over the same connection."""
    async with running() as peers:
        leader = await peers.leader()
        reader = peers.without(leader)[0]
        await reader.store.put("key", 1)
        term = leader.status().term
        asked = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.store.get, "key")
            peers.network.set_faults(loss=1.0)
            await trio.sleep(0.1)
            peers.network.set_faults()
        assert 0.1 <= trio.current_time() - asked <= peers.settings.election_timeout_s
        assert term == leader.status().term


async def test_a_peer_that_stops_for_good_stops_nobody(autojump_clock: trio.abc.Clock) -> None:
    """The leader leaves: the others elect, and what it acknowledged is there."""
    async with running() as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        await peers.shutdown(id_of(leader))
        assert 1 == await peers.all[0].store.get("key")
        await peers.all[1].store.put("key", 2)
        assert 2 == await peers.all[0].store.get("key")
        with pytest.raises(ClusterClosedError):
            await leader.store.get("key")


# -- loss, duplication, reordering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
async def test_each_increment_counts_once_however_frames_fare(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """Frames lost, doubled, late and out of order: the sum is that of the successes, and of some that are unknown."""
    acknowledged: list[int] = []
    unknown: list[tuple[int, int]] = []
    async with running(seed=seed, request_timeout_s=5.0) as peers:
        peers.network.set_faults(loss=0.08, delay_s=(0.0, 0.03), duplication=0.1, reordering=0.1)
        async with trio.open_nursery() as nursery:
            until = trio.current_time() + 12
            for cluster in peers.all * 3:
                nursery.start_soon(increment_for, cluster, until, acknowledged, unknown)
        peers.network.set_faults()
        total = await peers["a"].store.get("count")
        await peers.converge()
    assert len(acknowledged) > 100
    assert len(set(acknowledged)) == len(acknowledged)
    assert len(acknowledged) <= total <= len(acknowledged) + len(unknown)
    assert len(set(unknown)) == len(unknown)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
async def test_each_increment_counts_once_however_often_the_leader_changes(
    autojump_clock: trio.abc.Clock, seed: int
) -> None:
    """One peer after the other is cut off under load, the leader more often than others."""
    acknowledged: list[int] = []
    unknown: list[tuple[int, int]] = []
    chance = random.Random(seed)
    async with running("abcde" if seed == 2 else "abc", seed=seed, request_timeout_s=5.0) as peers:
        peers.network.set_faults(loss=0.01, delay_s=(0.001, 0.01))
        async with trio.open_nursery() as nursery:
            until = trio.current_time() + 12
            for cluster in peers.all:
                nursery.start_soon(increment_for, cluster, until, acknowledged, unknown)
            await disturb(peers, until, chance)
        peers.network.heal()
        peers.network.set_faults()
        await peers.leader()
        total = await peers["a"].store.get("count")
        await peers.converge()
    assert len(acknowledged) > 100
    assert len(set(acknowledged)) == len(acknowledged)
    assert len(acknowledged) <= total <= len(acknowledged) + len(unknown)


async def disturb(peers: Peers, until: float, chance: random.Random) -> None:
    """Cut one peer off at a time, for a while."""
    while trio.current_time() < until:
        leaders = [cluster for cluster in peers.all if cluster.is_leader]
        victim = chance.choice(leaders if leaders and chance.random() < 0.6 else peers.all)
        peers.network.isolate(id_of(victim))
        await trio.sleep(chance.uniform(0.1, 3.0))
        peers.network.heal()
        await trio.sleep(chance.uniform(0.1, 2.0))


@pytest.mark.parametrize("seed", range(2))
async def test_gets_never_go_back_in_time(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """One register that only grows, written anywhere: no get that begins after another's end, or after an
    acknowledged write, returns less.
    """
    async with running(seed=seed, request_timeout_s=5.0) as peers:
        peers.network.set_faults(loss=0.02, delay_s=(0.0, 0.02), reordering=0.05)
        until = trio.current_time() + 12
        known = 0
        reads = 0

        async def write(cluster: Cluster) -> None:
            nonlocal known
            while trio.current_time() < until:
                with contextlib.suppress(TimeoutError):
                    known = max(known, await cluster.store.increment("n"))
                await trio.sleep(0.05)

        async def read(cluster: Cluster) -> None:
            nonlocal known, reads
            while trio.current_time() < until:
                least = known
                try:
                    value = await cluster.store.get("n", 0)
                except UnavailableError:
                    continue
                assert value >= least
                known = max(known, value)
                reads += 1
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(write, cluster)
                nursery.start_soon(read, cluster)
            await disturb(peers, until, random.Random(seed))
            peers.network.heal()
        assert reads > 100
