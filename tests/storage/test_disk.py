"""The storage of a peer with a disk: starts, crashes, and who the directory belongs to."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from pathlib import Path

import pytest
from faulty_filesystem import CrashError, FaultyFileSystem, broken, crash, no_room

from replikv.errors import CorruptionError, DataDirInUseError, InternalError, StorageError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import Identity, StorageFullError
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import FileSystem, OsFileSystem
from replikv.storage.meta import write_incarnation

IDENTITY = Identity("cluster", "a", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})
ORIGIN = SnapshotMetadata(0, 0, MEMBERSHIP)


def open_disk(directory: Path, filesystem: FileSystem | None = None) -> contextlib.closing[DiskStorage]:
    return contextlib.closing(
        DiskStorage(
            directory,
            segment_bytes=4096,
            filesystem=filesystem or FaultyFileSystem(),
            prepare_ahead=filesystem is None,
        )
    )


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
def directory(tmp_path: Path) -> Path:
    """A directory with six entries in several segments, closed."""
    path = tmp_path / "state" / "a"
    with open_disk(path) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 6)
    return path


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "wal").iterdir())


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_directory_has_one_owner(directory: Path) -> None:
    """A second opening is refused, by name, until the first is closed."""
    with open_disk(directory), pytest.raises(DataDirInUseError, match=str(directory)):
        open_disk(directory)
    with open_disk(directory) as storage:
        assert storage.identity == IDENTITY


def test_failed_opening_gives_the_lock_back(directory: Path) -> None:
    """So that it may be tried again once the cause is gone."""
    filesystem = FaultyFileSystem()
    filesystem.fault("pread", "meta", broken)
    with pytest.raises(StorageError, match="input/output"):
        open_disk(directory, filesystem)
    with open_disk(directory) as storage:
        assert storage.identity == IDENTITY


@pytest.mark.parametrize("part", ["lock", "probe.tmp"])
def test_read_only_directory_fails_at_the_start(directory: Path, part: str) -> None:
    """Not at the first segment that is full."""
    filesystem = FaultyFileSystem()
    filesystem.fault("create", part, broken)
    with pytest.raises(StorageError):
        open_disk(directory, filesystem)


def test_log_of_another_peer_is_refused(directory: Path, tmp_path: Path) -> None:
    """Directories whose parts were mixed up."""
    other = tmp_path / "b"
    with open_disk(other) as storage:
        storage.initialize(Identity("cluster", "b", "other", "x:1", "x:1"), ORIGIN)
    shutil.rmtree(directory / "wal")
    shutil.copytree(other / "wal", directory / "wal")
    with pytest.raises(CorruptionError, match="another peer"):
        open_disk(directory)


def test_missing_log_is_damage(directory: Path) -> None:
    """The directory was initialized, so the log had a segment."""
    shutil.rmtree(directory / "wal")
    with pytest.raises(CorruptionError, match="meta"):
        open_disk(directory)


def test_missing_meta_is_damage(directory: Path) -> None:
    """A log that was written to is never taken for an empty directory, and initialized over."""
    (directory / "meta").unlink()
    with pytest.raises(CorruptionError, match="missing"):
        open_disk(directory)


# -- initialize --------------------------------------------------------------------------------------------------------


def test_crash_at_any_point_of_the_first_start(tmp_path: Path) -> None:
    """What is left is an empty storage, which initializes again; or a whole one."""
    number = 0
    while True:
        number += 1
        directory = tmp_path / str(number)
        filesystem = FaultyFileSystem()
        filesystem.fault("*", "*", crash, after=number)
        try:
            with open_disk(directory, filesystem) as storage:
                storage.initialize(Identity("attempt", "to", "begin", "x:1", "x:1"), ORIGIN)
            break
        except CrashError:
            with open_disk(directory) as storage:
                if storage.identity is None:
                    storage.initialize(IDENTITY, ORIGIN)
                append(storage, 1, 3)
            with open_disk(directory) as storage:
                assert storage.identity is not None
                assert held(storage) == [(1, 1), (2, 1), (3, 1)]
    assert number > 20


def test_no_room_for_the_first_start(tmp_path: Path) -> None:
    """At any point: the same call may be made again."""
    filesystem = FaultyFileSystem()
    failures = 0
    with open_disk(tmp_path, filesystem) as storage:
        while storage.identity is None:
            filesystem.heal()
            filesystem.fault("pwrite", "*", no_room, after=failures)
            with contextlib.suppress(StorageFullError):
                storage.initialize(IDENTITY, ORIGIN)
                break
            failures += 1
        filesystem.heal()
        append(storage, 1, 2)
    assert failures == 4  # zeros, the head of the segment, its first frame, meta
    with open_disk(tmp_path) as storage:
        assert held(storage) == [(1, 1), (2, 1)]


def test_crash_at_any_point_of_joining(tmp_path: Path) -> None:
    """From the first drawing of an incarnation to the membership with a snapshot: it never comes as another."""
    number, told = 0, 0
    while True:
        number += 1
        directory = tmp_path / str(number)
        filesystem = FaultyFileSystem()
        filesystem.fault("*", "*", crash, after=number)
        incarnation = ""

        def join(storage: DiskStorage) -> None:
            nonlocal incarnation
            incarnation = storage.draw_incarnation()
            cover(storage, at(5, 2))
            storage.initialize(dataclasses.replace(IDENTITY, incarnation=incarnation), at(5, 2))

        try:
            with open_disk(directory, filesystem) as storage:
                join(storage)
            break
        except CrashError:
            before = incarnation
            with open_disk(directory) as storage:
                if storage.identity is None:
                    join(storage)
                else:
                    incarnation = storage.identity.incarnation
                told += bool(before)
                assert before in ("", incarnation)
                append(storage, 6, 7, term=2)
            with open_disk(directory) as storage:
                assert storage.identity == dataclasses.replace(IDENTITY, incarnation=incarnation)
                assert held(storage) == [(6, 2), (7, 2)]
                assert not (directory / "incarnation").exists()
    assert told > 20


def test_crash_at_any_point_of_a_move(directory: Path, tmp_path: Path) -> None:
    """It is at the one address or at the other, and everything is there."""
    number = 0
    found: set[str] = set()
    while True:
        copy = tmp_path / str(number)
        shutil.copytree(directory, copy)
        filesystem = FaultyFileSystem()
        with open_disk(copy, filesystem) as storage:
            filesystem.fault("*", "*", crash, after=number)
            try:
                storage.move("moved:1", "moved:2")
                break
            except CrashError:
                pass
        with open_disk(copy) as storage:
            assert storage.identity in (IDENTITY, dataclasses.replace(IDENTITY, address="moved:1", listen="moved:2"))
            found.add(storage.identity.address)
            assert len(held(storage)) == 6
            storage.move("moved:1", "moved:2")
            append(storage, 7, 7)
        number += 1
    assert {"10.0.0.1:7001", "moved:1"} == found


def test_no_room_for_a_move(directory: Path) -> None:
    """It stays where it was; the same call may be made again."""
    filesystem = FaultyFileSystem()
    with open_disk(directory, filesystem) as storage:
        filesystem.fault("pwrite", "meta*", no_room)
        with pytest.raises(StorageFullError):
            storage.move("moved:1", "moved:2")
        assert storage.identity == IDENTITY
        filesystem.heal()
        storage.move("moved:1", "moved:2")
        append(storage, 7, 7)
    with open_disk(directory) as storage:
        assert storage.identity is not None
        assert ("moved:1", "moved:2") == (storage.identity.address, storage.identity.listen)


def test_nothing_of_a_failed_move_is_left(directory: Path) -> None:
    """What was to be a longer line must not show behind a shorter one."""
    filesystem = FaultyFileSystem()
    with open_disk(directory, filesystem) as storage:
        filesystem.fault("rename", "meta", no_room)
        with pytest.raises(StorageFullError):
            storage.move("a-very-long-address-that-came-to-nothing:1", "moved:2")
        filesystem.heal()
        storage.move("m:1", "m:2")
    with open_disk(directory) as storage:
        assert storage.identity == dataclasses.replace(IDENTITY, address="m:1", listen="m:2")


def test_an_incarnation_beside_meta_is_forgotten(directory: Path) -> None:
    """A crash after ``meta`` was written leaves both: ``meta`` counts."""
    write_incarnation(OsFileSystem(), directory, "drawn before")
    with open_disk(directory) as storage:
        assert storage.identity == IDENTITY
    assert not (directory / "incarnation").exists()


def test_snapshot_of_an_attempt_to_begin_is_forgotten(tmp_path: Path) -> None:
    """An attempt that began at a snapshot and crashed must not outlive one that begins at the origin."""
    with open_disk(tmp_path) as storage:
        cover(storage, at(9))
    with open_disk(tmp_path) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 1)
    with open_disk(tmp_path) as storage:
        assert storage.image.snapshot() == ORIGIN
        assert held(storage) == [(1, 1)]


# -- snapshot and log --------------------------------------------------------------------------------------------------


def test_segments_go_only_when_they_are_covered(directory: Path) -> None:
    """By a snapshot that is durable; never the last one."""
    with open_disk(directory) as storage:
        count = len(segments(directory))
        assert count > 3
        with pytest.raises(InternalError):
            storage.release(4)
        assert len(segments(directory)) == count
        cover(storage, at(4))
        storage.release(4)
        remaining = len(segments(directory))
        assert 1 < remaining < count
        cover(storage, at(6))
        storage.release(6)
        assert len(segments(directory)) == 1
    with open_disk(directory) as storage:
        assert storage.image.snapshot() == at(6)
        append(storage, 7, 8)
    with open_disk(directory) as storage:
        assert held(storage) == [(7, 1), (8, 1)]


def test_gap_between_snapshot_and_log_is_damage(directory: Path) -> None:
    """The log was released up to a snapshot that is there no more (canonical/raft#199, hashicorp/raft#85)."""
    with open_disk(directory) as storage:
        cover(storage, at(2))
        cover(storage, at(5))
        storage.release(5)
    (directory / "snapshots" / f"{1:016x}-{5:016x}.snap").unlink()
    with pytest.raises(CorruptionError, match="first entry"):
        open_disk(directory)


def test_snapshot_that_the_log_rests_on_must_be_there(directory: Path) -> None:
    """Also where the log has no entries that would show the gap."""
    with open_disk(directory) as storage:
        cover(storage, at(9, 2))
        storage.write([Write(snapshot=at(9, 2))])
    shutil.rmtree(directory / "snapshots")
    with pytest.raises(CorruptionError, match="snapshot at 9"):
        open_disk(directory)


def test_log_that_begins_behind_the_snapshot_must_follow_it(directory: Path) -> None:
    """Entry s is gone, and entry s + 1 is of an older term than S: it follows another entry s.

    The log was released before it was replaced by the snapshot that was received.
    """
    with open_disk(directory) as storage:
        cover(storage, at(4, 3))
        storage.release(4)
    segment_of_the_fifth = segments(directory)[0]
    assert segment_of_the_fifth.name.endswith(f"-{5:016x}.wal")
    with open_disk(directory) as storage:
        assert held(storage) == []
        append(storage, 5, 5, term=3)
    with open_disk(directory) as storage:
        assert held(storage) == [(5, 3)]


def test_damaged_snapshot_is_told_at_the_start_or_when_it_is_read(directory: Path) -> None:
    """Its head at the start, its chunks when they are read."""
    with open_disk(directory) as storage:
        cover(storage, at(4))
    (path,) = (directory / "snapshots").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"state", b"stale"))
    with (
        open_disk(directory) as storage,
        storage.open_snapshot(4) as (_, chunks),
        pytest.raises(CorruptionError),
    ):
        list(chunks)
    path.write_bytes(b"x" + whole[1:])
    with pytest.raises(CorruptionError):
        open_disk(directory)


def test_no_room_at_the_start(directory: Path) -> None:
    """Where the start has something to write: nothing is lost, and the next start goes on."""
    with open_disk(directory) as storage:
        cover(storage, at(9, 2))
    filesystem = FaultyFileSystem()
    filesystem.fault("create", "segment-*", no_room)
    filesystem.fault("pwrite", "*.wal", no_room, after=1)
    with pytest.raises(StorageFullError):
        open_disk(directory, filesystem)
    with open_disk(directory) as storage:
        assert storage.image.snapshot() == at(9, 2)
        append(storage, 10, 10, term=2)
    with open_disk(directory) as storage:
        assert held(storage) == [(10, 2)]


def test_no_thread_outlives_close(tmp_path: Path) -> None:
    """Segments are prepared in a thread, which ends with the storage."""
    with open_disk(tmp_path) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 1)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("replikv")] == []
    assert not [path for path in (tmp_path / "wal").iterdir() if path.suffix == ".tmp"]


def test_failed_sync_ends_the_writes(tmp_path: Path) -> None:
    """Every further write fails at once; ``close`` still works, and the next start reads what is there."""
    filesystem = FaultyFileSystem()
    with open_disk(tmp_path, filesystem) as storage:
        storage.initialize(IDENTITY, ORIGIN)
        append(storage, 1, 1)
        filesystem.fault("fdatasync", "*.wal", broken)
        with pytest.raises(StorageError):
            append(storage, 2, 2)
        filesystem.heal()
        with pytest.raises(StorageError, match="restart"):
            append(storage, 3, 3)
    with open_disk(tmp_path) as storage:
        assert held(storage)[:1] == [(1, 1)]
