"""A file system that records what is asked of it, and fails or crashes where a test says so."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

from replikv.errors import StorageError
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import SECTOR_BYTES, File, OsFileSystem


class CrashError(Exception):
    """The process ends here."""


def no_room() -> Exception:
    return StorageFullError("no room")


def broken() -> Exception:
    return StorageError("input/output error")


def crash() -> Exception:
    return CrashError()


class FaultyFileSystem(OsFileSystem):
    """The real one, with faults before calls, and without the syncs: they are counted, but no test cuts the power.

    ``calls`` holds (operation, file name) of everything but sizes, locks and closes. ``fault`` sets what to raise: at
    calls of ``operation`` on names that match ``pattern``, the first ``after`` of them let through. A ``pwrite`` that
    fails writes the first half of its sectors first: a sector is written whole or not at all.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._faults: list[tuple[str, str, int, Callable[[], Exception]]] = []

    def fault(self, operation: str, pattern: str, error: Callable[[], Exception], *, after: int = 0) -> None:
        self._faults.append((operation, pattern, after, error))

    def heal(self) -> None:
        self._faults.clear()

    def error(self, operation: str, path: Path) -> Exception | None:
        self.calls.append((operation, path.name))
        for place, (which, pattern, after, error) in enumerate(self._faults):
            if which in (operation, "*") and fnmatch.fnmatch(path.name, pattern):
                if after == 0:
                    return error()
                self._faults[place] = (which, pattern, after - 1, error)
        return None

    def check(self, operation: str, path: Path) -> None:
        error = self.error(operation, path)
        if error is not None:
            raise error

    def open(self, path: Path, *, create: bool = False) -> File:
        self.check("create" if create else "open", path)
        return FaultyFile(self, path, super().open(path, create=create))

    def rename(self, source: Path, target: Path) -> None:
        self.check("rename", target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.check("unlink", path)
        super().unlink(path)

    def make_directory(self, path: Path) -> None:
        self.check("make_directory", path)
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        self.check("sync_directory", path)


class FaultyFile(File):
    def __init__(self, filesystem: FaultyFileSystem, path: Path, file: File) -> None:
        self._filesystem = filesystem
        self._path = path
        self._file = file

    def size(self) -> int:
        return self._file.size()

    def pread(self, length: int, offset: int) -> bytes:
        self._filesystem.check("pread", self._path)
        return self._file.pread(length, offset)

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        error = self._filesystem.error("pwrite", self._path)
        if error is not None:
            sectors = len(data) // SECTOR_BYTES
            self._file.pwrite(data[: (sectors + 1) // 2 * SECTOR_BYTES], offset)
            raise error
        self._file.pwrite(data, offset)

    def fdatasync(self) -> None:
        self._filesystem.check("fdatasync", self._path)

    def fsync(self) -> None:
        self._filesystem.check("fsync", self._path)

    def try_lock(self) -> bool:
        return self._file.try_lock()

    def close(self) -> None:
        self._file.close()
