"""Leadership handed over: when asked, and by itself when the leader leaves."""

from __future__ import annotations

import pytest
import trio
from clusters import Peers, id_of, running

from replikv import Cluster, ConfigurationError, NotLeaderError, UnavailableError


async def settled(peers: Peers) -> tuple[Cluster, list[Cluster]]:
    """The leader, which has heard of everybody, and the others."""
    leader = await peers.leader()
    await trio.sleep(0.5)
    return leader, peers.without(leader)


async def test_the_leader_hands_over_to_the_one_named(autojump_clock: trio.abc.Clock) -> None:
    """Within a heartbeat, and without a peer that campaigns by itself."""
    async with running() as peers:
        leader, (successor, _) = await settled(peers)
        started = trio.current_time()
        await leader.transfer_leadership(id_of(successor))
        assert trio.current_time() - started < 0.1
        assert successor.is_leader
        assert not leader.is_leader
        assert id_of(successor) == leader.status().leader


async def test_a_follower_may_ask_for_it(autojump_clock: trio.abc.Clock) -> None:
    """It passes the wish on, also for itself; without a name only the leader knows who is best."""
    async with running() as peers:
        leader, (one, other) = await settled(peers)
        with pytest.raises(NotLeaderError, match="name the successor") as caught:
            await one.transfer_leadership()
        assert id_of(leader) == caught.value.leader
        await one.transfer_leadership(id_of(one))
        assert one.is_leader
        await trio.sleep(0.5)
        await one.transfer_leadership()
        assert {id_of(leader), id_of(other)} >= {one.status().leader}


async def test_who_leads_already_need_not_take_over(autojump_clock: trio.abc.Clock) -> None:
    """It returns at once, and the term stays."""
    async with running() as peers:
        leader, _ = await settled(peers)
        term = leader.status().term
        await leader.transfer_leadership(id_of(leader))
        assert leader.is_leader
        assert term == leader.status().term


async def test_only_a_voter_may_lead(autojump_clock: trio.abc.Clock) -> None:
    """The message says who may."""
    async with running() as peers:
        leader, _ = await settled(peers)
        with pytest.raises(ConfigurationError, match=r"'x' is no voter of this cluster: \['a', 'b', 'c'\]"):
            await leader.transfer_leadership("x")


async def test_the_only_voter_has_no_successor(autojump_clock: trio.abc.Clock) -> None:
    """That is not a matter of time, so it is not told as one."""
    async with Cluster("a") as cluster:
        await cluster.store.barrier()
        with pytest.raises(ConfigurationError, match="a is the only voter"):
            await cluster.transfer_leadership()


async def test_a_successor_that_cannot_be_reached_leaves_things_as_they_are(autojump_clock: trio.abc.Clock) -> None:
    """The old leader goes on, and says who did not take over."""
    async with running() as peers:
        leader, (absent, _) = await settled(peers)
        peers.network.isolate(id_of(absent))
        with pytest.raises(UnavailableError, match=f"{id_of(absent)} did not take leadership over"):
            await leader.transfer_leadership(id_of(absent))
        assert leader.is_leader
        assert 1 == await leader.store.put("key", 1)


async def test_a_leader_that_leaves_costs_no_election_timeout(autojump_clock: trio.abc.Clock) -> None:
    """Another leads before it is gone."""
    async with running() as peers:
        leader, others = await settled(peers)
        await peers.shutdown(id_of(leader))
        started = trio.current_time()
        await others[0].store.put("key", 1)
        assert trio.current_time() - started < 0.2


async def test_a_leader_that_nobody_hears_leaves_all_the_same(autojump_clock: trio.abc.Clock) -> None:
    """It does not wait for a successor for longer than an election timeout, nor for longer than its settings say."""
    async with running(shutdown_timeout_s=0.7) as peers:
        leader, _ = await settled(peers)
        peers.network.isolate(id_of(leader))
        started = trio.current_time()
        await peers.shutdown(id_of(leader))
        assert trio.current_time() - started == pytest.approx(0.7) or trio.current_time() - started < 0.7


async def test_puts_go_on_while_leadership_goes_round(autojump_clock: trio.abc.Clock) -> None:
    """None fails, none is applied twice, from any peer; and no term is spent but one for each transfer."""
    async with running() as peers:
        leader, _ = await settled(peers)
        term = leader.status().term
        done = dict.fromkeys("abc", 0)

        async def count(cluster: Cluster) -> None:
            while True:
                await cluster.store.increment("n")
                done[id_of(cluster)] += 1
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(count, cluster)
            for turn in range(12):
                await trio.sleep(0.3)
                await peers["abc"[turn % 3]].transfer_leadership("abc"[(turn + 1) % 3])
            nursery.cancel_scope.cancel()
        await peers.converge()
        total = sum(done.values())
        assert total > 300
        assert total <= peers["a"].store["n"] <= total + 3
        assert peers["a"].status().term <= term + 12
