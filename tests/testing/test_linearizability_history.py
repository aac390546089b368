"""Histories as they are recorded, written and read."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from replikv import ABSENT, EncodingError, OutcomeUnknownError, UnavailableError
from replikv.testing.linearizability import Operation, Recorder, check, read_history, write_history

FULL = Operation(
    client="c", op="cas", key="x", called=1.5, returned=2.25, status="ok", expect=ABSENT, value=None, result=True, rev=7
)


# -- lines of JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        FULL,
        Operation(client=1, op="get", key="x", called=0, returned=1, status="ok", result=ABSENT),
        Operation(client=1, op="get", key="x", called=0, returned=1, status="ok", result=None),
        Operation(client=1, op="put", key="x", called=0.1, value={"a": [1, 2.0, True, None, "$absent"]}),
        Operation(client=1, op="put", key="", called=0, returned=1, status="fail", value='"$absent": '),
        Operation(client=1, op="txn", called=0, value={"then": {"x": ABSENT}, "compares": [["y", "==", ABSENT]]}),
    ],
)
def test_what_is_written_is_read(operation: Operation, tmp_path: Path) -> None:
    """Null and no value stay apart, wherever they stand; paths and open files will do."""
    write_history([operation, operation], tmp_path / "history.jsonl")
    stream = io.StringIO()
    write_history([operation, operation], stream)
    assert [operation, operation] == read_history(tmp_path / "history.jsonl")
    assert [operation, operation] == read_history(stream.getvalue().splitlines())
    assert 2 == stream.getvalue().count("\n")


def test_the_format_is_one_object_a_line() -> None:
    """As docs/linearizability.md has it."""
    stream = io.StringIO()
    write_history([FULL], stream)
    assert {
        "client": "c",
        "op": "cas",
        "key": "x",
        "value": None,
        "call": 1.5,
        "return": 2.25,
        "status": "ok",
        "expect": {"$absent": True},
        "result": True,
        "rev": 7,
    } == json.loads(stream.getvalue())


def test_the_lines_in_the_docs_are_a_history() -> None:
    """They are read as they stand there, have each operation, and are linearizable."""
    page = Path(__file__).parents[2] / "docs" / "linearizability.md"
    lines = page.read_text("utf-8").partition("```json\n")[2].partition("```")[0].splitlines()
    history = read_history(lines)
    assert "ok" == check(history).outcome
    assert {"ok", "fail", "unknown"} == {each.status for each in history}
    table = page.read_text("utf-8").partition("| op | value, expect | result |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {each.op for each in history}


def test_other_fields_and_empty_lines_are_passed_over() -> None:
    """A log may say more, and what has no answer needs few fields."""
    line = '{"client": 1, "op": "put", "key": "x", "value": 1, "call": 0, "status": "unknown", "node": "a"}'
    assert [Operation(client=1, op="put", key="x", value=1, called=0)] == read_history(["", line, " \n"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "maybe"}, "ok, fail or unknown"),
        ({"status": None}, "status is None"),
        ({"call": "1"}, "call is '1'"),
        ({"call": True}, "call is True"),
        ({"call": float("nan")}, "was called at nan"),
        ({"return": 0}, "was called at 1"),
        ({"return": None}, "no time at which it returned"),
        ({"key": 1}, "key is 1"),
        ({"client": None}, "client is None"),
        ({"rev": 1.5}, "rev is 1.5"),
    ],
)
def test_a_line_that_is_no_operation_is_refused(change: dict[str, Any], words: str) -> None:
    """With its number and the reason."""
    good = {"client": 1, "op": "get", "key": "x", "call": 1, "return": 2, "status": "ok", "result": 1}
    with pytest.raises(ValueError, match=f"line 2 is no operation: .*{words}"):
        read_history([json.dumps(good), json.dumps(good | change)])


@pytest.mark.parametrize("line", ["[1]", "{", '"x"', "[" * 100_000])
def test_a_line_that_is_no_object_is_refused(line: str) -> None:
    """Half a line, too: what a process that was killed has left."""
    with pytest.raises(ValueError, match="line 1 is no operation"):
        read_history([line])


def test_a_get_without_a_result_is_refused() -> None:
    """It would mean that it has read null."""
    line = '{"client": 1, "op": "get", "key": "x", "call": 1, "return": 2, "status": "ok"}'
    with pytest.raises(ValueError, match="an ok get without result"):
        read_history([line])


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, float("nan"), {"$absent": True}, [{"$absent": 1}]])
def test_a_value_that_json_cannot_tell_is_not_written(value: Any) -> None:
    """Rather than as something else."""
    with pytest.raises((ValueError, TypeError)):
        write_history([Operation(client=1, op="put", key="x", value=value, called=0)], io.StringIO())


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (FULL, "c: cas 'x' absent => None -> True at revision 7 [1.5 .. 2.25]"),
        (Operation(client=1, op="put", key="x", value=None, called=0), "1: put 'x' None -> unknown [0 .. ]"),
        (Operation(client=1, op="get", key="x", called=0, returned=1, status="ok"), "1: get 'x' -> None [0 .. 1]"),
    ],
)
def test_an_operation_reads_like_a_sentence(operation: Operation, words: str) -> None:
    """Who, what, the answer, and when."""
    assert words == str(operation)


# -- the recorder ------------------------------------------------------------------------------------------------------


def test_an_answer_is_recorded_at_its_moment() -> None:
    """Between the call and ``ok``; what the block does afterwards is of no account."""
    moments = iter([1.0, 2.0, 3.0])
    recorder = Recorder(lambda: next(moments))
    with recorder.call("c", "put", "x", value=1) as op:
        op.ok(rev=5)
        next(moments)
    expected = Operation(client="c", op="put", key="x", value=1, called=1, returned=2, status="ok", rev=5)
    assert [expected] == recorder.history()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError("no leader"), "fail"),
        (EncodingError("not an int"), "fail"),
        (OutcomeUnknownError("no answer", (1, 2)), "unknown"),
        (KeyError("x"), "unknown"),
        (KeyboardInterrupt(), "unknown"),
    ],
)
def test_an_error_is_recorded_and_goes_on(error: BaseException, status: str) -> None:
    """What surely was not applied has failed; of anything else nobody knows."""
    recorder = Recorder(iter(range(9)).__next__)
    with pytest.raises(type(error)), recorder.call(1, "increment", "x"):
        raise error
    assert [status] == [each.status for each in recorder.history()]


async def test_a_cancelled_operation_is_unknown(autojump_clock: trio.testing.MockClock) -> None:
    """And so is one that is still under way, when the history is asked for."""
    recorder = Recorder(trio.current_time)
    with trio.move_on_after(1), recorder.call(1, "put", "x", value=1):
        await trio.sleep_forever()
    with recorder.call(1, "put", "x", value=2) as op:
        assert ["unknown", "unknown"] == [each.status for each in recorder.history()]
        op.ok()
    assert ["unknown", "ok"] == [each.status for each in recorder.history()]


def test_what_happens_in_one_instant_stays_in_order() -> None:
    """A clock that stands still, as trio's MockClock does, hides no order; one that goes back, neither."""
    readings = iter([5.0, 5.0, 5.0, 4.0])
    recorder = Recorder(lambda: next(readings))
    for _ in range(2):
        with recorder.call(1, "put", "x", value=1) as op:
            op.ok()
    first, second = recorder.history()
    assert first.returned is not None
    assert second.returned is not None
    assert 5.0 == first.called < first.returned < second.called < second.returned < 5.1


def test_an_error_after_the_answer_changes_nothing() -> None:
    """The caller has his answer; what fails then is something else."""
    recorder = Recorder(iter(range(9)).__next__)
    with contextlib.suppress(KeyError), recorder.call(1, "get", "x") as op:
        op.ok(3)
        raise KeyError
    with recorder.call(1, "get", "x") as op:
        op.fail()
    assert [("ok", 3), ("fail", None)] == [(each.status, each.result) for each in recorder.history()]


def test_what_was_written_may_be_told_with_the_answer() -> None:
    """A ``transact`` decides in the end what it writes."""
    recorder = Recorder(iter(range(9)).__next__)
    with recorder.call(1, "txn") as op:
        op.ok({"succeeded": True, "reads": {}}, 4, value={"then": {"x": 1}})
    assert [{"then": {"x": 1}}] == [each.value for each in recorder.history()]


def test_a_block_without_an_answer_is_a_mistake() -> None:
    """So is one with two; the first one counts."""
    recorder = Recorder(iter(range(9)).__next__)
    with pytest.raises(RuntimeError, match="ended without an answer"), recorder.call(1, "get", "x"):
        pass
    with recorder.call(1, "get", "x") as op:
        op.ok(1)
        with pytest.raises(RuntimeError, match="has its answer already"):
            op.ok(2)
    assert [("unknown", None), ("ok", 1)] == [(each.status, each.result) for each in recorder.history()]
