"""Majorities, held against their definition."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.raft.quorum import (
    UNCONSTRAINED_INDEX,
    VoteResult,
    committed_index,
    joint_committed_index,
    joint_vote_result,
    vote_result,
)

NODES = st.sampled_from("abcdefghi")
VOTERS = st.frozensets(NODES)
MATCH = st.dictionaries(NODES, st.integers(0, 5))
VOTES = st.dictionaries(NODES, st.booleans())


def naive_committed_index(voters: frozenset[str], match: dict[str, int]) -> int:
    """Try every index, from the largest down: has more than half of the voters acknowledged it?"""
    for index in (UNCONSTRAINED_INDEX, 5, 4, 3, 2, 1):
        if not voters or 2 * sum(match.get(voter, 0) >= index for voter in voters) > len(voters):
            return index
    return 0


def naive_vote_result(voters: frozenset[str], outgoing: frozenset[str], votes: dict[str, bool]) -> VoteResult:
    """Complete the votes in every way: an election is decided when all of these end alike."""
    missing = sorted((voters | outgoing) - votes.keys())
    outcomes = set()
    for answers in itertools.product((False, True), repeat=len(missing)):
        granted = {**votes, **dict(zip(missing, answers, strict=True))}
        outcomes.add(all(2 * sum(granted[v] for v in half) > len(half) for half in (voters, outgoing) if half))
    return VoteResult.PENDING if len(outcomes) == 2 else VoteResult.WON if outcomes.pop() else VoteResult.LOST


@given(VOTERS, MATCH)
def test_committed_index_is_what_a_majority_has(voters: frozenset[str], match: dict[str, int]) -> None:
    """The committed index is the largest that more than half of the voters have acknowledged (openraft#1802)."""
    expected = naive_committed_index(voters, match)

    assert expected == committed_index(voters, match)
    assert expected == committed_index(voters, lambda voter: match.get(voter, 0))


@given(VOTERS, VOTERS, MATCH)
def test_joint_committed_index_needs_both_halves(
    voters: frozenset[str], outgoing: frozenset[str], match: dict[str, int]
) -> None:
    """In a joint configuration both halves must have acknowledged it; an empty half has no say."""
    expected = min(naive_committed_index(voters, match), naive_committed_index(outgoing, match))

    assert expected == joint_committed_index(voters, outgoing, match)


@given(VOTERS, VOTES)
def test_vote_result_is_decided_when_no_answer_can_change_it(voters: frozenset[str], votes: dict[str, bool]) -> None:
    """Won and lost are final whatever the missing voters answer; strangers' votes do not count."""
    assert naive_vote_result(voters, frozenset(), votes) is vote_result(voters, votes)


@given(VOTERS, VOTERS, VOTES)
def test_joint_vote_result_needs_both_halves(
    voters: frozenset[str], outgoing: frozenset[str], votes: dict[str, bool]
) -> None:
    """A joint election is won with both halves, and lost with one of them, even if the other is pending."""
    halves = {vote_result(voters, votes), vote_result(outgoing, votes)}
    lost = VoteResult.LOST in halves
    won = halves == {VoteResult.WON}

    assert (lost, won) == (
        joint_vote_result(voters, outgoing, votes) is VoteResult.LOST,
        joint_vote_result(voters, outgoing, votes) is VoteResult.WON,
    )


@pytest.mark.parametrize(
    ("acknowledged", "committed"),
    [
        ({"a": 12}, 12),
        ({"a": 12, "b": 5}, 5),
        ({"a": 12, "b": 5, "c": 6}, 6),
        ({"a": 101, "b": 104, "c": 103, "d": 103}, 103),
        ({"a": 101, "b": 102, "c": 103, "d": 103, "e": 104}, 103),
    ],
)
def test_committed_index_examples(acknowledged: dict[str, int], committed: int) -> None:
    """With an even number of voters a majority is more than half."""
    assert committed == committed_index(acknowledged.keys(), acknowledged)


def test_a_voter_that_never_answered_has_acknowledged_nothing() -> None:
    """A voter that a mapping does not know counts as 0, not as absent from the quorum."""
    assert 0 == committed_index({"a", "b", "c"}, {"a": 7})


def test_the_empty_set_of_voters_never_holds_back() -> None:
    """Without outgoing voters a joint rule is the plain one."""
    assert UNCONSTRAINED_INDEX == committed_index((), {})
    assert VoteResult.WON is vote_result((), {})
    assert 3 == joint_committed_index({"a"}, (), {"a": 3})
