"""A number that all processes count on."""

from __future__ import annotations

from replikv import Store
from replikv.recipes.names import home

__all__ = ["Counter"]


class Counter:
    """An integer that any process adds to, without losing a count.

    ::

        orders = Counter(store, "orders")
        number = await orders.increment()

    Every increment gets a sum that no other gets, if all of them add with one sign: an order number, an id. Integers
    are as large as Python's. An increment that raises OutcomeUnknownError may have counted, or may yet; one that
    returned has counted once.

    Args:
        store: the map; the key is ``counters/NAME``.
        name: the same wherever it is used. No slash.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._key = home(store, "counters", name).removesuffix("/")

    @property
    def key(self) -> str:
        """The key of the number, for transactions and watches: absent until somebody counts."""
        return self._key

    async def increment(self, by: int = 1) -> int:
        """Add, and return the sum. EncodingError unless ``by`` is an int."""
        return await self._store.increment(self._key, by)

    async def get(self) -> int:
        """The number; linearizable: it has all increments in it that returned anywhere before this call."""
        return int(await self._store.get(self._key, 0))

    @property
    def local(self) -> int:
        """The number as this process's replica knows it, without asking anybody."""
        return int(self._store.local.get(self._key, 0))

    async def reset(self) -> int:
        """Begin at zero again; what it was. Numbers given out before may be given out again."""
        return int(await self._store.pop(self._key, 0))
