"""The queue: each item to one consumer at a time, in order, until it was acknowledged, whatever becomes of whom."""
# ruff: noqa: PT012  # a whole block is what raises

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
import trio.testing
from clusters import id_of, peer_of, running
from consuming import Hands, left_behind, queue_of, take_all

from replikv import Cluster, ConfigurationError, EncodingError, Put
from replikv.recipes import Queue, QueueStatistics

# -- one after the other -----------------------------------------------------------------------------------------------


async def test_items_come_in_the_order_of_their_puts_whoever_puts_and_takes(autojump_clock: trio.abc.Clock) -> None:
    """Of two puts, one of which returned before the other began, the first comes first; and each is gone when taken."""
    async with running() as peers:
        await peers.leader()
        queues = [queue_of(peers[node_id].store) for node_id in "abc"]
        numbers = [await queues[number % 3].put(number) for number in range(7)]
        assert list(range(1, 8)) == numbers
        assert range(8, 11) == await queues[1].put_many([7, 8, 9])
        taken = []
        for number in range(10):
            async with queues[number % 2].take() as item:
                taken.append(item)
        assert list(range(10)) == taken
        await peers.converge()
        assert ([], 0) == left_behind(peers["c"])


async def test_an_item_is_any_plain_data_and_the_takers_own_copy(autojump_clock: trio.abc.Clock) -> None:
    """None and empty ones as well. What cannot be stored is refused, and is not put."""
    items = [None, "", 0, False, b"", {"to": ["ann"], "tries": {"a": 1}}]
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        with pytest.raises(EncodingError):
            await queue.put(object())
        for item in items:
            await queue.put(item)
        assert items == await take_all(queue)


async def test_iterating_takes_one_after_the_other(autojump_clock: trio.abc.Clock) -> None:
    """Without end: it waits for what is put later."""
    taken = []
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        queue = queue_of(cluster.store)

        async def consume() -> None:
            async for delivery in queue:
                async with delivery as item:
                    taken.append(item)

        nursery.start_soon(consume)
        for number in range(3):
            await queue.put(number)
            await trio.sleep(1.0)
            assert list(range(number + 1)) == taken
        nursery.cancel_scope.cancel()


async def test_what_one_holds_others_pass_over(autojump_clock: trio.abc.Clock) -> None:
    """Two hundred held ones at the head, more than are looked at together; the one behind them is found."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        queue, hands = queue_of(cluster.store), Hands()
        await queue.put_many(range(200))
        for _ in range(200):
            nursery.start_soon(hands.hold, queue)
        await hands.until(200)
        assert list(range(200)) == sorted(hands.items)
        await queue.put("behind")
        assert QueueStatistics(waiting=1, held=200, dead=0) == queue.statistics()
        assert (201, "behind") == (queue.size, queue.peek())
        assert ["behind"] == await take_all(queue)
        assert "nothing" == queue.peek("nothing")
        hands.let_go.set()


async def test_two_queues_are_two(autojump_clock: trio.abc.Clock) -> None:
    """By name, and by the scope of the store."""
    async with Cluster("a") as cluster:
        queues = [Queue(cluster.store, "one"), Queue(cluster.store, "one2"), Queue(cluster.store.scoped("x/"), "one")]
        for number, queue in enumerate(queues):
            await queue.put(number)
        assert [[0], [1], [2]] == [await take_all(queue) for queue in queues]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("", {}, "name of one of the queues"),
        ("a/b", {}, "without '/', not 'a/b'"),
        ("a", {"visibility_s": 0}, "visibility_s must be greater than 0"),
        ("a", {"max_deliveries": 0}, "max_deliveries must be at least 1"),
    ],
)
async def test_arguments_that_make_no_sense(
    autojump_clock: trio.abc.Clock, name: str, options: dict[str, Any], sentence: str
) -> None:
    """Are refused when the queue is made."""
    async with Cluster("a") as cluster:
        with pytest.raises(ConfigurationError, match=sentence):
            Queue(cluster.store, name, **options)


# -- given back --------------------------------------------------------------------------------------------------------


async def test_an_exception_gives_the_item_back_at_its_old_place(autojump_clock: trio.abc.Clock) -> None:
    """It leaves unwrapped, and the item is the next to be delivered, for the second time."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        await queue.put_many(["first", "second"])
        with pytest.raises(ZeroDivisionError):
            async with queue.take() as item:
                assert "first" == item
                assert 1 / 0
        async with queue.receive() as delivery:
            assert ("first", 1, 2) == (delivery.item, delivery.number, delivery.count)
        async with queue.receive() as delivery:
            assert ("second", 2, 1) == (delivery.item, delivery.number, delivery.count)
        assert ([], 0) == left_behind(cluster)


async def test_a_group_of_the_body_leaves_as_it_was_raised(autojump_clock: trio.abc.Clock) -> None:
    """No group around it, and none taken away."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        await queue.put(1)
        group = ExceptionGroup("of the body", [ValueError(1)])
        with pytest.raises(ExceptionGroup) as caught:
            async with queue.take():
                raise group
        assert caught.value is group


async def test_whoever_waits_is_woken_by_a_put(autojump_clock: trio.abc.Clock) -> None:
    """In another process; of the tasks of one, the first that came."""
    async with running() as peers, trio.open_nursery() as nursery:
        await peers.leader()
        producer, consumer = queue_of(peers["a"].store), queue_of(peers["b"].store)
        taken: list[tuple[str, Any]] = []

        async def take(name: str) -> None:
            async with consumer.take() as item:
                taken.append((name, item))

        for name in ("one", "two", "three"):
            nursery.start_soon(take, name)
            await trio.testing.wait_all_tasks_blocked(0.01)
        await producer.put(1)
        await trio.sleep(1.0)
        assert [("one", 1)] == taken
        await producer.put(2)
        await trio.sleep(1.0)
        assert [("one", 1), ("two", 2)] == taken
        await producer.put(3)


async def test_whoever_waits_is_woken_by_what_is_given_back(autojump_clock: trio.abc.Clock) -> None:
    """At once, in the same process and in another."""
    async with running() as peers:
        await peers.leader()
        holder = queue_of(peers["a"].store)
        for node_id in "ab":
            await holder.put(node_id)
            taken = Hands()
            taken.let_go.set()
            async with trio.open_nursery() as nursery:
                with pytest.raises(ZeroDivisionError):
                    async with holder.take():
                        nursery.start_soon(taken.hold, queue_of(peers[node_id].store))
                        await trio.sleep(1.0)
                        assert [] == taken.items
                        assert 1 / 0
                given_back = trio.current_time()
            assert [node_id] == taken.items
            assert trio.current_time() - given_back < 0.5


async def test_waiting_asks_nobody(autojump_clock: trio.abc.Clock) -> None:
    """An hour of many waiting tasks: no command, no lease."""
    async with running() as peers, trio.open_nursery() as nursery:
        await peers.leader()
        for node_id in "abc":
            queue = queue_of(peers[node_id].store)
            for _ in range(10):
                nursery.start_soon(Hands().hold, queue)
        await trio.sleep(60.0)
        before = peer_of(peers["a"]).replica.position
        await trio.sleep(60.0)
        assert before == peer_of(peers["a"]).replica.position
        assert ([], 0) == left_behind(peers["a"])
        nursery.cancel_scope.cancel()


# -- with the acknowledgement  -----------------------------------------------------------------------------------------


async def test_what_is_done_in_the_map_with_the_acknowledgement_is_done_once(autojump_clock: trio.abc.Clock) -> None:
    """It is one revision; and after it, whatever becomes of the body, the item does not come back."""
    async with Cluster("a") as cluster:
        store, queue = cluster.store, queue_of(cluster.store)
        await queue.put("item")
        with pytest.raises(ValueError, match="after it"):
            async with queue.receive() as delivery:
                await delivery.acknowledge(Put("done/item", True))
                assert delivery.acknowledged
                with pytest.raises(RuntimeError, match="acknowledged already"):
                    await delivery.acknowledge()
                raise ValueError("after it")
        item, revision = "queues/mails/items/" + "1".zfill(20), store.entry("done/item").create_revision
        assert item not in store
        assert "item" == await store.get(item, revision=revision - 1)
        assert None is await store.get(item, revision=revision)
        assert (["done/item"], 0) == left_behind(cluster)


async def test_what_could_not_be_done_with_the_acknowledgement_leaves_the_item(autojump_clock: trio.abc.Clock) -> None:
    """Though the body swallows the error: the end of the block does not acknowledge without it."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        await queue.put("item")
        async with queue.receive() as delivery:
            with pytest.raises(EncodingError):
                await delivery.acknowledge(Put("done/item", object()))
        async with queue.receive() as delivery:
            assert ("item", 2) == (delivery.item, delivery.count)
            with pytest.raises(EncodingError):
                await delivery.acknowledge(Put("done/item", object()))
            await delivery.acknowledge(Put("done/item", True))
        assert (["done/item"], 0) == left_behind(cluster)


async def test_a_dead_item_can_be_revived_by_who_has_not_heard_of_it(autojump_clock: trio.abc.Clock) -> None:
    """The cluster is asked before it is said that it is not among the dead."""
    async with running() as peers:
        leader = await peers.leader()
        behind = (await peers.followers())[0]
        peers.network.isolate(id_of(behind))
        queue, other = (Queue(peer.store, "mails", max_deliveries=1) for peer in (leader, behind))
        number = await queue.put("item")
        with pytest.raises(ZeroDivisionError):
            async with queue.take():
                assert 1 / 0
        with pytest.raises(trio.WouldBlock):
            async with queue.take_nowait():
                pytest.fail("it is dead")
        peers.network.heal()
        assert {} == other.dead_letters()
        assert await other.revive(number)
        assert not await other.revive(number)
        assert "item" == other.peek()


# -- nothing to wait for -----------------------------------------------------------------------------------------------


async def test_take_nowait(autojump_clock: trio.abc.Clock) -> None:
    """What is there, or trio.WouldBlock; what others hold is not there."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store)
        await queue.put_many([1, 2])
        async with queue.take_nowait() as one, queue.take_nowait() as two:
            assert (1, 2) == (one, two)
            with pytest.raises(trio.WouldBlock):
                async with queue.take_nowait():
                    pytest.fail("entered")
        assert ([], 0) == left_behind(cluster)


async def test_take_nowait_knows_of_every_put_that_has_returned(autojump_clock: trio.abc.Clock) -> None:
    """A replica that lags does not say that there is nothing."""
    async with running() as peers:
        leader = await peers.leader()
        behind, other = (id_of(cluster) for cluster in peers.without(leader))
        peers.network.cut(id_of(leader), behind)
        await queue_of(peers[other].store).put("item")
        assert 0 == queue_of(peers[behind].store).size
        peers.network.heal()
        async with queue_of(peers[behind].store).take_nowait() as item:
            assert "item" == item


# -- the dead ----------------------------------------------------------------------------------------------------------


async def test_an_item_that_nobody_survives_is_put_aside(autojump_clock: trio.abc.Clock) -> None:
    """After so many deliveries, and the others come as if it had not been there. Revived, it is at its old place."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store, max_deliveries=3)
        await queue.put_many(["poison", "other", "last"])
        for count in range(1, 4):
            with contextlib.suppress(ValueError):
                async with queue.receive() as delivery:
                    assert ("poison", count) == (delivery.item, delivery.count)
                    raise ValueError
        async with queue.take() as item:
            assert "other" == item
        assert {1: "poison"} == queue.dead_letters()
        assert QueueStatistics(waiting=1, held=0, dead=1) == queue.statistics()
        assert (await queue.revive(1), await queue.revive(1), await queue.revive(2)) == (True, False, False)
        async with queue.receive() as delivery:
            assert ("poison", 1, 1) == (delivery.item, delivery.number, delivery.count)
        assert ["last"] == await take_all(queue)
        assert ([], 0) == left_behind(cluster)


async def test_a_dead_item_can_be_discarded(autojump_clock: trio.abc.Clock) -> None:
    """Then it is gone; take_nowait puts it aside, too, and says that there is nothing."""
    async with Cluster("a") as cluster:
        queue = queue_of(cluster.store, max_deliveries=1)
        await queue.put("poison")
        with contextlib.suppress(ValueError):
            async with queue.take():
                raise ValueError
        assert [] == await take_all(queue)
        assert {1: "poison"} == queue.dead_letters()
        assert (await queue.discard(1), await queue.discard(1)) == (True, False)
        assert ([], 0) == left_behind(cluster)
