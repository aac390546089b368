"""What holds for the whole replica: versions that only rise, and limits that are set by commands alone."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import pytest

from replikv.errors import InternalError, UpgradeRequiredError
from replikv.machine import commands
from replikv.machine.base import StateMachine
from replikv.machine.envelope import CommandKind, Envelope, Status
from replikv.machine.governance import (
    STATE,
    Governance,
    Limits,
    Versions,
    decode_set_limits,
    encode_set_limits,
    encode_upgrade,
)
from replikv.machine.replica import Replica

OK = bytes([Status.OK])
UNKNOWN = bytes([Status.UNKNOWN_COMMAND])
LIMITS = Limits(state_bytes=10_000, keys=20, leases=3, sessions=2, operations=5)


class Versioned(StateMachine):
    """Keeps a record of what it was told, in order."""

    version = 3

    def __init__(self) -> None:
        self.told: list[object] = []

    def activate(self, version: int) -> None:
        self.told.append(version)

    def apply(self, position: int, command: bytes) -> bytes:
        self.told.append(command)
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"state"])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.told.append(b"".join(chunks))
        if b"unreadable" in self.told:
            raise ValueError("unreadable")


def cluster(payload: bytes) -> bytes:
    return Envelope(CommandKind.CLUSTER, 0, 0, 0, payload).encode()


def upgrade(version: int, machine: int = 0) -> bytes:
    return cluster(encode_upgrade(Versions(version, machine)))


def put(key: str) -> bytes:
    return Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_put(key.encode(), b"\x01")).encode()


def test_versions_only_rise() -> None:
    """An UPGRADE that comes late or twice, from a leader that knew less, lowers nothing."""
    machine = Versioned()
    replica = Replica(machine)
    for command in (upgrade(1, 2), upgrade(0, 3), upgrade(1, 1), upgrade(1, 2)):
        assert OK == replica.apply(command)
    assert Versions(1, 3) == replica.governance.versions
    assert [2, 3] == machine.told


def test_a_machine_is_told_between_the_commands() -> None:
    """At the place of the UPGRADE in the log, on every replica alike."""
    machine = Versioned()
    custom = Envelope(CommandKind.CUSTOM, 0, 0, 0, b"x").encode()
    Replica(machine).apply_many([custom, upgrade(1, 3), custom])
    assert [b"x", 3, b"x"] == machine.told


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (upgrade(2), "commands of version 2 of replikv, and this peer knows 1"),
        (upgrade(1, 4), "version 4 of its StateMachine, and this peer has 3"),
    ],
)
def test_what_is_not_known_is_not_applied(wanted: bytes, words: str) -> None:
    """It is as if it were not there: the state before it is whole, and can be saved."""
    replica = Replica(Versioned())
    replica.apply_many([put("a"), upgrade(1, 2)])
    before = replica.digest()
    with pytest.raises(UpgradeRequiredError, match=words):
        replica.apply(wanted)
    assert (2, Versions(1, 2), before) == (replica.position, replica.governance.versions, replica.digest())


def test_a_replica_without_a_machine_has_no_say_in_its_version() -> None:
    """It holds the map alone, and knows nothing of what the machine's commands mean."""
    replica = Replica()
    assert OK == replica.apply(upgrade(1, 9))
    assert Versions(1, 9) == replica.governance.versions


def test_what_a_later_version_brought_does_nothing_before_it() -> None:
    """Limits and leases, to a member that may not know them."""
    replica = Replica()
    grant = Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_grant(1000)).encode()
    assert UNKNOWN == replica.apply(cluster(encode_set_limits(LIMITS)))
    assert Status.FAILED == replica.apply(grant)[0]
    assert Limits() == replica.governance.limits
    replica.apply(upgrade(1))
    assert OK == replica.apply(cluster(encode_set_limits(LIMITS)))
    assert Status.OK == replica.apply(grant)[0]
    assert LIMITS == replica.governance.limits


def test_the_limit_of_operations_came_with_version_1() -> None:
    """Members that do not know it have applied what is over it, before the first UPGRADE: so does every replica."""
    replica = Replica()
    limit = replica.governance.limits.operations
    items = {b"%d" % number: b"\x01" for number in range(limit + 1)}
    update = Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_update(items)).encode()
    assert Status.OK == replica.apply(update)[0]
    replica.apply(upgrade(1))
    assert Status.OVER_LIMIT == replica.apply(update)[0]
    del items[b"0"]
    assert Status.OK == replica.apply(Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_update(items)).encode())[0]


@pytest.mark.parametrize(
    "payload", [b"", b"\x01", b"\x01\x00", b"\x02", encode_set_limits(LIMITS)[:-1], b"\x02" + bytes(40)]
)
def test_what_cannot_be_read_changes_nothing(payload: bytes) -> None:
    """A limit of 0 neither: nothing could be done any more."""
    replica = Replica()
    replica.apply(upgrade(1))
    assert Status.FAILED == replica.apply(cluster(payload))[0]
    assert (Versions(1, 0), Limits()) == (replica.governance.versions, replica.governance.limits)


@pytest.mark.parametrize("payload", [b"\x03", b"\xff" * 9])
def test_what_a_later_version_may_bring(payload: bytes) -> None:
    """It is answered as any command that is not known."""
    assert UNKNOWN == Replica().apply(cluster(payload))


def test_a_lower_limit_of_sessions_evicts_at_once() -> None:
    """Those that were used least recently; and a registration makes room as before."""
    replica = Replica()
    for nonce in range(5):
        replica.apply(Envelope(CommandKind.REGISTER, 0, nonce, 0, b"n").encode())
    replica.apply(Envelope(CommandKind.MAP, 1, 1, 0, commands.encode_put(b"a", b"\x01")).encode())
    replica.apply_many([upgrade(1), cluster(encode_set_limits(LIMITS))])
    assert [1, 5] == list(replica.sessions.table)
    replica.apply(Envelope(CommandKind.REGISTER, 0, 9, 0, b"n").encode())
    assert [1, 9] == list(replica.sessions.table)


def test_delete_prefix_keeps_to_the_limit_whatever_it_asks_for() -> None:
    """The longest step that is never sliced is what all replicas agreed on."""
    replica = Replica()
    replica.apply_many([upgrade(1), cluster(encode_set_limits(LIMITS)), *(put(f"k{number}") for number in range(12))])
    delete = Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_delete_prefix(b"k", 1000)).encode()
    results = [commands.decode_delete_prefix_result(replica.apply(delete)[1:]) for _ in range(3)]
    assert [(5, True), (5, True), (2, False)] == [(result.deleted, result.more) for result in results]


# -- in snapshots ------------------------------------------------------------------------------------------------------


def test_snapshots_have_it() -> None:
    """Versions, limits and the chain; and the machine hears of its version before it gets its state."""
    source = Replica(Versioned())
    source.apply_many([upgrade(1, 2), cluster(encode_set_limits(LIMITS)), put("a")])
    machine = Versioned()
    target = Replica(machine)
    target.restore(list(source.snapshot()))
    assert (Versions(1, 2), LIMITS) == (target.governance.versions, target.governance.limits)
    assert source.governance.chain == target.governance.chain != 0
    assert [2, b"state"] == machine.told
    assert target.governance is target.map.governance


def test_a_machine_that_cannot_restore_goes_on_with_the_version_it_had() -> None:
    """The state is what it was, and so is what it may apply."""
    source, machine = Replica(Versioned()), Versioned()
    source.apply(upgrade(1, 3))
    target = Replica(machine)
    target.apply(upgrade(1, 2))
    machine.told.append(b"unreadable")
    with pytest.raises(ValueError, match="unreadable"):
        target.restore(list(source.snapshot()))
    assert [2, b"unreadable", 3, b"state", 2] == machine.told
    assert Versions(1, 2) == target.governance.versions


@pytest.mark.parametrize(("commands_version", "machine", "words"), [(2, 0, "replikv"), (1, 4, "StateMachine")])
def test_a_snapshot_that_needs_more_is_refused(
    commands_version: int, machine: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is taken in."""
    source = Replica(Versioned())
    source.governance.versions = Versions(commands_version, machine)
    chunks = list(source.snapshot())
    target = Replica(Versioned())
    restorer = target.restorer()
    restorer.feed(chunks[0])
    with pytest.raises(UpgradeRequiredError, match=words):
        restorer.feed(chunks[1])


def test_encoding() -> None:
    """What is written is read; another format, and what is no state of this one, is not."""
    governance = Governance(Versions(1, 2), LIMITS, 0xDEADBEEF)
    data = governance.encode()
    again = Governance.decode(data)
    assert (governance.versions, governance.limits, governance.chain) == (again.versions, again.limits, again.chain)
    for wrong in (b"", data[:-1], data + b"\0", b"\x02" + data[1:]):
        with pytest.raises(InternalError):
            Governance.decode(wrong)
    with pytest.raises(InternalError, match="below 1"):
        Governance.decode(STATE.pack(1, 1, 2, 0, 0, 1, 1, 1, 1))
    with pytest.raises(struct.error):
        decode_set_limits(b"\x02", 0)
