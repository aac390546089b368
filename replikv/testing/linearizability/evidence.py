"""Why there is no order, in words."""

from __future__ import annotations

from typing import Any, Final

from replikv.store.entry import ABSENT
from replikv.testing.linearizability.forms import loose_form, strict_form
from replikv.testing.linearizability.model import Condition, Step
from replikv.testing.linearizability.partition import Partition
from replikv.testing.linearizability.search import Placement, Search, write_move
from replikv.testing.linearizability.verdict import Verdict

__all__ = ["describe"]

_SHOWN_MAX: Final = 10
"""Operations before the end of the order: what contradicts them is seldom further away. All are in the verdict."""


def describe(partition: Partition, search: Search) -> Verdict:
    """The verdict on a partition that was searched in vain."""
    node = search.deepest
    path = node.path()
    placed = tuple((partition.known if known else partition.unknown)[index].operation for known, index, _ in path)
    stuck = search.candidates(node)
    state = _replay(partition, path)
    shown = placed[-_SHOWN_MAX:]
    lines = [f"no order explains the operations on {', '.join(map(repr, partition.keys[:_SHOWN_MAX]))}"]
    if len(partition.keys) > _SHOWN_MAX:
        lines[0] += f" and {len(partition.keys) - _SHOWN_MAX} more keys"
    lines.append(f"The longest has {node.count()} of {len(partition.known)}" + (", and ends with" if shown else ""))
    lines += [f"    {operation}" for operation in shown]
    lines.append("None of these can be next:")
    for index in stuck:
        lines.append(f"    {partition.known[index].operation}")
        lines += [f"        {reason}" for reason in _reasons(partition, search, node, state, index)]
    operations = tuple(partition.known[index].operation for index in stuck)
    return Verdict("violation", "\n".join(lines), partition.keys, placed, operations)


def _replay(partition: Partition, path: list[tuple[bool, int, int]]) -> dict[str, Any]:
    """The values behind the numbers of the state."""
    state: dict[str, Any] = dict.fromkeys(partition.keys, ABSENT)
    for known, index, number in path:
        step: Step = (partition.known if known else partition.unknown)[index].steps[number]
        state.update(step.writes)
        if step.adds:
            key, by = step.adds
            state[key] = by + (0 if state[key] is ABSENT else state[key])
    return state


def _reasons(partition: Partition, search: Search, node: Placement, state: dict[str, Any], index: int) -> list[str]:
    first = search.must_wait(node, index)
    if first is not None:
        return [f"has a later revision than {partition.known[first].operation}"]
    reasons = []
    for step, move in zip(partition.known[index].steps, partition.moves[index], strict=True):
        broken = [condition for condition in step.requires if not _holds(condition, state[condition.key])]
        reasons += [f"{each.key!r} is {_show(state[each.key])}, and {_asks(each)}" for each in broken]
        lost = None if broken else search.stranded(node, index, write_move(move, node.state), node.used)
        if lost is not None:
            key, asker = partition.keys[lost.place], partition.known[lost.asker].operation
            if lost.overwriter == index:
                reasons.append(f"{key!r} is {_show(state[key])}, and would not be again for {asker}")
            else:
                first_other = partition.known[lost.overwriter].operation
                reasons.append(
                    f"{key!r} would not be {_show(step.writes[key])} for {asker}, but overwritten by {first_other}"
                )
    return list(dict.fromkeys(reasons)) or ["whatever comes after it, some operation is left"]


def _holds(condition: Condition, value: Any) -> bool:
    if condition.relation == "is":
        return strict_form(value) == strict_form(condition.value)
    return (loose_form(value) == loose_form(condition.value)) is (condition.relation == "==")


def _asks(condition: Condition) -> str:
    relation = {"is": "must be", "==": "must equal", "!=": "must not equal"}[condition.relation]
    return f"{relation} {_show(condition.value)}"


def _show(value: Any) -> str:
    return "absent" if value is ABSENT else f"{value!r:.200}"
