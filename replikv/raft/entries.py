"""What the log is made of, and what must survive a crash beside it."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from replikv.raft.membership import Membership

__all__ = ["ENTRY_OVERHEAD_BYTES", "NO_NODE", "Entry", "EntryKind", "HardState", "SnapshotMetadata", "payload_bytes"]

NO_NODE: Final = ""
"""The node id that stands for nobody: no vote, no leader."""

ENTRY_OVERHEAD_BYTES: Final = 24
"""What an entry costs beside its data in every size limit: index, term, length and kind, rounded up."""


class EntryKind(enum.IntEnum):
    """Who reads the data of an entry. The numbers are on disk and on the wire: never change one."""

    COMMANDS = 0
    """A CBOR sequence of commands for the replicated state; empty in the no-op of a new leader."""
    MEMBERSHIP = 1
    """A MembershipChange, applied by consensus itself."""


class Entry(NamedTuple):
    """One entry of the log. Equal (index, term) means equal entry, in every log (Log Matching, paper 5.3)."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an entry
    term: int
    data: bytes = b""
    kind: int = EntryKind.COMMANDS

    @property
    def size(self) -> int:
        """Bytes that count against message, memory and log limits."""
        return ENTRY_OVERHEAD_BYTES + len(self.data)


class HardState(NamedTuple):
    """What must be durable before a message that rests on it leaves (paper, figure 2: persistent state).

    ``commit`` may lag behind what was committed: it is saved with the next write, never for its own sake.
    """

    term: int = 0
    vote: str = NO_NODE
    commit: int = 0


class SnapshotMetadata(NamedTuple):
    """The position that a snapshot stands for, and the membership as of it. The data lives in storage."""

    index: int  # type: ignore[assignment]  # as in Entry
    term: int
    membership: Membership


def payload_bytes(entries: tuple[Entry, ...] | list[Entry]) -> int:
    """The bytes of data in the entries, without overhead: what flow control counts."""
    return sum(len(entry.data) for entry in entries)
