"""The tail of the log that is not durable yet, and the snapshot that is not durable yet.

What stands here may still be handed to the writer, be on its way to the disk, or be overwritten by a new leader before
it ever gets there. The log (:mod:`replikv.raft.log`) reads this part first and the stable storage beneath it second.
"""

from __future__ import annotations

from collections.abc import Sequence

from replikv.errors import InternalError
from replikv.raft.entries import Entry, SnapshotMetadata

__all__ = ["Unstable"]


class Unstable:
    """Entries and a snapshot between the core and the disk. ``offset`` is the first index that is not durable.

    Whatever is handed out is a copy: it does not change under a later append or truncation.
    """

    def __init__(self, offset: int) -> None:
        # A received snapshot that storage does not have yet. While there is one, it stands for the whole log before it:
        # the entries of storage no longer count.
        self.snapshot: SnapshotMetadata | None = None
        # Whether the writer has the snapshot already. False while there is none.
        self.snapshot_in_progress = False
        # entries[i] has index offset + i.
        self.entries: list[Entry] = []
        # Right after the last durable index, or after the snapshot's while there is one. It may lie at or below
        # storage's last index: storage's entries from offset on are overwritten by those here.
        self.offset = offset
        # The first index that the writer was not given yet: offset <= offset_in_progress <= offset + len(entries).
        self.offset_in_progress = offset

    # -- reading -------------------------------------------------------------------------------------------------------

    def first_index(self) -> int | None:
        """The first index of the whole log, if it is decided here, by a snapshot."""
        return None if self.snapshot is None else self.snapshot.index + 1

    def last_index(self) -> int | None:
        """The last index of the whole log, if it is decided here, by an entry or a snapshot."""
        if self.entries:
            return self.offset + len(self.entries) - 1
        return None if self.snapshot is None else self.snapshot.index

    def term(self, index: int) -> int | None:
        """The term at the index, if it is known here."""
        position = index - self.offset
        if 0 <= position < len(self.entries):
            return self.entries[position].term
        if position < 0 and self.snapshot is not None and index == self.snapshot.index:
            return self.snapshot.term
        return None

    def slice(self, low: int, high: int) -> list[Entry]:
        """The entries of [low, high). Raises InternalError when they are not all here. O(entries returned)."""
        if not self.offset <= low <= high <= self.offset + len(self.entries):
            end = self.offset + len(self.entries)
            raise InternalError(f"unstable entries [{low}, {high}) are not within [{self.offset}, {end})")
        return self.entries[low - self.offset : high - self.offset]

    # -- the way to the disk -------------------------------------------------------------------------------------------

    def next_entries(self) -> list[Entry]:
        """The entries that the writer was not given yet."""
        return self.entries[self.offset_in_progress - self.offset :]

    def next_snapshot(self) -> SnapshotMetadata | None:
        """The snapshot, if the writer was not given it yet."""
        return None if self.snapshot_in_progress else self.snapshot

    def accept_in_progress(self) -> None:
        """The writer was given everything that is here."""
        self.offset_in_progress = self.offset + len(self.entries)
        self.snapshot_in_progress = self.snapshot is not None

    def stable_to(self, index: int, term: int) -> None:
        """The entries up to (index, term) are durable, and leave for storage.

        Ignored when this is no longer the entry at the index: a write that a new leader's entries have overtaken says
        nothing about those (ABA).
        """
        if index < self.offset or self.term(index) != term:
            return
        del self.entries[: index + 1 - self.offset]
        self.offset = index + 1
        self.offset_in_progress = max(self.offset_in_progress, self.offset)

    def stable_snapshot_to(self, index: int) -> None:
        """The snapshot at the index is durable. Ignored when a newer one has taken its place."""
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    # -- changing ------------------------------------------------------------------------------------------------------

    def restore(self, snapshot: SnapshotMetadata) -> None:
        """A received snapshot takes the place of everything."""
        self.offset = self.offset_in_progress = snapshot.index + 1
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def truncate_and_append(self, entries: Sequence[Entry]) -> None:
        """Entries take the place of everything from the first one's index on; there is at least one.

        What was overwritten while the writer had it is handed out anew: ``offset_in_progress`` moves back. Raises
        InternalError when the entries would leave a gap. O(entries given and dropped).
        """
        start = entries[0].index
        if start > self.offset + len(self.entries):
            raise InternalError(f"appending entry {start} after {self.offset + len(self.entries) - 1} leaves a gap")
        if start < self.offset:
            self.offset = start
        del self.entries[start - self.offset :]
        self.entries.extend(entries)
        self.offset_in_progress = min(self.offset_in_progress, start)
