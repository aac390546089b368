"""Linearizable reads without a log entry: ReadIndex (thesis 6.4).

The leader notes its commit index when the read arrives and answers once a majority has acknowledged, by a heartbeat
sent after that, that it still leads. Reads are confirmed by their position in the leader's queue: a heartbeat carries
the newest position, its answer confirms all positions up to it. Positions never repeat within a leadership, and the
queue is dropped with it, so an old acknowledgement can only confirm reads that are older still.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["PendingRead", "ReadQueue", "ReadState"]


class ReadState(NamedTuple):
    """A read of this node is linearizable once everything up to ``index`` is applied here."""

    context: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a read state


class PendingRead(NamedTuple):
    """A read that waits for a majority's acknowledgement of ``position``."""

    position: int
    commit: int
    asker: str
    context: int


class ReadQueue:
    """The reads a leader has yet to answer, of one leadership."""

    def __init__(self) -> None:
        # The position of the last read that was added, or of a round of heartbeats without one; heartbeats carry it.
        self.position = 0
        # Ascending positions, and so ascending commit indexes.
        self.pending: deque[PendingRead] = deque()
        # Reads that came before the leader had committed in its own term: until then its commit index may be older
        # than what an earlier leader has acknowledged (thesis 6.4, step 1). (asker, context) in order of arrival.
        self.postponed: deque[tuple[str, int]] = deque()
        # Node id -> the highest position it acknowledged. Only grows.
        self.acknowledged: dict[str, int] = {}

    def add(self, commit: int, asker: str, context: int) -> int:
        """Queue a read at the commit index; its position."""
        self.position += 1
        self.pending.append(PendingRead(self.position, commit, asker, context))
        return self.position

    def acknowledge(self, node_id: str, position: int) -> None:
        """The node has answered a heartbeat that carried this position."""
        if position > self.acknowledged.get(node_id, 0):
            self.acknowledged[node_id] = position

    def confirmed(self, position: int) -> list[PendingRead]:
        """Take out the reads that a majority has confirmed, by answering up to ``position``."""
        ready = []
        while self.pending and self.pending[0].position <= position:
            ready.append(self.pending.popleft())
        return ready
