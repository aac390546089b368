"""Transactions: what they compare, do, answer and refuse."""

from __future__ import annotations

import decimal
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.machine import commands
from replikv.machine.choices import (
    DEPTH_MAX,
    Choice,
    Comparison,
    Delete,
    Found,
    Get,
    Put,
    Relation,
    Step,
    Target,
    TransactResult,
    decode_transact,
    decode_transact_result,
    encode_transact,
    written_twice,
)
from replikv.machine.envelope import Status
from replikv.machine.governance import Governance, Limits, Versions
from replikv.machine.keyvalue import KeyValue
from replikv.machine.ranges import KeyRange
from replikv.machine.record import lease_of, value_of
from replikv.machine.transactions import READ_BYTES_MAX
from replikv.machine.values import decode_value, encode_value

LEASE = 1


def cbor(value: object) -> bytes:
    return encode_value(value, 1 << 23)


def machine(contents: Mapping[str, object] | None = None, **limits: int) -> KeyValue:
    """Each key is put at a revision of its own, in order."""
    kv = KeyValue(Governance(Versions(1, 0), Limits(**limits)))
    kv.leases.grant(10_000)
    for key, value in (contents or {}).items():
        kv.apply(0, commands.encode_put(key.encode(), cbor(value)))
    return kv


def run(kv: KeyValue, choice: Choice) -> tuple[int, TransactResult]:
    return decode_transact_result(kv.apply(0, encode_transact(choice)))


def do(kv: KeyValue, *steps: Step) -> list[Any]:
    return run(kv, Choice([], steps, []))[1].results


def holds(kv: KeyValue, *compares: Comparison) -> bool:
    return run(kv, Choice(compares, [], []))[1].succeeded


def refusal(kv: KeyValue, command: bytes | Choice, status: Status = Status.FAILED) -> str:
    """Why it is refused; nothing is changed."""
    before = list(kv.snapshot())
    result = kv.execute(command if isinstance(command, bytes) else encode_transact(command), 0)
    assert status == result[0]
    assert before == list(kv.snapshot())
    return result[1:].decode()


def contents(kv: KeyValue) -> dict[str, Any]:
    return {key: decode_value(value_of(record)) for key, record in kv.keyspace.scan()}


# -- comparisons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "relation", "operand", "expected"),
    [
        (1, "==", 1.0, True),
        (True, "==", 1, True),
        ({"a": 1, "b": 2}, "==", {"b": 2, "a": 1}, True),
        (float("nan"), "==", float("nan"), False),
        (float("nan"), "!=", float("nan"), True),
        (1, "!=", 2, True),
        (1, "<", 2, True),
        (2, "<", 2, False),
        ("b", ">", "a", True),
        ([1, 2], "<", [1, 3], True),
        ([1, 2], "<", [1, "x"], False),
        ("a", "<", 1, False),
        ("a", ">", 1, False),
        (None, "<", None, False),
        ({1}, "<", {1, 2}, True),
        (decimal.Decimal("1.5"), ">", 1.25, True),
        (decimal.Decimal("nan"), "<", decimal.Decimal(1), False),
        (decimal.Decimal("nan"), ">", decimal.Decimal(1), False),
    ],
)
def test_values_compare_as_in_python(held: object, relation: str, operand: object, expected: bool) -> None:
    """Decoded, whatever the application's decimal context is; without an order there is neither less nor greater."""
    names = {"==": Relation.EQUAL, "!=": Relation.NOT_EQUAL, "<": Relation.LESS, ">": Relation.GREATER}
    kv = machine({"key": held})
    comparison = Comparison(Target.VALUE, "key", names[relation], cbor(operand))
    assert expected == holds(kv, comparison)
    with decimal.localcontext(decimal.Context(traps=[decimal.FloatOperation, decimal.InvalidOperation])):
        assert expected == holds(kv, comparison)


@pytest.mark.parametrize(
    ("target", "number"),
    [(Target.VERSION, 2), (Target.CREATE_REVISION, 1), (Target.MOD_REVISION, 3), (Target.LEASE, LEASE)],
)
def test_numbers_compare_as_numbers(target: Target, number: int) -> None:
    """Of a key that was put at revision 1 and at 3, then with a lease."""
    kv = machine({"key": 1, "other": 2})
    kv.apply(0, commands.encode_put(b"key", cbor(3), LEASE))
    for relation, expected in (
        (Relation.EQUAL, [False, True, False]),
        (Relation.NOT_EQUAL, [True, False, True]),
        (Relation.LESS, [False, False, True]),
        (Relation.GREATER, [True, False, False]),
    ):
        found = [holds(kv, Comparison(target, "key", relation, number + each)) for each in (-1, 0, 1)]
        assert expected == found


def test_a_key_that_is_not_there() -> None:
    """Its numbers are 0; its value equals no value but the absence of one, and has no order."""
    kv = machine({"key": None})
    for target in (Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION, Target.LEASE):
        assert holds(kv, Comparison(target, "gone", Relation.EQUAL, 0))
        assert not holds(kv, Comparison(target, "gone", Relation.GREATER, 0))
    for key, relation, operand, expected in (
        ("gone", Relation.EQUAL, None, True),
        ("gone", Relation.NOT_EQUAL, None, False),
        ("gone", Relation.EQUAL, cbor(None), False),
        ("gone", Relation.NOT_EQUAL, cbor(None), True),
        ("gone", Relation.LESS, cbor(5), False),
        ("gone", Relation.GREATER, cbor(5), False),
        ("key", Relation.EQUAL, None, False),
        ("key", Relation.NOT_EQUAL, None, True),
        ("key", Relation.EQUAL, cbor(None), True),
    ):
        assert expected == holds(kv, Comparison(Target.VALUE, key, relation, operand)), (key, relation, operand)


@pytest.mark.parametrize(
    ("keys", "relation", "operand", "expected"),
    [
        (KeyRange(prefix="a"), Relation.LESS, 3, True),
        (KeyRange(prefix="a"), Relation.LESS, 2, False),
        (KeyRange(), Relation.GREATER, 0, True),
        (KeyRange(start="a2"), Relation.GREATER, 1, True),
        (KeyRange(stop="a2"), Relation.EQUAL, 1, True),
        (KeyRange(prefix="zz"), Relation.EQUAL, 0, True),
        (KeyRange(prefix="zz"), Relation.GREATER, 0, False),
        (KeyRange(start="b", stop="a"), Relation.EQUAL, 0, True),
    ],
)
def test_a_range_holds_if_each_of_its_keys_does(
    keys: KeyRange, relation: Relation, operand: int, expected: bool
) -> None:
    """And one without keys if a key that is not there does, as in etcd."""
    kv = machine({"a1": 1, "a2": 2, "b": 3})
    assert expected == holds(kv, Comparison(Target.CREATE_REVISION, keys, relation, operand))


def test_a_range_that_nobody_has_changed() -> None:
    """Puts and deletes count, wherever they were in the range; below the floor of the history nobody knows."""
    kv = machine({"a": 1, "b": 2, "c": 3})
    kv.apply(0, commands.encode_delete(b"b"))

    def unchanged(keys: str | KeyRange, revision: int) -> bool:
        return holds(kv, Comparison(Target.UNCHANGED, keys, Relation.EQUAL, revision))

    assert unchanged(KeyRange(), 4)
    assert not unchanged(KeyRange(), 3)
    assert not unchanged(KeyRange("b", "c"), 3)
    assert unchanged(KeyRange("c", None), 3)
    assert unchanged(KeyRange("", "b"), 1)
    assert not unchanged("b", 3)
    assert unchanged("a", 1)
    assert not unchanged("a", 0)
    kv.keyspace.compact(3)
    assert not unchanged("a", 2)
    assert unchanged("a", 3)


def test_all_comparisons_must_hold() -> None:
    """Otherwise what is for that case is done."""
    kv = machine({"a": 1})
    true, false = (Comparison(Target.VALUE, "a", Relation.EQUAL, cbor(each)) for each in (1, 2))
    for compares, expected in (([], True), ([true], True), ([true, false], False), ([false, true], False)):
        _, result = run(kv, Choice(compares, [Get("a")], [Get("b"), Get("b")]))
        assert (expected, 1 if expected else 2) == (result.succeeded, len(result.results))


# -- steps -------------------------------------------------------------------------------------------------------------


def test_all_changes_are_of_one_revision() -> None:
    """Records count as those of single commands do; what changes nothing takes no revision."""
    kv = machine({"a": 1, "b": 2})
    revision, result = run(kv, Choice([], [Put("a", cbor(3), LEASE), Delete("b"), Put("c", cbor(4), 0)], []))
    assert (3, [None, 1, None]) == (revision, result.results)
    assert {"a": 3, "c": 4} == contents(kv)
    assert [Found("a", cbor(3), 1, 3, 2, LEASE)] == do(kv, Get("a"))[0]
    assert [Found("c", cbor(4), 3, 3, 1, 0)] == do(kv, Get("c"))[0]
    changes = list(kv.keyspace.changes_since(2))
    assert [(3, ["a", "b", "c"])] == [(revision, [key for key, _, _ in made]) for revision, made in changes]
    assert 3 == run(kv, Choice([], [Delete("b"), Get("a"), Delete(KeyRange(prefix="zz"))], []))[0]
    assert (LEASE, 3) == (lease_of(kv.keyspace.get("a") or b""), kv.keyspace.revision)  # type: ignore[arg-type]


def test_reads_see_what_was_written_before_them() -> None:
    """With the revision that it will have; deletes and ranges likewise, in key order."""
    kv = machine({"a": 1, "b": 2, "d": 4})
    everything = Get(KeyRange())
    results = do(
        kv, everything, Put("a", cbor(9), 0), Delete("b"), Put("c", cbor(3), 0), everything, Get("b"), Get("c"),
        Get(KeyRange(start="b"), 1), Delete(KeyRange(start="d")), Delete("d"), Get(KeyRange(), 0), everything,
    )  # fmt: skip
    assert ["a", "b", "d"] == [found.key for found in results[0]]
    a, c, d = Found("a", cbor(9), 1, 4, 2, 0), Found("c", cbor(3), 4, 4, 1, 0), Found("d", cbor(4), 3, 3, 1, 0)
    assert [[a, c, d], [], [c], [c], 1, 0, [], [a, c]] == results[4:]
    assert {"a": 9, "c": 3} == contents(kv)


def test_nested_transactions_compare_the_state_before() -> None:
    """Whatever was written around them, as in etcd; their reads see it."""
    kv = machine({"a": 1})
    inner = Choice([Comparison(Target.VALUE, "a", Relation.EQUAL, cbor(1))], [Get("a")], [Put("no", cbor(1), 0)])
    _, written, nested = (None, *do(kv, Put("a", cbor(2), 0), inner))
    assert written is None
    assert TransactResult(True, [[Found("a", cbor(2), 1, 2, 2, 0)]]) == nested
    assert {"a": 2} == contents(kv)


PUT, OTHER = Put("k", cbor(1), 0), Put("k", cbor(2), 0)


@pytest.mark.parametrize(
    ("steps", "key"),
    [
        ([PUT, OTHER], "k"),
        ([PUT, Delete("k")], "k"),
        ([Delete("k"), PUT], "k"),
        ([PUT, Delete(KeyRange(prefix=""))], "k"),
        ([Delete(KeyRange("k", "l")), PUT], "k"),
        ([PUT, Choice([], [OTHER], [])], "k"),
        ([PUT, Choice([], [], [Choice([], [Delete("k")], [])])], "k"),
        ([Choice([], [Delete(KeyRange("a", "z"))], []), PUT], "k"),
        ([Delete("k"), Choice([], [PUT], [])], "k"),
        ([PUT, Choice([], [Delete(KeyRange("a", "z"))], [])], "k"),
        ([Delete(KeyRange("a", "z")), Choice([], [], [PUT])], "k"),
        ([Choice([], [PUT], []), Choice([], [], [Delete("k")])], "k"),
        ([Choice([], [Delete("k")], []), Choice([], [Choice([], [PUT], [])], [])], "k"),
        ([Choice([], [], [Delete(KeyRange("k", "l"))]), Choice([], [PUT], [])], "k"),
        ([Choice([], [PUT], []), Choice([], [], [Delete(KeyRange("k", "l"))])], "k"),
        ([Choice([], [PUT, OTHER], [])], "k"),
        ([Choice([], [PUT], [OTHER])], None),
        ([Choice([], [PUT], [Delete(KeyRange())])], None),
        ([PUT, Delete("l"), Delete(KeyRange("l", None)), Delete("l")], None),
        ([Delete("k"), Delete("k")], None),
        ([PUT, Get("k"), Get("k"), Delete(KeyRange(stop="k"))], None),
    ],
)
def test_a_key_is_put_once(steps: Sequence[Step], key: str | None) -> None:
    """And not deleted as well, on any way through the transaction; all its changes are of one revision."""
    for choice in (Choice([], steps, []), Choice([], [], steps)):
        assert key == written_twice(choice)
        if key is not None:
            assert "puts the key 'k' twice" in refusal(machine({"k": 0}), choice)
        else:
            run(machine({"k": 0}), choice)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_operations_are_limited() -> None:
    """Comparisons and steps of all branches, and the keys that ranges come across on the way that is taken."""
    compare = Comparison(Target.VERSION, "a", Relation.EQUAL, 1)
    numbered = {f"n{number}": number for number in range(6)}
    for choice, count in (
        (Choice([compare] * 3, [Get("a")] * 3, [Get("a")] * 4), 10),
        (Choice([], [Choice([compare], [], [Get("a")])], []), 3),
        (Choice([], [Get(KeyRange(prefix="n"))], []), 7),
        (Choice([], [Get(KeyRange(prefix="n"), 2)], []), 3),
        (Choice([], [Delete(KeyRange(prefix="n"))], []), 7),
        (Choice([Comparison(Target.VERSION, KeyRange(prefix="n"), Relation.EQUAL, 1)], [], []), 7),
        (Choice([Comparison(Target.VERSION, KeyRange(prefix="n"), Relation.EQUAL, 2)], [], []), 2),
        (Choice([], [Put("n", cbor(1), 0), Get(KeyRange(prefix="n"))], []), 9),
    ):
        run(machine(numbered, operations=count), choice)
        reason = refusal(machine(numbered, operations=count - 1), choice, Status.OVER_LIMIT)
        assert f"more than {count - 1} comparisons, steps and keys of ranges (operations_per_command_max)" in reason


def test_answers_are_limited() -> None:
    """To 2 MiB, comparisons of values included; but a single value is let through, whatever its size."""
    half = b"." * (READ_BYTES_MAX // 2)
    kv = machine({"a": half, "b": half, "large": 3 * half})
    same = Comparison(Target.VALUE, "a", Relation.EQUAL, cbor(half))
    assert [[Found("large", cbor(3 * half), 3, 3, 1, 0)]] == do(kv, Get("large"))
    assert holds(kv, same)
    for choice in (
        Choice([], [Get("a"), Get("b")], []),
        Choice([], [Get(KeyRange(prefix=""))], []),
        Choice([same], [Get("a"), Put("c", cbor(1), 0)], []),
        Choice([same, same], [Put("c", cbor(1), 0)], []),
        Choice([], [Put("c", cbor(half), 0), Get("c"), Choice([], [Get("a")], [])], []),
    ):
        assert f"reads more than {READ_BYTES_MAX} bytes" in refusal(kv, choice, Status.OVER_LIMIT)


def test_nesting_is_limited() -> None:
    """The outermost counts."""
    choice = Choice([], [Get("a")], [])
    for _ in range(DEPTH_MAX - 1):
        choice = Choice([], [choice], [])
    run(machine(), choice)
    assert "more than 16 transactions within each other" in refusal(machine(), Choice([], [choice], []))


def test_limits_of_the_map_and_leases_hold() -> None:
    """A transaction that one of its puts cannot be part of is refused as a whole."""
    one, two = Put("a", cbor(1), 0), Put("b", cbor(2), 0)
    assert "keys_max" in refusal(machine(keys=1), Choice([], [one, two], []), Status.OVER_LIMIT)
    assert "state_bytes_max" in refusal(machine(state_bytes=400), Choice([], [one, two], []), Status.OVER_LIMIT)
    leased = Put("b", cbor(2), 99)
    assert "there is no lease 99" in refusal(machine(), Choice([], [one, leased], []), Status.NO_LEASE)
    kv = machine({"old": 0}, keys=1)
    run(kv, Choice([], [Delete("old"), one], []))
    assert {"a": 1} == contents(kv)


def test_transactions_wait_for_an_upgrade() -> None:
    """A cluster that has members which do not know them answers as they do."""
    kv = KeyValue()
    assert "no operation of the map has the number 14" in refusal(kv, Choice([], [PUT], []))


# -- bytes -------------------------------------------------------------------------------------------------------------

names = st.sampled_from(["", "a", "b", "ä/", "\U0010ffff", "k" * 300])
bounds = names | st.just("\ud800")
where = names | st.builds(KeyRange, bounds, st.none() | bounds)
u64 = st.integers(0, 2**64 - 1)
encoded = st.sampled_from([cbor(each) for each in (None, 1, "x", [1, {"a": b"b"}])])
comparisons = st.one_of(
    st.builds(Comparison, st.just(Target.VALUE), where, st.sampled_from(Relation), st.none() | encoded),
    st.builds(
        Comparison,
        st.sampled_from([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION, Target.LEASE]),
        where,
        st.sampled_from(Relation),
        u64,
    ),
    st.builds(Comparison, st.just(Target.UNCHANGED), where, st.just(Relation.EQUAL), u64),
)
plain_steps = st.one_of(
    st.builds(Put, names, encoded, st.sampled_from([0, 0, LEASE, 7])),
    st.builds(Delete, where),
    st.builds(Get, where, st.sampled_from([0, 1, 2**32 - 1])),
)


def choices_of(steps: st.SearchStrategy[Any]) -> st.SearchStrategy[Choice]:
    some = st.lists(steps, max_size=3)
    return st.builds(Choice, st.lists(comparisons, max_size=2), some, some)


choices = choices_of(plain_steps | choices_of(plain_steps | choices_of(plain_steps)))


@settings(max_examples=150, deadline=None)
@given(choice=choices)
def test_every_transaction_arrives_as_it_was_sent(choice: Choice) -> None:
    """All of it; and it has a result, which is of its shape."""
    data = b"...." + encode_transact(choice)
    if written_twice(choice) is None:
        assert choice == decode_transact(data, 4, 1024)[0]
    result = machine({"a": 1, "b": 2}).execute(data, 4)
    if result[0] == Status.OK:
        _, (succeeded, results) = decode_transact_result(result[1:])
        assert len(choice.then if succeeded else choice.otherwise) == len(results)


def ways(choice: Choice) -> Iterator[list[Any]]:
    """Every way through, as plain steps."""
    for branch in (choice.then, choice.otherwise):
        parts = [list(ways(step)) if isinstance(step, Choice) else [[step]] for step in branch]
        for combination in itertools.product(*parts):
            yield [step for part in combination for step in part]


def puts_twice(way: list[Any]) -> bool:
    puts = [step.key for step in way if isinstance(step, Put)]
    deletes = [step.keys for step in way if isinstance(step, Delete)]
    return len(puts) != len(set(puts)) or any(
        key == keys if isinstance(keys, str) else key in keys for key in puts for keys in deletes
    )


@settings(max_examples=150, deadline=None)
@given(choice=choices)
def test_what_is_written_twice_is_seen_on_every_way(choice: Choice) -> None:
    """As if each had been walked."""
    assert any(map(puts_twice, ways(choice))) == (written_twice(choice) is not None)


@settings(max_examples=150, deadline=None)
@given(choice=choices, data=st.data())
def test_bytes_that_are_no_transaction_change_nothing(choice: Choice, data: st.DataObject) -> None:
    """Cut, prolonged or damaged: there is a result, and unless it is OK the map is as it was."""
    command = bytearray(encode_transact(choice))
    damage = data.draw(st.sampled_from(["cut", "prolong", "bytes"]))
    if damage == "cut":
        del command[data.draw(st.integers(1, len(command) - 1)) :]
    elif damage == "prolong":
        command += data.draw(st.binary(min_size=1, max_size=20))
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            command[data.draw(st.integers(1, len(command) - 1))] = data.draw(st.sampled_from([0, 1, 2, 3, 4, 6, 255]))
    kv = machine({"a": "x", "b": 1})
    before = list(kv.snapshot())
    result = kv.execute(bytes(command), 0)
    assert result[0] == Status.OK or before == list(kv.snapshot())
    assert damage == "bytes" or Status.FAILED == result[0]


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    """Whatever follows the operation."""
    kv = machine({"a": 1})
    before = list(kv.snapshot())
    result = kv.execute(bytes([commands.Operation.TRANSACT]) + noise, 0)
    assert result[0] == Status.OK or before == list(kv.snapshot())


@pytest.mark.parametrize(
    ("choice", "old", "new", "reason"),
    [
        (Choice([], [PUT], []), b"\x01\x00\x00\x00\x00\x00\x00\x00\x00", b"\x09" + bytes(8), "a step"),
        (Choice([], [Get("k")], []), b"\x03\x00\x00\x00\x00\x01", b"\x03\x07\x00\x00\x00\x01", "keys in a form"),
        (Choice([], [Get("k")], []), b"k", b"\xff", "the key is not UTF-8"),
        (
            Choice([Comparison(Target.VALUE, "k", Relation.EQUAL, cbor(1))], [], []),
            b"\x01\x01\x00\x00",
            b"\x01\x09\x00\x00",
            "a comparison that no version",
        ),
        (
            Choice([Comparison(Target.UNCHANGED, "k", Relation.EQUAL, 1)], [], []),
            b"\x06\x01\x00\x00",
            b"\x06\x02\x00\x00",
            "a comparison that no version",
        ),
        (
            Choice([Comparison(Target.VALUE, "k", Relation.EQUAL, cbor(1))], [], []),
            b"k\x00\x00\x00\x01\x01",
            b"k\x00\x00\x00\x01\xff",
            "a value is not one",
        ),
    ],
)
def test_refusals_say_why(choice: Choice, old: bytes, new: bytes, reason: str) -> None:
    """In words of this library alone: every replica answers with the same bytes."""
    command = encode_transact(choice)
    assert 1 == command.count(old)
    assert reason in refusal(machine(), command.replace(old, new))


def test_the_layout_is_fixed() -> None:
    """The bytes of docs/format.md: on disks and wires of clusters that run."""
    choice = Choice(
        [
            Comparison(Target.VALUE, "k", Relation.NOT_EQUAL, cbor(1)),
            Comparison(Target.UNCHANGED, KeyRange("a", "b"), Relation.EQUAL, 5),
        ],
        [Put("k", cbor(2), 9), Delete(KeyRange("c")), Choice([], [], [])],
        [Get("k", 1)],
    )
    assert (
        "0e 00000002 00000003 00000001"
        " 01 02 00 00000001 00000000 6b 00000001 01"
        " 06 01 01 00000001 00000001 61 62 0000000000000005"
        " 01 0000000000000009 00000001 00000001 6b 02"
        " 02 02 00000001 00000000 63"
        " 04 00000000 00000000 00000000"
        " 03 00 00000001 00000000 6b 00000001"
    ).replace(" ", "") == encode_transact(choice).hex()
    kv = machine({"k": 3})
    result = kv.apply(
        0, encode_transact(Choice([], [Put("a", cbor(1), 0), Get("k"), Delete("x"), Choice([], [], [])], []))
    )
    assert (
        "0000000000000002 01 00000004"
        " 01"
        " 03 00000001 00000001 00000001 0000000000000001 0000000000000001 0000000000000001 0000000000000000 6b 03"
        " 02 00000000"
        " 04 01 00000000"
    ).replace(" ", "") == result.hex()
