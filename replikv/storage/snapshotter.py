"""Snapshot files: written aside, renamed when they are durable, checked chunk by chunk when they are read.

A file gets its final name only after it is synced. So a snapshot under its final name is never torn: whatever is wrong
with it is damage. ``docs/format.md`` has the layout.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replikv.errors import InternalError
from replikv.raft.entries import SnapshotMetadata
from replikv.storage.base import SnapshotWriter, StorageFullError
from replikv.storage.chunkfile import ChunkFileReader, ChunkFileWriter, ChunkFormat
from replikv.storage.filesystem import TEMPORARY_SUFFIX, FileSystem, remove_temporaries
from replikv.storage.records import pack_snapshot, unpack_snapshot

__all__ = ["Snapshotter"]

_FORM: Final = ChunkFormat(
    b"replikvS", 1, "snapshot", "remove this peer from the cluster and let it join anew with an empty disk"
)
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
                # Where removing needs room that is not there, the next one removes it: this one is durable already.
                with contextlib.suppress(StorageFullError):
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
        self._metadata = metadata
        self._file = ChunkFileWriter(filesystem, temporary, _FORM, pack_snapshot(metadata))

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def commit(self) -> None:
        self._file.finish()
        self._snapshotter._publish(self._file.path, self._metadata)
        self._file.close()

    def abort(self) -> None:
        self._file.discard()  # the next start removes it if this fails


class _Reader:
    def __init__(self, filesystem: FileSystem, path: Path) -> None:
        self._file = ChunkFileReader(filesystem.open(path), path, _FORM)
        try:
            self.metadata = SnapshotMetadata(*unpack_snapshot(self._file.body))
            if _name(self.metadata) != path.name:
                raise self._file.damage(0, f"its head says that it is {_name(self.metadata)}")
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def chunks(self) -> Iterator[bytes]:
        return self._file.chunks()


def _name(metadata: SnapshotMetadata) -> str:
    return f"{metadata.term:016x}-{metadata.index:016x}.snap"


def _index(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2], 16)
