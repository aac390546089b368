"""Who goes, the leader among them, and what the others have to learn of it (thesis 4.2.2)."""

from __future__ import annotations

import pytest
from changes import change, entry_of, everybody
from logs import terms
from network import Network, Peer, accept, only, three

from replikv.raft.core import ProposalDroppedError
from replikv.raft.entries import NO_NODE, Entry
from replikv.raft.membership import Transition
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from replikv.raft.roles import Role

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER


def test_who_is_removed_is_told() -> None:
    """With the commit of its removal: nobody tells it later. By a heartbeat when its window is full, and then no more
    than it is known to have.
    """
    for paused, match, commit in ((False, 2, 2), (True, 2, 2), (True, 1, 1)):
        peer = Peer("1", "123", commit_rides_along=True)
        peer.lead()
        peer.node.propose_membership(change("r3"))
        appends = {message.to: message for message in only(peer.take(), AppendEntries)}
        peer.raft.tracker.progress["3"].match = match
        peer.raft.tracker.progress["3"].paused = paused

        sent = peer.step(accept(appends["2"]))

        [told] = [message for message in sent if message.to == "3"]
        assert isinstance(told, Heartbeat if paused else AppendEntries)
        assert commit == told.commit
        assert "3" not in peer.raft.tracker.progress


def test_a_candidate_that_is_removed_gives_up() -> None:
    """It would count votes of a configuration in which it has none."""
    peer = Peer("1", "123", log=[entry_of(change("r1"))], term=1)
    peer.node.campaign()
    peer.take()
    assert CANDIDATE is peer.raft.role

    peer.node.apply_membership(peer.log[0])

    assert (FOLLOWER, 2) == peer.state
    assert not peer.raft.promotable()


# -- the leader itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transition", [Transition.AUTO, Transition.JOINT_IMPLICIT])
def test_a_leader_that_is_removed_hands_over(transition: Transition) -> None:
    """It passes on that the change is committed, and has another campaign at once (thesis 4.2.2)."""
    network = three(check_quorum=True, pre_vote=True)
    network.campaign("1")
    network["1"].node.propose_membership(change("r1", transition))
    network.settle()
    # The successor does not ask who is no member; a heartbeat finds out about the newer term.
    network.settle(*network["1"].tick())

    assert {frozenset("23")} == everybody(network)
    assert FOLLOWER is network["1"].raft.role
    assert 1 == sum(network[node_id].raft.role is LEADER for node_id in "23")
    assert not network["1"].raft.promotable()


def test_a_leader_that_is_demoted_hands_over() -> None:
    """A learner does not lead."""
    network = three()
    network.campaign("1")
    network["1"].node.propose_membership(change("l1"))
    network.settle()

    assert FOLLOWER is network["1"].raft.role
    assert 1 == sum(network[node_id].raft.role is LEADER for node_id in "23")
    [leader] = [node_id for node_id in "23" if network[node_id].raft.role is LEADER]
    network.propose(leader, b"x")
    assert [[b"x"]] * 3 == [[entry.data for entry in peer.applied if entry.data == b"x"] for peer in network]


def test_a_removed_leader_commits_without_itself() -> None:
    """It serves until the successor has everything: its own acknowledgement does not count (thesis 4.2.2)."""
    peer = Peer("1", "123")
    peer.lead()
    index = peer.node.propose_membership(change("r1"))
    peer.node.propose(b"behind it")
    peer.take()
    peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=index))
    assert (LEADER, index) == (peer.raft.role, peer.raft.log.committed)
    assert "2" == peer.node.transferring
    with pytest.raises(ProposalDroppedError, match="no longer a voter"):
        peer.node.propose(b"refused")

    peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=index + 1))
    assert index == peer.raft.log.committed
    sent = peer.step(AppendEntriesResponse(to="1", sender="3", term=1, index=index + 1))

    assert index + 1 == peer.raft.log.committed
    assert {"2", "3"} == {message.to for message in only(sent, AppendEntries) if message.commit == index + 1}


@pytest.mark.parametrize("commit_rides_along", [False, True])
def test_a_removed_leader_asks_again_until_its_time_is_up(commit_rides_along: bool) -> None:
    """The successor may not have applied the removal yet, and so not campaign; after a timeout it steps down anyway."""
    peer = Peer("1", "12", commit_rides_along=commit_rides_along)
    peer.lead()
    peer.node.propose_membership(change("r1"))
    peer.take()
    sent = peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=2))
    kinds = [type(message) for message in sent]
    assert kinds.index(AppendEntries) < kinds.index(TimeoutNow)

    asked = only(peer.tick(9), TimeoutNow)
    assert (9, LEADER) == (len(asked), peer.raft.role)

    peer.tick()
    assert (FOLLOWER, NO_NODE) == (peer.raft.role, peer.raft.leader)
    assert [] == peer.tick(100)


def test_a_removed_leader_without_a_successor_steps_down() -> None:
    """Nobody was heard of: there is nobody to hand over to."""
    peer = Peer("1", "12")
    peer.lead()
    peer.node.propose_membership(change("r1"))
    peer.take()
    peer.node.step(AppendEntriesResponse(to="1", sender="2", term=1, index=2))
    peer.raft.tracker.progress["2"].recent_active = False

    peer.take()

    assert FOLLOWER is peer.raft.role


# -- what votes tell ---------------------------------------------------------------------------------------------------


def test_a_removed_node_does_not_hold_up_the_others() -> None:
    """It alone knows that it is removed, and its log is longer: it does not campaign, nor grant its vote.

    With its refusal it tells what is committed, so that its vote is not needed any more (raft-rs: commit by vote).
    """
    network = Network({node_id: Peer(node_id, "12") for node_id in "12"})
    network.campaign("1")
    network.hold(AppendEntries)
    network["1"].node.propose_membership(change("r1"))
    network.settle()
    # What it sends from now on is lost.
    network["1"].step(*network["2"].step(*(message for message in network.held if message.to == "2")))
    network["1"].raft.log.append([Entry(3, 1, b"behind it")])
    network["1"].take()
    network["1"].raft.become_follower(1, NO_NODE)
    assert (2, 1) == (network["1"].raft.log.committed, network["2"].raft.log.committed)
    assert (frozenset("2"), frozenset("12")) == tuple(network[node_id].raft.membership.voters for node_id in "12")

    network.recover()
    network.campaign("2")
    assert FOLLOWER is network["2"].raft.role  # it has learnt that its campaign was one of the configuration before
    assert frozenset("2") == network["2"].raft.membership.voters

    network.campaign("2")
    assert LEADER is network["2"].raft.role


@pytest.mark.parametrize(
    ("commit", "commit_term", "committed"),
    [
        pytest.param(2, 1, 2, id="the own entry"),
        pytest.param(2, 2, 1, id="another entry at that index"),
        pytest.param(9, 1, 1, id="beyond the own log"),
        pytest.param(0, 0, 1, id="nothing is told"),
    ],
)
def test_votes_tell_what_is_committed(commit: int, commit_term: int, committed: int) -> None:
    """A voter that refuses learns from the candidate, as that from its refusal: whatever the own log has as well."""
    request = RequestVote(to="1", sender="2", term=1, commit=commit, commit_term=commit_term)
    voter = Peer(log=terms(1, 1, 1), term=1, commit=1)
    [refusal] = only(voter.step(request), RequestVoteResponse)
    assert (True, committed, 1) == (refusal.reject, refusal.commit, refusal.commit_term)

    candidate = Peer(log=terms(1, 1, 1), term=1, commit=1)
    candidate.node.campaign()
    candidate.take()
    candidate.step(RequestVoteResponse(to="1", sender="2", term=2, reject=True, commit=commit, commit_term=commit_term))
    assert (CANDIDATE, committed) == (candidate.raft.role, candidate.raft.log.committed)


# -- who is left -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", ["2", "23"])
def test_who_is_left_needs_nobody_who_was_removed(removed: str) -> None:
    """Once a change is applied its commit is on disk, too: a restart knows it, and needs no vote of who is gone."""
    members = "1" + removed
    network = Network({node_id: Peer(node_id, members) for node_id in members})
    network.campaign("1")
    network["1"].node.propose_membership(change(" ".join(f"r{node_id}" for node_id in removed)))
    network.settle()
    network["1"].take()
    assert frozenset("1") == network["1"].raft.membership.voters

    restarted = Peer("1", storage=network["1"].storage)
    restarted.take()
    restarted.tick(20)

    assert (Role.LEADER, frozenset("1")) == (restarted.raft.role, restarted.raft.membership.voters)
