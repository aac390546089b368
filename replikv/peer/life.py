"""One life of a peer: what it is made of, from when its state is restored until it ends.

A peer has one life, but for one without a disk that comes back to a cluster which knows it: that one ends the life it
has begun, joins anew, and goes on in another (``peer.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import structlog
import trio

from replikv.errors import ClusterClosedError, RemovedError
from replikv.machine.replica import Replica
from replikv.peer.admission import Admission
from replikv.peer.barriers import Barriers
from replikv.peer.driver import Driver
from replikv.peer.lessee import Lessee
from replikv.peer.proposals import Proposals
from replikv.peer.reconfigurator import Reconfigurator
from replikv.peer.snapshot_receiver import SnapshotReceiver
from replikv.peer.snapshot_sender import SnapshotSender
from replikv.peer.snapshots import blocking
from replikv.peer.whereabouts import Whereabouts
from replikv.raft.core import Config
from replikv.raft.entries import NO_NODE, EntryKind
from replikv.raft.membership import Membership
from replikv.raft.node import RawNode
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.storage.base import Identity, Storage
from replikv.transport.base import Channel, Transport

__all__ = ["Life", "core_config"]

RESTORE_SLICE_S = 0.005
"""How long a replica is rebuilt from disk before other tasks get their turn."""


class Life:
    """The parts of a peer that rest on one identity and one storage."""

    def __init__(
        self,
        storage: Storage,
        transport: Transport,
        settings: Settings,
        replica: Replica,
        *,
        attributes: Mapping[str, str],
        proposals: Proposals,
        barriers: Barriers,
        lessee: Lessee,
        listeners: list[Callable[[], None]],
        randomness: random.Random,
    ) -> None:
        assert storage.identity is not None
        self.identity: Identity = storage.identity
        self.storage = storage
        self.settings = settings
        self.replica = replica
        self.removed = trio.Event()
        """Set when this peer is no member any more."""
        self.running = False
        """Whether all parts run."""
        self.refusals: dict[str, str] = {}
        """Node id -> the sentence with which it refused us last."""
        self.declined: dict[str, str] = {}
        """Node id of a member -> the sentence with which we would not have it last."""
        self._transport = transport
        image = storage.image
        snapshot = image.snapshot()
        self.admission = Admission(self.identity, snapshot.membership, snapshot.index, attributes)
        for entry in image.entries(image.first_index(), image.last_index() + 1):
            if entry.kind == EntryKind.MEMBERSHIP:
                self.admission.note(entry)
        self.whereabouts = Whereabouts(self.identity, self.admission, transport, settings)
        self._nursery: trio.Nursery | None = None
        self.sender = SnapshotSender(storage, transport, settings, self._snapshot_sent)
        self.driver = Driver(
            node_id=self.identity.node_id,
            settings=settings,
            node=RawNode(core_config(self.identity.node_id, settings, snapshot.index), image, randomness),
            storage=storage,
            transport=transport,
            replica=replica,
            admission=self.admission,
            proposals=proposals,
            barriers=barriers,
            lessee=lessee,
            listeners=listeners,
            send_snapshot=self._send_snapshot,
            membership_applied=self._follow_membership,
            moved=self.whereabouts.passed_on,
            randomness=randomness,
        )
        self.receiver = SnapshotReceiver(storage, replica, settings, self.driver.snapshot_lock, self.driver.install)
        self.reconfigurator = Reconfigurator(self.identity, self.driver, transport, settings)
        self._log = structlog.get_logger(component="peer").bind(node=self.identity.node_id)

    # -- running -------------------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Rebuild the replica from the newest snapshot, a slice at a time."""
        index = self.storage.image.snapshot().index
        if index == 0:
            return
        restorer = self.replica.restorer()
        with self.storage.open_snapshot(index) as (_, chunks):
            slice_end = trio.current_time() + RESTORE_SLICE_S
            for chunk in chunks:
                restorer.feed(chunk)
                if trio.current_time() >= slice_end:
                    await trio.lowlevel.checkpoint()
                    slice_end = trio.current_time() + RESTORE_SLICE_S
        restorer.finish()
        self.driver.restored()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all parts until cancelled. Raises what one of them fails with, and RemovedError."""
        driver = self.driver
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(driver.persister.run)
                nursery.start_soon(driver.run)
                nursery.start_soon(driver.taker.run)
                nursery.start_soon(self.receiver.run)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._end_when_removed)
                self._follow_membership(self.admission.membership)
                if self.admission.membership.voters == {self.identity.node_id}:
                    driver.node.campaign()  # nobody else can lead: why wait for him
                driver.wake()
                self.running = True
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.running = False
                self._nursery = None
                driver.end()

    async def hand_leadership_over(self) -> None:
        """Spare the others an election timeout. Gives up after ``shutdown_timeout_s``, or when a part has failed."""
        node, driver = self.driver.node, self.driver
        if not self.running or node.raft.role is not Role.LEADER:
            return
        if not node.transfer_leadership(node.successor()):
            return
        driver.wake()
        with trio.move_on_after(min(self.settings.shutdown_timeout_s, self.settings.election_timeout_s)):
            while node.raft.leader in (NO_NODE, self.identity.node_id) and self.running:
                await driver.leader_changed.wait()

    async def close_storage(self) -> None:
        """Release the data directory, unless a thread hangs in it."""
        if self.driver.persister.abandoned:
            # The thread is still inside the storage: it keeps the directory locked until it, or the process, ends.
            self._log.error("disk hangs", seconds=self.settings.shutdown_timeout_s)
            return
        with trio.CancelScope(shield=True):
            await blocking(self.storage, self.storage.close)

    def fail_waiting(self, error: Callable[[], ClusterClosedError]) -> None:
        """Tell everybody who waits for an answer that there will be none."""
        self.driver.proposals.fail_all(error, "the cluster was closed before an answer came")
        self.driver.barriers.fail_all(error)
        self.driver.leasing.lessee.fail_all(error)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(self.settings.heartbeat_interval_s)
            self.driver.tick()
            self.whereabouts.tick(self.driver.ticks)

    async def _end_when_removed(self) -> None:
        raft = self.driver.node.raft
        while not self.removed.is_set():
            await self.removed.wait()
            # A leader passes on that it is gone, and hands over; an answer may be on its way to whoever asked for it.
            with trio.move_on_after(2 * self.settings.election_timeout_s):
                while raft.role is Role.LEADER:
                    await self.driver.leader_changed.wait()
            await trio.sleep(2 * self.settings.heartbeat_interval_s)
            if self.identity.node_id in self.admission.membership.ids:
                self.removed = trio.Event()  # removed, and named again, before we heard of either
        raise RemovedError(
            f"{self.identity.node_id} was removed from the cluster: to come back, let it join with join= and an empty"
            " data_dir"
        )

    def _follow_membership(self, membership: Membership) -> None:
        if self.identity.node_id not in membership.ids:
            self.removed.set()
        self.whereabouts.follow(membership)

    # -- snapshots that travel -----------------------------------------------------------------------------------------

    def _send_snapshot(self, node_id: str, term: int, index: int) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self.sender.send, node_id, term, index)

    def _snapshot_sent(self, node_id: str, failed: bool) -> None:
        self.driver.snapshot_sent(node_id, failed)

    async def send_first_snapshot(self, channel: Channel, node_id: str, index: int) -> None:
        """Send a newcomer a snapshot of at least ``index``; one is taken if need be. Raises trio's resource errors."""
        driver = self.driver
        await driver.barriers.wait_applied(index, driver.deadline())
        await driver.take_snapshot(index)
        await self.sender.send_over(channel, driver.node.raft.term, index, node_id)


def core_config(node_id: str, settings: Settings, applied: int) -> Config:
    """How the core of a peer is to behave, whose state is that of the entries up to ``applied``."""
    return Config(
        node_id=node_id,
        election_ticks=settings.election_ticks,
        pre_vote=True,
        check_quorum=True,
        read_lease=settings.lease_reads,
        message_bytes_max=settings.message_bytes_max,
        uncommitted_bytes_max=settings.uncommitted_bytes_max,
        commit_rides_along=True,
        inflight_messages_max=settings.inflight_messages_max,
        inflight_bytes_max=settings.inflight_bytes_max,
        applied=applied,
    )
