"""Cluster: the floors put together behind one name."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import trio

from replikv.errors import (
    ClusterClosedError,
    ConfigurationError,
    EncodingError,
    OutcomeUnknownError,
    ValueTooLargeError,
)
from replikv.leadership import Leadership, lead
from replikv.machine.base import StateMachine
from replikv.machine.envelope import CommandKind
from replikv.machine.envelope import Status as ResultStatus
from replikv.peer.admission import LEARNER
from replikv.peer.backup import back_up
from replikv.peer.failures import is_cancellation, sole_error
from replikv.peer.outcomes import Outcome
from replikv.peer.peer import Peer
from replikv.peer.status import Status
from replikv.raft.membership import ChangeKind, MemberChange
from replikv.settings import Settings
from replikv.startup import Startup, check_address, check_node_id
from replikv.storage.backups import Backup
from replikv.store.store import Store
from replikv.store.watch_hub import WatchHub
from replikv.transport.base import Transport

__all__ = ["Cluster"]


class Cluster:
    """One peer of a replicated map, inside this process.

    Use it as a block, or hand ``run`` to a nursery of your own::

        async with Cluster("a", members=members, data_dir="state/a") as cluster:
            await cluster.store.put("flags/dark-mode", True)

        cluster = Cluster("a")
        await nursery.start(cluster.run)
        ...
        await cluster.shutdown()

    The block is entered once storage is open and the transport listens. It does not wait for a leader: operations do.
    An exception of the body leaves the block as it is. When the peer fails (its disk, say) the body is cancelled and
    the peer's error leaves the block; as a group only when both failed.

    Args:
        node_id: the name of this peer, the same at every start. Not needed when ``data_dir`` knows it.
        members: node id -> ``"host:port"`` of the first voters, the same ids on every peer at the first start. Later
            starts read the membership from disk. Without it the cluster has one voter: this peer.
        address: what the others dial; by default this peer's entry in ``members``.
        listen: what is bound; by default ``address``.
        join: addresses of members of a running cluster, any of them: this peer is added as a learner, gets the state,
            and becomes a voter when it is close behind, while there are fewer than ``settings.voters_max``. The block
            is entered when it is a member. A peer that is one already, by its ``data_dir``, goes on as such.
        learner: join without ever voting, unless it is promoted by name.
        data_dir: the directory of the log and the snapshots. Without it the peer is in memory: it forgets everything
            when it ends, and may not come back to the others under its old id.
        transport: how peers talk; by default TCP, or nothing at all for a lone peer without an address.
        machine: replicated state of your own, beside the map.
        settings: the tunables.

    Raises:
        ConfigurationError: arguments that contradict each other; when entered, also those that contradict the disk.
    """

    def __init__(
        self,
        node_id: str | None = None,
        *,
        members: Mapping[str, str] | None = None,
        address: str | None = None,
        listen: str | None = None,
        join: Sequence[str] = (),
        learner: bool = False,
        data_dir: str | os.PathLike[str] | None = None,
        transport: Transport | None = None,
        machine: StateMachine | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings if settings is not None else Settings()
        self._machine = machine
        self._startup = Startup(
            node_id=node_id,
            members=members,
            address=address,
            listen=listen,
            join=join,
            learner=learner,
            data_dir=data_dir,
            transport=transport,
            machine=machine,
            settings=self._settings,
        )
        self._used = False
        # From when it is made; and from when it can be used.
        self._begun: Peer | None = None
        self._peer: Peer | None = None
        self._hub: WatchHub | None = None
        self._store: Store | None = None
        # The scope that ends the peer, while it runs; and whether it has ended.
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        # -- of the block --
        self._nursery_manager: contextlib.AbstractAsyncContextManager[trio.Nursery] | None = None
        self._failure: BaseException | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a peer until ``shutdown`` is called or this is cancelled: for ``await nursery.start(cluster.run)``.

        Started once storage is open and the transport listens. Ends by flushing and closing, shielded for at most
        ``settings.shutdown_timeout_s``.

        Raises what made the peer fail (StorageError, CorruptionError, DataDirInUseError, WrongClusterError,
        RemovedError, UpgradeRequiredError, InternalError for a replica that has diverged), and ConfigurationError for
        arguments that contradict the disk.
        """
        if self._used:
            raise ClusterClosedError("a Cluster runs once: make a new one to start again")
        self._used = True
        try:
            with self._scope:
                storage = await self._startup.open_storage()
                try:
                    peer = self._startup.make_peer(storage)
                except BaseException:
                    storage.close()
                    raise
                self._begun = peer
                await self._run_peer(peer, task_status)
        finally:
            self._begun = None
            self._ended.set()

    async def _run_peer(self, peer: Peer, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(peer.run)
                self._peer = peer
                self._hub = WatchHub(peer)
                self._store = Store(peer, self._hub)
                task_status.started()
        except BaseExceptionGroup as group:
            raise sole_error(group) from None
        finally:
            if self._hub is not None:
                self._hub.close()
            self._peer = None

    async def shutdown(self) -> None:
        """End the peer, and return when it has: everything acknowledged is on disk, nothing of it runs any more.

        Called twice, or before the start, it does nothing. Cancelled, the peer ends all the same.
        """
        self._scope.cancel()
        if self._used:
            await self._ended.wait()
        else:
            self._used = True
            await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        if self._used:
            raise ClusterClosedError("a Cluster runs once: make a new one to start again")
        manager = self._nursery_manager = trio.open_nursery()
        nursery = await manager.__aenter__()
        try:
            await nursery.start(self._run_for_block, nursery.cancel_scope)
            if self._failure is None:  # a failure has cancelled this scope itself, and is what leaves it
                await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._scope.cancel()
            nursery.cancel_scope.cancel()
            await self._close_nursery()
            raise
        if self._failure is not None:
            await self._close_nursery()
            raise self._failure
        return self

    async def _run_for_block(
        self, body: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run; a failure is kept for the block's end, and cancels its body."""
        started = _Started(task_status, self._outlive_body)
        try:
            await self.run(task_status=started)
        except trio.Cancelled:
            raise
        except BaseException as exc:  # raised by whoever leaves the block
            self._failure = exc
            body.cancel()
        started.started()

    def _outlive_body(self) -> None:
        """A cancellation from outside is the body's first: it may still use the cluster to clean up, in a shield."""
        # One that has come already is on its way to the tasks inside: too late to hold it off.
        if trio.current_effective_deadline() > -math.inf:
            self._scope.shield = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._scope.cancel()
        try:
            swallowed = await self._close_nursery(kind, error, traceback)
        except (trio.Cancelled, BaseExceptionGroup):  # cancelled from outside: an error goes before that
            if self._failure is None and (error is None or is_cancellation(error)):
                raise
            swallowed = False
        if self._failure is None:
            return swallowed
        own = None if error is None else error_of_its_own(error)
        if own is None:
            raise self._failure
        if isinstance(own, Exception) and isinstance(self._failure, Exception):
            raise ExceptionGroup("the cluster failed, and so did the block's body", [own, self._failure])
        raise BaseExceptionGroup("the cluster failed, and so did the block's body", [own, self._failure])

    async def _close_nursery(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> bool:
        """Wait for the peer's end. Only cancellations take part in the nursery's accounting: errors leave unwrapped."""
        manager, self._nursery_manager = self._nursery_manager, None
        assert manager is not None
        if isinstance(error, trio.Cancelled):
            return bool(await manager.__aexit__(kind, error, traceback))
        await manager.__aexit__(None, None, None)
        return False

    # -- use -----------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The replicated map. Raises ClusterClosedError before the block is entered."""
        if self._store is None:
            raise ClusterClosedError("the cluster is not open yet: use it inside its 'async with' block")
        return self._store

    @property
    def is_leader(self) -> bool:
        """Whether this peer leads, as far as it knows. Another may have been elected since: rest nothing on it."""
        return self._peer is not None and self._peer.is_leader

    def status(self) -> Status:
        """What this peer knows of itself and the cluster at this moment. Raises ClusterClosedError."""
        return self._open_peer().status()

    def doctor(self) -> list[str]:
        """What is wrong, in words, as far as this peer can tell: most important first, empty when all is well.

        Why there is no leader or no quorum, who lags, which clock has jumped, which snapshot is stuck, that the disk is
        full or will be; and while this peer joins, what it waits for. Works from when ``run`` has begun.
        """
        if self._begun is None:
            raise self._closed_error()
        return self._begun.doctor()

    async def propose(self, command: bytes) -> bytes:
        """Have the application's own StateMachine apply a command, exactly once; its result.

        Returns when a majority has the command on disk and this process's machine has applied it. Cancelled, it may
        have been applied, or may be later.

        Raises:
            EncodingError: the command is no bytes, or the machine raised on it: on every peer alike, changing nothing.
            ValueTooLargeError: over ``settings.command_bytes_max``.
            ConfigurationError: the cluster was opened without ``machine=``.
            UnavailableError: surely not applied within ``settings.request_timeout_s``.
            OutcomeUnknownError: may have been applied, or may be later.
        """
        peer = self._open_peer()
        if self._machine is None:
            raise ConfigurationError("this cluster has no StateMachine of its own: give one as machine=")
        if not isinstance(command, bytes):
            raise EncodingError(f"a command must be bytes, not {type(command).__name__}")
        if len(command) > self._settings.command_bytes_max:
            raise ValueTooLargeError(
                f"the command has {len(command)} bytes: command_bytes_max is {self._settings.command_bytes_max}"
            )
        result = await peer.propose(CommandKind.CUSTOM, command)
        if result[0] != ResultStatus.OK:
            raise EncodingError(result[1:].decode(errors="replace"))
        return result[1:]

    @property
    def machine_version(self) -> int:
        """The version of the StateMachine whose commands take effect: the highest that every member has; 0 without one.

        A program that knows a newer one waits for this to grow before it proposes what is new in it.
        """
        return self._open_peer().replica.governance.versions.machine

    async def outcome(self, token: tuple[int, int]) -> Outcome:
        """What became of the command that an OutcomeUnknownError named: ``error.token``.

        Either it was applied: the outcome is true, and has its result. Or it was not: then it never will be, from the
        moment this returns. So it may be sent again, or given up, without a doubt. Works on any peer, and after the
        process that sent it was restarted; a token is two integers, to be kept wherever you like. Cancelled, the
        command may be settled all the same. Ask once: what was told is not kept for ever.

        Raises:
            OutcomeUnknownError: nobody can tell any more, for the same token: it was told before, the peer that sent
                it has sent thousands since, or so many peers have started that its session was forgotten. It will not
                be applied from now on.
            UnavailableError: no answer within ``settings.request_timeout_s``: ask again, which is harmless.
            ConfigurationError: no token of a command. A membership change has none: look at ``status().members``.
        """
        peer = self._open_peer()
        session, sequence = check_token(token)
        return await peer.outcome((session, sequence))

    async def wait_leader(self) -> str:
        """Return the leader's node id as soon as this peer knows of one. Raises ClusterClosedError."""
        return await self._open_peer().wait_leader()

    def leading(self, name: str, *, ttl_s: float = 10.0) -> AbstractAsyncContextManager[Leadership]:
        """A block that runs only while this process holds a leadership of the application's: one process at a time.

        ::

            async with cluster.leading("nightly-job") as leadership:
                await run(leadership.token)

        It has nothing to do with who leads the cluster. Entering waits until those who came before are gone, however
        long that takes, also while the cluster cannot be reached; cancelled meanwhile, it leaves nothing behind that
        does not expire. Two blocks in one process are two candidates.

        Losing it (the cluster could not be reached for nine tenths of ``ttl_s``, or somebody deleted
        ``leadership.key``) cancels the body, before anybody else may lead, and the block raises LeaseExpiredError. An
        exception of the body leaves unwrapped. Leaving the block resigns, and the next in line enters his.

        A process that is stopped, and goes on, goes on believing until its loop has looked at the clock: what must not
        happen twice has to be fenced by ``leadership.token`` (docs/leadership.md).

        Args:
            name: of the leadership; whoever names the same one competes for it.
            ttl_s: how long a process that died goes on leading for the others, as in :meth:`Store.lease`.

        Raises ConfigurationError, ClusterClosedError.
        """
        return lead(self.store, name, self._open_peer().node_id, ttl_s)

    async def transfer_leadership(self, to: str | None = None) -> None:
        """Have another voter lead: the one named, or, on the leader, whoever lacks least. Returns when it leads.

        Proposals wait meanwhile, and reach the new leader. Leaving the block does this by itself. Cancelled, it may
        happen all the same.

        Raises:
            NotLeaderError: no successor was named, and this peer does not lead.
            ConfigurationError: the successor is no voter, or there is no other voter.
            UnavailableError: it did not take over within two election timeouts; whoever led goes on.
        """
        await self._open_peer().transfer_leadership(to)

    async def add_member(self, node_id: str, address: str, learner: bool = False, *, force: bool = False) -> None:
        """Name a peer that is to be a member, before it comes or when it is a learner already.

        Not needed for who starts with ``join=``. A learner costs nothing while it is away. A voter must be there and
        close behind, or it would cost the quorum: a new one starts with ``join=`` and becomes a voter by itself, and
        naming a learner here again makes it a voter. Returns once this peer has applied the final configuration.
        Cancelled, the change may happen all the same.

        Args:
            node_id: its name.
            address: what the others dial.
            learner: it gets everything and never votes, unless it is promoted.
            force: do it even if it costs the quorum.

        Raises:
            ConfigurationError: it is a member at another address, or the address is that of another member.
            UnavailableError: surely not done: it would cost the quorum, another change is under way, or no leader.
            OutcomeUnknownError: proposed, and not seen done within ``settings.request_timeout_s``.
        """
        check_node_id(node_id)
        check_address(node_id, address)
        kind = ChangeKind.ADD_LEARNER if learner else ChangeKind.ADD_VOTER
        attributes = {LEARNER: "always"} if learner else None
        await self._change([MemberChange(kind, node_id, address, attributes=attributes)], force)

    async def remove_member(self, node_id: str, *, force: bool = False) -> None:
        """Remove a member for good, this peer and the leader included: it ends with RemovedError.

        It may join anew, with an empty ``data_dir``. Returns once this peer has applied the final configuration.

        ``force`` does it even if those who are left and there are no majority. Raises as :meth:`add_member`;
        ConfigurationError for who is no member, and for the last voter.
        """
        await self.change_members(remove=[node_id], force=force)

    async def promote(self, node_id: str, *, force: bool = False) -> None:
        """Make a learner a voter, also above ``settings.voters_max``. Returns once this peer has applied the final
        configuration.

        Raises as :meth:`add_member`; ConfigurationError for who is no member.
        """
        await self.change_members(promote=[node_id], force=force)

    async def change_members(
        self, *, promote: Sequence[str] = (), remove: Sequence[str] = (), force: bool = False
    ) -> None:
        """Promote learners and remove members in one change, by joint consensus (thesis 4.3): all of it, or nothing.

        So three machines are replaced by three others without a moment in which fewer could fail. Returns once this
        peer has applied the final configuration. Raises as :meth:`remove_member` and :meth:`promote`.
        """
        promoted = [MemberChange(ChangeKind.ADD_VOTER, node_id) for node_id in promote]
        removed = [MemberChange(ChangeKind.REMOVE, node_id) for node_id in remove]
        if not promoted and not removed:
            raise ConfigurationError("change_members: name somebody to promote or to remove")
        if both := set(promote) & set(remove):
            raise ConfigurationError(
                f"change_members: {', '.join(sorted(both))} cannot be promoted and removed at once"
            )
        await self._change(promoted + removed, force)

    async def _change(self, changes: Sequence[MemberChange], force: bool) -> None:
        await self._open_peer().change_membership(changes, forced=force)

    async def snapshot(self) -> None:
        """Take a snapshot of this peer's state now; returns when it is durable. Taken by itself otherwise.

        Cancelled, the snapshot is finished all the same. Raises ClusterClosedError.
        """
        await self._open_peer().snapshot()

    async def backup(self, path: str | os.PathLike[str]) -> Backup:
        """Write a backup of the whole cluster's state to a file, from this peer; what the backup says of itself.

        Everything is in it that was acknowledged, to anybody, before this call. It is written while the cluster goes
        on, to a temporary name beside ``path``; once it is durable it takes the place of whatever has that name.
        ``replikv restore`` makes a new cluster of it, and ``replikv export`` lines of JSON. Not a way to move a peer:
        a new one joins.

        Cancelled, it leaves nothing behind.

        Raises:
            UnavailableError: no leader could be asked whether this peer has everything.
            StorageError: the disk refused or failed, a full one included. Nothing is left behind, or, where only the
                last sync of the directory failed, a whole backup.
            ClusterClosedError: the cluster is not open.
        """
        peer = self._open_peer()
        await peer.barrier()
        return await back_up(peer.replica, peer.identity, path)

    def digest(self) -> tuple[int, str]:
        """How many commands this replica has applied, and a SHA-256 over its whole state, in hexadecimal.

        Two replicas that have applied equally many have equal digests, or one of them is damaged. O(state): for tests
        and for a person who wants to be sure, not for a loop.
        """
        replica = self._open_peer().replica
        return replica.position, replica.digest().hex()

    def _open_peer(self) -> Peer:
        if self._peer is None:
            raise self._closed_error()
        return self._peer

    @staticmethod
    def _closed_error() -> ClusterClosedError:
        return ClusterClosedError("the cluster is not open: use it inside its 'async with' block")


def check_token(token: object) -> tuple[int, int]:
    """Session and sequence. Raises ConfigurationError unless it can be the token of a command."""
    if isinstance(token, tuple | list) and len(token) == 2:
        session, sequence = token
        if type(session) is int and type(sequence) is int and 0 < session < 1 << 63 and 0 < sequence < 1 << 62:
            return session, sequence
    raise ConfigurationError(
        f"{token!r} is not the token of a command: OutcomeUnknownError.token is, two integers; a change of the members"
        " has none: look at status().members"
    )


def error_of_its_own(error: BaseException) -> BaseException | None:
    """What of the body's error is more than the peer's failure, felt as a cancellation or by a call that waited."""
    felt = (trio.Cancelled, ClusterClosedError, OutcomeUnknownError)
    if isinstance(error, BaseExceptionGroup):
        return error.split(felt)[1]
    return None if isinstance(error, felt) else error


class _Started:
    """A task status that may be told twice, and does something before the first time."""

    def __init__(self, task_status: trio.TaskStatus[None], before: Callable[[], None]) -> None:
        self._task_status: trio.TaskStatus[None] | None = task_status
        self._before = before

    def started(self, value: None = None) -> None:
        task_status, self._task_status = self._task_status, None
        if task_status is not None:
            self._before()
            task_status.started(value)
