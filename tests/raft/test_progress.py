"""A leader's view of the members: etcd-io/raft's tracker tests, and the tracker over a membership."""

from __future__ import annotations

import pytest

from replikv.errors import InternalError
from replikv.raft.membership import Membership
from replikv.raft.progress import Inflights, Progress, ProgressState, Tracker
from replikv.raft.quorum import VoteResult

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def progress_in(state: ProgressState, match: int = 0, next_index: int = 1) -> Progress:
    """The progress of a member in this state."""
    return Progress(Inflights(256, None), match=match, next=next_index, state=state)


# -- Progress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "flag", "paused"),
    [
        (PROBE, False, False),
        (PROBE, True, True),
        (REPLICATE, False, False),
        (REPLICATE, True, True),
        (SNAPSHOT, False, True),
        (SNAPSHOT, True, True),
    ],
)
def test_is_paused(state: ProgressState, flag: bool, paused: bool) -> None:
    """Probing and replicating pause by the flag, a snapshot on its way always (TestProgressIsPaused)."""
    progress = progress_in(state)
    progress.paused = flag

    assert paused == progress.is_paused()


@pytest.mark.parametrize(("state", "pending", "next_index"), [(REPLICATE, 0, 2), (SNAPSHOT, 10, 11), (SNAPSHOT, 0, 2)])
def test_become_probe(state: ProgressState, pending: int, next_index: int) -> None:
    """Probing starts behind the match, or behind the snapshot that was sent (TestProgressBecomeProbe)."""
    progress = progress_in(state, match=1, next_index=5)
    progress.pending_snapshot = pending
    progress.inflights.add(4, 100)

    progress.become_probe()

    assert (PROBE, 1, next_index) == (progress.state, progress.match, progress.next)
    assert (0, 0) == (progress.pending_snapshot, progress.inflights.count)


def test_become_replicate() -> None:
    """Replicating starts behind the match (TestProgressBecomeReplicate)."""
    progress = progress_in(PROBE, match=1, next_index=5)
    progress.paused = True

    progress.become_replicate()

    assert (REPLICATE, 1, 2, False) == (progress.state, progress.match, progress.next, progress.paused)


def test_become_snapshot() -> None:
    """The snapshot's index is pending; the match stays, and what follows the snapshot is next (as in etcd's 3.6)."""
    progress = progress_in(PROBE, match=1, next_index=5)

    progress.become_snapshot(10)

    assert (SNAPSHOT, 1, 10, 11) == (progress.state, progress.match, progress.pending_snapshot, progress.next)


@pytest.mark.parametrize(
    ("index", "match", "next_index", "changed"),
    [(2, 3, 6, False), (3, 3, 6, False), (4, 4, 6, True), (5, 5, 6, True), (6, 6, 7, True)],
)
def test_maybe_update(index: int, match: int, next_index: int, changed: bool) -> None:
    """Match and next only grow; a late answer changes nothing (TestProgressUpdate, PySyncObj#166)."""
    progress = progress_in(PROBE, match=3, next_index=6)

    assert changed == progress.maybe_update(index)

    assert (match, next_index) == (progress.match, progress.next)


@pytest.mark.parametrize(
    ("state", "match", "next_index", "rejected", "hint", "changed", "expected"),
    [
        (REPLICATE, 5, 10, 5, 5, False, 10),
        (REPLICATE, 5, 10, 4, 4, False, 10),
        (REPLICATE, 5, 10, 9, 9, True, 6),
        (PROBE, 0, 0, 0, 0, False, 0),
        (PROBE, 0, 10, 5, 5, False, 10),
        (PROBE, 0, 10, 9, 9, True, 9),
        (PROBE, 0, 2, 1, 1, True, 1),
        (PROBE, 0, 1, 0, 0, True, 1),
        (PROBE, 0, 10, 9, 2, True, 3),
        (PROBE, 0, 10, 9, 0, True, 1),
    ],
)
def test_maybe_decrease_to(
    state: ProgressState, match: int, next_index: int, rejected: int, hint: int, changed: bool, expected: int
) -> None:
    """A rejection moves next back, never to the match or below; a late one does not (TestProgressMaybeDecr)."""
    progress = progress_in(state, match=match, next_index=next_index)

    assert changed == progress.maybe_decrease_to(rejected, hint)

    assert (match, expected) == (progress.match, progress.next)


def test_an_answer_resumes() -> None:
    """Both kinds of answer end the pause (TestProgressResume)."""
    progress = progress_in(PROBE, next_index=2)
    progress.paused = True
    progress.maybe_decrease_to(1, 1)
    assert not progress.paused

    progress.paused = True
    progress.maybe_update(2)
    assert not progress.paused


def test_a_probe_pauses_after_entries_alone() -> None:
    """One message with entries is sent, and next stays: it is not known to match. An empty one does not pause."""
    progress = progress_in(PROBE, next_index=3)

    progress.sent_entries(0, 0)
    assert not progress.paused

    progress.sent_entries(2, 100)
    assert (True, 3, 0) == (progress.paused, progress.next, progress.inflights.count)


def test_replicating_sends_ahead_until_the_window_is_full() -> None:
    """The next index moves with each message; a full window pauses, also after an empty message through it."""
    progress = Progress(Inflights(2, None), match=2, next=3, state=REPLICATE)

    progress.sent_entries(2, 100)
    assert (False, 5) == (progress.paused, progress.next)

    progress.sent_entries(1, 50)
    assert (True, 6, 150) == (progress.paused, progress.next, progress.inflights.bytes)

    progress.paused = False
    progress.sent_entries(0, 0)
    assert (True, 6, 2) == (progress.paused, progress.next, progress.inflights.count)


def test_no_entries_while_a_snapshot_is_on_its_way() -> None:
    """Entries beside a snapshot are a bug."""
    with pytest.raises(InternalError):
        progress_in(SNAPSHOT).sent_entries(1, 1)


# -- Inflights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "bytes_max", "full_at", "freed", "full_again_at"),
    [
        pytest.param(0, None, 0, 0, 0, id="always full"),
        pytest.param(1, None, 1, 1, 2, id="single entry"),
        pytest.param(1, 10, 1, 1, 2, id="single entry with overflow"),
        pytest.param(15, None, 15, 6, 22, id="multi entry"),
        pytest.param(8, 400, 4, 2, 7, id="slots and bytes, slight overflow"),
        pytest.param(8, 406, 4, 3, 8, id="exactly the bytes"),
        pytest.param(15, 408, 5, 1, 6, id="large overflow"),
    ],
)
def test_inflights_full(size: int, bytes_max: int | None, full_at: int, freed: int, full_again_at: int) -> None:
    """The window is full by messages or by bytes; its last message may overshoot these (TestInflightsFull)."""
    inflights = Inflights(size, bytes_max)
    added = 0
    for expected, free in ((full_at, freed), (full_again_at, 0)):
        while not inflights.full():
            inflights.add(added, 100 + added)
            added += 1
        assert expected == added
        with pytest.raises(InternalError, match="full"):
            inflights.add(100, 1024)
        inflights.free_le(free)


def test_inflights_free_le() -> None:
    """An acknowledgement frees everything up to its index; a late one nothing (TestInflightFreeTo)."""
    inflights = Inflights(10, None)
    for index in range(10):
        inflights.add(index, 100 + index)

    seen = []
    for index in (0, 4, 8):
        inflights.free_le(index)
        seen.append((inflights.count, inflights.bytes))
    for index in range(10, 15):
        inflights.add(index, 100 + index)
    for index in (12, 3, 14):
        inflights.free_le(index)
        seen.append((inflights.count, inflights.bytes))

    assert [(9, 945), (5, 535), (1, 109), (2, 227), (2, 227), (0, 0)] == seen


def test_inflights_reset() -> None:
    """A reset empties the window."""
    inflights = Inflights(1, None)
    inflights.add(1, 7)

    inflights.reset()

    assert (0, 0, False) == (inflights.count, inflights.bytes, inflights.full())


# -- Tracker -----------------------------------------------------------------------------------------------------------


def tracker_of(
    voters: str, *, outgoing: str = "", learners: str = "", learners_next: str = "", match: dict[str, int] | None = None
) -> Tracker:
    """A tracker whose members, of one letter each, have acknowledged these indexes."""
    membership = Membership(frozenset(voters), frozenset(outgoing), frozenset(learners), frozenset(learners_next))
    tracker = Tracker(membership, inflight_messages_max=4, inflight_bytes_max=None)
    for node_id, index in (match or {}).items():
        tracker.progress[node_id].match = index
    return tracker


def test_members_are_sorted() -> None:
    """Whoever walks over the members does so in the order of their ids (TestRaftNodes)."""
    tracker = tracker_of("cab", learners="d", outgoing="ae")

    assert list("abcde") == list(tracker.progress)
    assert list("abce") == tracker.voters()
    assert ["d"] == [node_id for node_id, progress in tracker.progress.items() if progress.is_learner]


def test_new_progress() -> None:
    """A member that was not heard of is tried with what follows the end of the own log, in a window of its own."""
    tracker = tracker_of("ab", learners="z")

    progress = tracker.new_progress("z", 7)

    assert (0, 8, PROBE) == (progress.match, progress.next, progress.state)
    assert (True, False) == (progress.is_learner, progress.recent_active)
    assert not tracker.new_progress("a", 7).is_learner
    assert progress.inflights is not tracker.new_progress("z", 7).inflights


@pytest.mark.parametrize(
    ("voters", "outgoing", "singleton"), [("a", "", True), ("ab", "", False), ("a", "b", False), ("", "", False)]
)
def test_is_singleton(voters: str, outgoing: str, singleton: bool) -> None:
    """Only one voter and nobody to leave behind decides alone."""
    assert singleton == tracker_of(voters, outgoing=outgoing, learners="z").is_singleton()


@pytest.mark.parametrize(
    ("voters", "outgoing", "match", "committed"),
    [
        ("abc", "", {"a": 5, "b": 3, "c": 1}, 3),
        ("abcd", "", {"a": 5, "b": 4, "c": 1}, 1),
        ("abc", "cde", {"a": 9, "b": 9, "c": 4, "d": 2, "e": 0}, 2),
    ],
)
def test_committed_index(voters: str, outgoing: str, match: dict[str, int], committed: int) -> None:
    """The quorum of each half counts; a learner's acknowledgement never does."""
    tracker = tracker_of(voters, outgoing=outgoing, learners="z", match={**match, "z": 99})

    assert committed == tracker.committed_index()


@pytest.mark.parametrize(
    ("active", "quorum"), [("", False), ("a", False), ("ab", False), ("abd", True), ("abcz", False), ("bcde", True)]
)
def test_quorum_active(active: str, quorum: bool) -> None:
    """A quorum of each half must have been heard of; learners do not count."""
    tracker = tracker_of("abc", outgoing="ade", learners="z")
    for node_id, progress in tracker.progress.items():
        progress.recent_active = node_id in active

    assert quorum == tracker.quorum_active()


def test_only_the_first_answer_counts() -> None:
    """A voter's second answer of an election changes nothing; a new election starts afresh."""
    tracker = tracker_of("abc")
    tracker.record_vote("a", granted=True)
    tracker.record_vote("b", granted=False)
    tracker.record_vote("b", granted=True)
    assert VoteResult.PENDING is tracker.tally()

    tracker.record_vote("c", granted=False)
    assert VoteResult.LOST is tracker.tally()

    tracker.reset_votes()
    assert VoteResult.PENDING is tracker.tally()


def test_votes_of_others_do_not_count() -> None:
    """Neither learners nor strangers elect anybody (akka-raft#49)."""
    tracker = tracker_of("abc", learners="z")
    for node_id in ("a", "z", "stranger"):
        tracker.record_vote(node_id, granted=True)
    assert VoteResult.PENDING is tracker.tally()

    tracker.record_vote("b", granted=True)
    assert VoteResult.WON is tracker.tally()


def test_switch() -> None:
    """Who stays keeps its progress, also as a learner; who leaves is forgotten; who is new counts as heard of."""
    tracker = tracker_of("abc", match={"a": 7, "b": 5})
    kept = tracker.progress["b"]
    tracker.progress["a"].recent_active = False

    tracker.switch(Membership(voters=frozenset("ad"), learners=frozenset("b")), 9)

    assert list("abd") == list(tracker.progress)
    assert kept is tracker.progress["b"]
    assert (5, True) == (kept.match, kept.is_learner)
    assert not tracker.progress["a"].recent_active
    new = tracker.progress["d"]
    assert (0, 9, True, False) == (new.match, new.next, new.recent_active, new.is_learner)
    assert ["a", "d"] == tracker.voters()


def test_a_leaving_voter_is_no_learner_yet() -> None:
    """A voter of the outgoing half that becomes a learner is one only when the joint configuration is left."""
    tracker = tracker_of("b", outgoing="a", learners_next="a")
    assert not tracker.progress["a"].is_learner

    tracker.switch(Membership(voters=frozenset("b"), learners=frozenset("a")), 1)

    assert tracker.progress["a"].is_learner
