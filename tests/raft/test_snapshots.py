"""Snapshots instead of entries that are gone (paper, section 7): etcd-io/raft's raft_test and raft_snap_test."""

from __future__ import annotations

import pytest
from logs import indexes, snapshot_at, span, terms
from network import Network, Peer, accept, only, three, voters

from replikv.errors import InternalError
from replikv.raft.entries import Entry, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntries, AppendEntriesResponse, HeartbeatResponse, InstallSnapshot
from replikv.raft.progress import Progress, ProgressState
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage

FOLLOWER, LEADER = Role.FOLLOWER, Role.LEADER
TESTED = snapshot_at(11, 11, "1", "2")
"""The snapshot of raft_snap_test."""


def metadata(
    index: int, term: int, *, voters: str, outgoing: str = "", learners: str = "", learners_next: str = ""
) -> SnapshotMetadata:
    """A snapshot with these sets of members."""
    membership = Membership(frozenset(voters), frozenset(outgoing), frozenset(learners), frozenset(learners_next))
    return SnapshotMetadata(index, term, membership)


def leader_with_snapshot(snapshot: SnapshotMetadata = TESTED) -> tuple[Peer, Progress]:
    """A leader whose log begins with the snapshot, and its progress of node 2."""
    storage = MemoryStorage()
    storage.install(snapshot)
    peer = Peer("1", storage=storage)
    peer.raft.become_candidate()
    peer.raft.become_leader()
    peer.take()
    return peer, peer.raft.tracker.progress["2"]


# -- taking one --------------------------------------------------------------------------------------------------------


def test_restore() -> None:
    """It takes the place of the log, and brings its members; the same again is no news (TestRestore)."""
    peer = Peer("1", "12")
    snapshot = snapshot_at(11, 11, "1", "2", "3")

    assert peer.raft.restore(snapshot)
    assert (11, 11) == peer.raft.log.last_entry_id()
    assert frozenset("123") == peer.raft.membership.voters
    assert 11 == peer.raft.membership_index

    assert not peer.raft.restore(snapshot)
    # The data is not applied yet: no state to stand on.
    for _ in range(20):
        peer.node.tick()
    assert FOLLOWER is peer.raft.role


@pytest.mark.parametrize(
    ("node_id", "before", "snapshot", "voting"),
    [
        pytest.param(
            "3",
            Membership(voters=frozenset("12"), learners=frozenset("3")),
            metadata(11, 11, voters="12", learners="3"),
            False,
            id="a learner stays one (TestRestoreWithLearner)",
        ),
        pytest.param(
            "3",
            voters(*"123"),
            metadata(11, 11, voters="12", learners="3"),
            False,
            id="a voter becomes a learner (TestRestoreVoterToLearner)",
        ),
        pytest.param(
            "3",
            Membership(voters=frozenset("12"), learners=frozenset("3")),
            metadata(11, 11, voters="123"),
            True,
            id="a learner becomes a voter (TestRestoreLearnerPromotion)",
        ),
        pytest.param(
            "1",
            voters(*"123"),
            metadata(11, 11, voters="234", outgoing="123"),
            True,
            id="an outgoing voter (TestRestoreWithVotersOutgoing)",
        ),
        pytest.param(
            "1",
            voters(*"123"),
            metadata(11, 11, voters="23", outgoing="123", learners_next="1"),
            True,
            id="an outgoing voter that will learn",
        ),
    ],
)
def test_restore_brings_the_members(node_id: str, before: Membership, snapshot: SnapshotMetadata, voting: bool) -> None:
    """Whatever the node was before, it is what the snapshot says."""
    peer = Peer(node_id, before)

    assert peer.raft.restore(snapshot)

    assert (11, 11) == peer.raft.log.last_entry_id()
    assert snapshot.membership == peer.raft.membership
    assert sorted(snapshot.membership.ids) == list(peer.raft.tracker.progress)
    assert sorted(snapshot.membership.voters | snapshot.membership.outgoing) == peer.raft.tracker.voters()
    peer.take()
    assert voting is not peer.raft.tracker.progress[node_id].is_learner


def test_a_snapshot_without_the_receiver_is_refused() -> None:
    """It was meant for somebody else, or made before the node was added (etcd: the safeguard in restore)."""
    peer = Peer("3", "123", log=terms(1), term=1)

    sent = peer.step(InstallSnapshot(to="3", sender="1", term=1, snapshot=snapshot_at(11, 1, "1", "2")))

    assert [AppendEntriesResponse(to="1", sender="3", term=1, index=0)] == sent
    assert (1, 0) == (peer.raft.log.last_index(), peer.raft.log.committed)


def test_a_snapshot_of_what_is_there_is_not_taken() -> None:
    """An older one is no news; one that matches the log moves the commit index (TestRestoreIgnoreSnapshot)."""
    peer = Peer("1", "12", log=terms(1, 1, 1), term=1, commit=1)

    assert not peer.raft.restore(snapshot_at(1, 1, "1", "2"))
    assert 1 == peer.raft.log.committed

    assert not peer.raft.restore(snapshot_at(2, 1, "1", "2"))
    assert (2, 3) == (peer.raft.log.committed, peer.raft.log.last_index())


def test_only_a_follower_takes_one() -> None:
    """Who is sent one by a leader of its term follows it by then."""
    peer = Peer("1", "12")
    peer.raft.become_candidate()

    with pytest.raises(InternalError, match="cannot take a snapshot"):
        peer.raft.restore(TESTED)

    peer = Peer("1", "12")
    peer.raft.become_candidate()
    peer.step(InstallSnapshot(to="1", sender="2", term=1, snapshot=TESTED))
    assert (FOLLOWER, "2", 11) == (peer.raft.role, peer.raft.leader, peer.raft.log.last_index())


def test_a_snapshot_is_acknowledged_when_it_is_durable() -> None:
    """Not when it arrives: the entries before it are gone at the leader."""
    peer = Peer("2", "12")
    peer.lazy = True

    assert [] == peer.step(InstallSnapshot(to="2", sender="1", term=11, snapshot=TESTED))

    assert [AppendEntriesResponse(to="1", sender="2", term=11, index=11)] == peer.persist()


def test_entries_behind_a_snapshot_wait_for_it() -> None:
    """What follows is not applied before the snapshot's state is in place (RedisLabs/raft#49)."""
    peer = Peer("2", "12")
    peer.lazy = True
    peer.step(
        InstallSnapshot(to="2", sender="1", term=11, snapshot=TESTED),
        AppendEntries(
            to="2",
            sender="1",
            term=11,
            previous_index=11,
            previous_term=11,
            entries=tuple(terms(11, 11, at=12)),
            commit=13,
        ),
    )
    assert ([], 13) == (peer.applied, peer.raft.log.committed)

    peer.persist()
    peer.take()

    assert [12, 13] == [entry.index for entry in peer.applied]


def test_what_was_handed_out_before_a_snapshot_is_not_waited_for() -> None:
    """Its state takes their place: nobody applies them, and what follows it must not wait for that."""
    peer = Peer("3", log=span(1, 3, data=b"x" * 100), term=1, commit=3, applying_bytes_max=150)
    ready = peer.node.ready()
    assert [1] == indexes(ready.committed)
    assert peer.raft.log.applying_paused

    peer.step(InstallSnapshot(to="3", sender="1", term=1, snapshot=snapshot_at(9, 1, "1", "2", "3")))
    entries = (Entry(10, 1, b"behind it"),)
    peer.step(AppendEntries(to="3", sender="1", term=1, previous_index=9, previous_term=1, entries=entries, commit=10))

    assert (list(entries), 0) == (peer.applied, peer.raft.log.applying_bytes)


def test_a_second_snapshot_takes_the_place_of_the_first() -> None:
    """While that is on its way to the disk; what becomes durable late changes nothing (etcd#18055)."""
    peer = Peer("2", "12")
    peer.lazy = True
    for index in (11, 20):
        peer.step(InstallSnapshot(to="2", sender="1", term=11, snapshot=snapshot_at(index, 11, "1", "2")))

    peer.persist(1)
    assert peer.raft.log.has_unstable_snapshot()
    peer.persist()

    assert (20, 20) == (peer.raft.log.applied, peer.storage.last_index())
    assert not peer.raft.log.has_unstable_snapshot()


# -- sending one -------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_sent_where_entries_are_gone() -> None:
    """Once the follower has shown that it lacks what is compacted (TestProvideSnap)."""
    peer, progress = leader_with_snapshot()
    progress.next = peer.raft.log.first_index()

    sent = peer.step(
        AppendEntriesResponse(to="1", sender="2", term=peer.raft.term, index=progress.next - 1, reject=True)
    )

    assert [InstallSnapshot(to="2", sender="1", term=peer.raft.term, snapshot=TESTED)] == sent


def test_nothing_is_sent_to_who_is_not_there() -> None:
    """A snapshot is too much to lose (TestIgnoreProvidingSnap)."""
    peer, progress = leader_with_snapshot()
    progress.next = peer.raft.log.first_index() - 1
    progress.recent_active = False

    peer.node.propose(b"somedata")

    assert [] == peer.take()


def test_the_snapshot_on_its_way_is_known() -> None:
    """Its index, so that what follows can be sent behind it (TestSendingSnapshotSetPendingSnapshot)."""
    peer, progress = leader_with_snapshot()
    progress.next = peer.raft.log.first_index()

    peer.step(AppendEntriesResponse(to="1", sender="2", term=peer.raft.term, index=progress.next - 1, reject=True))

    assert (ProgressState.SNAPSHOT, 11) == (progress.state, progress.pending_snapshot)


def test_entries_wait_while_a_snapshot_is_on_its_way() -> None:
    """TestPendingSnapshotPauseReplication."""
    peer, progress = leader_with_snapshot()
    progress.become_snapshot(11)

    peer.node.propose(b"somedata")

    assert [] == peer.take()


@pytest.mark.parametrize(
    ("failed", "next_index"),
    [
        pytest.param(True, 1, id="failed: try again from the start (TestSnapshotFailure)"),
        pytest.param(False, 12, id="taken: go on behind it (TestSnapshotSucceed)"),
    ],
)
def test_what_became_of_the_snapshot(failed: bool, next_index: int) -> None:
    """The follower is probed again, after its next answer to a heartbeat."""
    peer, progress = leader_with_snapshot()
    progress.next = 1
    progress.become_snapshot(11)

    peer.node.report_snapshot("2", failed=failed)

    assert (0, next_index, True) == (progress.pending_snapshot, progress.next, progress.paused)
    assert ProgressState.PROBE is progress.state
    assert [] == peer.take()


def test_reports_about_others_are_passed_over() -> None:
    """Late ones: of who is gone, or has caught up otherwise."""
    peer, progress = leader_with_snapshot()
    progress.become_replicate()

    peer.node.report_snapshot("2", failed=True)
    peer.node.report_snapshot("9", failed=True)
    peer.node.report_unreachable("9")

    assert ProgressState.REPLICATE is progress.state


def test_an_acknowledgement_ends_the_snapshot() -> None:
    """Entries flow again, the no-op first (TestSnapshotAbort)."""
    peer, progress = leader_with_snapshot()
    progress.next = 1
    progress.become_snapshot(11)

    [append] = only(peer.step(AppendEntriesResponse(to="1", sender="2", term=peer.raft.term, index=11)), AppendEntries)

    assert (11, 12) == (append.previous_index, append.entries[0].index)
    assert (0, 13, 1) == (progress.pending_snapshot, progress.next, progress.inflights.count)


def test_a_follower_that_catches_up_otherwise_needs_no_snapshot() -> None:
    """Its acknowledgement meets the log again while the snapshot is still being sent."""
    peer, progress = leader_with_snapshot()
    progress.become_snapshot(15)

    peer.step(AppendEntriesResponse(to="1", sender="2", term=peer.raft.term, index=11))

    assert ProgressState.REPLICATE is progress.state


# -- stories -----------------------------------------------------------------------------------------------------------


def compact(peer: Peer) -> None:
    """Take a snapshot at what is applied, and forget the log before it."""
    index = peer.raft.log.applied
    peer.storage.record_snapshot(SnapshotMetadata(index, peer.raft.log.term(index), peer.raft.membership))
    peer.storage.compact(index)


def test_an_older_snapshot_than_the_one_that_was_sent_is_enough() -> None:
    """If the log goes on behind it: it came by another way (snapshot_succeed_via_app_resp_behind)."""
    peer = Peer("1", "123", log=span(1, 12), term=1, commit=12)
    peer.lead(acknowledged=False)
    peer.storage.record_snapshot(snapshot_at(12, 1, *"123"))
    peer.storage.compact(11)
    progress = peer.raft.tracker.progress["3"]
    [sent] = only(
        peer.step(AppendEntriesResponse(to="1", sender="3", term=2, index=12, reject=True, hint_index=5, hint_term=1)),
        InstallSnapshot,
    )
    assert (12, ProgressState.SNAPSHOT, 12) == (sent.snapshot.index, progress.state, progress.pending_snapshot)
    assert [] == peer.step(AppendEntriesResponse(to="1", sender="3", term=2, index=10))
    assert ProgressState.SNAPSHOT is progress.state

    [append] = only(peer.step(AppendEntriesResponse(to="1", sender="3", term=2, index=11)), AppendEntries)

    assert (11, [12, 13]) == (append.previous_index, indexes(append.entries))
    assert (ProgressState.REPLICATE, 11, 14) == (progress.state, progress.match, progress.next)


def test_a_slow_node_is_restored() -> None:
    """It was away while the log was compacted, and has everything committed in the end (TestSlowNodeRestore)."""
    network = three()
    network.campaign("1")
    network.isolate("3")
    for _ in range(101):
        network.propose("1", b"")
    compact(network["1"])
    network.recover()
    for _ in range(2):
        network.beat("1")
    assert network["1"].raft.tracker.progress["3"].recent_active

    network.propose("1", b"")
    network.propose("1", b"")

    assert only(network.sent, InstallSnapshot)
    assert {104} == {peer.raft.log.committed for peer in network}


def test_a_learner_is_restored() -> None:
    """It catches up through a snapshot like anybody else (TestLearnerReceiveSnapshot)."""
    membership = Membership(voters=frozenset("1"), learners=frozenset("2"))
    network = Network(
        {"1": Peer("1", membership), "2": Peer("2", Membership(voters=frozenset("1"), learners=frozenset("2")))}
    )
    network.isolate("2")
    network.campaign("1")
    for _ in range(5):
        network.propose("1", b"")
    compact(network["1"])
    network.recover()

    for _ in range(2):
        network.beat("1")

    assert only(network.sent, InstallSnapshot)
    assert {6} == {peer.raft.log.committed for peer in network}


def test_entries_in_flight_across_a_snapshot() -> None:
    """Late appends from before the snapshot are answered with what is committed, and apply nothing twice."""
    peer = Peer("2", "12", log=terms(1, 1), term=1)
    late = AppendEntries(
        to="2", sender="1", term=1, previous_index=2, previous_term=1, entries=tuple(terms(1, 1, at=3)), commit=4
    )
    peer.step(InstallSnapshot(to="2", sender="1", term=1, snapshot=snapshot_at(11, 1, "1", "2")))

    assert [AppendEntriesResponse(to="1", sender="2", term=1, index=11)] == peer.step(late)

    assert ([], 11) == (peer.applied, peer.raft.log.last_index())


def test_a_lost_snapshot_is_sent_again() -> None:
    """The failure is reported, and the next answer to a heartbeat leads to another one."""
    peer, progress = leader_with_snapshot()
    progress.next = 1
    progress.recent_active = True
    answer = HeartbeatResponse(to="1", sender="2", term=peer.raft.term)
    [first] = only(peer.step(answer), InstallSnapshot)
    assert [] == only(peer.step(answer), InstallSnapshot)

    peer.node.report_snapshot("2", failed=True)
    [second] = only(peer.step(answer), InstallSnapshot)

    assert first == second


def test_an_append_is_not_sent_beside_a_snapshot_that_was_taken() -> None:
    """Taken, reported and acknowledged in any order: the follower replicates once, behind it."""
    peer, progress = leader_with_snapshot()
    progress.next = 1
    progress.become_snapshot(11)
    [append] = only(peer.step(AppendEntriesResponse(to="1", sender="2", term=peer.raft.term, index=11)), AppendEntries)

    peer.node.report_snapshot("2", failed=False)

    assert ProgressState.REPLICATE is progress.state
    peer.step(accept(append))
    assert 12 == progress.match


def test_a_snapshot_may_be_newer_than_the_commit_index_on_disk() -> None:
    """That is not saved for its own sake: the node starts with what the snapshot proves to be committed."""
    storage = MemoryStorage(voters(*"123"))
    storage.append(terms(1, 1, 1))
    storage.record_snapshot(snapshot_at(2, 1, "1", "2", "3"))

    peer = Peer("1", storage=storage, applied=2)

    assert (2, 2) == (peer.raft.log.committed, peer.raft.log.applied)
