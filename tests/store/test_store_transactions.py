"""Transactions of a store: what they take, give back and refuse; and functions that are run as if alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv import (
    ABSENT,
    Compare,
    ConfigurationError,
    Delete,
    DeleteRange,
    EncodingError,
    Entry,
    Get,
    GetRange,
    LeaseExpiredError,
    Put,
    QuotaExceededError,
    Settings,
    Store,
    Transaction,
    Txn,
    TxnResult,
    ValueTooLargeError,
)
from replikv.machine.commands import encode_delete, encode_grant, encode_put
from replikv.machine.values import encode_value

NO_KEY: Any = 1

# -- txn ---------------------------------------------------------------------------------------------------------------


async def test_each_operation_has_its_result(store: Store) -> None:
    """In order; and the whole is true if its comparisons held."""
    await store.update({"a": 1, "b/1": 2, "b/2": 3})
    result = await store.txn(
        [Compare.value("a", "==", 1), Compare.version(None, "==", 1, prefix="b/")],
        then=[
            Put("c", {"x": (1, 2)}),
            Get("c"),
            Get("none"),
            Delete("a"),
            Delete("a"),
            GetRange("b/", limit=1),
            DeleteRange("b/"),
            GetRange("b/"),
            Txn([Compare.value("c", "==", ABSENT)], [Get("a")], [Get("b")]),
        ],
    )
    assert result
    assert 2 == result.revision
    assert (
        2,
        Entry("c", {"x": [1, 2]}, 2, 2, 1, None),
        None,
        True,
        False,
        [Entry("b/1", 2, 1, 1, 1, None)],
        2,
        [],
        TxnResult(True, 2, (None,)),
    ) == result.results
    assert {"c": {"x": [1, 2]}} == dict(store.items())


async def test_otherwise_is_done_when_a_comparison_does_not_hold(store: Store) -> None:
    """The lock of somebody else: who holds it is told in the same round trip."""
    await store.put("lock", "somebody")
    for _ in range(2):
        result = await store.txn([Compare.version("lock", "==", 0)], [Put("lock", "me")], [Get("lock")])
        assert not result
        assert (1, ["somebody"]) == (result.revision, [entry.value for entry in result.results])


async def test_a_scope_is_kept_to(store: Store) -> None:
    """Keys, ranges, results: all are relative to it, and nothing outside is seen."""
    await store.update({"a/x": 1, "b/x": 2, "c/x": 3})
    scoped = store.scoped("b/")
    result = await scoped.txn(
        [
            Compare.value("x", "==", 2),
            Compare.value(None, "==", 2, start=""),
            Compare.value(None, "==", ABSENT, start="y"),
        ],
        [Put("y", 4), GetRange(), Get("x"), DeleteRange(stop="y"), Txn([], [GetRange(start="a", stop="z")])],
    )
    assert result
    x, y = Entry("x", 2, 1, 1, 1, None), Entry("y", 4, 2, 2, 1, None)
    assert (2, [x, y], x, 1, TxnResult(True, 2, ([y],))) == result.results
    assert {"a/x": 1, "b/y": 4, "c/x": 3} == dict(store.items())


async def test_leases_in_transactions(store: Store) -> None:
    """Keys are put with them and compared by them, as leases or by id; one that is gone is refused."""
    async with store.lease() as held:
        puts = [Put("a", 1, lease=held), Put("b", 2, lease=held.id)]
        assert await store.txn([Compare.lease("a", "==", None)], puts)
        assert held.id == store.entry("a").lease
        assert await store.txn([Compare.lease("a", "==", held), Compare.lease(None, "==", held.id, prefix="")], [])
        assert not await store.txn([Compare.lease("a", "!=", held.id)], [])
        with pytest.raises(LeaseExpiredError, match="there is no lease 7"):
            await store.txn([], [Put("c", 1), Put("d", 1, lease=7)])
        assert "c" not in store
    assert not await store.txn([Compare.lease("a", "==", held)], [])
    with pytest.raises(LeaseExpiredError, match="its block has been left"):
        await store.txn([], [Put("a", 1, lease=held)])
    for lease in (0, -1, True, "x", 2**64):
        with pytest.raises(ConfigurationError, match=r"a lease is what .*store\.lease\(\).* or grant_lease\(\) gave"):
            await store.txn([], [Put("c", 1, lease=lease)])  # type: ignore[arg-type]  # that is the mistake


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Compare.version("k", "=", 1), "one of ==, !=, <, >"),  # type: ignore[arg-type]
        (lambda: Compare.version("k", "==", 1, prefix="k"), "either one key"),
        (lambda: Compare.version(None, "==", 1), "either one key"),
        (lambda: Compare.version("k", "==", -1), "an int of at least 0"),
        (lambda: Compare.mod_revision("k", "==", 1.0), "an int of at least 0"),  # type: ignore[arg-type]
        (lambda: Compare.mod_revision("k", "==", 2**64), "below 2"),
        (lambda: Compare.value("k", "<", ABSENT), "less or greater than ABSENT"),
    ],
)
def test_comparisons_that_make_no_sense(make: Callable[[], Compare], words: str) -> None:
    """Are refused where they are made."""
    with pytest.raises(ConfigurationError, match=words):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((Compare.version("k", "==", 0), []), ConfigurationError, "compares takes a list of comparisons"),
        (([], Put("k", 1)), ConfigurationError, "then takes a list of operations"),
        (([], [], ["put"]), ConfigurationError, "otherwise takes a list of operations .* has a str in it"),
        (([Put("k", 1)], []), ConfigurationError, "compares takes a list of comparisons .* has a Put in it"),
        (([], [Put("k", 1), Txn([], [], [Delete("k")])]), ConfigurationError, "the key 'k' twice"),
        (([], [GetRange(limit=-1)]), ConfigurationError, "limit must be an int"),
        (([], [Put(NO_KEY, 1)]), EncodingError, "keys are str"),
        (([], [Get("\ud800")]), EncodingError, "lone surrogate"),
        (([], [Put("k", object())]), EncodingError, "not plain data"),
        (([], [Put("k", b"." * 2000)]), ValueTooLargeError, "value_bytes_max"),
        (([], [Get("k")] * 9), ValueTooLargeError, "more than 8 comparisons and operations"),
        (([], [Put(f"{n}", b"." * 900) for n in range(8)]), ValueTooLargeError, "command_bytes_max"),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [Settings(value_bytes_max=1000, key_bytes_max=100, command_bytes_max=4000, operations_per_command_max=8)],
)
async def test_transactions_that_make_no_sense(
    store: Store, arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    """Are refused where they are asked for; nothing is proposed."""
    with pytest.raises(error, match=words):
        await store.txn(*arguments)
    assert 0 == store.revision


async def test_nesting_is_limited(store: Store) -> None:
    """At the caller: a list that contains itself has an end."""
    txn = Txn([], [Get("a")])
    for _ in range(15):
        txn = Txn([], [txn])
    with pytest.raises(ValueTooLargeError, match="more than 16"):
        await store.txn([], [txn])
    await store.txn(txn.compares, txn.then)


async def test_what_turns_out_too_large_is_refused(store: Store) -> None:
    """By every replica: nobody saw before how many keys the range has."""
    for number in range(2):
        await store.update({f"k{number}/{each}": each for each in range(1000)})
    with pytest.raises(QuotaExceededError, match="more than 1024"):
        await store.txn([], [GetRange("k"), Put("a", 1)])
    assert 2 == store.revision
    assert [100] == [len(each) for each in (await store.txn([], [GetRange("k", limit=100)])).results]


# -- transact ----------------------------------------------------------------------------------------------------------


def add(tx: Transaction, key: str, number: int = 1) -> int:
    total: int = tx.get(key, 0) + number
    tx.put(key, total)
    return total


async def test_a_function_is_run_as_a_transaction(store: Store) -> None:
    """With its arguments; all it writes is of one revision, and what it returns is returned."""

    def swap(tx: Transaction, left: str, right: str) -> tuple[Any, Any]:
        pair = tx[left], tx[right]
        tx.put(left, pair[1])
        tx.put(right, pair[0])
        assert (pair[1], pair[0]) == (tx[left], tx[right])
        return pair

    await store.update({"a": 1, "b": [2]})
    assert (1, [2]) == await store.transact(swap, "a", "b")
    assert (2, {"a": [2], "b": 1}) == (store.revision, dict(store.items()))
    assert 5 == await store.transact(add, "n", 5)


async def test_it_sees_one_revision_and_its_own_writes(store: Store) -> None:
    """In every kind of read; what it wrote later does not show in an iterator."""
    await store.scoped("s/").update({"a": 1, "b": 2, "c": 3})
    await store.update({"r": 0, "t": 0})

    def look(tx: Transaction) -> None:
        assert 2 == tx.revision
        assert Entry("a", 1, 1, 1, 1, None) == tx.entry("a")
        before = tx.items()
        assert tx.delete("a")
        assert not tx.delete("a")
        tx.put("bb", [4])
        tx.put("c", 5)
        assert [("a", 1), ("b", 2), ("c", 3)] == list(before)
        assert ["b", "bb", "c"] == list(tx) == list(tx.keys())
        assert [5, [4], 2] == list(tx.values(reverse=True))
        assert [("bb", [4])] == list(tx.items("b", start="ba"))
        assert ["b", "bb"] == list(tx.keys(limit=2))
        assert ["c"] == list(tx.keys(limit=1, reverse=True))
        assert [] == list(tx.keys(limit=0))
        assert [False, True, True, False] == [key in tx for key in ("a", "bb", "b", 7)]
        assert [None, "x", 5] == [tx.get("a"), tx.get("none", "x"), tx["c"]]
        value = tx["bb"]
        value.append("changes nobody's")
        for read in (lambda: tx["a"], lambda: tx.entry("none"), lambda: tx[7]):  # type: ignore[index]
            with pytest.raises(KeyError):
                read()
        with pytest.raises(ConfigurationError, match="has no revision yet"):
            tx.entry("c")

    await store.scoped("s/").transact(look)
    assert {"r": 0, "s/b": 2, "s/bb": [4], "s/c": 5, "t": 0} == dict(store.items())
    assert 3 == store.revision


async def test_it_is_run_again_when_what_it_read_has_changed(store: Store, replicator: LocalReplicator) -> None:
    """On the state that has the change: no update is lost."""
    replicator.held = True
    runs: list[int] = []

    def observed(tx: Transaction) -> int:
        runs.append(tx.get("n", 0))
        return add(tx, "n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.increment, "n", 10)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(store.transact, observed)
        await trio.testing.wait_all_tasks_blocked()
        replicator.release()
    assert [0, 10] == runs
    assert 11 == store["n"]


@pytest.mark.parametrize(
    ("read", "write", "again"),
    [
        (lambda tx: tx.get("none"), ("none", 1), True),
        (lambda tx: "none" in tx, ("none", 1), True),
        (lambda tx: tx.get("a"), ("a", 1), True),
        (lambda tx: tx.get("a"), ("a", ABSENT), True),
        (lambda tx: tx.get("a"), ("b", 7), False),
        (lambda tx: tx.keys(), ("none", 1), True),
        (lambda tx: tx.keys("b"), ("b", ABSENT), True),
        (lambda tx: tx.keys("b"), ("a", 7), False),
        (lambda tx: tx.keys(start="b", stop="c"), ("c", 7), False),
        (lambda tx: tx.keys(limit=2), ("c", 7), False),
        (lambda tx: tx.keys(limit=2), ("aa", 7), True),
        (lambda tx: tx.keys(limit=2), ("b", 7), True),
        (lambda tx: tx.keys(limit=2, reverse=True), ("a", 7), False),
        (lambda tx: tx.keys(limit=2, reverse=True), ("b", 7), True),
        (lambda tx: tx.keys(limit=4), ("z", 7), True),
        (lambda tx: tx.keys(limit=0), ("a", 7), False),
        (lambda tx: tx.put("a", 1), ("a", 7), False),
        (lambda tx: tx.delete("a"), ("a", 7), True),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
async def test_what_is_read_is_what_conflicts(
    store: Store,
    replicator: LocalReplicator,
    read: Callable[[Transaction], Any],
    write: tuple[str, Any],
    again: bool,
    writes: bool,
) -> None:
    """Keys that are not there and ranges included; up to where a limit let it see, and no further."""
    await store.update({"a": 1, "b": 2, "c": 3})
    replicator.fall_behind()
    replicator.sweep(*(_encode(key, value) for key, value in [write]))
    runs: list[int] = []

    def observed(tx: Transaction) -> None:
        runs.append(tx.revision)
        read(tx)
        if writes:
            tx.put("mine", 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.transact, observed)
        await trio.testing.wait_all_tasks_blocked()
        replicator.install_snapshot()
        await trio.testing.wait_all_tasks_blocked()
        if nursery.child_tasks:  # it goes on on a replica that is up to date
            replicator.install_snapshot()
    assert ([1, 2] if again else [1]) == runs


def _encode(key: str, value: Any) -> bytes:
    return encode_delete(key.encode()) if value is ABSENT else encode_put(key.encode(), encode_value(value, 100))


async def test_an_exception_passes_and_nothing_is_written(store: Store) -> None:
    """Whatever was put before."""

    def fail(tx: Transaction) -> None:
        tx.put("a", 1)
        raise ZeroDivisionError(tx.get("b"))

    with pytest.raises(ZeroDivisionError, match="None"):
        await store.transact(fail)
    assert 0 == store.revision


async def test_an_exception_does_not_come_of_the_past(store: Store, replicator: LocalReplicator) -> None:
    """What has been read is confirmed before anybody is told that it will not do."""
    await store.put("balance", 0)
    replicator.fall_behind()
    replicator.sweep(_encode("balance", 100))

    def withdraw(tx: Transaction) -> int:
        if tx["balance"] < 50:
            raise ValueError("not enough")
        left: int = tx["balance"]
        return left

    found: list[int] = []

    async def main() -> None:
        found.append(await store.transact(withdraw))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(main)
        await trio.testing.wait_all_tasks_blocked()
        replicator.install_snapshot()
    assert [100] == found


async def test_a_read_only_function_proposes_nothing(store: Store, replicator: LocalReplicator) -> None:
    """One barrier is all that it costs."""
    await store.update({"a": 1, "b": 2})
    position = replicator.replica.position
    assert 3 == await store.transact(lambda tx: sum(tx.values()))
    assert (position, 1) == (replicator.replica.position, replicator.barriers)


async def test_only_plain_functions_are_run(store: Store) -> None:
    """A coroutine function could wait for ever in the middle, and is refused before it is run."""

    async def wait(tx: Transaction) -> None:
        raise AssertionError("never run")

    class Waiter:
        async def __call__(self, tx: Transaction) -> None:
            raise AssertionError("never run")

    functions: list[Any] = [wait, functools.partial(wait), Waiter(), lambda tx: wait(tx)]
    for function in functions:
        with pytest.raises(ConfigurationError, match="transact takes a plain function"):
            await store.transact(function)
    with pytest.raises(ConfigurationError, match="plain function"):
        await store.transact("fn")  # type: ignore[arg-type]  # that is the mistake


async def test_a_transaction_ends_with_its_function(store: Store) -> None:
    """Whoever keeps it gets an error, not what was once so."""
    kept = await store.transact(lambda tx: tx)
    calls: list[Callable[[], Any]] = [
        lambda: kept.get("a"),
        lambda: kept["a"],
        lambda: "a" in kept,
        lambda: kept.keys(),
        lambda: kept.items(),
        lambda: kept.entry("a"),
        lambda: kept.put("a", 1),
        lambda: kept.delete("a"),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="has ended"):
            call()


@pytest.mark.parametrize(
    "settings",
    [Settings(value_bytes_max=1000, key_bytes_max=100, command_bytes_max=4000, operations_per_command_max=8)],
)
async def test_mistakes_show_where_they_are_made(store: Store) -> None:
    """What cannot be stored at the put, too many reads at the read; too many bytes when the function is done."""

    def put(tx: Transaction, key: Any, value: Any) -> None:
        with pytest.raises(EncodingError):
            tx.put(key, value)
        with pytest.raises(ConfigurationError, match="a lease is what"):
            tx.put("k", 1, lease="x")  # type: ignore[arg-type]  # that is the mistake

    for key, value in ((1, 1), ("k", object()), ("k", b"." * 2000), ("k" * 200, 1), ("\ud800", 1)):
        await store.transact(put, key, value)

    def read(tx: Transaction) -> None:
        for number in range(6):
            tx.get(f"{number}")
        list(tx.keys("k"))
        tx.put("k", 1)
        tx.get("0")
        with pytest.raises(ValueTooLargeError, match="more than 8 keys"):
            tx.get("7")

    await store.transact(read)

    def write(tx: Transaction) -> None:
        for number in range(6):
            tx.put(f"{number}", b"." * 900)

    with pytest.raises(ValueTooLargeError, match="command_bytes_max"):
        await store.transact(write)
    assert {"k": 1} == dict(store.items())


async def test_leases_of_functions(store: Store, replicator: LocalReplicator) -> None:
    """Put with one that is there, or not at all."""
    replicator.sweep(encode_grant(10_000))
    await store.transact(lambda tx: tx.put("a", 1, lease=1))
    assert 1 == store.entry("a").lease
    assert 1 == await store.transact(lambda tx: tx.entry("a").lease)
    with pytest.raises(LeaseExpiredError):
        await store.transact(lambda tx: tx.put("b", 1, lease=9))


async def test_a_range_of_no_keys_at_all(store: Store) -> None:
    """A limit of 0 is one, and not none."""
    await store.update({"a": 1, "b": 2})
    done = await store.txn([], [GetRange(limit=0), GetRange(limit=1), GetRange()])
    assert [[], ["a"], ["a", "b"]] == [[entry.key for entry in entries] for entries in done.results]
