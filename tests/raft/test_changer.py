"""From one configuration to the next: etcd-io/raft's confchange/testdata, as sequences of commands.

v = add voter, l = add learner, r = remove, u = update. Each sequence begins with no members; a command that is refused
changes nothing. Behind each configuration stand the progress of its members: next index, L for a learner; who is new is
tried with the number of the step (upstream: the last index, which grows by one per command), who stays keeps his.
"""

from __future__ import annotations

import itertools

import pytest
from changes import KINDS

from replikv.raft import changer
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange, Transition
from replikv.raft.progress import Tracker
from replikv.raft.quorum import VoteResult, joint_vote_result
from replikv.raft.refusals import InvalidChangeError

SEQUENCES = {
    "simple_safety": """
        simple l1            -> refused: removes all voters
        simple v1            -> voters=1 | 1:1
        simple v2 l3         -> voters=1,2 learners=3 | 1:1 2:2 3:2L
        simple r1 v5         -> refused: more than one voter
        simple r1 r2         -> refused: removes all voters
        simple v3 v4         -> refused: more than one voter
        simple l1 v5         -> refused: more than one voter
        simple l1 l2         -> refused: removes all voters
        simple l2 l3 l4 l5   -> voters=1 learners=2,3,4,5 | 1:1 2:2L 3:2L 4:8L 5:8L
        simple r1            -> refused: removes all voters
        simple r2 r3 r4 r5   -> voters=1 | 1:1
    """,
    "simple_idempotency": """
        simple v1            -> voters=1 | 1:1
        simple v1            -> voters=1 | 1:1
        simple v2            -> voters=1,2 | 1:1 2:2
        simple l1            -> voters=2 learners=1 | 1:1L 2:2
        simple l1            -> voters=2 learners=1 | 1:1L 2:2
        simple r1            -> voters=2 | 2:2
        simple r1            -> voters=2 | 2:2
        simple v3            -> voters=2,3 | 2:2 3:7
        simple r3            -> voters=2 | 2:2
        simple r3            -> voters=2 | 2:2
        simple r4            -> voters=2 | 2:2
    """,
    "simple_promote_demote": """
        simple v1            -> voters=1 | 1:1
        simple v2            -> voters=1,2 | 1:1 2:1
        simple v3            -> voters=1,2,3 | 1:1 2:1 3:2
        simple l1 v1         -> voters=1,2,3 | 1:1 2:1 3:2
        simple l2            -> voters=1,3 learners=2 | 1:1 2:1L 3:2
        simple v2 l2         -> voters=1,3 learners=2 | 1:1 2:1L 3:2
        simple v2            -> voters=1,2,3 | 1:1 2:1 3:2
    """,
    "joint_learners_next": """
        simple v1            -> voters=1 | 1:1
        enter-joint v2 l1    -> voters=2 outgoing=1 learners_next=1 | 1:1 2:1
        leave-joint          -> voters=2 learners=1 | 1:1L 2:1
    """,
    "joint_autoleave": """
        simple v1            -> voters=1 | 1:1
        enter-joint-auto v2 v3 -> voters=1,2,3 outgoing=1 auto-leave | 1:1 2:1 3:1
        enter-joint          -> refused: joint already
        leave-joint          -> voters=1,2,3 | 1:1 2:1 3:1
    """,
    "joint_safety": """
        leave-joint          -> refused: not joint
        enter-joint          -> refused: without voters
        enter-joint v1       -> refused: without voters
        simple v1            -> voters=1 | 1:3
        leave-joint          -> refused: not joint
        enter-joint          -> voters=1 outgoing=1 | 1:3
        enter-joint          -> refused: joint already
        leave-joint          -> voters=1 | 1:3
        leave-joint          -> refused: not joint
        enter-joint r1 v2 v3 v4 -> voters=2,3,4 outgoing=1 | 1:3 2:9 3:9 4:9
        simple v5            -> refused: leave it before
        enter-joint l5       -> refused: joint already
        leave-joint          -> voters=2,3,4 | 2:9 3:9 4:9
        leave-joint          -> refused: not joint
        enter-joint r2 r3 r4 -> refused: removes all voters
    """,
    "joint_idempotency": """
        simple v1            -> voters=1 | 1:1
        enter-joint r1 r2 r9 v2 v3 v4 v2 v3 v4 l2 l2 r4 r4 l1 l1 -> \
voters=3 outgoing=1 learners=2 learners_next=1 | 1:1 2:1L 3:1
        leave-joint          -> voters=3 learners=1,2 | 1:1L 2:1L 3:1
    """,
    "update": """
        simple v1            -> voters=1 | 1:1
        simple v2 u1         -> voters=1,2 | 1:1 2:1
        simple u1 u2 u3 u1 u2 u3 -> voters=1,2 | 1:1 2:1
    """,
    "zero": """
        simple v1 r v l      -> voters=1 | 1:1
    """,
}


def change_of(word: str) -> MemberChange:
    """The change that a word stands for; no number is no node (upstream: node 0)."""
    return MemberChange(KINDS[word[0]], word[1:])


def described(membership: Membership, tracker: Tracker) -> str:
    """The configuration and its progress, as in the sequences."""
    parts = [
        f"{name}={','.join(sorted(ids))}"
        for name in ("voters", "outgoing", "learners", "learners_next")
        if (ids := getattr(membership, name))
    ]
    parts += ["auto-leave"] if membership.auto_leave else []
    known = [f"{name}:{entry.next}{'L' if entry.is_learner else ''}" for name, entry in tracker.progress.items()]
    return f"{' '.join(parts)} | {' '.join(known)}"


def run(membership: Membership, command: str, changes: list[MemberChange]) -> Membership | str:
    """What the command makes of the membership, or why it is refused."""
    try:
        if command == "leave-joint":
            return changer.leave_joint(membership)
        if command == "simple":
            return changer.simple(membership, changes)
        return changer.enter_joint(membership, changes, auto_leave=command == "enter-joint-auto")
    except InvalidChangeError as exc:
        return str(exc)


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_sequence(sequence: str) -> None:
    """Each command gives the configuration and the progress behind the arrow, or is refused with that reason."""
    membership = Membership()
    tracker = Tracker(membership, inflight_messages_max=8)
    for step, line in enumerate(sequence.strip().splitlines()):
        (command, *words), expected = line.split("->")[0].split(), line.split("->")[1].strip()
        outcome = run(membership, command, [change_of(word) for word in words])
        if isinstance(outcome, str):
            assert expected.startswith("refused: "), f"step {step} was refused: {outcome}"
            assert expected.removeprefix("refused: ") in outcome
            continue
        membership = outcome
        tracker.switch(membership, max(step, 1))
        assert expected == described(membership, tracker), f"step {step}"


# -- how a change takes effect -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transition", "words", "expected"),
    [
        pytest.param(Transition.AUTO, "v4", "voters=1,2,3,4", id="one voter: at once"),
        pytest.param(Transition.AUTO, "l4 l5", "voters=1,2,3 learners=4,5", id="learners: at once"),
        pytest.param(
            Transition.AUTO,
            "v4 r1",
            "voters=2,3,4 outgoing=1,2,3 auto-leave",
            id="a replacement: joint, left by itself",
        ),
        pytest.param(
            Transition.JOINT_IMPLICIT, "v4", "voters=1,2,3,4 outgoing=1,2,3 auto-leave", id="implicit, though one voter"
        ),
        pytest.param(Transition.JOINT_EXPLICIT, "v4", "voters=1,2,3,4 outgoing=1,2,3", id="explicit"),
        pytest.param(
            Transition.JOINT_IMPLICIT, "l1 v1", "voters=1,2,3 outgoing=1,2,3 auto-leave", id="the last word counts"
        ),
        pytest.param(
            Transition.AUTO, "l1 l2", "voters=3 outgoing=1,2,3 learners_next=1,2 auto-leave", id="demotion of two"
        ),
    ],
)
def test_the_transition_decides(transition: Transition, words: str, expected: str) -> None:
    """One voter changes at once, several through a joint configuration; a change may ask for one in any case."""
    before = Membership.of_voters({"1": "", "2": "", "3": ""})
    change = MembershipChange(tuple(change_of(word) for word in words.split()), transition)

    after = changer.apply_change(before, change, 7)

    assert expected == described(after, Tracker(after, inflight_messages_max=8)).split(" |")[0]


def test_a_change_without_changes_leaves() -> None:
    """The empty change is the one that leaves the joint configuration (etcd: LeaveJoint)."""
    joint = changer.enter_joint(Membership.of_voters({"1": ""}), [change_of("v2")], auto_leave=False)

    assert frozenset("12") == changer.apply_change(joint, MembershipChange(), 9).voters
    with pytest.raises(InvalidChangeError, match="not joint"):
        changer.apply_change(Membership.of_voters({"1": ""}), MembershipChange(), 9)


# -- records -----------------------------------------------------------------------------------------------------------


def test_a_record_comes_with_its_member_and_goes_with_it() -> None:
    """An add sets what it tells; promotion, demotion and a joint configuration keep it; the removal drops it."""
    membership = Membership.of_voters({"1": "one"})
    add = MemberChange(ChangeKind.ADD_LEARNER, "2", address="two", incarnation="x", attributes={"zone": "b"})
    membership = changer.apply_change(membership, MembershipChange((add,)), 5)
    record = MemberRecord("two", "x", 5, {"zone": "b"})
    assert record == membership.members["2"]

    membership = changer.apply_change(membership, MembershipChange((change_of("v2"),)), 6)
    assert record == membership.members["2"]
    joint = changer.enter_joint(membership, [change_of("r2"), change_of("v3")], auto_leave=False)
    assert record == joint.members["2"]  # it still votes, and has to be found

    left = changer.leave_joint(joint)
    assert ["1", "3"] == list(left.members)
    again = changer.apply_change(left, MembershipChange((change_of("l2"),)), 9)
    assert MemberRecord("") == again.members["2"]


def test_an_incarnation_that_is_told_again_is_bound_where_it_was() -> None:
    """A second binding would make an old claim newer than one that was bound in between."""
    membership = Membership.of_voters({"1": "one"})
    told = MembershipChange((MemberChange(ChangeKind.UPDATE, "1", incarnation="x"),))

    membership = changer.apply_change(membership, told, 4)
    membership = changer.apply_change(membership, told, 9)

    assert 4 == membership.members["1"].bound_index


def test_a_change_may_move_voters_and_records() -> None:
    """One that does both takes the way of the voters, and leaves out neither."""
    change = MembershipChange(
        (MemberChange(ChangeKind.UPDATE, "1", address="elsewhere"), MemberChange(ChangeKind.ADD_VOTER, "2", "two"))
    )

    after = changer.apply_change(Membership.of_voters({"1": "one"}), change, 4)

    assert (frozenset("12"), "elsewhere") == (after.voters, after.members["1"].address)


def test_records_change_while_joint() -> None:
    """An update moves no voter, and so is no second change of the configuration."""
    joint = changer.enter_joint(Membership.of_voters({"1": "one"}), [change_of("v2")], auto_leave=True)
    update = MembershipChange((MemberChange(ChangeKind.UPDATE, "1", address="elsewhere"),))

    after = changer.apply_change(joint, update, 8)

    assert ("elsewhere", joint.outgoing) == (after.members["1"].address, after.outgoing)


def test_two_updates_of_one_member_add_up() -> None:
    """The second does not undo the first."""
    change = MembershipChange(
        (
            MemberChange(ChangeKind.UPDATE, "1", address="elsewhere"),
            MemberChange(ChangeKind.UPDATE, "1", incarnation="x"),
        )
    )

    assert (
        MemberRecord("elsewhere", "x", 4)
        == changer.apply_change(Membership.of_voters({"1": "one"}), change, 4).members["1"]
    )


# -- the reason for it all ---------------------------------------------------------------------------------------------


def configurations() -> list[Membership]:
    """All configurations of up to four nodes, without joint ones."""
    found = []
    for roles in itertools.product(["", "v", "l"], repeat=4):
        voters = frozenset(str(number) for number, role in enumerate(roles) if role == "v")
        learners = frozenset(str(number) for number, role in enumerate(roles) if role == "l")
        if voters:
            found.append(Membership(voters=voters, learners=learners))
    return found


def majorities(membership: Membership) -> list[set[str]]:
    """All sets of nodes that can decide under the configuration."""
    ids = sorted(membership.voters | membership.outgoing)
    subsets = (set(some) for size in range(len(ids) + 1) for some in itertools.combinations(ids, size))
    return [
        some
        for some in subsets
        if joint_vote_result(membership.voters, membership.outgoing, dict.fromkeys(some, True)) is VoteResult.WON
    ]


def test_neighbouring_configurations_cannot_decide_apart() -> None:
    """Whatever two changes are made to whatever configuration: majorities before and after meet (thesis 4.1, 4.3)."""
    words = [kind + str(number) for kind in "vlr" for number in range(4)]
    steps = 0
    for before in configurations():
        for pair in itertools.combinations(words, 2):
            try:
                after = changer.apply_change(before, MembershipChange(tuple(change_of(word) for word in pair)), 9)
            except InvalidChangeError:
                continue
            neighbours = [(before, after), (after, changer.leave_joint(after))] if after.joint else [(before, after)]
            for one, other in neighbours:
                if one.voters == other.voters and one.outgoing == other.outgoing:
                    continue
                steps += 1
                assert all(some & others for some in majorities(one) for others in majorities(other)), (one, other)
                assert not other.learners & (other.voters | other.outgoing)
                assert other.learners_next <= other.outgoing
    assert steps > 1_000
