"""Logs written down as in etcd-io/raft's tests: the terms of consecutive entries."""

from __future__ import annotations

from collections.abc import Sequence

from replikv.raft.entries import Entry, SnapshotMetadata
from replikv.raft.log import RaftLog
from replikv.raft.membership import Membership
from replikv.raft.stable import MemoryStorage


def terms(*of: int, at: int = 1) -> list[Entry]:
    """Empty entries of these terms at consecutive indexes from ``at`` on."""
    return [Entry(at + position, term) for position, term in enumerate(of)]


def span(first: int, last: int, *, term: int = 1, data: bytes = b"") -> list[Entry]:
    """Entries alike but for their index, from first to last inclusive."""
    return [Entry(index, term, data) for index in range(first, last + 1)]


def snapshot_at(index: int, term: int, *voters: str) -> SnapshotMetadata:
    """A snapshot whose membership is these voters."""
    return SnapshotMetadata(index, term, Membership.of_voters(dict.fromkeys(voters, "")))


def storage_of(
    entries: Sequence[Entry] = (), *, base: tuple[int, int] = (0, 0), membership: Membership | None = None
) -> MemoryStorage:
    """A storage with a snapshot at ``base`` (index, term) and these durable entries behind it."""
    storage = MemoryStorage(membership)
    if base != (0, 0):
        storage.install(SnapshotMetadata(*base, membership or Membership()))
    storage.append(list(entries))
    return storage


def log_of(
    stable: Sequence[Entry] = (),
    unstable: Sequence[Entry] = (),
    *,
    base: tuple[int, int] = (0, 0),
    applying_bytes_max: int | None = None,
) -> RaftLog:
    """A log with a snapshot at ``base``, durable entries behind it, and others that are not durable behind those."""
    log = RaftLog(storage_of(stable, base=base), applying_bytes_max=applying_bytes_max)
    log.append(list(unstable))
    return log


def indexes(entries: Sequence[Entry]) -> list[int]:
    """The indexes alone."""
    return [entry.index for entry in entries]
