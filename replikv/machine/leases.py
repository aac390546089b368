"""The leases that keys can be attached to: which there are, and for how long each is granted.

Rules:

1. A lease ends by a command, REVOKE, and by nothing else: here is no clock. The holder revokes it when he is done; the
   leader does when nobody has kept it alive for its time (``peer/lessor.py``).
2. With the lease, the keys that are attached to it are deleted, at one revision. Too many keys for one command go in
   several; the first of them makes the lease *ending*, and nothing can be attached to it any more.
3. A key is attached to one lease at most: to the one it was put with last. Which keys are attached to a lease is an
   index of the keyspace over its records; each names a lease of this table, or none.
4. An id is never granted twice.

Kept in a dict of integers, which Python's garbage collector does not look into.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from replikv.errors import InternalError
from replikv.machine.chunks import pack_chunks

__all__ = ["TTL_MS_MAX", "Leases", "LeasesRestorer"]

TTL_MS_MAX: Final = 2**32 - 1
"""49 days: what four bytes hold."""

_HEAD: Final = struct.Struct(">BQ")
"""Format, the id that is granted next: the first chunk."""
_FORMAT: Final = 1
_ITEM: Final = struct.Struct(">QI")
"""Lease, time to live in milliseconds, 0 if it is ending."""


class Leases:
    """The table of leases."""

    def __init__(self) -> None:
        self.next_id = 1
        self.table: dict[int, int] = {}
        """lease -> time to live in milliseconds; 0 if it is ending. By ascending id."""
        self.ending: set[int] = set()
        """Those in the table that are ending."""

    def __len__(self) -> int:
        return len(self.table)

    def alive(self, lease: int) -> bool:
        """Whether keys can be attached to it: granted, and not ending."""
        return self.table.get(lease, 0) > 0

    def grant(self, ttl_ms: int) -> int:
        """A new lease; its id."""
        lease = self.next_id
        self.next_id += 1
        self.table[lease] = ttl_ms
        return lease

    def begin_end(self, lease: int) -> None:
        """Some of its keys are deleted, the others follow: nothing can be attached to it any more."""
        self.table[lease] = 0
        self.ending.add(lease)

    def end(self, lease: int) -> None:
        """All of its keys are deleted."""
        del self.table[lease]
        self.ending.discard(lease)

    def snapshot(self) -> Iterator[bytes]:
        """The table as of this call, in chunks."""
        return _chunks(_HEAD.pack(_FORMAT, self.next_id), dict(self.table))


def _chunks(head: bytes, table: dict[int, int]) -> Iterator[bytes]:
    yield head
    yield from pack_chunks(_ITEM.pack(lease, ttl_ms) for lease, ttl_ms in table.items())


class LeasesRestorer:
    """Builds a table from the chunks of :meth:`Leases.snapshot`, one at a time."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._begun = False

    def feed(self, chunk: bytes) -> None:
        """Read one chunk. Raises InternalError for what no snapshot of this version has."""
        try:
            if not self._begun:
                self._begun = True
                kind, self._leases.next_id = _HEAD.unpack(chunk)
                if kind != _FORMAT:
                    raise InternalError(f"a table of leases of format {kind} in the snapshot: upgrade this replikv")
                return
            self._leases.table.update(_ITEM.iter_unpack(chunk))
        except struct.error as exc:
            raise InternalError(f"a chunk of leases that no version of replikv writes: {exc}") from exc

    def finish(self) -> Leases:
        """The table; empty if there was no chunk: snapshots of the first format have none."""
        if max(self._leases.table, default=0) >= self._leases.next_id:
            raise InternalError("the snapshot has a lease that was not granted yet")
        self._leases.ending = {lease for lease, ttl_ms in self._leases.table.items() if not ttl_ms}
        return self._leases
