"""Snapshots on their way from one peer to another, chunk by chunk: either end, or the way, may break off at each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from replikv.errors import InternalError
from replikv.peer.snapshot_receiver import ReceivedSnapshot
from replikv.raft.entries import SnapshotMetadata
from replikv.storage.base import SnapshotWriter, StorageFullError

if TYPE_CHECKING:
    from replikv.machine.replica import Restorer
    from replikv.testing.simulator.process import Process

__all__ = ["Transfer"]

PATIENCE_S: Final = 3.0
"""How long either end takes at most to notice that the other one is gone."""


class Transfer:
    """One attempt to send the newest snapshot to a follower."""

    def __init__(self, sender: Process, to: str, term: int, index: int) -> None:
        self.sender = sender
        self.to = to
        self.term = term
        self.index = index
        self.receiver: Process | None = None
        self.whole = False
        """Whether all chunks are there: nobody takes its place any more."""
        self._metadata: SnapshotMetadata
        self._chunks: list[bytes] = []
        self._writer: SnapshotWriter | None = None
        self._restorer: Restorer | None = None
        self._digest = hashlib.sha256()
        self._waited = 0
        self._reported = False
        sender.later(self._pause(), self._begin)

    def _pause(self) -> float:
        network = self.sender.simulation.network
        return network.delay_s + network.jitter_s * self.sender.random.random()

    # -- the sender's --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        receiver = self.sender.connections.get(self.to)
        if receiver is None:
            self._fail("there is no connection")
            return
        with self.sender.storage.open_snapshot(self.index) as (self._metadata, chunks):
            self._chunks = list(chunks)
        self._chunks.reverse()
        self.receiver = receiver
        self.sender.later(self._pause(), self._offer)

    def _passes(self) -> bool:
        receiver, sender = self.receiver, self.sender
        return (
            receiver is not None
            and not receiver.over
            and sender.connections.get(self.to) is receiver
            and sender.simulation.network.passes(sender.node_id, self.to)
        )

    def _offer(self) -> None:
        if not self._passes():
            self._fail("the connection broke")
        elif self.receiver is not None:
            self._have(self.receiver, self._take_offer)

    def _have(self, receiver: Process, step: Callable[[], None]) -> None:
        """Have the receiver take a step, which it may not survive."""
        receiver.run(step)
        if receiver.over:
            self._fail("the other side has ended")

    def _send(self) -> None:
        receiver = self.receiver
        if receiver is None or receiver.reception is not self:
            self._fail("another one has taken its place")
        elif not self._passes():
            self._fail("the connection broke")
        elif receiver.stalled:
            self.sender.later(0.2, self._send)
        else:
            self._have(receiver, self._take_chunk)

    def _wait(self) -> None:
        """Everything is sent, and the answer is not there yet."""
        if not self._reported:
            if self._passes():
                self.sender.later(0.5, self._wait)
            else:
                self._report(True)

    def _fail(self, why: str) -> None:
        """It came to nothing, which both ends notice sooner or later."""
        sender, receiver = self.sender, self.receiver
        simulation = sender.simulation
        simulation.counts["snapshots that broke off"] += 1
        if simulation.telling:
            simulation.tell(f"{sender.node_id} cannot send {self.to} a snapshot: {why}")
        if receiver is not None and not receiver.over:
            receiver.later(sender.random.random() * PATIENCE_S, self._break_off)
        if not sender.over:
            sender.later(sender.random.random() * PATIENCE_S, self._report, True)

    def _report(self, failed: bool) -> None:
        if self._reported:
            return
        self._reported = True
        self.sender.sending.discard(self.to)
        self.sender.driver.snapshot_sent(self.to, failed)

    # -- the receiver's ------------------------------------------------------------------------------------------------

    def _take_offer(self) -> None:
        receiver = self.receiver
        assert receiver is not None
        if self.term < receiver.driver.node.raft.term:
            self._fail("a newer leader is known")
        elif self._metadata.index <= receiver.storage.image.snapshot().index:
            # The leader does not know it yet: what there is is said by the core.
            receiver.driver.install(
                ReceivedSnapshot(self.sender.node_id, self.term, self._metadata, None, trio.Event())
            )
            self._fail("there is one at least as new")
        elif receiver.reception is not None:
            if receiver.reception.whole or receiver.reception.term > self.term:
                self._fail("another one is under way")
            else:
                receiver.reception._break_off()
                self._receive(receiver)
        elif receiver.snapshot_locked:
            self._waited += 1
            if self._waited > 40:
                self._fail("its own snapshot takes too long")
            else:
                self.sender.later(0.1, self._offer)
        else:
            self._receive(receiver)

    def _receive(self, receiver: Process) -> None:
        receiver.snapshot_locked = True
        receiver.reception = self
        try:
            self._writer = receiver.storage.create_snapshot(self._metadata)
        except StorageFullError:
            self._break_off()
            self._fail("the disk is full")
            return
        self._restorer = receiver.replica.restorer()
        self.sender.later(self._pause(), self._send)

    def _take_chunk(self) -> None:
        receiver = self.receiver
        assert receiver is not None
        assert self._writer is not None
        assert self._restorer is not None
        try:
            if self._chunks:
                chunk = self._chunks.pop()
                self._restorer.feed(chunk)
                self._writer.write(chunk)
                self._digest.update(len(chunk).to_bytes(8) + chunk)
                self.sender.later(self._pause() / 4, self._send)
                return
            if not self._restorer.complete:
                raise InternalError("the chunks of a snapshot do not make one")
            self.whole = True
            self._writer.commit()
        except StorageFullError:
            self.whole = False
            self._break_off()
            self._fail("the disk is full")
            return
        receiver.host.has_snapshot(self._metadata)
        receiver.simulation.oracle.snapshot_seen(receiver.node_id, self._metadata, self._digest.digest())
        receiver.installing = ReceivedSnapshot(
            self.sender.node_id, self.term, self._metadata, self._restorer, trio.Event()
        )
        receiver.driver.install(receiver.installing)
        self.sender.later(0.5, self._wait)

    def _break_off(self) -> None:
        """Throw away what has come, unless it has come whole."""
        receiver = self.receiver
        if receiver is not None and receiver.reception is self and not self.whole:
            if self._writer is not None:
                self._writer.abort()
            receiver.reception = None
            receiver.snapshot_locked = False

    def finish(self) -> None:
        """The receiver has it in place, or did not need it."""
        receiver = self.receiver
        assert receiver is not None
        receiver.reception = receiver.installing = None
        receiver.snapshot_locked = False
        simulation = receiver.simulation
        simulation.counts["snapshots received"] += 1
        if simulation.telling:
            simulation.tell(f"{receiver.node_id} has a snapshot of {self.sender.node_id} at {self._metadata.index}")
        if self._passes():
            self.sender.later(self._pause(), self._report, False)
        elif not self.sender.over:
            self.sender.later(self.sender.random.random() * PATIENCE_S, self._report, True)
