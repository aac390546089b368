"""How a leader answers linearizable reads: by asking everybody, or under a lease (thesis 6.4, 6.4.1).

Functions on a ``Raft`` whose role is leader. The queue of reads is in reads.py, the lease in lease.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.raft import replication
from replikv.raft.messages import ReadIndexResponse
from replikv.raft.quorum import joint_committed_index
from replikv.raft.reads import ReadState

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__: list[str] = []

POSTPONED_READS_MAX = 65_536
"""Reads that may wait for the leader's first commit; more are dropped, and asked again by who waits."""


def add_read(raft: Raft, asker: str, context: int) -> None:
    """Answer a read under the lease; without one note it, and ask everybody whether we still lead."""
    if not replication.committed_in_own_term(raft):
        if len(raft.reads.postponed) < POSTPONED_READS_MAX:
            raft.reads.postponed.append((asker, context))
    elif raft.lease.holds(raft.now):
        _answer(raft, asker, context, raft.log.committed)
    else:
        position = raft.reads.add(raft.log.committed, asker, context)
        raft.reads.acknowledge(raft.id, position)
        replication.broadcast_heartbeat(raft)
        _answer_confirmed(raft)


def take_postponed(raft: Raft) -> None:
    """Begin the reads that came before the first commit of the own term, once that is there."""
    if not raft.reads.postponed or not replication.committed_in_own_term(raft):
        return
    position = 0
    while raft.reads.postponed:
        asker, context = raft.reads.postponed.popleft()
        position = raft.reads.add(raft.log.committed, asker, context)
    raft.reads.acknowledge(raft.id, position)
    replication.broadcast_heartbeat(raft)
    _answer_confirmed(raft)


def quorum_changed(raft: Raft) -> None:
    """Other voters count: what they have confirmed or committed already may be enough, and nobody may answer again."""
    take_postponed(raft)
    _answer_confirmed(raft)


def acknowledge(raft: Raft, node_id: str, position: int) -> None:
    """The node has answered a heartbeat that carried this position: it followed us when it did."""
    raft.reads.acknowledge(node_id, position)
    if raft.config.read_lease:
        raft.lease.confirm(_confirmed_position(raft))
    _answer_confirmed(raft)


def _confirmed_position(raft: Raft) -> int:
    membership, acknowledged = raft.tracker.membership, raft.reads.acknowledged
    return joint_committed_index(membership.voters, membership.outgoing, acknowledged)


def _answer_confirmed(raft: Raft) -> None:
    if raft.reads.pending:
        for read in raft.reads.confirmed(_confirmed_position(raft)):
            _answer(raft, read.asker, read.context, read.commit)


def _answer(raft: Raft, asker: str, context: int, index: int) -> None:
    if asker == raft.id:
        raft.read_states.append(ReadState(context, index))
    else:
        raft.send(ReadIndexResponse(to=asker, context=context, index=index))
