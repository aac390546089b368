"""Map commands: what each does, answers and refuses."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import EncodingError, InternalError, ValueTooLargeError
from replikv.machine import commands
from replikv.machine.envelope import Status
from replikv.machine.keyvalue import KeyValue
from replikv.machine.record import unpack_record, value_of
from replikv.machine.values import decode_value, encode_value


def cbor(value: object) -> bytes:
    return encode_value(value, 1 << 20)


class Map:
    """A KeyValue with plain values going in and coming out."""

    def __init__(self, contents: Mapping[str, object] | None = None) -> None:
        self.machine = KeyValue()
        for _ in range(9):
            self.machine.leases.grant(ttl_ms=10_000)
        for key, value in (contents or {}).items():
            self.run(commands.encode_put(key.encode(), cbor(value)))

    def run(self, command: bytes) -> bytes:
        return self.machine.apply(0, command)

    def refusal(self, command: bytes) -> str:
        before = list(self.machine.snapshot())
        result = self.machine.execute(command, 0)
        assert Status.FAILED == result[0]
        assert before == list(self.machine.snapshot())
        return result[1:].decode()

    @property
    def contents(self) -> dict[str, Any]:
        return {key: decode_value(value_of(record)) for key, record in self.machine.keyspace.scan()}

    def held(self, key: str) -> tuple[bytes | None, int, int, int, int] | None:
        record = self.machine.keyspace.get(key)
        return None if record is None else unpack_record(record)

    @property
    def revision(self) -> int:
        return self.machine.keyspace.revision


def test_put() -> None:
    """Each takes a revision; the record counts versions and remembers the first and the last revision."""
    kv = Map()

    assert [1, 2, 3] == [
        commands.decode_put_result(kv.run(commands.encode_put(key, cbor(value), lease)))
        for key, value, lease in ((b"a", 1, 0), (b"b", 2, 0), (b"a", 3, 9))
    ]
    assert (cbor(3), 1, 3, 2, 9) == kv.held("a")


def test_delete() -> None:
    """Deleting nothing takes no revision; a key that comes back begins anew."""
    kv = Map({"a": 1})

    assert (1, False) == commands.decode_outcome_result(kv.run(commands.encode_delete(b"b")))
    assert (2, True) == commands.decode_outcome_result(kv.run(commands.encode_delete(b"a")))
    assert (2, False) == commands.decode_outcome_result(kv.run(commands.encode_delete(b"a")))
    kv.run(commands.encode_put(b"a", cbor(2)))
    assert (cbor(2), 3, 3, 1, 0) == kv.held("a")


def test_update() -> None:
    """All keys at one revision; an empty update takes none."""
    kv = Map({"a": 1})

    assert 1 == commands.decode_put_result(kv.run(commands.encode_update({})))
    assert 2 == commands.decode_put_result(kv.run(commands.encode_update({b"a": cbor(2), b"b": cbor(3)}, lease=4)))
    assert {"a": cbor(2), "b": cbor(3)} == {key: value_of(record) for key, record in kv.machine.keyspace.scan()}
    assert [(cbor(2), 1, 2, 2, 4), (cbor(3), 2, 2, 1, 4)] == [kv.held("a"), kv.held("b")]


def test_delete_prefix() -> None:
    """In key order up to the limit, at one revision; the answer tells how many, and whether more are left."""
    kv = Map({"a": 0, "b/1": 1, "b/2": 2, "b/3": 3, "c": 4})
    steps = [commands.decode_delete_prefix_result(kv.run(commands.encode_delete_prefix(b"b/", 2))) for _ in range(3)]

    assert [(6, 2, True), (7, 1, False), (7, 0, False)] == steps
    assert {"a": 0, "c": 4} == kv.contents
    assert (8, 2, False) == commands.decode_delete_prefix_result(kv.run(commands.encode_delete_prefix(b"", 2)))


def test_pop() -> None:
    """Answers with what was there, and takes a revision only if something was."""
    kv = Map({"a": [1]})

    assert (2, cbor([1])) == commands.decode_old_value_result(kv.run(commands.encode_pop(b"a")))
    assert (2, None) == commands.decode_old_value_result(kv.run(commands.encode_pop(b"a")))


def test_setdefault() -> None:
    """Sets what is not there, answers with what is, None as a value included."""
    kv = Map({"none": None})

    assert (1, cbor(None)) == commands.decode_old_value_result(kv.run(commands.encode_setdefault(b"none", cbor(5))))
    assert (2, None) == commands.decode_old_value_result(kv.run(commands.encode_setdefault(b"a", cbor(5), 3)))
    assert (2, cbor(5)) == commands.decode_old_value_result(kv.run(commands.encode_setdefault(b"a", cbor(6))))
    assert (cbor(5), 2, 2, 1, 3) == kv.held("a")


def test_increment() -> None:
    """From 0 if there is nothing, without bounds, and the key keeps its lease."""
    kv = Map()
    kv.run(commands.encode_put(b"leased", cbor(2**64), 7))

    assert (2, cbor(-3)) == commands.decode_increment_result(kv.run(commands.encode_increment(b"a", cbor(-3))))
    assert (3, cbor(2**65)) == commands.decode_increment_result(
        kv.run(commands.encode_increment(b"leased", cbor(2**64)))
    )
    assert (cbor(2**65), 1, 3, 2, 7) == kv.held("leased")


@pytest.mark.parametrize(
    ("stored", "by", "reason"),
    [
        ("x", 1, "the value of 'key' is a str, not an int: nothing was added"),
        (True, 1, "the value of 'key' is a bool, not an int: nothing was added"),
        (1.5, 1, "the value of 'key' is a float, not an int: nothing was added"),
        (1, True, "the increment is a bool, not an int: nothing was added"),
        (1, [1], "the increment is a list, not an int: nothing was added"),
    ],
)
def test_increment_of_what_is_no_int(stored: object, by: object, reason: str) -> None:
    """Refused with a reason; a bool is no int here."""
    kv = Map({"key": stored})

    assert reason == kv.refusal(commands.encode_increment(b"key", cbor(by)))
    with pytest.raises(EncodingError, match="nothing was added"):
        kv.run(commands.encode_increment(b"key", cbor(by)))


@pytest.mark.parametrize(
    ("before", "expected", "value", "after"),
    [
        ({"k": 1}, cbor(1.0), cbor(2), {"k": 2}),
        ({"k": {"a": 1, "b": 2}}, cbor({"b": 2, "a": 1}), None, {}),
        ({"k": 1}, cbor(2), cbor(3), None),
        ({"k": 1}, None, cbor(3), None),
        ({"k": None}, None, cbor(3), None),
        ({}, cbor(None), cbor(3), None),
        ({}, None, cbor(3), {"k": 3}),
        ({}, None, cbor(None), {"k": None}),
    ],
)
def test_compare_and_set(
    before: dict[str, object], expected: bytes | None, value: bytes | None, after: dict[str, object] | None
) -> None:
    """Sets or deletes where the expectation holds, by Python equality; absence equals absence alone."""
    kv = Map(before)
    revision = len(before) + (after is not None)
    result = commands.decode_outcome_result(kv.run(commands.encode_compare_and_set(b"k", expected, value)))

    assert (revision, after is not None) == result
    assert (before if after is None else after) == kv.contents


def test_compare_absent_and_set_absent() -> None:
    """Holds, changes nothing, takes no revision."""
    kv = Map()

    assert (0, True) == commands.decode_outcome_result(kv.run(commands.encode_compare_and_set(b"k", None, None)))


@pytest.mark.parametrize(
    ("key", "revision", "done"),
    [(b"a", 1, True), (b"a", 0, False), (b"a", 2, False), (b"b", 0, True), (b"b", 1, False)],
)
def test_replace(key: bytes, revision: int, done: bool) -> None:
    """Sets a key that has not changed since; revision 0 is absence."""
    kv = Map({"a": 1})

    assert (1 + done, done) == commands.decode_outcome_result(kv.run(commands.encode_replace(key, cbor(2), revision)))
    assert {"a": 1} | ({key.decode(): 2} if done else {}) == kv.contents


def test_compact() -> None:
    """Raises the floor, answers with it, takes no revision, may be repeated."""
    kv = Map({"a": 1, "b": 2, "c": 3})
    floors = [commands.decode_compact_result(kv.run(commands.encode_compact(floor))) for floor in (2, 1, 2, 99)]

    assert [2, 2, 2, 3] == floors
    assert 3 == kv.revision


GOOD = [
    commands.encode_put(b"a", cbor(1), 3),
    commands.encode_delete(b"a"),
    commands.encode_update({b"a": cbor(1), b"b": cbor("x" * 20)}),
    commands.encode_delete_prefix(b"a", 5),
    commands.encode_pop(b"a"),
    commands.encode_setdefault(b"z", cbor(1)),
    commands.encode_increment(b"n", cbor(1)),
    commands.encode_compare_and_set(b"a", cbor("x"), cbor(2)),
    commands.encode_compare_and_set(b"z", None, cbor(2)),
    commands.encode_replace(b"a", cbor(5), 1),
    commands.encode_compact(1),
]


@pytest.mark.parametrize("command", GOOD, ids=lambda command: commands.Operation(command[0]).name)
def test_every_truncation_is_refused(command: bytes) -> None:
    """A command that was cut short fails, or is another valid one; it never raises."""
    for end in range(len(command)):
        kv = Map({"a": "x", "n": 1})
        result = kv.machine.execute(command[:end], 0)
        assert Status.FAILED == result[0] or command[0] in {
            commands.Operation.REPLACE,  # cut values are some bytes still: nobody decodes them here
            commands.Operation.COMPARE_AND_SET,
            commands.Operation.PUT,
        }


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_garbage_never_raises(command: bytes, data: st.DataObject) -> None:
    """Any bytes have a result; a refused command leaves the map as it was."""
    noise = bytearray(command)
    for _ in range(data.draw(st.integers(1, 3))):
        noise[data.draw(st.integers(0, len(noise) - 1))] = data.draw(st.integers(0, 255))
    kv = Map({"a": "x", "n": 1})
    before = list(kv.machine.snapshot())
    result = kv.machine.execute(bytes(noise), 0)

    assert result[0] == Status.OK or before == list(kv.machine.snapshot())


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (b"", "shorter"),
        (b"\xfe", "no operation of the map has the number 254"),
        (commands.encode_put(b"\xff", cbor(1)), "not UTF-8"),
        (commands.encode_put(b"a", b""), "before its value"),
        (commands.encode_replace(b"a", b"", 0), "before its value"),
        (commands.encode_delete(b"a") + b"x", "not as long"),
        (commands.encode_update({b"a": b""}), "without a value"),
        (commands.encode_update({b"a": cbor(1)}) + b"x", "not as long"),
        (commands.encode_increment(b"n", b"\xff"), "a value is not one that replikv has encoded"),
        (commands.encode_compare_and_set(b"a", b"\xff", cbor(1)), "a value is not one that replikv has encoded"),
        (commands.encode_compare_and_set(b"a", b"", cbor(1)), "as the flags"),
    ],
)
def test_refusals_say_why(command: bytes, reason: str) -> None:
    """The text is of this library alone: every replica answers with the same bytes."""
    assert reason in Map({"a": "x", "n": 1}).refusal(command)


def test_update_names_no_key_twice() -> None:
    """Two changes of one key at one revision would have no order for readers of the past."""
    twice = bytearray(commands.encode_update({b"a": cbor(1), b"b": cbor(2)}))
    twice[twice.rindex(b"b")] = ord("a")

    assert "a key twice" in Map().refusal(bytes(twice))


@pytest.mark.parametrize(
    ("key", "error"),
    [(1, EncodingError), (b"a", EncodingError), ("\ud800", EncodingError), ("ü" * 6, ValueTooLargeError)],
)
def test_keys_are_short_strings(key: Any, error: type[Exception]) -> None:
    """UTF-8 of at most so many bytes."""
    assert "ü".encode() * 5 == commands.encode_key("ü" * 5, 10)
    with pytest.raises(error):
        commands.encode_key(key, 10)


def test_snapshot_carries_the_history() -> None:
    """After a restore, the past above the floor is readable and watchable, and chunks are the same."""
    kv = Map({f"k{index:04}": index for index in range(1000)})
    kv.run(commands.encode_compact(500))
    kv.run(commands.encode_delete(b"k0001"))
    kv.run(commands.encode_update({f"k{index:04}".encode(): cbor(-index) for index in range(300)}))
    chunks = list(kv.machine.snapshot())
    other = KeyValue()
    other.restore(chunks)

    assert chunks == list(other.snapshot())
    assert (500, 1002) == (other.keyspace.floor, other.keyspace.revision)
    assert list(kv.machine.keyspace.changes_since(500)) == list(other.keyspace.changes_since(500))
    for revision in (500, 700, 1000, 1001, 1002):
        assert list(kv.machine.keyspace.scan(revision=revision)) == list(other.keyspace.scan(revision=revision))


def test_snapshot_is_not_disturbed() -> None:
    """Its chunks are those of the call, however much is written, deleted and compacted before they are read."""
    kv = Map({f"k{index:04}": index for index in range(800)})
    kv.run(commands.encode_compact(400))
    expected = list(kv.machine.snapshot())
    snapshot, found = kv.machine.snapshot(), []
    kv.run(commands.encode_update({b"early": cbor(1), b"k0700": cbor(2)}))
    for chunk in snapshot:
        found.append(chunk)
        kv.run(commands.encode_delete_prefix(b"k00", 30))
        kv.run(commands.encode_update({f"k{index:04}".encode(): cbor("new") for index in range(0, 900, 7)}))
        kv.run(commands.encode_compact(kv.revision))
        kv.machine.keyspace.trim(10_000)

    assert expected == found
    kv.machine.keyspace.trim(10_000)
    assert kv.revision == kv.machine.keyspace.physical_floor


@pytest.mark.parametrize("damage", ["missing", "repeated", "truncated", "version", "head"])
def test_a_broken_snapshot_changes_nothing(damage: str) -> None:
    """Whatever is wrong with the chunks, the map is as it was before."""
    kv = Map({f"k{index:04}": index for index in range(300)})
    kv.run(commands.encode_compact(200))
    chunks = list(kv.machine.snapshot())
    if damage == "missing":
        del chunks[-1]
    elif damage == "repeated":
        chunks.append(chunks[-1])
    elif damage == "truncated":
        chunks[-1] = chunks[-1][:-1]
    elif damage == "version":
        chunks[0] = b"\xff" + chunks[0][1:]
    else:
        del chunks[0]
    other = Map({"old": 1})
    with pytest.raises(InternalError):
        other.machine.restore(chunks)

    assert {"old": 1} == other.contents
