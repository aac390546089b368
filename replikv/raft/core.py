"""Raft itself: what a node does when a message arrives, when time passes, and when it is asked.

Nothing here acts on the world. Messages to send, entries to persist and entries to apply pile up in fields, and
``RawNode`` (node.py) hands them out. How a leader is found is in elections.py, what only a leader does in leader.py,
how the membership changes in reconfiguration.py.

Durability: ``messages`` may leave at once. ``messages_after_append`` rest on the term, vote and entries as of when they
were made and leave only once those are on disk. Requests for votes are among them: a candidate that forgot its term in
a crash could lead the same term twice, and one that forgot the end of its log could win by it. Those to the node itself
(its own vote, the leader's acknowledgement of its own entries) take the same way, so that nothing is counted before it
is durable (thesis 10.2.1, 11.7.3).
"""

from __future__ import annotations

import dataclasses
from random import Random

from replikv.errors import ConfigurationError, InternalError
from replikv.raft import elections, leader, reading, reconfiguration, replication, transfer
from replikv.raft.entries import NO_NODE, Entry, EntryKind, HardState, SnapshotMetadata
from replikv.raft.lease import ReadLease
from replikv.raft.log import RaftLog
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)
from replikv.raft.progress import Tracker
from replikv.raft.reads import ReadQueue, ReadState
from replikv.raft.refusals import ProposalDroppedError
from replikv.raft.roles import Role, check_transition
from replikv.raft.stable import StableStorage

__all__ = ["Config", "ProposalDroppedError", "Raft"]

READ_HOPS_MAX = 3
"""Asker -> old leader -> leader is two; more means that peers take each other for the leader."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a core is told about itself. Times in ticks, sizes in bytes; None is unlimited."""

    node_id: str
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    pre_vote: bool = False
    """Ask before campaigning, so that a node cut off does not raise its term (thesis 9.6)."""
    check_quorum: bool = False
    """A leader that does not hear a majority for an election timeout steps down (thesis 6.2); whoever heard from a
    leader within one ignores candidates (thesis 4.2.3)."""
    read_lease: bool = False
    """Serve reads without asking while a majority has promised not to vote (thesis 6.4.1). Needs ``check_quorum``, and
    the same on every member: one without it makes no promise that outlives its restart.

    It rests on clocks (lease.py says what it assumes of them), and on being told the time: see ``RawNode.tell_time``.
    As long as the time is not told, or there is no lease, reads go by ReadIndex."""
    message_bytes_max: int | None = None
    applying_bytes_max: int | None = None
    uncommitted_bytes_max: int | None = None
    commit_rides_along: bool = False
    """Tell a new commit index with the next entries, or when ``RawNode.tell_commit`` is called; else at once."""
    inflight_messages_max: int = 256
    inflight_bytes_max: int | None = None
    applied: int = 0
    """The index that the state machine has applied already when the node starts: the newest snapshot's, or 0. The
    membership comes from that snapshot, and changes after it are applied again."""

    def __post_init__(self) -> None:
        if not self.node_id:
            raise ConfigurationError("node_id is empty: that stands for nobody")
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise ConfigurationError(
                f"election_ticks ({self.election_ticks}) must exceed heartbeat_ticks ({self.heartbeat_ticks}), and"
                " that 0: a leader has to be heard within an election timeout"
            )
        if self.inflight_messages_max < 1:
            raise ConfigurationError(
                f"inflight_messages_max is {self.inflight_messages_max}: nothing would ever be sent ahead"
            )
        if self.read_lease and not self.check_quorum:
            raise ConfigurationError("read_lease needs check_quorum: without it nobody is bound to the leader he hears")


class Raft:
    """One node's consensus state."""

    def __init__(self, config: Config, storage: StableStorage, random: Random) -> None:
        hard_state, membership = storage.initial_state()
        self.config = config
        self.id = config.node_id
        self.random = random
        self.log = RaftLog(storage, applying_bytes_max=config.applying_bytes_max)
        # The index at which the configuration in force was set: a change's, or a snapshot's.
        self.membership_index = storage.snapshot().index
        self.tracker = Tracker(
            membership,
            inflight_messages_max=config.inflight_messages_max,
            inflight_bytes_max=config.inflight_bytes_max,
        )
        # Persistent (paper, figure 2): never goes back; a vote is never changed within a term.
        self.term = hard_state.term
        self.vote = hard_state.vote
        if hard_state.commit > self.log.last_index():
            raise InternalError(f"stored commit {hard_state.commit} is beyond the log's end {self.log.last_index()}")
        # A snapshot is of committed state, and may be newer than the commit index, which is not saved for its own sake.
        self.log.commit_to(max(hard_state.commit, storage.snapshot().index))
        if config.applied:
            self.log.applied_to(config.applied, 0)

        self.role = Role.FOLLOWER
        # The leader of self.term, as far as known.
        self.leader = NO_NODE
        # Ticks since the leader was last heard (follower), the campaign began (candidate), or the quorum was last
        # checked (leader).
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        # Ticks since any leader was last answered, whatever has happened since, a restart included: it may hold a
        # lease on that answer.
        self.leader_silence = 0
        # The time of the input that is being taken, in ticks of the runtime's clock; None while it is not told.
        self.now: float | None = None
        # In [election_ticks, 2 * election_ticks - 1], drawn anew at each reset (paper 5.2).
        self.randomized_election_ticks = 0

        self.messages: list[Message] = []
        self.messages_after_append: list[Message] = []
        # Reads of this node that may be served once their index is applied.
        self.read_states: list[ReadState] = []

        # -- the leader's (volatile: set anew at each election) --
        # The node that leadership is being handed to.
        self.transferee = NO_NODE
        # A membership change may be proposed only when everything up to this index is applied: at most one is
        # under way (thesis 4.1). Conservative in a new leader, which cannot know what its log holds.
        self.pending_membership_index = 0
        # The end of the log at the election: what lies behind it are own entries.
        self.election_index = 0
        # Payload bytes of own entries not yet applied.
        self.uncommitted_bytes = 0
        self.reads = ReadQueue()
        self.lease = ReadLease(config.election_ticks)
        # Whether followers have yet to be told the commit index.
        self.commit_untold = False
        # A member needs a snapshot at this index or later: the one there is does not know it. 0: nobody does.
        self.snapshot_wanted_index = 0

        self.become_follower(self.term, NO_NODE)

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def hard_state(self) -> HardState:
        """What has to be durable."""
        return HardState(self.term, self.vote, self.log.committed)

    @property
    def membership(self) -> Membership:
        """The configuration in force."""
        return self.tracker.membership

    def promotable(self) -> bool:
        """Whether the node may campaign: a voter with a state to stand on."""
        return elections.promotable(self)

    def past_election_timeout(self) -> bool:
        """Whether the node has waited long enough."""
        return self.election_elapsed >= self.randomized_election_ticks

    # -- roles ---------------------------------------------------------------------------------------------------------

    def become_follower(self, term: int, leader_id: str) -> None:
        """Follow ``leader_id`` (or wait for somebody to follow) in ``term``."""
        self._enter(Role.FOLLOWER, term)
        self.leader = leader_id

    def become_pre_candidate(self) -> None:
        """Ask for pre-votes. Neither term nor vote changes: nothing has to be durable (thesis 9.6)."""
        check_transition(self.role, Role.PRE_CANDIDATE)
        self.tracker.reset_votes()
        self.role = Role.PRE_CANDIDATE
        self.leader = NO_NODE

    def become_candidate(self) -> None:
        """Campaign in the next term, with the own vote."""
        self._enter(Role.CANDIDATE, self.term + 1)
        self.vote = self.id

    def become_leader(self) -> None:
        """Lead, beginning with an empty entry: older entries commit only through one of this term (paper 5.4.2)."""
        self._enter(Role.LEADER, self.term)
        self.leader = self.id
        progress = self.tracker.progress[self.id]
        progress.become_replicate()
        progress.recent_active = True
        self.pending_membership_index = self.election_index = self.log.last_index()
        replication.append(self, b"", EntryKind.COMMANDS, limited=False)

    def _enter(self, role: Role, term: int) -> None:
        check_transition(self.role, role)
        if term < self.term:
            raise InternalError(f"the term of {self.id} would go back from {self.term} to {term}")
        self.role = role
        if term != self.term:
            self.term = term
            self.vote = NO_NODE
        self.leader = NO_NODE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_ticks = self.random.randint(
            self.config.election_ticks, 2 * self.config.election_ticks - 1
        )
        self.transferee = NO_NODE
        self.tracker.reset_votes()
        for node_id in self.tracker.progress:
            self.tracker.progress[node_id] = self.tracker.new_progress(node_id, self.log.last_index())
        # Only what is durable counts: own entries still on their way to disk are acknowledged by the writer.
        if (own := self.tracker.progress.get(self.id)) is not None:
            own.match = self.log.stable_index()
        self.pending_membership_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadQueue()
        self.lease = ReadLease(self.config.election_ticks)
        self.commit_untold = False
        self.snapshot_wanted_index = 0

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        self.election_elapsed += 1
        self.leader_silence += 1
        if self.role is Role.LEADER:
            leader.tick(self)
        elif self.promotable() and self.past_election_timeout():
            self.election_elapsed = 0
            self.campaign()

    def campaign(self, *, transfer: bool = False) -> None:
        """Try to become leader, now. Does nothing for a leader, a learner, or with a membership change unapplied; nor,
        with ``read_lease``, while a leader may hold a lease on this node's answers.

        ``transfer``: on the leader's request (thesis 3.10); skips the pre-vote and overrides leader stickiness.
        """
        elections.campaign(self, transfer=transfer)

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message, with this node as the sender and its term unless it carries its own."""
        if not message.sender:
            message.sender = self.id
        if not message.term and not isinstance(message, ReadIndex | ReadIndexResponse):
            message.term = self.term
        if isinstance(message, AppendEntriesResponse | RequestVote | RequestVoteResponse):
            self.messages_after_append.append(message)
        elif message.to == self.id:
            raise InternalError(f"{self.id} must not send itself {message!r}")
        else:
            self.messages.append(message)

    def step(self, message: Message) -> None:
        """Take a message of another node (or one of our own that has become durable)."""
        if message.term and not self._take_term(message):
            return
        if isinstance(message, RequestVote):
            elections.handle_request(self, message)
        elif self.role is Role.LEADER:
            leader.step(self, message)
        else:
            self._step_follower_or_candidate(message)

    def _take_term(self, message: Message) -> bool:
        """Follow a newer term, turn away an older one (paper 5.1). Whether the message counts."""
        if message.term > self.term:
            return self._take_newer_term(message)
        if message.term == self.term:
            return True
        if isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
            # A leader of an old term that cannot win the others back by itself (its messages are ignored) has to be
            # told the newer term, or a node stuck with a high term could neither follow nor be followed.
            if self.config.check_quorum or self.config.pre_vote:
                self.send(AppendEntriesResponse(to=message.sender))
        elif isinstance(message, RequestVote) and message.pre_vote:
            # Ignoring it could deadlock a cluster in which nodes ask at a term below one that is known already.
            self.send(RequestVoteResponse(to=message.sender, reject=True, pre_vote=True))
        return False

    def _take_newer_term(self, message: Message) -> bool:
        if isinstance(message, RequestVote):
            if not message.transfer and elections.sticks_to_leader(self):
                return False
            if message.pre_vote:
                return True  # the asker's future term is not ours
        if isinstance(message, RequestVoteResponse) and message.pre_vote and not message.reject:
            return True  # granted for a term that we have not entered yet
        from_leader = isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)
        self.become_follower(message.term, message.sender if from_leader else NO_NODE)
        return True

    def _step_follower_or_candidate(self, message: Message) -> None:
        if isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
            if self.role is not Role.FOLLOWER:
                self.become_follower(message.term, message.sender)
            elif self.leader not in (NO_NODE, message.sender):
                raise InternalError(f"two leaders in term {self.term}: {self.leader} and {message.sender}")
            self.election_elapsed = 0
            self.leader_silence = 0
            self.leader = message.sender
            if isinstance(message, AppendEntries):
                self._handle_append(message)
            elif isinstance(message, Heartbeat):
                self.log.commit_to(message.commit)
                self.send(HeartbeatResponse(to=message.sender, read_position=message.read_position))
            else:
                self._handle_snapshot(message)
        elif isinstance(message, RequestVoteResponse):
            if self.role is not Role.FOLLOWER and elections.record_vote(self, message):
                self.become_leader()
                replication.broadcast_append(self)
        elif isinstance(message, ReadIndex):
            self.forward_read(message)
        elif isinstance(message, ReadIndexResponse):
            self.read_states.append(ReadState(message.context, message.index))
        elif isinstance(message, TimeoutNow):
            if self.role is Role.FOLLOWER:
                self.campaign(transfer=True)
        elif isinstance(message, TransferLeadership):
            self.transfer_leadership(message.transferee)

    # -- replication, received -----------------------------------------------------------------------------------------

    def _handle_append(self, message: AppendEntries) -> None:
        response = AppendEntriesResponse(to=message.sender)
        if message.previous_index < self.log.committed:
            # What is committed matches; saying so moves the leader's idea of us forward. Where it does not, somebody
            # who had lost its state has voted or acknowledged: there are two histories, and none of them can be kept.
            self._check_committed(message)
            response.index = self.log.committed
        else:
            last = self.log.maybe_append(message.previous_index, message.previous_term, message.entries, message.commit)
            if last is not None:
                response.index = last
            else:
                # Our largest index with a term not above the one asked about is the first that may match: entries
                # of higher terms in between cannot be the leader's.
                hint = min(message.previous_index, self.log.last_index())
                response.index, response.reject = message.previous_index, True
                response.hint_index, response.hint_term = self.log.find_conflict_by_term(hint, message.previous_term)
        self.send(response)

    def _check_committed(self, message: AppendEntries) -> None:
        first_index, committed = self.log.first_index(), self.log.committed
        for entry in message.entries:
            if first_index <= entry.index <= committed and not self.log.matches(entry.index, entry.term):
                raise InternalError(
                    f"{message.sender} leads with another entry {entry.index} than the one that is committed here:"
                    " a member that had lost its state has voted"
                )

    def _handle_snapshot(self, message: InstallSnapshot) -> None:
        restored = self.restore(message.snapshot)
        index = self.log.last_index() if restored else self.log.committed
        self.send(AppendEntriesResponse(to=message.sender, index=index))

    def restore(self, snapshot: SnapshotMetadata) -> bool:
        """Take the snapshot in place of the log; False where the log is as good (paper, section 7)."""
        if snapshot.index <= self.log.committed:
            return False
        if self.role is not Role.FOLLOWER:
            raise InternalError(f"a {self.role} cannot take a snapshot")
        if self.id not in snapshot.membership.ids:
            return False  # a configuration that we are not part of: a snapshot for somebody else
        if self.log.matches(snapshot.index, snapshot.term):
            self.log.commit_to(snapshot.index)
            return False
        self.log.restore(snapshot)
        self.membership_index = snapshot.index
        self.tracker.switch(snapshot.membership, self.log.last_index())
        return True

    # -- requests ------------------------------------------------------------------------------------------------------

    def propose(self, data: bytes, kind: EntryKind = EntryKind.COMMANDS) -> int:
        """Append one entry as the leader; its index. Raises ProposalDroppedError when it was not taken."""
        if self.role is not Role.LEADER:
            raise ProposalDroppedError(f"{self.id} is {self.role}, not the leader")
        return leader.propose(self, data, kind)

    def propose_membership(self, change: MembershipChange) -> int:
        """Append a membership change as the leader; its index. At most one is under way (thesis 4.1)."""
        if self.role is not Role.LEADER:
            raise ProposalDroppedError(f"{self.id} is {self.role}, not the leader")
        reconfiguration.check(self, change)
        index = leader.propose(self, change.encode(), EntryKind.MEMBERSHIP)
        self.pending_membership_index = index
        return index

    def apply_membership(self, entry: Entry) -> Membership:
        """A committed membership entry is being applied, in its turn; the configuration from now on."""
        return reconfiguration.apply(self, entry)

    def transfer_leadership(self, to: str) -> bool:
        """Hand leadership over to the node, or ask the leader to. False: it is none that could take it, or no leader.

        Whether it succeeds shows only in who leads; see transfer.py.
        """
        if self.role is Role.LEADER:
            return transfer.begin(self, to)
        if self.role is not Role.FOLLOWER or self.leader == NO_NODE:
            return False
        self.send(TransferLeadership(to=self.leader, transferee=to))
        return True

    def read_index(self, context: int) -> bool:
        """Begin a linearizable read of this node; a ReadState with ``context`` tells the index. False: no leader."""
        if self.role is Role.LEADER:
            reading.add_read(self, self.id, context)
            return True
        return self.forward_read(ReadIndex(to=self.leader, sender=self.id, context=context))

    def forward_read(self, message: ReadIndex) -> bool:
        """Pass a read on to the leader, keeping who asked. False when there is none, or it went in circles."""
        if self.leader == NO_NODE or message.hops >= READ_HOPS_MAX:
            return False
        self.send(ReadIndex(to=self.leader, sender=message.sender, context=message.context, hops=message.hops + 1))
        return True

    def applied_to(self, index: int, size: int) -> None:
        """Entries up to ``index`` are applied; ``size`` is what they counted for (their sizes added up)."""
        self.log.applied_to(max(index, self.log.applied), size)
        reconfiguration.leave_if_due(self)
