"""Backup files: the state of a cluster at one moment, in a file of its own that may be carried anywhere.

Written to a temporary name beside the final one, synced, renamed: under its final name a backup is whole, or damaged.
The trailer has a digest of everything before it, beside the checksum of each chunk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from replikv.errors import ConfigurationError, StorageError
from replikv.storage.chunkfile import ChunkFileReader, ChunkFileWriter, ChunkFormat
from replikv.storage.filesystem import TEMPORARY_SUFFIX, FileSystem, OsFile

__all__ = ["Backup", "BackupReader", "BackupWriter"]

_FORM: Final = ChunkFormat(
    b"replikvB",
    1,
    "backup",
    "nothing was restored: take another copy, or an older backup",
    hashlib.sha256().digest_size,
)
_LENGTH: Final = struct.Struct(">Q")


@dataclasses.dataclass(frozen=True, slots=True)
class Backup:
    """What a backup says of itself."""

    cluster_id: str
    """Of the cluster that it is of."""
    node_id: str
    """Of the peer that wrote it."""
    created: datetime
    """By that peer's clock, in UTC."""
    revision: int
    """The newest revision in it."""
    keys: int
    machine: bool
    """Whether it has the state of the application's own StateMachine, too."""

    def encode(self) -> bytes:
        """Canonical JSON."""
        fields = dataclasses.asdict(self) | {"created": self.created.astimezone(UTC).isoformat()}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> Backup:
        """The reverse of :meth:`encode`. What a later version has added is passed over."""
        fields = json.loads(data)
        known = {field.name: fields[field.name] for field in dataclasses.fields(cls)}
        return cls(**known | {"created": datetime.fromisoformat(fields["created"])})


class BackupWriter:
    """A backup that is being written. Every call blocks, and raises StorageError."""

    def __init__(self, filesystem: FileSystem, path: str | os.PathLike[str], backup: Backup) -> None:
        self._filesystem = filesystem
        self._path = Path(path).absolute()
        if self._path.is_dir():
            raise ConfigurationError(f"{self._path} is a directory: name the file that the backup is to be")
        temporary = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
        body = backup.encode()
        self._digest = _Digest()
        self._digest.add(body)
        self._file = ChunkFileWriter(filesystem, temporary, _FORM, body)

    def write(self, chunks: list[bytes]) -> None:
        """Add some chunks."""
        for chunk in chunks:
            self._digest.add(chunk)
            self._file.write(chunk)

    def commit(self) -> None:
        """Make it durable, and give it its name, in place of whatever had it.

        When this raises, nothing is left behind, or a whole backup whose name may not outlive a crash.
        """
        self._file.finish(self._digest.value())
        self._filesystem.rename(self._file.path, self._path)
        self._file.close()
        self._filesystem.sync_directory(self._path.parent)

    def abort(self) -> None:
        """Leave nothing behind. Does nothing after :meth:`commit`."""
        self._file.discard()


class BackupReader:
    """Reads a backup from beginning to end; a context manager. Changes nothing, and needs no right to.

    Raises CorruptionError, here or while it is read, and StorageError for a file that cannot be read at all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            file = OsFile(self.path, os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            raise StorageError(f"cannot open the backup {self.path}: {exc.strerror or exc}") from exc
        self._file = ChunkFileReader(file, self.path, _FORM)
        try:
            self.backup = Backup.decode(self._file.body)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            self._file.close()
            raise self._file.damage(0, f"its head does not say what it is of: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def chunks(self) -> Iterator[bytes]:
        """The chunks of the replica's snapshot. What they are may be used once this has ended, and not before."""
        digest = _Digest()
        digest.add(self._file.body)
        for chunk in self._file.chunks():
            digest.add(chunk)
            yield chunk
        if digest.value() != self._file.extra:
            raise self._file.damaged_trailer("what stands before the trailer does not have its digest")


class _Digest:
    """SHA-256 over pieces, each behind its length."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self._sha256.update(_LENGTH.pack(len(piece)))
        self._sha256.update(piece)

    def value(self) -> bytes:
        return self._sha256.digest()
