"""What holds for the whole replica: which commands it knows by now, and which limits it keeps.

Both are replicated state, changed by commands of kind CLUSTER that the leader proposes by itself. They are harmless
when repeated, and so belong to no session.

*Versions.* Commands that are added to replikv get a number of their own. They take effect only behind an UPGRADE to
that number, which the leader proposes once every member has said that it knows them. So a replica either knows all
commands before it in the log, or stops at the UPGRADE: it never takes one for something else than the others do.

*Limits* are checked when a command is applied, so every replica refuses the same ones. The leader proposes its own
settings as limits, once, if others hold (``peer/governor.py``).
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import Final, NamedTuple

from replikv.errors import InternalError

__all__ = [
    "KNOWN_VERSION",
    "ClusterOperation",
    "Governance",
    "Limits",
    "Versions",
    "decode_set_limits",
    "decode_upgrade",
    "encode_set_limits",
    "encode_upgrade",
]

KNOWN_VERSION: Final = 1
"""The newest version of commands that this replikv knows. 0: map operations up to COMPACT, records of any lease.
1: leases, transactions, limits, and all that is checked on them."""


class ClusterOperation(enum.IntEnum):
    """The first byte of a payload of kind CLUSTER."""

    UPGRADE = 1
    SET_LIMITS = 2


UPGRADE: Final = struct.Struct(">BHI")
"""operation, version of replikv's commands, version of the application's machine."""
SET_LIMITS: Final = struct.Struct(">BQQQQQ")
"""operation, then the limits in the order of their fields."""
STATE: Final = struct.Struct(">BHIIQQQQQ")
"""In a snapshot: format of this, both versions, the chain, the limits."""
_FORMAT: Final = 1


class Versions(NamedTuple):
    """What every replica knows how to apply."""

    commands: int
    """Of replikv's own commands."""
    machine: int
    """Of the application's StateMachine (``StateMachine.version``); 0 before the first UPGRADE, and without one."""

    def capped(self, other: Versions) -> Versions:
        """What is known on both sides."""
        return Versions(min(self.commands, other.commands), min(self.machine, other.machine))

    def raised(self, other: Versions) -> Versions:
        """What an UPGRADE to ``other`` makes of these: none is ever lowered."""
        return Versions(max(self.commands, other.commands), max(self.machine, other.machine))

    def covers(self, wanted: Versions) -> bool:
        """Whether nothing of ``wanted`` is unknown."""
        return self.commands >= wanted.commands and self.machine >= wanted.machine


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What the state may grow to. The defaults hold until the first leader says otherwise."""

    state_bytes: int = 1 << 62
    """Keys, values and what they cost in memory; the history is bounded elsewhere."""
    keys: int = 1 << 62
    leases: int = 1 << 62
    sessions: int = 1024
    operations: int = 1024
    """Changes, comparisons and reads in one command."""

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise InternalError(f"limits below 1: {self}")


class Governance:
    """The versions and the limits of one replica, and what it has answered so far."""

    def __init__(
        self,
        versions: Versions = Versions(0, 0),  # noqa: B008  # immutable
        limits: Limits | None = None,
        chain: int = 0,
    ) -> None:
        self.versions = versions
        self.limits = limits or Limits()
        self.chain = chain
        """A checksum over the results of all commands behind the first UPGRADE: see digests.py."""

    def encode(self) -> bytes:
        """For a snapshot."""
        return STATE.pack(_FORMAT, *self.versions, self.chain, *dataclasses.astuple(self.limits))

    @classmethod
    def decode(cls, data: bytes) -> Governance:
        """The reverse of :meth:`encode`. Raises InternalError for what no snapshot of this version has."""
        if len(data) != STATE.size or data[0] != _FORMAT:
            raise InternalError("versions and limits of a format that this replikv does not read: upgrade it")
        _, commands, machine, chain, *limits = STATE.unpack(data)
        return cls(Versions(commands, machine), Limits(*limits), chain)


def encode_upgrade(versions: Versions) -> bytes:
    """UPGRADE: from here on, commands up to these versions take effect. Never lowers one."""
    return UPGRADE.pack(ClusterOperation.UPGRADE, *versions)


def decode_upgrade(data: bytes, offset: int) -> Versions:
    """Raises struct.error when it is too short."""
    _, commands, machine = UPGRADE.unpack_from(data, offset)
    return Versions(commands, machine)


def encode_set_limits(limits: Limits) -> bytes:
    """SET_LIMITS: from here on, these hold. What is above them already stays."""
    return SET_LIMITS.pack(ClusterOperation.SET_LIMITS, *dataclasses.astuple(limits))


def decode_set_limits(data: bytes, offset: int) -> Limits:
    """Raises struct.error when it is too short, InternalError for limits that make no sense."""
    _, *limits = SET_LIMITS.unpack_from(data, offset)
    return Limits(*limits)
