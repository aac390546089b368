"""Watches: every committed change, once, in order, without a gap."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv.errors import ClusterClosedError, CompactedError, ConfigurationError, EncodingError, LaggedError
from replikv.machine import commands
from replikv.machine.values import encode_value
from replikv.store.change import Change
from replikv.store.selection import select
from replikv.store.store import Store
from replikv.store.watch import Watch, WatchOptions
from replikv.store.watch_hub import WatchHub


def put(key: str, value: object) -> bytes:
    return commands.encode_put(key.encode(), encode_value(value, 1000))


def update(**items: object) -> bytes:
    return commands.encode_update({key.encode(): encode_value(value, 1000) for key, value in items.items()})


async def take(changes: Watch, count: int) -> list[tuple[str, Any, int]]:
    """The next changes as (key, value, revision); each must be there already, or come without the caller's doing."""
    with trio.fail_after(10):  # never reached, unless a change is missing
        taken = [await anext(changes) for _ in range(count)]
    return [(change.key, change.value, change.revision) for change in taken]


def assert_nothing_open(hub: WatchHub) -> None:
    assert (0, []) == (hub._open, list(hub._live))
    assert hub._pin is None


async def has_nothing(changes: Watch) -> bool:
    """Whether a step would wait."""
    taken: list[Change] = []

    async def step() -> None:
        taken.append(await anext(changes))

    async with trio.open_nursery() as tasks:
        tasks.start_soon(step)
        await trio.testing.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return not taken


# -- what a change says ------------------------------------------------------------------------------------------------


async def test_changes_tell_key_value_previous_revision_and_kind(store: Store) -> None:
    """Puts, puts over something, deletes; what happened before the block was entered is not told."""
    await store.put("old", 0)
    async with store.watch() as changes:
        await store.put("key", None)
        await store.put("key", [1])
        await store.delete("key")
        await store.delete("key")
        assert [
            Change("key", None, None, 2, "put", created=True),
            Change("key", [1], None, 3, "put"),
            Change("key", None, [1], 4, "delete"),
        ] == [await anext(changes) for _ in range(3)]
        assert await has_nothing(changes)


async def test_key_that_vanished_with_its_lease_expired(store: Store, replicator: LocalReplicator) -> None:
    """A tombstone that names a lease is told as "expire"."""
    await store.put("key", 1)
    async with store.watch() as changes:
        replicator.replica.keyspace.commit([("key", None, 5)])
        replicator.publish()
        assert await anext(changes) == Change("key", None, 1, 2, "expire")


async def test_all_changes_of_a_revision_are_told_together(store: Store) -> None:
    """An update and a delete_prefix: one change a key, one revision."""
    async with store.watch("a") as changes:
        await store.update({"a1": 1, "b": 2, "a2": 3})
        await store.delete_prefix("")
        assert [("a1", 1, 1), ("a2", 3, 1), ("a1", None, 2), ("a2", None, 2)] == await take(changes, 4)


async def test_watchers_get_copies_of_their_own(store: Store) -> None:
    """What one does to a value, no other sees, nor the replica."""
    async with store.watch() as mine, store.watch() as others:
        await store.put("key", [1])
        (await anext(mine)).value.append(2)
        assert (await anext(others)).value == [1]
        assert store["key"] == [1]


# -- who is told -------------------------------------------------------------------------------------------------------


async def test_prefixes_of_all_lengths_match(store: Store) -> None:
    """A change goes to every watch whose prefix its key begins with, itself included, and to no other."""
    keys = ["", "a", "ab", "abc", "b", "é1"]
    prefixes = ["", "a", "ab", "abc", "abcd", "b", "é"]
    async with contextlib.AsyncExitStack() as blocks:
        watches = [(prefix, await blocks.enter_async_context(store.watch(prefix))) for prefix in prefixes]
        for key in keys:
            await store.put(key, 1)
        await store.update(dict.fromkeys(keys, 2))
        await blocks.enter_async_context(store.watch("abcdef"))
        watches += [(prefix, await blocks.enter_async_context(store.watch(prefix, since=0))) for prefix in prefixes]
        for prefix, changes in watches:
            expected = [key for key in keys if key.startswith(prefix)] * 2
            assert expected == [key for key, _, _ in await take(changes, len(expected))]
            assert await has_nothing(changes)


async def test_many_watches_at_once(store: Store) -> None:
    """Several watches of one prefix, of nested prefixes and of scopes, side by side."""
    scope = store.scoped("a/")
    async with (
        store.watch("a/b") as whole,
        store.watch("a/b") as twin,
        scope.watch("b") as scoped,
        store.watch() as all_,
    ):
        await store.update({"a/b": 1, "a/c": 2})
        assert [("a/b", 1, 1)] == await take(whole, 1) == await take(twin, 1)
        assert [("b", 1, 1)] == await take(scoped, 1)
        assert [("a/b", 1, 1), ("a/c", 2, 1)] == await take(all_, 2)
        for changes in (whole, twin, scoped, all_):
            assert await has_nothing(changes)


async def test_scoped_watch_has_relative_keys_everywhere(store: Store) -> None:
    """Live, from the history, from the state; and the empty key."""
    scope = store.scoped("a/").scoped("b/")
    await store.update({"a/b/": 0, "a/b/x": 1, "a/c": 2})
    async with scope.watch(since=0) as past, scope.watch(snapshot=True) as state, scope.watch() as live:
        assert [("", 0, 1), ("x", 1, 1)] == await take(past, 2) == await take(state, 2)
        await scope.put("y", 3)
        assert [("y", 3, 2)] == await take(past, 1) == await take(state, 1) == await take(live, 1)


# -- since -------------------------------------------------------------------------------------------------------------


async def test_since_is_what_came_after_it(store: Store) -> None:
    """History first, then live, without a gap or a repetition."""
    for number in range(1, 6):
        await store.put("key", number)
    async with store.watch(since=2) as changes:
        await store.put("key", 6)
        assert [("key", number, number) for number in (3, 4, 5, 6)] == await take(changes, 4)
        await store.put("key", 7)
        assert [("key", 7, 7)] == await take(changes, 1)
        assert await has_nothing(changes)


async def test_history_is_read_in_slices_of_the_buffer(store: Store, replicator: LocalReplicator) -> None:
    """A long history goes through a small buffer, changes that come meanwhile included."""
    replicator.sweep(*(put("key", number) for number in range(1, 3001)))
    async with store.watch(since=0, buffer=2) as changes:
        assert [("key", number, number) for number in range(1, 1501)] == await take(changes, 1500)
        replicator.sweep(*(put("key", number) for number in range(3001, 4001)))
        assert [("key", number, number) for number in range(1501, 4001)] == await take(changes, 2500)


async def test_history_without_a_match_is_passed_by(store: Store, replicator: LocalReplicator) -> None:
    """A rare prefix is found behind thousands of other changes, with checkpoints between."""
    replicator.sweep(*(put("other", number) for number in range(5000)), put("rare", 1))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with store.watch("rare", since=0) as changes, trio.open_nursery() as ticking:
        ticking.start_soon(tick)
        assert [("rare", 1, 5001)] == await take(changes, 1)
        ticking.cancel_scope.cancel()
    assert ticks >= 3


async def test_since_below_the_history_is_compacted(store: Store, replicator: LocalReplicator) -> None:
    """The error is raised on entering, and has the smallest since that works."""
    for number in range(1, 6):
        await store.put("key", number)
    replicator.compact(3)
    with pytest.raises(CompactedError) as caught:
        async with store.watch(since=2):
            pytest.fail("the block must not be entered")
    assert caught.value.revision == 3
    async with store.watch(since=3) as changes:
        assert [("key", 4, 4), ("key", 5, 5)] == await take(changes, 2)


async def test_history_may_be_compacted_under_a_slow_reader(store: Store, replicator: LocalReplicator) -> None:
    """He gets what was read for him, then the error: no gap is passed over in silence."""
    replicator.sweep(*(put("key", number) for number in range(1, 101)))
    async with store.watch(since=0, buffer=10) as changes:
        await take(changes, 1)
        replicator.compact(50)
        await take(changes, 9)
        for _ in range(2):
            with pytest.raises(CompactedError) as caught:
                await anext(changes)
            assert caught.value.revision == 50
    async with store.watch(since=caught.value.revision) as changes:
        assert [("key", 51, 51)] == await take(changes, 1)


async def test_since_in_the_future_is_waited_for(store: Store) -> None:
    """Who resumes on a peer that lags sees nothing he has seen before."""
    async with store.watch(since=3) as changes:
        for number in range(1, 6):
            await store.put("key", number)
        assert [("key", 4, 4), ("key", 5, 5)] == await take(changes, 2)


# -- snapshot=True -----------------------------------------------------------------------------------------------------


async def test_snapshot_is_the_state_and_what_follows(store: Store) -> None:
    """The state in key order as puts of one revision, unchanged by what happens meanwhile, then that."""
    await store.update({"a": 1, "b": 2, "c": 3})
    await store.put("b", 4)
    async with store.watch(snapshot=True, buffer=1) as changes:
        assert Change("a", 1, None, 2, "put") == await anext(changes)
        await store.delete("b")
        await store.put("a", 5)
        assert [("b", 4, 2), ("c", 3, 2), ("b", None, 3), ("a", 5, 4)] == await take(changes, 4)
        await store.put("a", 6)
        assert [("a", 6, 5)] == await take(changes, 1)


async def test_snapshot_of_nothing_goes_live(store: Store) -> None:
    """An empty state is no state, and no end."""
    async with store.watch("x", snapshot=True) as changes:
        await store.put("x", 1)
        assert [("x", 1, 1)] == await take(changes, 1)


async def test_snapshot_is_left_in_time_or_compacted(store: Store, replicator: LocalReplicator) -> None:
    """A reader so slow that the history moved on over the state's revision is told."""
    await store.update({"a": 1, "b": 2})
    async with store.watch(snapshot=True, buffer=1) as changes:
        await take(changes, 1)
        replicator.sweep(put("a", 2), put("a", 3))
        replicator.compact(3)
        assert [("b", 2, 1)] == await take(changes, 1)
        with pytest.raises(CompactedError) as caught:
            await anext(changes)
        assert caught.value.revision == 3


# -- slow readers ------------------------------------------------------------------------------------------------------


async def test_slow_reader_lags_and_resumes(store: Store, replicator: LocalReplicator) -> None:
    """What fitted is delivered, then LaggedError; since= its revision goes on without a gap."""
    async with store.watch(buffer=3) as changes:
        replicator.sweep(*(put("key", number) for number in range(1, 11)))
        assert [("key", number, number) for number in (1, 2, 3)] == await take(changes, 3)
        for _ in range(2):
            with pytest.raises(LaggedError, match="since=3") as caught:
                await anext(changes)
            assert caught.value.revision == 3
    async with store.watch(since=3, buffer=3) as changes:
        assert [("key", number, number) for number in range(4, 11)] == await take(changes, 7)


async def test_lagging_is_told_by_the_whole_revision(store: Store, replicator: LocalReplicator) -> None:
    """A revision that does not fit wholly is not begun; revisions without a match count as delivered."""
    async with store.watch("a", buffer=3) as changes:
        replicator.sweep(put("a", 1), put("b", 1), update(a1=1, a2=2, a3=3))
        assert [("a", 1, 1)] == await take(changes, 1)
        with pytest.raises(LaggedError) as caught:
            await anext(changes)
        assert caught.value.revision == 2
    async with store.watch("a", since=2, buffer=3) as changes:
        assert [("a1", 1, 3), ("a2", 2, 3), ("a3", 3, 3)] == await take(changes, 3)


async def test_revision_larger_than_the_buffer_is_taken_by_an_empty_one(
    store: Store, replicator: LocalReplicator
) -> None:
    """Or nobody with a small buffer could ever go on."""
    async with store.watch(buffer=1) as live, store.watch(since=0, buffer=1) as past:
        replicator.sweep(update(a=1, b=2, c=3))
        assert [("a", 1, 1), ("b", 2, 1), ("c", 3, 1)] == await take(live, 3) == await take(past, 3)


async def test_slow_reader_stalls_nobody(store: Store) -> None:
    """Neither the puts nor the other watches; and what he holds is bounded."""
    async with store.watch(buffer=5) as slow, store.watch(buffer=5) as quick:
        for number in range(1, 101):
            await store.put("key", number)
            assert [("key", number, number)] == await take(quick, 1)
        assert len(slow._ready or ()) == 5


# -- a snapshot is installed -------------------------------------------------------------------------------------------


async def test_snapshot_installed_under_a_watch_leaves_no_gap(store: Store, replicator: LocalReplicator) -> None:
    """It carries the history: live watches, and those still in the past, go on as if nothing had been."""
    await store.put("key", 1)
    async with store.watch() as live, store.watch(since=0, buffer=1) as past:
        await store.put("key", 2)
        assert [("key", 1, 1)] == await take(past, 1)
        replicator.fall_behind()
        replicator.sweep(put("key", 3), update(key=4, other=4))
        replicator.install_snapshot()
        await store.put("key", 5)
        expected = [("key", 2, 2), ("key", 3, 3), ("key", 4, 4), ("other", 4, 4), ("key", 5, 5)]
        assert expected == await take(live, 5) == await take(past, 5)


async def test_snapshot_whose_history_begins_too_late_ends_the_watch(store: Store, replicator: LocalReplicator) -> None:
    """What is lost is told; a watch that waits for a later revision loses nothing."""
    replicator.sweep(put("key", 1))
    async with store.watch() as live, store.watch(since=5) as later, store.watch(since=0, buffer=1) as past:
        replicator.sweep(put("key", 2))
        assert [("key", 1, 1)] == await take(past, 1)
        replicator.fall_behind()
        replicator.sweep(*(put("key", number) for number in range(3, 8)), commands.encode_compact(4))
        replicator.install_snapshot()
        assert [("key", 2, 2)] == await take(live, 1)
        for changes in (live, past):
            with pytest.raises(CompactedError) as caught:
                await anext(changes)
            assert caught.value.revision == 4
        assert [("key", 6, 6), ("key", 7, 7)] == await take(later, 2)
        await store.put("key", 8)
        assert [("key", 8, 8)] == await take(later, 1)


async def test_history_compacted_in_the_sweep_that_made_it_is_told(store: Store, replicator: LocalReplicator) -> None:
    """A live watch gets every change of a sweep, though the sweep's end forgets its beginning."""
    async with store.watch() as changes:
        replicator.sweep(*(put("key", number) for number in range(1, 100)), commands.encode_compact(99))
        assert [("key", number, number) for number in range(1, 100)] == await take(changes, 99)
        replicator.sweep(put("key", 100))
        assert [("key", 100, 100)] == await take(changes, 1)


async def test_watches_hold_the_history_back_no_longer_than_a_sweep(store: Store, replicator: LocalReplicator) -> None:
    """However slow their readers are."""
    async with store.watch(), store.watch(since=0), store.watch("x"):
        replicator.sweep(*(put("key", number) for number in range(1, 100)))
        replicator.compact(99)
        keyspace = replicator.replica.keyspace
        keyspace.trim(1000)
        assert keyspace.physical_floor == 99


async def test_restart_with_since_leaves_no_gap(store: Store, replicator: LocalReplicator) -> None:
    """Another process with the same state goes on from the last revision that was seen."""
    async with store.watch() as changes:
        replicator.sweep(put("a", 1), put("a", 2))
        bookmark = (await anext(changes)).revision
    restarted = LocalReplicator()
    restarted.replica.restore(list(replicator.replica.snapshot()))
    async with Store(restarted, WatchHub(restarted)).watch(since=bookmark) as changes:
        assert [("a", 2, 2)] == await take(changes, 1)


# -- the block ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_held_outside_the_block(store: Store, hub: WatchHub, replicator: LocalReplicator) -> None:
    """Before it is entered nothing is registered; once it is left, nothing is any more, however it was left."""
    block = store.watch("a")
    assert_nothing_open(hub)
    async with block as changes:
        assert [changes] == list(hub._live)
    assert_nothing_open(hub)
    with pytest.raises(trio.ClosedResourceError):
        await anext(changes)
    with pytest.raises(ZeroDivisionError):
        async with store.watch("a"):
            raise ZeroDivisionError
    with trio.CancelScope() as scope:
        async with store.watch("a") as changes:
            scope.cancel()
            await anext(changes)
    assert scope.cancelled_caught
    assert_nothing_open(hub)
    await store.put("a", 1)


async def test_cancelled_entering_leaves_nothing(store: Store, hub: WatchHub) -> None:
    """Entering is a checkpoint, before anything is registered."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with store.watch():
            pytest.fail("the block must not be entered")
    assert_nothing_open(hub)


async def test_cancelled_step_takes_no_change(store: Store, replicator: LocalReplicator) -> None:
    """Whether it was waiting, or a change was there already."""
    async with store.watch() as changes:
        assert await has_nothing(changes)
        replicator.sweep(put("a", 1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(changes)
        assert scope.cancelled_caught
        assert [("a", 1, 1)] == await take(changes, 1)


async def test_every_step_is_a_checkpoint(store: Store, replicator: LocalReplicator) -> None:
    """A loop over changes that are there lets other tasks run."""
    replicator.sweep(put("a", 1), put("a", 2))
    async with store.watch(since=0) as changes:
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                await anext(changes)


async def test_tasks_may_share_a_watch(store: Store, nursery: trio.Nursery, replicator: LocalReplicator) -> None:
    """Each change goes to one of them; the end, to all."""
    taken: list[int] = []
    ended: list[str] = []

    async with store.watch() as changes:

        async def read() -> None:
            try:
                while True:
                    taken.append((await anext(changes)).revision)
            except trio.ClosedResourceError:
                ended.append("closed")

        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        replicator.sweep(*(put("a", number) for number in range(10)))
        await trio.testing.wait_all_tasks_blocked()
        assert list(range(1, 11)) == sorted(taken)
    await trio.testing.wait_all_tasks_blocked()
    assert ["closed"] * 3 == ended


async def test_closing_cluster_ends_watches_with_an_error(
    store: Store, hub: WatchHub, replicator: LocalReplicator, nursery: trio.Nursery
) -> None:
    """After what was committed before: iteration does not just end, or a loop would take it for no more changes."""
    async with store.watch() as live, store.watch(since=0) as past, store.watch("x") as idle:
        await store.put("a", 1)
        in_the_past = hub.open(WatchOptions(select("", "", None, None, None, None), buffer=1), since=0)
        errors: list[Exception] = []

        async def wait() -> None:
            try:
                await anext(idle)
            except ClusterClosedError as exc:
                errors.append(exc)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        replicator.close()
        hub.close()
        assert [("a", 1, 1)] == await take(live, 1) == await take(past, 1)
        for changes in (live, past, in_the_past):
            with pytest.raises(ClusterClosedError):
                await anext(changes)
        await trio.testing.wait_all_tasks_blocked()
        assert len(errors) == 1
    with pytest.raises(ClusterClosedError):
        async with store.watch():
            pytest.fail("the block must not be entered")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"prefix": 5}, EncodingError),
        ({"prefix": b"a"}, EncodingError),
        ({"since": -1}, ConfigurationError),
        ({"since": 1.0}, ConfigurationError),
        ({"since": True}, ConfigurationError),
        ({"buffer": 0}, ConfigurationError),
        ({"buffer": None}, ConfigurationError),
        ({"since": 0, "snapshot": True}, ConfigurationError),
    ],
)
async def test_arguments_are_checked_at_the_call(store: Store, arguments: Any, error: type[Exception]) -> None:
    """Of watch and of subscribe."""
    calls: list[Callable[[], object]] = [lambda: store.watch(**arguments)]
    if "snapshot" not in arguments:
        calls.append(lambda: store.subscribe(print, **arguments))
    for call in calls:
        with pytest.raises(error):
            call()
