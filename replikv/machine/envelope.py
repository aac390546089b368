"""The envelope of every command: a fixed binary header and an opaque payload, and how commands stand in an entry.

The Raft path reads nothing but this header: it decodes no CBOR of a user's. The layouts are on disk and on the wire
(``docs/format.md``); new kinds may be added, none may change.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from replikv.errors import InternalError

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "VERSION",
    "CommandKind",
    "Envelope",
    "Status",
    "pack_commands",
    "pack_head",
    "unpack_commands",
]

HEADER: Final = struct.Struct(">BBHQQQ")
"""Version, kind, flags (0), session, sequence, acknowledged below."""
HEADER_BYTES: Final = HEADER.size
_ITEM: Final = struct.Struct(">BI")
_ITEM_AND_HEADER: Final = struct.Struct(_ITEM.format + HEADER.format.removeprefix(">"))
_pack_item_and_header: Final = _ITEM_AND_HEADER.pack
_BYTE_STRING_32: Final = 0x5A  # CBOR major type 2 with a length of four bytes (RFC 8949, section 3)
VERSION: Final = 1


class CommandKind(enum.IntEnum):
    """Who reads the payload."""

    REGISTER = 0
    """Opens a session. The payload is the node id; ``sequence`` a random nonce that finds the answer."""
    MAP = 1
    """An operation of the map (machine/commands.py)."""
    CUSTOM = 2
    """A command of the application's own StateMachine."""
    SEAL = 3
    """Settles the outcome of another command of the session: its result, or never to be applied."""
    CLUSTER = 4
    """What holds for the whole replica (machine/governance.py): which commands it knows, which limits it keeps."""


class Status(enum.IntEnum):
    """The first byte of every result."""

    OK = 0
    """Applied; what follows is the machine's result."""
    FAILED = 1
    """The machine refused the command or raised; what follows says why, in UTF-8. The state is as before."""
    UNKNOWN_SESSION = 2
    """Never applied by this attempt: the session is not in the table (never registered, or evicted)."""
    STALE = 3
    """Never applied by this attempt: the client has acknowledged this sequence before."""
    BEYOND_WINDOW = 4
    """Never applied by this attempt: too far ahead of what the client has acknowledged."""
    SEALED = 5
    """Never applied, now or later: its outcome was settled so."""
    UNKNOWN_COMMAND = 6
    """Never applied: no machine of this cluster reads commands of this kind."""
    NO_LEASE = 7
    """Applied, changing nothing: the lease is not there. It was never granted, was revoked, or has expired. What
    follows says which, in UTF-8."""
    OVER_LIMIT = 8
    """Applied, changing nothing: it would go over a limit that all replicas keep. What follows says which, in UTF-8."""


class Envelope(NamedTuple):
    """One command.

    ``session`` 0 is nobody's: for commands that the leader proposes by itself and that are harmless when repeated.
    ``acknowledged_below``: the client will never ask again for a sequence below this one (thesis, section 6.3).
    """

    kind: int
    session: int
    sequence: int
    acknowledged_below: int
    payload: bytes

    def encode(self) -> bytes:
        """Header and payload."""
        return HEADER.pack(VERSION, self.kind, 0, self.session, self.sequence, self.acknowledged_below) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """The reverse of :meth:`encode`. Raises InternalError for bytes that no version of replikv writes."""
        if len(data) < HEADER_BYTES:
            raise InternalError(f"a command of {len(data)} bytes is shorter than its header ({HEADER_BYTES})")
        version, kind, _flags, session, sequence, below = HEADER.unpack_from(data)
        if version != VERSION:
            raise InternalError(f"a command of version {version}: this replikv reads version {VERSION}; upgrade it")
        return cls(kind, session, sequence, below, data[HEADER_BYTES:])


def pack_head(payload_bytes: int, kind: int, session: int, sequence: int, acknowledged_below: int) -> bytes:
    """What stands before the payload of a command in an entry: item head and envelope header, packed at once."""
    return _pack_item_and_header(
        _BYTE_STRING_32, HEADER_BYTES + payload_bytes, VERSION, kind, 0, session, sequence, acknowledged_below
    )


def pack_commands(commands: Iterable[bytes]) -> bytes:
    """The data of an entry: a CBOR sequence (RFC 8742) of byte strings, each with its length in four bytes."""
    parts: list[bytes] = []
    for command in commands:
        parts += (_ITEM.pack(_BYTE_STRING_32, len(command)), command)
    return b"".join(parts)


def unpack_commands(data: bytes) -> list[bytes]:
    """The commands of an entry. Raises InternalError for data that :func:`pack_commands` did not make."""
    commands: list[bytes] = []
    unpack, item_bytes = _ITEM.unpack_from, _ITEM.size
    position, end = 0, len(data)
    while position < end:
        start = position + item_bytes
        if start > end:
            raise InternalError(f"the entry ends inside the head of a command, at byte {position}")
        initial, length = unpack(data, position)
        if initial != _BYTE_STRING_32 or length > end - start:
            raise InternalError(f"no command at byte {position} of the entry")
        position = start + length
        commands.append(data[start:position])
    return commands
