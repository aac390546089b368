"""Bugs of the log, of its replication, and of what counts as committed."""

# ruff: noqa: ARG001, ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

from typing import Any

from replikv.peer.proposals import Proposals
from replikv.raft import leader, progress, reading, replication
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE, EntryKind, SnapshotMetadata
from replikv.raft.log import RaftLog
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
)
from replikv.raft.node import RawNode
from replikv.raft.progress import Progress, ProgressState
from replikv.raft.roles import Role
from replikv.raft.unstable import Unstable
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import bug

__all__: list[str] = []


@bug(seeds=40, peers=5, clients=8, think_s=0.1, partitions=1.5, crashes=0.5, message_bytes_max=100, bit_flips=0)
def commit_earlier_terms_by_counting(patch: Patch) -> None:
    """A leader commits entries of earlier terms as soon as a majority has them (paper, figure 8; logcabin#44)."""

    def wrong(raft: Raft) -> bool:
        index = raft.tracker.committed_index()
        if index <= raft.log.committed:
            return False
        raft.log.commit_to(index)
        return True

    patch.set(replication, "maybe_commit", wrong)


@bug(seeds=60, peers=3, partitions=1, depositions=0.5, clients=8, think_s=0.1, reorder=True)
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


@bug(reorder=True, late=0.05, clients=8, think_s=0.1)
def truncate_on_a_reordered_append(patch: Patch) -> None:
    """A log that goes on behind a message is cut where that ends, also if a later one came before it (5.3)."""

    def wrong(self: RaftLog, index: int, term: int, entries: Any, committed: int) -> int | None:
        last: int | None = right(self, index, term, entries, committed)
        if last is not None and entries and self.committed < last < self.last_index():
            self.append(entries[-1:])
        return last

    right = patch.set(RaftLog, "maybe_append", wrong)


@bug(seeds=30, depositions=0.5, clients=8, think_s=0.1)
def append_after_step_down(patch: Patch) -> None:
    """What a leader was asked for is appended a moment later, whether it leads by then or not (camunda#5360)."""
    waiting: dict[Raft, list[tuple[bytes, EntryKind]]] = {}

    def wrong(raft: Raft, data: bytes, kind: EntryKind) -> int:
        if kind != EntryKind.COMMANDS:
            index: int = right(raft, data, kind)
            return index
        waiting.setdefault(raft, []).append((data, kind))
        return raft.log.last_index() + 1

    def tick(self: RawNode) -> None:
        for data, kind in waiting.pop(self.raft, ()):
            replication.append(self.raft, data, kind, limited=False)
        if self.raft.role is Role.LEADER:
            replication.broadcast_append(self.raft)
        tock(self)

    right = patch.set(leader, "propose", wrong)
    tock = patch.set(RawNode, "tick", tick)


@bug(depositions=0.5, clients=8, think_s=0.1, write_s=0.05)
def write_nothing_twice(patch: Patch) -> None:
    """Entries that take the place of others which the writer has are not given to it (etcd: offsetInProgress)."""

    def wrong(self: Unstable, entries: Any) -> None:
        given = self.offset_in_progress
        right(self, entries)
        self.offset_in_progress = max(self.offset_in_progress, min(given, self.offset + len(self.entries)))

    right = patch.set(Unstable, "truncate_and_append", wrong)


@bug()
def count_half_as_a_majority(patch: Patch) -> None:
    """The median of what the voters have is taken one place too high (openraft#1802)."""

    def wrong(voters: Any, outgoing: Any, match: Any) -> int:
        acknowledged = sorted(
            (match(voter) if callable(match) else match.get(voter, 0) for voter in voters), reverse=True
        )
        return int(acknowledged[max(len(acknowledged) // 2 - 1, 0)])

    patch.set(progress, "joint_committed_index", wrong)


@bug(peers=1, spares=0)
def acknowledge_alone_before_the_sync(patch: Patch) -> None:
    """A cluster of one commits what it has only appended (etcd#14370)."""

    def wrong(raft: Raft, data: bytes, kind: EntryKind, *, limited: bool) -> int:
        index: int = right(raft, data, kind, limited=limited)
        if raft.tracker.is_singleton():
            raft.tracker.progress[raft.id].maybe_update(index)
            replication.maybe_commit(raft)
        return index

    right = patch.set(replication, "append", wrong)


@bug(loss=0.1)
def commit_beyond_what_matches(patch: Patch) -> None:
    """A heartbeat tells the commit index to whoever lacks the entries (figure 2; etcd's bcastHeartbeat)."""

    def wrong(raft: Raft) -> None:
        right(raft)
        for message in raft.messages:
            if isinstance(message, Heartbeat):
                message.commit = raft.log.committed

    right = patch.set(replication, "broadcast_heartbeat", wrong)


@bug(loss=0.05, late=0.02, reorder=True)
def let_the_commit_index_go_back(patch: Patch) -> None:
    """A follower takes over any commit index that it is told (PySyncObj#166)."""

    def wrong(self: RaftLog, index: int) -> None:
        self.committed = max(min(index, self.last_index()), self.applying)

    patch.set(RaftLog, "commit_to", wrong)


@bug(late=0.05, reorder=True, duplication=0.1)
def let_match_go_back(patch: Patch) -> None:
    """An acknowledgement that comes late takes back a newer one (PySyncObj#167)."""

    def wrong(self: Progress, index: int) -> bool:
        if index < self.match:
            self.match = index
        return bool(right(self, index))

    right = patch.set(Progress, "maybe_update", wrong)


@bug()
def take_a_rejection_for_an_acknowledgement(patch: Patch) -> None:
    """A leader looks at the index of an answer and not at what it says (5.3)."""

    def wrong(raft: Raft, known: Progress, message: AppendEntriesResponse) -> None:
        leader._handle_acknowledgement(raft, known, message)

    patch.set(leader, "_handle_reject", wrong)


@bug(loss=0.1, peers=3)
def send_again_for_proposals_only(patch: Patch) -> None:
    """An answer to a heartbeat has nothing sent again: what is lost stays lost while a probe waits (etcd#13951)."""

    def wrong(raft: Raft, message: Message) -> None:
        known = raft.tracker.progress.get(message.sender)
        if isinstance(message, HeartbeatResponse) and known is not None:
            known.recent_active = True
            reading.acknowledge(raft, message.sender, message.read_position)
        else:
            right(raft, message)

    right = patch.set(leader, "step", wrong)


@bug(loss=0.05, depositions=0.3, peers=3)
def probe_the_same_place_again(patch: Patch) -> None:
    """A rejection and its hint change nothing: a follower whose log has parted is never found (5.3)."""

    def wrong(self: Progress, rejected: int, hint: int) -> bool:
        self.paused = self.state is ProgressState.PROBE
        return False

    patch.set(Progress, "maybe_decrease_to", wrong)


@bug(snapshot_log_entries=8, trailing_entries=1, partitions=0.5, crashes=0.3, peers=3, clients=8, think_s=0.1)
def send_what_is_left_of_a_purged_log(patch: Patch) -> None:
    """Whoever needs entries that are compacted gets those that are left, and no snapshot (openraft)."""

    def wrong(raft: Raft, node_id: str, known: Progress) -> bool:
        first = raft.log.first_index()
        known.next = first
        raft.send(
            AppendEntries(
                to=node_id,
                previous_index=first - 1,
                previous_term=raft.log.term(first - 1),
                entries=tuple(raft.log.entries(first, raft.config.message_bytes_max)),
                commit=raft.log.committed,
            )
        )
        known.paused = True
        return True

    patch.set(replication, "_send_snapshot", wrong)


@bug(
    seeds=30,
    snapshot_log_entries=8,
    trailing_entries=1,
    depositions=0.5,
    loss=0.1,
    delay_s=0.05,
    jitter_s=0.05,
    clients=8,
    think_s=0.1,
    peers=5,
)
def take_an_older_snapshot(patch: Patch) -> None:
    """A snapshot takes the place of the log, however far that is (section 7)."""

    def wrong(self: Raft, snapshot: SnapshotMetadata) -> bool:
        if self.role is not Role.FOLLOWER or self.id not in snapshot.membership.ids:
            return False
        self.log.committed = min(self.log.committed, snapshot.index)
        self.log.restore(snapshot)
        self.membership_index = snapshot.index
        self.tracker.switch(snapshot.membership, self.log.last_index())
        return True

    patch.set(Raft, "restore", wrong)


@bug(write_s=0.05, clients=8, think_s=0.1)
def apply_before_it_is_durable(patch: Patch) -> None:
    """What is committed is applied, on the own disk or not (thesis 10.2.1)."""
    patch.set(RaftLog, "max_appliable_index", lambda self, allow_unstable: self.committed)


@bug(transfers=1, loss=0.1, partitions=0.2, peers=3, clients=8)
def drop_proposals_in_a_transfer(patch: Patch) -> None:
    """What is proposed during a transfer is dropped without a word, and nobody looks at the clock (etcd#8975)."""

    def wrong(raft: Raft, data: bytes, kind: EntryKind) -> int:
        if raft.transferee != NO_NODE:
            return raft.log.last_index()
        index: int = right(raft, data, kind)
        return index

    right = patch.set(leader, "propose", wrong)
    patch.set(Proposals, "hand_overdue_again", lambda self, before_ticks: None)
    patch.set(Proposals, "expire", lambda self, now, surely_not, why: None)
