"""Disks that a run can fill: small file systems in memory where the machine allows them, else the filesystem seam."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import trio

from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import File, OsFile, OsFileSystem

__all__ = ["Disk", "FlaggedFileSystem"]

DISK_BYTES: Final = 24 * 1024 * 1024
"""Room for some segments and snapshots; filled within milliseconds."""

BALLAST_BYTES: Final = 64 * 1024
"""A write of what fills it; the last one is cut to what there is room for."""


class Disk:
    """What one node has its directory on, until :meth:`close`.

    A tmpfs of its own, filled by a file beside the node's directory: every write fails as the kernel has it. It has no
    name, only a descriptor of this process, so it is gone with it, however that ends. Where mounting is not allowed,
    the node's processes look for a file before each write, and refuse it themselves; so they do with ``mount=False``.
    """

    def __init__(self, path: Path, *, mount: bool = True) -> None:
        self._path = path
        path.mkdir(parents=True)
        self._descriptor = _mount(path) if mount else None
        root = path if self._descriptor is None else Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")
        self.data_dir = root / "data"
        self.flag = root / "full"
        """Is there while the disk is full."""
        self._room = trio.Event()
        self._room.set()

    @property
    def mounted(self) -> bool:
        """Whether it is a file system of its own."""
        return self._descriptor is not None

    def fill(self) -> None:
        """Leave no room. Blocks for some milliseconds: for a thread."""
        self._room = trio.Event()
        with contextlib.suppress(OSError), self.flag.open("wb", buffering=0) as ballast:
            while self.mounted:
                ballast.write(bytes(BALLAST_BYTES))

    def drain(self) -> None:
        """Give the room back."""
        self.flag.unlink(missing_ok=True)
        self._room.set()

    async def wait_room(self) -> None:
        """Until the room is given back."""
        await self._room.wait()

    def wipe(self) -> None:
        """Have nothing on it."""
        self.drain()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def close(self) -> None:
        """Take it away, and leave what is on it behind, as plain files."""
        if self._descriptor is None:
            return
        self.drain()
        shutil.copytree(self.data_dir.parent, self._path, dirs_exist_ok=True)
        os.close(self._descriptor)
        self._descriptor = None


def _mount(path: Path) -> int | None:
    """The descriptor of a new file system; None where that is not allowed."""
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None:
        return None
    command = [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
        return None
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        # Out of the tree of names at once, and gone when nobody uses it any more.
        subprocess.run([unmount, "-l", str(path)], check=True)  # noqa: S603


class FlaggedFileSystem(OsFileSystem):
    """Refuses to write as long as a file is there."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def open(self, path: Path, *, create: bool = False) -> File:
        """As :meth:`FileSystem.open`."""
        if create and not path.exists():
            self._check(path)
        super().open(path, create=create).close()
        return _FlaggedFile(path, self._flag)

    def free_bytes(self, path: Path) -> int | None:
        """As :meth:`FileSystem.free_bytes`."""
        return 0 if self._flag.exists() else super().free_bytes(path)

    def _check(self, path: Path) -> None:
        if self._flag.exists():
            raise StorageFullError(f"cannot create {path}: {os.strerror(errno.ENOSPC)}")


class _FlaggedFile(OsFile):
    def __init__(self, path: Path, flag: Path) -> None:
        super().__init__(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        self._flag = flag

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """As :meth:`File.pwrite`."""
        if self._flag.exists():
            raise StorageFullError(f"cannot write {self.path}: {os.strerror(errno.ENOSPC)}")
        super().pwrite(data, offset)
