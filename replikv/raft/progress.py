"""What a leader knows of each member, and what a candidate knows of the votes."""

from __future__ import annotations

import collections
import dataclasses
import enum

from replikv.errors import InternalError
from replikv.raft.membership import Membership
from replikv.raft.quorum import VoteResult, joint_committed_index, joint_vote_result

__all__ = ["Inflights", "Progress", "ProgressState", "Tracker"]


class ProgressState(enum.Enum):
    """How entries are sent to a member."""

    PROBE = "probe"
    """It is not known where the logs match: one message, then wait for the answer or a heartbeat's."""
    REPLICATE = "replicate"
    """The logs match: send ahead of the answers, as far as the window allows (thesis 10.2.1)."""
    SNAPSHOT = "snapshot"
    """A snapshot is on its way: send nothing until it has arrived or failed."""


class Inflights:
    """The window of messages with entries that were sent and not acknowledged.

    It is full with ``size`` messages, or with ``bytes_max`` bytes: the last message may overshoot these (None: no
    bound). Invariant: the indexes in it grow.
    """

    __slots__ = ("_bytes_max", "_size", "_window", "bytes")

    def __init__(self, size: int, bytes_max: int | None) -> None:
        self._size = size
        self._bytes_max = bytes_max
        # (index of the message's last entry, its bytes), oldest first.
        self._window: collections.deque[tuple[int, int]] = collections.deque()
        # The bytes in the window, added up.
        self.bytes = 0

    @property
    def count(self) -> int:
        """The number of messages in the window."""
        return len(self._window)

    def add(self, index: int, size: int) -> None:
        """A message of this size was sent; ``index`` is its last entry's. Raises InternalError when full."""
        if self.full():
            raise InternalError(f"sending entry {index} into a window full with {self.count} messages")
        self._window.append((index, size))
        self.bytes += size

    def free_le(self, index: int) -> None:
        """The entries up to the index were acknowledged."""
        while self._window and self._window[0][0] <= index:
            self.bytes -= self._window.popleft()[1]

    def full(self) -> bool:
        """Whether nothing more may be sent."""
        return len(self._window) >= self._size or (self._bytes_max is not None and self.bytes >= self._bytes_max)

    def reset(self) -> None:
        """Empty the window."""
        self._window.clear()
        self.bytes = 0


@dataclasses.dataclass(slots=True)
class Progress:
    """One member, as the leader sees it."""

    inflights: Inflights
    """What is on its way while the state is REPLICATE; empty otherwise."""
    match: int = 0
    """The highest index at which its log is known to match, durably. Never decreases within a term."""
    next: int = 1
    """The next index to send: match < next. While REPLICATE, what lies between is on its way."""
    state: ProgressState = ProgressState.PROBE
    pending_snapshot: int = 0
    """The index of the snapshot on its way while the state is SNAPSHOT, 0 otherwise."""
    recent_active: bool = False
    """Whether it was heard of since the last check of the quorum."""
    paused: bool = False
    """Whether the flow of AppendEntries has stopped until an answer: to a probe, or of a full window."""
    is_learner: bool = False

    def become_probe(self) -> None:
        """It is not known any more where the logs match; after a snapshot, try right behind that first."""
        # Whoever reports a failed snapshot clears pending_snapshot before.
        pending_snapshot = self.pending_snapshot if self.state is ProgressState.SNAPSHOT else 0
        self._reset(ProgressState.PROBE)
        self.next = max(self.match, pending_snapshot) + 1

    def become_replicate(self) -> None:
        """The logs match at ``match``."""
        self._reset(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """A snapshot at the index was sent."""
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1

    def sent_entries(self, count: int, size: int) -> None:
        """An AppendEntries with ``count`` entries of ``size`` bytes left; a count of 0 is an empty message.

        Raises InternalError while a snapshot is on its way, or when the window is full already.
        """
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size)
            self.paused = self.inflights.full()
        elif self.state is ProgressState.PROBE:
            self.paused = self.paused or count > 0
        else:
            raise InternalError("sending entries to a member that awaits a snapshot")

    def maybe_update(self, index: int) -> bool:
        """It acknowledged the index. Returns whether that is news; late answers are not."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def maybe_decrease_to(self, rejected: int, hint: int) -> bool:
        """It does not match at ``rejected``, but may at ``hint``. Returns whether ``next`` has moved back.

        A rejection that what is known by now contradicts is late, and ignored.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            return True
        if rejected != self.next - 1:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.paused = False
        return True

    def is_paused(self) -> bool:
        """Whether entries must wait for something to arrive first."""
        return self.paused or self.state is ProgressState.SNAPSHOT

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.pending_snapshot = 0
        self.inflights.reset()


class Tracker:
    """The members of one configuration: a leader's progress of each, a candidate's votes."""

    def __init__(
        self, membership: Membership, *, inflight_messages_max: int, inflight_bytes_max: int | None = None
    ) -> None:
        self._inflight_messages_max = inflight_messages_max
        self._inflight_bytes_max = inflight_bytes_max
        self.membership = Membership()
        # One for each of membership.ids, in their sorted order: whatever walks over it does so alike in every run.
        self.progress: dict[str, Progress] = {}
        # Answers to the running election: node id -> granted. May hold answers of nodes that are no voters: only
        # those of voters are counted.
        self.votes: dict[str, bool] = {}
        self.switch(membership, 1)

    # -- members -------------------------------------------------------------------------------------------------------

    def voters(self) -> list[str]:
        """The voters of both halves of the configuration, sorted."""
        return sorted(self.membership.voters | self.membership.outgoing)

    def is_singleton(self) -> bool:
        """Whether one voter decides alone."""
        return len(self.membership.voters) == 1 and not self.membership.outgoing

    def new_progress(self, node_id: str, last_index: int) -> Progress:
        """What is known of a member that was not heard of yet: try it with what follows the end of the own log."""
        return Progress(
            Inflights(self._inflight_messages_max, self._inflight_bytes_max),
            next=last_index + 1,
            is_learner=node_id in self.membership.learners,
        )

    def switch(self, membership: Membership, next_index: int) -> None:
        """Follow a change of the membership: who stays keeps its progress, who is new is tried with ``next_index``.

        A new member counts as heard of, lest the next check of the quorum finds it silent before it had a chance.
        """
        self.membership = membership
        known, self.progress = self.progress, {}
        for node_id in sorted(membership.ids):
            progress = known.get(node_id)
            if progress is None:
                progress = self.new_progress(node_id, next_index - 1)
                progress.recent_active = True
            progress.is_learner = node_id in membership.learners
            self.progress[node_id] = progress

    # -- acknowledgements ----------------------------------------------------------------------------------------------

    def committed_index(self) -> int:
        """The largest index that the quorum has acknowledged."""
        membership = self.membership
        return joint_committed_index(membership.voters, membership.outgoing, self._match)

    def quorum_active(self) -> bool:
        """Whether a quorum was heard of since ``recent_active`` was last cleared (thesis 6.2)."""
        active = {node_id: progress.recent_active for node_id, progress in self.progress.items()}
        return self._result_of(active) is VoteResult.WON

    # -- votes ---------------------------------------------------------------------------------------------------------

    def reset_votes(self) -> None:
        """A new election begins."""
        self.votes = {}

    def record_vote(self, node_id: str, granted: bool) -> None:
        """Note an answer; only a node's first one counts."""
        self.votes.setdefault(node_id, granted)

    def tally(self) -> VoteResult:
        """How the election stands."""
        return self._result_of(self.votes)

    def _result_of(self, votes: dict[str, bool]) -> VoteResult:
        return joint_vote_result(self.membership.voters, self.membership.outgoing, votes)

    def _match(self, node_id: str) -> int:
        return self.progress[node_id].match
