"""Snapshot files: whole or not there, and checked chunk by chunk."""

from __future__ import annotations

import errno
import struct
import threading
import zlib
from pathlib import Path
from random import Random

import pytest

from replikv.errors import CorruptionError, InternalError, StorageError
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.storage.base import StorageFullError
from replikv.storage.chunkfile import SYNC_BYTES
from replikv.storage.filesystem import File
from replikv.storage.snapshotter import Snapshotter
from replikv.testing.simulated_disk import PowerCut, SimulatedDisk

DIRECTORY = Path("/snapshots")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})


def at(index: int, term: int = 1) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, MEMBERSHIP)


@pytest.fixture
def disk() -> SimulatedDisk:
    """With a directory, and nothing in it."""
    disk = SimulatedDisk(Random(0))
    disk.make_directory(DIRECTORY)
    return disk


def snapshotter(disk: SimulatedDisk, kept: int = 2) -> Snapshotter:
    return Snapshotter(disk, DIRECTORY, kept=kept)


def only_file(disk: SimulatedDisk) -> tuple[Path, bytes]:
    ((path, data),) = disk.files().items()
    return path, data


def take(snapshots: Snapshotter, metadata: SnapshotMetadata, *chunks: bytes) -> None:
    writer = snapshots.create(metadata)
    try:
        for chunk in chunks:
            writer.write(chunk)
        writer.commit()
    finally:
        writer.abort()


def read(snapshots: Snapshotter, index: int = 0) -> tuple[SnapshotMetadata, list[bytes]]:
    with snapshots.open(index) as (metadata, chunks):
        return metadata, list(chunks)


def test_snapshot_survives_a_restart(disk: SimulatedDisk) -> None:
    """Under a name of its term and index."""
    take(snapshotter(disk), at(255, 3), b"one", b"", b"two")
    assert disk.list_directory(DIRECTORY) == ["0000000000000003-00000000000000ff.snap"]
    assert (at(255, 3), [b"one", b"", b"two"]) == read(snapshotter(disk))


def test_newest_are_kept(disk: SimulatedDisk) -> None:
    """As many as asked for, by index."""
    snapshots = snapshotter(disk, kept=2)
    for index, term in ((1, 9), (5, 1), (3, 1), (7, 1)):
        take(snapshots, at(index, term))
    assert disk.list_directory(DIRECTORY) == [
        f"{1:016x}-{5:016x}.snap",
        f"{1:016x}-{7:016x}.snap",
    ]
    assert snapshots.newest == at(7) == snapshotter(disk).newest


@pytest.mark.parametrize("kept", [1, 2])
def test_a_crash_leaves_the_one_before_or_the_new_one(kept: int) -> None:
    """At any point, and whichever changes of names the disk has: an older one goes when the new one is durable."""
    crashes = 0
    for seed in range(6):
        after = 0
        while True:
            disk = SimulatedDisk(Random(f"{seed}/{after}"))
            disk.make_directory(DIRECTORY)
            snapshots = snapshotter(disk, kept)
            for index in range(1, kept + 1):
                take(snapshots, at(index), b"%d" % index)
            disk.stop(after=after)
            try:
                take(snapshots, at(9), b"9")
            except PowerCut:
                crashes += 1
            else:
                break
            disk.crash()
            again = snapshotter(disk, kept)
            assert again.newest in (at(kept), at(9))
            assert [b"%d" % again.newest.index] == read(again)[1]
            assert kept <= len(disk.list_directory(DIRECTORY)) <= kept + 1
            after += 1
    assert crashes > 30


def test_no_room_to_remove_an_older_one(disk: SimulatedDisk) -> None:
    """The new one is durable all the same; the next removes both."""
    snapshots = snapshotter(disk, kept=1)
    take(snapshots, at(1))
    disk.fail(errno.ENOSPC, "unlink", "*.snap")
    take(snapshots, at(2), b"two")
    assert (at(2), [b"two"]) == read(snapshots)
    assert 2 == len(disk.list_directory(DIRECTORY))
    disk.heal()
    take(snapshots, at(3))
    assert 1 == len(disk.list_directory(DIRECTORY))


def test_a_reader_is_closed_with_its_block(disk: SimulatedDisk) -> None:
    """A follower that is sent a snapshot again and again costs no descriptor."""
    snapshots = snapshotter(disk)
    take(snapshots, at(1), b"one")
    with snapshots.open(1) as (_, chunks):
        pass
    with pytest.raises(InternalError, match="after it was closed"):
        next(chunks)


def test_the_newest_is_not_removed_between_being_found_and_opened() -> None:
    """By a newer one that another thread has finished just then."""
    meanwhile: list[threading.Thread] = []

    class Disk(SimulatedDisk):
        def open(self, path: Path, *, create: bool = False) -> File:
            if not create and path.suffix == ".snap" and not meanwhile:
                meanwhile.append(threading.Thread(target=take, args=(snapshots, at(2), b"two")))
                meanwhile[0].start()
                meanwhile[0].join(0.05)  # as far as it gets
            return super().open(path, create=create)

    disk = Disk(Random(0))
    disk.make_directory(DIRECTORY)
    snapshots = snapshotter(disk, kept=1)
    take(snapshots, at(1), b"one")
    assert (at(1), [b"one"]) == read(snapshots)
    meanwhile[0].join()
    assert (at(2), [b"two"]) == read(snapshots)


def test_durable_before_it_is_visible(disk: SimulatedDisk) -> None:
    """Synced, renamed, directory synced; and synced in steps, so that no sync of the log waits behind all of it."""
    snapshots = snapshotter(disk)
    disk.calls.clear()
    take(snapshots, at(1), *[bytes(SYNC_BYTES // 4)] * 9)
    name = f"{1:016x}-{1:016x}.snap"
    temporary = f"{name}.1.tmp"
    steps = [call for call in disk.calls if call[0] not in ("pwrite", "list_directory")]
    assert [
        ("create", temporary),
        ("fdatasync", temporary),
        ("fdatasync", temporary),
        ("fsync", temporary),
        ("rename", name),
        ("sync_directory", DIRECTORY.name),
    ] == steps


def test_no_room_for_a_snapshot(disk: SimulatedDisk) -> None:
    """What there was stays; nothing of the new one does, and it may be tried again."""
    snapshots = snapshotter(disk)
    take(snapshots, at(1), b"old")
    for after in range(3):
        disk.fail(errno.ENOSPC, "pwrite", "*", after=after)
        with pytest.raises(StorageFullError):
            take(snapshots, at(2), b"new")
        disk.heal()
        assert len(list(disk.files())) == 1
    assert (at(1), [b"old"]) == read(snapshots)
    take(snapshots, at(2), b"new")
    assert (at(2), [b"new"]) == read(snapshots)


@pytest.mark.parametrize(("operation", "pattern"), [("fsync", "*"), ("rename", "*"), ("sync_directory", "*")])
def test_snapshot_that_is_not_durable_does_not_count(disk: SimulatedDisk, operation: str, pattern: str) -> None:
    """It is not the newest, whatever its name is by then."""
    snapshots = snapshotter(disk)
    disk.fail(errno.EIO, operation, pattern)
    with pytest.raises(StorageError):
        take(snapshots, at(2), b"new")
    assert snapshots.newest is None


def test_writer_is_done_after_its_end(disk: SimulatedDisk) -> None:
    """Nothing is written to a file that is somebody else's by now."""
    snapshots = snapshotter(disk)
    writer = snapshots.create(at(1))
    writer.commit()
    with pytest.raises(InternalError):
        writer.write(b"late")


def test_any_byte_changed_is_damage(disk: SimulatedDisk) -> None:
    """With the file, and an offset at or before it: a snapshot was synced before it had its name, it is never torn."""
    take(snapshotter(disk), at(1), b"first chunk", b"second chunk")
    path, whole = only_file(disk)
    for position in range(len(whole)):
        disk.put(path, whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(CorruptionError) as caught:
            read(snapshotter(disk))
        assert str(path) == caught.value.file
        assert caught.value.offset <= position


def test_any_other_length_is_damage(disk: SimulatedDisk) -> None:
    """Cut anywhere, or with something behind its trailer."""
    take(snapshotter(disk), at(1), b"first chunk", b"second chunk")
    path, whole = only_file(disk)
    for length in range(len(whole)):
        disk.put(path, whole[:length])
        with pytest.raises(CorruptionError):
            read(snapshotter(disk))
    disk.put(path, whole + b"\0")
    with pytest.raises(CorruptionError):
        read(snapshotter(disk))


def test_chunks_before_the_damage_are_given(disk: SimulatedDisk) -> None:
    """Each is checked as it is read: none that is wrong is ever given out."""
    take(snapshotter(disk), at(1), b"first chunk", b"second chunk")
    path, whole = only_file(disk)
    disk.put(path, whole.replace(b"second", b"sec0nd"))
    with snapshotter(disk).open(1) as (_, chunks):
        assert next(chunks) == b"first chunk"
        with pytest.raises(CorruptionError):
            next(chunks)


@pytest.mark.parametrize(("term", "index"), [(1, 9), (2, 1)])
def test_snapshot_under_another_name_is_damage(disk: SimulatedDisk, term: int, index: int) -> None:
    """The name must be what the head says."""
    take(snapshotter(disk), at(1))
    path, _ = only_file(disk)
    disk.rename(path, DIRECTORY / f"{term:016x}-{index:016x}.snap")
    with pytest.raises(CorruptionError):
        snapshotter(disk)


def test_snapshot_of_a_newer_format_says_so(disk: SimulatedDisk) -> None:
    """It is not called damage."""
    take(snapshotter(disk), at(1))
    path, whole = only_file(disk)
    data = bytearray(whole)
    data[8:12] = struct.pack(">I", 2)
    end = 16 + struct.unpack_from(">I", data, 12)[0]
    data[end : end + 4] = struct.pack(">I", zlib.crc32(data[:end]))
    disk.put(path, bytes(data))
    with pytest.raises(StorageError, match="format 2"):
        snapshotter(disk)


def test_half_a_snapshot_is_removed_at_the_start(disk: SimulatedDisk) -> None:
    """What a crash has left unfinished has no claim to anything, and is never gone on with (logcabin#174)."""
    writer = snapshotter(disk).create(at(1))
    writer.write(b"half")
    assert len(list(disk.files())) == 1
    assert snapshotter(disk).newest is None
    assert list(disk.files()) == []
    writer.abort()
