"""Backup files: whole or not there, and no byte of one can change unseen."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from faulty_filesystem import CrashError, FaultyFileSystem, broken, crash, no_room

from replikv.errors import ConfigurationError, CorruptionError, StorageError
from replikv.storage import backups
from replikv.storage.backups import Backup, BackupReader, BackupWriter
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import FileSystem

GOLDEN = Path(__file__).parent / "golden" / "format-1.backup"
BACKUP = Backup("cluster", "a", datetime(2024, 2, 29, 12, 30, tzinfo=UTC), 7, 2, machine=True)
CHUNKS = [b"first chunk", b"", b"second chunk" * 10]


def write(path: Path, filesystem: FileSystem | None = None) -> None:
    writer = BackupWriter(filesystem or FaultyFileSystem(), path, BACKUP)
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
    writer = BackupWriter(FaultyFileSystem(), other, BACKUP)
    writer.write(CHUNKS[::-1])
    writer.commit()
    path = tmp_path / "backup"
    write(path)
    path.write_bytes(path.read_bytes()[:-48] + other.read_bytes()[-48:])
    with pytest.raises(CorruptionError):
        read(path)


def test_durable_before_it_is_visible(tmp_path: Path) -> None:
    """Synced, renamed, directory synced; under a name of its own until then."""
    filesystem = FaultyFileSystem()
    write(tmp_path / "backup", filesystem)
    steps = [call for call in filesystem.calls if call[0] != "pwrite"]
    assert ["create", "fsync", "rename", "sync_directory"] == [operation for operation, _ in steps]
    assert steps[0][1].startswith("backup.")
    assert steps[0][1].endswith(".tmp")
    assert ["backup"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("before", [b"the one before", None])
@pytest.mark.parametrize(
    ("operation", "after", "error"),
    [
        ("pwrite", 0, no_room),
        ("pwrite", 2, no_room),
        ("pwrite", 4, broken),
        ("fsync", 0, broken),
        ("rename", 0, broken),
    ],
)
def test_one_that_fails_leaves_nothing(
    tmp_path: Path, operation: str, after: int, error: type[Exception], before: bytes | None
) -> None:
    """And what had the name before keeps it."""
    path = tmp_path / "backup"
    if before is not None:
        path.write_bytes(before)
    filesystem = FaultyFileSystem()
    filesystem.fault(operation, "*", error, after=after)
    with pytest.raises(StorageFullError if error is no_room else StorageError):
        write(path, filesystem)
    assert ([path] if before else []) == list(tmp_path.iterdir())
    assert before is None or before == path.read_bytes()


def test_a_crash_leaves_the_one_before(tmp_path: Path) -> None:
    """At whichever call: under the final name there is the old one, or the new one, whole."""
    path = tmp_path / "backup"
    path.write_bytes(b"old")
    counted = FaultyFileSystem()
    write(tmp_path / "other", counted)
    for after in range(len(counted.calls)):
        filesystem = FaultyFileSystem()
        filesystem.fault("*", "*", crash, after=after)
        with pytest.raises(CrashError):
            write(path, filesystem)
        if path.read_bytes() != b"old":
            assert (BACKUP, CHUNKS) == read(path)
            path.write_bytes(b"old")


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
