"""One map on every peer: elections, writes and reads from anywhere, back-pressure, and what one peer alone does."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from clusters import id_of, open_sessions, peer_of, running

from replikv import Cluster, UnavailableError
from replikv.machine.sessions import SESSIONS_MAX


async def put_many(cluster: Cluster, keys: list[str], value: object = 0) -> None:
    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(cluster.store.put, key, value)


@pytest.mark.parametrize("node_ids", ["abc", "abcde"])
async def test_one_leader_is_elected(autojump_clock: trio.abc.Clock, node_ids: str) -> None:
    """Every peer comes to know the same leader, in the same term, and only that one takes itself for it."""
    async with running(node_ids) as peers:
        leader = await peers.leader()
        assert [leader] == [cluster for cluster in peers.all if cluster.is_leader]
        assert {id_of(leader)} == {await cluster.wait_leader() for cluster in peers.all}
        assert 1 == len({cluster.status().term for cluster in peers.all})
        assert "leader" == leader.status().role


@pytest.mark.parametrize("node_ids", ["abc", "abcde"])
async def test_a_write_from_any_peer_is_read_on_all(autojump_clock: trio.abc.Clock, node_ids: str) -> None:
    """Who puts has it in his own replica when put returns; who gets, anywhere, has it then; all replicas agree."""
    async with running(node_ids) as peers:
        for value, cluster in enumerate(peers.all):
            await cluster.store.put("key", value)
            assert value == cluster.store["key"]
            for other in peers.all:
                assert value == await other.store.get("key")
        await peers.converge()


async def test_operations_before_there_is_a_leader_wait_for_it(autojump_clock: trio.abc.Clock) -> None:
    """The block is entered without a leader: a put, and a get, simply take as long as the election."""
    async with running() as peers, trio.open_nursery() as nursery:
        for cluster in peers.all:
            assert cluster.status().leader is None
            nursery.start_soon(cluster.store.put, id_of(cluster), True)
            nursery.start_soon(cluster.store.get, "key")
            nursery.start_soon(cluster.wait_leader)


async def test_status_tells_of_the_cluster(autojump_clock: trio.abc.Clock) -> None:
    """The leader's status has the progress of each other member; a follower's has none."""
    async with running() as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        await peers.converge()
        status = leader.status()
        assert {"a", "b", "c"} == set(status.members) == {status.node_id, *status.progress}
        assert {"voter"} == {member.role for member in status.members.values()}
        assert peers.members == {node_id: member.address for node_id, member in status.members.items()}
        assert status.commit_index == status.applied_index == status.last_index
        assert {status.last_index} == {progress.match_index for progress in status.progress.values()}
        for follower in await peers.followers():
            assert ("follower", {}) == (follower.status().role, dict(follower.status().progress))


async def test_more_puts_than_may_be_in_flight_all_end(autojump_clock: trio.abc.Clock) -> None:
    """Those above proposals_max wait for their turn, on the leader and on followers; every one takes effect."""
    async with running(proposals_max=8) as peers:
        await peers.leader()
        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                keys = [f"{id_of(cluster)}/{number}" for number in range(200)]
                nursery.start_soon(put_many, cluster, keys)
            await trio.testing.wait_all_tasks_blocked()
            assert all(peer_of(cluster)._driver.proposals.in_flight <= 8 for cluster in peers.all)
        await peers.converge()
        assert 600 == len(peers["a"].store) == peers["a"].store.revision


async def test_puts_wait_while_too_much_is_uncommitted(autojump_clock: trio.abc.Clock) -> None:
    """With room for one small entry before a majority has it, the others wait; none is lost, wherever it came from."""
    async with running(uncommitted_bytes_max=300, proposals_max=4) as peers:
        await peers.leader()
        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(put_many, cluster, [f"{id_of(cluster)}/{n}" for n in range(40)], b"v" * 200)
        await peers.converge()
        assert 120 == len(peers["a"].store)


async def test_the_log_of_a_leader_cut_off_is_bounded(autojump_clock: trio.abc.Clock) -> None:
    """Proposals above uncommitted_bytes_max wait outside the log, and end as surely not applied."""
    async with running(uncommitted_bytes_max=10_000, request_timeout_s=0.7) as peers:
        leader = await peers.leader()
        await leader.store.put("warm", 1)
        peers.network.isolate(id_of(leader))
        ends: list[type[BaseException]] = []

        async def put(number: int) -> None:
            try:
                await leader.store.put(f"key/{number}", b"v" * 1000)
            except TimeoutError as exc:
                ends.append(type(exc))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(put, number)
                await trio.testing.wait_all_tasks_blocked()
        assert 50 == len(ends)
        assert 30 < ends.count(UnavailableError) < 50
        assert peer_of(leader)._driver.node.raft.uncommitted_bytes <= 10_000


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_an_evicted_session_is_opened_anew(autojump_clock: trio.abc.Clock) -> None:
    """So many sessions that all peers' own are gone: the next operations register again, and take effect once."""
    async with running() as peers:
        for cluster in peers.all:
            await cluster.store.increment("count")
        before = [peer_of(cluster)._driver.proposals.session for cluster in peers.all]
        await open_sessions(await peers.leader(), SESSIONS_MAX)
        await peers.converge()
        async with trio.open_nursery() as nursery:
            for cluster in peers.all * 20:
                nursery.start_soon(cluster.store.increment, "count")
        await peers.converge()
        assert 63 == peers["a"].store["count"]
        assert all(
            peer_of(cluster)._driver.proposals.session > session
            for cluster, session in zip(peers.all, before, strict=True)
        )
        assert SESSIONS_MAX == len(peer_of(peers["a"]).replica.sessions.table)


async def test_commands_on_their_way_when_their_session_is_evicted(autojump_clock: trio.abc.Clock) -> None:
    """The eviction is in the log between a peer's commands: those behind it are refused, and go again."""
    async with running() as peers:
        leader = await peers.leader()
        follower = (await peers.followers())[0]
        await follower.store.increment("count")
        async with trio.open_nursery() as nursery:
            await open_sessions(await peers.leader(), SESSIONS_MAX)
            for _ in range(30):
                nursery.start_soon(follower.store.increment, "count")
                nursery.start_soon(leader.store.increment, "count")
        assert 61 == await leader.store.get("count")


# -- alone -------------------------------------------------------------------------------------------------------------


async def test_a_peer_alone_needs_nothing_but_a_name(autojump_clock: trio.abc.Clock) -> None:
    """It leads at once, without waiting for an election timeout."""
    started = trio.current_time()
    async with Cluster("a") as cluster:
        assert "a" == await cluster.wait_leader()
        assert 1 == await cluster.store.put("key", "value")
        assert "value" == cluster.store["key"] == await cluster.store.get("key")
        assert trio.current_time() == started
