"""The checker against a map that is run, and against trying every order."""

from __future__ import annotations

import dataclasses
import heapq
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sequential_map import Map, is_linearizable, perform

from replikv import ABSENT
from replikv.testing.linearizability import Operation, check, check_revisions

# None, and equal numbers of three types; few values and few keys, so that operations have to do with each other.
VALUES = st.sampled_from([1, 2, True, 1.0, None, "a"])
VALUES_OR_ABSENT = VALUES | st.just(ABSENT)
KEYS = st.sampled_from(["x", "y"])
WRITES = st.dictionaries(KEYS, VALUES_OR_ABSENT, max_size=2)
COMPARES = st.lists(st.tuples(KEYS, st.sampled_from(["==", "!="]), VALUES_OR_ABSENT).map(list), max_size=2)
TXNS = st.fixed_dictionaries(
    {"compares": COMPARES, "then": WRITES, "otherwise": WRITES, "reads": st.lists(KEYS, unique=True)}
)
ASKED: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "get": st.fixed_dictionaries({"key": KEYS}),
    "put": st.fixed_dictionaries({"key": KEYS, "value": VALUES}),
    "delete": st.fixed_dictionaries({"key": KEYS}),
    "pop": st.fixed_dictionaries({"key": KEYS}),
    "setdefault": st.fixed_dictionaries({"key": KEYS, "value": VALUES}),
    "increment": st.fixed_dictionaries({"key": KEYS, "value": st.sampled_from([1, 2, -1])}),
    "cas": st.fixed_dictionaries({"key": KEYS, "expect": VALUES_OR_ABSENT, "value": VALUES_OR_ABSENT}),
    "update": st.fixed_dictionaries({"value": st.dictionaries(KEYS, VALUES)}),
    "txn": st.fixed_dictionaries({"value": TXNS}),
}
MIXES = [
    ["get", "put"],
    ["get", "put", "delete", "cas", "pop", "setdefault"],
    ["get", "put", "increment", "delete", "cas"],
    ["get", "put", "update"],
    ["get", "update", "txn", "cas", "increment"],
    list(ASKED),
]


@st.composite
def recorded(draw: st.DrawFn, size_max: int) -> list[Operation]:
    """What clients of a real map may have recorded: each operation takes effect at one moment between call and return.

    One of unknown outcome does so at any moment after its call, or never. Times are coarse: many operations meet.
    """
    mix = draw(st.sampled_from(MIXES))
    moments = []
    for _ in range(draw(st.integers(1, size_max))):
        called, takes_s = draw(st.integers(0, 10)), draw(st.integers(0, 5))
        unknown = draw(st.booleans())
        effect = called + draw(st.floats(0, 12 if unknown else takes_s))
        moments.append((effect, called, called + takes_s, unknown))
    state: Map = {}
    history = []
    for revision, (_, called, returned, unknown) in enumerate(sorted(moments), 1):
        op = draw(st.sampled_from(mix))
        asked = Operation(client=1, op=op, called=called, returned=returned, **draw(ASKED[op]))
        after = dict(state)
        try:
            result = perform(after, asked)
        except TypeError:
            continue  # an increment of a str is refused by the store, too
        if unknown:
            state = draw(st.sampled_from([state, after]))
            history.append(asked)
        else:
            state = after
            history.append(dataclasses.replace(asked, status="ok", result=result, rev=revision))
    return draw(st.permutations(history))


@st.composite
def falsified(draw: st.DrawFn) -> list[Operation]:
    """A recorded history with a few answers, times or operations that are not as they were."""
    history = draw(recorded(7))
    for _ in range(draw(st.integers(1, 2))):
        if not history:
            break
        index = draw(st.integers(0, len(history) - 1))
        operation = history[index]
        shift = draw(st.integers(-8, 8))
        others: list[list[Operation]] = [[], [_shifted(operation, shift)]]
        if operation.status == "ok" and operation.op in OTHER_RESULTS:
            others += 3 * [[dataclasses.replace(operation, result=OTHER_RESULTS[operation.op](draw, operation))]]
        history[index : index + 1] = draw(st.sampled_from(others))
    return history


def _shifted(operation: Operation, shift: int) -> Operation:
    assert operation.returned is not None
    return dataclasses.replace(operation, called=operation.called + shift, returned=operation.returned + shift)


def _another_txn_result(draw: st.DrawFn, operation: Operation) -> dict[str, Any]:
    succeeded = draw(st.booleans()) if operation.value["compares"] else True
    return {"succeeded": succeeded, "reads": {key: draw(VALUES_OR_ABSENT) for key in operation.result["reads"]}}


OTHER_RESULTS: dict[str, Callable[[st.DrawFn, Operation], Any]] = {
    "get": lambda draw, _: draw(VALUES_OR_ABSENT),
    "pop": lambda draw, _: draw(VALUES_OR_ABSENT),
    "setdefault": lambda draw, _: draw(VALUES),
    "delete": lambda _, operation: not operation.result,
    "cas": lambda _, operation: not operation.result,
    "increment": lambda draw, operation: operation.result + draw(st.sampled_from([1, -1])),
    "txn": _another_txn_result,
}


@hypothesis_settings(max_examples=150, deadline=None)
@given(recorded(30))
def test_what_a_real_map_has_answered_is_linearizable(history: list[Operation]) -> None:
    """Whatever the moments at which operations took effect; and the order in which they did is one of revisions."""
    assert ("ok", "ok") == (check(history).outcome, check_revisions(history).outcome)


@hypothesis_settings(max_examples=400, deadline=None)
@given(falsified())
def test_the_verdict_is_that_of_trying_every_order(history: list[Operation]) -> None:
    """For histories that are nearly right, so that both verdicts are frequent."""
    assert ("ok" if is_linearizable(history) else "violation") == check(history).outcome


@pytest.mark.parametrize("seed", range(4))
def test_many_clients_on_few_keys_are_decided(seed: int) -> None:
    """Thousands of operations, ten at a time, one in fifty unknown: ok as recorded, a violation with one stale read."""
    history = _busy_history(random.Random(seed), operations=2_000, keys=4)
    assert ("ok", "ok") == (check(history, timeout_s=60).outcome, check_revisions(history, timeout_s=60).outcome)
    known = [each for each in history if each.status == "ok"]
    last = next(each for each in reversed(known) if each.op == "get")
    first = next(each for each in known if each.op == "put" and each.key == last.key)
    history[history.index(last)] = dataclasses.replace(last, result=first.value)
    assert "violation" == check(history, timeout_s=60).outcome


def _busy_history(rng: random.Random, *, operations: int, keys: int) -> list[Operation]:
    free = [0.0] * 10
    moments = []
    for number in range(operations):
        client = free.index(min(free))
        called = free[client] + rng.random() / 10
        returned = free[client] = called + rng.random()
        unknown = rng.random() < 0.02
        effect = called + rng.random() * (20 if unknown else returned - called)
        moments.append((effect, client, called, returned, unknown, number))
    state: Map = {}
    history = []
    for revision, (_, client, called, returned, unknown, number) in enumerate(sorted(moments), 1):
        op = rng.choice(["get", "put"])
        value = None if op == "get" else number
        asked = Operation(client=client, op=op, key=f"{rng.randrange(keys)}", value=value, called=called)
        result = perform({} if unknown and rng.random() < 0.5 else state, asked)
        if not unknown:
            rev = revision if op == "put" else None
            asked = dataclasses.replace(asked, returned=returned, status="ok", result=result, rev=rev)
        history.append(asked)
    return history


@pytest.mark.parametrize(
    ("operations", "keys", "seconds"),
    [pytest.param(2_000, 10, 30), pytest.param(100_000, 100, 60, marks=pytest.mark.long)],
)
@pytest.mark.parametrize(("clients", "unknown", "together"), [(8, 0.01, 4), (32, 0.01, 1), (32, 0.05, 1)])
def test_large_histories_are_decided_within_a_minute(
    operations: int, keys: int, seconds: float, clients: int, unknown: float, together: int
) -> None:
    """Of all kinds of operations, also on several keys: as recorded, and with a single read of what was overwritten."""
    history = _mixed_history(random.Random(operations), operations, keys, clients, unknown, together)
    gets = [each for each in history if each.op == "get" and each.status == "ok" and each.result is not ABSENT]
    stale = gets[-len(gets) // 10]
    older = next(each for each in gets if each.key == stale.key and each.result != stale.result)
    falsified = [dataclasses.replace(each, result=older.result) if each is stale else each for each in history]

    for given_history, outcome in ((history, "ok"), (falsified, "violation")):
        began = time.process_time()
        assert outcome == check(given_history).outcome
        assert time.process_time() - began < seconds


def _mixed_history(
    rng: random.Random, operations: int, keys: int, clients: int, unknown: float, together: int
) -> list[Operation]:
    """What clients may have recorded who do one thing after the other. Every ``together`` keys share transactions."""
    free = [(0.0, client) for client in range(clients)]
    moments = []
    for number in range(operations):
        since, client = heapq.heappop(free)
        called = since + rng.random() / 10
        returned = called + rng.random()
        lost = rng.random() < unknown
        effect = called + rng.random() * (20 if lost else returned - called)
        moments.append((effect, called, returned, client, lost, number))
        heapq.heappush(free, (returned, client))
    state: Map = {}
    history = []
    for _, called, returned, client, lost, number in sorted(moments):
        op, asked = _draw_operation(rng, state, number, keys, together)
        operation = Operation(client=client, op=op, called=called, returned=returned, **asked)
        after = dict(state)
        result = perform(after, operation)
        if not lost or rng.random() < 0.5:
            state = after
        history.append(operation if lost else dataclasses.replace(operation, status="ok", result=result))
    return sorted(history, key=lambda each: each.called)


def _draw_operation(
    rng: random.Random, state: Map, number: int, keys: int, together: int
) -> tuple[str, dict[str, Any]]:
    """An operation and its fields. Every tenth key is incremented only; values are unique."""
    place = rng.randrange(keys)
    key = f"k{place}"
    if place % 10 == 9:
        return ("get", {"key": key}) if rng.random() < 0.5 else ("increment", {"key": key, "value": 1})
    op = rng.choice(["get", "get", "get", "put", "put", "put", "cas", "delete", "pop", "setdefault", "txn", "update"])
    if op in {"get", "delete", "pop"}:
        return op, {"key": key}
    if op in {"put", "setdefault"}:
        return op, {"key": key, "value": number}
    if op == "cas":
        expect = state.get(key, ABSENT) if rng.random() < 0.7 else -1
        return op, {"key": key, "expect": expect, "value": number}
    first = place - place % together
    neighbours = [f"k{each}" for each in range(first, min(first + together, keys)) if each % 10 != 9]
    chosen = rng.sample(neighbours, min(len(neighbours), rng.randint(1, 3)))
    if op == "update":
        return op, {"value": dict.fromkeys(chosen, number)}
    compares = [[chosen[0], rng.choice(["==", "!="]), state.get(chosen[0], ABSENT)]]
    return op, {"value": {"compares": compares, "then": dict.fromkeys(chosen, number), "reads": chosen}}
