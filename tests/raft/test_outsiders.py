"""What non-members say counts for nothing: neither votes nor acknowledgements. And a leader votes for nobody."""

from __future__ import annotations

import dataclasses

import pytest
from logs import terms
from network import Peer, voters

from replikv.raft.entries import NO_NODE
from replikv.raft.membership import MemberRecord
from replikv.raft.messages import AppendEntriesResponse, RequestVote, RequestVoteResponse
from replikv.raft.roles import Role

MEMBERS = dataclasses.replace(
    voters("1", "2", "3"),
    learners=frozenset({"4"}),
    members={**voters("1", "2", "3").members, "4": MemberRecord("")},
)


def candidate(role: Role) -> Peer:
    peer = Peer(members=MEMBERS)
    peer.raft.become_follower(1, NO_NODE)
    if role is Role.PRE_CANDIDATE:
        peer.raft.become_pre_candidate()
    else:
        peer.raft.become_candidate()
    peer.take()
    return peer


def leader() -> Peer:
    peer = candidate(Role.CANDIDATE)
    peer.raft.become_leader()
    peer.take()
    return peer


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_25_votes_of_non_members_elect_nobody(role: Role) -> None:
    """Learners, strangers, and the same voter many times, are no majority of three."""
    peer, pre_vote = candidate(role), role is Role.PRE_CANDIDATE
    for sender in ("4", "stranger", "", "1", "4", "5", "6", "7"):
        peer.step(RequestVoteResponse(to="1", sender=sender, term=peer.raft.term + pre_vote, pre_vote=pre_vote))
        assert role is peer.raft.role


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_25_refusals_of_non_members_end_no_election(role: Role) -> None:
    """Nor do they lose it: one voter's vote still wins it."""
    peer = candidate(role)
    pre_vote = role is Role.PRE_CANDIDATE
    for sender in ("4", "stranger", "5", "6"):
        peer.step(RequestVoteResponse(to="1", sender=sender, term=peer.raft.term, reject=True, pre_vote=pre_vote))
        assert role is peer.raft.role
    for sender in ("1", "2"):
        peer.step(RequestVoteResponse(to="1", sender=sender, term=peer.raft.term + pre_vote, pre_vote=pre_vote))
    assert (Role.CANDIDATE if pre_vote else Role.LEADER) is peer.raft.role


@pytest.mark.parametrize("sender", ["2", "4", "stranger"])
@pytest.mark.parametrize("pre_vote", [False, True])
def test_25_a_leader_votes_for_nobody_in_its_term(sender: str, pre_vote: bool) -> None:
    """However long the log of the one that asks."""
    peer = leader()
    term = peer.raft.term
    (answer,) = (
        message
        for message in peer.step(
            RequestVote(to="1", sender=sender, term=term, last_index=99, last_term=term, pre_vote=pre_vote)
        )
        if isinstance(message, RequestVoteResponse)
    )
    assert answer.reject
    assert (Role.LEADER, term, "1") == (peer.raft.role, peer.raft.term, peer.raft.vote)


@pytest.mark.parametrize("sender", ["4", "stranger", "", "1"])
def test_25_acknowledgements_of_non_members_commit_nothing(sender: str) -> None:
    """What only they have is on no majority's disks."""
    peer = leader()
    index = peer.node.propose(b"data")
    peer.take()
    for _ in range(3):
        peer.step(AppendEntriesResponse(to="1", sender=sender, term=peer.raft.term, index=index))
    assert 0 == peer.raft.log.committed
    peer.step(AppendEntriesResponse(to="1", sender="2", term=peer.raft.term, index=index))
    assert index == peer.raft.log.committed


def test_25_a_vote_is_given_once_in_a_term() -> None:
    """Whoever asks, member or not."""
    peer = Peer(members=MEMBERS, log=terms(1), term=1)
    answers = [
        message.reject
        for sender in ("stranger", "2", "3", "stranger")
        for message in peer.step(RequestVote(to="1", sender=sender, term=2, last_index=1, last_term=1))
        if isinstance(message, RequestVoteResponse)
    ]
    assert [False, True, True, False] == answers
