"""Every recipe's calls that await, as cases for cancelling.py."""

from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from cancelling import TTL_S, Case, Scene, registering, stay

from replikv import Contenders, LeaseExpiredError, Put
from replikv.recipes import (
    Balancer,
    Barrier,
    Counter,
    Election,
    Lock,
    Queue,
    ReadWriteLock,
    Semaphore,
    ServiceRegistry,
)

CASES: list[Case] = []
case = registering(CASES)


# -- contenders and locks ----------------------------------------------------------------------------------------------


async def some_contenders(s: Scene) -> Contenders:
    return Contenders(s.store, "rooms/", TTL_S)


async def hold(s: Scene, block: AbstractAsyncContextManager[Any]) -> None:
    """Another peer is in the block, and leaves soon."""

    async def stay_shortly(*, task_status: trio.TaskStatus[None]) -> None:
        with contextlib.suppress(LeaseExpiredError):
            async with block:
                task_status.started()
                await trio.sleep(0.05)

    await s.nursery.start(stay_shortly)


@case("Contenders.join", "Contenders.wait_turn", "Contenders.wait_gone", prepare=some_contenders, again=True)
async def contend(s: Scene) -> None:
    contenders: Contenders = s.given
    await hold(s, Contenders(s.other.store, "rooms/", TTL_S).join())
    async with contenders.join() as claim:
        await contenders.wait_turn(claim)
        await contenders.wait_gone(["rooms/nobody"])


async def a_lock(s: Scene) -> Lock:
    return Lock(s.store, "job", ttl_s=TTL_S)


@case("Lock.__aenter__", "Lock.__aexit__", prepare=a_lock, again=True)
async def lock(s: Scene) -> None:
    await stay(s.given)


@case("Lock.__aenter__", "Lock.wait_released", prepare=a_lock, again=True)
async def lock_that_is_held(s: Scene) -> None:
    await hold(s, Lock(s.other.store, "job", ttl_s=TTL_S))
    await s.given.wait_released()
    await hold(s, Lock(s.other.store, "job", ttl_s=TTL_S))
    await stay(s.given)


@case("Lock.acquire_nowait", prepare=a_lock, again=True)
async def lock_nowait(s: Scene) -> None:
    await stay(s.given.acquire_nowait())


async def a_read_write_lock(s: Scene) -> ReadWriteLock:
    return ReadWriteLock(s.store, "table", ttl_s=TTL_S)


@case("ReadWriteLock.read", "ReadWriteLock.write", prepare=a_read_write_lock, again=True)
async def read_write_lock(s: Scene) -> None:
    await stay(s.given.read())
    await stay(s.given.write())


@case("ReadWriteLock.read_nowait", "ReadWriteLock.write_nowait", prepare=a_read_write_lock, again=True)
async def read_write_lock_nowait(s: Scene) -> None:
    await stay(s.given.read_nowait())
    await stay(s.given.write_nowait())


async def a_semaphore(s: Scene) -> Semaphore:
    return Semaphore(s.store, "rooms", 1, ttl_s=TTL_S)


@case("Semaphore.__aenter__", "Semaphore.__aexit__", prepare=a_semaphore, again=True)
async def semaphore(s: Scene) -> None:
    await hold(s, Semaphore(s.other.store, "rooms", 1, ttl_s=TTL_S))
    await stay(s.given)


@case("Semaphore.acquire_nowait", prepare=a_semaphore, again=True)
async def semaphore_nowait(s: Scene) -> None:
    await stay(s.given.acquire_nowait())


async def a_barrier(s: Scene) -> Barrier:
    return Barrier(s.store, "phase", 2, ttl_s=TTL_S)


@case("Barrier.wait", "Barrier.__aenter__", "Barrier.__aexit__", prepare=a_barrier, again=True)
async def barrier_of_two(s: Scene) -> None:
    """The other party is there as long as this one may be waiting for it."""
    own: Barrier = s.given
    other = Barrier(s.other.store, "phase", 2, ttl_s=TTL_S)
    gone = trio.CancelScope()

    async def take_part() -> None:
        with gone:
            await other.wait()
            async with other:
                pass

    s.nursery.start_soon(take_part)
    try:
        await own.wait()
        async with own:
            await trio.lowlevel.checkpoint()
    finally:
        gone.cancel()


# -- elections ---------------------------------------------------------------------------------------------------------


async def an_election(s: Scene) -> Election:
    return Election(s.store, "chair", ttl_s=TTL_S)


@case("Election.campaign", "Election.leader", "Elected.proclaim", prepare=an_election, again=True)
async def campaign(s: Scene) -> None:
    election: Election = s.given
    async with election.campaign("one") as elected:
        await elected.proclaim("two")
        leader = await election.leader()
        assert leader is not None
        assert "two" == leader.value


@case("Elected.resign", prepare=an_election, again=True)
async def resign(s: Scene) -> None:
    async with s.given.campaign() as elected:
        await elected.resign()


@case("Leaders.__anext__", prepare=an_election, again=True)
async def observe_leaders(s: Scene) -> None:
    leaders = s.given.observe()
    assert await anext(leaders) is None
    await hold(s, Election(s.other.store, "chair", ttl_s=TTL_S).campaign("other"))
    while (leader := await anext(leaders)) is not None:
        assert "other" == leader.value


# -- queues ------------------------------------------------------------------------------------------------------------


def queue_of(s: Scene, max_deliveries: int | None = None) -> Queue:
    return Queue(s.store, "mails", visibility_s=TTL_S, max_deliveries=max_deliveries)


def number_taken(seen: Any, before: Any, after: Any) -> bool:
    """A number was given out, and nothing put under it."""
    number = "queues/mails/number"
    return bool({**before[0], number: after[0][number]} == seen[0])


@case("Queue.put", partly=number_taken)
async def queue_put(s: Scene) -> None:
    assert 1 == await queue_of(s).put("item")


@case("Queue.put_many", partly=number_taken)
async def queue_put_many(s: Scene) -> None:
    assert range(1, 4) == await queue_of(s).put_many(["one", "two", "three"])


async def empty(s: Scene) -> None:
    """The same object finds what is there, at once."""
    with trio.fail_after(s.patience_s):
        while s.given.size:
            await stay(s.given.take())


async def one_item(s: Scene) -> Queue:
    queue = queue_of(s)
    await queue.put("item")
    return queue


def delivered_and_back(seen: Any, before: Any, after: Any) -> bool:
    """It was claimed, and is free again: so often was it delivered."""
    deliveries = f"queues/mails/deliveries/{1:020}"
    return bool({**before[0], deliveries: (None, 1)} == seen[0])


@case("Queue.take", prepare=one_item, partly=delivered_and_back, afterwards=empty)
async def queue_take(s: Scene) -> None:
    async with s.given.take() as item:
        assert "item" == item


@case("Queue.take_nowait", prepare=one_item, partly=delivered_and_back, afterwards=empty)
async def queue_take_nowait(s: Scene) -> None:
    await stay(s.given.take_nowait())


@case("Queue.__anext__", prepare=one_item, partly=delivered_and_back, afterwards=empty)
async def queue_next(s: Scene) -> None:
    async for delivery in s.given:
        await stay(delivery)
        break


@case("Queue.receive", "Delivery.acknowledge", prepare=one_item, partly=delivered_and_back, afterwards=empty)
async def queue_receive(s: Scene) -> None:
    async with s.given.receive() as delivery:
        await delivery.acknowledge(Put("done", delivery.item))


@case("Queue.receive_nowait", prepare=one_item, partly=delivered_and_back, afterwards=empty)
async def queue_receive_nowait(s: Scene) -> None:
    await stay(s.given.receive_nowait())


@case("Queue.take")
async def queue_take_of_what_comes(s: Scene) -> None:
    """It waits: a second task of the process does, too, and has what the first one left."""
    queue = queue_of(s)
    second = trio.CancelScope()

    async def take_second() -> None:
        with second:
            await stay(queue.take())

    s.nursery.start_soon(take_second)
    try:
        with trio.move_on_after(0.3):
            await stay(queue.take())
    finally:
        second.cancel()


async def one_dead(s: Scene) -> Queue:
    """An item that nobody could do anything with."""
    queue = queue_of(s, 1)
    await queue.put("item")
    with contextlib.suppress(LookupError):
        async with queue.take():
            raise LookupError
    with contextlib.suppress(trio.WouldBlock):
        async with queue.take_nowait():
            raise AssertionError
    assert {1: "item"} == queue.dead_letters()
    return queue


@case("Queue.revive", prepare=one_dead)
async def queue_revive(s: Scene) -> None:
    assert await s.given.revive(1)


@case("Queue.discard", prepare=one_dead)
async def queue_discard(s: Scene) -> None:
    assert await s.given.discard(1)


# -- counters and services ---------------------------------------------------------------------------------------------


@case("Counter.increment", "Counter.get")
async def counter(s: Scene) -> None:
    counter = Counter(s.store, "orders")
    assert 1 == await counter.increment()
    assert 1 == await counter.get()


async def counted(s: Scene) -> None:
    await Counter(s.store, "orders").increment(7)


@case("Counter.reset", prepare=counted)
async def counter_reset(s: Scene) -> None:
    assert 7 == await Counter(s.store, "orders").reset()


@case("ServiceRegistry.register", "Registration.update", again=True)
async def register(s: Scene) -> None:
    async with ServiceRegistry(s.store, ttl_s=TTL_S).register("payments", "here") as registration:
        await registration.update({"n": 1})


@case("EndpointWatch.__anext__", "Balancer.endpoint", again=True)
async def endpoints(s: Scene) -> None:
    registry = ServiceRegistry(s.store, ttl_s=TTL_S)
    watched = registry.watch("payments")
    balancer: Balancer = registry.balancer("payments")
    assert [] == await anext(watched)
    await hold(s, ServiceRegistry(s.other.store, ttl_s=TTL_S).register("payments", "there"))
    async with balancer.endpoint() as endpoint:
        assert "there" == endpoint.address
    while await anext(watched):
        pass
