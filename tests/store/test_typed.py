"""The map of one class: the interface of the store, in objects; and what it is to a type checker."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, assert_type

import pytest
import structlog.testing
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv import ABSENT, ConfigurationError, EncodingError, SchemaError, Store, TypedChange, TypedEntry, TypedStore
from replikv.store.schema import VERSION_ENTRY

settle = trio.testing.wait_all_tasks_blocked


@dataclasses.dataclass
class User:
    name: str
    age: int = 0


ANN, BOB = User("Ann", 30), User("Bob", 40)


@pytest.fixture
def users(store: Store) -> TypedStore[User]:
    return store.typed("users/", User)


async def test_operations_take_and_give_objects(store: Store, users: TypedStore[User]) -> None:
    """Each of them, with the semantics of the store's."""
    assert 1 == await users.put("ann", ANN)
    assert {VERSION_ENTRY: 1, "name": "Ann", "age": 30} == store["users/ann"]
    assert ANN == users["ann"] == await users.get("ann")
    assert None is await users.get("bob")
    assert BOB == await users.get("bob", BOB)
    assert BOB == await users.setdefault("bob", BOB)
    assert BOB == await users.setdefault("bob", ANN)
    assert await users.replace("bob", ANN, revision=2)
    assert not await users.replace("bob", ANN, revision=2)
    assert BOB == await users.get("bob", revision=2)
    assert 4 == await users.update({"bob": BOB, "cyd": ANN})
    assert ANN == await users.pop("cyd")
    assert None is await users.pop("cyd", None)
    with pytest.raises(KeyError, match="'cyd'"):
        await users.pop("cyd")
    with pytest.raises(KeyError):
        users["cyd"]
    assert await users.delete("bob")
    assert not await users.delete("bob")
    await users.barrier()
    assert 1 == await users.delete_prefix("")
    assert 0 == len(users)


async def test_reads_of_the_replica(store: Store, users: TypedStore[User]) -> None:
    """In key order, of the keys under the prefix, relative to it."""
    await store.put("other", 1)
    await users.update({"ann": ANN, "bob": BOB})
    assert ["ann", "bob"] == list(users) == list(users.keys())
    assert ["bob", "ann"] == list(reversed(users))
    assert [("ann", ANN), ("bob", BOB)] == list(users.items())
    assert [BOB] == list(users.values(reverse=True, limit=1))
    assert [ANN] == list(users.values(stop="b"))
    assert (True, False, 2) == ("ann" in users, "other" in users, len(users))
    assert TypedEntry("ann", ANN, 2, 2, 1, None) == users.entry("ann")
    assert {"ann": ANN, "bob": BOB} == dict(users.local)
    assert ANN == users.local.get("ann")
    assert store.revision == users.revision
    assert ["nn"] == list(users.scoped("a"))
    assert ANN == users.scoped("a")["nn"]
    assert "<TypedStore 'users/' of User>" == repr(users)
    assert {VERSION_ENTRY: 1, "name": "Ann", "age": 30} == users.untyped["ann"]


async def test_nothing_is_proposed_that_does_not_fit(store: Store, users: TypedStore[User]) -> None:
    """Of an update, nothing at all."""
    wrong = User(5)  # type: ignore[arg-type]  # the point
    for attempt in (
        users.put("k", wrong),
        users.setdefault("k", wrong),
        users.replace("k", wrong, revision=0),
        users.compare_and_set("k", ABSENT, wrong),
        users.compare_and_set("k", wrong, ANN),
        users.update({"a": ANN, "k": wrong}),
    ):
        with pytest.raises(SchemaError, match=r"'k' cannot be put: User\.name: expected str, found int 5"):
            await attempt
    with pytest.raises(EncodingError, match="update takes a mapping"):
        await users.update([])  # type: ignore[arg-type]  # the point
    assert 0 == store.revision


async def test_what_is_stored_and_does_not_fit(store: Store, users: TypedStore[User]) -> None:
    """Whoever reads the value is told. The key can be seen, and mended."""
    await store.put("users/bad", {VERSION_ENTRY: 1, "name": 5})
    await users.put("good", ANN)
    bad = "what is stored under 'bad' is no User"
    with pytest.raises(SchemaError, match=bad):
        users["bad"]
    with pytest.raises(SchemaError, match=bad):
        await users.get("bad")
    with pytest.raises(SchemaError, match=bad):
        users.entry("bad")
    with pytest.raises(SchemaError, match=bad):
        await users.setdefault("bad", ANN)
    with pytest.raises(SchemaError, match=bad):
        list(users.items())
    assert ["bad", "good"] == list(users)
    assert {VERSION_ENTRY: 1, "name": 5} == users.untyped["bad"]
    assert not await users.compare_and_set("bad", ANN, BOB)
    with pytest.raises(SchemaError, match=bad) as caught:
        await users.pop("bad")
    assert {VERSION_ENTRY: 1, "name": 5} == caught.value.value
    assert [ANN] == list(users.values())


async def test_compare_and_set_of_what_was_read(store: Store) -> None:
    """A loop of reading and setting ends, though what is stored is not what would be put now."""
    users = store.typed("", User, version=2, upgrade={1: lambda fields: fields | {"age": 7}}, ignore_unknown=True)
    await store.update({"old": {VERSION_ENTRY: 1, "name": "Ann"}, "more": {VERSION_ENTRY: 2, "name": "Bob", "hat": 1}})
    assert await users.compare_and_set("old", users["old"], User("Ann", 8))
    assert not await users.compare_and_set("old", User("Ann", 7), ANN)
    assert await users.compare_and_set("more", User("Bob"), BOB)
    assert {VERSION_ENTRY: 2, "name": "Bob", "age": 40} == store["more"]
    assert await users.compare_and_set("new", ABSENT, ANN)
    assert not await users.compare_and_set("new", ABSENT, BOB)
    assert await users.compare_and_set("new", User("Ann", 30), ABSENT)
    assert "new" not in store


async def test_a_watch_gives_typed_changes(store: Store, users: TypedStore[User]) -> None:
    """A value that does not fit is raised in its place, and the watch goes on behind it."""
    await users.put("ann", ANN)
    async with users.watch(snapshot=True) as changes:
        assert TypedChange("ann", ANN, None, 1, "put") == await anext(changes)
        await users.put("ann", BOB)
        await store.put("users/ann", "bad")
        await users.put("ann", ANN)
        await users.delete("ann")
        assert TypedChange("ann", BOB, ANN, 2, "put") == await anext(changes)
        with pytest.raises(SchemaError, match="expected a dict of its fields, found str 'bad'"):
            await anext(changes)
        assert TypedChange("ann", ANN, None, 4, "put") == await anext(changes)
        async for change in changes:
            assert TypedChange("ann", None, ANN, 5, "delete") == change
            break
    async with users.watch("b", since=0, buffer=1) as changes:
        await users.put("bob", BOB)
        assert "bob" == (await anext(changes)).key


async def test_a_subscription_gives_typed_changes(store: Store, users: TypedStore[User]) -> None:
    """And ``on_error`` what does not fit; it goes on. The callback may be async."""
    told: list[TypedChange[User]] = []
    errors: list[Exception] = []

    async def callback(change: TypedChange[User]) -> None:
        await trio.lowlevel.checkpoint()
        told.append(change)

    with pytest.raises(ConfigurationError, match="callback must be callable"):
        users.subscribe(5)  # type: ignore[arg-type]  # the point
    with structlog.testing.capture_logs():
        subscription = users.subscribe(callback, on_error=errors.append)
        await users.put("ann", ANN)
        await store.put("users/bad", 5)
        await users.put("bob", BOB)
        await settle()
    assert [ANN, BOB] == [change.value for change in told]
    assert ["bad"] == [error.key for error in errors if isinstance(error, SchemaError)]
    subscription.cancel()


OPTIONS: list[dict[str, Any]] = [
    *({"prefix": "b"}, {"key": "b"}, {"start": "b"}, {"stop": "b"}, {"kinds": {"put"}}, {"previous": False}),
    *({"progress": True}, {"coalesce": True}, {"since": 1}, {"buffer": 7}),
]


@pytest.mark.parametrize("options", [*OPTIONS, {"snapshot": True}], ids=lambda options: next(iter(options)))
async def test_a_watch_takes_the_options_of_the_store(
    store: Store, users: TypedStore[User], options: dict[str, Any]
) -> None:
    """Each of them arrives: a watch of either kind is the same one."""
    await store.update({"users/a": 1, "users/b": 2})
    await store.put("users/c", 3)
    async with users.untyped.watch(**options) as plain, users.watch(**options) as typed:
        for changes in (plain, typed._watch):
            assert plain._options == changes._options
            assert plain.position == changes.position
            assert ("snapshot" in options) == (changes._state is not None)
    if "snapshot" not in options:
        first, second = users.untyped.subscribe(print, **options), users.subscribe(print, **options)
        assert first._watch._options == second._watch._options
        assert first._watch.position == second._watch.position
        first.cancel()
        second.cancel()


def test_there_are_no_other_options() -> None:
    """What a watch or a subscription takes is tried above, or below if it is a callback."""
    names = {name for options in OPTIONS for name in options}
    for typed, plain, others in (
        (TypedStore.watch, Store.watch, {"snapshot"}),
        (TypedStore.subscribe, Store.subscribe, {"callback", "on_error"}),
    ):
        parameters = inspect.signature(typed).parameters
        assert {"self"} | names | others == set(parameters)
        assert [(one.name, one.default, one.kind) for one in inspect.signature(plain).parameters.values()] == [
            (one.name, one.default, one.kind) for one in parameters.values()
        ]


@pytest.mark.parametrize(
    "options", [{"prefix": "b"}, {"start": "b"}, {"stop": "b"}, {"reverse": True}, {"limit": 2}, {}]
)
async def test_reads_take_the_options_of_the_store(users: TypedStore[User], options: dict[str, Any]) -> None:
    """Keys, items and values alike."""
    for number, key in enumerate(("a", "b", "ba", "c")):
        await users.put(key, User(key, number))
    expected = [key for key, _ in users.untyped.items(**options)]
    assert expected == list(users.keys(**options)) == [user.name for user in users.values(**options)]
    assert expected == [key for key, _ in users.items(**options)]


async def test_objects_are_the_readers_own(users: TypedStore[User]) -> None:
    """To change what was read or put changes nothing that is stored."""
    ann = User("Ann")
    await users.put("ann", ann)
    ann.age = 99
    users["ann"].age = 98
    assert 0 == users["ann"].age


async def test_two_versions_beside_each_other(store: Store, replicator: LocalReplicator) -> None:
    """During a rolling upgrade: the new process reads both, the old one is told why it cannot."""

    @dataclasses.dataclass
    class Person:
        first: str

    old = store.typed("users/", User)
    new = store.typed("users/", Person, version=2, upgrade={1: lambda fields: {"first": fields["name"]}})
    await old.put("ann", ANN)
    assert Person("Ann") == new["ann"]
    await new.put("ann", new["ann"])
    with pytest.raises(SchemaError, match="it is of schema version 2, and this process knows 1"):
        old["ann"]


if TYPE_CHECKING:

    async def types(store: Store, users: TypedStore[User]) -> None:
        """What mypy has to find out; an ignore that is not needed is an error, too."""
        assert_type(store.typed("users/", User), TypedStore[User])
        assert_type(users["ann"], User)
        assert_type(await users.get("ann"), User | None)
        assert_type(await users.get("ann", 5), User | int)
        assert_type(await users.pop("ann"), User)
        assert_type(await users.pop("ann", None), User | None)
        assert_type(await users.setdefault("ann", ANN), User)
        assert_type(users.entry("ann").value, User)
        assert_type([value for _, value in users.items()], list[User])
        async with users.watch() as changes:
            async for change in changes:
                assert_type(change.value, User | None)
        await users.put("ann", {"name": "Ann"})  # type: ignore[arg-type]
        await users.update({"ann": 5})  # type: ignore[dict-item]
        await users.compare_and_set("ann", ABSENT, "Ann")  # type: ignore[arg-type]
        users.subscribe(takes_int)  # type: ignore[arg-type]

    def takes_int(number: int) -> Any: ...


async def test_whatever_is_set_has_its_lease(users: TypedStore[User]) -> None:
    """Each operation that sets a key gives it the lease that was asked for, or none."""
    lease = await users.untyped.grant_lease(10)
    for number in (lease, None):
        await users.put("put", ANN, lease=number)
        await users.setdefault(f"default {number}", ANN, lease=number)
        assert await users.compare_and_set("compared", users.local.get("compared", ABSENT), ANN, lease=number)
        assert await users.replace("put", BOB, revision=users.entry("put").mod_revision, lease=number)
        await users.update({"updated": ANN}, lease=number)
        keys = ("put", f"default {number}", "compared", "updated")
        assert {number} == {users.entry(key).lease for key in keys}
    with pytest.raises(ConfigurationError, match="choose one"):
        users.watch(since=1, snapshot=True)


async def test_leases_and_filters_are_those_of_the_store(store: Store, users: TypedStore[User]) -> None:
    """Whatever is set can be set with a lease, and a watch may ask for a key, a range, kinds and marks."""
    told: list[str] = []
    async with (
        users.watch(key="ann", kinds={"put"}) as changes,
        users.watch(start="b", stop="c", previous=False, progress=True, coalesce=True) as ranged,
    ):
        assert "progress" == (await anext(ranged)).kind
        subscription = users.subscribe(lambda change: told.append(change.key), kinds={"expire"})
        async with store.lease() as lease:
            await users.put("ann", ANN, lease=lease)
            await users.setdefault("bob", BOB, lease=lease)
            assert await users.compare_and_set("bob", BOB, ANN, lease=lease)
            assert await users.replace("bob", BOB, revision=store.revision, lease=lease)
            await users.update({"cyd": ANN, "ann": BOB}, lease=lease)
            assert {lease.id} == {users.entry(key).lease for key in users}
            assert ANN == (await anext(changes)).value
            assert BOB == (await anext(changes)).value
            newest = await anext(ranged)
            assert ("bob", BOB, None, True) == (newest.key, newest.value, newest.previous, newest.created)
        await settle()
        assert ["ann", "bob", "cyd"] == told
        subscription.cancel()
    assert 0 == len(users)
