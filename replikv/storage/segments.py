"""The files of the write-ahead log: their names, their heads, and how they come to be.

A segment gets its final name only when it is zero-filled, carries its head and is synced. So a segment without a sound
head, or of another length than its head says, is damaged; it cannot be torn. And a segment is begun only after the
frames of the one before it are synced: where a later segment exists, nothing in an earlier one is torn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import struct
import threading
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from replikv.errors import CorruptionError, StorageError
from replikv.storage.filesystem import SECTOR_BYTES, TEMPORARY_SUFFIX, File, FileSystem

__all__ = ["FRAMES_START", "Segment", "SegmentHead", "SegmentSupply", "segment_names"]

FORMAT: Final = 1
FRAMES_START: Final = SECTOR_BYTES
"""Where the first frame of a segment stands: behind the sector of the head."""

_MAGIC: Final = b"replikvW"
# magic, format, then the fields of SegmentHead; the checksum of all of it follows
_HEAD: Final = struct.Struct(">8sIQQQQI")
_CHECKSUM: Final = struct.Struct(">I")
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")
_ZEROS: Final = bytes(1 << 20)


class SegmentHead(NamedTuple):
    """The first sector of a segment."""

    sequence: int
    """Segments are numbered from 1 on, without a gap."""
    first_index: int
    """The index of the first entry that was to be written when the segment was begun; part of the name."""
    length: int
    """The bytes of the file."""
    frame_sequence: int
    """The sequence number of its first frame ..."""
    previous: int
    """... and the checksum of the frame before that one, in the segment before."""

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.sequence:016x}-{self.first_index:016x}.wal"

    def encode(self) -> bytes:
        """The bytes of the head."""
        head = _HEAD.pack(_MAGIC, FORMAT, *self)
        return head + _CHECKSUM.pack(zlib.crc32(head))

    @classmethod
    def decode(cls, path: Path, data: bytes) -> SegmentHead:
        """The head of the segment whose whole content is ``data``.

        Raises CorruptionError, and StorageError for a format that this version does not know.
        """
        head = data[: _HEAD.size]
        if len(data) < FRAMES_START or (zlib.crc32(head),) != _CHECKSUM.unpack_from(data, _HEAD.size):
            raise CorruptionError(f"{path}: the head of the segment is damaged (at byte 0)", str(path), 0)
        magic, version, *fields = _HEAD.unpack(head)
        if magic != _MAGIC or version != FORMAT:
            raise StorageError(f"{path} is a segment of format {version}; this replikv reads {FORMAT}: upgrade it")
        found = cls(*fields)
        if found.name != path.name:
            raise CorruptionError(f"{path} says in its head that its name is {found.name}", str(path), 0)
        if found.length != len(data):
            place = min(found.length, len(data))
            message = f"{path} has {len(data)} bytes and was made with {found.length}: it was cut or extended"
            raise CorruptionError(message, str(path), place)
        if data[_HEAD.size + _CHECKSUM.size : FRAMES_START].strip(b"\0"):
            raise CorruptionError(f"{path}: bytes behind the head are damaged", str(path), _HEAD.size + _CHECKSUM.size)
        return found


@dataclasses.dataclass(slots=True)
class Segment:
    """A segment as the log keeps it in mind."""

    path: Path
    head: SegmentHead
    last_index: int = 0
    """The highest index of all entries in it, overwritten ones included; 0 without any."""


class SegmentSupply:
    """Makes segments; with ``ahead``, fills the next one in a thread of its own before it is needed.

    No thread outlives :meth:`close`, and none is started by anything but :meth:`prepare`.
    """

    def __init__(self, filesystem: FileSystem, directory: Path, segment_bytes: int, *, ahead: bool) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._bytes = _sectors(max(segment_bytes, 4 * SECTOR_BYTES))
        self._ahead = ahead
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None
        # What the thread has made; belongs to the thread until it is joined.
        self._prepared: tuple[Path, File] | None = None
        self._closing = threading.Event()

    def prepare(self) -> None:
        """Begin to fill the next segment, unless that was begun already. What fails shows when it is taken."""
        if self._ahead and self._thread is None:
            self._thread = threading.Thread(target=self._prepare, name="replikv-wal-segment", daemon=True)
            self._thread.start()

    def take(self, head: SegmentHead, frame_bytes: int) -> tuple[Segment, File]:
        """A segment with this head, its length filled in, that has room for a frame of ``frame_bytes``.

        Durable under its name on return. Raises StorageFullError; then nothing of it is left.
        """
        head = head._replace(length=max(self._bytes, FRAMES_START + _sectors(frame_bytes)))
        temporary, file = self._take_prepared(head.length) or self._fill(head.length)
        path = self._directory / head.name
        try:
            file.pwrite(head.encode(), 0)
            file.fsync()
            self._filesystem.rename(temporary, path)
        except BaseException:
            self._discard(temporary, file)
            raise
        file.close()
        self._filesystem.sync_directory(self._directory)
        return Segment(path, head), self._filesystem.open(path)

    def close(self) -> None:
        """Wait for the thread, and throw away what it made."""
        self._closing.set()
        prepared = self._join()
        if prepared is not None:
            self._discard(*prepared)

    def _take_prepared(self, length: int) -> tuple[Path, File] | None:
        if length != self._bytes:
            return None  # a frame larger than a segment gets one of its own; what was prepared waits for the next
        return self._join()

    def _join(self) -> tuple[Path, File] | None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        prepared, self._prepared = self._prepared, None
        return prepared

    def _prepare(self) -> None:
        # A failure is found again by whoever needs the segment, and is his to report.
        with contextlib.suppress(StorageError):
            self._prepared = self._fill(self._bytes, gently=True)

    def _fill(self, length: int, *, gently: bool = False) -> tuple[Path, File]:
        """``gently`` syncs in steps: the syncs of the log never queue behind all of it."""
        temporary = self._directory / f"segment-{next(self._numbers)}{TEMPORARY_SUFFIX}"
        file = self._filesystem.open(temporary, create=True)
        try:
            for offset in range(0, length, len(_ZEROS)):
                if self._closing.is_set():
                    raise StorageError(f"{self._directory} is being closed")
                file.pwrite(_ZEROS[: length - offset], offset)
                if gently:
                    file.fdatasync()
        except BaseException:
            self._discard(temporary, file)
            raise
        return temporary, file

    def _discard(self, temporary: Path, file: File) -> None:
        file.close()
        with contextlib.suppress(StorageError):
            self._filesystem.unlink(temporary)


def segment_names(names: list[str]) -> list[tuple[int, str]]:
    """(sequence, name) of those that are segments, in order."""
    matches = ((_NAME.fullmatch(name), name) for name in names)
    return sorted((int(match[1], 16), name) for match, name in matches if match is not None)


def _sectors(length: int) -> int:
    return -(-length // SECTOR_BYTES) * SECTOR_BYTES
