"""A history: what clients asked for, what they were told, and when. As objects, and as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, TextIO, TypeAlias, get_args

from replikv.store.entry import ABSENT

__all__ = ["Operation", "Status", "read_history", "write_history"]

Status: TypeAlias = Literal["ok", "fail", "unknown"]

_STATUSES: Final = frozenset(get_args(Status))
_ABSENT_MARK: Final = "$absent"
"""``{"$absent": true}`` stands for no value, as MongoDB's extended JSON marks what JSON has no word for."""
_ANSWERED: Final = frozenset({"get", "delete", "cas", "increment", "pop", "setdefault", "txn"})
"""Operations whose answer says something about the map: to leave ``result`` out is a mistake, and would mean null."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of one client.

    Times are seconds of any one clock. Only their order counts: an operation precedes another if it returned *before*
    the other was called; those that meet in one instant are taken for concurrent.

    Values are plain JSON, and ``replikv.ABSENT`` stands for no value, which is not the same as None. What each
    operation expects in which field stands in :func:`~replikv.testing.linearizability.model.register_map`.
    """

    client: str | int
    op: str
    key: str | None = None
    """None for operations on several keys, which name them in ``value``."""
    value: Any = None
    called: float
    returned: float | None = None
    """None while nothing was heard. It does not count unless the status is ok."""
    status: Status = "unknown"
    """ok: it took effect, and this is the answer. fail: it surely did not. unknown: it may have, or may yet."""
    expect: Any = None
    result: Any = None
    rev: int | None = None
    """The revision at which a write took effect, if that was told."""

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            raise ValueError(f"an operation is ok, fail or unknown, not {self.status!r}")
        if self.returned is None and self.status == "ok":
            raise ValueError(f"{self.op} of client {self.client} is ok, and has no time at which it returned")
        if not math.isfinite(self.called) or not self.called <= (math.inf if self.returned is None else self.returned):
            raise ValueError(f"{self.op} of client {self.client} was called at {self.called}, returned {self.returned}")

    def __str__(self) -> str:
        words = [f"{self.client}: {self.op}"]
        if self.key is not None:
            words.append(repr(self.key))
        if self.op == "cas":
            words.append(f"{_show(self.expect)} => {_show(self.value)}")
        elif self.value is not None or self.op in {"put", "setdefault"}:
            words.append(_show(self.value))
        if self.status != "ok":
            words.append(f"-> {self.status}")
        elif self.result is not None or self.op in _ANSWERED:
            words.append(f"-> {_show(self.result)}")
        if self.rev is not None:
            words.append(f"at revision {self.rev}")
        until = "" if self.returned is None or self.status == "unknown" else f"{self.returned:g}"
        words.append(f"[{self.called:g} .. {until}]")
        return " ".join(words)


def _show(value: Any) -> str:
    return "absent" if value is ABSENT else f"{value!r:.200}"


# -- JSON lines --------------------------------------------------------------------------------------------------------


def read_history(source: str | os.PathLike[str] | Iterable[str]) -> list[Operation]:
    """The operations in a file, by its path, or in lines: one JSON object a line; empty lines are skipped.

    Fields that are not of the format are ignored, so that a log can say more. Raises ValueError for a line that is no
    operation, with its number.
    """
    if isinstance(source, str | os.PathLike):
        with Path(source).open(encoding="utf-8") as lines:
            return read_history(lines)
    history = []
    for number, line in enumerate(source, 1):
        if line.strip():
            try:
                history.append(_decode(line))
            except (ValueError, TypeError, RecursionError) as exc:
                raise ValueError(f"line {number} is no operation: {exc}") from exc
    return history


def write_history(history: Iterable[Operation], target: str | os.PathLike[str] | TextIO) -> None:
    """Write operations as lines of JSON, for :func:`read_history`, to a path (replacing the file) or an open file.

    Raises ValueError or TypeError for a value that JSON cannot tell.
    """
    if isinstance(target, str | os.PathLike):
        with Path(target).open("w", encoding="utf-8") as file:
            write_history(history, file)
        return
    for operation in history:
        target.write(_encode(operation) + "\n")


def _encode(operation: Operation) -> str:
    marks = 0

    def mark(value: object) -> object:
        nonlocal marks
        if value is not ABSENT:
            raise TypeError(f"{operation.op} of client {operation.client} has a {type(value).__qualname__}: not JSON")
        marks += 1
        return {_ABSENT_MARK: True}

    record = {"client": operation.client, "op": operation.op, "key": operation.key, "value": operation.value}
    record |= {"call": operation.called, "return": operation.returned, "status": operation.status}
    record |= {"expect": operation.expect, "result": operation.result, "rev": operation.rev}
    line = json.dumps(record, default=mark, allow_nan=False)
    if line.count(f'"{_ABSENT_MARK}": ') != marks:
        raise ValueError(f"a value with the key {_ABSENT_MARK!r} would be read as no value: use another key")
    return line


def _decode(line: str) -> Operation:
    record = json.loads(line, object_hook=lambda found: ABSENT if found == {_ABSENT_MARK: True} else found)
    if not isinstance(record, dict):
        raise TypeError("not a JSON object")
    missing = {"client", "op", "call", "status"} - record.keys()
    if missing:
        raise ValueError(f"without {', '.join(sorted(missing))}")
    if record["status"] == "ok" and record["op"] in _ANSWERED and "result" not in record:
        raise ValueError(f"an ok {record['op']} without result")
    for name, kinds in _FIELDS.items():
        if isinstance(record.get(name), bool) or not isinstance(record.get(name), kinds):
            raise TypeError(f"{name} is {record.get(name)!r:.100}")
    return Operation(
        client=record["client"],
        op=record["op"],
        key=record.get("key"),
        value=record.get("value"),
        called=record["call"],
        returned=record.get("return"),
        status=record["status"],
        expect=record.get("expect"),
        result=record.get("result"),
        rev=record.get("rev"),
    )


_FIELDS: Final[dict[str, Any]] = {
    "client": str | int,
    "op": str,
    "key": str | None,
    "call": int | float,
    "return": int | float | None,
    "status": str,
    "rev": int | None,
}
