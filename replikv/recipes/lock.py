"""A lock that one task of all processes holds at a time."""

from __future__ import annotations

from typing import Any

from replikv import Store
from replikv.recipes.acquiring import Acquiring
from replikv.recipes.names import home

__all__ = ["Lock"]


class Lock(Acquiring):
    """A fair lock among all processes of the cluster, with fencing tokens.

    ::

        lock = Lock(store, "reports")
        async with lock as held:
            ...
            await store.txn([held.fence], [Put("report", "done")])

    First come, first served: in the order in which the cluster took note of those who ask, tasks of one process or of
    several alike. Who dies, or is cut off, loses the lock or its place ``ttl_s`` later at the latest, a little more if
    the leader changes meanwhile.

    A lock that cannot be kept any longer cancels the body, before the cluster lets go, and LeaseExpiredError leaves the
    block. That is as good as this process's clock and scheduling are. A process that was stopped meanwhile goes on for
    a moment and knows nothing: what must not happen then goes through the cluster with ``held.fence``, or takes
    ``held.token`` along to wherever it writes, and that refuses a token below the greatest it has seen.

    Cancelled while waiting, or when the body ends in whatever way, nothing is left behind: the key is deleted; if the
    cluster cannot be reached within a moment, it goes with its lease. An exception of the body leaves as it is. A task
    that enters a lock it has gets RuntimeError; two tasks with one ``Lock`` exclude each other, as two processes do.

    Raises, besides what the body does: LeaseExpiredError, also for who waits and loses its place; UnavailableError,
    OutcomeUnknownError (nothing is held then); QuotaExceededError where there are too many leases; ClusterClosedError.

    Args:
        store: the map; its keys are below ``locks/NAME/`` in it.
        name: of the lock, the same wherever it is used. No slash.
        ttl_s: how long the cluster waits for a holder that is gone. Less means a sooner successor, and more locks lost
            when the network falters.
        owner: plain data that tells others who holds it: see :meth:`owners`.
    """

    def __init__(self, store: Store, name: str, *, ttl_s: float = 10.0, owner: Any = None) -> None:
        super().__init__(store, home(store, "locks", name), 1, ttl_s, owner)

    def locked(self) -> bool:
        """Whether somebody holds it, as far as this process's replica knows. Rest nothing on it."""
        return bool(self.owners())

    async def wait_released(self) -> None:
        """Return when all who hold it or wait for it now are gone, without taking it: what they did is done.

        Another may hold it by then. Cancelling leaves nothing behind.
        """
        await self._store.barrier()
        waiting_for = self._holders.contenders.all()
        newest = waiting_for[-1].create_revision if waiting_for else 0
        while ahead := [entry for entry in self._holders.contenders.all() if entry.create_revision <= newest]:
            await self._holders.contenders.wait_gone([ahead[-1].key])
