"""The roles of a node, and the only transitions between them.

1.  A node starts as a follower.
2.  A follower that hears of no leader for an election timeout asks whether it would be elected (pre-candidate), or,
    without pre-vote, campaigns at once (candidate).
3.  A pre-candidate that a majority would elect becomes a candidate: only now is its term raised (thesis 9.6).
4.  A candidate that a majority elects becomes leader. It may campaign again, in a new term, when nobody is elected.
    A pre-candidate of a single voter wins its pre-vote and its vote by itself, through the same steps.
5.  Whoever hears of a newer term, or a candidate of the leader of its own term, becomes a follower.
6.  A leader gives up leadership only by becoming a follower: never directly a candidate. It does so when it hears of a
    newer term, when it hears no majority for an election timeout (thesis 6.2), or when it is no voter any more (4.2.2).
7.  A leader that hands over leads until its successor's newer term reaches it (thesis 3.10). The successor, a follower,
    becomes a candidate at once.
8.  Only voters leave the role of a follower. A learner, or who is no member, follows.

A leader "becomes leader" again, and a pre-candidate leader, in no real run; the first is harmless and allowed as in
etcd, the second happens in tests that set the role by hand.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from replikv.errors import InternalError

__all__ = ["TRANSITIONS", "Role", "check_transition"]


class Role(enum.StrEnum):
    """What a node is at the moment (paper 5.1, thesis 9.6)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


TRANSITIONS: Final[Mapping[Role, Mapping[Role, str]]] = MappingProxyType(
    {
        Role.FOLLOWER: {
            Role.FOLLOWER: "hears of a newer term, or of its leader",
            Role.PRE_CANDIDATE: "hears of no leader for an election timeout",
            Role.CANDIDATE: "the same, without pre-vote; or the leader hands over to it",
        },
        Role.PRE_CANDIDATE: {
            Role.FOLLOWER: "hears of a leader or of a newer term, or would not be elected",
            Role.PRE_CANDIDATE: "nobody answers for an election timeout",
            Role.CANDIDATE: "a majority would elect it",
            Role.LEADER: "only in tests that set the role by hand",
        },
        Role.CANDIDATE: {
            Role.FOLLOWER: "hears of a leader or of a newer term, or is not elected",
            Role.PRE_CANDIDATE: "nobody is elected for an election timeout",
            Role.CANDIDATE: "the same, without pre-vote",
            Role.LEADER: "a majority elects it",
        },
        Role.LEADER: {
            Role.FOLLOWER: "hears of a newer term, hears no majority, or is removed",
            Role.LEADER: "only in tests that set the role by hand",
        },
    }
)
"""Role -> role it may become -> when. ``docs/roles.md`` is drawn from it."""


def check_transition(before: Role, after: Role) -> None:
    """Raise InternalError for a step that is not in the table."""
    if after not in TRANSITIONS[before]:
        raise InternalError(f"a {before} cannot become {after}")
