"""The files of the write-ahead log: their heads, and filling the next one ahead of time."""

from __future__ import annotations

import errno
import struct
import threading
import zlib
from pathlib import Path
from random import Random

import pytest

from replikv.errors import CorruptionError, StorageError
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import FileSystem, OsFileSystem
from replikv.storage.segments import SegmentHead, SegmentSupply, segment_names
from replikv.testing.simulated_disk import SimulatedDisk

HEAD = SegmentHead(sequence=3, first_index=17, length=0, frame_sequence=9, previous=0xABCD)
THREAD = "replikv-wal-segment"


def supply(directory: Path, filesystem: FileSystem | None = None, *, ahead: bool = True) -> SegmentSupply:
    return SegmentSupply(filesystem or OsFileSystem(), directory, 4000, ahead=ahead)


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def test_segment_is_whole_when_it_has_its_name(tmp_path: Path) -> None:
    """Its length is that of the settings in whole sectors; all of it but the head is zero."""
    segment, file = supply(tmp_path).take(HEAD, 512)
    file.close()
    data = segment.path.read_bytes()
    assert segment.path.name == "0000000000000003-0000000000000011.wal"
    assert SegmentHead.decode(segment.path, data) == HEAD._replace(length=4096) == segment.head
    assert bytes(4096 - 512) == data[512:]


def test_names_are_in_order_of_their_numbers() -> None:
    """Whatever else is in the directory is passed over."""
    second, first = f"{2:016x}-{1:016x}.wal", f"{1:016x}-{9:016x}.wal"
    assert [(1, first), (2, second)] == segment_names([second, "lost+found", first, f"{first}.tmp", "1-1.wal"])


@pytest.mark.parametrize("name", [HEAD._replace(sequence=4).name, HEAD._replace(first_index=18).name])
def test_a_segment_under_another_name_is_damage(tmp_path: Path, name: str) -> None:
    """Both numbers are in the head: it is another segment, or the name was changed."""
    segment, file = supply(tmp_path).take(HEAD, 512)
    file.close()
    with pytest.raises(CorruptionError, match="its head says that its name is"):
        SegmentHead.decode(tmp_path / name, segment.path.read_bytes())


def test_head_of_a_newer_format_says_so(tmp_path: Path) -> None:
    """It is not called damage."""
    segment, file = supply(tmp_path).take(HEAD, 512)
    file.close()
    data = bytearray(segment.path.read_bytes())
    head_bytes = len(HEAD.encode()) - 4
    data[8:12] = struct.pack(">I", 2)
    data[head_bytes : head_bytes + 4] = struct.pack(">I", zlib.crc32(data[:head_bytes]))
    with pytest.raises(StorageError, match="format 2"):
        SegmentHead.decode(segment.path, bytes(data))


@pytest.fixture
def disk(tmp_path: Path) -> SimulatedDisk:
    """With a directory, and nothing in it."""
    disk = SimulatedDisk(Random(0))
    disk.make_directory(tmp_path)
    disk.calls.clear()
    return disk


def test_prepared_segment_is_filled_in_steps_and_only_once(tmp_path: Path, disk: SimulatedDisk) -> None:
    """A sync of the log never queues behind all of it; what was prepared is what is taken."""
    segments = supply(tmp_path, disk)
    for _ in range(3):
        segments.prepare()
        wait_for_threads()
    made = [("create", "segment-1.tmp"), ("pwrite", "segment-1.tmp"), ("fdatasync", "segment-1.tmp")]
    assert made == disk.calls
    segment, file = segments.take(HEAD, 512)
    file.close()
    assert {segment.path} == disk.files().keys()
    assert ("create", "segment-2.tmp") not in disk.calls
    segments.close()


def test_prepared_segment_waits_where_a_larger_one_is_needed(tmp_path: Path) -> None:
    """A frame larger than a segment gets one of its own."""
    segments = supply(tmp_path)
    segments.prepare()
    segment, file = segments.take(HEAD, 10_000)
    file.close()
    assert segment.head.length >= 10_512
    assert segment.head.length == segment.path.stat().st_size
    next_one, file = segments.take(HEAD._replace(sequence=4), 512)
    file.close()
    assert next_one.head.length == 4096
    segments.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [segment.head.name, next_one.head.name]


def test_what_was_prepared_is_taken_once(tmp_path: Path) -> None:
    """The next one is made when it is needed, where none was prepared meanwhile."""
    segments = supply(tmp_path)
    segments.prepare()
    for number in (3, 4, 5):
        segment, file = segments.take(HEAD._replace(sequence=number), 512)
        file.close()
        assert segment.head == SegmentHead.decode(segment.path, segment.path.read_bytes())
    segments.close()
    assert 3 == len(list(tmp_path.iterdir()))


def test_failure_to_prepare_shows_when_the_segment_is_needed(tmp_path: Path, disk: SimulatedDisk) -> None:
    """Not before: nothing is lost by it. Then it is tried once more, in the caller's thread."""
    segments = supply(tmp_path, disk)
    disk.fail(errno.ENOSPC, "pwrite", "*.tmp")
    segments.prepare()
    wait_for_threads()
    with pytest.raises(StorageFullError):
        segments.take(HEAD, 512)
    disk.heal()
    _, file = segments.take(HEAD, 512)
    file.close()
    segments.close()


def test_close_leaves_neither_thread_nor_file(tmp_path: Path) -> None:
    """Whatever the thread is at."""
    segments = supply(tmp_path)
    segments.prepare()
    segments.close()
    assert THREAD not in [thread.name for thread in threading.enumerate()]
    assert list(tmp_path.iterdir()) == []


def test_without_ahead_there_is_no_thread(tmp_path: Path, disk: SimulatedDisk) -> None:
    """A simulated disk wants one order of calls."""
    segments = supply(tmp_path, disk, ahead=False)
    segments.prepare()
    assert disk.calls == []
    segments.close()
