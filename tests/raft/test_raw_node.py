"""RawNode, the machine with an input and an output side: etcd-io/raft's rawnode_test."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from logs import indexes, snapshot_at, span, terms
from network import Peer, accept

from replikv.errors import ConfigurationError, InternalError
from replikv.raft.core import Config
from replikv.raft.entries import Entry, EntryKind, HardState
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange, Transition
from replikv.raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse
from replikv.raft.node import RawNode
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage

ADD_2 = MemberChange(ChangeKind.ADD_VOTER, "2")
LEARN_1, LEARN_2, LEARN_3 = (MemberChange(ChangeKind.ADD_LEARNER, node_id) for node_id in "123")


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_fresh_node_has_nothing_to_do() -> None:
    """Until somebody wants something of it (TestRawNodeStart)."""
    peer = Peer("1", "1")
    assert not peer.node.has_ready()

    peer.lead()
    peer.node.propose(b"foo")
    peer.take()

    assert [Entry(1, 1), Entry(2, 1, b"foo")] == peer.applied
    assert not peer.node.has_ready()


def test_a_restarted_node_applies_what_it_knows_to_be_committed() -> None:
    """And no more: it has not heard a leader yet. There is nothing to write (TestRawNodeRestart, TestNodeRestart)."""
    node = Peer("1", "1", log=[Entry(1, 1), Entry(2, 1, b"foo")], term=1, commit=1).node

    ready = node.ready()

    assert ((Entry(1, 1),), None, ()) == (ready.committed, ready.write, ready.messages)
    node.applied(ready.committed)
    assert not node.has_ready()


def test_a_node_restarts_from_a_snapshot() -> None:
    """It applies what follows it (TestRawNodeRestartFromSnapshot, TestNodeRestartFromSnapshot)."""
    storage = MemoryStorage()
    storage.install(snapshot_at(2, 1, "1", "2"))
    storage.append([Entry(3, 1, b"foo")])
    storage.hard_state = HardState(1, "", 3)
    node = RawNode(Config(node_id="1", applied=2), storage, Random(1))

    ready = node.ready()

    assert ((Entry(3, 1, b"foo"),), None) == (ready.committed, ready.write)
    assert frozenset("12") == node.raft.membership.voters
    node.applied(ready.committed)
    assert not node.has_ready()


def test_a_restart_applies_no_entry_twice_and_misses_none() -> None:
    """However the batches are cut (TestRawNodeCommitPaginationAfterRestart, TestNodeCommitPaginationAfterRestart)."""
    log = span(1, 11, data=b"a")
    for room in range(1, 12 * log[0].size, 10):
        peer = Peer("1", "12", log=log, term=1, vote="1", commit=10, applying_bytes_max=room)

        peer.step(Heartbeat(to="1", sender="2", term=1, commit=11))

        assert list(range(1, 12)) == indexes(peer.applied)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"node_id": ""}, "node_id"),
        ({"heartbeat_ticks": 0}, "heartbeat_ticks"),
        ({"election_ticks": 3, "heartbeat_ticks": 3}, "election_ticks"),
        ({"inflight_messages_max": 0}, "inflight_messages_max"),
        ({"read_lease": True}, "check_quorum"),
    ],
)
def test_what_cannot_work_is_not_taken(config: dict[str, int], reason: str) -> None:
    """A node that could never elect or never send says so at once (etcd: Config.validate)."""
    with pytest.raises(ConfigurationError, match=reason):
        Config(**{"node_id": "1", **config})  # type: ignore[arg-type]


def test_a_commit_beyond_the_log_is_a_lost_log() -> None:
    """A disk that forgot what it had acknowledged: stop, rather than go on with a hole (commit_index_regression)."""
    with pytest.raises(InternalError, match="stored commit 3 is beyond"):
        Peer(log=terms(1, 1), term=1, commit=3)

    peer = Peer(log=terms(1, 1), term=1)
    with pytest.raises(InternalError, match="has lost what it had acknowledged"):
        peer.step(Heartbeat(to="1", sender="2", term=1, commit=3))


# -- taking a Ready ----------------------------------------------------------------------------------------------------


def test_nothing_is_handed_out_twice() -> None:
    """Taking a Ready is accepting it; what comes after it waits for the next (TestRawNodeConsumeReady)."""
    peer = Peer("1", "12")
    peer.lead()
    node = peer.node
    node.propose(b"one")

    first = node.ready()
    node.propose(b"two")
    second = node.ready()

    assert [[2], [3]] == [indexes(ready.write.entries) for ready in (first, second) if ready.write is not None]
    assert [[2], [3]] == [
        [entry.index for message in ready.messages if isinstance(message, AppendEntries) for entry in message.entries]
        for ready in (first, second)
    ]
    assert not node.has_ready()


def test_reads_are_handed_out_once() -> None:
    """TestRawNodeReadIndex."""
    peer = Peer("1", "1")
    peer.lead()

    assert peer.node.read_index(7)

    assert peer.node.has_ready()
    assert [7] == [read.context for read in peer.node.ready().reads]
    assert not peer.node.has_ready()


def test_a_commit_index_alone_is_not_written() -> None:
    """It is found again from the leader, and worth no sync; the next write brings it along (etcd: MustSync)."""
    peer = Peer()
    peer.step(AppendEntries(to="1", sender="2", term=1, entries=tuple(terms(1))))
    peer.node.step(Heartbeat(to="1", sender="2", term=1, commit=1))
    ready = peer.node.ready()
    assert (None, tuple(terms(1))) == (ready.write, ready.committed)
    peer.node.applied(ready.committed)

    peer.step(AppendEntries(to="1", sender="2", term=1, previous_index=1, previous_term=1, entries=(Entry(2, 1),)))

    assert 1 == peer.storage.hard_state.commit


def test_a_commit_index_is_told_once() -> None:
    """With ``commit_rides_along``: by the next entries, or when it is asked for; then there is nothing more to tell."""
    for proposes in (False, True):
        peer = Peer("1", "123", commit_rides_along=True)
        peer.lead()
        assert peer.node.commit_untold
        if proposes:
            peer.node.propose(b"x")
        else:
            peer.node.tell_commit()
        told = [message.commit for message in peer.take() if isinstance(message, AppendEntries)]
        assert ([1, 1], False) == (told, peer.node.commit_untold)

        peer.node.tell_commit()
        assert [] == peer.take()


def test_writes_complete_in_order() -> None:
    """Each once, the oldest first: an acknowledgement vouches for all that was written before it."""
    node = Peer("1", "1").node
    node.campaign()
    first = node.ready().write
    node.step(Heartbeat(to="1", sender="2", term=5))
    second = node.ready().write
    assert first is not None
    assert second is not None

    with pytest.raises(InternalError, match="in the order they were handed out"):
        node.persisted(second)
    node.persisted(first)
    with pytest.raises(InternalError, match="in the order they were handed out"):
        node.persisted(first)


def test_writes_may_be_under_way_at_once() -> None:
    """What each has made durable counts as soon as it is done (async_storage_writes)."""
    peer = Peer("1", "12")
    peer.lead()
    peer.lazy = True
    for data in (b"one", b"two", b"three"):
        peer.node.propose(data)
        peer.take()
    peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=4))

    committed = []
    for _ in range(3):
        peer.persist(1)
        peer.take()
        committed.append((peer.raft.log.committed, peer.payloads[-1:]))

    assert [(2, [b"one"]), (3, [b"two"]), (4, [b"three"])] == committed


def test_what_was_committed_without_the_own_disk_waits_for_it() -> None:
    """The others are a majority; applied state is never ahead of the own log.

    Upstream may apply it before (async_storage_writes_apply_nonlocally_committed).
    """
    peer = Peer("1", "123")
    peer.lead()
    peer.lazy = True
    peer.node.propose(b"some data")
    sent = peer.take()
    applied = list(peer.applied)
    for message in sent:
        if isinstance(message, AppendEntries):
            peer.step(accept(message))
    assert (2, applied) == (peer.raft.log.committed, peer.applied)

    peer.persist()
    peer.take()

    assert [*applied, Entry(2, 1, b"some data")] == peer.applied


# -- changes of the members through the log ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "entered", "left"),
    [
        pytest.param(
            MembershipChange((ADD_2,)),
            Membership(voters=frozenset("12")),
            None,
            id="a voter",
        ),
        pytest.param(
            MembershipChange((LEARN_2,)),
            Membership(voters=frozenset("1"), learners=frozenset("2")),
            None,
            id="a learner",
        ),
        pytest.param(
            MembershipChange((LEARN_2,), Transition.JOINT_EXPLICIT),
            Membership(voters=frozenset("1"), outgoing=frozenset("1"), learners=frozenset("2")),
            Membership(voters=frozenset("1"), learners=frozenset("2")),
            id="a learner, explicit",
        ),
        pytest.param(
            MembershipChange((LEARN_2,), Transition.JOINT_IMPLICIT),
            Membership(voters=frozenset("1"), outgoing=frozenset("1"), learners=frozenset("2"), auto_leave=True),
            Membership(voters=frozenset("1"), learners=frozenset("2")),
            id="a learner, implicit",
        ),
        *(
            pytest.param(
                MembershipChange((ADD_2, LEARN_1, LEARN_3), transition),
                Membership(
                    voters=frozenset("2"),
                    outgoing=frozenset("1"),
                    learners=frozenset("3"),
                    learners_next=frozenset("1"),
                    auto_leave=transition is not Transition.JOINT_EXPLICIT,
                ),
                Membership(voters=frozenset("2"), learners=frozenset("13")),
                id=f"roles are swapped, {transition}",
            )
            for transition in Transition
        ),
    ],
)
def test_a_change_goes_through_the_log(made: MembershipChange, entered: Membership, left: Membership | None) -> None:
    """As it was proposed, and takes effect where it is applied (TestRawNodeProposeAndConfChange)."""
    peer = Peer("1", "1")
    peer.lead()
    peer.node.propose(b"some data")
    index = peer.node.propose_membership(made)
    node = peer.node
    ready = node.ready()
    assert ready.write is not None
    peer.storage.apply(ready.write)
    node.persisted(ready.write)

    committed = node.ready().committed
    assert [Entry(2, 1, b"some data"), Entry(index, 1, made.encode(), EntryKind.MEMBERSHIP)] == list(committed)
    after = node.apply_membership(committed[-1])
    assert entered == with_records_of(entered, after)
    node.applied(committed)

    # Who leaves by himself has proposed it when he has applied the change: nobody else does before that is applied.
    assert index + entered.auto_leave == node.raft.pending_membership_index
    if left is None:
        assert not node.raft.membership.joint
        return
    if not entered.auto_leave:
        assert index + 1 == node.propose_membership(MembershipChange())
    [leave] = [entry for entry in node.raft.log.unstable.entries if entry.index == index + 1]
    assert (MembershipChange().encode(), EntryKind.MEMBERSHIP) == (leave.data, leave.kind)
    # It would not commit here, where only one node runs: both halves have to.
    assert left == with_records_of(left, node.apply_membership(leave))


def with_records_of(expected: Membership, after: Membership) -> Membership:
    """The configuration that came out, without the records of its members; they are those of its ids."""
    assert expected.ids == set(after.members)
    return dataclasses.replace(after, members={})


def test_a_member_that_is_added_twice() -> None:
    """Changes nothing, and holds up no later change (TestRawNodeProposeAddDuplicateNode, TestNodeProposeAddDuplicate).

    Each is an entry of its own.
    """
    peer = Peer("1", "1")
    peer.lead()
    same = MembershipChange((MemberChange(ChangeKind.ADD_VOTER, "1"),))
    for made in (same, same, MembershipChange((ADD_2,))):
        peer.node.propose_membership(made)
        peer.take()

    assert [same.encode()] * 2 + [MembershipChange((ADD_2,)).encode()] == [entry.data for entry in peer.log[-3:]]
    assert frozenset("12") == peer.raft.membership.voters


def test_strangers_are_not_heard() -> None:
    """Answers of who is no member change nothing, and stop nothing (etcd: ErrStepPeerNotFound)."""
    peer = Peer("1", "12")
    peer.lead()

    for message in (
        HeartbeatResponse(to="1", sender="9", term=1),
        AppendEntriesResponse(to="1", sender="9", term=1, index=7),
        AppendEntriesResponse(to="1", sender="9", term=1, index=7, reject=True),
    ):
        assert [] == peer.step(message)
    assert (Role.LEADER, 1) == (peer.raft.role, peer.raft.log.committed)
