"""Changes on request: what a request asks for, when it is done already, and when it makes no sense."""

from __future__ import annotations

import pytest

from replikv.peer.admission import LEARNER
from replikv.peer.reconfigurator import fulfilled, granted, mistake_in
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership

ADD_VOTER, ADD_LEARNER, REMOVE = ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE

MEMBERSHIP = Membership(
    voters=frozenset("abc"),
    learners=frozenset("de"),
    members={
        "a": MemberRecord("m-a", "a1", 1),
        "b": MemberRecord("m-b", "b1", 1),
        "c": MemberRecord("m-c"),
        "d": MemberRecord("m-d", "d1", 4, {"zone": "z"}),
        "e": MemberRecord("m-e", "e1", 5, {LEARNER: "always", "zone": "z"}),
    },
)
JOINT = Membership(
    voters=frozenset("abd"),
    outgoing=frozenset("abc"),
    learners=frozenset("e"),
    members=MEMBERSHIP.members,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([MemberChange(ADD_VOTER, "a")], True),
        ([MemberChange(ADD_VOTER, "a", "m-a")], True),
        ([MemberChange(ADD_VOTER, "a", "elsewhere")], False),
        ([MemberChange(ADD_VOTER, "d")], False),
        ([MemberChange(ADD_VOTER, "x")], False),
        ([MemberChange(ADD_LEARNER, "d")], True),
        ([MemberChange(ADD_LEARNER, "d", "m-d", "d1")], True),
        ([MemberChange(ADD_LEARNER, "d", "m-d", "d2")], False),
        ([MemberChange(ADD_LEARNER, "a", "m-a", "a2")], False),
        ([MemberChange(ADD_LEARNER, "a")], False),
        ([MemberChange(ADD_LEARNER, "d", attributes={"zone": "other"})], True),
        ([MemberChange(ADD_LEARNER, "d", attributes={LEARNER: "always"})], False),
        ([MemberChange(ADD_LEARNER, "e", attributes={LEARNER: "always"})], True),
        ([MemberChange(REMOVE, "x")], True),
        ([MemberChange(REMOVE, "a")], False),
        ([MemberChange(ADD_VOTER, "a"), MemberChange(REMOVE, "x")], True),
        ([MemberChange(ADD_VOTER, "a"), MemberChange(REMOVE, "b")], False),
    ],
)
def test_a_request_names_what_is_to_be(changes: list[MemberChange], expected: bool) -> None:
    """So it is fulfilled where all of that is so already, and it may be asked again; never half-way through."""
    assert expected == fulfilled(MEMBERSHIP, changes)
    assert not fulfilled(JOINT, changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ([MemberChange(REMOVE, "x")], "'x' is no member of this cluster: a, b, c, d, e are"),
        ([MemberChange(ADD_VOTER, "x")], "'x' is no member of this cluster, and joins it with an address only"),
        ([MemberChange(ADD_LEARNER, "x", "m-b")], "the address 'm-b' is that of 'b': give 'x' its own"),
        ([MemberChange(ADD_LEARNER, "x", "m-b", "x1")], "the address 'm-b' is that of 'b'"),
        ([MemberChange(ADD_VOTER, "d", "elsewhere")], "'d' is a member already, at 'm-d' and not at 'elsewhere'"),
        ([MemberChange(ADD_LEARNER, "a")], "'a' votes already: remove it first"),
        ([MemberChange(ADD_VOTER, "d"), MemberChange(REMOVE, "x")], "'x' is no member"),
    ],
)
def test_what_makes_no_sense(changes: list[MemberChange], match: str) -> None:
    """Is said in words, with what to do instead."""
    assert match in str(mistake_in(MEMBERSHIP, changes))


@pytest.mark.parametrize(
    "changes",
    [
        [MemberChange(ADD_VOTER, "d")],
        [MemberChange(ADD_VOTER, "d", "m-d")],
        [MemberChange(ADD_LEARNER, "x", "m-x")],
        [MemberChange(REMOVE, "a")],
        [MemberChange(ADD_VOTER, "d"), MemberChange(REMOVE, "a")],
        # Who comes back without what it knew, at another address too.
        [MemberChange(ADD_LEARNER, "a", "m-a", "a2")],
        [MemberChange(ADD_LEARNER, "a", "elsewhere", "a2")],
    ],
)
def test_what_may_be_proposed(changes: list[MemberChange]) -> None:
    """Everything else."""
    assert mistake_in(MEMBERSHIP, changes) is None


@pytest.mark.parametrize(
    ("asked", "proposed"),
    [
        (MemberChange(ADD_VOTER, "d"), MemberChange(ADD_VOTER, "d")),
        (MemberChange(ADD_VOTER, "e"), MemberChange(ADD_VOTER, "e", attributes={"zone": "z"})),
        (
            MemberChange(ADD_LEARNER, "d", attributes={LEARNER: "always"}),
            MemberChange(ADD_LEARNER, "d", attributes={LEARNER: "always", "zone": "z"}),
        ),
        (
            MemberChange(ADD_LEARNER, "x", "m-x", attributes={LEARNER: "always"}),
            MemberChange(ADD_LEARNER, "x", "m-x", attributes={LEARNER: "always"}),
        ),
        # Who joins says all of what it is.
        (
            MemberChange(ADD_LEARNER, "e", "m-e", "e2", {"zone": "y"}),
            MemberChange(ADD_LEARNER, "e", "m-e", "e2", {"zone": "y"}),
        ),
        (MemberChange(REMOVE, "e"), MemberChange(REMOVE, "e")),
    ],
)
def test_what_is_granted(asked: MemberChange, proposed: MemberChange) -> None:
    """Who is made a voter by name is no learner for good any more, and what members told of themselves stays."""
    assert (proposed,) == granted(MEMBERSHIP, [asked])
