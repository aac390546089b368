"""Bugs to plant: what the simulator must notice, or it would prove nothing of the code without them.

Each is a function that is given a :class:`Patch` and changes the real code with it, with a sentence that says what is
wrong, under the decorator :func:`bug`. It says within how many seeds the simulator notices it, and which options make
that likely. :func:`planted` has one in the code for a while::

    with planted("vote-twice"):
        assert find("vote-twice", range(50)) is not None
"""

# ruff: noqa: ARG001, ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from replikv.machine.envelope import Status
from replikv.machine.replica import Replica
from replikv.machine.sessions import Sessions
from replikv.peer.driver import Driver
from replikv.raft import elections, progress, reading, replication
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE, HardState
from replikv.raft.log import RaftLog
from replikv.raft.membership import Membership
from replikv.raft.messages import Message, RequestVote
from replikv.raft.node import RawNode
from replikv.raft.quorum import VoteResult, committed_index
from replikv.raft.stable import MemoryStorage, Write
from replikv.storage import wal as wal_module
from replikv.storage.disk import DiskStorage
from replikv.storage.wal import Wal
from replikv.testing.simulated_disk import SimulatedDisk
from replikv.testing.simulator.options import FAULT_GROUPS, Options
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.simulation import Report, run

__all__ = ["CATALOGUE", "Bug", "bug", "find", "planted"]


@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """An entry of the catalogue."""

    name: str
    what: str
    seeds: int
    """Within how many seeds, from 1 on, it is noticed."""
    options: dict[str, str]
    """What is set otherwise than the seeds have it."""
    plant: Callable[[Patch], None]


CATALOGUE: Final[dict[str, Bug]] = {}
"""Name -> bug."""


def bug(
    options: dict[str, object] | None = None, /, *, seeds: int = 30, **others: object
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Enter a function in the catalogue, under its name with hyphens; its docstring says what is wrong."""

    def enter(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = plant.__name__.strip("_").replace("_", "-")
        described = {option: str(value) for option, value in {**(options or {}), **others}.items()}
        CATALOGUE[name] = Bug(name, (plant.__doc__ or "").strip(), seeds, described, plant)
        return plant

    return enter


@contextlib.contextmanager
def planted(name: str) -> Iterator[Bug]:
    """Have a bug in the code. Raises KeyError for one that is not in the catalogue."""
    found = CATALOGUE[name]
    with Patch() as patch:
        found.plant(patch)
        yield found


def find(name: str, seeds: Iterable[int] | None = None) -> Report | None:
    """The first run that notices the bug; None when none of the seeds does."""
    with planted(name) as found:
        for seed in seeds if seeds is not None else range(1, found.seeds + 1):
            report = run(Options.draw(seed).with_values(found.options))
            if report.failure is not None:
                return report
    return None


CALM: Final[dict[str, object]] = dict.fromkeys(sorted(set().union(*FAULT_GROUPS)), 0)
"""No faults at all: for bugs that need few of them, and a cluster that is well otherwise."""


# -- consensus ---------------------------------------------------------------------------------------------------------


@bug(seeds=100, peers=5, clients=8, think_s=0.1, partitions=1.5, crashes=0.5, message_bytes_max=100, bit_flips=0)
def commit_earlier_terms_by_counting(patch: Patch) -> None:
    """A leader commits entries of earlier terms as soon as a majority has them (paper, figure 8; logcabin#44)."""

    def wrong(raft: Raft) -> bool:
        index = raft.tracker.committed_index()
        if index <= raft.log.committed:
            return False
        raft.log.commit_to(index)
        return True

    patch.set(replication, "maybe_commit", wrong)


@bug()
def acknowledge_before_sync(patch: Patch) -> None:
    """Votes and acknowledgements leave with everything else, before the write (figure 2; PySyncObj)."""

    def wrong(self: Raft, message: Message) -> None:
        right(self, message)
        for waiting in [waiting for waiting in self.messages_after_append if waiting.to != self.id]:
            self.messages_after_append.remove(waiting)
            self.messages.append(waiting)

    right = patch.set(Raft, "send", wrong)


@bug()
def vote_twice(patch: Patch) -> None:
    """A vote is forgotten as soon as somebody else asks (5.2; akka-raft#56)."""

    def wrong(raft: Raft, message: RequestVote) -> None:
        if not message.pre_vote:
            raft.vote = raft.leader = NO_NODE
        right(raft, message)

    right = patch.set(elections, "handle_request", wrong)


@bug()
def forget_the_vote_at_restart(patch: Patch) -> None:
    """A restart keeps the term and loses the vote (PySyncObj)."""

    def wrong(self: MemoryStorage) -> tuple[HardState, Membership]:
        hard_state, membership = right(self)
        return hard_state._replace(vote=NO_NODE), membership

    right = patch.set(MemoryStorage, "initial_state", wrong)


@bug(peers=3, partitions=1, clients=8, think_s=0.1, reorder=True)
def skip_the_log_matching_check(patch: Patch) -> None:
    """A follower takes entries without looking at the term before them (5.3)."""

    def wrong(self: RaftLog, index: int, term: int, entries: Any, committed: int) -> int | None:
        if self.first_index() - 1 <= index <= self.last_index():
            term = self.term(index)
        found: int | None = right(self, index, term, entries, committed)
        return found

    right = patch.set(RaftLog, "maybe_append", wrong)


@bug(reorder=True, duplication=0.1)
def truncate_without_a_conflict(patch: Patch) -> None:
    """A late append cuts the log off behind itself, though nothing contradicts it (5.3; akka-raft#66)."""

    def wrong(self: RaftLog, entries: Any) -> int:
        # The first entry counts as one that conflicts, unless it is committed.
        return next((entry.index for entry in entries if entry.index > self.committed), 0)

    patch.set(RaftLog, "find_conflict", wrong)


@bug(seeds=100, clients=8, think_s=0.1, crashes=0.5, partitions=0.5)
def answer_reads_before_the_first_commit(patch: Patch) -> None:
    """A new leader does not wait for an entry of its own term (thesis 6.4, step 1; etcd#7331)."""
    patch.set(replication, "committed_in_own_term", lambda raft: True)


@bug(partitions=0.5, clients=8)
def answer_reads_without_asking(patch: Patch) -> None:
    """A leader answers reads at once, though it may be none any more (thesis 6.4)."""
    patch.set(
        reading, "add_read", lambda raft, asker, context: reading._answer(raft, asker, context, raft.log.committed)
    )


@bug(CALM | {"peers": 3, "depositions": 0.3, "late": 0.3, "drift": 0.3, "reads": 0.9, "clients": 8, "think_s": 0.1})
def confirm_reads_by_old_heartbeats(patch: Patch) -> None:
    """The answer to any heartbeat confirms all reads (etcd's TestReadOnlyDuplicateRequest)."""

    def wrong(raft: Raft, node_id: str, position: int) -> None:
        right(raft, node_id, raft.reads.position)

    right = patch.set(reading, "acknowledge", wrong)


@bug(seeds=60, changes=0.8, partitions=0.3, spares=2, peers=4, bit_flips=0)
def count_one_majority_in_a_joint_change(patch: Patch) -> None:
    """Commits in a joint configuration forget the outgoing voters (thesis 4.3)."""
    patch.set(progress, "joint_committed_index", lambda voters, outgoing, match: committed_index(voters, match))


@bug(seeds=60, changes=0.8, spares=2, bit_flips=0)
def let_a_learners_ack_count(patch: Patch) -> None:
    """Whoever gets the log counts for its majority."""

    def wrong(self: progress.Tracker) -> int:
        matches = sorted((one.match for one in self.progress.values()), reverse=True)
        return matches[len(self.membership.voters) // 2] if matches else 0

    patch.set(progress.Tracker, "committed_index", wrong)


@bug()
def elect_by_one_vote(patch: Patch) -> None:
    """Whoever has one vote has won (5.2)."""

    def wrong(voters: Any, outgoing: Any, votes: Any) -> VoteResult:
        return VoteResult.WON if any(votes.get(voter) for voter in voters) else VoteResult.PENDING

    patch.set(progress, "joint_vote_result", wrong)


@bug()
def vote_for_any_log(patch: Patch) -> None:
    """Anybody's log is good enough to be elected (5.4.1)."""
    patch.set(RaftLog, "is_up_to_date", lambda self, index, term: True)


@bug()
def save_no_term(patch: Patch) -> None:
    """Term and vote are saved with the next entries only."""
    patch.set(RawNode, "_vote_changed", lambda self: False)


# -- machines ----------------------------------------------------------------------------------------------------------


@bug(snapshot_log_entries=10, trailing_entries=1, partitions=0.5, crashes=0.3)
def drop_the_session_table_from_snapshots(patch: Patch) -> None:
    """Whoever is restored from a snapshot knows no session."""

    def wrong(self: Sessions) -> Iterator[bytes]:
        return iter([next(iter(right(self)))])

    right = patch.set(Sessions, "snapshot", wrong)


@bug(partitions=0.5, loss=0.1, clients=8, think_s=0.1)
def apply_a_retry_twice(patch: Patch) -> None:
    """A sequence that is known is applied again (raftos#2, ra#145)."""

    def wrong(
        self: Sessions,
        position: int,
        session_id: int,
        sequence: int,
        below: int,
        execute: Callable[[bytes, int], bytes],
        command: bytes,
        offset: int,
    ) -> bytes:
        session = self.table.get(session_id)
        if session is not None:
            session.results.pop(sequence, None)
        result: bytes = right(self, position, session_id, sequence, below, execute, command, offset)
        return result

    right = patch.set(Sessions, "answer", wrong)


@bug(seeds=60, history_revisions=10, snapshot_log_entries=8, clients=8, think_s=0.1)
def answer_by_what_is_pinned_here(patch: Patch) -> None:
    """What a command does depends on what the own process has not freed yet."""

    def wrong(self: Replica, command: bytes) -> bytes:
        pinned = self.keyspace.pinned_bytes > 0
        result: bytes = right(self, command)
        return bytes([Status.FAILED]) if pinned and self.position % 10 == 0 else result

    right = patch.set(Replica, "apply", wrong)


# -- storage -----------------------------------------------------------------------------------------------------------


@bug(crashes=0.5)
def skip_the_sync_of_the_log(patch: Patch) -> None:
    """A write to the log is told to be durable without a sync (etcd#14370)."""
    patch.set(wal_module, "sync", lambda file: None)


@bug(seeds=60, segment_bytes=2048, crashes=0.8, snapshot_log_entries=8)
def skip_a_directory_sync(patch: Patch) -> None:
    """Names of new segments and snapshots are not made durable."""
    patch.set(SimulatedDisk, "sync_directory", lambda self, path: None)


@bug(failing_syncs=0.8, crashes=0.3)
def retry_a_failed_sync(patch: Patch) -> None:
    """A write whose sync failed is simply tried again (fsyncgate)."""

    def wrong(self: Wal, writes: Any) -> None:
        for _ in range(3):
            try:
                right(self, writes)
            except Exception:  # the bug
                self._failure = None
                continue
            return
        right(self, writes)

    right = patch.set(Wal, "write", wrong)


@bug(snapshot_log_entries=8, trailing_entries=1, segment_bytes=2048, crashes=0.8)
def delete_segments_before_the_snapshot_is_durable(patch: Patch) -> None:
    """The log is cut when a snapshot is begun, not when it is durable (canonical/raft#199)."""

    def wrong(self: Driver) -> None:
        busy = self.taker.busy
        right(self)
        if self.taker.busy and not busy:
            self._storage._wal.release(self.applier.index)  # type: ignore[attr-defined]

    right = patch.set(Driver, "_begin_snapshot", wrong)


@bug(crashes=0.5)
def lose_the_hard_state(patch: Patch) -> None:
    """A write has its entries only: term and vote are in memory (PySyncObj)."""

    def wrong(self: DiskStorage, writes: Any) -> None:
        right(self, [Write(None, write.entries, write.snapshot) for write in writes])

    right = patch.set(DiskStorage, "write", wrong)
