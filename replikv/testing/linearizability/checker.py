"""The checks: of the answers, and of the revisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from replikv.testing.linearizability.evidence import describe
from replikv.testing.linearizability.history import Operation
from replikv.testing.linearizability.model import Model, register_map
from replikv.testing.linearizability.partition import Partition, split
from replikv.testing.linearizability.revisions import disorder, orders
from replikv.testing.linearizability.search import OutOfTimeError, Search
from replikv.testing.linearizability.verdict import Verdict

__all__ = ["check", "check_revisions"]

_KEYS_NAMED_MAX: Final = 5


def check(
    history: Iterable[Operation],
    *,
    model: Model = register_map,
    timeout_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Whether one map, used by one client at a time, could have given these answers, in an order that time allows.

    An operation takes effect at some moment between its call and its return. One that failed never does; one whose
    outcome is unknown does at any moment after its call, or never. The order of the operations given is of no account.

    The problem is NP-complete (Gibbons & Korach 1997): what clients usually do is decided at once, but a history can be
    made that takes for ever, and as much memory. ``timeout_s``, on ``clock``, ends that with ``unknown``.

    Raises ValueError for an operation that the model cannot make sense of.
    """
    return _check(split(history, model), _Deadline(timeout_s, clock), by_revision=False)


def check_revisions(
    history: Iterable[Operation],
    *,
    model: Model = register_map,
    timeout_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Whether the revisions that writes were told are the order in which they took effect.

    No two writes share one; a write that returned before another was called has the smaller one, whoever made them; and
    for every key the answers are explained by the order of the revisions, a stronger claim than :func:`check` makes,
    and a quick one to settle, as there is little left to choose. Writes without a revision may stand anywhere.

    Arguments as for :func:`check`.
    """
    operations = list(history)
    found = disorder(operations, model)
    if found is not None:
        return found
    return _check(split(operations, model), _Deadline(timeout_s, clock), by_revision=True)


def _check(partitions: list[Partition], deadline: _Deadline, *, by_revision: bool) -> Verdict:
    for done, partition in enumerate(partitions):
        search = Search(partition, deadline.check, orders(partition) if by_revision else None)
        try:
            deadline.check()
            if not search.run():
                return describe(partition, search)
        except OutOfTimeError:
            named = ", ".join(map(repr, partition.keys[:_KEYS_NAMED_MAX]))
            more = ", ..." if len(partition.keys) > _KEYS_NAMED_MAX else ""
            return Verdict(
                "unknown",
                f"time ran out after {done} of {len(partitions)} parts of the history, at the {len(partition.known)}"
                f" operations on {named}{more}: allow more, or record fewer operations on a key",
                tuple(key for left in partitions[done:] for key in left.keys),
            )
    count = sum(len(partition.known) for partition in partitions)
    return Verdict("ok", f"{count} operations in {len(partitions)} parts can be put in order")


class _Deadline:
    def __init__(self, timeout_s: float | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = None if timeout_s is None else clock() + timeout_s

    def check(self) -> None:
        if self._end is not None and self._clock() >= self._end:
            raise OutOfTimeError
