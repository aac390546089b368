"""Every public call that awaits, as a case for cancelling.py; and which names there are."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any

import trio
from cancelling import TTL_S, Call, Case, Scene, Tally
from clusters import id_of, open_sessions, peer_of

import replikv
import replikv.recipes
from replikv import ABSENT, Contenders, LeaseExpiredError, Put, Transaction, TypedStore, UnavailableError
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

OTHERWHERE = {
    # A peer's life: test_a_peer_cancelled_at_any_step_of_its_life
    *("Cluster.run", "Cluster.shutdown"),
    # What carries frames between peers; applications do not call it: transport/test_cancelled_channels.py
    *("MemoryTransport.call", "MemoryTransport.open_channel", "TcpTransport.call", "TcpTransport.open_channel"),
    *("Channel.aclose", "Channel.receive", "Channel.send"),
    # replikv.testing.transport_suite: test_a_cancelled_run_leaves_nothing
    *("MemoryTransport.run", "TcpTransport.run"),
    # Protocols, without code of their own.
    *("Transport.call", "Transport.open_channel", "Transport.run", "Receiver.serve_channel", "Receiver.serve_stranger"),
}


def public_names() -> Iterator[str]:
    """``Class.method`` of whatever awaits and may be called by an application: coroutine functions, and what makes a
    block or an iterator whose steps await.
    """
    for module in (replikv, replikv.recipes):
        for cls in classes_of(module):
            for name, function in inspect.getmembers(cls, inspect.isfunction):
                if (not name.startswith("_") or name in SPECIAL) and awaits(function):
                    yield f"{cls.__name__}.{name}"


SPECIAL = ("__aenter__", "__aexit__", "__anext__")


def classes_of(module: ModuleType) -> Iterator[type]:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found):
            yield found


def awaits(function: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(inspect.unwrap(function)):
        return True
    told = str(inspect.signature(function).return_annotation)
    return any(word in told for word in ("AsyncContextManager", "Awaitable", "Coroutine", "AsyncGenerator"))


def case(*covers: str, **more: Any) -> Callable[[Call], Call]:
    """Register a call as the case for these names."""

    def register(call: Call) -> Call:
        CASES.append(Case(call.__name__.strip("_"), covers, call, **more))
        return call

    return register


async def stay(block: AbstractAsyncContextManager[Any]) -> None:
    """Enter a block, be in it for a step, and leave."""
    async with block:
        await trio.lowlevel.checkpoint()


# -- the map -----------------------------------------------------------------------------------------------------------


@case("Store.put")
async def put(s: Scene) -> None:
    await s.store.put("key", 1)


async def some_keys(s: Scene) -> None:
    await s.store.update({"key": 1, "more/1": 1, "more/2": 2})


@case("Store.delete", prepare=some_keys)
async def delete(s: Scene) -> None:
    await s.store.delete("key")


@case("Store.pop", prepare=some_keys)
async def pop(s: Scene) -> None:
    assert 1 == await s.store.pop("key")


@case("Store.setdefault")
async def setdefault(s: Scene) -> None:
    assert 5 == await s.store.setdefault("key", 5)


@case("Store.increment", prepare=some_keys)
async def increment(s: Scene) -> None:
    assert 2 == await s.store.increment("key")


@case("Store.compare_and_set", prepare=some_keys)
async def compare_and_set(s: Scene) -> None:
    assert await s.store.compare_and_set("key", 1, 2)


@case("Store.replace", prepare=some_keys)
async def replace(s: Scene) -> None:
    assert await s.store.replace("key", 2, revision=s.store.entry("key").mod_revision)


@case("Store.update", prepare=some_keys)
async def update(s: Scene) -> None:
    await s.store.update({"key": 2, "more/3": 3})


@case("Store.delete_prefix", prepare=some_keys)
async def delete_prefix(s: Scene) -> None:
    assert 2 == await s.store.delete_prefix("more/")


@case("Store.txn", prepare=some_keys)
async def txn(s: Scene) -> None:
    assert await s.store.txn([replikv.Compare.version("key", "==", 1)], [Put("key", 2), Put("new", 1)])


@case("Store.transact", prepare=some_keys)
async def transact(s: Scene) -> None:
    def double(tx: Transaction) -> None:
        tx.put("key", 2 * tx["key"])
        tx.put("new", 1)

    await s.store.transact(double)


@case("Store.transact", prepare=some_keys)
async def transact_reading(s: Scene) -> None:
    assert 1 == await s.store.transact(lambda tx: tx["key"])


@case("Store.get", prepare=some_keys)
async def get(s: Scene) -> None:
    assert 1 == await s.store.get("key")
    assert 1 == await s.store.get("key", revision=s.store.revision)


@case("Store.barrier")
async def barrier(s: Scene) -> None:
    await s.store.barrier()


@case("Store.compact", prepare=some_keys)
async def compact(s: Scene) -> None:
    await s.store.compact(s.store.revision)


# -- leases ------------------------------------------------------------------------------------------------------------


@case("Store.lease")
async def lease(s: Scene) -> None:
    async with s.store.lease(TTL_S) as lease:
        await s.store.put("leased", 1, lease=lease)


@case("Lease.revoke")
async def lease_revoke(s: Scene) -> None:
    async with s.store.lease(TTL_S) as lease:
        await s.store.put("leased", 1, lease=lease)
        assert await lease.revoke()
    assert "leased" not in s.store


@case("Store.grant_lease")
async def grant_lease(s: Scene) -> None:
    await s.store.grant_lease(TTL_S)


async def granted(s: Scene) -> int:
    """A lease with one key, and another key without."""
    number = await s.store.grant_lease(60.0)
    await s.store.put("leased", 1, lease=number)
    await s.store.put("key", 1)
    return number


async def revoke_granted(s: Scene) -> None:
    await s.store.revoke_lease(s.given)


@case("Store.keep_alive", prepare=granted, tidy=revoke_granted)
async def keep_alive(s: Scene) -> None:
    assert 60.0 == await s.store.keep_alive(s.given)


@case("Store.time_to_live", prepare=granted, tidy=revoke_granted)
async def time_to_live(s: Scene) -> None:
    assert ("leased",) == (await s.store.time_to_live(s.given)).keys


@case("Store.revoke_lease", prepare=granted, tidy=revoke_granted)
async def revoke_lease(s: Scene) -> None:
    assert await s.store.revoke_lease(s.given)


@case("Store.attach", prepare=granted, tidy=revoke_granted)
async def attach(s: Scene) -> None:
    assert await s.store.attach("key", s.given)


@case("Store.detach", prepare=granted, tidy=revoke_granted)
async def detach(s: Scene) -> None:
    assert await s.store.detach("leased")


# -- watches -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Reader:
    """What it was told, over several calls."""

    watch: Any
    block: AbstractAsyncContextManager[Any]
    told: list[Any]


async def open_watch(s: Scene) -> Reader:
    """Three changes wait, and one is to come: both ways to a change are taken."""
    block = s.store.watch("watched/", since=s.store.revision)
    for number in range(3):
        await s.store.put(f"watched/{number}", number)
    return Reader(await block.__aenter__(), block, [])


async def read_the_rest(s: Scene) -> None:
    """A cancelled step takes no change: what was not told is."""
    reader: Reader = s.given
    await s.store.put("watched/3", 3)
    with trio.fail_after(10.0):
        while len(reader.told) < 4:
            reader.told.append((await anext(reader.watch)).value)
    assert [0, 1, 2, 3] == reader.told
    await reader.block.__aexit__(None, None, None)


@case("Watch.__anext__", prepare=open_watch, tidy=read_the_rest)
async def watch_next(s: Scene) -> None:
    reader: Reader = s.given
    for _ in range(3):
        reader.told.append((await anext(reader.watch)).value)
    with trio.move_on_after(0.3):
        reader.told.append((await anext(reader.watch)).value)


@case("Store.watch", prepare=some_keys)
async def watch(s: Scene) -> None:
    async with s.store.watch(snapshot=True) as changes:
        async for change in changes:
            if change.key == "more/2":
                return


@case("Subscription.run")
async def subscribe(s: Scene) -> None:
    told = trio.Event()

    async def tell(change: replikv.Change) -> None:
        await trio.lowlevel.checkpoint()
        told.set()

    subscription = s.store.subscribe(tell, prefix="subscribed/")
    try:
        await s.store.put("subscribed/key", 1)
        await told.wait()
    finally:
        subscription.cancel()


# -- typed maps --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class User:
    name: str


ANN, BOB = User("Ann"), User("Bob")


def users_of(s: Scene) -> TypedStore[User]:
    return s.store.typed("users/", User)


async def ann(s: Scene) -> None:
    await users_of(s).put("ann", ANN)


@case("TypedStore.put", "TypedStore.barrier")
async def typed_put(s: Scene) -> None:
    await users_of(s).put("ann", ANN)
    await users_of(s).barrier()


@case("TypedStore.get", "TypedStore.watch", prepare=ann)
async def typed_reads(s: Scene) -> None:
    assert ANN == await users_of(s).get("ann")
    async with users_of(s).watch(snapshot=True) as changes:
        assert ANN == (await anext(changes)).value


@case("TypedStore.delete", prepare=ann)
async def typed_delete(s: Scene) -> None:
    assert await users_of(s).delete("ann")


@case("TypedStore.delete_prefix", prepare=ann)
async def typed_delete_prefix(s: Scene) -> None:
    assert 1 == await users_of(s).delete_prefix("a")


@case("TypedStore.pop", prepare=ann)
async def typed_pop(s: Scene) -> None:
    assert ANN == await users_of(s).pop("ann")


@case("TypedStore.setdefault")
async def typed_setdefault(s: Scene) -> None:
    assert BOB == await users_of(s).setdefault("bob", BOB)


@case("TypedStore.compare_and_set")
async def typed_compare_and_set(s: Scene) -> None:
    assert await users_of(s).compare_and_set("bob", ABSENT, BOB)


@case("TypedStore.replace")
async def typed_replace(s: Scene) -> None:
    assert await users_of(s).replace("bob", BOB, revision=0)


@case("TypedStore.update", prepare=ann)
async def typed_update(s: Scene) -> None:
    await users_of(s).update({"ann": BOB, "bob": BOB})


# -- the cluster -------------------------------------------------------------------------------------------------------


@case("Cluster.wait_leader")
async def wait_leader(s: Scene) -> None:
    await s.cluster.wait_leader()


@case("Cluster.snapshot", prepare=some_keys)
async def snapshot(s: Scene) -> None:
    await s.cluster.snapshot()


@case(
    "Cluster.backup",
    prepare=some_keys,
    observe=lambda s: [path.name for path in s.directory.iterdir()],
    tidy=lambda s: wait_for_threads(),
)
async def backup(s: Scene) -> None:
    await s.cluster.backup(s.directory / "whole.backup")


async def wait_for_threads() -> None:
    """The mock clock does not wait for them."""
    while trio.to_thread.current_default_thread_limiter().borrowed_tokens:  # noqa: ASYNC110  # nothing to wait on
        await trio.sleep(0.0)


async def no_command_yet(s: Scene) -> None:
    for cluster in s.peers.all:
        s.machine_of(cluster).commands.clear()


@case("Cluster.propose", prepare=no_command_yet, observe=lambda s: s.machine_of(s.cluster).commands[:])
async def propose(s: Scene) -> None:
    assert b"1" == await s.cluster.propose(b"command")


async def foreign_session(s: Scene) -> tuple[int, int]:
    """Of a process that is gone; its first command may still come."""
    leader = await s.peers.leader()
    await open_sessions(leader, 1)
    return max(peer_of(leader).replica.sessions.table), 1


@case("Cluster.outcome", prepare=foreign_session)
async def outcome(s: Scene) -> None:
    assert not await s.cluster.outcome(s.given)


@case("Cluster.leading", again=True)
async def leading(s: Scene) -> None:
    await stay(s.cluster.leading("job", ttl_s=TTL_S))


async def leads_not(s: Scene) -> None:
    """Whoever led when all began, leads."""
    leader = await s.peers.leader()
    former = next(cluster for cluster in s.peers.all if cluster not in (s.cluster, s.other))
    if leader is not former:
        await leader.transfer_leadership(id_of(former))
    await s.peers.leader()


async def leader_agreed(s: Scene) -> None:
    await s.peers.leader()


@case("Cluster.transfer_leadership", prepare=leads_not, tidy=leader_agreed)
async def transfer_leadership(s: Scene) -> None:
    await s.cluster.transfer_leadership(id_of(s.other))


def members_of(s: Scene) -> dict[str, str]:
    return {node_id: member.role for node_id, member in s.cluster.status().members.items()}


async def learning_fourth(s: Scene) -> None:
    """It is named, and does not run."""
    await s.cluster.add_member("d", "memory-d", learner=True)


async def without_fourth(s: Scene) -> None:
    """What was asked for is done, or not, after a moment; then all is as it was."""
    await trio.sleep(0.2)
    leader = await s.peers.leader()
    with trio.fail_after(10.0):
        while "d" in leader.status().members:
            try:
                await leader.remove_member("d", force=True)
            except UnavailableError:  # another change is under way: the one that was cancelled
                await trio.sleep(0.1)
    await s.peers.roles("abc")


@case("Cluster.add_member", tidy=without_fourth)
async def add_member(s: Scene) -> None:
    await s.cluster.add_member("d", "memory-d", learner=True)
    assert "learner" == members_of(s)["d"]


@case("Cluster.__aenter__", "Cluster.__aexit__", tidy=without_fourth)
async def join(s: Scene) -> None:
    via = id_of(s.cluster)
    async with s.peers.make_joining("d", via=via, learner=True, machine=Tally()) as joined:
        assert "learner" == joined.status().members["d"].role


@case("Cluster.remove_member", prepare=learning_fourth, tidy=without_fourth)
async def remove_member(s: Scene) -> None:
    await s.cluster.remove_member("d")
    assert "d" not in members_of(s)


@case("Cluster.promote", prepare=learning_fourth, tidy=without_fourth)
async def promote(s: Scene) -> None:
    await s.cluster.promote("d", force=True)
    assert "voter" == members_of(s)["d"]


@case("Cluster.change_members", prepare=learning_fourth, tidy=without_fourth)
async def change_members(s: Scene) -> None:
    await s.cluster.change_members(promote=["d"], force=True)
    await s.cluster.change_members(remove=["d"], force=True)
    assert "d" not in members_of(s)


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
