"""Each invariant is broken once, on purpose, to see that it is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from logs import snapshot_at, terms
from network import Network, Peer, storage_with, three, voters

from replikv.errors import InternalError
from replikv.raft import replication
from replikv.raft.core import Raft
from replikv.raft.entries import Entry, EntryKind, HardState
from replikv.raft.invariants import Invariants, majorities_meet
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange
from replikv.raft.messages import AppendEntriesResponse, Heartbeat, Message, RequestVote, RequestVoteResponse
from replikv.raft.reads import ReadState
from replikv.raft.roles import Role


@pytest.fixture
def network() -> Network:
    """Three; 1 leads term 1, and two proposals are committed everywhere."""
    network = three()
    network.campaign("1")
    network.propose("1", b"one")
    network.propose("1", b"two")
    return network


def watcher(network: Network) -> Invariants:
    """Who has watched the network so far."""
    invariants = network["1"].invariants
    assert invariants is not None
    return invariants


def broken(invariants: Invariants, raft: Raft, name: str) -> None:
    """The core's state breaks this invariant."""
    with pytest.raises(InternalError, match=f"^{name}: "):
        invariants.observe(raft)


def test_what_is_right_passes(network: Network) -> None:
    """However often it is looked at."""
    for _ in range(2):
        for peer in network:
            watcher(network).observe(peer.raft)


def test_election_safety_between_nodes(network: Network) -> None:
    """A second leader of the same term."""
    raft = network["2"].raft
    raft.become_candidate()
    raft.term = 1
    raft.role, raft.leader, raft.vote = Role.LEADER, "2", "1"

    broken(watcher(network), raft, "election safety")


@pytest.mark.parametrize("leader", ["3", "2"], ids=["another leader", "itself, and it follows"])
def test_election_safety_of_one_node(network: Network, leader: str) -> None:
    """A node that takes two for the leader of a term, or itself without leading."""
    raft = network["2"].raft
    raft.leader = leader

    broken(watcher(network), raft, "election safety")


def test_one_vote_per_term_of_a_node(network: Network) -> None:
    """A vote that is turned within the term."""
    raft = network["2"].raft
    raft.vote = "3"

    broken(watcher(network), raft, "one vote per term")


def test_one_vote_per_term_across_a_crash(network: Network) -> None:
    """A node that starts without the vote it has told, or tells another one yes (PySyncObj)."""
    invariants = watcher(network)
    invariants.restarted("2")
    broken(invariants, Peer("2", storage=storage_with(terms(1, 1, 1), term=1)).raft, "one vote per term")

    again = RequestVoteResponse(to="3", sender="2", term=1)
    with pytest.raises(InternalError, match=r"^one vote per term: 2 tells 3 yes in term 1, after 1"):
        invariants.observe_sent(again, storage_with(term=1, vote="3"))


def test_leader_append_only(network: Network) -> None:
    """A leader whose log changes behind its back."""
    raft = network["1"].raft
    raft.log.unstable.offset = 3
    raft.log.unstable.entries = [Entry(3, 0, b"other")]

    broken(watcher(network), raft, "leader append-only")


def test_log_matching(network: Network) -> None:
    """Two entries of one index and term that differ."""
    network["2"].raft.log.append([Entry(4, 1, b"mine")])
    network["3"].raft.log.append([Entry(4, 1, b"yours")])
    watcher(network).observe(network["2"].raft)

    broken(watcher(network), network["3"].raft, "log matching")


@pytest.mark.parametrize("term", [0, 2], ids=["a term that is over", "a term that has not begun"])
def test_log_matching_of_terms(network: Network, term: int) -> None:
    """An entry that no leader can have made."""
    network["2"].raft.log.append([Entry(4, term)])

    broken(watcher(network), network["2"].raft, "log matching")


def test_log_matching_of_what_lies_behind() -> None:
    """The same entry behind different ones: no leader has sent both."""
    invariants = Invariants()
    invariants.observe(Peer("1", log=terms(1, 2), term=2).raft)

    broken(invariants, Peer("2", log=terms(2, 2), term=2).raft, "log matching")


def test_leader_completeness(network: Network) -> None:
    """A leader without a committed entry: elected by nodes that should not have."""
    raft = Peer("3", log=network["3"].log[:2], term=1).raft
    raft.become_candidate()
    raft.become_leader()
    invariants = watcher(network)
    invariants.restarted("3")

    broken(invariants, raft, "leader completeness")


def test_state_machine_safety_of_the_commit_index(network: Network) -> None:
    """A node that knows another entry to be committed (paper, figure 8)."""
    other = Peer("3", log=[*network["3"].log[:2], Entry(3, 2)], term=2, commit=3).raft
    invariants = watcher(network)
    invariants.restarted("3")

    broken(invariants, other, "state machine safety")


@pytest.mark.parametrize("entry", [Entry(3, 2, b"two"), Entry(3, 1, b"other"), Entry(4, 1)])
def test_state_machine_safety_of_what_is_applied(network: Network, entry: Entry) -> None:
    """Another term, other data, or what is not committed."""
    with pytest.raises(InternalError, match=r"^state machine safety: "):
        watcher(network).observe_applied("2", [entry])


@pytest.mark.parametrize("index", [2, 4], ids=["older than what was committed", "of what is not"])
def test_linearizable_reads(network: Network, index: int) -> None:
    """A read that misses what was committed when it was asked for, or sees what is not (thesis 6.4, etcd#7331)."""
    invariants = watcher(network)
    invariants.read_asked("2", 7)

    with pytest.raises(InternalError, match=r"^linearizable reads: 2 answers read 7 at"):
        invariants.read_answered("2", ReadState(7, index))


def test_reads_of_who_is_gone_are_not_looked_at(network: Network) -> None:
    """A late answer to a client that is gone with its node, or to one that nobody knows of, serves nobody."""
    invariants = watcher(network)
    invariants.read_asked("2", 7)
    invariants.restarted("2")

    assert not invariants.read_answered("2", ReadState(7, 1))
    invariants.read_asked("2", 8)
    assert invariants.read_answered("2", ReadState(8, 3))


def set_back(name: str) -> Callable[[Raft], None]:
    """Set one position of the log back."""

    def change(raft: Raft) -> None:
        setattr(raft.log, name, getattr(raft.log, name) - 1)

    return change


def forget_the_term(raft: Raft) -> None:
    raft.term, raft.leader = 0, ""


def forget_the_change(raft: Raft) -> None:
    raft.membership_index = -1


@pytest.mark.parametrize(
    "change",
    [forget_the_term, forget_the_change, set_back("committed"), set_back("applied"), set_back("applying")],
)
def test_monotonic_positions(network: Network, change: Callable[[Raft], None]) -> None:
    """Each goes back, or out of order, once (nebula#2405, PySyncObj#166)."""
    raft = network["2"].raft
    change(raft)

    broken(watcher(network), raft, "monotonic positions")


@pytest.mark.parametrize(
    ("message", "disk"),
    [
        (AppendEntriesResponse(to="1", sender="2", term=1, index=1), HardState(0, "")),
        (AppendEntriesResponse(to="1", sender="2", term=1, index=5), HardState(1, "1")),
        (RequestVoteResponse(to="1", sender="2", term=1), HardState(0, "")),
        (RequestVoteResponse(to="1", sender="2", term=1), HardState(1, "")),
        (RequestVote(to="1", sender="2", term=1), HardState(1, "")),
        (RequestVote(to="1", sender="2", term=2), HardState(1, "2")),
    ],
)
def test_durable_before_told(message: Message, disk: HardState) -> None:
    """A term, a vote or entries that leave before they are on disk."""
    with pytest.raises(InternalError, match=r"^durable before told: "):
        Invariants().observe_sent(message, storage_with(terms(1), term=disk.term, vote=disk.vote))


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(to="1", sender="2", term=9),
        RequestVote(to="1", sender="2", term=9, pre_vote=True),
        RequestVoteResponse(to="1", sender="2", term=9, pre_vote=True),
        RequestVoteResponse(to="1", sender="2", term=9, reject=True),
        AppendEntriesResponse(to="1", sender="2", term=1, index=9, reject=True),
        RequestVoteResponse(to="1", sender="2", term=1),
    ],
)
def test_what_rests_on_nothing_may_be_told(message: Message) -> None:
    """What promises nothing, or promises what is there."""
    Invariants().observe_sent(message, storage_with(terms(1), term=1, vote="1"))


def test_a_term_that_was_told_is_not_forgotten() -> None:
    """The disk that it was told of is gone."""
    invariants = Invariants()
    invariants.observe_sent(AppendEntriesResponse(to="1", sender="2", term=3), storage_with(term=3))

    broken(invariants, Peer("2", term=2).raft, "durable before told")


@pytest.mark.parametrize(("match", "next_index"), [(9, 10), (3, 3)], ids=["more than it has", "and sends it again"])
def test_true_acknowledgements(network: Network, match: int, next_index: int) -> None:
    """A leader that believes a follower to have what it has not."""
    progress = network["1"].raft.tracker.progress["2"]
    progress.match, progress.next = match, next_index

    broken(watcher(network), network["1"].raft, "true acknowledgements")


def test_true_acknowledgements_of_other_entries(network: Network) -> None:
    """The follower has as much, and something else (PySyncObj#167)."""
    raft = Peer("2", log=terms(0, 0, 0), term=1).raft
    raft.leader, raft.vote = "1", "1"
    invariants = Invariants()
    invariants.observe(raft)

    invariants._entries.clear()
    broken(invariants, network["1"].raft, "true acknowledgements")


def test_what_a_leader_believes_does_not_go_back(network: Network) -> None:
    """An acknowledgement that takes another one back (PySyncObj#167)."""
    progress = network["1"].raft.tracker.progress["2"]
    progress.match -= 1

    broken(watcher(network), network["1"].raft, "monotonic positions")


def test_one_change_at_a_time(network: Network) -> None:
    """A leader that appends a change behind one that it has not applied (thesis 4.1)."""
    raft = network["1"].raft
    change = MembershipChange((MemberChange(ChangeKind.ADD_LEARNER, "4"),)).encode()
    replication.append(raft, change, EntryKind.MEMBERSHIP, limited=False)
    watcher(network).observe(raft)
    replication.append(raft, change, EntryKind.MEMBERSHIP, limited=False)

    broken(watcher(network), raft, "one change at a time")


def test_one_configuration(network: Network) -> None:
    """Two nodes that have applied the same and know other members."""
    raft = network["2"].raft
    raft.tracker.switch(voters(*"1234"), 1)

    broken(watcher(network), raft, "one configuration")


def test_one_configuration_that_others_have_passed() -> None:
    """A change that appears where others have been already."""
    invariants = Invariants()
    for node_id, index, members in (("1", 0, "123"), ("2", 9, "1234")):
        raft = Peer(node_id, members).raft
        raft.membership_index = index
        invariants.observe(raft)
    raft = Peer("3", "12").raft
    raft.membership_index = 5

    broken(invariants, raft, "one configuration")


def test_quorum_overlap(network: Network) -> None:
    """A change that skips the joint configuration."""
    raft = network["2"].raft
    raft.tracker.switch(voters(*"245"), 1)
    raft.membership_index = 3

    broken(watcher(network), raft, "quorum overlap")


@pytest.mark.parametrize(
    "membership",
    [
        pytest.param(Membership(voters=frozenset("123"), learners=frozenset("3")), id="both"),
        pytest.param(Membership(voters=frozenset("123"), learners_next=frozenset("3")), id="next, and not outgoing"),
    ],
)
def test_voters_and_learners(network: Network, membership: Membership) -> None:
    """Sets that no change makes."""
    raft = network["2"].raft
    raft.tracker.switch(membership, 1)

    broken(watcher(network), raft, "voters and learners")


def test_voters_and_learners_are_who_is_followed(network: Network) -> None:
    """A configuration without its progress."""
    raft = network["2"].raft
    raft.tracker.membership = dataclasses.replace(raft.membership, learners=frozenset("4"))

    broken(watcher(network), raft, "voters and learners")


def test_only_voters_campaign() -> None:
    """A learner that does."""
    raft = Peer("1", Membership(voters=frozenset("23"), learners=frozenset("1"))).raft
    raft.become_pre_candidate()

    broken(Invariants(), raft, "voters and learners")


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (voters(*"123"), voters(*"1234"), True),
        (voters(*"123"), voters(*"12345"), False),
        (voters(*"123"), voters(*"145"), False),
        (voters(*"1"), voters(*"12"), True),
        (voters(*"1"), voters(*"2"), False),
        (voters(*"123"), Membership(voters=frozenset("456"), outgoing=frozenset("123")), True),
        (Membership(voters=frozenset("456"), outgoing=frozenset("123")), voters(*"456"), True),
        (Membership(voters=frozenset("456"), outgoing=frozenset("123")), voters(*"789"), False),
    ],
)
def test_majorities_meet(one: Membership, other: Membership, meet: bool) -> None:
    """In both directions alike."""
    assert meet == majorities_meet(one, other) == majorities_meet(other, one)


def test_a_snapshot_is_followed(network: Network) -> None:
    """A node that jumps ahead by a snapshot breaks nothing."""
    peer = network["3"]
    invariants = watcher(network)
    for node_id in "12":
        storage = network[node_id].storage
        storage.record_snapshot(snapshot_at(3, 1, "1", "2", "3"))
        storage.compact(3)
        invariants.observe(network[node_id].raft)
    invariants.restarted("3")
    fresh = Peer("3", term=1, vote="1")
    fresh.raft.restore(snapshot_at(3, 1, "1", "2", "3"))

    invariants.observe(fresh.raft)
    assert peer.raft.log.committed == fresh.raft.log.committed
