"""The table of leases, and the keys attached to them: what the commands do, and that no record names what is gone."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from replikv.errors import InternalError
from replikv.machine import commands
from replikv.machine.envelope import CommandKind, Envelope, Status
from replikv.machine.governance import Limits, Versions, encode_set_limits, encode_upgrade
from replikv.machine.leases import Leases, LeasesRestorer
from replikv.machine.record import lease_of
from replikv.machine.replica import Replica
from replikv.machine.values import encode_value

VALUE = encode_value(1, 64)


def upgraded(limits: Limits | None = None) -> Replica:
    """A replica that knows leases."""
    replica = Replica()
    replica.apply(Envelope(CommandKind.CLUSTER, 0, 0, 0, encode_upgrade(Versions(1, 0))).encode())
    if limits is not None:
        replica.apply(Envelope(CommandKind.CLUSTER, 0, 0, 0, encode_set_limits(limits)).encode())
    return replica


def run(replica: Replica, payload: bytes) -> bytes:
    """The result of a map command, with its status."""
    return replica.apply(Envelope(CommandKind.MAP, 0, 0, 0, payload).encode())


def ok(replica: Replica, payload: bytes) -> bytes:
    result = run(replica, payload)
    assert Status.OK == result[0], result
    return result[1:]


def grant(replica: Replica, ttl_ms: int = 10_000) -> int:
    return commands.decode_grant_result(ok(replica, commands.encode_grant(ttl_ms)))


def put(replica: Replica, key: bytes, lease: int) -> bytes:
    return run(replica, commands.encode_put(key, VALUE, lease))


def revoke(replica: Replica, lease: int) -> commands.DeletePrefixResult:
    return commands.decode_delete_prefix_result(ok(replica, commands.encode_revoke(lease)))


def keys(replica: Replica) -> list[str]:
    return [key for key, _ in replica.keyspace.scan()]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_ids_are_never_granted_twice() -> None:
    """They count up, also behind a lease that has ended, and across a snapshot; granting takes no revision."""
    replica = upgraded()
    assert [1, 2] == [grant(replica), grant(replica)]
    revoke(replica, 2)
    other = Replica()
    other.restore(replica.snapshot())
    assert [3, 3] == [grant(replica), grant(other)]
    assert 0 == replica.keyspace.revision


def test_ids_that_a_lost_log_may_have_granted_are_left_out() -> None:
    """A replica that begins a new log skips ids as it skips revisions: whoever holds one of them may still live."""
    replica = upgraded()
    grant(replica)
    replica.advance(1000)
    assert 1002 == grant(replica)


def test_a_lease_takes_its_keys_along() -> None:
    """At one revision, as deletions that name it; keys of other leases, and keys that were detached, stay."""
    replica = upgraded()
    first, second = grant(replica), grant(replica)
    for key, lease in ((b"a", first), (b"b", second), (b"c", first), (b"d", first), (b"e", first)):
        assert Status.OK == put(replica, key, lease)[0]
    put(replica, b"d", 0)
    put(replica, b"e", second)
    revision = replica.keyspace.revision
    assert (revision + 1, 2, False) == revoke(replica, first)
    assert ["b", "d", "e"] == keys(replica)
    ((_, changes),) = replica.keyspace.changes_since(revision)
    assert [("a", first), ("c", first)] == [(key, lease_of(record)) for key, record, _ in changes]


def test_revoking_an_empty_lease_takes_no_revision() -> None:
    """Nothing of the map has changed."""
    replica = upgraded()
    lease = grant(replica)
    assert (0, 0, False) == revoke(replica, lease)
    assert {} == replica.map.leases.table


def test_a_lease_that_is_not_there_is_answered_as_such() -> None:
    """By every command that names one, which changes nothing then: NO_LEASE, with the reason in words."""
    replica = upgraded()
    gone = grant(replica)
    revoke(replica, gone)
    put(replica, b"there", 0)
    revision = replica.keyspace.revision
    for payload in (
        commands.encode_put(b"key", VALUE, gone),
        commands.encode_put(b"key", VALUE, 99),
        commands.encode_update({b"key": VALUE}, gone),
        commands.encode_setdefault(b"key", VALUE, gone),
        commands.encode_compare_and_set(b"key", None, VALUE, gone),
        commands.encode_replace(b"key", VALUE, 0, gone),
        commands.encode_attach(b"there", gone),
        commands.encode_revoke(gone),
    ):
        result = run(replica, payload)
        assert Status.NO_LEASE == result[0], payload
        assert b"it has expired, was revoked, or was never granted" in result
    assert (revision, ["there"]) == (replica.keyspace.revision, keys(replica))


def test_a_compare_that_fails_does_not_look_at_the_lease() -> None:
    """The answer is that it did not hold, as without a lease: nothing would have been put."""
    replica = upgraded()
    put(replica, b"key", 0)
    for payload in (
        commands.encode_compare_and_set(b"key", None, VALUE, 99),
        commands.encode_replace(b"key", VALUE, 77, 99),
    ):
        assert not commands.decode_outcome_result(ok(replica, payload)).done


def test_what_is_compared_and_deleted_has_not_expired() -> None:
    """The lease of a compare-and-set is for the value: where that is none, the key is deleted as by any command."""
    replica = upgraded()
    lease = grant(replica)
    put(replica, b"key", lease)
    assert commands.decode_outcome_result(ok(replica, commands.encode_compare_and_set(b"key", VALUE, None, lease))).done
    ((_, ((_, tombstone, _),)),) = replica.keyspace.changes_since(1)
    assert 0 == lease_of(tombstone)


def test_attach_and_detach() -> None:
    """The value stays, the version counts; to where it is attached already is no change; no key, nothing to attach."""
    replica = upgraded()
    lease = grant(replica)
    put(replica, b"key", 0)
    assert (2, True) == commands.decode_outcome_result(ok(replica, commands.encode_attach(b"key", lease)))
    assert (2, True) == commands.decode_outcome_result(ok(replica, commands.encode_attach(b"key", lease)))
    assert (2, False) == commands.decode_outcome_result(ok(replica, commands.encode_attach(b"other", lease)))
    assert ["key"] == replica.keyspace.attachments.keys(lease)
    assert (3, True) == commands.decode_outcome_result(ok(replica, commands.encode_attach(b"key", 0)))
    assert (3, 0, False) == revoke(replica, lease)
    assert ["key"] == keys(replica)


def test_a_large_lease_ends_in_several_commands() -> None:
    """In key order. From the first on nothing can be attached to it, but what has it may be changed or saved."""
    replica = upgraded(Limits(operations=3))
    lease = grant(replica)
    for number in range(8):
        put(replica, b"%d" % number, lease)
    assert (9, 3, True) == revoke(replica, lease)
    assert ({lease}, {lease: 0}) == (replica.map.leases.ending, replica.map.leases.table)
    assert Status.NO_LEASE == put(replica, b"new", lease)[0]
    assert Status.NO_LEASE == run(replica, commands.encode_attach(b"7", lease))[0]
    ok(replica, commands.encode_attach(b"3", 0))
    assert (11, 3, True) == revoke(replica, lease)
    assert (12, 1, False) == revoke(replica, lease)
    assert ["3"] == keys(replica)
    assert (set(), {}) == (replica.map.leases.ending, replica.map.leases.table)


def test_leases_have_a_limit() -> None:
    """One more is OVER_LIMIT; when one has ended there is room again."""
    replica = upgraded(Limits(leases=2))
    grant(replica)
    grant(replica)
    assert Status.OVER_LIMIT == run(replica, commands.encode_grant(1000))[0]
    revoke(replica, 1)
    assert 3 == grant(replica)


@pytest.mark.parametrize(
    "payload",
    [
        commands.encode_grant(0),
        commands.encode_grant(1)[:-1],
        commands.encode_grant(1) + b"?",
        commands.encode_revoke(1)[:-1],
        commands.encode_revoke(1) + b"?",
        commands.encode_attach(b"key", 1)[:-1],
        commands.encode_attach(b"key", 1) + b"?",
    ],
)
def test_what_is_no_command_fails(payload: bytes) -> None:
    """Whatever the bytes, there is a result, and nothing has changed."""
    replica = upgraded()
    grant(replica)
    put(replica, b"key", 1)
    assert Status.FAILED == run(replica, payload)[0]
    assert {1: 10_000} == replica.map.leases.table
    assert ["key"] == replica.keyspace.attachments.keys(1)


def test_before_the_upgrade_there_are_no_leases() -> None:
    """Their commands are refused, so a replica that does not know them has the same state."""
    replica = Replica()
    for payload in (commands.encode_grant(1000), commands.encode_revoke(1), commands.encode_attach(b"key", 0)):
        result = run(replica, payload)
        assert Status.FAILED == result[0]
        assert b"upgrade this cluster" in result


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_of_its_moment() -> None:
    """What is granted or ended later is not in it; 10,000 leases come in several chunks."""
    leases = Leases()
    for _ in range(10_000):
        leases.grant(7)
    leases.begin_end(5)
    chunks = leases.snapshot()
    expected = dict(leases.table)
    leases.grant(7)
    leases.end(5)
    restorer = LeasesRestorer()
    count = 0
    for chunk in chunks:
        restorer.feed(chunk)
        count += 1
    restored = restorer.finish()
    assert (expected, {5}, 10_001) == (restored.table, restored.ending, restored.next_id)
    assert list(expected) == list(restored.table)
    assert count > 10


@pytest.mark.parametrize(
    "chunks",
    [
        [b""],
        [b"\x02" + bytes(8)],
        [b"\x01" + (9).to_bytes(8), b"123"],
        [b"\x01" + (2).to_bytes(8), (2).to_bytes(8) + bytes(4)],
    ],
    ids=["empty", "of another format", "cut off", "a lease that was not granted yet"],
)
def test_what_is_no_table_is_told(chunks: list[bytes]) -> None:
    """InternalError, and no table."""
    restorer = LeasesRestorer()
    with pytest.raises(InternalError):  # noqa: PT012  # whichever step sees it
        for chunk in chunks:
            restorer.feed(chunk)
        restorer.finish()


# -- against a model ---------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
LEASES = st.integers(0, 6)
OPERATIONS = 2


class LeasesMachine(RuleBasedStateMachine):
    """Puts, attachments and ends, in any order, beside a dict of keys and a dict of leases."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = upgraded(Limits(operations=OPERATIONS))
        self.attached: dict[str, int] = {}
        """key -> lease; 0 is none"""
        self.alive: set[int] = set()
        self.ending: set[int] = set()
        self.granted = 0

    @rule()
    def grant(self) -> None:
        self.granted += 1
        self.alive.add(self.granted)
        assert self.granted == grant(self.replica, 1000 * self.granted)

    @rule(key=KEYS, lease=LEASES)
    def put(self, key: bytes, lease: int) -> None:
        done = not lease or lease in self.alive
        assert (Status.OK if done else Status.NO_LEASE) == put(self.replica, key, lease)[0]
        if done:
            self.attached[key.decode()] = lease

    @rule(first=KEYS, second=KEYS, lease=LEASES)
    def update(self, first: bytes, second: bytes, lease: int) -> None:
        done = not lease or lease in self.alive
        result = run(self.replica, commands.encode_update({first: VALUE, second: VALUE}, lease))
        assert (Status.OK if done else Status.NO_LEASE) == result[0]
        if done:
            self.attached |= {first.decode(): lease, second.decode(): lease}

    @rule(key=KEYS, lease=LEASES)
    def attach(self, key: bytes, lease: int) -> None:
        result = run(self.replica, commands.encode_attach(key, lease))
        if lease and lease not in self.alive:
            assert Status.NO_LEASE == result[0]
            return
        assert (key.decode() in self.attached) == commands.decode_outcome_result(result[1:]).done
        if key.decode() in self.attached:
            self.attached[key.decode()] = lease

    @rule(key=KEYS)
    def increment(self, key: bytes) -> None:
        """The key keeps its lease, ending or not."""
        ok(self.replica, commands.encode_increment(key, VALUE))
        self.attached.setdefault(key.decode(), 0)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        ok(self.replica, commands.encode_delete(key))
        self.attached.pop(key.decode(), None)

    @rule(lease=LEASES)
    def revoke(self, lease: int) -> None:
        result = run(self.replica, commands.encode_revoke(lease))
        if lease not in self.alive | self.ending:
            assert Status.NO_LEASE == result[0]
            return
        doomed = sorted(key for key, other in self.attached.items() if other == lease)
        _, deleted, more = commands.decode_delete_prefix_result(result[1:])
        assert (min(len(doomed), OPERATIONS), len(doomed) > OPERATIONS) == (deleted, more)
        for key in doomed[:OPERATIONS]:
            del self.attached[key]
        self.alive.discard(lease)
        self.ending.discard(lease)
        if more:
            self.ending.add(lease)

    @rule()
    def restore(self) -> None:
        restored = Replica()
        restored.restore(self.replica.snapshot())
        assert self.replica.digest() == restored.digest()
        self.replica = restored

    @invariant()
    def agrees(self) -> None:
        keyspace, leases = self.replica.keyspace, self.replica.map.leases
        assert self.attached == {key: lease_of(record) for key, record in keyspace.scan()}
        assert (self.alive, self.ending) == ({lease for lease in leases.table if leases.alive(lease)}, leases.ending)
        assert sorted(leases.table) == list(leases.table)

    @invariant()
    def every_lease_of_a_record_is_in_the_table(self) -> None:
        keyspace, leases = self.replica.keyspace, self.replica.map.leases
        assert keyspace.attachments.leases() <= leases.table.keys()
        for lease in leases.table:
            expected = sorted(key for key, other in self.attached.items() if other == lease)
            assert (expected, len(expected)) == (keyspace.attachments.keys(lease), keyspace.attachments.count(lease))


LeasesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeases = LeasesMachine.TestCase
