"""The lock: one holder, first come first served, and a fence for those who do not know yet that they were deposed."""

from __future__ import annotations

import itertools

import pytest
import trio
from clusters import id_of, running
from contending import EXPIRED_S, TTL_S, Stays, left_behind, overlaps, stay_until, until_in, until_keys

from replikv import Claim, Cluster, ConfigurationError, LeaseExpiredError, Put, Store
from replikv.recipes import Lock

KEYS = "locks/job/"


def lock_of(store: Store) -> Lock:
    return Lock(store, "job", ttl_s=TTL_S)


# -- exclusion and order -----------------------------------------------------------------------------------------------


async def test_one_holds_it_at_a_time_and_first_come_is_first_served(autojump_clock: trio.abc.Clock) -> None:
    """Tasks of three processes, two in each: those of one process exclude each other as well, also with one Lock."""
    stays = Stays()
    async with running() as peers:
        locks = [lock_of(peers[node_id].store) for node_id in "abc"]

        async def contend(name: str, lock: Lock) -> None:
            async with lock as held:
                with stays.stay(name, held.token):
                    await trio.sleep(1.0)

        await peers.leader()
        async with trio.open_nursery() as nursery:
            for number, lock in enumerate(locks * 2):
                nursery.start_soon(contend, str(number), lock)
                await until_keys(peers["a"].store, KEYS, number + 1)
    assert ["0", "1", "2", "3", "4", "5"] == stays.order
    assert [] == overlaps(stays.done)
    tokens = [stay.token for stay in stays.done]
    assert sorted(set(tokens)) == tokens


async def test_the_token_is_the_create_revision_of_the_key(autojump_clock: trio.abc.Clock) -> None:
    """So it grows from holder to holder, whoever they are, and whatever else is put meanwhile."""
    tokens = []
    async with running() as peers:
        await peers.leader()
        for node_id in "abcab":
            store = peers[node_id].store
            async with lock_of(store) as held:
                assert store.entry(held.key).create_revision == held.token
                assert store.entry(held.key).lease == held.lease.id
                tokens.append(held.token)
            await store.put("other", node_id)
    assert all(one < other for one, other in itertools.pairwise(tokens))


async def test_two_names_are_two_locks() -> None:
    """And so are two scopes."""
    async with Cluster("a") as cluster:
        store = cluster.store
        async with Lock(store, "one"), Lock(store, "two"), Lock(store.scoped("app/"), "one") as held:
            assert ["app/locks/one", "locks/one", "locks/two"] == [key.rpartition("/")[0] for key in store]
            assert held.key.startswith("locks/one/")  # in the scope


@pytest.mark.parametrize("name", ["", "a/b", None])
async def test_a_name_that_could_be_part_of_another_is_refused(name: str) -> None:
    """What "a" keeps begins with "a/"."""
    async with Cluster("a") as cluster:
        with pytest.raises(ConfigurationError, match="without '/'"):
            Lock(cluster.store, name)


async def test_nothing_is_left_when_the_block_ends() -> None:
    """Neither a key nor a lease; the body's exception leaves it as it is."""
    async with Cluster("a") as cluster:
        async with lock_of(cluster.store):
            pass
        assert ([], 0) == left_behind(cluster)
        error = KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with lock_of(cluster.store):
                raise error
        assert caught.value is error
        assert ([], 0) == left_behind(cluster)


# -- trying, looking, waiting ------------------------------------------------------------------------------------------


async def test_an_attempt_does_not_wait() -> None:
    """It gets a lock that is free, as any holder; else trio.WouldBlock, and nothing is left of it."""
    async with Cluster("a") as cluster:
        lock, other = lock_of(cluster.store), lock_of(cluster.store)
        async with lock.acquire_nowait() as held:
            assert held.key in cluster.store
            keys_and_leases = left_behind(cluster)
            with pytest.raises(trio.WouldBlock, match="came before"):
                async with other.acquire_nowait():
                    raise AssertionError("nobody may come here")
            assert keys_and_leases == left_behind(cluster)
        async with other.acquire_nowait() as later:
            assert held.token < later.token


async def test_of_attempts_at_the_same_time_one_succeeds(autojump_clock: trio.abc.Clock) -> None:
    """Nobody was in the way of the first of them."""
    stays = Stays()
    refused = []
    async with running() as peers:
        await peers.leader()

        async def attempt(node_id: str) -> None:
            try:
                async with lock_of(peers[node_id].store).acquire_nowait() as held:
                    with stays.stay(node_id, held.token):
                        await trio.sleep(1.0)
            except trio.WouldBlock:
                refused.append(node_id)

        async with trio.open_nursery() as nursery:
            for node_id in "abcabc":
                nursery.start_soon(attempt, node_id)
        assert (1, 5) == (len(stays.done), len(refused))
        await trio.sleep(1.0)
        assert ([], 0) == left_behind(peers["a"])


async def test_a_task_that_enters_a_lock_it_has_is_told() -> None:
    """It would wait for itself. It keeps what it has, and may take it again afterwards."""
    async with Cluster("a") as cluster:
        lock = lock_of(cluster.store)
        for enter in (lambda: lock, lock.acquire_nowait):
            async with lock as held:
                with pytest.raises(RuntimeError, match=r"this task has locks/job already"):
                    async with enter():
                        raise AssertionError("nobody may come here")
                assert [held.key] == list(cluster.store.keys())
        assert ([], 0) == left_behind(cluster)


async def test_who_holds_it_can_be_seen() -> None:
    """By what the holder told of itself."""
    async with Cluster("a") as cluster:
        lock = Lock(cluster.store, "job", owner={"host": "h1"})
        assert ([], False) == (lock.owners(), lock.locked())
        async with lock:
            other = lock_of(cluster.store)
            assert ([{"host": "h1"}], True) == (other.owners(), other.locked())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.__aenter__)
                await until_keys(cluster.store, KEYS, 2)
                assert [{"host": "h1"}] == other.owners()  # and not who waits for it
                nursery.cancel_scope.cancel()


async def test_wait_released_asks_the_cluster(autojump_clock: trio.abc.Clock) -> None:
    """A process that has not heard of a holder yet waits for him all the same."""
    async with running() as peers:
        leader = await peers.leader()
        behind = (await peers.followers())[0]
        peers.network.isolate(id_of(behind))
        async with lock_of(leader.store):
            peers.network.heal()
            assert not lock_of(behind.store).locked()
            with trio.move_on_after(1.0):
                await lock_of(behind.store).wait_released()
                pytest.fail("it is held")
        await lock_of(behind.store).wait_released()


async def test_wait_released_waits_for_all_who_came_before(autojump_clock: trio.abc.Clock) -> None:
    """And for nobody who comes later; a free lock it does not wait for."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        store = peers["a"].store
        lock = lock_of(peers["b"].store)
        await lock.wait_released()
        leave = {name: trio.Event() for name in "123"}
        released = trio.Event()

        async def wait_released() -> None:
            await lock.wait_released()
            released.set()

        async with trio.open_nursery() as nursery:
            for number, name in enumerate("12"):
                nursery.start_soon(stay_until, lock_of(store), stays, name, leave[name])
                await until_keys(store, KEYS, number + 1)
            nursery.start_soon(wait_released)
            await trio.sleep(1.0)
            nursery.start_soon(stay_until, lock_of(store), stays, "3", leave["3"])
            await until_keys(store, KEYS, 3)
            leave["1"].set()
            await until_in(stays, "2")
            await trio.sleep(1.0)
            assert not released.is_set()
            leave["2"].set()
            await until_in(stays, "3")
            await trio.sleep(1.0)
            assert released.is_set()
            leave["3"].set()


# -- who goes without a word -------------------------------------------------------------------------------------------


async def test_who_is_cancelled_while_waiting_leaves_nothing_behind(autojump_clock: trio.abc.Clock) -> None:
    """Those behind move up; the holder is not disturbed."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        store = peers["a"].store
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay_until, lock_of(store), stays, "first", leave)
            await until_in(stays, "first")
            with trio.move_on_after(1.0) as scope:
                async with lock_of(peers["b"].store):
                    raise AssertionError("nobody may come here")
            assert scope.cancelled_caught
            await until_keys(store, KEYS, 1)
            impatient = trio.CancelScope()

            async def contend_impatiently() -> None:
                with impatient:
                    await stay_until(lock_of(peers["c"].store), stays, "second", leave)

            nursery.start_soon(contend_impatiently)
            await until_keys(store, KEYS, 2)
            nursery.start_soon(stay_until, lock_of(peers["b"].store), stays, "third", leave)
            await until_keys(store, KEYS, 3)
            impatient.cancel()
            await until_keys(store, KEYS, 2)
            assert ["first"] == stays.inside
            leave.set()
        await trio.sleep(1.0)
        assert ["first", "third"] == stays.order
        assert ([], 0) == left_behind(peers["a"])


@pytest.mark.parametrize("leads", [False, True])
async def test_the_next_one_gets_it_when_the_holder_is_cut_off(autojump_clock: trio.abc.Clock, leads: bool) -> None:
    """The holder's body is cancelled before that, and its block raises LeaseExpiredError."""
    stays = Stays()
    async with running() as peers:
        leader = await peers.leader()
        holder = leader if leads else (await peers.followers())[0]
        other = peers.without(holder)[0]
        errors = []
        leave = trio.Event()

        async def hold() -> None:
            try:
                async with lock_of(holder.store) as held:
                    with stays.stay("holder", held.token):
                        await trio.sleep_forever()
            except LeaseExpiredError as exc:
                errors.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await until_in(stays, "holder")
            nursery.start_soon(stay_until, lock_of(other.store), stays, "next", leave)
            await until_keys(other.store, KEYS, 2)
            peers.network.isolate(id_of(holder))
            with trio.fail_after(EXPIRED_S):
                await until_in(stays, "next")
            assert 1 == len(stays.done)
            peers.network.heal()
            leave.set()
        assert 1 == len(errors)
        assert [] == overlaps(stays.done)
        assert ["holder", "next"] == stays.order


@pytest.mark.parametrize("leads", [False, True])
async def test_the_next_one_gets_it_when_the_holder_dies(autojump_clock: trio.abc.Clock, leads: bool) -> None:
    """It was killed, and could not let go: its lease ends by itself."""
    stays = Stays()
    async with running() as peers:
        leader = await peers.leader()
        holder = leader if leads else (await peers.followers())[0]
        other = peers.without(holder)[0]
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as life:
                life.start_soon(stay_until, lock_of(holder.store), stays, "holder", leave)
                await until_in(stays, "holder")
                nursery.start_soon(stay_until, lock_of(other.store), stays, "next", leave)
                await until_keys(other.store, KEYS, 2)
                peers.network.isolate(id_of(holder))  # nothing that it does on its way out is heard
                life.cancel_scope.cancel()
            await peers.kill(id_of(holder))
            killed = trio.current_time()
            with trio.fail_after(EXPIRED_S):
                await until_in(stays, "next")
            assert trio.current_time() - killed > 0.3 * TTL_S  # not before
            leave.set()


async def test_a_change_of_leader_costs_nobody_the_lock(autojump_clock: trio.abc.Clock) -> None:
    """Handed over or dead: who holds it goes on, and so does who waits, in its place."""
    stays = Stays()
    async with running("abcde") as peers:
        leave = trio.Event()
        first = await peers.leader()
        contenders = peers.without(first)[:2]
        async with trio.open_nursery() as nursery:
            for number, cluster in enumerate(contenders):
                nursery.start_soon(stay_until, lock_of(cluster.store), stays, str(number), leave)
                await until_keys(cluster.store, KEYS, number + 1)
            await peers.kill(id_of(first))
            for _ in range(3):
                leader = await peers.leader()
                await trio.sleep(TTL_S)
                await leader.transfer_leadership()
            await trio.sleep(2 * TTL_S)
            assert ["0"] == stays.inside
            leave.set()
        assert ["0", "1"] == stays.order


async def test_a_waiter_that_is_cut_off_loses_its_place(autojump_clock: trio.abc.Clock) -> None:
    """It is told: LeaseExpiredError. Nobody waits for it."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        holder, waiter = await peers.followers()
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay_until, lock_of(holder.store), stays, "holder", leave)
            await until_in(stays, "holder")

            async def wait() -> None:
                with pytest.raises(LeaseExpiredError):
                    async with lock_of(waiter.store):
                        raise AssertionError("nobody may come here")

            nursery.start_soon(wait)
            await until_keys(holder.store, KEYS, 2)
            peers.network.isolate(id_of(waiter))
            await until_keys(holder.store, KEYS, 1)
            nursery.start_soon(stay_until, lock_of(holder.store), stays, "later", leave)
            await until_keys(holder.store, KEYS, 2)
            leave.set()
            await until_in(stays)
            assert ["holder", "later"] == stays.order
            peers.network.heal()


@pytest.mark.parametrize("holds", [True, False])
async def test_a_key_that_somebody_deleted_is_a_lock_lost(holds: bool) -> None:
    """Who holds it is cancelled, who waits stops waiting; both are told, at once. Others are not disturbed."""
    async with Cluster("a") as cluster:
        store = cluster.store
        stays = Stays()
        leave = trio.Event()
        lost = trio.Event()

        async def contend() -> None:
            async with lock_of(store) as held:
                with stays.stay("lost", held.token):
                    await trio.sleep_forever()

        async def lose() -> None:
            with pytest.raises(LeaseExpiredError, match="was deleted by somebody else"):
                await contend()
            lost.set()

        async def keep() -> None:
            await stay_until(lock_of(store), stays, "other", leave)

        async with trio.open_nursery() as nursery:
            for number, task in enumerate((lose, keep) if holds else (keep, lose)):
                nursery.start_soon(task)
                await until_keys(store, KEYS, number + 1)
            keys = sorted(store.keys(KEYS), key=lambda key: store.entry(key).create_revision)
            await store.delete(keys[0 if holds else 1])
            with trio.fail_after(1.0):
                await lost.wait()
            await until_in(stays, "other")
            leave.set()
        assert ([], 0) == left_behind(cluster)


# -- the fence ---------------------------------------------------------------------------------------------------------


async def test_a_write_of_a_deposed_holder_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """One that was stuck (here, in a shield) and missed that its time was over: its token is old, its write fails."""
    async with running() as peers:
        await peers.leader()
        stuck, other = await peers.followers()
        go_on = trio.Event()
        written = []

        async def hold_stuck() -> None:
            async with lock_of(stuck.store) as held:
                assert (await stuck.store.txn([held.fence], [Put("report", "first")])).succeeded
                with trio.CancelScope(shield=True):
                    await go_on.wait()
                    done = await stuck.store.txn([held.fence], [Put("report", "stale")])
                    written.append((held.token, done.succeeded))

        async def be_deposed() -> None:
            with pytest.raises(LeaseExpiredError):
                await hold_stuck()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_deposed)
            await until_keys(other.store, "report", 1)
            peers.network.isolate(id_of(stuck))
            async with lock_of(other.store) as held:
                assert (await other.store.txn([held.fence], [Put("report", "second")])).succeeded
                peers.network.heal()
                go_on.set()
                await trio.sleep(2.0)
                [(token, succeeded)] = written
                assert token < held.token
                assert not succeeded
                assert "second" == await other.store.get("report")


async def test_the_fence_stands_while_the_lock_is_held() -> None:
    """And falls with it, if it is let go and taken again by the same task, too."""
    async with Cluster("a") as cluster:
        store = cluster.store
        lock = lock_of(store)

        async def stands(claim: Claim) -> bool:
            return (await store.txn([claim.fence], [])).succeeded

        async with lock as held:
            assert await stands(held)
        assert not await stands(held)
        async with lock as again:
            assert (False, True) == (await stands(held), await stands(again))
