"""Who may talk to a peer: clusters, node ids, and the incarnations that are bound to them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from replikv.peer.admission import LEARNER, LEASE, OTHERS_MAX, Admission, Refused, cluster_id_of
from replikv.peer.peer import Peer
from replikv.raft.entries import Entry, EntryKind, SnapshotMetadata
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange
from replikv.settings import Settings
from replikv.storage.base import Identity
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Hello
from replikv.transport.memory import MemoryTransport

US = Identity("cluster", "a", "a1", "host-a:1", "host-a:1")


def membership(**bindings: tuple[str, int]) -> Membership:
    """Of a, b and c, with (incarnation, index) of those that are bound."""
    unbound = Membership.of_voters({"a": "host-a:1", "b": "host-b:1", "c": "host-c:1"})
    return unbound.with_records(
        {node_id: MemberRecord(f"host-{node_id}:1", *binding) for node_id, binding in bindings.items()}
    )


def hello(
    node_id: str = "b",
    incarnation: str = "b1",
    *,
    cluster_id: str = "cluster",
    bound: int = 0,
    address: str = "",
    **attributes: str,
) -> Hello:
    return Hello(
        cluster_id=cluster_id,
        node_id=node_id,
        incarnation=incarnation,
        bound_index=bound,
        address=address,
        attributes=attributes,
    )


def word(reason: str | None) -> str | None:
    """What the refusal begins with."""
    return None if reason is None else reason.partition(":")[0]


def test_every_first_start_computes_the_same_cluster_id() -> None:
    """From the ids in any order and the name: and no two different lists run together."""
    assert cluster_id_of("abc", "x") == cluster_id_of("cab", "x")
    different = [("abc", ""), ("ab", ""), ("ab", "c"), ("abcd", ""), (["ab", "c"], ""), (["a", "bc"], ""), ([], "abc")]
    assert len(different) == len({cluster_id_of(ids, name) for ids, name in different})


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        (hello(), None),
        (hello("d", "d1"), Refused.REMOVED),
        (hello("d", "d1", cluster_id="other"), Refused.CLUSTER),
        (hello(cluster_id="other"), Refused.CLUSTER),
        (hello("a", "a1"), Refused.NODE_ID),
        (hello("a", "a2"), Refused.NODE_ID),
    ],
)
def test_strangers_and_doubles_are_refused(told: Hello, refused: Refused | None) -> None:
    """The first word of the refusal says which it is, for whoever is refused to act on."""
    assert refused == word(Admission(US, membership()).admit(told))


def test_the_sentences_say_what_to_do() -> None:
    """Both sides are named, and what to look at."""
    admission = Admission(US, membership())
    assert "check members= and Settings.cluster_name" in str(admission.admit(hello(cluster_id="other")))
    assert "reached itself" in str(admission.admit(hello("a", "a1")))
    assert "give each its own node id" in str(admission.admit(hello("a", "a2")))
    assert "with an empty data_dir and join=" in str(admission.admit(hello("d")))


@pytest.mark.parametrize(("bound", "refused"), [(0, Refused.REMOVED), (9, Refused.REMOVED), (10, None)])
def test_who_is_no_member_any_more_is_refused(bound: int, refused: Refused | None) -> None:
    """Unless it became one later than we know of: then it is we who lag behind."""
    admission = Admission(US, membership(), 9)
    assert refused == word(admission.admit(hello("d", "d1", bound=bound)))
    admission.applied_index = 10
    assert Refused.REMOVED == word(admission.admit(hello("d", "d1", bound=bound)))


@pytest.mark.parametrize(
    ("applied_index", "bindings", "bound"),
    [(7, {}, 7), (0, {}, 0), (7, {"a": ("a1", 3)}, 3), (7, {"a": ("other", 3)}, 7)],
)
def test_who_was_named_before_it_came_says_as_of_when(
    applied_index: int, bindings: dict[str, tuple[str, int]], bound: int
) -> None:
    """Unbound, it was a member as of the snapshot that it begins with; others may not know that yet."""
    assert bound == Admission(US, membership(**bindings), applied_index).hello().bound_index


def test_who_is_not_in_its_own_first_membership_claims_nothing() -> None:
    """There is no index as of which it would be a member."""
    others = Membership.of_voters({"b": "host-b:1"})
    assert Admission(US, others, 7).hello().bound_index == 0


@pytest.mark.parametrize(
    ("binding", "told", "refused"),
    [
        (("b1", 5), hello(incarnation="b1"), None),
        (("b1", 5), hello(incarnation="b1", bound=5), None),
        (("b1", 5), hello(incarnation="b2"), Refused.INCARNATION),
        (("b1", 5), hello(incarnation="b2", bound=4), Refused.INCARNATION),
        (("b1", 5), hello(incarnation="b2", bound=5), Refused.INCARNATION),
        # We lag behind: it was removed and has joined anew since.
        (("b1", 5), hello(incarnation="b2", bound=6), None),
    ],
)
def test_the_bound_incarnation_counts(binding: tuple[str, int], told: Hello, refused: Refused | None) -> None:
    """Of two claims the one bound at the higher index is newer."""
    assert refused == word(Admission(US, membership(b=binding)).admit(told))


def binding(index: int, incarnation: str) -> Entry:
    """An entry that binds b."""
    change = MemberChange(ChangeKind.UPDATE, "b", incarnation=incarnation)
    return Entry(index, 1, MembershipChange((change,)).encode(), EntryKind.MEMBERSHIP)


@pytest.mark.parametrize(
    ("applied", "logged", "told", "refused"),
    [
        (("", 0), ("b1", 5), hello(incarnation="b1"), None),
        (("", 0), ("b1", 5), hello(incarnation="b2"), Refused.INCARNATION),
        (("", 0), ("b1", 5), hello(incarnation="b2", bound=6), None),
        # It has joined anew; what is applied says so, or does not yet.
        (("b1", 5), ("b2", 9), hello(incarnation="b1", bound=5), Refused.INCARNATION),
        (("b1", 5), ("b2", 9), hello(incarnation="b2"), None),
        (("b2", 9), ("b1", 5), hello(incarnation="b1", bound=5), Refused.INCARNATION),
        (("b2", 9), ("b1", 5), hello(incarnation="b2"), None),
    ],
)
def test_a_binding_counts_from_the_log_on(
    applied: tuple[str, int], logged: tuple[str, int], told: Hello, refused: Refused | None
) -> None:
    """Votes are cast before what is in the log is known to be committed: the newest binding counts, applied or not."""
    admission = Admission(US, membership(b=applied))
    admission.note(binding(logged[1], logged[0]))
    assert refused == word(admission.admit(told))


@pytest.mark.parametrize(("incarnation", "refused"), [("b1", None), ("b2", Refused.INCARNATION)])
def test_a_peer_that_starts_knows_the_bindings_in_its_log(incarnation: str, refused: Refused | None) -> None:
    """None of it is applied yet, and the snapshot before it says nothing of them."""
    storage = VolatileStorage()
    storage.initialize(US, SnapshotMetadata(0, 0, membership()))
    storage.image.append([Entry(1, 1, b""), binding(2, "b1"), Entry(3, 1, b"")])
    peer = Peer(storage, MemoryTransport(), Settings(), listen="memory-a")
    assert refused == word(peer.admit(hello(incarnation=incarnation)))


@pytest.mark.parametrize(
    ("told", "logged", "contradicted"),
    [
        (hello(incarnation="b1"), ("b1", 5), False),
        (hello(incarnation="b2"), ("b1", 5), True),
        # We lag behind: what our log says is older than what it was admitted for.
        (hello(incarnation="b2", bound=6), ("b1", 5), False),
        (hello(incarnation="b2", bound=6), ("b3", 7), True),
    ],
)
def test_who_was_admitted_may_be_contradicted_by_the_log(
    told: Hello, logged: tuple[str, int], contradicted: bool
) -> None:
    """By a binding that comes later: of another incarnation, and newer than the one that it claimed to have."""
    admission = Admission(US, membership())
    assert not admission.contradicted("b")
    assert admission.admit(told) is None
    assert not admission.contradicted("b")
    admission.note(binding(logged[1], logged[0]))
    assert contradicted == admission.contradicted("b")


def test_before_it_is_bound_the_first_one_told_counts() -> None:
    """A peer that loses its disk that early must not come back as another, either."""
    admission = Admission(US, membership())
    assert admission.admit(hello(incarnation="b1")) is None
    assert Refused.INCARNATION == word(admission.admit(hello(incarnation="b2")))
    assert admission.admit(hello(incarnation="b1")) is None


def test_another_process_in_place_of_the_one_admitted() -> None:
    """Told before it is admitted, so that what the other has open can be closed."""
    admission = Admission(US, membership())
    assert not admission.replaces(hello())
    assert admission.admit(hello()) is None
    assert not admission.replaces(hello())
    assert admission.replaces(hello(incarnation="b2", bound=6))


def test_who_was_refused_is_not_remembered() -> None:
    """A stranger's claim must not keep the right one out."""
    admission = Admission(US, membership())
    assert admission.admit(hello(incarnation="stranger", cluster_id="other")) is not None
    assert admission.admit(hello(incarnation="b1")) is None


def test_promises_are_alike_only_if_all_are() -> None:
    """One member that votes earlier than this peer counts on ends leases on reads, until it says otherwise."""
    admission = Admission(US, membership(), attributes={LEASE: "1.0"})
    for told, alike in (("1.0", True), ("0.5", False)):
        assert admission.admit(hello("b", "b1", lease=told)) is None
        assert admission.admit(hello("c", "c1", lease="1.0")) is None
        assert alike == admission.promises_alike

    assert admission.admit(hello("b", "b1", lease="1.0")) is None
    assert admission.promises_alike
    assert admission.admit(hello("c", "c1")) is None
    assert not admission.promises_alike


def test_what_is_to_be_bound() -> None:
    """Members that have told theirs and have none bound, ourselves included; nobody who is no member."""
    admission = Admission(US, membership())
    admission.admit(hello("b", "b1"))
    admission.admit(hello("d", "d1"))
    assert (
        MembershipChange(
            (
                MemberChange(ChangeKind.UPDATE, "a", incarnation="a1"),
                MemberChange(ChangeKind.UPDATE, "b", incarnation="b1"),
            )
        )
        == admission.unrecorded()
    )
    admission.membership = membership(a=("a1", 5), b=("b1", 5))
    assert admission.unrecorded() is None
    admission.admit(hello("c", "c1"))
    assert MembershipChange((MemberChange(ChangeKind.UPDATE, "c", incarnation="c1"),)) == admission.unrecorded()


BOUND = MemberRecord("host-b:1", "b1", 5, {"version": "1", "zone": "z"})


@pytest.mark.parametrize(
    ("record", "told", "expected"),
    [
        (BOUND, hello(version="1", zone="z"), {}),
        (BOUND, hello(version="2", zone="z"), {"attributes": {"version": "2", "zone": "z"}}),
        (BOUND, hello(version="1"), {"attributes": {"version": "1"}}),
        (BOUND, hello(version="1", zone="z", address="host-b:1"), {}),
        (BOUND, hello(version="1", zone="z", address="moved:1"), {"address": "moved:1"}),
        # Of a process that is not the bound one nothing is recorded.
        (BOUND, hello(incarnation="b2", version="2", bound=6, address="moved:1"), {}),
        # What the cluster gave it stays.
        (MemberRecord("host-b:1", "b1", 5, {LEARNER: "always"}), hello(), {}),
        (
            MemberRecord("host-b:1", "b1", 5, {LEARNER: "always"}),
            hello(version="1"),
            {"attributes": {"version": "1", LEARNER: "always"}},
        ),
        # Of who is new, all at once.
        (
            MemberRecord("host-b:1"),
            hello(address="moved:1", version="1"),
            {"address": "moved:1", "incarnation": "b1", "attributes": {"version": "1"}},
        ),
    ],
)
def test_what_members_tell_of_themselves_is_recorded(
    record: MemberRecord, told: Hello, expected: dict[str, Any]
) -> None:
    """Only what differs, in one change; nothing when nothing does."""
    admission = Admission(US, membership(a=("a1", 5)).with_records({"b": record}))
    assert admission.admit(told) is None
    change = MembershipChange((MemberChange(ChangeKind.UPDATE, "b", **expected),)) if expected else None
    assert change == admission.unrecorded()


def test_a_peer_records_itself_as_any() -> None:
    """The leader is a member, too."""
    admission = Admission(US, membership(a=("a1", 5)), attributes={"zone": "z"})
    assert MembershipChange((MemberChange(ChangeKind.UPDATE, "a", attributes={"zone": "z"}),)) == admission.unrecorded()


def without_b() -> Membership:
    return Membership.of_voters({"a": "host-a:1", "c": "host-c:1"})


def named(node_id: str) -> Membership:
    """The membership after it was removed, and named again without having come."""
    return dataclasses.replace(
        without_b(),
        learners=frozenset({node_id}),
        members={**without_b().members, node_id: MemberRecord(f"host-{node_id}:2")},
    )


@pytest.mark.parametrize("bound_before", [True, False])
def test_who_was_removed_is_forgotten(bound_before: bool) -> None:
    """The node id is free: named again, it is whoever comes first, with whatever data directory."""
    admission = Admission(US, membership())
    admission.admit(hello(incarnation="b1", address="host-b:9"))
    if bound_before:
        admission.note(binding(5, "b1"))
        admission.applied_index = 5
        admission.membership = membership(b=("b1", 5))
    admission.applied_index = 6
    admission.membership = without_b()
    admission.applied_index = 7
    admission.membership = named("b")
    assert admission.known_incarnation("b") == ""
    assert admission.unrecorded() == MembershipChange((MemberChange(ChangeKind.UPDATE, "a", incarnation="a1"),))
    assert admission.admit(hello(incarnation="b2", bound=7)) is None
    assert Refused.INCARNATION == word(admission.admit(hello(incarnation="b1", bound=5)))


def test_what_is_logged_after_the_removal_counts() -> None:
    """A follower may have both in its log, and apply the removal before it knows the other to be committed."""
    admission = Admission(US, membership(b=("b1", 5)))
    admission.note(binding(8, "b2"))
    admission.applied_index = 7
    admission.membership = without_b()
    assert admission.known_incarnation("b") == "b2"


@pytest.mark.parametrize(
    ("bindings", "bound"), [({}, 0), ({"a": ("a1", 7)}, 7), ({"a": ("other", 7)}, 0), ({"b": ("b1", 7)}, 0)]
)
def test_our_own_hello_tells_since_when_we_are_bound(bindings: dict[str, tuple[str, int]], bound: int) -> None:
    """Only if it is this incarnation that is bound."""
    told = Admission(US, membership(**bindings)).hello()
    assert ("cluster", "a", "a1", bound, "host-a:1") == (
        told.cluster_id,
        told.node_id,
        told.incarnation,
        told.bound_index,
        told.address,
    )


def test_names_that_cost_nobody_anything_are_kept_in_bounds() -> None:
    """Whoever claims to be newer than our log is admitted, and forgotten when more of them come."""
    admission = Admission(US, membership())
    for number in range(1000):
        assert admission.admit(hello(f"x{number}", "x1", bound=1 << 60)) is None
    assert len(admission._hellos) <= OTHERS_MAX
    assert len(admission._told) <= OTHERS_MAX + 1
    assert admission.admit(hello("b", "b1")) is None
    assert "b" in admission._hellos
