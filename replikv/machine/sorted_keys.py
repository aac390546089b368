"""A sorted set of str that Python's garbage collector need not walk, however many there are.

A list of a million keys costs 45 ms per full collection, since lists are tracked. Tuples of str are not, once they
have survived one: so keys stand in *blocks*, tuples of at most ``BLOCK_KEYS``, which are replaced rather than changed.
Blocks stand on *shelves*, at most ``SHELF_BLOCKS`` of them each, and a SortedDict finds the shelf.

Invariants:

1. Every shelf and every block has a *fence*: its keys are at or above it, and below the next fence. A fence need not be
   a key that is there. The first block's is that of its shelf; the first shelf's is ``""``, so there is a place for
   every key.
2. No block is empty but that of an empty set. Blocks and shelves that have become small join a neighbour that has room.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import Final

from sortedcontainers import SortedDict

__all__ = ["SortedKeys"]

BLOCK_KEYS: Final = 64
"""A new key copies its block, and counts the references to all keys of it: with 64 that costs about 1 µs more than
SortedList's insertion does, with 512 it were 6 µs."""

SHELF_BLOCKS: Final = 256
"""A million keys take some 20,000 blocks, and 100 shelves: what the garbage collector walks, and what is added up to
tell how many keys come before one."""


class _Shelf:
    __slots__ = ("blocks", "count", "fences")

    def __init__(self, fences: list[str], blocks: list[tuple[str, ...]]) -> None:
        self.fences = fences
        self.blocks = blocks
        self.count = sum(map(len, blocks))
        """How many keys they have."""


class SortedKeys:
    """Distinct str in the order of code points. An iterator is good until the next change."""

    __slots__ = ("_count", "_find", "_peek", "_shelves")

    def __init__(self) -> None:
        self._count = 0
        self._shelves: SortedDict[str, _Shelf] = SortedDict({"": _Shelf([""], [()])})
        """Fence -> shelf."""
        self._find = self._shelves.bisect_right
        self._peek = self._shelves.peekitem

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return self.irange()

    def __contains__(self, key: str) -> bool:
        shelf = self._peek(self._find(key) - 1)[1]
        block = shelf.blocks[bisect_right(shelf.fences, key) - 1]
        at = bisect_left(block, key)
        return at < len(block) and block[at] == key

    def add(self, key: str) -> None:
        """Add a key that is not there. O(log n), and a block."""
        shelf = self._peek(self._find(key) - 1)[1]
        number = bisect_right(shelf.fences, key) - 1
        block = shelf.blocks[number]
        at = bisect_right(block, key)
        shelf.count += 1
        self._count += 1
        if len(block) < BLOCK_KEYS:
            shelf.blocks[number] = (*block[:at], key, *block[at:])
            return
        # Keys that come in order leave full blocks behind them.
        middle = BLOCK_KEYS if at == BLOCK_KEYS else BLOCK_KEYS // 2
        block = (*block[:at], key, *block[at:])
        shelf.blocks[number : number + 1] = [block[:middle], block[middle:]]
        shelf.fences.insert(number + 1, block[middle])
        if len(shelf.blocks) > SHELF_BLOCKS:
            middle = SHELF_BLOCKS if number + 1 == SHELF_BLOCKS else SHELF_BLOCKS // 2
            new = _Shelf(shelf.fences[middle:], shelf.blocks[middle:])
            del shelf.fences[middle:], shelf.blocks[middle:]
            shelf.count -= new.count
            self._shelves[new.fences[0]] = new

    def remove(self, key: str) -> None:
        """Remove a key. O(log n), and a block. Raises KeyError if it is not there."""
        fence, shelf = self._peek(self._find(key) - 1)
        fences, blocks = shelf.fences, shelf.blocks
        number = bisect_right(fences, key) - 1
        block = blocks[number]
        at = bisect_left(block, key)
        if at == len(block) or block[at] != key:
            raise KeyError(key)
        blocks[number] = block = block[:at] + block[at + 1 :]
        shelf.count -= 1
        self._count -= 1
        if len(block) >= BLOCK_KEYS // 4:
            return
        if len(blocks) > 1:
            left = number if number + 1 < len(blocks) else number - 1
            joined = blocks[left] + blocks[left + 1]
            if not block or len(joined) <= BLOCK_KEYS * 3 // 4:
                blocks[left : left + 2] = [joined]
                del fences[left + 1]
        if (len(blocks) < SHELF_BLOCKS // 4 or not shelf.count) and len(self._shelves) > 1:
            self._join(fence)

    def _join(self, fence: str) -> None:
        """A shelf with few blocks joins its neighbour, if that has room; an empty one in any case."""
        left = min(self._shelves.index(fence), len(self._shelves) - 2)
        (_, shelf), (right_fence, right) = self._peek(left), self._peek(left + 1)
        if len(shelf.blocks) + len(right.blocks) > SHELF_BLOCKS * 3 // 4 and shelf.count and right.count:
            return
        del self._shelves[right_fence]
        shelf.fences += right.fences
        shelf.blocks += right.blocks
        shelf.count += right.count
        # One that had lost its last key brings an empty block, whose place the neighbour takes.
        if len(shelf.blocks) > 1 and () in shelf.blocks:
            empty = shelf.blocks.index(())
            del shelf.blocks[empty], shelf.fences[empty or 1]

    def irange(
        self,
        minimum: str | None = None,
        maximum: str | None = None,
        inclusive: tuple[bool, bool] = (True, True),
        reverse: bool = False,
    ) -> Iterator[str]:
        """The keys between two bounds (None: no bound), each of which may be included. As SortedList's."""
        shelves = self._shelves
        low = (0, 0, 0) if minimum is None else self._place(minimum, after=not inclusive[0])
        if maximum is not None:
            high = self._place(maximum, after=inclusive[1])
        else:
            last = self._peek(-1)[1]
            high = (len(shelves) - 1, len(last.blocks) - 1, len(last.blocks[-1]))
        numbers = range(low[0], high[0] + 1)
        for at in reversed(numbers) if reverse else numbers:
            blocks = self._peek(at)[1].blocks
            numbers_of_blocks = range(low[1] if at == low[0] else 0, high[1] + 1 if at == high[0] else len(blocks))
            for number in reversed(numbers_of_blocks) if reverse else numbers_of_blocks:
                block = blocks[number]
                begin = low[2] if (at, number) == low[:2] else 0
                block = block[begin : high[2] if (at, number) == high[:2] else None]
                yield from reversed(block) if reverse else block

    def bisect_left(self, key: str) -> int:
        """How many keys come before one. O(log n + shelves + blocks of a shelf): microseconds for a million keys."""
        number, block, at = self._place(key, after=False)
        before = sum(shelf.count for shelf in islice(self._shelves.values(), number))
        return before + sum(map(len, self._peek(number)[1].blocks[:block])) + at

    def _place(self, key: str, *, after: bool) -> tuple[int, int, int]:
        """Where a key stands, or would: number of the shelf, of the block on it, place in that."""
        number = self._find(key) - 1
        shelf = self._peek(number)[1]
        block = bisect_right(shelf.fences, key) - 1
        bisect = bisect_right if after else bisect_left
        return number, block, bisect(shelf.blocks[block], key)

    def free(self) -> bool:
        """Let go of a shelf, for a set that nobody needs any more; whether there are more. About a millisecond.

        A million str that are freed at once are a pause.
        """
        _, shelf = self._shelves.popitem()
        self._count -= shelf.count
        if not self._shelves:
            self._shelves[""] = _Shelf([""], [()])
        return self._count > 0
