"""What the map's face needs of the peer under it: the whole of what it knows of consensus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from replikv.machine.replica import Replica
from replikv.settings import Settings

__all__ = ["Replicator"]


class Replicator(Protocol):
    """A peer, as the store sees it. Used from trio's thread only."""

    settings: Settings
    replica: Replica
    """This process's replica. ``replica.keyspace`` is replaced by another object when a snapshot is installed."""

    def check_open(self) -> None:
        """Raise ClusterClosedError unless the cluster is open."""
        ...

    async def propose(self, kind: int, payload: bytes, deadline: float | None = None) -> bytes:
        """Have the command applied exactly once; its result, once this process's replica has applied it.

        The result begins with its Status byte, which is OK or says what every replica refused. ``deadline``, in trio's
        time, is for one of several calls that share a ``request_timeout_s``.

        Raises:
            UnavailableError: surely not applied within ``settings.request_timeout_s``.
            OutcomeUnknownError: handed to the log, but without an answer in that time.
            ClusterClosedError: the cluster is not open.

        Cancelled, the command may have been applied, or may be later; once at most.
        """
        ...

    async def barrier(self) -> None:
        """Return when this replica has applied everything that was committed anywhere before the call.

        Raises UnavailableError and ClusterClosedError. Cancelling it leaves nothing behind.
        """
        ...

    async def ask_of_lease(self, lease: int, *, renew: bool) -> tuple[float, int, int]:
        """Ask the leader about a lease, and with ``renew`` have it keep the lease alive.

        Returns when the question was sent (on trio's clock); for how many milliseconds the lease is granted from then
        on, 0 if it is not there; and how many it has left as the leader counts.

        Raises UnavailableError and ClusterClosedError. Cancelling it leaves nothing behind, but that the lease may have
        been kept alive.
        """
        ...

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call ``listener()`` after commands were applied or a snapshot was installed.

        It is called in the driver's turn: it must be quick, must not raise and must run no code of the user's.
        """
        ...

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """The reverse of :meth:`add_listener`."""
        ...

    def start_soon(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        """Run a task for as long as the cluster is open; it is cancelled when the cluster closes."""
        ...
