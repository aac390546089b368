"""Bugs of leases: until when the leader has them last."""

# ruff: noqa: ARG001 - a function in the place of another takes what that takes

from __future__ import annotations

import math

from replikv.machine import history
from replikv.machine.record import Record
from replikv.machine.replica import Replica
from replikv.peer.lessor import Lessor
from replikv.peer.protocol import LeaseQuestions
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import bug

__all__: list[str] = []


@bug(depositions=0.5, crashes=0.3, holders=4)
def end_leases_with_their_leader(patch: Patch) -> None:
    """A new leader counts from when it was elected as if a lease had been due then (etcd#20273)."""

    def wrong(self: Lessor, now: float) -> None:
        known = self._newest
        right(self, now)
        if not known:
            for lease in self._deadlines:
                self._set(lease, now)

    right = patch.set(Lessor, "_note_new", wrong)


@bug(stalls=0.5, holders=4, lease_ttl_s=1.0)
def end_leases_after_a_stall(patch: Patch) -> None:
    """A leader that stood still ends what is due, though it could hear of nobody meanwhile (etcd#12528)."""

    def wrong(self: Lessor, replica: Replica, stall_s: float, first_context: int) -> None:
        right(self, replica, math.inf, first_context)

    def tick(self: Lessor, now: float, *, may_end: bool) -> None:
        self._confirmed_at = math.inf
        tock(self, now, may_end=may_end)

    right = patch.set(Lessor, "__init__", wrong)
    tock = patch.set(Lessor, "tick", tick)


@bug(depositions=0.5, holders=4, lease_ttl_s=1.0)
def keep_leases_alive_without_asking(patch: Patch) -> None:
    """A leader that is deposed tells holders that their leases go on (etcd#15247)."""

    def wrong(self: Lessor, asker: str, questions: LeaseQuestions, now: float) -> None:
        right(self, asker, questions, now)
        if self._waiting:
            self._confirmed.append((0, self._waiting))
            self._waiting = []

    right = patch.set(Lessor, "take", wrong)


@bug(seeds=60, snapshot_log_entries=8, trailing_entries=1, crashes=0.3, holders=4)
def lose_what_is_attached_to_leases_in_a_snapshot(patch: Patch) -> None:
    """Whoever is restored from a snapshot has keys that end with no lease."""

    def wrong(value: bytes | None, create: int, mod: int, version: int, lease: int) -> Record:
        record: Record = right(value, create, mod, version, 0)
        return record

    right = patch.set(history, "pack_record", wrong)
