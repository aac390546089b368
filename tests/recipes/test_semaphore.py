"""The semaphore: so many at a time, first come first served."""

from __future__ import annotations

import pytest
import trio
from clusters import id_of, running
from contending import EXPIRED_S, TTL_S, Stays, left_behind, overlaps, stay_until, until_in, until_keys

from replikv import Cluster, ConfigurationError, Put, Store
from replikv.recipes import Semaphore

KEYS = "semaphores/job/"


def semaphore_of(store: Store, limit: int = 2) -> Semaphore:
    return Semaphore(store, "job", limit, ttl_s=TTL_S)


async def test_so_many_hold_it_at_a_time_and_first_come_is_first_served(autojump_clock: trio.abc.Clock) -> None:
    """Tasks of three processes; whoever leaves first makes room for whoever waits longest."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        leave = {str(number): trio.Event() for number in range(6)}
        async with trio.open_nursery() as nursery:
            for number, name in enumerate(leave):
                semaphore = semaphore_of(peers["abc"[number % 3]].store, 3)
                nursery.start_soon(stay_until, semaphore, stays, name, leave[name])
                await until_keys(peers["a"].store, KEYS, number + 1)
            await until_in(stays, "0", "1", "2")
            leave["1"].set()
            await until_in(stays, "0", "2", "3")
            leave["3"].set()
            await until_in(stays, "0", "2", "4")
            leave["0"].set()
            await until_in(stays, "2", "4", "5")
            await trio.sleep(TTL_S)
            for event in leave.values():
                event.set()
        await trio.sleep(1.0)
        assert ([], 0) == left_behind(peers["a"])
    assert all(len([pair for pair in overlaps(stays.done) if stay in pair]) >= 2 for stay in stays.done)


async def test_room_that_a_waiter_gives_up_is_nobodys(autojump_clock: trio.abc.Clock) -> None:
    """One that is cancelled in the line lets nobody in; those behind it move up."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        store = peers["a"].store
        leave = {name: trio.Event() for name in "0123"}
        impatient = trio.CancelScope()

        async def contend_impatiently() -> None:
            with impatient:
                await stay_until(semaphore_of(store), stays, "2", leave["2"])

        async with trio.open_nursery() as nursery:
            for number, name in enumerate("01"):
                nursery.start_soon(stay_until, semaphore_of(store), stays, name, leave[name])
                await until_keys(store, KEYS, number + 1)
            nursery.start_soon(contend_impatiently)
            await until_keys(store, KEYS, 3)
            nursery.start_soon(stay_until, semaphore_of(peers["b"].store), stays, "3", leave["3"])
            await until_keys(store, KEYS, 4)
            impatient.cancel()
            await until_keys(store, KEYS, 3)
            await trio.sleep(1.0)
            await until_in(stays, "0", "1")
            leave["0"].set()
            await until_in(stays, "1", "3")
            for event in leave.values():
                event.set()


async def test_a_holder_that_is_cut_off_makes_room(autojump_clock: trio.abc.Clock) -> None:
    """After its time, and its own body has ended before that."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        lost, other = await peers.followers()
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay_until, semaphore_of(lost.store), stays, "lost", leave)
            await until_in(stays, "lost")
            for name in ("one", "two"):
                nursery.start_soon(stay_until, semaphore_of(other.store), stays, name, leave)
            await until_keys(other.store, KEYS, 3)
            peers.network.isolate(id_of(lost))
            with trio.fail_after(EXPIRED_S):
                await until_in(stays, "one", "two")
            peers.network.heal()
            leave.set()


async def test_an_attempt_does_not_wait_and_the_fence_stands_for_each_holder() -> None:
    """There is room, or trio.WouldBlock; the holders' tokens differ, and each has a fence of its own."""
    async with Cluster("a") as cluster:
        store = cluster.store
        first, second, third = (semaphore_of(store) for _ in range(3))
        async with first.acquire_nowait() as one:
            async with second as two:
                assert one.token < two.token
                with pytest.raises(trio.WouldBlock):
                    async with third.acquire_nowait():
                        raise AssertionError("nobody may come here")
                assert (await store.txn([one.fence, two.fence], [Put("key", 1)])).succeeded
            assert not (await store.txn([one.fence, two.fence], [Put("key", 2)])).succeeded
            async with third.acquire_nowait():
                assert 2 == len(third.owners())
        assert (["key"], 0) == left_behind(cluster)


async def test_a_task_takes_one_place() -> None:
    """With a limit of one it would wait for itself, so it is told at any limit."""
    async with Cluster("a") as cluster:
        semaphore = semaphore_of(cluster.store)
        async with semaphore:
            with pytest.raises(RuntimeError, match="has semaphores/job already"):
                async with semaphore:
                    raise AssertionError("nobody may come here")


@pytest.mark.parametrize("limit", [0, -1, True, "2"])
async def test_a_limit_that_is_none_is_refused(limit: int) -> None:
    """It is an int of at least 1."""
    async with Cluster("a") as cluster:
        with pytest.raises(ConfigurationError, match="limit must be"):
            Semaphore(cluster.store, "job", limit)
        assert 2 == semaphore_of(cluster.store).limit
