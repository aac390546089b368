"""Quorum recovery: what one survivor has becomes a new cluster, when a majority of the old one is lost for good.

Consensus cannot do this: without a majority nobody knows what was committed. So a person decides, and the rules are:

1.  Nothing that the survivor has is left out. Entries at the end of its log that it does not know to be committed may
    have been acknowledged, so they are applied. Some of them may never have been: their callers were told that the
    outcome is unknown, so either outcome is right.
2.  What it does not have is gone, acknowledged or not, and nobody can tell what that was.
3.  Nothing of the new cluster can be taken for something of the old one. It has another id, so that no peer of the old
    one is let in; this node has another incarnation; the term is above any that this node has seen; and revisions and
    positions go on so far ahead that none is given twice, also of those that only the lost majority knew.
4.  This node is the only voter, since its data is the only data there is. The others begin with nothing, and learn.
5.  The old directory is renamed, and otherwise left as any start leaves it.

The new state stands in a snapshot at the index after the last entry: the recovery takes the place of an entry, which no
other log has. At the last entry's own index, two logs with the same index and term there would differ in state.

Blocking, without a loop: the cluster is down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from replikv.errors import ConfigurationError, InternalError, ReplikvError
from replikv.machine.base import StateMachine
from replikv.machine.envelope import CommandKind, unpack_commands
from replikv.machine.replica import Replica
from replikv.raft.changer import apply_change
from replikv.raft.entries import Entry, EntryKind, SnapshotMetadata
from replikv.raft.membership import MemberRecord, Membership, MembershipChange
from replikv.raft.refusals import InvalidChangeError
from replikv.settings import Settings
from replikv.storage.base import Identity, Storage
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import FileSystem, OsFileSystem
from replikv.storage.meta import META_NAME
from replikv.storage.replacement import Replacement, check_replaceable, discard_leftovers, settle

__all__ = ["NUMBERS_LEFT_OUT", "Recovered", "Recovery", "Survivor", "recover", "replay"]

NUMBERS_LEFT_OUT: Final = 1_000_000_000
"""By how much revisions and positions go ahead. It has to be more than what the lost majority may have given out after
the survivor's last entry: this is a week at 1,600 a second, 14 hours at 20,000. etcd advises the same for ``etcdutl
snapshot restore --bump-revision``. It costs nothing: 2**64 has room for 18 billion recoveries."""


@dataclasses.dataclass(frozen=True, slots=True)
class Survivor:
    """What the directory has, before anything is done with it."""

    directory: Path
    node_id: str
    cluster_id: str
    members: Membership
    """The configuration as of the last entry."""
    last_index: int
    """The last entry of the log. Whatever the cluster acknowledged after it is lost ..."""
    last_term: int
    """... and of several survivors, the one with the highest (last_term, last_index) has lost least."""
    commit_index: int
    """Up to here the survivor knows entries to be committed: more may be."""
    revision: int
    keys: int

    @property
    def uncertain(self) -> int:
        """How many entries are kept though nobody knows whether they were committed."""
        return self.last_index - self.commit_index


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """What was made of it."""

    survivor: Survivor
    kept: Path
    """The old directory, under its new name."""
    cluster_id: str
    members: Membership
    address: str
    listen: str
    index: int
    """Of the snapshot that the new cluster begins with."""
    term: int
    revision: int
    """The newest, and the oldest that can be read or watched from."""


def recover(
    directory: str | os.PathLike[str],
    members: Mapping[str, str | None],
    *,
    machine: StateMachine | None = None,
    settings: Settings | None = None,
) -> Recovered:
    """Make the data in ``directory`` a new cluster, of which its peer is the only voter.

    Only when a majority of the old cluster is lost for good, and no process of it runs any more. What the lost peers
    acknowledged and this one had not received is gone. The directory is kept under another name.

    Afterwards this peer is started with ``Cluster(data_dir=directory)``, and the others with an empty directory and
    ``join=``. Interrupted, by a crash or an error, it is to be called again: nothing is half done.

    Args:
        directory: the ``data_dir`` of the survivor that has most.
        members: node id -> address of everybody who is to be a member, this peer included. None is the address that
            the old cluster knew. The others are learners until they have joined.
        machine: a fresh one, of the kind that was given to ``Cluster``, if it was given one.
        settings: those of the cluster; what stands in the new directory rests on ``wal_segment_bytes`` only.

    Raises:
        ConfigurationError: there is nothing to recover, ``members`` makes no sense, or ``machine`` is needed.
        DataDirInUseError: the peer is running.
        CorruptionError: the directory is damaged.
        StorageError: the disk refused or failed, a full one included.
    """
    with Recovery(directory, members, machine=machine, settings=settings) as recovery:
        return recovery.carry_out()


class Recovery:
    """:func:`recover` in two steps, so that somebody can look in between. The directory is locked from first to last.

    Arguments and errors are those of :func:`recover`; nothing is changed before :meth:`carry_out`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        members: Mapping[str, str | None],
        *,
        machine: StateMachine | None = None,
        settings: Settings | None = None,
        filesystem: FileSystem | None = None,
    ) -> None:
        self._settings = settings if settings is not None else Settings()
        self._filesystem = filesystem if filesystem is not None else OsFileSystem()
        self._directory = Path(directory).resolve()
        self._check_directory()
        self._storage = DiskStorage(self._directory, filesystem=self._filesystem, prepare_ahead=False)
        try:
            self._old = self._identity()
            self._replica = Replica(machine)
            self.survivor = self._replay()
            self._identity_after, self._snapshot = self._plan(members)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def members(self) -> Membership:
        """The configuration that the new cluster will begin with."""
        return self._snapshot.membership

    def close(self) -> None:
        """Let the directory go. Harmless when repeated."""
        self._storage.close()

    def carry_out(self) -> Recovered:
        """Do it, once. When it raises, the old directory is where it was, unless the error says where it is."""
        discard_leftovers(self._filesystem, self._directory)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        replacement = Replacement(self._filesystem, self._directory, stamp)
        self._replica.advance(NUMBERS_LEFT_OUT)
        try:
            self._write(replacement.new)
        except ReplikvError:
            with contextlib.suppress(ReplikvError):
                replacement.discard()
            raise
        replacement.swap()
        return Recovered(
            survivor=self.survivor,
            kept=replacement.kept,
            cluster_id=self._identity_after.cluster_id,
            members=self.members,
            address=self._identity_after.address,
            listen=self._identity_after.listen,
            index=self._snapshot.index,
            term=self._snapshot.term,
            revision=self._replica.keyspace.revision,
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    def _check_directory(self) -> None:
        directory = self._directory
        check_replaceable(directory)
        if directory.parent.is_dir():
            settle(self._filesystem, directory)
        if not (directory / "wal").is_dir():
            raise ConfigurationError(f"{directory} is no data directory of a peer: there is nothing to recover in it")
        meta = directory / META_NAME
        if meta.exists() and (owner := meta.stat().st_uid) != os.geteuid():
            raise ConfigurationError(
                f"{directory} belongs to the user with the id {owner}, and this process runs as {os.geteuid()}: run it"
                " as that user, whose peer could not open what is made otherwise"
            )

    def _identity(self) -> Identity:
        identity = self._storage.identity
        if identity is None or self._storage.image.last_index() == 0:
            raise ConfigurationError(f"{self._directory} is empty: there is nothing to recover in it")
        return identity

    def _replay(self) -> Survivor:
        """Everything that is durable, committed or not."""
        image, replica = self._storage.image, self._replica
        membership = replay(self._storage, replica, self._directory)
        return Survivor(
            directory=self._directory,
            node_id=self._old.node_id,
            cluster_id=self._old.cluster_id,
            members=membership,
            last_index=image.last_index(),
            last_term=image.term(image.last_index()),
            commit_index=image.hard_state.commit,
            revision=replica.keyspace.revision,
            keys=len(replica.keyspace),
        )

    # -- planning ------------------------------------------------------------------------------------------------------

    def _plan(self, members: Mapping[str, str | None]) -> tuple[Identity, SnapshotMetadata]:
        node_id, survivor = self._old.node_id, self.survivor
        index = survivor.last_index + 1
        # Not the last entry's term: this node may have voted in a later one.
        term = max(self._storage.image.hard_state.term, survivor.last_term) + 1
        if node_id not in members:
            raise ConfigurationError(
                f"{self._directory} is the directory of {node_id!r}, which is not among the members"
                f" {sorted(members)}: name it, too, or is this another directory than was meant?"
            )
        records = {name: self._record(name, address, len(members)) for name, address in sorted(members.items())}
        taken: dict[str, str] = {}
        for name, record in records.items():
            if (other := taken.setdefault(record.address, name)) != name:
                raise ConfigurationError(f"{other!r} and {name!r} have the same address: {record.address}")
        address = records[node_id].address
        # What is bound follows what is dialed, unless it was set apart from it.
        listen = address if self._old.listen == self._old.address else self._old.listen
        identity = Identity(uuid.uuid4().hex, node_id, uuid.uuid4().hex, address, listen)
        records[node_id] = dataclasses.replace(records[node_id], incarnation=identity.incarnation, bound_index=index)
        voters = frozenset({node_id})
        membership = Membership(voters=voters, learners=frozenset(records) - voters, members=records)
        return identity, SnapshotMetadata(index, term, membership)

    def _record(self, node_id: str, address: str | None, count: int) -> MemberRecord:
        known = self.survivor.members.members.get(node_id, MemberRecord(""))
        own = node_id == self._old.node_id
        address = address or known.address or (self._old.address if own else "")
        if not node_id:
            raise ConfigurationError("a member without a name: name it, as in b=10.0.0.2:7001")
        if not address and not (own and count == 1):
            raise ConfigurationError(
                f"the address of {node_id!r} is not known to the old cluster: give it, as in {node_id}=10.0.0.2:7001"
            )
        # Whatever else is known of it, it tells anew: that it wanted to learn only, for one, counts no longer.
        return MemberRecord(address)

    # -- doing ---------------------------------------------------------------------------------------------------------

    def _write(self, directory: Path) -> None:
        storage = DiskStorage(
            directory,
            segment_bytes=self._settings.wal_segment_bytes,
            filesystem=self._filesystem,
            prepare_ahead=False,
        )
        with contextlib.closing(storage):
            writer = storage.create_snapshot(self._snapshot)
            try:
                for chunk in self._replica.snapshot():
                    writer.write(chunk)
                writer.commit()
            finally:
                writer.abort()
            storage.initialize(self._identity_after, self._snapshot)


def replay(storage: Storage, replica: Replica, directory: Path) -> Membership:
    """Bring a new replica to the last entry of the log, committed or not; the configuration as of that entry.

    Raises ConfigurationError where the log has commands of a machine that the replica lacks.
    """
    image = storage.image
    snapshot = image.snapshot()
    if snapshot.index > 0:
        with storage.open_snapshot(snapshot.index) as (_, chunks):
            try:
                replica.restore(chunks)
            except ConfigurationError as exc:
                raise (_machine_missing(directory) if replica.custom is None else exc) from exc
    membership = snapshot.membership
    for entry in image.entries(image.first_index(), image.last_index() + 1):
        if entry.kind == EntryKind.MEMBERSHIP:
            membership = _changed(membership, entry)
        else:
            commands = unpack_commands(entry.data)
            if replica.custom is None and any(command[1:2] == _CUSTOM for command in commands):
                raise _machine_missing(directory)
            replica.apply_many(commands)
    return membership


def _machine_missing(directory: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{directory} has state of the application's own StateMachine, which only the application's code can"
        " read: recover it from Python, with replikv.peer.recovery.recover(directory, members, machine=...), where"
        " machine is a new one of the kind that Cluster is given"
    )


_CUSTOM: Final = bytes([CommandKind.CUSTOM])
"""The second byte of a command for the application's machine."""


def _changed(membership: Membership, entry: Entry) -> Membership:
    try:
        return apply_change(membership, MembershipChange.decode(entry.data), entry.index)
    except InvalidChangeError as exc:
        raise InternalError(f"entry {entry.index} is in the log, but cannot be applied: {exc}") from exc
