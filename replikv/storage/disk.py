"""The storage of a peer with a disk: a write-ahead log, snapshots, and the word of whose they are.

The newest snapshot S (index s, term t) and the log are put together at the start (thesis, section 5.1): the log goes on
behind s where it agrees with S. Where it ends before s or has another term there, S was received and the log had no
time to say so: it begins anew behind s. Where it begins after s + 1, entries are missing, and that is damage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from replikv.errors import CorruptionError, DataDirInUseError, InternalError
from replikv.raft.entries import NO_NODE, HardState, SnapshotMetadata
from replikv.raft.stable import MemoryStorage, Write
from replikv.settings import Settings
from replikv.storage.base import Identity, SnapshotWriter, Storage
from replikv.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem, OsFileSystem, remove_temporaries
from replikv.storage.meta import (
    META_NAME,
    forget_incarnation,
    read_incarnation,
    read_meta,
    write_incarnation,
    write_meta,
)
from replikv.storage.recovery import Replay
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
            identity=_seal(identity),
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
        if opened is not None:
            self._wal, replay = opened
        if identity is None:
            self._discard_unfinished()
            return
        if opened is None:
            raise self._damage(self._wal_directory, f"it is empty, and {META_NAME} says that it was written to")
        if replay.identity != _seal(identity):
            raise self._damage(self._wal_directory, "it holds the log of another peer")
        forget_incarnation(self._filesystem, self._directory)
        self._restore(replay)
        self.identity = identity

    def _discard_unfinished(self) -> None:
        """Without ``meta``, a log is what an initialization that crashed has left, or has lost its ``meta``."""
        wal, self._wal = self._wal, None
        if wal is None:
            return
        wal.close()
        if wal.frames_written > 1:
            raise self._damage(self._directory / META_NAME, "it is missing, and the log beside it has been written to")

    def _restore(self, replay: Replay) -> None:
        marker, snapshot = replay.marker, self._snapshots.newest
        assert marker is not None
        if snapshot is None or snapshot.index < marker.index:
            if marker.index > 0:
                raise self._damage(
                    self._directory / "snapshots",
                    f"the log says that there is a snapshot at {marker.index}, and there is none at or after it",
                )
            snapshot = marker
        index, term = snapshot.index, snapshot.term
        first_index = replay.last_index - len(replay.entries) + 1
        if first_index > index + 1:
            raise self._damage(
                self._wal_directory, f"its first entry is {first_index}, and the newest snapshot is at {index}"
            )
        following = replay.entries[index + 1 - first_index :]
        if first_index == index + 1:
            # Entry s itself is gone. One that follows (s, t) has t's term or a later one; and one of such a term
            # follows (s, t), since S is committed (Leader Completeness, paper 5.4).
            agrees = not following or following[0].term >= term
        else:
            agrees = replay.last_index >= index and replay.entries[index - first_index].term == term
        self.image.install(snapshot)
        if agrees:
            self.image.append(following)
        else:
            self._initialized().write([Write(snapshot=snapshot)])
        hard_state = replay.hard_state
        if term > hard_state.term:
            # A term in which this peer has not voted: whoever sent the snapshot was in it.
            hard_state = HardState(term, NO_NODE, hard_state.commit)
        self.image.hard_state = hard_state._replace(commit=max(hard_state.commit, index))

    def _expect_durable(self, snapshot: SnapshotMetadata) -> None:
        newest = self._snapshots.newest
        if snapshot.index > (0 if newest is None else newest.index):
            raise InternalError(f"the log was to begin after {snapshot.index}, but the newest snapshot is {newest}")

    def _initialized(self) -> Wal:
        if self._wal is None:
            raise InternalError(f"{self._directory} was written to before it was initialized")
        return self._wal

    def _damage(self, path: Path, what: str) -> CorruptionError:
        advice = (
            "restore the whole directory, or remove this peer from the cluster and let it join anew with an empty one"
        )
        return CorruptionError(f"{path} is damaged: {what}; {advice}", str(path), 0)


def _seal(identity: Identity) -> bytes:
    """What of the identity stands in each segment."""
    fields = {name: dataclasses.asdict(identity)[name] for name in ("cluster_id", "node_id", "incarnation")}
    return json.dumps(fields, separators=(",", ":")).encode()
