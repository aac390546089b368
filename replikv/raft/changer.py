"""From one configuration to the next: simple changes, joint consensus and learners (thesis 4.1, 4.3).

Pure functions. Two rules keep a majority of the old configuration and one of the new from deciding apart:

1.  A simple change adds, removes, promotes or demotes at most one voter, so that any two majorities meet.
2.  Anything more goes through a joint configuration, in which both halves must agree: the new voters and the outgoing
    ones. A voter that is to become a learner stays an outgoing voter first (``learners_next``), lest it learn and vote
    at the same time. Leaving the joint configuration is a change of its own.

The semantics are those of etcd's confchange package, but for one thing: ``Transition.AUTO`` takes the simple way for
whatever rule 1 allows, where etcd goes by the number of changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from replikv.raft.entries import NO_NODE
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange, Transition
from replikv.raft.refusals import InvalidChangeError

__all__ = ["apply_change", "enter_joint", "leave_joint", "simple"]


def apply_change(membership: Membership, change: MembershipChange, index: int) -> Membership:
    """The membership after the change that stands at ``index`` of the log.

    Raises InvalidChangeError, with a reason, when the change cannot be applied to this membership.
    """
    if change.only_updates:
        return change.updated(membership, index)
    if not change.changes:
        return leave_joint(membership)
    auto_leave = change.transition is not Transition.JOINT_EXPLICIT
    if change.transition is not Transition.AUTO or _voters_changed(membership, change.changes) > 1:
        return enter_joint(membership, change.changes, auto_leave=auto_leave, index=index)
    return simple(membership, change.changes, index=index)


def simple(membership: Membership, changes: Collection[MemberChange], *, index: int = 0) -> Membership:
    """Take the changes at once; they change at most one voter."""
    if membership.joint:
        raise InvalidChangeError("the configuration is joint: leave it before the next change")
    after = _Sets(membership)
    after.take(changes)
    if len(after.voters ^ membership.voters) > 1:
        raise InvalidChangeError(
            f"more than one voter changes ({_listed(after.voters ^ membership.voters)}):"
            " that takes a joint configuration"
        )
    return after.membership(membership, changes, index)


def enter_joint(
    membership: Membership, changes: Collection[MemberChange], *, auto_leave: bool, index: int = 0
) -> Membership:
    """Enter the joint configuration of the voters of now, as the outgoing ones, and those after the changes."""
    if membership.joint:
        raise InvalidChangeError("the configuration is joint already: leave it before the next change")
    if not membership.voters:
        raise InvalidChangeError("a configuration without voters cannot become joint")
    after = _Sets(membership)
    after.outgoing = set(membership.voters)
    after.take(changes)
    after.auto_leave = auto_leave
    return after.membership(membership, changes, index)


def leave_joint(membership: Membership) -> Membership:
    """Leave the joint configuration: the outgoing voters are gone, or learners."""
    if not membership.joint:
        raise InvalidChangeError("the configuration is not joint: there is nothing to leave, and no change is given")
    after = _Sets(membership)
    after.learners |= after.learners_next
    after.learners_next = set()
    after.outgoing = set()
    after.auto_leave = False
    return after.membership(membership, (), 0)


class _Sets:
    """A membership's sets while changes are made to them."""

    def __init__(self, membership: Membership) -> None:
        self.voters = set(membership.voters)
        self.outgoing = set(membership.outgoing)
        self.learners = set(membership.learners)
        self.learners_next = set(membership.learners_next)
        self.auto_leave = membership.auto_leave

    def take(self, changes: Iterable[MemberChange]) -> None:
        """Make the changes, in order. Those of nobody are passed over, as are removals of who is no member."""
        for change in changes:
            if change.node_id == NO_NODE:
                continue
            match change.kind:
                case ChangeKind.ADD_VOTER:
                    self._drop(change.node_id)
                    self.voters.add(change.node_id)
                case ChangeKind.ADD_LEARNER:
                    self._drop(change.node_id)
                    # An outgoing voter learns only after it has ceased to vote: no node is ever both.
                    (self.learners_next if change.node_id in self.outgoing else self.learners).add(change.node_id)
                case ChangeKind.REMOVE:
                    self._drop(change.node_id)
                case ChangeKind.UPDATE:
                    pass
        if not self.voters:
            raise InvalidChangeError("the change removes all voters: a cluster needs at least one")

    def _drop(self, node_id: str) -> None:
        self.voters.discard(node_id)
        self.learners.discard(node_id)
        self.learners_next.discard(node_id)

    def membership(self, before: Membership, changes: Iterable[MemberChange], index: int) -> Membership:
        """The sets, with a record for each member: kept, made, or changed at ``index`` of the log."""
        after = Membership(
            voters=frozenset(self.voters),
            outgoing=frozenset(self.outgoing),
            learners=frozenset(self.learners),
            learners_next=frozenset(self.learners_next),
            auto_leave=self.auto_leave,
        )
        members = {node_id: before.members.get(node_id, MemberRecord("")) for node_id in after.ids}
        for change in changes:
            record = members.get(change.node_id)
            if record is not None and change.kind is not ChangeKind.REMOVE:
                members[change.node_id] = change.recorded(record, index)
        return dataclasses.replace(after, members=dict(sorted(members.items())))


def _voters_changed(membership: Membership, changes: Iterable[MemberChange]) -> int:
    after = _Sets(membership)
    after.take(changes)
    return len(after.voters ^ membership.voters)


def _listed(node_ids: Iterable[str]) -> str:
    return ", ".join(sorted(node_ids))
