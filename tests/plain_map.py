"""The map as a dict in one process: what every replica is held against.

It knows nothing of bytes, logs or snapshots, and copies the whole map where it is in doubt.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hypothesis import strategies as st

from replikv import (
    ABSENT,
    Compare,
    Delete,
    DeleteRange,
    EncodingError,
    Entry,
    Get,
    GetRange,
    Put,
    Txn,
    TxnResult,
)
from replikv.machine.transactions import Target

RELATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a method of the store's, or of :class:`PlainMap`'s."""

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()


class PlainMap:
    """The awaited operations of a store, and all that it ever held."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.history: list[dict[str, Entry]] = [{}]

    def do(self, call: Call) -> Any:
        """The result, or the type of the error."""
        try:
            return getattr(self, call.name)(*call.arguments, **dict(call.keywords))
        except (EncodingError, KeyError) as exc:
            return type(exc)

    @property
    def values(self) -> dict[str, Any]:
        return {key: self.entries[key].value for key in sorted(self.entries)}

    @property
    def sorted_entries(self) -> dict[str, Entry]:
        return {key: self.entries[key] for key in sorted(self.entries)}

    # -- one key -------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any) -> int:
        return self._commit({key: value})

    def delete(self, key: str) -> bool:
        there = key in self.entries
        self._commit({key: ABSENT})
        return there

    def pop(self, key: str) -> Any:
        value = self.entries[key].value
        self._commit({key: ABSENT})
        return value

    def setdefault(self, key: str, value: Any) -> Any:
        if key not in self.entries:
            self._commit({key: value})
        return self.entries[key].value

    def increment(self, key: str, by: int) -> int:
        value = self._value(key)
        if value is not ABSENT and type(value) is not int:
            raise EncodingError
        total: int = (0 if value is ABSENT else value) + by
        self._commit({key: total})
        return total

    def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        if self._value(key) != expected:
            return False
        self._commit({key: value})
        return True

    def replace(self, key: str, value: Any, *, revision: int) -> bool:
        if revision != (self.entries[key].mod_revision if key in self.entries else 0):
            return False
        self._commit({key: value})
        return True

    # -- many ----------------------------------------------------------------------------------------------------------

    def update(self, mapping: Mapping[str, Any]) -> int:
        return self._commit(mapping)

    def delete_prefix(self, prefix: str) -> int:
        there = [key for key in self.entries if key.startswith(prefix)]
        self._commit(dict.fromkeys(there, ABSENT))
        return len(there)

    def txn(self, compares: Iterable[Any], then: Iterable[Any], otherwise: Iterable[Any] = ()) -> TxnResult:
        before, self._before = self.entries, dict(self.entries)
        self._changed = False
        result = self._txn(Txn(compares, then, otherwise))
        if self._changed:
            self.revision += 1
            self.history.append(dict(self.entries))
        else:
            self.entries = before
        return self._dated(result)

    def _txn(self, txn: Txn) -> TxnResult:
        succeeded = all(self._holds(compare) for compare in txn.compares)
        results = [self._step(each) for each in (txn.then if succeeded else txn.otherwise)]
        return TxnResult(succeeded, 0, tuple(results))

    def _step(self, step: Any) -> Any:
        match step:
            case Put(key, value):
                self._write(key, value)
                return Put
            case Delete(key):
                there = key in self.entries
                self._write(key, ABSENT)
                return there
            case DeleteRange(prefix, start, stop):
                keys = self._range(self.entries, prefix, start, stop)
                for key in keys:
                    self._write(key, ABSENT)
                return len(keys)
            case Get(key):
                return self.entries.get(key)
            case GetRange(prefix, start, stop, limit):
                return [self.entries[key] for key in self._range(self.entries, prefix, start, stop)[:limit]]
        return self._txn(step)

    def _dated(self, result: TxnResult) -> TxnResult:
        results = (
            self.revision if each is Put else self._dated(each) if isinstance(each, TxnResult) else each
            for each in result.results
        )
        return TxnResult(result.succeeded, self.revision, tuple(results))

    def _write(self, key: str, value: Any) -> None:
        old = self.entries.get(key)
        if value is ABSENT:
            if old is not None:
                self._changed = True
                del self.entries[key]
            return
        self._changed = True
        revision = self.revision + 1
        created, version = (revision, 1) if old is None else (old.create_revision, old.version + 1)
        self.entries[key] = Entry(key, value, created, revision, version, None)

    def _holds(self, compare: Compare) -> bool:
        if compare.key is not None:
            found = [self._before.get(compare.key)]
        else:
            keys = self._range(self._before, compare.prefix or "", compare.start, compare.stop)
            found = [self._before[key] for key in keys] or [None]
        return all(self._holds_for(compare, entry) for entry in found)

    @staticmethod
    def _holds_for(compare: Compare, entry: Entry | None) -> bool:
        if entry is None:
            held: Any = ABSENT if compare.target == Target.VALUE else 0
        else:
            held = getattr(entry, compare.target.name.lower())
            if compare.target == Target.LEASE:
                held = held or 0
        try:
            return bool(RELATIONS[compare.operator](held, compare.operand))
        except TypeError:
            return False

    @staticmethod
    def _range(entries: Iterable[str], prefix: str, start: str | None, stop: str | None) -> list[str]:
        return sorted(
            key
            for key in entries
            if key.startswith(prefix) and (start is None or start <= key) and (stop is None or key < stop)
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _value(self, key: str) -> Any:
        return self.entries[key].value if key in self.entries else ABSENT

    def _commit(self, writes: Mapping[str, Any]) -> int:
        self._changed = False
        for key, value in writes.items():
            self._write(key, value)
        if self._changed:
            self.revision += 1
            self.history.append(dict(self.entries))
        return self.revision


# -- what to do with it ------------------------------------------------------------------------------------------------

KEYS = ["", "a", "a/1", "a/2", "a/3", "b", "ä", "\U0010ffff"]
keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(["", "a", "a/", "b", "\ud7ff", "\U0010ffff"])
bounds = st.none() | keys
values = st.sampled_from([None, True, 0, 1, 1.0, 2, "x", "y", b"x", [1, "x"], {"k": 1}]) | st.integers(-3, 3)
numbers = st.integers(0, 12)
limits = st.none() | st.integers(0, 4)
operators = st.sampled_from(["==", "!=", "<", ">"])


@st.composite
def compares(draw: st.DrawFn) -> Compare:
    """One of any kind, of a key or of a range."""
    ranged = draw(st.booleans())
    where = {"prefix": draw(prefixes), "start": draw(bounds), "stop": draw(bounds)} if ranged else {}
    key = None if ranged else draw(keys)
    relation = draw(operators)
    kind = draw(st.sampled_from(["value", "version", "create_revision", "mod_revision", "lease"]))
    if kind == "value":
        operand = draw(values | st.just(ABSENT)) if relation in ("==", "!=") else draw(values)
    else:
        operand = draw(numbers)
    compare: Compare = getattr(Compare, kind)(key, relation, operand, **where)
    return compare


@st.composite
def branches(draw: st.DrawFn, depth: int = 1, forbidden: frozenset[str] = frozenset()) -> list[Any]:
    """Operations that write no key twice, and none of the forbidden."""
    free = [key for key in KEYS if key not in forbidden]
    put: set[str] = set()
    operations: list[Any] = []
    for kind in draw(st.lists(st.sampled_from(["put", "put", "delete", "get", "range", "txn"]), max_size=5)):
        left = [key for key in free if key not in put]
        if kind == "put" and left:
            key = draw(st.sampled_from(left))
            put.add(key)
            operations.append(Put(key, draw(values)))
        elif kind == "get":
            operations.append(Get(draw(keys)))
        elif kind == "range":
            operations.append(GetRange(draw(prefixes), draw(bounds), draw(bounds), draw(limits)))
        elif kind == "txn" and depth < 3:
            # What is written around it is not written within, nor the other way round.
            inner = frozenset(KEYS) - frozenset(draw(st.sets(st.sampled_from(left), max_size=3)) if left else ())
            put |= frozenset(KEYS) - inner
            operations.append(
                Txn(
                    draw(st.lists(compares(), max_size=2)),
                    draw(branches(depth + 1, inner)),
                    draw(branches(depth + 1, inner)),
                )
            )
        elif kind == "delete" and left:
            if depth > 1 or draw(st.booleans()):
                key = draw(st.sampled_from(left))
                put.add(key)
                operations.append(Delete(key))
            else:
                prefix, start, stop = draw(prefixes), draw(bounds), draw(bounds)
                inside = PlainMap._range(KEYS, prefix, start, stop)
                if not put & set(inside) and not forbidden & set(inside):
                    put |= set(inside)
                    operations.append(DeleteRange(prefix, start, stop))
    return operations


def _call(name: str, *arguments: Any) -> Call:
    return Call(name, arguments)


txns: st.SearchStrategy[Call] = st.builds(
    _call, st.just("txn"), st.lists(compares(), max_size=2), branches(), branches()
)
calls: st.SearchStrategy[Call] = st.one_of(
    st.builds(_call, st.just("put"), keys, values),
    st.builds(_call, st.just("delete"), keys),
    st.builds(_call, st.just("pop"), keys),
    st.builds(_call, st.just("setdefault"), keys, values),
    st.builds(_call, st.just("increment"), keys, st.integers(-2, 2)),
    st.builds(_call, st.just("compare_and_set"), keys, values | st.just(ABSENT), values | st.just(ABSENT)),
    st.builds(
        lambda key, value, revision: Call("replace", (key, value), (("revision", revision),)), keys, values, numbers
    ),
    st.builds(_call, st.just("update"), st.dictionaries(keys, values, min_size=1, max_size=4)),
    st.builds(_call, st.just("delete_prefix"), prefixes.filter(lambda prefix: prefix != "\ud7ff")),
    txns,
    txns,
)
"""Any operation that changes the map, or may."""
