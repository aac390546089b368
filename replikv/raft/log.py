"""The replicated log as the core sees it: stable storage, the unstable tail on top, and how far it is agreed upon."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replikv.errors import InternalError
from replikv.raft.entries import Entry, SnapshotMetadata
from replikv.raft.stable import CompactedIndexError, StableStorage, UnavailableIndexError, limit_size
from replikv.raft.unstable import Unstable

__all__ = ["RaftLog", "check_slice"]


class RaftLog:
    """One log out of two halves, and the three positions in it: committed, handed out, applied.

    ``allow_unstable`` in the methods below says whether committed entries may be applied before they are durable here:
    they are durable on a majority. ``applying_bytes_max`` bounds the entries that are handed out and not applied yet;
    the last batch may overshoot it by one entry. None: no bound.

    Invariant: applied <= applying <= committed <= last_index().
    """

    def __init__(self, storage: StableStorage, *, applying_bytes_max: int | None = None) -> None:
        # Everything durable since the last compaction; read-only here.
        self.storage = storage
        # What is not durable yet. Indexes from unstable.offset on are read there, those before it in storage.
        self.unstable = Unstable(storage.last_index() + 1)
        base = storage.first_index() - 1
        # The highest index known to be on a majority of disks. Never decreases.
        self.committed = base
        # The highest index handed out for applying.
        self.applying = base
        # The highest index known to be applied. Nothing at or below it is handed out again.
        self.applied = base
        self._applying_bytes_max = applying_bytes_max
        # The sizes of the entries in (applied, applying], added up.
        self.applying_bytes = 0
        # Whether nothing more is handed out until something is applied: the bound is reached, or it has cut the last
        # batch short, so that what is left of it is too small for the next entry.
        self.applying_paused = False

    def __repr__(self) -> str:
        return (
            f"<RaftLog [{self.first_index()}, {self.last_index()}] committed={self.committed} applying={self.applying}"
            f" applied={self.applied} stable={self.stable_index()}>"
        )

    # -- positions -----------------------------------------------------------------------------------------------------

    def first_index(self) -> int:
        """The first index that is not compacted."""
        index = self.unstable.first_index()
        return self.storage.first_index() if index is None else index

    def last_index(self) -> int:
        """The last index, durable or not; first_index() - 1 when there are no entries."""
        index = self.unstable.last_index()
        return self.storage.last_index() if index is None else index

    def stable_index(self) -> int:
        """The last index that is durable. A received snapshot counts from its arrival on, durable or not."""
        return self.unstable.offset - 1

    def last_term(self) -> int:
        """The term at last_index()."""
        return self.last_entry_id()[1]

    def last_entry_id(self) -> tuple[int, int]:
        """(index, term) of the end of the log."""
        entries = self.unstable.entries
        if entries:
            return entries[-1][:2]
        index = self.last_index()
        return index, self.term(index)

    def term(self, index: int) -> int:
        """The term at the index, known for [first_index() - 1, last_index()].

        Raises CompactedIndexError below that range and UnavailableIndexError above it.
        """
        unstable = self.unstable
        if index < unstable.offset and unstable.snapshot is None:
            return self.storage.term(index)  # which raises the same outside of its range
        term = unstable.term(index)
        if term is not None:
            return term
        if index < self.first_index() - 1:
            raise CompactedIndexError(index)
        if index > self.last_index():
            raise UnavailableIndexError(index)
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the log is known to have an entry of this term at the index."""
        try:
            return self.term(index) == term
        except (CompactedIndexError, UnavailableIndexError):
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends in (index, term) is at least as up-to-date as this one (paper 5.4.1)."""
        own_index, own_term = self.last_entry_id()
        return (term, index) >= (own_term, own_index)

    # -- appending -----------------------------------------------------------------------------------------------------

    def maybe_append(
        self, previous_index: int, previous_term: int, entries: Sequence[Entry], committed: int
    ) -> int | None:
        """Take over a leader's entries and commit index (paper, figure 2: AppendEntries, steps 2 to 5).

        Returns the last index that is known to match the leader's log then; None, and nothing changes, when the log
        does not match at the previous entry. What follows the entries here is kept unless one of them conflicts: a
        late message must not shorten the log. Raises InternalError for a conflict at or below the commit index.
        """
        if not self.matches(previous_index, previous_term):
            return None
        conflict = self.find_conflict(entries)
        if conflict:
            if conflict <= self.committed:
                raise InternalError(f"entry {conflict} conflicts with the committed one (committed: {self.committed})")
            self.append(entries[conflict - previous_index - 1 :])
        last_new = previous_index + len(entries)
        self.commit_to(min(committed, last_new))
        return last_new

    def append(self, entries: Sequence[Entry]) -> int:
        """Add entries, in place of whatever is there from the first one's index on. Returns the last index.

        Raises InternalError when one of them lies at or below the commit index, or when they would leave a gap.
        """
        if entries:
            if entries[0].index <= self.committed:
                raise InternalError(f"appending entry {entries[0].index} would overwrite committed {self.committed}")
            self.unstable.truncate_and_append(entries)
        return self.last_index()

    def find_conflict(self, entries: Sequence[Entry]) -> int:
        """The first index at which the log has another entry than these, or none; 0 when it has them all."""
        for entry in entries:
            if not self.matches(entry.index, entry.term):
                return entry.index
        return 0

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The largest (index, term) of this log at or below both: the best guess where two logs part.

        It lets a leader and a follower skip a whole term per round trip (paper 5.3, the optimisation at its end).
        Outside of the known range the index comes back with term 0. O(entries passed over).
        """
        while index > 0:
            try:
                own_term = self.term(index)
            except (CompactedIndexError, UnavailableIndexError):
                return index, 0
            if own_term <= term:
                return index, own_term
            index -= 1
        return 0, 0

    def restore(self, snapshot: SnapshotMetadata) -> None:
        """A received snapshot takes the place of the whole log. Raises InternalError for one of the committed past."""
        if snapshot.index < self.committed:
            raise InternalError(f"restoring a snapshot at {snapshot.index} would undo the commit of {self.committed}")
        self.committed = snapshot.index
        self.unstable.restore(snapshot)

    # -- committing ----------------------------------------------------------------------------------------------------

    def commit_to(self, index: int) -> None:
        """What is at or below the index is committed; an index that is already is no news.

        Raises InternalError beyond the end of the log: it was truncated, or lost.
        """
        if index <= self.committed:
            return
        if index > self.last_index():
            raise InternalError(
                f"commit index {index} is beyond the last index {self.last_index()}: the log has lost what it had"
                " acknowledged, as an older copy of a disk has; remove this peer from the cluster and let it join anew"
                " with an empty directory"
            )
        self.committed = index

    def maybe_commit(self, index: int, term: int) -> bool:
        """Commit up to the index if the entry there is of this term. Returns whether that is news.

        With the leader's own term this is the rule of paper 5.4.2: never count replicas of an older term's entry.
        """
        if index <= self.committed or not self.matches(index, term):
            return False
        self.commit_to(index)
        return True

    # -- the way to the disk -------------------------------------------------------------------------------------------

    def has_next_unstable_entries(self) -> bool:
        """Whether there are entries that the writer was not given yet."""
        return self.unstable.offset_in_progress < self.unstable.offset + len(self.unstable.entries)

    def next_unstable_entries(self) -> list[Entry]:
        """The entries that the writer was not given yet."""
        return self.unstable.next_entries()

    def has_next_unstable_snapshot(self) -> bool:
        """Whether there is a snapshot that the writer was not given yet."""
        return self.unstable.snapshot is not None and not self.unstable.snapshot_in_progress

    def next_unstable_snapshot(self) -> SnapshotMetadata | None:
        """The snapshot that the writer was not given yet, if there is one."""
        return self.unstable.next_snapshot()

    def has_unstable_snapshot(self) -> bool:
        """Whether a received snapshot is not durable yet, with the writer or before it."""
        return self.unstable.snapshot is not None

    def accept_unstable(self) -> None:
        """The writer was given what the two ``next_unstable`` methods returned."""
        self.unstable.accept_in_progress()

    def stable_to(self, index: int, term: int) -> None:
        """The entries up to (index, term) are durable; ignored when another entry has that index by now."""
        self.unstable.stable_to(index, term)

    def stable_snapshot_to(self, index: int) -> None:
        """The received snapshot at the index is durable."""
        self.unstable.stable_snapshot_to(index)

    # -- applying ------------------------------------------------------------------------------------------------------

    def max_appliable_index(self, allow_unstable: bool) -> int:
        """How far entries may be applied."""
        return self.committed if allow_unstable else min(self.committed, self.stable_index())

    def has_next_committed_entries(self, allow_unstable: bool) -> bool:
        """Whether :meth:`next_committed_entries` has any. O(1)."""
        # A snapshot must be restored first: what follows it cannot be applied to the state before it.
        if self.applying >= self.committed or self.applying_paused or self.unstable.snapshot is not None:
            return False
        return self.applying < self.max_appliable_index(allow_unstable)

    def next_committed_entries(self, allow_unstable: bool) -> list[Entry]:
        """The committed entries after those handed out, as many as the bound leaves room for, at least one."""
        if not self.has_next_committed_entries(allow_unstable):
            return []
        bytes_max = None
        if self._applying_bytes_max is not None:
            bytes_max = self._applying_bytes_max - self.applying_bytes
        return self.slice(self.applying + 1, self.max_appliable_index(allow_unstable) + 1, bytes_max)

    def accept_applying(self, index: int, size: int, allow_unstable: bool) -> None:
        """The entries up to the index are being applied; ``size`` is what they add to ``applying_bytes``."""
        if index > self.committed:
            raise InternalError(f"applying entry {index}, which is not committed (committed: {self.committed})")
        self.applying = index
        self.applying_bytes += size
        self.applying_paused = self._applying_bytes_max is not None and (
            self.applying_bytes >= self._applying_bytes_max or index < self.max_appliable_index(allow_unstable)
        )

    def applied_to(self, index: int, size: int) -> None:
        """The entries up to the index are applied; ``size`` is what they take off ``applying_bytes``."""
        if not self.applied <= index <= self.committed:
            raise InternalError(f"applied {index} is not within applied {self.applied} to committed {self.committed}")
        self.applied = index
        if index > self.applying:
            # A snapshot's state has taken the place of whatever was handed out: nobody will say that it was applied.
            self.applying, size = index, self.applying_bytes
        self.applying_bytes = max(self.applying_bytes - size, 0)
        self.applying_paused = self._applying_bytes_max is not None and self.applying_bytes >= self._applying_bytes_max

    # -- reading -------------------------------------------------------------------------------------------------------

    def entries(self, low: int, bytes_max: int | None = None) -> list[Entry]:
        """The entries from ``low`` to the end, limited as in :meth:`slice`; none when low lies beyond the end."""
        last_index = self.last_index()
        return [] if low > last_index else self.slice(low, last_index + 1, bytes_max)

    def all_entries(self) -> list[Entry]:
        """Everything that is not compacted."""
        return self.entries(self.first_index())

    def slice(self, low: int, high: int, bytes_max: int | None = None) -> list[Entry]:
        """The entries of [low, high): at least one, then as many as fit ``bytes_max`` (their ``size`` added up).

        Raises CompactedIndexError for ``low < first_index()``, InternalError for bounds that no log can satisfy.
        """
        first_index, end = self.first_index(), self.last_index() + 1
        if low > high:
            raise InternalError(f"entries [{low}, {high}): the bounds are the wrong way round")
        if low < first_index:
            raise CompactedIndexError(low)
        if high > end:
            raise InternalError(f"entries [{low}, {high}) are not within the log [{first_index}, {end})")
        if low == high:
            return []
        seam = self.unstable.offset
        found: list[Entry] = []
        if low < seam:
            found = self.storage.entries(low, min(high, seam), bytes_max)
            if low + len(found) < min(high, seam):
                return found
        if high > seam:
            found = found + self.unstable.slice(max(low, seam), high)
        return found if bytes_max is None else limit_size(found, bytes_max)

    def scan(self, low: int, high: int, page_bytes: int, visit: Callable[[list[Entry]], bool]) -> None:
        """Visit the entries of [low, high) in pages, each limited to ``page_bytes`` as in :meth:`slice`.

        ``visit`` says whether to go on; an exception that it raises ends the scan as well.
        """
        while low < high:
            page = self.slice(low, high, page_bytes)
            if not visit(page):
                return
            low += len(page)

    def snapshot(self) -> SnapshotMetadata:
        """The newest snapshot, durable or not."""
        return self.storage.snapshot() if self.unstable.snapshot is None else self.unstable.snapshot


def check_slice(term: int, previous_index: int, previous_term: int, entries: Sequence[Entry]) -> None:
    """Check that a leader of this term can have sent these entries, before they touch the log.

    In every log indexes grow by one and terms never fall, and none exceeds its leader's. Raises ValueError.
    """
    index, last_term = previous_index, previous_term
    for entry in entries:
        if entry.index != index + 1:
            raise ValueError(f"entry {entry.index} follows entry {index}: indexes must grow by one")
        if entry.term < last_term:
            raise ValueError(f"entry {entry.index} of term {entry.term} follows term {last_term}: terms must not fall")
        index, last_term = entry.index, entry.term
    if last_term > term:
        raise ValueError(f"entry {index} is of term {last_term}, but its leader is of term {term}")
