"""Backup files: whole or not there, and no byte of one can change unseen."""

from __future__ import annotations

import dataclasses
import errno
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from random import Random

import pytest

from replikv.errors import ConfigurationError, CorruptionError, StorageError
from replikv.storage import backups
from replikv.storage.backups import Backup, BackupReader, BackupWriter
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import FileSystem, OsFileSystem
from replikv.testing.simulated_disk import PowerCut, SimulatedDisk

GOLDEN = Path(__file__).parent / "golden" / "format-1.backup"
BACKUP = Backup("cluster", "a", datetime(2024, 2, 29, 12, 30, tzinfo=UTC), 7, 2, machine=True)
PATH = Path("/backups/backup")
CHUNKS = [b"first chunk", b"", b"second chunk" * 10]


def write(path: Path, filesystem: FileSystem | None = None) -> None:
    writer = BackupWriter(filesystem or OsFileSystem(), path, BACKUP)
    try:
        writer.write(CHUNKS[:2])
        writer.write(CHUNKS[2:])
        writer.commit()
    finally:
        writer.abort()


def read(path: Path) -> tuple[Backup, list[bytes]]:
    with BackupReader(path) as reader:
        return reader.backup, list(reader.chunks())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """What it says of itself, and its chunks, by somebody who may read it and no more."""
    path = tmp_path / "backup"
    write(path)
    path.chmod(0o400)
    assert (BACKUP, CHUNKS) == read(path)


def test_format_1_is_readable() -> None:
    """Backups of every released format are."""
    assert (BACKUP, CHUNKS) == read(GOLDEN)


def test_format_1_is_what_is_written(tmp_path: Path) -> None:
    """Byte for byte: a change of the format is never an accident."""
    write(tmp_path / "backup")
    assert GOLDEN.read_bytes() == (tmp_path / "backup").read_bytes()


def test_every_byte_counts(tmp_path: Path) -> None:
    """Whichever is changed, and however: damage, with file and offset, at or before the byte."""
    data = GOLDEN.read_bytes()
    path = tmp_path / "backup"
    for place in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
            with pytest.raises(CorruptionError, match="nothing was restored") as caught:
                read(path)
            assert str(path) == caught.value.file
            assert caught.value.offset <= place


def test_every_length_counts(tmp_path: Path) -> None:
    """Cut off anywhere, or with something behind it."""
    data = GOLDEN.read_bytes()
    path = tmp_path / "backup"
    for changed in (*(data[:length] for length in range(len(data))), data + b"\0", data + data):
        path.write_bytes(changed)
        with pytest.raises(CorruptionError):
            read(path)


def test_two_chunks_that_changed_places(tmp_path: Path) -> None:
    """Their checksums are chained, and the digest knows the order."""
    other = tmp_path / "other"
    writer = BackupWriter(OsFileSystem(), other, BACKUP)
    writer.write(CHUNKS[::-1])
    writer.commit()
    path = tmp_path / "backup"
    write(path)
    path.write_bytes(path.read_bytes()[:-48] + other.read_bytes()[-48:])
    with pytest.raises(CorruptionError):
        read(path)


def test_durable_before_it_is_visible() -> None:
    """Synced, renamed, directory synced; under a name of its own until then."""
    disk = SimulatedDisk(Random(0), files={PATH.with_name("other"): b""})
    write(PATH, disk)
    steps = [call for call in disk.calls if call[0] != "pwrite"]
    assert ["create", "fsync", "rename", "sync_directory"] == [operation for operation, _ in steps]
    assert steps[0][1].startswith("backup.")
    assert steps[0][1].endswith(".tmp")
    assert {"backup", "other"} == set(disk.list_directory(PATH.parent))


@pytest.mark.parametrize("before", [b"the one before", None])
@pytest.mark.parametrize(
    ("operation", "after", "error"),
    [
        ("pwrite", 0, errno.ENOSPC),
        ("pwrite", 2, errno.ENOSPC),
        ("pwrite", 4, errno.EIO),
        ("fsync", 0, errno.EIO),
        ("rename", 0, errno.EIO),
    ],
)
def test_one_that_fails_leaves_nothing(operation: str, after: int, error: int, before: bytes | None) -> None:
    """And what had the name before keeps it."""
    files = {PATH.with_name("other"): b""} | ({} if before is None else {PATH: before})
    disk = SimulatedDisk(Random(0), files=files)
    disk.fail(error, operation, after=after)
    with pytest.raises(StorageFullError if error == errno.ENOSPC else StorageError):
        write(PATH, disk)
    assert files == disk.files()


def test_a_crash_leaves_the_one_before(tmp_path: Path) -> None:
    """At whichever call, and whatever the disk keeps: the final name has the old one, or the new one, whole."""
    counted = SimulatedDisk(Random(0), files={PATH: b"old"})
    write(PATH, counted)
    found = set()
    for after in range(len(counted.calls)):
        for seed in range(10):
            disk = SimulatedDisk(Random(f"{seed}/{after}"), files={PATH: b"old"})
            disk.stop(after=after)
            with pytest.raises(PowerCut):
                write(PATH, disk)
            disk.crash()
            found.add(disk.read(PATH))
    assert found == {b"old", counted.read(PATH)}
    (tmp_path / "backup").write_bytes(counted.read(PATH))
    assert (BACKUP, CHUNKS) == read(tmp_path / "backup")


def test_a_directory_that_is_there_or_is_not(tmp_path: Path) -> None:
    """A backup is a file, in a directory that is there."""
    with pytest.raises(ConfigurationError, match="is a directory: name the file"):
        write(tmp_path)
    with pytest.raises(StorageError, match=r"cannot open .*: No such file or directory"):
        write(tmp_path / "missing" / "backup")
    with pytest.raises(StorageError, match=r"cannot open the backup .*: No such file or directory"):
        read(tmp_path / "missing")
    with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
        read(tmp_path)


def test_what_it_says_of_itself() -> None:
    """A later version may say more. Times are in UTC, whatever they were given in."""
    fields = json.loads(BACKUP.encode()) | {"weather": "fine"}
    assert BACKUP == Backup.decode(json.dumps(fields).encode())
    there = dataclasses.replace(BACKUP, created=BACKUP.created.astimezone(timezone(timedelta(hours=5))))
    assert BACKUP.encode() == there.encode()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"cluster_id": 1}'])
def test_a_head_that_says_nothing(tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is right, and it is no head all the same."""
    monkeypatch.setattr(Backup, "encode", lambda _: body)
    write(tmp_path / "backup")
    with pytest.raises(CorruptionError, match="its head does not say what it is of"):
        read(tmp_path / "backup")


def test_a_digest_that_does_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checksums agree, as after a fault in memory: it is found all the same."""
    monkeypatch.setattr("replikv.storage.backups._Digest.value", lambda _: bytes(32))
    write(tmp_path / "backup")
    monkeypatch.undo()
    with pytest.raises(CorruptionError, match="does not have its digest"):
        read(tmp_path / "backup")


def test_a_later_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no damage: it says to upgrade."""
    with monkeypatch.context() as later:
        later.setattr(backups, "_FORM", dataclasses.replace(backups._FORM, version=2))
        write(tmp_path / "backup")
    with pytest.raises(StorageError, match="is a backup of format 2; this replikv reads 1: upgrade it") as caught:
        read(tmp_path / "backup")
    assert not isinstance(caught.value, CorruptionError)
