"""Who is who: clusters keep apart, node ids are bound to data, and a peer that lost its disk does not come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from clusters import Peers, id_of, peer_of, running

from replikv import Cluster, MemoryTransport, Settings, UnavailableError, WrongClusterError


def records(cluster: Cluster) -> dict[str, tuple[str, bool]]:
    """Node id -> incarnation that is bound, and whether the log says since when."""
    members = peer_of(cluster)._admission.membership.members
    return {node_id: (record.incarnation, record.bound_index > 0) for node_id, record in members.items()}


async def bound(peers: Peers) -> dict[str, tuple[str, bool]]:
    """The bindings, once every peer has applied them."""
    with trio.fail_after(10.0):
        while not all(incarnation for cluster in peers.all for incarnation, _ in records(cluster).values()):  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.1)
    return records(peers.all[0])


async def test_the_cluster_id_is_the_same_everywhere(autojump_clock: trio.abc.Clock) -> None:
    """It is computed from the member ids and the cluster's name: of the same, the same; of others, others."""
    async with running("abc") as peers, running("abc", seed=1) as again, running("abcd") as others:
        ids = {cluster.status().cluster_id for cluster in peers.all + again.all}
        assert 1 == len(ids)
        assert ids != {cluster.status().cluster_id for cluster in others.all}


async def test_lone_clusters_are_all_different(autojump_clock: trio.abc.Clock) -> None:
    """Nothing is known of what they will be part of: each draws an id."""
    async with Cluster("a") as one, Cluster("a") as other:
        assert one.status().cluster_id != other.status().cluster_id


async def test_the_leader_binds_every_incarnation(autojump_clock: trio.abc.Clock) -> None:
    """Soon after the first election each node id has its own, by a log entry, on every peer."""
    async with running() as peers:
        bindings = await bound(peers)
        assert {cluster_id: (peer_of(peers[cluster_id]).identity.incarnation, True) for cluster_id in "abc"} == bindings
        assert [bindings] * 3 == [records(cluster) for cluster in peers.all]
        term_and_last = [cluster.status().last_index for cluster in peers.all]
        await trio.sleep(5.0)
        assert term_and_last == [cluster.status().last_index for cluster in peers.all]  # once, not again and again


async def test_a_member_that_comes_late_is_bound_when_it_comes(autojump_clock: trio.abc.Clock) -> None:
    """The others do not wait for it, nor bind what they do not know."""
    async with running(absent="c") as peers:
        await peers["a"].store.put("key", 1)
        await trio.sleep(2.0)
        assert ("", False) == records(peers["a"])["c"]
        assert all(records(peers["b"])[node_id][1] for node_id in "ab")
        late = await peers.start("c")
        assert peer_of(late).identity.incarnation == (await bound(peers))["c"][0]


@pytest.mark.parametrize("wait_s", [0.5, 5.0])
async def test_a_peer_that_lost_its_disk_is_refused(autojump_clock: trio.abc.Clock, wait_s: float) -> None:
    """Under its old id, with nothing of what it promised: WrongClusterError out of its block; the others go on.

    Also before the incarnations are bound: who was told in a handshake remembers.
    """
    async with running() as peers:
        await trio.sleep(wait_s)
        victim = id_of(peers["b"])
        await peers.shutdown(victim)
        with pytest.raises(WrongClusterError, match=r"'b' is known with another data directory.*remove 'b'"):
            async with peers.make(victim) as wiped:
                await wiped.store.put("key", "from the dead")
        rest = peers.all
        await rest[0].store.put("key", 1)
        assert 1 == await rest[1].store.get("key")
        assert "from the dead" not in dict(rest[0].store.local).values()


async def test_a_second_process_under_the_same_id_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """It is the newcomer that goes, whoever it reaches first, and the one that was there notices nothing."""
    async with running() as peers:
        await bound(peers)
        second = Cluster("a", members=peers.members, listen="elsewhere", transport=MemoryTransport(peers.network))
        with pytest.raises(WrongClusterError, match="'a'"):
            async with second:
                await trio.sleep(20.0)
        term = peers["a"].status().term
        await peers["a"].store.put("key", 1)
        assert 1 == await peers["b"].store.get("key")
        assert term == peers["a"].status().term


@pytest.mark.parametrize(
    "settings", [Settings(cluster_name="other", request_timeout_s=3.0), Settings(request_timeout_s=3.0)]
)
async def test_a_peer_of_another_cluster_is_kept_out(autojump_clock: trio.abc.Clock, settings: Settings) -> None:
    """It finds no majority and says why, in vain; the cluster whose addresses it dials goes on."""
    async with running("abc") as peers:
        await peers["a"].store.put("key", 1)
        await peers.shutdown("c")
        members = {**peers.members, **({} if settings.cluster_name else {"d": "memory-d"})}
        stranger = Cluster("c", members=members, transport=MemoryTransport(peers.network), settings=settings)
        async with stranger:
            with pytest.raises(UnavailableError, match="voters cannot be reached from c: a, b"):
                await stranger.store.put("key", "strange")
        assert 1 == await peers["a"].store.get("key")
        assert {"a", "b"} == {id_of(cluster) for cluster in peers.all if cluster.status().leader in {"a", "b"}}


async def test_a_peer_comes_back_with_its_disk(tmp_path: Path) -> None:
    """The same directory is the same incarnation: admitted, and it has what it missed soon."""
    async with running(absent="c", heartbeat_interval_s=0.02, election_timeout_s=0.2) as peers:
        for value in range(3):
            await peers["a"].store.put("key", value)
            async with Cluster(
                "c",
                members=peers.members,
                data_dir=tmp_path,
                transport=MemoryTransport(peers.network),
                settings=peers.settings,
            ) as c:
                assert value == await c.store.get("key")
