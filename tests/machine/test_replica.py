"""The replica: equal logs make equal replicas, byte for byte, and nothing in a log can make one raise."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import ConfigurationError, InternalError
from replikv.machine import commands
from replikv.machine.base import StateMachine
from replikv.machine.choices import Choice, Comparison, Delete, Get, Put, Relation, Target, encode_transact
from replikv.machine.envelope import CommandKind, Envelope, Status
from replikv.machine.governance import Limits, Versions, encode_set_limits, encode_upgrade
from replikv.machine.ranges import KeyRange
from replikv.machine.replica import Replica
from replikv.machine.values import encode_value


class Tally(StateMachine):
    """Counts what it was given; fails on demand."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []

    def apply(self, position: int, command: bytes) -> bytes:
        if command == b"raise":
            raise LookupError("details that differ from replica to replica")
        if command == b"memory":
            raise MemoryError
        self.seen.append((position, command))
        return bytearray(b"?") if command == b"wrong" else b"%d" % len(self.seen)  # type: ignore[return-value]

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d=%s" % (position, command) for position, command in self.seen])

    def restore(self, chunks: Iterable[bytes]) -> None:
        seen = []
        for chunk in chunks:
            position, command = chunk.split(b"=", 1)
            if command == b"unreadable":
                raise ValueError("unreadable")
            seen.append((int(position), command))
        self.seen = seen


def cbor(value: object) -> bytes:
    return encode_value(value, 1 << 20)


def envelope(kind: int, payload: bytes, session: int = 0, sequence: int = 0, below: int = 0) -> bytes:
    return Envelope(kind, session, sequence, below, payload).encode()


def put(key: str, value: object, session: int = 0, sequence: int = 0, below: int = 0) -> bytes:
    return envelope(CommandKind.MAP, commands.encode_put(key.encode(), cbor(value)), session, sequence, below)


def custom(payload: bytes, session: int = 0, sequence: int = 0) -> bytes:
    return envelope(CommandKind.CUSTOM, payload, session, sequence)


def seal(target: int, session: int) -> bytes:
    return envelope(CommandKind.SEAL, target.to_bytes(8, "big"), session)


REGISTER = envelope(CommandKind.REGISTER, b"node", sequence=77)
UPGRADE = envelope(CommandKind.CLUSTER, encode_upgrade(Versions(1, 0)))

some_name = st.sampled_from(["a", "a/b", "a/c", "b"])
some_keys = some_name | st.builds(KeyRange, st.just(""), st.none() | some_name, st.sampled_from(["", "a", "a/"]))
some_lease = st.integers(0, 3)
some_key = st.sampled_from([b"a", b"a/b", b"a/c", b"b"])
some_value = st.sampled_from([cbor(value) for value in (0, 1, 1.0, "x", None, [1])])
some_payload = st.one_of(
    st.builds(commands.encode_put, some_key, some_value, st.integers(0, 3)),
    st.builds(commands.encode_delete, some_key),
    st.builds(commands.encode_update, st.dictionaries(some_key, some_value, max_size=3)),
    st.builds(commands.encode_delete_prefix, st.sampled_from([b"", b"a", b"a/"]), st.integers(0, 3)),
    st.builds(commands.encode_pop, some_key),
    st.builds(commands.encode_setdefault, some_key, some_value),
    st.builds(commands.encode_increment, some_key, some_value),
    st.builds(commands.encode_compare_and_set, some_key, st.none() | some_value, st.none() | some_value),
    st.builds(commands.encode_replace, some_key, some_value, st.integers(0, 12)),
    st.builds(commands.encode_compact, st.integers(0, 40)),
    st.builds(commands.encode_grant, st.integers(1, 9)),
    st.builds(commands.encode_revoke, some_lease),
    st.builds(commands.encode_attach, some_key, some_lease),
    st.builds(
        lambda keys, revision, steps, others: encode_transact(
            Choice([Comparison(Target.UNCHANGED, keys, Relation.EQUAL, revision)], steps, others)
        ),
        some_keys,
        st.integers(0, 20),
        st.lists(
            st.builds(Put, some_name, some_value, some_lease) | st.builds(Get, some_keys, st.integers(0, 4)), max_size=3
        ),
        st.lists(st.builds(Delete, some_keys), max_size=2),
    ),
)
some_command = st.one_of(
    st.builds(
        envelope,
        st.just(int(CommandKind.MAP)),
        some_payload,
        st.just(0) | st.integers(0, 6),
        st.integers(0, 8),
        st.integers(0, 8),
    ),
    st.just(REGISTER),
    st.builds(
        lambda limits: envelope(CommandKind.CLUSTER, encode_set_limits(limits)),
        st.builds(Limits, keys=st.integers(2, 9), leases=st.integers(1, 3), operations=st.integers(1, 9)),
    ),
    st.builds(seal, st.integers(0, 8), st.integers(1, 6)),
    st.builds(custom, st.sampled_from([b"x", b"raise", b"wrong"]), st.integers(0, 6), st.integers(0, 8)),
    st.binary(max_size=60),
)


def some_log(size_max: int) -> st.SearchStrategy[list[bytes]]:
    """Of a cluster that knows leases and transactions, or does not, or comes to know them on the way."""
    return st.builds(
        lambda first, early, late: [*first, *early, UPGRADE, *late] if early else [*first, *late],
        st.sampled_from([[REGISTER, UPGRADE], [REGISTER]]),
        st.just([]) | st.lists(some_command, max_size=size_max // 2),
        st.lists(some_command, max_size=size_max),
    )


def chunks_of(replica: Replica) -> list[bytes]:
    return list(replica.snapshot())


@settings(max_examples=100, deadline=None)
@given(log=some_log(60), data=st.data())
def test_equal_logs_make_equal_replicas(log: list[bytes], data: st.DataObject) -> None:
    """Byte for byte: applied directly; restored on the way; under pins; with what can be trimmed trimmed at once."""
    plain, restored, pinned, trimmed = (Replica(Tally()) for _ in range(4))
    restore_at = data.draw(st.integers(0, len(log)))
    pins, scans = [], []
    for index, command in enumerate(log):
        if index == restore_at:
            chunks = chunks_of(restored)
            restored = Replica(Tally())
            restored.restore(chunks)
            assert chunks == chunks_of(restored)
        pins.append(pinned.keyspace.pin())
        scans.append(pinned.keyspace.scan())
        while trimmed.keyspace.trim(100):
            pass
        results = {replica.apply(command) for replica in (plain, restored, pinned, trimmed)}
        assert 1 == len(results)
        assert 1 == len({replica.keyspace.digest_sum for replica in (plain, restored, pinned, trimmed)})
    assert plain.position == len(log)
    expected = chunks_of(plain)
    for replica in (restored, pinned, trimmed):
        assert expected == chunks_of(replica)
        assert plain.digest() == replica.digest()


@settings(max_examples=60, deadline=None)
@given(log=some_log(40), data=st.data())
def test_a_snapshot_is_of_its_call(log: list[bytes], data: st.DataObject) -> None:
    """Position, sessions, map and custom machine are those of the call, whatever is applied before a chunk is read."""
    replica = Replica(Tally())
    when = data.draw(st.integers(0, len(log)))
    replica.apply_many(log[:when])
    expected, snapshot = chunks_of(replica), replica.snapshot()
    found = []
    for command in log[when:]:
        replica.apply(command)
        found += [chunk for chunk in [next(snapshot, None)] if chunk is not None]

    assert expected == found + list(snapshot)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"\x01\x01\0\0" + b"\0" * 24 + tail))
def test_garbage_has_a_result(command: bytes) -> None:
    """Any bytes grow the position and are answered with a status; reading the replica goes on."""
    replica = Replica()
    result = replica.apply(command)

    assert result[0] in {status.value for status in Status}
    assert 1 == replica.position
    assert replica.keyspace.revision == len(list(replica.keyspace.changes_since(0)))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"", b"\x01the command is shorter than its header"),
        (b"\x09" + REGISTER[1:], b"\x01the command is of another version of replikv: upgrade this cluster"),
        (envelope(200, b""), bytes([Status.UNKNOWN_COMMAND])),
        (envelope(200, b"", session=5), bytes([Status.UNKNOWN_SESSION])),
        (custom(b"x"), bytes([Status.UNKNOWN_COMMAND])),
        (seal(0, 5), bytes([Status.UNKNOWN_SESSION])),
        (put("a", 1, session=5), bytes([Status.UNKNOWN_SESSION])),
        (envelope(CommandKind.REGISTER, b"a", session=5), b"\x01a registration belongs to no session"),
        (envelope(CommandKind.REGISTER, b"a" * 1025), b"\x01a registration belongs to no session"),
        (envelope(CommandKind.SEAL, b"short", session=5), b"\x01a seal names one sequence of eight bytes"),
    ],
)
def test_what_is_not_executed(command: bytes, expected: bytes) -> None:
    """Malformed envelopes, unknown kinds and unknown sessions change nothing but the position."""
    replica = Replica()

    assert replica.apply(command).startswith(expected)
    assert (1, 0, {}) == (replica.position, replica.keyspace.revision, replica.sessions.table)


def test_exactly_once_through_the_log() -> None:
    """Registration answers with the position; a repeated put has one revision and one answer."""
    replica = Replica()
    replica.apply(put("before", 0))
    answer = replica.apply(REGISTER)
    session = int.from_bytes(answer[1:], "big")
    first, again = replica.apply_many([put("a", 1, session, 4), put("a", 1, session, 4)])

    assert (Status.OK, 2) == (answer[0], session)
    assert b"\0" + (2).to_bytes(8, "big") == first == again
    assert (4, 2) == (replica.position, replica.keyspace.revision)
    assert session == replica.sessions.find(77, "node")


def test_a_failure_is_recorded_too() -> None:
    """What failed once is answered alike, though it would succeed by now."""
    replica = Replica()
    session = int.from_bytes(replica.apply(REGISTER)[1:], "big")
    replica.apply(put("a", "text"))
    increment = envelope(CommandKind.MAP, commands.encode_increment(b"a", cbor(1)), session, 1)
    failure = replica.apply(increment)
    replica.apply(put("a", 1))

    assert Status.FAILED == failure[0]
    assert failure == replica.apply(increment)


def test_a_custom_machine_beside_the_map() -> None:
    """It sees positions of the log; what it raises is told by type alone; what it returns must be bytes."""
    machine = Tally()
    replica = Replica(machine)
    results = replica.apply_many([custom(b"x"), put("a", 1), custom(b"raise"), custom(b"wrong"), custom(b"y")])

    assert b"\x001" == results[0]
    assert b"\x01the state machine raised LookupError" == results[2]
    assert b"\x01the state machine returned bytearray, not bytes" == results[3]
    assert [(1, b"x"), (4, b"wrong"), (5, b"y")] == machine.seen
    with pytest.raises(MemoryError):
        replica.apply(custom(b"memory"))


class Blob(Tally):
    """Hands its state out in pieces of its own choice, and takes it in any."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__()
        self.pieces = pieces

    def snapshot(self) -> Iterator[bytes]:
        return iter(self.pieces)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.pieces = tuple(chunks)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([], []),
        ([0, 5, 0], [5]),
        ([65536], [65536]),
        ([65537], [65536, 1]),
        ([5, 200_000, 7], [5, 65536, 65536, 65536, 3392, 7]),
    ],
)
def test_what_a_custom_machine_hands_out_is_cut_to_size(given: list[int], taken: list[int]) -> None:
    """It comes back as the same bytes in the same order, in pieces that fit a disk's block and a frame."""
    pieces = [bytes([number]) * size for number, size in enumerate(given, 1)]
    target = Blob(b"old")
    Replica(target).restore(Replica(Blob(*pieces)).snapshot())

    assert taken == [len(piece) for piece in target.pieces]
    assert b"".join(pieces) == b"".join(target.pieces)


def test_a_restore_is_all_or_nothing() -> None:
    """When the custom machine cannot read its chunks, the map and the position are as before, too."""
    source = Replica(Tally())
    source.apply_many([put("a", 1), custom(b"unreadable")])
    target = Replica(Tally())
    target.apply(put("old", 1))
    before = target.digest()
    with pytest.raises(ValueError, match="unreadable"):
        target.restore(source.snapshot())

    assert before == target.digest()


def test_a_snapshot_needs_the_machine_that_made_it() -> None:
    """State of a custom machine cannot be taken by a replica without one; the other way round its machine stays."""
    with pytest.raises(ConfigurationError, match="machine="):
        Replica().restore(Replica(Tally()).snapshot())
    source, target = Replica(), Replica(Tally())
    source.apply(put("a", 1))
    target.restore(source.snapshot())

    assert 1 == target.position


@pytest.mark.parametrize("damage", ["empty", "short", "middle", "order", "repeated", "after", "foreign", "version"])
def test_a_damaged_snapshot_changes_nothing(damage: str) -> None:
    """Missing, repeated or foreign chunks are an InternalError, and the replica is as before."""
    source = Replica(Tally())
    source.apply_many([REGISTER, *(put(f"k{index}", index, 1, index) for index in range(400)), custom(b"x")])
    chunks = chunks_of(source)
    damaged = {
        "empty": [],
        "short": chunks[:-1],
        "middle": chunks[:3] + chunks[4:],
        "order": [chunks[1], chunks[0], *chunks[2:]],
        "repeated": [*chunks[:2], *chunks[1:]],
        "after": [*chunks, chunks[-1]],
        "foreign": [chunks[0], b"\x63" * 30],
        "version": [chunks[0][:1] + b"\xff" + chunks[0][2:], *chunks[1:]],
    }[damage]
    target = Replica(Tally())
    before = target.digest()
    with pytest.raises(InternalError):
        target.restore(damaged)

    assert before == target.digest()


def test_a_snapshot_breathes_where_it_finds_nothing() -> None:
    """Ten thousand keys came after the state that it is of: it says nothing of them, but not for long at a time."""
    replica = Replica()
    for number in range(300):
        replica.apply(put(f"a{number:05}", number))
    expected = list(replica.snapshot())
    breathing, plain = replica.snapshot(breaths=True), replica.snapshot()
    for number in range(10_000):
        replica.apply(put(f"b{number:05}", number))
    chunks = list(breathing)

    assert expected == list(plain)
    assert expected == [chunk for chunk in chunks if chunk]
    assert chunks.count(b"") > 10_000 // 300


def test_much_is_applied_in_parts() -> None:
    """What changes many keys, is large, or replaces what is, ends a part; small commands go on together."""
    small = [put("a", number) for number in range(60)]
    updates = [
        envelope(CommandKind.MAP, commands.encode_update({b"%d/%d" % (number, key): cbor(key) for key in range(300)}))
        for number in range(3)
    ]
    deletes = [envelope(CommandKind.MAP, commands.encode_delete_prefix(b"%d/" % number, 1024)) for number in range(3)]
    large = [put("a", "." * 100_000)] * 2
    log = [*small, *updates, *small, *deletes, *large, put("a", 1), put("a", 2)]
    some, many = Replica(), Replica()
    parts = []
    results: list[bytes] = []
    while len(results) < len(log):
        parts.append(some.apply_some(log[len(results) :]))
        results += parts[-1]

    assert many.apply_many(log) == results
    assert many.digest() == some.digest()
    assert [61, 1, 1, 61, 1, 1, 1, 1, 1, 1] == [len(part) for part in parts]
    assert [] == some.apply_some([])


def test_what_was_replaced_is_freed_bit_by_bit() -> None:
    """The old map of a replica, and what was built of a snapshot that came to nothing; not under who still reads it."""
    replica = Replica()
    for number in range(500):
        replica.apply(put(f"k{number:03}", number))
    chunks = list(replica.snapshot())
    old = replica.keyspace
    scan = old.scan()
    next(scan)
    replica.restore(chunks)
    abandoned = replica.restorer()
    for chunk in chunks[:-2]:
        abandoned.feed(chunk)
    abandoned.abandon()
    with pytest.raises(InternalError):
        abandoned.finish()

    left = []
    for _ in range(1000):
        replica.trim(100)
        left.append(len(replica._replaced))
    assert (1, 499) == (left[-1], len(list(scan)))
    assert 10 < left.count(2)
    for _ in range(1000):
        replica.trim(100)
    assert ([], 0, 500) == (replica._replaced, len(old), len(replica.keyspace))


def test_chunks_are_bounded() -> None:
    """Neither many small records nor large ones make a chunk much larger than 64 KiB, but for a single record."""
    replica = Replica()
    for index in range(500):
        replica.apply(put(f"k{index:04}", "x" * (1 + 20 * index)))
    chunks = chunks_of(replica)

    assert max(map(len, chunks)) < 2 * 64 * 1024
    assert len(chunks) > 30


def test_numbers_that_are_left_out() -> None:
    """Positions and revisions go on ahead; sessions answer as before; snapshots have it."""
    source = Replica(Tally())
    source.apply_many([REGISTER, put("a", 1, 1, 0)])
    source.advance(1000)
    target = Replica(Tally())
    target.restore(source.snapshot())
    assert source.digest() == target.digest()
    for replica in (source, target):
        assert (1002, 1001) == (replica.position, replica.keyspace.revision)
        assert bytes([Status.OK]) + (1).to_bytes(8) == replica.apply(put("a", 2, 1, 0))
        assert bytes([Status.OK]) + (1002).to_bytes(8) == replica.apply(put("a", 2, 1, 1))
        assert bytes([Status.OK]) + (1005).to_bytes(8) == replica.apply(REGISTER)
