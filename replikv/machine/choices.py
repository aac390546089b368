"""The parts of a transaction, and their bytes: comparisons, what is done if they hold, and what otherwise.

The layout (``docs/format.md``) is fixed and big-endian; values stay as they were encoded. What the parts do is in
``transactions.py``, with the rules that are meant here.
"""

from __future__ import annotations

import bisect
import enum
import struct
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from replikv.machine.commands import Operation
from replikv.machine.envelope import Status
from replikv.machine.ranges import KeyRange
from replikv.machine.refusal import RefusedError

__all__ = [
    "DEPTH_MAX",
    "UNLIMITED",
    "Choice",
    "Comparison",
    "Delete",
    "Found",
    "Get",
    "Put",
    "Relation",
    "Step",
    "StepKind",
    "Target",
    "TransactResult",
    "decode_transact",
    "decode_transact_result",
    "encode_transact",
    "too_many",
    "written_twice",
]

DEPTH_MAX: Final = 16
"""Transactions within transactions, the outermost included."""

UNLIMITED: Final = 0xFFFFFFFF
"""As the limit of a GET."""

_HEAD: Final = struct.Struct(">III")
"""A choice: numbers of comparisons, of steps to take if they hold, and of steps to take if not; then all of them."""
_COMPARISON: Final = struct.Struct(">BB")
"""Target, relation; then the keys; then the operand."""
_NUMBER: Final = struct.Struct(">Q")
"""The operand, but of VALUE."""
SIZE: Final = struct.Struct(">I")
"""The operand of VALUE: bytes of the value, 0 for none; value."""
_KEYS: Final = struct.Struct(">BII")
"""One key or a range: form, bytes of the key or of the start, bytes of the stop; these."""
_ONE_KEY, _CLOSED_RANGE, _OPEN_RANGE = 0, 1, 2
_PUT: Final = struct.Struct(">QII")
"""Behind its kind: lease, bytes of the key, bytes of the value; key, value."""
CHOICE_RESULT: Final = struct.Struct(">BI")
"""Of a choice: 1 if the comparisons held, number of steps taken; then the result of each, which begins with its kind:
PUT nothing, DELETE and GET a number and then so many records, CHOICE the result of a choice."""
FOUND: Final = struct.Struct(">IIQQQQ")
"""Bytes of the key, bytes of the value, create_revision, mod_revision, version, lease; key, value."""


class Target(enum.IntEnum):
    """What of a key is compared."""

    VALUE = 1
    VERSION = 2
    CREATE_REVISION = 3
    MOD_REVISION = 4
    LEASE = 5
    UNCHANGED = 6
    """No key of the range was put or deleted after the revision that is the operand. The relation is EQUAL."""


class Relation(enum.IntEnum):
    """What is compared stands on the left, the operand on the right."""

    EQUAL = 1
    NOT_EQUAL = 2
    LESS = 3
    GREATER = 4


_TARGETS: Final = {int(target): target for target in Target}  # a look-up, where Target() is a call
_RELATIONS: Final = {int(relation): relation for relation in Relation}


class StepKind(enum.IntEnum):
    """The first byte of a step, and of its result."""

    PUT = 1
    DELETE = 2
    GET = 3
    CHOICE = 4


class Comparison(NamedTuple):
    """Of each key that is named with the operand."""

    target: Target
    keys: str | KeyRange
    relation: Relation
    operand: bytes | int | None
    """An encoded value or None for the absence of one if the target is VALUE, else a number."""


class Put(NamedTuple):
    """Set a key."""

    key: str
    value: bytes
    lease: int


class Delete(NamedTuple):
    """Remove whatever is there."""

    keys: str | KeyRange


class Get(NamedTuple):
    """Answer with what is there: the first ``limit`` keys of it."""

    keys: str | KeyRange
    limit: int = UNLIMITED


class Choice(NamedTuple):
    """If all comparisons hold, then these steps, otherwise those. A step itself, within another."""

    compares: Sequence[Comparison]
    then: Sequence[Step]
    otherwise: Sequence[Step]


Step: TypeAlias = Put | Delete | Get | Choice


class Found(NamedTuple):
    """A record that a GET answers with."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class TransactResult(NamedTuple):
    """Of a choice: whether its comparisons held, and what each step that was taken answered.

    Put: None. Delete: the number of keys that were there. Get: a list of Found. Choice: its TransactResult.
    """

    succeeded: bool
    results: list[int | list[Found] | TransactResult | None]


# -- encoding ----------------------------------------------------------------------------------------------------------


def encode_transact(choice: Choice) -> bytes:
    """TRANSACT: the payload. At most ``DEPTH_MAX`` deep: checked by the caller."""
    parts = [bytes([Operation.TRANSACT])]
    _encode_choice(choice, parts)
    return b"".join(parts)


def _encode_choice(choice: Choice, parts: list[bytes]) -> None:
    parts.append(_HEAD.pack(len(choice.compares), len(choice.then), len(choice.otherwise)))
    for target, keys, relation, operand in choice.compares:
        parts.append(_COMPARISON.pack(target, relation))
        _encode_keys(keys, parts)
        if isinstance(operand, int):
            parts.append(_NUMBER.pack(operand))
        else:
            value = operand or b""
            parts += (SIZE.pack(len(value)), value)
    for step in (*choice.then, *choice.otherwise):
        match step:
            case Put(name, value, lease):
                key = name.encode()
                parts += (bytes([StepKind.PUT]), _PUT.pack(lease, len(key), len(value)), key, value)
            case Delete(keys):
                parts.append(bytes([StepKind.DELETE]))
                _encode_keys(keys, parts)
            case Get(keys, limit):
                parts.append(bytes([StepKind.GET]))
                _encode_keys(keys, parts)
                parts.append(SIZE.pack(limit))
            case Choice():
                parts.append(bytes([StepKind.CHOICE]))
                _encode_choice(step, parts)


def _encode_keys(keys: str | KeyRange, parts: list[bytes]) -> None:
    if isinstance(keys, str):
        key = keys.encode()
        parts += (_KEYS.pack(_ONE_KEY, len(key), 0), key)
        return
    # The end of a prefix may be a lone surrogate, which stands for nothing but a place in the order.
    start = keys.start.encode(errors="surrogatepass")
    stop = b"" if keys.stop is None else keys.stop.encode(errors="surrogatepass")
    form = _OPEN_RANGE if keys.stop is None else _CLOSED_RANGE
    parts += (_KEYS.pack(form, len(start), len(stop)), start, stop)


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode_transact(data: bytes, offset: int, operations_max: int) -> tuple[Choice, int]:
    """The transaction in the payload at ``offset``, to its end, and how many operations it has.

    Raises RefusedError, struct.error, IndexError and UnicodeDecodeError for what :func:`encode_transact` cannot have
    made, and for what breaks rules 3 and 5.
    """
    reader = _Reader(data, offset + 1, operations_max)
    choice = reader.choice(1)
    if reader.position != len(data):
        raise RefusedError("the transaction is not as long as its parts say")
    if (key := written_twice(choice)) is not None:
        raise RefusedError(f"the transaction puts the key '{key[:100]}' twice, or deletes it as well")
    return choice, reader.operations


class _Reader:
    """A place in a payload."""

    def __init__(self, data: bytes, position: int, operations_max: int) -> None:
        self.data = data
        self.position = position
        self.operations = 0
        self._operations_max = operations_max

    def choice(self, depth: int) -> Choice:
        if depth > DEPTH_MAX:
            raise RefusedError(f"more than {DEPTH_MAX} transactions within each other")
        compares, then, otherwise = self._unpack(_HEAD)
        self.operations += compares + then + otherwise
        if self.operations > self._operations_max:
            raise too_many(self._operations_max)
        return Choice(
            [self._comparison() for _ in range(compares)],
            [self._step(depth) for _ in range(then)],
            [self._step(depth) for _ in range(otherwise)],
        )

    def _comparison(self) -> Comparison:
        target, relation = self._unpack(_COMPARISON)
        target, relation = _TARGETS.get(target), _RELATIONS.get(relation)
        if target is None or relation is None or (target == Target.UNCHANGED and relation != Relation.EQUAL):
            raise RefusedError("a comparison that no version of replikv makes")
        keys = self._keys()
        if target != Target.VALUE:
            return Comparison(target, keys, relation, self._unpack(_NUMBER)[0])
        (size,) = self._unpack(SIZE)
        return Comparison(target, keys, relation, self._take(size) or None)

    def _step(self, depth: int) -> Step:
        kind = self.data[self.position]
        self.position += 1
        if kind == StepKind.PUT:
            lease, key_size, value_size = self._unpack(_PUT)
            key, value = self._take(key_size).decode(), self._take(value_size)
            if not value:
                raise RefusedError("the transaction puts a key without a value")
            return Put(key, value, lease)
        if kind == StepKind.DELETE:
            return Delete(self._keys())
        if kind == StepKind.GET:
            return Get(self._keys(), self._unpack(SIZE)[0])
        if kind == StepKind.CHOICE:
            return self.choice(depth + 1)
        raise RefusedError("a step of a transaction that no version of replikv makes")

    def _keys(self) -> str | KeyRange:
        form, size, stop_size = self._unpack(_KEYS)
        if form == _ONE_KEY and not stop_size:
            return self._take(size).decode()
        if form > _OPEN_RANGE or (stop_size and form != _CLOSED_RANGE):
            raise RefusedError("keys in a form that no version of replikv writes")
        start = self._take(size).decode(errors="surrogatepass")
        stop = self._take(stop_size).decode(errors="surrogatepass")
        return KeyRange(start, stop if form == _CLOSED_RANGE else None)

    def _unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        fields = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return fields

    def _take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise RefusedError("the transaction ends before its parts do")
        part = self.data[self.position : end]
        self.position = end
        return part


def written_twice(choice: Choice) -> str | None:
    """A key that some way through the transaction puts twice, or puts and deletes (rule 3); None if there is none."""
    for steps in (choice.then, choice.otherwise):
        found = _Footprint().add_all(steps)
        if found is not None:
            return found
    return None


class _Footprint:
    """What a sequence of steps may write."""

    def __init__(self) -> None:
        self.puts: set[str] = set()
        self.deletes: set[str] = set()
        self.ranges: list[KeyRange] = []

    def add_all(self, steps: Sequence[Step]) -> str | None:
        """Take the steps in; a key that two of them write, if there is one. O(n log n), but for choices in choices."""
        own_puts: list[str] = []
        own_ranges: list[KeyRange] = []
        for step in steps:
            if isinstance(step, Put):
                if step.key in self.puts or step.key in self.deletes:
                    return step.key
                self.puts.add(step.key)
                own_puts.append(step.key)
            elif isinstance(step, Choice):
                if (found := self._add_choice(step)) is not None:
                    return found
            elif isinstance(step, Delete):
                if not isinstance(step.keys, str):
                    own_ranges.append(step.keys)
                elif step.keys in self.puts:
                    return step.keys
                else:
                    self.deletes.add(step.keys)
        found = _hit(self.ranges, own_puts)
        self.ranges += own_ranges
        return found if found is not None else _hit(own_ranges, self.puts)

    def _add_choice(self, choice: Choice) -> str | None:
        both = _Footprint()  # of branches that exclude each other, but not what is around them
        for branch in (choice.then, choice.otherwise):
            one = _Footprint()
            if (found := one.add_all(branch)) is not None:
                return found
            both._join(one)
        common = self.puts & both.puts | self.puts & both.deletes | self.deletes & both.puts
        found = min(common) if common else _hit(self.ranges, both.puts)
        if found is None:
            found = _hit(both.ranges, self.puts)
        self._join(both)
        return found

    def _join(self, other: _Footprint) -> None:
        self.puts |= other.puts
        self.deletes |= other.deletes
        self.ranges += other.ranges


def _hit(ranges: Sequence[KeyRange], puts: Collection[str]) -> str | None:
    """A key that is in one of the ranges."""
    if ranges and puts:
        ordered = sorted(puts)
        for keys in ranges:
            place = bisect.bisect_left(ordered, keys.start)
            if place < len(ordered) and ordered[place] in keys:
                return ordered[place]
    return None


def too_many(limit: int) -> RefusedError:
    """For a transaction of more operations than the limit."""
    return RefusedError(
        f"the transaction has, or comes across, more than {limit} comparisons, steps and keys of ranges"
        " (operations_per_command_max): make it smaller",
        Status.OVER_LIMIT,
    )


# -- results -----------------------------------------------------------------------------------------------------------


def decode_transact_result(data: bytes) -> tuple[int, TransactResult]:
    """The revision, and the result of the outermost choice."""
    result, _ = _decode_result(data, _NUMBER.size)
    return _NUMBER.unpack_from(data)[0], result


def _decode_result(data: bytes, position: int) -> tuple[TransactResult, int]:
    succeeded, count = CHOICE_RESULT.unpack_from(data, position)
    position += CHOICE_RESULT.size
    results: list[int | list[Found] | TransactResult | None] = []
    for _ in range(count):
        kind = data[position]
        position += 1
        if kind == StepKind.PUT:
            results.append(None)
        elif kind == StepKind.CHOICE:
            nested, position = _decode_result(data, position)
            results.append(nested)
        else:
            (number,) = SIZE.unpack_from(data, position)
            position += SIZE.size
            if kind == StepKind.DELETE:
                results.append(number)
                continue
            found: list[Found] = []
            for _ in range(number):
                key_size, value_size, *numbers = FOUND.unpack_from(data, position)
                middle = position + FOUND.size + key_size
                key = data[position + FOUND.size : middle].decode()
                position = middle + value_size
                found.append(Found(key, data[middle:position], *numbers))
            results.append(found)
    return TransactResult(bool(succeeded), results), position
