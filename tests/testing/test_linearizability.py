"""The checker: histories that it must reject, odd ones that it must take, and what it says."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sequential_map import is_linearizable

from replikv import ABSENT
from replikv.testing.linearizability import (
    Condition,
    Operation,
    Step,
    check,
    check_revisions,
    write_history,
)
from replikv.testing.linearizability.__main__ import main

When = tuple[float, float] | float
"""Call and return; a call alone for an operation whose outcome is unknown."""


def operation(when: When, op: str, key: str | None = None, **fields: Any) -> Operation:
    called, returned = when if isinstance(when, tuple) else (when, None)
    status = fields.pop("status", "unknown" if returned is None else "ok")
    return Operation(client=1, op=op, key=key, called=called, returned=returned, status=status, **fields)


def put(when: When, key: str, value: Any, rev: int | None = None) -> Operation:
    return operation(when, "put", key, value=value, rev=rev)


def get(when: When, key: str, result: Any = None) -> Operation:
    return operation(when, "get", key, result=result)


def delete(when: When, key: str, result: bool | None = None, rev: int | None = None) -> Operation:
    return operation(when, "delete", key, result=result, rev=rev)


def pop(when: When, key: str, result: Any = None) -> Operation:
    return operation(when, "pop", key, result=result)


def setdefault(when: When, key: str, value: Any, result: Any = None) -> Operation:
    return operation(when, "setdefault", key, value=value, result=result)


def increment(when: When, key: str, result: int | None = None, by: int = 1) -> Operation:
    return operation(when, "increment", key, value=by, result=result)


def cas(when: When, key: str, expect: Any, value: Any, result: bool | None = None) -> Operation:
    return operation(when, "cas", key, expect=expect, value=value, result=result)


def update(when: When, **values: Any) -> Operation:
    return operation(when, "update", value=values)


def txn(when: When, asked: dict[str, Any], succeeded: bool | None = None, **reads: Any) -> Operation:
    result = None if succeeded is None else {"succeeded": succeeded, "reads": reads}
    return operation(when, "txn", value=asked, result=result)


BAD: dict[str, list[Operation]] = {
    "a stale read": [put((0, 1), "x", 1), put((2, 3), "x", 2), get((4, 5), "x", 1)],
    "a read of nothing after a write": [put((0, 1), "x", 1), get((2, 3), "x", ABSENT)],
    "a value that nobody wrote": [put((0, 1), "x", 1), get((2, 3), "x", 7)],
    "a value out of an empty map": [get((0, 1), "x", None)],
    "null where nothing is": [delete((0, 1), "x", False), get((2, 3), "x", None)],
    "nothing where null is": [put((0, 1), "x", None), get((2, 3), "x", ABSENT)],
    "another type": [put((0, 1), "x", 1), get((2, 3), "x", True)],
    "a value before it is written": [get((0, 1), "x", 1), put((2, 3), "x", 1)],
    "a read that goes back": [
        put((0, 1), "x", 1),
        put((2, 9), "x", 2),
        get((3, 4), "x", 2),
        get((5, 6), "x", 1),
    ],
    "two readers who disagree on the order": [
        put((0, 9), "x", 1),
        put((0, 9), "x", 2),
        get((1, 2), "x", 1),
        get((3, 4), "x", 2),
        get((5, 6), "x", 1),
    ],
    "a failed write that was applied": [operation((0, 1), "put", "x", value=1, status="fail"), get((2, 3), "x", 1)],
    "an unknown write seen before its call": [get((0, 1), "x", 1), put(2, "x", 1)],
    "an unknown write seen, then unseen": [
        put((0, 1), "x", 1),
        put(2, "x", 2),
        get((3, 4), "x", 2),
        get((5, 6), "x", 1),
    ],
    "an unknown write that was applied twice": [
        put(0, "x", 1),
        get((1, 2), "x", 1),
        put((3, 4), "x", 2),
        get((5, 6), "x", 1),
    ],
    "a lost update": [
        put((0, 1), "x", 0),
        increment((2, 3), "x", 1),
        increment((4, 5), "x", 1),
    ],
    "an increment that was applied twice": [increment((0, 1), "x", 1), get((2, 3), "x", 2)],
    "an unknown increment that was applied twice": [increment(0, "x"), get((1, 2), "x", 2)],
    "more than all unknown increments together": [
        increment(0, "x", by=2),
        increment(0, "x", by=3),
        increment(0, "x", by=3),
        get((1, 2), "x", 7),
    ],
    "two increments with one result": [increment((0, 5), "x", 1), increment((0, 5), "x", 1)],
    "an increment that starts anew": [put((0, 1), "x", 5), increment((2, 3), "x", 1)],
    "a cas that succeeded twice": [
        put((0, 1), "x", 1),
        cas((2, 9), "x", 1, 2, True),
        cas((2, 9), "x", 1, 3, True),
    ],
    "a cas that succeeded against another value": [put((0, 1), "x", 1), cas((2, 3), "x", 2, 3, True)],
    "a cas that failed without a reason": [put((0, 1), "x", 1), cas((2, 3), "x", 1, 2, False)],
    "a cas that failed on an equal number": [put((0, 1), "x", 1), cas((2, 3), "x", 1.0, 2, False)],
    "a cas that failed, and was applied": [
        put((0, 1), "x", 1),
        cas((2, 3), "x", 7, 2, False),
        get((4, 5), "x", 2),
    ],
    "a lock that two hold": [cas((0, 3), "x", ABSENT, "a", True), cas((1, 4), "x", ABSENT, "b", True)],
    "an unknown cas that cannot have matched": [put((0, 1), "x", 1), cas(2, "x", 7, 2), get((3, 4), "x", 2)],
    "a delete of nothing that was something": [put((0, 1), "x", 1), delete((2, 3), "x", False)],
    "a delete of something that was nothing": [delete((0, 1), "x", True)],
    "one value that was deleted twice": [put((0, 1), "x", 1), delete((2, 9), "x", True), delete((2, 9), "x", True)],
    "a key that is back after its delete": [put((0, 1), "x", 1), delete((2, 3), "x", True), get((4, 5), "x", 1)],
    "a value that was popped twice": [put((0, 1), "x", 1), pop((2, 9), "x", 1), pop((2, 9), "x", 1)],
    "a pop of the value before": [put((0, 1), "x", 1), put((2, 3), "x", 2), pop((4, 5), "x", 1)],
    "two defaults": [setdefault((0, 5), "x", 1, 1), setdefault((0, 5), "x", 2, 2)],
    "a default instead of the value": [put((0, 1), "x", 1), setdefault((2, 3), "x", 2, 2)],
    "an update seen by half": [update((0, 1), x=1, y=1), get((2, 3), "x", 1), get((4, 5), "y", ABSENT)],
    "an unknown update seen by half": [
        update(0, x=1, y=1),
        get((1, 2), "x", 1),
        get((3, 4), "y", ABSENT),
    ],
    "an update whose halves were seen in both orders": [
        update((0, 1), x=1, y=1),
        update((2, 9), x=2, y=2),
        get((3, 4), "x", 2),
        get((5, 6), "y", 1),
    ],
    "two updates that were mixed": [
        update((0, 9), x=1, y=1),
        update((0, 9), x=2, y=2),
        get((10, 11), "x", 1),
        get((12, 13), "y", 2),
    ],
    "write skew": [
        update((0, 1), x=1, y=1),
        txn((2, 9), {"compares": [["x", "==", 1]], "then": {"y": 0}}, True),
        txn((2, 9), {"compares": [["y", "==", 1]], "then": {"x": 0}}, True),
    ],
    "a txn that read two moments": [
        update((0, 1), x=1, y=1),
        update((2, 9), x=2, y=2),
        txn((2, 9), {"reads": ["x", "y"]}, True, x=1, y=2),
    ],
    "a txn that read what it wrote": [txn((0, 1), {"reads": ["x"], "then": {"x": 1}}, True, x=1)],
    "a txn that took the wrong branch": [
        put((0, 1), "x", 1),
        txn((2, 3), {"compares": [["x", "==", 1]], "then": {"y": 1}, "otherwise": {"y": 2}}, False),
    ],
    "a txn of both branches": [
        txn((0, 1), {"compares": [["x", "==", 1]], "then": {"y": 1}, "otherwise": {"z": 2}}, False),
        get((2, 3), "y", 1),
    ],
    "an unknown txn of the wrong branch": [
        put((0, 1), "x", 1),
        txn(2, {"compares": [["x", "!=", 1]], "then": {"y": 1}, "otherwise": {"y": 2}}),
        get((3, 4), "y", 1),
    ],
    "a long fork": [
        put((0, 9), "x", 1),
        put((0, 9), "y", 1),
        txn((1, 8), {"reads": ["x", "y"]}, True, x=1, y=ABSENT),
        txn((1, 8), {"reads": ["x", "y"]}, True, x=ABSENT, y=1),
    ],
}

GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "an unknown put that is applied much later": [
        put(0, "x", 1),
        put((1, 2), "x", 2),
        get((3, 4), "x", 2),
        get((97, 98), "x", 1),
    ],
    "an unknown put that never is": [put(0, "x", 1), get((1, 2), "x", ABSENT), get((97, 98), "x", ABSENT)],
    "an unknown put between two deletes": [
        put((0, 1), "x", 1),
        put(2, "x", 2),
        delete((3, 4), "x", True),
        delete((5, 6), "x", True),
    ],
    "concurrent reads that see a write in the other order": [
        put((0, 9), "x", 1),
        get((1, 8), "x", 1),
        get((2, 7), "x", ABSENT),
    ],
    "a read that returns the value of a put called after it": [get((0, 9), "x", 1), put((1, 8), "x", 1)],
    "a write that takes effect when it is nearly over": [
        put((0, 9), "x", 1),
        get((1, 2), "x", ABSENT),
        get((3, 4), "x", ABSENT),
    ],
    "an overwritten write that nobody ever saw": [
        put((0, 9), "x", 1),
        put((0, 9), "x", 2),
        get((10, 11), "x", 1),
        get((12, 13), "x", 1),
    ],
    "operations that meet in one instant": [put((0, 1), "x", 1), put((1, 2), "x", 2), get((3, 4), "x", 1)],
    "the same value, twice": [
        put((0, 1), "x", 1),
        put((2, 3), "x", 2),
        put((4, 9), "x", 1),
        get((5, 6), "x", 2),
        get((7, 8), "x", 1),
    ],
    "two unknown puts of one value, both seen": [
        put(0, "x", 1),
        put(0, "x", 1),
        get((1, 2), "x", 1),
        put((3, 4), "x", 2),
        get((5, 6), "x", 1),
    ],
    "equal numbers in a cas": [put((0, 1), "x", True), cas((2, 3), "x", 1.0, 2, True)],
    "a chain of unknown operations": [
        cas(0, "x", 2, 3),
        cas(0, "x", 1, 2),
        put(0, "x", 1),
        get((1, 2), "x", 3),
    ],
    "a value that unknown increments make of another number": [
        put((0, 1), "x", 1),
        increment(2, "x", by=2),
        cas((3, 4), "x", 3.0, 0, True),
    ],
    "a sum that begins with an unknown put": [put(0, "x", 5), increment(0, "x", by=2), get((1, 2), "x", 7)],
    "a value that is back by an unknown increment": [
        put((0, 1), "x", 1),
        increment(0, "x"),
        put((2, 3), "x", 0),
        get((4, 5), "x", 1),
    ],
    "one of two unknown operations that do the same here, of which the other is needed later": [
        put(0, "x", 1),
        put((0, 1), "y", 1),
        update(0.5, x=1, y=1),
        get((2, 3), "x", 1),
        update((4, 5), x=2, y=2),
        get((6, 7), "x", 1),
        get((8, 9), "y", 2),
    ],
    "an order that uses more unknown operations, and leads nowhere": [
        put(0, "x", 1),
        put(0, "x", 5),
        cas((1, 2), "x", 5, 6, True),
        cas((1, 3), "x", 1, 5, True),
        put((4, 5), "x", 9),
        cas((6, 7), "x", 5.0, 7, True),
    ],
    "some of the unknown increments": [
        *[increment(0, "x", by=by) for by in (1, 2, 4, 8)],
        get((1, 2), "x", 5),
        get((3, 4), "x", 13),
    ],
    "an unknown delete between two defaults": [
        setdefault((0, 1), "x", 1, 1),
        delete(2, "x"),
        setdefault((3, 4), "x", 2, 2),
    ],
    "a cas that removes": [put((0, 1), "x", 1), cas((2, 3), "x", 1, ABSENT, True), get((4, 5), "x", ABSENT)],
    "an unknown update, half of which is overwritten": [
        update(0, x=1, y=1),
        put((1, 2), "x", 2),
        get((3, 4), "y", 1),
        get((5, 6), "x", 2),
    ],
    "an unknown txn that needs an unknown put": [
        txn(0, {"compares": [["x", "==", 1]], "then": {"y": 1}}),
        put(0, "x", 1),
        put((1, 2), "x", 2),
        get((3, 4), "y", 1),
        get((5, 6), "x", 2),
    ],
    "an unknown txn that was refused": [
        txn(0, {"compares": [["x", "==", 1], ["z", "==", 1]], "then": {"y": 1}, "otherwise": {"y": 2}}),
        get((1, 2), "y", 2),
    ],
    "a txn that removes and reads": [
        put((0, 1), "x", 1),
        txn((2, 3), {"then": {"x": ABSENT}, "reads": ["x"]}, True, x=1),
        get((4, 5), "x", ABSENT),
    ],
    "containers, whatever the order of their keys": [
        put((0, 1), "x", {"a": [1, (2,)], "b": None}),
        get((2, 3), "x", {"b": None, "a": [1, [2]]}),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_a_violation(name: str) -> None:
    """Whatever the order of its lines; trying all orders agrees that the history is bad."""
    history = BAD[name]
    assert not is_linearizable(history)
    assert ["violation"] * 2 == [check(history).outcome, check(history[::-1]).outcome]


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_history_that_can_be_explained_is_ok(name: str) -> None:
    """Trying all orders agrees that it can be."""
    history = GOOD[name]
    assert is_linearizable(history)
    assert ["ok"] * 2 == [check(history).outcome, check(history[::-1]).outcome]


@pytest.mark.parametrize("name", BAD)
def test_bad_keys_are_found_among_good_ones(name: str) -> None:
    """The parts of a history are checked one by one: what is wrong with some keys is not said of others."""
    elsewhere = [put((0, 1), "elsewhere", 1), get((2, 3), "elsewhere", 1)]
    verdict = check([*elsewhere, *BAD[name]])
    assert "violation" == verdict.outcome
    assert set(verdict.keys) <= {"x", "y", "z"}


# -- what a violation says ---------------------------------------------------------------------------------------------


def test_a_violation_shows_what_could_be_placed_and_what_could_not() -> None:
    """The longest beginning of an order, and the operations that fit none of it, with the reason."""
    history = [put((0, 1), "x", 1), put((2, 3), "x", 2), get((4, 5), "x", 2), get((6, 7), "x", 9), get((8, 9), "x", 2)]
    verdict = check(history)
    assert (("x",), tuple(history[:3]), (history[3],)) == (verdict.keys, verdict.placed, verdict.stuck)
    assert "'x' is 2, and must be 9" in verdict.explanation
    assert str(verdict) == f"violation: {verdict.explanation}"


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (BAD["a stale read"], "'x' is 1, and would not be again for 1: get 'x' -> 1 [4 .. 5]"),
        (BAD["a lost update"], "'x' is 1, and must be 0"),
        (BAD["an increment that starts anew"], "'x' is 5, and must be absent"),
        (BAD["a cas that failed without a reason"], "'x' is 1, and must not equal 1"),
        (BAD["a delete of something that was nothing"], "'x' is absent, and must not equal absent"),
        (
            [put((0, 9), "x", 1), put((0, 1), "x", 2), get((2, 3), "x", 1), get((10, 11), "x", 2)],
            "'x' would not be 2 for 1: get 'x' -> 2 [10 .. 11], but overwritten by 1: put 'x' 1 [0 .. 9]",
        ),
        (
            [increment(0, "x", by=5), get((1, 2), "x", 5), get((3, 4), "x", 6)],
            "'x' is 5, and must be 6",
        ),
    ],
)
def test_a_violation_gives_its_reasons(history: list[Operation], reason: str) -> None:
    """In terms of keys and values, as they were given."""
    assert reason in check(history).explanation


# -- what makes it quick -----------------------------------------------------------------------------------------------


def test_a_long_history_takes_no_recursion() -> None:
    """Longer than Python's stack is deep, on one key, and with an operation that is under way all the time."""
    moments = itertools.count(1)
    history = [put((0, 1e9), "x", "last")]
    for number in range(3_000):
        history += [put((next(moments), next(moments)), "x", number), get((next(moments), next(moments)), "x", number)]
    assert "ok" == check(history).outcome
    history[-1] = dataclasses.replace(history[-1], result=0)
    assert "violation" == check(history).outcome


def test_unknown_operations_that_nobody_has_seen_cost_nothing() -> None:
    """2 to the 60th subsets of them could have been applied; a check that tries them never ends."""
    unseen = [put(0, "x", f"unseen {number}") for number in range(60)]
    deletes = [delete((2 * number + 1, 2 * number + 2), "x", True) for number in range(60)]
    assert "ok" == check(unseen + deletes).outcome
    assert "violation" == check([*unseen, *deletes, delete((200, 201), "x", True)]).outcome


def test_alike_unknown_increments_are_counted_not_chosen() -> None:
    """Of 40 increments by one, it is of no account which have been applied."""
    unknown = [increment(0, "x") for _ in range(40)]
    reads = [get((2 * number + 1, 2 * number + 2), "x", number) for number in range(1, 41)]
    assert "ok" == check(unknown + reads).outcome
    assert "violation" == check([*unknown, *reads, get((100, 101), "x", 41)]).outcome


def test_a_search_that_takes_too_long_says_so() -> None:
    """Which subset of many different increments gives a sum is a hard question: unknown, with the keys in doubt."""
    history = [increment(0, "x", by=10**9 + 7**number) for number in range(40)]
    history += [get((1, 2), "x", 1), put((0, 1), "y", 1), get((2, 3), "y", 1)]
    ticks = itertools.count()
    verdict = check(history, timeout_s=20, clock=lambda: next(ticks))
    assert ("unknown", ("x",)) == (verdict.outcome, verdict.keys)
    assert "after 1 of 2 parts" in verdict.explanation


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("malformed", "words"),
    [
        (operation((0, 1), "swap", "x"), "no operation 'swap'"),
        (operation((0, 1), "put", value=1), "without a key"),
        (get((0, 1), "x", b"bytes"), "not a JSON value"),
        (get((0, 1), "x", float("nan")), "not a JSON value"),
        (delete((0, 1), "x", None), "is a bool"),
        (increment((0, 1), "x", None), "is an int"),
        (operation((0, 1), "increment", "x", value=0.5, result=1), "adds an int"),
        (setdefault((0, 1), "x", 1, ABSENT), "leaves a value"),
        (operation((0, 1), "update", value=[1]), "expected a mapping"),
        (txn((0, 1), {"compares": [["x", "<", 1]]}, True), "a compare is"),
        (txn((0, 1), {"reads": ["x"]}, True), "what it reads"),
        (txn((0, 1), {"then": {"x": 1}}, False), "without compares succeeds"),
    ],
)
def test_an_operation_that_makes_no_sense_is_refused(malformed: Operation, words: str) -> None:
    """A mistake of the recording is no violation of the store."""
    with pytest.raises(ValueError, match=words):
        check([malformed])


def test_a_model_of_ones_own() -> None:
    """Any operation that comes down to conditions and writes: a queue of one place, here."""

    def slot(operation: Operation) -> list[Step]:
        empty, item = Condition("slot", "is", None), operation.value
        if operation.op == "offer":
            free = [Step((Condition("slot", "is", ABSENT),), {"slot": item}), Step((empty,), {"slot": item})]
            return (
                free if operation.result else [Step((Condition("slot", "!=", ABSENT), Condition("slot", "!=", None)))]
            )
        return [Step((Condition("slot", "is", operation.result),), {"slot": None})]

    offered = operation((0, 1), "offer", value="a", result=True)
    refused = operation((2, 3), "offer", value="b", result=False)
    taken = operation((4, 5), "take", result="a")
    assert "ok" == check([offered, refused, taken], model=slot).outcome
    assert "violation" == check([offered, taken, dataclasses.replace(taken, called=6, returned=7)], model=slot).outcome


# -- revisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "history",
    [
        [put((0, 1), "x", 1, rev=2), put((2, 3), "y", 1, rev=1)],
        [put((0, 1), "x", 1, rev=1), put((0, 1), "y", 1, rev=1)],
        [put((0, 1), "x", 1, rev=3), put((0, 5), "y", 1, rev=1), put((2, 3), "z", 1, rev=2)],
        [put((0, 1), "x", 1, rev=1), delete((2, 3), "x", True, rev=1)],
        [put((0, 9), "x", 1, rev=1), put((0, 9), "x", 2, rev=2), get((10, 11), "x", 1)],
        [put((0, 9), "x", 1, rev=2), put((0, 9), "x", 2, rev=1), get((1, 2), "x", 1), get((3, 4), "x", 2)],
    ],
)
def test_revisions_that_contradict_time_or_answers_are_a_violation(history: list[Operation]) -> None:
    """Although the answers alone could be explained."""
    assert ("ok", "violation") == (check(history).outcome, check_revisions(history).outcome)


@pytest.mark.parametrize(
    "history",
    [
        [put((0, 9), "x", 1, rev=2), put((0, 9), "x", 2, rev=1), get((10, 11), "x", 1)],
        [put((0, 1), "x", 1, rev=2), put((1, 2), "y", 1, rev=1)],
        [put((0, 1), "x", 1, rev=5), delete((2, 3), "y", False, rev=1), put((4, 5), "x", 2)],
        [put(0, "x", 1), put((1, 2), "x", 2, rev=2), get((3, 4), "x", 1)],
    ],
)
def test_revisions_in_order_are_ok(history: list[Operation]) -> None:
    """Concurrent writes may have them in either order; who changed nothing, or is unknown, has none."""
    assert "ok" == check_revisions(history).outcome


def test_a_history_that_is_bad_is_so_with_revisions_too() -> None:
    """``check_revisions`` claims more than ``check``."""
    assert ["violation"] * len(BAD) == [check_revisions(history).outcome for history in BAD.values()]


def test_the_order_of_revisions_is_given_as_the_reason() -> None:
    """A write that time and values would allow has to wait for its turn."""
    first = operation((0, 9), "cas", "x", expect=2, value=1, result=True, rev=1)
    history = [first, put((0, 9), "x", 2, rev=2)]
    assert "ok" == check(history).outcome
    assert f"has a later revision than {first}" in check_revisions(history).explanation


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "code", "words"),
    [
        (GOOD["a chain of unknown operations"], 0, "ok: 1 operations in 1 parts"),
        (BAD["a stale read"], 1, "violation: no order explains the operations on 'x'"),
    ],
)
def test_the_command_prints_the_verdict(
    history: list[Operation], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says it by its exit code."""
    write_history(history, tmp_path / "history.jsonl")
    assert code == main([str(tmp_path / "history.jsonl")])
    assert words in capsys.readouterr().out


def test_the_command_checks_revisions_when_asked(tmp_path: Path) -> None:
    """``--revisions`` makes a violation of what is ok without."""
    write_history([put((0, 1), "x", 1, rev=2), put((2, 3), "x", 2, rev=1)], tmp_path / "history.jsonl")
    assert [0, 1] == [main([str(tmp_path / "history.jsonl"), *more]) for more in ([], ["--revisions"])]


def test_the_command_gives_up_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2: no verdict."""
    write_history(GOOD["a chain of unknown operations"], tmp_path / "history.jsonl")
    assert 2 == main([str(tmp_path / "history.jsonl"), "--timeout", "0"])
    assert "unknown: time ran out" in capsys.readouterr().out


def test_the_command_refuses_a_file_that_is_no_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with the line."""
    (tmp_path / "history.jsonl").write_text("\n{}\n")
    assert 2 == main([str(tmp_path / "history.jsonl")])
    assert "line 2 is no operation: without call, client, op, status" in capsys.readouterr().err
    (tmp_path / "history.jsonl").write_text("\n")
    assert 2 == main([str(tmp_path / "history.jsonl")])
    assert "there is no operation in it" in capsys.readouterr().err


def test_the_command_runs_as_a_module() -> None:
    """``python -m replikv.testing.linearizability`` reads standard input as ``-``."""
    command = [sys.executable, "-m", "replikv.testing.linearizability", "-"]
    line = '{"client": 1, "op": "get", "key": "x", "call": 0, "return": 1, "status": "ok", "result": null}\n'
    done = subprocess.run(command, input=line, capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stderr)
