"""What is wrong with a peer, in words."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from replikv.peer.doctor import (
    BEHIND_ENTRIES,
    Contact,
    Divergence,
    Following,
    Observations,
    SnapshotSending,
    diagnose,
)
from replikv.settings import Settings

WELL = Observations(
    node_id="a",
    role="follower",
    election_timeout_s=1.0,
    leader="b",
    leader_since_s=3600.0,
    voters=("a", "b", "c"),
    # Followers of a leader have nothing to say to each other.
    contacts=(Contact(node_id="b", silent_s=0.1), Contact(node_id="c", silent_s=3500.0)),
)

LEADER = dataclasses.replace(
    WELL,
    role="leader",
    leader="a",
    contacts=(Contact(node_id="b", silent_s=0.1), Contact(node_id="c", silent_s=0.1)),
    followers=(Following(node_id="b"), Following(node_id="c", lacks_entries=3, unmoved_s=0.1)),
)

LEADERLESS = dataclasses.replace(WELL, role="candidate", leader=None, leader_since_s=4.1)

START_BOTH = "start them, or mend the network between them and a"


def contacts(*, cut: str = "", silent: str = "", silent_s: float = 9.0, well: str = "") -> tuple[Contact, ...]:
    """Members without a connection, with one that is silent, and well."""
    return (
        *(Contact(node_id=node_id, silent_s=silent_s, connected=False) for node_id in cut),
        *(Contact(node_id=node_id, silent_s=silent_s) for node_id in silent),
        *(Contact(node_id=node_id, silent_s=0.1) for node_id in well),
    )


def having(base: Observations, **changes: Any) -> Observations:
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    "observations",
    [
        pytest.param(WELL, id="a follower"),
        pytest.param(LEADER, id="a leader"),
        pytest.param(having(LEADER, voters=("a",), contacts=(), followers=()), id="a cluster of one"),
        pytest.param(
            having(WELL, node_id="d", contacts=contacts(well="b", silent="ac", silent_s=math.inf)),
            id="a learner, which hears of the leader alone",
        ),
        pytest.param(
            having(LEADER, leader_since_s=0.5, contacts=contacts(well="b", silent="c", silent_s=math.inf)),
            id="a leader just elected, who was not answered yet",
        ),
        pytest.param(
            having(LEADER, followers=(Following(node_id="b", lacks_entries=BEHIND_ENTRIES, unmoved_s=0.1),)),
            id="a follower that is somewhat behind and moves",
        ),
        pytest.param(having(LEADER, followers=(Following(node_id="b", unmoved_s=9e9),)), id="nothing to replicate"),
        pytest.param(
            having(
                LEADER,
                followers=(
                    Following(
                        node_id="b",
                        lacks_entries=10**6,
                        unmoved_s=60.0,
                        snapshot=SnapshotSending(since_s=60.0, bytes_sent=10**9, unmoved_s=0.1),
                    ),
                ),
            ),
            id="a snapshot that moves",
        ),
        pytest.param(having(WELL, outgoing=("a", "b"), membership_change_s=1.0), id="joint for a moment"),
        pytest.param(having(WELL, unapplied_entries=9, unapplied_s=0.2), id="entries to apply, for a moment"),
        pytest.param(having(WELL, unapplied_s=9.0), id="nothing to apply"),
        pytest.param(having(WELL, stall_s=0.4, stall_ago_s=1.0), id="a short stall"),
        pytest.param(having(WELL, stall_s=3.0, stall_ago_s=900.0), id="a stall long ago"),
        pytest.param(having(WELL, clock_jump_s=0.9, clock_jump_ago_s=1.0), id="a clock corrected a little"),
        pytest.param(having(WELL, clock_jump_s=60.0, clock_jump_ago_s=900.0), id="a jump long ago"),
        pytest.param(
            having(WELL, clock_jump_s=0.05, clock_jump_ago_s=1.0, lease_reads=True), id="within what a lease allows"
        ),
        pytest.param(
            having(WELL, disk_free_bytes=1 << 20, disk_needed_bytes=1 << 20), id="a disk with just enough room"
        ),
        pytest.param(having(WELL, disk_needed_bytes=1 << 20), id="a disk of unknown room"),
        pytest.param(having(WELL, proposals_in_flight=9, proposals_max=10), id="nearly as many operations as may be"),
        pytest.param(having(WELL, proposals_in_flight=9), id="a limit that is not known"),
        pytest.param(having(WELL, state_bytes=899, state_bytes_max=1000), id="a map that is nearly nine tenths full"),
        pytest.param(having(WELL, keys=89, keys_max=100), id="nearly nine tenths of the keys"),
    ],
)
def test_a_peer_that_is_well_has_nothing_to_say(observations: Observations) -> None:
    """Nothing is told that goes by itself: whoever reads one line may believe that there is something to do."""
    assert [] == diagnose(observations)


@pytest.mark.parametrize(
    ("observations", "reasons"),
    [
        pytest.param(
            having(LEADERLESS, contacts=contacts(cut="bc")),
            f"no leader: 2 of 3 voters unreachable for 4.1 s: b, c; {START_BOTH}",
            id="a majority is not connected",
        ),
        pytest.param(
            having(LEADERLESS, contacts=contacts(silent="bc", silent_s=3.0)),
            f"no leader: 2 of 3 voters unreachable for 3.0 s: b, c; {START_BOTH}",
            id="a majority is connected and silent",
        ),
        pytest.param(
            having(LEADERLESS, contacts=contacts(cut="c", silent="b", silent_s=math.inf)),
            f"no leader: 2 of 3 voters unreachable for 4.1 s: b, c; {START_BOTH}",
            id="a majority was never heard of",
        ),
        pytest.param(
            having(LEADERLESS, contacts=()),
            f"no leader: 2 of 3 voters unreachable for 4.1 s: b, c; {START_BOTH}",
            id="of a majority nothing is observed at all",
        ),
        pytest.param(
            having(LEADERLESS, leader_since_s=1.2, contacts=contacts(silent="bc", silent_s=3000.0)),
            "no leader for 1.2 s: an election is under way, 3 of 3 voters can be reached; wait",
            id="silent from before the leader was lost",
        ),
        pytest.param(
            having(LEADERLESS, contacts=contacts(cut="b", well="c")),
            "no leader for 4.1 s: an election is under way, 2 of 3 voters can be reached; wait\n"
            "a cannot reach b: no connection, last heard of 9.0 s ago; start b, or check its address and the"
            " network between them",
            id="an election without the old leader",
        ),
        pytest.param(
            having(LEADERLESS, leader_since_s=12.04, contacts=contacts(well="bc")),
            "no leader for 12.0 s although 3 of 3 voters can be reached: no election succeeds, or who won it"
            " cannot reach a; ask the doctor of the others, and if disks or event loops are slow, raise"
            " Settings.election_timeout_s (1.0) on every peer",
            id="elections that fail",
        ),
        pytest.param(
            having(LEADERLESS, voters=("a", "b"), contacts=contacts(cut="b")),
            "no leader: 1 of 2 voters unreachable for 4.1 s: b; start it, or mend the network between it and a",
            id="half is no majority",
        ),
        pytest.param(
            having(LEADERLESS, outgoing=("a", "d", "e"), contacts=contacts(well="bc", cut="de")),
            "no leader: 2 of 3 outgoing voters unreachable for 4.1 s: d, e; start them, or mend the network"
            " between them and a",
            id="one half of a joint configuration",
        ),
        pytest.param(
            having(LEADERLESS, node_id="d", role="follower", contacts=contacts(silent="abc", silent_s=4.0)),
            "no leader for 4.1 s: an election is under way, 3 of 3 voters can be reached; wait",
            id="a learner, to whom nobody campaigns",
        ),
        pytest.param(
            having(LEADERLESS, node_id="d", role="follower", voters=(), contacts=()),
            "no leader: d knows of no voter, so it has joined no cluster yet; check join=",
            id="a joiner that knows nobody",
        ),
        pytest.param(
            having(
                LEADERLESS, node_id="d", voters=(), contacts=(), waits_for="somebody of join= to answer", waiting_s=2.0
            ),
            "d waits for somebody of join= to answer, for 2.0 s by now; if that goes on, ask the doctor of the leader",
            id="a joiner that knows what it waits for",
        ),
    ],
)
def test_no_leader(observations: Observations, reasons: str) -> None:
    """An election under way, one that cannot be won, and one that should have been: they need different hands."""
    assert reasons == "\n".join(diagnose(observations))


@pytest.mark.parametrize(
    ("observations", "reasons"),
    [
        pytest.param(
            having(LEADER, contacts=contacts(cut="b", silent="c", silent_s=1.5)),
            "no quorum: a leads, but 2 of 3 voters are unreachable for 1.5 s: b, c; nothing is committed; start"
            " them, or mend the network between them and a",
            id="a leader alone",
        ),
        pytest.param(
            having(LEADER, outgoing=("a", "d"), contacts=contacts(cut="d", well="bc")),
            "no quorum: a leads, but 1 of 2 outgoing voters are unreachable for 9.0 s: d; nothing is committed;"
            " start it, or mend the network between it and a",
            id="a leader without the outgoing half",
        ),
        pytest.param(
            having(LEADER, contacts=contacts(silent="c", silent_s=2.04, well="b")),
            "c is connected to a but silent, last heard of 2.0 s ago: its process is stopped or busy, or the"
            " network loses what it sends; look at c",
            id="a follower that is silent",
        ),
        pytest.param(
            having(WELL, contacts=contacts(silent="b", silent_s=1.3, well="c")),
            "b is connected to a but silent, last heard of 1.3 s ago: its process is stopped or busy, or the"
            " network loses what it sends; look at b",
            id="a leader that is silent",
        ),
        pytest.param(
            having(WELL, contacts=(*contacts(silent="b", silent_s=1.3), *contacts(cut="c"))),
            "b is connected to a but silent, last heard of 1.3 s ago: its process is stopped or busy, or the"
            " network loses what it sends; look at b\n"
            "a cannot reach c: no connection, last heard of 9.0 s ago; start c, or check its address and the network"
            " between them",
            id="a follower counts no quorum: whom it cannot reach the leader may",
        ),
        pytest.param(
            having(WELL, contacts=contacts(cut="c", silent_s=math.inf, well="b")),
            "a cannot reach c: no connection, never heard of; start c, or check its address and the network"
            " between them",
            id="never reached",
        ),
        pytest.param(
            having(WELL, contacts=(Contact(node_id="b", silent_s=0.1, connected=False), *contacts(well="c"))),
            "a cannot reach b, which reaches a (last heard of 0.1 s ago): check the address of b, and what lies"
            " on the way there",
            id="cut in one direction",
        ),
        pytest.param(
            having(WELL, contacts=contacts(well="b", cut="c"), refused_by={"c": "wrong-cluster: check members="}),
            "c refuses a: wrong-cluster: check members=",
            id="refused by another, which is why it cannot be reached",
        ),
        pytest.param(
            having(WELL, refused={"d": "wrong-incarnation: remove 'd' and let it join anew"}),
            "a refuses d: wrong-incarnation: remove 'd' and let it join anew",
            id="another refused",
        ),
    ],
)
def test_who_cannot_be_reached(observations: Observations, reasons: str) -> None:
    """Everybody is named once, with the nearest reason."""
    assert reasons == "\n".join(diagnose(observations))


def following(**changes: Any) -> Observations:
    """A leader with b following it like this."""
    return having(LEADER, followers=(Following(node_id="b", **changes),))


STUCK = SnapshotSending(since_s=61.0, bytes_sent=3 * 1024 * 1024, unmoved_s=12.0)


@pytest.mark.parametrize(
    ("observations", "reasons"),
    [
        pytest.param(
            following(lacks_entries=1234, unmoved_s=8.0),
            "b lags: 1,234 entries behind and not moving for 8.0 s; ask the doctor of b whether its disk is full"
            " or slow",
            id="behind, not moving",
        ),
        pytest.param(
            following(lacks_entries=BEHIND_ENTRIES + 1, unmoved_s=0.1),
            "b lags: 5,001 entries behind, and catching up; wait, and do not stop other voters meanwhile",
            id="far behind, moving",
        ),
        pytest.param(
            following(lacks_entries=10**6, unmoved_s=61.0, snapshot=STUCK),
            "the snapshot for b is stuck: 3.0 MiB sent in 61.0 s, none for 12.0 s; ask the doctor of b whether"
            " its disk is full, and look at the network between them",
            id="a stuck snapshot",
        ),
        pytest.param(
            having(
                following(lacks_entries=10**6, unmoved_s=61.0, snapshot=STUCK), contacts=contacts(cut="b", well="c")
            ),
            "a cannot reach b: no connection, last heard of 9.0 s ago; start b, or check its address and the"
            " network between them",
            id="behind because it cannot be reached",
        ),
        pytest.param(
            having(WELL, node_id="d", contacts=contacts(well="abc"), waits_for="the log to 1,200", waiting_s=7.0),
            "d waits for the log to 1,200, for 7.0 s by now; if that goes on, ask the doctor of the leader",
            id="a learner that waits",
        ),
        pytest.param(
            having(WELL, unapplied_entries=12345, unapplied_s=6.0),
            "a does not keep up: 12,345 committed entries still to apply, and always some for 6.0 s: its replica"
            " is that far behind; give the process more time to run, or send fewer commands",
            id="a replica that does not keep up",
        ),
    ],
)
def test_who_is_behind(observations: Observations, reasons: str) -> None:
    """By how much, whether it moves, and where to look."""
    assert reasons == "\n".join(diagnose(observations))


@pytest.mark.parametrize(
    ("observations", "reasons"),
    [
        pytest.param(
            having(WELL, outgoing=("b", "d", "a"), membership_change_s=12.0, contacts=contacts(well="b", cut="cd")),
            "the configuration has been joint for 12.0 s: until it is left, everything needs a majority of a, b,"
            " d and one of a, b, c; bring back c, d\n"
            "a cannot reach c: no connection, last heard of 9.0 s ago; start c, or check its address and the"
            " network between them\n"
            "a cannot reach d: no connection, last heard of 9.0 s ago; start d, or check its address and the"
            " network between them",
            id="joint, with members missing",
        ),
        pytest.param(
            having(WELL, outgoing=("a", "b"), membership_change_s=5.0),
            "the configuration has been joint for 5.0 s: until it is left, everything needs a majority of a, b"
            " and one of a, b, c; ask the doctor of the leader what it waits for",
            id="joint, with everybody there",
        ),
        pytest.param(
            having(WELL, membership_change_s=5.0),
            "a membership change has been under way for 5.0 s; ask the doctor of the leader what it waits for",
            id="a change of one",
        ),
    ],
)
def test_a_membership_change_that_stays(observations: Observations, reasons: str) -> None:
    """A joint configuration needs two majorities for as long as it lasts."""
    assert reasons == "\n".join(diagnose(observations))


@pytest.mark.parametrize(
    ("observations", "reasons"),
    [
        pytest.param(
            having(WELL, stall_s=1.26, stall_ago_s=20.0),
            "the event loop of a stood still for 1.3 s, 20.0 s ago: a call blocked it, or the process was"
            " stopped; a leader that does so for Settings.election_timeout_s (1.0 s) is replaced: move what"
            " blocks into a thread (trio.to_thread)",
            id="a stalled process",
        ),
        pytest.param(
            having(WELL, clock_jump_s=3600.0, clock_jump_ago_s=5.0),
            "the wall clock of a jumped ahead by 3600.0 s, 5.0 s ago (it was set, or the machine slept or was"
            " moved): nothing here rests on it, but your own timestamps may; look at its time synchronization",
            id="a clock jumps ahead",
        ),
        pytest.param(
            having(WELL, clock_jump_s=-2.0, clock_jump_ago_s=5.0),
            "the wall clock of a was set back by 2.0 s, 5.0 s ago: nothing here rests on it, but your own"
            " timestamps may; look at its time synchronization",
            id="a clock is set back",
        ),
        pytest.param(
            having(WELL, clock_jump_s=0.2, clock_jump_ago_s=5.0, lease_reads=True),
            "lease reads rest on clocks, and the wall clock of a jumped ahead by 0.2 s, 5.0 s ago (it was set, or"
            " the machine slept or was moved): reads may have been stale then; unless somebody set the wall clock"
            " by hand, turn Settings.lease_reads off on every peer",
            id="a clock jumps, with lease reads",
        ),
        pytest.param(
            having(WELL, disk_full=True, disk_free_bytes=512, disk_needed_bytes=1 << 30),
            "the disk of a is full (512 bytes free): it acknowledges nothing; make room, and it goes on by itself",
            id="a full disk",
        ),
        pytest.param(
            having(WELL, disk_full=True),
            "the disk of a is full: it acknowledges nothing; make room, and it goes on by itself",
            id="a full disk of unknown room",
        ),
        pytest.param(
            having(WELL, disk_free_bytes=1536, disk_needed_bytes=3 << 29),
            "the disk of a is about to be full: 1.5 KiB free, and the next log segment and snapshot take 1.5 GiB;"
            " make room",
            id="a full disk ahead",
        ),
        pytest.param(
            having(WELL, snapshot_failure="[Errno 28] No space left on device"),
            "the last snapshot of a failed: [Errno 28] No space left on device; until one is taken the log grows:"
            " mend that, and call cluster.snapshot()",
            id="a snapshot that failed",
        ),
        pytest.param(
            having(WELL, proposals_in_flight=2048, proposals_max=2048),
            "2,048 operations of a are in flight, as many as may be: further ones wait; send fewer at once, or"
            " raise Settings.proposals_max",
            id="as many operations as may be",
        ),
    ],
)
def test_what_is_wrong_with_this_process(observations: Observations, reasons: str) -> None:
    """Its time, its disk, its load."""
    assert reasons == "\n".join(diagnose(observations))


def test_the_most_important_comes_first() -> None:
    """What stops the cluster, then what may be wrong, then what stops a member, then what is about to."""
    everything = having(
        LEADERLESS,
        contacts=contacts(cut="bc"),
        membership_change_s=60.0,
        waits_for="a snapshot",
        refused_by={"c": "wrong-incarnation"},
        unapplied_entries=1,
        unapplied_s=60.0,
        stall_s=5.0,
        stall_ago_s=5.0,
        clock_jump_s=5.0,
        clock_jump_ago_s=5.0,
        lease_reads=True,
        proposals_in_flight=1,
        proposals_max=1,
        disk_full=True,
        snapshot_failure="no room",
    )
    beginnings = (
        "no leader",
        "lease reads",
        "c refuses a",
        "the disk of a is full",
        "a membership change",
        "a waits for",
        "a does not keep up",
        "the event loop",
        "the last snapshot",
        "1 operations",
    )
    reasons = diagnose(everything)
    assert len(beginnings) == len(reasons)
    for beginning, reason in zip(beginnings, reasons, strict=True):
        assert beginning == reason[: len(beginning)]


def test_far_behind_is_where_the_log_may_end() -> None:
    """The constant follows the setting that it stands for."""
    assert Settings().trailing_entries == BEHIND_ENTRIES


def diverged(node_id: str, *, outvoted: bool) -> Divergence:
    return Divergence(node_id=node_id, position=64, own="0a", other="0b", outvoted=outvoted)


@pytest.mark.parametrize(
    ("observations", "reasons"),
    [
        pytest.param(
            having(WELL, divergences=[diverged("c", outvoted=True)]),
            "the replica of c has diverged from a majority: at position 64 the digest of a is 0a, that of c 0b;"
            " it stops when it hears of it",
            id="another one has diverged",
        ),
        pytest.param(
            having(WELL, divergences=[diverged("c", outvoted=False), diverged("b", outvoted=False)]),
            "\n".join(
                f"the replicas of a and {other} differ, and nobody can tell which of them is right: at position 64 the"
                f" digest of a is 0a, that of {other} 0b; restart both, one after the other; if they differ again,"
                " remove the one that is wrong and let it join anew"
                for other in "bc"
            ),
            id="nobody can tell who has",
        ),
        pytest.param(
            having(WELL, held_back_by={"c": "has never said what it knows: start it once, or remove it"}),
            "commands that a knows wait for c, which has never said what it knows: start it once, or remove it",
            id="an upgrade is held back",
        ),
        pytest.param(
            having(WELL, state_bytes=9 << 30, state_bytes_max=10 << 30, keys=1_800_000, keys_max=2_000_000),
            "the map takes 9.0 GiB of 10.0 GiB: puts that make it larger will be refused; delete some keys, or raise"
            " Settings.state_bytes_max on every peer\n"
            "the map has 1,800,000 of 2,000,000 keys: puts of new ones will be refused; delete some, or raise"
            " Settings.keys_max on every peer",
            id="a map that is nearly full",
        ),
    ],
)
def test_what_concerns_the_state(observations: Observations, reasons: str) -> None:
    """Replicas that differ, versions that wait, limits that are near: each with what to do."""
    assert reasons == "\n".join(diagnose(observations))


def test_replicas_that_differ_stand_before_what_is_merely_slow() -> None:
    """An answer may be wrong, not late."""
    reasons = diagnose(having(WELL, divergences=[diverged("c", outvoted=False)], disk_full=True, keys=9, keys_max=10))
    assert ["differ", "is full", "keys"] == [
        word for reason, word in zip(reasons, ("differ", "is full", "keys"), strict=True) if word in reason
    ]
