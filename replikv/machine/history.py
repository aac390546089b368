"""The keyspace in a snapshot: the map as it was at the logical floor, then every change since.

That is the present *and* the retained history, each record once: restoring is loading the first part and making the
changes of the second again. So watchers and reads of the past go on after a snapshot was installed.

The bytes are a function of the logical state: what pins hold back beyond the floor, or what is not trimmed yet, does
not show.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from replikv.errors import InternalError
from replikv.machine.chunks import pack_chunks
from replikv.machine.keyspace import Keyspace, Pin, Write
from replikv.machine.record import pack_record, unpack_record

__all__ = ["KeyspaceRestorer", "keyspace_chunks"]

_HEAD: Final = struct.Struct(">BQQ")
"""Version, revision, floor: the first chunk."""
_VERSION: Final = 1
_RECORD: Final = struct.Struct(">BIIQQQQ")
"""An item: flags, bytes of the key, bytes of the value, create_revision, mod_revision, version, lease; key, value."""
_TOMBSTONE: Final = 1
_LAST: Final = 2
"""The last change of its revision. Records at the floor have it, too."""


def keyspace_chunks(keyspace: Keyspace) -> Iterator[bytes]:
    """The chunks of the keyspace as of this call, and breaths: empty ones, that say nothing (see ``pack_chunks``).

    Holds a firm pin until the iterator ends or is dropped.
    """
    floor, revision = keyspace.floor, keyspace.revision
    return _chunks(keyspace, keyspace.pin(floor), revision)


def _chunks(keyspace: Keyspace, pin: Pin, revision: int) -> Iterator[bytes]:
    yield _HEAD.pack(_VERSION, revision, pin.revision)
    yield from pack_chunks(_items(keyspace, pin, revision))
    pin.release()


def _items(keyspace: Keyspace, pin: Pin, revision: int) -> Iterator[bytes]:
    pack = _RECORD.pack
    for run in keyspace.scan_pinned(pin):
        if not run:
            yield b""
        for key, record in run:
            value, create, mod, version, lease = unpack_record(record)
            assert value is not None  # scans skip tombstones
            name = key.encode()
            yield pack(_LAST, len(name), len(value), create, mod, version, lease) + name + value
    for _, changes in keyspace.changes_pinned(pin, revision):
        last = len(changes) - 1
        for index, (key, record, _) in enumerate(changes):
            value, create, mod, version, lease = unpack_record(record)
            flags = (_LAST if index == last else 0) | (_TOMBSTONE if value is None else 0)
            value = value or b""  # a tombstone's
            name = key.encode()
            yield pack(flags, len(name), len(value), create, mod, version, lease) + name + value


class KeyspaceRestorer:
    """Builds a keyspace from the chunks of :func:`keyspace_chunks`, one at a time, each in under a millisecond."""

    def __init__(self, *, pinned_bytes_max: int) -> None:
        self._pinned_bytes_max = pinned_bytes_max
        self._keyspace: Keyspace | None = None
        """None before the first chunk."""
        self._revision = 0
        """What the keyspace will be at."""
        self._writes: list[Write] = []
        """The changes of a revision whose last one was not read yet."""

    def feed(self, chunk: bytes) -> None:
        """Read one chunk. Raises InternalError for what no snapshot of this version has."""
        try:
            if self._keyspace is None:
                version, self._revision, floor = _HEAD.unpack(chunk)
                if version != _VERSION:
                    raise InternalError(f"a map of format {version} in the snapshot: upgrade this replikv")
                self._keyspace = Keyspace(revision=floor, pinned_bytes_max=self._pinned_bytes_max)
            else:
                self._read(self._keyspace, chunk)
        except (struct.error, UnicodeDecodeError) as exc:
            raise InternalError(f"a chunk of the map that no version of replikv writes: {exc}") from exc

    def finish(self) -> Keyspace:
        """The keyspace, complete; the restorer is done with it. Raises InternalError when chunks are missing."""
        if self._keyspace is None or self._keyspace.revision != self._revision or self._writes:
            raise InternalError(f"the map in the snapshot ends before revision {self._revision}")
        keyspace, self._keyspace = self._keyspace, None
        return keyspace

    def abandon(self) -> Keyspace | None:
        """What was built so far, for whoever frees it bit by bit. None after :meth:`finish`."""
        keyspace, self._keyspace = self._keyspace, None
        return keyspace

    def _read(self, keyspace: Keyspace, chunk: bytes) -> None:
        unpack, head_size, end = _RECORD.unpack_from, _RECORD.size, len(chunk)
        floor = keyspace.floor
        position = 0
        while position < end:
            flags, key_size, value_size, create, mod, version, lease = unpack(chunk, position)
            start = position + head_size
            middle = start + key_size
            position = middle + value_size
            if position > end:
                raise InternalError("a record of the snapshot is longer than its chunk")
            key = chunk[start:middle].decode()
            value = chunk[middle:position]
            if mod <= floor:
                keyspace.load(key, pack_record(value, create, mod, version, lease))
                continue
            self._writes.append((key, None if flags & _TOMBSTONE else value, lease))
            if mod != keyspace.revision + 1:
                raise InternalError(f"the snapshot goes from revision {keyspace.revision} to {mod}")
            if flags & _LAST:
                keyspace.commit(self._writes)
                self._writes.clear()
