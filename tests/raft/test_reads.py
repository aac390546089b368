"""Linearizable reads (ReadIndex, thesis 6.4): etcd-io/raft's raft_test and node_test on reads.

Reads under a lease (ReadOnlyOptionLease) are in test_read_lease.py.
"""

from __future__ import annotations

import pytest
from logs import terms
from network import FRESH, Network, Peer, net, only, storage_with, three

from replikv.raft.core import READ_HOPS_MAX
from replikv.raft.entries import Entry
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntries, Heartbeat, HeartbeatResponse, ReadIndex, ReadIndexResponse
from replikv.raft.quorum import committed_index
from replikv.raft.reads import ReadQueue, ReadState
from replikv.raft.roles import Role


def read_in_rounds(network: Network, askers: str) -> None:
    """Ten proposals, then a read, for each asker: the index is the leader's commit index, told to the asker."""
    network.campaign("1")
    for number, asker in enumerate(askers):
        for _ in range(10):
            network.propose("1", b"")
        network.read(asker, 100 + number)

        assert ReadState(100 + number, 11 + 10 * number) == network[asker].reads.pop()
        assert not any(peer.reads for peer in network)


def test_a_read_is_at_the_commit_index() -> None:
    """Whoever asks, the index covers what was committed when it asked (TestReadOnlyOptionSafe)."""
    read_in_rounds(three(), "123123")


def test_a_learner_reads_too() -> None:
    """A learner asks like any other, and its answers to heartbeats are not needed (TestReadOnlyWithLearner)."""
    membership = Membership(voters=frozenset("1"), learners=frozenset("2"))

    read_in_rounds(Network({node_id: Peer(node_id, membership) for node_id in "12"}), "1212")


def test_a_single_voter_reads_at_once() -> None:
    """Nobody else can have been elected: no heartbeat is needed."""
    peer = Peer("1", "1")
    peer.lead()

    assert peer.node.read_index(7)

    assert [] == peer.take()
    assert [ReadState(7, 1)] == peer.reads


def test_a_new_leader_postpones_reads() -> None:
    """It does not know what is committed before it commits in its own term (TestReadOnlyForNewLeader, etcd#7331)."""
    compacted = [storage_with(terms(1, 1), term=1, commit=2, compacted=2) for _ in range(2)]
    network = Network(
        {
            "1": Peer("1", log=terms(1, 1), term=1, commit=1, applied=1),
            "2": Peer("2", storage=compacted[0]),
            "3": Peer("3", storage=compacted[1]),
        }
    )
    network.ignore(AppendEntries)
    network.campaign("1")
    assert Role.LEADER is network["1"].raft.role

    network.read("1", 7)
    assert [] == network["1"].reads

    network.recover()
    network["1"].node.tick()
    network.propose("1", b"")
    assert (4, 2) == (network["1"].raft.log.committed, network["1"].raft.log.last_term())
    assert [ReadState(7, 4)] == network["1"].reads

    network.read("1", 8)
    assert ReadState(8, 4) == network["1"].reads[-1]


def test_a_postponed_read_needs_a_majority_and_no_more() -> None:
    """The leader itself is part of it: one of three may be away."""
    network = three()
    network.isolate("3")
    network.hold(AppendEntries)
    network.campaign("1")
    network.read("1", 7)
    assert [] == network["1"].reads

    network._held.clear()
    network.settle(*network.held)

    assert [ReadState(7, 1)] == network["1"].reads


def test_old_answers_do_not_confirm_new_reads() -> None:
    """A stale leader must not serve a read on answers to heartbeats sent before it (TestReadOnlyDuplicateRequest)."""
    network = three()
    network.campaign("1")
    network.hold(HeartbeatResponse)
    network.read("2", 65)
    assert 2 == len(network.held)
    network.isolate("1")
    network.campaign("2")
    network.propose("2", b"new")
    assert (Role.LEADER, 1) == network["1"].state
    network.read("1", 66)

    network.recover()
    network.settle(ReadIndex(to="1", sender="2", context=65), *network.held)

    assert [] == network["1"].reads
    # The first read was confirmed in time, whenever that is learnt: 1 led when the answers were given.
    assert ReadState(65, 1) in network["2"].reads


def test_confirmed_reads_are_forgotten() -> None:
    """What a quorum has confirmed takes no memory (TestRaftFreesReadOnlyMem)."""
    peer = Peer("1", "12")
    peer.lead()

    [heartbeat] = only(peer.step(ReadIndex(to="1", sender="2", context=7)), Heartbeat)
    assert 1 == len(peer.raft.reads.pending)

    sent = peer.step(HeartbeatResponse(to="1", sender="2", term=1, read_position=heartbeat.read_position))
    assert [ReadIndexResponse(to="2", sender="1", context=7, index=1)] == sent
    assert not peer.raft.reads.pending


def test_an_old_leader_passes_reads_on() -> None:
    """Reads carry no term, and keep who asked first (TestNodeReadIndexToOldLeader)."""
    network = three()
    network.campaign("1")
    asked = []
    for node_id in "23":
        assert network[node_id].node.read_index(int(node_id))
        asked += network[node_id].take()
    assert [("1", "2", 0), ("1", "3", 0)] == [(message.to, message.sender, message.term) for message in asked]
    network.campaign("3")

    passed_on = network["1"].step(*asked)

    assert [("3", "2", 0), ("3", "3", 0)] == [(message.to, message.sender, message.term) for message in passed_on]
    network.settle(*passed_on)
    assert [ReadState(2, 2)] == network["2"].reads
    assert [ReadState(3, 2)] == network["3"].reads


def test_without_a_leader_a_read_is_refused() -> None:
    """A follower without a leader says so, and drops what others ask of it."""
    peer = Peer()

    assert not peer.node.read_index(7)
    assert [] == peer.step(ReadIndex(to="1", sender="2", context=7))


def test_a_read_does_not_go_in_circles() -> None:
    """Two that take each other for the leader pass a read on only a few times."""
    network = net(FRESH, FRESH, FRESH)
    network["1"].raft.become_follower(1, "2")
    network["2"].raft.become_follower(1, "1")

    network.settle(ReadIndex(to="1", sender="3", context=7))

    assert READ_HOPS_MAX == len(only(network.sent, ReadIndex))


def test_reads_of_a_lost_leadership_are_forgotten() -> None:
    """A new leadership begins with an empty queue: old positions must not confirm its reads."""
    peer = Peer("1", "12")
    peer.lead()
    peer.step(ReadIndex(to="1", sender="2", context=7))

    peer.step(AppendEntries(to="1", sender="2", term=2, previous_index=1, previous_term=1, entries=(Entry(2, 2),)))

    assert (0, 0, {}) == (len(peer.raft.reads.pending), peer.raft.reads.position, peer.raft.reads.acknowledged)


@pytest.mark.parametrize(
    ("acknowledged", "confirmed"),
    [({"b": 0}, []), ({"b": 1}, ["x"]), ({"b": 2}, ["x", "y"]), ({"b": 2, "c": 1}, ["x", "y"])],
)
def test_the_queue_confirms_in_order(acknowledged: dict[str, int], confirmed: list[str]) -> None:
    """A position confirms itself and all before it, once (two of a, b and c; a is the leader)."""
    queue = ReadQueue()
    for asker in "xyz":
        queue.acknowledge("a", queue.add(10, asker, 0))
    for node_id, position in acknowledged.items():
        queue.acknowledge(node_id, position)
        queue.acknowledge(node_id, 0)

    position = committed_index("abc", queue.acknowledged)

    assert confirmed == [read.asker for read in queue.confirmed(position)]
    assert [] == queue.confirmed(position)
