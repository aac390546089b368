"""So many holders at a time, of all processes."""

from __future__ import annotations

from typing import Any

from replikv import Store
from replikv.recipes.acquiring import Acquiring
from replikv.recipes.arguments import check_count
from replikv.recipes.names import home

__all__ = ["Semaphore"]


class Semaphore(Acquiring):
    """At most ``limit`` tasks of all processes of the cluster are inside at a time: for a licence, a fragile service.

    ::

        async with Semaphore(store, "crawlers", 3):
            ...

    First come, first served. What is said of :class:`Lock` holds: leases, cancellation, errors, ``held.fence``. Holders
    are not ordered among each other, so their tokens tell them apart, and no more.

    Args:
        store: the map; its keys are below ``semaphores/NAME/`` in it.
        name: the same wherever it is used. No slash.
        limit: the same wherever it is used. While processes of two limits run, the greater counts.
        ttl_s: how long the cluster waits for a holder that is gone.
        owner: plain data that tells others who holds it.
    """

    def __init__(self, store: Store, name: str, limit: int, *, ttl_s: float = 10.0, owner: Any = None) -> None:
        check_count("limit", limit)
        super().__init__(store, home(store, "semaphores", name), limit, ttl_s, owner)

    @property
    def limit(self) -> int:
        """How many may hold it at a time."""
        return self._limit
