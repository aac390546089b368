"""The judges of a chaos run: what is right passes, and each kind of wrong is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replikv import OutcomeUnknownError, UnavailableError
from replikv.testing.chaos import Options, judge
from replikv.testing.chaos.judge import judge_counters, judge_effects, judge_holds
from replikv.testing.chaos.records import Gone, Hold, OperationFile, read_operations
from replikv.testing.linearizability import Operation
from replikv.testing.watch_validation import HistoryChange


def operation(op: str, key: str | None = "register/1", *, status: str = "ok", **fields: Any) -> Operation:
    given = {"client": "c", "called": 0.0, "returned": 1.0, **fields}
    return Operation(op=op, key=key, status=status, **given)  # type: ignore[arg-type]


# -- effects -----------------------------------------------------------------------------------------------------------

PUT = HistoryChange(5, "register/1", "put", "v")


@pytest.mark.parametrize(
    "right",
    [
        [operation("put", value="v", rev=5)],
        [operation("put", value="v", status="unknown")],
        [operation("put", value="w", status="fail")],
        [operation("put", value="w", rev=6)],  # nobody watched that
        [operation("txn", None, value={"then": {"register/1": "v"}, "reads": []}, rev=5)],
    ],
)
def test_effects_as_they_were_told(right: list[Operation]) -> None:
    """A value is where its client was told, or nowhere; of what is unknown either."""
    assert [] == judge_effects(right, [PUT])


@pytest.mark.parametrize(
    ("wrong", "changes", "why"),
    [
        ([operation("put", value="v", status="fail")], [PUT], "said to have failed"),
        ([operation("put", value="v", rev=4)], [PUT, HistoryChange(4, "k", "put", "w")], "was said to have taken"),
        ([operation("update", None, value={"register/1": "w"}, rev=5)], [PUT], "was said to have taken"),
        ([], [PUT, HistoryChange(7, "register/1", "put", "v")], "2 times"),
    ],
)
def test_effects_that_are_wrong(wrong: list[Operation], changes: list[HistoryChange], why: str) -> None:
    """A failure that took effect, an effect at another revision, and one that came twice."""
    (found,) = judge_effects(wrong, changes)
    assert why in found


# -- counters ----------------------------------------------------------------------------------------------------------

ONE = operation("increment", "counter/1", result=1)
TWO = operation("increment", "counter/1", result=2)
LOST = operation("increment", "counter/1", status="unknown")


def test_counters_that_add_up() -> None:
    """What is unknown counts once, or not at all."""
    assert [] == judge_counters([ONE, TWO], [], {"n1": {"counter/1": 2}})
    for total in (2, 3):
        assert [] == judge_counters([ONE, TWO, LOST], [], {"n1": {"counter/1": total}})


@pytest.mark.parametrize(
    ("operations", "total", "changes", "why"),
    [
        ([ONE, TWO], 3, [], "is 3 on n1 after 2"),
        ([ONE, TWO], 1, [], "is 1 on n1 after 2"),
        ([ONE, ONE, LOST], 2, [], "one sum"),
        ([ONE, LOST], 4, [], "is 4 on n1"),
        ([ONE, TWO], 2, [HistoryChange(9, "counter/1", "put", 3, previous=1)], "from 1 to 3"),
    ],
)
def test_counters_that_do_not(operations: list[Operation], total: int, changes: list[HistoryChange], why: str) -> None:
    """One too many, one too few, two of one sum, and a step that is too large."""
    (found,) = judge_counters(operations, changes, {"n1": {"counter/1": total}})
    assert why in found


# -- holders -----------------------------------------------------------------------------------------------------------


def hold(token: int, entered: float, believed: float, name: str = "lock/0") -> Hold:
    return Hold(name, f"key/{token}", token, f"who/{token}", entered, believed)


def created(token: int) -> HistoryChange:
    return HistoryChange(token, f"key/{token}", "put", "", created=True)


def fenced(rev: int, token: int) -> HistoryChange:
    return HistoryChange(rev, "fenced/lock/0", "put", token)


def deleted(rev: int, token: int) -> HistoryChange:
    return HistoryChange(rev, f"key/{token}", "expire")


def test_holders_one_after_the_other() -> None:
    """Each begins after the last belief of the one before, and before its own key vanishes."""
    holds = [hold(2, 1.0, 2.0), hold(5, 2.0, 3.0), hold(6, 1.0, 3.0, "lock/1")]
    gone = [Gone("key/2", 4, 2.0), Gone("key/5", 7, 3.5), Gone("key/9", 9, 0.0)]
    assert [] == judge_holds(holds, gone, [created(2), fenced(3, 2), deleted(4, 2), created(5), fenced(6, 5)])


@pytest.mark.parametrize(
    ("holds", "gone", "changes", "why"),
    [
        ([hold(2, 1.0, 2.1), hold(5, 2.0, 3.0)], [], [], "at once"),
        ([hold(2, 1.0, 4.0), hold(5, 4.5, 5.0), hold(7, 3.0, 6.0)], [], [], "at once"),
        ([hold(2, 1.0, 2.1)], [Gone("key/2", 4, 2.0)], [], "was gone"),
        ([], [], [fenced(6, 5), fenced(7, 2)], "after a later one"),
        ([], [], [created(2), deleted(4, 2), fenced(6, 2)], "not held"),
    ],
)
def test_holders_that_overlap(holds: list[Hold], gone: list[Gone], changes: list[HistoryChange], why: str) -> None:
    """Two at once, one who believes what is over, and one who writes when it is not his turn any more."""
    assert why in judge_holds(holds, gone, changes)[0]


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_an_operation_is_known_by_its_last_line(tmp_path: Path) -> None:
    """One that was cut off by a kill is unknown; a line that was cut off is none."""
    file = OperationFile(tmp_path / "n1.0.calls")
    with file.call("c", "put", "k", value="v") as done:
        done.ok(rev=1)
    with pytest.raises(UnavailableError), file.call("c", "put", "k", value="w"):
        raise UnavailableError("no")
    with pytest.raises(OutcomeUnknownError), file.call("c", "put", "k", value="x"):
        raise OutcomeUnknownError("perhaps", (1, 1))
    file.close()
    with (tmp_path / "n1.0.calls").open("a") as torn:
        torn.write('{"client": "c", "op": "put", "key"')
    assert ["ok", "fail", "unknown"] == [operation.status for operation in read_operations(tmp_path)]


FINAL: dict[str, Any] = {
    "unwell": [],
    "digests": {"n1": [7, "aa"], "n2": [7, "aa"]},
    "items": {"n1": {"revision": 1, "items": {"register/1": "v"}}, "n2": {"revision": 1, "items": {"register/1": "v"}}},
    "values": {"n1": {"register/1": "v"}},
}


def leave(directory: Path, **final: Any) -> None:
    """What a tiny run leaves: a put, a read of it, and a watcher who saw it."""
    Options(directory=directory).save()
    (directory / "final.json").write_text(json.dumps(FINAL | final))
    file = OperationFile(directory / "n1.0.calls")
    with file.call("c", "put", "register/1", value="v") as done:
        done.ok(rev=1)
    with file.call("d", "get", "register/1") as done:
        done.ok("v")
    file.close()
    line = {"watcher": "n1.0/all", "stream": 1}
    change = {"kind": "put", "key": "register/1", "value": "v", "previous": None, "rev": 1, "created": True}
    lines: list[dict[str, Any]] = [
        {**line, "event": "begin", "since": 0},
        {**line, "event": "change", **change},
        {**line, "event": "progress", "rev": 1},
    ]
    (directory / "n1.0.watches").write_text("".join(json.dumps(one) + "\n" for one in lines))


def test_a_run_that_is_right(tmp_path: Path) -> None:
    """Every judge has nothing to say, and says what he has looked at."""
    leave(tmp_path)
    verdicts, counts = judge(tmp_path, 10.0)
    assert {} == {name: found for name, found in verdicts.items() if found}
    assert (2, 1, 2) == (counts["operations ok"], counts["revisions"], counts["stream events"])


@pytest.mark.parametrize(
    ("judge_name", "wrong"),
    [
        ("liveness", {"unwell": ["n1 ended"]}),
        ("equal replicas", {"digests": {"n1": [7, "aa"], "n2": [7, "bb"]}}),
        ("equal replicas", {"items": {**FINAL["items"], "n2": {"revision": 1, "items": {}}}}),
    ],
)
def test_a_run_that_ended_badly(tmp_path: Path, judge_name: str, wrong: dict[str, Any]) -> None:
    """Somebody was not well, or not equal."""
    leave(tmp_path, **wrong)
    verdicts, _ = judge(tmp_path, 10.0)
    assert [judge_name] == [name for name, found in verdicts.items() if found]


def test_a_stale_read(tmp_path: Path) -> None:
    """Whoever reads what was replaced before he asked is found out."""
    leave(tmp_path)
    file = OperationFile(tmp_path / "n2.0.calls")
    with file.call("e", "put", "register/1", value="w") as done:
        done.ok(rev=2)
    with file.call("f", "get", "register/1") as done:
        done.ok("v")
    file.close()
    verdicts, _ = judge(tmp_path, 10.0)
    assert {"linearizability", "linearizability by revisions"} == {name for name, found in verdicts.items() if found}


def test_a_watcher_who_missed_something(tmp_path: Path) -> None:
    """Two watchers of everything have to tell one story."""
    leave(tmp_path)
    text = (tmp_path / "n1.0.watches").read_text()
    (tmp_path / "n2.0.watches").write_text(
        "".join(line for line in text.replace("n1.0/all", "n2.0/all").splitlines(keepends=True) if "put" not in line)
    )
    verdicts, _ = judge(tmp_path, 10.0)
    assert ["watches"] == [name for name, found in verdicts.items() if found]
