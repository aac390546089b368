"""Who is to be told of a change: found by keys, prefixes and ranges, in any order of coming and going."""

from __future__ import annotations

import random
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from local_replicator import LocalReplicator

from replikv.store.intervals import Intervals
from replikv.store.selection import select
from replikv.store.watch import Watch, WatchOptions
from replikv.store.watch_hub import WatchHub
from replikv.store.watch_index import WatchIndex

WORDS = ["", "a", "aa", "ab", "abc", "b", "ba", "c", "é", "\U0010ffff"]
WORD = st.sampled_from(WORDS)
STOP = st.none() | WORD
SELECTIONS = st.one_of(
    st.tuples(st.just(""), WORD, st.none(), st.none()),
    st.tuples(WORD, st.none(), st.none(), st.none()),
    st.tuples(WORD, st.none(), STOP, STOP),
)


def matches(arguments: tuple[Any, ...], key: str) -> bool:
    prefix, only, start, stop = arguments
    if only is not None:
        return bool(key == only)
    return key.startswith(prefix) and (start or "") <= key and (stop is None or key < stop)


@given(st.lists(st.tuples(SELECTIONS, st.integers(0, 20)), max_size=25))
def test_a_change_finds_exactly_those_that_it_is_for(steps: list[tuple[tuple[Any, ...], int]]) -> None:
    """Whoever came before and is there still; each once. With the last that goes, everything is gone."""
    hub = WatchHub(LocalReplicator())
    index = WatchIndex()
    there: list[tuple[tuple[Any, ...], Watch]] = []
    for arguments, leaves in steps:
        watch = Watch(hub, WatchOptions(select("", *arguments, None)), 0)
        index.add(watch)
        there.append((arguments, watch))
        if leaves < len(there):
            index.remove(there.pop(leaves)[1])
        for key in [*WORDS, "abcd", "x"]:
            found = [one for audience in index.audiences_of(key) for one in audience.watches]
            expected = [one for arguments, one in there if matches(arguments, key)]
            assert sorted(map(id, expected)) == sorted(map(id, found))
    assert sorted(id(one) for _, one in there) == sorted(map(id, index))
    for _, watch in there:
        index.remove(watch)
    assert not index
    assert (index._lengths, index._intervals._root) == ([], None)


@given(
    st.dictionaries(st.tuples(WORD, STOP), st.integers(), max_size=12),
    st.lists(st.tuples(WORD, STOP), max_size=12),
)
def test_intervals_are_those_that_a_key_is_in(items: dict[tuple[str, str | None], int], gone: Any) -> None:
    """As if each were looked at; empty and endless ones, too."""
    intervals: Intervals[int] = Intervals()
    for ends, item in items.items():
        intervals.add(*ends, item)
    for ends in gone:
        if ends in items:
            intervals.remove(*ends)
            del items[ends]
    for key in [*WORDS, "abcd", "x"]:
        expected = [item for (start, stop), item in items.items() if start <= key and (stop is None or key < stop)]
        assert sorted(expected) == sorted(intervals.at(key))
    assert bool(items) is bool(intervals)


def test_intervals_are_balanced() -> None:
    """In whatever order they come, ten thousand of them are no deeper than forty."""

    def depth(node: Any) -> int:
        return 0 if node is None else 1 + max(depth(node.left), depth(node.right))

    ascending = [(f"{number:05}", f"{number:05}~") for number in range(10_000)]
    shuffled = random.Random(1).sample(ascending, len(ascending))
    for order in (ascending, shuffled):
        intervals: Intervals[str] = Intervals()
        for start, stop in order:
            intervals.add(start, stop, start)
        assert depth(intervals._root) <= 40
        assert ["05000"] == intervals.at("05000/x")


def test_who_does_not_match_costs_nothing() -> None:
    """To find whom a change is for takes about as long among ten thousand watches of each sort as among ten."""

    def duration_s(count: int) -> float:
        hub, index = WatchHub(LocalReplicator()), WatchIndex()
        for number in range(count):
            name = f"{number:05}"
            for arguments in (("", name, None, None), (name, None, None, None), ("", None, name, name + "~")):
                index.add(Watch(hub, WatchOptions(select("", *arguments, None)), 0))
        best = float("inf")
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(200):
                assert 3 == len(index.audiences_of("00007"))
            best = min(best, time.perf_counter() - began)
        return best

    assert duration_s(10_000) < 10 * duration_s(10)
