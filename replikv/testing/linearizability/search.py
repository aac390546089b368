"""Looks for an order of a partition's operations: Wing & Gong (1993), with Lowe's cache (2017), without recursion.

A configuration is the set of operations that were placed, and the state they lead to; each is entered once (Lowe). From
it, every operation may be next that was called before any that is left has returned (Wing & Gong). As calls are in
order, a set is kept as *base*, before which everything is placed, and a mask from there on, which is as short as few
operations are under way at a time; its zeros are what a linked list of events would be walked for.

What makes it quick, and why no order is missed:

1. **Operations that write nothing** are placed at once when their conditions hold: later in any order they could as
   well stand here.
2. **Unknown operations come when they are needed.** They have no return, so each can be put off until the next one that
   depends on it, and left out if there is none. One that concerns a single key is needed only directly before an
   operation whose condition it makes true: if that held without it, constant writes make the same of both (for those
   that write the key), or the unknown operation can follow instead of precede (for those that do not). So chains of
   unknown operations are looked for only from an operation that is blocked, backwards by the values that it asks for.
   One of several keys can be seen in part, and is tried before whatever it does not commute with.
3. **Fewer unknown operations are better**: whatever can follow a configuration can follow one that has the same known
   operations, the same state, and has used a part of its unknown ones. Those that do the same are used by age.
4. **Nobody is left stranded**: no move may overwrite a value that an operation still asks for, if nobody is left who
   can write it again; nor write one, if somebody who must come first overwrites it before it can be asked for. This is
   no more than looking ahead, but where values are unique (the zones of Gibbons & Korach 1997) it decides nearly all.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from replikv.testing.linearizability.partition import Move, Need, Partition, State

__all__ = ["OutOfTimeError", "Placement", "Search", "Stranded"]

_STEPS_PER_LOOK_AT_THE_CLOCK: Final = 256
"""A step takes some 10 µs."""


class OutOfTimeError(Exception):
    """The search was not over in time."""


class Stranded(NamedTuple):
    """A known operation that asks for a value at a place, which another overwrites for good."""

    asker: int
    place: int
    number: int
    overwriter: int


@dataclasses.dataclass(slots=True, eq=False)
class Placement:
    """A configuration on the path, and how it was come to."""

    parent: Placement | None
    base: int
    """Known operations before this one are placed."""
    mask: int
    """Bit i: known operation base + i is placed. Bit 0 is clear, unless it is not settled yet."""
    state: State
    used: int
    """Bit i: unknown operation i has taken effect."""
    placed: list[tuple[bool, int, int]]
    """What was placed last, in order: (known?, its index, the index of its move)."""
    following: Iterator[Placement] = dataclasses.field(default_factory=lambda: iter(()))

    def count(self) -> int:
        """Known operations that are placed."""
        return self.base + self.mask.bit_count()

    def is_placed(self, index: int) -> bool:
        """Whether a known operation is."""
        return index < self.base or bool(self.mask >> (index - self.base) & 1)

    def path(self) -> list[tuple[bool, int, int]]:
        """Everything that is placed, in order."""
        parts = []
        node: Placement | None = self
        while node is not None:
            parts.append(node.placed)
            node = node.parent
        return [item for part in reversed(parts) for item in part]


class Search:
    """One search through a partition.

    ``before[i]``, if given, is the known operation that must be placed before known operation i, or -1.
    ``check_time`` is called now and then, and raises to end the search.
    """

    def __init__(
        self, partition: Partition, check_time: Callable[[], None], before: Sequence[int] | None = None
    ) -> None:
        self._partition = partition
        self._check_time = check_time
        self._before = before
        self._called = [*partition.called, math.inf]
        self._returned = partition.returned
        self._silent = [all(not move.writes for move in moves) for moves in partition.moves]
        self._visited: dict[tuple[int, int, State], list[int]] = {}
        self._steps = 0
        self._helpers = _Helpers(partition)
        self._wanted = _Wanted(partition)
        self.deepest = Placement(None, 0, 0, partition.initial(), 0, [])
        """The first of those that have placed the most."""

    def run(self) -> bool:
        """Whether there is an order of all known operations."""
        root = Placement(None, 0, 0, self._partition.initial(), 0, [])
        path = [root] if self._enter(root) else []
        while path:
            if path[-1].base == len(self._returned):
                return True
            following = next(path[-1].following, None)
            if following is None:
                path.pop()
            elif self._enter(following):
                path.append(following)
        return False

    def candidates(self, node: Placement) -> list[int]:
        """The known operations that may be next by their times, by their calls."""
        found: list[int] = []
        horizon = math.inf
        free = ~node.mask
        while True:
            bit = free & -free
            index = node.base + bit.bit_length() - 1
            if self._called[index] > horizon or index == len(self._returned):
                return found
            found.append(index)
            horizon = min(horizon, self._returned[index])
            free ^= bit

    def stranded(self, node: Placement, index: int, state: State, used: int) -> Stranded | None:
        """Who could never be placed if this operation came next, and led to this state; None if nobody is known."""
        others: list[int] | None = None
        for place, (old, new) in enumerate(zip(node.state, state, strict=True)):
            if old == new:
                continue
            asker = self._wanted.without_hope(node, index, place, old, used)
            if asker is not None:
                return Stranded(asker, place, old, index)
            asker = self._wanted.without_hope(node, index, place, new, used)
            if asker is not None:
                others = others or [other for other in self.candidates(node) if other != index]
                for other in others:
                    if self._returned[other] < self._called[asker] and place in self._wanted.overwritten[other]:
                        return Stranded(asker, place, new, other)
        return None

    def must_wait(self, node: Placement, index: int) -> int | None:
        """The known operation that must be placed before this one, and is not."""
        if self._before is None or self._before[index] < 0 or node.is_placed(self._before[index]):
            return None
        return self._before[index]

    # -- a step --------------------------------------------------------------------------------------------------------

    def _enter(self, node: Placement) -> bool:
        """Settle a configuration; whether it is a new one."""
        self._count_step()
        candidates = self._place_silent(node)
        if node.count() > self.deepest.count():
            self.deepest = node
        key = (node.base, node.mask, node.state)
        earlier = self._visited.setdefault(key, [])
        if any(used & node.used == used for used in earlier):
            return False
        earlier.append(node.used)
        node.following = self._follow(node, candidates)
        return True

    def _place_silent(self, node: Placement) -> list[int]:
        """Place whatever writes nothing and can be placed, and move the base; the candidates then."""
        while True:
            candidates = self.candidates(node)
            before = len(node.placed)
            for index in candidates:
                if self._silent[index]:
                    for number, move in enumerate(self._partition.moves[index]):
                        if _holds(move.needs, node.state):
                            node.mask |= 1 << (index - node.base)
                            node.placed.append((True, index, number))
                            break
            ones = (~node.mask & (node.mask + 1)).bit_length() - 1
            node.mask >>= ones
            node.base += ones
            if len(node.placed) == before:
                return candidates

    def _follow(self, node: Placement, candidates: list[int]) -> Iterator[Placement]:
        horizon = min((self._returned[index] for index in candidates), default=math.inf)
        hard: list[tuple[int, int, Move]] = []
        for index in sorted(candidates, key=self._returned.__getitem__):
            if self.must_wait(node, index) is not None:
                continue
            for number, move in enumerate(self._partition.moves[index]):
                if not _holds(move.needs, node.state):
                    hard.append((index, number, move))
                    continue
                if self._helpers.of(move).any_wide:
                    hard.append((index, number, move))
                after = write_move(move, node.state)
                if self.stranded(node, index, after, node.used) is None:
                    yield self._place(node, index, number, after, node.used, [])
        for index, number, move in hard:
            for state, used, chain in self._chains(node, move, horizon):
                after = write_move(move, state)
                if self.stranded(node, index, after, used) is None:
                    yield self._place(node, index, number, after, used, chain)

    def _place(
        self, node: Placement, index: int, number: int, state: State, used: int, chain: list[tuple[bool, int, int]]
    ) -> Placement:
        mask = node.mask | 1 << (index - node.base)
        return Placement(node, node.base, mask, state, used, [*chain, (True, index, number)])

    def _chains(
        self, node: Placement, target: Move, horizon: float
    ) -> Iterator[tuple[State, int, list[tuple[bool, int, int]]]]:
        """Unknown operations in a row, the shortest rows first, after which the target's conditions hold."""
        helpers = self._helpers.of(target)
        partition = self._partition
        usable = [index for index in helpers.indices if partition.unknown_called[index] <= horizon]
        queue: deque[tuple[State, int, list[tuple[bool, int, int]]]] = deque([(node.state, node.used, [])])
        reached: dict[State, list[int]] = {node.state: [node.used]}
        while queue:
            state, used, chain = queue.popleft()
            self._count_step()
            for index in usable:
                bit, twin = 1 << index, partition.twins[index]
                if used & bit or (twin and not used & twin):
                    continue
                for number, move in enumerate(partition.unknown_moves[index]):
                    after = self._move_unknown(move, state)
                    if after is None:
                        continue
                    others = reached.setdefault(after, [])
                    if any(other & (used | bit) == other for other in others):
                        continue
                    others.append(used | bit)
                    longer = [*chain, (False, index, number)]
                    complete = _holds(target.needs, after)
                    if complete:
                        yield after, used | bit, longer
                    if not complete or helpers.any_wide:
                        queue.append((after, used | bit, longer))

    def _move_unknown(self, move: Move, state: State) -> State | None:
        """The state after it; None if it cannot take effect, or changes nothing."""
        if move.adds is not None:
            place, by = move.adds
            total = self._partition.values.sum(state[place], by)
            return None if total is None or total == state[place] else (*state[:place], total, *state[place + 1 :])
        if not _holds(move.needs, state):
            return None
        after = write_move(move, state)
        return None if after == state else after

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps % _STEPS_PER_LOOK_AT_THE_CLOCK == 0:
            self._check_time()


def _holds(needs: Sequence[Need], state: State) -> bool:
    for place, numbers, negated in needs:  # noqa: SIM110  # a generator costs twice as much, and this is the hot path
        if (state[place] in numbers) is negated:
            return False
    return True


def write_move(move: Move, state: State) -> State:
    """The state after a move whose conditions hold, of an operation that adds nothing."""
    if not move.writes:
        return state
    after = list(state)
    for place, number in move.writes:
        after[place] = number
    return tuple(after)


# -- who can help, and who waits ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Help:
    indices: tuple[int, ...]
    any_wide: bool
    """Whether one of them concerns several keys."""


class _Helpers:
    """The unknown operations that may be worth placing directly before a move, or before one another there."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._memo: dict[Move, _Help] = {}
        self._makers: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._narrow: dict[int, list[int]] = defaultdict(list)
        """Place -> those that concern nothing else."""
        self._adders: dict[int, list[int]] = defaultdict(list)
        self._wide: dict[int, tuple[set[int], set[int]]] = {}
        """Those of several keys -> the places they read, and write."""
        for index, moves in enumerate(partition.unknown_moves):
            read = set[int]().union(*(move.read() for move in moves))
            written = set[int]().union(*(move.written() for move in moves))
            if len(read | written) > 1:
                self._wide[index] = (read, written)
                continue
            (place,) = read | written
            self._narrow[place].append(index)
            for move in moves:
                if move.adds:
                    self._adders[place].append(index)
                for write in move.writes:
                    self._makers[write].append(index)

    def of(self, target: Move) -> _Help:
        """Those for one move."""
        found = self._memo.get(target)
        if found is None:
            found = self._memo[target] = self._find(target)
        return found

    def _find(self, target: Move) -> _Help:
        if not self._wide and not target.needs:
            return _Help((), False)
        chosen: set[int] = set()
        pending = [target]
        read: set[int] = set()
        written: set[int] = set()
        seen: set[Need] = set()
        while pending:
            for move in pending:
                read |= move.read()
                written |= move.written()
            helpful = {
                index for index, (reads, writes) in self._wide.items() if writes & (read | written) or reads & written
            }
            for need in {need for move in pending for need in move.needs} - seen:
                seen.add(need)
                helpful |= self._narrow_for(need)
            pending = [move for index in helpful - chosen for move in self._partition.unknown_moves[index]]
            chosen |= helpful
        return _Help(tuple(sorted(chosen)), not chosen.isdisjoint(self._wide))

    def _narrow_for(self, need: Need) -> set[int]:
        if need.negated or self._adders.get(need.place):
            return set(self._narrow.get(need.place, ()))
        return {index for number in need.numbers for index in self._makers.get((need.place, number), ())}


class _Wanted:
    """Who asks for which value, and who can write it."""

    def __init__(self, partition: Partition) -> None:
        self._values = partition.values
        self._askers: dict[tuple[int, int], list[int]] = defaultdict(list)
        """(place, number) -> the known operations that are possible with this value only, ascending."""
        self._writers: dict[tuple[int, int], list[int]] = defaultdict(list)
        """The known operations that may write it, ascending."""
        self._unknown_writers: dict[tuple[int, int], int] = defaultdict(int)
        """Bits of the unknown ones."""
        self.overwritten: Final = [set.intersection(*(move.written() for move in moves)) for moves in partition.moves]
        """Of each known operation: the places that it writes, however it takes effect."""
        for index, moves in enumerate(partition.moves):
            for write in {write for move in moves for write in move.writes}:
                self._writers[write].append(index)
            if len(moves) == 1:
                for need in moves[0].needs:
                    if not need.negated and len(need.numbers) == 1:
                        self._askers[need.place, next(iter(need.numbers))].append(index)
        for index, moves in enumerate(partition.unknown_moves):
            for write in {write for move in moves for write in move.writes}:
                self._unknown_writers[write] |= 1 << index

    def without_hope(self, node: Placement, index: int, place: int, number: int, used: int) -> int | None:
        """The last operation that asks for this value, if nobody is left to write it again after ``index``."""
        askers = self._askers.get((place, number))
        if askers is None or place in self._values.added:
            return None
        waiting = _find_left(askers, node, index)
        if waiting is None or self._unknown_writers.get((place, number), 0) & ~used:
            return None
        return waiting if _find_left(self._writers.get((place, number), ()), node, index) is None else None


def _find_left(indices: Sequence[int], node: Placement, apart_from: int) -> int | None:
    """One of these known operations (ascending) that is not placed, and is not the one that is about to be."""
    for index in reversed(indices):
        if index < node.base:
            return None
        if index != apart_from and not node.is_placed(index):
            return index
    return None
