"""Leases on whole clusters: kept alive by whichever leader, given up in time, and ended by the leader alone."""

from __future__ import annotations

import functools
import os
import random
import threading
from pathlib import Path

import pytest
import trio
from clusters import HEALED_S, Peers, id_of, peer_of, running

from replikv import Cluster, LeaseExpiredError, MemoryNetwork, MemoryTransport, Settings
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFile, OsFileSystem

ENDS_WITHIN_S = 1.0
"""After its time a lease is gone within some ticks: one to see it, one to be confirmed, one to commit."""


async def wait_gone(cluster: Cluster, key: str, *, within_s: float = HEALED_S) -> float:
    """When this peer sees that the key is gone."""
    with trio.fail_after(within_s):
        while key in cluster.store:  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.01)
    return trio.current_time()


async def test_keys_vanish_when_the_block_ends(autojump_clock: trio.abc.Clock) -> None:
    """On every peer; within the block they stay, for many times the time to live."""
    async with running() as peers:
        holder = (await peers.followers())[0]
        async with holder.store.lease(ttl_s=3.0) as lease:
            await holder.store.put("key", 1, lease=lease)
            await trio.sleep(60)
            assert 1 == holder.store["key"]
            assert lease.id == holder.store.entry("key").lease
            assert 1.5 <= lease.remaining_s <= 2.7
        assert "key" not in holder.store
        await peers.converge()
        assert [{}] * 3 == [dict(cluster.store.local) for cluster in peers.all]


async def test_keys_vanish_when_the_process_dies(autojump_clock: trio.abc.Clock) -> None:
    """Nobody revokes then: the leader does, once the time is up, and what watches see is an expiry."""
    async with running() as peers:
        holder, other = await peers.followers()
        kinds: list[str] = []
        other.store.subscribe(lambda change: kinds.append(change.kind), prefix="key")
        lease = await holder.store.grant_lease(5.0)
        await holder.store.put("key", 1, lease=lease)
        before = trio.current_time()
        assert 5.0 == await holder.store.keep_alive(lease)
        await peers.kill(id_of(holder))
        assert 5.0 <= await wait_gone(other, "key") - before <= 5.0 + ENDS_WITHIN_S
        await trio.sleep(0.1)
        assert ["put", "expire"] == kinds


async def test_a_cancelled_application_takes_its_keys_along(autojump_clock: trio.abc.Clock) -> None:
    """The blocks of the lease and of the cluster end together, in order: nobody has to wait until they expire."""
    async with running("abc", absent="c") as peers:
        with trio.CancelScope() as scope:
            async with peers.make("c") as cluster, cluster.store.lease(ttl_s=600.0) as lease:
                await cluster.store.put("key", 1, lease=lease)
                await peers["a"].store.barrier()
                assert "key" in peers["a"].store
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        await peers["a"].store.barrier()
        assert "key" not in peers["a"].store


@pytest.mark.parametrize("on_leader", [False, True])
async def test_a_holder_that_is_cut_off_stops_before_the_cluster_lets_go(
    autojump_clock: trio.abc.Clock, on_leader: bool
) -> None:
    """Its body is cancelled, and the block raises, while the others still see the key; then they see it go.

    So it is, too, where the holder's own peer leads, until it notices that it does not any more.
    """
    async with running() as peers:
        holder = await peers.leader() if on_leader else (await peers.followers())[0]
        other = peers.without(holder)[0]
        with pytest.raises(LeaseExpiredError, match="could not be kept alive"):  # noqa: PT012  # the block is the point
            async with holder.store.lease(ttl_s=5.0) as lease:
                await holder.store.put("key", 1, lease=lease)
                await trio.sleep(10)
                peers.network.isolate(id_of(holder))
                cut = trio.current_time()
                await trio.sleep_forever()
        stopped = trio.current_time()
        assert 2.5 <= stopped - cut <= 4.5
        assert 1 == other.store["key"]
        gone = await wait_gone(other, "key")
        assert gone - stopped >= 0.5
        assert 0.0 == lease.remaining_s


async def test_a_lease_outlives_leaders(autojump_clock: trio.abc.Clock) -> None:
    """Ten leaders in a row are cut off for a while; every holder stays in his block."""
    async with running("abcde") as peers:
        await peers.leader()
        held: set[str] = set()

        async def hold(cluster: Cluster) -> None:
            async with cluster.store.lease(ttl_s=12.0) as lease:
                await cluster.store.put(f"held/{id_of(cluster)}", 1, lease=lease)
                held.add(id_of(cluster))
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(hold, cluster)
            await trio.sleep(3)
            assert 5 == len(held)
            terms = set()
            for _ in range(10):
                old = await peers.leader()
                terms.add(old.status().term)
                peers.network.isolate(id_of(old))
                await peers.leader(among=[id_of(cluster) for cluster in peers.without(old)])
                peers.network.heal()
                await peers.leader()
                await trio.sleep(2)
            assert 10 == len(terms)
            assert [f"held/{node_id}" for node_id in "abcde"] == list(peers["a"].store)
            nursery.cancel_scope.cancel()


async def test_a_new_leader_grants_full_time(autojump_clock: trio.abc.Clock) -> None:
    """Known elsewhere as: time to live lost or reset on a change of leader (etcd#20273)."""
    async with running() as peers:
        old = await peers.leader()
        lease = await old.store.grant_lease(8.0)
        await old.store.put("key", 1, lease=lease)
        await trio.sleep(7.0)
        await peers.kill(id_of(old))
        new = await peers.leader()
        led = trio.current_time()
        status = await new.store.time_to_live(lease)
        assert (8.0, ("key",)) == (status.ttl_s, status.keys)
        assert 7.5 <= status.remaining_s <= 8.0
        gone = await wait_gone(new, "key", within_s=20.0)
        assert 7.0 <= gone - led <= 8.0 + ENDS_WITHIN_S


async def test_a_leader_that_was_none_for_a_moment_grants_full_time(autojump_clock: trio.abc.Clock) -> None:
    """Whoever led meanwhile may have kept a lease alive: what was known before counts no more (etcd#15247)."""
    async with running() as peers:
        leader = await peers.leader()
        other = peers.without(leader)[0]
        lease = await leader.store.grant_lease(3.0)
        await leader.store.put("key", 1, lease=lease)
        await trio.sleep(2.5)
        asked = trio.current_time()
        for successor in (other, leader):
            await leader.transfer_leadership(id_of(successor))
        assert (True, True) == (leader.is_leader, trio.current_time() - asked < peers.settings.election_timeout_s)

        assert 2.9 <= await wait_gone(other, "key") - asked <= 3.0 + ENDS_WITHIN_S


async def test_an_old_leader_ends_nothing(autojump_clock: trio.abc.Clock) -> None:
    """Known elsewhere as: an old leader expires leases (etcd#12528, #15247).

    Cut off, and sure that the time of all is up; the others keep theirs alive under the new leader. When it is back,
    nothing of what it thought comes true.
    """
    async with running() as peers:
        old = await peers.leader()
        holder = peers.without(old)[0]
        async with holder.store.lease(ttl_s=4.0) as lease:
            await holder.store.put("key", 1, lease=lease)
            for _ in range(3):
                peers.network.isolate(id_of(old))
                await trio.sleep(20.0)
                peers.network.heal()
                await peers.leader()
                await trio.sleep(5.0)
            assert 1 == await old.store.get("key")
            assert lease.id == old.store.entry("key").lease


async def test_a_leader_whose_time_jumps_ends_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Known elsewhere as: a stalled leader expires leases (etcd#12528).

    An hour in which nobody could ask anything: every lease has its full time again.
    """
    async with running() as peers:
        leader = await peers.leader()
        lease = await leader.store.grant_lease(4.0)
        await leader.store.put("key", 1, lease=lease)
        await trio.sleep(2.0)
        for _ in range(3):
            autojump_clock.jump(3600.0)
            await trio.sleep(2.0)
            assert "key" in leader.store
        before = trio.current_time()
        assert 1.0 <= await wait_gone(leader, "key") - before <= 4.0 + ENDS_WITHIN_S


async def test_no_quorum_is_no_reason_to_end_a_lease(autojump_clock: trio.abc.Clock) -> None:
    """Nobody can reach anybody for a minute; when they can again, the lease is there and can be kept alive."""
    async with running() as peers:
        leader = await peers.leader()
        lease = await leader.store.grant_lease(4.0)
        for node_id in "abc":
            peers.network.isolate(node_id)
        await trio.sleep(60.0)
        peers.network.heal()
        await peers.leader()
        assert 4.0 == await leader.store.keep_alive(lease)


@pytest.mark.parametrize("seed", range(3))
async def test_bad_networks_cost_no_lease(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """Frames lost, doubled, late and out of order: what is kept alive stays."""
    async with running(seed=seed) as peers:
        peers.network.set_faults(loss=0.1, delay_s=(0.0, 0.05), duplication=0.1, reordering=0.1)
        await peers.leader()

        async def hold(cluster: Cluster) -> None:
            # A question, or the answer to it, is lost with one of four tries, and one a second is made. So one of some
            # hundred thousand renewals finds no way in 11 s; with half the time to live, one of some thousand did.
            async with cluster.store.lease(ttl_s=20.0) as lease:
                await cluster.store.put(f"held/{id_of(cluster)}", 1, lease=lease)
                await trio.sleep(120)
                assert f"held/{id_of(cluster)}" in cluster.store

        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(hold, cluster)


async def test_ten_thousand_leases_end_by_themselves(autojump_clock: trio.abc.Clock) -> None:
    """All at about the same time: their keys are gone some seconds after that, and puts go on meanwhile."""
    async with running() as peers:
        leader = await peers.leader()
        count = 10_000

        async def grant(number: int) -> None:
            lease = await leader.store.grant_lease(20.0)
            await leader.store.put(f"leased/{number}", 0, lease=lease)

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(grant, number)
        assert count == len(leader.store)
        await trio.sleep(20.0)
        with trio.fail_after(5.0):
            while len(leader.store) > 0:
                await leader.store.put("other", 0)
                await leader.store.delete("other")
                await trio.sleep(0.05)
        await peers.converge()


async def test_a_large_lease_survives_a_restart_of_everybody(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """It is in snapshots, ending or not; whoever leads then goes on with it."""
    async with running(disks=tmp_path, operations_per_command_max=100) as peers:
        leader = await peers.leader()
        lease = await leader.store.grant_lease(5.0)
        for start in range(0, 3000, 100):
            await leader.store.update({f"{number:04}": 0 for number in range(start, start + 100)}, lease=lease)
            await leader.store.keep_alive(lease)
        await leader.snapshot()
        for node_id in "abc":
            await peers.shutdown(node_id)
        for node_id in "abc":
            await peers.restart(node_id)
        store = peers["a"].store
        assert 3000 == len((await store.time_to_live(lease)).keys)
        await wait_gone(peers["a"], "2999", within_s=5.0 + 2 * ENDS_WITHIN_S)
        with pytest.raises(LeaseExpiredError):
            await store.time_to_live(lease)
        await peers.converge()


async def test_a_lease_is_lost_with_all_of_a_cluster_of_one(autojump_clock: trio.abc.Clock) -> None:
    """A lone peer keeps its own leases alive, and ends those that nobody does."""
    async with running("a") as peers:
        store = peers["a"].store
        async with store.lease(ttl_s=2.0) as lease:
            await store.put("held", 1, lease=lease)
            await store.put("left", 1, lease=await store.grant_lease(2.0))
            await trio.sleep(30.0)
            assert {"held": 1} == dict(store.items())
        assert {} == dict(store.items())


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
async def test_two_never_hold_what_one_may(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """Who sets a key with his lease holds it; peers are cut off, and leaders change, under those who compete for it.

    At no time two believe, each in his own block, that they hold it.
    """
    chance = random.Random(seed)
    holding: set[str] = set()
    held: list[str] = []

    async def compete(cluster: Cluster) -> None:
        while True:
            try:
                async with cluster.store.lease(ttl_s=chance.uniform(2.0, 4.0)) as lease:
                    while await cluster.store.setdefault("key", lease.id, lease=lease) != lease.id:  # noqa: ASYNC110  # a test
                        await trio.sleep(0.2)
                    try:
                        assert not holding
                        holding.add(id_of(cluster))
                        held.append(id_of(cluster))
                        await trio.sleep(chance.uniform(0.1, 6.0))
                    finally:
                        holding.discard(id_of(cluster))
            except (LeaseExpiredError, TimeoutError):
                continue

    async with running("abc", seed=seed, request_timeout_s=4.0) as peers:
        peers.network.set_faults(loss=0.02, delay_s=(0.0, 0.05))
        with trio.move_on_after(120.0):
            async with trio.open_nursery() as nursery:
                for cluster in peers.all:
                    nursery.start_soon(compete, cluster)
                await disturb(peers, chance)
    assert len(held) > 10
    assert {"a", "b", "c"} == set(held)


async def disturb(peers: Peers, chance: random.Random) -> None:
    """Cut one peer off at a time, for a while."""
    while True:
        leaders = [cluster for cluster in peers.all if cluster.is_leader]
        victim = chance.choice(leaders if leaders and chance.random() < 0.6 else peers.all)
        peers.network.isolate(id_of(victim))
        await trio.sleep(chance.uniform(0.1, 6.0))
        peers.network.heal()
        await trio.sleep(chance.uniform(0.1, 3.0))


# -- slow disks --------------------------------------------------------------------------------------------------------


class HangingDisk(OsFileSystem):
    """Syncs return only while it is well."""

    def __init__(self) -> None:
        self.well = threading.Event()
        self.well.set()

    def open(self, path: Path, *, create: bool = False) -> File:
        super().open(path, create=create).close()
        return HangingFile(path, self)


class HangingFile(OsFile):
    def __init__(self, path: Path, disk: HangingDisk) -> None:
        super().__init__(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._disk = disk

    def fdatasync(self) -> None:
        assert self._disk.well.wait(30.0)
        super().fdatasync()


async def test_slow_disks_expire_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For three times the time to live nothing can be written anywhere: keeping a lease alive asks for no write.

    In real time: threads wait for the disk.
    """
    disk = HangingDisk()
    monkeypatch.setattr("replikv.startup.DiskStorage", functools.partial(DiskStorage, filesystem=disk))
    network = MemoryNetwork()
    members = {"a": "memory-a", "b": "memory-b", "c": "memory-c"}
    settings = Settings(heartbeat_interval_s=0.05, election_timeout_s=0.5)
    async with trio.open_nursery() as nursery:
        clusters = [
            Cluster(
                node_id,
                members=members,
                data_dir=tmp_path / node_id,
                transport=MemoryTransport(network),
                settings=settings,
            )
            for node_id in members
        ]
        for cluster in clusters:
            await nursery.start(cluster.run)
        leader = await clusters[0].wait_leader()
        holder = next(cluster for cluster in clusters if id_of(cluster) != leader)
        try:
            async with holder.store.lease(ttl_s=1.0) as lease:
                await holder.store.put("key", 1, lease=lease)
                disk.well.clear()
                with trio.move_on_after(3.0) as waited:
                    await holder.store.put("other", 1)
                assert waited.cancelled_caught
                disk.well.set()
                await holder.store.put("key", 2, lease=lease)
                assert {"key": 2, "other": 1} == dict(holder.store.items())
        finally:
            disk.well.set()
        assert {"other": 1} == dict(holder.store.items())
        assert 0 == len(peer_of(holder).replica.map.leases)
        for cluster in clusters:
            await cluster.shutdown()


async def test_many_ends_at_once_fit_the_entries_and_frames_that_are_allowed(autojump_clock: trio.abc.Clock) -> None:
    """However small those are, and however many commands it takes to end the leases."""
    settings = Settings(
        value_bytes_max=1024,
        key_bytes_max=64,
        command_bytes_max=4096,
        entry_bytes_max=8192,
        message_bytes_max=4096,
        operations_per_command_max=4,
    )
    async with running(settings=settings) as peers:
        leader = await peers.leader()
        entries = peer_of(leader)._driver.node.raft.log
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(grant_with_keys, leader, f"{number}/", 40)
        begun = entries.last_index()
        with trio.fail_after(60):
            while len(leader.store):  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.1)
        sizes = [entry.size for entry in entries.entries(begun + 1, 1 << 30)]
        assert 400 * 42 < sum(sizes)
        assert max(sizes) <= settings.entry_bytes_max


async def grant_with_keys(cluster: Cluster, prefix: str, count: int) -> None:
    """A lease that nobody keeps alive."""
    lease = await cluster.store.grant_lease(10.0)
    for number in range(count):
        await cluster.store.put(f"{prefix}{number}", number, lease=lease)
