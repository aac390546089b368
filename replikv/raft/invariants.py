"""What must hold in every state of a cluster, and in every change of state, however messages are lost and nodes crash.

:class:`Invariants` watches the cores of one cluster. Whoever runs them (a test, a simulator) tells it what happens:
``observe`` a core after each step, ``observe_sent`` each message that leaves, ``observe_applied`` what a state machine
gets, ``read_asked`` and ``read_answered`` its reads, ``restarted`` a node that lost what was not durable. It raises
InternalError, which begins with the invariant's name, as soon as one is broken. It remembers what was true of nodes
that are gone, so it sees what no node could.

Cheap: an observation costs O(members + entries that are new), so that it can follow each step of a long run.

======================  =============================================================================================
election safety         at most one leader in a term (paper 5.2)
one vote per term       a node tells no two candidates yes in the same term, crashes included (5.2)
leader append-only      a leader never overwrites or deletes entries of its own log (5.3)
log matching            the same (index, term) is the same entry behind the same entry, in every log (5.3)
leader completeness     what was committed before a leader's election is in its log (5.4.2)
state machine safety    no two nodes apply, or know as committed, different entries at an index (5.4.3)
linearizable reads      a read sees all that anybody knew to be committed when it was asked for (thesis 6.4)
monotonic positions     term, commit, applied and membership index never go back while a node runs, nor does what a
                        leader believes a member to have
durable before told     votes, acknowledgements and campaigns rest on what is on the sender's disk (figure 2)
true acknowledgements   what a leader believes a follower to have, that follower has, on disk
one configuration       all nodes that have applied the same index have the same membership (thesis 4)
one change at a time    a leader appends no change of the membership behind one that is not applied (thesis 4.1)
quorum overlap          majorities of neighbouring configurations meet (thesis 4.1, 4.3)
voters and learners     are disjoint; whoever campaigns or leads is a voter, or has just ceased to be one
======================  =============================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from itertools import combinations
from typing import Final

from replikv.errors import InternalError
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE, Entry, EntryKind
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntriesResponse, Message, RequestVote, RequestVoteResponse
from replikv.raft.progress import Progress
from replikv.raft.quorum import VoteResult, joint_vote_result
from replikv.raft.reads import ReadState
from replikv.raft.roles import Role
from replikv.raft.stable import StableStorage

__all__ = ["Invariants", "majorities_meet"]


_RESTING: Final = (AppendEntriesResponse, RequestVote, RequestVoteResponse)
"""The messages that rest on what is on the disk of their sender."""


@dataclasses.dataclass(slots=True)
class _Seen:
    """A core as of its last observation, since it was started."""

    # Everything that decides whether there is anything to look at.
    key: tuple[object, ...]
    core: Raft
    role: Role
    term: int
    vote: str
    leader: str
    committed: int
    applied: int
    membership: Membership
    membership_index: int
    # The terms of the log: terms[i] is that at index first + i. Below first everything was compacted. The last entry's
    # index and term are ``end``.
    first: int
    end: tuple[int, int]
    terms: list[int]


class Invariants:
    """The watcher of one cluster."""

    def __init__(self) -> None:
        # Node id -> what it was when it was last observed.
        self._seen: dict[str, _Seen] = {}
        # Term -> who led in it.
        self._leaders: dict[int, str] = {}
        # (node id, term) -> whom it has told yes, itself included.
        self._votes: dict[tuple[str, int], str] = {}
        # Node id -> the highest term that it has told anybody to be durable.
        self._told_term: dict[str, int] = {}
        # (index, term) -> (term of the entry before, the entry), of every entry that any log has ever held.
        self._entries: dict[tuple[int, int], tuple[int, Entry]] = {}
        # Index -> term of the entry that is committed there.
        self._committed: dict[int, int] = {}
        # Term -> the highest index that was seen committed by a node of that term.
        self._committed_in: dict[int, int] = {}
        # The highest index that was seen committed by anybody.
        self._committed_index = 0
        # (node id, context) of a read that waits -> what was committed when it was asked for.
        self._reads: dict[tuple[str, int], int] = {}
        # (leader, follower) -> its term, what it believes the follower to have, and the observation that fits.
        self._believed: dict[tuple[str, str], tuple[int, int, _Seen]] = {}
        # (leader, member) -> its progress, and the highest index that it was seen to have acknowledged.
        self._matches: dict[tuple[str, str], tuple[Progress, int]] = {}
        # Index of the change (or of the first snapshot) -> the membership from there on.
        self._memberships: dict[int, Membership] = {}

    # -- what is told --------------------------------------------------------------------------------------------------

    def observe(self, raft: Raft) -> None:
        """Check a core against what it was, and against all others."""
        seen = self._seen.get(raft.id)
        log = raft.log
        last_entry_id, first = log.last_entry_id(), log.first_index()
        key: tuple[object, ...] = (
            raft.role,
            raft.term,
            raft.vote,
            raft.leader,
            log.committed,
            log.applied,
            log.applying,
            last_entry_id,
            first,
            raft.membership_index,
        )
        if seen is None:
            self._check_start(raft)
        elif key != seen.key or raft.membership is not seen.membership:
            self._check_change(raft, seen)
        else:
            if raft.role is Role.LEADER:
                self._check_progress(raft)
            return
        self._check_state(raft)
        if seen is not None and seen.first == first and seen.end == last_entry_id:
            terms = seen.terms  # nothing was appended: what ends alike is alike
        else:
            terms = self._note_log(raft, seen)
        self._note_membership(raft, seen)
        self._note_committed(raft, seen)
        if raft.role is Role.LEADER:
            self._check_leader(raft, elected=seen is None or seen.role is not Role.LEADER or seen.term != raft.term)
            self._check_progress(raft)
        self._seen[raft.id] = _Seen(
            key,
            raft,
            raft.role,
            raft.term,
            raft.vote,
            raft.leader,
            log.committed,
            log.applied,
            raft.membership,
            raft.membership_index,
            first,
            last_entry_id,
            terms,
        )

    def observe_sent(self, message: Message, storage: StableStorage) -> None:
        """Check a message that leaves now against what is on its sender's disk."""
        if not isinstance(message, _RESTING):
            return
        hard_state, _ = storage.initial_state()
        sender = message.sender
        if isinstance(message, RequestVote):
            if message.pre_vote:
                return
            candidate = sender
        elif isinstance(message, RequestVoteResponse):
            if message.pre_vote or message.reject:
                return
            candidate = message.to
        else:
            candidate = NO_NODE
            if not message.reject and message.index > storage.last_index():
                _broken(
                    "durable before told",
                    f"{sender} acknowledges {message.index}, and {storage.last_index()} is on its disk",
                )
        if hard_state.term < message.term:
            _broken("durable before told", f"{sender} says term {message.term}, and {hard_state.term} is on its disk")
        self._told_term[sender] = max(self._told_term.get(sender, 0), message.term)
        if candidate == NO_NODE:
            return
        if hard_state.term == message.term and hard_state.vote != candidate:
            _broken("durable before told", f"{sender} votes for {candidate}, and its disk says {hard_state.vote!r}")
        self._note_vote(sender, message.term, candidate)

    def observe_applied(self, node_id: str, entries: Iterable[Entry]) -> None:
        """Check what a state machine is given."""
        for entry in entries:
            if self._committed.get(entry.index) != entry.term:
                _broken(
                    "state machine safety",
                    f"{node_id} applies {entry.index} of term {entry.term}, where"
                    f" {self._committed.get(entry.index)} is committed",
                )
            known = self._entries.get((entry.index, entry.term))
            if known is not None and known[1] != entry:
                _broken("state machine safety", f"{node_id} applies another entry {entry.index} than others")

    def read_asked(self, node_id: str, context: int) -> None:
        """A client of the node asks for a read now."""
        self._reads[node_id, context] = self._committed_index

    def read_answered(self, node_id: str, read: ReadState) -> bool:
        """Check what the node may answer it with; whether that read was asked for, and waited."""
        asked = self._reads.pop((node_id, read.context), None)
        if asked is not None and not asked <= read.index <= self._committed_index:
            _broken(
                "linearizable reads",
                f"{node_id} answers read {read.context} at {read.index}; {asked} was committed when it was asked for,"
                f" and {self._committed_index} is now",
            )
        return asked is not None

    def restarted(self, node_id: str) -> None:
        """The node has lost whatever was not durable, and its clients: it starts from its disk."""
        self._seen.pop(node_id, None)
        self._reads = {read: asked for read, asked in self._reads.items() if read[0] != node_id}

    def replaced(self, node_id: str) -> None:
        """The node was removed, and its disk thrown away: whoever joins under its id has promised nothing yet."""
        self.restarted(node_id)
        self._told_term.pop(node_id, None)
        self._votes = {vote: candidate for vote, candidate in self._votes.items() if vote[0] != node_id}

    # -- one core ------------------------------------------------------------------------------------------------------

    def _check_start(self, raft: Raft) -> None:
        if raft.term < self._told_term.get(raft.id, 0):
            _broken(
                "durable before told",
                f"{raft.id} starts in term {raft.term}, and has told {self._told_term[raft.id]}",
            )
        told = self._votes.get((raft.id, raft.term))
        if told is not None and told != raft.vote:
            _broken("one vote per term", f"{raft.id} starts with a vote for {raft.vote!r}, and has told {told} yes")

    def _check_change(self, raft: Raft, seen: _Seen) -> None:
        if raft.term < seen.term:
            _went_back("term", raft, seen.term, raft.term)
        if raft.log.committed < seen.committed:
            _went_back("commit index", raft, seen.committed, raft.log.committed)
        if raft.log.applied < seen.applied:
            _went_back("applied index", raft, seen.applied, raft.log.applied)
        if raft.membership_index < seen.membership_index:
            _went_back("membership index", raft, seen.membership_index, raft.membership_index)
        if seen.term != raft.term:
            return
        if seen.vote not in (NO_NODE, raft.vote):
            _broken(
                "one vote per term", f"{raft.id} turns its vote of term {raft.term} from {seen.vote} to {raft.vote!r}"
            )
        if NO_NODE not in (seen.leader, raft.leader) and seen.leader != raft.leader:
            _broken("election safety", f"{raft.id} knows two leaders of term {raft.term}: {seen.leader}, {raft.leader}")
        last = seen.first + len(seen.terms) - 1
        leads_on = seen.role is raft.role is Role.LEADER and last >= raft.log.first_index() and seen.terms
        if leads_on and not raft.log.matches(last, seen.terms[-1]):
            _broken("leader append-only", f"{raft.id} leads on without entry {last} of term {seen.terms[-1]}")

    def _check_state(self, raft: Raft) -> None:
        log = raft.log
        if not log.applied <= log.applying <= log.committed <= log.last_index():
            _broken("monotonic positions", f"of {raft.id} are out of order: {log}")
        membership = raft.membership
        if membership.learners & (membership.voters | membership.outgoing):
            _broken("voters and learners", f"{raft.id} knows members that are both: {membership}")
        if not membership.learners_next <= membership.outgoing:
            _broken("voters and learners", f"{raft.id} knows learners to be that do not vote yet: {membership}")
        if raft.tracker.progress.keys() != membership.ids:
            _broken(
                "voters and learners", f"{raft.id} follows others than its members: {sorted(raft.tracker.progress)}"
            )
        if raft.role in (Role.CANDIDATE, Role.PRE_CANDIDATE) and not membership.is_voter(raft.id):
            _broken("voters and learners", f"{raft.id} campaigns and is no voter")
        if (raft.role is Role.LEADER) is not (raft.leader == raft.id):
            _broken("election safety", f"{raft.id} is {raft.role} and takes {raft.leader!r} for the leader")

    # -- logs ----------------------------------------------------------------------------------------------------------

    def _note_log(self, raft: Raft, seen: _Seen | None) -> list[int]:
        """Check the entries that are new in the log; its terms."""
        log = raft.log
        first, last = log.first_index(), log.last_index()
        known = seen.terms if seen is not None and seen.first <= first else []
        if seen is not None and seen.first < first:
            del known[: first - seen.first]
        del known[last + 1 - first :]
        # Back to where the log is as it was: from there on it is checked already (by induction over log matching).
        while known and log.term(first + len(known) - 1) != known[-1]:
            known.pop()
        index = first + len(known)
        previous_term = log.term(index - 1)
        for entry in log.entries(index):
            mine = (previous_term, entry)
            other = self._entries.setdefault((entry.index, entry.term), mine)
            if other != mine:
                _broken(
                    "log matching",
                    f"{raft.id} has an entry {entry.index} of term {entry.term} behind term {previous_term},"
                    f" elsewhere it is another, or behind term {other[0]}",
                )
            if entry.term < previous_term or entry.term > raft.term:
                _broken("log matching", f"{raft.id}, of term {raft.term}, has term {entry.term} behind {previous_term}")
            if entry.kind == EntryKind.MEMBERSHIP and raft.role is Role.LEADER and entry.term == raft.term:
                _check_change_alone(raft, entry.index)
            known.append(entry.term)
            previous_term = entry.term
        return known

    def _note_committed(self, raft: Raft, seen: _Seen | None) -> None:
        log = raft.log
        start = max(log.first_index() - 1, 1) if seen is None else max(seen.committed + 1, log.first_index() - 1, 1)
        for index in range(start, log.committed + 1):
            term = log.term(index)
            if self._committed.setdefault(index, term) != term:
                _broken(
                    "state machine safety",
                    f"{raft.id} has committed {index} of term {term}, another node of term {self._committed[index]}",
                )
        self._committed_in[raft.term] = max(self._committed_in.get(raft.term, 0), log.committed)
        self._committed_index = max(self._committed_index, log.committed)

    # -- leaders -------------------------------------------------------------------------------------------------------

    def _note_vote(self, voter: str, term: int, candidate: str) -> None:
        told = self._votes.setdefault((voter, term), candidate)
        if told != candidate:
            _broken("one vote per term", f"{voter} tells {candidate} yes in term {term}, after {told}")

    def _check_leader(self, raft: Raft, *, elected: bool) -> None:
        leader = self._leaders.setdefault(raft.term, raft.id)
        if leader != raft.id:
            _broken("election safety", f"{leader} and {raft.id} lead in term {raft.term}")
        if elected:
            index = max((index for term, index in self._committed_in.items() if term < raft.term), default=0)
            if index >= raft.log.first_index() and not raft.log.matches(index, self._committed[index]):
                _broken("leader completeness", f"{raft.id} leads term {raft.term} without the committed entry {index}")

    def _check_progress(self, raft: Raft) -> None:
        """What the leader believes of the others, as far as they are in its term."""
        leader, term, seen, believed = raft.id, raft.term, self._seen, self._believed
        for node_id, progress in raft.tracker.progress.items():
            match = progress.match
            if not match < progress.next:
                _broken("true acknowledgements", f"{leader} sends {node_id} {progress.next}, below what it has")
            same, before = self._matches.get((leader, node_id), (None, 0))
            if same is not progress or match > before:
                self._matches[leader, node_id] = progress, match
            elif match < before:
                _broken(
                    "monotonic positions",
                    f"what {leader} believes {node_id} to have goes back from {before} to {match}",
                )
            follower = seen.get(node_id)
            if match == 0 or follower is None or follower.term != term:
                continue
            # Nothing to look at when neither has changed: a leader only appends.
            known = believed.get((leader, node_id))
            if known is not None and known[2] is follower and known[1] == match and known[0] == term:
                continue
            believed[leader, node_id] = (term, match, follower)
            core = follower.core
            if core.log.stable_index() < progress.match:
                _broken("true acknowledgements", f"{raft.id} believes {node_id} to have {progress.match} on its disk")
            if progress.match >= max(core.log.first_index(), raft.log.first_index()) and not core.log.matches(
                progress.match, raft.log.term(progress.match)
            ):
                _broken("true acknowledgements", f"{raft.id} believes {node_id} to match at {progress.match}")

    # -- configurations ------------------------------------------------------------------------------------------------

    def _note_membership(self, raft: Raft, seen: _Seen | None) -> None:
        if seen is not None and seen.membership is raft.membership and seen.membership_index == raft.membership_index:
            return
        index, membership = raft.membership_index, raft.membership
        before = max((known for known in self._memberships if known <= index), default=None)
        if before is None:
            self._memberships[index] = membership
        elif self._memberships[before] != membership:  # a snapshot repeats what the last change before it has made
            if before == index or max(self._memberships) > index:
                _broken("one configuration", f"{raft.id} has {membership} from {index} on, and others have not")
            if not majorities_meet(self._memberships[before], membership):
                _broken("quorum overlap", f"majorities may part from {index} on: {membership} comes after {before}")
            self._memberships[index] = membership


def _check_change_alone(raft: Raft, index: int) -> None:
    """What was applied when the leader appended it is so still: so nothing is noticed that was right then."""
    low = max(raft.log.applied + 1, raft.log.first_index())
    before = raft.log.slice(low, index) if low < index else []
    pending = [entry.index for entry in before if entry.kind == EntryKind.MEMBERSHIP]
    if pending:
        _broken(
            "one change at a time",
            f"{raft.id} changes the membership at {index}, and has not applied the change at {pending[0]}",
        )


def majorities_meet(one: Membership, other: Membership) -> bool:
    """Whether no quorum of one configuration can decide without a node that a quorum of the other needs."""
    return _majorities_meet(one.voters, one.outgoing, other.voters, other.outgoing)


@functools.lru_cache(maxsize=1024)
def _majorities_meet(
    voters: frozenset[str], outgoing: frozenset[str], other_voters: frozenset[str], other_outgoing: frozenset[str]
) -> bool:
    # Two quorums miss each other if and only if one lies in the complement of the other.
    ids = sorted(voters | outgoing)
    everybody = other_voters | other_outgoing
    for size in range(len(ids) + 1):
        for some in combinations(ids, size):
            if joint_vote_result(voters, outgoing, dict.fromkeys(some, True)) is not VoteResult.WON:
                continue
            rest = dict.fromkeys(everybody.difference(some), True)
            if joint_vote_result(other_voters, other_outgoing, rest) is VoteResult.WON:
                return False
    return True


def _went_back(what: str, raft: Raft, before: int, now: int) -> None:
    _broken("monotonic positions", f"the {what} of {raft.id} goes back from {before} to {now}")


def _broken(invariant: str, what: str) -> None:
    raise InternalError(f"{invariant}: {what}")
