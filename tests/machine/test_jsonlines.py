"""The map as lines of JSON: nothing is lost on the way, and what is wrong with a line is told with its number."""

# ruff: noqa: DTZ001  # naive datetimes are what is tested

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import EncodingError, ValueTooLargeError
from replikv.machine.jsonlines import Lines, export_lines, from_json, to_json
from replikv.machine.keyspace import Keyspace
from replikv.machine.values import decode_value, encode_value

MIB = 1 << 20
D = decimal.Decimal

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**64 - 1, max_value=2**200)
    | st.floats()
    | st.sampled_from([math.inf, -math.inf, math.nan, -0.0])
    | st.text(max_size=8)
    | st.sampled_from(["$bytes", "$dict", "$", "schema-version"])
    | st.binary(max_size=8)
    | st.datetimes()
    | st.datetimes(timezones=st.just(datetime.UTC) | st.just(datetime.timezone(datetime.timedelta(minutes=-90))))
    | st.dates()
    | st.decimals().filter(lambda value: not value.is_snan())
    | st.uuids()
)
hashables = st.recursive(atoms, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
plain = st.recursive(
    atoms | st.sets(hashables, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$set", "a", "b"]), inner, max_size=2)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down; NaN is NaN."""
    if type(left) is not type(right):
        return False
    if type(left) in {list, tuple}:
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is dict:
        return len(left) == len(right) and all(map(same, left.items(), right.items()))
    if type(left) in {set, frozenset}:
        rest = list(right)
        for element in left:
            found = next((place for place, other in enumerate(rest) if same(element, other)), None)
            if found is None:
                return False
            del rest[found]
        return not rest
    if left != left:  # NaN is what differs from itself
        return bool(right != right)
    return bool(left == right) and (type(left) is int or str(left) == str(right))


@settings(max_examples=300, deadline=None)
@given(plain)
def test_whatever_can_be_stored_comes_back(value: Any) -> None:
    """Of the same type, through text: what a reader of the map gets is what he gets after an import."""
    stored = decode_value(encode_value(value, MIB))
    text = json.dumps(to_json(stored), allow_nan=False)
    again = decode_value(encode_value(from_json(json.loads(text)), MIB))
    assert same(stored, again), (stored, text, again)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ([1, 1.0, "x", True], [1, 1.0, "x", True]),
        ({"a": {"b": []}}, {"a": {"b": []}}),
        (b"\x00\x01", {"$bytes": "AAE="}),
        (datetime.datetime(2024, 2, 29, 12), {"$datetime": "2024-02-29T12:00:00"}),
        (datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC), {"$datetime": "2024-02-29T12:00:00+00:00"}),
        (datetime.date(2024, 2, 29), {"$date": "2024-02-29"}),
        (D("1.10"), {"$decimal": "1.10"}),
        (uuid.UUID(int=5), {"$uuid": "00000000-0000-0000-0000-000000000005"}),
        ({7}, {"$set": [7]}),
        ({(1, 2): 3}, {"$dict": [[{"$tuple": [1, 2]}, 3]]}),
        ({1: "one"}, {"$dict": [[1, "one"]]}),
        ({"$bytes": 5}, {"$dict": [["$bytes", 5]]}),
        ({"$bytes": 5, "b": 1}, {"$bytes": 5, "b": 1}),
        (math.inf, {"$float": "inf"}),
        (2**64 - 1, 2**64 - 1),
        (-(2**64), {"$int": "-0x10000000000000000"}),
        pytest.param(1 << 20000, {"$int": hex(1 << 20000)}, id="large"),
    ],
)
def test_forms(value: Any, expected: Any) -> None:
    """As the table has them: they are a format, and others read it."""
    assert expected == to_json(value)
    assert same(value, from_json(expected))


def exported(items: dict[str, Any]) -> list[bytes]:
    keyspace = Keyspace()
    for key, value in items.items():
        keyspace.put(key, encode_value(value, MIB))
    return [line.encode() for line in export_lines(keyspace, {"cluster": "c"})]


def read(lines: list[bytes], limit: int = MIB) -> dict[str, Any]:
    found = Lines(lines, key_bytes_max=100, value_bytes_max=limit)
    return {key: decode_value(data) for key, data in found.items()}


def test_lines() -> None:
    """A header, and a line for each key in order, with what is known of it."""
    lines = exported({"b": 1, "a": "ü", "line\nfeed\u2028": [b"x"]})
    assert {"format": "replikv-export", "format-version": 1, "revision": 3, "keys": 3, "cluster": "c"} == json.loads(
        lines[0]
    )
    assert {"key": "a", "value": "ü", "create_revision": 2, "mod_revision": 2, "version": 1} == json.loads(lines[1])
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert {"b": 1, "a": "ü", "line\nfeed\u2028": [b"x"]} == read(lines)
    assert 3 == Lines(lines, key_bytes_max=100, value_bytes_max=100).revision


def test_lines_that_somebody_has_written() -> None:
    """A header that says next to nothing, empty lines, fields that nobody knows, no line feed at the end."""
    header = b'{"format": "replikv-export", "format-version": 1}\n'
    assert {"a": 1, "": None} == read(
        [b"\n", header, b"\r\n", b'{"key": "a", "value": 1, "x": 2}\n', b'{"key":"","value":null}']
    )


HEADER = b'{"format": "replikv-export", "format-version": 1}\n'
GOOD = b'{"key": "a", "value": 1}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON: Expecting property name"),
        (b"\xff", "no JSON: 'utf-8' codec"),
        (b"[]", "each line is a JSON object"),
        (b'{"key": "b"}', 'it has no "key", or no "value"'),
        (b'{"value": 1}', 'it has no "key", or no "value"'),
        (GOOD, "the key 'a' stands twice"),
        (b'{"key": 1, "value": 1}', "keys are str, not int"),
        (b'{"key": "\\ud800", "value": 1}', "lone surrogate"),
        (b'{"key": "b", "value": "\\ud800"}', "lone surrogate"),
        (b'{"key": "b", "value": NaN}', r"NaN is no JSON: write {\"\$float\": ...}"),
        (b'{"key": "b", "value": 1e999}', "1e999 is larger than any float"),
        (b'{"key": "b", "value": {"a": 1, "a": 2}}', "a name stands twice in one object"),
        (b'{"key": "b", "value": {"$byte": ""}}', r"there is no '\$byte'"),
        (b'{"key": "b", "value": {"$bytes": "A"}}', r"no '\$bytes' is written \"A\""),
        (b'{"key": "b", "value": {"$bytes": "A A="}}', r"no '\$bytes'"),
        (b'{"key": "b", "value": {"$bytes": 5}}', r"no '\$bytes'"),
        (b'{"key": "b", "value": {"$datetime": "yesterday"}}', r"no '\$datetime'"),
        (b'{"key": "b", "value": {"$date": "2024-02-30"}}', r"no '\$date'"),
        (b'{"key": "b", "value": {"$decimal": "one"}}', r"no '\$decimal'"),
        (b'{"key": "b", "value": {"$decimal": [0, [1], 0]}}', "a string belongs there"),
        (b'{"key": "b", "value": {"$decimal": "sNaN"}}', "sNaN"),
        (b'{"key": "b", "value": {"$uuid": 5}}', "a string belongs there"),
        (b'{"key": "b", "value": {"$set": "ab"}}', "a list belongs there"),
        (b'{"key": "b", "value": {"$set": [1, 1.0]}}', "a set has each element once"),
        (b'{"key": "b", "value": {"$set": [[]]}}', r"no '\$set'"),
        (b'{"key": "b", "value": {"$dict": [[1, 1], [true, 2]]}}', "a dict has each key once"),
        (b'{"key": "b", "value": {"$dict": [[1]]}}', r"no '\$dict'"),
        (b'{"key": "b", "value": {"$dict": {"a": 1}}}', r"no '\$dict'"),
        (b'{"key": "b", "value": {"$float": "1.5"}}', "it is one of"),
        (b'{"key": "b", "value": {"$float": []}}', r"no '\$float'"),
        (b'{"key": "b", "value": {"$int": "x"}}', r"no '\$int'"),
        (b'{"key": "b", "value": ' + b"[" * 70 + b"]" * 70 + b"}", "deeper than 64 containers"),
        (b'{"key": "b", "value": ' + b"[" * 99999 + b"]" * 99999 + b"}", "it is too deep"),
        (b'{"key": "b", "value": ' + b"1" * 5000 + b"}", "no JSON: Exceeds the limit"),
    ],
)
def test_a_line_that_is_wrong(line: bytes, reason: str) -> None:
    """The error says which, and what about it."""
    with pytest.raises(EncodingError, match=f"(?s)^line 4: .*{reason}"):
        read([HEADER, b"\n", GOOD, line])


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "line 1: no header"),
        (GOOD, 'line 1: no header: the first line has "format": "replikv-export"'),
        (b'{"format": "replikv-export", "format-version": 2}', "line 1: format version 2; this replikv reads 1"),
        (b'{"format": "replikv-export"}', "format version None"),
        (b'{"format": "replikv-export", "format-version": 1, "keys": "2"}', "\"keys\" must be a number, not '2'"),
        (b'{"format": "replikv-export", "format-version": 1, "revision": -1}', '"revision" must be a number, not -1'),
    ],
)
def test_a_header_that_is_wrong(header: bytes, reason: str) -> None:
    """It is no export, or one of a later version."""
    with pytest.raises(EncodingError, match=reason):
        read([header])


def test_lines_that_are_missing() -> None:
    """The header says how many keys there are: an end that was cut off is found."""
    lines = exported({"a": 1, "b": 2})
    with pytest.raises(
        EncodingError, match="line 2: the lines end here, with 1 keys, and the header says that there are 2"
    ):
        read(lines[:2])


def test_a_value_that_is_too_large() -> None:
    """The settings of the new cluster count."""
    with pytest.raises(ValueTooLargeError, match="line 2: the value takes more than 10 bytes"):
        read(exported({"a": "." * 20}), limit=10)
