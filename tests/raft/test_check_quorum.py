"""A leader that hears no majority steps down, and who hears a leader does not vote against it (thesis 4.2.3, 6.2).

etcd-io/raft's raft_test, the stories of CheckQuorum. Network of a, b, c there is 1, 2, 3 here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from network import Network, Peer, net, only, three, voters

from replikv.raft.entries import NO_NODE, SnapshotMetadata
from replikv.raft.membership import ChangeKind, MemberChange, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from replikv.raft.roles import Role

FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER
ELECTION_TICKS = 10


def three_that_check(**config: Any) -> Network:
    """Three that stick to their leader; 2 waits a tick longer than its election timeout before it campaigns."""
    network = three(check_quorum=True, **config)
    network["2"].raft.randomized_election_ticks = ELECTION_TICKS + 1
    return network


def test_a_leader_with_a_quorum_leads_on() -> None:
    """Somebody else is heard of in each election timeout, the first one too (TestLeaderStepdownWhenQuorumActive)."""
    peer = Peer(check_quorum=True, election_ticks=5)
    peer.lead(acknowledged=False)

    for _ in range(6):
        peer.step(HeartbeatResponse(to="1", sender="2", term=1))
        peer.tick()

    assert LEADER is peer.raft.role


def test_a_leader_counts_itself_though_its_disk_is_slow() -> None:
    """It hears itself from its election on, and not only when its own write is durable."""
    peer = Peer(check_quorum=True, election_ticks=5)
    peer.node.campaign()
    peer.take()
    peer.lazy = True
    peer.step(RequestVoteResponse(to="1", sender="2", term=1))

    for _ in range(6):
        peer.step(HeartbeatResponse(to="1", sender="2", term=1))
        peer.tick()

    assert LEADER is peer.raft.role


def test_a_leader_without_a_quorum_steps_down() -> None:
    """Nobody was heard of in an election timeout (TestLeaderStepdownWhenQuorumLost)."""
    peer = Peer(check_quorum=True, election_ticks=5)
    peer.lead(acknowledged=False)

    peer.tick(6)

    assert (FOLLOWER, 1, NO_NODE) == (*peer.state, peer.raft.leader)


def test_a_learner_is_no_quorum() -> None:
    """That a learner answers keeps nobody in office."""
    membership = dataclasses.replace(voters(*"123"), learners=frozenset("4"))
    peer = Peer("1", membership, check_quorum=True, election_ticks=5)
    peer.lead(acknowledged=False)

    for _ in range(6):
        peer.step(HeartbeatResponse(to="1", sender="4", term=1))
        peer.tick()

    assert FOLLOWER is peer.raft.role


def test_both_halves_of_a_joint_configuration_are_needed() -> None:
    """A leader that hears a majority of one half only steps down (thesis 4.3)."""
    membership = dataclasses.replace(voters(*"123"), outgoing=frozenset("145"))
    peer = Peer("1", membership, check_quorum=True, election_ticks=5)
    peer.lead(acknowledged=False)

    for _ in range(6):
        for sender in "23":
            peer.step(HeartbeatResponse(to="1", sender=sender, term=1))
        peer.tick()

    assert FOLLOWER is peer.raft.role


def test_a_leader_is_superseded_when_it_is_silent() -> None:
    """Who heard from it within an election timeout refuses, later grants (TestLeaderSupersedingWithCheckQuorum)."""
    network = three_that_check()
    network["2"].tick(ELECTION_TICKS)
    network.campaign("1")
    assert [LEADER, FOLLOWER, FOLLOWER] == network.roles()
    network.campaign("3")
    assert CANDIDATE is network["3"].raft.role

    network["2"].raft.randomized_election_ticks = ELECTION_TICKS + 1
    network["2"].tick(ELECTION_TICKS)
    network.campaign("3")

    assert LEADER is network["3"].raft.role


def test_votes_are_free_before_the_first_leader() -> None:
    """A node that has just started knows no leader to stick to (TestLeaderElectionWithCheckQuorum)."""
    network = three_that_check()
    network["3"].raft.randomized_election_ticks = ELECTION_TICKS + 2
    network.campaign("1")
    assert [LEADER, FOLLOWER, FOLLOWER] == network.roles()

    for node_id, ticks in (("1", ELECTION_TICKS), ("2", ELECTION_TICKS)):
        network[node_id].raft.randomized_election_ticks = ELECTION_TICKS + 1
        for _ in range(ticks):
            network[node_id].node.tick()
    # What the old leader sent meanwhile is lost.
    network["1"].take()
    network.campaign("3")

    assert [FOLLOWER, FOLLOWER, LEADER] == network.roles()


def test_a_stuck_candidate_frees_itself() -> None:
    """It tells the leader its newer term, and may be elected then (TestFreeStuckCandidateWithCheckQuorum)."""
    network = three_that_check()
    network["2"].tick(ELECTION_TICKS)
    network.campaign("1")
    network.isolate("1")
    for term in (2, 3):
        network.campaign("3")
        assert [(FOLLOWER, 1), (CANDIDATE, term)] == network.states()[1:]

    network.recover()
    network.settle(Heartbeat(to="3", sender="1", term=1))
    assert [(FOLLOWER, 3), (CANDIDATE, 3)] == [network["1"].state, network["3"].state]

    network.campaign("3")
    assert LEADER is network["3"].raft.role


def test_who_is_no_voter_follows() -> None:
    """A node that is not in its own configuration never campaigns (TestNonPromotableVoterWithCheckQuorum)."""
    # Upstream takes the node out of its own configuration by hand.
    peers = {"1": Peer("1", "12", check_quorum=True), "2": Peer("2", "1", check_quorum=True)}
    network = Network(peers, checked=False)
    assert not network["2"].raft.promotable()
    network["2"].tick(ELECTION_TICKS)

    network.campaign("1")

    assert [LEADER, FOLLOWER] == network.roles()
    assert "1" == network["2"].raft.leader


def test_a_disruptive_follower_unseats_the_leader() -> None:
    """Without pre-vote, who times out beside a working leader costs a term, and no more (TestDisruptiveFollower)."""
    network = three_that_check(term=1)
    network.campaign("1")
    assert [(LEADER, 2), (FOLLOWER, 2), (FOLLOWER, 2)] == network.states()
    network["3"].raft.randomized_election_ticks = ELECTION_TICKS + 2
    for _ in range(ELECTION_TICKS + 2):
        network["3"].node.tick()
    network["3"].take()  # its requests are on their way
    assert [(LEADER, 2), (FOLLOWER, 2), (CANDIDATE, 3)] == network.states()

    network.settle(Heartbeat(to="3", sender="1", term=2))

    assert [(FOLLOWER, 3), (FOLLOWER, 2), (CANDIDATE, 3)] == network.states()


def test_a_new_member_has_an_election_timeout_to_answer() -> None:
    """A leader of one that adds a second does not step down before that could be heard of (TestAddNodeCheckQuorum)."""
    peer = Peer("1", "1", check_quorum=True)
    peer.lead()
    peer.tick(ELECTION_TICKS - 1)
    peer.node.propose_membership(MembershipChange((MemberChange(ChangeKind.ADD_VOTER, "2"),)))
    peer.take()
    assert voters(*"12").voters == peer.raft.membership.voters

    peer.tick()
    assert LEADER is peer.raft.role

    peer.tick(ELECTION_TICKS)
    assert FOLLOWER is peer.raft.role


@pytest.mark.parametrize("pre_vote", [False, True])
@pytest.mark.parametrize(
    ("elapsed", "transfer", "heard"),
    [
        pytest.param(0, False, False, id="a leader was just heard of"),
        pytest.param(ELECTION_TICKS - 1, False, False, id="a tick before the end"),
        pytest.param(ELECTION_TICKS, False, True, id="an election timeout ago"),
        pytest.param(0, True, True, id="the leader itself wants it"),
    ],
)
def test_the_rule_of_stickiness(pre_vote: bool, elapsed: int, transfer: bool, heard: bool) -> None:
    """Who heard from a leader within an election timeout passes over votes of a newer term: no answer, no new term."""
    peer = Peer(check_quorum=True, term=1)
    peer.step(Heartbeat(to="1", sender="2", term=1))
    peer.raft.election_elapsed = elapsed

    sent = peer.step(
        RequestVote(to="1", sender="3", term=2, last_index=9, last_term=1, pre_vote=pre_vote, transfer=transfer)
    )

    assert ([RequestVoteResponse(to="3", sender="1", term=2, pre_vote=pre_vote)] if heard else []) == sent
    assert (2 if heard and not pre_vote else 1) == peer.raft.term


def test_a_leader_sticks_to_itself() -> None:
    """A leader with a quorum passes over a candidate that has missed it."""
    peer = Peer(check_quorum=True)
    peer.lead()

    assert [] == peer.step(RequestVote(to="1", sender="3", term=2, last_index=9, last_term=1))
    assert (LEADER, 1) == peer.state


@pytest.mark.parametrize(
    "message",
    [
        AppendEntries(to="1", sender="2", term=1),
        Heartbeat(to="1", sender="2", term=1),
        InstallSnapshot(to="1", sender="2", term=1, snapshot=SnapshotMetadata(9, 1, voters(*"123"))),
    ],
    ids=["an append", "a heartbeat", "a snapshot"],
)
@pytest.mark.parametrize("config", [{"check_quorum": True}, {"pre_vote": True}], ids=["check-quorum", "pre-vote"])
def test_a_stale_leader_is_told_the_newer_term(message: Message, config: dict[str, Any]) -> None:
    """It cannot win back by itself who is in a newer term, so it has to step down."""
    peer = Peer(term=3, **config)

    assert [AppendEntriesResponse(to="2", sender="1", term=3)] == peer.step(message)

    leader = Peer("2", **config)
    leader.lead()
    leader.step(AppendEntriesResponse(to="2", sender="1", term=3))
    assert (FOLLOWER, 3) == leader.state


def test_a_bridge_does_not_keep_a_quorum_apart() -> None:
    """3 does not hear the leader, all others do: it does not unseat a leader that works (openraft#2080).

    When the old leader falls silent, another is elected within a few election timeouts.
    """
    network = net({}, {}, {}, {}, {}, check_quorum=True, pre_vote=True)
    network.campaign("1")
    network.cut("1", "3")
    for _ in range(3 * ELECTION_TICKS):
        for peer in network:
            peer.node.tick()
        network.settle()
    assert (LEADER, 1) == network["1"].state
    assert {1} == {peer.raft.term for peer in network}

    network.isolate("1")
    for _ in range(4 * ELECTION_TICKS):
        for peer in network:
            peer.node.tick()
        network.settle()
    assert FOLLOWER is not network["1"].raft.role or network["1"].raft.leader == NO_NODE
    assert 1 == sum(peer.raft.role is LEADER for peer in network)


def test_the_quorum_is_checked_with_answers_of_any_kind() -> None:
    """Acknowledgements and rejections show that somebody is there, as answers to heartbeats do."""
    peer = Peer(check_quorum=True, election_ticks=5)
    peer.lead()

    for _ in range(3):
        peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=1))
        sent = peer.tick(5)
        assert LEADER is peer.raft.role
        assert only(sent, Heartbeat)
