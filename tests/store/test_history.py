"""The history on request: compacted, and read nevertheless by those who were there before."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv.errors import CompactedError, ConfigurationError
from replikv.store.store import Store


async def fill(store: Store, count: int) -> None:
    for number in range(1, count + 1):
        await store.put("key", number)


async def test_compact_forgets_the_past_and_not_the_present(store: Store) -> None:
    """The revision itself can still be read, and watched from; below it is a CompactedError that names it."""
    await fill(store, 10)
    assert 7 == await store.compact(7)
    assert (10, 7, 8) == (store["key"], await store.get("key", revision=7), await store.get("key", revision=8))
    with pytest.raises(CompactedError) as caught:
        await store.get("key", revision=6)
    assert 7 == caught.value.revision
    async with store.watch(since=7) as changes:
        assert [8, 9, 10] == [(await anext(changes)).revision for _ in range(3)]
    with pytest.raises(CompactedError):
        async with store.watch(since=6):
            pass


async def test_compact_twice_does_nothing(store: Store) -> None:
    """Nor does a revision that is gone already: the history never begins earlier again. It takes no revision."""
    await fill(store, 10)
    assert [5, 5, 5] == [await store.compact(revision) for revision in (5, 3, 0)]
    assert 10 == store.revision
    assert 10 == await store.scoped("scope/").compact(10)
    assert 10 == await store.get("key", revision=10)


@pytest.mark.parametrize("revision", [-1, 1.0, True, "1"])
async def test_compact_takes_a_revision(store: Store, revision: int) -> None:
    """Anything else is a mistake, and so is one that nobody has made."""
    await fill(store, 3)
    with pytest.raises(ConfigurationError):
        await store.compact(revision)
    with pytest.raises(ConfigurationError, match="revision 4 is in the future: the newest is 3"):
        await store.compact(4)
    assert 1 == await store.get("key", revision=1)


async def test_compact_waits_for_a_replica_that_is_behind(store: Store, replicator: LocalReplicator) -> None:
    """A revision that this process has not seen yet is none of the future's."""
    await fill(store, 3)
    replicator.fall_behind()
    found: list[int] = []

    async def compact() -> None:
        found.append(await store.compact(5))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(fill, store, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(compact)
        await trio.testing.wait_all_tasks_blocked()
        assert [] == found
        replicator.install_snapshot()
    assert [5] == found


async def test_who_reads_already_reads_on(store: Store) -> None:
    """An iterator keeps the revision it was made at, and a watch that keeps up misses nothing."""
    await store.update({f"k{number}": "old" for number in range(100)})
    items = store.items()
    assert ("k0", "old") == next(items)
    async with store.watch() as changes:
        for number in range(100):
            await store.put(f"k{number}", "new")
        assert 101 == await store.compact(101)
        assert list(range(2, 102)) == [(await anext(changes)).revision for _ in range(100)]
    assert ["old"] * 99 == [value for _, value in items]
    assert {"new"} == set(store.values())
