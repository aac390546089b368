"""Pins: what keeps a revision of the map in memory while somebody reads it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Pin"]


class Pinned(Protocol):
    """The keyspace, as a pin sees it."""

    physical_floor: int

    def unpin(self, pin: Pin, /) -> None:
        """The pin is released."""


class Pin:
    """Keeps a revision readable, though the logical floor may pass it. Released when it is dropped, at the latest.

    A breakable one (an iterator's) is broken when it holds too many bytes; a firm one (a snapshot's) never.
    """

    __slots__ = ("_keyspace", "_released", "breakable", "revision")

    def __init__(self, keyspace: Pinned, revision: int, breakable: bool) -> None:
        self._keyspace = keyspace
        self._released = False
        self.revision = revision
        self.breakable = breakable

    @property
    def broken(self) -> bool:
        """Whether what was pinned is gone."""
        return self._keyspace.physical_floor > self.revision

    def release(self) -> None:
        """Let the revision go. Does nothing the second time."""
        if not self._released:
            self._released = True
            self._keyspace.unpin(self)

    def __del__(self) -> None:
        self.release()
