"""One peer: its parts wired together, started and stopped."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Coroutine
from types import MappingProxyType
from typing import Any

import structlog
import trio

from replikv.errors import (
    ClusterClosedError,
    ConfigurationError,
    NotLeaderError,
    UnavailableError,
    WrongClusterError,
)
from replikv.machine.base import StateMachine
from replikv.machine.replica import Replica
from replikv.peer.admission import Admission, Refused
from replikv.peer.driver import Driver
from replikv.peer.persister import Persister
from replikv.peer.proposals import Proposals
from replikv.peer.snapshots import blocking
from replikv.peer.status import Member, Progress, Status
from replikv.peer.transfers import SnapshotReceiver, SnapshotSender
from replikv.raft.core import Config
from replikv.raft.entries import NO_NODE, EntryKind
from replikv.raft.membership import Membership
from replikv.raft.node import RawNode
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.storage.base import Storage
from replikv.transport.base import Channel, Hello, Transport

__all__ = ["Peer", "is_cancellation", "sole_error"]

RESTORE_SLICE_S = 0.005
"""How long a replica is rebuilt from disk before other tasks get their turn."""


class Peer:
    """A peer of the cluster: implements the transport's Receiver and the store's Replicator."""

    def __init__(
        self,
        storage: Storage,
        transport: Transport,
        settings: Settings,
        *,
        listen: str,
        machine: StateMachine | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        if storage.identity is None:
            raise ConfigurationError("the storage has no identity: initialize it first")
        self.identity = storage.identity
        self.settings = settings
        self.replica = Replica(machine)
        self._storage = storage
        self._transport = transport
        self._listen = listen
        self._random = randomness or random.Random()  # noqa: S311  # timeouts and nonces, no secrets
        membership = storage.image.snapshot().membership
        self._admission = Admission(self.identity, membership)
        image = storage.image
        for entry in image.entries(image.first_index(), image.last_index() + 1):
            if entry.kind == EntryKind.MEMBERSHIP:
                self._admission.note(entry)
        # Set before the transport calls us, and for good.
        self._driver: Driver
        self._persister: Persister | None = None
        # None unless the peer is running.
        self._nursery: trio.Nursery | None = None
        self._sender = SnapshotSender(storage, transport, settings, self._snapshot_sent)
        self._receiver: SnapshotReceiver
        # The sentence of whoever will not have us back, and that there is one.
        self._refusal = ""
        self._refused = trio.Event()
        self._log = structlog.get_logger(component="peer").bind(node=self.identity.node_id)

    # -- running -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a peer until cancelled; started once the replica is rebuilt from disk and the transport listens.

        On the way out a leader hands leadership over, and everything that is queued for the disk is written and the
        storage is closed. Tasks that still wait for an answer get ClusterClosedError; those whose command was handed
        over, OutcomeUnknownError.

        Raises what made the peer fail: StorageError, WrongClusterError, OSError of the address to bind, InternalError.
        """
        try:
            await self._restore()
            await self._run_parts(task_status)
        except BaseExceptionGroup as group:
            raise sole_error(group) from None
        finally:
            await self._close_storage()

    async def _close_storage(self) -> None:
        if self._persister is not None and self._persister.abandoned:
            # The thread is still inside the storage: it keeps the directory locked until it, or the process, ends.
            self._log.error("disk hangs", seconds=self.settings.shutdown_timeout_s)
            return
        with trio.CancelScope(shield=True):
            await blocking(self._storage, self._storage.close)

    async def _run_parts(self, task_status: trio.TaskStatus[None]) -> None:
        """Run until cancelled, then hand leadership over while all parts still run, and only then end them."""
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run_in, scope)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self._hand_leadership_over()
                scope.cancel()

    @property
    def _running(self) -> bool:
        return self._nursery is not None

    async def _hand_leadership_over(self) -> None:
        """Spare the others an election timeout. Gives up after ``shutdown_timeout_s``, or when a part has failed."""
        node, driver = self._driver.node, self._driver
        if not self._running or node.raft.role is not Role.LEADER:
            return
        successor = node.successor()
        if not node.transfer_leadership(successor):
            return
        driver.wake()
        with trio.move_on_after(min(self.settings.shutdown_timeout_s, self.settings.election_timeout_s)):
            while node.raft.leader in (NO_NODE, self.identity.node_id) and self._running:
                await driver.leader_changed.wait()

    async def _run_in(self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        driver = self._driver
        with scope:
            await self._run_nursery(driver, scope, task_status)

    async def _run_nursery(self, driver: Driver, scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(driver.persister.run)
                nursery.start_soon(driver.run)
                nursery.start_soon(driver.taker.run)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._fail_when_refused)
                self._set_peers(self._admission.membership)
                await nursery.start(self._run_transport)
                if self._admission.membership.voters == {self.identity.node_id}:
                    driver.node.campaign()  # nobody else can lead: why wait for him
                driver.wake()
                # A cancellation that has come already is on its way to the parts: too late to hold it off.
                if trio.current_effective_deadline() > -math.inf:
                    scope.shield = True
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                driver.proposals.fail_all(self._closed_error, "the cluster was closed before an answer came")
                driver.barriers.fail_all(self._closed_error)
                driver.leader_changed.set()
                driver.snapshot_ended.set()

    async def _restore(self) -> None:
        """Rebuild the replica from the newest snapshot, a slice at a time, and put the parts together."""
        image = self._storage.image
        snapshot = image.snapshot()
        if snapshot.index > 0:
            await self._restore_replica(snapshot.index)
        self._driver = Driver(
            node_id=self.identity.node_id,
            settings=self.settings,
            node=RawNode(self._config(snapshot.index), image, self._random),
            storage=self._storage,
            transport=self._transport,
            replica=self.replica,
            admission=self._admission,
            proposals=Proposals(self.identity.node_id, self.settings.proposals_max, self._random),
            randomness=self._random,
            send_snapshot=self._send_snapshot,
            membership_changed=self._set_peers,
        )
        self._persister = self._driver.persister
        self._receiver = SnapshotReceiver(self._storage, self.replica, self._driver.snapshot_lock, self._driver.install)

    async def _restore_replica(self, index: int) -> None:
        restorer = self.replica.restorer()
        with self._storage.open_snapshot(index) as (_, chunks):
            slice_end = trio.current_time() + RESTORE_SLICE_S
            for chunk in chunks:
                restorer.feed(chunk)
                if trio.current_time() >= slice_end:
                    await trio.lowlevel.checkpoint()
                    slice_end = trio.current_time() + RESTORE_SLICE_S
        restorer.finish()

    def _config(self, applied: int) -> Config:
        settings = self.settings
        return Config(
            node_id=self.identity.node_id,
            election_ticks=settings.election_ticks,
            pre_vote=True,
            check_quorum=True,
            message_bytes_max=settings.message_bytes_max,
            uncommitted_bytes_max=settings.uncommitted_bytes_max,
            commit_rides_along=True,
            inflight_messages_max=settings.inflight_messages_max,
            inflight_bytes_max=settings.inflight_bytes_max,
            applied=applied,
        )

    async def _run_transport(self, *, task_status: trio.TaskStatus[str]) -> None:
        await self._transport.run(
            self, listen=self._listen or self.identity.node_id, settings=self.settings, task_status=task_status
        )

    async def _tick(self) -> None:
        while True:
            await trio.sleep(self.settings.heartbeat_interval_s)
            self._driver.tick()

    async def _fail_when_refused(self) -> None:
        await self._refused.wait()
        raise WrongClusterError(self._refusal)

    def _set_peers(self, membership: Membership) -> None:
        for node_id, record in membership.members.items():
            if node_id != self.identity.node_id:
                self._transport.set_peer(node_id, record.address)

    # -- the transport's receiver --------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """As :meth:`Receiver.hello`."""
        return self._admission.hello()

    def admit(self, hello: Hello) -> str | None:
        """As :meth:`Receiver.admit`."""
        reason = self._admission.admit(hello)
        if reason is not None:
            self._log.warning("peer refused", peer=hello.node_id, reason=reason)
        return reason

    def receive(self, node_id: str, frame: bytes) -> None:
        """As :meth:`Receiver.receive`. Who was admitted before the log knew better is not listened to any more."""
        if not self._admission.contradicted(node_id):
            self._driver.receive(node_id, frame)

    def connected(self, node_id: str) -> None:
        """As :meth:`Receiver.connected`."""
        self._driver.connected(node_id)

    def disconnected(self, node_id: str) -> None:
        """As :meth:`Receiver.disconnected`."""
        self._driver.disconnected(node_id)

    def refused(self, node_id: str, reason: str) -> None:
        """As :meth:`Receiver.refused`. A lost disk is the end of this peer; anything else may mend itself."""
        self._log.warning("refused", peer=node_id, reason=reason)
        if reason.startswith(Refused.INCARNATION) and not self._refused.is_set():
            self._refusal = f"{node_id} refused {self.identity.node_id}: {reason}"
            self._refused.set()

    async def serve_channel(self, node_id: str, channel: Channel) -> None:
        """As :meth:`Receiver.serve_channel`: a snapshot comes in."""
        await self._receiver.receive(node_id, channel, self.identity.node_id)

    def _send_snapshot(self, node_id: str, term: int, index: int) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._sender.send, node_id, term, index)

    def _snapshot_sent(self, node_id: str, failed: bool) -> None:
        self._driver.snapshot_sent(node_id, failed)

    # -- the store's replicator ----------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """As :meth:`Replicator.check_open`."""
        if self._nursery is None:
            raise self._closed_error()

    def _closed_error(self) -> ClusterClosedError:
        return ClusterClosedError(
            f"the cluster of {self.identity.node_id} is not open:"
            " use it inside its 'async with' block, or while its run() is running"
        )

    def propose(self, kind: int, payload: bytes) -> Coroutine[Any, Any, bytes]:
        """As :meth:`Replicator.propose`."""
        if self._nursery is None:
            raise self._closed_error()
        driver = self._driver
        driver.wake()
        return driver.proposals.submit(kind, payload, driver.deadline())

    async def barrier(self) -> None:
        """As :meth:`Replicator.barrier`."""
        if self._nursery is None:
            raise self._closed_error()
        driver = self._driver
        driver.wake()
        await driver.barriers.wait(driver.deadline())

    def add_listener(self, listener: Callable[[], None]) -> None:
        """As :meth:`Replicator.add_listener`."""
        self._driver.listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """As :meth:`Replicator.remove_listener`."""
        self._driver.listeners.remove(listener)

    def start_soon(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        """As :meth:`Replicator.start_soon`."""
        self.check_open()
        assert self._nursery is not None
        self._nursery.start_soon(task, name=name)

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this peer leads, as far as it knows: another may have been elected since."""
        return self._nursery is not None and self._driver.node.raft.role is Role.LEADER

    async def wait_leader(self) -> str:
        """Return the node id of the leader as soon as one is known. Cancelling it leaves nothing behind."""
        await trio.lowlevel.checkpoint()
        while True:
            self.check_open()
            driver = self._driver
            if driver.node.raft.leader:
                return driver.node.raft.leader
            await driver.leader_changed.wait()

    async def transfer_leadership(self, to: str | None) -> None:
        """As :meth:`Cluster.transfer_leadership`."""
        self.check_open()
        driver = self._driver
        node = driver.node
        if to is not None and to not in node.raft.membership.voters:
            raise ConfigurationError(f"{to!r} is no voter of this cluster: {sorted(node.raft.membership.voters)} are")
        if to is None and node.raft.role is not Role.LEADER:
            leader = node.raft.leader or None
            raise NotLeaderError(f"{self.identity.node_id} does not lead: name the successor, or ask {leader}", leader)
        successor = to or node.successor()
        if node.raft.leader != successor:
            if not successor or not node.transfer_leadership(successor):
                raise UnavailableError(f"leadership was not handed over: {driver.why()}")
            driver.wake()
            # The leader gives up after one election timeout; what follows from that is known after two.
            with trio.move_on_after(2 * self.settings.election_timeout_s):
                while node.raft.leader != successor:
                    await driver.leader_changed.wait()
                    self.check_open()
            if node.raft.leader != successor:
                raise UnavailableError(f"{successor} did not take leadership over in time: {driver.why()}")
        await trio.lowlevel.checkpoint()

    async def snapshot(self) -> None:
        """Take a snapshot of this peer's state, and return when it is durable. Cancelling does not undo it.

        Raises StorageError when there is no room.
        """
        self.check_open()
        driver = self._driver
        wanted = driver.applier.index
        driver.snapshot_wanted = True
        driver.wake()
        while self._storage.image.snapshot().index < wanted:
            await driver.snapshot_ended.wait()
            self.check_open()
            if driver.taker.failure is not None:
                raise driver.taker.failure
        await trio.lowlevel.checkpoint()

    def status(self) -> Status:
        """What this peer knows at this moment."""
        self.check_open()
        driver = self._driver
        raft = driver.node.raft
        membership = self._admission.membership
        leading = raft.role is Role.LEADER
        return Status(
            node_id=self.identity.node_id,
            cluster_id=self.identity.cluster_id,
            role=str(raft.role),
            term=raft.term,
            leader=raft.leader or None,
            commit_index=raft.log.committed,
            applied_index=driver.applier.index,
            first_index=raft.log.first_index(),
            last_index=raft.log.last_index(),
            members=MappingProxyType(
                {
                    node_id: Member(record.address, "voter" if membership.is_voter(node_id) else "learner")
                    for node_id, record in membership.members.items()
                }
            ),
            progress=MappingProxyType(
                {
                    node_id: Progress(
                        progress.match, progress.next, progress.state.name.lower(), progress.recent_active
                    )
                    for node_id, progress in raft.tracker.progress.items()
                    if leading and node_id != self.identity.node_id
                }
            ),
        )


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a group that is no cancellation; the group if there are several, a cancellation if none."""
    errors = leaves(group)
    failures = [error for error in errors if not isinstance(error, trio.Cancelled)]
    if len(failures) > 1:
        return group
    return failures[0] if failures else errors[0]


def is_cancellation(error: BaseException) -> bool:
    """Whether there is nothing but cancellations in it."""
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, however deep."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in leaves(inner)]
