"""Pre-vote (thesis 9.6): etcd-io/raft's raft_test, the stories with it.

Every upstream story begins with all nodes in term 1.
"""

from __future__ import annotations

import dataclasses

import pytest
from network import Network, Peer, net, three

from replikv.raft.messages import Heartbeat, RequestVote, RequestVoteResponse
from replikv.raft.roles import Role

FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER


def three_in_term_1(**config: bool) -> Network:
    """Three voters in term 1."""
    return three(term=1, **config)


def test_a_node_with_a_smaller_term_completes_an_election() -> None:
    """A node that missed a term is part of the next quorum (TestNodeWithSmallerTermCanCompleteElection)."""
    network = three_in_term_1(pre_vote=True)
    network.isolate("3")
    network.campaign("1")
    assert (LEADER, 2) == network["1"].state
    network.campaign("3")
    network.campaign("2")
    assert [(FOLLOWER, 3), (LEADER, 3), (PRE_CANDIDATE, 1)] == network.states()

    network.recover()
    network.isolate("2")
    network.campaign("3")
    network.campaign("1")

    assert LEADER in {network["1"].raft.role, network["3"].raft.role}


def test_a_split_vote_ends() -> None:
    """Two that pass their pre-votes at once may split the vote; the next one wins (TestPreVoteWithSplitVote)."""
    network = three_in_term_1(pre_vote=True)
    network.campaign("1")
    network.isolate("1")
    network.campaign("2", "3")
    assert [(CANDIDATE, 3), (CANDIDATE, 3)] == network.states()[1:]

    network.campaign("2")

    assert [(LEADER, 4), (FOLLOWER, 4)] == network.states()[1:]


def test_a_stale_pre_vote_is_not_counted() -> None:
    """What was told for a campaign that another one has overtaken begins none: nobody was asked about that."""
    peer = Peer("1", term=1, pre_vote=True)
    peer.raft.campaign()
    peer.take()
    peer.step(RequestVote(to="1", sender="3", term=2, last_index=9, last_term=9))
    peer.raft.campaign()
    peer.take()
    assert (PRE_CANDIDATE, 2) == (peer.raft.role, peer.raft.term)

    peer.step(RequestVoteResponse(to="1", sender="2", term=2, pre_vote=True))

    assert (PRE_CANDIDATE, 2) == (peer.raft.role, peer.raft.term)
    peer.step(RequestVoteResponse(to="1", sender="2", term=3, pre_vote=True))
    assert (CANDIDATE, 3) == (peer.raft.role, peer.raft.term)


def test_a_pre_candidate_lets_another_pass_under_stickiness() -> None:
    """A node that gave up on its leader does not hold up others by it (TestPreVoteWithCheckQuorum)."""
    network = three_in_term_1(pre_vote=True, check_quorum=True)
    network.campaign("1")
    network.isolate("1")
    assert [LEADER, FOLLOWER, FOLLOWER] == network.roles()

    network.campaign("3")
    network.campaign("2")

    assert network["2"].raft.role is LEADER or network["3"].raft.role is FOLLOWER


def migrated() -> Network:
    """Node 3, without pre-vote, was cut off and has reached term 4 with a shorter log; now it has pre-vote too."""
    network = net({"pre_vote": True}, {"pre_vote": True}, {}, term=1)
    network.campaign("1")
    network.isolate("3")
    network.propose("1", b"some data")
    network.campaign("3")
    network.campaign("3")
    assert [(LEADER, 2), (FOLLOWER, 2), (CANDIDATE, 4)] == network.states()
    raft = network["3"].raft
    raft.config = dataclasses.replace(raft.config, pre_vote=True)
    network.recover()
    return network


def test_a_migrated_cluster_completes_an_election() -> None:
    """A high term with a short log does not block the others for ever (TestPreVoteMigrationCanCompleteElection)."""
    network = migrated()
    network.isolate("1")
    network.campaign("3")
    network.campaign("2")
    assert [FOLLOWER, PRE_CANDIDATE] == network.roles()[1:]

    network.campaign("3")
    network.campaign("2")

    assert network["2"].raft.role is LEADER or network["3"].raft.role is FOLLOWER


def test_a_stuck_pre_candidate_is_freed() -> None:
    """Its higher term answers the leader's heartbeat (TestPreVoteMigrationWithFreeStuckPreCandidate)."""
    network = migrated()
    for _ in range(2):
        network.campaign("3")
        assert [LEADER, FOLLOWER, PRE_CANDIDATE] == network.roles()

    network.settle(Heartbeat(to="3", sender="1", term=2))

    assert FOLLOWER is network["1"].raft.role
    assert network["1"].raft.term == network["3"].raft.term


def test_a_follower_that_rejoins_does_not_disrupt() -> None:
    """A leader survives the pre-vote of a node that was cut off (TestDisruptiveFollowerPreVote, etcd#9333)."""
    network = three_in_term_1(pre_vote=True, check_quorum=True)
    network.campaign("1")
    network.isolate("3")
    for _ in range(3):
        network.propose("1", b"somedata")
    network.recover()

    network.campaign("3")
    assert [(LEADER, 2), (FOLLOWER, 2), (PRE_CANDIDATE, 2)] == network.states()

    network.settle(Heartbeat(to="3", sender="1", term=2))
    assert LEADER is network["1"].raft.role


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_pre_vote_of_an_older_term_is_answered(pre_vote: bool) -> None:
    """With the voter's term, so that the asker catches up: silence could deadlock (canonical/raft#279)."""
    peer = Peer(term=5, pre_vote=pre_vote)

    sent = peer.step(RequestVote(to="1", sender="2", term=3, last_index=9, last_term=3, pre_vote=True))

    assert [RequestVoteResponse(to="2", sender="1", term=5, reject=True, pre_vote=True)] == sent


def test_a_rejected_pre_vote_brings_the_newer_term() -> None:
    """The asker follows the term of whoever refuses it, and may ask in it."""
    peer = Peer(term=2, pre_vote=True)
    peer.node.campaign()
    peer.take()
    assert (PRE_CANDIDATE, 2) == peer.state

    peer.step(RequestVoteResponse(to="1", sender="2", term=5, reject=True, pre_vote=True))

    assert (FOLLOWER, 5) == peer.state


def test_a_pre_vote_leaves_no_trace() -> None:
    """Asking changes neither term nor vote, on disk neither, however often it is done (thesis 9.6)."""
    peer = Peer(term=2, vote="3", pre_vote=True)

    peer.tick(100)

    assert (PRE_CANDIDATE, 2, "3") == (*peer.state, peer.raft.vote)
    assert (2, "3") == peer.storage.hard_state[:2]
