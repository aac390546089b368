"""The codec of values: what comes back, what is refused, and that nothing costs more than it should."""

# ruff: noqa: DTZ001, DTZ901  # naive datetimes are what is tested

import collections
import contextlib
import datetime
import decimal
import enum
import math
import uuid
import zoneinfo
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import EncodingError, ValueTooLargeError
from replikv.machine.values import DEPTH_MAX, FOREIGN_KEYS_MAX, decode_value, encode_value, equal_values

MIB = 1 << 20
D = decimal.Decimal
UTC = datetime.UTC
HASH_MODULUS = 2**61 - 1  # of CPython: its multiples all hash to 0


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


class Broken(datetime.tzinfo):
    def utcoffset(self, when: datetime.datetime | None) -> datetime.timedelta:
        raise RuntimeError("no idea")

    def dst(self, when: datetime.datetime | None) -> None:
        return None

    def tzname(self, when: datetime.datetime | None) -> None:
        return None


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def as_stored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_stored(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_stored(inner) for inner in value]
    return value


hashables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.datetimes()
    | st.dates()
    | st.decimals(allow_nan=False)
    | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
plain = st.recursive(
    hashables.filter(lambda value: not isinstance(value, (tuple, frozenset)))
    | st.datetimes(timezones=st.just(UTC) | st.just(datetime.timezone(datetime.timedelta(minutes=-90))))
    | st.sets(hashables, max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashables, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(plain)
def test_plain_data_comes_back_equal(value: object) -> None:
    """What is built from the closed list comes back equal, but for tuples and frozensets, and stays so."""
    stored = decode_value(encode_value(value, MIB))

    assert as_stored(value) == stored
    assert stored == decode_value(encode_value(stored, MIB))


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 23, 24, -1, 255, 65536, 2**64 - 1, -(2**64), 2**64, -(2**200),
        0.0, 1.5, math.inf, -math.inf, "", "x" * 23, "x" * 24, "x" * 256, "ü" * 70000, b"", b"\0" * 23, b"\0" * 24,
        b"\0" * 300, b"\0" * 70000,
        [], [1, [2, [3]]], {}, {"a": {"b": None}}, {2: 2, None: 3, True: 4, b"k": 5, (1, "x"): 6, frozenset({1}): 7},
        set(), {1, "a", b"b", None}, {frozenset({(1, frozenset({2}))})},
        datetime.datetime(2024, 2, 29, 12, 30, 15, 123456), datetime.datetime.min, datetime.datetime.max,
        datetime.datetime(2024, 1, 1, tzinfo=UTC),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))),
        datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        {datetime.datetime(2024, 1, 1): [datetime.datetime(2025, 1, 1)]},
        datetime.date(2024, 2, 29), datetime.date.min,
        D("1.10"), D("-0"), D("0E+7"), D("1E+999999999999999999"), D("Infinity"), D("-Infinity"), D("1." + "1" * 60),
        [D("-0.00")], uuid.UUID(int=5),
    ],
    ids=lambda value: "a set of four" if value == {1, "a", b"b", None} else repr(value)[:40],
)  # fmt: skip
def test_exact_round_trip(value: object) -> None:
    """Values of the closed list come back equal and of the same type; Decimals keep their digits and sign."""
    found = decode_value(encode_value(value, MIB))

    assert value == found
    assert type(value) is type(found)
    assert str(value) == str(found) or isinstance(value, (set, dict, datetime.datetime))


@pytest.mark.parametrize(
    ("value", "expected"),
    [((1, (2, 3)), [1, [2, 3]]), (frozenset({1}), {1}), ({"a": (1,)}, {"a": [1]}), ([frozenset({2})], [{2}])],
)
def test_tuples_and_frozensets_lose_their_immutability(value: object, expected: object) -> None:
    """Where nothing is hashed, a tuple comes back as a list and a frozenset as a set."""
    found = decode_value(encode_value(value, MIB))

    assert expected == found
    assert type(expected) is type(found)


def test_nan_comes_back() -> None:
    """NaN is a float like others, and a Decimal NaN stays a Decimal."""
    assert math.isnan(decode_value(encode_value(math.nan, MIB)))
    assert decode_value(encode_value(D("NaN"), MIB)).is_nan()


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Name("x"), collections.OrderedDict(a=1), collections.defaultdict(int), collections.Counter("ab"),
        bytearray(b"x"), memoryview(b"x"), 1j, object(), len, ..., datetime.time(1), datetime.timedelta(1), range(3),
        D("sNaN"), "\ud800", ["\udfff"], {"\ud800": 1}, {Name("x"): 1}, [Colour.RED], {Colour.RED},
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(microseconds=1))),
        datetime.datetime(2024, 1, 1, tzinfo=Broken()),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_everything_else_is_refused(value: object) -> None:
    """What is not of the closed list, or would come back as something else, is an EncodingError."""
    with pytest.raises(EncodingError) as caught:
        encode_value(value, MIB)
    assert not isinstance(caught.value, ValueTooLargeError)


@pytest.mark.parametrize(
    "value",
    ["x" * 101, b"x" * 101, "ü" * 60, 1 << 900, [0] * 101, ["x" * 60, "y" * 60], {"k" * 90: "v" * 20}, "x" * 99],
    ids=lambda value: repr(value)[:20],
)
def test_a_value_over_the_limit(value: object) -> None:
    """More bytes than the limit, of a scalar or of the whole, are a ValueTooLargeError; heads of items count."""
    with pytest.raises(ValueTooLargeError):
        encode_value(value, 100)


def test_the_limit_is_inclusive() -> None:
    """A value of exactly the limit is accepted."""
    assert 100 == len(encode_value("x" * 98, 100))


def test_depth() -> None:
    """64 containers in each other are accepted, 65 are not; sets and keys count as lists do."""
    deepest: object = frozenset()
    for _ in range(DEPTH_MAX - 1):
        deepest = frozenset({deepest})
    assert nested(DEPTH_MAX) == decode_value(encode_value(nested(DEPTH_MAX), MIB))
    assert deepest == decode_value(encode_value(deepest, MIB))
    for too_deep in (nested(DEPTH_MAX + 1), {"a": nested(DEPTH_MAX)}, {(deepest,): 1}):
        with pytest.raises(ValueTooLargeError, match="deeper than 64"):
            encode_value(too_deep, MIB)


def test_a_value_that_contains_itself() -> None:
    """A cycle is refused, and so is a small value that would be exponentially large."""
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    shared: list[Any] = [0]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(EncodingError, match="contains itself"):
        encode_value(cycle, MIB)
    with pytest.raises(ValueTooLargeError):
        encode_value(shared, 10_000)


@pytest.mark.parametrize(
    "make",
    [
        lambda count: {index * HASH_MODULUS: 0 for index in range(count)},
        lambda count: {float(index) for index in range(count)},
        lambda count: [{index: 0} for index in range(count)],
        lambda count: {tuple(range(count - 1)): 0},
        lambda count: {b"%d" % index: 0 for index in range(count)},
    ],
)
def test_keys_that_can_be_chosen_to_collide_are_bounded(make: Any) -> None:
    """1,024 keys that are no str (elements: neither str nor bytes) in a whole value, tuples counted by their items."""
    fits = make(FOREIGN_KEYS_MAX)

    assert fits == decode_value(encode_value(fits, MIB))
    with pytest.raises(ValueTooLargeError, match="use str keys"):
        encode_value(make(FOREIGN_KEYS_MAX + 1), MIB)


def test_hashes_that_nobody_can_choose_are_not_bounded() -> None:
    """Any number of str keys, and of str and bytes elements."""
    value = [{str(index): 0 for index in range(5000)}, {b"%d" % index for index in range(5000)}]

    assert value == decode_value(encode_value(value, MIB))


def test_digits_of_a_decimal_are_bounded() -> None:
    """Decoding costs the square of the digits, so they are."""
    assert D("9" * 1000) == decode_value(encode_value(D("9" * 1000), MIB))
    with pytest.raises(ValueTooLargeError, match="1001 digits"):
        encode_value(D("9" * 1001), MIB)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"\x01\x01", b"\x81\x01\x00", b"\x43ab", b"\x43abcd", b"\x62\xff\xff",
        b"\x7f\x61a\xff", b"\x9f\xff",
        b"\xa2\x01\x01\x01\x02", b"\xd8\x1c\x81\xd8\x1d\x00", b"\xd8\x1d\x00", b"\xd8\x23\x61a", b"\xd8\x24\x61a",
        b"\xc5\x82\x1b\x00\x00\x00\x00\x7f\xff\xff\xff\x01", b"\xd9\x01\x04\x44abcd", b"\xd9\x12\x34\x01", b"\xc1\x00",
        b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff", b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x5a\x7f\xff\xff\xff", b"\x58",
        b"\xf6\xf6", b"\x18", b"\x19\x01", b"\x81" * 1000 + b"\x00", cbor2.dumps(cbor2.CBORTag(0x726B7630, "x")),
        cbor2.dumps(cbor2.CBORTag(0x726B7630, "2024-01-01T00:00:00Z")), cbor2.dumps(cbor2.CBORTag(0x726B7631, "1.5")),
        cbor2.dumps(cbor2.CBORTag(0x726B7631, "sNaN")), cbor2.dumps(cbor2.CBORTag(0x726B7631, [1])),
    ],
    ids=lambda data: data[:12].hex(),
)  # fmt: skip
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Bytes that the encoder cannot have made: foreign tags, indefinite lengths, duplicates, trailing bytes."""
    with pytest.raises(EncodingError):
        decode_value(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    """No other exception, whatever the bytes."""
    with contextlib.suppress(EncodingError):
        decode_value(data)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1, True), (1, 1.0, True), (True, 1, True), ("a", b"a", False), ("a", "a", True),
        (math.nan, math.nan, False),
        ([math.nan], [math.nan], False), ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ({1, 2}, {2, 1}, True),
        ([1], (1,), True), (D("1.0"), D("1.00"), True), (D("0.5"), 0.5, True), (None, False, False), (0, False, True),
        (datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1, tzinfo=UTC), False),
    ],
)  # fmt: skip
def test_equality_is_that_of_python(left: object, right: object, expected: bool) -> None:
    """Encoded values are compared as decoded: by Python equality."""
    assert expected == equal_values(encode_value(left, MIB), encode_value(right, MIB))
