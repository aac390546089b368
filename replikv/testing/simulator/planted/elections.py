"""Bugs of elections: terms, votes, campaigns, and what is durable of them."""

# ruff: noqa: ARG001, ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

from typing import Any

from replikv.raft import elections, leader, progress
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE, HardState
from replikv.raft.log import RaftLog
from replikv.raft.membership import Membership
from replikv.raft.messages import (
    AppendEntries,
    Heartbeat,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from replikv.raft.node import RawNode
from replikv.raft.progress import Tracker
from replikv.raft.quorum import VoteResult
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import CALM, bug

__all__: list[str] = []


@bug()
def acknowledge_before_sync(patch: Patch) -> None:
    """Votes and acknowledgements leave with everything else, before the write (figure 2; PySyncObj)."""

    def wrong(self: Raft, message: Message) -> None:
        right(self, message)
        for waiting in [waiting for waiting in self.messages_after_append if waiting.to != self.id]:
            self.messages_after_append.remove(waiting)
            self.messages.append(waiting)

    right = patch.set(Raft, "send", wrong)


@bug(seeds=30)
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


@bug(depositions=0.5, peers=5, election_heartbeats=5)
def forget_the_vote_at_step_down(patch: Patch) -> None:
    """A candidate that becomes a follower in its own term is free to vote again (akka-raft#56)."""

    def wrong(self: Raft, role: Role, term: int) -> None:
        lost = self.role is Role.CANDIDATE and role is Role.FOLLOWER and term == self.term
        right(self, role, term)
        if lost:
            self.vote = NO_NODE

    right = patch.set(Raft, "_enter", wrong)


@bug()
def save_no_term(patch: Patch) -> None:
    """Term and vote are saved with the next entries only."""
    patch.set(RawNode, "_vote_changed", lambda self: False)


@bug()
def elect_by_one_vote(patch: Patch) -> None:
    """Whoever has one vote has won (5.2)."""

    def wrong(voters: Any, outgoing: Any, votes: Any) -> VoteResult:
        return VoteResult.WON if any(votes.get(voter) for voter in voters) else VoteResult.PENDING

    patch.set(progress, "joint_vote_result", wrong)


@bug(seeds=30, depositions=0.5, partitions=0.5, loss=0.1, clients=8, think_s=0.1, peers=5)
def vote_for_any_log(patch: Patch) -> None:
    """Anybody's log is good enough to be elected (5.4.1)."""
    patch.set(RaftLog, "is_up_to_date", lambda self, index, term: True)


@bug(
    seeds=60,
    peers=5,
    spares=0,
    heartbeat_s=0.05,
    election_heartbeats=5,
    loss=0.3,
    duplication=0.5,
    late=0.3,
    depositions=0.5,
)
def count_a_stale_vote(patch: Patch) -> None:
    """An answer that a voter gave in an older term counts in this one (little-raft#44)."""

    def wrong(self: Raft, message: Message) -> bool:
        if isinstance(message, RequestVoteResponse) and 0 < message.term < self.term and not message.pre_vote:
            return True
        taken: bool = right(self, message)
        return taken

    right = patch.set(Raft, "_take_term", wrong)


@bug(peers=5, spares=0, heartbeat_s=0.05, election_heartbeats=5, loss=0.3, duplication=0.5, late=0.3, depositions=0.5)
def count_a_stale_pre_vote(patch: Patch) -> None:
    """What a node was told before an earlier campaign lets it begin the next one (etcd)."""

    def wrong(raft: Raft, message: RequestVoteResponse) -> bool | None:
        if message.pre_vote and not message.reject and raft.role is Role.PRE_CANDIDATE:
            message.term = raft.term + 1
        won: bool | None = right(raft, message)
        return won

    right = patch.set(elections, "record_vote", wrong)


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


@bug(CALM | {"peers": 3, "spares": 0, "transfers": 0.5, "loss": 0.3}, seeds=30)
def ignore_leaders_of_older_terms(patch: Patch) -> None:
    """A leader of an older term is not told the newer one: whoever knows that follows nobody (canonical/raft#279)."""
    patch.set(Raft, "_take_term", _take_no_older_term)


def _take_no_older_term(self: Raft, message: Message) -> bool:
    if message.term > self.term:
        return self._take_newer_term(message)
    return message.term == self.term
