"""What ``meta``, the log and the snapshots of a directory amount to together, or why they cannot belong together.

The newest snapshot S (index s, term t) and the log are put together at the start (thesis, section 5.1): the log goes on
behind s where it agrees with S. Where it ends before s or has another term there, S was received and the log had no
time to say so: it begins anew behind s. Where it begins after s + 1, entries are missing, and that is damage.

Nothing here touches the disk.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from replikv.errors import CorruptionError
from replikv.raft.entries import NO_NODE, Entry, HardState, SnapshotMetadata
from replikv.storage.base import Identity
from replikv.storage.meta import META_NAME
from replikv.storage.recovery import Replay

__all__ = ["Assembly", "assemble", "check_owner", "seal"]


class Assembly(NamedTuple):
    """What a peer starts with."""

    snapshot: SnapshotMetadata
    following: list[Entry]
    """The entries after the snapshot."""
    agrees: bool
    """Whether the log says so, too; if not, it must be told before anything else."""
    hard_state: HardState


def seal(identity: Identity) -> bytes:
    """What of the identity stands in each segment."""
    fields = {name: dataclasses.asdict(identity)[name] for name in ("cluster_id", "node_id", "incarnation")}
    return json.dumps(fields, separators=(",", ":")).encode()


def check_owner(directory: Path, identity: Identity | None, replay: Replay | None, frames_written: int) -> None:
    """Whether ``meta`` and the log are of the same peer; either may be missing. Raises CorruptionError.

    Without ``meta``, a log is what an initialization that crashed has left, or has lost its ``meta``.
    """
    wal_directory = directory / "wal"
    if identity is None:
        if replay is not None and frames_written > 1:
            raise _damage(directory / META_NAME, "it is missing, and the log beside it has been written to")
    elif replay is None:
        raise _damage(wal_directory, f"it is empty, and {META_NAME} says that it was written to")
    elif replay.identity != seal(identity):
        raise _damage(wal_directory, "it holds the log of another peer")


def assemble(directory: Path, replay: Replay, newest: SnapshotMetadata | None) -> Assembly:
    """Put the log and the newest snapshot together. Raises CorruptionError."""
    marker, snapshot = replay.marker, newest
    assert marker is not None
    if snapshot is None or snapshot.index < marker.index:
        if marker.index > 0:
            raise _damage(
                directory / "snapshots",
                f"the log says that there is a snapshot at {marker.index}, and there is none at or after it",
            )
        snapshot = marker
    index, term = snapshot.index, snapshot.term
    first_index = replay.last_index - len(replay.entries) + 1
    if first_index > index + 1:
        raise _damage(directory / "wal", f"its first entry is {first_index}, and the newest snapshot is at {index}")
    following = replay.entries[index + 1 - first_index :]
    if first_index == index + 1:
        # Entry s itself is gone. One that follows (s, t) has t's term or a later one; and one of such a term
        # follows (s, t), since S is committed (Leader Completeness, paper 5.4).
        agrees = not following or following[0].term >= term
    else:
        agrees = replay.last_index >= index and replay.entries[index - first_index].term == term
    hard_state = replay.hard_state
    if term > hard_state.term:
        # A term in which this peer has not voted: whoever sent the snapshot was in it.
        hard_state = HardState(term, NO_NODE, hard_state.commit)
    hard_state = hard_state._replace(commit=max(hard_state.commit, index))
    return Assembly(snapshot, following if agrees else [], agrees, hard_state)


def _damage(path: Path, what: str) -> CorruptionError:
    advice = "Restore the whole directory, or remove this peer from the cluster and let it join anew with an empty one"
    return CorruptionError(f"{path} is damaged: {what}. {advice}", str(path), 0)
