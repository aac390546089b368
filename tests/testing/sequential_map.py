"""The map in its simplest form, and every order tried: what the checker is held to. Shares no code with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from replikv import ABSENT
from replikv.testing.linearizability import Operation

Map = dict[str, Any]


def perform(state: Map, operation: Operation) -> Any:
    """Run one operation on the map, and answer it."""
    key = operation.key or ""
    old = state.get(key, ABSENT)
    match operation.op:
        case "put":
            state[key] = operation.value
        case "get":
            return old
        case "delete":
            return state.pop(key, ABSENT) is not ABSENT
        case "pop":
            return state.pop(key, ABSENT)
        case "setdefault":
            return state.setdefault(key, operation.value)
        case "increment":
            if old is not ABSENT and type(old) is not int:
                raise TypeError(old)
            state[key] = (0 if old is ABSENT else old) + operation.value
            return state[key]
        case "cas":
            if old != operation.expect:
                return False
            write(state, {key: operation.value})
            return True
        case "update":
            write(state, operation.value)
        case "txn":
            asked = operation.value
            reads = {name: state.get(name, ABSENT) for name in asked.get("reads", [])}
            succeeded = all(
                (state.get(name, ABSENT) == value) is (relation == "==")
                for name, relation, value in asked.get("compares", [])
            )
            write(state, asked.get("then" if succeeded else "otherwise", {}))
            return {"succeeded": succeeded, "reads": reads}
        case _:
            raise NotImplementedError(operation.op)
    return None


def write(state: Map, values: Map) -> None:
    for key, value in values.items():
        if value is ABSENT:
            state.pop(key, None)
        else:
            state[key] = value


def text(value: Any) -> str:
    """Equal for the same values of the same types."""
    return json.dumps(value, sort_keys=True, default=repr)


def is_linearizable(history: Sequence[Operation]) -> bool:
    """Whether there is an order, by trying them all."""
    return _can_go_on({}, [operation for operation in history if operation.status != "fail"])


def _can_go_on(state: Map, left: list[Operation]) -> bool:
    if all(operation.status == "unknown" for operation in left):
        return True
    horizon = min(
        (each.returned for each in left if each.status == "ok" and each.returned is not None), default=math.inf
    )
    for index, operation in enumerate(left):
        if operation.called <= horizon:
            after = dict(state)
            try:
                answer = perform(after, operation)
            except TypeError:
                continue
            fits = operation.status == "unknown" or operation.op in {"put", "update"}
            if (fits or text(answer) == text(operation.result)) and _can_go_on(after, left[:index] + left[index + 1 :]):
                return True
    return False
