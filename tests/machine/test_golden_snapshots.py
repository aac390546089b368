"""The contents of snapshots of every released format stay readable, and today's are written as they were.

A golden file has the chunks of a snapshot, one a line, in hexadecimal. Run as a program, this writes those that are
missing, and no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from replikv.machine import commands
from replikv.machine.base import StateMachine
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.governance import Limits, Versions, encode_set_limits, encode_upgrade
from replikv.machine.replica import Replica

GOLDEN = Path(__file__).parent / "golden"


class Lines(StateMachine):
    """Keeps its commands."""

    version = 2

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def apply(self, position: int, command: bytes) -> bytes:
        self.lines.append(command)
        return b"%d" % len(self.lines)

    def snapshot(self) -> Iterator[bytes]:
        return iter([line + b"\n" for line in self.lines])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.lines = b"".join(chunks).splitlines()


def envelope(kind: int, payload: bytes, session: int = 0, sequence: int = 0, below: int = 0) -> bytes:
    return Envelope(kind, session, sequence, below, payload).encode()


FIRST = [
    envelope(CommandKind.REGISTER, b"a", sequence=77),
    envelope(CommandKind.MAP, commands.encode_put(b"a", b"\x01"), 1, 1, 1),
    envelope(CommandKind.MAP, commands.encode_update({b"b": b"\x61b", b"c": b"\xf6"}), 1, 2, 1),
    envelope(CommandKind.MAP, commands.encode_pop(b"b"), 1, 4, 2),
    envelope(CommandKind.SEAL, (5).to_bytes(8), 1),
    envelope(CommandKind.CUSTOM, b"line", 1, 6, 2),
    envelope(CommandKind.MAP, commands.encode_compact(1)),
    envelope(CommandKind.MAP, commands.encode_put(b"a", b"\x02")),
]
"""Sessions, results, a seal, a history of puts and deletes above a floor, a machine."""
SECOND = [
    *FIRST,
    envelope(CommandKind.CLUSTER, encode_upgrade(Versions(1, 2))),
    envelope(CommandKind.CLUSTER, encode_set_limits(Limits(1 << 30, 2_000_000, 65_536, 1024, 512))),
    envelope(CommandKind.MAP, commands.encode_grant(10_000), 1, 7, 2),
    envelope(CommandKind.MAP, commands.encode_grant(2_500), 1, 8, 2),
    envelope(CommandKind.MAP, commands.encode_revoke(1), 1, 9, 2),
    envelope(CommandKind.MAP, commands.encode_put(b"leased", b"\x03", 2), 1, 10, 2),
    envelope(CommandKind.MAP, commands.encode_attach(b"a", 2), 1, 11, 2),
]
"""Versions, limits, leases and what is attached to one."""
LOGS = {"format-1": FIRST, "format-2": SECOND}


def made(log: list[bytes]) -> Replica:
    replica = Replica(Lines())
    replica.apply_many(log)
    return replica


def written(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (GOLDEN / f"snapshot-{name}.hex").read_text("ascii").splitlines()]


@pytest.mark.parametrize("name", LOGS)
def test_a_golden_snapshot_is_readable(name: str) -> None:
    """All that was in it is there, and goes on as if there had been no snapshot."""
    restored, replica = Replica(Lines()), made(LOGS[name])
    restored.restore(written(name))
    assert replica.digest() == restored.digest()
    assert replica.governance.limits == restored.governance.limits
    more = [envelope(CommandKind.MAP, commands.encode_increment(b"a", b"\x05"), 1, number, 2) for number in range(80)]
    assert replica.apply_many(more) == restored.apply_many(more)
    assert replica.digest() == restored.digest()


@pytest.mark.parametrize("name", LOGS)
def test_a_golden_snapshot_is_what_is_written(name: str) -> None:
    """Byte for byte: a change of the format is never an accident."""
    assert written(name) == list(made(LOGS[name]).snapshot())


if __name__ == "__main__":
    for name, log in LOGS.items():
        path = GOLDEN / f"snapshot-{name}.hex"
        if not path.exists():
            path.write_text("".join(f"{chunk.hex()}\n" for chunk in made(log).snapshot()), "ascii")
