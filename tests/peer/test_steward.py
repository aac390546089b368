"""What a leader does for the membership by itself, on a core that is driven by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from replikv.peer.admission import LEARNER, ZONE, Admission
from replikv.peer.steward import Steward
from replikv.raft.core import Config
from replikv.raft.entries import EntryKind
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange
from replikv.raft.messages import AppendEntriesResponse
from replikv.raft.node import RawNode
from replikv.raft.stable import MemoryStorage
from replikv.settings import Settings
from replikv.storage.base import Identity
from replikv.transport.base import Hello

SETTINGS = Settings(heartbeat_interval_s=0.5, election_timeout_s=2.0, voters_max=3, voter_replace_after_s=10.0)
ELECTION = SETTINGS.election_ticks


def record(node_id: str, **attributes: str) -> MemberRecord:
    return MemberRecord(f"m-{node_id}", f"{node_id}1", 1, attributes)


class Leader:
    """The only voter, which leads without asking, and its learners, of whom a test says what they have."""

    def __init__(self, learners: str = "bcd", attributes: Mapping[str, Mapping[str, str]] | None = None) -> None:
        records = {node_id: record(node_id, **(attributes or {}).get(node_id, {})) for node_id in "a" + learners}
        self.membership = Membership(voters=frozenset("a"), learners=frozenset(learners), members=records)
        self.storage = MemoryStorage(self.membership)
        self.node = RawNode(Config(node_id="a", election_ticks=ELECTION), self.storage, Random(1))
        identity = Identity("cluster", "a", "a1", "m-a", "m-a")
        self.admission = Admission(identity, self.membership, attributes=records["a"].attributes)
        self.steward = Steward(self.node, self.admission, SETTINGS)
        self.ticks = 100
        self.node.campaign()
        self.work()
        self.work()
        assert self.node.raft.leader == "a"

    def work(self) -> None:
        """What a driver does: persist, and apply what is committed."""
        while self.node.has_ready():
            ready = self.node.ready()
            if ready.write is not None:
                self.storage.apply(ready.write)
                self.node.persisted(ready.write)
            for entry in ready.committed:
                if entry.kind == EntryKind.MEMBERSHIP:
                    self.admission.membership = self.node.apply_membership(entry)
            self.node.applied(ready.committed)

    def hear(self, node_ids: str, index: int | None = None) -> None:
        """They have everything up to the index, and say so."""
        for node_id in node_ids:
            self.steward.heard[node_id] = self.ticks
            self.node.step(
                AppendEntriesResponse(
                    to="a",
                    sender=node_id,
                    term=self.node.raft.term,
                    index=self.node.raft.log.last_index() if index is None else index,
                )
            )
        self.work()

    def tick(self, count: int = 1, *, hear: str = "") -> None:
        for _ in range(count):
            self.ticks += 1
            self.hear(hear)
            self.steward.tick(self.ticks)

    @property
    def proposed(self) -> list[MembershipChange]:
        """The changes in the log, applied or not; leaving a joint configuration is the core's own."""
        log = self.node.raft.log
        entries = log.all_entries()
        changes = [MembershipChange.decode(entry.data) for entry in entries if entry.kind == EntryKind.MEMBERSHIP]
        return [change for change in changes if change.changes]

    def standing(self, node_id: str) -> dict[str, Any]:
        (found,) = [standing for standing in self.steward.standings() if standing.node_id == node_id]
        return dataclasses.asdict(found)


def test_who_is_caught_up_and_alive_gets_a_vote() -> None:
    """Once this leader has led long enough to tell, and in one change."""
    leader = Leader()
    leader.tick(ELECTION, hear="bcd")
    assert [] == leader.proposed
    leader.tick(hear="bcd")
    assert [(MemberChange(ChangeKind.ADD_VOTER, "b"), MemberChange(ChangeKind.ADD_VOTER, "c"))] == [
        change.changes for change in leader.proposed
    ]


def test_nothing_is_proposed_while_a_change_is_under_way() -> None:
    """One at a time (thesis 4.3); and what has come of it is looked at anew."""
    leader = Leader()
    leader.tick(ELECTION + 1, hear="bc")
    leader.tick(5)  # joint, and nobody but this leader has the end of it
    assert 1 == len(leader.proposed)
    assert leader.node.raft.tracker.membership.joint
    leader.tick(20, hear="bcd")
    assert frozenset("abc") == leader.node.raft.tracker.membership.voters
    assert 1 == len(leader.proposed)  # there are as many voters as are wanted


@pytest.mark.parametrize(
    ("attributes", "silent", "expected"),
    [
        ({}, "", "bc"),
        ({"b": {LEARNER: "always"}}, "", "cd"),
        ({}, "b", "cd"),
        ({"a": {ZONE: "x"}, "b": {ZONE: "x"}, "c": {ZONE: "x"}, "d": {ZONE: "y"}}, "", "bd"),
    ],
)
def test_whom_it_appoints(attributes: dict[str, dict[str, str]], silent: str, expected: str) -> None:
    """Those that are willing and there, where fewest vote."""
    leader = Leader(attributes=attributes)
    leader.tick(ELECTION + 1, hear="".join(sorted({*"bcd"} - {*silent})))
    (change,) = leader.proposed
    assert expected == "".join(sorted(each.node_id for each in change.changes))


def test_what_members_tell_goes_before_roles() -> None:
    """An address that nobody can dial would keep its member from catching up; and a zone decides who votes."""
    leader = Leader()
    leader.admission.admit(
        Hello(
            cluster_id="cluster",
            node_id="b",
            incarnation="b1",
            bound_index=1,
            address="moved",
            attributes={"zone": "z"},
        )
    )
    leader.tick(ELECTION + 1, hear="bcd")
    first, second = leader.proposed
    assert (MemberChange(ChangeKind.UPDATE, "b", "moved", attributes={"zone": "z"}),) == first.changes
    assert ChangeKind.ADD_VOTER is second.changes[0].kind


@pytest.mark.parametrize(("heard_ago", "silent_s"), [(0, 0.0), (3, 1.5), (None, 5.0)])
def test_silence_counts_from_the_last_frame(heard_ago: int | None, silent_s: float) -> None:
    """Of one that was never heard, or not since, from when this leader began: before, it heard of its leader alone."""
    leader = Leader()
    leader.steward.heard["b"] = 3  # long before it led
    leader.tick()
    began = leader.ticks
    if heard_ago is not None:
        leader.steward.heard["b"] = began + 10 - heard_ago
    leader.tick(10)
    assert silent_s == leader.standing("b")["silent_s"]
    assert 0.0 == leader.standing("a")["silent_s"]


def test_a_new_leadership_knows_nothing_of_the_one_before() -> None:
    """Until an election timeout has passed again it cannot tell who is there."""
    leader = Leader()
    leader.tick(3 * ELECTION)
    assert leader.steward.settled
    leader.node.raft.become_follower(leader.node.raft.term + 1, "b")
    leader.node.campaign()
    leader.work()
    leader.work()
    leader.tick()
    assert not leader.steward.settled
    assert 0.0 == leader.standing("b")["silent_s"]
    leader.tick(ELECTION)
    assert leader.steward.settled


def test_who_keeps_up_is_caught_up() -> None:
    """It has what the log held an election timeout ago; the very end of the log nobody ever has under load."""
    leader = Leader("b")
    leader.tick(hear="b")
    for _ in range(ELECTION):
        leader.node.propose(b"x")
        leader.work()
        leader.tick()
    matched = leader.node.raft.tracker.progress["b"].match
    assert leader.node.raft.log.last_index() == matched + ELECTION
    assert not leader.standing("b")["caught_up"]  # of what came just after it was heard, one is too old by now
    leader.hear("b", matched + 1)
    assert leader.standing("b")["caught_up"]
    leader.node.propose(b"x")
    leader.work()
    leader.tick()
    assert not leader.standing("b")["caught_up"]


def test_what_the_log_held_in_an_earlier_leadership_is_not_enough() -> None:
    """It may be far behind what holds by now: a new leader asks for all that it has, until it has led long enough."""
    leader = Leader("b", {"b": {LEARNER: ""}})
    leader.tick(2 * ELECTION, hear="b")
    held = leader.node.raft.log.last_index()
    leader.node.raft.become_follower(leader.node.raft.term + 1, "")
    leader.node.campaign()
    leader.work()
    for _ in range(5):
        leader.node.propose(b"x")
    leader.work()
    leader.hear("b", held)

    leader.tick()

    assert not leader.standing("b")["caught_up"]


def test_who_is_probed_is_not_caught_up() -> None:
    """It had everything, and its connection broke: whether anybody is there is to be found out first."""
    leader = Leader("b", {"b": {LEARNER: ""}})
    leader.tick(2 * ELECTION, hear="b")
    assert leader.standing("b")["caught_up"]

    leader.node.report_unreachable("b")

    assert not leader.standing("b")["caught_up"]


def test_who_was_never_heard_is_not_caught_up() -> None:
    """What it has is not known."""
    leader = Leader()
    leader.tick(2 * ELECTION, hear="b")
    assert [False, True] == [leader.standing(node_id)["caught_up"] for node_id in "cb"]


def test_a_change_that_would_cost_the_quorum() -> None:
    """The words are those of :func:`objection`, about the standings of now."""
    leader = Leader()
    leader.tick(3 * ELECTION, hear="b")
    assert leader.steward.objection("ab") is None
    assert "c cannot be reached" in str(leader.steward.objection("ac"))
