"""One peer: joined, started, stopped, and what the floors above ask of it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog
import trio

from replikv.errors import (
    ClusterClosedError,
    ConfigurationError,
    NotLeaderError,
    RemovedError,
    ReplikvError,
    UnavailableError,
    WrongClusterError,
)
from replikv.machine.base import StateMachine
from replikv.machine.replica import Replica
from replikv.peer.admission import COMMANDS, LEARNER, LEASE, MACHINE, STORAGE, VERSION, VOLATILE, ZONE, Refused
from replikv.peer.barriers import Barriers
from replikv.peer.doctor import diagnose
from replikv.peer.driver import Driver
from replikv.peer.failures import sole_error
from replikv.peer.joiner import Joiner, compare, serve_joiner
from replikv.peer.lessee import Lessee
from replikv.peer.life import Life
from replikv.peer.observer import Observer
from replikv.peer.outcomes import Outcome, outcome_of
from replikv.peer.proposals import Proposals
from replikv.peer.protocol import MalformedFrameError, SnapshotHeader, decode
from replikv.peer.requests import is_request
from replikv.peer.snapshot_stream import TransferError
from replikv.peer.snapshots import blocking
from replikv.peer.status import Status, status_of
from replikv.raft.membership import MemberChange
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.storage.base import Identity, Storage, StorageFullError
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Channel, Hello, Transport

__all__ = ["Joining", "Peer"]


@dataclasses.dataclass(frozen=True, slots=True)
class Joining:
    """How a peer is to join a cluster that runs; one with a state of its own has done so."""

    node_id: str
    address: str
    listen: str
    members: Sequence[str] = ()
    """Addresses of members to ask."""
    learner: bool = False
    """Whether it is never to vote."""


class Peer:
    """A peer of the cluster: implements the transport's Receiver and the store's Replicator."""

    def __init__(
        self,
        storage: Storage,
        transport: Transport,
        settings: Settings,
        *,
        listen: str,
        joining: Joining | None = None,
        machine: StateMachine | None = None,
        version: str = "",
        randomness: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.replica = Replica(machine)
        self._storage = storage
        self._transport = transport
        self._listen = listen
        self._joining = joining
        self._random = randomness or random.Random()  # noqa: S311  # timeouts and nonces, no secrets
        attributes = {
            ZONE: settings.zone,
            VERSION: version,
            STORAGE: VOLATILE if isinstance(storage, VolatileStorage) else "",
            LEASE: f"{settings.election_timeout_s:g}" if settings.lease_reads else "",
            COMMANDS: str(self.replica.known.commands),
            MACHINE: str(self.replica.known.machine) if machine is not None else "",
        }
        self._attributes = {name: value for name, value in attributes.items() if value}
        self.node_id = node_id = joining.node_id if joining is not None else own_identity(storage).node_id
        # What outlives a life: who waits for an answer, and who listens.
        self._proposals = Proposals(node_id, settings.proposals_max, self._random)
        self._barriers = Barriers(self._random.getrandbits(62))
        self._lessee = Lessee(self._random.getrandbits(62))
        self._listeners: list[Callable[[], None]] = []
        # None until there is an identity to live under.
        self._life: Life | None = None if storage.identity is None else self._begin_life()
        self._lives = 1
        self._joiner: Joiner | None = None
        # Set, and replaced by a new one, when the next life begins or there will be none.
        self._next_life = trio.Event()
        self._observer: Observer | None = None
        # Tasks of the store's run here. None unless the peer is open.
        self._nursery: trio.Nursery | None = None
        # Set when another peer's refusal ends this life: why.
        self._refusal: ReplikvError | None = None
        self._refused = trio.Event()
        self._log = structlog.get_logger(component="peer").bind(node=node_id)

    @property
    def identity(self) -> Identity:
        """Who this peer is. Raises ClusterClosedError before it is a member of anything."""
        return self._alive.identity

    @property
    def _alive(self) -> Life:
        if self._life is None:
            raise self._closed_error()
        return self._life

    @property
    def _driver(self) -> Driver:
        return self._alive.driver

    def _begin_life(self) -> Life:
        return Life(
            self._storage,
            self._transport,
            self.settings,
            self.replica,
            attributes=self._attributes,
            proposals=self._proposals,
            barriers=self._barriers,
            lessee=self._lessee,
            listeners=self._listeners,
            randomness=self._random,
        )

    # -- running -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a peer until cancelled; started once it is a member, has its state back, and the transport listens.

        On the way out a leader hands leadership over, and everything that is queued for the disk is written and the
        storage is closed. Tasks that still wait for an answer get ClusterClosedError; those whose command was handed
        over, OutcomeUnknownError.

        Raises what made the peer fail: StorageError, WrongClusterError, RemovedError, OSError of the address to bind,
        InternalError.
        """
        try:
            self._check_addresses()
            if self._joining is not None and self._life is None:
                await self._join(self._joining, self._joining.members)
            await self._alive.restore()
            await self._run_open(task_status)
        except BaseExceptionGroup as group:
            raise sole_error(group) from None
        finally:
            await self._close_storage()

    def _check_addresses(self) -> None:
        """Nobody can dial what makes no sense to the transport: better said now. Raises ConfigurationError."""
        joining = self._joining
        own = joining.address if joining is not None else own_identity(self._storage).address
        for address in (own, *(joining.members if joining is not None else ())):
            if address:
                self._transport.check_address(address)

    async def _close_storage(self) -> None:
        if self._life is not None:
            await self._life.close_storage()
            return
        with trio.CancelScope(shield=True):
            await blocking(self._storage, self._storage.close)

    async def _join(self, joining: Joining, members: Sequence[str]) -> None:
        attributes = {**self._attributes, **({LEARNER: "always"} if joining.learner else {})}
        self._joiner = Joiner(
            self._transport,
            self.settings,
            node_id=joining.node_id,
            address=joining.address,
            listen=joining.listen,
            attributes=attributes,
            cluster_id=self._life.identity.cluster_id if self._life is not None else "",
        )
        await self._joiner.join(self._storage, members)
        self._joiner = None
        self._life = self._begin_life()

    async def _run_open(self, task_status: trio.TaskStatus[None]) -> None:
        """Run until cancelled, then hand leadership over while all parts still run, and only then end them."""
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run_in, scope)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self._alive.hand_leadership_over()
                scope.cancel()

    async def _run_in(self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await nursery.start(self._live)
                    await nursery.start(self._run_transport)
                    # A cancellation that has come already is on its way to the parts: too late to hold it off.
                    if trio.current_effective_deadline() > -math.inf:
                        scope.shield = True
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    self._nursery = None
                    self._next_life.set()
                    self._alive.fail_waiting(self._closed_error)

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Life after life: one, unless a peer without a disk comes back to a cluster that knew it."""
        while True:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._alive.run)
                nursery.start_soon(self._observe)
                if self._joining is not None:
                    members = self._joining.members
                    nursery.start_soon(compare, self._transport, self.settings, self.hello(), members)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await self._refused.wait()
                if self._refusal is not None:
                    raise self._refusal
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire_waiting)
                await self._join_anew()
                nursery.cancel_scope.cancel()
            begun, self._next_life = self._next_life, trio.Event()
            begun.set()

    async def _observe(self) -> None:
        observer = self._observer = Observer(self._alive)
        while True:
            await trio.sleep(self.settings.heartbeat_interval_s)
            observer.tick()

    async def _join_anew(self) -> None:
        """What this peer knew was lost with the process that it was before: it comes back as a learner."""
        former = self._alive
        identity = former.identity
        members = former.whereabouts.addresses()
        former.whereabouts.part()
        self._log.warning("joining anew", reason="the cluster knows this peer from before it lost its state")
        if self._lives > 1:
            await trio.sleep(self.settings.election_timeout_s)  # whatever has ended that life may do so again
        self._lives += 1
        self._storage = VolatileStorage()
        learner = self._joining is not None and self._joining.learner
        joining = Joining(identity.node_id, identity.address, identity.listen, learner=learner)
        await self._join(joining, members)
        self._refused = trio.Event()
        await self._alive.restore()

    async def _expire_waiting(self) -> None:
        """Between two lives nobody drives, and whoever waits is told in time all the same."""
        limit_s = self.settings.request_timeout_s

        def why() -> str:
            return f"no answer within {limit_s} s: {'; '.join(self.doctor())}"

        def error() -> UnavailableError:
            return UnavailableError(f"{why()}; nothing was changed, so it is safe to try again")

        while True:
            await trio.sleep(self.settings.heartbeat_interval_s)
            now = trio.current_time()
            self._proposals.expire(now, error, why)
            self._barriers.expire(now, error)
            self._lessee.expire(now, error)

    async def _run_transport(self, *, task_status: trio.TaskStatus[str]) -> None:
        await self._transport.run(
            self, listen=self._listen or self.node_id, settings=self.settings, task_status=task_status
        )

    # -- the transport's receiver --------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """As :meth:`Receiver.hello`."""
        return self._alive.admission.hello()

    def admit(self, hello: Hello) -> str | None:
        """As :meth:`Receiver.admit`."""
        life = self._alive
        if life.driver.ended:
            return f"{self.node_id!r} is joining anew, under another incarnation: try again"
        replaces = life.admission.replaces(hello)
        reason = self._not_to_be_dialed(hello) or life.admission.admit(hello)
        if reason is not None:
            self._log.warning("peer refused", peer=hello.node_id, reason=reason)
            if hello.node_id in life.admission.membership.ids:
                life.declined[hello.node_id] = reason
        else:
            life.declined.pop(hello.node_id, None)
            life.whereabouts.met(hello, replaces=replaces)
        return reason

    def _not_to_be_dialed(self, hello: Hello) -> str | None:
        try:
            if hello.address:
                self._transport.check_address(hello.address)
        except ConfigurationError as exc:
            return f"{hello.node_id!r} says that it is found where nobody can dial it: {exc}"
        return None

    def receive(self, node_id: str, frame: bytes) -> None:
        """As :meth:`Receiver.receive`. Who was admitted before the log knew better is not listened to any more."""
        life = self._alive
        if life.running and not life.admission.contradicted(node_id):
            life.driver.receive(node_id, frame)

    def connected(self, node_id: str) -> None:
        """As :meth:`Receiver.connected`."""
        self._alive.refusals.pop(node_id, None)
        self._driver.connected(node_id)

    def disconnected(self, node_id: str) -> None:
        """As :meth:`Receiver.disconnected`."""
        self._driver.disconnected(node_id)

    def refused(self, node_id: str, reason: str) -> None:
        """As :meth:`Receiver.refused`. To be removed, or to have lost one's disk, is the end of this life; anything
        else may mend itself.
        """
        self._log.warning("refused", peer=node_id, reason=reason)
        life = self._alive
        life.refusals[node_id] = reason
        if self._refused.is_set() or not life.running:
            return
        sentence = f"{node_id} refused {self.node_id}: {reason}"
        if reason.startswith(Refused.REMOVED):
            self._refusal = RemovedError(sentence)
            self._refused.set()
        # A refusal of the incarnation that this peer had in its last life may come late: it names both.
        elif reason.startswith(Refused.INCARNATION) and f"not {life.identity.incarnation[:8]}" in reason:
            if not isinstance(self._storage, VolatileStorage):
                self._refusal = WrongClusterError(sentence)
            self._refused.set()

    def turned_away(self, hello: Hello, reason: str) -> None:
        """As :meth:`Receiver.turned_away`. Whoever judges us is dialed, to hear it from where it is to be found."""
        life = self._alive
        judged = reason.startswith((Refused.INCARNATION, Refused.REMOVED))
        if judged and life.running and hello.cluster_id == life.identity.cluster_id:
            life.whereabouts.dial_newer(hello)

    async def serve_channel(self, node_id: str, channel: Channel) -> None:
        """As :meth:`Receiver.serve_channel`: a snapshot comes in, or somebody asks something."""
        life = self._alive
        with trio.move_on_after(self.settings.connect_timeout_s) as silence:
            frame = await channel.receive()
        if silence.cancelled_caught:
            return
        if is_request(frame):
            await life.reconfigurator.serve(node_id, channel, frame)
            return
        try:
            header = decode(frame, node_id, self.node_id)
        except MalformedFrameError:
            return
        if isinstance(header, SnapshotHeader):
            await life.receiver.receive(node_id, channel, header)

    async def serve_stranger(self, hello: Hello, channel: Channel) -> None:
        """As :meth:`Receiver.serve_stranger`: a newcomer asks to join."""
        life = self._alive
        self._log.info("called", newcomer=hello.node_id, address=hello.address)
        try:
            await serve_joiner(channel, life.reconfigurator, life.driver.deadline(), life.send_first_snapshot)
        except (UnavailableError, StorageFullError, ClusterClosedError, TransferError) as exc:
            self._log.info("newcomer not served", newcomer=hello.node_id, reason=str(exc))

    # -- the store's replicator ----------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """As :meth:`Replicator.check_open`."""
        if self._nursery is None:
            raise self._closed_error()

    def _closed_error(self) -> ClusterClosedError:
        return ClusterClosedError(
            f"the cluster of {self.node_id} is not open:"
            " use it inside its 'async with' block, or while its run() is running"
        )

    def propose(self, kind: int, payload: bytes, deadline: float | None = None) -> Coroutine[Any, Any, bytes]:
        """As :meth:`Replicator.propose`."""
        if self._nursery is None:
            raise self._closed_error()
        driver = self._driver
        driver.wake()
        if deadline is not None:
            return driver.proposals.submit_hurried(kind, payload, min(deadline, driver.deadline()))
        return driver.proposals.submit(kind, payload, driver.deadline())

    async def outcome(self, token: tuple[int, int]) -> Outcome:
        """As :meth:`Cluster.outcome`."""
        self.check_open()
        driver = self._driver
        driver.wake()
        return outcome_of(token, await driver.proposals.settle(token, driver.deadline()))

    async def barrier(self) -> None:
        """As :meth:`Replicator.barrier`."""
        if self._nursery is None:
            raise self._closed_error()
        driver = self._driver
        driver.wake()
        await driver.barriers.wait(driver.deadline())

    async def ask_of_lease(self, lease: int, *, renew: bool) -> tuple[float, int, int]:
        """As :meth:`Replicator.ask_of_lease`."""
        if self._nursery is None:
            raise self._closed_error()
        driver = self._driver
        driver.wake()
        return await driver.leasing.lessee.ask(lease, renew=renew, deadline=driver.deadline())

    def add_listener(self, listener: Callable[[], None]) -> None:
        """As :meth:`Replicator.add_listener`."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """As :meth:`Replicator.remove_listener`."""
        self._listeners.remove(listener)

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
            if driver.ended:
                await self._next_life.wait()
            elif driver.node.raft.leader:
                return driver.node.raft.leader
            else:
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
            where = f"ask {leader}, which does" if leader else "wait until somebody leads (wait_leader)"
            raise NotLeaderError(f"{self.node_id} does not lead: name the successor, or {where}", leader)
        if to is None and node.raft.membership.voters == {self.node_id}:
            raise ConfigurationError(f"{self.node_id} is the only voter: there is nobody to hand leadership over to")
        successor = to or node.successor()
        if node.raft.leader != successor:
            if not successor or not node.transfer_leadership(successor):
                raise UnavailableError(f"leadership was not handed over: {driver.why()}")
            driver.wake()
            # The leader gives up after one election timeout; what follows from that is known after two.
            with trio.move_on_after(2 * self.settings.election_timeout_s):
                while node.raft.leader != successor and not driver.ended:
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
        driver.snapshot_wanted = True
        driver.wake()
        await driver.take_snapshot(driver.applier.index)
        await trio.lowlevel.checkpoint()

    def status(self) -> Status:
        """What this peer knows at this moment."""
        self.check_open()
        return status_of(self.identity, self._driver)

    def doctor(self) -> list[str]:
        """As :meth:`Cluster.doctor`."""
        if self._joiner is not None:
            return [self._joiner.diagnosis()]
        if self._observer is None:
            return ["this peer has not been started: it is being restored from its disk, or has ended"]
        return diagnose(self._observer.observations())

    async def change_membership(self, changes: Sequence[MemberChange], *, forced: bool) -> None:
        """As :meth:`Cluster.change_members`."""
        self.check_open()
        await self._alive.reconfigurator.change(changes, forced=forced)


def own_identity(storage: Storage) -> Identity:
    """Whose storage it is. Raises ConfigurationError when it is nobody's."""
    if storage.identity is None:
        raise ConfigurationError("the storage has no identity: initialize it first, or let it join")
    return storage.identity
