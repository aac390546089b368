"""Transactions of many callers on several peers: as if one came after the other, each within its time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from clusters import Peers, id_of, running

from replikv import (
    ABSENT,
    Compare,
    Get,
    OutcomeUnknownError,
    Put,
    Settings,
    Store,
    Transaction,
    UnavailableError,
)
from replikv.testing.linearizability import Recorder, check, check_revisions

ACCOUNTS = [f"account/{number}" for number in range(6)]


def add(tx: Transaction, key: str) -> int:
    total: int = tx.get(key, 0) + 1
    tx.put(key, total)
    return total


async def test_all_get_through_under_contention(autojump_clock: trio.abc.Clock) -> None:
    """Fifty callers on three peers add to one number: each within its time, and no addition is lost."""
    async with running() as peers:
        peers.network.set_faults(delay_s=(0.001, 0.003))
        await peers.leader()
        totals: list[int] = []

        async def work(store: Store) -> None:
            totals.append(await store.transact(add, "n"))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(work, peers["abc"[number % 3]].store)
        assert list(range(1, 51)) == sorted(totals)
        assert 50 == await peers["a"].store.get("n")


def transfer(tx: Transaction, source: str, target: str, amount: int) -> bool:
    if tx[source] < amount:
        return False
    tx.put(source, tx[source] - amount)
    tx.put(target, tx[target] + amount)
    return True


def total(tx: Transaction) -> int:
    balances = list(tx.values("account/"))
    assert min(balances) >= 0
    return sum(balances)


async def test_no_money_is_made_or_lost(autojump_clock: trio.abc.Clock) -> None:
    """Transfers between accounts on all peers, while leaders go: who sums up always sees the same sum."""
    async with running(request_timeout_s=60.0) as peers:
        peers.network.set_faults(delay_s=(0.001, 0.005))
        await peers["a"].store.update(dict.fromkeys(ACCOUNTS, 100))
        done = dict.fromkeys([True, False], 0)

        async def transfers(seed: int) -> None:
            chance = random.Random(seed)
            store = peers["abc"[seed % 3]].store
            for _ in range(20):
                source, target = chance.sample(ACCOUNTS, 2)
                done[await store.transact(transfer, source, target, chance.randint(1, 150))] += 1
                if chance.random() < 0.3:
                    assert 600 == await peers["abc"[(seed + 1) % 3]].store.transact(total)

        async def trouble() -> None:
            for _ in range(3):
                await trio.sleep(0.15)
                peers.network.isolate(id_of(await peers.leader()))
                await trio.sleep(2.5)
                peers.network.heal()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            for seed in range(9):
                nursery.start_soon(transfers, seed)
        assert 180 == done[True] + done[False]
        assert done[True] > 30
        await peers.converge()
        for cluster in peers.all:
            assert 600 == sum(cluster.store.values("account/"))
        revisions = 1 + done[True]
        assert revisions == peers["a"].store.revision


async def test_write_skew_is_prevented(autojump_clock: trio.abc.Clock) -> None:
    """Each reads the range and leaves only if another stays: one of them does, always."""

    def leave(tx: Transaction, name: str) -> bool:
        if len(list(tx.keys("on-call/"))) < 2:
            return False
        tx.delete(f"on-call/{name}")
        return True

    def join(tx: Transaction, name: str) -> bool:
        """The other way round: nobody joins where there are two already. What it reads is not there."""
        if len(list(tx.keys("on-call/"))) >= 2:
            return False
        tx.put(f"on-call/{name}", True)
        return True

    async with running() as peers:
        peers.network.set_faults(delay_s=(0.001, 0.003))
        for function, before, after in ((leave, "abc", 1), (join, "", 2)):
            await peers["a"].store.delete_prefix("on-call/")
            for name in before:
                await peers["a"].store.put(f"on-call/{name}", True)
            done: list[bool] = []

            async def run(function: Any, name: str, done: list[bool]) -> None:
                done.append(await peers[name].store.transact(function, name))

            async with trio.open_nursery() as nursery:
                for name in "abc":
                    nursery.start_soon(run, function, name, done)
            assert [False, True, True] == sorted(done)
            await peers["b"].store.barrier()
            assert after == len(list(peers["b"].store.keys("on-call/")))


async def test_time_runs_out_for_all_runs_together(autojump_clock: trio.abc.Clock) -> None:
    """A transaction that others disturb in every run ends within request_timeout_s, and surely was not applied."""
    async with running(request_timeout_s=2.0) as peers:
        peers.network.set_faults(delay_s=(0.005, 0.01))
        follower = (await peers.followers())[0]
        runs = 0

        def disturbed(tx: Transaction) -> None:
            nonlocal runs
            runs += 1
            tx.get("n")
            tx.put("mine", runs)

        async def disturb() -> None:
            leader = await peers.leader()
            while True:
                await leader.store.increment("n")

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(disturb)
            await trio.sleep(0.5)
            began = trio.current_time()
            with pytest.raises(UnavailableError, match="was changed by others in each of"):
                await follower.store.transact(disturbed)
            assert 1.5 < trio.current_time() - began <= 2.0
            nursery.cancel_scope.cancel()
        assert runs > 10
        assert "mine" not in follower.store


async def test_the_last_run_has_the_time_that_is_left(autojump_clock: trio.abc.Clock) -> None:
    """A peer that is cut off after some runs tells its caller within request_timeout_s of the first."""
    async with running(request_timeout_s=4.0) as peers:
        peers.network.set_faults(delay_s=(0.005, 0.01))
        follower = (await peers.followers())[0]
        leader = await peers.leader()

        async def disturb_and_cut_off() -> None:
            with trio.move_on_after(3.0):
                while True:
                    await leader.store.increment("n")
            peers.network.isolate(id_of(follower))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(disturb_and_cut_off)
            await trio.sleep(0.1)
            began = trio.current_time()
            with pytest.raises((UnavailableError, OutcomeUnknownError), match="no answer within"):
                await follower.store.transact(add, "n")
            assert 3.5 < trio.current_time() - began <= 4.0


async def test_time_runs_out_without_a_leader(autojump_clock: trio.abc.Clock) -> None:
    """Who was never handed over surely was not applied; who was may have been. Either is told in time."""
    async with running(request_timeout_s=2.0) as peers:
        leader = await peers.leader()
        peers.network.isolate(id_of(leader))
        began = trio.current_time()
        with pytest.raises(OutcomeUnknownError):
            await leader.store.transact(add, "n")
        assert trio.current_time() - began <= 2.0
        await trio.sleep(2.0)
        assert leader.status().leader is None
        began = trio.current_time()
        with pytest.raises(UnavailableError):
            await leader.store.transact(add, "n")
        with pytest.raises(UnavailableError):
            await leader.store.transact(lambda tx: tx.get("n"))
        with pytest.raises(UnavailableError) as caught:
            await leader.store.transact(lambda tx: tx["n"])
        assert isinstance(caught.value.__cause__, KeyError)
        assert 5.0 < trio.current_time() - began <= 6.0


async def test_a_transaction_may_be_hurried(autojump_clock: trio.abc.Clock) -> None:
    """Its last run has the time that is left: not that of those who wait beside it, and came before."""
    async with running(request_timeout_s=4.0) as peers:
        leader = await peers.leader()
        peers.network.isolate(id_of(leader))
        ended: dict[str, float] = {}

        async def put(name: str, hurry_s: float | None) -> None:
            replicator = leader.store._replicator
            deadline = None if hurry_s is None else trio.current_time() + hurry_s
            with pytest.raises((UnavailableError, OutcomeUnknownError)):
                await replicator.propose(1, b"\x02", deadline)
            ended[name] = trio.current_time() - began

        for _ in range(2):  # as the leader, that hands it over; as none, that does not
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, "patient", None)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(put, "hurried", 1.0)
            assert 1.0 <= ended["hurried"] <= 1.2
            assert 3.8 <= ended["patient"] <= 4.0


async def test_what_callers_saw_is_linearizable(autojump_clock: trio.abc.Clock) -> None:
    """Both kinds of transactions among other operations, while messages are lost and leaders go."""
    settings = Settings(request_timeout_s=5.0)
    async with running(settings=settings, seed=3) as peers:
        peers.network.set_faults(delay_s=(0.001, 0.01), loss=0.02)
        await peers.leader()
        recorder = Recorder(trio.current_time)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_trouble, peers)
            for seed in range(6):
                nursery.start_soon(_client, recorder, peers, seed)
        history = recorder.history()
        assert len([each for each in history if each.status == "ok"]) > 100
        verdict = check(history, timeout_s=60)
        assert verdict.outcome == "ok", verdict
        check_revisions(history)


async def _trouble(peers: Peers) -> None:
    for _ in range(3):
        await trio.sleep(0.3)
        peers.network.isolate(id_of(await peers.leader()))
        await trio.sleep(2.5)
        peers.network.heal()
        await trio.sleep(1.0)


def _move(tx: Transaction, left: str, right: str, value: int) -> dict[str, Any]:
    seen = {left: tx.get(left, ABSENT), right: tx.get(right, ABSENT)}
    tx.put(left, value)
    tx.delete(right)
    return seen


async def _client(recorder: Recorder, peers: Peers, seed: int) -> None:
    chance = random.Random(seed)
    name = f"client {seed}"
    store = peers["abc"[seed % 3]].store
    for number in range(30):
        value = 100 * seed + number
        left, right = chance.sample(["x", "y", "z"], 2)
        kind = chance.choice(["put", "get", "txn", "transact"])
        try:
            if kind == "put":
                with recorder.call(name, "put", left, value=value) as op:
                    op.ok(rev=await store.put(left, value))
            elif kind == "get":
                with recorder.call(name, "get", left) as op:
                    op.ok(await store.get(left, ABSENT))
            elif kind == "txn":
                expected = store.local.get(left, ABSENT)
                asked = {
                    "compares": [[left, "==", expected]],
                    "then": {right: value},
                    "otherwise": {},
                    "reads": [left, right],
                }
                with recorder.call(name, "txn", value=asked) as op:
                    result = await store.txn(
                        [Compare.value(left, "==", expected)],
                        [Get(left), Get(right), Put(right, value)],
                        [Get(left), Get(right)],
                    )
                    found = [ABSENT if entry is None else entry.value for entry in result.results[:2]]
                    op.ok({"succeeded": result.succeeded, "reads": dict(zip((left, right), found, strict=True))})
            else:
                asked = {"then": {left: value, right: ABSENT}, "reads": [left, right]}
                with recorder.call(name, "txn", value=asked) as op:
                    seen = await store.transact(_move, left, right, value)
                    op.ok({"succeeded": True, "reads": seen})
        except (UnavailableError, OutcomeUnknownError):
            pass
