"""The payloads of map commands and of their results: fixed binary layouts, no CBOR but the values' own.

Big-endian. A payload begins with its operation (one byte); ``docs/format.md`` has the bytes. Values arrive here encoded
(``values.encode_value``) and stay so. A result is what follows the status byte of the answer; every one begins with a
revision: the command's own if it changed something, else the newest at that moment.

Layouts are on disk and on the wire: add operations, never change one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from replikv.errors import EncodingError, ValueTooLargeError

__all__ = [
    "DeletePrefixResult",
    "IncrementResult",
    "OldValueResult",
    "Operation",
    "OutcomeResult",
    "decode_compact_result",
    "decode_delete_prefix_result",
    "decode_grant_result",
    "decode_increment_result",
    "decode_old_value_result",
    "decode_outcome_result",
    "decode_put_result",
    "encode_attach",
    "encode_compact",
    "encode_compare_and_set",
    "encode_delete",
    "encode_delete_prefix",
    "encode_grant",
    "encode_increment",
    "encode_key",
    "encode_pop",
    "encode_put",
    "encode_replace",
    "encode_revoke",
    "encode_setdefault",
    "encode_update",
]


class Operation(enum.IntEnum):
    """The first byte of a payload."""

    PUT = 1
    DELETE = 2
    UPDATE = 3
    DELETE_PREFIX = 4
    POP = 5
    SETDEFAULT = 6
    INCREMENT = 7
    COMPARE_AND_SET = 8
    REPLACE = 9
    COMPACT = 10
    # From version 1 of the commands on (machine/governance.py).
    GRANT = 11
    REVOKE = 12
    ATTACH = 13
    TRANSACT = 14  # its layout is in machine/choices.py


KEYED: Final = struct.Struct(">BIQ")
"""operation, bytes of the key, a number (the lease of PUT and SETDEFAULT, the limit of DELETE_PREFIX); then the key,
then to the end a value, if the operation has one."""
COMPARE: Final = struct.Struct(">BIQIB")
"""COMPARE_AND_SET: operation, bytes of the key, lease, bytes of the expected value, flags; key, expected, value."""
EXPECTED_PRESENT: Final = 1
VALUE_PRESENT: Final = 2
REPLACE: Final = struct.Struct(">BIQQ")
"""REPLACE: operation, bytes of the key, lease, mod_revision that it must have; key, value."""
UPDATE: Final = struct.Struct(">BIQ")
"""UPDATE: operation, number of items, lease; then the items."""
ITEM: Final = struct.Struct(">II")
"""An item of UPDATE: bytes of the key, bytes of the value; key, value."""
COMPACT: Final = struct.Struct(">BQ")
"""COMPACT: operation, floor."""
GRANT: Final = struct.Struct(">BI")
"""GRANT: operation, time to live in milliseconds."""
REVOKE: Final = struct.Struct(">BQ")
"""REVOKE: operation, lease."""

NUMBER_RESULT: Final = struct.Struct(">Q")
"""PUT, UPDATE: the revision. COMPACT: the floor. GRANT: the lease."""
OUTCOME_RESULT: Final = struct.Struct(">QB")
"""DELETE, COMPARE_AND_SET, REPLACE, ATTACH: revision, 1 if done. POP, SETDEFAULT: revision, 1 if there was a value;
that."""
PREFIX_RESULT: Final = struct.Struct(">QIB")
"""DELETE_PREFIX, REVOKE: revision, number of deleted keys, 1 if more are left."""


_pack_keyed: Final = KEYED.pack
_PUT: Final = int(Operation.PUT)  # an IntEnum member costs an attribute look-up per command


# -- commands ----------------------------------------------------------------------------------------------------------


def encode_key(key: str, bytes_max: int) -> bytes:
    """A key as it stands in payloads: UTF-8. Raises EncodingError for what is no str, or too long."""
    if not isinstance(key, str):
        raise EncodingError(f"keys are str, not {type(key).__qualname__}: {key!r}")
    try:
        data = key.encode()
    except UnicodeEncodeError as exc:
        raise EncodingError(f"the key {key!r} has a lone surrogate and no UTF-8: use another encoding of it") from exc
    if len(data) > bytes_max:
        raise ValueTooLargeError(f"the key {key[:40]!r}… takes {len(data)} bytes: at most {bytes_max} (key_bytes_max)")
    return data


def encode_put(key: bytes, value: bytes, lease: int = 0) -> bytes:
    """PUT: set a key; ``lease`` 0 is none, and detaches the key from the one it had."""
    return _pack_keyed(_PUT, len(key), lease) + key + value


def encode_delete(key: bytes) -> bytes:
    """DELETE: remove a key."""
    return KEYED.pack(Operation.DELETE, len(key), 0) + key


def encode_update(items: Mapping[bytes, bytes], lease: int = 0) -> bytes:
    """UPDATE: set many keys at one revision, all or none."""
    parts = [UPDATE.pack(Operation.UPDATE, len(items), lease)]
    for key, value in items.items():
        parts += (ITEM.pack(len(key), len(value)), key, value)
    return b"".join(parts)


def encode_delete_prefix(prefix: bytes, limit: int) -> bytes:
    """DELETE_PREFIX: remove the first ``limit`` keys that begin with ``prefix``, at one revision."""
    return KEYED.pack(Operation.DELETE_PREFIX, len(prefix), limit) + prefix


def encode_pop(key: bytes) -> bytes:
    """POP: remove a key and answer with its value."""
    return KEYED.pack(Operation.POP, len(key), 0) + key


def encode_setdefault(key: bytes, value: bytes, lease: int = 0) -> bytes:
    """SETDEFAULT: set a key unless it is there; the answer is the value that was."""
    return KEYED.pack(Operation.SETDEFAULT, len(key), lease) + key + value


def encode_increment(key: bytes, by: bytes) -> bytes:
    """INCREMENT: add to an int, 0 if the key is not there. ``by`` is an encoded int. The key keeps its lease."""
    return KEYED.pack(Operation.INCREMENT, len(key), 0) + key + by


def encode_compare_and_set(key: bytes, expected: bytes | None, value: bytes | None, lease: int = 0) -> bytes:
    """COMPARE_AND_SET: set (or with None delete) a key if it has the expected value (None: if it is not there)."""
    flags = (EXPECTED_PRESENT if expected is not None else 0) | (VALUE_PRESENT if value is not None else 0)
    expected = expected or b""
    head = COMPARE.pack(Operation.COMPARE_AND_SET, len(key), lease, len(expected), flags)
    return b"".join((head, key, expected, value or b""))


def encode_replace(key: bytes, value: bytes, revision: int, lease: int = 0) -> bytes:
    """REPLACE: set a key if its mod_revision is ``revision``; 0: if it is not there."""
    return REPLACE.pack(Operation.REPLACE, len(key), lease, revision) + key + value


def encode_compact(floor: int) -> bytes:
    """COMPACT: raise the floor of the history. Harmless when it is repeated."""
    return COMPACT.pack(Operation.COMPACT, floor)


def encode_grant(ttl_ms: int) -> bytes:
    """GRANT: a new lease. Nobody knows of one whose answer is lost: it expires."""
    return GRANT.pack(Operation.GRANT, ttl_ms)


def encode_revoke(lease: int) -> bytes:
    """REVOKE: end a lease and delete the keys that are attached to it, so many as one command may. Repeat it then."""
    return REVOKE.pack(Operation.REVOKE, lease)


def encode_attach(key: bytes, lease: int) -> bytes:
    """ATTACH: leave the value, and have the key attached to this lease from now on; 0: to none."""
    return KEYED.pack(Operation.ATTACH, len(key), lease) + key


# -- results -----------------------------------------------------------------------------------------------------------


class OutcomeResult(NamedTuple):
    """Of DELETE, COMPARE_AND_SET, REPLACE and ATTACH."""

    revision: int
    done: bool


class OldValueResult(NamedTuple):
    """Of POP and SETDEFAULT: what was there before, None if nothing was."""

    revision: int
    value: bytes | None


class DeletePrefixResult(NamedTuple):
    """Of DELETE_PREFIX and REVOKE."""

    revision: int
    deleted: int
    more: bool
    """Whether keys with the prefix, or attached to the lease, are left: the limit was reached."""


class IncrementResult(NamedTuple):
    """Of INCREMENT."""

    revision: int
    value: bytes
    """The new int, encoded."""


def decode_put_result(data: bytes) -> int:
    """The revision, of PUT and UPDATE."""
    revision: int = NUMBER_RESULT.unpack(data)[0]
    return revision


def decode_compact_result(data: bytes) -> int:
    """The floor as it is now."""
    return decode_put_result(data)


def decode_grant_result(data: bytes) -> int:
    """The lease."""
    return decode_put_result(data)


def decode_outcome_result(data: bytes) -> OutcomeResult:
    """Of DELETE, COMPARE_AND_SET, REPLACE and ATTACH."""
    revision, done = OUTCOME_RESULT.unpack(data)
    return OutcomeResult(revision, bool(done))


def decode_old_value_result(data: bytes) -> OldValueResult:
    """Of POP and SETDEFAULT."""
    revision, present = OUTCOME_RESULT.unpack_from(data)
    return OldValueResult(revision, data[OUTCOME_RESULT.size :] if present else None)


def decode_delete_prefix_result(data: bytes) -> DeletePrefixResult:
    """Of DELETE_PREFIX and REVOKE."""
    revision, deleted, more = PREFIX_RESULT.unpack(data)
    return DeletePrefixResult(revision, deleted, bool(more))


def decode_increment_result(data: bytes) -> IncrementResult:
    """Of INCREMENT."""
    return IncrementResult(decode_put_result(data[: NUMBER_RESULT.size]), data[NUMBER_RESULT.size :])
