"""Handing leadership over (thesis 3.10): bring the successor up to date, then tell it to campaign at once.

Meanwhile proposals are refused, so that there is an end to what the successor lacks. A transfer that has not succeeded
within an election timeout is given up, and the leader goes on.

Functions on a ``Raft`` whose role is leader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.raft import replication
from replikv.raft.entries import NO_NODE
from replikv.raft.messages import TimeoutNow

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__: list[str] = []


def begin(raft: Raft, to: str) -> bool:
    """Hand over to the node, in place of any other; whether it is under way now.

    Nothing happens for who is no voter to be. The leader itself as the successor only ends what is under way. Asking
    again for the same node does not give it more time.
    """
    if to not in raft.tracker.membership.voters:
        return False
    if raft.transferee == to:
        return True
    raft.transferee = NO_NODE
    if to == raft.id:
        return False
    raft.election_elapsed = 0
    raft.transferee = to
    if not urge(raft):
        replication.send_append(raft, to)
    return True


def urge(raft: Raft) -> bool:
    """Tell the successor to campaign, if it has all that we have; whether it was told."""
    progress = raft.tracker.progress.get(raft.transferee)
    if progress is None or progress.match != raft.log.last_index():
        return False
    # Whoever votes for the successor breaks the promise that the lease rests on, now or when this message arrives.
    raft.lease.end()
    raft.send(TimeoutNow(to=raft.transferee))
    return True


def abandon_unless_voter(raft: Raft) -> None:
    """The configuration has changed: who cannot be elected any more is no successor."""
    if raft.transferee not in raft.tracker.membership.voters:
        raft.transferee = NO_NODE


def successor(raft: Raft) -> str:
    """Who is best handed over to: the voter that was heard of and lacks least; NO_NODE when there is none."""
    candidates = [
        (progress.match, node_id)
        for node_id, progress in raft.tracker.progress.items()
        if node_id != raft.id and progress.recent_active and node_id in raft.tracker.membership.voters
    ]
    return max(candidates)[1] if candidates else NO_NODE
