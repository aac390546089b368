"""Snapshots that travel to followers which were away, and the history floor that the leader moves."""

from __future__ import annotations

import pytest
import trio
from clusters import Peers, id_of, membership_of, open_sessions, peer_of, running

from replikv import Change, Cluster, CompactedError, OutcomeUnknownError, Settings
from replikv.peer.snapshot_receiver import ReceivedSnapshot
from replikv.peer.snapshot_stream import Transfer
from replikv.raft.entries import SnapshotMetadata
from replikv.store.watch import Watch

SMALL = Settings(snapshot_log_entries=20, trailing_entries=5, request_timeout_s=60.0)
"""Settings under which a follower that missed two dozen entries needs a snapshot."""


async def put_numbers(cluster: Cluster, count: int, *, size: int = 0) -> None:
    """One entry of the log after the other."""
    for number in range(count):
        await cluster.store.put(f"key/{number % 10}", [number, b"." * size])


async def leave_behind(peers: Peers, count: int = 100, *, size: int = 0) -> Cluster:
    """A follower that is cut off, and misses so many entries that the others have them no longer."""
    behind = (await peers.followers())[0]
    peers.network.isolate(id_of(behind))
    others = peers.without(behind)
    await put_numbers(await peers.leader(among=[id_of(cluster) for cluster in others]), count, size=size)
    await trio.sleep(1.0)
    assert all(cluster.status().first_index > behind.status().last_index + 1 for cluster in others)
    return behind


async def test_a_follower_that_was_away_gets_a_snapshot(autojump_clock: trio.abc.Clock) -> None:
    """It has everything then, history included, and goes on as a follower like any."""
    async with running(settings=SMALL) as peers:
        await put_numbers(peers["a"], 10)
        behind = await leave_behind(peers)
        peers.network.heal()
        await peers.leader()
        await peers.converge()
        assert behind.status().first_index > 100
        assert 110 == behind.store.revision
        assert [55, b""] == await behind.store.get("key/5", revision=66)
        await behind.store.put("key", "written here")
        assert "written here" == await peers.all[0].store.get("key")


async def test_a_follower_gets_a_large_snapshot_while_writes_go_on(autojump_clock: trio.abc.Clock) -> None:
    """Many chunks over a slow channel: the leader goes on taking writes, and nobody else is disturbed."""
    async with running(settings=SMALL) as peers:
        await put_numbers(peers["a"], 10)
        behind = await leave_behind(peers, size=50_000)
        leader = await peers.leader(among=[id_of(cluster) for cluster in peers.without(behind)])
        term = leader.status().term
        peers.network.set_faults(delay_s=(0.002, 0.004))
        peers.network.heal()
        for number in range(200):
            await leader.store.put("during", number)
        await peers.leader()
        await peers.converge()
        assert 199 == behind.store["during"]
        assert term == leader.status().term


async def test_a_snapshot_transfer_that_breaks_goes_on(autojump_clock: trio.abc.Clock) -> None:
    """The connection is lost in the middle, time and again: what came is kept, and next to nothing goes twice."""
    async with running(settings=SMALL) as peers:
        await put_numbers(peers["a"], 10)
        behind = await leave_behind(peers, size=50_000)
        leader = await peers.leader(among=[id_of(cluster) for cluster in peers.without(behind)])
        life = peer_of(leader)._alive
        with life.storage.open_snapshot(1) as (_, chunks):
            size = sum(map(len, chunks))
        attempts: list[Transfer] = []
        peers.network.set_faults(delay_s=(0.01, 0.01))
        for _ in range(4):
            peers.network.heal()
            with trio.fail_after(20.0):
                while not life.sender.sending:  # noqa: ASYNC110  # nothing to wait on
                    await trio.sleep(0.01)
            attempts += life.sender.sending.values()
            await trio.sleep(0.1)
            peers.network.isolate(id_of(behind))
            await trio.sleep(1.0)
            assert behind.store.revision <= 10
        assert all(attempt.moved_bytes > 0 for attempt in attempts)
        peers.network.heal()
        with trio.fail_after(20.0):
            while behind.store.revision < 110:
                attempts += [attempt for attempt in life.sender.sending.values() if attempt not in attempts]
                await trio.sleep(0.01)
        await peers.converge()
        assert len(attempts) == 5
        assert size <= sum(attempt.moved_bytes for attempt in attempts) < 1.3 * size


async def test_a_watch_goes_on_across_a_snapshot(autojump_clock: trio.abc.Clock) -> None:
    """Every revision once, in order, no gap: the snapshot carries the history."""
    async with running(settings=SMALL) as peers:
        await put_numbers(peers["a"], 10)
        behind = (await peers.followers())[0]
        await behind.store.barrier()
        async with behind.store.watch("key/", since=5) as changes:
            assert [6, 7, 8, 9, 10] == [change.revision for change in await take(changes, 5)]
            assert behind is await leave_behind(peers, 90)
            peers.network.heal()
            seen = await take(changes, 90)
            assert list(range(11, 101)) == [change.revision for change in seen]
            assert [[number, b""] for number in range(90)] == [change.value for change in seen]
        assert behind.status().first_index > 20


async def test_what_came_with_a_snapshot_alone_is_told_at_once(autojump_clock: trio.abc.Clock) -> None:
    """Watches, the members and who waits do not need an entry behind it."""
    async with running(settings=SMALL) as peers:
        await put_numbers(peers["a"], 10)
        behind = (await peers.followers())[0]
        async with behind.store.watch("key/", since=10) as changes:
            assert behind is await leave_behind(peers, 30)
            leader = await peers.leader(among=[id_of(cluster) for cluster in peers.without(behind)])
            await leader.add_member("d", "memory-d", learner=True)
            await leader.snapshot()
            index = leader.status().last_index
            peers.network.heal()
            assert list(range(11, 41)) == [change.revision for change in await take(changes, 30)]
            await trio.sleep(0.5)
            status = behind.status()
            assert (index + 1, index) == (status.first_index, status.applied_index)
            assert "d" in membership_of(behind).members
            assert index == peer_of(behind)._alive.admission.applied_index


async def test_a_snapshot_that_is_not_needed_any_more_holds_up_nobody(autojump_clock: trio.abc.Clock) -> None:
    """The log has caught up with it meanwhile: its sender is told so, and the next snapshot may be taken."""
    async with running() as peers:
        await put_numbers(peers["a"], 10)
        leader, follower = await peers.leader(), (await peers.followers())[0]
        await follower.store.barrier()
        life = peer_of(follower)._alive
        metadata = SnapshotMetadata(5, life.storage.image.term(5), life.admission.membership)
        received = ReceivedSnapshot(id_of(leader), leader.status().term, metadata, None, trio.Event())
        life.driver.install(received)
        with trio.fail_after(1.0):
            await received.done.wait()
        assert 1 == follower.status().first_index


async def take(changes: Watch, count: int) -> list[Change]:
    with trio.fail_after(20.0):
        return [await anext(changes) for _ in range(count)]


async def test_a_watch_whose_history_the_snapshot_lacks_is_told(autojump_clock: trio.abc.Clock) -> None:
    """CompactedError with the revision to begin at: a gap is never silent."""
    async with running(settings=SMALL, history_revisions=20) as peers:
        await put_numbers(peers["a"], 10)
        behind = (await peers.followers())[0]
        await behind.store.barrier()
        async with behind.store.watch() as changes:
            assert behind is await leave_behind(peers, 200)
            peers.network.heal()
            with trio.fail_after(20.0), pytest.raises(CompactedError) as caught:
                await anext(changes)
        assert caught.value.revision > 100
        async with behind.store.watch(since=caught.value.revision) as changes:
            assert caught.value.revision + 1 == (await anext(changes)).revision


async def test_waiters_are_answered_from_a_snapshot(autojump_clock: trio.abc.Clock) -> None:
    """A follower's puts were applied by the others while it was cut off: it finds their results in the snapshot."""
    async with running(settings=SMALL) as peers:
        leader = await peers.leader()
        behind = peers.without(leader)[0]
        await behind.store.increment("n")
        results: list[int] = []

        async def increment() -> None:
            results.append(await behind.store.increment("n"))

        async with trio.open_nursery() as nursery:
            peers.network.set_faults(delay_s=(0.01, 0.01))
            for _ in range(5):
                nursery.start_soon(increment)
            await trio.sleep(0.015)  # the leader has them, the answers are on their way
            for cluster in peers.without(behind):
                peers.network.cut(id_of(cluster), id_of(behind))
            peers.network.set_faults()
            await put_numbers(leader, 100)
            await trio.sleep(1.0)
            assert [] == results
            assert leader.status().first_index > behind.status().last_index + 1
            peers.network.heal()
        assert [2, 3, 4, 5, 6] == sorted(results)
        assert 6 == await leader.store.get("n")


async def test_waiters_whose_session_is_gone_with_the_snapshot_are_told_so(autojump_clock: trio.abc.Clock) -> None:
    """Their commands may have been applied before the eviction: the outcome is unknown, and nothing is sent twice."""
    async with running(settings=SMALL) as peers:
        leader = await peers.leader()
        behind = peers.without(leader)[0]
        await behind.store.increment("n")
        unknown: list[tuple[int, int]] = []

        async def increment() -> None:
            with pytest.raises(OutcomeUnknownError, match="evicted") as caught:
                await behind.store.increment("n")
            unknown.append(caught.value.token)

        for cluster in peers.all:
            peer_of(cluster).replica.sessions.sessions_max = 2
        async with trio.open_nursery() as nursery:
            peers.network.set_faults(delay_s=(0.01, 0.01))
            nursery.start_soon(increment)
            await trio.sleep(0.015)
            for cluster in peers.without(behind):
                peers.network.cut(id_of(cluster), id_of(behind))
            peers.network.set_faults()
            for cluster in peers.without(behind):
                await put_numbers(cluster, 5)
            await open_sessions(leader, 1)
            await put_numbers(leader, 100)
            await trio.sleep(1.0)
            peers.network.heal()
        assert 1 == len(unknown)
        assert 3 == await behind.store.increment("n")
        await peers.converge()


async def test_the_leader_moves_the_history_floor(autojump_clock: trio.abc.Clock) -> None:
    """Old revisions go, on every replica alike; how many stay is the leader's setting, a tenth more at the most."""
    async with running(history_revisions=50) as peers:
        leader = await peers.leader()
        for number in range(300):
            await leader.store.put("key", number)
        await leader.store.barrier()
        await peers.converge()
        floors = {peer_of(cluster).replica.keyspace.floor for cluster in peers.all}
        assert 1 == len(floors)
        assert 300 - 50 - 10 <= floors.pop() <= 300 - 50
        for cluster in peers.all:
            assert 279 == await cluster.store.get("key", revision=280)
            with pytest.raises(CompactedError):
                await cluster.store.get("key", revision=200)


async def test_a_snapshot_on_demand(autojump_clock: trio.abc.Clock) -> None:
    """Asked for, it is taken at once, at the applied index; twice in a row, or by several, it is none the worse."""
    async with running(trailing_entries=1) as peers:
        leader = await peers.leader()
        await put_numbers(leader, 30)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(leader.snapshot)
        assert leader.status().first_index >= 30
        with trio.fail_after(1.0):
            await leader.snapshot()
        await put_numbers(leader, 5)
        with trio.fail_after(1.0):
            await leader.snapshot()
        assert leader.status().first_index >= 35


async def test_a_snapshot_on_demand_while_one_is_received(autojump_clock: trio.abc.Clock) -> None:
    """Whichever is newer counts, and the call returns: what it was to save is durable."""
    async with running(settings=SMALL) as peers:
        await put_numbers(peers["a"], 10)
        behind = await leave_behind(peers, size=50_000)
        peers.network.set_faults(delay_s=(0.01, 0.01))
        peers.network.heal()
        with trio.fail_after(20.0):
            while not peer_of(behind)._driver.snapshot_lock.locked():  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.01)
            assert behind.status().applied_index < 20
            await behind.snapshot()
        assert peer_of(behind)._storage.image.snapshot().index >= 100
        peers.network.set_faults()
        await peers.leader()
        await peers.converge()
        with trio.fail_after(1.0):
            await behind.snapshot()
