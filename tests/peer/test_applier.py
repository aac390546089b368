"""Committed entries applied in slices: in order, each command once, and a state that belongs to an index."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from replikv.machine.commands import encode_increment, encode_put
from replikv.machine.envelope import CommandKind, Envelope, pack_commands
from replikv.machine.replica import Replica
from replikv.peer.applier import COMMANDS_PER_LOOK, Applier
from replikv.raft.entries import Entry, EntryKind
from replikv.raft.membership import MembershipChange

NEVER = float("inf")


class Record:
    """What an applier told, in order."""

    def __init__(self) -> None:
        self.replica = Replica()
        self.told: list[object] = []
        self.applier = Applier(self.replica, 0, 0, self.results, self.told.append)
        self.now = 0.0

    def results(self, commands: Sequence[bytes], results: Sequence[bytes]) -> None:
        assert len(commands) == len(results)
        self.told.append(len(commands))

    def clock(self) -> float:
        """Each look takes a second."""
        self.now += 1.0
        return self.now

    def apply(self, looks: float = NEVER) -> list[int]:
        """Apply until so many looks at the clock have been taken."""
        return [entry.index for entry in self.applier.apply(self.now + looks, self.clock)]


def large(number: int) -> bytes:
    """One of which the replica applies no second one at a time."""
    return Envelope(CommandKind.MAP, 0, 0, 0, encode_put(b"k%d" % number, b"\x59\xc0\x00" + bytes(0xC000))).encode()


def entry(index: int, commands: int, term: int = 1) -> Entry:
    command = Envelope(CommandKind.MAP, 0, 0, 0, encode_increment(b"n", b"\x01")).encode()
    return Entry(index, term, pack_commands([command] * commands))


@pytest.fixture
def record() -> Record:
    return Record()


def test_entries_are_applied_in_order(record: Record) -> None:
    """Empty ones and membership changes keep their place among them."""
    change = Entry(3, 1, MembershipChange().encode(), EntryKind.MEMBERSHIP)
    record.applier.add([entry(1, 2), Entry(2, 1)])
    record.applier.add([change, entry(4, 1, term=2)])
    assert record.applier.behind
    assert [1, 2, 3, 4] == record.apply()
    assert [2, change, 1] == record.told
    assert (4, 2) == (record.applier.index, record.applier.term)
    assert 3 == record.replica.position
    assert not record.applier.behind
    assert [] == record.apply()


def test_a_slice_ends_between_commands_and_goes_on_there(record: Record) -> None:
    """A long entry takes several slices; it counts as applied with its last command, and only then."""
    count = 6 * COMMANDS_PER_LOOK + 1
    record.applier.add([entry(1, count), entry(2, 1)])
    taken: list[list[int]] = []
    while record.applier.behind:
        before = record.replica.position
        taken.append(record.apply(looks=2))
        assert 1 <= record.replica.position - before <= 2 * COMMANDS_PER_LOOK
        assert record.applier.index == sum(map(len, taken))
        assert record.applier.at_boundary == (record.replica.position in {count, count + 1})
    assert [1, 2] == [index for indexes in taken for index in indexes]
    assert [] == taken[0]
    assert count + 1 == record.replica.position


def test_a_slice_has_at_least_one_step(record: Record) -> None:
    """Also when the time is up before it begins: applying never comes to a stop."""
    record.applier.add([entry(1, 1)])
    assert [1] == record.apply(looks=0)


def test_a_snapshot_takes_the_place_of_what_is_pending(record: Record) -> None:
    """Also of an entry that is applied in part: its rest is in the snapshot."""
    record.applier.add([entry(1, 2 * COMMANDS_PER_LOOK), entry(2, 1)])
    assert [] == record.apply(looks=1)
    assert not record.applier.at_boundary
    record.applier.installed(7, 3)
    assert (7, 3) == (record.applier.index, record.applier.term)
    assert record.applier.at_boundary
    assert not record.applier.behind
    record.applier.add([entry(8, 1, term=3)])
    assert [8] == record.apply()


def test_what_the_replica_leaves_for_later_is_applied_next(record: Record) -> None:
    """It stops where much was done, within what it was given: the entry is applied to its end all the same."""
    record.applier.add([Entry(1, 1, pack_commands([large(number) for number in range(3)]))])
    assert [1] == record.apply()
    assert [1, 1, 1] == record.told
    assert 3 == len(record.replica.map.keyspace)
