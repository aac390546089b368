"""Several voters change at once, by way of a configuration in which both halves must agree (thesis 4.3)."""

from __future__ import annotations

import itertools

import pytest
from changes import change, everybody
from network import Network, Peer, three

from replikv.raft.entries import EntryKind
from replikv.raft.membership import Membership, MembershipChange, Transition
from replikv.raft.messages import (
    AppendEntriesResponse,
    RequestVoteResponse,
    TimeoutNow,
)
from replikv.raft.roles import Role

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER


def test_a_joint_configuration_is_left_by_itself() -> None:
    """The leader proposes it as soon as it has applied the entry into it (TestRawNodeJointAutoLeave)."""
    network = Network({node_id: Peer(node_id, "123") for node_id in "12345"})
    network.campaign("1")
    network["1"].node.propose_membership(change("v4 v5 r3"))
    network.settle()

    assert {frozenset("1245")} == everybody(network)
    assert not any(peer.raft.membership.joint for peer in network)
    assert [b"", change("v4 v5 r3").encode(), MembershipChange().encode()] == [
        entry.data for entry in network["1"].applied
    ]


def test_an_explicit_joint_configuration_stays() -> None:
    """Until it is left by a change without changes (TestRawNodeProposeAndConfChange, explicit)."""
    network = three()
    network.campaign("1")
    network["1"].node.propose_membership(change("r3", Transition.JOINT_EXPLICIT))
    network.settle()
    for _ in range(3):
        network.beat("1")
    assert [True] * 3 == [peer.raft.membership.joint for peer in network]

    network["1"].node.propose_membership(MembershipChange())
    network.settle()
    assert [False] * 3 == [peer.raft.membership.joint for peer in network]


def test_both_halves_commit_and_elect() -> None:
    """A majority of one half only is none (thesis 4.3)."""
    peer = Peer("1", Membership(voters=frozenset("123"), outgoing=frozenset("145")))
    peer.node.campaign()
    peer.take()
    for sender in "23":
        peer.step(RequestVoteResponse(to="1", sender=sender, term=1))
    assert CANDIDATE is peer.raft.role
    peer.step(RequestVoteResponse(to="1", sender="4", term=1))
    assert LEADER is peer.raft.role

    peer.take()
    for sender in "23":
        peer.step(AppendEntriesResponse(to="1", sender=sender, term=1, index=1))
    assert 0 == peer.raft.log.committed
    peer.step(AppendEntriesResponse(to="1", sender="5", term=1, index=1))
    assert 1 == peer.raft.log.committed


def test_a_new_leader_leaves_the_joint_configuration() -> None:
    """The one that entered it is gone before it could leave it (etcd#12136)."""
    network = three()
    network.campaign("1")
    network.ignore(TimeoutNow)
    network["1"].node.propose_membership(change("l2", Transition.JOINT_IMPLICIT))
    assert network["1"].node.transfer_leadership("3")
    network.settle()
    # All have applied the entry into it, and the transfer has kept the leader from leaving it.
    assert [True] * 3 == [peer.raft.membership.joint for peer in network]

    network.campaign("3")

    assert [False] * 3 == [peer.raft.membership.joint for peer in network]
    assert {frozenset("13")} == everybody(network)
    assert {frozenset("2")} == {peer.raft.membership.learners for peer in network}
    assert LEADER is network["3"].raft.role


def test_leaving_waits_for_a_transfer_that_fails() -> None:
    """It is tried again with the heartbeats: nothing else need ever be applied."""
    network = three()
    network.campaign("1")
    network.ignore(TimeoutNow)
    network["1"].node.propose_membership(change("l3", Transition.JOINT_IMPLICIT))
    assert network["1"].node.transfer_leadership("2")
    network.settle()
    assert network["1"].raft.membership.joint

    for _ in range(11):
        network["1"].node.tick()
        network.settle()

    assert not network["1"].raft.membership.joint


def test_leaving_needs_no_room() -> None:
    """The uncommitted tail is full: that must not keep the cluster in a joint configuration."""
    peer = Peer("1", "1", uncommitted_bytes_max=1)
    peer.lead()
    peer.node.propose_membership(change("l2", Transition.JOINT_IMPLICIT))
    peer.take()

    assert (False, 3) == (peer.raft.membership.joint, peer.raft.log.committed)


@pytest.mark.parametrize("lost", ["1", "2", "4"], ids=["the leader", "an old voter", "a new voter"])
@pytest.mark.parametrize("stage", ["appended", "joint"])
def test_three_voters_are_replaced_at_once(stage: str, lost: str) -> None:
    """Whoever is lost on the way, the change comes to its end, and nothing that was committed is lost (thesis 4.3)."""
    network = Network({node_id: Peer(node_id, "123", check_quorum=True, pre_vote=True) for node_id in "123456"})
    network.campaign("1")
    network.propose("1", b"before")
    if stage == "appended":
        network.ignore(AppendEntriesResponse)
    else:
        for new in "456":
            network.isolate(new)
    network["1"].node.propose_membership(change("v4 v5 v6 r1 r2 r3"))
    network.settle()
    assert (stage == "joint") is network["1"].raft.membership.joint

    network.recover()
    network.isolate(lost)
    for _ in range(80):
        for peer in network:
            network.settle(*peer.tick())

    members = [network[node_id] for node_id in "456" if node_id != lost]
    assert {frozenset("456")} == {peer.raft.membership.voters for peer in members}
    assert not any(peer.raft.membership.joint for peer in members)
    [leader] = [peer for peer in members if peer.raft.role is LEADER]
    network.propose(leader.id, b"after")
    assert [[b"before", b"after"]] * len(members) == [commands(peer) for peer in members]


def commands(peer: Peer) -> list[bytes]:
    """What the state machine got, without the empty entries and the changes of the members."""
    return [entry.data for entry in peer.applied if entry.kind == EntryKind.COMMANDS and entry.data]


def test_a_change_of_one_half_only_is_not_decided() -> None:
    """Neither half elects without the other while the configuration is joint."""
    network = Network({node_id: Peer(node_id, "123") for node_id in "12345"})
    network.campaign("1")
    network["1"].node.propose_membership(change("v4 v5 r2 r3", Transition.JOINT_EXPLICIT))
    network.settle()
    assert {(frozenset("145"), frozenset("123"))} == {
        (peer.raft.membership.voters, peer.raft.membership.outgoing) for peer in network
    }

    network.isolate("1")
    for old, new in itertools.product("23", "45"):
        network.cut(old, new)
    network.campaign("2")
    network.campaign("4")

    assert [LEADER, CANDIDATE, FOLLOWER, CANDIDATE, FOLLOWER] == network.roles()
