"""Members come and go (thesis 4): etcd-io/raft's raft_test and rawnode_test, the stories of members and learners.

The changes themselves, without a log, are in test_changer.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from logs import snapshot_at, terms
from network import Network, Peer, accept, only, three, voters

from replikv.errors import InternalError
from replikv.raft.core import ProposalDroppedError
from replikv.raft.entries import NO_NODE, Entry, EntryKind
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange, Transition
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from replikv.raft.refusals import ChangePendingError, InvalidChangeError
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage

FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER
JOINT = Membership(voters=frozenset("12"), outgoing=frozenset("1"))
KINDS = {"v": ChangeKind.ADD_VOTER, "l": ChangeKind.ADD_LEARNER, "r": ChangeKind.REMOVE, "u": ChangeKind.UPDATE}


def change(words: str, transition: Transition = Transition.AUTO) -> MembershipChange:
    """v4 = add voter 4, l = add learner, r = remove, u = update."""
    return MembershipChange(tuple(MemberChange(KINDS[word[0]], word[1:]) for word in words.split()), transition)


def entry_of(made: MembershipChange, index: int = 1) -> Entry:
    """The entry of a change."""
    return Entry(index, 1, made.encode(), EntryKind.MEMBERSHIP)


def one_and_a_learner(**config: Any) -> Network:
    """Voter 1 and learner 2."""
    membership = Membership(voters=frozenset("1"), learners=frozenset("2"))
    return Network({node_id: Peer(node_id, membership, **config) for node_id in "12"})


def everybody(network: Network) -> set[frozenset[str]]:
    """The voters, as each peer knows them."""
    return {peer.raft.membership.voters for peer in network}


# -- learners ----------------------------------------------------------------------------------------------------------


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


# -- proposing a change ------------------------------------------------------------------------------------------------


def test_a_change_is_an_entry() -> None:
    """The next one, and no other may be under way until it is applied (TestStepConfig)."""
    peer = Peer("1", "12")
    peer.lead(acknowledged=False)

    index = peer.node.propose_membership(change("v3"))

    assert (2, 2, 2) == (index, peer.raft.log.last_index(), peer.raft.pending_membership_index)
    assert EntryKind.MEMBERSHIP == peer.log[-1].kind


def test_a_second_change_is_refused() -> None:
    """While the first is unapplied (TestStepIgnoreConfig).

    Upstream puts an empty entry in its place, and the caller never knows; here it is told, and nothing enters the log.
    """
    peer = Peer("1", "12")
    peer.lead(acknowledged=False)
    peer.node.propose_membership(change("v3"))

    with pytest.raises(ChangePendingError, match="entry 2 has to be applied first, 0 is") as caught:
        peer.node.propose_membership(change("v4"))

    assert 2 == caught.value.index
    assert isinstance(caught.value, ProposalDroppedError)
    assert (2, 2) == (peer.raft.log.last_index(), peer.raft.pending_membership_index)


def test_committed_is_not_applied() -> None:
    """A change that is committed and not applied yet is still under way."""
    peer = Peer("1", "12")
    peer.lead()
    peer.node.propose_membership(change("v3"))
    peer.take()
    peer.node.step(AppendEntriesResponse(to="1", sender="2", term=1, index=2))
    assert 2 == peer.raft.log.committed

    with pytest.raises(ChangePendingError):
        peer.node.propose_membership(change("v4"))

    peer.take()
    assert 3 == peer.node.propose_membership(change("v4"))


@pytest.mark.parametrize(("log", "pending"), [((), 0), (terms(1), 1)], ids=["an empty log", "an entry"])
def test_a_new_leader_does_not_know_what_its_log_holds(log: list[Entry], pending: int) -> None:
    """All that was there before its no-op has to be applied before the first change (TestNewLeaderPendingConfig)."""
    peer = Peer("1", "12", log=log, term=1)
    peer.lead(acknowledged=False)

    assert pending == peer.raft.pending_membership_index


@pytest.mark.parametrize(
    ("membership", "words", "reason"),
    [
        pytest.param(voters("1"), "r1", "removes all voters", id="the last voter"),
        pytest.param(voters("1"), "l1", "removes all voters", id="the last voter becomes a learner"),
        pytest.param(voters(*"12"), "r1 r2", "removes all voters", id="all at once"),
        pytest.param(voters(*"12"), "", "nothing to leave", id="leave, and not joint"),
        pytest.param(
            Membership(voters=frozenset("12"), outgoing=frozenset("1")),
            "v3",
            "leave it before",
            id="simple while joint",
        ),
        pytest.param(
            Membership(voters=frozenset("12"), outgoing=frozenset("1")),
            "v3 v4",
            "joint already",
            id="joint while joint",
        ),
    ],
)
def test_what_makes_no_sense_does_not_enter_the_log(membership: Membership, words: str, reason: str) -> None:
    """The reason is told, and a later change is not held up by it."""
    peer = Peer("1", membership)
    peer.lead()
    last_index = peer.raft.log.last_index()

    with pytest.raises(InvalidChangeError, match=reason):
        peer.node.propose_membership(change(words))

    assert last_index == peer.raft.log.last_index()
    assert peer.raft.pending_membership_index <= peer.raft.log.applied


def test_only_a_leader_takes_changes() -> None:
    """Others say that they do not lead."""
    with pytest.raises(ProposalDroppedError, match="not the leader"):
        Peer().node.propose_membership(change("v4"))


def test_records_change_without_a_quorum_rule() -> None:
    """An update leaves voters and progress alone; it may be made while the configuration is joint."""
    peer = Peer("1", Membership(voters=frozenset("12"), outgoing=frozenset("1"), members={"2": MemberRecord("two")}))
    peer.lead()
    progress = peer.raft.tracker.progress["2"]
    update = MembershipChange((MemberChange(ChangeKind.UPDATE, "2", address="elsewhere"),))

    peer.node.propose_membership(update)
    [append] = only(peer.take(), AppendEntries)
    peer.step(accept(append))

    assert "elsewhere" == peer.raft.membership.members["2"].address
    assert progress is peer.raft.tracker.progress["2"]
    assert (frozenset("12"), frozenset("1")) == (peer.raft.membership.voters, peer.raft.membership.outgoing)


# -- applying it -------------------------------------------------------------------------------------------------------


def test_add_a_node() -> None:
    """TestAddNode."""
    peer = Peer("1", "1")

    assert frozenset("12") == peer.node.apply_membership(entry_of(change("v2"))).voters

    assert ["1", "2"] == list(peer.raft.tracker.progress)
    assert 1 == peer.raft.membership_index


def test_add_a_learner_and_change_sides() -> None:
    """Add one, promote it, demote oneself, promote oneself: the flags follow (TestAddLearner)."""
    peer = Peer("1", "1")
    told = []
    for index, words in enumerate(["l2", "v2", "l1", "v1"], 1):
        peer.node.apply_membership(entry_of(change(words), index))
        told.append([progress.is_learner for progress in peer.raft.tracker.progress.values()])

    assert [[False, True], [False, False], [True, False], [False, False]] == told
    assert peer.raft.promotable()


@pytest.mark.parametrize("membership", [voters(*"12"), Membership(voters=frozenset("1"), learners=frozenset("2"))])
def test_remove_a_node(membership: Membership) -> None:
    """A voter or a learner goes; the last voter cannot (TestRemoveNode, TestRemoveLearner)."""
    peer = Peer("1", membership)

    after = peer.node.apply_membership(entry_of(change("r2")))

    assert (frozenset("1"), frozenset()) == (after.voters, after.learners)
    with pytest.raises(InternalError, match=r"entry 2 was committed, but cannot be applied: .*removes all voters"):
        peer.node.apply_membership(entry_of(change("r1"), 2))


def test_nodes_are_sorted() -> None:
    """Whatever order they were given in (TestRaftNodes)."""
    assert ["1", "2", "3"] == Peer("1", "321").raft.tracker.voters()
    assert ["1", "2", "3"] == list(Peer("1", "321").raft.tracker.progress)


def test_a_smaller_quorum_commits_at_once() -> None:
    """What waits for the node that is removed waits no longer (TestCommitAfterRemoveNode)."""
    peer = Peer("1", "12")
    peer.lead(acknowledged=False)
    index = peer.node.propose_membership(change("r2"))
    peer.node.propose(b"hello")
    peer.take()
    assert 0 == peer.raft.log.committed

    peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=index))

    assert [EntryKind.COMMANDS, EntryKind.MEMBERSHIP, EntryKind.COMMANDS] == [entry.kind for entry in peer.applied]
    assert [b"hello"] == [entry.data for entry in peer.applied if entry.kind == EntryKind.COMMANDS and entry.data]


def test_a_smaller_quorum_confirms_reads_at_once() -> None:
    """A read that waited for the answer of who is gone is served: nobody else will answer."""
    peer = Peer("1", "12")
    peer.lead()
    peer.node.propose_membership(change("r2"))
    peer.take()
    peer.node.read_index(7)
    peer.take()
    assert [] == peer.reads

    peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=2))

    assert [7] == [read.context for read in peer.reads]


def test_a_new_member_is_probed_at_once() -> None:
    """Without waiting for the next proposal or heartbeat (etcd#7571)."""
    peer = Peer("1", "1")
    peer.lead()
    peer.node.propose_membership(change("l2"))

    [append] = only(peer.take(), AppendEntries)

    assert ("2", 1, [EntryKind.MEMBERSHIP]) == (
        append.to,
        append.previous_index,
        [entry.kind for entry in append.entries],
    )


def test_who_is_removed_is_told() -> None:
    """With the commit of its removal: nobody tells it later. By a heartbeat when its window is full."""
    for paused in (False, True):
        peer = Peer("1", "123", commit_rides_along=True)
        peer.lead()
        peer.node.propose_membership(change("r3"))
        appends = {message.to: message for message in only(peer.take(), AppendEntries)}
        peer.raft.tracker.progress["3"].match = 2
        peer.raft.tracker.progress["3"].paused = paused

        sent = peer.step(accept(appends["2"]))

        [told] = [message for message in sent if message.to == "3"]
        assert isinstance(told, Heartbeat if paused else AppendEntries)
        assert 2 == told.commit
        assert "3" not in peer.raft.tracker.progress


# -- elections and changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [False, True], ids=["simple", "joint"])
def test_an_unapplied_change_blocks_a_campaign(joint: bool) -> None:
    """By timeout and by transfer; after it is applied the transfer works (TestConfChangeCheckBeforeCampaign)."""
    network = three()
    network.campaign("1")
    made = change("v4 r3") if joint else change("r3")
    network["1"].node.propose_membership(made)
    [append] = [message for message in only(network["1"].take(), AppendEntries) if message.to == "2"]
    follower = network["2"].node
    follower.step(append)
    ready = follower.ready()
    assert ready.write is not None
    network["2"].storage.apply(ready.write)
    [acknowledged] = follower.persisted(ready.write)
    [commit] = [message for message in only(network["1"].step(acknowledged), AppendEntries) if message.to == "2"][-1:]
    follower.step(commit)
    assert (2, 1) == (follower.raft.log.committed, follower.raft.log.applied)

    follower.raft.election_elapsed = 20
    follower.tick()
    assert FOLLOWER is follower.raft.role
    follower.step(TimeoutNow(to="2", sender="1", term=1))
    assert FOLLOWER is follower.raft.role

    network.settle()
    assert {frozenset("124" if joint else "12")} == {network[node_id].raft.membership.voters for node_id in "12"}
    follower.step(TimeoutNow(to="2", sender="1", term=1))
    assert CANDIDATE is follower.raft.role


def test_a_candidate_that_is_removed_gives_up() -> None:
    """It would count votes of a configuration in which it has none."""
    peer = Peer("1", "123", log=[entry_of(change("r1"))], term=1)
    peer.node.campaign()
    peer.take()
    assert CANDIDATE is peer.raft.role

    peer.node.apply_membership(peer.log[0])

    assert (FOLLOWER, 2) == peer.state
    assert not peer.raft.promotable()


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


def test_a_removed_leader_asks_again_until_its_time_is_up() -> None:
    """The successor may not have applied the removal yet, and so not campaign; after a timeout it steps down anyway."""
    peer = Peer("1", "12")
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


# -- joint configurations ----------------------------------------------------------------------------------------------


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


def test_a_change_before_its_beginning_is_not_applied() -> None:
    """A node that knows no first configuration would make one up from the changes alone."""
    peer = Peer("4", "")

    with pytest.raises(InternalError, match="without the configuration before it"):
        peer.node.apply_membership(entry_of(change("v4")))


# -- catching up across changes ----------------------------------------------------------------------------------------


def test_a_snapshot_from_before_a_member_is_not_sent_to_it() -> None:
    """It would refuse it: the leader wants a newer one first, and sends that."""
    storage = MemoryStorage()
    storage.install(snapshot_at(10, 1, "1"))
    peer = Peer("1", storage=storage)
    peer.lead()
    peer.node.propose_membership(change("l2"))
    peer.take()
    sent = peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=11, reject=True))
    assert [] == only(sent, InstallSnapshot)
    assert peer.node.snapshot_wanted

    metadata = storage.snapshot()._replace(index=12, term=1, membership=peer.raft.membership)
    storage.record_snapshot(metadata)
    assert not peer.node.snapshot_wanted
    sent = peer.step(HeartbeatResponse(to="1", sender="2", term=1))
    assert [InstallSnapshot(to="2", sender="1", term=1, snapshot=metadata)] == only(sent, InstallSnapshot)


def test_a_replacement_of_all_members_one_by_one() -> None:
    """1, 2, 3 become 4, 5, 6; the leader hands over when it is its turn, and nothing is lost (thesis 4)."""
    network = Network({node_id: Peer(node_id, "123", check_quorum=True) for node_id in "123456"})
    network.campaign("1")
    for gone, come in zip("123", "456", strict=True):
        [leader] = [peer for peer in network if peer.raft.role is LEADER]
        leader.node.propose(gone.encode())
        network.settle()
        leader.node.propose_membership(change(f"v{come} r{gone}"))
        for _ in range(30):
            network.settle()
            for peer in network:
                peer.node.tick()
        network.settle()

    members = [network[node_id] for node_id in "456"]
    assert {frozenset("456")} == {peer.raft.membership.voters for peer in members}
    assert 1 == sum(peer.raft.role is LEADER for peer in members)
    assert [[b"1", b"2", b"3"]] * 3 == [
        [entry.data for entry in peer.applied if entry.kind == EntryKind.COMMANDS and entry.data] for peer in members
    ]


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


def test_a_late_change_does_not_undo_a_snapshot() -> None:
    """It was handed out for applying before the snapshot arrived, which has it and all that came later."""
    late = entry_of(change("v4"), 2)
    peer = Peer("1", log=[*terms(1), late], term=1, commit=2)
    ready = peer.node.ready()
    assert [1, 2] == [entry.index for entry in ready.committed]
    peer.node.step(InstallSnapshot(to="1", sender="2", term=1, snapshot=snapshot_at(9, 1, "1", "2")))

    assert frozenset("12") == peer.node.apply_membership(late).voters
    assert (9, frozenset("12")) == (peer.raft.membership_index, peer.raft.membership.voters)
