"""What stands in the frames of the write-ahead log: typed records, each with its length, so that tools can walk it."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from replikv.errors import InternalError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write

__all__ = ["Marker", "Record", "RecordKind", "decode_records", "encode_head", "encode_writes", "pack_snapshot"]

_RECORD: Final = struct.Struct(">BI")  # kind, bytes of what follows
_ENTRY: Final = struct.Struct(">QQB")  # index, term, kind; the data follows
_ENTRY_RECORD: Final = struct.Struct(">BIQQB")  # both of the above in one step: this is the hot path
_HARD_STATE: Final = struct.Struct(">QQ")  # term, commit; the vote follows in UTF-8
_SNAPSHOT: Final = struct.Struct(">QQ")  # index, term; the membership follows as it encodes itself


class RecordKind(enum.IntEnum):
    """The numbers are on disk: never change one."""

    IDENTITY = 1
    """Whose log this is, in the bytes that the owner of the log gave. The first record of every segment."""
    MARKER = 2
    """The newest snapshot as the segment was begun. The log stays as it is: it may begin before or after it."""
    SNAPSHOT = 3
    """A snapshot took the place of the whole log: what follows continues after it."""
    ENTRY = 4
    """Replaces everything in the log from its index on."""
    HARD_STATE = 5


class Marker(SnapshotMetadata):
    """The content of a ``MARKER`` record, told apart from that of a ``SNAPSHOT`` by its type."""

    __slots__ = ()


Record = bytes | Marker | SnapshotMetadata | Entry | HardState
"""The content of a record; ``bytes`` is the identity."""


def encode_head(identity: bytes, marker: SnapshotMetadata, hard_state: HardState) -> list[bytes]:
    """What a segment begins with, so that those before it can be deleted."""
    body = pack_snapshot(marker)
    return [
        _RECORD.pack(RecordKind.IDENTITY, len(identity)),
        identity,
        _RECORD.pack(RecordKind.MARKER, len(body)),
        body,
        *_hard_state(hard_state),
    ]


def encode_writes(writes: Iterable[Write]) -> list[bytes]:
    """The records of the writes, to be joined. The data of entries is passed through, never copied here."""
    parts: list[bytes] = []
    for write in writes:
        if write.snapshot is not None:
            body = pack_snapshot(write.snapshot)
            parts += (_RECORD.pack(RecordKind.SNAPSHOT, len(body)), body)
        for index, term, data, kind in write.entries:
            parts += (_ENTRY_RECORD.pack(RecordKind.ENTRY, _ENTRY.size + len(data), index, term, kind), data)
        if write.hard_state is not None:
            parts += _hard_state(write.hard_state)
    return parts


def decode_records(payload: bytes) -> Iterator[Record]:
    """The contents of the records in order. Raises ValueError for what no known version writes."""
    position = 0
    while position < len(payload):
        try:
            kind, length = _RECORD.unpack_from(payload, position)
            start = position + _RECORD.size
            position = start + length
            if position > len(payload):
                raise ValueError(f"a record of {length} bytes reaches beyond its frame")
            yield _decode(kind, payload, start, position)
        except (struct.error, LookupError, TypeError, InternalError) as error:
            raise ValueError(f"a record that cannot be read: {error}") from error


def pack_snapshot(snapshot: SnapshotMetadata) -> bytes:
    """The bytes of snapshot metadata, in records and in the heads of snapshot files."""
    return _SNAPSHOT.pack(snapshot.index, snapshot.term) + snapshot.membership.encode()


def unpack_snapshot(body: bytes) -> tuple[int, int, Membership]:
    """The reverse of :func:`pack_snapshot`, as the fields of what is to be made of them."""
    index, term = _SNAPSHOT.unpack_from(body)
    return index, term, Membership.decode(body[_SNAPSHOT.size :])


def _hard_state(hard_state: HardState) -> tuple[bytes, bytes, bytes]:
    vote = hard_state.vote.encode()
    head = _RECORD.pack(RecordKind.HARD_STATE, _HARD_STATE.size + len(vote))
    return head, _HARD_STATE.pack(hard_state.term, hard_state.commit), vote


def _decode(kind: int, payload: bytes, start: int, end: int) -> Record:
    match kind:
        case RecordKind.ENTRY:
            index, term, entry_kind = _ENTRY.unpack_from(payload, start)
            return Entry(index, term, payload[start + _ENTRY.size : end], entry_kind)
        case RecordKind.HARD_STATE:
            term, commit = _HARD_STATE.unpack_from(payload, start)
            return HardState(term, payload[start + _HARD_STATE.size : end].decode(), commit)
        case RecordKind.SNAPSHOT:
            return SnapshotMetadata(*unpack_snapshot(payload[start:end]))
        case RecordKind.MARKER:
            return Marker(*unpack_snapshot(payload[start:end]))
        case RecordKind.IDENTITY:
            return payload[start:end]
        case _:
            raise ValueError(f"a record of the unknown kind {kind}: a newer version may have written it")
