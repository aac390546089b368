"""What a key held at one revision: the fixed head and the value, packed into one ``bytes``.

One object per key, and one that Python's garbage collector never tracks: a dict of such records is not tracked either,
however many there are. Kept in memory only; snapshots have a format of their own. The bytes are the same on every
machine nevertheless: the digest of the state is computed of them.

A *tombstone* says that the key was deleted at its ``mod_revision``; its ``lease`` names the lease that expired, 0 if a
command deleted it. It has no value, and its ``create_revision`` and ``version`` are 0.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NewType

__all__ = ["Record", "digest_of", "is_live", "lease_of", "mod_revision_of", "pack_record", "unpack_record", "value_of"]

Record = NewType("Record", bytes)

HEAD: Final = struct.Struct("<QQQQB")
"""create_revision, mod_revision, version, lease, whether there is a value."""
LIVE: Final = HEAD.size - 1
"""Where the flag is: ``record[LIVE]`` is 0 in a tombstone."""

_HEAD_BYTES: Final = HEAD.size
_pack_head: Final = HEAD.pack
_unpack_head: Final = HEAD.unpack_from
_unpack_number: Final = struct.Struct("<Q").unpack_from
_MOD_REVISION: Final = 8
_LEASE: Final = 24


def pack_record(value: bytes | None, create_revision: int, mod_revision: int, version: int, lease: int) -> Record:
    """A record; a tombstone if the value is None."""
    if value is None:
        return Record(_pack_head(create_revision, mod_revision, version, lease, 0))
    return Record(_pack_head(create_revision, mod_revision, version, lease, 1) + value)


def unpack_record(record: Record) -> tuple[bytes | None, int, int, int, int]:
    """The arguments of :func:`pack_record`."""
    create_revision, mod_revision, version, lease, live = _unpack_head(record)
    return record[_HEAD_BYTES:] if live else None, create_revision, mod_revision, version, lease


def is_live(record: Record) -> bool:
    """Whether the key had a value: no tombstone."""
    return record[LIVE] == 1


def value_of(record: Record) -> bytes:
    """The encoded value; of a tombstone, none: ``b""``."""
    return record[_HEAD_BYTES:]


def mod_revision_of(record: Record) -> int:
    """The revision that the record was made at."""
    revision: int = _unpack_number(record, _MOD_REVISION)[0]
    return revision


def lease_of(record: Record) -> int:
    """The lease the key is attached to, 0 for none."""
    lease: int = _unpack_number(record, _LEASE)[0]
    return lease


def digest_of(key: str, record: Record) -> int:
    """What a key that is there adds to ``digest_sum``. Not a secret, and no proof against an adversary.

    CRC-32 is what takes less than a tenth of a microsecond. It is linear, so it is squared: else two keys that have
    exchanged their values would add up to the same, once in 2**16 times.
    """
    crc = zlib.crc32(record, zlib.crc32(key.encode()))
    return crc * crc
