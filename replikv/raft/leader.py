"""What only a leader does: append, replicate, commit, confirm reads (paper 5.3, 5.4.2; thesis 6.4, 10.2).

Functions on a ``Raft``, called by core.py when its role is leader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.errors import InternalError
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
)
from replikv.raft.progress import Progress, ProgressState
from replikv.raft.quorum import joint_committed_index
from replikv.raft.reads import ReadState
from replikv.raft.stable import CompactedIndexError

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__ = ["ProposalDroppedError"]

POSTPONED_READS_MAX = 65_536
"""Reads that may wait for the leader's first commit; more are dropped, and asked again by who waits."""


class ProposalDroppedError(Exception):
    """The core did not take the proposal, and never will: the caller may try elsewhere, or later."""


def tick(raft: Raft) -> None:
    """Check the quorum once per election timeout, and send heartbeats."""
    raft.heartbeat_elapsed += 1
    if raft.election_elapsed >= raft.config.election_ticks:
        raft.election_elapsed = 0
        if raft.config.check_quorum:
            _check_quorum(raft)
        # A transfer that did not complete within an election timeout is given up (thesis 3.10).
        raft.transferee = NO_NODE
    if raft.leader != raft.id:
        return
    if raft.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        broadcast_heartbeat(raft)


def _check_quorum(raft: Raft) -> None:
    if not raft.tracker.quorum_active():
        raft.become_follower(raft.term, NO_NODE)
        return
    for node_id, progress in raft.tracker.progress.items():
        progress.recent_active = node_id == raft.id


def step(raft: Raft, message: Message) -> None:
    """A message of the leader's own term, or without one."""
    if isinstance(message, ReadIndex):
        add_read(raft, message.sender, message.context)
        return
    if isinstance(message, ReadIndexResponse):
        raft.read_states.append(ReadState(message.context, message.index))
        return
    if isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
        raise InternalError(f"two leaders in term {raft.term}: {raft.id} and {message.sender}")
    progress = raft.tracker.progress.get(message.sender)
    if progress is None:
        return  # not a member (any more)
    if isinstance(message, AppendEntriesResponse):
        progress.recent_active = True
        if message.reject:
            _handle_reject(raft, progress, message)
        else:
            _handle_acknowledgement(raft, progress, message)
    elif isinstance(message, HeartbeatResponse):
        progress.recent_active = True
        progress.paused = False
        if progress.match < raft.log.last_index() or progress.state is ProgressState.PROBE:
            send_append(raft, message.sender)
        raft.reads.acknowledge(message.sender, message.read_position)
        _answer_confirmed_reads(raft)


# -- appending ---------------------------------------------------------------------------------------------------------


def propose(raft: Raft, data: bytes, kind: EntryKind) -> int:
    """Append one entry and send it on its way; its index."""
    if raft.id not in raft.tracker.progress:
        raise ProposalDroppedError(f"{raft.id} leads, but is no longer a member")
    if raft.transferee != NO_NODE:
        raise ProposalDroppedError(f"{raft.id} is handing leadership over to {raft.transferee}")
    index = append(raft, data, kind, limited=True)
    broadcast_append(raft)
    return index


def append(raft: Raft, data: bytes, kind: EntryKind, *, limited: bool) -> int:
    """Append one entry to the own log; its index. It counts as acknowledged only when it is durable.

    ``limited``: refuse it when the uncommitted tail is too large. An empty tail takes any entry and an empty entry is
    always taken, so that progress never depends on the limit.
    """
    limit = raft.config.uncommitted_bytes_max
    if (
        limited
        and limit is not None
        and data
        and raft.uncommitted_bytes > 0
        and raft.uncommitted_bytes + len(data) > limit
    ):
        raise ProposalDroppedError(f"{raft.uncommitted_bytes} bytes are uncommitted: the limit is {limit}")
    raft.uncommitted_bytes += len(data)
    index = raft.log.append([Entry(raft.log.last_index() + 1, raft.term, data, kind)])
    raft.send(AppendEntriesResponse(to=raft.id, index=index))
    return index


def reduce_uncommitted(raft: Raft, entries: list[Entry]) -> None:
    """These entries are applied. Those of earlier leaders were never counted: the account stops at 0."""
    raft.uncommitted_bytes = max(0, raft.uncommitted_bytes - payload_bytes(entries))


# -- sending -----------------------------------------------------------------------------------------------------------


def broadcast_append(raft: Raft) -> None:
    """Bring everybody up to date, as far as their flow control allows."""
    raft.commit_untold = False
    for node_id in raft.tracker.progress:
        if node_id != raft.id:
            send_append(raft, node_id)


def broadcast_heartbeat(raft: Raft) -> None:
    """Tell everybody that we lead, and how far they may commit: never above what they are known to match."""
    for node_id, progress in raft.tracker.progress.items():
        if node_id != raft.id:
            raft.send(
                Heartbeat(
                    to=node_id,
                    commit=min(progress.match, raft.log.committed),
                    read_position=raft.reads.position,
                )
            )


def send_append(raft: Raft, node_id: str, *, empty: bool = True) -> bool:
    """Send the node what it lacks, entries or a snapshot; whether anything was sent.

    ``empty``: also when there are no entries to send, to tell the commit index or to probe.
    """
    progress = raft.tracker.progress[node_id]
    if progress.is_paused():
        return False
    previous_index = progress.next - 1
    try:
        previous_term = raft.log.term(previous_index)
        entries: list[Entry] = []
        # A full window still lets an empty message through: it carries the commit index.
        if progress.state is not ProgressState.REPLICATE or not progress.inflights.full():
            entries = raft.log.entries(progress.next, raft.config.message_bytes_max)
    except CompactedIndexError:
        return _send_snapshot(raft, node_id, progress)
    if not entries and not empty:
        return False
    raft.send(
        AppendEntries(
            to=node_id,
            previous_index=previous_index,
            previous_term=previous_term,
            entries=tuple(entries),
            commit=raft.log.committed,
        )
    )
    progress.sent_entries(len(entries), payload_bytes(entries))
    return True


def _send_snapshot(raft: Raft, node_id: str, progress: Progress) -> bool:
    if not progress.recent_active:
        return False  # nobody is there to take it
    snapshot = raft.log.snapshot()
    if snapshot.index == 0:
        raise InternalError(f"{node_id} needs entry {progress.next}, which is compacted without a snapshot")
    progress.become_snapshot(snapshot.index)
    raft.send(InstallSnapshot(to=node_id, snapshot=snapshot))
    return True


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
        send_append(raft, message.sender)


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
    if maybe_commit(raft):
        _take_postponed_reads(raft)
        raft.commit_untold = True
        if not raft.config.commit_rides_along:
            broadcast_append(raft)
    elif was_paused and message.sender != raft.id:
        send_append(raft, message.sender)
    if message.sender != raft.id:
        while send_append(raft, message.sender, empty=False):
            pass


def maybe_commit(raft: Raft) -> bool:
    """Commit what a majority has on disk, if it is of the own term: older entries follow with it (paper 5.4.2)."""
    return raft.log.maybe_commit(raft.tracker.committed_index(), raft.term)


def report_unreachable(raft: Raft, node_id: str) -> None:
    """Messages to the node are being lost: find out again what it has, one message at a time."""
    progress = raft.tracker.progress.get(node_id)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe()


def report_snapshot(raft: Raft, node_id: str, *, failed: bool) -> None:
    """The node has taken the snapshot that was sent to it, or has not. It is probed after the next heartbeat."""
    progress = raft.tracker.progress.get(node_id)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if failed:
        progress.pending_snapshot = 0
    progress.become_probe()
    progress.paused = True


# -- reads -------------------------------------------------------------------------------------------------------------


def committed_in_own_term(raft: Raft) -> bool:
    """Whether the commit index is known to cover all that earlier leaders acknowledged (thesis 6.4)."""
    return raft.log.term(raft.log.committed) == raft.term


def add_read(raft: Raft, asker: str, context: int) -> None:
    """Note a read, and ask everybody whether we still lead."""
    if not committed_in_own_term(raft):
        if len(raft.reads.postponed) < POSTPONED_READS_MAX:
            raft.reads.postponed.append((asker, context))
        return
    position = raft.reads.add(raft.log.committed, asker, context)
    raft.reads.acknowledge(raft.id, position)
    broadcast_heartbeat(raft)
    _answer_confirmed_reads(raft)


def _take_postponed_reads(raft: Raft) -> None:
    if not raft.reads.postponed or not committed_in_own_term(raft):
        return
    position = 0
    while raft.reads.postponed:
        asker, context = raft.reads.postponed.popleft()
        position = raft.reads.add(raft.log.committed, asker, context)
    raft.reads.acknowledge(raft.id, position)
    broadcast_heartbeat(raft)
    _answer_confirmed_reads(raft)


def _answer_confirmed_reads(raft: Raft) -> None:
    membership = raft.tracker.membership
    for read in raft.reads.confirmed(
        lambda number: joint_committed_index(membership.voters, membership.outgoing, number)
    ):
        if read.asker == raft.id:
            raft.read_states.append(ReadState(read.context, read.commit))
        else:
            raft.send(ReadIndexResponse(to=read.asker, context=read.context, index=read.commit))
