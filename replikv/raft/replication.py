"""What a leader sends: entries, snapshots, heartbeats, the commit index (paper 5.3, 7; thesis 10.2).

Functions on a ``Raft`` whose role is leader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.errors import InternalError
from replikv.raft.entries import Entry, EntryKind, payload_bytes
from replikv.raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, InstallSnapshot
from replikv.raft.progress import Progress, ProgressState
from replikv.raft.refusals import ProposalDroppedError
from replikv.raft.stable import CompactedIndexError

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__: list[str] = []


# -- the own log -------------------------------------------------------------------------------------------------------


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


def maybe_commit(raft: Raft) -> bool:
    """Commit what a majority has on disk, if it is of the own term: older entries follow with it (paper 5.4.2)."""
    return raft.log.maybe_commit(raft.tracker.committed_index(), raft.term)


def committed_in_own_term(raft: Raft) -> bool:
    """Whether the commit index is known to cover all that earlier leaders acknowledged (thesis 6.4)."""
    return raft.log.term(raft.log.committed) == raft.term


# -- sending -----------------------------------------------------------------------------------------------------------


def broadcast_append(raft: Raft) -> None:
    """Bring everybody up to date, as far as their flow control allows."""
    raft.commit_untold = False
    for node_id in raft.tracker.progress:
        if node_id != raft.id:
            send_append(raft, node_id)


def broadcast_heartbeat(raft: Raft) -> None:
    """Tell everybody that we lead, and how far they may commit: never above what they are known to match."""
    if raft.config.read_lease and raft.now is not None:
        # A position without a read tells the answers to this round from those to earlier ones.
        raft.reads.position += 1
        raft.reads.acknowledge(raft.id, raft.reads.position)
        raft.lease.sent(raft.reads.position, raft.now)
    for node_id, progress in raft.tracker.progress.items():
        if node_id != raft.id:
            raft.send(
                Heartbeat(
                    to=node_id,
                    commit=min(progress.match, raft.log.committed),
                    read_position=raft.reads.position,
                )
            )


def tell_commit(raft: Raft, node_id: str) -> None:
    """Tell one member the commit index, whatever its flow control says."""
    if not send_append(raft, node_id):
        commit = min(raft.tracker.progress[node_id].match, raft.log.committed)
        raft.send(Heartbeat(to=node_id, commit=commit, read_position=raft.reads.position))


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
    if node_id not in snapshot.membership.ids:
        # It was taken before the node was added, and would be refused there: one of now knows it.
        raft.snapshot_wanted_index = max(raft.membership_index, snapshot.index + 1)
        return False
    progress.become_snapshot(snapshot.index)
    raft.send(InstallSnapshot(to=node_id, snapshot=snapshot))
    return True


# -- what the transport tells ------------------------------------------------------------------------------------------


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
