"""The seam by which faults enter: every byte that storage reads or writes passes here.

:class:`OsFileSystem` is the real one. A simulated disk implements the same few calls over what it pretends to be
durable: only ``fdatasync`` and ``fsync`` make the bytes of a file durable, only ``sync_directory`` makes names durable.
Foreign errors end here: whatever the operating system raises becomes a ``StorageError`` that names the file and says
what to do, or a ``StorageFullError`` where room is all that lacks.
"""

from __future__ import annotations

import abc
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from replikv.errors import InternalError, StorageError
from replikv.storage.base import StorageFullError

__all__ = [
    "SECTOR_BYTES",
    "TEMPORARY_SUFFIX",
    "File",
    "FileSystem",
    "OsFile",
    "OsFileSystem",
    "ReadOnlyFileSystem",
    "directory_sync_refusal",
    "refusal",
    "remove_temporaries",
]

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all. etcd and SQLite rest on 512 too: disks of 4096 only promise more."""

TEMPORARY_SUFFIX: Final = ".tmp"
"""Ends the names of files that are not finished: nothing of them was promised, and the next start removes them."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class File(abc.ABC):
    """An open file, read and written at offsets. ``fdatasync`` makes what was written durable, but no name."""

    @abc.abstractmethod
    def size(self) -> int:
        """The length in bytes."""

    @abc.abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``; fewer only where the file ends."""

    @abc.abstractmethod
    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """Write all of ``data``. When it raises, any part of it may have been written."""

    @abc.abstractmethod
    def fdatasync(self) -> None:
        """Make the bytes durable. After an error nobody knows what is: never try again on the same file."""

    @abc.abstractmethod
    def fsync(self) -> None:
        """Make the bytes and the length durable. As ``fdatasync``."""

    @abc.abstractmethod
    def try_lock(self) -> bool:
        """Lock the file until it is closed. False when somebody else has it locked, be it in this process."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close, at once; the second time too."""


class FileSystem(abc.ABC):
    """Names and files. A change of names is durable once ``sync_directory`` has returned for their directory."""

    @abc.abstractmethod
    def open(self, path: Path, *, create: bool = False) -> File:
        """Open for reading and writing; with ``create`` the file may be missing, and is then empty."""

    @abc.abstractmethod
    def rename(self, source: Path, target: Path) -> None:
        """Give the file another name in the same directory, in place of whatever had it."""

    @abc.abstractmethod
    def unlink(self, path: Path) -> None:
        """Remove the name; a file that is open stays readable."""

    @abc.abstractmethod
    def list_directory(self, path: Path) -> list[str]:
        """The names in the directory, sorted."""

    @abc.abstractmethod
    def free_bytes(self, path: Path) -> int | None:
        """Room on the disk that the directory is on; None if nobody can tell."""

    @abc.abstractmethod
    def make_directory(self, path: Path) -> None:
        """Make the directory and its parents, durably, unless it is there."""

    @abc.abstractmethod
    def sync_directory(self, path: Path) -> None:
        """Make the names in the directory durable.

        What fails here is never a StorageFullError: nobody knows what is durable, and it must not be tried again.
        """


class OsFile(File):
    """A file of the operating system."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def size(self) -> int:
        """As :meth:`File.size`."""
        try:
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise refusal("read the size of", self.path, error) from error

    def pread(self, length: int, offset: int) -> bytes:
        """As :meth:`File.pread`."""
        parts: list[bytes] = []
        try:
            while length > 0:
                part = os.pread(self._descriptor, length, offset)
                if not part:
                    break
                parts.append(part)
                length -= len(part)
                offset += len(part)
        except OSError as error:
            raise refusal("read", self.path, error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """As :meth:`File.pwrite`."""
        try:
            written = os.pwrite(self._descriptor, data, offset)
            while written < len(data):
                written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)
        except OSError as error:
            raise refusal("write to", self.path, error) from error

    def fdatasync(self) -> None:
        """As :meth:`File.fdatasync`."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise refusal("sync", self.path, error) from error

    def fsync(self) -> None:
        """As :meth:`File.fsync`."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise refusal("sync", self.path, error) from error

    def try_lock(self) -> bool:
        """As :meth:`File.try_lock`."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise refusal("lock", self.path, error) from error
        return True

    def close(self) -> None:
        """As :meth:`File.close`."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OsFileSystem(FileSystem):
    """The file system of the operating system."""

    def open(self, path: Path, *, create: bool = False) -> File:
        """As :meth:`FileSystem.open`."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            return OsFile(path, os.open(path, flags, 0o600))
        except OSError as error:
            raise refusal("open", path, error) from error

    def free_bytes(self, path: Path) -> int | None:
        """As :meth:`FileSystem.free_bytes`: what this user may write, quotas aside."""
        try:
            room = os.statvfs(path)
        except (OSError, AttributeError):
            return None
        return room.f_bavail * room.f_frsize

    def rename(self, source: Path, target: Path) -> None:
        """As :meth:`FileSystem.rename`."""
        try:
            source.rename(target)
        except OSError as error:
            raise refusal(f"rename {source} to", target, error) from error

    def unlink(self, path: Path) -> None:
        """As :meth:`FileSystem.unlink`."""
        try:
            path.unlink()
        except OSError as error:
            raise refusal("remove", path, error) from error

    def list_directory(self, path: Path) -> list[str]:
        """As :meth:`FileSystem.list_directory`."""
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            raise refusal("list", path, error) from error

    def make_directory(self, path: Path) -> None:
        """As :meth:`FileSystem.make_directory`."""
        missing: list[Path] = []
        try:
            while not path.is_dir():
                missing.append(path)
                path = path.parent
            for path in reversed(missing):
                path.mkdir(mode=0o700, exist_ok=True)
                self.sync_directory(path.parent)
        except StorageError:
            raise
        except OSError as error:
            raise refusal("make the directory", path, error) from error

    def sync_directory(self, path: Path) -> None:
        """As :meth:`FileSystem.sync_directory`."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise directory_sync_refusal(path, error) from error


class ReadOnlyFileSystem(OsFileSystem):
    """The file system of the operating system, for whoever only looks: it needs no right to write, and refuses to."""

    def open(self, path: Path, *, create: bool = False) -> File:
        """As :meth:`FileSystem.open`, for reading only."""
        if create:
            raise InternalError(f"{path} was to be created by somebody who only looks")
        try:
            return OsFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise refusal("open", path, error) from error

    def rename(self, source: Path, target: Path) -> None:
        """Raises InternalError, as everything does that would change something."""
        raise InternalError(f"{source} was to be renamed to {target}, by somebody who only looks")

    def unlink(self, path: Path) -> None:
        """As :meth:`rename`."""
        raise InternalError(f"{path} was to be removed by somebody who only looks")

    def make_directory(self, path: Path) -> None:
        """As :meth:`rename`."""
        raise InternalError(f"the directory {path} was to be made by somebody who only looks")

    def sync_directory(self, path: Path) -> None:
        """As :meth:`rename`."""
        raise InternalError(f"{path} was to be synced by somebody who only looks")


def remove_temporaries(filesystem: FileSystem, directory: Path) -> None:
    """Remove what a crash has left unfinished in the directory."""
    for name in filesystem.list_directory(directory):
        if name.endswith(TEMPORARY_SUFFIX):
            filesystem.unlink(directory / name)


def refusal(attempt: str, path: Path, error: OSError) -> StorageError:
    """What a failure of the operating system becomes: says what was attempted, with which file, and what to do."""
    reason = f"cannot {attempt} {path}: {error.strerror or error}"
    if error.errno in _FULL:
        return StorageFullError(f"{reason}; make room on that disk: nothing is broken")
    if error.errno in _DENIED:
        return StorageError(f"{reason}; the process needs to read and write the data directory: change its rights")
    return StorageError(f"{reason}; look at the disk and at the kernel's log before this peer is started again")


def directory_sync_refusal(path: Path, error: OSError) -> StorageError:
    """As :func:`refusal`: for want of room, too, it is as fatal as any."""
    if error.errno in _FULL:
        return StorageError(
            f"cannot sync the directory {path}: {error.strerror or error}; a failed sync is not tried again:"
            " make room on that disk, then restart this peer"
        )
    return refusal("sync the directory", path, error)
