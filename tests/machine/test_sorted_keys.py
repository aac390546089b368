"""The sorted set of keys against SortedList, with blocks and shelves small enough to split and join all the time."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sortedcontainers import SortedList

from replikv.machine import sorted_keys
from replikv.machine.sorted_keys import SortedKeys

BLOCK_KEYS, SHELF_BLOCKS = sorted_keys.BLOCK_KEYS, sorted_keys.SHELF_BLOCKS
"""As they are meant to be."""

few = st.text("abc\ud7ff\U0010ffff", max_size=3)
bounds = st.none() | few


def check(keys: SortedKeys) -> None:
    """The invariants that its module states."""
    shelves = list(keys._shelves.items())
    assert "" == shelves[0][0]
    fences = [fence for _, shelf in shelves for fence in shelf.fences]
    blocks = [block for _, shelf in shelves for block in shelf.blocks]
    assert len(fences) == len(blocks)
    assert all(lower < upper for lower, upper in itertools.pairwise(fences))
    for fence, block, stop in zip(fences, blocks, [*fences[1:], None], strict=True):
        assert list(block) == sorted(set(block))
        assert all(fence <= key and (stop is None or key < stop) for key in block)
        assert len(block) <= sorted_keys.BLOCK_KEYS
    for fence, shelf in shelves:
        assert fence == shelf.fences[0]
        assert shelf.count == sum(map(len, shelf.blocks))
        assert len(shelf.fences) == len(shelf.blocks) <= sorted_keys.SHELF_BLOCKS
    assert len(keys) == sum(map(len, blocks))
    assert () not in blocks or [()] == blocks


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Hundreds of keys are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_keys, "BLOCK_KEYS", 4)
        patch.setattr(sorted_keys, "SHELF_BLOCKS", 4)
        yield


class SortedKeysComparison(RuleBasedStateMachine):
    """Keys come and go, one by one and in runs."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = SortedKeys()
        self.model: SortedList[str] = SortedList()

    def _add(self, key: str) -> None:
        if key not in self.model:
            self.keys.add(key)
            self.model.add(key)

    @rule(key=few)
    def add(self, key: str) -> None:
        """One."""
        self._add(key)

    @rule(prefix=few, count=st.integers(1, 60), order=st.sampled_from([1, -1, 7]))
    def add_run(self, prefix: str, count: int, order: int) -> None:
        """Many, upwards, downwards, or mixed."""
        for number in range(count):
            self._add(f"{prefix}{number * order % 61:02}")

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """One."""
        key = self.model[data.draw(st.integers(0, len(self.model) - 1))]
        self.model.remove(key)
        self.keys.remove(key)

    @rule(start=bounds, stop=bounds, every=st.integers(1, 3), backwards=st.booleans())
    def remove_run(self, start: str | None, stop: str | None, every: int, backwards: bool) -> None:
        """Many."""
        for key in list(self.model.irange(start, stop, reverse=backwards))[::every]:
            self.model.remove(key)
            self.keys.remove(key)
            check(self.keys)

    @rule(key=few)
    def remove_what_is_not_there(self, key: str) -> None:
        """An error."""
        assert (key in self.model) == (key in self.keys)
        if key not in self.model:
            with pytest.raises(KeyError):
                self.keys.remove(key)

    @rule(start=bounds, stop=bounds, inclusive=st.tuples(st.booleans(), st.booleans()), reverse=st.booleans(), at=few)
    def look(self, start: str | None, stop: str | None, inclusive: tuple[bool, bool], reverse: bool, at: str) -> None:
        """Between bounds, both ways; how many come before."""
        expected = list(self.model.irange(start, stop, inclusive, reverse))
        assert expected == list(self.keys.irange(start, stop, inclusive, reverse))
        assert self.model.bisect_left(at) == self.keys.bisect_left(at)

    @invariant()
    def they_are_the_same(self) -> None:
        """All keys, and the books."""
        assert list(self.model) == list(self.keys)
        check(self.keys)


SortedKeysComparison.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestSortedKeysComparison = SortedKeysComparison.TestCase


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 300), st.randoms(use_true_random=False))
def test_it_shrinks_as_it_grew(count: int, randomness: random.Random) -> None:
    """Whoever is left does not stand in a block of his own; the last one leaves an empty set behind."""
    keys = SortedKeys()
    names = [f"{number:04}" for number in range(count)]
    randomness.shuffle(names)
    for name in names:
        keys.add(name)
    for index, name in enumerate(names):
        keys.remove(name)
        check(keys)
        blocks = sum(len(shelf.blocks) for shelf in keys._shelves.values())
        assert blocks <= 1 + (count - index)

    assert ([], 0, 1) == (list(keys), len(keys), len(keys._shelves))


def test_freeing_goes_by_shelves() -> None:
    """Until nothing is left: then it is an empty set like any other."""
    keys = SortedKeys()
    for number in range(200):
        keys.add(f"{number:04}")
    shelves = len(keys._shelves)
    steps = 1
    while keys.free():
        steps += 1

    assert (shelves, 0, []) == (steps, len(keys), list(keys))
    keys.add("again")
    assert ["again"] == list(keys)


def test_the_garbage_collector_does_not_walk_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has to look at grows with the blocks, and a block has many keys."""
    monkeypatch.setattr(sorted_keys, "BLOCK_KEYS", BLOCK_KEYS)
    monkeypatch.setattr(sorted_keys, "SHELF_BLOCKS", SHELF_BLOCKS)
    keys = SortedKeys()
    for number in range(50_000):
        keys.add(f"{number * 7919 % 50_000:06}")
    for _ in range(3):
        gc.collect()

    assert [] == [block for shelf in keys._shelves.values() for block in shelf.blocks if gc.is_tracked(block)]
    assert 50_000 / BLOCK_KEYS * 2 > sum(len(shelf.blocks) for shelf in keys._shelves.values())
