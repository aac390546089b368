"""Who gets the log and has no say: etcd-io/raft's raft_test, the stories of learners (thesis 4.2.1)."""

from __future__ import annotations

from typing import Any

import pytest
from changes import change, everybody
from network import Network, Peer

from replikv.raft.membership import Membership
from replikv.raft.messages import (
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from replikv.raft.roles import Role

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER


def one_and_a_learner(**config: Any) -> Network:
    """Voter 1 and learner 2."""
    membership = Membership(voters=frozenset("1"), learners=frozenset("2"))
    return Network({node_id: Peer(node_id, membership, **config) for node_id in "12"})


def test_a_learner_never_campaigns() -> None:
    """However long it waits (TestLearnerElectionTimeout)."""
    network = one_and_a_learner()

    network["2"].tick(50)

    assert (FOLLOWER, 0) == network["2"].state


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_learner_does_not_campaign_when_asked_to(pre_vote: bool) -> None:
    """Neither by hand nor by the leader (TestLearnerCampaign)."""
    network = one_and_a_learner(pre_vote=pre_vote)
    network.campaign("2")
    assert FOLLOWER is network["2"].raft.role
    network.campaign("1")
    assert (LEADER, "1") == (network["1"].raft.role, network["2"].raft.leader)

    network.settle(TimeoutNow(to="2", sender="1", term=1))

    assert FOLLOWER is network["2"].raft.role


def test_a_promoted_learner_can_be_elected() -> None:
    """Once both have applied its promotion (TestLearnerPromotion)."""
    network = one_and_a_learner()
    network.campaign("1")
    assert [LEADER, FOLLOWER] == network.roles()

    network["1"].node.propose_membership(change("v2"))
    network.settle()
    network.beat("1")
    assert {frozenset("12")} == everybody(network)
    network.settle(*network["2"].tick(20))

    assert [FOLLOWER, LEADER] == network.roles()


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_learner_can_vote(pre_vote: bool) -> None:
    """The candidate may know it as a voter already (TestLearnerCanVote)."""
    peer = Peer("2", Membership(voters=frozenset("1"), learners=frozenset("2")))

    sent = peer.step(RequestVote(to="2", sender="1", term=2, last_term=11, last_index=11, pre_vote=pre_vote))

    assert [RequestVoteResponse(to="1", sender="2", term=2, pre_vote=pre_vote)] == sent


def test_who_is_no_member_can_vote() -> None:
    """A node that was added may not have learnt it, and its vote may be the one that is needed (thesis 4.2.2)."""
    peer = Peer("4", "")

    sent = peer.step(RequestVote(to="4", sender="1", term=2, last_term=1, last_index=1))

    assert [RequestVoteResponse(to="1", sender="4", term=2)] == sent


def test_the_votes_of_others_do_not_count() -> None:
    """Nor do those of learners, or of who is no member by the candidate's configuration (akka-raft#49)."""
    peer = Peer("1", Membership(voters=frozenset("123"), learners=frozenset("4")))
    peer.node.campaign()
    peer.take()

    for sender in "459":
        peer.step(RequestVoteResponse(to="1", sender=sender, term=1))
    assert CANDIDATE is peer.raft.role

    peer.step(RequestVoteResponse(to="1", sender="2", term=1))
    assert LEADER is peer.raft.role


def test_a_learner_gets_the_log() -> None:
    """And has no say in what is committed (TestLearnerLogReplication)."""
    network = one_and_a_learner()
    network.campaign("1")
    network.propose("1", b"somedata")
    assert [2, 2] == [peer.raft.log.committed for peer in network]
    assert 2 == network["1"].raft.tracker.progress["2"].match

    network.isolate("2")
    network.propose("1", b"more")
    assert [3, 2] == [peer.raft.log.committed for peer in network]
