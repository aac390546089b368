"""Every call that awaits of the map, its leases and watches, and of the cluster, as cases for cancelling.py."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from cancelling import TTL_S, Case, Scene, Tally, registering, stay
from clusters import id_of, open_sessions, peer_of

import replikv
from replikv import ABSENT, Put, Transaction, TypedStore, UnavailableError

CASES: list[Case] = []
case = registering(CASES)


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
