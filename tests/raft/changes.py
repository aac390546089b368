"""Changes of the members written down as words: v4 = add voter 4, l = add learner, r = remove, u = update."""

from __future__ import annotations

from network import Network

from replikv.raft.entries import Entry, EntryKind
from replikv.raft.membership import ChangeKind, MemberChange, MembershipChange, Transition

KINDS = {"v": ChangeKind.ADD_VOTER, "l": ChangeKind.ADD_LEARNER, "r": ChangeKind.REMOVE, "u": ChangeKind.UPDATE}


def change(words: str, transition: Transition = Transition.AUTO) -> MembershipChange:
    """The change of all these members; without words it leaves the joint configuration."""
    return MembershipChange(tuple(MemberChange(KINDS[word[0]], word[1:]) for word in words.split()), transition)


def entry_of(made: MembershipChange, index: int = 1) -> Entry:
    """The entry of a change."""
    return Entry(index, 1, made.encode(), EntryKind.MEMBERSHIP)


def everybody(network: Network) -> set[frozenset[str]]:
    """The voters, as each peer knows them."""
    return {peer.raft.membership.voters for peer in network}
