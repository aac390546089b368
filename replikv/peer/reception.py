"""What has arrived of a snapshot: chunks that are checked, written aside, and mean nothing until they are whole."""

from __future__ import annotations

import trio

from replikv.errors import InternalError
from replikv.machine.replica import Restorer
from replikv.peer.snapshot_stream import (
    CHUNK,
    SILENCE_MAX_S,
    ChunkDigest,
    Transfer,
    TransferError,
    encode_had,
    receive_frame,
    send_frame,
)
from replikv.peer.snapshots import WRITE_BYTES, blocking
from replikv.raft.entries import SnapshotMetadata
from replikv.storage.base import SnapshotWriter, Storage
from replikv.transport.base import Channel

__all__ = ["Reception"]


class Reception:
    """What has arrived of one snapshot. Nothing of it is visible to anybody before ``commit``.

    It is sound between any two of its calls, so that another sender can go on where one was cut off. After an error of
    the storage it is good for ``abort`` alone.
    """

    def __init__(self, storage: Storage, metadata: SnapshotMetadata, restorer: Restorer | None) -> None:
        self.metadata = metadata
        self.restorer = restorer
        """Builds the state aside; None where there is no replica yet, and once the state is somebody else's."""
        self.term = 0
        """In which the last sender sends."""
        self.chunks = 0
        """How many have arrived."""
        self._storage = storage
        self._writer: SnapshotWriter | None = None
        # The last of the chunks, which are not written yet, and not in the digest.
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._digest = ChunkDigest()

    async def take_from(self, channel: Channel, transfer: Transfer) -> None:
        """Take what is missing, and compare the whole. Raises TransferError, trio's resource errors, StorageError."""
        if self._writer is None:
            self._writer = await blocking(self._storage, self._storage.create_snapshot, self.metadata)
        await send_frame(channel, encode_had(self.chunks))
        while (frame := await receive_frame(channel, SILENCE_MAX_S))[:1] == CHUNK:
            self._add(frame[1:])
            transfer.moved(len(frame) - 1)
            if self._pending_bytes >= WRITE_BYTES:
                await blocking(self._storage, self._write)
            await trio.lowlevel.checkpoint()
        await blocking(self._storage, self._write)
        if frame != self._digest.end():
            raise TransferError("the chunks are not those that were sent, or not all of them")
        if self.restorer is not None and not self.restorer.complete:
            raise TransferError("the chunks do not make a snapshot")

    async def commit(self) -> None:
        """Make it durable, after it was taken whole. Raises StorageError."""
        assert self._writer is not None
        await blocking(self._storage, self._writer.commit)

    def abort(self) -> None:
        """Throw it away. After ``commit`` the file stays."""
        if self.restorer is not None:
            self.restorer.abandon()
        if self._writer is not None:
            self._writer.abort()

    def _add(self, chunk: bytes) -> None:
        if self.restorer is not None:
            try:
                self.restorer.feed(chunk)
            except InternalError as exc:
                raise TransferError(f"the chunks do not make a snapshot: {exc}") from exc
        self.chunks += 1
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)

    def _write(self) -> None:
        """In the writing thread: hashing takes as long as writing."""
        assert self._writer is not None
        for chunk in self._pending:
            self._digest.add(chunk)
            self._writer.write(chunk)
        self._pending = []
        self._pending_bytes = 0
