"""What only a leader does: keep its leadership, take proposals, count acknowledgements (paper 5.3, 5.4.2; thesis 6.2).

Functions on a ``Raft``, called by core.py when its role is leader. What it sends is in replication.py, how it answers
reads in reading.py, how it hands over in transfer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.errors import InternalError
from replikv.raft import reading, reconfiguration, replication, transfer
from replikv.raft.entries import NO_NODE, Entry, EntryKind, payload_bytes
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    TransferLeadership,
)
from replikv.raft.progress import Progress, ProgressState
from replikv.raft.reads import ReadState
from replikv.raft.refusals import ProposalDroppedError

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__: list[str] = []


def tick(raft: Raft) -> None:
    """Check the quorum once per election timeout, and send heartbeats."""
    raft.heartbeat_elapsed += 1
    if raft.election_elapsed >= raft.config.election_ticks:
        raft.election_elapsed = 0
        if not _still_leading(raft):
            raft.become_follower(raft.term, NO_NODE)
            return
        # A transfer that did not complete within an election timeout is given up (thesis 3.10).
        raft.transferee = NO_NODE
    if raft.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        replication.broadcast_heartbeat(raft)
        reconfiguration.leave_if_due(raft)
        if not raft.tracker.membership.is_voter(raft.id):
            transfer.urge(raft)  # it may not have applied yet that we are gone, and so not have campaigned


def _still_leading(raft: Raft) -> bool:
    """Whether a quorum was heard of in the election timeout that has passed (thesis 6.2), and we are part of it."""
    if not raft.tracker.membership.is_voter(raft.id):
        return False
    if not raft.config.check_quorum:
        return True
    active = raft.tracker.quorum_active()
    for node_id, progress in raft.tracker.progress.items():
        progress.recent_active = node_id == raft.id
    return active


def step(raft: Raft, message: Message) -> None:
    """A message of the leader's own term, or without one."""
    if isinstance(message, AppendEntriesResponse):
        progress = raft.tracker.progress.get(message.sender)
        if progress is None:
            return  # not a member (any more)
        progress.recent_active = True
        if message.reject:
            _handle_reject(raft, progress, message)
        else:
            _handle_acknowledgement(raft, progress, message)
    elif isinstance(message, HeartbeatResponse):
        progress = raft.tracker.progress.get(message.sender)
        if progress is None:
            return
        progress.recent_active = True
        progress.paused = False
        if progress.match < raft.log.last_index() or progress.state is ProgressState.PROBE:
            replication.send_append(raft, message.sender)
        reading.acknowledge(raft, message.sender, message.read_position)
    elif isinstance(message, ReadIndex):
        reading.add_read(raft, message.sender, message.context)
    elif isinstance(message, ReadIndexResponse):
        raft.read_states.append(ReadState(message.context, message.index))
    elif isinstance(message, TransferLeadership):
        transfer.begin(raft, message.transferee)
    elif isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
        raise InternalError(f"two leaders in term {raft.term}: {raft.id} and {message.sender}")


# -- proposals ---------------------------------------------------------------------------------------------------------


def propose(raft: Raft, data: bytes, kind: EntryKind) -> int:
    """Append one entry and send it on its way; its index."""
    if not raft.tracker.membership.is_voter(raft.id):
        raise ProposalDroppedError(f"{raft.id} leads, but is no longer a voter: it is handing leadership over")
    if raft.transferee != NO_NODE:
        raise ProposalDroppedError(f"{raft.id} is handing leadership over to {raft.transferee}")
    index = replication.append(raft, data, kind, limited=True)
    replication.broadcast_append(raft)
    return index


def reduce_uncommitted(raft: Raft, entries: list[Entry]) -> None:
    """These entries are applied. Those from before the election were never counted."""
    own = [entry for entry in entries if entry.index > raft.election_index]
    raft.uncommitted_bytes = max(0, raft.uncommitted_bytes - payload_bytes(own))


# -- answers -----------------------------------------------------------------------------------------------------------


def _handle_reject(raft: Raft, progress: Progress, message: AppendEntriesResponse) -> None:
    # The follower's log cannot match above the hint; ours cannot match above our largest index of a term not above
    # the hint's. So a follower is found in as many probes as there are diverging terms (paper 5.3, at the end).
    next_probe = message.hint_index
    if message.hint_term > 0:
        next_probe, _ = raft.log.find_conflict_by_term(message.hint_index, message.hint_term)
    if progress.maybe_decrease_to(message.index, next_probe):
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        replication.send_append(raft, message.sender)


def _handle_acknowledgement(raft: Raft, progress: Progress, message: AppendEntriesResponse) -> None:
    if message.index > raft.log.last_index():
        raise InternalError(f"{message.sender} acknowledges {message.index}, beyond our {raft.log.last_index()}")
    was_paused = progress.is_paused()
    # A probe that is answered by what is known already still finds the follower's log.
    found = progress.match == message.index and progress.state is ProgressState.PROBE
    if not progress.maybe_update(message.index) and not found:
        return
    if progress.state is ProgressState.PROBE:
        progress.become_replicate()
    elif progress.state is ProgressState.SNAPSHOT and progress.match + 1 >= raft.log.first_index():
        # What the follower has meets our log again, by the snapshot or otherwise.
        progress.become_probe()
        progress.become_replicate()
    elif progress.state is ProgressState.REPLICATE:
        progress.inflights.free_le(message.index)
    if replication.maybe_commit(raft):
        reading.take_postponed(raft)
        raft.commit_untold = True
        if not raft.config.commit_rides_along:
            replication.broadcast_append(raft)
    elif was_paused and message.sender != raft.id:
        replication.send_append(raft, message.sender)
    if message.sender != raft.id:
        while replication.send_append(raft, message.sender, empty=False):
            pass
        if message.sender == raft.transferee:
            transfer.urge(raft)
