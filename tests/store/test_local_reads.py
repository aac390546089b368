"""The synchronous reads of the local replica, whole and in scopes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_replicator import LocalReplicator

from replikv.errors import ClusterClosedError, CompactedError, ConfigurationError, EncodingError
from replikv.machine import commands
from replikv.machine.values import encode_value
from replikv.store.store import Store
from replikv.store.watch_hub import WatchHub

FRUIT = {"apple": 1, "apricot": 2, "banana": 3, "cherry": 4}


def filled(contents: Mapping[str, Any]) -> Store:
    """A store of its own with these contents, without a loop."""
    replicator = LocalReplicator()
    store = Store(replicator, WatchHub(replicator))
    for key, value in contents.items():
        replicator.sweep(commands.encode_put(key.encode(), encode_value(value, 1000)))
    return store


def test_reads_of_one_key() -> None:
    """As of a dict: value, KeyError, membership."""
    store = filled(FRUIT)
    assert store["apple"] == 1
    assert "apple" in store
    assert "app" not in store
    with pytest.raises(KeyError, match="app"):
        store["app"]


@pytest.mark.parametrize("key", [None, 5, b"apple", ("apple",), ["apple"], "\ud800", "k" * 100_000], ids=type)
def test_key_that_cannot_be_stored_is_absent(key: Any) -> None:
    """Reads answer as any mapping does: it is not there, in scopes alike."""
    store = filled(FRUIT)
    for view in (store, store.scoped("app"), store.local):
        assert key not in view
        with pytest.raises(KeyError):
            view[key]
    with pytest.raises(KeyError):
        store.entry(key)


def test_iteration_is_in_key_order() -> None:
    """By code points, whatever the order of the puts; backwards too."""
    store = filled({"b": 1, "a": 2, "é": 3, "B": 4, "": 5})
    assert list(store) == ["", "B", "a", "b", "é"]
    assert list(reversed(store)) == ["é", "b", "a", "B", ""]
    assert len(store) == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["apple", "apricot", "banana", "cherry"]),
        ({"prefix": "ap"}, ["apple", "apricot"]),
        ({"prefix": "x"}, []),
        ({"start": "apricot"}, ["apricot", "banana", "cherry"]),
        ({"stop": "banana"}, ["apple", "apricot"]),
        ({"start": "apricot", "stop": "cherry"}, ["apricot", "banana"]),
        ({"start": "c", "stop": "a"}, []),
        ({"prefix": "ap", "start": "apq"}, ["apricot"]),
        ({"prefix": "ap", "start": "a", "stop": "z"}, ["apple", "apricot"]),
        ({"reverse": True}, ["cherry", "banana", "apricot", "apple"]),
        ({"reverse": True, "start": "apricot", "limit": 2}, ["cherry", "banana"]),
        ({"limit": 0}, []),
        ({"limit": 2}, ["apple", "apricot"]),
        ({"limit": 9}, ["apple", "apricot", "banana", "cherry"]),
    ],
)
def test_ranges(arguments: dict[str, Any], expected: list[str]) -> None:
    """The start is included, the stop is not; keys, items and values agree."""
    store = filled(FRUIT)
    assert expected == list(store.keys(**arguments))
    assert [(key, FRUIT[key]) for key in expected] == list(store.items(**arguments))
    assert [FRUIT[key] for key in expected] == list(store.values(**arguments))


@pytest.mark.parametrize("name", ["prefix", "start", "stop"])
@pytest.mark.parametrize("value", [5, b"a"])
def test_bounds_are_str(name: str, value: object) -> None:
    """Anything else is refused at the call, before a step is taken."""
    with pytest.raises(EncodingError, match=name):
        filled(FRUIT).keys(**{name: value})  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("limit", [-1, 1.0, True])
def test_limit_is_a_count(limit: Any) -> None:
    """Refused at the call."""
    with pytest.raises(ConfigurationError, match="limit"):
        filled(FRUIT).keys(limit=limit)


@pytest.mark.parametrize("view", ["keys", "items", "values"])
async def test_iteration_sees_the_revision_it_was_made_at(store: Store, view: str) -> None:
    """Whatever is put, deleted or compacted between its steps, and before its first one."""
    await store.update({f"k{n:03}": n for n in range(300)})
    expected = list(getattr(store, view)())
    early = getattr(store, view)()
    await store.put("k0000", "new")
    seen = []
    for number, item in enumerate(early):
        seen.append(item)
        if number % 50 == 0:
            await store.delete(f"k{number + 1:03}")
            await store.put(f"k{number + 2:03}", "changed")
            await store.put(f"k{number + 2:03}x", "new")
    assert expected == seen


async def test_iteration_goes_on_when_a_snapshot_is_installed(store: Store, replicator: LocalReplicator) -> None:
    """The iterator keeps the state it was made of."""
    await store.update({"a": 1, "b": 2})
    items = store.items()
    assert next(items) == ("a", 1)
    replicator.fall_behind()
    replicator.sweep(commands.encode_delete_prefix(b"", 10))
    replicator.install_snapshot()
    assert list(items) == [("b", 2)]
    assert len(store) == 0


async def test_iterator_outlives_compaction_within_bounds(store: Store, replicator: LocalReplicator) -> None:
    """It pins its revision; one that holds back more than may be pinned is told, and nothing is made up."""
    replicator.replica.keyspace.pinned_bytes_max = 10_000
    for number in range(100):
        await store.put(f"k{number}", "v" * 100)
    kept, broken = store.keys(), store.keys()
    next(kept), next(broken)
    await store.put("k0", "new")
    replicator.compact(store.revision)
    assert len(list(kept)) == 99
    for _ in range(100):
        await store.put("k0", "v" * 1000)
    replicator.compact(store.revision)
    with pytest.raises(CompactedError):
        list(broken)


@pytest.mark.parametrize("use", [lambda keys: None, next], ids=["never begun", "left half-way"])
async def test_dropped_iterator_holds_nothing_back(
    store: Store, replicator: LocalReplicator, use: Callable[[Iterator[str]], object]
) -> None:
    """Its pin goes with it."""
    await store.update(FRUIT)
    keys = store.keys()
    use(keys)
    del keys
    gc.collect()
    await store.put("a", 1)
    replicator.compact(store.revision)
    keyspace = replicator.replica.keyspace
    keyspace.trim(100)
    assert keyspace.physical_floor == store.revision


async def test_closed_cluster_is_not_read(replicator: LocalReplicator, store: Store) -> None:
    """Every read says so."""
    replicator.close()
    reads: list[Callable[[], object]] = [
        lambda: store["a"],
        lambda: "a" in store,
        lambda: len(store),
        lambda: list(store),
        lambda: store.items(),
        lambda: store.entry("a"),
        lambda: store.revision,
        lambda: store.local["a"],
        lambda: store.local.get("a"),
    ]
    for read in reads:
        with pytest.raises(ClusterClosedError):
            read()


# -- local -------------------------------------------------------------------------------------------------------------


def test_local_is_a_mapping() -> None:
    """All of collections.abc.Mapping, equal to the dict of the same contents."""
    local = filled(FRUIT).local
    assert isinstance(local, Mapping)
    assert local == FRUIT
    assert local.get("apple") == 1
    assert local.get("none") is None
    assert local.get("none", 5) == 5
    assert list(local) == list(local.keys()) == list(FRUIT)
    assert list(local.items()) == list(FRUIT.items())
    assert list(local.values()) == list(FRUIT.values())
    assert list(reversed(local)) == list(reversed(FRUIT))
    assert len(local) == len(local.keys()) == len(local.items()) == len(local.values()) == 4
    assert "apple" in local.keys()  # noqa: SIM118  # the view is under test
    assert ("apple", 1) in local.items()
    assert ("apple", 2) not in local.items()
    assert 3 in local.values()
    assert local.keys() & {"apple", "x"} == {"apple"}
    assert {**local} == FRUIT
    assert repr(local) == "<4 keys at revision 4>"


async def test_local_follows_the_replica(store: Store) -> None:
    """It is a view, not a copy; an iteration over it still sees one revision."""
    local = store.local
    await store.update({"a": 1, "b": 2})
    assert local == {"a": 1, "b": 2}
    for views in (local.items(), local.values()):
        seen = []
        for item in views:
            seen.append(item)
            await store.delete("b")
        assert len(seen) == 2
        await store.put("b", 2)


async def test_update_takes_a_local_mapping(store: Store) -> None:
    """A scope is copied into another by one update."""
    await store.scoped("a/").update(FRUIT)
    await store.scoped("b/").update(store.scoped("a/").local)
    assert store.scoped("b/").local == FRUIT


# -- scopes ------------------------------------------------------------------------------------------------------------


@given(
    contents=st.dictionaries(st.text("ab/", max_size=4), st.integers(), max_size=12),
    scopes=st.lists(st.text("ab/", max_size=2), min_size=1, max_size=2),
    prefix=st.text("ab/", max_size=2),
    start=st.none() | st.text("ab/", max_size=2),
    stop=st.none() | st.text("ab/", max_size=2),
    reverse=st.booleans(),
)
def test_scope_is_a_map_of_its_own(
    contents: dict[str, int], scopes: list[str], prefix: str, start: str | None, stop: str | None, reverse: bool
) -> None:
    """Every read of a scope, nested or not, is that of a map which holds only the keys under it, without the scope."""
    store = filled(contents)
    view, scope = store, "".join(scopes)
    for part in scopes:
        view = view.scoped(part)
    model = filled({key.removeprefix(scope): value for key, value in contents.items() if key.startswith(scope)})
    assert model.local == view.local
    assert len(model) == len(view)
    arguments: Any = {"prefix": prefix, "start": start, "stop": stop, "reverse": reverse}
    assert list(model.items(**arguments)) == list(view.items(**arguments))
    for key in model:
        assert model.entry(key).value == view.entry(key).value
        assert key == view.entry(key).key
        assert store.entry(scope + key).mod_revision == view.entry(key).mod_revision


async def test_operations_of_a_scope_touch_nothing_else(store: Store) -> None:
    """All of them, with keys relative to it."""
    await store.update({"a": 1, "scope": 2, "scopf": 3})
    scope = store.scoped("sco").scoped("pe/")
    await scope.put("put", 1)
    await scope.update({"": 0, "updated": 1})
    assert await scope.setdefault("put", 2) == 1
    assert await scope.increment("put") == 2
    assert await scope.compare_and_set("put", 2, 3)
    assert await scope.replace("put", 4, revision=store.entry("scope/put").mod_revision)
    assert await scope.get("put") == 4
    assert {"": 0, "put": 4, "updated": 1} == dict(scope.local)
    assert await scope.pop("put") == 4
    assert await scope.delete("updated")
    assert await scope.delete_prefix("") == 1
    assert {"a": 1, "scope": 2, "scopf": 3} == dict(store.local)
    with pytest.raises(KeyError, match=r"^'put'$"):
        await scope.pop("put")


@pytest.mark.parametrize("prefix", [None, 5, b"a"])
def test_scope_is_a_str(prefix: Any) -> None:
    """Refused when the scope is made."""
    with pytest.raises(EncodingError, match="prefix"):
        filled({}).scoped(prefix)


def test_views_have_names() -> None:
    """In a log one sees which view it was."""
    assert repr(filled({})) == "<Store>"
    assert repr(filled({}).scoped("a/")) == "<Store 'a/'>"
