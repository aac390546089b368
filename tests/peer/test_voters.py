"""Who should vote, and which changes of voters would cost the quorum."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.peer.voters import Standing, appoint, objection
from replikv.raft.changer import apply_change
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange

REPLACE_AFTER_S = 30.0
ALIVE_WITHIN_S = 1.0


def voter(node_id: str, silent_s: float = 0.0, zone: str = "") -> Standing:
    return Standing(node_id=node_id, voter=True, silent_s=silent_s, zone=zone)


def learner(
    node_id: str, silent_s: float = 0.0, zone: str = "", *, willing: bool = True, caught_up: bool = True
) -> Standing:
    return Standing(node_id=node_id, voter=False, silent_s=silent_s, zone=zone, willing=willing, caught_up=caught_up)


def proposed(standings: Sequence[Standing], *, voters_max: int = 5, leading_s: float = math.inf) -> str:
    """The changes in short: ``+d`` votes from now on, ``-c`` no longer."""
    signs = {ChangeKind.ADD_VOTER: "+", ChangeKind.ADD_LEARNER: "-"}
    changes = appoint(
        standings,
        voters_max=voters_max,
        replace_after_s=REPLACE_AFTER_S,
        alive_within_s=ALIVE_WITHIN_S,
        leading_s=leading_s,
    )
    return " ".join(signs[change.kind] + change.node_id for change in changes)


THREE = (voter("a"), voter("b"), voter("c"))
C_GONE = (voter("a"), voter("b"), voter("c", 30.0))


@pytest.mark.parametrize(
    ("standings", "changes"),
    [
        pytest.param(THREE, "", id="all is well"),
        pytest.param((*THREE, learner("d")), "+d", id="there is room for one more"),
        pytest.param((voter("a"), learner("b")), "+b", id="a cluster of one grows"),
        pytest.param(
            (voter("a"), *(learner(f"l{number:02}") for number in range(30))),
            "+l00 +l01 +l02 +l03",
            id="thirty join at once: as many as there is room for, in one change",
        ),
        pytest.param((*THREE, learner("d", willing=False)), "", id="a learner for good"),
        pytest.param((*THREE, learner("d", caught_up=False)), "", id="a learner that lags"),
        pytest.param((*THREE, learner("d", 1.0)), "", id="a learner that is silent"),
        pytest.param((*THREE, learner("d", math.inf)), "", id="a learner never heard of"),
        pytest.param((*THREE, learner("d", 0.9)), "+d", id="a learner heard of just now"),
    ],
)
def test_voters_grow_up_to_the_maximum(standings: Sequence[Standing], changes: str) -> None:
    """Whoever is alive, caught up and willing votes while there is room."""
    assert changes == proposed(standings)


@pytest.mark.parametrize(
    ("standings", "changes"),
    [
        pytest.param((*C_GONE, learner("d")), "+d -c", id="one gone, one candidate"),
        pytest.param(C_GONE, "", id="one gone, nobody to replace it: it stays"),
        pytest.param((*C_GONE, learner("d", willing=False)), "", id="nor with a learner for good"),
        pytest.param((*C_GONE, learner("d", caught_up=False)), "", id="nor with one that lags"),
        pytest.param((*C_GONE, learner("d", 5.0)), "", id="nor with one that is silent"),
        pytest.param((voter("a"), voter("b"), voter("c", 29.9), learner("d")), "", id="silent, not gone yet"),
        pytest.param((voter("a"), voter("b"), voter("c", math.inf), learner("d")), "+d -c", id="never heard of"),
        pytest.param((voter("a"), voter("b"), learner("c"), voter("d")), "", id="who comes back waits for a place"),
        pytest.param(
            (voter("a"), voter("b"), voter("c"), voter("d", 31.0), voter("e", 60.0), learner("f"), learner("g")),
            "+f +g -e -d",
            id="two of five gone, two candidates: one joint change",
        ),
        pytest.param(
            (voter("a"), voter("b"), voter("c"), voter("d", 31.0), voter("e", 60.0), learner("f")),
            "+f -e",
            id="two of five gone, one candidate: for the one gone for longer",
        ),
        pytest.param(
            (voter("a"), voter("b"), voter("c"), voter("e", 60.0), voter("d", 60.0), learner("f")),
            "+f -d",
            id="two gone for equally long: by node id",
        ),
        pytest.param(
            (*(voter(f"v{number}") for number in range(4)), voter("v4", 99.0), learner("d"), learner("e")),
            "+d -v4",
            id="more voters than the maximum: one for one, and no more",
        ),
        pytest.param((*THREE, voter("d"), learner("e")), "", id="more voters than the maximum, all alive"),
    ],
)
def test_voters_that_are_gone_are_replaced(standings: Sequence[Standing], changes: str) -> None:
    """One for one, by who could vote, with never fewer voters than before."""
    assert changes == proposed(standings, voters_max=3)


def test_replacing_and_growing_are_one_change() -> None:
    """With room for two more, three candidates and one voter gone, three are promoted and one is demoted."""
    assert "+d +e +f -c" == proposed((*C_GONE, learner("d"), learner("e"), learner("f"), learner("g")))


@pytest.mark.parametrize(
    "standings",
    [
        pytest.param((voter("a"), voter("b", 60.0), learner("c")), id="one of two"),
        pytest.param((voter("a"), voter("b", 60.0), voter("c", 60.0), learner("d"), learner("e")), id="two of three"),
        pytest.param((voter("a"), voter("b", 60.0), voter("c", 2.0), learner("d")), id="one gone, one silent"),
        pytest.param((voter("a"), voter("b"), voter("c", 60.0), voter("d", 60.0), learner("e")), id="half of four"),
        pytest.param((learner("a"),), id="no voter known"),
        pytest.param((), id="nobody known"),
    ],
)
def test_without_a_quorum_nothing_is_proposed(standings: Sequence[Standing]) -> None:
    """It could not be committed, and must not be what is committed first when the others come back."""
    assert not proposed(standings)


@pytest.mark.parametrize(
    ("leading_s", "changes"), [(0.0, ""), (29.9, ""), (30.0, "+d -c")], ids=["just elected", "not yet", "long enough"]
)
def test_a_new_leader_gives_everybody_the_full_time(leading_s: float, changes: str) -> None:
    """A follower hears of nobody but its leader: what it missed before it led is no silence of the others."""
    standings = (voter("a"), voter("b"), voter("c", math.inf), learner("d"))
    assert changes == proposed(standings, voters_max=3, leading_s=leading_s)


def test_whoever_is_alive_is_not_gone() -> None:
    """Also where the settings contradict each other."""
    standings = (voter("a"), voter("b"), voter("c", 0.5), learner("d"))
    assert () == appoint(standings, voters_max=3, replace_after_s=0.1, alive_within_s=1.0)


@pytest.mark.parametrize(
    ("standings", "voters_max", "changes"),
    [
        pytest.param(
            (voter("a", zone="1"), voter("b", zone="2"), learner("c", zone="1"), learner("d", zone="3")),
            3,
            "+d",
            id="the zone without a voter first",
        ),
        pytest.param(
            (voter("a", zone="1"), *(learner(f"{zone}{n}", zone=zone) for zone in "123" for n in range(3))),
            5,
            "+20 +30 +10 +21",
            id="picks count for the next pick",
        ),
        pytest.param(
            (
                voter("a", zone="1"),
                voter("b", zone="2"),
                voter("c", 60.0, "3"),
                learner("d", zone="2"),
                learner("e", zone="3"),
            ),
            3,
            "+e -c",
            id="who is gone leaves its zone free",
        ),
        pytest.param(
            (
                voter("a", zone="1"),
                voter("b", 5.0, "2"),
                voter("c", zone="3"),
                learner("d", zone="2"),
                learner("e", zone="4"),
            ),
            4,
            "+e",
            id="who is away for a moment holds its zone",
        ),
        pytest.param(
            (voter("a", zone="1"), voter("b"), learner("c", zone="1"), learner("d"), learner("e")),
            4,
            "+d +e",
            id="without a zone: a zone of its own",
        ),
        pytest.param(
            (voter("a", zone="b"), learner("b"), learner("c", zone="b")), 2, "+b", id="a zone named like a member"
        ),
        pytest.param((voter("a"), learner("c"), learner("b")), 2, "+b", id="ties by node id"),
    ],
)
def test_voters_are_spread_over_the_zones(standings: Sequence[Standing], voters_max: int, changes: str) -> None:
    """The zone with the fewest voters has the next one, so that the loss of a zone costs as few as possible."""
    assert changes == proposed(standings, voters_max=voters_max)


@pytest.mark.parametrize(
    ("standings", "voters_after", "expected"),
    [
        pytest.param(THREE, "abc", None, id="no change"),
        pytest.param((*THREE, learner("d")), "abcd", None, id="promote one that is alive and caught up"),
        pytest.param((*THREE, learner("d")), "abd", None, id="replace one"),
        pytest.param((voter("a"), voter("b"), voter("c", 9.0)), "ab", None, id="remove a dead one"),
        pytest.param((voter("a"), voter("b"), voter("c", 9.0)), "abc", None, id="keep a dead one"),
        pytest.param((*THREE, voter("d", 9.0), voter("e", 9.0)), "abc", None, id="remove two dead ones"),
        pytest.param(THREE, "a", None, id="down to one that is alive"),
        pytest.param(
            (voter("a"), dataclasses.replace(voter("b"), caught_up=False)), "ab", None, id="a voter that lags stays"
        ),
        pytest.param(
            (*THREE, learner("d", 3.21)),
            "abcd",
            "d cannot be reached: nothing was heard of it for 3.2 s: bring it back first, or use force=True",
            id="promote one that is silent",
        ),
        pytest.param(
            THREE,
            "abcd",
            "d cannot be reached: nothing was ever heard of it: bring it back first, or use force=True",
            id="promote one that nobody knows",
        ),
        pytest.param(
            (*THREE, learner("d", math.inf)),
            "abcd",
            "d cannot be reached: nothing was ever heard of it: bring it back first, or use force=True",
            id="promote one never heard of",
        ),
        pytest.param(
            (*THREE, learner("d", caught_up=False)),
            "abcd",
            "d lags behind the leader's log, and a quorum that needs it would wait until it has caught up:"
            " wait for that first, or use force=True",
            id="promote one that lags",
        ),
        pytest.param(
            (voter("a"), voter("b"), voter("c", 9.0)),
            "ac",
            "the change would cost the quorum: after it 1 of 2 voters are alive where 2 must be, and c is down"
            " (nothing was heard of c for 9.0 s): bring back who is down first, or use force=True",
            id="remove a live one while another is down",
        ),
        pytest.param(
            (*THREE, voter("d", 9.0), voter("e", math.inf)),
            "abde",
            "the change would cost the quorum: after it 2 of 4 voters are alive where 3 must be, and d, e are down"
            " (nothing was heard of d for 9.0 s; nothing was ever heard of e): bring back who is down first,"
            " or use force=True",
            id="remove a live one while two of five are down",
        ),
        pytest.param(
            (voter("a"), voter("b", 9.0), voter("c", math.inf)),
            "ab",
            "no change can be committed, by force=True neither: 1 of 3 voters are alive where 2 must be, and b, c are"
            " down (nothing was heard of b for 9.0 s; nothing was ever heard of c): bring back at least 1 of them"
            " first",
            id="no quorum now",
        ),
        pytest.param(
            (voter("a"), voter("b", 9.0)),
            "a",
            "no change can be committed, by force=True neither: 1 of 2 voters are alive where 2 must be, and b is"
            " down (nothing was heard of b for 9.0 s): bring back at least 1 of them first",
            id="no quorum now, also to remove who is down",
        ),
        pytest.param(
            THREE, "", "the change leaves no voter, and a cluster needs at least one: keep one", id="no voter left"
        ),
    ],
)
def test_what_would_cost_the_quorum_is_objected_to(
    standings: Sequence[Standing], voters_after: str, expected: str | None
) -> None:
    """In a sentence that says who is down, how many must be alive, and what to do."""
    assert expected == objection(standings, voters_after, alive_within_s=ALIVE_WITHIN_S)


# -- properties --------------------------------------------------------------------------------------------------------

SILENCES = st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0, 31.0, 600.0, math.inf])


@st.composite
def clusters(draw: st.DrawFn) -> list[Standing]:
    """Up to 12 members in any state, the leader among them."""
    members = st.builds(
        Standing,
        node_id=st.just(""),
        voter=st.booleans(),
        zone=st.sampled_from(["", "1", "2", "3"]),
        willing=st.booleans(),
        silent_s=SILENCES,
        caught_up=st.booleans(),
    )
    others = draw(st.lists(members, max_size=11))
    return [voter("a"), *(dataclasses.replace(other, node_id=f"n{n:02}") for n, other in enumerate(others))]


def changes_of(standings: Sequence[Standing], voters_max: int) -> tuple[MemberChange, ...]:
    return appoint(standings, voters_max=voters_max, replace_after_s=REPLACE_AFTER_S, alive_within_s=ALIVE_WITHIN_S)


def voters_of(standings: Sequence[Standing]) -> set[str]:
    return {standing.node_id for standing in standings if standing.voter}


def changed(standings: Sequence[Standing], changes: Sequence[MemberChange]) -> list[Standing]:
    """The standings after the changes, made by the code that makes them in a cluster, the joint way where it must."""
    members = frozenset(standing.node_id for standing in standings)
    before = Membership(voters=frozenset(voters_of(standings)), learners=members - voters_of(standings))
    after = apply_change(before, MembershipChange(tuple(changes)), 1)
    if after.joint:
        after = apply_change(after, MembershipChange(), 2)
    return [dataclasses.replace(standing, voter=standing.node_id in after.voters) for standing in standings]


VOTERS_MAX = st.integers(1, 7)


@given(clusters(), VOTERS_MAX)
def test_appointed_are_never_fewer_and_never_too_many(standings: list[Standing], voters_max: int) -> None:
    """Voters never become fewer, nor more than the maximum, unless there were more."""
    before = voters_of(standings)
    changes = changes_of(standings, voters_max)
    after = voters_of(changed(standings, changes)) if changes else before
    assert len(before) <= len(after) <= max(voters_max, len(before))


@given(clusters(), VOTERS_MAX)
def test_appointing_comes_to_rest(standings: list[Standing], voters_max: int) -> None:
    """After the changes there is nothing more to do: votes are not passed on in circles."""
    changes = changes_of(standings, voters_max)
    if changes:
        assert () == changes_of(changed(standings, changes), voters_max)


@given(clusters(), VOTERS_MAX)
def test_nothing_is_appointed_that_would_be_objected_to(standings: list[Standing], voters_max: int) -> None:
    """A majority of the voters before and of those after is alive, whenever something is proposed."""
    changes = changes_of(standings, voters_max)
    if changes:
        after = voters_of(changed(standings, changes))
        assert objection(standings, after, alive_within_s=ALIVE_WITHIN_S) is None


@given(clusters(), VOTERS_MAX)
def test_who_is_appointed_could_vote_and_who_is_dismissed_is_gone(standings: list[Standing], voters_max: int) -> None:
    """Promoted is who is willing, alive and caught up; demoted is a voter after a long silence, and nobody else."""
    known = {standing.node_id: standing for standing in standings}
    for change in changes_of(standings, voters_max):
        member = known[change.node_id]
        if change.kind is ChangeKind.ADD_VOTER:
            assert not member.voter
            assert member.willing
            assert member.caught_up
            assert member.silent_s < ALIVE_WITHIN_S
        else:
            assert ChangeKind.ADD_LEARNER is change.kind
            assert member.voter
            assert member.silent_s >= REPLACE_AFTER_S


@given(clusters(), VOTERS_MAX, st.randoms(use_true_random=False))
def test_the_order_of_the_members_makes_no_difference(
    standings: list[Standing], voters_max: int, order: random.Random
) -> None:
    """The same members get the same roles, however they are listed."""
    shuffled = list(standings)
    order.shuffle(shuffled)
    assert changes_of(standings, voters_max) == changes_of(shuffled, voters_max)


@given(clusters(), VOTERS_MAX)
def test_no_place_stays_empty_that_somebody_could_take(standings: list[Standing], voters_max: int) -> None:
    """While a quorum lives, a candidate is left over only if no voter is gone and there is no room."""
    if objection(standings, voters_of(standings), alive_within_s=ALIVE_WITHIN_S) is not None:
        return
    changes = changes_of(standings, voters_max)
    after = changed(standings, changes) if changes else standings
    left_over = [
        member
        for member in after
        if not member.voter and member.willing and member.caught_up and member.silent_s < ALIVE_WITHIN_S
    ]
    if left_over:
        assert len(voters_of(after)) >= voters_max
        assert not [member for member in after if member.voter and member.silent_s >= REPLACE_AFTER_S]
