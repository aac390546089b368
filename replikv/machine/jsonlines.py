"""The map as lines of JSON: for other programs, for people, and back.

A line for each key, behind a header. What JSON has is itself; everything else that can be stored is an object with one
name that begins with a dollar sign, as is an object of the map that would look like one. So nothing is lost on the way:

==================================================  ====================================================================
``{"$bytes": "AAE="}``                              bytes, in base64
``{"$datetime": "2024-02-29T12:00:00+01:00"}``      ISO 8601; without an offset for a naive one
``{"$date": "2024-02-29"}``                         ISO 8601
``{"$decimal": "1.10"}``, ``{"$uuid": "…"}``        as Python writes them
``{"$set": [1, 2]}``                                in any order
``{"$tuple": [1, 2]}``                              a key of a dict, or in a set: elsewhere tuples are stored as lists
``{"$dict": [[1, "one"]]}``                         with keys that are no str, or one key that begins with a dollar sign
``{"$float": "nan"}``, ``"inf"``, ``"-inf"``        what JSON has no number for
``{"$int": "0x1ffffffffffffffff"}``                 of more than 64 bits
==================================================  ====================================================================
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn

from replikv.errors import EncodingError
from replikv.machine.commands import encode_key
from replikv.machine.keyspace import Keyspace
from replikv.machine.record import unpack_record
from replikv.machine.values import decode_value, encode_value

__all__ = ["FORMAT", "Lines", "export_lines", "from_json", "to_json"]

FORMAT: Final = "replikv-export"
VERSION: Final = 1

_PLAIN_INT_BITS: Final = 64
"""Python reads any number of digits, others do not; and from some thousand digits on Python does not, either."""


# -- values ------------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Plain data, as a reader of the map gets it, as what ``json.dumps`` takes."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if value.bit_length() <= _PLAIN_INT_BITS else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [to_json(item) for item in value]
    if kind is dict:
        if not all(type(key) is str for key in value) or _is_tagged(value):
            return {"$dict": [[to_json(key), to_json(item)] for key, item in value.items()]}
        return {key: to_json(item) for key, item in value.items()}
    name, write = _WRITERS[kind]
    return {name: write(value)}


def from_json(data: Any, *, hashed: bool = False) -> Any:
    """The reverse of :func:`to_json`; ``hashed`` for a key of a dict or an element of a set.

    Raises EncodingError for a tag that there is not, or whose content is not what it should be.
    """
    if type(data) is list:
        return [from_json(item) for item in data]
    if type(data) is not dict:
        return data
    if not _is_tagged(data):
        return {key: from_json(item) for key, item in data.items()}
    ((tag, content),) = data.items()
    read = _READERS.get(tag)
    if read is None:
        raise EncodingError(f'there is no {tag!r}: an object with such a name is {{"$dict": [[{tag!r}, ...]]}}')
    try:
        value = read(content)
    except EncodingError:
        raise
    except Exception as exc:  # whatever the constructors make of it
        raise EncodingError(f"no {tag!r} is written {json.dumps(content)[:100]}") from exc
    return frozenset(value) if hashed and type(value) is set else value


def _is_tagged(value: dict[Any, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _items(content: Any) -> list[Any]:
    if type(content) is not list:
        raise EncodingError(f"a list belongs there, not {json.dumps(content)[:100]}")
    return [from_json(item, hashed=True) for item in content]


def _read_set(content: Any) -> set[Any]:
    items = _items(content)
    elements = set(items)
    if len(elements) < len(items):
        raise EncodingError("a set has each element once")
    return elements


def _read_dict(content: Any) -> dict[Any, Any]:
    pairs = [(from_json(key, hashed=True), from_json(item)) for key, item in content]
    value = dict(pairs)
    if len(value) < len(pairs):
        raise EncodingError("a dict has each key once")
    return value


def _read_float(content: Any) -> float:
    if content not in {"nan", "inf", "-inf"}:
        raise EncodingError('it is one of "nan", "inf" and "-inf"')
    return float(content)


_WRITERS: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    bytes: ("$bytes", lambda value: base64.b64encode(value).decode()),
    datetime.datetime: ("$datetime", datetime.datetime.isoformat),
    datetime.date: ("$date", datetime.date.isoformat),
    decimal.Decimal: ("$decimal", str),
    uuid.UUID: ("$uuid", str),
    set: ("$set", lambda value: [to_json(item) for item in value]),
    frozenset: ("$set", lambda value: [to_json(item) for item in value]),
    tuple: ("$tuple", lambda value: [to_json(item) for item in value]),
}

_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$datetime": datetime.datetime.fromisoformat,
    "$date": datetime.date.fromisoformat,
    "$decimal": lambda content: decimal.Decimal(_text(content)),
    "$uuid": lambda content: uuid.UUID(_text(content)),
    "$set": _read_set,
    "$tuple": lambda content: tuple(_items(content)),
    "$dict": _read_dict,
    "$float": _read_float,
    "$int": lambda content: int(_text(content), 16),
}


def _text(content: Any) -> str:
    if type(content) is not str:
        raise EncodingError(f"a string belongs there, not {json.dumps(content)[:100]}")
    return content


# -- lines -------------------------------------------------------------------------------------------------------------


def export_lines(keyspace: Keyspace, about: dict[str, str]) -> Iterator[str]:
    """The header and a line for each key, in order, each ended by a line feed.

    ``about`` stands in the header, for whoever reads it. The revisions, version and lease of a key are for information.
    """
    header = {"format": FORMAT, "format-version": VERSION, "revision": keyspace.revision, "keys": len(keyspace)}
    yield _dumps(header | about)
    for key, record in keyspace.scan():
        value, created, modified, version, lease = unpack_record(record)
        assert value is not None  # scans skip tombstones
        line = {"key": key, "value": to_json(decode_value(value))}
        line |= {"create_revision": created, "mod_revision": modified, "version": version}
        yield _dumps(line | ({"lease": lease} if lease else {}))


class Lines:
    """Reads what :func:`export_lines` has written, or what somebody else has in its form. Errors name the line.

    Raises EncodingError, here for what is no header.
    """

    def __init__(self, lines: Iterable[bytes], *, key_bytes_max: int, value_bytes_max: int) -> None:
        self._lines = iter(lines)
        self._key_bytes_max = key_bytes_max
        self._value_bytes_max = value_bytes_max
        self._number = 0
        header = self._next()
        if header is None or header.get("format") != FORMAT:
            raise self._wrong(f'no header: the first line has "format": "{FORMAT}"')
        if header.get("format-version") != VERSION:
            raise self._wrong(
                f"format version {header.get('format-version')!r}; this replikv reads {VERSION}: upgrade it"
            )
        self.revision = self._count(header, "revision") or 0
        """Of the map that they are of; 0 if the header does not tell."""
        self._keys = self._count(header, "keys")

    def items(self) -> Iterator[tuple[str, bytes]]:
        """The keys, and their encoded values, each proved to be readable."""
        seen: set[str] = set()
        while (line := self._next()) is not None:
            if "key" not in line or "value" not in line:
                raise self._wrong('it has no "key", or no "value"')
            key = line["key"]
            try:
                encode_key(key, self._key_bytes_max)
                data = encode_value(from_json(line["value"]), self._value_bytes_max)
            except EncodingError as exc:
                raise type(exc)(f"line {self._number}: {exc}") from exc
            except RecursionError as exc:
                raise self._wrong("it is too deep") from exc
            if key in seen:
                raise self._wrong(f"the key {key!r} stands twice")
            seen.add(key)
            yield key, data
        if self._keys is not None and self._keys != len(seen):
            raise self._wrong(
                f"the lines end here, with {len(seen)} keys, and the header says that there are {self._keys}: something"
                ' is missing; whoever has changed the lines on purpose takes "keys" out of the header'
            )

    def _next(self) -> dict[str, Any] | None:
        """The next line that is not empty; None at the end."""
        for line in self._lines:
            self._number += 1
            if line.strip():
                return self._parsed(line)
        return None

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(line, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_distinct)
        except RecursionError as exc:
            raise self._wrong("it is too deep") from exc
        except ValueError as exc:
            raise self._wrong(f"no JSON: {exc}") from exc
        if type(parsed) is not dict:
            raise self._wrong("each line is a JSON object")
        return parsed

    def _count(self, header: dict[str, Any], name: str) -> int | None:
        count = header.get(name)
        if count is not None and (type(count) is not int or not 0 <= count < 2**63):
            raise self._wrong(f'"{name}" must be a number, not {count!r:.100}')
        return count

    def _wrong(self, what: str) -> EncodingError:
        return EncodingError(f"line {self._number}: {what}")


def _dumps(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f'{constant} is no JSON: write {{"$float": ...}}')


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than any float")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found
