"""Changes of the members on their way through the log (thesis 4): etcd-io/raft's raft_test and rawnode_test.

The changes themselves, without a log, are in test_changer.py; learners, joint changes, and who is removed have tests of
their own.
"""

from __future__ import annotations

import pytest
from changes import change, entry_of
from logs import snapshot_at, terms
from network import Network, Peer, accept, only, three, voters

from replikv.errors import InternalError
from replikv.raft.core import ProposalDroppedError
from replikv.raft.entries import Entry, EntryKind
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    TimeoutNow,
)
from replikv.raft.refusals import ChangePendingError, InvalidChangeError
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER


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


def test_a_change_before_its_beginning_is_not_applied() -> None:
    """A node that knows no first configuration would make one up from the changes alone."""
    peer = Peer("4", "")

    with pytest.raises(InternalError, match="without the configuration before it"):
        peer.node.apply_membership(entry_of(change("v4")))


@pytest.mark.parametrize("joint", [False, True], ids=["simple", "joint"])
def test_an_unapplied_change_blocks_a_campaign(joint: bool) -> None:
    """By timeout and by transfer; after it is applied the transfer works (TestConfChange[V2]CheckBeforeCampaign)."""
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


def test_whoever_leads_no_more_wants_no_snapshot() -> None:
    """Who needs one is the next leader's concern."""
    storage = MemoryStorage()
    storage.install(snapshot_at(10, 1, "1"))
    peer = Peer("1", storage=storage)
    peer.lead()
    peer.node.propose_membership(change("l2"))
    peer.take()
    peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=11, reject=True))
    assert peer.node.snapshot_wanted

    peer.step(Heartbeat(to="1", sender="2", term=2))

    assert not peer.node.snapshot_wanted


def test_a_late_change_does_not_undo_a_snapshot() -> None:
    """It was handed out for applying before the snapshot arrived, which has it and all that came later."""
    late = entry_of(change("v4"), 2)
    peer = Peer("1", log=[*terms(1), late], term=1, commit=2)
    ready = peer.node.ready()
    assert [1, 2] == [entry.index for entry in ready.committed]
    peer.node.step(InstallSnapshot(to="1", sender="2", term=1, snapshot=snapshot_at(9, 1, "1", "2")))

    assert frozenset("12") == peer.node.apply_membership(late).voters
    assert (9, frozenset("12")) == (peer.raft.membership_index, peer.raft.membership.voters)


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
