"""Which keys are attached to which lease."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.machine.attachments import SET_KEYS_MAX, Attachments


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3))))
def test_every_key_is_with_the_lease_it_was_attached_to_last(moves: list[tuple[str, int]]) -> None:
    """And a lease without keys is not there."""
    attachments, model = Attachments(), dict[str, int]()
    for key, lease in moves:
        attachments.move(key, model.get(key, 0), lease)
        model[key] = lease
    by_lease = {lease: sorted(key for key, one in model.items() if one == lease) for lease in range(1, 4)}
    assert {lease for lease, keys in by_lease.items() if keys} == set(attachments.leases())
    for lease, keys in by_lease.items():
        assert keys == attachments.keys(lease)
        assert len(keys) == attachments.count(lease)
        assert keys[:2] == attachments.keys(lease, 2)


@pytest.mark.parametrize("count", [SET_KEYS_MAX, SET_KEYS_MAX + 1, 3 * SET_KEYS_MAX])
def test_many_keys_are_told_in_order(count: int) -> None:
    """Whatever order they came in, and while they go again."""
    keys = [f"{number:05}" for number in range(count)]
    attachments = Attachments()
    for key in random.Random(count).sample(keys, count):
        attachments.move(key, 0, 7)
    assert keys == attachments.keys(7)
    assert keys[:10] == attachments.keys(7, 10)
    for key in keys[:-1]:
        attachments.move(key, 7, 0)
    assert [keys[-1]] == attachments.keys(7)
    attachments.move(keys[-1], 7, 0)
    assert set() == attachments.leases()
