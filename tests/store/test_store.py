"""The awaited operations of the map."""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import pickle
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv.errors import (
    ClusterClosedError,
    CompactedError,
    ConfigurationError,
    EncodingError,
    ValueTooLargeError,
)
from replikv.machine import commands
from replikv.settings import Settings
from replikv.store.entry import ABSENT, Entry
from replikv.store.store import Store
from replikv.store.txn import Compare, Put


class Colour(enum.StrEnum):
    RED = "red"


# -- one key -----------------------------------------------------------------------------------------------------------


async def test_put_returns_the_revision_and_is_readable_at_once(store: Store) -> None:
    """Each put takes the next revision, and this process reads its own writes without an await."""
    assert await store.put("a", 1) == 1
    assert await store.put("a", 2) == 2
    assert store["a"] == 2
    assert store.revision == 2


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**70),
        1.5,
        "text",
        b"bytes",
        [1, [2]],
        {"k": {"nested": None}},
        {1, "two"},
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
        decimal.Decimal("1.10"),
        uuid.UUID(int=5),
    ],
)
async def test_plain_data_comes_back_as_it_was(store: Store, value: object) -> None:
    """Every kind of plain data survives a put, of the same type."""
    await store.put("key", value)
    assert store["key"] == value
    assert type(value) is type(store["key"])
    assert await store.get("key") == value


async def test_tuple_comes_back_as_list(store: Store) -> None:
    """The one type that changes."""
    await store.put("key", (1, (2,)))
    assert store["key"] == [1, [2]]


async def test_value_is_taken_at_the_call(store: Store, replicator: LocalReplicator, nursery: trio.Nursery) -> None:
    """To change an object while its put waits, or afterwards, changes nothing that is stored."""
    value = [1]
    replicator.held = True
    nursery.start_soon(store.put, "key", value)
    await trio.testing.wait_all_tasks_blocked()
    value.append(2)
    replicator.release()
    await trio.testing.wait_all_tasks_blocked()
    value.append(3)
    assert store["key"] == [1]


async def test_reader_cannot_change_the_replica(store: Store) -> None:
    """Every reader gets a copy of his own."""
    await store.put("key", {"list": [1]})
    store["key"]["list"].append(2)
    (await store.get("key"))["list"].append(2)
    store.entry("key").value["list"].append(2)
    next(store.values())["list"].append(2)
    assert store["key"] == {"list": [1]}


async def test_delete_says_whether_there_was_a_key(store: Store) -> None:
    """A delete of nothing is False and takes no revision."""
    await store.put("key", 1)
    assert await store.delete("key") is True
    assert "key" not in store
    assert await store.delete("key") is False
    assert store.revision == 2


async def test_pop_returns_the_value_and_removes_it(store: Store) -> None:
    """As of a dict: the value, the default, or KeyError; a stored None is a value."""
    await store.put("key", [1])
    await store.put("none", None)
    assert await store.pop("key") == [1]
    assert await store.pop("none", 5) is None
    assert await store.pop("key", "default") == "default"
    assert await store.pop("key", None) is None
    with pytest.raises(KeyError, match="key"):
        await store.pop("key")
    assert len(store) == 0


async def test_setdefault_sets_only_what_is_absent(store: Store) -> None:
    """It returns what the key holds then, as a reader would get it."""
    assert await store.setdefault("key", (1,)) == [1]
    assert await store.setdefault("key", 2) == [1]
    assert store["key"] == [1]
    assert store.revision == 1


async def test_increment_counts_from_zero(store: Store) -> None:
    """An absent key counts as 0; the step may be negative, the sum large."""
    assert await store.increment("n") == 1
    assert await store.increment("n", 2**70) == 2**70 + 1
    assert await store.increment("n", -(2**70)) == 1
    assert store["n"] == 1


@pytest.mark.parametrize("stored", ["1", 1.0, True, None])
async def test_increment_of_what_is_no_int_is_refused(store: Store, stored: object) -> None:
    """Every replica refuses it alike, and the value stays."""
    await store.put("n", stored)
    with pytest.raises(EncodingError, match="not an int"):
        await store.increment("n")
    assert store["n"] == stored
    assert store.revision == 1


@pytest.mark.parametrize("by", [1.0, True, "1", None])
async def test_increment_by_what_is_no_int_is_refused(store: Store, by: Any) -> None:
    """Refused at the call: nothing is proposed."""
    with pytest.raises(EncodingError, match="int"):
        await store.increment("n", by)
    assert store.revision == 0


@pytest.mark.parametrize(
    ("stored", "expected", "done"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1, True, True),
        ([1, 2], (1, 2), True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (1, 2, False),
        (None, None, True),
        (None, ABSENT, False),
        (ABSENT, ABSENT, True),
        (ABSENT, None, False),
        (float("nan"), float("nan"), False),
    ],
)
async def test_compare_and_set_compares_as_python_does(
    store: Store, stored: object, expected: object, done: bool
) -> None:
    """Equality is that of the decoded values; None is a value, ABSENT is none. A refusal takes no revision."""
    if stored is not ABSENT:
        await store.put("key", stored)
    before = store.revision
    assert await store.compare_and_set("key", expected, "new") is done
    assert (store.local.get("key") == "new") is done
    assert store.revision == before + done


async def test_compare_and_set_to_absent_removes_the_key(store: Store) -> None:
    """ABSENT as the new value is a conditional delete."""
    await store.put("key", 1)
    assert await store.compare_and_set("key", 2, ABSENT) is False
    assert await store.compare_and_set("key", 1, ABSENT) is True
    assert "key" not in store


async def test_replace_compares_the_revision_of_the_last_change(store: Store) -> None:
    """A value that was changed and changed back is noticed; revision 0 stands for an absent key."""
    assert await store.replace("key", "a", revision=0) is True
    seen = store.entry("key").mod_revision
    await store.put("key", "b")
    await store.put("key", "a")
    assert await store.replace("key", "c", revision=seen) is False
    assert await store.replace("key", "c", revision=store.entry("key").mod_revision) is True
    assert await store.replace("key", "d", revision=0) is False
    assert store["key"] == "c"


async def test_lease_is_refused_with_a_clear_word(store: Store) -> None:
    """The parameter is there for leases, which this release has not."""
    with pytest.raises(ConfigurationError, match="lease"):
        await store.put("key", 1, lease=object())  # type: ignore[arg-type]  # the mistake under test
    assert store.revision == 0


# -- many keys ---------------------------------------------------------------------------------------------------------


async def test_update_is_one_revision(store: Store) -> None:
    """All keys share the revision that is returned."""
    await store.put("a", 0)
    assert await store.update({"a": 1, "b": (2,), "": None}) == 2
    assert {"": None, "a": 1, "b": [2]} == dict(store.local)
    assert {store.entry(key).mod_revision for key in store} == {2}


async def test_empty_update_returns_the_newest_revision(store: Store) -> None:
    """Nothing is proposed, and still it is a checkpoint."""
    await store.put("a", 0)
    with trio.testing.assert_checkpoints():
        assert await store.update({}) == 1


async def test_update_with_a_bad_item_changes_nothing(store: Store) -> None:
    """One item that cannot be stored keeps all from being proposed."""
    with pytest.raises(EncodingError):
        await store.update({"a": 1, "b": object()})
    assert len(store) == 0


@pytest.mark.parametrize("mapping", [None, 5, [("a", 1)], "ab"])
async def test_update_takes_a_mapping_only(store: Store, mapping: Any) -> None:
    """Pairs are no mapping: the error says to make them a dict."""
    with pytest.raises(EncodingError, match="dict"):
        await store.update(mapping)


async def test_delete_prefix_counts_what_it_removed(store: Store) -> None:
    """Only keys with the prefix go, at one revision."""
    await store.update({"a": 0, "a/1": 1, "a/2": 2, "b": 3})
    assert await store.delete_prefix("a/") == 2
    assert list(store) == ["a", "b"]
    assert store.revision == 2
    assert await store.delete_prefix("zzz") == 0
    assert await store.delete_prefix("") == 2
    assert len(store) == 0


# -- limits ------------------------------------------------------------------------------------------------------------

SMALL = Settings(
    key_bytes_max=8, value_bytes_max=64, command_bytes_max=1200, operations_per_command_max=10, entry_bytes_max=4096
)


@pytest.mark.parametrize("settings", [SMALL])
async def test_delete_prefix_goes_on_beyond_the_limit_of_a_command(store: Store, replicator: LocalReplicator) -> None:
    """More keys than operations_per_command_max take several commands, each a revision."""
    for start in range(0, 25, 5):
        await store.update({f"k{n:02}": n for n in range(start, start + 5)})
    before = store.revision
    assert await store.delete_prefix("k") == 25
    assert store.revision == before + 3
    assert len(store) == 0


@pytest.mark.parametrize("settings", [SMALL])
@pytest.mark.parametrize(
    ("call", "limit"),
    [
        (lambda store: store.put("k" * 9, 1), "key_bytes_max"),
        (lambda store: store.put("é" * 5, 1), "key_bytes_max"),
        (lambda store: store.scoped("scope/").put("abc", 1), "key_bytes_max"),
        (lambda store: store.get("k" * 9), "key_bytes_max"),
        (lambda store: store.delete_prefix("k" * 9), "key_bytes_max"),
        (lambda store: store.put("k", "v" * 64), "value_bytes_max"),
        (lambda store: store.put("k", [0] * 64), "value_bytes_max"),
        (lambda store: store.setdefault("k", "v" * 64), "value_bytes_max"),
        (lambda store: store.replace("k", "v" * 64, revision=0), "value_bytes_max"),
        (lambda store: store.compare_and_set("k", 1, "v" * 64), "value_bytes_max"),
        (lambda store: store.increment("k", 1 << 1000), "value_bytes_max"),
        (lambda store: store.update({"k": "v" * 64}), "value_bytes_max"),
        (lambda store: store.update({f"k{n}": n for n in range(11)}), "operations_per_command_max"),
    ],
)
async def test_limits_are_named_and_nothing_is_proposed(
    store: Store, call: Callable[[Store], Awaitable[object]], limit: str
) -> None:
    """Over a limit: ValueTooLargeError with the setting's name, and the map is as before."""
    with pytest.raises(ValueTooLargeError, match=limit):
        await call(store)
    assert store.revision == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put("here", 1j),
        lambda store: store.update({"there": 1, "here": [{"deep": 1j}]}),
        lambda store: store.setdefault("here", 1j),
        lambda store: store.compare_and_set("here", 1j, 1),
        lambda store: store.compare_and_set("here", 1, 1j),
        lambda store: store.replace("here", 1j, revision=0),
        lambda store: store.txn([], [Put("here", 1j)]),
        lambda store: store.txn([Compare.value("here", "==", 1j)], []),
        lambda store: store.transact(lambda tx: tx.put("here", 1j)),
    ],
)
async def test_what_cannot_be_stored_is_named(store: Store, call: Callable[[Store], Awaitable[object]]) -> None:
    """The error tells which key it was for: an update may have a thousand."""
    with pytest.raises(
        EncodingError, match="a value for 'here' cannot be stored: a value of type complex is not plain"
    ):
        await call(store)
    assert store.revision == 0


@pytest.mark.parametrize(
    "settings", [Settings(key_bytes_max=8, value_bytes_max=2000, command_bytes_max=3500, entry_bytes_max=10_000)]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.update({"a": "v" * 1900, "b": "v" * 1900}),
        lambda store: store.compare_and_set("a", "v" * 1900, "w" * 1900),
    ],
)
async def test_command_of_values_that_fit_may_be_too_large(
    store: Store, call: Callable[[Store], Awaitable[object]]
) -> None:
    """What is allowed one by one may be too much together: command_bytes_max."""
    with pytest.raises(ValueTooLargeError, match="command_bytes_max"):
        await call(store)


@pytest.mark.parametrize("settings", [SMALL])
async def test_limits_can_be_reached(store: Store) -> None:
    """What is exactly at the limits goes through."""
    await store.put("k" * 8, "v" * 62)
    await store.update({f"k{n}": n for n in range(10)})
    assert len(store) == 11


# -- keys --------------------------------------------------------------------------------------------------------------

KEYED: list[Callable[[Store, Any], Awaitable[object]]] = [
    lambda store, key: store.put(key, 1),
    lambda store, key: store.delete(key),
    lambda store, key: store.pop(key, None),
    lambda store, key: store.setdefault(key, 1),
    lambda store, key: store.increment(key),
    lambda store, key: store.compare_and_set(key, 1, 1),
    lambda store, key: store.replace(key, 1, revision=0),
    lambda store, key: store.update({key: 1}),
    lambda store, key: store.get(key),
    lambda store, key: store.delete_prefix(key),
]


@pytest.mark.parametrize("call", KEYED)
@pytest.mark.parametrize("key", [None, 5, b"bytes", ("a",), Colour.RED, "\ud800"], ids=repr)
async def test_keys_are_str_exactly(store: Store, call: Callable[[Store, Any], Awaitable[object]], key: object) -> None:
    """Anything else is refused by every operation, in scopes alike: subclasses and lone surrogates, too."""
    for view in (store, store.scoped("scope/")):
        with pytest.raises(EncodingError):
            await call(view, key)
    assert store.revision == 0


@pytest.mark.parametrize("key", ["", "\0", "ключ", "🔑", "\uffff", "\U0010ffff"])
async def test_any_text_is_a_key(store: Store, key: str) -> None:
    """The empty str, too."""
    await store.put(key, 1)
    assert key in store
    assert list(store) == [key]
    assert await store.get(key) == 1
    assert await store.delete(key)


# -- reads that wait ---------------------------------------------------------------------------------------------------


async def test_get_waits_for_what_was_committed_before(
    store: Store, replicator: LocalReplicator, nursery: trio.Nursery
) -> None:
    """On a peer that is behind, the synchronous read is old, and get is not."""
    await store.put("key", "old")
    replicator.fall_behind()
    replicator.sweep(commands.encode_put(b"key", b"\x63new"))
    got: list[object] = []

    async def get() -> None:
        got.append(await store.get("key"))

    nursery.start_soon(get)
    await trio.testing.wait_all_tasks_blocked()
    assert store["key"] == "old"
    assert got == []
    replicator.install_snapshot()
    await trio.testing.wait_all_tasks_blocked()
    assert got == ["new"]


async def test_get_of_nothing_is_the_default(store: Store) -> None:
    """None unless it is said; a stored None is no default."""
    await store.put("none", None)
    assert await store.get("key") is None
    assert await store.get("key", 5) == 5
    assert await store.get("none", 5) is None


async def test_get_at_a_past_revision(store: Store, replicator: LocalReplicator) -> None:
    """The past is read without asking anybody; also that a key was not there."""
    for value in "abc":
        await store.put("key", value)
    await store.delete("key")
    assert [await store.get("key", revision=revision) for revision in range(5)] == [None, "a", "b", "c", None]
    assert await store.get("key", "default", revision=4) == "default"
    assert replicator.barriers == 0


async def test_get_below_the_history_is_compacted(store: Store, replicator: LocalReplicator) -> None:
    """The error has the oldest revision that can still be read."""
    for value in "abc":
        await store.put("key", value)
    replicator.compact(2)
    with pytest.raises(CompactedError) as caught:
        await store.get("key", revision=1)
    assert caught.value.revision == 2
    assert await store.get("key", revision=2) == "b"


async def test_get_at_a_revision_that_this_replica_has_not_reached(store: Store, replicator: LocalReplicator) -> None:
    """It waits for the replica; a revision that nobody has made is an error, after the cluster was asked."""
    await store.put("key", "a")
    with pytest.raises(ConfigurationError, match="future"):
        await store.get("key", revision=2)
    assert replicator.barriers == 1


@pytest.mark.parametrize("revision", [-1, 1.0, True, "1"])
async def test_revisions_are_natural_numbers(store: Store, revision: Any) -> None:
    """Refused before anything is asked."""
    with pytest.raises(ConfigurationError, match="revision"):
        await store.get("key", revision=revision)
    with pytest.raises(ConfigurationError, match="revision"):
        await store.replace("key", 1, revision=revision)


async def test_barrier_makes_reads_fresh(store: Store, replicator: LocalReplicator, nursery: trio.Nursery) -> None:
    """It returns when this replica has what was committed before."""
    replicator.fall_behind()
    replicator.sweep(commands.encode_put(b"key", b"\x01"))
    seen: list[object] = []

    async def read() -> None:
        await store.barrier()
        seen.append(store["key"])

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    assert "key" not in store
    replicator.install_snapshot()
    await trio.testing.wait_all_tasks_blocked()
    assert seen == [1]


# -- checkpoints, cancellation, the end --------------------------------------------------------------------------------

EVERY_CALL: dict[str, Callable[[Store], Awaitable[object]]] = {
    "put": lambda store: store.put("key", 1),
    "delete": lambda store: store.delete("key"),
    "pop": lambda store: store.pop("key", 1),
    "setdefault": lambda store: store.setdefault("key", 1),
    "increment": lambda store: store.increment("key"),
    "compare_and_set": lambda store: store.compare_and_set("key", ABSENT, 1),
    "replace": lambda store: store.replace("key", 1, revision=0),
    "update": lambda store: store.update({"key": 1}),
    "empty update": lambda store: store.update({}),
    "delete_prefix": lambda store: store.delete_prefix("key"),
    "get": lambda store: store.get("key"),
    "get at a revision": lambda store: store.get("key", revision=0),
    "barrier": lambda store: store.barrier(),
}


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_every_call_is_a_checkpoint(store: Store, call: Callable[[Store], Awaitable[object]]) -> None:
    """A loop of any of them lets other tasks run, and can be cancelled."""
    with trio.testing.assert_checkpoints():
        await call(store)


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_every_call_on_a_closed_cluster_says_so(
    store: Store, replicator: LocalReplicator, call: Callable[[Store], Awaitable[object]]
) -> None:
    """ClusterClosedError, never a hang."""
    replicator.close()
    with pytest.raises(ClusterClosedError):
        await call(store)


async def test_concurrent_increments_all_count(store: Store) -> None:
    """Operations of many tasks each take effect once."""
    async with trio.open_nursery() as tasks:
        for _ in range(50):
            tasks.start_soon(store.increment, "n")
    assert store["n"] == 50


# -- what comes with it ------------------------------------------------------------------------------------------------


def test_absent_is_one_object() -> None:
    """It survives a copy and a pickle, and has a name."""
    assert repr(ABSENT) == "replikv.ABSENT"
    assert copy.deepcopy(ABSENT) is ABSENT
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT


async def test_entry_counts_as_etcd_does(store: Store) -> None:
    """create_revision and version begin anew when a key comes back."""
    await store.put("key", "a")
    await store.put("other", 0)
    await store.put("key", "b")
    assert store.entry("key") == Entry("key", "b", 1, 3, 2, None)
    await store.delete("key")
    with pytest.raises(KeyError):
        store.entry("key")
    await store.put("key", "c")
    assert store.entry("key") == Entry("key", "c", 5, 5, 1, None)


async def test_to_change_nothing_takes_an_open_cluster(store: Store, replicator: LocalReplicator) -> None:
    """An update of no keys asks nobody, and is refused all the same where nobody could be asked."""
    assert 0 == await store.update({})
    replicator.close()
    with pytest.raises(ClusterClosedError):
        await store.update({})
