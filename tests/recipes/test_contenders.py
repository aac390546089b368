"""Contenders: what recipes are built on, and what becomes of them when they are cancelled at any step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from clusters import running
from contending import TTL_S, left_behind, until_keys

from replikv import Claim, Cluster, Contenders, Entry, LeaseExpiredError, Put

PREFIX = "rooms/12/"


async def test_contenders_are_in_the_order_in_which_they_came() -> None:
    """Whatever their kinds and values, and whatever is put with their keys later."""
    async with Cluster("a") as cluster:
        contenders = Contenders(cluster.store, PREFIX, TTL_S)
        async with (
            contenders.join("one", kind="z-") as one,
            contenders.join("two", kind="a-") as two,
            contenders.join("three") as three,
        ):
            assert (await cluster.store.txn([one.fence], [Put(one.key, "uno", lease=one.lease)])).succeeded
            assert ["uno", "two", "three"] == [entry.value for entry in contenders.all()]
            assert [one.key, two.key] == [entry.key for entry in contenders.ahead_of(three)]
            assert two.token == contenders.entry_of(two).create_revision
            assert one.key.startswith(f"{PREFIX}z-")
        assert ([], 0) == left_behind(cluster)


async def test_a_rule_says_whom_to_wait_for(autojump_clock: trio.abc.Clock) -> None:
    """While all of them are there; the others may come and go."""
    async with running() as peers:
        await peers.leader()
        contenders = [Contenders(peers[node_id].store, PREFIX, TTL_S) for node_id in "abc"]
        leave = {name: trio.Event() for name in "1234"}
        entered = trio.Event()

        def two_of_three(ahead: Sequence[Entry]) -> Sequence[Entry]:
            important = [entry for entry in ahead if entry.value != "4"]
            return important if len(important) == 3 else ()

        async def stay(name: str) -> None:
            async with contenders[int(name) % 3].join(name):
                await leave[name].wait()

        async def come_in() -> None:
            async with contenders[0].join() as claim:
                await contenders[0].wait_turn(claim, two_of_three)
                entered.set()

        async with trio.open_nursery() as nursery:
            for number, name in enumerate("1234"):
                nursery.start_soon(stay, name)
                await until_keys(peers["a"].store, PREFIX, number + 1)
            nursery.start_soon(come_in)
            await until_keys(peers["a"].store, PREFIX, 5)
            leave["4"].set()
            await until_keys(peers["a"].store, PREFIX, 4)
            await trio.sleep(1.0)
            assert not entered.is_set()
            leave["2"].set()
            with trio.fail_after(1.0):
                await entered.wait()
            for event in leave.values():
                event.set()


async def test_a_claim_that_stands_no_more_has_no_place() -> None:
    """Whoever asks for it gets LeaseExpiredError, also when another key of that name was put there."""
    async with Cluster("a") as cluster:
        contenders = Contenders(cluster.store, PREFIX, TTL_S)
        async with contenders.join() as claim:
            pass
        for value in (None, "forged"):
            if value is not None:
                await cluster.store.put(claim.key, value)
            for ask in (contenders.entry_of, contenders.ahead_of):
                with pytest.raises(LeaseExpiredError, match=f"{claim.key}' is gone"):
                    ask(claim)
        assert not (await cluster.store.txn([claim.fence], [])).succeeded


async def test_a_lost_key_is_told_also_to_who_does_not_wait() -> None:
    """A body that ends before it hears of the loss: the block raises all the same, so nobody takes it for done."""
    async with Cluster("a") as cluster:
        contenders = Contenders(cluster.store, PREFIX, TTL_S)

        async def lose() -> Claim:
            async with contenders.join() as claim:
                with trio.CancelScope(shield=True):
                    await cluster.store.delete(claim.key)
                    await trio.testing.wait_all_tasks_blocked()
            return claim

        with pytest.raises(LeaseExpiredError, match="was deleted by somebody else"):
            await lose()


async def test_a_key_that_is_gone_already_is_not_waited_for() -> None:
    """It went between a look around and the watch: nobody would tell of it again. One of several is enough."""
    async with Cluster("a") as cluster:
        contenders = Contenders(cluster.store, PREFIX, TTL_S)
        async with contenders.join() as claim:
            with trio.fail_after(1.0):
                await contenders.wait_gone([f"{PREFIX}gone"])
                await contenders.wait_gone([claim.key, f"{PREFIX}gone"])
            with trio.move_on_after(0.1) as scope:
                await contenders.wait_gone([claim.key])
            assert scope.cancelled_caught
