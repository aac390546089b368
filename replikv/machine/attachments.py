"""Which keys are attached to which lease: an index over the records of the present.

Most leases have a key or two, and some have very many: a set each, until it is so large that to put it in order would
take milliseconds for every command that ends a part of the lease.
"""

from __future__ import annotations

import heapq
from collections.abc import KeysView
from itertools import islice
from typing import Final

from replikv.machine.sorted_keys import SortedKeys

__all__ = ["Attachments"]

SET_KEYS_MAX: Final = 1024
"""To find the first of so many keys takes a tenth of a millisecond; more are kept in order."""


class Attachments:
    """Lease -> its keys. No lease is here without one, and lease 0, which is none, never is."""

    def __init__(self) -> None:
        self._keys: dict[int, set[str] | SortedKeys] = {}

    def move(self, key: str, old: int, new: int) -> None:
        """The key was attached to one lease, and is to another; 0 is none."""
        if old:
            keys = self._keys[old]
            keys.remove(key)
            if not keys:
                del self._keys[old]
        if new:
            keys = self._keys.setdefault(new, set())
            if isinstance(keys, set) and len(keys) == SET_KEYS_MAX:
                keys = self._keys[new] = _in_order(keys)
            keys.add(key)

    def leases(self) -> KeysView[int]:
        """The leases that have keys."""
        return self._keys.keys()

    def count(self, lease: int) -> int:
        """How many keys a lease has. O(1)."""
        return len(self._keys.get(lease, ()))

    def keys(self, lease: int, limit: int | None = None) -> list[str]:
        """The keys of a lease, in order; the first ``limit`` of them. O(limit), for a large one."""
        keys = self._keys.get(lease, set())
        if isinstance(keys, SortedKeys):
            return list(islice(keys, limit))
        return sorted(keys) if limit is None else heapq.nsmallest(limit, keys)


def _in_order(keys: set[str]) -> SortedKeys:
    ordered = SortedKeys()
    for key in sorted(keys):
        ordered.add(key)
    return ordered
