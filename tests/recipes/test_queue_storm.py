"""The queue against a model, and in storms: nothing is lost, nothing is twice, and what comes again has a reason."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from typing import Any

import pytest
import trio
import trio.testing
from clusters import HEALED_S, Peers, id_of, running
from consuming import EXPIRED_S, left_behind, queue_of
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv import Cluster, LeaseExpiredError, OutcomeUnknownError, Store, UnavailableError
from replikv.recipes import Delivery, Queue

# -- against a model ---------------------------------------------------------------------------------------------------

MAX_DELIVERIES = 3

HOLDERS = st.integers(0, 4)
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 3)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("acknowledge"), HOLDERS),
    st.tuples(st.just("give_back"), HOLDERS),
    st.tuples(st.just("give_back"), HOLDERS),
    st.tuples(st.just("lose"), HOLDERS),
    st.tuples(st.just("revive"), HOLDERS),
    st.tuples(st.just("discard"), HOLDERS),
)


class Holder:
    """A consumer that has an item in hand until it is told what to do with it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._told = trio.Event()
        self._gives_back = False
        self._ended = trio.Event()
        self._lost = False
        self.claim_deleted = False
        self.delivery: Delivery | None = None

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self._queue.receive_nowait() as self.delivery:
                task_status.started()
                await self._told.wait()
                if self._gives_back:
                    raise ZeroDivisionError
        except trio.WouldBlock:
            task_status.started()
        except ZeroDivisionError:
            assert self._gives_back
        except LeaseExpiredError:
            self._lost = True
        finally:
            self._ended.set()

    async def end(self, *, gives_back: bool) -> bool:
        """Leave the block, with an exception or without; whether the claim was found to be lost."""
        self._gives_back = gives_back
        self._told.set()
        await self._ended.wait()
        return self._lost


class World:
    """The queue of a cluster of one, and beside it what is to be in it."""

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        self._store = store
        self._nursery = nursery
        self.queue = queue_of(store, max_deliveries=MAX_DELIVERIES)
        self._count = 0
        self.items: dict[int, int] = {}
        """What nobody has acknowledged: number -> how often it was delivered."""
        self.held: set[int] = set()
        self.dead: set[int] = set()
        self.holders: list[Holder] = []

    async def put(self, count: int) -> None:
        numbers = list(range(self._count + 1, self._count + count + 1))
        assert numbers == list(await self.queue.put_many(numbers))
        self._count += count
        self.items.update(dict.fromkeys(numbers, 0))

    async def take(self) -> None:
        """The first that is free, once those in front of it that were delivered too often are put aside."""
        holder = Holder(self.queue)
        await self._nursery.start(holder.run)
        free = sorted(self.items.keys() - self.held)
        while free and self.items[free[0]] == MAX_DELIVERIES:
            self.dead.add(free[0])
            del self.items[free.pop(0)]
        if not free:
            assert holder.delivery is None
            return
        number = free[0]
        self.items[number] += 1
        self.held.add(number)
        self.holders.append(holder)
        assert holder.delivery is not None
        told = (holder.delivery.item, holder.delivery.number, holder.delivery.count)
        assert (number, number, self.items[number]) == told

    async def end(self, holder: Holder, *, gives_back: bool) -> None:
        self.holders.remove(holder)
        lost = await holder.end(gives_back=gives_back)
        assert lost == (holder.claim_deleted and not gives_back)
        assert holder.delivery is not None
        if not holder.claim_deleted:
            self.held.remove(holder.delivery.number)
            if not gives_back:
                del self.items[holder.delivery.number]

    async def lose(self, holder: Holder) -> None:
        """Its claim is gone, and it does not know."""
        assert holder.delivery is not None
        if not holder.claim_deleted:
            assert await self._store.delete(f"queues/mails/claims/{holder.delivery.number:020}")
            self.held.remove(holder.delivery.number)
            holder.claim_deleted = True

    async def revive(self, number: int) -> None:
        assert await self.queue.revive(number)
        self.dead.remove(number)
        self.items[number] = 0

    async def discard(self, number: int) -> None:
        assert await self.queue.discard(number)
        self.dead.remove(number)

    def check(self) -> None:
        """All that can be read says what is in it."""
        free = sorted(self.items.keys() - self.held)
        assert len(self.items) == self.queue.size
        statistics = self.queue.statistics()
        assert (len(free), len(self.held), len(self.dead)) == (statistics.waiting, statistics.held, statistics.dead)
        assert (free[0] if free else None) == self.queue.peek()
        assert {number: number for number in self.dead} == self.queue.dead_letters()


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=30))
def test_a_queue_equals_the_model(steps: list[tuple[str, int]]) -> None:
    """Taken in order, given back, lost, dead and revived; and what is left at the end can be had."""
    trio.run(follow_the_model, steps, clock=trio.testing.MockClock(autojump_threshold=0))


async def follow_the_model(steps: list[tuple[str, int]]) -> None:
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        world = World(cluster.store, nursery)
        for step in [("put", 3), *steps]:
            match step:
                case ("put", count):
                    await world.put(count)
                case ("take", _):
                    await world.take()
                case ("acknowledge" | "give_back" as what, index) if world.holders:
                    holder = world.holders[index % len(world.holders)]
                    await world.end(holder, gives_back=what == "give_back")
                case ("lose", index) if world.holders:
                    await world.lose(world.holders[index % len(world.holders)])
                case ("revive" | "discard" as what, index) if world.dead:
                    number = sorted(world.dead)[index % len(world.dead)]
                    await (world.revive(number) if what == "revive" else world.discard(number))
            world.check()
        while world.holders:
            await world.end(world.holders[0], gives_back=False)
        while world.items:
            await world.take()
            for holder in list(world.holders):
                await world.end(holder, gives_back=False)
        world.check()


# -- in a storm --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Stay:
    """An item in hand, from when its block was entered until its body ended."""

    item: str
    count: int
    came: float
    left: float
    acknowledged: bool = False
    """The block was left without an exception."""
    at: float = 0.0
    """When that was so."""


class Storm:
    """Producers and consumers on all peers, and what they were told."""

    def __init__(self, peers: Peers, seed: int) -> None:
        self.peers = peers
        self.chance = random.Random(seed)
        self.put: dict[str, int] = {}
        """Item -> its number, of those whose put has returned."""
        self.unknown: set[str] = set()
        self.stays: list[Stay] = []
        self.until = 0.0

    async def produce(self, cluster: Cluster) -> None:
        queue = queue_of(cluster.store)
        for number in itertools.takewhile(lambda _: trio.current_time() < self.until, itertools.count()):
            item = f"{id_of(cluster)}/{number}"
            try:
                self.put[item] = await queue.put(item)
            except OutcomeUnknownError:
                self.unknown.add(item)
            except UnavailableError:
                pass  # surely not, and never: whoever gets it is wrong
            await trio.sleep(self.chance.uniform(0.0, 0.5))

    async def consume(self, queue: Queue) -> None:
        while True:
            with contextlib.suppress(LeaseExpiredError, TimeoutError, ZeroDivisionError):
                async with queue.receive() as delivery:
                    stay = Stay(delivery.item, delivery.count, trio.current_time(), 0.0)
                    self.stays.append(stay)
                    try:
                        await trio.sleep(self.chance.choice([0.0, 0.1, 0.3, 5.0]) * self.chance.random())
                        if self.chance.random() < 0.1:
                            raise ZeroDivisionError
                    finally:
                        stay.left = trio.current_time()
                stay.acknowledged, stay.at = True, trio.current_time()

    async def blow(self) -> None:
        """Cut peers off, the leader above all, for a moment or for longer than a lease lasts."""
        ids = sorted(self.peers.members)
        while trio.current_time() < self.until:
            await trio.sleep(self.chance.uniform(1.0, 4.0))
            leaders = [id_of(cluster) for cluster in self.peers.all if cluster.is_leader]
            victim = self.chance.choice(leaders or ids)
            self.peers.network.isolate(victim if self.chance.random() < 0.7 else self.chance.choice(ids))
            await trio.sleep(self.chance.choice([0.5, 3.0, 9.0]) * self.chance.random())
            self.peers.network.heal()

    def judge(self) -> None:
        """What the queue promises, seen from outside."""
        items: dict[str, list[Stay]] = {}
        for stay in self.stays:
            items.setdefault(stay.item, []).append(stay)
        assert set(self.put) <= set(items), "lost"
        assert set(items) <= set(self.put) | self.unknown, "nobody has put it"
        for item, stays in items.items():
            counts = [stay.count for stay in stays]
            assert sorted(set(counts)) == counts, f"{item}: delivered twice under one claim"
            for one, other in itertools.pairwise(stays):
                assert one.left <= other.came, f"{item}: in two hands"
                assert not one.acknowledged, f"{item}: delivered after it was acknowledged"


@pytest.mark.parametrize(
    ("seed", "storm_s"),
    [(0, 10.0), (1, 10.0), *(pytest.param(seed, 120.0, marks=pytest.mark.long) for seed in range(2, 20))],
)
async def test_a_storm(autojump_clock: trio.abc.Clock, seed: int, storm_s: float) -> None:
    """Leaders and others are cut off again and again, consumers fail and take long.

    Each item whose put has returned is delivered; what was acknowledged never again, and to one at a time always, on
    one clock for all. In the end nothing is left, no item and no lease.
    """
    async with running(seed=seed, request_timeout_s=4.0) as peers:
        await peers.leader()
        peers.network.set_faults(delay_s=(0.0, 0.02), loss=0.01, duplication=0.01, reordering=0.01)
        storm = Storm(peers, seed)
        storm.until = trio.current_time() + storm_s
        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(storm.produce, cluster)
                queue = queue_of(cluster.store)
                for _ in range(3):
                    nursery.start_soon(storm.consume, queue)
            await storm.blow()
            peers.network.heal()
            peers.network.set_faults()
            await trio.sleep(HEALED_S + EXPIRED_S)
            with trio.fail_after(60.0):
                while queue_of(peers["a"].store).size:  # noqa: ASYNC110  # a test may look
                    await trio.sleep(0.1)
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        storm.judge()
        assert len(storm.put) > 2 * storm_s
        assert any(stay.count > 1 for stay in storm.stays)
        await trio.sleep(EXPIRED_S)
        await peers.converge()
        assert ([], 0) == left_behind(peers["c"])


def judged(*stays: tuple[Any, ...]) -> None:
    storm = Storm.__new__(Storm)
    storm.put, storm.unknown = {"a": 1}, set()
    storm.stays = [Stay(*stay) for stay in stays]
    storm.judge()


@pytest.mark.parametrize(
    ("stays", "reason"),
    [
        ([], "lost"),
        ([("a", 1, 0.0, 1.0, True), ("a", 2, 1.0, 2.0)], "after it was acknowledged"),
        ([("a", 1, 0.0, 2.0), ("a", 2, 1.0, 3.0, True)], "in two hands"),
        ([("a", 1, 0.0, 1.0), ("a", 1, 1.0, 2.0, True)], "under one claim"),
        ([("a", 1, 0.0, 1.0, True), ("b", 1, 0.0, 1.0, True)], "nobody has put it"),
    ],
)
def test_the_judge_is_awake(stays: list[tuple[Any, ...]], reason: str) -> None:
    """It finds each of the crimes."""
    judged(("a", 1, 0.0, 1.0), ("a", 2, 1.0, 2.0, True))
    with pytest.raises(AssertionError, match=reason):
        judged(*stays)
