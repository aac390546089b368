"""What is in a data directory, and what is wrong with it, for a person: reads everything, changes nothing.

A start stops at the first damage; this goes on behind it, as far as the files let it: each segment says from where it
continues, and each snapshot stands alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from replikv.errors import ConfigurationError, CorruptionError, DataDirInUseError
from replikv.raft.entries import SnapshotMetadata
from replikv.storage.assembly import Assembly, assemble, check_owner
from replikv.storage.base import Identity
from replikv.storage.filesystem import TEMPORARY_SUFFIX, FileSystem, ReadOnlyFileSystem
from replikv.storage.frames import FIRST_SEQUENCE, Tail
from replikv.storage.meta import META_NAME, read_incarnation, read_meta
from replikv.storage.recovery import LogScan
from replikv.storage.segments import segment_names
from replikv.storage.snapshotter import SnapshotReader, snapshot_names

__all__ = ["SegmentFound", "SnapshotFound", "TornWrite", "Verification", "verify"]


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentFound:
    """A segment of the log, as far as it can be read."""

    path: Path
    bytes: int
    frames: int = 0
    entries: int = 0
    """Those that later ones replace included."""
    last_index: int = 0
    """The highest index of them, 0 without any."""
    used_bytes: int = 0
    """Up to the end of its last frame."""


@dataclasses.dataclass(slots=True)
class SnapshotFound:
    """A snapshot, as far as it can be read."""

    path: Path
    metadata: SnapshotMetadata | None = None
    """None where its head is damaged."""
    chunks: int = 0
    chunk_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TornWrite:
    """The last write, which never was whole: nobody was told that it was."""

    path: Path
    offset: int
    bytes: int
    """From there to the last byte that is not zero."""


@dataclasses.dataclass(slots=True)
class Verification:
    """All that was found."""

    directory: Path
    identity: Identity | None = None
    incarnation: str | None = None
    """Drawn for a directory that has no identity yet."""
    segments: list[SegmentFound] = dataclasses.field(default_factory=list)
    snapshots: list[SnapshotFound] = dataclasses.field(default_factory=list)
    """The newest last."""
    unfinished: list[Path] = dataclasses.field(default_factory=list)
    torn: TornWrite | None = None
    damage: list[CorruptionError] = dataclasses.field(default_factory=list)
    """Each with its file and offset."""
    assembly: Assembly | None = None
    """What a start begins with; None without identity, and where damage keeps it from starting."""

    @property
    def starts(self) -> bool:
        """Whether a peer starts all the same, because nothing that is damaged is needed at the start or after it."""
        needed = self.snapshots[-1].path if self.snapshots else None
        spare = {str(found.path) for found in self.snapshots if found.path != needed}
        return all(error.file in spare for error in self.damage)


def verify(directory: Path, filesystem: FileSystem | None = None) -> Verification:
    """Read everything in the data directory.

    Raises ConfigurationError for one that is none, DataDirInUseError while a peer has it, StorageError for what cannot
    be read, or was written by a newer version. Damage is no exception here: it is what is looked for.
    """
    filesystem = ReadOnlyFileSystem() if filesystem is None else filesystem
    names = filesystem.list_directory(directory)
    if not {META_NAME, "wal", "snapshots"}.intersection(names):
        raise ConfigurationError(f"{directory} is no data directory: it has neither {META_NAME} nor a log")
    with _locked(filesystem, directory, names):
        found = Verification(directory)
        found.unfinished = [directory / name for name in names if name.endswith(TEMPORARY_SUFFIX)]
        with _noting(found):
            found.identity = read_meta(filesystem, directory)
        with _noting(found):
            found.incarnation = read_incarnation(filesystem, directory)
        _read_snapshots(filesystem, directory / "snapshots", found, there="snapshots" in names)
        scan = _read_log(filesystem, directory / "wal", found, there="wal" in names)
        if found.starts:
            with _noting(found):
                replay = None if scan.replay.identity is None else scan.replay
                check_owner(directory, found.identity, replay, scan.sequence - FIRST_SEQUENCE)
                if found.identity is not None and replay is not None:
                    newest = found.snapshots[-1].metadata if found.snapshots else None
                    found.assembly = assemble(directory, replay, newest)
        return found


@contextlib.contextmanager
def _locked(filesystem: FileSystem, directory: Path, names: list[str]) -> Iterator[None]:
    if "lock" not in names:
        yield
        return
    lock = filesystem.open(directory / "lock")
    try:
        if not lock.try_lock():
            raise DataDirInUseError(
                f"{directory} is in use: what is being written cannot be judged; stop the peer first"
            )
        yield
    finally:
        lock.close()


@contextlib.contextmanager
def _noting(found: Verification) -> Iterator[None]:
    try:
        yield
    except CorruptionError as error:
        found.damage.append(error)


def _read_log(filesystem: FileSystem, directory: Path, found: Verification, *, there: bool) -> LogScan:
    """Every segment; the scan of the last ones that are a chain."""
    scan = LogScan()
    names = filesystem.list_directory(directory) if there else []
    found.unfinished += [directory / name for name in names if name.endswith(TEMPORARY_SUFFIX)]
    segments = segment_names(names)
    for number, (_, name) in enumerate(segments, start=1):
        path = directory / name
        data = _content(filesystem, path)
        last = number == len(segments)
        before = scan.entries
        try:
            scan.read_segment(path, data, last=last)
        except CorruptionError as error:
            found.damage.append(error)
            # From its own head on: the fault may lie between the segments, and must not hide others in this one.
            scan, before = LogScan(), 0
            try:
                scan.read_segment(path, data, last=last)
            except CorruptionError as another:
                if (another.file, another.offset) != (error.file, error.offset):
                    found.damage.append(another)
                found.segments.append(_segment(scan, path, data, before))
                scan = LogScan()
                continue
        found.segments.append(_segment(scan, path, data, before))
        if scan.tail is Tail.TORN:
            found.torn = TornWrite(path, scan.offset, len(data.rstrip(b"\0")) - scan.offset)
    return scan


def _segment(scan: LogScan, path: Path, data: bytes, before: int) -> SegmentFound:
    if not scan.segments:
        return SegmentFound(path, len(data))
    segment = scan.segments[-1]
    frames = scan.sequence - segment.head.frame_sequence
    return SegmentFound(path, len(data), frames, scan.entries - before, segment.last_index, scan.offset)


def _read_snapshots(filesystem: FileSystem, directory: Path, found: Verification, *, there: bool) -> None:
    names = filesystem.list_directory(directory) if there else []
    found.unfinished += [directory / name for name in names if name.endswith(TEMPORARY_SUFFIX)]
    for name in snapshot_names(names):
        path = directory / name
        snapshot = SnapshotFound(path)
        found.snapshots.append(snapshot)
        with _noting(found), contextlib.closing(SnapshotReader(filesystem, path)) as reader:
            snapshot.metadata = reader.metadata
            for chunk in reader.chunks():
                snapshot.chunks += 1
                snapshot.chunk_bytes += len(chunk)


def _content(filesystem: FileSystem, path: Path) -> bytes:
    file = filesystem.open(path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()
