"""The storage of a peer with a disk: a write-ahead log, snapshots, and the word of whose they are.

``wal`` and ``snapshotter`` write and read them, ``assembly`` says what they amount to together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from replikv.errors import DataDirInUseError, InternalError
from replikv.raft.entries import NO_NODE, HardState, SnapshotMetadata
from replikv.raft.stable import MemoryStorage, Write
from replikv.settings import Settings
from replikv.storage.assembly import assemble, check_owner, seal
from replikv.storage.base import Identity, SnapshotWriter, Storage
from replikv.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem, OsFileSystem, remove_temporaries
from replikv.storage.meta import forget_incarnation, read_incarnation, read_meta, write_incarnation, write_meta
from replikv.storage.snapshotter import Snapshotter
from replikv.storage.wal import Wal

__all__ = ["DiskStorage"]

_DEFAULTS: Final = Settings()


class DiskStorage(Storage):
    """Opens the directory, which it makes if need be, and holds its lock until :meth:`close`.

    ``segment_bytes`` is the length of a log segment, ``prepare_ahead`` whether the next one is filled in a thread of
    its own (off for a simulated ``filesystem``, which wants one order of calls).

    Raises DataDirInUseError when somebody else has it open, CorruptionError for damage, StorageError for a directory
    that cannot be written, or was written by a newer version.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        segment_bytes: int = _DEFAULTS.wal_segment_bytes,
        snapshots_kept: int = _DEFAULTS.snapshots_kept,
        filesystem: FileSystem | None = None,
        prepare_ahead: bool = True,
    ) -> None:
        self._directory = Path(directory)
        self._wal_directory = self._directory / "wal"
        self._filesystem = OsFileSystem() if filesystem is None else filesystem
        self._segment_bytes = segment_bytes
        self._prepare_ahead = prepare_ahead
        self._wal: Wal | None = None
        self.identity = None
        self.image = MemoryStorage()
        self._filesystem.make_directory(self._directory)
        self._lock = self._take_lock()
        try:
            for part in (self._directory, self._wal_directory, self._directory / "snapshots"):
                self._filesystem.make_directory(part)
                self._prove_writable(part)
            self._filesystem.sync_directory(self._directory)
            remove_temporaries(self._filesystem, self._directory)
            self._snapshots = Snapshotter(self._filesystem, self._directory / "snapshots", kept=snapshots_kept)
            self._open()
        except BaseException:
            self.close()
            raise

    def draw_incarnation(self) -> str:
        """As :meth:`Storage.draw_incarnation`: kept in ``DIR/incarnation`` until the storage is initialized."""
        incarnation = read_incarnation(self._filesystem, self._directory)
        if incarnation is None:
            incarnation = uuid.uuid4().hex
            write_incarnation(self._filesystem, self._directory, incarnation)
        return incarnation

    def initialize(self, identity: Identity, snapshot: SnapshotMetadata) -> None:
        """As :meth:`Storage.initialize`. For a snapshot at an index above 0, its data must have been committed before.

        Raises StorageFullError; the same call may then be made again. A crash at any point leaves an empty storage.
        """
        if self.identity is not None:
            raise InternalError(f"{self._directory} belongs to {self.identity.node_id} already")
        self._expect_durable(snapshot)
        self._snapshots.remove_after(snapshot.index)
        hard_state = HardState(snapshot.term, NO_NODE, snapshot.index)
        self._wal = Wal.create(
            self._filesystem,
            self._wal_directory,
            segment_bytes=self._segment_bytes,
            ahead=self._prepare_ahead,
            identity=seal(identity),
            marker=snapshot,
            hard_state=hard_state,
        )
        try:
            write_meta(self._filesystem, self._directory, identity)
        except BaseException:
            self._wal.close()
            self._wal = None
            raise
        forget_incarnation(self._filesystem, self._directory)
        self.image.install(snapshot)
        self.image.hard_state = hard_state
        self.identity = identity

    def move(self, address: str, listen: str) -> None:
        """As :meth:`Storage.move`."""
        if self.identity is None:
            raise InternalError(f"{self._directory} was moved before it was initialized")
        identity = dataclasses.replace(self.identity, address=address, listen=listen)
        write_meta(self._filesystem, self._directory, identity)
        self.identity = identity

    def write(self, writes: Sequence[Write]) -> None:
        """As :meth:`Storage.write`: one frame, one ``pwrite``, one ``fdatasync`` for all of them."""
        wal = self._initialized()
        for write in writes:
            if write.snapshot is not None:
                self._expect_durable(write.snapshot)
        if self._snapshots.newest is not None:
            wal.marker = self._snapshots.newest
        wal.write(writes)

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        """As :meth:`Storage.create_snapshot`. On an empty storage too, before it is initialized with that snapshot."""
        return self._snapshots.create(metadata)

    def open_snapshot(self, index: int) -> contextlib.AbstractContextManager[tuple[SnapshotMetadata, Iterator[bytes]]]:
        """As :meth:`Storage.open_snapshot`. Raises InternalError when there is none."""
        return self._snapshots.open(index)

    def release(self, index: int) -> None:
        """As :meth:`Storage.release`: deletes whole segments, never the last.

        Raises InternalError when no durable snapshot covers the entries.
        """
        wal = self._initialized()
        newest = self._snapshots.newest
        if index > (0 if newest is None else newest.index):
            raise InternalError(f"entries up to {index} were to be deleted, but the newest snapshot is {newest}")
        wal.release(index)

    def free_bytes(self) -> int | None:
        """As :meth:`Storage.free_bytes`."""
        return self._filesystem.free_bytes(self._directory)

    def close(self) -> None:
        """As :meth:`Storage.close`."""
        if self._wal is not None:
            self._wal.close()
        self._lock.close()

    # -- opening -------------------------------------------------------------------------------------------------------

    def _take_lock(self) -> File:
        lock = self._filesystem.open(self._directory / "lock", create=True)
        try:
            if not lock.try_lock():
                raise DataDirInUseError(
                    f"the data directory {self._directory} is in use by another process, or by another cluster of"
                    " this one: give each peer a directory of its own, or stop the other one first"
                )
        except BaseException:
            lock.close()
            raise
        return lock

    def _prove_writable(self, directory: Path) -> None:
        """Fail now rather than at the first segment that is full."""
        probe = directory / f"probe{TEMPORARY_SUFFIX}"
        self._filesystem.open(probe, create=True).close()
        self._filesystem.unlink(probe)

    def _open(self) -> None:
        identity = read_meta(self._filesystem, self._directory)
        opened = Wal.open(
            self._filesystem, self._wal_directory, segment_bytes=self._segment_bytes, ahead=self._prepare_ahead
        )
        replay, frames_written = None, 0
        if opened is not None:
            self._wal, replay = opened
            frames_written = self._wal.frames_written
        check_owner(self._directory, identity, replay, frames_written)
        if identity is None or replay is None:
            wal, self._wal = self._wal, None
            if wal is not None:
                wal.close()
            return
        forget_incarnation(self._filesystem, self._directory)
        assembly = assemble(self._directory, replay, self._snapshots.newest)
        self.image.install(assembly.snapshot)
        self.image.append(assembly.following)
        self.image.hard_state = assembly.hard_state
        if not assembly.agrees:
            self._initialized().write([Write(snapshot=assembly.snapshot)])
        self.identity = identity

    def _expect_durable(self, snapshot: SnapshotMetadata) -> None:
        newest = self._snapshots.newest
        if snapshot.index > (0 if newest is None else newest.index):
            raise InternalError(f"the log was to begin after {snapshot.index}, but the newest snapshot is {newest}")

    def _initialized(self) -> Wal:
        if self._wal is None:
            raise InternalError(f"{self._directory} was written to before it was initialized")
        return self._wal
