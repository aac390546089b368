"""``DIR/meta``: who the directory belongs to, readable with ``cat``: one line of JSON, and one with its checksum.

Its presence is what makes a directory more than empty: it is written last, once everything it stands for is durable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from pathlib import Path
from typing import Final

from replikv.errors import CorruptionError, StorageError
from replikv.storage.base import Identity, StorageFullError
from replikv.storage.filesystem import TEMPORARY_SUFFIX, FileSystem

__all__ = [
    "FORMAT",
    "INCARNATION_NAME",
    "META_NAME",
    "forget_incarnation",
    "read_incarnation",
    "read_meta",
    "write_incarnation",
    "write_meta",
]

META_NAME: Final = "meta"
INCARNATION_NAME: Final = "incarnation"
"""The name that a directory without ``meta`` is to have: of a peer that has begun to join, and is no member yet."""
FORMAT: Final = 1
"""The version of everything in the directory. Two lines and the checksum stay the same in every version."""


def read_meta(filesystem: FileSystem, directory: Path) -> Identity | None:
    """The identity of the directory, None if it has none. Raises CorruptionError, StorageError for a newer format."""
    if META_NAME not in filesystem.list_directory(directory):
        return None
    line = _read(filesystem, directory, META_NAME)
    path = directory / META_NAME
    try:
        fields = json.loads(line)
        version = fields.pop("format")
        if version != FORMAT:
            raise StorageError(
                f"{directory} was written in format {version}; this replikv reads format {FORMAT}: upgrade it"
            )
        return Identity(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damage(path, f"the first line is not what replikv writes ({error})") from error


def write_meta(filesystem: FileSystem, directory: Path, identity: Identity) -> None:
    """Write the file, durably and all at once."""
    line = json.dumps({"format": FORMAT, **dataclasses.asdict(identity)}, separators=(",", ":")).encode()
    _write(filesystem, directory, META_NAME, line)


def read_incarnation(filesystem: FileSystem, directory: Path) -> str | None:
    """The incarnation that was drawn for the directory, None if none was. Raises CorruptionError."""
    if INCARNATION_NAME not in filesystem.list_directory(directory):
        return None
    return _read(filesystem, directory, INCARNATION_NAME).decode(errors="replace")


def write_incarnation(filesystem: FileSystem, directory: Path, incarnation: str) -> None:
    """Write the file, durably and all at once."""
    _write(filesystem, directory, INCARNATION_NAME, incarnation.encode())


def forget_incarnation(filesystem: FileSystem, directory: Path) -> None:
    """Delete the file: ``meta`` says it from now on. Where there is no room for that, the next start does it."""
    if INCARNATION_NAME in filesystem.list_directory(directory):
        with contextlib.suppress(StorageFullError):
            filesystem.unlink(directory / INCARNATION_NAME)


def _read(filesystem: FileSystem, directory: Path, name: str) -> bytes:
    """The first line of a file, if the second is its checksum. Raises CorruptionError."""
    path = directory / name
    file = filesystem.open(path)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    line, _, rest = data.partition(b"\n")
    if rest != _checksum(line):
        raise _damage(path, "the second line is not the checksum of the first")
    return line


def _write(filesystem: FileSystem, directory: Path, name: str, line: bytes) -> None:
    temporary = directory / f"{name}{TEMPORARY_SUFFIX}"
    # Never into the file of an attempt that failed: it may be longer, and a second sync of it would prove nothing.
    if temporary.name in filesystem.list_directory(directory):
        filesystem.unlink(temporary)
    file = filesystem.open(temporary, create=True)
    try:
        file.pwrite(line + b"\n" + _checksum(line), 0)
        file.fsync()
    finally:
        file.close()
    filesystem.rename(temporary, directory / name)
    filesystem.sync_directory(directory)


def _checksum(line: bytes) -> bytes:
    return b"crc32 %08x\n" % zlib.crc32(line)


def _damage(path: Path, what: str) -> CorruptionError:
    return CorruptionError(f"{path} is damaged at byte 0: {what}; restore it from a backup of the disk", str(path), 0)
