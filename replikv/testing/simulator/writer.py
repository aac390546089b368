"""The writing thread and the snapshot-taking task of a peer, as steps of a simulation: each may be the last."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from replikv.raft.entries import SnapshotMetadata
from replikv.raft.stable import Write
from replikv.storage.base import SnapshotWriter, StorageFullError

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process

__all__ = ["Taker", "Writer"]

FULL_RETRY_S: Final = 0.5


class Writer:
    """Stands for :class:`replikv.peer.persister.Persister`, and keeps its invariant: writes complete in order, each
    once, after its sync."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.completed: list[Write] = []
        self.full = False
        self.abandoned = False
        self._queue: deque[Write | int] = deque()
        self._outstanding = 0
        self._busy = False
        # When the last batch is told to be complete: the next one is not before.
        self._told_at = 0.0

    def submit(self, write: Write) -> None:
        """As the persister's."""
        if write.must_sync or self._outstanding:
            self._outstanding += 1
            self._queue.append(write)
            self._begin()
            return
        self.completed.append(write)
        self._process.driver.wake()

    def release(self, index: int) -> None:
        """As the persister's."""
        self._queue.append(index)
        self._begin()

    def _begin(self) -> None:
        if not self._busy:
            self._busy = True
            process = self._process
            process.later(process.random.random() * process.options.write_s, self._gather)

    def _gather(self) -> None:
        batch: list[Write] = []
        released = 0
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, Write):
                batch.append(item)
            else:
                released = max(released, item)
        self._write(batch, released)

    def _write(self, batch: list[Write], released: int) -> None:
        process = self._process
        durable = [write for write in batch if write.must_sync]
        if durable:
            process.host.doubtful = durable
            try:
                process.storage.write(durable)
            except StorageFullError:
                process.simulation.counts["writes without room"] += 1
                self.full = True
                process.later(FULL_RETRY_S, self._write, batch, released)
                return
            process.host.has_written(durable)
            if process.simulation.telling:
                process.simulation.tell(f"{process.node_id} has written {len(durable)} writes")
        if batch:
            now = process.simulation.now
            self._told_at = max(self._told_at, now + process.random.random() * process.options.write_s)
            process.later(self._told_at - now, self._complete, batch)
        if released:
            process.storage.release(released)
        self._busy = False
        if self._queue:
            self._begin()

    def _complete(self, batch: list[Write]) -> None:
        self.full = False
        self._outstanding -= len(batch)
        self.completed += batch
        self._process.driver.wake()


class Taker:
    """Stands for :class:`replikv.peer.snapshots.SnapshotTaker`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.busy = False
        self.failure: StorageFullError | None = None
        self.last_bytes = 0
        self._retry_at = math.inf

    def due(self, log_bytes: int, log_entries: int) -> bool:
        """As the taker's."""
        if self.busy:
            return False
        settings = self._process.settings
        return (
            self._process.simulation.now >= self._retry_at
            or log_bytes >= max(settings.snapshot_log_bytes, self.last_bytes)
            or log_entries >= settings.snapshot_log_entries
        )

    def begin(self, metadata: SnapshotMetadata, chunks: Iterator[bytes]) -> None:
        """As the taker's."""
        self.busy = True
        self.failure = None
        self._retry_at = math.inf
        self._process.later(self._pause(), self._take, metadata, chunks)

    def _pause(self) -> float:
        return self._process.random.random() * 2 * self._process.options.write_s

    def _take(self, metadata: SnapshotMetadata, chunks: Iterator[bytes]) -> None:
        process = self._process
        if process.snapshot_locked:
            process.later(0.05, self._take, metadata, chunks)
        elif metadata.index <= process.storage.image.snapshot().index:
            self._end()
        else:
            process.snapshot_locked = True
            try:
                writer = process.storage.create_snapshot(metadata)
            except StorageFullError as exc:
                self._give_up(exc)
                return
            process.later(self._pause(), self._write, metadata, chunks, writer, hashlib.sha256(), 0)

    def _write(
        self,
        metadata: SnapshotMetadata,
        chunks: Iterator[bytes],
        writer: SnapshotWriter,
        digest: hashlib._Hash,
        written: int,
    ) -> None:
        process = self._process
        try:
            for chunk in chunks:
                if not chunk:
                    continue
                writer.write(chunk)
                written += len(chunk)
                digest.update(len(chunk).to_bytes(8) + chunk)
                process.later(self._pause() / 4, self._write, metadata, chunks, writer, digest, written)
                return
            writer.commit()
        except StorageFullError as exc:
            writer.abort()
            self._give_up(exc)
            return
        self.last_bytes = written
        process.host.has_snapshot(metadata)
        simulation = process.simulation
        simulation.counts["snapshots taken"] += 1
        if simulation.telling:
            simulation.tell(f"{process.node_id} has taken a snapshot at {metadata.index}")
        simulation.oracle.snapshot_seen(process.node_id, metadata, digest.digest())
        process.driver._snapshot_taken(metadata)
        process.snapshot_locked = False
        self._end()

    def _give_up(self, error: StorageFullError) -> None:
        self.failure = error
        self._retry_at = self._process.simulation.now + 2.0
        self._process.snapshot_locked = False
        self._end()

    def _end(self) -> None:
        self.busy = False
        self._process.driver._tell_snapshot_ended()
        self._process.driver.wake()
