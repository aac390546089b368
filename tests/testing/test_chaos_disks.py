"""Disks that a chaos run can fill: with a file system of their own, and without."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import FileSystem, OsFileSystem
from replikv.testing.chaos.disks import Disk, FlaggedFileSystem


@pytest.mark.parametrize("mount", [True, False])
def test_a_disk_that_is_full_for_a_while(tmp_path: Path, mount: bool) -> None:
    """No byte more and no file, until there is room again; what was written is there all the time, and afterwards."""
    disk = Disk(tmp_path / "n1", mount=mount)  # where mounting is not allowed, both are the same
    filesystem: FileSystem = OsFileSystem() if disk.mounted else FlaggedFileSystem(disk.flag)
    filesystem.make_directory(disk.data_dir)
    file = filesystem.open(disk.data_dir / "log", create=True)
    file.pwrite(b"first", 0)
    disk.fill()
    assert 0 == filesystem.free_bytes(disk.data_dir)
    with pytest.raises(StorageFullError):
        file.pwrite(bytes(1 << 20), 5)
    assert b"first" == file.pread(5, 0)
    disk.drain()
    file.pwrite(b" second", 5)
    file.close()
    disk.close()
    kept = (tmp_path / "n1" / "data" / "log").read_bytes()
    assert b"first second" == kept.rstrip(b"\0")  # a write that fails may have been done in part


async def test_who_waits_for_room(tmp_path: Path) -> None:
    """Is woken by its return; who does not need to wait goes on."""
    disk = Disk(tmp_path / "n1", mount=False)
    with trio.fail_after(5):
        await disk.wait_room()
        disk.fill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.wait_room)
            await trio.testing.wait_all_tasks_blocked()
            assert 1 == len(nursery.child_tasks)
            disk.drain()


def test_a_disk_is_gone_with_its_process(tmp_path: Path) -> None:
    """It has no name: nothing is left to be unmounted by whoever was killed over a run."""
    disk = Disk(tmp_path / "n1")
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    (disk.data_dir).mkdir()
    disk.wipe()
    assert not disk.data_dir.exists()
    disk.close()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - by its number
        (disk.data_dir / "x").touch()
    assert errno.ENOENT == caught.value.errno
