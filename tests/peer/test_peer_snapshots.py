"""When a snapshot is due, how much of the log it lets go, and that making it holds nobody up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from replikv.peer.snapshots import FULL_RETRY_S, WRITE_BYTES, SnapshotTaker, chunks_in_slices, compactable_index
from replikv.raft.entries import ENTRY_OVERHEAD_BYTES, Entry, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import MemoryStorage
from replikv.settings import Settings
from replikv.storage.base import SnapshotWriter, StorageFullError
from replikv.storage.memory import VolatileStorage

MEMBERSHIP = Membership.of_voters({"a": "a"})


def log(last: int, *, snapshot: int, compacted: int = 0, data: int = 76) -> MemoryStorage:
    """Entries of a hundred bytes each, unless it is said otherwise."""
    image = MemoryStorage(MEMBERSHIP)
    image.append([Entry(index, 1, bytes(data)) for index in range(1, last + 1)])
    if snapshot:
        image.record_snapshot(SnapshotMetadata(snapshot, 1, MEMBERSHIP))
    if compacted:
        image.compact(compacted)
    return image


@pytest.mark.parametrize(
    ("image", "entries", "size", "expected"),
    [
        (log(50, snapshot=40), 10, 10**6, 30),
        (log(50, snapshot=40), 1, 10**6, 39),
        (log(50, snapshot=50), 10, 10**6, 40),
        # Bytes: of what stays behind the snapshot, at the most so many.
        (log(50, snapshot=40), 10, 500, 35),
        (log(50, snapshot=40), 10, 599, 35),
        (log(50, snapshot=40), 10, 600, 34),
        (log(50, snapshot=40), 10, 1, 40),
        (log(50, snapshot=40, data=10**6), 10, 10**5, 40),
        # Never below what is gone already, so that there may be nothing to do.
        (log(50, snapshot=40, compacted=35), 10, 10**6, 35),
        (log(50, snapshot=40), 100, 10**6, 0),
        (log(50, snapshot=0), 10, 10**6, 0),
    ],
)
def test_what_stays_of_the_log_behind_a_snapshot(image: MemoryStorage, entries: int, size: int, expected: int) -> None:
    """As many entries as are wanted for followers that lag a little, within bytes; none the snapshot lacks goes."""
    settings = Settings(trailing_entries=entries, trailing_bytes=size)
    assert ENTRY_OVERHEAD_BYTES == 24
    assert expected == compactable_index(image, settings)


@pytest.mark.parametrize(
    ("size", "entries", "due"), [(0, 0, False), (999, 9, False), (1000, 0, True), (0, 10, True), (5000, 50, True)]
)
async def test_a_snapshot_is_due_by_bytes_or_by_entries(size: int, entries: int, due: bool) -> None:
    """Whichever comes first."""
    settings = Settings(snapshot_log_bytes=1000, snapshot_log_entries=10)
    taker = SnapshotTaker(VolatileStorage(), settings, trio.Lock(), lambda _: None, lambda: None)
    assert due == taker.due(size, entries)


async def test_a_large_state_is_not_written_again_for_a_little_log(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    """The log has to grow as large as the last snapshot: so that what is written stays in proportion. One at a time."""
    taken: list[SnapshotMetadata] = []
    storage = VolatileStorage()
    taker = SnapshotTaker(storage, Settings(snapshot_log_bytes=1000), trio.Lock(), taken.append, lambda: None)
    nursery.start_soon(taker.run)
    metadata = SnapshotMetadata(5, 1, MEMBERSHIP)
    taker.begin(metadata, iter([b"." * 600] * 5))
    assert not taker.due(10**9, 10**9)
    await trio.testing.wait_all_tasks_blocked()
    assert [metadata] == taken
    assert not taker.due(2999, 0)
    assert taker.due(3000, 0)


class FullStorage(VolatileStorage):
    """Has no room for snapshots while the test says so."""

    full = True

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        if self.full:
            raise StorageFullError("no room")
        return super().create_snapshot(metadata)


async def test_a_snapshot_that_finds_no_room_is_tried_again(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    """Later, however little has been logged since; who waits for it is told why it came to nothing."""
    storage = FullStorage()
    taken: list[SnapshotMetadata] = []
    ended: list[float] = []
    taker = SnapshotTaker(storage, Settings(), trio.Lock(), taken.append, lambda: ended.append(trio.current_time()))
    nursery.start_soon(taker.run)
    started = trio.current_time()
    metadata = SnapshotMetadata(5, 1, MEMBERSHIP)
    taker.begin(metadata, iter([b"chunk"]))
    await trio.testing.wait_all_tasks_blocked()
    assert [started] == ended
    assert isinstance(taker.failure, StorageFullError)
    assert not taker.busy
    await trio.sleep(FULL_RETRY_S / 2)
    assert not taker.due(0, 0)
    await trio.sleep(FULL_RETRY_S / 2)
    assert taker.due(0, 0)
    storage.full = False
    taker.begin(metadata, iter([b"chunk"]))
    await trio.testing.wait_all_tasks_blocked()
    assert [metadata] == taken
    assert taker.failure is None
    assert not taker.due(0, 0)


async def test_chunks_are_taken_in_slices() -> None:
    """Other tasks run between; what is taken at a time is bounded; the end is an empty list."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    def slow() -> Iterator[bytes]:
        for _ in range(30):
            end = trio.current_time() + 0.0005
            while trio.current_time() < end:
                pass
            yield b"." * (WRITE_BYTES // 16)

    chunks = slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert [16, 14, 0] == [len(await chunks_in_slices(chunks)) for _ in range(3)]
        nursery.cancel_scope.cancel()
    assert turns >= 4
