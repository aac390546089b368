"""The write-ahead log: torn writes are cut, damage is told, one write is one sync.

The cases of etcd's WAL tests are named where they apply. Ours differs on purpose in two points: a frame is exactly what
one sync covered, so whatever is followed by another frame cannot be torn; and segments are filled with zeros and synced
before use, so a file that is shorter than it was made was cut by somebody else: damage too.
"""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path
from random import Random

import pytest

from replikv.errors import CorruptionError, InternalError, StorageError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import SECTOR_BYTES
from replikv.storage.frames import HEADER_BYTES
from replikv.storage.recovery import LogScan, Replay, scan_log
from replikv.storage.segments import FRAMES_START
from replikv.storage.wal import Wal
from replikv.testing.simulated_disk import SimulatedDisk

ORIGIN = SnapshotMetadata(0, 0, Membership.of_voters({"a": "10.0.0.1:7001"}))
DIRECTORY = Path("/wal")
SEGMENT_BYTES = 16 * 1024
ONE_SEGMENT = "0000000000000001-0000000000000001.wal"


def create(disk: SimulatedDisk, segment_bytes: int = SEGMENT_BYTES) -> Wal:
    return Wal.create(
        disk,
        DIRECTORY,
        segment_bytes=segment_bytes,
        ahead=False,
        identity=b"me",
        marker=ORIGIN,
        hard_state=HardState(),
    )


def reopen(disk: SimulatedDisk) -> tuple[Wal, Replay]:
    opened = Wal.open(disk, DIRECTORY, segment_bytes=SEGMENT_BYTES, ahead=False)
    assert opened is not None
    return opened


def read_back(disk: SimulatedDisk) -> list[int]:
    """The indexes of the entries, after a restart."""
    wal, replay = reopen(disk)
    wal.close()
    return [entry.index for entry in replay.entries]


def names(disk: SimulatedDisk) -> list[str]:
    return sorted(path.name for path in disk.files())


def entry(index: int, size: int = 20, term: int = 1) -> Write:
    return Write(entries=(Entry(index, term, bytes([index % 251 + 1]) * size),), hard_state=HardState(term, "a", 0))


def frames(disk: SimulatedDisk, path: Path) -> list[tuple[int, int]]:
    """(offset, end) of the frames in the file, found by their marks alone."""
    data = disk.read(path)
    starts = [at for at in range(FRAMES_START, len(data), SECTOR_BYTES) if data[at] == 0xA5]
    used = max(at for at in range(0, len(data), SECTOR_BYTES) if data[at]) + SECTOR_BYTES
    return list(zip(starts, [*starts[1:], used], strict=True))


@pytest.fixture
def disk() -> SimulatedDisk:
    """With a directory, and nothing in it."""
    disk = SimulatedDisk(Random(0))
    disk.make_directory(DIRECTORY)
    return disk


@pytest.fixture
def log(disk: SimulatedDisk) -> Path:
    """A log of a head and four frames: entries 1 to 4, of one, two, one and four sectors."""
    wal = create(disk)
    for index, size in ((1, 20), (2, 600), (3, 100), (4, 1800)):
        wal.write([entry(index, size)])
    wal.close()
    path = DIRECTORY / ONE_SEGMENT
    assert [SECTOR_BYTES * n for n in (1, 1, 2, 1, 4)] == [end - start for start, end in frames(disk, path)]
    return path


def patch(disk: SimulatedDisk, path: Path, offset: int, data: bytes) -> None:
    content = bytearray(disk.read(path))
    content[offset : offset + len(data)] = data
    disk.put(path, bytes(content))


# -- one write is one sync ---------------------------------------------------------------------------------------------


def test_one_write_is_one_pwrite_and_one_fdatasync(disk: SimulatedDisk) -> None:
    """However many writes are handed over together, and however large."""
    wal = create(disk)
    for writes in ([entry(1)], [entry(2), entry(3, 3000), entry(4)], [Write(hard_state=HardState(9, "b", 3))]):
        disk.calls.clear()
        wal.write(writes)
        assert disk.calls == [("pwrite", ONE_SEGMENT), ("fdatasync", ONE_SEGMENT)]
    wal.close()


def test_write_of_nothing_touches_no_disk(disk: SimulatedDisk) -> None:
    """etcd: a save with an empty hard state and no entries does nothing."""
    wal = create(disk)
    disk.calls.clear()
    wal.write([Write(), Write()])
    assert disk.calls == []
    wal.close()


def test_entries_that_leave_a_gap_are_refused_before_they_are_written(disk: SimulatedDisk) -> None:
    """The log never holds what its next start would call damage; the log goes on."""
    wal = create(disk)
    wal.write([entry(1)])
    with pytest.raises(InternalError):
        wal.write([entry(3)])
    wal.write([entry(2)])
    wal.close()
    assert read_back(disk) == [1, 2]


# -- torn --------------------------------------------------------------------------------------------------------------


def test_any_sector_missing_of_the_last_frame_is_torn(disk: SimulatedDisk, log: Path) -> None:
    """The frame is cut, the ones before it stay, and what is appended after it is read back.

    A torn tail that refuses to start: etcd#5230; that is not cut, and hides later entries: amelie#17. etcd:
    TestRepairTruncate, TestOpenOnTornWrite.
    """
    whole = disk.read(log)
    start, end = frames(disk, log)[-1]
    for missing in range(start, end, SECTOR_BYTES):
        disk.put(log, whole)
        patch(disk, log, missing, bytes(SECTOR_BYTES))
        wal, replay = reopen(disk)
        assert [each.index for each in replay.entries] == [1, 2, 3]
        wal.write([entry(4, 5)])
        wal.write([entry(5, 700)])
        wal.close()
        assert read_back(disk) == [1, 2, 3, 4, 5]


def test_only_the_first_sectors_written(disk: SimulatedDisk, log: Path) -> None:
    """A write that reached the disk in part, from its beginning: torn wherever it ends.

    etcd: TestRepairWriteTearLast. Where none of it was written there is nothing to cut.
    """
    whole = disk.read(log)
    start, end = frames(disk, log)[-1]
    for written in range(start, end, SECTOR_BYTES):
        disk.put(log, whole)
        patch(disk, log, written, bytes(end - written))
        assert read_back(disk) == [1, 2, 3]


def test_cut_is_durable_before_anything_is_appended(disk: SimulatedDisk, log: Path) -> None:
    """The zeros are synced by the time the log is open, or the next frame could look damaged after a crash."""
    start, end = frames(disk, log)[-1]
    patch(disk, log, start + SECTOR_BYTES, bytes(SECTOR_BYTES))
    wal, _ = reopen(disk)
    assert disk.read(log)[start:end] == bytes(end - start)
    assert [call for call in disk.calls if call[0] in ("pwrite", "fdatasync")][-1] == ("fdatasync", ONE_SEGMENT)
    wal.close()


def test_last_frame_is_synced_again_before_it_is_believed(disk: SimulatedDisk, log: Path) -> None:
    """A process that died between write and sync leaves a frame that only the page cache has.

    After a failed sync it may even count as clean: it is written once more (Rebello et al., ATC '20).
    """
    wal, _ = reopen(disk)
    assert disk.calls[-2:] == [("pwrite", ONE_SEGMENT), ("fdatasync", ONE_SEGMENT)]
    wal.close()
    disk.fail(errno.EIO, "fdatasync", ONE_SEGMENT)
    with pytest.raises(StorageError):
        reopen(disk)


def test_torn_first_frame_of_a_new_segment(disk: SimulatedDisk) -> None:
    """The segment stays, without frames; the next write begins it anew, head and all."""
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 2500)])
    wal.write([entry(2, 2500)])
    wal.close()
    second = DIRECTORY / "0000000000000002-0000000000000002.wal"
    patch(disk, second, FRAMES_START + 1024, bytes(SECTOR_BYTES))
    wal, replay = reopen(disk)
    assert [each.index for each in replay.entries] == [1]
    wal.write([entry(2, 40)])
    wal.release(1)
    wal.close()
    assert [second] == list(disk.files())
    wal, replay = reopen(disk)
    wal.close()
    assert (b"me", HardState(1, "a", 0), [2]) == (
        replay.identity,
        replay.hard_state,
        [each.index for each in replay.entries],
    )


def test_segment_without_frames_that_is_too_small(disk: SimulatedDisk) -> None:
    """A write larger than what is left of a segment without frames goes into one of its own; both are read."""
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 2500)])
    wal.write([entry(2, 2500)])
    wal.close()
    patch(disk, DIRECTORY / "0000000000000002-0000000000000002.wal", FRAMES_START, bytes(SECTOR_BYTES))
    wal, _ = reopen(disk)
    wal.write([entry(2, 50_000)])
    wal.close()
    assert read_back(disk) == [1, 2]
    assert len(list(disk.files())) == 3


# -- damaged -----------------------------------------------------------------------------------------------------------


def test_any_byte_changed_in_any_frame_is_damage(disk: SimulatedDisk) -> None:
    """Every byte of a small log, head and frames: told with file and offset, never cut (pebble#453)."""
    wal = create(disk, segment_bytes=4 * SECTOR_BYTES)
    wal.write([entry(1, 3)])
    wal.close()
    path = DIRECTORY / ONE_SEGMENT
    whole = disk.read(path)
    for position in range(frames(disk, path)[-1][1]):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        with pytest.raises(CorruptionError) as caught:
            LogScan().read_segment(path, bytes(changed), last=True)
        assert str(path) == caught.value.file
        assert 0 <= position - caught.value.offset < SECTOR_BYTES


def test_any_sector_changed_in_any_frame_is_damage(disk: SimulatedDisk, log: Path) -> None:
    """One bit in each sector of a longer log; the offset is that of the frame it is in."""
    whole = disk.read(log)
    for start, end in frames(disk, log):
        for sector in range(start, end, SECTOR_BYTES):
            for position in (sector, sector + 1, sector + 400):
                patch(disk, log, position, bytes([whole[position] ^ 0x10]))
                with pytest.raises(CorruptionError) as caught:
                    scan_log(disk, DIRECTORY)
                assert (str(log), start) == (caught.value.file, caught.value.offset)
                disk.put(log, whole)


def test_sector_missing_in_an_earlier_frame_is_damage(disk: SimulatedDisk, log: Path) -> None:
    """A frame after it proves that it was synced.

    etcd differs: TestRepairWriteTearMiddle and TestOpenOnTornWrite cut there, and drop the entries that follow.
    """
    whole = disk.read(log)
    for start, end in frames(disk, log)[:-1]:
        for sector in range(start, end, SECTOR_BYTES):
            patch(disk, log, sector, bytes(SECTOR_BYTES))
            with pytest.raises(CorruptionError) as caught:
                scan_log(disk, DIRECTORY)
            assert (str(log), start) == (caught.value.file, caught.value.offset)
            disk.put(log, whole)


def test_entries_written_together_tear_together(disk: SimulatedDisk) -> None:
    """TestRepairWriteTearMiddle of etcd, where the five entries are one write: all of it is gone, none was promised."""
    wal = create(disk, segment_bytes=64 * 1024)
    wal.write([entry(index, 4096) for index in range(1, 6)])
    wal.close()
    path = DIRECTORY / ONE_SEGMENT
    patch(disk, path, frames(disk, path)[-1][0] + 4096 + 512, bytes(512))
    assert read_back(disk) == []


@pytest.mark.parametrize("length", [1000, 2**31, 2**32 - 1])
def test_length_that_lies_is_not_allocated(disk: SimulatedDisk, log: Path, length: int) -> None:
    """etcd: TestLastRecordLengthExceedFileEnd. Even with checksums that fit: it is damage, since nothing is missing."""
    start, _ = frames(disk, log)[-1]
    header = bytearray(disk.read(log)[start : start + HEADER_BYTES])
    header[4:8] = struct.pack(">I", length)
    header[-4:] = struct.pack(">I", zlib.crc32(header[:-4]))
    patch(disk, log, start, bytes(header))
    with pytest.raises(CorruptionError):
        reopen(disk)


@pytest.mark.parametrize("length", [0, 20, FRAMES_START, FRAMES_START + 100, SEGMENT_BYTES - 1, SEGMENT_BYTES + 512])
def test_file_of_another_length_is_damage(disk: SimulatedDisk, log: Path, length: int) -> None:
    """A file that was cut is torn to etcd (TestRepairTruncate); ours had all its length before it was used."""
    disk.put(log, disk.read(log).ljust(length, b"\0")[:length])
    with pytest.raises(CorruptionError):
        reopen(disk)


def four_segments(disk: SimulatedDisk) -> list[Path]:
    wal = create(disk, segment_bytes=4096)
    for index in range(1, 5):
        wal.write([entry(index, 1800)])
    wal.close()
    paths = sorted(disk.files())
    assert len(paths) == 4
    return paths


def test_nothing_in_an_earlier_segment_is_torn(disk: SimulatedDisk) -> None:
    """A segment is begun after the frames before it are synced, so a missing sector there is damage."""
    first, second, *_ = four_segments(disk)
    for path in (first, second):
        whole = disk.read(path)
        start, _ = frames(disk, path)[-1]
        patch(disk, path, start + SECTOR_BYTES, bytes(SECTOR_BYTES))
        with pytest.raises(CorruptionError) as caught:
            reopen(disk)
        assert (str(path), start) == (caught.value.file, caught.value.offset)
        disk.put(path, whole)


def test_bytes_behind_the_frames_of_an_earlier_segment_are_damage(disk: SimulatedDisk) -> None:
    """What would be a torn frame in the last segment is not one where frames follow, though none of them is missing."""
    first, *_ = four_segments(disk)
    _, end = frames(disk, first)[-1]
    patch(disk, first, end + SECTOR_BYTES, b"\x5a")
    with pytest.raises(CorruptionError) as caught:
        reopen(disk)
    assert (str(first), end) == (caught.value.file, caught.value.offset)


def test_frames_missing_at_the_end_of_an_earlier_segment_are_damage(disk: SimulatedDisk) -> None:
    """Whole frames replaced by zeros look like a clean end, but the next segment says how the chain went on."""
    first, *_ = four_segments(disk)
    start, end = frames(disk, first)[-1]
    patch(disk, first, start, bytes(end - start))
    with pytest.raises(CorruptionError) as caught:
        reopen(disk)
    assert (str(first), start) == (caught.value.file, caught.value.offset)


def test_missing_segment_is_damage(disk: SimulatedDisk) -> None:
    """The numbers of the segments have no gap."""
    _, second, third, _ = four_segments(disk)
    disk.remove(second)
    with pytest.raises(CorruptionError, match="segment 2 is missing") as caught:
        reopen(disk)
    assert str(third) == caught.value.file


def test_segment_of_another_log_is_damage(disk: SimulatedDisk) -> None:
    """A segment that was copied over from another directory does not continue the chain."""
    paths = four_segments(disk)
    other = SimulatedDisk(Random(0))
    other.make_directory(DIRECTORY)
    wal = create(other, segment_bytes=4096)
    for index in range(1, 5):
        wal.write([entry(index, 1800, term=2)])
    wal.close()
    disk.put(paths[2], other.read(paths[2]))
    with pytest.raises(CorruptionError):
        reopen(disk)


def test_unfinished_segment_is_removed(disk: SimulatedDisk, log: Path) -> None:
    """Nothing was written to a segment that has no final name yet."""
    disk.put(DIRECTORY / "segment-1.tmp", b"half")
    assert read_back(disk) == [1, 2, 3, 4]
    assert [ONE_SEGMENT] == names(disk)


# -- segments ----------------------------------------------------------------------------------------------------------


def test_cut_costs_no_write_of_its_own(disk: SimulatedDisk) -> None:
    """The first frame of a segment holds its head records and the writes: still one sync of frames."""
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 2500)])
    disk.calls.clear()
    wal.write([entry(2, 2500)])
    wal.close()
    second = "0000000000000002-0000000000000002.wal"
    made = [("create", "segment-2.tmp"), ("pwrite", "segment-2.tmp"), ("pwrite", "segment-2.tmp")]
    renamed = [("fsync", "segment-2.tmp"), ("rename", second), ("sync_directory", DIRECTORY.name)]
    assert [*made, *renamed, ("open", second), ("pwrite", second), ("fdatasync", second)] == disk.calls


def test_write_larger_than_a_segment(disk: SimulatedDisk) -> None:
    """It gets a segment of its own size."""
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 100_000)])
    wal.write([entry(2)])
    wal.close()
    assert read_back(disk) == [1, 2]


def test_release_deletes_what_holds_only_older_entries(disk: SimulatedDisk) -> None:
    """From the oldest on, each deletion durable before the next, and never the last segment."""
    four_segments(disk)
    wal, _ = reopen(disk)
    before = names(disk)
    disk.calls.clear()
    wal.release(2)
    synced = ("sync_directory", DIRECTORY.name)
    assert [("unlink", before[0]), synced, ("unlink", before[1]), synced] == disk.calls
    wal.release(100)
    assert before[3:] == names(disk)
    wal.write([entry(5)])
    wal.close()
    wal, replay = reopen(disk)
    assert ([4, 5], HardState(1, "a", 0)) == ([each.index for each in replay.entries], replay.hard_state)
    wal.close()


def test_segment_with_an_entry_that_was_overwritten_is_kept(disk: SimulatedDisk) -> None:
    """Its highest index counts, also that of an entry which a later one replaced."""
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1), entry(2), entry(3)])
    wal.write([entry(2, 1000, term=2)])
    wal.write([entry(3, 2000, term=2)])
    wal.release(2)
    wal.close()
    wal, _ = reopen(disk)
    wal.release(2)
    wal.close()
    assert len(list(disk.files())) == 2
    assert read_back(disk) == [1, 2, 3]


def test_release_counts_all_entries_that_were_written_together(disk: SimulatedDisk) -> None:
    """A segment is needed until the last of them is covered, before a restart and after it."""
    wal = create(disk, segment_bytes=4096)
    wal.write([Write(entries=tuple(Entry(index, 1, b"data") for index in (1, 2, 3)))])
    wal.write([entry(4, 3000)])
    wal.release(2)
    wal.close()
    wal, replay = reopen(disk)
    assert [1, 2, 3, 4] == [each.index for each in replay.entries]
    wal.release(2)
    assert 2 == len(names(disk))
    wal.release(3)
    assert 1 == len(names(disk))
    wal.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_name_that_was_not_synced_is_synced_before_anything_rests_on_it(seed: int) -> None:
    """A process that ends between a rename and its sync leaves a segment that is seen, and may not be on the disk."""
    disk = SimulatedDisk(Random(seed))
    disk.make_directory(DIRECTORY)
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 1900)])
    disk.fail(errno.EIO, "sync_directory", DIRECTORY.name)
    with pytest.raises(StorageError):
        wal.write([entry(2, 2500)])
    disk.heal()
    disk.kill()
    wal, replay = reopen(disk)
    first = replay.last_index + 1
    wal.write([entry(first, 100)])
    disk.crash()
    assert read_back(disk) == list(range(1, first + 1))


@pytest.mark.parametrize("operation", ["unlink", "sync_directory"])
def test_release_that_failed_is_final(disk: SimulatedDisk, operation: str) -> None:
    """Whether the deletion is durable nobody knows: to go on with the next segment could leave a gap."""
    four_segments(disk)
    wal, _ = reopen(disk)
    disk.fail(errno.EIO, operation, "*")
    with pytest.raises(StorageError):
        wal.release(3)
    disk.heal()
    disk.calls.clear()
    with pytest.raises(StorageError, match="restart this peer"):
        wal.release(3)
    with pytest.raises(StorageError, match="restart this peer"):
        wal.write([entry(5)])
    assert disk.calls == []
    wal.close()
    assert read_back(disk)[-1] == 4


def test_release_that_has_no_room_goes_on_the_next_time(disk: SimulatedDisk) -> None:
    """A file system that never writes in place needs room to delete: the segments stay, in one piece."""
    segments = [path.name for path in four_segments(disk)]
    wal, _ = reopen(disk)
    disk.fail(errno.ENOSPC, "unlink", segments[1])
    wal.release(3)
    assert segments[1:] == names(disk)
    disk.heal()
    wal.release(3)
    wal.write([entry(5)])
    wal.close()
    assert segments[3] == names(disk)[0]
    assert read_back(disk) == [4, 5]


# -- a disk that is full, a disk that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["create", "pwrite", "fsync", "rename"])
def test_no_room_for_a_segment_changes_nothing(disk: SimulatedDisk, operation: str) -> None:
    """The same write may be made again, and again; in the end it is there once."""
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 1900)])
    disk.fail(errno.ENOSPC, operation, "*" if operation == "rename" else "*.tmp")
    for _ in range(3):
        with pytest.raises(StorageFullError):
            wal.write([entry(2, 2500)])
        assert [ONE_SEGMENT] == names(disk)
    wal.write([entry(2, 40)])  # there is room for a small one in the old segment
    disk.heal()
    wal.write([entry(3, 2500)])
    wal.close()
    assert read_back(disk) == [1, 2, 3]


def test_no_room_for_a_frame_is_wiped_first(disk: SimulatedDisk) -> None:
    """What half a frame left is zeroed and synced before the next one, which may be shorter, takes its place.

    A failed log that never recovers: arcadedb#5345.
    """
    wal = create(disk)
    wal.write([entry(1)])
    disk.fail(errno.ENOSPC, "pwrite", "*.wal")
    for _ in range(2):
        with pytest.raises(StorageFullError):
            wal.write([entry(2, 5000), entry(3)])
    disk.heal()
    disk.calls.clear()
    wal.write([entry(2, 10)])
    assert [("pwrite", ONE_SEGMENT), ("fdatasync", ONE_SEGMENT)] * 2 == disk.calls
    disk.calls.clear()
    wal.write([entry(3, 10)])  # nothing is left to be wiped
    assert [("pwrite", ONE_SEGMENT), ("fdatasync", ONE_SEGMENT)] == disk.calls
    wal.close()
    assert read_back(disk) == [1, 2, 3]


def test_crash_after_no_room_for_a_frame(disk: SimulatedDisk) -> None:
    """What half a frame left is torn to the next start."""
    wal = create(disk)
    wal.write([entry(1)])
    disk.fail(errno.ENOSPC, "pwrite", "*.wal")
    with pytest.raises(StorageFullError):
        wal.write([entry(2, 5000)])
    disk.kill()
    assert read_back(disk) == [1]


@pytest.mark.parametrize(
    ("operation", "pattern", "error"),
    [
        ("pwrite", "*.wal", errno.EIO),
        ("fdatasync", "*.wal", errno.EIO),
        ("fdatasync", "*.wal", errno.ENOSPC),
        ("sync_directory", "*", errno.EIO),
    ],
)
def test_failed_write_or_sync_is_never_tried_again(
    disk: SimulatedDisk, operation: str, pattern: str, error: int
) -> None:
    """A second sync would lie ("fsyncgate"): every further write fails at once and touches no disk.

    A sync that fails for want of room is no better: nobody knows what is durable.
    """
    wal = create(disk, segment_bytes=4096)
    wal.write([entry(1, 2500)])
    disk.fail(error, operation, pattern)
    with pytest.raises(StorageError) as caught:
        wal.write([entry(2, 2500)])
    assert not isinstance(caught.value, StorageFullError)
    disk.heal()
    disk.calls.clear()
    with pytest.raises(StorageError, match="restart this peer") as again:
        wal.write([entry(2)])
    assert again.value.__cause__ is caught.value
    assert disk.calls == []
    wal.close()


def test_closed_log_takes_no_writes(disk: SimulatedDisk) -> None:
    """Nor does it touch a file that may have another owner by now."""
    wal = create(disk)
    wal.close()
    with pytest.raises(StorageError):
        wal.write([entry(1)])
