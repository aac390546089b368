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

The parts and their bytes are in ``choices.py``.
"""

from __future__ import annotations

import decimal
import heapq
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

from sortedcontainers import SortedList

from replikv.machine.choices import (
    CHOICE_RESULT,
    FOUND,
    SIZE,
    Choice,
    Comparison,
    Delete,
    Get,
    Put,
    Relation,
    StepKind,
    Target,
    too_many,
)
from replikv.machine.envelope import Status
from replikv.machine.keyspace import Keyspace, Write
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, is_live, lease_of, pack_record, unpack_record, value_of
from replikv.machine.refusal import RefusedError
from replikv.machine.values import decode_value

__all__ = ["READ_BYTES_MAX", "Transacting"]

READ_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes of records that a transaction answers with, and of values that it compares; a single one may be larger. The
answer is kept in the session's results and stands in one chunk of a snapshot, which must fit a frame between peers."""

_ORDER: Final = decimal.Context(prec=28, traps=[])
"""Decimals are ordered alike whatever the application has set: NaN before nothing, and floats are no error."""

_FIELDS: Final = {Target.CREATE_REVISION: 1, Target.MOD_REVISION: 2, Target.VERSION: 3, Target.LEASE: 4}
"""Target -> its place in an unpacked record."""

_NOTHING: Final = object()
"""The value of a key that is not there: equal to itself alone, and without an order."""


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
        parts.append(CHOICE_RESULT.pack(way.succeeded, len(way.steps)))
        for step in way.steps:
            if isinstance(step, Put):
                parts.append(bytes([StepKind.PUT]))
                self._put(step)
            elif isinstance(step, Delete):
                parts += (bytes([StepKind.DELETE]), SIZE.pack(self._delete(step.keys)))
            elif isinstance(step, Get):
                found = [self._answer(key, record) for key, record in self._get(step)]
                parts += (bytes([StepKind.GET]), SIZE.pack(len(found)), *found)
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
        return unpack_record(record)[_FIELDS[target]]

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
        data = FOUND.pack(len(name), len(value), created, modified, version, lease) + name + value
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
