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
from replikv.testing.simulator.planted.catalogue import CALM, bug

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


@bug(transfers=1, depositions=0.3, holders=4, lease_ttl_s=1.0)
def end_leases_by_what_was_known_before(patch: Patch) -> None:
    """Whoever leads again, or was stalled, goes by the deadlines that it had before (etcd#12528, #15247)."""

    def begin_anew(self: Lessor) -> None:
        known: dict[str, object] = {
            name: vars(self)[name] for name in ("_deadlines", "_heap", "_newest") if name in vars(self)
        }
        right(self)
        self.__dict__.update(known)

    def wrong(self: Lessor, replica: Replica, stall_s: float, first_context: int) -> None:
        make(self, replica, math.inf, first_context)

    right = patch.set(Lessor, "begin_anew", begin_anew)
    make = patch.set(Lessor, "__init__", wrong)


@bug(
    CALM
    | {"peers": 3, "depositions": 0.5, "holders": 8, "lease_ttl_s": 1.0, "heartbeat_s": 0.1, "election_heartbeats": 10},
    seeds=40,
)
def keep_leases_alive_without_asking(patch: Patch) -> None:
    """A leader that is deposed tells holders that their leases go on (etcd#15247)."""

    def wrong(self: Lessor, asker: str, questions: LeaseQuestions, now: float) -> None:
        right(self, asker, questions, now)
        if self._waiting:
            self._confirmed.append((0, self._waiting))
            self._waiting = []

    right = patch.set(Lessor, "take", wrong)


@bug(snapshot_log_entries=8, trailing_entries=1, crashes=0.3, holders=4)
def lose_what_is_attached_to_leases_in_a_snapshot(patch: Patch) -> None:
    """Whoever is restored from a snapshot has keys that end with no lease."""

    def wrong(value: bytes | None, create: int, mod: int, version: int, lease: int) -> Record:
        record: Record = right(value, create, mod, version, 0)
        return record

    right = patch.set(history, "pack_record", wrong)
