"""What operations mean for the map: conditions on it, and what they write.

Every operation with a known answer comes down to *guarded constant writes*: what must have held for it to be answered
so, and what the map holds then (an increment to 5 found 4 and wrote 5). The checker rests on that form; it knows
nothing of operations. A model of your own translates other operations into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from replikv.store.entry import ABSENT
from replikv.testing.linearizability.forms import strict_form
from replikv.testing.linearizability.history import Operation

__all__ = ["Condition", "Model", "Relation", "Step", "register_map"]

Relation: TypeAlias = Literal["is", "==", "!="]
"""``is``: the same JSON value, of the same type (true is not 1). ``==`` and ``!=``: Python's equality, as
``compare_and_set`` has it (True == 1 == 1.0). ABSENT equals nothing but itself."""


class Condition(NamedTuple):
    """One key's value against another value."""

    key: str
    relation: Relation
    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One way in which an operation may take effect: if all conditions hold, then the keys get these values."""

    requires: tuple[Condition, ...] = ()
    writes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Key -> value, ABSENT to remove it."""
    adds: tuple[str, int] | None = None
    """(key, number): added to the int that the key holds, 0 if it is absent; else the step is not possible.

    Only for operations whose outcome is unknown. It stands alone, without other conditions or writes.
    """


Model: TypeAlias = Callable[[Operation], Sequence[Step]]
"""The ways in which an operation may take effect, for one that is ok or unknown.

An ok one takes effect in exactly one of them; no steps at all mean that it says nothing about the map. An unknown one
takes effect in one of them or in none. Raises ValueError for an operation that is malformed.
"""


def register_map(operation: Operation) -> Sequence[Step]:
    """The model of a :class:`replikv.Store`, empty at first.

    Operations, their fields, and the result when it is ok:

    =========== =================================== ==================================
    op          fields                              result
    =========== =================================== ==================================
    put         key, value                          ignored
    get         key                                 the value, or ABSENT
    delete      key                                 bool: whether it was there
    pop         key                                 the old value, or ABSENT
    setdefault  key, value                          the value that it holds then
    increment   key, value: by, an int (or None: 1) int: the sum
    cas         key, expect, value; both may be     bool: whether it was set
                ABSENT
    update      value: {key: value}                 ignored
    txn         value: {"compares": [[key, "==" or  {"succeeded": bool,
                "!=", value], ...], "then": {key:   "reads": {key: value or ABSENT}}
                value}, "otherwise": {key: value},
                "reads": [key, ...]}
    =========== =================================== ==================================

    A txn reads what was there before it wrote; ABSENT as a value to write removes the key. All parts may be left out.
    """
    translate = _TRANSLATIONS.get(operation.op)
    if translate is None:
        raise ValueError(f"the model has no operation {operation.op!r}: it knows {', '.join(_TRANSLATIONS)}")
    if operation.op not in _OF_MANY_KEYS and operation.key is None:
        raise ValueError(f"without a key: {operation}")
    return translate(operation, operation.key or "", operation.status == "ok")


def _put(operation: Operation, key: str, _known: bool) -> Sequence[Step]:
    return [Step(writes={key: operation.value})]


def _get(operation: Operation, key: str, known: bool) -> Sequence[Step]:
    return [Step((Condition(key, "is", operation.result),))] if known else []


def _delete(operation: Operation, key: str, known: bool) -> Sequence[Step]:
    if not known:
        return [Step(writes={key: ABSENT})]
    if _bool_result(operation):
        return [Step((Condition(key, "!=", ABSENT),), {key: ABSENT})]
    return [Step((Condition(key, "is", ABSENT),))]


def _pop(operation: Operation, key: str, known: bool) -> Sequence[Step]:
    if not known:
        return [Step(writes={key: ABSENT})]
    writes = {} if operation.result is ABSENT else {key: ABSENT}
    return [Step((Condition(key, "is", operation.result),), writes)]


def _setdefault(operation: Operation, key: str, known: bool) -> Sequence[Step]:
    made = Step((Condition(key, "is", ABSENT),), {key: operation.value})
    if not known:
        return [made]
    if operation.result is ABSENT:
        raise ValueError(f"setdefault leaves a value: {operation}")
    found = Step((Condition(key, "is", operation.result),))
    # The store gives back the very value: 1 for 1.0 is none. A tuple is a list by then, and equal JSON says so.
    return [found, made] if strict_form(operation.result) == strict_form(operation.value) else [found]


def _increment(operation: Operation, key: str, known: bool) -> Sequence[Step]:
    by = 1 if operation.value is None else operation.value
    if type(by) is not int:
        raise ValueError(f"increment adds an int: {operation}")
    if not known:
        return [Step(adds=(key, by))]
    total = operation.result
    if type(total) is not int:
        raise ValueError(f"the result of an increment is an int: {operation}")
    found = Step((Condition(key, "is", total - by),), {key: total})
    return [found, Step((Condition(key, "is", ABSENT),), {key: total})] if total == by else [found]


def _cas(operation: Operation, key: str, known: bool) -> Sequence[Step]:
    if known and not _bool_result(operation):
        return [Step((Condition(key, "!=", operation.expect),))]
    return [Step((Condition(key, "==", operation.expect),), {key: operation.value})]


def _update(operation: Operation, _key: str, _known: bool) -> Sequence[Step]:
    return [Step(writes=_mapping(operation.value, operation))]


def _txn(operation: Operation, _key: str, known: bool) -> Sequence[Step]:
    asked = _mapping(operation.value, operation)
    compares = tuple(_compare(each, operation) for each in asked.get("compares", ()))
    then = Step(compares, _mapping(asked.get("then", {}), operation))
    otherwise = [  # at least one of the compares must have failed: one step for each
        Step((Condition(each.key, "!=" if each.relation == "==" else "==", each.value),), writes)
        for writes in [_mapping(asked.get("otherwise", {}), operation)]
        for each in compares
    ]
    if not known:
        return [then, *otherwise]
    answer = _mapping(operation.result, operation)
    succeeded, found = answer.get("succeeded"), _mapping(answer.get("reads", {}), operation)
    if not isinstance(succeeded, bool) or set(asked.get("reads", ())) != set(found):
        raise ValueError(f"the result of a txn says whether it succeeded, and has what it reads: {operation}")
    if not succeeded and not compares:
        raise ValueError(f"a txn without compares succeeds: {operation}")
    reads = tuple(Condition(key, "is", value) for key, value in found.items())
    return [Step(step.requires + reads, step.writes) for step in ([then] if succeeded else otherwise)]


def _compare(given: Any, operation: Operation) -> Condition:
    if isinstance(given, list | tuple) and len(given) == 3 and isinstance(given[0], str) and given[1] in {"==", "!="}:
        return Condition(*given)
    raise ValueError(f'a compare is [key, "==" or "!=", value], not {given!r:.100}: {operation}')


def _mapping(given: Any, operation: Operation) -> Mapping[str, Any]:
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return given
    raise ValueError(f"expected a mapping of str, not {given!r:.100}: {operation}")


def _bool_result(operation: Operation) -> bool:
    if isinstance(operation.result, bool):
        return operation.result
    raise ValueError(f"the result of a {operation.op} is a bool: {operation}")


_TRANSLATIONS: Final[dict[str, Callable[[Operation, str, bool], Sequence[Step]]]] = {
    "put": _put,
    "get": _get,
    "delete": _delete,
    "pop": _pop,
    "setdefault": _setdefault,
    "increment": _increment,
    "cas": _cas,
    "update": _update,
    "txn": _txn,
}
_OF_MANY_KEYS: Final = frozenset({"update", "txn"})
