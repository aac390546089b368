"""Ranges of keys: bounds, prefixes, and going on behind a key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.machine.ranges import KeyRange
from replikv.machine.sorted_keys import SortedKeys

KEYS = ["", "a", "a/", "a/b", "a0", "b", "\ud7ff", "\ue000", "\U0010ffff", "\U0010ffffa", "\U0010ffff\U0010ffff"]
some_key = st.sampled_from(KEYS)


def sorted_keys() -> SortedKeys:
    keys = SortedKeys()
    for key in KEYS:
        keys.add(key)
    return keys


@given(
    start=some_key,
    stop=st.none() | some_key,
    prefix=some_key,
    after=st.none() | some_key,
    reverse=st.booleans(),
    limit=st.integers(0, 12),
)
def test_select_is_a_filter(
    start: str, stop: str | None, prefix: str, after: str | None, reverse: bool, limit: int
) -> None:
    """What is selected is what a filter over all keys would leave: start <= key < stop, by prefix, behind ``after``."""
    wanted = KeyRange(start, stop, prefix)
    inside = [key for key in KEYS if key >= start and (stop is None or key < stop) and key.startswith(prefix)]
    assert inside == [key for key in KEYS if key in wanted]
    assert len(inside) == wanted.count(sorted_keys())
    if after is not None and after not in inside:
        return  # scans go on behind keys that they have seen
    behind = [key for key in inside if after is None or (key < after if reverse else key > after)]
    expected = sorted(behind, reverse=reverse)[:limit]

    assert expected == wanted.select(sorted_keys(), limit, after=after, reverse=reverse)


@pytest.mark.parametrize("prefix", ["\U0010ffff", "\U0010ffff\U0010ffff"])
def test_the_last_prefix_has_no_end(prefix: str) -> None:
    """Nothing sorts above what begins with the last code point only."""
    assert KeyRange(prefix=prefix).stop is None
