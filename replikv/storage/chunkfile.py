"""Files of chunks: a head, blocks that are checked one by one, and a trailer that says that this was all.

What is in such a file is written once and read from beginning to end. The checksums are chained, so that no block can
be taken for another, and the trailer counts: so a byte that has changed anywhere, and an end that is missing, are
found. ``docs/format.md`` has the layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replikv.errors import CorruptionError, InternalError, StorageError
from replikv.storage.filesystem import File, FileSystem

__all__ = ["SYNC_BYTES", "ChunkFileReader", "ChunkFileWriter", "ChunkFormat"]

SYNC_BYTES: Final = 1 << 20
"""Synced in steps of this size: no sync of the log ever waits behind the flush of a whole file."""

_HEAD: Final = struct.Struct(">8sII")  # magic, format, bytes of the body that follows; then a checksum
_CHECKSUM: Final = struct.Struct(">I")
_BLOCK: Final = struct.Struct(">BII")  # kind, bytes of what follows, checksum chained to the one before
_CHUNK: Final = 1
_TRAILER: Final = 2
_COUNTS: Final = struct.Struct(">QQ")  # the trailer begins with: chunks, and their bytes added up


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkFormat:
    """What tells one kind of such files from another."""

    magic: bytes
    version: int
    what: str
    """What it is called in a message."""
    advice: str
    """What to do when it is damaged."""
    extra_bytes: int = 0
    """What the trailer has behind its counts."""


class ChunkFileWriter:
    """Writes one file, under a temporary name that its caller changes once it is finished."""

    def __init__(self, filesystem: FileSystem, path: Path, form: ChunkFormat, body: bytes) -> None:
        self.path = path
        self._filesystem = filesystem
        self._form = form
        self._file: File | None = filesystem.open(path, create=True)
        self._offset = self._synced = 0
        self._chunks = self._chunk_bytes = 0
        head = _HEAD.pack(form.magic, form.version, len(body)) + body
        self._checksum = zlib.crc32(head)
        try:
            self._put(head + _CHECKSUM.pack(self._checksum))
        except BaseException:
            self.discard()
            raise

    def write(self, chunk: bytes) -> None:
        """Add one chunk."""
        self._put(self._block(_CHUNK, chunk))
        self._chunks += 1
        self._chunk_bytes += len(chunk)

    def finish(self, extra: bytes = b"") -> None:
        """Write the trailer, and make all of it durable, but for its name."""
        assert len(extra) == self._form.extra_bytes
        self._put(self._block(_TRAILER, _COUNTS.pack(self._chunks, self._chunk_bytes) + extra))
        self._open_file().fsync()

    def close(self) -> None:
        """Keep the file. Nothing can be written to it any more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove the file, unless it was closed; as far as the disk lets us."""
        if self._file is not None:
            self.close()
            with contextlib.suppress(StorageError):
                self._filesystem.unlink(self.path)

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
            raise InternalError(f"the {self._form.what} {self.path} was written to after it was committed or aborted")
        return self._file


class ChunkFileReader:
    """Reads one file; takes it over, and closes it. Whatever is wrong with it is a CorruptionError."""

    def __init__(self, file: File, path: Path, form: ChunkFormat) -> None:
        self._file = file
        self._path = path
        self._form = form
        self.extra = b""
        """What the trailer has behind its counts, once the last chunk was read."""
        try:
            self.size = file.size()
            self.body = self._read_head()
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Harmless when repeated."""
        self._file.close()

    def chunks(self) -> Iterator[bytes]:
        """The chunks, each checked. Only where this ends, nothing is missing, and nothing was added."""
        offset, checksum = self._offset, self._checksum
        count = total = 0
        while True:
            kind, data, checksum = self._read_block(offset, checksum)
            if kind == _TRAILER:
                break
            count, total = count + 1, total + len(data)
            yield data
            offset += _BLOCK.size + len(data)
        counts, self.extra = data[: _COUNTS.size], data[_COUNTS.size :]
        fits = counts == _COUNTS.pack(count, total) and len(self.extra) == self._form.extra_bytes
        if not fits or offset + _BLOCK.size + len(data) != self.size:
            raise self.damage(offset, "the trailer does not fit what stands before it")
        self._offset_of_trailer = offset

    def damage(self, offset: int, what: str) -> CorruptionError:
        """The error for what is wrong at an offset."""
        return CorruptionError(
            f"the {self._form.what} {self._path} is damaged at byte {offset}: {what}; {self._form.advice}",
            str(self._path),
            offset,
        )

    def damaged_trailer(self, what: str) -> CorruptionError:
        """The error for what is wrong with the trailer, once it was read."""
        return self.damage(self._offset_of_trailer, what)

    def _read_head(self) -> bytes:
        head = self._file.pread(_HEAD.size, 0)
        if len(head) < _HEAD.size:
            raise self.damage(0, "it is shorter than its head")
        magic, version, length = _HEAD.unpack(head)
        if magic != self._form.magic or _HEAD.size + length + _CHECKSUM.size > self.size:
            raise self.damage(0, "its head is not one")
        body = self._file.pread(length + _CHECKSUM.size, _HEAD.size)
        self._checksum = zlib.crc32(body[:length], zlib.crc32(head))
        if (self._checksum,) != _CHECKSUM.unpack_from(body, length):
            raise self.damage(0, "its head does not have its checksum")
        if version != self._form.version:
            raise StorageError(
                f"{self._path} is a {self._form.what} of format {version}; this replikv reads"
                f" {self._form.version}: upgrade it"
            )
        self._offset = _HEAD.size + len(body)
        return body[:length]

    def _read_block(self, offset: int, checksum: int) -> tuple[int, bytes, int]:
        head = self._file.pread(_BLOCK.size, offset)
        if len(head) < _BLOCK.size:
            raise self.damage(offset, "it ends before its trailer")
        kind, length, expected = _BLOCK.unpack(head)
        if kind not in (_CHUNK, _TRAILER) or length > self.size - offset - _BLOCK.size:
            raise self.damage(offset, "no chunk begins here")
        data = self._file.pread(length, offset + _BLOCK.size)
        if zlib.crc32(data, checksum) != expected:
            raise self.damage(offset, "a chunk does not have its checksum")
        return kind, data, expected
