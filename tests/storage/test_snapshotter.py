"""Snapshot files: whole or not there, and checked chunk by chunk."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from faulty_filesystem import FaultyFileSystem, broken, no_room

from replikv.errors import CorruptionError, InternalError, StorageError
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.storage.base import StorageFullError
from replikv.storage.chunkfile import SYNC_BYTES
from replikv.storage.filesystem import FileSystem
from replikv.storage.snapshotter import Snapshotter

MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})


def at(index: int, term: int = 1) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, MEMBERSHIP)


def snapshotter(directory: Path, filesystem: FileSystem | None = None, kept: int = 2) -> Snapshotter:
    return Snapshotter(filesystem or FaultyFileSystem(), directory, kept=kept)


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


def test_snapshot_survives_a_restart(tmp_path: Path) -> None:
    """Under a name of its term and index."""
    take(snapshotter(tmp_path), at(255, 3), b"one", b"", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000000003-00000000000000ff.snap"]
    assert (at(255, 3), [b"one", b"", b"two"]) == read(snapshotter(tmp_path))


def test_newest_are_kept(tmp_path: Path) -> None:
    """As many as asked for, by index."""
    snapshots = snapshotter(tmp_path, kept=2)
    for index, term in ((1, 9), (5, 1), (3, 1), (7, 1)):
        take(snapshots, at(index, term))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{1:016x}-{5:016x}.snap",
        f"{1:016x}-{7:016x}.snap",
    ]
    assert snapshots.newest == at(7) == snapshotter(tmp_path).newest


def test_durable_before_it_is_visible(tmp_path: Path) -> None:
    """Synced, renamed, directory synced; and synced in steps, so that no sync of the log waits behind all of it."""
    filesystem = FaultyFileSystem()
    snapshots = snapshotter(tmp_path, filesystem)
    filesystem.calls.clear()
    take(snapshots, at(1), *[bytes(SYNC_BYTES // 4)] * 9)
    name = f"{1:016x}-{1:016x}.snap"
    temporary = f"{name}.1.tmp"
    steps = [call for call in filesystem.calls if call[0] != "pwrite"]
    assert [
        ("create", temporary),
        ("fdatasync", temporary),
        ("fdatasync", temporary),
        ("fsync", temporary),
        ("rename", name),
        ("sync_directory", tmp_path.name),
    ] == steps


def test_no_room_for_a_snapshot(tmp_path: Path) -> None:
    """What there was stays; nothing of the new one does, and it may be tried again."""
    filesystem = FaultyFileSystem()
    snapshots = snapshotter(tmp_path, filesystem)
    take(snapshots, at(1), b"old")
    for after in range(3):
        filesystem.fault("pwrite", "*", no_room, after=after)
        with pytest.raises(StorageFullError):
            take(snapshots, at(2), b"new")
        filesystem.heal()
        assert len(list(tmp_path.iterdir())) == 1
    assert (at(1), [b"old"]) == read(snapshots)
    take(snapshots, at(2), b"new")
    assert (at(2), [b"new"]) == read(snapshots)


@pytest.mark.parametrize(("operation", "pattern"), [("fsync", "*"), ("rename", "*"), ("sync_directory", "*")])
def test_snapshot_that_is_not_durable_does_not_count(tmp_path: Path, operation: str, pattern: str) -> None:
    """It is not the newest, whatever its name is by then."""
    filesystem = FaultyFileSystem()
    snapshots = snapshotter(tmp_path, filesystem)
    filesystem.fault(operation, pattern, broken)
    with pytest.raises(StorageError):
        take(snapshots, at(2), b"new")
    assert snapshots.newest is None


def test_writer_is_done_after_its_end(tmp_path: Path) -> None:
    """Nothing is written to a file that is somebody else's by now."""
    snapshots = snapshotter(tmp_path)
    writer = snapshots.create(at(1))
    writer.commit()
    with pytest.raises(InternalError):
        writer.write(b"late")


def test_any_byte_changed_is_damage(tmp_path: Path) -> None:
    """With the file, and an offset at or before it: a snapshot was synced before it had its name, it is never torn."""
    take(snapshotter(tmp_path), at(1), b"first chunk", b"second chunk")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(CorruptionError) as caught:
            read(snapshotter(tmp_path))
        assert str(path) == caught.value.file
        assert caught.value.offset <= position


def test_any_other_length_is_damage(tmp_path: Path) -> None:
    """Cut anywhere, or with something behind its trailer."""
    take(snapshotter(tmp_path), at(1), b"first chunk", b"second chunk")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptionError):
            read(snapshotter(tmp_path))
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptionError):
        read(snapshotter(tmp_path))


def test_chunks_before_the_damage_are_given(tmp_path: Path) -> None:
    """Each is checked as it is read: none that is wrong is ever given out."""
    take(snapshotter(tmp_path), at(1), b"first chunk", b"second chunk")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"second", b"sec0nd"))
    with snapshotter(tmp_path).open(1) as (_, chunks):
        assert next(chunks) == b"first chunk"
        with pytest.raises(CorruptionError):
            next(chunks)


def test_snapshot_under_another_name_is_damage(tmp_path: Path) -> None:
    """The name must be what the head says."""
    take(snapshotter(tmp_path), at(1))
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / f"{1:016x}-{9:016x}.snap")
    with pytest.raises(CorruptionError):
        snapshotter(tmp_path)


def test_snapshot_of_a_newer_format_says_so(tmp_path: Path) -> None:
    """It is not called damage."""
    take(snapshotter(tmp_path), at(1))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack(">I", 2)
    end = 16 + struct.unpack_from(">I", data, 12)[0]
    data[end : end + 4] = struct.pack(">I", zlib.crc32(data[:end]))
    path.write_bytes(data)
    with pytest.raises(StorageError, match="format 2"):
        snapshotter(tmp_path)


def test_half_a_snapshot_is_removed_at_the_start(tmp_path: Path) -> None:
    """What a crash has left unfinished has no claim to anything."""
    writer = snapshotter(tmp_path).create(at(1))
    writer.write(b"half")
    assert len(list(tmp_path.iterdir())) == 1
    assert snapshotter(tmp_path).newest is None
    assert list(tmp_path.iterdir()) == []
    writer.abort()
