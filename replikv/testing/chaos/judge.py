"""What a run proves, by what it has left. ``judge`` reads nothing but the run's directory, so it can be asked again."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from replikv.testing.chaos.clients import COUNTERS
from replikv.testing.chaos.holders import FENCED, LEASED
from replikv.testing.chaos.records import Gone, Hold, read_gone, read_holds, read_operations
from replikv.testing.linearizability import Operation, check, check_revisions, write_history
from replikv.testing.watch_validation import ChangeHistory, HistoryChange, read_streams, validate

__all__ = ["Verdicts", "judge", "judge_counters", "judge_effects", "judge_holds"]

Verdicts: TypeAlias = dict[str, list[str]]
"""Judge -> what it has found; empty if all is well."""

_TOLD_MAX: int = 5
"""Of one kind."""


def judge(directory: Path, check_s: float) -> tuple[Verdicts, dict[str, int]]:
    """The verdicts on a run, and counts of what they rest on. ``history.jsonl`` is written on the way."""
    final: dict[str, Any] = json.loads((directory / "final.json").read_text("utf-8"))
    operations = read_operations(directory)
    write_history(operations, directory / "history.jsonl")
    streams = [stream for path in sorted(directory.glob("*.watches")) for stream in read_streams(path)]
    holds, gone = read_holds(directory), read_gone(directory)
    verdicts: Verdicts = {"liveness": final["unwell"]}
    for name, decide in (("linearizability", check), ("linearizability by revisions", check_revisions)):
        verdict = decide(operations, timeout_s=check_s)
        verdicts[name] = [] if verdict.outcome == "ok" else [str(verdict)]
    verdicts["equal replicas"] = _judge_replicas(final)
    try:
        history = ChangeHistory.of_streams(stream for stream in streams if stream.whole)
    except ValueError as exc:
        verdicts["watches"] = [str(exc)]
        history = ChangeHistory([])
    else:
        verdicts["watches"] = _first(str(violation) for violation in validate(streams, history))
    changes = [change for rev in range(1, history.newest + 1) for change in (history.at(rev) or {}).values()]
    verdicts["effects"] = judge_effects(operations, changes)
    verdicts["counters"] = judge_counters(operations, changes, final.get("values", {}))
    verdicts["holders"] = judge_holds(holds, gone, changes)
    counts = collections.Counter(f"operations {operation.status}" for operation in operations)
    counts["keys watched"] = len({change.key for change in changes})
    counts["revisions"] = history.newest
    counts["revisions nobody watched"] = len(history.unknown)
    counts["streams"] = len(streams)
    counts["stream events"] = sum(len(stream.events) for stream in streams)
    counts["locks held"] = sum(not hold.name.startswith(LEASED) for hold in holds)
    counts["leases held"] = sum(hold.name.startswith(LEASED) for hold in holds)
    return verdicts, dict(counts)


def _first(found: Iterable[str]) -> list[str]:
    every = list(found)
    more = [f"... and {len(every) - _TOLD_MAX} more"] if len(every) > _TOLD_MAX else []
    return every[:_TOLD_MAX] + more


def _judge_replicas(final: dict[str, Any]) -> list[str]:
    found = []
    if len({tuple(digest) for digest in final.get("digests", {}).values()}) > 1:
        found.append(f"at one position there are several digests: {final['digests']}")
    by_revision: dict[int, Any] = {}
    for node_id, told in final.get("items", {}).items():
        if by_revision.setdefault(told["revision"], told["items"]) != told["items"]:
            found.append(f"{node_id} holds something else at revision {told['revision']}")
    return found


# -- what was told to clients, and what happened -----------------------------------------------------------------------


def judge_effects(operations: Iterable[Operation], changes: Iterable[HistoryChange]) -> list[str]:
    """Values are unique, so each of them has one fate: it is put once; at the revision that its client was told; and
    never, if its client was told that it surely was not.
    """
    revisions: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    known = set()
    for change in changes:
        known.add(change.rev)
        if isinstance(change.value, str):
            revisions[change.key, change.value].append(change.rev)
    found = []
    for (key, value), at in revisions.items():
        if len(at) > 1:
            found.append(f"{value!r} was put to {key!r} {len(at)} times: at {at}")
    for operation in operations:
        for key, value in _values(operation):
            at = revisions.get((key, value), [])
            if operation.status == "fail" and at:
                found.append(f"it was said to have failed, and took effect at {at}: {operation}")
            elif operation.status == "ok" and operation.rev in known and at != [operation.rev]:
                found.append(f"it was said to have taken effect at {operation.rev}, and did at {at}: {operation}")
    return _first(found)


def _values(operation: Operation) -> list[tuple[str, str]]:
    """What the operation puts, if it does."""
    match operation.op:
        case "put" | "cas" | "setdefault":
            return [(str(operation.key), operation.value)]
        case "update":
            return list(operation.value.items())
        case "txn":
            return list(operation.value["then"].items())
    return []


def judge_counters(
    operations: Iterable[Operation], changes: Iterable[HistoryChange], values: dict[str, dict[str, Any]]
) -> list[str]:
    """Each increment counts once: sums go up by one, no two are told one, and in the end there are as many as were
    answered, and at most as many more as nothing is known of.
    """
    found = [
        f"{change.key!r} went from {change.previous} to {change.value} at {change.rev}"
        for change in changes
        if change.key.startswith(COUNTERS) and change.value != (change.previous or 0) + 1
    ]
    sure: dict[str, list[int]] = collections.defaultdict(list)
    unsure: collections.Counter[str] = collections.Counter()
    for operation in operations:
        if operation.op == "increment" and operation.status == "ok":
            sure[str(operation.key)].append(operation.result)
        elif operation.op == "increment" and operation.status == "unknown":
            unsure[str(operation.key)] += 1
    for key, totals in sure.items():
        if len(set(totals)) < len(totals):
            found.append(f"two increments of {key!r} were told one sum")
        for node_id, held in values.items():
            if not len(totals) <= held.get(key, 0) <= len(totals) + unsure[key]:
                found.append(
                    f"{key!r} is {held.get(key, 0)} on {node_id} after {len(totals)} increments, and {unsure[key]} of"
                    " which nothing is known"
                )
    return _first(found)


# -- holders -----------------------------------------------------------------------------------------------------------


def judge_holds(holds: Iterable[Hold], gone: Iterable[Gone], changes: Iterable[HistoryChange]) -> list[str]:
    """Nobody holds what somebody else holds; nobody believes to hold what he does not; and whoever writes on the
    condition that he holds it does so while he does.
    """
    found = []
    latest: dict[str, Hold] = {}
    by_token = sorted(holds, key=lambda hold: hold.token)
    for hold in by_token:
        before = latest.get(hold.name)
        if before is not None and before.believed > hold.entered:
            found.append(f"two held {hold.name!r} at once: {before} and {hold}")
        if before is None or hold.believed > before.believed:
            latest[hold.name] = hold
    vanished: dict[str, list[Gone]] = collections.defaultdict(list)
    for one in gone:
        vanished[one.key].append(one)
    for hold in by_token:
        for one in vanished[hold.key]:
            if one.rev > hold.token and one.at < hold.believed:
                found.append(f"the key of {hold} was gone at {one.at}, {hold.believed - one.at:.3f} s before")
                break
    tokens: dict[str, int] = {}
    present: dict[int, bool] = {}
    created: dict[str, int] = {}
    for change in sorted(changes, key=lambda change: change.rev):
        if change.kind == "put":
            if change.created:
                created[change.key] = change.rev
                present[change.rev] = True
        elif change.key in created:
            present[created.pop(change.key)] = False
        if change.key.startswith(FENCED) and change.kind == "put":
            if change.value < tokens.get(change.key, 0):
                found.append(f"{change.key!r} got the token {change.value} at {change.rev}, after a later one")
            if present.get(change.value) is False:
                found.append(f"{change.key!r} got the token {change.value} at {change.rev}, when it was not held")
            tokens[change.key] = change.value
    return _first(found)
