"""How long the past is kept, by its age: the leader's clock decides, and all replicas agree."""

from __future__ import annotations

import pytest
import trio
from clusters import Peers, peer_of, running

from replikv import CompactedError

AGE_S = 20.0


def floors(peers: Peers) -> set[int]:
    return {peer_of(cluster).replica.keyspace.floor for cluster in peers.all}


async def test_what_is_too_old_is_forgotten_everywhere(autojump_clock: trio.abc.Clock) -> None:
    """After ``history_age_s``, and not before; what is younger stays, and so does the present."""
    async with running(history_age_s=AGE_S) as peers:
        store = (await peers.leader()).store
        for number in range(1, 11):
            await store.put("key", number)
        await trio.sleep(AGE_S / 2)
        await store.put("key", 11)
        assert {0} == floors(peers)
        await trio.sleep(AGE_S / 2 + 1.0)
        assert {10} == floors(peers)
        for cluster in peers.all:
            assert 10 == await cluster.store.get("key", revision=10)
            with pytest.raises(CompactedError):
                await cluster.store.get("key", revision=9)
        await trio.sleep(AGE_S)
        assert {11} == floors(peers)
        assert 11 == await store.get("key")
        await peers.converge()


async def test_a_new_leader_keeps_the_past_longer(autojump_clock: trio.abc.Clock) -> None:
    """It does not know how old revisions are that it did not lead: they count from when it began to lead."""
    async with running(history_age_s=AGE_S) as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        await trio.sleep(AGE_S - 1.0)
        await leader.transfer_leadership()
        await peers.leader()
        await trio.sleep(AGE_S - 2.0)
        assert {0} == floors(peers)
        await trio.sleep(4.0)
        assert {1} == floors(peers)


async def test_compacted_by_anybody(autojump_clock: trio.abc.Clock) -> None:
    """From any peer, and for all of them; a watcher there that was too far back is told so."""
    async with running() as peers:
        follower = (await peers.followers())[0]
        for number in range(1, 21):
            await follower.store.put("key", number)
        assert 15 == await follower.store.compact(15)
        await peers.converge()
        assert {15} == floors(peers)
        for cluster in peers.all:
            with pytest.raises(CompactedError):
                async with cluster.store.watch(since=14):
                    pass
