"""Bugs of consensus: elections, the log, commits, reads, the membership."""

# ruff: noqa: ARG001, ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

import dataclasses
import math
from typing import Any

from replikv.peer.proposals import Proposals
from replikv.raft import changer, elections, leader, progress, reading, reconfiguration, replication
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE, EntryKind, HardState, SnapshotMetadata
from replikv.raft.lease import ReadLease
from replikv.raft.log import RaftLog
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from replikv.raft.node import RawNode
from replikv.raft.progress import Progress, ProgressState, Tracker
from replikv.raft.quorum import VoteResult, committed_index, vote_result
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage
from replikv.raft.unstable import Unstable
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import CALM, bug

__all__: list[str] = []


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


# -- elections ---------------------------------------------------------------------------------------------------------


@bug(depositions=0.5, peers=5, election_heartbeats=5)
def forget_the_vote_at_step_down(patch: Patch) -> None:
    """A candidate that becomes a follower in its own term is free to vote again (akka-raft#56)."""

    def wrong(self: Raft, role: Role, term: int) -> None:
        lost = self.role is Role.CANDIDATE and role is Role.FOLLOWER and term == self.term
        right(self, role, term)
        if lost:
            self.vote = NO_NODE

    right = patch.set(Raft, "_enter", wrong)


@bug(depositions=0.5, peers=5, spares=0, election_heartbeats=5, late=0.1, reorder=True)
def count_a_stale_vote(patch: Patch) -> None:
    """An answer that a voter gave in an older term counts in this one (little-raft#44)."""

    def wrong(self: Raft, message: Message) -> bool:
        if isinstance(message, RequestVoteResponse) and 0 < message.term < self.term and not message.pre_vote:
            return True
        taken: bool = right(self, message)
        return taken

    right = patch.set(Raft, "_take_term", wrong)


@bug(depositions=0.5)
def let_the_term_go_back(patch: Patch) -> None:
    """Whoever calls himself a leader is followed, in whatever term (nebula#2405)."""

    def wrong(self: Raft, message: Message) -> bool:
        if isinstance(message, AppendEntries | Heartbeat) and message.term < self.term:
            self.term, self.vote = message.term, NO_NODE
            self.leader = NO_NODE
            return self.role is not Role.LEADER
        taken: bool = right(self, message)
        return taken

    right = patch.set(Raft, "_take_term", wrong)


@bug(depositions=0.5, changes=0.8, spares=2)
def count_the_votes_of_learners(patch: Patch) -> None:
    """All members are asked for their votes, and whatever they say counts (akka-raft#49)."""
    patch.set(Tracker, "voters", lambda self: sorted(self.membership.ids))

    def wrong(self: Tracker, votes: dict[str, bool]) -> VoteResult:
        majority = len(self.membership.voters) // 2 + 1
        if sum(votes.values()) >= majority:
            return VoteResult.WON
        return VoteResult.LOST if len(votes) >= len(self.membership.ids) else VoteResult.PENDING

    patch.set(Tracker, "_result_of", wrong)


@bug(seeds=60, depositions=0.5, changes=0.8, spares=2, peers=4)
def forget_the_outgoing_voters_in_elections(patch: Patch) -> None:
    """Whoever has the votes of the new half of a joint configuration has won (thesis 4.3)."""
    patch.set(progress, "joint_vote_result", lambda voters, outgoing, votes: vote_result(voters, votes))


@bug(changes=0.8, spares=2, depositions=0.3)
def let_learners_campaign(patch: Patch) -> None:
    """Whoever is a member may stand for election (thesis 4.2.1)."""
    patch.set(elections, "promotable", lambda raft: raft.id in raft.tracker.progress)


@bug(partitions=0.5)
def campaign_without_asking_first(patch: Patch) -> None:
    """Whoever was cut off raises the term, and so deposes a leader whom all others hear (thesis 9.6; etcd#9333)."""

    def wrong(raft: Raft, *, pre_vote: bool = False, transfer: bool = False) -> None:
        right(raft, transfer=transfer)

    right = patch.set(elections, "_request_votes", wrong)


@bug(depositions=0.5)
def lead_on_without_a_quorum(patch: Patch) -> None:
    """A leader that hears nobody leads on until it is told of another one (thesis 6.2)."""
    patch.set(leader, "_still_leading", lambda raft: raft.tracker.membership.is_voter(raft.id))


@bug(CALM | {"peers": 3, "spares": 0, "transfers": 0.5, "loss": 0.3})
def ignore_leaders_of_older_terms(patch: Patch) -> None:
    """A leader of an older term is not told the newer one: whoever knows that follows nobody (canonical/raft#279)."""
    patch.set(Raft, "_take_term", _take_no_older_term)


def _take_no_older_term(self: Raft, message: Message) -> bool:
    if message.term > self.term:
        return self._take_newer_term(message)
    return message.term == self.term


@bug(write_s=0.5, crashes=1.5, partitions=0.5, clients=8, think_s=0.1)
def count_a_stale_pre_vote(patch: Patch) -> None:
    """What a node was told before an earlier campaign lets it begin the next one (etcd)."""

    def wrong(raft: Raft, message: RequestVoteResponse) -> bool | None:
        if message.pre_vote and not message.reject and raft.role is Role.PRE_CANDIDATE:
            message.term = raft.term + 1
        won: bool | None = right(raft, message)
        return won

    right = patch.set(elections, "record_vote", wrong)


# -- the log -----------------------------------------------------------------------------------------------------------


@bug(reorder=True, late=0.05, clients=8, think_s=0.1)
def truncate_on_a_reordered_append(patch: Patch) -> None:
    """A log that goes on behind a message is cut where that ends, also if a later one came before it (5.3)."""

    def wrong(self: RaftLog, index: int, term: int, entries: Any, committed: int) -> int | None:
        last: int | None = right(self, index, term, entries, committed)
        if last is not None and entries and self.committed < last < self.last_index():
            self.append(entries[-1:])
        return last

    right = patch.set(RaftLog, "maybe_append", wrong)


@bug(depositions=0.5, clients=8, think_s=0.1)
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


# -- replication -------------------------------------------------------------------------------------------------------


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


# -- reads -------------------------------------------------------------------------------------------------------------


@bug(CALM | {"peers": 3, "depositions": 0.3, "lease_reads": True, "reads": 0.9, "clients": 8, "think_s": 0.1})
def keep_the_lease_of_a_deposed_leader(patch: Patch) -> None:
    """A lease that was confirmed once does not end while nobody tells its leader (thesis 6.4.1; tikv#964)."""
    patch.set(ReadLease, "holds", lambda self, now: now is not None and self.expires > -math.inf)


@bug(peers=5, spares=0, partitions=1, reads=0.9, clients=8, think_s=0.1)
def confirm_reads_by_one_answer(patch: Patch) -> None:
    """Whoever is answered by anybody takes himself for the leader (thesis 6.4, step 3)."""

    def wrong(raft: Raft) -> int:
        return max((position for node, position in raft.reads.acknowledged.items() if node != raft.id), default=0)

    patch.set(reading, "_confirmed_position", wrong)


@bug(CALM | {"peers": 3, "depositions": 0.3, "late": 0.1, "reads": 0.9, "clients": 8, "think_s": 0.1})
def answer_reads_at_the_index_of_their_answer(patch: Patch) -> None:
    """A follower serves a read as soon as it is asked, by what it knows to be committed itself (thesis 6.4)."""

    def wrong(self: Raft, context: int) -> bool:
        if self.role is Role.LEADER:
            reading.add_read(self, self.id, context)
        else:
            reading._answer(self, self.id, context, self.log.committed)
        return True

    patch.set(Raft, "read_index", wrong)


# -- the membership ----------------------------------------------------------------------------------------------------


@bug(changes=4, spares=2, peers=5, write_s=0.05, bit_flips=0)
def let_a_second_change_in(patch: Patch) -> None:
    """The membership may be changed while another change is not applied yet (thesis 4.1)."""
    patch.set(reconfiguration, "check", lambda raft, change: None)


@bug(seeds=60, changes=4, spares=2, peers=5, depositions=0.5, write_s=0.05, bit_flips=0)
def change_before_the_first_commit_of_the_term(patch: Patch) -> None:
    """A new leader takes a change without knowing whether its log has one already (raft-dev, 2015; copycat#23)."""

    def wrong(self: Raft) -> None:
        right(self)
        self.pending_membership_index = 0

    right = patch.set(Raft, "become_leader", wrong)


@bug(changes=0.8, spares=2, bit_flips=0)
def change_several_voters_at_once(patch: Patch) -> None:
    """Any change takes the simple way, also one of several voters (thesis 4.3)."""

    def wrong(membership: Membership, change: MembershipChange, index: int) -> Membership:
        if membership.joint or not change.changes or change.only_updates:
            changed: Membership = right(membership, change, index)
            return changed
        after = changer._Sets(membership)
        after.take(change.changes)
        return after.membership(membership, change.changes, index)

    right = patch.set(changer, "apply_change", wrong)


@bug(changes=1.5, transfers=2, spares=2, peers=5, write_s=0.05, delay_s=0.02, bit_flips=0)
def leave_a_joint_configuration_at_once_or_never(patch: Patch) -> None:
    """Nobody leaves it but who leads when it is entered, and has no transfer under way (etcd#12136)."""

    def wrong(raft: Raft) -> None:
        if raft.membership_index == raft.log.applied:
            right(raft)

    right = patch.set(reconfiguration, "leave_if_due", wrong)


@bug(changes=0.8, spares=2, bit_flips=0)
def keep_counting_who_was_removed(patch: Patch) -> None:
    """A removed voter stays one for those who count (thesis 4.2)."""

    def wrong(self: Tracker, membership: Membership, next_index: int) -> None:
        removed = self.membership.voters - membership.ids
        right(self, dataclasses.replace(membership, voters=membership.voters | removed), next_index)

    right = patch.set(Tracker, "switch", wrong)


@bug(changes=0.8, spares=2, peers=3, bit_flips=0)
def lead_on_after_removal(patch: Patch) -> None:
    """A leader that is no voter any more neither hands over nor steps down (thesis 4.2.2)."""
    patch.set(reconfiguration, "_step_aside", lambda raft: None)
    patch.set(leader, "_still_leading", lambda raft: True)


@bug(changes=1, spares=2, crashes=0.5, snapshot_log_entries=8, peers=5, bit_flips=0)
def forget_the_outgoing_voters_at_restart(patch: Patch) -> None:
    """A peer that starts from a snapshot taken in a joint configuration knows the new half of it only."""

    def wrong(self: MemoryStorage) -> tuple[HardState, Membership]:
        hard_state, membership = right(self)
        if not membership.joint:
            return hard_state, membership
        left = membership.outgoing - membership.voters
        members = {one: record for one, record in membership.members.items() if one not in left}
        return hard_state, dataclasses.replace(
            membership, outgoing=frozenset(), learners_next=frozenset(), auto_leave=False, members=members
        )

    right = patch.set(MemoryStorage, "initial_state", wrong)
