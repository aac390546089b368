"""Committed entries, applied to the replica in order, a slice at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from replikv.machine.envelope import unpack_commands
from replikv.machine.replica import Replica
from replikv.raft.entries import Entry, EntryKind

__all__ = ["Applier"]

COMMANDS_PER_LOOK = 64
"""Commands between two looks at the clock, at the most: about half a millisecond. Fewer, if they do much."""


class Applier:
    """Applies what is committed and tells who waits for it.

    Invariant: the replica's state is that of all entries up to ``index`` and of the first ``_offset`` commands of the
    next one. A snapshot may be taken only ``at_boundary``: its state and its index must belong together.
    """

    commands_per_look = COMMANDS_PER_LOOK

    def __init__(
        self,
        replica: Replica,
        index: int,
        term: int,
        on_results: Callable[[Sequence[bytes], Sequence[bytes]], None],
        on_membership: Callable[[Entry], None],
    ) -> None:
        self._replica = replica
        self._on_results = on_results
        self._on_membership = on_membership
        self.index = index
        """The last entry that is applied whole."""
        self.term = term
        """Its term."""
        self._pending: deque[Entry] = deque()
        # The commands of the first pending entry, while it is applied; how many of them are.
        self._commands: list[bytes] | None = None
        self._offset = 0

    @property
    def at_boundary(self) -> bool:
        """Whether no entry is applied in part."""
        return self._commands is None

    @property
    def behind(self) -> bool:
        """Whether committed entries wait to be applied."""
        return bool(self._pending)

    def add(self, entries: Sequence[Entry]) -> None:
        """Committed entries, in order."""
        self._pending.extend(entries)

    def apply(self, until: float, clock: Callable[[], float]) -> list[Entry]:
        """Apply what is pending until the clock says ``until``; the entries that are applied whole now."""
        done: list[Entry] = []
        while self._pending:
            entry = self._pending[0]
            if entry.kind == EntryKind.MEMBERSHIP:
                self._on_membership(entry)
            elif entry.data and not self._apply_commands(entry, until, clock):
                return done
            self._pending.popleft()
            self.index, self.term = entry.index, entry.term
            done.append(entry)
            if clock() >= until:
                return done
        return done

    def _apply_commands(self, entry: Entry, until: float, clock: Callable[[], float]) -> bool:
        """Whether the entry is applied to its end."""
        if self._commands is None:
            self._commands, self._offset = unpack_commands(entry.data), 0
        while self._offset < len(self._commands):
            if self._offset and clock() >= until:
                return False
            commands = self._commands[self._offset : self._offset + self.commands_per_look]
            results = self._replica.apply_some(commands)
            self._offset += len(results)
            self._on_results(commands[: len(results)], results)
        self._commands = None
        return True

    def installed(self, index: int, term: int) -> None:
        """The replica's state is now that of a snapshot: what was pending is in it."""
        self._pending.clear()
        self._commands = None
        self.index, self.term = index, term
