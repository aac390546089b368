"""Bugs of storage, planted one at a time into the real code: the tests of crashes and failures notice each of them.

What needs writes that a peer does not make has a test of its own: ``test_no_room_for_a_frame_is_wiped_first``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from scripted_peer import IDENTITY
from test_disk_faults import CALLS, CHANGES, crash_twice, fail_and_go_on
from test_disk_sweeps import EXPECTED, FILES, sweep_flips

from replikv.errors import InternalError, StorageError
from replikv.raft.entries import HardState
from replikv.storage import disk as disk_module
from replikv.storage import meta, recovery, wal
from replikv.storage.assembly import assemble
from replikv.storage.base import StorageFullError
from replikv.storage.chunkfile import ChunkFileWriter
from replikv.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem
from replikv.storage.frames import Tail, judge_tail
from replikv.storage.records import encode_head
from replikv.storage.recovery import LogScan
from replikv.storage.segments import SegmentSupply
from replikv.storage.snapshotter import Snapshotter
from replikv.storage.wal import Wal
from replikv.testing.simulated_disk import SimulatedDisk

Plant = Callable[[pytest.MonkeyPatch], None]

BUGS: dict[str, Plant] = {}


def bug(plant: Plant) -> Plant:
    BUGS[plant.__name__] = plant
    return plant


def skip_sync_of_directory(patch: pytest.MonkeyPatch, name: str) -> None:
    sync = SimulatedDisk.sync_directory
    patch.setattr(SimulatedDisk, "sync_directory", lambda self, path: None if path.name == name else sync(self, path))


@bug
def acknowledge_before_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal, "sync", lambda file: None)


@bug
def sync_again_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    def sync(file: File) -> None:
        try:
            file.fdatasync()
        except StorageError:
            file.fdatasync()

    patch.setattr(wal, "sync", sync)


@bug
def go_on_after_a_failed_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Wal, "_expect_sound", lambda self: None)


@bug
def take_a_failed_sync_for_a_full_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal, "sync", lambda file: file.fdatasync())


@bug
def skip_the_directory_sync_of_a_segment(patch: pytest.MonkeyPatch) -> None:
    skip_sync_of_directory(patch, "wal")


@bug
def skip_the_directory_sync_of_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    skip_sync_of_directory(patch, "snapshots")


@bug
def skip_the_directory_sync_of_meta(patch: pytest.MonkeyPatch) -> None:
    skip_sync_of_directory(patch, "a")


@bug
def use_a_segment_that_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    take = SegmentSupply.take

    def without_fsync(self: SegmentSupply, *arguments: Any) -> Any:
        self._filesystem = cast("FileSystem", _WithoutFsync(self._filesystem))
        return take(self, *arguments)

    patch.setattr(SegmentSupply, "take", without_fsync)


@bug
def rename_a_snapshot_before_it_is_synced(patch: pytest.MonkeyPatch) -> None:
    finish = ChunkFileWriter.finish

    def without_fsync(self: ChunkFileWriter, extra: bytes = b"") -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(type(self._file), "fsync", lambda file: None)
            finish(self, extra)

    patch.setattr(ChunkFileWriter, "finish", without_fsync)


@bug
def remove_the_old_snapshot_before_the_new_one_is_durable(patch: pytest.MonkeyPatch) -> None:
    publish = Snapshotter._publish

    def too_early(self: Snapshotter, temporary: Path, metadata: Any) -> None:
        for path in self._paths():
            self._filesystem.unlink(path)
        publish(self, temporary, metadata)

    patch.setattr(Snapshotter, "_publish", too_early)


@bug
def release_segments_before_the_snapshot_is_durable(patch: pytest.MonkeyPatch) -> None:
    publish = Snapshotter._publish
    write = Wal.write
    logs: list[Wal] = []

    def remember(self: Wal, writes: Any) -> None:
        logs[:] = [self]
        write(self, writes)

    def too_early(self: Snapshotter, temporary: Path, metadata: Any) -> None:
        if logs:
            logs[0].release(metadata.index)
        publish(self, temporary, metadata)

    patch.setattr(Wal, "write", remember)
    patch.setattr(Snapshotter, "_publish", too_early)


@bug
def release_several_segments_with_one_sync(patch: pytest.MonkeyPatch) -> None:
    def release(self: Wal, index: int) -> None:
        while len(self._segments) > 1 and self._segments[0].last_index <= index:
            self._filesystem.unlink(self._segments.pop(0).path)
        self._filesystem.sync_directory(self._directory)

    patch.setattr(Wal, "release", release)


@bug
def forget_a_segment_that_could_not_be_deleted(patch: pytest.MonkeyPatch) -> None:
    def release(self: Wal, index: int) -> None:
        while len(self._segments) > 1 and self._segments[0].last_index <= index:
            with contextlib.suppress(StorageFullError):
                self._filesystem.unlink(self._segments.pop(0).path)
            self._filesystem.sync_directory(self._directory)

    patch.setattr(Wal, "release", release)


@bug
def believe_the_last_frame_as_it_is_read(patch: pytest.MonkeyPatch) -> None:
    def settle(filesystem: FileSystem, scan: LogScan) -> File:
        segment = scan.segments[-1]
        file = filesystem.open(segment.path)
        if scan.tail is Tail.TORN:
            recovery.wipe(file, scan.offset, segment.head.length)
        recovery.sync(file)
        return file

    patch.setattr(wal, "settle_log", settle)


@bug
def leave_a_torn_tail(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "wipe", lambda file, start, end: None)


@bug
def refuse_a_torn_tail(patch: pytest.MonkeyPatch) -> None:
    def judge(*arguments: Any) -> Tail:
        return Tail.CLEAN if judge_tail(*arguments) is Tail.CLEAN else Tail.DAMAGED

    patch.setattr(recovery, "judge_tail", judge)


@bug
def take_damage_for_a_torn_tail(patch: pytest.MonkeyPatch) -> None:
    def judge(*arguments: Any) -> Tail:
        return Tail.CLEAN if judge_tail(*arguments) is Tail.CLEAN else Tail.TORN

    patch.setattr(recovery, "judge_tail", judge)


@bug
def begin_a_segment_without_the_vote(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal, "encode_head", lambda identity, marker, _: encode_head(identity, marker, HardState()))


@bug
def write_meta_in_place(patch: pytest.MonkeyPatch) -> None:
    def write(filesystem: FileSystem, directory: Path, name: str, line: bytes) -> None:
        file = filesystem.open(directory / name, create=True)
        try:
            file.pwrite(line + b"\n" + meta._checksum(line), 0)
            file.fsync()
        finally:
            file.close()
        filesystem.sync_directory(directory)

    patch.setattr(meta, "_write", write)


@bug
def write_meta_into_what_failed_to_sync(patch: pytest.MonkeyPatch) -> None:
    def write(filesystem: FileSystem, directory: Path, name: str, line: bytes) -> None:
        temporary = directory / f"{name}{TEMPORARY_SUFFIX}"
        file = filesystem.open(temporary, create=True)
        try:
            file.pwrite(line + b"\n" + meta._checksum(line), 0)
            file.fsync()
        finally:
            file.close()
        filesystem.rename(temporary, directory / name)
        filesystem.sync_directory(directory)

    patch.setattr(meta, "_write", write)


@bug
def write_meta_before_the_log(patch: pytest.MonkeyPatch) -> None:
    create = Wal.create

    def too_late(filesystem: FileSystem, directory: Path, **more: Any) -> Wal:
        meta.write_meta(filesystem, directory.parent, IDENTITY)
        return create(filesystem, directory, **more)

    patch.setattr(Wal, "create", too_late)


@bug
def go_on_with_a_log_that_the_snapshot_contradicts(patch: pytest.MonkeyPatch) -> None:
    def careless(*arguments: Any) -> Any:
        return assemble(*arguments)._replace(agrees=True)

    patch.setattr(disk_module, "assemble", careless)


class _WithoutFsync:
    """A file system whose files do not sync their length."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = getattr(filesystem, "_filesystem", filesystem)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)

    def open(self, path: Path, *, create: bool = False) -> File:
        file: Any = self._filesystem.open(path, create=create)
        file.fsync = lambda: None
        return file  # type: ignore[no-any-return]


def attempts() -> Iterator[Callable[[], object]]:
    """The tests of crashes and failures, and the sweep, in another order, so that any of them comes soon."""
    numbers = list(range(len(CALLS)))
    Random(0).shuffle(numbers)
    for place, (seed, number) in enumerate(itertools.product(range(3), numbers)):
        yield partial(crash_twice, seed, number)
        yield partial(fail_and_go_on, errno.EIO, number, 1, power=bool(number % 2), seed=seed)
        if CALLS[number] in CHANGES:
            yield partial(fail_and_go_on, errno.ENOSPC, number, 1, power=bool(number % 2), seed=seed)
        if place == 25:
            yield partial(sweep_flips, FILES, EXPECTED)


def test_the_real_code_passes() -> None:
    """So what notices a bug below is the bug."""
    for attempt in itertools.islice(attempts(), 60):
        attempt()


@pytest.mark.long
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a test that fails, within the calls of the script and three seeds."""
    BUGS[name](monkeypatch)
    for attempt in attempts():
        try:
            attempt()
        except (AssertionError, StorageError, InternalError, pytest.fail.Exception):
            return
    pytest.fail(f"nothing has noticed {name}")
