"""The storage of a peer with a disk: starts, crashes, and who the directory belongs to."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import threading
from pathlib import Path
from random import Random

import pytest

from replikv.errors import CorruptionError, DataDirInUseError, InternalError, StorageError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import Identity, StorageFullError
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFileSystem
from replikv.storage.meta import write_incarnation
from replikv.testing.simulated_disk import PowerCut, SimulatedDisk

DIRECTORY = Path("/state/a")
IDENTITY = Identity("cluster", "a", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})
ORIGIN = SnapshotMetadata(0, 0, MEMBERSHIP)


def open_disk(disk: SimulatedDisk) -> contextlib.closing[DiskStorage]:
    return contextlib.closing(DiskStorage(DIRECTORY, segment_bytes=4096, filesystem=disk, prepare_ahead=False))


def at(index: int, term: int = 1) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, MEMBERSHIP)


def append(storage: DiskStorage, first: int, last: int, *, term: int = 1) -> None:
    """One write for each entry, so large that each fills a segment."""
    for index in range(first, last + 1):
        write = Write(entries=(Entry(index, term, bytes([term]) * 1800),), hard_state=HardState(term, "a", 0))
        storage.write([write])
        storage.image.apply(write)


def cover(storage: DiskStorage, metadata: SnapshotMetadata) -> None:
    writer = storage.create_snapshot(metadata)
    writer.write(b"state")
    writer.commit()


def held(storage: DiskStorage) -> list[tuple[int, int]]:
    image = storage.image
    return [(entry.index, entry.term) for entry in image.entries(image.first_index(), image.last_index() + 1)]


@pytest.fixture
def empty() -> SimulatedDisk:
    """Nothing is there yet."""
    return SimulatedDisk(Random(0))


@pytest.fixture
def disk(empty: SimulatedDisk) -> SimulatedDisk:
    """A directory with six entries in several segments, closed."""
    with open_disk(empty) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 6)
    return empty


def segments(disk: SimulatedDisk) -> list[Path]:
    return [DIRECTORY / "wal" / name for name in disk.list_directory(DIRECTORY / "wal")]


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_directory_has_one_owner(disk: SimulatedDisk) -> None:
    """A second opening is refused, by name, until the first is closed."""
    with open_disk(disk), pytest.raises(DataDirInUseError, match=str(DIRECTORY)):
        open_disk(disk)
    with open_disk(disk) as storage:
        assert storage.identity == IDENTITY


def test_failed_opening_gives_the_lock_back(disk: SimulatedDisk) -> None:
    """So that it may be tried again once the cause is gone."""
    disk.fail(errno.EIO, "pread", "meta")
    with pytest.raises(StorageError, match="Input/output"):
        open_disk(disk)
    disk.heal()
    with open_disk(disk) as storage:
        assert storage.identity == IDENTITY


@pytest.mark.parametrize("part", ["lock", "probe.tmp"])
def test_read_only_directory_fails_at_the_start(disk: SimulatedDisk, part: str) -> None:
    """Not at the first segment that is full."""
    disk.fail(errno.EIO, "create", part)
    with pytest.raises(StorageError):
        open_disk(disk)


def test_log_of_another_peer_is_refused(disk: SimulatedDisk) -> None:
    """Directories whose parts were mixed up."""
    other = SimulatedDisk(Random(0))
    with open_disk(other) as storage:
        storage.initialize(Identity("cluster", "b", "other", "x:1", "x:1"), ORIGIN)
    disk.remove(DIRECTORY / "wal")
    for path, data in other.files().items():
        if path.suffix == ".wal":
            disk.put(path, data)
    with pytest.raises(CorruptionError, match="another peer"):
        open_disk(disk)


def test_missing_log_is_damage(disk: SimulatedDisk) -> None:
    """The directory was initialized, so the log had a segment."""
    disk.remove(DIRECTORY / "wal")
    with pytest.raises(CorruptionError, match="meta"):
        open_disk(disk)


def test_missing_meta_is_damage(disk: SimulatedDisk) -> None:
    """A log that was written to is never taken for an empty directory, and initialized over."""
    disk.remove(DIRECTORY / "meta")
    with pytest.raises(CorruptionError, match="missing"):
        open_disk(disk)


# -- initialize --------------------------------------------------------------------------------------------------------


def test_crash_at_any_point_of_the_first_start() -> None:
    """What is left is an empty storage, which initializes again; or a whole one."""
    number = 0
    while True:
        number += 1
        disk = SimulatedDisk(Random(number))
        disk.stop(after=number)
        try:
            with open_disk(disk) as storage:
                storage.initialize(Identity("attempt", "to", "begin", "x:1", "x:1"), ORIGIN)
            break
        except PowerCut:
            disk.crash()
            with open_disk(disk) as storage:
                if storage.identity is None:
                    storage.initialize(IDENTITY, ORIGIN)
                append(storage, 1, 3)
            with open_disk(disk) as storage:
                assert storage.identity is not None
                assert held(storage) == [(1, 1), (2, 1), (3, 1)]
    assert number > 20


def test_no_room_for_the_first_start(empty: SimulatedDisk) -> None:
    """At any point: the same call may be made again."""
    failures = 0
    with open_disk(empty) as storage:
        while storage.identity is None:
            empty.heal()
            empty.fail(errno.ENOSPC, "pwrite", "*", after=failures)
            with contextlib.suppress(StorageFullError):
                storage.initialize(IDENTITY, ORIGIN)
                break
            with pytest.raises(InternalError, match="before it was initialized"):
                append(storage, 1, 1)
            failures += 1
        empty.heal()
        append(storage, 1, 2)
    assert failures == 4  # zeros, the head of the segment, its first frame, meta
    with open_disk(empty) as storage:
        assert held(storage) == [(1, 1), (2, 1)]


def test_crash_at_any_point_of_joining() -> None:
    """From the first drawing of an incarnation to the membership with a snapshot: it never comes as another."""
    number, told = 0, 0
    while True:
        number += 1
        disk = SimulatedDisk(Random(number))
        disk.stop(after=number)
        incarnation = ""

        def join(storage: DiskStorage) -> None:
            nonlocal incarnation
            incarnation = storage.draw_incarnation()
            cover(storage, at(5, 2))
            storage.initialize(dataclasses.replace(IDENTITY, incarnation=incarnation), at(5, 2))

        try:
            with open_disk(disk) as storage:
                join(storage)
            break
        except PowerCut:
            disk.crash()
            before = incarnation
            with open_disk(disk) as storage:
                if storage.identity is None:
                    join(storage)
                else:
                    incarnation = storage.identity.incarnation
                told += bool(before)
                assert before in ("", incarnation)
                append(storage, 6, 7, term=2)
            with open_disk(disk) as storage:
                assert storage.identity == dataclasses.replace(IDENTITY, incarnation=incarnation)
                assert held(storage) == [(6, 2), (7, 2)]
                assert DIRECTORY / "incarnation" not in disk.files()
    assert told > 20


def test_crash_at_any_point_of_beginning_anew_elsewhere() -> None:
    """Who has crashed before it was a member may begin at another snapshot: nothing of the first log is left then."""
    number = 0
    while begin_anew(SimulatedDisk(Random(number)), operation="*", after=number):
        number += 1
    assert number > 20
    for seed in range(40):  # names that were changed, and not synced: any of them may be there
        assert begin_anew(SimulatedDisk(Random(seed)), operation="sync_directory", after=seed % 3)


def begin_anew(disk: SimulatedDisk, operation: str, after: int) -> bool:
    """Whether the power was cut in so many such calls of a second attempt; what is left is sound in any case."""

    def begin(storage: DiskStorage, index: int) -> None:
        cover(storage, at(index))
        storage.initialize(IDENTITY, at(index))

    disk.make_directory(DIRECTORY)
    disk.stop("create", "meta.tmp")
    with contextlib.suppress(PowerCut), open_disk(disk) as storage:
        begin(storage, 5)
    disk.crash()
    assert 1 == len(segments(disk))
    disk.stop(operation, "wal" if operation == "sync_directory" else "*", after=after)
    cut = False
    try:
        with open_disk(disk) as storage:
            begin(storage, 9)
    except PowerCut:
        cut = True
    disk.heal()
    disk.crash()
    with open_disk(disk) as storage:
        if storage.identity is None:
            begin(storage, 9)
        append(storage, 10, 11)
    with open_disk(disk) as storage:
        assert held(storage) == [(10, 1), (11, 1)]
    return cut


def test_crash_at_any_point_of_a_move(disk: SimulatedDisk) -> None:
    """It is at the one address or at the other, and everything is there."""
    number = 0
    found: set[str] = set()
    while True:
        copy = disk.copy(Random(number))
        with open_disk(copy) as storage:
            copy.stop(after=number)
            try:
                storage.move("moved:1", "moved:2")
                break
            except PowerCut:
                copy.crash()
        with open_disk(copy) as storage:
            assert storage.identity in (IDENTITY, dataclasses.replace(IDENTITY, address="moved:1", listen="moved:2"))
            found.add(storage.identity.address)
            assert len(held(storage)) == 6
            storage.move("moved:1", "moved:2")
            append(storage, 7, 7)
        number += 1
    assert {"10.0.0.1:7001", "moved:1"} == found


def test_no_room_for_a_move(disk: SimulatedDisk) -> None:
    """It stays where it was; the same call may be made again."""
    with open_disk(disk) as storage:
        disk.fail(errno.ENOSPC, "pwrite", "meta*")
        with pytest.raises(StorageFullError):
            storage.move("moved:1", "moved:2")
        assert storage.identity == IDENTITY
        disk.heal()
        storage.move("moved:1", "moved:2")
        append(storage, 7, 7)
    with open_disk(disk) as storage:
        assert storage.identity is not None
        assert ("moved:1", "moved:2") == (storage.identity.address, storage.identity.listen)


def test_nothing_of_a_failed_move_is_left(disk: SimulatedDisk) -> None:
    """What was to be a longer line must not show behind a shorter one."""
    with open_disk(disk) as storage:
        disk.fail(errno.ENOSPC, "rename", "meta")
        with pytest.raises(StorageFullError):
            storage.move("a-very-long-address-that-came-to-nothing:1", "moved:2")
        disk.heal()
        storage.move("m:1", "m:2")
    with open_disk(disk) as storage:
        assert storage.identity == dataclasses.replace(IDENTITY, address="m:1", listen="m:2")


def test_an_incarnation_beside_meta_is_forgotten(disk: SimulatedDisk) -> None:
    """A crash after ``meta`` was written leaves both: ``meta`` counts."""
    write_incarnation(disk, DIRECTORY, "drawn before")
    with open_disk(disk) as storage:
        assert storage.identity == IDENTITY
    assert DIRECTORY / "incarnation" not in disk.files()


@pytest.mark.parametrize("seed", range(8))
def test_snapshot_of_an_attempt_to_begin_is_forgotten(seed: int) -> None:
    """An attempt that began at a snapshot and crashed must not outlive one that begins at the origin."""
    disk = SimulatedDisk(Random(seed))
    with open_disk(disk) as storage:
        cover(storage, at(9))
    with open_disk(disk) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 4)
        with pytest.raises(InternalError, match="the newest snapshot is None"):
            storage.release(4)
    disk.crash()
    with open_disk(disk) as storage:
        assert storage.image.snapshot() == ORIGIN
        assert held(storage) == [(index, 1) for index in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["meta.tmp", "incarnation.tmp", "wal/segment-1.tmp", "snapshots/x.snap.1.tmp"])
def test_nothing_unfinished_outlives_a_start(disk: SimulatedDisk, name: str) -> None:
    """Wherever a crash has left it."""
    before = set(disk.files())
    disk.put(DIRECTORY / name, b"half of it")
    with open_disk(disk):
        assert before == set(disk.files())


def test_the_lock_is_held_to_the_end(tmp_path: Path) -> None:
    """Whoever has it next finds nobody in the files; whoever does not get it keeps no descriptor."""
    closed: list[str] = []

    class Watched(OsFileSystem):
        def open(self, path: Path, *, create: bool = False) -> File:
            file = super().open(path, create=create)
            close = file.close

            def told() -> None:
                closed.append(path.name)
                close()

            file.close = told  # type: ignore[method-assign]
            return file

    with contextlib.closing(DiskStorage(tmp_path, segment_bytes=4096, filesystem=Watched())) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 2)
        closed.clear()
        with pytest.raises(DataDirInUseError):
            DiskStorage(tmp_path, filesystem=Watched())
        assert ["lock"] == closed
        closed.clear()
    assert "lock" == closed[-1]
    assert len(closed) > 1


# -- snapshot and log --------------------------------------------------------------------------------------------------


def test_segments_go_only_when_they_are_covered(disk: SimulatedDisk) -> None:
    """By a snapshot that is durable; never the last one."""
    with open_disk(disk) as storage:
        count = len(segments(disk))
        assert count > 3
        with pytest.raises(InternalError):
            storage.release(4)
        assert len(segments(disk)) == count
        cover(storage, at(4))
        storage.release(4)
        remaining = len(segments(disk))
        assert 1 < remaining < count
        cover(storage, at(6))
        storage.release(6)
        assert len(segments(disk)) == 1
    with open_disk(disk) as storage:
        assert storage.image.snapshot() == at(6)
        append(storage, 7, 8)
    with open_disk(disk) as storage:
        assert held(storage) == [(7, 1), (8, 1)]


def test_gap_between_snapshot_and_log_is_damage(disk: SimulatedDisk) -> None:
    """The log was released up to a snapshot that is there no more (canonical/raft#199, hashicorp/raft#85)."""
    with open_disk(disk) as storage:
        cover(storage, at(2))
        cover(storage, at(5))
        storage.release(5)
    disk.remove(DIRECTORY / "snapshots" / f"{1:016x}-{5:016x}.snap")
    with pytest.raises(CorruptionError, match="first entry"):
        open_disk(disk)


def test_snapshot_that_the_log_rests_on_must_be_there(disk: SimulatedDisk) -> None:
    """Also where the log has no entries that would show the gap."""
    with open_disk(disk) as storage:
        cover(storage, at(9, 2))
        storage.write([Write(snapshot=at(9, 2))])
    disk.remove(DIRECTORY / "snapshots")
    with pytest.raises(CorruptionError, match="snapshot at 9"):
        open_disk(disk)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_snapshot_of_a_log_that_was_released_to_its_end_must_be_there(
    disk: SimulatedDisk, late: bool, older: bool
) -> None:
    """Whether the only segment that is left, which has no entries, was begun before the snapshot was taken or after.

    Else the peer would have lost what it has acknowledged, and would start as one that has never had it.
    """
    with open_disk(disk) as storage:
        if older:
            cover(storage, at(2))
        if not late:
            cover(storage, at(6))
        before = len(segments(disk))
        term = 1
        while len(segments(disk)) == before:
            term += 1
            storage.write([Write(hard_state=HardState(term, "a", 0))])
        if late:
            cover(storage, at(6))
        storage.release(6)
        assert 1 == len(segments(disk))
    with open_disk(disk) as storage:
        assert (6, [], 6) == (storage.image.snapshot().index, held(storage), storage.image.last_index())
    disk.remove(DIRECTORY / "snapshots" / f"{1:016x}-{6:016x}.snap")
    with pytest.raises(CorruptionError):
        open_disk(disk)


@pytest.mark.parametrize("torn", [False, True])
def test_a_segment_without_a_frame_rests_on_the_one_before(disk: SimulatedDisk, torn: bool) -> None:
    """Its first frame, which says whose log it is, and term and vote, found no room, or was torn."""
    with open_disk(disk) as storage:
        cover(storage, at(6))
        before = segments(disk)
        disk.fail(errno.ENOSPC, "pwrite", f"*-{7:016x}.wal")
        with pytest.raises(StorageFullError):
            append(storage, 7, 7)
        assert len(before) + 1 == len(segments(disk))
        if not torn:
            storage.release(6)
    disk.heal()
    disk.kill()
    with open_disk(disk) as storage:
        storage.release(6)
        assert 2 == len(segments(disk))
    with open_disk(disk) as storage:
        assert (IDENTITY, HardState(1, "a", 6)) == (storage.identity, storage.image.hard_state)
        append(storage, 7, 7)
        storage.release(6)
        assert 1 == len(segments(disk))
    with open_disk(disk) as storage:
        assert ([(7, 1)], HardState(1, "a", 6)) == (held(storage), storage.image.hard_state)


def test_log_that_begins_behind_the_snapshot_must_follow_it(disk: SimulatedDisk) -> None:
    """Entry s is gone, and entry s + 1 is of an older term than S: it follows another entry s.

    The log was released before it was replaced by the snapshot that was received.
    """
    with open_disk(disk) as storage:
        cover(storage, at(4, 3))
        storage.release(4)
    segment_of_the_fifth = segments(disk)[0]
    assert segment_of_the_fifth.name.endswith(f"-{5:016x}.wal")
    with open_disk(disk) as storage:
        assert held(storage) == []
        append(storage, 5, 5, term=3)
    with open_disk(disk) as storage:
        assert held(storage) == [(5, 3)]


def test_damaged_snapshot_is_told_at_the_start_or_when_it_is_read(disk: SimulatedDisk) -> None:
    """Its head at the start, its chunks when they are read."""
    with open_disk(disk) as storage:
        cover(storage, at(4))
    ((path, whole),) = ((path, data) for path, data in disk.files().items() if path.suffix == ".snap")
    disk.put(path, whole.replace(b"state", b"stale"))
    with (
        open_disk(disk) as storage,
        storage.open_snapshot(4) as (_, chunks),
        pytest.raises(CorruptionError),
    ):
        list(chunks)
    disk.put(path, b"x" + whole[1:])
    with pytest.raises(CorruptionError):
        open_disk(disk)


def test_no_room_at_the_start(disk: SimulatedDisk) -> None:
    """Where the start has something to write: nothing is lost, and the next start goes on."""
    with open_disk(disk) as storage:
        cover(storage, at(9, 2))
    disk.fail(errno.ENOSPC, "create", "segment-*")
    disk.fail(errno.ENOSPC, "pwrite", "*.wal", after=1)
    with pytest.raises(StorageFullError):
        open_disk(disk)
    disk.heal()
    with open_disk(disk) as storage:
        assert storage.image.snapshot() == at(9, 2)
        append(storage, 10, 10, term=2)
    with open_disk(disk) as storage:
        assert held(storage) == [(10, 2)]


def test_no_thread_outlives_close(tmp_path: Path) -> None:
    """Segments are prepared in a thread, which ends with the storage."""
    with contextlib.closing(DiskStorage(tmp_path, segment_bytes=4096)) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 1)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("replikv")] == []
    assert not [path for path in (tmp_path / "wal").iterdir() if path.suffix == ".tmp"]


def test_failed_sync_ends_the_writes(empty: SimulatedDisk) -> None:
    """Every further write fails at once; ``close`` still works, and the next start reads what is there."""
    with open_disk(empty) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 1)
        empty.fail(errno.EIO, "fdatasync", "*.wal")
        with pytest.raises(StorageError):
            append(storage, 2, 2)
        empty.heal()
        with pytest.raises(StorageError, match="restart"):
            append(storage, 3, 3)
    with open_disk(empty) as storage:
        assert held(storage)[:1] == [(1, 1)]
