"""A leader's lease on reads: for how long no other leader can have been elected (thesis 6.4.1).

A member that answers a heartbeat votes for nobody for an election timeout from when it got it. So from when a majority
has answered, until an election timeout after that heartbeat was *sent*, no majority elects another leader, and reads
need not ask. Counted from the answers instead, the lease would outlive the promises it rests on.

What it assumes of clocks: each member's runs evenly, to within a tenth, over an election timeout; the leader's goes on
while its process is stopped (SIGSTOP) and while its machine sleeps. Where a clock cannot be trusted so far, ReadIndex
asks no clock at all.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["CLOCK_DRIFT_MAX", "ReadLease", "lease_ticks"]

CLOCK_DRIFT_MAX = 0.1
"""How much faster one member's clock may run than another's. Crystals are off by 0.0001; virtual machines by more."""

ROUNDS_MAX = 64
"""Heartbeats that wait to be confirmed; older ones are forgotten, which only makes the lease shorter."""


def lease_ticks(election_ticks: int) -> float:
    """How long a lease lasts: a member counts its first tick at once, so an election timeout may be one tick short."""
    return (election_ticks - 1) * (1 - CLOCK_DRIFT_MAX)


class ReadLease:
    """The lease of one leadership. Times are the runtime's, in ticks, on a clock of its own.

    Rounds of heartbeats are told apart by their positions in the leader's queue of reads, which heartbeats carry and
    answers hand back.
    """

    def __init__(self, election_ticks: int) -> None:
        self._ticks = lease_ticks(election_ticks)
        # (position, when sent) of the rounds not confirmed yet; both grow.
        self._rounds: deque[tuple[int, float]] = deque(maxlen=ROUNDS_MAX)
        self.expires = -math.inf
        """Until when no other leader can have been elected. Never moves back but by :meth:`revoke` and :meth:`end`."""
        # Whether the leader has asked somebody to campaign: that node is not bound by what others promised, and when
        # the request arrives nobody knows.
        self._ended = False

    def sent(self, position: int, now: float) -> None:
        """A round of heartbeats leaves, not before ``now``."""
        self._rounds.append((position, now))

    def confirm(self, position: int) -> None:
        """A majority has answered the round at this position."""
        while self._rounds and self._rounds[0][0] <= position:
            _, sent = self._rounds.popleft()
            self.expires = max(self.expires, sent + self._ticks)

    def holds(self, now: float | None) -> bool:
        """Whether a read that was asked for before ``now`` may be served; never when the time is not known."""
        return now is not None and now < self.expires and not self._ended

    def revoke(self) -> None:
        """The voters have changed: those who promised may no longer be a majority. New rounds count again."""
        self._rounds.clear()
        self.expires = -math.inf

    def end(self) -> None:
        """No lease any more in this leadership."""
        self._ended = True
