"""Splits a history into parts that can be checked alone, and makes each of them small.

Linearizability is local (Herlihy & Wing 1990, theorem 1): a history is linearizable if that of each object is. Keys are
objects, and so are sets of keys that operations have in common (P-compositionality; Horn & Kroening 2015).

Within a part, values are replaced by small ints, and those that no condition on their key can tell apart by the same
one. That keeps what is possible as it is: where no condition sees a difference, neither do steps, which are conditions
and constant writes. It makes many states one, and unknown operations that write what nobody has seen are twins then.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from replikv.store.entry import ABSENT
from replikv.testing.linearizability.forms import loose_form, strict_form
from replikv.testing.linearizability.history import Operation
from replikv.testing.linearizability.model import Condition, Model, Step

__all__ = ["Move", "Need", "Partition", "State", "split"]

State: TypeAlias = tuple[int, ...]
"""The number of each key's value, by the key's place in the partition."""

_ABSENT: Final = 0
_OTHER: Final = 1
"""Any value that no condition on its key can tell from others."""


class Need(NamedTuple):
    """A condition: the value at a place is among these numbers, or is not."""

    place: int
    numbers: frozenset[int]
    negated: bool


class Move(NamedTuple):
    """A :class:`Step` in numbers. Equal moves do the same."""

    needs: tuple[Need, ...]
    writes: tuple[tuple[int, int], ...]
    """(place, number)"""
    adds: tuple[int, int] | None
    """(place, int)"""

    def written(self) -> set[int]:
        """The places that it changes."""
        return {place for place, _ in self.writes} | ({self.adds[0]} if self.adds else set())

    def read(self) -> set[int]:
        """The places that it depends on."""
        return {need.place for need in self.needs} | ({self.adds[0]} if self.adds else set())


class Played(NamedTuple):
    """An operation, and what it means."""

    operation: Operation
    steps: tuple[Step, ...]

    def keys(self) -> Iterable[str]:
        for step in self.steps:
            yield from (condition.key for condition in step.requires)
            yield from step.writes
            if step.adds:
                yield step.adds[0]


def split(history: Iterable[Operation], model: Model) -> list[Partition]:
    """The parts of a history, the smallest first. Raises ValueError for an operation that the model does not take."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        root = key
        while (above := parent.setdefault(root, root)) != root:
            root = above
        while parent[key] != root:
            parent[key], key = root, parent[key]
        return root

    everything: list[tuple[Played, str]] = []
    for operation in history:
        if operation.status == "fail":
            continue
        steps = model(operation)
        if operation.status == "ok" and any(step.adds for step in steps):
            raise ValueError(f"the model says what {operation} has added, and must say what it has written")
        if operation.status == "unknown":  # it may as well never take effect: to change nothing is no news
            steps = [step for step in steps if step.writes or step.adds]
        played = Played(operation, tuple(steps))
        keys = list(played.keys())
        for key in keys:
            parent[find(key)] = find(keys[0])
        if keys:
            everything.append((played, keys[0]))
    groups: dict[str, list[Played]] = defaultdict(list)
    for played, key in everything:
        groups[find(key)].append(played)
    return [Partition(group) for group in sorted(groups.values(), key=len)]


class Partition:
    """Operations on keys that have operations in common, by the time of their calls, ready for the search."""

    def __init__(self, group: Sequence[Played]) -> None:
        keys = dict.fromkeys(key for played in group for key in played.keys())  # noqa: SIM118  # not a dict
        places = {key: place for place, key in enumerate(keys)}
        self.keys: Final = tuple(keys)
        ordered = sorted(group, key=lambda played: played.operation.called)
        values = _Values(places, ordered)
        self.values: Final = values
        self.known: Final = [played for played in ordered if played.operation.status == "ok"]
        self.moves: Final = [[values.move(step) for step in played.steps] for played in self.known]
        """Of known[i]: in which ways it may take effect."""
        self.called: Final = [played.operation.called for played in self.known]
        """Never falls."""
        self.returned: Final = [_returned(played.operation) for played in self.known]

        needs = {need for moves in self.moves for move in moves for need in move.needs}
        unknown = [played for played in ordered if played.operation.status == "unknown"]
        moves = [[values.move(step) for step in played.steps] for played in unknown]
        needs.update(need for each in moves for move in each for need in move.needs)
        sights = _Sights(needs)
        seen = [any(sights.see(move, values) for move in each) for each in moves]
        self.unknown: Final = [played for played, kept in zip(unknown, seen, strict=True) if kept]
        self.unknown_moves: Final = [each for each, kept in zip(moves, seen, strict=True) if kept]
        self.unknown_called: Final = [played.operation.called for played in self.unknown]
        self.twins: Final = _twins(self.unknown_moves)
        """Of unknown[i]: the bit of the latest one before it that does the same, 0 if there is none. Both stay possible
        for ever once they are called, so the earlier may always be taken first."""

    def initial(self) -> State:
        """The empty map."""
        return (_ABSENT,) * len(self.keys)


class _Sights:
    """What the conditions of a partition see."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self._among: dict[int, set[int]] = defaultdict(set)
        self._not_among: dict[int, set[frozenset[int]]] = defaultdict(set)
        for place, numbers, negated in needs:
            if negated:
                self._not_among[place].add(numbers)
            else:
                self._among[place] |= numbers

    def see(self, move: Move, values: _Values) -> bool:
        """Whether an unknown operation that moves so can make a difference. If not, it is left out.

        Take an order in which it is, and take it out there. Until a key is written again, nobody looks at it with a
        condition that the written value meets, as there is none; so nobody who was there misses it. Those who overwrite
        it do so anyway. (This needs no values that are unique; where they are, it leaves out what nobody has read.)
        """
        if move.adds is not None:
            return move.adds[0] in self._among or move.adds[0] in self._not_among
        return any(
            number in self._among.get(place, ())
            or any(number not in numbers for numbers in self._not_among.get(place, ()))
            or place in values.added
            for place, number in move.writes
        )


def _returned(operation: Operation) -> float:
    return math.inf if operation.returned is None else operation.returned


def _twins(moves: Sequence[Sequence[Move]]) -> list[int]:
    latest: dict[tuple[Move, ...], int] = {}
    twins = []
    for index, each in enumerate(moves):
        twins.append(latest.get(tuple(each), 0))
        latest[tuple(each)] = 1 << index
    return twins


@dataclasses.dataclass(slots=True)
class _Seen:
    """The values of one key that conditions can tell from others."""

    strict: set[Hashable] = dataclasses.field(default_factory=set)
    loose: set[Hashable] = dataclasses.field(default_factory=set)
    equal: dict[Hashable, set[int]] = dataclasses.field(default_factory=lambda: defaultdict(set))
    """Loose form -> the numbers of all values of this form that the key may hold."""


class _Values:
    """The numbers of values."""

    def __init__(self, places: Mapping[str, int], group: Sequence[Played]) -> None:
        self._places = places
        self._numbers: dict[Hashable, int] = {ABSENT: _ABSENT}
        self.ints: Final[dict[int, int]] = {}
        """Number -> the int that it stands for."""
        self.added: Final[set[int]] = set()
        """Places that an unknown increment may change. All ints that they may hold have a number of their own."""
        self._seen: dict[str, _Seen] = defaultdict(_Seen)
        steps = [step for played in group for step in played.steps]
        self.added.update(places[step.adds[0]] for step in steps if step.adds)
        for key, relation, value in (condition for step in steps for condition in step.requires):
            self._distinguish(key, value)
            if relation != "is":
                self._seen[key].loose.add(loose_form(value))
            if places[key] in self.added and isinstance(value, int | float) and value == value // 1:
                self._distinguish(key, int(value))  # what sums may come to, if 3.0 or true is what somebody looks for
        for key, value in (item for step in steps for item in step.writes.items()):
            if self._is_told_apart(key, value):
                self._distinguish(key, value)

    def _is_told_apart(self, key: str, value: Any) -> bool:
        seen = self._seen[key]
        return (
            value is ABSENT
            or (type(value) is int and self._places[key] in self.added)
            or strict_form(value) in seen.strict
            or loose_form(value) in seen.loose
        )

    def _distinguish(self, key: str, value: Any) -> None:
        seen = self._seen[key]
        form = strict_form(value)
        seen.strict.add(form)
        seen.equal[loose_form(value)].add(self._number(form))

    def _number(self, form: Hashable) -> int:
        number = self._numbers.setdefault(form, len(self._numbers) + 1)  # 0 and 1 have their meaning
        if isinstance(form, tuple) and form[0] is int:
            self.ints[number] = form[1]
        return number

    def sum(self, number: int, by: int) -> int | None:
        """The number of an int that is larger by so much; None if this is none."""
        base = 0 if number == _ABSENT else self.ints.get(number)
        return None if base is None else self._number((int, base + by))

    def move(self, step: Step) -> Move:
        """A step in numbers."""
        return Move(
            tuple(self._need(condition) for condition in step.requires),
            tuple((self._places[key], self._written(key, value)) for key, value in step.writes.items()),
            (self._places[step.adds[0]], step.adds[1]) if step.adds else None,
        )

    def _need(self, condition: Condition) -> Need:
        key, relation, value = condition
        if relation == "is":
            return Need(self._places[key], frozenset({self._number(strict_form(value))}), False)
        return Need(self._places[key], frozenset(self._seen[key].equal[loose_form(value)]), relation == "!=")

    def _written(self, key: str, value: Any) -> int:
        return self._number(strict_form(value)) if self._is_told_apart(key, value) else _OTHER
