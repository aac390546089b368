"""Watches: every committed change, once, in order, without a gap."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv.errors import ClusterClosedError, CompactedError, ConfigurationError, EncodingError, LaggedError
from replikv.machine import commands
from replikv.machine.values import encode_value
from replikv.settings import Settings
from replikv.store.change import Change
from replikv.store.selection import select
from replikv.store.store import Store
from replikv.store.watch import Watch, WatchOptions
from replikv.store.watch_hub import SPARE_STEPS, WatchHub


def put(key: str, value: object) -> bytes:
    return commands.encode_put(key.encode(), encode_value(value, 1000))


def update(**items: object) -> bytes:
    return commands.encode_update({key.encode(): encode_value(value, 1000) for key, value in items.items()})


async def take(changes: Watch, count: int) -> list[tuple[str, Any, int]]:
    """The next changes as (key, value, revision); each must be there already, or come without the caller's doing."""
    with trio.fail_after(10):  # never reached, unless a change is missing
        taken = [await anext(changes) for _ in range(count)]
    return [(change.key, change.value, change.revision) for change in taken]


def mark(revision: int) -> Change:
    return Change("", None, None, revision, "progress")


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


async def test_key_is_that_key_only(store: Store) -> None:
    """Live, from the history and from the state; in a scope; the empty key is one, too."""
    await store.update({"": 0, "a": 1, "aa": 2, "b": 3})
    async with (
        store.watch(key="a") as live,
        store.watch(key="a", since=0) as past,
        store.watch(key="a", snapshot=True) as state,
        store.watch(key="") as empty,
        store.scoped("a").watch(key="a") as scoped,
        store.scoped("a").watch(key="") as scoped_empty,
    ):
        await store.update({"": 4, "a": 5, "a\0": 6, "aa": 7, "A": 8})
        assert [("a", 5, 2)] == await take(live, 1)
        assert [("a", 1, 1), ("a", 5, 2)] == await take(past, 2) == await take(state, 2)
        assert [("", 4, 2)] == await take(empty, 1)
        assert [("a", 7, 2)] == await take(scoped, 1)
        assert [("", 5, 2)] == await take(scoped_empty, 1)
        for changes in (live, past, state, empty, scoped, scoped_empty):
            assert await has_nothing(changes)


async def test_ranges_begin_and_end_where_they_say(store: Store) -> None:
    """The start is in, the stop is not; a prefix narrows both; keys of a scope are relative; a range may be empty."""
    keys = ["a", "b", "b/1", "b/2", "b/3", "c", "é"]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"start": "b/1"}, ["b/1", "b/2", "b/3", "c", "é"]),
        ({"stop": "b/2"}, ["a", "b", "b/1"]),
        ({"start": "b", "stop": "b/2"}, ["b", "b/1"]),
        ({"prefix": "b/", "start": "b/2"}, ["b/2", "b/3"]),
        ({"prefix": "b/", "start": "a", "stop": "z"}, ["b/1", "b/2", "b/3"]),
        ({"start": "c", "stop": "b"}, []),
        ({"start": ""}, keys),
    ]
    await store.update(dict.fromkeys(keys, 1))
    scope = store.scoped("b/")
    async with contextlib.AsyncExitStack() as blocks:
        enter = blocks.enter_async_context
        watches = [(await enter(store.watch(**case)), wanted, 1) for case, wanted in cases]
        watches += [(await enter(store.watch(**case, since=0)), wanted, 2) for case, wanted in cases]
        watches += [(await enter(store.watch(**case, snapshot=True)), wanted, 2) for case, wanted in cases]
        watches.append((await enter(scope.watch(start="2")), ["2", "3"], 1))
        watches.append((await enter(scope.watch(stop="2", snapshot=True)), ["1"], 2))
        await store.update(dict.fromkeys(keys, 2))
        for changes, wanted, times in watches:
            assert wanted * times == [key for key, _, _ in await take(changes, len(wanted) * times)]
            assert await has_nothing(changes)


async def test_kinds_are_those_that_are_asked_for(store: Store, replicator: LocalReplicator) -> None:
    """Live, from the history, and of the state, which is all puts."""
    await store.put("old", 0)
    async with (
        store.watch(kinds={"put"}, snapshot=True) as puts,
        store.watch(kinds=["delete", "expire"], since=0) as gone,
        store.watch(kinds=("expire",), snapshot=True, progress=True) as expired,
    ):
        assert mark(1) == await anext(expired)
        for key in ("a", "b"):
            await store.put(key, 1)
        await store.delete("a")
        replicator.expire("b")
        assert [("old", 0, 1), ("a", 1, 2), ("b", 1, 3)] == await take(puts, 3)
        assert ["delete", "expire"] == [(await anext(gone)).kind for _ in range(2)]
        assert [Change("b", None, 1, 5, "expire"), mark(5)] == [await anext(expired) for _ in range(2)]
        for changes in (puts, gone, expired):
            assert await has_nothing(changes)


async def test_created_tells_puts_that_made_a_key(store: Store) -> None:
    """None is a value like any other; a key that was deleted is made again; of a state nothing is known."""
    await store.put("key", None)
    async with store.watch(since=0, previous=False) as changes, store.watch(snapshot=True) as state:
        await store.put("key", 1)
        await store.delete("key")
        await store.put("key", 2)
        assert [True, False, False, True] == [(await anext(changes)).created for _ in range(4)]
        assert [False, False, False, True] == [(await anext(state)).created for _ in range(4)]


async def test_previous_values_need_not_be_told(store: Store) -> None:
    """They are None then, and never decoded."""
    await store.put("key", 1)
    async with store.watch(previous=False) as changes:
        await store.put("key", 2)
        await store.delete("key")
        assert [(2, None), (None, None)] == [(c.value, c.previous) for c in [await anext(changes) for _ in range(2)]]


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


async def test_reader_of_a_busy_map_keeps_up(store: Store) -> None:
    """Changes are applied by the dozen in a turn, and he takes them so: a buffer of two sweeps is enough. His steps are
    checkpoints all the same, and others go on.
    """
    async with store.watch(buffer=100) as changes, trio.open_nursery() as nursery:

        async def put_many(first: int) -> None:
            for number in range(100):
                await store.put("key", first + number)

        for task in range(50):
            nursery.start_soon(put_many, 100 * task)
        revisions = [revision for _, _, revision in await take(changes, 5000)]
    assert list(range(1, 5001)) == revisions


async def test_steps_without_a_pause_are_bounded(
    store: Store, hub: WatchHub, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """All readers together go on for so many changes; then each waits for its turn with every one of them."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with store.watch(buffer=5000) as one, store.watch(buffer=5000) as other, trio.open_nursery() as nursery:
        replicator.sweep(*(put("key", number) for number in range(2000)))
        nursery.start_soon(count_turns)
        for changes in (one, other):
            await take(changes, 1000)
        assert turns >= 2000 - SPARE_STEPS - 2  # each reader's first turn may come before that task's
        nursery.cancel_scope.cancel()
    assert 0 == hub.spare_steps


async def test_cancelled_step_takes_no_change_without_a_pause_either(store: Store, replicator: LocalReplicator) -> None:
    """A step that would go on at once notices, too."""
    async with store.watch() as changes:
        replicator.sweep(put("a", 1), put("a", 2), put("a", 3))
        await take(changes, 2)
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(changes)
        assert scope.cancelled_caught
        assert [("a", 3, 3)] == await take(changes, 1)


async def test_a_thousand_readers_take_turns(store: Store, replicator: LocalReplicator) -> None:
    """Each of them has its first change before any has come to the end of its own."""
    order: list[int] = []

    async def read(number: int, changes: Watch) -> None:
        for _ in range(20):
            await anext(changes)
            order.append(number)

    async with contextlib.AsyncExitStack() as blocks, trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(read, number, await blocks.enter_async_context(store.watch()))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            replicator.sweep(put("key", 1))
    assert [20] * 1000 == [order.count(number) for number in range(1000)]
    firsts = max(order.index(number) for number in range(1000))
    ends = min(len(order) - order[::-1].index(number) for number in range(1000))
    assert firsts < 1000 + SPARE_STEPS
    assert firsts < ends


# -- coalesce ----------------------------------------------------------------------------------------------------------


async def test_coalesced_are_the_newest_with_what_was_told_last(store: Store, replicator: LocalReplicator) -> None:
    """For each key one change waits, at its own revision: so they ascend. What it says was before is what the oldest of
    those that it stands for replaced.
    """
    replicator.sweep(put("a", 1), put("b", 1))
    async with store.watch(coalesce=True, snapshot=True, buffer=3) as changes:
        await take(changes, 2)
        assert await has_nothing(changes)
        replicator.sweep(*(put("a", number) for number in range(2, 100)), update(b=2, c=1), update(c=2, a=100))
        assert [
            Change("b", 2, 1, 101, "put"),
            Change("c", 2, None, 102, "put", created=True),
            Change("a", 100, 1, 102, "put"),
        ] == [await anext(changes) for _ in range(3)]
        assert await has_nothing(changes)


async def test_coalesced_keys_may_come_and_go(store: Store, replicator: LocalReplicator) -> None:
    """One that was made and deleted is told as gone, from nothing; one that was made again was there before."""
    replicator.sweep(put("b", 1))
    async with store.watch(coalesce=True) as changes:
        replicator.sweep(put("a", 1), commands.encode_delete(b"a"), commands.encode_delete(b"b"), put("b", 2))
        assert [Change("a", None, None, 3, "delete"), Change("b", 2, 1, 5, "put")] == [
            await anext(changes) for _ in range(2)
        ]


async def test_coalescing_watch_lags_by_keys_only(store: Store, replicator: LocalReplicator) -> None:
    """However many changes: not before more keys than the buffer holds have changed."""
    async with store.watch(coalesce=True, buffer=2) as changes:
        replicator.sweep(*(put("ab"[number % 2], number) for number in range(1, 5001)))
        assert [("b", 4999, 4999), ("a", 5000, 5000)] == await take(changes, 2)
        replicator.sweep(put("a", 1), put("b", 1), put("a", 2), put("c", 1), put("a", 3))
        assert [("b", 1, 5002), ("a", 2, 5003)] == await take(changes, 2)
        with pytest.raises(LaggedError) as caught:
            await anext(changes)
        assert 5003 == caught.value.revision


async def test_coalesced_revision_larger_than_the_buffer_may_be_changed_again(
    store: Store, replicator: LocalReplicator
) -> None:
    """Nothing more waits because of that."""
    async with store.watch(coalesce=True, buffer=1) as changes:
        replicator.sweep(update(a=1, b=1, c=1), put("b", 2))
        assert [("a", 1, 1), ("c", 1, 1), ("b", 2, 2)] == await take(changes, 3)


# -- progress ----------------------------------------------------------------------------------------------------------


async def test_marks_at_the_end_of_the_state_and_of_the_history(store: Store, replicator: LocalReplicator) -> None:
    """One when the state has been told, one when a watch has caught up; none twice, and none unless asked for."""
    replicator.sweep(put("a", 1), put("x", 1))
    async with (
        store.watch("a", progress=True, snapshot=True) as state,
        store.watch("a", progress=True, snapshot=True) as late,
        store.watch("a", progress=True, since=0) as past,
        store.watch("a", progress=True) as live,
        store.watch("a", since=0) as unmarked,
    ):
        expected = [Change("a", 1, None, 2, "put"), mark(2)]
        assert expected == [await anext(state), await anext(state)]
        assert await has_nothing(state)
        assert expected[0] == await anext(late)
        assert [Change("a", 1, None, 1, "put", created=True), mark(2)] == [await anext(past), await anext(past)]
        assert mark(2) == await anext(live)
        assert [("a", 1, 1)] == await take(unmarked, 1)
        replicator.sweep(put("x", 2), put("a", 2), put("x", 3))
        change = Change("a", 2, 1, 4, "put")
        assert [mark(2), change, mark(5)] == [await anext(late) for _ in range(3)]
        for changes in (state, past, live, unmarked):
            assert change == await anext(changes)
            assert await has_nothing(changes)


@pytest.mark.parametrize("settings", [Settings(watch_progress_interval_s=5.0)])
async def test_marks_when_there_is_nothing_to_tell(
    store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """After the interval, and only if others have changed something: the mark goes on from where a change would not."""
    async with store.watch("a", progress=True) as changes:
        assert mark(0) == await anext(changes)
        replicator.sweep(put("x", 1), put("x", 2))
        began = trio.current_time()
        assert mark(2) == await anext(changes)
        assert 5.0 == pytest.approx(trio.current_time() - began)
        with trio.move_on_after(60.0):
            pytest.fail(f"{await anext(changes)}: nothing has changed")
        replicator.sweep(put("a", 1))
        assert [("a", 1, 3)] == await take(changes, 1)
        with trio.move_on_after(60.0):
            pytest.fail(f"{await anext(changes)}: the last change says as much")
        replicator.sweep(put("x", 3))
        bookmark = (await anext(changes)).revision
        assert 4 == bookmark
    replicator.sweep(put("a", 2))
    replicator.compact(4)
    async with store.watch("a", since=bookmark) as changes:
        assert [("a", 2, 5)] == await take(changes, 1)


async def test_no_mark_before_what_was_seen_elsewhere(
    store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """Who is ahead of this replica would be told things twice from it."""
    async with store.watch("a", progress=True, since=3) as changes:
        with trio.move_on_after(60.0):
            pytest.fail(f"{await anext(changes)}: the replica is not there yet")
        replicator.sweep(*(put("x", number) for number in range(1, 5)))
        assert mark(4) == await anext(changes)


# -- how many there may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Settings(watches_max=2)])
async def test_watches_are_bounded(store: Store, hub: WatchHub, replicator: LocalReplicator) -> None:
    """One that has ended counts until its block is left; closing twice makes no room twice."""
    async with store.watch(buffer=1) as lagging, store.watch() as other:
        replicator.sweep(put("a", 1), put("a", 2))
        with pytest.raises(ConfigurationError, match="watches_max allows 2"):
            async with store.watch():
                pytest.fail("the block must not be entered")
        lagging.close()
        lagging.close()
        async with store.watch():
            with pytest.raises(ConfigurationError, match="watches_max allows 2"):
                store.subscribe(print)
        assert [("a", 1, 1), ("a", 2, 2)] == await take(other, 2)
    assert_nothing_open(hub)


@pytest.mark.parametrize("settings", [Settings(watches_max=1)])
async def test_subscription_that_lags_needs_no_second_place(store: Store, replicator: LocalReplicator) -> None:
    """It gives its watch back before it opens the next."""
    told: list[int] = []
    store.subscribe(lambda change: told.append(change.revision), buffer=1)
    with structlog.testing.capture_logs():
        replicator.sweep(*(put("a", number) for number in range(9)))
        await trio.testing.wait_all_tasks_blocked()
    assert list(range(1, 10)) == told


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


async def test_every_change_wakes_a_task(store: Store, nursery: trio.Nursery, replicator: LocalReplicator) -> None:
    """One that is busy with a change keeps no other from the next."""
    taken: list[int] = []

    async with store.watch() as changes:

        async def take_one() -> None:
            taken.append((await anext(changes)).revision)

        for _ in range(3):
            nursery.start_soon(take_one)
        await trio.testing.wait_all_tasks_blocked()
        replicator.sweep(put("a", 1), put("a", 2))
        await trio.testing.wait_all_tasks_blocked()
        assert [1, 2] == sorted(taken)
        replicator.sweep(put("a", 3))
        await trio.testing.wait_all_tasks_blocked()
        assert [1, 2, 3] == sorted(taken)


async def test_closed_watch_gives_nothing_that_was_on_its_way(store: Store, replicator: LocalReplicator) -> None:
    """A change that a task has been woken for is not told once the block is left."""
    async with trio.open_nursery() as tasks:

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await anext(changes)

        async with store.watch() as changes:
            tasks.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            replicator.sweep(put("a", 1))


async def test_closing_cluster_ends_watches_with_an_error(
    store: Store, hub: WatchHub, replicator: LocalReplicator, nursery: trio.Nursery
) -> None:
    """After what was committed before: iteration does not just end, or a loop would take it for no more changes.

    All of them, those that are about the same keys as others, too.
    """
    async with (
        store.watch() as live,
        store.watch(since=0) as past,
        store.watch("x") as idle,
        store.watch("x") as other,
        store.watch("x") as third,
    ):
        await store.put("a", 1)
        in_the_past = hub.open(WatchOptions(select("", "", None, None, None, None), buffer=1), since=0)
        errors: list[Exception] = []

        async def wait(changes: Watch) -> None:
            try:
                await anext(changes)
            except ClusterClosedError as exc:
                errors.append(exc)

        for changes in (idle, other, third):
            nursery.start_soon(wait, changes)
        await trio.testing.wait_all_tasks_blocked()
        replicator.close()
        hub.close()
        assert [("a", 1, 1)] == await take(live, 1) == await take(past, 1)
        for changes in (live, past, in_the_past):
            with pytest.raises(ClusterClosedError):
                await anext(changes)
        await trio.testing.wait_all_tasks_blocked()
        assert len(errors) == 3
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
        ({"key": 5}, EncodingError),
        ({"start": b"a"}, EncodingError),
        ({"stop": 1}, EncodingError),
        ({"key": "a", "prefix": "a"}, ConfigurationError),
        ({"key": "a", "start": "a"}, ConfigurationError),
        ({"key": "a", "stop": ""}, ConfigurationError),
        ({"kinds": "put"}, ConfigurationError),
        ({"kinds": ()}, ConfigurationError),
        ({"kinds": {"put", "progress"}}, ConfigurationError),
        ({"kinds": [[]]}, ConfigurationError),
        ({"kinds": 5}, ConfigurationError),
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
