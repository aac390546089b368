"""Many readers, or one writer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from replikv import Claim, Entry, Store
from replikv.recipes.acquiring import Holders, nearest
from replikv.recipes.names import home

__all__ = ["ReadWriteLock"]

READ: Final = "read-"
WRITE: Final = "write-"


class ReadWriteLock:
    """Readers share it; a writer has it alone. Among all tasks of all processes of the cluster.

    ::

        lock = ReadWriteLock(store, "catalogue")
        async with lock.read():
            ...
        async with lock.write() as held:
            ...

    First come, first served: a reader that comes while a writer waits, waits behind that writer. So neither starves;
    and so a task that reads may not read again inside (a writer between would have both wait for ever): RuntimeError,
    as for a reader that wants to write.

    What is said of :class:`Lock` holds: leases, cancellation, errors. A holder's token is greater than that of all whom
    it excludes and who held it before.

    Args:
        store: the map; its keys are below ``read-write-locks/NAME/`` in it.
        name: the same wherever it is used. No slash.
        ttl_s: how long the cluster waits for a holder that is gone.
        owner: plain data that tells others who holds it.
    """

    def __init__(self, store: Store, name: str, *, ttl_s: float = 10.0, owner: Any = None) -> None:
        self._holders = Holders(store, home(store, "read-write-locks", name), ttl_s)
        self._owner = owner

    def read(self) -> AbstractAsyncContextManager[Claim]:
        """Run the block while nobody writes."""
        return self._holders.hold(self._writer_ahead, self._owner, kind=READ)

    def write(self) -> AbstractAsyncContextManager[Claim]:
        """Run the block while nobody else reads or writes."""
        return self._holders.hold(nearest, self._owner, kind=WRITE)

    def read_nowait(self) -> AbstractAsyncContextManager[Claim]:
        """As :meth:`read`; trio.WouldBlock if a writer is there, or waits. See :meth:`Lock.acquire_nowait`."""
        return self._holders.hold(self._writer_ahead, self._owner, kind=READ, nowait=True)

    def write_nowait(self) -> AbstractAsyncContextManager[Claim]:
        """As :meth:`write`; trio.WouldBlock if anybody is there."""
        return self._holders.hold(nearest, self._owner, kind=WRITE, nowait=True)

    def _writer_ahead(self, ahead: Sequence[Entry]) -> Sequence[Entry]:
        writing = self._holders.contenders.prefix + WRITE
        return [entry for entry in ahead if entry.key.startswith(writing)][-1:]
