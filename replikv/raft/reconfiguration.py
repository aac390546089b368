"""Changes of the membership on their way through the log (thesis 4; the changes themselves are in changer.py).

A configuration takes effect when its entry is *applied*, as in etcd, not when it is appended as in the thesis. That is
safe because at most one change is under way, because a node with a committed change that it has not applied does not
campaign, and because an entry that was proposed after a change was applied tells the change's commit along with it:
whoever has the entry durably knows the change as committed. So two configurations that count votes at the same time are
neighbours, and majorities of neighbours meet.

Functions on a ``Raft``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.errors import InternalError
from replikv.raft import changer, reading, replication, transfer
from replikv.raft.entries import NO_NODE, Entry, EntryKind
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.refusals import ChangePendingError, InvalidChangeError
from replikv.raft.roles import Role

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__: list[str] = []


def check(raft: Raft, change: MembershipChange) -> None:
    """Raise what keeps the leader from proposing the change now: ChangePendingError or InvalidChangeError."""
    pending = raft.pending_membership_index
    if pending > raft.log.applied:
        raise ChangePendingError(
            f"a membership change may be under way: everything up to entry {pending} has to be applied first,"
            f" {raft.log.applied} is",
            pending,
        )
    # Exact, not a guess: nothing that is not applied yet changes the membership before this entry does.
    changer.apply_change(raft.tracker.membership, change, raft.log.last_index() + 1)


def apply(raft: Raft, entry: Entry) -> Membership:
    """A committed change is being applied; the configuration from now on."""
    before = raft.tracker.membership
    if entry.index <= raft.membership_index:
        return before  # it was handed out before a snapshot arrived that has it already
    if not before.voters:
        # Whoever starts with an empty log has to be given the first configuration, or a snapshot.
        raise InternalError(f"entry {entry.index} changes the membership, without the configuration before it")
    try:
        after = changer.apply_change(before, MembershipChange.decode(entry.data), entry.index)
    except InvalidChangeError as exc:
        raise InternalError(f"entry {entry.index} was committed, but cannot be applied: {exc}") from exc
    raft.membership_index = entry.index
    if raft.role is Role.LEADER:
        for node_id in sorted(before.ids - after.ids - {raft.id}):
            replication.tell_commit(raft, node_id)  # nobody will later, and it should know that it is removed
    # One below the end of the log, so that a new member's first probe has something to carry (etcd: the same).
    raft.tracker.switch(after, max(raft.log.last_index(), 1))
    if raft.role is not Role.LEADER:
        if raft.role is not Role.FOLLOWER and not after.is_voter(raft.id):
            raft.become_follower(raft.term, NO_NODE)
        return after
    if (after.voters, after.outgoing) != (before.voters, before.outgoing):
        raft.lease.revoke()
    transfer.abandon_unless_voter(raft)
    if not after.is_voter(raft.id):
        _step_aside(raft)
    elif after.ids != before.ids or after.voters != before.voters or after.outgoing != before.outgoing:
        _follow_up(raft)
    return after


def _follow_up(raft: Raft) -> None:
    """A smaller quorum may commit more at once; who is new is probed without waiting for the next proposal."""
    if replication.maybe_commit(raft):
        replication.broadcast_append(raft)
    else:
        for node_id in raft.tracker.progress:
            if node_id != raft.id:
                replication.send_append(raft, node_id, empty=False)
    reading.quorum_changed(raft)


def _step_aside(raft: Raft) -> None:
    """The leader votes no more: it passes on what it knows to be committed, and hands over (thesis 4.2.2).

    It leads on, without counting itself, until the successor campaigns, or for an election timeout at the most: a
    leader that left at once could be the only one to know that it may leave.
    """
    if replication.maybe_commit(raft) or raft.commit_untold:
        replication.broadcast_append(raft)
    if raft.transferee != NO_NODE:
        return
    if not transfer.begin(raft, transfer.successor(raft)):
        raft.become_follower(raft.term, NO_NODE)


def leave_if_due(raft: Raft) -> None:
    """Propose to leave the joint configuration, if that is the leader's to do and nothing is in its way.

    Every leader tries it when it has applied something, and again at each heartbeat: the one that entered the joint
    configuration may be gone, and a transfer may have been in the way (etcd#12136).
    """
    if (
        raft.role is Role.LEADER
        and raft.tracker.membership.auto_leave
        and raft.pending_membership_index <= raft.log.applied
        and raft.transferee == NO_NODE
    ):
        data = MembershipChange().encode()
        raft.pending_membership_index = replication.append(raft, data, EntryKind.MEMBERSHIP, limited=False)
        replication.broadcast_append(raft)
