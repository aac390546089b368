"""The storage of a peer without a disk: keeps what it is given for as long as the process lives."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Sequence

from replikv.errors import InternalError
from replikv.raft.entries import NO_NODE, HardState, SnapshotMetadata
from replikv.raft.stable import MemoryStorage, Write
from replikv.storage.base import Identity, SnapshotWriter, Storage

__all__ = ["VolatileStorage"]


class VolatileStorage(Storage):
    """Durable until the process ends: its ``image`` is all there is of the log. No call blocks.

    Keeps the newest snapshot, as a tuple of chunks; a reader that has it open keeps it alive.
    """

    blocking = False

    def __init__(self) -> None:
        self.identity = None
        self.image = MemoryStorage()
        self._incarnation = uuid.uuid4().hex
        self._snapshot: tuple[SnapshotMetadata, tuple[bytes, ...]] | None = None

    def draw_incarnation(self) -> str:
        """As :meth:`Storage.draw_incarnation`."""
        return self._incarnation

    def initialize(self, identity: Identity, snapshot: SnapshotMetadata) -> None:
        """As :meth:`Storage.initialize`. For a snapshot at an index above 0, its data must have been committed."""
        if self.identity is not None:
            raise InternalError(f"this storage belongs to {self.identity.node_id} already")
        self._expect_covered(snapshot.index)
        self.image.install(snapshot)
        self.image.hard_state = HardState(snapshot.term, NO_NODE, snapshot.index)
        self.identity = identity

    def move(self, address: str, listen: str) -> None:
        """As :meth:`Storage.move`."""
        if self.identity is None:
            raise InternalError("this storage was moved before it was initialized")
        self.identity = dataclasses.replace(self.identity, address=address, listen=listen)

    def write(self, writes: Sequence[Write]) -> None:
        """As :meth:`Storage.write`: nothing to do, since the caller applies the writes to the image."""
        if self.identity is None:
            raise InternalError("this storage was written to before it was initialized")
        for write in writes:
            if write.snapshot is not None:
                self._expect_covered(write.snapshot.index)

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        """As :meth:`Storage.create_snapshot`."""
        return _Writer(self, metadata)

    @contextlib.contextmanager
    def open_snapshot(self, index: int) -> Iterator[tuple[SnapshotMetadata, Iterator[bytes]]]:
        """As :meth:`Storage.open_snapshot`. Raises InternalError when there is none."""
        if self._snapshot is None or self._snapshot[0].index < index:
            raise InternalError(f"no snapshot at or after {index}")
        metadata, chunks = self._snapshot
        yield metadata, iter(chunks)

    def release(self, index: int) -> None:
        """As :meth:`Storage.release`: nothing to do, since the caller compacts the image."""
        self._expect_covered(index)

    def close(self) -> None:
        """As :meth:`Storage.close`: nothing to do."""

    def _publish(self, metadata: SnapshotMetadata, chunks: tuple[bytes, ...]) -> None:
        if self._snapshot is None or metadata.index >= self._snapshot[0].index:
            self._snapshot = metadata, chunks

    def _expect_covered(self, index: int) -> None:
        newest = 0 if self._snapshot is None else self._snapshot[0].index
        if index > newest:
            raise InternalError(f"no snapshot covers index {index}: the newest is at {newest}")


class _Writer(SnapshotWriter):
    def __init__(self, storage: VolatileStorage, metadata: SnapshotMetadata) -> None:
        self._storage = storage
        self._metadata = metadata
        self._chunks: list[bytes] | None = []

    def write(self, chunk: bytes) -> None:
        self._expect_open().append(chunk)

    def commit(self) -> None:
        chunks = self._expect_open()
        self._chunks = None
        self._storage._publish(self._metadata, tuple(chunks))

    def abort(self) -> None:
        self._chunks = None

    def _expect_open(self) -> list[bytes]:
        if self._chunks is None:
            raise InternalError("a snapshot was written to after it was committed or aborted")
        return self._chunks
