"""Snapshots that arrive. The chunks are written to the own storage, and the new state is built aside while the peer
goes on with the old one; both are swapped in by the driver, in one turn, once the snapshot is durable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Final

import structlog
import trio

from replikv.errors import InternalError
from replikv.machine.replica import Replica, Restorer
from replikv.peer.protocol import MalformedFrameError, SnapshotHeader, decode
from replikv.peer.reception import Reception
from replikv.peer.snapshot_stream import (
    ANSWER_MAX_S,
    BROKEN,
    GO,
    REFUSED,
    SilenceError,
    Transfer,
    TransferError,
    receive_frame,
    send_frame,
)
from replikv.raft.entries import SnapshotMetadata
from replikv.settings import Settings
from replikv.storage.base import Storage, StorageFullError
from replikv.transport.base import Channel

__all__ = ["ReceivedSnapshot", "SnapshotReceiver", "receive_first"]

_AS_NEW: Final = REFUSED + b"there is a snapshot at least as new here"
_NEWER_LEADER: Final = REFUSED + b"a newer leader sends another snapshot"
_PLACE_TAKEN: Final = REFUSED + b"another sender has taken the place"
_DISK_FULL: Final = REFUSED + b"the disk is full"


@dataclasses.dataclass(slots=True, eq=False)
class ReceivedSnapshot:
    """A snapshot that is durable here and ready to be swapped in."""

    sender: str
    term: int
    metadata: SnapshotMetadata
    restorer: Restorer | None
    """Its state; None when this peer has one at least as new."""
    done: trio.Event
    """Set by the driver when it is installed, or was not needed."""


@dataclasses.dataclass(slots=True, eq=False)
class _Offer:
    """A sender, and what it wants to send."""

    node_id: str
    channel: Channel
    header: SnapshotHeader
    scope: trio.CancelScope = dataclasses.field(default_factory=trio.CancelScope)
    """Cancelled when another one takes its place while its chunks come in."""
    over: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Nobody listens to its channel any more."""
    answer: bytes = b""
    """What to tell the sender in the end; empty when the channel is lost."""


class SnapshotReceiver:
    """Receives one snapshot at a time, from one sender after the other if need be: its task is :meth:`run`.

    A sender that was stopped may keep its connection: nobody must wait for it for ever. So one that is silent is given
    up, and one of a later term, or the same, takes the place of whoever is sending.

    What has arrived when a sender is lost is kept for ``snapshot_resume_s``, and whoever comes with the same snapshot
    in that time sends the rest. The snapshot lock is held all the while, from the beginning until the snapshot is
    installed or thrown away:

    - A storage writes one snapshot at a time, and this one is begun.
    - One of our own, begun before, would be older than the newest.
    - Nobody misses a snapshot of our own meanwhile: a peer that lacks compacted entries applies nothing. Where another
      leader could help it without a snapshot, its log is cut ``snapshot_resume_s`` later, once.
    """

    def __init__(
        self,
        storage: Storage,
        replica: Replica,
        settings: Settings,
        lock: trio.Lock,
        install: Callable[[ReceivedSnapshot], None],
    ) -> None:
        self._storage = storage
        self._replica = replica
        self._resume_s = settings.snapshot_resume_s
        self._lock = lock
        self._install = install
        # Comes next, as soon as the one whose turn it is has come to an end.
        self._waiting: _Offer | None = None
        self._offered = trio.Event()
        # Whose chunks come in. None again as soon as they are whole: nobody takes its place any more.
        self._current: _Offer | None = None
        # What has arrived of the snapshot that is not installed yet. There is none unless ``run`` holds the lock.
        self._reception: Reception | None = None
        self.receiving: dict[str, Transfer] = {}
        """Who is sending one: nobody, or one."""
        self._log = structlog.get_logger(component="snapshots")

    async def receive(self, node_id: str, channel: Channel, header: SnapshotHeader) -> None:
        """Take the snapshot that ``node_id`` has announced on the channel, or say why not. Needs ``run`` to run.

        Returns when nothing more will be said on the channel. When cancelled, close the channel: what came is kept for
        whoever goes on with it. Raises trio's resource errors when the last word does not get through.
        """
        if header.term < self._term():
            await _say(channel, _NEWER_LEADER)
            return
        if self._waiting is not None:
            self._waiting.answer = _PLACE_TAKEN
            self._waiting.over.set()
        elif self._current is not None:
            self._current.scope.cancel()
        offer = self._waiting = _Offer(node_id, channel, header)
        self._offered.set()
        try:
            await offer.over.wait()
        finally:
            if self._waiting is offer:
                self._waiting = None
        if offer.answer:
            await _say(channel, offer.answer)

    async def run(self) -> None:
        """Receive what is offered until cancelled; what has arrived in part is thrown away then.

        Raises StorageError, ConfigurationError when the snapshot needs a state machine that this replica lacks.
        """
        while await self._wait_offer(math.inf):
            async with self._lock:
                try:
                    await self._receive_one()
                finally:
                    self._drop()

    def _term(self) -> int:
        """The term to which others must be equal or later."""
        offer = self._waiting or self._current
        if offer is not None:
            return offer.header.term
        return 0 if self._reception is None else self._reception.term

    async def _wait_offer(self, limit_s: float) -> bool:
        with trio.move_on_after(limit_s):
            while self._waiting is None:
                self._offered = trio.Event()
                await self._offered.wait()
        return self._waiting is not None

    async def _receive_one(self) -> None:
        """Until it is installed, or nobody comes to go on with it."""
        while await self._wait_offer(0.0 if self._reception is None else self._resume_s):
            offer, self._waiting = self._waiting, None
            assert offer is not None
            transfer = self.receiving[offer.node_id] = Transfer(trio.current_time(), waiting=False)
            try:
                await self._take(offer, transfer)
            except StorageFullError as exc:
                self._log.warning("disk full", reason=str(exc), index=offer.header.snapshot.index)
                self._drop()
                offer.answer = _DISK_FULL
            finally:
                self._current = None
                del self.receiving[offer.node_id]
                offer.over.set()
            if self._reception is None:
                return
        if self._reception is not None:
            self._log.info("snapshot given up", index=self._reception.metadata.index, chunks=self._reception.chunks)

    async def _take(self, offer: _Offer, transfer: Transfer) -> None:
        """Drops the reception once nothing more can come of it, and keeps it as long as somebody may go on with it."""
        metadata = offer.header.snapshot
        if self._reception is not None and self._reception.metadata != metadata:
            self._drop()
        if metadata.index <= self._storage.image.snapshot().index:
            self._drop()
            # The leader does not know it yet, and would send it again and again: what we have is said by the core.
            self._install(ReceivedSnapshot(offer.node_id, offer.header.term, metadata, None, trio.Event()))
            offer.answer = _AS_NEW
            return
        if self._reception is None:
            self._reception = Reception(self._storage, metadata, self._replica.restorer())
        reception = self._reception
        reception.term = offer.header.term
        log = self._log.bind(sender=offer.node_id, index=metadata.index)
        try:
            self._current = offer
            with offer.scope:
                await reception.take_from(offer.channel, transfer)
        except BROKEN as exc:
            log.info("snapshot interrupted", chunks=reception.chunks, reason=str(exc) or type(exc).__name__)
        except TransferError as exc:
            log.warning("snapshot malformed", reason=str(exc))
            self._drop()
            offer.answer = REFUSED + str(exc).encode()
            return
        else:
            self._current = None
            if not offer.scope.cancelled_caught:
                await self._finish(offer, reception)
                return
            log.warning("snapshot interrupted", chunks=reception.chunks, reason="another sender has taken the place")
        if not reception.chunks:
            self._drop()

    async def _finish(self, offer: _Offer, reception: Reception) -> None:
        await reception.commit()
        restorer, reception.restorer = reception.restorer, None  # the driver's from now on
        assert restorer is not None
        received = ReceivedSnapshot(offer.node_id, offer.header.term, reception.metadata, restorer, trio.Event())
        self._install(received)
        await received.done.wait()
        restorer.abandon()  # in case that it was not needed
        self._drop()
        offer.answer = GO

    def _drop(self) -> None:
        if self._reception is not None:
            self._reception.abort()
            self._reception = None


async def _say(channel: Channel, answer: bytes) -> None:
    """The last word. Whoever does not listen does not miss it."""
    with contextlib.suppress(SilenceError):
        await send_frame(channel, answer)


async def receive_first(channel: Channel, storage: Storage) -> SnapshotMetadata:
    """Receive the snapshot that an empty storage begins with, from whoever calls ``SnapshotSender.send_over``.

    On return its data is committed, and ``storage.initialize`` can be called with what is returned. Cancelled or
    failed, nothing is left behind but the channel, which is good for nothing but closing.

    Raises TransferError with the reason when it came to nothing, and StorageError.
    """
    if storage.identity is not None:
        raise InternalError(f"this storage belongs to {storage.identity.node_id}: it has its first snapshot")
    try:
        header = decode(await receive_frame(channel, ANSWER_MAX_S), "the sender", "")
        if not isinstance(header, SnapshotHeader):
            raise TransferError(f"the other side sent {type(header).__name__}, no snapshot")
        reception = Reception(storage, header.snapshot, None)
        try:
            await reception.take_from(channel, Transfer(trio.current_time(), waiting=False))
            await reception.commit()
        finally:
            reception.abort()
    except MalformedFrameError as exc:
        raise TransferError(str(exc)) from exc
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel) as exc:
        raise TransferError(f"the channel broke: {exc}" if str(exc) else "the channel broke") from exc
    with contextlib.suppress(*BROKEN):  # it is whole, whether that is heard or not
        await send_frame(channel, GO)
    return header.snapshot
