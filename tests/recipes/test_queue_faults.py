"""The queue while processes die, are cut off, give up and crowd: each item to one at a time, and none is lost."""
# ruff: noqa: PT012  # a whole block is what raises

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing
from clusters import id_of, peer_of, running
from consuming import EXPIRED_S, VISIBILITY_S, Hands, left_behind, queue_of

from replikv import Cluster, LeaseExpiredError, Put, UnavailableError
from replikv.recipes import Queue
from replikv.recipes.queue import _Plan

# -- lost claims -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_the_item_of_a_process_that_dies_is_delivered_again(autojump_clock: trio.abc.Clock, role: str) -> None:
    """Not before its lease has ended, and at its old place."""
    async with running() as peers, trio.open_nursery() as nursery:
        leader = await peers.leader()
        victim = leader if role == "leader" else peers.without(leader)[0]
        await queue_of(victim.store).put_many(["first", "second"])
        hands = Hands()
        nursery.start_soon(hold_until_closed, hands, queue_of(victim.store))
        await hands.until(1)
        died = trio.current_time()
        await peers.kill(id_of(victim))
        other = queue_of(peers.all[0].store)
        await peers.leader()
        async with other.receive() as delivery:
            assert "second" == delivery.item
        with trio.fail_after(EXPIRED_S):
            async with other.receive() as delivery:
                assert ("first", 2) == (delivery.item, delivery.count)
        assert died + VISIBILITY_S * 0.6 <= trio.current_time()  # kept alive a third of it before, at the most


async def hold_until_closed(hands: Hands, queue: Queue) -> None:
    """Whatever its end is: the process it runs in is dead."""
    with contextlib.suppress(Exception):
        await hands.hold(queue)


async def test_whoever_is_cut_off_stops_before_anybody_else_begins(autojump_clock: trio.abc.Clock) -> None:
    """Its body is cancelled, LeaseExpiredError raised, and then, not sooner, the item delivered to another."""
    async with running() as peers, trio.open_nursery() as nursery:
        leader = await peers.leader()
        victim, other = peers.without(leader)
        queue = queue_of(victim.store)
        await queue.put("item")
        held, stopped = trio.Event(), trio.Event()
        stopped_at = 0.0

        async def hold() -> None:
            nonlocal stopped_at
            with pytest.raises(LeaseExpiredError):
                async with queue.take():
                    held.set()
                    try:
                        await trio.sleep_forever()
                    finally:
                        stopped_at = trio.current_time()
            stopped.set()

        nursery.start_soon(hold)
        await held.wait()
        peers.network.isolate(id_of(victim))
        with trio.fail_after(EXPIRED_S):
            async with queue_of(other.store).receive() as delivery:
                assert ("item", 2) == (delivery.item, delivery.count)
                assert 0.0 < stopped_at <= trio.current_time()
        await stopped.wait()
        peers.network.heal()
        await peers.converge()
        assert 0 == queue.size


async def test_a_lost_claim_cannot_acknowledge(autojump_clock: trio.abc.Clock) -> None:
    """The item of who has lost his claim without knowing is not taken off the queue by him, nor from who has it now."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        await queue.put("item")
        with pytest.raises(LeaseExpiredError, match="item 1 of queue 'mails' was lost before it was acknowledged"):
            async with queue.receive() as lost:
                await cluster.store.delete("queues/mails/claims/" + "1".zfill(20))
                async with queue.receive() as delivery:
                    assert ("item", 2) == (delivery.item, delivery.count)
                    assert not (await cluster.store.txn([lost.fence], [Put("by", "the loser")])).succeeded
                    assert (await cluster.store.txn([delivery.fence], [Put("by", "the holder")])).succeeded
        assert 0 == queue.size
        assert "the holder" == cluster.store["by"]


async def test_nothing_is_done_with_the_acknowledgement_of_a_lost_claim(autojump_clock: trio.abc.Clock) -> None:
    """The holder is told, and the item is delivered again."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        await queue.put("item")
        async with queue.receive() as lost:
            await cluster.store.delete("queues/mails/claims/" + "1".zfill(20))
            with pytest.raises(LeaseExpiredError, match="item 1 of queue 'mails' was lost"):
                await lost.acknowledge(Put("by", "the loser"))
        assert "by" not in cluster.store
        assert 1 == queue.size


async def test_what_was_acknowledged_by_hand_rests_on_no_lease(autojump_clock: trio.abc.Clock) -> None:
    """The rest of the body goes on, though its process is cut off for longer than any lease lasts."""
    async with running() as peers:
        victim = (await peers.followers())[0]
        queue = queue_of(victim.store)
        await queue.put("item")
        async with queue.receive() as delivery:
            await delivery.acknowledge()
            peers.network.isolate(id_of(victim))
            await trio.sleep(EXPIRED_S)
            peers.network.heal()
        await peers.converge()
        assert ([], 0) == left_behind(victim)


async def test_an_old_view_claims_nothing(autojump_clock: trio.abc.Clock) -> None:
    """What a process would do with an item as it knew it does nothing once that was claimed, taken, or is another's.

    An item that was put aside and revived is counted from 0 again: the count alone does not tell, it may be as before.
    """
    async with Cluster("a") as cluster:
        store, queue = cluster.store, queue_of(cluster.store, max_deliveries=2)
        await queue.put("item")
        async with store.lease(VISIBILITY_S) as lease:

            async def does_nothing(*plans: _Plan) -> None:
                for plan in plans:
                    assert not (await store.txn(plan.txn.compares, plan.txn.then)).succeeded

            first = queue._plan("1".zfill(20), lease)
            await fail_once(queue)
            second = queue._plan("1".zfill(20), lease)
            await does_nothing(first)
            await fail_once(queue)
            burial = queue._plan("1".zfill(20), lease)
            assert [False, False, True] == [plan.buries for plan in (first, second, burial)]
            await does_nothing(first, second)
            with pytest.raises(trio.WouldBlock):
                await fail_once(queue)
            await does_nothing(first, second, burial)
            assert await queue.revive(1)
            await does_nothing(second, burial)
            async with queue.take():
                await does_nothing(first, second, burial)
            await does_nothing(first, second, burial)
        assert ([], 0) == left_behind(cluster)


async def fail_once(queue: Queue) -> None:
    """Take an item and give it back."""
    with contextlib.suppress(ZeroDivisionError):
        async with queue.take_nowait():
            assert 1 / 0


# -- many --------------------------------------------------------------------------------------------------------------


async def test_many_consumers_in_many_processes_get_each_item_once(autojump_clock: trio.abc.Clock) -> None:
    """Seven processes, three consumers in each, all of them waiting when 210 items come at once.

    Nothing is lost, nothing delivered twice, and though all of them want the first item, an item costs few commands.
    """
    taken: list[int] = []
    async with running("abcdefg", voters_max=7) as peers:
        await peers.leader()
        peers.network.set_faults(delay_s=(0.001, 0.01))

        async def consume(queue: Queue) -> None:
            async for delivery in queue:
                async with delivery as item:
                    taken.append(item)

        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                queue = queue_of(cluster.store)
                for _ in range(3):
                    nursery.start_soon(consume, queue)
            await trio.sleep(1.0)
            before = peer_of(peers["a"]).replica.position
            await queue_of(peers["a"].store).put_many(range(210))
            with trio.fail_after(60.0):
                while len(taken) < 210:  # noqa: ASYNC110  # a test may look
                    await trio.sleep(0.01)
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        assert list(range(210)) == sorted(taken)
        assert (peer_of(peers["a"]).replica.position - before) / 210 < 6
        await peers.converge()
        assert ([], 0) == left_behind(peers["a"])


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_a_task_that_is_cancelled_while_it_claims_wakes_the_next(autojump_clock: trio.abc.Clock) -> None:
    """One that waits in the same process does not sleep on an item that the other has not got."""
    async with running(request_timeout_s=2.0) as peers, trio.open_nursery() as nursery:
        leader = await peers.leader()
        follower = peers.without(leader)[0]
        queue, hands = queue_of(follower.store), Hands()
        await queue.put("item")
        peers.network.isolate(id_of(follower))  # so that nothing comes of what is begun
        scope = trio.CancelScope()

        async def give_up() -> None:
            with scope:
                await hands.hold(queue)

        nursery.start_soon(give_up)
        await trio.sleep(0.5)
        nursery.start_soon(hands.hold, queue)
        await trio.sleep(0.5)
        peers.network.heal()
        scope.cancel()
        await hands.until(1)
        hands.let_go.set()


async def test_a_claim_that_is_not_made_in_time_is_told(autojump_clock: trio.abc.Clock) -> None:
    """UnavailableError, and the item is there for the next."""
    async with running(request_timeout_s=2.0) as peers:
        leader = await peers.leader()
        follower = peers.without(leader)[0]
        queue = queue_of(follower.store)
        await queue.put("item")
        peers.network.isolate(id_of(follower))
        await trio.sleep(5.0)
        with pytest.raises(UnavailableError):
            async with queue.take():
                pytest.fail("entered")
        peers.network.heal()
        with trio.fail_after(EXPIRED_S):
            async with queue.take() as item:
                assert "item" == item


async def test_a_put_that_got_no_number_has_put_nothing(autojump_clock: trio.abc.Clock) -> None:
    """Whatever became of the number: surely no item, so it is no unknown outcome."""
    async with running() as peers:
        leader = await peers.leader()
        queue = queue_of(leader.store)
        peers.network.isolate(id_of(leader))
        with pytest.raises(UnavailableError, match="nothing was put into queue 'mails'"):
            await queue.put("item")
        peers.network.heal()
        await peers.converge()
        assert 0 == queue.size
