"""The durable half of the log as the core reads it: a protocol, and the implementation in memory.

Reading never blocks: whatever is durable but not compacted is held in memory, by the disk storage too (which keeps a
``MemoryStorage`` as its image). What must become durable is handed out as ``Write``, in order.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from replikv.errors import InternalError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.messages import Message

__all__ = ["CompactedIndexError", "MemoryStorage", "StableStorage", "UnavailableIndexError", "Write"]


class CompactedIndexError(Exception):
    """The index lies before the first one that storage still has. Internal to the core and its storage."""


class UnavailableIndexError(Exception):
    """The index lies after the last one that storage has. Internal to the core and its storage."""


@dataclasses.dataclass(slots=True)
class Write:
    """What must become durable together, and what may happen only then.

    A storage makes ``snapshot``, ``entries`` and ``hard_state`` durable in this order: the snapshot replaces the whole
    log before its index, entries replace everything from the first one's index on. Writes are completed in the order
    in which they were handed out. ``responses`` are released by ``RawNode.persisted``; storage ignores them.
    """

    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMetadata | None = None
    responses: tuple[Message, ...] = ()

    @property
    def must_sync(self) -> bool:
        """Whether there is anything to make durable. Without it the write only keeps its place in the order."""
        return bool(self.entries) or self.hard_state is not None or self.snapshot is not None


class StableStorage(Protocol):
    """What the core reads of durable state. Element access is O(1); nothing blocks.

    Invariant: ``snapshot().index == first_index() - 1`` or lower, ``last_index() >= first_index() - 1``, and the term
    at ``first_index() - 1`` is known.
    """

    def initial_state(self) -> tuple[HardState, Membership]:
        """The hard state, and the membership of the newest snapshot."""
        ...

    def entries(self, low: int, high: int, bytes_max: int | None = None) -> list[Entry]:
        """The entries of [low, high): at least one, then as many as fit ``bytes_max`` (their ``size`` added up).

        Raises CompactedIndexError for ``low < first_index()``, UnavailableIndexError for ``high > last_index() + 1``.
        """
        ...

    def term(self, index: int) -> int:
        """The term at the index, known for [first_index() - 1, last_index()].

        Raises CompactedIndexError below that range and UnavailableIndexError above it.
        """
        ...

    def first_index(self) -> int:
        """The first index that ``entries`` can return; last_index() + 1 when there is none."""
        ...

    def last_index(self) -> int:
        """The last index in the log; first_index() - 1 when it is empty."""
        ...

    def snapshot(self) -> SnapshotMetadata:
        """The newest durable snapshot; index 0 with the first membership when none was taken."""
        ...


class MemoryStorage:
    """A ``StableStorage`` in memory: the whole storage of a peer without a disk, the image of one with a disk."""

    def __init__(self, membership: Membership | None = None) -> None:
        self.hard_state = HardState()
        self._snapshot = SnapshotMetadata(0, 0, membership or Membership())
        # (index, term) of the entry before the first: what was compacted last, or the snapshot.
        self._base_index = 0
        self._base_term = 0
        # _entries[i] has index _base_index + 1 + i.
        self._entries: list[Entry] = []
        # The sum of the sizes of _entries.
        self._bytes = 0

    # -- reading -------------------------------------------------------------------------------------------------------

    def initial_state(self) -> tuple[HardState, Membership]:
        """As :meth:`StableStorage.initial_state`."""
        return self.hard_state, self._snapshot.membership

    def first_index(self) -> int:
        """As :meth:`StableStorage.first_index`."""
        return self._base_index + 1

    def last_index(self) -> int:
        """As :meth:`StableStorage.last_index`."""
        return self._base_index + len(self._entries)

    def term(self, index: int) -> int:
        """As :meth:`StableStorage.term`."""
        offset = index - self._base_index
        if offset < 0:
            raise CompactedIndexError(index)
        if offset == 0:
            return self._base_term
        if offset > len(self._entries):
            raise UnavailableIndexError(index)
        return self._entries[offset - 1].term

    def entries(self, low: int, high: int, bytes_max: int | None = None) -> list[Entry]:
        """As :meth:`StableStorage.entries`. O(entries returned)."""
        if low <= self._base_index:
            raise CompactedIndexError(low)
        if high > self.last_index() + 1:
            raise UnavailableIndexError(high)
        start, stop = low - self._base_index - 1, high - self._base_index - 1
        if bytes_max is not None:
            # Not limit_size: a page for a follower far behind must not cost a copy of all that it lacks.
            total = 0
            for position in range(start, stop):
                total += self._entries[position].size
                if total > bytes_max and position > start:
                    stop = position
                    break
        return self._entries[start:stop]

    def snapshot(self) -> SnapshotMetadata:
        """As :meth:`StableStorage.snapshot`."""
        return self._snapshot

    @property
    def log_bytes(self) -> int:
        """The sizes of all entries held, added up."""
        return self._bytes

    # -- writing -------------------------------------------------------------------------------------------------------

    def apply(self, write: Write) -> None:
        """Take over a write that is durable now."""
        if write.snapshot is not None:
            self.install(write.snapshot)
        if write.entries:
            self.append(write.entries)
        if write.hard_state is not None:
            self.hard_state = write.hard_state

    def append(self, entries: tuple[Entry, ...] | list[Entry]) -> None:
        """Add entries, in place of whatever is there from the first one's index on. Compacted ones are passed over.

        Raises InternalError when they would leave a gap.
        """
        fresh = [entry for entry in entries if entry.index > self._base_index]
        if not fresh:
            return
        offset = fresh[0].index - self._base_index - 1
        if offset > len(self._entries):
            raise InternalError(f"appending entry {fresh[0].index} after entry {self.last_index()} leaves a gap")
        self._bytes -= sum(entry.size for entry in self._entries[offset:])
        self._entries[offset:] = fresh
        self._bytes += sum(entry.size for entry in fresh)

    def compact(self, index: int) -> None:
        """Forget the entries up to and including ``index``.

        Raises CompactedIndexError when they are gone already, UnavailableIndexError beyond the last index.
        """
        if index <= self._base_index:
            raise CompactedIndexError(index)
        if index > self.last_index():
            raise UnavailableIndexError(index)
        term = self.term(index)
        dropped = index - self._base_index
        self._bytes -= sum(entry.size for entry in self._entries[:dropped])
        del self._entries[:dropped]
        self._base_index, self._base_term = index, term

    def record_snapshot(self, snapshot: SnapshotMetadata) -> None:
        """A snapshot of this log's own state is durable. The entries stay until :meth:`compact`.

        Raises InternalError for one older than the newest, or beyond the log.
        """
        if snapshot.index < self._snapshot.index:
            raise InternalError(f"snapshot at {snapshot.index} is older than the newest, at {self._snapshot.index}")
        if self.term(snapshot.index) != snapshot.term:
            raise InternalError(f"snapshot at {snapshot.index} has term {snapshot.term}, the log another")
        self._snapshot = snapshot

    def install(self, snapshot: SnapshotMetadata) -> None:
        """A snapshot received takes the place of the whole log.

        Raises InternalError for one older than the newest.
        """
        if snapshot.index < self._snapshot.index:
            raise InternalError(f"snapshot at {snapshot.index} is older than the newest, at {self._snapshot.index}")
        self._snapshot = snapshot
        self._base_index, self._base_term = snapshot.index, snapshot.term
        self._entries, self._bytes = [], 0


def limit_size(entries: list[Entry], bytes_max: int) -> list[Entry]:
    """At least one entry, then as many as fit."""
    total = 0
    for count, entry in enumerate(entries):
        total += entry.size
        if total > bytes_max and count:
            return entries[:count]
    return entries
