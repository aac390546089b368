"""Intervals of keys, and which of them a key is in: a treap, each of whose nodes knows the highest end below it.

A treap is a search tree that is also a heap by random priorities: balanced, whatever order things come and go in, with
nothing but a split and a merge. To ask costs O(log n) and, at the worst, as much again for each interval that is found.
"""

from __future__ import annotations

import random
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Intervals"]

T = TypeVar("T")

End: TypeAlias = tuple[bool, str]
"""(whether there is no end, the end): in the order of ends, no end being the highest."""


class _Node(Generic[T]):
    __slots__ = ("end", "highest", "item", "left", "priority", "right", "start")

    def __init__(self, start: str, end: End, item: T, priority: float) -> None:
        self.start = start
        self.end = end
        self.item = item
        self.priority = priority
        # Invariants: what is left of a node is before it by (start, end), what is right is behind; no child has a
        # higher priority; ``highest`` is the highest end of the node and of all below.
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self.highest = end


class Intervals(Generic[T]):
    """Items, each under an interval of its own: from ``start`` on, and below ``stop`` unless that is None."""

    def __init__(self) -> None:
        self._root: _Node[T] | None = None
        self._random = random.Random(0)  # noqa: S311  # balance, no secret

    def __bool__(self) -> bool:
        return self._root is not None

    def add(self, start: str, stop: str | None, item: T) -> None:
        """File an item under an interval that has none yet. O(log n)."""
        end = _end(stop)
        before, behind = _split(self._root, (start, end))
        self._root = _merge(_merge(before, _Node(start, end, item, self._random.random())), behind)

    def remove(self, start: str, stop: str | None) -> None:
        """Take the item of an interval out. O(log n). Raises KeyError."""
        self._root = _without(self._root, (start, _end(stop)))

    def at(self, key: str) -> list[T]:
        """The items of all intervals that the key is in, in no order."""
        found: list[T] = []
        here = (False, key)
        pending = [self._root]
        while pending:
            node = pending.pop()
            if node is None or node.highest <= here:
                continue
            pending.append(node.left)
            if node.start <= key:
                if here < node.end:
                    found.append(node.item)
                pending.append(node.right)
        return found


def _end(stop: str | None) -> End:
    return (True, "") if stop is None else (False, stop)


def _weighed(node: _Node[T]) -> _Node[T]:
    """The node, whose children are new."""
    node.highest = max([node.end, *(child.highest for child in (node.left, node.right) if child is not None)])
    return node


def _split(node: _Node[T] | None, place: tuple[str, End]) -> tuple[_Node[T] | None, _Node[T] | None]:
    """Two treaps: what is before the place, and the rest."""
    if node is None:
        return None, None
    if (node.start, node.end) < place:
        node.right, behind = _split(node.right, place)
        return _weighed(node), behind
    before, node.left = _split(node.left, place)
    return before, _weighed(node)


def _merge(left: _Node[T] | None, right: _Node[T] | None) -> _Node[T] | None:
    """One treap of two, the first of which is before the second."""
    if left is None or right is None:
        return left or right
    if left.priority > right.priority:
        left.right = _merge(left.right, right)
        return _weighed(left)
    right.left = _merge(left, right.left)
    return _weighed(right)


def _without(node: _Node[T] | None, place: tuple[str, End]) -> _Node[T] | None:
    if node is None:
        raise KeyError(place)
    own = (node.start, node.end)
    if own == place:
        return _merge(node.left, node.right)
    if place < own:
        node.left = _without(node.left, place)
    else:
        node.right = _without(node.right, place)
    return _weighed(node)
