"""Snapshots that leave, on channels of their own, for followers that need compacted entries (paper, section 7).

Heartbeats and entries go first: there are few at once, and all of them together keep to a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import structlog
import trio

from replikv.errors import ReplikvError
from replikv.peer.pacing import Pacer, Turns
from replikv.peer.protocol import SnapshotHeader, encode_snapshot_header
from replikv.peer.snapshot_stream import (
    ANSWER_MAX_S,
    CHUNK,
    STILL,
    STILL_S,
    ChunkDigest,
    Transfer,
    TransferError,
    receive_frame,
    received_go,
    received_had,
    send_frame,
)
from replikv.peer.snapshots import blocking
from replikv.raft.entries import SnapshotMetadata
from replikv.settings import Settings
from replikv.storage.base import Storage
from replikv.transport.base import Channel, Transport

__all__ = ["SnapshotSender"]

READ_CHUNKS: Final = 16
"""Chunks of the usual size that are read, and hashed, in one go of the thread: 1 MiB."""


class SnapshotSender:
    """Sends one snapshot at a time to each follower that needs one, and few at once to all of them together."""

    def __init__(
        self,
        storage: Storage,
        transport: Transport,
        settings: Settings,
        report: Callable[[str, bool], None],
    ) -> None:
        self._storage = storage
        self._transport = transport
        self._read_bytes = READ_CHUNKS * settings.snapshot_chunk_bytes
        self._chunk_bytes_max = settings.frame_bytes_max - len(CHUNK)
        self._turns = Turns(settings.snapshot_sends_max)
        self._pacer = Pacer(settings.snapshot_send_bytes_per_s)
        # Called with (node id, whether it failed) when an attempt is over.
        self._report = report
        self.sending: dict[str, Transfer] = {}
        """Followers that are being sent one, or wait for their turn."""
        self.joining: dict[str, Transfer] = {}
        """The same of those who are no followers yet (:meth:`send_over`)."""
        self._log = structlog.get_logger(component="snapshots")

    async def send(self, node_id: str, term: int, index: int) -> None:
        """Send the newest snapshot, of at least ``index``. Failures are reported, and raised only if our disk's.

        There is one report for each attempt, also for one that is cancelled. An attempt that is under way stands for
        both.
        """
        if node_id in self.sending:
            return
        transfer = self.sending[node_id] = Transfer(trio.current_time(), waiting=True)
        failed = True
        try:
            async with self._turns.turn():
                transfer.waiting = False
                channel = await self._transport.open_channel(node_id)
                try:
                    await self._send(channel, node_id, term, index, transfer)
                    failed = False
                finally:
                    await channel.aclose()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, TransferError) as exc:
            if isinstance(exc, ReplikvError):
                raise
            self._log.info("snapshot not sent", to=node_id, reason=str(exc) or type(exc).__name__)
        finally:
            del self.sending[node_id]
            self._report(node_id, failed)

    async def send_over(self, channel: Channel, term: int, index: int, known: str) -> SnapshotMetadata:
        """Send the newest snapshot, of at least ``index``, to the node ``known``, who has opened the channel.

        Within the same limits as all others, and not reported. Returns what was sent, once it is durable over there;
        cancelled or failed, the channel is good for nothing but closing.

        Raises TransferError, trio's resource errors, InternalError when there is no such snapshot, and CorruptionError.
        """
        transfer = self.joining[known] = Transfer(trio.current_time(), waiting=True)
        try:
            async with self._turns.turn(lambda: send_frame(channel, STILL), STILL_S):
                transfer.waiting = False
                return await self._send(channel, known, term, index, transfer)
        finally:
            if self.joining.get(known) is transfer:  # whoever broke off and asked again is served by another one
                del self.joining[known]

    async def _send(
        self, channel: Channel, node_id: str, term: int, index: int, transfer: Transfer
    ) -> SnapshotMetadata:
        with self._storage.open_snapshot(index) as (metadata, chunks):
            await send_frame(channel, encode_snapshot_header(SnapshotHeader(term, metadata)))
            had = received_had(await receive_frame(channel, ANSWER_MAX_S))
            digest = ChunkDigest()
            passed = 0
            spoken = trio.current_time()
            while batch := await blocking(self._storage, self._read, chunks, digest):
                # What the receiver has is read all the same: the digest is of the whole.
                skipped = min(len(batch), had - passed)
                passed += skipped
                for chunk in batch[skipped:]:
                    await self._send_chunk(channel, chunk)
                    transfer.moved(len(chunk))
                    spoken = transfer.moved_at
                await trio.lowlevel.checkpoint()
                if trio.current_time() >= spoken + STILL_S:
                    await send_frame(channel, STILL)
                    spoken = trio.current_time()
            await send_frame(channel, digest.end())
            received_go(await receive_frame(channel, ANSWER_MAX_S))
        self._log.info(
            "snapshot sent", to=node_id, index=metadata.index, size=transfer.moved_bytes, resumed=bool(passed)
        )
        return metadata

    async def _send_chunk(self, channel: Channel, chunk: bytes) -> None:
        if len(chunk) > self._chunk_bytes_max:
            raise TransferError(
                f"a chunk of {len(chunk)} bytes is larger than a frame: set frame_bytes_max to what it was before"
            )
        due = self._pacer.reserve(len(chunk))
        while due > trio.current_time() + STILL_S:
            await trio.sleep(STILL_S)
            await send_frame(channel, STILL)
        await trio.sleep_until(due)
        await send_frame(channel, CHUNK + chunk)

    def _read(self, chunks: Iterator[bytes], digest: ChunkDigest) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        while size < self._read_bytes and (chunk := next(chunks, None)) is not None:
            digest.add(chunk)
            batch.append(chunk)
            size += len(chunk)
        return batch
