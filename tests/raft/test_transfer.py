"""Handing leadership over (thesis 3.10): etcd-io/raft's raft_test, the stories of LeaderTransfer.

Three voters, 1 leads unless said otherwise. After each story upstream checks who leads and that no transfer is left.
"""

from __future__ import annotations

from typing import Any

import pytest
from network import Network, Peer, accept, net, only, three, voters

from replikv.raft.core import ProposalDroppedError
from replikv.raft.entries import NO_NODE
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    HeartbeatResponse,
    InstallSnapshot,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)
from replikv.raft.progress import ProgressState
from replikv.raft.roles import Role

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER
ELECTION_TICKS, HEARTBEAT_TICKS = 10, 1


def led_by_1(**config: Any) -> Network:
    """Three, and 1 leads."""
    network = three(**config)
    network.campaign("1")
    return network


def transfer(network: Network, to: str, *, at: str = "1") -> bool:
    """Ask a node to hand over, and settle."""
    taken = network[at].node.transfer_leadership(to)
    network.settle()
    return taken


def pending(to: str = "3") -> Network:
    """A transfer to an isolated node has begun."""
    network = led_by_1()
    network.isolate(to)
    assert transfer(network, to)
    assert to == network["1"].node.transferring
    return network


def leads(network: Network, node_id: str) -> None:
    """The node leads, the others follow it, and no transfer is left."""
    assert [LEADER if peer.id == node_id else FOLLOWER for peer in network] == network.roles()
    assert {NO_NODE} == {peer.node.transferring for peer in network}
    assert {node_id} == {peer.raft.leader for peer in network}


# -- success -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["1", "2", "3"])
def test_to_a_node_that_is_up_to_date(at: str) -> None:
    """At once, and back, asked at the leader or at a follower (...ToUpToDateNode, ...ToUpToDateNodeFromFollower).

    Upstream proposes at 1 in between, which forwards to 2; here the core forwards nothing.
    """
    network = led_by_1()

    assert transfer(network, "2", at=at)
    leads(network, "2")

    network.propose("2", b"")
    assert transfer(network, "1", at=at)
    leads(network, "1")


@pytest.mark.parametrize("pre_vote", [False, True])
def test_with_stickiness(pre_vote: bool) -> None:
    """The leader's own wish overrides leader stickiness, and no pre-vote is asked for (...WithCheckQuorum)."""
    network = led_by_1(check_quorum=True, pre_vote=pre_vote)
    for _ in range(3):
        network["1"].node.tick()
        network.settle()
    del network.sent[:]

    assert transfer(network, "2")

    leads(network, "2")
    assert [(False, True)] * 2 == [(message.pre_vote, message.transfer) for message in only(network.sent, RequestVote)]
    assert transfer(network, "1", at="2")
    leads(network, "1")


def test_to_a_slow_follower() -> None:
    """It is brought up to date first, and told to campaign then (...ToSlowFollower)."""
    network = led_by_1()
    network.isolate("3")
    network.propose("1", b"")
    network.recover()
    assert 1 == network["1"].raft.tracker.progress["3"].match
    del network.sent[:]

    assert transfer(network, "3")

    leads(network, "3")
    to_3 = [type(message) for message in network.sent if message.sender == "1" and message.to == "3"]
    assert to_3.index(AppendEntries) < to_3.index(TimeoutNow)


def test_after_a_snapshot() -> None:
    """A successor that needs a snapshot campaigns after it has taken that (...AfterSnapshot)."""
    network = led_by_1()
    network.isolate("3")
    network.propose("1", b"")
    storage = network["1"].storage
    storage.record_snapshot(storage.snapshot()._replace(index=2, term=1, membership=voters(*"123")))
    storage.compact(2)
    network.recover()
    assert 1 == network["1"].raft.tracker.progress["3"].match

    network.hold(InstallSnapshot)
    transfer(network, "3")
    network.beat("1")
    # The first probe is refused, and then a snapshot is on its way.
    assert (LEADER, "3") == (network["1"].raft.role, network["1"].node.transferring)
    assert ProgressState.SNAPSHOT is network["1"].raft.tracker.progress["3"].state
    network["3"].lazy = True
    network.settle(*network.held)
    assert LEADER is network["1"].raft.role  # taken, and not durable yet

    network["3"].lazy = False
    network.settle(*network["3"].persist())
    leads(network, "3")


def test_the_successor_campaigns_though_another_was_asked_first() -> None:
    """A second request in another direction takes the place of the first (...SecondTransferToAnotherNode)."""
    network = pending()

    assert transfer(network, "2")

    leads_of_two = [network[node_id].raft.role for node_id in "12"]
    assert [FOLLOWER, LEADER] == leads_of_two
    assert NO_NODE == network["1"].node.transferring


# -- nothing to do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["1", "4"], ids=["itself", "nobody"])
@pytest.mark.parametrize("at", ["1", "2"])
def test_to_nobody_else(to: str, at: str) -> None:
    """The leader itself, or who is no member, is no successor (...ToSelf, ...ToNonExistingNode)."""
    network = led_by_1()

    assert (at != "1") == transfer(network, to, at=at)

    leads(network, "1")


def test_to_a_learner() -> None:
    """It cannot be elected, so it is not asked (raft-rs: TestLeaderTransferToLearner)."""
    membership = Membership(voters=frozenset("12"), learners=frozenset("3"))
    network = Network({node_id: Peer(node_id, membership) for node_id in "123"})
    network.campaign("1")

    assert not transfer(network, "3")

    leads(network, "1")


def test_without_a_leader_there_is_nobody_to_ask() -> None:
    """Neither a follower of nobody nor a candidate passes it on."""
    peer = Peer()
    assert not peer.node.transfer_leadership("2")
    peer.node.campaign()
    peer.take()
    assert not peer.node.transfer_leadership("2")

    assert [] == peer.step(TransferLeadership(to="1", sender="3", term=1, transferee="2"))


def test_a_request_of_an_old_term_is_passed_over() -> None:
    """It was meant for a leader that was."""
    network = led_by_1()
    network.campaign("2")

    network.settle(TransferLeadership(to="2", sender="3", term=1, transferee="3"))

    leads(network, "2")


# -- how it ends without success ---------------------------------------------------------------------------------------


def test_it_is_given_up_after_an_election_timeout() -> None:
    """Until then it is pending (...Timeout)."""
    network = pending()
    for _ in range(HEARTBEAT_TICKS):
        network["1"].node.tick()
    assert "3" == network["1"].node.transferring

    for _ in range(ELECTION_TICKS - HEARTBEAT_TICKS):
        network["1"].node.tick()

    assert (LEADER, NO_NODE) == (network["1"].raft.role, network["1"].node.transferring)


def test_it_has_a_whole_election_timeout() -> None:
    """However long ago the leader last looked for its quorum."""
    network = three()
    network.campaign("1")
    network.isolate("3")
    for _ in range(ELECTION_TICKS - 1):
        network["1"].node.tick()
    transfer(network, "3")

    for _ in range(ELECTION_TICKS - 1):
        network["1"].node.tick()
        assert "3" == network["1"].node.transferring

    network["1"].node.tick()
    assert NO_NODE == network["1"].node.transferring


def test_asking_again_gives_no_more_time() -> None:
    """A second request for the same node changes nothing (...SecondTransferToSameNode)."""
    network = pending()
    for _ in range(HEARTBEAT_TICKS):
        network["1"].node.tick()
    assert transfer(network, "3")

    for _ in range(ELECTION_TICKS - HEARTBEAT_TICKS):
        network["1"].node.tick()

    assert (LEADER, NO_NODE) == (network["1"].raft.role, network["1"].node.transferring)


def test_proposals_are_refused_meanwhile() -> None:
    """There must be an end to what the successor lacks; the error says why (...IgnoreProposal)."""
    network = pending()
    change = MembershipChange((MemberChange(ChangeKind.REMOVE, "2"),))

    with pytest.raises(ProposalDroppedError, match="handing leadership over to 3"):
        network["1"].node.propose(b"")
    with pytest.raises(ProposalDroppedError, match="handing leadership over to 3"):
        network["1"].node.propose_membership(change)

    assert 1 == network["1"].raft.tracker.progress["1"].match
    for _ in range(ELECTION_TICKS):
        network["1"].node.tick()
    network.propose("1", b"")
    assert 2 == network["1"].raft.log.committed


def test_a_newer_term_ends_it() -> None:
    """Somebody else was elected meanwhile (...ReceiveHigherTermVote)."""
    network = pending()

    network.campaign("2")

    assert [FOLLOWER, LEADER] == network.roles()[:2]
    assert ("2", NO_NODE) == (network["1"].raft.leader, network["1"].node.transferring)


def test_back_to_the_leader() -> None:
    """Asking for the leader itself ends what is pending (...Back)."""
    network = pending()

    assert not transfer(network, "1")

    assert (LEADER, NO_NODE) == (network["1"].raft.role, network["1"].node.transferring)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([MemberChange(ChangeKind.REMOVE, "3")], id="removed"),
        pytest.param([MemberChange(ChangeKind.ADD_LEARNER, "3")], id="demoted"),
        pytest.param(
            [MemberChange(ChangeKind.ADD_LEARNER, "3"), MemberChange(ChangeKind.ADD_VOTER, "4")],
            id="demoted, in a joint configuration that is left then",
        ),
    ],
)
def test_a_successor_that_is_none_any_more(changes: list[MemberChange]) -> None:
    """It is removed or demoted while it is awaited: the transfer ends (...RemoveNode, ...DemoteNode).

    The change is in the log when the transfer begins: a leader that hands over takes no proposals.
    """
    network = led_by_1()
    network.ignore(AppendEntriesResponse)
    network["1"].node.propose_membership(MembershipChange(tuple(changes)))
    assert transfer(network, "3")
    assert "3" == network["1"].node.transferring

    network.recover()
    network.ignore(TimeoutNow)
    for _ in range(3):
        network["1"].node.tick()
        network.settle()

    assert (LEADER, NO_NODE) == (network["1"].raft.role, network["1"].node.transferring)
    membership = network["1"].raft.membership
    assert (False, False) == ("3" in membership.voters, membership.joint)


def test_a_node_that_is_no_member_does_not_campaign() -> None:
    """Nor does it count votes that it did not ask for (TestTransferNonMember)."""
    peer = Peer("1", "234")

    peer.step(TimeoutNow(to="1", sender="2", term=1))
    peer.step(RequestVoteResponse(to="1", sender="2", term=1), RequestVoteResponse(to="1", sender="3", term=1))

    assert FOLLOWER is peer.raft.role


@pytest.mark.parametrize("pre_vote", [False, True])
def test_only_a_follower_takes_the_request(pre_vote: bool) -> None:
    """A candidate campaigns already, a pre-candidate has given the leader up."""
    peer = Peer(pre_vote=pre_vote, term=1)
    peer.node.campaign()
    peer.take()
    before = peer.state

    peer.step(TimeoutNow(to="1", sender="2", term=peer.raft.term))

    assert before == peer.state


# -- whom to hand over to ----------------------------------------------------------------------------------------------


def test_the_best_successor_lacks_least() -> None:
    """Of the voters that were heard of; of equals any, but always the same."""
    network = net({}, {}, {}, {}, {})
    network.campaign("1")
    leader = network["1"]
    assert "5" == leader.node.successor()

    network.isolate("5")
    network.propose("1", b"")
    assert "4" == leader.node.successor()

    leader.raft.tracker.progress["4"].recent_active = False
    assert "3" == leader.node.successor()
    assert NO_NODE == network["2"].node.successor()


def test_a_single_voter_has_no_successor() -> None:
    """A learner is none."""
    peer = Peer("1", Membership(voters=frozenset("1"), learners=frozenset("2")))
    peer.lead()
    peer.step(HeartbeatResponse(to="1", sender="2", term=1))

    assert NO_NODE == peer.node.successor()


def test_an_acknowledgement_of_the_last_entry_completes_it() -> None:
    """Told with the acknowledgement that shows it has everything, not before, and not for anybody else's."""
    peer = Peer()
    peer.lead()
    peer.node.propose(b"x")
    appends = {message.to: message for message in only(peer.take(), AppendEntries)}
    assert peer.node.transfer_leadership("3")
    assert not only(peer.take(), TimeoutNow)

    assert not only(peer.step(accept(appends["2"])), TimeoutNow)
    assert [TimeoutNow(to="3", sender="1", term=1)] == only(peer.step(accept(appends["3"])), TimeoutNow)
