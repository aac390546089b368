"""Transactions as etcd has them: comparisons, what is done if all of them hold, and what otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

from replikv.errors import ConfigurationError, EncodingError, ValueTooLargeError
from replikv.machine import choices
from replikv.machine.choices import DEPTH_MAX, Choice, Comparison, Found, Relation, Target, TransactResult
from replikv.machine.commands import encode_key
from replikv.machine.ranges import KeyRange
from replikv.machine.values import decode_value, encode_value
from replikv.settings import Settings
from replikv.store.arguments import check_count, check_text
from replikv.store.entry import ABSENT, Absent, Entry
from replikv.store.leases import Lease, lease_id

__all__ = [
    "Compare",
    "Delete",
    "DeleteRange",
    "Get",
    "GetRange",
    "Lowering",
    "Operation",
    "Operator",
    "Put",
    "Txn",
    "TxnResult",
    "raise_result",
    "range_of",
]

Operator: TypeAlias = Literal["==", "!=", "<", ">"]

_RELATIONS: Final[dict[str, Relation]] = {
    "==": Relation.EQUAL,
    "!=": Relation.NOT_EQUAL,
    "<": Relation.LESS,
    ">": Relation.GREATER,
}


# -- what is compared --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Compare:
    """A comparison of one key; or, with None for the key, of every key of a range.

    Made by its class methods: ``Compare.version("lock", "==", 0)``, ``Compare.value(None, "!=", "busy",
    prefix="workers/")``. What the map holds stands on the left: ``Compare.version("key", ">", 3)`` holds from the
    fourth version on. All comparisons of a transaction are of the state before it.

    A key that is not there has version, revisions and lease 0, and ``ABSENT`` for a value. A range holds if each of its
    keys does; one without keys is compared as a key that is not there, as in etcd: ``Compare.version(None, "==", 0,
    prefix="locks/")`` holds if there are none.
    """

    target: Target
    key: str | None
    operator: Operator
    operand: Any
    prefix: str | None = None
    start: str | None = None
    stop: str | None = None

    def __post_init__(self) -> None:
        if self.operator not in _RELATIONS:
            raise ConfigurationError(f"a comparison is one of {', '.join(_RELATIONS)}, not {self.operator!r:.100}")
        if (self.key is None) == (self.prefix is None and self.start is None and self.stop is None):
            raise ConfigurationError("compare either one key, or with None for it a range: prefix=, start=, stop=")
        if self.target != Target.VALUE:
            check_count("what is compared", self.operand, 0)
            if self.operand >= 2**64:
                raise ConfigurationError(f"nothing counts up to {self.operand}: versions and revisions are below 2**64")
        elif self.operand is ABSENT and self.operator in ("<", ">"):
            raise ConfigurationError("no value is less or greater than ABSENT: compare with == or !=")

    @classmethod
    def value(
        cls,
        key: str | None,
        operator: Operator,
        value: Any | Absent,
        *,
        prefix: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Compare:
        """The value, as Python compares what readers get: ``1 == 1.0 == True``.

        ``ABSENT`` is for no value: it equals itself alone. Where Python has no order, as between a str and an int,
        ``<`` and ``>`` do not hold; nor do they for a key that is not there.
        """
        return cls(Target.VALUE, key, operator, value, prefix, start, stop)

    @classmethod
    def version(
        cls,
        key: str | None,
        operator: Operator,
        version: int,
        *,
        prefix: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Compare:
        """How often the key was put since it was last absent; 0 if it is."""
        return cls(Target.VERSION, key, operator, version, prefix, start, stop)

    @classmethod
    def create_revision(
        cls,
        key: str | None,
        operator: Operator,
        revision: int,
        *,
        prefix: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Compare:
        """The revision that made the key; 0 if it is absent."""
        return cls(Target.CREATE_REVISION, key, operator, revision, prefix, start, stop)

    @classmethod
    def mod_revision(
        cls,
        key: str | None,
        operator: Operator,
        revision: int,
        *,
        prefix: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Compare:
        """The revision that changed the key last; 0 if it is absent. Of a range: deleted keys are not seen."""
        return cls(Target.MOD_REVISION, key, operator, revision, prefix, start, stop)

    @classmethod
    def lease(
        cls,
        key: str | None,
        operator: Operator,
        lease: Lease | int | None,
        *,
        prefix: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Compare:
        """The lease that the key vanishes with, or its id; None for a key without one, or that is absent."""
        number = lease.id if isinstance(lease, Lease) else 0 if lease == 0 else lease_id(lease)
        return cls(Target.LEASE, key, operator, number, prefix, start, stop)


# -- what is done ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Put:
    """Set a key. Its result is the revision, as that of ``store.put``."""

    key: str
    value: Any
    lease: Lease | int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key. Its result is whether it was there."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteRange:
    """Remove the keys of a range (all keys by default). Its result is how many there were."""

    prefix: str = ""
    start: str | None = None
    stop: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Get:
    """Read a key. Its result is an Entry, or None."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class GetRange:
    """Read the first ``limit`` keys of a range. Its result is a list of Entry, in key order."""

    prefix: str = ""
    start: str | None = None
    stop: str | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Txn:
    """A transaction within a transaction. Its result is a TxnResult."""

    compares: Iterable[Compare]
    then: Iterable[Operation]
    otherwise: Iterable[Operation] = ()


Operation: TypeAlias = Put | Delete | DeleteRange | Get | GetRange | Txn
"""What a transaction may do."""


@dataclasses.dataclass(frozen=True, slots=True)
class TxnResult:
    """What became of a transaction. True if its comparisons held."""

    succeeded: bool
    """Whether all comparisons held, so that ``then`` was done; else ``otherwise`` was."""
    revision: int
    """That of the transaction if it changed something, else the newest at that moment."""
    results: tuple[Any, ...]
    """One for each operation that was done: Put: int, Delete: bool, DeleteRange: int, Get: Entry or None, GetRange:
    list of Entry, Txn: TxnResult."""

    def __bool__(self) -> bool:
        return self.succeeded


# -- on the way to the machine -----------------------------------------------------------------------------------------


def range_of(scope: str, prefix: str | None, start: str | None, stop: str | None) -> KeyRange:
    """The range of a scope, in the keys of the whole map."""
    return KeyRange(
        "" if start is None else scope + check_text("start", start),
        None if stop is None else scope + check_text("stop", stop),
        scope + check_text("prefix", prefix or ""),
    )


class Lowering:
    """Checks a transaction and turns it into what is proposed: full keys, encoded values.

    Raises:
        EncodingError, ValueTooLargeError: a key, a value, or the whole cannot be stored.
        ConfigurationError: it makes no sense.
    """

    def __init__(self, scope: str, settings: Settings) -> None:
        self._scope = scope
        self._settings = settings
        self._operations = 0

    def lower(self, txn: Txn) -> tuple[Choice, Txn]:
        """For the machine; and the same with its parts in tuples, for :func:`raise_result`."""
        choice, kept = self._choice(txn, 1)
        if (key := choices.written_twice(choice)) is not None:
            raise ConfigurationError(
                f"the transaction puts the key {key!r:.100} twice, or deletes it as well: all its changes are of one"
                " revision, so leave one"
            )
        return choice, kept

    def key(self, key: str) -> str:
        """A key of the whole map."""
        if type(key) is not str:  # no subclass: it would come back as another type
            raise EncodingError(f"keys are str, not {type(key).__qualname__}: {key!r:.100}")
        encode_key(self._scope + key, self._settings.key_bytes_max)
        return self._scope + key

    def value(self, key: str | None, value: Any) -> bytes:
        """A value of a key, or one that a range is compared with, encoded."""
        try:
            return encode_value(value, self._settings.value_bytes_max)
        except EncodingError as exc:
            raise type(exc)(
                f"a value for {'a range' if key is None else repr(key)[:100]} cannot be stored: {exc}"
            ) from exc

    def put(self, key: str, value: Any, lease: Lease | int | None) -> choices.Put:
        """A put, for the machine."""
        return choices.Put(self.key(key), self.value(key, value), lease_id(lease))

    def _choice(self, txn: Txn, depth: int) -> tuple[Choice, Txn]:
        if depth > DEPTH_MAX:
            raise ValueTooLargeError(f"more than {DEPTH_MAX} transactions within each other: make them flat")
        compares = _all_of("compares", txn.compares, Compare)
        then = _all_of("then", txn.then, Operation)
        otherwise = _all_of("otherwise", txn.otherwise, Operation)
        self._operations += len(compares) + len(then) + len(otherwise)
        limit = self._settings.operations_per_command_max
        if self._operations > limit:
            raise ValueTooLargeError(
                f"a transaction of more than {limit} comparisons and operations: split it, or raise"
                " operations_per_command_max"
            )
        lowered: list[list[choices.Step]] = []
        kept: list[list[Operation]] = []
        for operations in (then, otherwise):
            lowered.append([])
            kept.append([])
            for operation in operations:
                if isinstance(operation, Txn):
                    step, operation = self._choice(operation, depth + 1)  # noqa: PLW2901  # the same, in tuples
                    lowered[-1].append(step)
                else:
                    lowered[-1].append(self._step(operation))
                kept[-1].append(operation)
        choice = Choice([self._comparison(compare) for compare in compares], lowered[0], lowered[1])
        return choice, Txn(compares, tuple(kept[0]), tuple(kept[1]))

    def _comparison(self, compare: Compare) -> Comparison:
        if compare.key is not None:
            keys: str | KeyRange = self.key(compare.key)
        else:
            keys = range_of(self._scope, compare.prefix, compare.start, compare.stop)
        operand = compare.operand
        if compare.target == Target.VALUE:
            operand = None if operand is ABSENT else self.value(compare.key, operand)
        return Comparison(compare.target, keys, _RELATIONS[compare.operator], operand)

    def _step(self, operation: Put | Delete | DeleteRange | Get | GetRange) -> choices.Step:
        if isinstance(operation, Put):
            return self.put(operation.key, operation.value, operation.lease)
        if isinstance(operation, Delete):
            return choices.Delete(self.key(operation.key))
        if isinstance(operation, Get):
            return choices.Get(self.key(operation.key))
        keys = range_of(self._scope, operation.prefix, operation.start, operation.stop)
        if isinstance(operation, DeleteRange):
            return choices.Delete(keys)
        if operation.limit is None:
            return choices.Get(keys)
        limit = check_count("limit", operation.limit, 0)
        return choices.Get(keys, min(limit, choices.UNLIMITED))


def _all_of(name: str, items: Iterable[Any], kind: Any) -> tuple[Any, ...]:
    wanted = "comparisons (Compare.value, ...)" if kind is Compare else "operations (Put, Get, Txn, ...)"
    if isinstance(items, kind) or not isinstance(items, Iterable):
        raise ConfigurationError(f"{name} takes a list of {wanted}, not {type(items).__qualname__}")
    found = tuple(items)
    for item in found:
        if not isinstance(item, kind):
            raise ConfigurationError(f"{name} takes a list of {wanted}, and has a {type(item).__qualname__} in it")
    return found


def raise_result(txn: Txn, result: TransactResult, revision: int, scope: str) -> TxnResult:
    """The reverse of :meth:`Lowering.lower`: what the machine answered, as the caller gets it."""
    done = txn.then if result.succeeded else txn.otherwise
    length = len(scope)
    results: list[Any] = []
    for operation, answer in zip(done, result.results, strict=True):
        if isinstance(answer, TransactResult):
            assert isinstance(operation, Txn)
            results.append(raise_result(operation, answer, revision, scope))
        elif isinstance(answer, list):
            entries = [_entry(found, length) for found in answer]
            results.append(entries if isinstance(operation, GetRange) else entries[0] if entries else None)
        elif isinstance(operation, Delete):
            results.append(bool(answer))
        else:
            results.append(revision if answer is None else answer)
    return TxnResult(result.succeeded, revision, tuple(results))


def _entry(found: Found, scope_length: int) -> Entry:
    return Entry(
        found.key[scope_length:],
        decode_value(found.value),
        found.create_revision,
        found.mod_revision,
        found.version,
        found.lease or None,
    )
