"""Where the history of the map should begin: the leader decides, and proposes it as a command.

So all replicas refuse the same reads, and none of them looks at a clock. The leader counts ticks, and only those of its
own leadership: a new one knows of no revision how old it is, and keeps the history longer, not shorter.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from replikv.machine.keyspace import Keyspace
from replikv.settings import Settings

__all__ = ["Compactor"]

SAMPLES_PER_AGE: Final = 100
"""How often in ``history_age_s`` the leader notes its revision, if ticks are not rarer: the history is kept for up to a
hundredth longer, and there are less than twice as many notes."""


class Compactor:
    """What this peer, as the leader, knows of the history. Kept by the limits of its settings."""

    def __init__(self, settings: Settings) -> None:
        self._revisions_max = settings.history_revisions
        self._bytes_max = settings.history_bytes_max
        self._age_ticks = math.ceil(settings.history_age_s / settings.heartbeat_interval_s)
        self._sample_ticks = max(1, self._age_ticks // SAMPLES_PER_AGE)
        # (tick, the newest revision then), both ascending. The first one may be older than history_age_s.
        self._samples: deque[tuple[int, int]] = deque()
        self._ticks = 0
        # The floor that was proposed last.
        self._proposed = 0

    def begin_anew(self) -> None:
        """Leader or term have changed."""
        self._samples.clear()
        self._proposed = 0

    def dropped(self) -> None:
        """What was proposed will not be applied."""
        self._proposed = 0

    def tick(self, ticks: int, revision: int) -> None:
        """Time has passed, this peer leads, and the map is at that revision."""
        samples = self._samples
        if not samples or (revision > samples[-1][1] and ticks >= samples[-1][0] + self._sample_ticks):
            samples.append((ticks, revision))
        # The newest of those that are old enough stays: it says where the history should begin.
        while len(samples) > 1 and samples[1][0] <= ticks - self._age_ticks:
            samples.popleft()
        self._ticks = ticks

    def floor(self, keyspace: Keyspace) -> int | None:
        """The floor to propose now, if any. Each is given once, until :meth:`dropped` or :meth:`begin_anew`."""
        floor = least = max(self._proposed, keyspace.floor)
        # A tenth of slack: one command for many revisions.
        excess = keyspace.revision - least > self._revisions_max + self._revisions_max // 10
        if excess or keyspace.history_bytes > self._bytes_max:
            bytes_max = self._bytes_max - self._bytes_max // 10
            floor = max(floor, keyspace.floor_for(revisions_max=self._revisions_max, bytes_max=bytes_max))
        if self._samples and self._samples[0][0] <= self._ticks - self._age_ticks:
            floor = max(floor, self._samples[0][1])
        if floor <= least:
            return None
        self._proposed = floor
        return floor
