"""The map as lines of JSON, out of a backup or a data directory; and a new cluster out of such lines. Blocking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from replikv.errors import ConfigurationError, EncodingError
from replikv.machine.jsonlines import Lines, export_lines
from replikv.machine.record import pack_record
from replikv.machine.replica import Replica
from replikv.peer.recovery import NUMBERS_LEFT_OUT, replay
from replikv.peer.restoration import OpaqueMachine, Restored, begin_cluster, read_backup
from replikv.settings import Settings
from replikv.storage.disk import DiskStorage

__all__ = ["export_map", "import_map"]


def export_map(source: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a backup, or of the ``data_dir`` of a peer that is not running (``docs/backup.md`` has their form).

    All of the source is read and checked at this call. A directory is told as of the last entry of its log, committed
    or not: nothing that was acknowledged is left out, and what nobody was answered may be in it. State of the
    application's own StateMachine is left out.

    Raises CorruptionError, DataDirInUseError, StorageError, and ConfigurationError for a directory that is no peer's.
    """
    path = Path(source)
    if not path.is_dir():
        backup, replica = read_backup(path)
        about = {"cluster": backup.cluster_id, "node": backup.node_id, "created": backup.created.isoformat()}
        return export_lines(replica.keyspace, about)
    if not (path / "wal").is_dir():
        raise ConfigurationError(f"{path} is no data directory of a peer: there is nothing to export in it")
    with contextlib.closing(DiskStorage(path, prepare_ahead=False)) as storage:
        identity = storage.identity
        if identity is None:
            raise ConfigurationError(f"{path} is empty: there is nothing to export in it")
        replica = Replica(OpaqueMachine())
        replay(storage, replica, path)
    return export_lines(replica.keyspace, {"cluster": identity.cluster_id, "node": identity.node_id})


def import_map(
    lines: Iterable[bytes],
    directory: str | os.PathLike[str],
    node_id: str,
    *,
    address: str = "",
    listen: str | None = None,
    settings: Settings | None = None,
) -> Restored:
    """Make ``directory`` that of the only voter of a new cluster, whose map is what the lines say.

    All lines are read and checked before anything is made. Each key is made at one and the same revision, which is far
    above that of the header; leases are left out. It is one voter, and others join: lines do not say how a set is
    ordered in memory, so that two peers which read them apart would differ.

    Raises EncodingError, with the number of the line, and else as :func:`replikv.peer.restoration.restore`.
    """
    settings = settings if settings is not None else Settings()
    replica = Replica()
    read = Lines(lines, key_bytes_max=settings.key_bytes_max, value_bytes_max=settings.value_bytes_max)
    if read.revision + NUMBERS_LEFT_OUT >= 2**63:
        raise EncodingError(f"revision {read.revision} leaves no room for more")
    replica.advance(read.revision + NUMBERS_LEFT_OUT)
    keyspace = replica.keyspace
    revision = keyspace.revision
    for key, value in read.items():
        keyspace.load(key, pack_record(value, revision, revision, 1, 0))
    return begin_cluster(replica, directory, node_id, members={node_id: address}, listen=listen, settings=settings)
