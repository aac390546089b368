"""What a replicated state machine is."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import ClassVar

__all__ = ["StateMachine"]


class StateMachine(abc.ABC):
    """State that every peer computes alike from the same commands (thesis, section 2.1).

    A machine is a pure function of the commands it was given: it consults no clock, no randomness, no settings and no
    I/O. It is called from one task, never concurrently, and must not block for more than a millisecond or so.
    """

    version: ClassVar[int] = 1
    """What this code knows to apply. Raise it when commands are added: see :meth:`activate`."""

    def activate(self, version: int) -> None:  # noqa: B027  # most machines have one version
        """From here on in the log, commands up to this version may be applied. Does nothing by default.

        Called between two commands, at the same place of the log on every replica, once every member of the cluster
        runs a machine of at least this version; and before :meth:`restore`, with the version of the state that comes,
        which may be lower than the one before (and, when a restore fails, with the former one again). A machine that
        was told nothing keeps to version 1. So one that keeps to the version it was told takes no command that another
        replica may not know. ``cluster.machine_version`` tells what has been activated.
        """

    def digest(self) -> bytes:
        """A few bytes that differ where the state differs; empty, the default, to take no part in comparing replicas.

        Called every 64 positions of the log, between two commands, so it must take constant time: keep a checksum that
        :meth:`apply` carries on and :meth:`restore` brings back. Replicas whose digests differ at the same position
        have diverged, and the odd one out stops. How it is made is part of what a version means: another way of
        making it takes effect with :meth:`activate`, as a new command does.
        """
        return b""

    @abc.abstractmethod
    def apply(self, position: int, command: bytes) -> bytes:
        """Take one command and return its result.

        ``position`` grows by one per command of the log, of which the machine sees only its own; a recovery of the
        cluster leaves numbers out. An exception is a result too, the same on every peer: the caller gets an error, the
        log goes on. The machine must then be as it was before the command.
        """

    @abc.abstractmethod
    def snapshot(self) -> Iterator[bytes]:
        """The state as of this call, in chunks.

        Pins the state at the call, not at the first chunk: the chunks stay the same however many commands are applied
        before they are read. Equal states give equal bytes. Each chunk is small (64 KiB is a good size) and made in
        under a millisecond. Their boundaries are not kept: see :meth:`restore`. An iterator that is dropped half-way
        must cost nothing more.
        """

    @abc.abstractmethod
    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the state by the one that :meth:`snapshot` gave. Built aside and swapped in at the end: when
        ``chunks`` raises, the machine is as it was before.

        What comes is the same bytes in the same order, but not the same chunks: pieces of at most 64 KiB, which is what
        is written to disks and sent to peers at a time. So state which has parts must say in the bytes where they end.
        """
