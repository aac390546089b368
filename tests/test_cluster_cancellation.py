"""What a cancelled call leaves behind: before hand-over nothing, after it one effect or none; never a stuck peer."""

from __future__ import annotations

import random
import time

import pytest
import trio
import trio.testing
from clusters import id_of, peer_of, running

from replikv import Cluster


async def test_a_put_cancelled_before_hand_over_is_never_applied(autojump_clock: trio.abc.Clock) -> None:
    """No leader yet, so nobody to hand it to: cancelled then, it has no effect later."""
    async with running() as peers:
        for cluster in peers.all:
            with trio.move_on_after(0.1) as scope:
                await cluster.store.put("key", id_of(cluster))
            assert scope.cancelled_caught
        await peers.leader()
        for cluster in peers.all:
            await cluster.store.put(id_of(cluster), 1)
        await peers.converge()
        assert {"a": 1, "b": 1, "c": 1} == dict(peers["a"].store.local)


async def test_a_put_cancelled_in_the_turn_of_its_call_is_never_applied(autojump_clock: trio.abc.Clock) -> None:
    """The driver had no turn in between: there was no hand-over."""
    async with Cluster("a") as cluster:
        await cluster.store.put("warm", 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await cluster.store.put("key", 1)
        assert scope.cancelled_caught
        await cluster.store.put("other", 1)
        assert {"warm": 1, "other": 1} == dict(cluster.store.local)


async def test_cancelled_increments_leave_exactly_once_to_the_others(autojump_clock: trio.abc.Clock) -> None:
    """Hundreds cancelled at any moment, beside hundreds that are not, more than a session's window in all."""
    chance = random.Random(5)
    acknowledged = given_up = 0

    async def increment(cluster: Cluster, patience_s: float) -> None:
        nonlocal acknowledged, given_up
        with trio.move_on_after(patience_s) as scope:
            await cluster.store.increment("n")
        if scope.cancelled_caught:
            given_up += 1
        else:
            acknowledged += 1

    async with running(proposals_max=64) as peers:
        await peers.leader()
        peers.network.set_faults(delay_s=(0.001, 0.01))
        for _ in range(25):
            async with trio.open_nursery() as nursery:
                for cluster in peers.all * 80:
                    nursery.start_soon(increment, cluster, chance.choice((0.0, 0.01, 0.03, 9.0)))
        total = await peers["a"].store.get("n")
        await peers.converge()
    assert 6000 == acknowledged + given_up
    assert acknowledged > 1000
    assert given_up > 1000
    assert acknowledged <= total <= acknowledged + given_up


@pytest.mark.parametrize("call", ["get", "barrier", "wait_leader", "snapshot"])
async def test_a_cancelled_wait_leaves_nothing_behind(autojump_clock: trio.abc.Clock, call: str) -> None:
    """It ends at once, and the same call works when it can."""
    async with running() as peers:
        cluster = peers["a"]

        async def wait() -> None:
            await {
                "get": lambda: cluster.store.get("key"),
                "barrier": cluster.store.barrier,
                "wait_leader": cluster.wait_leader,
                "snapshot": cluster.snapshot,
            }[call]()

        with trio.move_on_after(0) as scope:
            await wait()
        assert scope.cancelled_caught
        if call != "snapshot":
            with trio.move_on_after(0.1) as scope:
                await wait()
            assert scope.cancelled_caught
        await cluster.store.put("key", 1)
        await wait()


async def test_cancelled_waiters_are_forgotten(autojump_clock: trio.abc.Clock) -> None:
    """Thousands of calls given up, time and again, do not pile up in the peer."""
    async with running() as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        peers.network.isolate(id_of(leader))
        for _ in range(20):
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as nursery:
                    for _ in range(300):
                        nursery.start_soon(leader.store.put, "key", 2)
                        nursery.start_soon(leader.store.get, "key")
        await trio.sleep(peers.settings.request_timeout_s)
        driver = peer_of(leader)._driver
        assert 0 == driver.proposals.in_flight == len(driver.proposals._queue)
        assert len(driver.proposals._again) <= peers.settings.proposals_max
        assert len(driver.proposals._unsettled) <= 2048
        assert 0 == len(driver.barriers._waiting) == sum(len(w) for _, w in driver.barriers._rounds.values())
        peers.network.heal()
        assert await leader.store.put("key", 3)


async def test_a_cancelled_put_does_not_hold_large_results_for_ever(autojump_clock: trio.abc.Clock) -> None:
    """Answers with old values are kept until they are acknowledged: nobody left behind may keep them from being so."""
    async with running() as peers:
        leader = await peers.leader()
        large = b"x" * 1_000_000
        for number in range(12):
            await leader.store.put(f"large/{number}", large)
        peers.network.set_faults(delay_s=(0.01, 0.01))
        with trio.move_on_after(0.015) as scope:
            await leader.store.put("cancelled", 1)
        assert scope.cancelled_caught
        peers.network.set_faults()
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(leader.store.pop, f"large/{number}")
        assert 1 == await leader.store.increment("n")
        assert leader.status().last_index < 60


async def test_a_pause_of_the_process_does_not_count_against_what_begins_after_it() -> None:
    """A debugger, a suspended machine, a file that takes long to load: the next operation has its whole time."""
    async with running(heartbeat_interval_s=0.02, election_timeout_s=0.1, request_timeout_s=0.5) as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        time.sleep(0.7)  # noqa: ASYNC251  # the loop stands still: no clock of trio's can do that
        assert 2 == await leader.store.increment("key")
