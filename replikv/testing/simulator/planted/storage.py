"""Bugs of the write-ahead log, of snapshots, and of what is asked of the disk."""

# ruff: noqa: ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from replikv.peer.driver import Driver
from replikv.raft.entries import HardState, SnapshotMetadata
from replikv.raft.stable import Write
from replikv.storage import disk as disk_module
from replikv.storage import recovery, snapshotter
from replikv.storage import wal as wal_module
from replikv.storage.assembly import assemble
from replikv.storage.base import SnapshotWriter, StorageFullError
from replikv.storage.chunkfile import ChunkFileWriter
from replikv.storage.disk import DiskStorage
from replikv.storage.frames import Tail, judge_tail
from replikv.storage.records import encode_head
from replikv.storage.snapshotter import Snapshotter
from replikv.storage.wal import Wal
from replikv.testing.simulated_disk import SimulatedDisk
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import bug

__all__: list[str] = []


LONG_WRITES: Final[dict[str, object]] = {
    "clients": 20,
    "think_s": 0.02,
    "write_s": 0.05,
    "keys": 6,
    "reads": 0.1,
    "entry_bytes_max": 1 << 20,
}
"""Many write much at once: frames of several sectors, which a power cut may tear."""


@bug(crashes=0.5)
def skip_the_sync_of_the_log(patch: Patch) -> None:
    """A write to the log is told to be durable without a sync (etcd#14370)."""
    patch.set(wal_module, "sync", lambda file: None)


@bug(seeds=30, segment_bytes=2048, crashes=0.8, snapshot_log_entries=8)
def skip_a_directory_sync(patch: Patch) -> None:
    """Names of new segments and snapshots are not made durable."""
    patch.set(SimulatedDisk, "sync_directory", lambda self, path: None)


@bug(failing_syncs=0.8, crashes=0.3)
def retry_a_failed_sync(patch: Patch) -> None:
    """A write whose sync failed is simply tried again (fsyncgate)."""

    def wrong(self: Wal, writes: Any) -> None:
        for _ in range(3):
            try:
                right(self, writes)
            except Exception:  # the bug
                self._failure = None
                continue
            return
        right(self, writes)

    right = patch.set(Wal, "write", wrong)


@bug(snapshot_log_entries=8, trailing_entries=1, segment_bytes=2048, crashes=0.8)
def delete_segments_before_the_snapshot_is_durable(patch: Patch) -> None:
    """The log is cut when a snapshot is begun, not when it is durable (canonical/raft#199)."""

    def wrong(self: Driver) -> None:
        busy = self.taker.busy
        right(self)
        if self.taker.busy and not busy:
            self._storage._wal.release(self.applier.index)  # type: ignore[attr-defined]

    right = patch.set(Driver, "_begin_snapshot", wrong)


@bug(crashes=0.5)
def lose_the_hard_state(patch: Patch) -> None:
    """A write has its entries only: term and vote are in memory (PySyncObj)."""

    def wrong(self: DiskStorage, writes: Any) -> None:
        right(self, [Write(None, write.entries, write.snapshot) for write in writes])

    right = patch.set(DiskStorage, "write", wrong)


@bug(LONG_WRITES, segment_bytes=8192, cuts_in_writes=1)
def refuse_a_torn_tail(patch: Patch) -> None:
    """A last frame that the power has cut off is taken for damage (etcd#5230)."""

    def wrong(*arguments: Any) -> Tail:
        return Tail.CLEAN if judge_tail(*arguments) is Tail.CLEAN else Tail.DAMAGED

    patch.set(recovery, "judge_tail", wrong)


@bug(
    seeds=30, bit_flips=1, peers=5, changes=0, segment_bytes=2048, snapshot_log_entries=100000, clients=8, think_s=0.05
)
def take_damage_for_a_torn_tail(patch: Patch) -> None:
    """A frame that was synced and reads otherwise is cut off, with all that follows it (pebble#453)."""

    def wrong(*arguments: Any) -> Tail:
        return Tail.CLEAN if judge_tail(*arguments) is Tail.CLEAN else Tail.TORN

    patch.set(recovery, "judge_tail", wrong)


@bug(seeds=30, cuts_in_writes=0.8, clients=8, think_s=0.1)
def write_the_hard_state_apart(patch: Patch) -> None:
    """The hard state is written and synced before the entries that it speaks of."""

    def wrong(self: DiskStorage, writes: Any) -> None:
        right(self, [Write(write.hard_state) for write in writes])
        right(self, [Write(None, write.entries, write.snapshot) for write in writes])

    right = patch.set(DiskStorage, "write", wrong)


@bug(segment_bytes=2048, crashes=0.5, snapshot_log_entries=8, clients=8, think_s=0.1)
def begin_a_segment_without_the_vote(patch: Patch) -> None:
    """A new segment does not repeat term and vote, which go with the old ones (PySyncObj)."""
    patch.set(wal_module, "encode_head", lambda identity, marker, _: encode_head(identity, marker, HardState()))


@bug(snapshot_log_entries=8, crashes=0.5, cuts_in_writes=0.8)
def publish_a_snapshot_before_it_is_whole(patch: Patch) -> None:
    """A snapshot has its name while it is written: half of one is found after a crash (etcd#18055, logcabin#174)."""

    def wrong(self: Snapshotter, metadata: SnapshotMetadata) -> SnapshotWriter:
        path = self._directory / snapshotter._name(metadata)
        return snapshotter._Writer(self, self._filesystem, path, metadata)

    patch.set(Snapshotter, "create", wrong)

    def rename(self: SimulatedDisk, source: Path, target: Path) -> None:
        if source != target:
            right(self, source, target)

    right = patch.set(SimulatedDisk, "rename", rename)


@bug(snapshot_log_entries=8, crashes=0.8)
def rename_a_snapshot_before_it_is_synced(patch: Patch) -> None:
    """A snapshot gets its name before its bytes are durable."""

    def wrong(self: ChunkFileWriter, extra: bytes = b"") -> None:
        with Patch() as inner:
            inner.set(type(self._file), "fsync", lambda file: None)
            right(self, extra)

    right = patch.set(ChunkFileWriter, "finish", wrong)


@bug(full_disks=0.5, segment_bytes=2048, clients=8, think_s=0.1, crashes=0, cuts_in_writes=0)
def never_recover_from_a_full_disk(patch: Patch) -> None:
    """A log that had no room once takes nothing any more (arcadedb#5345)."""
    full: set[Wal] = set()

    def wrong(self: Wal, writes: Any) -> None:
        try:
            if self in full:
                raise StorageFullError("no room, once and for all")
            right(self, writes)
        except StorageFullError:
            full.add(self)
            raise

    right = patch.set(Wal, "write", wrong)


@bug(LONG_WRITES, segment_bytes=16384, cuts_in_writes=2, crashes=1)
def leave_a_torn_tail(patch: Patch) -> None:
    """What a power cut has left of a frame stays behind the shorter one that takes its place (amelie#17)."""
    patch.set(recovery, "wipe", lambda file, start, end: None)


@bug(
    peers=5,
    snapshot_log_entries=8,
    trailing_entries=1,
    history_revisions=10,
    cuts_in_writes=2,
    crashes=0.5,
    partitions=0.5,
    resets=0.2,
    clients=8,
    think_s=0.05,
    segment_bytes=2048,
)
def go_on_with_a_log_that_the_snapshot_contradicts(patch: Patch) -> None:
    """A snapshot that was received before the power went is not told to the log (canonical/raft#199)."""
    patch.set(disk_module, "assemble", lambda *arguments: assemble(*arguments)._replace(agrees=True))


@bug(snapshot_log_entries=8, crashes=0.5, cuts_in_writes=2, snapshots=0.5)
def remove_the_old_snapshot_before_the_new_one_is_durable(patch: Patch) -> None:
    """A crash between the two leaves none."""

    def wrong(self: Snapshotter, temporary: Path, metadata: SnapshotMetadata) -> None:
        for path in self._paths():
            self._filesystem.unlink(path)
        right(self, temporary, metadata)

    right = patch.set(Snapshotter, "_publish", wrong)
