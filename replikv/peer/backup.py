"""A backup of a running cluster: pinned between two turns of the driver, written aside while commands are applied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from datetime import UTC, datetime

import structlog
import trio

from replikv.machine.replica import Replica
from replikv.peer.snapshots import chunks_in_slices
from replikv.storage.backups import Backup, BackupWriter
from replikv.storage.base import Identity
from replikv.storage.filesystem import FileSystem, OsFileSystem

__all__ = ["back_up"]

log = structlog.get_logger(component="backup")


async def back_up(
    replica: Replica, identity: Identity, path: str | os.PathLike[str], *, filesystem: FileSystem | None = None
) -> Backup:
    """Write the state that the replica has at this call to a file, and return what it says of itself.

    Cancelled, it leaves nothing behind, and whatever had that name before. Raises StorageError, and
    ConfigurationError for a directory.
    """
    keyspace = replica.keyspace
    backup = Backup(
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        created=datetime.now(UTC),
        revision=keyspace.revision,
        keys=len(keyspace),
        machine=replica.custom is not None,
    )
    # No checkpoint between what was said above and this: it is one state.
    with contextlib.closing(_closable(replica.snapshot())) as chunks:
        writer = await trio.to_thread.run_sync(BackupWriter, filesystem or OsFileSystem(), path, backup)
        try:
            while batch := await chunks_in_slices(chunks):
                await trio.to_thread.run_sync(writer.write, batch)
            await trio.to_thread.run_sync(writer.commit)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(writer.abort)
    log.info("backup taken", path=os.fspath(path), revision=backup.revision, keys=backup.keys)
    return backup


def _closable(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """The same, with an end that does not wait for who still holds the traceback of an error: a revision is pinned."""
    yield from chunks
