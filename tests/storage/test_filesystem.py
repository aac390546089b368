"""The real file system: what it raises, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from replikv.errors import StorageError
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import OsFile, OsFileSystem, remove_temporaries

FILESYSTEM = OsFileSystem()


def test_bytes_are_read_where_they_were_written(tmp_path: Path) -> None:
    """Fewer than asked for only where the file ends."""
    file = FILESYSTEM.open(tmp_path / "file", create=True)
    file.pwrite(b"hello", 3)
    assert (8, b"\0\0\0he", b"lo", b"") == (file.size(), file.pread(5, 0), file.pread(5, 6), file.pread(5, 9))
    file.fdatasync()
    file.fsync()
    file.close()
    file.close()


def test_full_disk_is_told_apart() -> None:
    """The kernel's own full device."""
    file = FILESYSTEM.open(Path("/dev/full"))
    with pytest.raises(StorageFullError, match=r"cannot write to /dev/full: .*; make room") as caught:
        file.pwrite(b"x", 0)
    assert isinstance(caught.value.__cause__, OSError)
    file.close()


def test_errors_name_the_file_and_the_attempt(tmp_path: Path) -> None:
    """Whatever the operating system raises leaves as a StorageError, from it."""
    missing = tmp_path / "missing"
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    broken = OsFile(plain, 1 << 20)  # a descriptor that nobody has
    attempts: list[tuple[Callable[[], object], str, Path]] = [
        (lambda: FILESYSTEM.open(missing), "cannot open", missing),
        (lambda: FILESYSTEM.unlink(missing), "cannot remove", missing),
        (lambda: FILESYSTEM.rename(missing, plain), "cannot rename", plain),
        (lambda: FILESYSTEM.list_directory(missing), "cannot list", missing),
        (lambda: FILESYSTEM.sync_directory(missing), "cannot sync", missing),
        (lambda: FILESYSTEM.make_directory(plain / "below"), "cannot make", plain),
        (lambda: broken.size(), "cannot read", plain),
        (lambda: broken.pread(1, 0), "cannot read", plain),
        (lambda: broken.pwrite(b"x", 0), "cannot write", plain),
        (lambda: broken.fdatasync(), "cannot sync", plain),
        (lambda: broken.fsync(), "cannot sync", plain),
        (lambda: broken.try_lock(), "cannot lock", plain),
    ]
    for attempt, words, path in attempts:
        with pytest.raises(StorageError, match=words) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


def test_missing_parents_are_made(tmp_path: Path) -> None:
    """And a directory that is there is left alone."""
    deep = tmp_path / "a" / "b" / "c"
    FILESYSTEM.make_directory(deep)
    FILESYSTEM.make_directory(deep)
    assert deep.is_dir()


def test_lock_is_held_until_the_file_is_closed(tmp_path: Path) -> None:
    """Against another opening in the same process too."""
    first, second = (FILESYSTEM.open(tmp_path / "lock", create=True) for _ in range(2))
    assert (True, False) == (first.try_lock(), second.try_lock())
    first.close()
    assert second.try_lock()
    second.close()


def test_unlinked_file_stays_readable(tmp_path: Path) -> None:
    """For those who have it open."""
    path = tmp_path / "file"
    path.write_bytes(b"still here")
    file = FILESYSTEM.open(path)
    FILESYSTEM.unlink(path)
    assert file.pread(10, 0) == b"still here"
    file.close()


def test_temporaries_are_removed(tmp_path: Path) -> None:
    """Nothing else is."""
    for name in ("a.tmp", "b.wal", "tmp"):
        (tmp_path / name).write_bytes(b"")
    remove_temporaries(FILESYSTEM, tmp_path)
    assert FILESYSTEM.list_directory(tmp_path) == ["b.wal", "tmp"]
