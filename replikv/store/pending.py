"""Changes that wait for the reader of a watch: all of them, or for each key the newest.

The first is a deque. The second has the same face, as far as a watch uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from replikv.machine import keyspace as mvcc
from replikv.machine.record import Record

__all__ = ["Coalesced"]


class Coalesced:
    """For each key the newest change that waits, in the order of their revisions.

    What a change replaced is then what the oldest change replaced that it stands for: what the reader was last told,
    and not a value that he never saw.
    """

    __slots__ = ("_changes",)

    def __init__(self) -> None:
        # key -> (record, replaced record). Its order is that of the records' revisions: what is new goes to the end.
        self._changes: OrderedDict[str, tuple[Record, Record | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._changes)

    def extend(self, changes: Iterable[mvcc.Change]) -> None:
        """Take changes in, newer ones than are there."""
        waiting = self._changes
        for key, record, replaced in changes:
            older = waiting.get(key)
            if older is not None:
                replaced = older[1]  # noqa: PLW2901  # the change goes on as one that replaced this
            waiting[key] = record, replaced
            waiting.move_to_end(key)

    def popleft(self) -> mvcc.Change:
        """Take the oldest out."""
        key, (record, replaced) = self._changes.popitem(last=False)
        return key, record, replaced

    def clear(self) -> None:
        """Forget all."""
        self._changes.clear()

    def growth(self, changes: Sequence[mvcc.Change]) -> int:
        """How many more will wait once these are taken in, which are all of one revision: so of distinct keys."""
        waiting = self._changes
        return sum(key not in waiting for key, _, _ in changes)
