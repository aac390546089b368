"""The simulated disk promises what a disk promises, and no more."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from replikv.errors import InternalError, StorageError
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import SECTOR_BYTES
from replikv.testing.simulated_disk import PowerCut, SimulatedDisk

DIRECTORY = Path("/data")
FILE = DIRECTORY / "file"
OTHER = DIRECTORY / "other"
OLD, NEW, NEWER = b"o", b"n", b"N"
SEEDS = range(200)


def disk_with(content: bytes, seed: int = 0) -> SimulatedDisk:
    return SimulatedDisk(Random(seed), files={FILE: content})


def test_files_are_read_as_they_were_written() -> None:
    """Whether synced or not, as long as nothing happens."""
    disk = SimulatedDisk(Random(0))
    disk.make_directory(DIRECTORY)
    file = disk.open(FILE, create=True)
    file.pwrite(b"hello", 3)
    file.pwrite(b"j", 3)
    assert (8, b"\0\0\0je", b"lo", b"") == (file.size(), file.pread(5, 0), file.pread(5, 6), file.pread(5, 9))
    disk.rename(FILE, OTHER)
    assert ["other"] == disk.list_directory(DIRECTORY)
    disk.unlink(OTHER)
    assert b"jello" == file.pread(5, 3)
    assert [] == disk.list_directory(DIRECTORY)
    file.close()
    with pytest.raises(InternalError):
        file.size()


def test_what_is_not_there_is_refused() -> None:
    """As the real file system does, by a StorageError."""
    disk = disk_with(b"")
    for attempt in (
        lambda: disk.open(OTHER),
        lambda: disk.open(DIRECTORY),
        lambda: disk.unlink(OTHER),
        lambda: disk.rename(OTHER, FILE),
        lambda: disk.list_directory(DIRECTORY / "missing"),
        lambda: disk.sync_directory(DIRECTORY / "missing"),
        lambda: disk.make_directory(FILE / "below"),
    ):
        with pytest.raises(StorageError):
            attempt()


def test_what_was_synced_survives_a_crash() -> None:
    """Bytes by ``fdatasync``, the length by ``fsync``, names by ``sync_directory``; with every seed."""
    for seed in SEEDS:
        disk = SimulatedDisk(Random(seed))
        disk.make_directory(DIRECTORY)
        file = disk.open(FILE, create=True)
        file.pwrite(OLD * 2000, 0)
        file.fsync()
        file.pwrite(NEW * 1000, 0)
        file.fdatasync()
        disk.rename(FILE, OTHER)
        disk.sync_directory(DIRECTORY)
        disk.crash()
        assert {OTHER: NEW * 1000 + OLD * 1000} == disk.files()


def test_any_sectors_that_were_not_synced_may_survive() -> None:
    """Whole sectors, in any combination, of any of the writes since."""
    seen = Counter[bytes]()
    for seed in SEEDS:
        disk = disk_with(OLD * 3 * SECTOR_BYTES, seed)
        file = disk.open(FILE)
        file.pwrite(NEW * 2 * SECTOR_BYTES, 0)
        file.pwrite(NEWER * SECTOR_BYTES, 0)
        disk.crash()
        found = disk.read(FILE)
        sectors = [found[at : at + SECTOR_BYTES] for at in range(0, len(found), SECTOR_BYTES)]
        assert all(sector == sector[:1] * SECTOR_BYTES for sector in sectors)
        seen[b"".join(sector[:1] for sector in sectors)] += 1
    assert {first + second + OLD for first in (OLD, NEW, NEWER) for second in (OLD, NEW)} == set(seen)


def test_a_write_of_less_than_a_sector_keeps_the_rest() -> None:
    """The sector is written with what it held."""
    for seed in SEEDS:
        disk = disk_with(OLD * SECTOR_BYTES, seed)
        disk.open(FILE).pwrite(NEW, 5)
        disk.crash()
        assert disk.read(FILE) in (OLD * SECTOR_BYTES, OLD * 5 + NEW + OLD * (SECTOR_BYTES - 6))


def test_a_length_may_be_there_without_the_bytes() -> None:
    """And the bytes without the length: then nobody sees them."""
    seen = set()
    for seed in SEEDS:
        disk = disk_with(OLD, seed)
        file = disk.open(FILE)
        file.pwrite(OLD + NEW * SECTOR_BYTES, 0)
        file.fdatasync()
        disk.crash()
        seen.add(disk.read(FILE))
    assert {OLD, OLD + NEW * SECTOR_BYTES} == seen


def test_any_changes_of_names_that_were_not_synced_may_survive() -> None:
    """A rename does whole, or not at all."""
    seen = set()
    for seed in SEEDS:
        disk = SimulatedDisk(Random(seed), files={FILE: b"1", OTHER: b"2", DIRECTORY / "third": b"3"})
        disk.rename(FILE, OTHER)
        disk.unlink(DIRECTORY / "third")
        disk.crash()
        seen.add(tuple(sorted((path.name, data) for path, data in disk.files().items())))
    before, after = (("file", b"1"), ("other", b"2")), (("other", b"1"),)
    third = (("third", b"3"),)
    assert {before, before + third, after, after + third} == seen


def test_a_file_whose_name_is_not_synced_may_be_gone() -> None:
    """However well its bytes were synced."""
    seen = set()
    for seed in SEEDS:
        disk = SimulatedDisk(Random(seed))
        disk.make_directory(DIRECTORY)
        file = disk.open(FILE, create=True)
        file.pwrite(NEW, 0)
        file.fsync()
        disk.crash()
        seen.add(tuple(disk.files().values()))
    assert {(), (NEW,)} == seen


def test_a_failed_sync_lies_the_second_time() -> None:
    """What it was to write is read from the cache, counts as synced, and is not there after a crash. It is noticed."""
    seen = set()
    for seed in SEEDS:
        disk = disk_with(OLD * 2 * SECTOR_BYTES, seed)
        file = disk.open(FILE)
        file.pwrite(NEW * 2 * SECTOR_BYTES, 0)
        disk.fail(errno.EIO, "fdatasync", times=1)
        with pytest.raises(StorageError):
            file.fdatasync()
        assert disk.syncs_after_failure == []
        file.fdatasync()
        assert disk.syncs_after_failure == [("fdatasync", "file")]
        assert NEW * 2 * SECTOR_BYTES == disk.read(FILE)
        disk.crash()
        seen.add(disk.read(FILE)[::SECTOR_BYTES])
    assert {OLD * 2, NEW + OLD, OLD + NEW, NEW * 2} == seen


def test_a_failed_sync_may_be_seen_after_the_process_ends() -> None:
    """The cache drops what it takes for clean. Written once more, it is synced like anything else."""
    seen = set()
    for seed in SEEDS:
        disk = disk_with(OLD * SECTOR_BYTES, seed)
        file = disk.open(FILE)
        file.pwrite(NEW * SECTOR_BYTES, 0)
        disk.fail(errno.EIO, "fdatasync")
        with pytest.raises(StorageError):
            file.fdatasync()
        disk.kill()
        seen.add(disk.read(FILE)[:1])
        file = disk.open(FILE)
        file.pwrite(NEWER * SECTOR_BYTES, 0)
        file.fdatasync()
        disk.crash()
        assert NEWER * SECTOR_BYTES == disk.read(FILE)
    assert {OLD, NEW} == seen


def test_a_process_that_ends_loses_nothing() -> None:
    """Only its locks and its open files; a crash after it may still lose what nobody has synced."""
    disk = disk_with(OLD)
    file = disk.open(FILE)
    assert file.try_lock()
    file.pwrite(NEW, 0)
    disk.kill()
    with pytest.raises(PowerCut):
        file.pread(1, 0)
    assert NEW == disk.read(FILE)
    assert disk.open(FILE).try_lock()


def test_a_lock_is_held_until_the_file_is_closed() -> None:
    """Against another opening in the same process, too."""
    disk = disk_with(OLD)
    first, second = disk.open(FILE), disk.open(FILE)
    assert (True, False) == (first.try_lock(), second.try_lock())
    first.close()
    assert second.try_lock()


def test_faults_strike_where_they_are_set() -> None:
    """By operation, by name, after so many, so many times; until they are taken back."""
    disk = SimulatedDisk(Random(0), files={FILE: OLD, OTHER: OLD})
    disk.fail(errno.EIO, "open", "fi*", after=1, times=2)
    disk.fail(errno.ENOSPC, "unlink")
    outcomes = []
    for path in (OTHER, FILE, OTHER, FILE, FILE, FILE):
        try:
            disk.open(path).close()
            outcomes.append("")
        except StorageError as error:
            outcomes.append(str(error)[:17])
    failed = "cannot open /data"
    assert ["", "", "", failed, failed, ""] == outcomes
    with pytest.raises(StorageFullError):
        disk.unlink(FILE)
    disk.heal()
    disk.unlink(FILE)
    assert [("open", "file"), ("unlink", "file"), ("unlink", "file")] == disk.calls[-3:]


def test_a_process_can_end_in_any_call() -> None:
    """The call may have been done or not; nothing else is done until the next start."""
    seen = set()
    for seed in SEEDS:
        disk = disk_with(OLD, seed)
        file = disk.open(FILE)
        disk.stop("rename")
        with pytest.raises(PowerCut):
            disk.rename(FILE, OTHER)
        with pytest.raises(PowerCut):
            file.pwrite(NEW, 0)
        file.close()
        disk.crash()
        seen.update(disk.list_directory(DIRECTORY))
        assert disk.files().keys() in ({FILE}, {OTHER})
    assert {"file", "other"} == seen


def test_a_write_that_fails_has_written_some_of_it() -> None:
    """Whole sectors from its beginning, all of them at the most."""
    seen = set()
    for seed in SEEDS:
        disk = disk_with(OLD * 2 * SECTOR_BYTES, seed)
        disk.fail(errno.EIO, "pwrite")
        with pytest.raises(StorageError):
            disk.open(FILE).pwrite(NEW * 2 * SECTOR_BYTES, 0)
        seen.add(disk.read(FILE)[::SECTOR_BYTES])
    assert {OLD * 2, NEW + OLD, NEW * 2} == seen


def test_a_full_disk_has_room_for_what_is_there_already() -> None:
    """What does not fit fails, and may leave what did; what is removed makes room."""
    disk = SimulatedDisk(Random(0), files={FILE: OLD * 1024, OTHER: OLD * 512}, capacity_bytes=2048)
    assert disk.free_bytes(DIRECTORY) == 512
    file = disk.open(FILE)
    file.pwrite(NEW * 1024, 0)
    with pytest.raises(StorageFullError):
        file.pwrite(NEW * 1024, 1024)
    assert (1536, 0) == (file.size(), disk.free_bytes(DIRECTORY))
    disk.unlink(OTHER)
    file.pwrite(NEW * 512, 1536)
    assert file.size() == 2048


def test_the_same_seed_gives_the_same_disk() -> None:
    """Whatever happens to it."""

    def life(seed: int) -> dict[Path, bytes]:
        disk = disk_with(OLD * 10_000, seed)
        for number in range(20):
            file = disk.open(FILE)
            file.pwrite(bytes([number]) * 3000, number * 100)
            disk.rename(FILE, OTHER)
            disk.rename(OTHER, FILE)
            disk.crash()
            if OTHER in disk.files():
                disk.rename(OTHER, FILE)
            disk.rot(FILE)
        return disk.files()

    assert life(1) == life(1)
    assert life(1) != life(2)


def test_a_copy_goes_its_own_way() -> None:
    """With what is not synced, and without the locks."""
    disk = disk_with(OLD)
    file = disk.open(FILE)
    assert file.try_lock()
    file.pwrite(NEW, 0)
    copy = disk.copy(Random(0))
    assert copy.open(FILE).try_lock()
    copy.open(FILE).pwrite(NEWER, 0)
    assert (NEW, NEWER) == (disk.read(FILE), copy.read(FILE))


def test_only_syncs_can_be_ignored() -> None:
    """A disk that forgets other calls is none."""
    with pytest.raises(ValueError, match="pwrite"):
        SimulatedDisk(Random(0), ignored=["pwrite"])
    disk = SimulatedDisk(Random(1), files={FILE: OLD}, ignored=["fdatasync"])
    seen = set()
    for _ in SEEDS:
        disk.put(FILE, OLD)
        file = disk.open(FILE)
        file.pwrite(NEW, 0)
        file.fdatasync()
        disk.crash()
        seen.add(disk.read(FILE))
    assert {OLD, NEW} == seen
