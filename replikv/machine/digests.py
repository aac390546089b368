"""Digests of a replica's state at certain positions, by which replicas are compared while they run.

A digest costs next to nothing, since it looks at no state but what is kept anyway:

- the *chain*, a checksum over the results of all commands: replicas that differ answer differently, sooner or later;
- sums that the map keeps of what it holds, and counters;
- what the application's machine tells of itself in constant time, if it tells anything.

It is noted at every position that ``INTERVAL`` divides, so two replicas can be compared although neither waits for the
other. How it is made is part of what replicas say to each other (``FORMAT``): one that is made in another way says
nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["DIGEST_BYTES", "FORMAT", "INTERVAL", "NOTES_MAX", "NO_DIGEST", "Notes", "StateDigest"]

FORMAT: Final = 1
"""How digests are made. Another number whenever that changes."""

INTERVAL: Final = 64
"""Positions from one digest to the next: 3 µs of work, spread over so many commands."""

NOTES_MAX: Final = 1024
"""Digests that are remembered: 65,536 commands, a second of full load. Others are told of them once per tick."""

DIGEST_BYTES: Final = 16
NO_DIGEST: Final = bytes(DIGEST_BYTES)
"""Of a machine that tells nothing."""


class StateDigest(NamedTuple):
    """The digest of a replica at one position."""

    state: bytes
    machine: bytes
    """Of the application's machine; ``NO_DIGEST`` if there is none, or it tells nothing."""

    def agrees(self, other: StateDigest) -> bool:
        """Whether both may be of equal replicas. A machine that tells nothing agrees with any."""
        return self.state == other.state and (
            self.machine == other.machine or NO_DIGEST in (self.machine, other.machine)
        )

    def __str__(self) -> str:
        return self.state.hex() + ("" if self.machine == NO_DIGEST else f"+{self.machine.hex()}")


class Notes:
    """The last ``NOTES_MAX`` digests of one replica, by position. Not replicated, and in no snapshot."""

    def __init__(self) -> None:
        self._notes: dict[int, StateDigest] = {}
        self.newest = 0
        """The highest position with a note; 0 without any."""

    def __len__(self) -> int:
        return len(self._notes)

    def add(self, position: int, digest: StateDigest) -> None:
        """Note the digest at a position, which is higher than all before."""
        notes = self._notes
        notes[position] = digest
        self.newest = position
        if len(notes) > NOTES_MAX:
            del notes[next(iter(notes))]

    def get(self, position: int) -> StateDigest | None:
        """The digest at a position; None if this replica was not there, or too long ago."""
        return self._notes.get(position)

    def clear(self) -> None:
        """The state is another one: what was noted of the former says nothing about it."""
        self._notes.clear()
        self.newest = 0
