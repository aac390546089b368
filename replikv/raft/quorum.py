"""What a majority says: how far it has acknowledged, and how it votes.

Each function comes for one set of voters and for a joint configuration, in which both sets must agree (thesis 4.3).
There are no shortcuts here: a rule over a few sorted numbers is fast enough, and shortcuts have lost commits before.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from typing import Final

__all__ = [
    "UNCONSTRAINED_INDEX",
    "VoteResult",
    "committed_index",
    "joint_committed_index",
    "joint_vote_result",
    "vote_result",
]

UNCONSTRAINED_INDEX: Final = 2**63 - 1
"""What an empty set of voters has acknowledged: it never holds back the other half of a joint configuration."""


class VoteResult(enum.Enum):
    """How an election stands."""

    PENDING = "pending"
    LOST = "lost"
    WON = "won"


def committed_index(voters: Collection[str], match: Callable[[str], int] | Mapping[str, int]) -> int:
    """The largest index that a majority has acknowledged; a voter that a mapping does not know has acknowledged 0."""
    if not voters:
        return UNCONSTRAINED_INDEX
    acknowledged = sorted(match(voter) if callable(match) else match.get(voter, 0) for voter in voters)
    # The smallest majority is the len // 2 + 1 largest numbers: all of them have acknowledged the smallest of these.
    return acknowledged[(len(acknowledged) - 1) // 2]


def joint_committed_index(
    voters: Collection[str], outgoing: Collection[str], match: Callable[[str], int] | Mapping[str, int]
) -> int:
    """The largest index that a majority of each set has acknowledged."""
    return min(committed_index(voters, match), committed_index(outgoing, match))


def vote_result(voters: Collection[str], votes: Mapping[str, bool]) -> VoteResult:
    """How the votes stand: voter -> granted, absent while it has not answered. Others' votes do not count.

    An empty set of voters has won, so that it never holds back the other half of a joint configuration.
    """
    if not voters:
        return VoteResult.WON
    majority = len(voters) // 2 + 1
    granted = sum(votes.get(voter) is True for voter in voters)
    rejected = sum(votes.get(voter) is False for voter in voters)
    if granted >= majority:
        return VoteResult.WON
    if len(voters) - rejected < majority:
        return VoteResult.LOST
    return VoteResult.PENDING


def joint_vote_result(voters: Collection[str], outgoing: Collection[str], votes: Mapping[str, bool]) -> VoteResult:
    """How the votes stand where both sets must grant: lost with either, won with both."""
    results = {vote_result(voters, votes), vote_result(outgoing, votes)}
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON
