"""Snapshots that travel, on channels of their own, to a follower that needs compacted entries (paper, section 7).

The exchange: header -> go or refusal; chunks, end -> installed or refusal. The receiver writes the chunks to its own
storage and builds the new state aside while it goes on with the old one; both are swapped in by the driver, in one
turn, once the snapshot is durable.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Final

import structlog
import trio

from replikv.errors import InternalError, ReplikvError
from replikv.machine.replica import Replica, Restorer
from replikv.peer.protocol import MalformedFrameError, SnapshotHeader, decode, encode_snapshot_header
from replikv.peer.snapshots import blocking, write_all
from replikv.raft.entries import SnapshotMetadata
from replikv.settings import Settings
from replikv.storage.base import Storage
from replikv.transport.base import Channel, Transport

__all__ = ["ReceivedSnapshot", "SnapshotReceiver", "SnapshotSender"]

REFUSED: Final = b"\x00"
GO: Final = b"\x01"
CHUNK: Final = b"\x02"
END: Final = b"\x03"

READ_BYTES = 1024 * 1024
"""What is read from storage at a time."""


SILENCE_MAX_S = 10.0
"""How long a sender may be silent. Its chunks are small, and it reads them from its own disk."""


@dataclasses.dataclass(slots=True, eq=False)
class ReceivedSnapshot:
    """A snapshot that is durable here and ready to be swapped in."""

    sender: str
    term: int
    metadata: SnapshotMetadata
    restorer: Restorer
    done: trio.Event
    """Set by the driver when it is installed, or was not needed."""


class SnapshotSender:
    """Sends one snapshot at a time to each follower that needs one."""

    def __init__(
        self,
        storage: Storage,
        transport: Transport,
        settings: Settings,
        report: Callable[[str, bool], None],
    ) -> None:
        self._storage = storage
        self._transport = transport
        self._batch = max(1, READ_BYTES // settings.snapshot_chunk_bytes)
        # Called with (node id, whether it failed) when an attempt is over.
        self._report = report
        self.sending: set[str] = set()
        """Who is being sent one."""
        self._log = structlog.get_logger(component="snapshots")

    async def send(self, node_id: str, term: int, index: int) -> None:
        """Send the newest snapshot, of at least ``index``. Failures are reported, and raised only if our disk's."""
        if node_id in self.sending:
            return
        self.sending.add(node_id)
        failed = True
        try:
            channel = await self._transport.open_channel(node_id)
            try:
                await self._send(channel, node_id, term, index)
                failed = False
            finally:
                await channel.aclose()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, RefusedError) as exc:
            if isinstance(exc, ReplikvError):
                raise
            self._log.info("snapshot not sent", to=node_id, reason=str(exc) or type(exc).__name__)
        finally:
            self.sending.discard(node_id)
            self._report(node_id, failed)

    async def _send(self, channel: Channel, node_id: str, term: int, index: int) -> None:
        with self._storage.open_snapshot(index) as (metadata, chunks):
            await channel.send(encode_snapshot_header(SnapshotHeader(term, metadata)))
            check_go(await channel.receive())
            while batch := await blocking(self._storage, self._read, chunks):
                for chunk in batch:
                    await channel.send(CHUNK + chunk)
            await channel.send(END)
            check_go(await channel.receive())
        self._log.info("snapshot sent", to=node_id, index=metadata.index)

    def _read(self, chunks: Iterator[bytes]) -> list[bytes]:
        return list(itertools.islice(chunks, self._batch))


class SnapshotReceiver:
    """Receives one snapshot at a time.

    A sender that was stopped may keep its connection: nobody must wait for it for ever. So one that is silent is given
    up, and one of a later term, or the same, takes the place of whoever is sending.
    """

    def __init__(
        self,
        storage: Storage,
        replica: Replica,
        lock: trio.Lock,
        install: Callable[[ReceivedSnapshot], None],
    ) -> None:
        self._storage = storage
        self._replica = replica
        self._lock = lock
        self._install = install
        # The transfer under way: the term it is sent in, and the scope that ends it.
        self._term = 0
        self._transfer: trio.CancelScope | None = None
        # Whether one is received whole and on its way into the log.
        self._installing = False
        self._log = structlog.get_logger(component="snapshots")

    async def receive(self, node_id: str, channel: Channel, node: str) -> None:
        """Take a snapshot that ``node_id`` sends, or say why not. Raises StorageError, and trio's resource errors."""
        try:
            header = decode(await channel.receive(), node_id, node)
        except MalformedFrameError:
            return
        if not isinstance(header, SnapshotHeader):
            return
        if self._transfer is not None:
            if header.term < self._term:
                await channel.send(REFUSED + b"a newer leader sends another snapshot")
                return
            self._transfer.cancel()
        self._term, self._transfer = header.term, trio.CancelScope()
        with self._transfer as transfer:
            try:
                received = await self._take(channel, node_id, header, transfer)
            finally:
                if self._transfer is transfer:
                    self._transfer = None
        if transfer.cancelled_caught:
            self._log.warning("snapshot given up", sender=node_id, index=header.snapshot.index)
        elif received is not None:
            try:
                self._install(received)
                await received.done.wait()
            finally:
                self._installing = False
            await channel.send(GO)

    async def _take(
        self, channel: Channel, node_id: str, header: SnapshotHeader, transfer: trio.CancelScope
    ) -> ReceivedSnapshot | None:
        async with self._lock:
            if self._installing:
                await channel.send(REFUSED + b"another snapshot is being installed")
                return None
            if header.snapshot.index <= self._storage.image.snapshot().index:
                await channel.send(REFUSED + b"there is a snapshot at least as new here")
                return None
            await channel.send(GO)
            received = await self._receive(channel, node_id, header, transfer)
            if received is None:
                await channel.send(REFUSED + b"the chunks do not make a snapshot")
            self._installing = received is not None
            return received

    async def _receive(
        self, channel: Channel, node_id: str, header: SnapshotHeader, transfer: trio.CancelScope
    ) -> ReceivedSnapshot | None:
        restorer = self._replica.restorer()
        writer = await blocking(self._storage, self._storage.create_snapshot, header.snapshot)
        try:
            pending: list[bytes] = []
            size = 0
            while True:
                transfer.deadline = trio.current_time() + SILENCE_MAX_S
                frame = await channel.receive()
                transfer.deadline = math.inf
                if frame[:1] != CHUNK:
                    break
                chunk = frame[1:]
                try:
                    restorer.feed(chunk)
                except InternalError as exc:
                    self._log.warning("snapshot malformed", sender=node_id, reason=str(exc))
                    return None
                pending.append(chunk)
                size += len(chunk)
                if size >= READ_BYTES:
                    await blocking(self._storage, write_all, writer, pending)
                    pending, size = [], 0
                await trio.lowlevel.checkpoint()
            if frame != END or not restorer.complete:
                self._log.warning("snapshot received in part", sender=node_id, index=header.snapshot.index)
                return None
            await blocking(self._storage, write_all, writer, pending)
            await blocking(self._storage, writer.commit)
        finally:
            writer.abort()
        return ReceivedSnapshot(node_id, header.term, header.snapshot, restorer, trio.Event())


class RefusedError(Exception):
    """The other side would not take the snapshot."""


def check_go(frame: bytes) -> None:
    """Raise RefusedError unless the other side said to go on."""
    if frame != GO:
        raise RefusedError(frame[1:].decode(errors="replace"))
