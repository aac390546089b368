"""What must hold of a whole cluster at every event: the invariants of the cores, and those of disks, machines, clients.

Those of the cores are in ``replikv/raft/invariants.py``, those of elections in ``mandates.py``. These come on top:

===========================  ========================================================================================
applied in order             a machine gets every committed entry once, in order, none left out
durable before applied       what is applied is known to be committed, and on the own disk
commits in the own term      a leader counts acknowledgements for entries of its own term only (paper 5.4.2)
majority before committed    what anybody knows to be committed is on the disks of a majority (both, in a joint change)
equal replicas               the same command at the same position, and the same result, on every replica
equal changes                the same changes at the same revision, byte for byte, on every replica
equal snapshots              the state at an index is the same, byte for byte, whoever takes or receives it
chained changes              revisions grow by one, and a change replaces what the last one of its key has left
exactly once                 a sequence of a session is applied once: later attempts have the same result
durable is durable           a restart finds what was synced, and of what was being written all or nothing
torn is not damaged          a disk of which no bit was flipped is never taken for damaged
failed syncs are final       a process that has seen a sync fail syncs that file never again
leases, locks                see tenures.py
watches                      nine properties: see replikv/testing/watch_validation
linearizable                 what clients saw could have come from one map, and revisions tell its order
liveness                     when the faults have ended, everything works again within a bound
===========================  ========================================================================================
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from replikv.errors import CompactedError
from replikv.machine.commands import REVOKE, Operation
from replikv.machine.envelope import HEADER, HEADER_BYTES, Status
from replikv.machine.keyspace import Changes
from replikv.machine.record import HEAD
from replikv.raft.entries import Entry, SnapshotMetadata
from replikv.raft.roles import Role
from replikv.testing.simulator.mandates import Mandates

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["BrokenInvariantError", "Oracle", "broken"]

_MAP: Final = 1
_REVOKE: Final = int(Operation.REVOKE)
DIGEST_S: Final = 2.0
"""How often a replica is digested, for others to be compared with."""


class BrokenInvariantError(Exception):
    """What must not happen has; it begins with the name of the invariant."""


def broken(invariant: str, what: str) -> NoReturn:
    """Raise BrokenInvariantError."""
    raise BrokenInvariantError(f"{invariant}: {what}")


class Oracle:
    """The watcher of one simulated cluster. It remembers what no node can forget."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.core = Mandates()
        self.revision = 0
        """The newest revision that any replica has come to."""
        self.changes: dict[int, Changes | None] = {0: ()}
        """revision -> what it changed; None where nobody could tell any more."""
        self.map: dict[str, bytes] = {}
        """key -> its record, as of ``revision``."""
        self.committed_index = 0
        # Position -> (command, result).
        self._applied: dict[int, tuple[bytes, bytes]] = {}
        # (session, sequence) -> its result, of commands that were applied.
        self._executed: dict[tuple[int, int], bytes] = {}
        # Up to where commands were looked at.
        self._position = 0
        # Index -> digest of a snapshot there.
        self._snapshots: dict[int, bytes] = {}
        # Index -> digest of a replica there.
        self._digests: dict[int, bytes] = {}
        self._digest_at = 0.0

    # -- consensus -----------------------------------------------------------------------------------------------------

    def observe(self, process: Process) -> None:
        """Look at a core, and at what it knows to be committed."""
        raft = process.node.raft
        self.core.observe(raft)
        if raft.role is Role.LEADER:
            self._note_leader(process)
        if raft.log.committed > self.committed_index:
            self._note_committed(process)

    def after_turn(self, process: Process) -> None:
        """Look at a process that has had a turn."""
        self.observe(process)
        self.core.observe_heard(process.node.raft, process.driver.ticks, process.driver.steward.heard)
        log = process.node.raft.log
        applied, durable = process.driver.applier.index, process.host.durable.last_index()
        if not applied <= min(log.committed, durable):
            broken(
                "durable before applied",
                f"{process.node_id} has applied {applied}, knows {log.committed} to be committed, and has {durable} on"
                " its disk",
            )
        self._compare_digest(process)

    def _note_leader(self, process: Process) -> None:
        """A leader counts for entries of its own term only; older ones follow with them (5.4.2)."""
        raft = process.node.raft
        term, committed = process.led
        if term == raft.term and committed < raft.log.committed and raft.log.term(raft.log.committed) != raft.term:
            broken(
                "commits in the own term",
                f"{process.node_id} leads term {raft.term} and counts entry {raft.log.committed} of term"
                f" {raft.log.term(raft.log.committed)} as committed",
            )
        process.led = (raft.term, raft.log.committed)

    def _note_committed(self, process: Process) -> None:
        """Somebody knows that more is committed: is it on the disks of a majority?"""
        raft = process.node.raft
        index = raft.log.committed
        if raft.role is Role.LEADER and not process.node.raft.log.unstable.snapshot:
            term = raft.log.term(index)
            membership = raft.tracker.membership
            hosts = self.simulation.hosts
            for voters in (membership.voters, membership.outgoing):
                holding = [node_id for node_id in voters if _holds(hosts[node_id], index, term)]
                if voters and 2 * len(holding) <= len(voters):
                    broken(
                        "majority before committed",
                        f"{process.node_id} takes entry {index} of term {term} for committed, which is on the disks of"
                        f" {sorted(holding)}, of the voters {sorted(voters)}",
                    )
        self.committed_index = index

    def committed(self, process: Process, entries: Sequence[Entry]) -> None:
        """A machine is given committed entries."""
        applier = process.driver.applier
        expected = applier._pending[-1].index + 1 if applier._pending else applier.index + 1
        for entry in entries:
            if entry.index != expected:
                broken("applied in order", f"{process.node_id} is to apply {entry.index}, and {expected} comes next")
            expected += 1

    def left(self, node_id: str) -> None:
        """The node has left, and its disk is thrown away: under its id comes another one."""
        self.core.replaced(node_id)

    # -- machines ------------------------------------------------------------------------------------------------------

    def applied(self, process: Process, commands: Sequence[bytes], results: Sequence[bytes]) -> None:
        """A replica has applied commands, and nothing since."""
        replica = process.replica
        position = replica.position - len(commands)
        applied = self._applied
        for command, result in zip(commands, results, strict=True):
            position += 1
            known = applied.get(position)
            if known is None:
                applied[position] = (command, result)
                self.simulation.counts["commands"] += 1
            elif known[0] != command or known[1] != result:
                what = "result" if known[0] == command else "command"
                broken("equal replicas", f"{process.node_id} has another {what} at position {position} than others")
        keyspace = replica.keyspace
        if keyspace.revision > self.revision:
            self._note_changes(process)
        self._note_executions(commands, results, position - len(commands))

    def _note_executions(self, commands: Sequence[bytes], results: Sequence[bytes], position: int) -> None:
        for command, result in zip(commands, results, strict=True):
            position += 1
            if position <= self._position or len(command) < HEADER_BYTES:
                continue
            self._position = position
            _, kind, _, session, sequence, _ = HEADER.unpack_from(command)
            if result[0] == Status.UNKNOWN_SESSION:
                self.simulation.counts["commands of evicted sessions"] += 1
            if kind != _MAP or result[0] != 0:
                continue
            if command[HEADER_BYTES] == _REVOKE:
                lease = REVOKE.unpack_from(command, HEADER_BYTES)[1]
                self.simulation.tenures.ended(lease, by_leader=not session)
            if not session:
                continue
            # A sequence that is known is answered with the result that is kept: the same bytes, its revision included.
            first = self._executed.setdefault((session, sequence), result)
            if first != result:
                broken("exactly once", f"command {sequence} of session {session} is applied again at {position}")

    def _note_changes(self, process: Process) -> None:
        keyspace = process.replica.keyspace
        try:
            for revision, changes in keyspace._changes(self.revision, sys.maxsize):
                self._note_change(process, revision, changes)
        except CompactedError:
            for revision in range(self.revision + 1, keyspace.revision + 1):
                self.changes[revision] = None
            self.map = {key: record for key, record in keyspace.scan()}  # noqa: C416  # records by key
            self.revision = keyspace.revision
            self.simulation.counts["changes that nobody saw"] += 1

    def _note_change(self, process: Process, revision: int, changes: Changes) -> None:
        if revision != self.revision + 1:
            broken("chained changes", f"{process.node_id} has revision {revision} after {self.revision}")
        if not changes:
            broken("chained changes", f"revision {revision} of {process.node_id} changes nothing")
        for key, record, previous in changes:
            if self.map.get(key) != previous:
                broken(
                    "chained changes", f"{process.node_id} has replaced another {key!r} at {revision} than there was"
                )
            created, modified, version, _, live = HEAD.unpack_from(record)
            if live:
                before = HEAD.unpack_from(previous) if previous is not None else (revision, 0, 0, 0, 1)
                if (created, modified, version) != (before[0], revision, before[2] + 1):
                    broken("chained changes", f"{key!r} is created, changed, of version {created, modified, version}")
                self.map[key] = record
            else:
                self.map.pop(key, None)
        self.changes[revision] = changes
        self.revision = revision
        self.simulation.counts["revisions"] += 1

    def compare_changes(self, who: str, revision: int, changes: Changes) -> None:
        """A replica tells what a revision changed."""
        known = self.changes.get(revision, ())
        if known is not None and known != changes:
            broken("equal changes", f"{who} has other changes at revision {revision} than others")

    def snapshot_seen(self, node_id: str, metadata: SnapshotMetadata, digest: bytes) -> None:
        """A snapshot was taken, or received."""
        if self._snapshots.setdefault(metadata.index, digest) != digest:
            broken("equal snapshots", f"{node_id} has another state at {metadata.index} than others")

    def _compare_digest(self, process: Process) -> None:
        applier = process.driver.applier
        if not applier.at_boundary:
            return
        index = applier.index
        known = self._digests.get(index)
        if known is None:
            if self.simulation.now < self._digest_at:
                return
            self._digest_at = self.simulation.now + DIGEST_S
            self._digests[index] = process.replica.digest()
            process.digested_index = index
        elif process.digested_index != index:
            process.digested_index = index
            self.simulation.counts["replicas compared"] += 1
            if process.replica.digest() != known:
                broken("equal replicas", f"{process.node_id} has another state at entry {index} than others")


def _holds(host: Any, index: int, term: int) -> bool:
    durable = host.durable
    if not host.initialized:
        return False
    if index <= durable.first_index() - 1:
        return True
    return bool(durable.first_index() <= index <= durable.last_index() and durable.term(index) == term)
