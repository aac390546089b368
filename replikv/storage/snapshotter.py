"""Snapshot files: written aside, renamed when they are durable, checked chunk by chunk when they are read.

A file gets its final name only after it is synced. So a snapshot under its final name is never torn: whatever is wrong
with it is damage. ``docs/format.md`` has the layout.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replikv.errors import CorruptionError, InternalError, StorageError
from replikv.raft.entries import SnapshotMetadata
from replikv.storage.base import SnapshotWriter
from replikv.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem, remove_temporaries
from replikv.storage.records import pack_snapshot, unpack_snapshot

__all__ = ["Snapshotter"]

FORMAT: Final = 1
SYNC_BYTES: Final = 1 << 20
"""Synced in steps of this size: no sync of the log ever waits behind the flush of a whole snapshot."""

_MAGIC: Final = b"replikvS"
_HEAD: Final = struct.Struct(">8sII")  # magic, format, bytes of the metadata that follows; then a checksum
_CHECKSUM: Final = struct.Struct(">I")
_BLOCK: Final = struct.Struct(">BII")  # kind, bytes of what follows, checksum chained to the one before
_CHUNK: Final = 1
_TRAILER: Final = 2
_COUNTS: Final = struct.Struct(">QQ")  # the trailer: chunks, and their bytes added up
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")


class Snapshotter:
    """The snapshots of one directory. Safe to use from several threads."""

    def __init__(self, filesystem: FileSystem, directory: Path, *, kept: int) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._kept = max(kept, 1)
        self._numbers = itertools.count(1)
        # Held while names change or are looked up, so that a snapshot is not removed between being found and opened.
        self._lock = threading.Lock()
        filesystem.sync_directory(directory)  # a name that a crash left visible must be durable before we rest on it
        remove_temporaries(filesystem, directory)
        self._newest: SnapshotMetadata | None = None
        paths = self._paths()
        if paths:
            with contextlib.closing(_Reader(filesystem, paths[-1])) as reader:
                self._newest = reader.metadata

    @property
    def newest(self) -> SnapshotMetadata | None:
        """The newest durable snapshot."""
        return self._newest

    def create(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        """Begin to write a snapshot."""
        temporary = self._directory / f"{_name(metadata)}.{next(self._numbers)}{TEMPORARY_SUFFIX}"
        return _Writer(self, self._filesystem, temporary, metadata)

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[tuple[SnapshotMetadata, Iterator[bytes]]]:
        """As ``Storage.open_snapshot``."""
        with self._lock:
            if self._newest is None or self._newest.index < index:
                newest = "there is none" if self._newest is None else f"the newest is at {self._newest.index}"
                raise InternalError(f"no snapshot at or after {index} in {self._directory}: {newest}")
            reader = _Reader(self._filesystem, self._directory / _name(self._newest))
        with contextlib.closing(reader):
            yield reader.metadata, reader.chunks()

    def remove_after(self, index: int) -> None:
        """Remove the snapshots beyond ``index``: those of an attempt to initialize that came to nothing."""
        with self._lock:
            paths = self._paths()
            for path in paths:
                if _index(path) > index:
                    self._filesystem.unlink(path)
            self._filesystem.sync_directory(self._directory)
            if self._newest is not None and self._newest.index > index:
                self._newest = None

    def _publish(self, temporary: Path, metadata: SnapshotMetadata) -> None:
        with self._lock:
            self._filesystem.rename(temporary, self._directory / _name(metadata))
            self._filesystem.sync_directory(self._directory)
            if self._newest is None or metadata.index >= self._newest.index:
                self._newest = metadata
            for path in self._paths()[: -self._kept]:
                self._filesystem.unlink(path)

    def _paths(self) -> list[Path]:
        """The snapshot files, the newest last."""
        names = self._filesystem.list_directory(self._directory)
        return sorted((self._directory / name for name in names if _NAME.fullmatch(name)), key=_index)


class _Writer(SnapshotWriter):
    def __init__(
        self, snapshotter: Snapshotter, filesystem: FileSystem, temporary: Path, metadata: SnapshotMetadata
    ) -> None:
        self._snapshotter = snapshotter
        self._filesystem = filesystem
        self._temporary = temporary
        self._metadata = metadata
        self._file: File | None = filesystem.open(temporary, create=True)
        self._offset = self._synced = 0
        self._chunks = self._chunk_bytes = 0
        body = pack_snapshot(metadata)
        head = _HEAD.pack(_MAGIC, FORMAT, len(body)) + body
        self._checksum = zlib.crc32(head)
        try:
            self._put(head + _CHECKSUM.pack(self._checksum))
        except BaseException:
            self.abort()
            raise

    def write(self, chunk: bytes) -> None:
        self._put(self._block(_CHUNK, chunk))
        self._chunks += 1
        self._chunk_bytes += len(chunk)

    def commit(self) -> None:
        self._put(self._block(_TRAILER, _COUNTS.pack(self._chunks, self._chunk_bytes)))
        file = self._open_file()
        file.fsync()
        self._snapshotter._publish(self._temporary, self._metadata)
        self._file = None
        file.close()

    def abort(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            # The next start removes it if this fails.
            with contextlib.suppress(StorageError):
                self._filesystem.unlink(self._temporary)

    def _block(self, kind: int, data: bytes) -> bytes:
        self._checksum = zlib.crc32(data, self._checksum)
        return _BLOCK.pack(kind, len(data), self._checksum) + data

    def _put(self, data: bytes) -> None:
        file = self._open_file()
        file.pwrite(data, self._offset)
        self._offset += len(data)
        if self._offset - self._synced >= SYNC_BYTES:
            file.fdatasync()
            self._synced = self._offset

    def _open_file(self) -> File:
        if self._file is None:
            raise InternalError(f"the snapshot {self._temporary} was written to after it was committed or aborted")
        return self._file


class _Reader:
    def __init__(self, filesystem: FileSystem, path: Path) -> None:
        self._path = path
        self._file = filesystem.open(path)
        try:
            self._size = self._file.size()
            self.metadata = self._read_head()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def chunks(self) -> Iterator[bytes]:
        offset, checksum = self._offset, self._checksum
        count = total = 0
        while True:
            kind, data, checksum = self._read_block(offset, checksum)
            if kind == _TRAILER:
                break
            count, total = count + 1, total + len(data)
            yield data
            offset += _BLOCK.size + len(data)
        if data != _COUNTS.pack(count, total) or offset + _BLOCK.size + len(data) != self._size:
            raise self._damage(offset, "the trailer does not fit what stands before it")

    def _read_head(self) -> SnapshotMetadata:
        head = self._file.pread(_HEAD.size, 0)
        if len(head) < _HEAD.size:
            raise self._damage(0, "it is shorter than its head")
        magic, version, length = _HEAD.unpack(head)
        if magic != _MAGIC or _HEAD.size + length + _CHECKSUM.size > self._size:
            raise self._damage(0, "its head is not one")
        body = self._file.pread(length + _CHECKSUM.size, _HEAD.size)
        self._checksum = zlib.crc32(body[:length], zlib.crc32(head))
        if (self._checksum,) != _CHECKSUM.unpack_from(body, length):
            raise self._damage(0, "its head does not have its checksum")
        if version != FORMAT:
            raise StorageError(
                f"{self._path} is a snapshot of format {version}; this replikv reads {FORMAT}: upgrade it"
            )
        self._offset = _HEAD.size + len(body)
        metadata = SnapshotMetadata(*unpack_snapshot(body[:length]))
        if _name(metadata) != self._path.name:
            raise self._damage(0, f"its head says that it is {_name(metadata)}")
        return metadata

    def _read_block(self, offset: int, checksum: int) -> tuple[int, bytes, int]:
        head = self._file.pread(_BLOCK.size, offset)
        if len(head) < _BLOCK.size:
            raise self._damage(offset, "it ends before its trailer")
        kind, length, expected = _BLOCK.unpack(head)
        if kind not in (_CHUNK, _TRAILER) or length > self._size - offset - _BLOCK.size:
            raise self._damage(offset, "no chunk begins here")
        data = self._file.pread(length, offset + _BLOCK.size)
        if zlib.crc32(data, checksum) != expected:
            raise self._damage(offset, "a chunk does not have its checksum")
        return kind, data, expected

    def _damage(self, offset: int, what: str) -> CorruptionError:
        advice = "remove this peer from the cluster and let it join anew with an empty disk"
        return CorruptionError(
            f"the snapshot {self._path} is damaged at byte {offset}: {what}. {advice}", str(self._path), offset
        )


def _name(metadata: SnapshotMetadata) -> str:
    return f"{metadata.term:016x}-{metadata.index:016x}.snap"


def _index(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2], 16)
