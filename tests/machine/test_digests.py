"""Digests of a replica: a function of the log alone, and another one as soon as the state or an answer differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.machine import commands
from replikv.machine.base import StateMachine
from replikv.machine.digests import INTERVAL, NO_DIGEST, NOTES_MAX, Notes, StateDigest
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.governance import Versions, encode_upgrade
from replikv.machine.replica import Replica

ONE = StateDigest(b"1" * 16, NO_DIGEST)


def envelope(kind: int, payload: bytes, session: int = 0, sequence: int = 0) -> bytes:
    return Envelope(kind, session, sequence, 0, payload).encode()


UPGRADE = envelope(CommandKind.CLUSTER, encode_upgrade(Versions(1, 1)))
REGISTER = envelope(CommandKind.REGISTER, b"node", sequence=77)


def put(number: int) -> bytes:
    return envelope(CommandKind.MAP, commands.encode_put(b"k%d" % (number % 9), b"\x01"))


class Told(StateMachine):
    """Tells what a test wants it to."""

    def __init__(self, told: Any = b"") -> None:
        self.told = told

    def apply(self, position: int, command: bytes) -> bytes:
        return b""

    def digest(self) -> bytes:
        if isinstance(self.told, BaseException):
            raise self.told
        return self.told  # type: ignore[no-any-return]  # that is the test

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Nobody asks."""


def noted(replica: Replica, log: list[bytes]) -> dict[int, StateDigest | None]:
    """Apply the log; what is noted then, by position."""
    replica.apply_many(log)
    return {position: replica.notes.get(position) for position in range(replica.position + 1)}


LOG = [UPGRADE, REGISTER, *map(put, range(3 * INTERVAL))]


def test_it_is_noted_at_every_64th_position_behind_the_first_upgrade() -> None:
    """Before that no member needs to know how; the positions are the same on every replica."""
    found = noted(Replica(), [*map(put, range(100)), *LOG])
    assert [2 * INTERVAL, 3 * INTERVAL, 4 * INTERVAL] == [position for position, digest in found.items() if digest]
    assert 3 == len({digest for digest in found.values() if digest})


@settings(max_examples=60, deadline=None)
@given(upgrade_at=st.integers(0, 150), cuts=st.lists(st.integers(1, 130), max_size=20), restore_at=st.integers(0, 300))
def test_it_does_not_depend_on_how_the_log_is_cut(upgrade_at: int, cuts: list[int], restore_at: int) -> None:
    """Entries and slices differ from peer to peer; and so does where a snapshot was taken, and restored."""
    log = [*map(put, range(250))]
    log.insert(upgrade_at, UPGRADE)
    whole, cut = Replica(), Replica()
    whole.apply_many(log)
    restored = 0
    while cut.position < len(log):
        if not restored and cut.position >= restore_at:
            chunks = list(cut.snapshot())
            cut = Replica()
            cut.restore(chunks)
            restored = cut.position
        cut.apply_many(log[cut.position : cut.position + (cuts.pop() if cuts else 64)])
    assert (whole.digest(), whole.governance.chain) == (cut.digest(), cut.governance.chain)
    for position in range(restored + 1, len(log) + 1):
        assert whole.notes.get(position) == cut.notes.get(position)
    assert [] == [position for position in range(restored + 1) if restored and cut.notes.get(position) is not None]


def test_what_was_noted_of_another_state_is_forgotten() -> None:
    """A replica that is brought to another state, by a snapshot or to begin a new log, held something else before."""
    source, restored, ahead = Replica(), Replica(), Replica()
    for replica in (source, restored, ahead):
        replica.apply_many(LOG)
        assert 3 == len(replica.notes)
    restored.restore(list(source.snapshot()))
    ahead.advance(1000)
    assert [0, 0] == [len(restored.notes), len(ahead.notes)]


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(envelope(CommandKind.MAP, commands.encode_put(b"k1", b"\x02")), id="another value"),
        pytest.param(envelope(CommandKind.MAP, commands.encode_put(b"k1", b"\x01", 1)), id="a lease that is not there"),
        pytest.param(envelope(CommandKind.MAP, commands.encode_delete(b"k1")), id="a key that is gone"),
        pytest.param(envelope(CommandKind.MAP, commands.encode_delete(b"none")), id="another answer, no change"),
        pytest.param(envelope(CommandKind.MAP, commands.encode_grant(1000)), id="a lease"),
        pytest.param(envelope(CommandKind.MAP, commands.encode_compact(5)), id="the floor"),
        pytest.param(REGISTER, id="a session"),
    ],
)
def test_whatever_differs_shows(odd: bytes) -> None:
    """At the next position that is noted, though all that follows is the same."""
    log = [UPGRADE, *map(put, range(2 * INTERVAL))]
    one, other = noted(Replica(), log), noted(Replica(), [*log[:60], odd, *log[61:]])
    assert one[INTERVAL] is not None
    assert one[INTERVAL] != other[INTERVAL]


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda replica: replica.keyspace.compact(5), id="the floor"),
        pytest.param(lambda replica: replica.sessions.table.clear(), id="the sessions"),
        pytest.param(lambda replica: setattr(replica.map.leases, "next_id", 1), id="which lease is granted next"),
        pytest.param(lambda replica: replica.map.leases.table.clear(), id="the leases"),
        pytest.param(lambda replica: setattr(replica.keyspace, "state_bytes", 0), id="how large it is"),
        pytest.param(lambda replica: setattr(replica.governance, "chain", 0), id="what was answered before"),
    ],
)
def test_what_was_lost_shows_before_anybody_asks_for_it(lose: Callable[[Replica], object]) -> None:
    """Though every command is answered alike: what a limit, an eviction or the next grant comes to is decided by it."""
    grant = envelope(CommandKind.MAP, commands.encode_grant(1000))
    log = [UPGRADE, REGISTER, grant, *map(put, range(2 * INTERVAL))]
    one, other = Replica(), Replica()
    assert one.apply_many(log[:60]) == other.apply_many(log[:60])
    lose(other)
    assert one.apply_many(log[60:]) == other.apply_many(log[60:])
    assert one.notes.get(INTERVAL) is not None
    assert one.notes.get(INTERVAL) != other.notes.get(INTERVAL)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (b"", False),
        (b"state", True),
        (LookupError("details that differ"), True),
        (bytearray(b"no bytes"), True),
        (None, True),
    ],
)
def test_what_a_machine_tells_of_itself(told: object, shown: bool) -> None:
    """It takes part unless it tells nothing; one that fails does so alike on every replica, and harms nothing."""
    digest = noted(Replica(Told(told)), LOG)[INTERVAL]
    assert digest is not None
    assert shown == (digest.machine != NO_DIGEST)
    assert digest.state == getattr(noted(Replica(Told(b"other")), LOG)[INTERVAL], "state", None)
    assert digest.machine == getattr(noted(Replica(Told(told)), LOG)[INTERVAL], "machine", None)
    assert digest.machine != getattr(noted(Replica(Told(b"other")), LOG)[INTERVAL], "machine", None)


def test_no_memory_is_no_digest() -> None:
    """It is nothing that other replicas would come to."""
    with pytest.raises(MemoryError):
        Replica(Told(MemoryError())).apply_many(LOG)


@pytest.mark.parametrize(
    ("other", "agrees"),
    [
        (ONE, True),
        (StateDigest(b"2" * 16, NO_DIGEST), False),
        (StateDigest(b"1" * 16, b"m" * 16), True),
    ],
)
def test_agreeing(other: StateDigest, agrees: bool) -> None:
    """The state counts always, the machine where both tell of it."""
    assert agrees == ONE.agrees(other) == other.agrees(ONE)


def test_machines_that_both_tell_are_compared() -> None:
    """And named in words, beside the state."""
    one, other = StateDigest(b"1" * 16, b"m" * 16), StateDigest(b"1" * 16, b"n" * 16)
    assert one.agrees(one)
    assert not one.agrees(other)
    assert ("31" * 16, f"{'31' * 16}+{'6d' * 16}") == (str(ONE), str(one))


def test_notes_are_bounded_and_forgotten_with_the_state() -> None:
    """The oldest goes first; after a restore nothing of before counts."""
    notes = Notes()
    for number in range(NOTES_MAX + 5):
        notes.add(number, ONE)
    assert (NOTES_MAX, None, ONE, NOTES_MAX + 4) == (len(notes), notes.get(4), notes.get(5), notes.newest)
    notes.clear()
    assert (0, None, 0) == (len(notes), notes.get(5), notes.newest)
