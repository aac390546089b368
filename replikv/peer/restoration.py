"""A new cluster out of a backup, or out of anything else that makes a replica, before any of its peers has started.

Nothing of the new cluster can be taken for something of the old one, which may well go on beside it:

1.  It has another id, so that no peer of the old one is let in. Of one peer it is drawn; peers that are restored apart
    compute it of the state and of the members, so those that do not have the same are not let in, either.
2.  Revisions and positions go on so far ahead that none is given twice (``NUMBERS_LEFT_OUT``). Whoever watches since a
    revision of the old cluster is told that there is a gap.
3.  Sessions are dropped. A token names a command of the old cluster: the new one could say whether that is in the
    backup, but not whether it was done. It answers that it does not know the session, and never executes it.

All first members begin with the same snapshot at the first index, and in the first term, in which nobody has voted: as
in any first start, but for the state in it. Blocking, without a loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

from replikv.errors import ConfigurationError
from replikv.machine.base import StateMachine
from replikv.machine.replica import Replica
from replikv.peer.admission import cluster_id_of
from replikv.peer.recovery import NUMBERS_LEFT_OUT
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.settings import Settings
from replikv.storage.backups import Backup, BackupReader
from replikv.storage.base import Identity
from replikv.storage.disk import DiskStorage

__all__ = ["OpaqueMachine", "Restored", "begin_cluster", "check_backup", "read_backup", "restore"]

_FIRST_INDEX: Final = 1
_FIRST_TERM: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
    """The peer that was made, and the cluster that it is of."""

    directory: Path
    cluster_id: str
    node_id: str
    address: str
    members: Membership
    revision: int
    """The newest, and the oldest that can be read or watched from."""
    keys: int


def restore(
    backup: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    node_id: str,
    *,
    members: Mapping[str, str] | None = None,
    listen: str | None = None,
    cluster_name: str = "",
    settings: Settings | None = None,
) -> Restored:
    """Make ``directory`` that of a peer of a new cluster, which begins with what is in the backup.

    The whole backup is read and checked before anything is made. To begin with several voters, restore the same file
    on each machine, with the same ``members``. Each peer is then started with ``Cluster(data_dir=directory)``; others
    join with an empty directory and ``join=``. Interrupted, it is to be called again: a directory is a peer's when all
    is in it, and empty until then.

    Args:
        backup: the file.
        directory: the ``data_dir`` to be: missing, or empty.
        node_id: who that peer is.
        members: node id -> address of the first voters. By default, this peer alone, without an address.
        listen: what is bound; by default, this peer's address.
        cluster_name: another one each time that the same backup is restored with the same several members: else a
            peer of one of these clusters could be taken for one of the other.
        settings: those of the cluster; what stands in the directory rests on ``wal_segment_bytes`` only.

    Raises:
        CorruptionError: the backup is damaged: nothing was made.
        ConfigurationError: ``members`` makes no sense, or the directory is not empty.
        DataDirInUseError: a peer is running in it.
        StorageError: the disk refused or failed, a full one included.
    """
    _, replica = read_backup(backup)
    replica.sessions.table.clear()
    replica.advance(NUMBERS_LEFT_OUT)
    return begin_cluster(
        replica, directory, node_id, members=members, listen=listen, cluster_name=cluster_name, settings=settings
    )


def read_backup(path: str | os.PathLike[str]) -> tuple[Backup, Replica]:
    """What the backup says of itself, and the replica as it was, sessions and positions included.

    All of it is checked. Raises CorruptionError, StorageError.
    """
    with BackupReader(path) as reader:
        replica = Replica(OpaqueMachine() if reader.backup.machine else None)
        restorer = replica.restorer()
        for chunk in reader.chunks():
            restorer.feed(chunk)
        restorer.finish()
    return reader.backup, replica


def check_backup(path: str | os.PathLike[str]) -> Backup:
    """What the backup says of itself, once all of it was read as :func:`restore` would, and is whole."""
    return read_backup(path)[0]


def begin_cluster(
    replica: Replica,
    directory: str | os.PathLike[str],
    node_id: str,
    *,
    members: Mapping[str, str] | None = None,
    listen: str | None = None,
    cluster_name: str = "",
    settings: Settings | None = None,
) -> Restored:
    """Make ``directory`` that of a peer of a new cluster whose state is that of the replica. As :func:`restore`."""
    path = Path(directory).absolute()
    members = {node_id: ""} if members is None else dict(members)
    _check_members(node_id, members)
    address = members[node_id]
    if len(members) == 1:
        cluster_id = uuid.uuid4().hex
    else:
        who = [f"{name}={members[name]}" for name in sorted(members)]
        cluster_id = cluster_id_of(["restored", replica.digest().hex(), *who], cluster_name)
    snapshot = SnapshotMetadata(_FIRST_INDEX, _FIRST_TERM, Membership.of_voters(members))
    settings = settings if settings is not None else Settings()
    _check_empty(path)
    storage = DiskStorage(path, segment_bytes=settings.wal_segment_bytes, prepare_ahead=False)
    with contextlib.closing(storage):
        if storage.identity is not None:
            raise ConfigurationError(
                f"{path} belongs to {storage.identity.node_id!r} of cluster {storage.identity.cluster_id}: give a"
                " directory that is empty, or not there yet"
            )
        identity = Identity(cluster_id, node_id, storage.draw_incarnation(), address, listen or address)
        writer = storage.create_snapshot(snapshot)
        try:
            for chunk in replica.snapshot():
                writer.write(chunk)
            writer.commit()
        finally:
            writer.abort()
        storage.initialize(identity, snapshot)
    return Restored(
        directory=path,
        cluster_id=cluster_id,
        node_id=node_id,
        address=address,
        members=snapshot.membership,
        revision=replica.keyspace.revision,
        keys=len(replica.keyspace),
    )


def _check_members(node_id: str, members: Mapping[str, str]) -> None:
    if node_id not in members:
        raise ConfigurationError(f"{node_id!r} is not among the members {sorted(members)}: name it, too")
    for name, address in members.items():
        if not name:
            raise ConfigurationError("a member without a name: name it, as in b=10.0.0.2:7001")
        if not address and len(members) > 1:
            raise ConfigurationError(f"{name!r} has no address, and the others have to dial it: {name}=10.0.0.2:7001")
    addresses = list(members.values())
    if len(set(addresses)) < len(addresses):
        raise ConfigurationError(f"two members have the same address: {dict(members)}")


def _check_empty(directory: Path) -> None:
    """Refuse what is neither empty nor what an interrupted attempt has left: what that is, the storage finds out."""
    if directory.exists() and not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory")
    strange = {path.name for path in directory.iterdir()} - _OURS if directory.is_dir() else set()
    if strange:
        raise ConfigurationError(
            f"{directory} is not empty, there is {min(strange)!r} in it: give a directory that is empty, or not there"
            " yet"
        )


_OURS: Final = frozenset({"lock", "meta", "incarnation", "wal", "snapshots", "lost+found"})


class OpaqueMachine(StateMachine):
    """Stands in for the application's machine where its code is not at hand: its state is carried as it is."""

    version: ClassVar[int] = 2**32 - 1
    """Whatever the state is of: nothing of it is read here."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def apply(self, position: int, command: bytes) -> bytes:  # noqa: ARG002  # as every machine
        """Nothing: whoever rests on the result must not use this machine."""
        return b""

    def snapshot(self) -> Iterator[bytes]:
        """What was restored."""
        return iter(self._chunks)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Keep it."""
        self._chunks = list(chunks)
