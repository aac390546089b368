"""Snapshots of this peer's own state: pinned in the driver's turn, written aside while commands go on being applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import structlog
import trio

from replikv.raft.entries import SnapshotMetadata
from replikv.raft.stable import MemoryStorage
from replikv.settings import Settings
from replikv.storage.base import SnapshotWriter, Storage, StorageFullError

T = TypeVar("T")

__all__ = ["SnapshotTaker", "blocking", "chunks_in_slices", "compactable_index", "keepable_index", "write_all"]

SLICE_S = 0.002
"""How long chunks are encoded before other tasks get their turn."""

FULL_RETRY_S = 10.0
"""After how long a snapshot that found no room is tried again."""

WRITE_BYTES = 1024 * 1024
"""What is handed to the writing thread at a time."""


async def chunks_in_slices(chunks: Iterator[bytes]) -> list[bytes]:
    """The next chunks, about ``WRITE_BYTES`` of them, encoded without holding the loop for long. Empty: the end."""
    taken: list[bytes] = []
    size = 0
    slice_end = trio.current_time() + SLICE_S
    for chunk in chunks:
        if chunk:  # an empty one is a breath
            taken.append(chunk)
            size += len(chunk)
            if size >= WRITE_BYTES:
                break
        if trio.current_time() >= slice_end:
            await trio.lowlevel.checkpoint()
            slice_end = trio.current_time() + SLICE_S
    return taken


class SnapshotTaker:
    """Takes one snapshot at a time, in a task of its own."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        lock: trio.Lock,
        taken: Callable[[SnapshotMetadata], None],
        ended: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._settings = settings
        # Held while a snapshot is written, own or received: the storage takes one at a time.
        self._lock = lock
        # Called when a snapshot is durable; and when an attempt is over, however it ended.
        self._taken = taken
        self._ended = ended
        self.failure: StorageFullError | None = None
        """Why the last attempt came to nothing, if it did."""
        self._retry_at = math.inf
        self._begin: trio.MemorySendChannel[tuple[SnapshotMetadata, Iterator[bytes]]]
        self._begin, self._begun = trio.open_memory_channel(1)
        self.busy = False
        """Whether one is under way."""
        self.last_bytes = 0
        """The size of the last one: a log smaller than it is not worth another."""
        self._log = structlog.get_logger(component="snapshots")

    def due(self, log_bytes: int, log_entries: int) -> bool:
        """Whether the log since the last snapshot is worth a new one."""
        if self.busy:
            return False
        return (
            trio.current_time() >= self._retry_at
            or log_bytes >= max(self._settings.snapshot_log_bytes, self.last_bytes)
            or log_entries >= self._settings.snapshot_log_entries
        )

    def begin(self, metadata: SnapshotMetadata, chunks: Iterator[bytes]) -> None:
        """Write these chunks, which are pinned to the state at ``metadata``. Must not be busy."""
        self.busy = True
        self.failure = None
        self._retry_at = math.inf
        self._begin.send_nowait((metadata, chunks))

    async def run(self) -> None:
        """Write what ``begin`` is told to until cancelled; what is half written is thrown away.

        A full disk is tried again later. Raises StorageError.
        """
        async for metadata, chunks in self._begun:
            started = trio.current_time()
            try:
                async with self._lock:
                    if metadata.index > self._storage.image.snapshot().index:
                        await self._take(metadata, chunks)
            except StorageFullError as exc:
                self.failure = exc
                self._retry_at = trio.current_time() + FULL_RETRY_S
                self._log.warning("disk full", reason=str(exc), index=metadata.index)
            else:
                seconds = round(trio.current_time() - started, 3)
                self._log.debug("snapshot taken", index=metadata.index, size=self.last_bytes, seconds=seconds)
            self.busy = False
            self._ended()

    async def _take(self, metadata: SnapshotMetadata, chunks: Iterator[bytes]) -> None:
        writer = await blocking(self._storage, self._storage.create_snapshot, metadata)
        try:
            self.last_bytes = await self._write(writer, chunks)
            await blocking(self._storage, writer.commit)
        finally:
            writer.abort()
        self._taken(metadata)

    async def _write(self, writer: SnapshotWriter, chunks: Iterator[bytes]) -> int:
        written = 0
        while batch := await chunks_in_slices(chunks):
            await blocking(self._storage, write_all, writer, batch)
            written += sum(len(chunk) for chunk in batch)
        return written


async def blocking(storage: Storage, call: Callable[..., T], *args: object) -> T:
    """The storage's call, in a thread if it may block. A call that has begun is waited for, also when cancelled."""
    return await trio.to_thread.run_sync(call, *args) if storage.blocking else call(*args)


def write_all(writer: SnapshotWriter, chunks: list[bytes]) -> None:
    """Add the chunks."""
    for chunk in chunks:
        writer.write(chunk)


def compactable_index(image: MemoryStorage, settings: Settings) -> int:
    """Up to where the log may go once its snapshot is durable: some entries stay for followers that lag a little."""
    index = image.snapshot().index
    kept_bytes = 0
    lowest = max(image.first_index(), index - settings.trailing_entries + 1)
    while index >= lowest:
        kept_bytes += image.entries(index, index + 1)[0].size
        if kept_bytes > settings.trailing_bytes:
            break
        index -= 1
    return index


def keepable_index(image: MemoryStorage, needed: int, index: int, settings: Settings) -> int:
    """Up to where the log may go, ``index`` at the most, when what comes after ``needed`` is still wanted.

    No more is kept for it than ``settings.catch_up_log_bytes``, and as many entries as a snapshot is due after.
    """
    low = max(image.first_index() - 1, needed, index - settings.snapshot_log_entries)
    if low >= index:
        return index
    kept_bytes = 0
    for entry in reversed(image.entries(low + 1, index + 1)):
        kept_bytes += entry.size
        if kept_bytes > settings.catch_up_log_bytes:
            return entry.index
    return low
