"""What a storage is: it makes writes durable, in order, and keeps snapshots. Every call may block."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from replikv.errors import StorageError
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.stable import MemoryStorage, Write

__all__ = ["Identity", "SnapshotWriter", "Storage", "StorageFullError"]


class StorageFullError(StorageError):
    """There is no room. Nothing was written, nothing is broken: the same call may be made again later."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Who this storage belongs to: drawn at the first start. Only its addresses may change."""

    cluster_id: str
    node_id: str
    incarnation: str
    address: str
    """What others dial."""
    listen: str


class SnapshotWriter(abc.ABC):
    """A snapshot that is being written, aside of everything else."""

    @abc.abstractmethod
    def write(self, chunk: bytes) -> None:
        """Add one chunk."""

    @abc.abstractmethod
    def commit(self) -> None:
        """Make it durable, and visible under its final name. Nothing of it is visible before."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Throw it away. Does nothing after ``commit``."""


class Storage(abc.ABC):
    """Durable state of one peer.

    ``image`` is what is durable, as the core reads it. Threads: ``write``, ``release`` and ``close`` are called from
    one thread at a time; snapshot calls may come from another thread meanwhile. The ``image`` belongs to the loop's
    thread: storage fills it when it opens and leaves it alone afterwards; the caller applies a write to it after
    ``write`` has returned.
    """

    image: MemoryStorage
    identity: Identity | None
    """None until :meth:`initialize`: an empty storage."""
    blocking: bool = True
    """Whether calls may block, and so belong into a thread."""

    @abc.abstractmethod
    def draw_incarnation(self) -> str:
        """The random name that an empty storage is to be initialized with: the same each time, also after a crash.

        Who asked others for something under it, and crashed before the answer came, is known again. Raises
        StorageError.
        """

    @abc.abstractmethod
    def initialize(self, identity: Identity, snapshot: SnapshotMetadata) -> None:
        """Give an empty storage its identity and the first membership (a snapshot without data, usually at index 0)."""

    @abc.abstractmethod
    def move(self, address: str, listen: str) -> None:
        """The peer is found elsewhere from now on: its identity stays the same but for that. Raises StorageError."""

    @abc.abstractmethod
    def write(self, writes: Sequence[Write]) -> None:
        """Make the writes durable, together, in order: on return they are.

        Raises StorageError; after it this storage is good for nothing but ``close``, but for ``StorageFullError``:
        then nothing was written and the same call may be made again.
        """

    @abc.abstractmethod
    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        """Begin to write a snapshot. May be called from another thread than ``write``, one at a time."""

    @abc.abstractmethod
    def open_snapshot(self, index: int) -> contextlib.AbstractContextManager[tuple[SnapshotMetadata, Iterator[bytes]]]:
        """The newest durable snapshot, of at least ``index``: metadata, and its chunks in order, each checked.

        It stays readable while it is open, also when a newer one is committed. Raises CorruptionError.
        """

    @abc.abstractmethod
    def release(self, index: int) -> None:
        """Entries up to ``index`` are covered by a durable snapshot: what holds only such entries may be deleted."""

    def free_bytes(self) -> int | None:
        """What may still be written; None where there is no disk, or nobody can tell."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Release the directory. Never raises for the second call."""
