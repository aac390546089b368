"""Transactions: what is done if some comparisons hold, and what if one of them does not; all of it at one revision.

Rules, the same on every replica; where they are of etcd they are its own (server/etcdserver/txn):

1. All comparisons, those of nested transactions included, are of the state before the transaction. So it is decided
   what will be done before any of it is.
2. What is done is done in order: reads see what the same transaction wrote before them.
3. A key is put once at most, and not deleted as well, whichever branches are taken. That is seen without the state.
4. A key that is not there has the version, the revisions and the lease 0, and no value: that equals no value, and is
   neither less nor greater. A comparison of a range holds if it does for each of its keys; of a range without keys, if
   it does for a key that is not there.
5. Comparisons, steps and the keys that ranges come across count as the operations of the command, whose number is
   limited; so are the bytes of values that it reads, and the depth of nesting.

The layout (``docs/format.md``) is fixed and big-endian; values stay as they were encoded.
"""

from __future__ import annotations

import decimal
import enum
import heapq
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

from sortedcontainers import SortedList

from replikv.machine.commands import Operation
from replikv.machine.envelope import Status
from replikv.machine.keyspace import Keyspace, Write
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, is_live, lease_of, pack_record, unpack_record, value_of
from replikv.machine.refusal import RefusedError
from replikv.machine.values import decode_value

__all__ = [
    "DEPTH_MAX",
    "READ_BYTES_MAX",
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
    "Transacting",
    "decode_transact",
    "decode_transact_result",
    "encode_transact",
    "written_twice",
]

DEPTH_MAX: Final = 16
"""Transactions within transactions, the outermost included."""

READ_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes of records that a transaction answers with, and of values that it compares; a single one may be larger. The
answer is kept in the session's results and stands in one chunk of a snapshot, which must fit a frame between peers."""

UNLIMITED: Final = 0xFFFFFFFF
"""As the limit of a GET."""

_HEAD: Final = struct.Struct(">III")
"""A choice: numbers of comparisons, of steps to take if they hold, and of steps to take if not; then all of them."""
_COMPARISON: Final = struct.Struct(">BB")
"""Target, relation; then the keys; then the operand."""
_NUMBER: Final = struct.Struct(">Q")
"""The operand, but of VALUE."""
_SIZE: Final = struct.Struct(">I")
"""The operand of VALUE: bytes of the value, 0 for none; value."""
_KEYS: Final = struct.Struct(">BII")
"""One key or a range: form, bytes of the key or of the start, bytes of the stop; these."""
_ONE_KEY, _CLOSED_RANGE, _OPEN_RANGE = 0, 1, 2
_PUT: Final = struct.Struct(">QII")
"""Behind its kind: lease, bytes of the key, bytes of the value; key, value."""
_RESULT: Final = struct.Struct(">BI")
"""Of a choice: 1 if the comparisons held, number of steps taken; then the result of each, which begins with its kind:
PUT nothing, DELETE and GET a number and then so many records, CHOICE the result of a choice."""
_RECORD: Final = struct.Struct(">IIQQQQ")
"""Bytes of the key, bytes of the value, create_revision, mod_revision, version, lease; key, value."""

_ORDER: Final = decimal.Context(prec=28, traps=[])
"""Decimals are ordered alike whatever the application has set: NaN before nothing, and floats are no error."""

_NOTHING: Final = object()
"""The value of a key that is not there: equal to itself alone, and without an order."""


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
            parts += (_SIZE.pack(len(value)), value)
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
                parts.append(_SIZE.pack(limit))
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
        try:
            target, relation = Target(target), Relation(relation)
        except ValueError:
            raise RefusedError("a comparison that no version of replikv makes") from None
        if target == Target.UNCHANGED and relation != Relation.EQUAL:
            raise RefusedError("a comparison that no version of replikv makes")
        keys = self._keys()
        if target != Target.VALUE:
            return Comparison(target, keys, relation, self._unpack(_NUMBER)[0])
        (size,) = self._unpack(_SIZE)
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
            return Get(self._keys(), self._unpack(_SIZE)[0])
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
        """Take the steps in, up to one that writes what those before it do; the key in question."""
        for step in steps:
            own = _Footprint()
            if isinstance(step, Put):
                own.puts.add(step.key)
            elif isinstance(step, Delete):
                if isinstance(step.keys, str):
                    own.deletes.add(step.keys)
                else:
                    own.ranges.append(step.keys)
            elif isinstance(step, Choice):
                # Its branches exclude each other, but not what is around them.
                for branch in (step.then, step.otherwise):
                    one = _Footprint()
                    if (found := one.add_all(branch)) is not None:
                        return found
                    own._join(one)
            if (found := self._common(own)) is not None:
                return found
            self._join(own)
        return None

    def _join(self, other: _Footprint) -> None:
        self.puts |= other.puts
        self.deletes |= other.deletes
        self.ranges += other.ranges

    def _common(self, other: _Footprint) -> str | None:
        exact = (self.puts & other.puts) | (self.puts & other.deletes) | (self.deletes & other.puts)
        inside = (
            key
            for ranges, puts in ((self.ranges, other.puts), (other.ranges, self.puts))
            for keys in ranges
            for key in puts
            if key in keys
        )
        return min(exact) if exact else min(inside, default=None)


# -- what it does ------------------------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """The branches that are taken."""

    succeeded: bool
    steps: list[Put | Delete | Get | _Way]


class Transacting:
    """One transaction over the keyspace, which it reads only: :meth:`writes` are for the caller to commit."""

    def __init__(self, keyspace: Keyspace, operations: int, operations_max: int) -> None:
        self._keyspace = keyspace
        self._operations = operations
        self._operations_max = operations_max
        self._values_read = self._bytes_read = 0
        self._revision = keyspace.revision + 1
        """That of everything written here."""
        self._written: dict[str, Record] = {}
        """Key -> its new record, a tombstone if it was there and is deleted."""
        self._new: SortedList[str] = SortedList()
        """The keys among them that the keyspace does not have."""

    def run(self, choice: Choice) -> bytes:
        """The result. Raises RefusedError, and EncodingError for values that nobody has encoded."""
        parts: list[bytes] = []
        self._follow(self._decide(choice), parts)
        return b"".join(parts)

    def writes(self) -> list[Write]:
        """What to commit at the next revision: every one of them changes something."""
        return [
            (key, value_of(record) if is_live(record) else None, lease_of(record))
            for key, record in self._written.items()
        ]

    def _decide(self, choice: Choice) -> _Way:
        succeeded = all(self._holds(comparison) for comparison in choice.compares)
        steps = choice.then if succeeded else choice.otherwise
        return _Way(succeeded, [self._decide(step) if isinstance(step, Choice) else step for step in steps])

    def _follow(self, way: _Way, parts: list[bytes]) -> None:
        parts.append(_RESULT.pack(way.succeeded, len(way.steps)))
        for step in way.steps:
            if isinstance(step, Put):
                parts.append(bytes([StepKind.PUT]))
                self._put(step)
            elif isinstance(step, Delete):
                parts += (bytes([StepKind.DELETE]), _SIZE.pack(self._delete(step.keys)))
            elif isinstance(step, Get):
                found = [self._answer(key, record) for key, record in self._get(step)]
                parts += (bytes([StepKind.GET]), _SIZE.pack(len(found)), *found)
            else:
                parts.append(bytes([StepKind.CHOICE]))
                self._follow(step, parts)

    # -- comparisons, of the state before ------------------------------------------------------------------------------

    def _holds(self, comparison: Comparison) -> bool:
        target, keys, relation, operand = comparison
        if target == Target.UNCHANGED:
            wanted = KeyRange(keys, keys + "\0") if isinstance(keys, str) else keys
            return self._keyspace.unchanged_since(wanted, cast("int", operand))
        right: Any = operand
        if target == Target.VALUE:  # decoded once, and refused if it is none, whatever it is compared with
            right = _NOTHING if operand is None else decode_value(cast("bytes", operand))
        if isinstance(keys, str):
            return _related(self._part(target, self._keyspace.get(keys)), relation, right)
        empty = True
        for key in self._keyspace.iterate_keys(keys):
            self._come_across()
            empty = False
            if not _related(self._part(target, self._keyspace.get(key)), relation, right):
                return False
        return not empty or _related(self._part(target, None), relation, right)

    def _part(self, target: Target, record: Record | None) -> Any:
        """What is compared of a record, or of the lack of one."""
        if target == Target.VALUE:
            if record is None:
                return _NOTHING
            value = value_of(record)
            self._read(len(value))
            return decode_value(value)
        if record is None:
            return 0
        _, create_revision, mod_revision, version, lease = unpack_record(record)
        return {
            Target.VERSION: version,
            Target.CREATE_REVISION: create_revision,
            Target.MOD_REVISION: mod_revision,
            Target.LEASE: lease,
        }[target]

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _put(self, step: Put) -> None:
        key, value, lease = step
        old = self._keyspace.get(key)  # it is written once: see rule 3
        if old is None:
            self._new.add(key)
            created, version = self._revision, 1
        else:
            _, created, _, version, _ = unpack_record(old)
            version += 1
        self._written[key] = pack_record(value, created, self._revision, version, lease)

    def _delete(self, keys: str | KeyRange) -> int:
        there = [key for key, _ in self._look(keys)]
        for key in there:
            self._written[key] = pack_record(None, 0, self._revision, 0, 0)
        return len(there)

    def _get(self, step: Get) -> Iterator[tuple[str, Record]]:
        left = step.limit
        if left:
            for key, record in self._look(step.keys):
                yield key, record
                left -= 1
                if not left:
                    return

    def _look(self, keys: str | KeyRange) -> Iterator[tuple[str, Record]]:
        """What is there by now, in order."""
        if isinstance(keys, str):
            record = self._written.get(keys) or self._keyspace.get(keys)
            if record is not None and is_live(record):
                yield keys, record
            return
        for key in heapq.merge(self._keyspace.iterate_keys(keys), keys.iterate(self._new)):
            self._come_across()
            record = self._written.get(key) or self._keyspace.get(key)
            assert record is not None  # it is in one of the two
            if is_live(record):
                yield key, record

    def _answer(self, key: str, record: Record) -> bytes:
        value, created, modified, version, lease = unpack_record(record)
        assert value is not None  # live
        name = key.encode()
        data = _RECORD.pack(len(name), len(value), created, modified, version, lease) + name + value
        self._read(len(data))
        return data

    # -- rule 5 --------------------------------------------------------------------------------------------------------

    def _come_across(self) -> None:
        self._operations += 1
        if self._operations > self._operations_max:
            raise too_many(self._operations_max)

    def _read(self, size: int) -> None:
        self._values_read += 1
        self._bytes_read += size
        if self._bytes_read > READ_BYTES_MAX and self._values_read > 1:
            raise RefusedError(
                f"the transaction reads more than {READ_BYTES_MAX} bytes: read less at once, or outside of it",
                Status.OVER_LIMIT,
            )


def too_many(limit: int) -> RefusedError:
    """For a transaction of more operations than the limit."""
    return RefusedError(
        f"the transaction has, or comes across, more than {limit} comparisons, steps and keys of ranges"
        " (operations_per_command_max): make it smaller",
        Status.OVER_LIMIT,
    )


def _related(left: Any, relation: Relation, right: Any) -> bool:
    if relation == Relation.EQUAL:
        return bool(left == right)
    if relation == Relation.NOT_EQUAL:
        return bool(left != right)
    with decimal.localcontext(_ORDER):
        try:
            return bool(left < right if relation == Relation.LESS else left > right)
        except TypeError:  # they have no order
            return False


# -- results -----------------------------------------------------------------------------------------------------------


def decode_transact_result(data: bytes) -> tuple[int, TransactResult]:
    """The revision, and the result of the outermost choice."""
    result, _ = _decode_result(data, _NUMBER.size)
    return _NUMBER.unpack_from(data)[0], result


def _decode_result(data: bytes, position: int) -> tuple[TransactResult, int]:
    succeeded, count = _RESULT.unpack_from(data, position)
    position += _RESULT.size
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
            (number,) = _SIZE.unpack_from(data, position)
            position += _SIZE.size
            if kind == StepKind.DELETE:
                results.append(number)
                continue
            found: list[Found] = []
            for _ in range(number):
                key_size, value_size, *numbers = _RECORD.unpack_from(data, position)
                middle = position + _RECORD.size + key_size
                key = data[position + _RECORD.size : middle].decode()
                position = middle + value_size
                found.append(Found(key, data[middle:position], *numbers))
            results.append(found)
    return TransactResult(bool(succeeded), results), position
