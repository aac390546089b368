"""Revisions are an order of the writes that the store claims: is it one that time and answers allow?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from replikv.testing.linearizability.history import Operation
from replikv.testing.linearizability.model import Model, Step
from replikv.testing.linearizability.partition import Partition
from replikv.testing.linearizability.verdict import Verdict

__all__ = ["disorder", "orders"]


def disorder(history: Iterable[Operation], model: Model) -> Verdict | None:
    """Two writes whose revisions contradict each other or their times, as a violation; None if there are none.

    One pass over the calls and returns in order: what is called has a higher revision than whatever has returned.
    """
    writes = [each for each in history if each.status == "ok" and each.rev is not None and _takes_revision(model(each))]
    by_revision: dict[int | None, Operation] = {}
    for write in writes:
        other = by_revision.setdefault(write.rev, write)
        if other is not write:
            return _violation("two writes have one revision", other, write)
    returns = sorted(writes, key=_returned)
    newest: Operation | None = None
    seen = 0
    for write in sorted(writes, key=lambda write: write.called):
        while _returned(returns[seen]) < write.called:
            if newest is None or _revision(returns[seen]) > _revision(newest):
                newest = returns[seen]
            seen += 1
        if newest is not None and _revision(newest) > _revision(write):
            return _violation("the earlier write has the later revision", newest, write)
    return None


def orders(partition: Partition) -> list[int]:
    """Of each known operation, the one with the next lower revision; -1 for the first, and for those without one."""
    writes = [
        index
        for index, played in enumerate(partition.known)
        if played.operation.rev is not None and _takes_revision(played.steps)
    ]
    writes.sort(key=lambda index: _revision(partition.known[index].operation))
    before = [-1] * len(partition.known)
    for earlier, later in itertools.pairwise(writes):
        before[later] = earlier
    return before


def _takes_revision(steps: Iterable[Step]) -> bool:
    """Whether an operation with this answer has surely changed something: only then its revision is its own."""
    found = list(steps)
    return bool(found) and all(step.writes for step in found)


def _revision(write: Operation) -> int:
    return -1 if write.rev is None else write.rev


def _returned(write: Operation) -> float:
    return math.inf if write.returned is None else write.returned


def _violation(what: str, first: Operation, second: Operation) -> Verdict:
    keys = tuple(dict.fromkeys(write.key for write in (first, second) if write.key is not None))
    return Verdict("violation", f"{what}\n    {first}\n    {second}", keys, (first,), (second,))
