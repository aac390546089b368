"""Reading a write-ahead log back: what it holds, where it ends, and what must be done before it may be written again.

:func:`scan_log` only reads, and so serves whoever wants to look; :func:`settle_log` makes the end fit to append to.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from replikv.errors import CorruptionError, StorageError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import File, FileSystem
from replikv.storage.frames import FIRST_SEQUENCE, Tail, decode_frame, judge_tail
from replikv.storage.records import Marker, Record, decode_records
from replikv.storage.segments import FRAMES_START, Segment, SegmentHead, segment_names

__all__ = ["LogScan", "Replay", "scan_log", "settle_log", "sync", "wipe"]

_ZEROS: Final = bytes(1 << 20)


class Replay:
    """The log as its records leave it, one after the other. The caller says where they stand, should one be wrong."""

    def __init__(self) -> None:
        self.identity: bytes | None = None
        self.hard_state = HardState()
        self.marker: SnapshotMetadata | None = None
        """The newest snapshot that the log knows of. There is a durable one at or after it, unless its index is 0."""
        self.entries: list[Entry] = []
        """Invariant: their indexes have no gap."""
        # The end of the log while it has no entries. Where a SNAPSHOT set it, the first entry follows it; where only
        # the head of the first segment did, it may also replace some before it: the segments before are gone.
        self._floor = 0
        self._exact = False

    @property
    def last_index(self) -> int:
        """The end of the log."""
        return self.entries[-1].index if self.entries else self._floor

    def begin(self, last_index: int) -> None:
        """The log ended here when its first segment was begun."""
        self._floor = last_index

    def add(self, record: Record) -> None:
        """Take the next record. Raises ValueError for one that cannot follow those before."""
        match record:
            case bytes():
                if self.identity not in (None, record):
                    raise ValueError("a segment of another log")
                self.identity = record
            case Marker():
                self._advance(record)
            case SnapshotMetadata():
                self._advance(record)
                self.entries.clear()
                self._floor, self._exact = record.index, True
            case Entry():
                self._append(record)
            case HardState():
                self.hard_state = record

    def _advance(self, marker: SnapshotMetadata) -> None:
        if self.marker is None or marker.index >= self.marker.index:
            self.marker = SnapshotMetadata(*marker)

    def _append(self, entry: Entry) -> None:
        if self._exact and entry.index <= self._floor:
            return
        if not self.entries:
            if self._exact and entry.index != self._floor + 1:
                raise ValueError(f"entry {entry.index} follows a snapshot at {self._floor}: there is a gap")
            self.entries.append(entry)
            return
        offset = entry.index - self.entries[0].index
        if offset > len(self.entries):
            raise ValueError(f"entry {entry.index} follows entry {self.last_index}: there is a gap")
        # An entry replaces everything from its index on, also where only later ones are left of the log.
        del self.entries[max(offset, 0) :]
        self.entries.append(entry)


@dataclasses.dataclass(slots=True)
class LogScan:
    """What one reading of all segments found."""

    replay: Replay = dataclasses.field(default_factory=Replay)
    segments: list[Segment] = dataclasses.field(default_factory=list)
    offset: int = FRAMES_START
    """Where the last segment's valid frames end ..."""
    last_frame: bytes = b""
    """... the bytes of the last of them, empty if there is none ..."""
    tail: Tail = Tail.CLEAN
    """... and what stands there."""
    sequence: int = FIRST_SEQUENCE
    """The number of the next frame."""
    previous: int = 0
    """The checksum of the last frame."""
    entries: int = 0
    """How many entries were read, those that later ones replace included."""

    def read_segment(self, path: Path, data: bytes, *, last: bool) -> None:
        """Take the whole content of the next segment. Raises CorruptionError."""
        head = SegmentHead.decode(path, data)
        if not self.segments:
            # Those before it were released; its head says how their chain ended.
            self.sequence, self.previous = head.frame_sequence, head.previous
            self.replay.begin(head.first_index - 1)
        elif head.sequence != (expected := self.segments[-1].head.sequence + 1):
            raise _damage(path, 0, f"segment {expected} is missing before it")
        elif (head.frame_sequence, head.previous) != (self.sequence, self.previous):
            before = self.segments[-1].path
            raise _damage(before, self.offset, f"frames are missing here, which {path.name} continues")
        segment = Segment(path, head)
        self.segments.append(segment)
        self.offset, self.last_frame = FRAMES_START, b""
        while (frame := decode_frame(data, self.offset, self.sequence, self.previous)) is not None:
            self._read_frame(segment, frame.payload)
            self.last_frame = data[self.offset : frame.end]
            self.offset, self.sequence, self.previous = frame.end, self.sequence + 1, frame.checksum
        self.tail = judge_tail(data, self.offset, self.sequence, self.previous)
        if self.tail is Tail.DAMAGED or not (last or self.tail is Tail.CLEAN):
            raise _damage(
                path, self.offset, f"frame {self.sequence} is damaged: it was synced, and reads otherwise now"
            )

    def _read_frame(self, segment: Segment, payload: bytes) -> None:
        try:
            for number, record in enumerate(decode_records(payload)):
                if self.offset == FRAMES_START and number == 0 and not isinstance(record, bytes):
                    raise ValueError("the segment does not say whose it is")
                if isinstance(record, Entry):
                    segment.last_index = max(segment.last_index, record.index)
                    self.entries += 1
                self.replay.add(record)
        except ValueError as error:
            raise _damage(segment.path, self.offset, f"frame {self.sequence} does not fit: {error}") from error


def scan_log(filesystem: FileSystem, directory: Path) -> LogScan:
    """Read all segments of the directory, one in memory at a time. Changes nothing. Raises CorruptionError."""
    scan = LogScan()
    names = segment_names(filesystem.list_directory(directory))
    for number, (_, name) in enumerate(names, start=1):
        path = directory / name
        file = filesystem.open(path)
        try:
            data = file.pread(file.size(), 0)
        finally:
            file.close()
        scan.read_segment(path, data, last=number == len(names))
    return scan


def settle_log(filesystem: FileSystem, scan: LogScan) -> File:
    """Open the last segment for appending at ``scan.offset``: what was read is durable, and nothing stands behind it.

    The last frame is written once more: its first sync may not have happened, or have failed, and then the pages that
    we read it from count as clean and no later sync writes them ("fsyncgate", Rebello et al., ATC '20).
    """
    segment = scan.segments[-1]
    file = filesystem.open(segment.path)
    try:
        if scan.last_frame:
            file.pwrite(scan.last_frame, scan.offset - len(scan.last_frame))
        if scan.tail is Tail.TORN:
            wipe(file, scan.offset, segment.head.length)
        sync(file)
    except BaseException:
        file.close()
        raise
    return file


def wipe(file: File, start: int, end: int) -> None:
    """Write zeros from ``start`` to ``end``; does not sync."""
    for offset in range(start, end, len(_ZEROS)):
        file.pwrite(_ZEROS[: end - offset], offset)


def sync(file: File) -> None:
    """``fdatasync``, where a full disk is as fatal as any failure: nobody knows what of it is durable."""
    try:
        file.fdatasync()
    except StorageFullError as error:
        raise StorageError(f"{error}; a failed sync is not tried again: restart this peer") from error


def _damage(path: Path, offset: int, what: str) -> CorruptionError:
    advice = (
        "`replikv verify` explains it; remove this peer from the cluster and let it join anew with an empty directory"
    )
    return CorruptionError(f"{path} is damaged at byte {offset}: {what}. {advice}", str(path), offset)
