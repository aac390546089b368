"""The invariants in bad weather: many seeds, each a run of its own (storms.py).

``REPLIKV_STORMS=5000`` runs that many; ``python tests/raft/storms.py SEED`` runs one again.
"""

from __future__ import annotations

import os

import pytest
from storms import STEPS, Storm

STORMS = int(os.environ.get("REPLIKV_STORMS", "180"))
BLOCK = 30
"""Seeds to a test: a failing one is in its notes."""


@pytest.mark.parametrize("first", range(0, STORMS, BLOCK))
def test_a_storm_breaks_nothing_and_ends(first: int) -> None:
    """Whatever the weather, no invariant breaks and no read goes back; when it clears, the cluster works again."""
    for seed in range(first, min(first + BLOCK, STORMS)):
        Storm(seed).run(STEPS)


def test_storms_are_storms() -> None:
    """Together they see elections, commits, reads, changes of the members and snapshots, or they would prove little."""
    storms = [Storm(seed) for seed in range(40)]
    for storm in storms:
        storm.run(STEPS)

    assert sum(len(storm.snapshots) for storm in storms) > 40
    assert sum(storm.committed for storm in storms) > 400
    assert sum(storm.answered for storm in storms) > 80
    assert sum(max(node.node.raft.term for node in storm.nodes.values()) for storm in storms) > 80
    assert sum(max(node.node.raft.membership_index for node in storm.nodes.values()) > 0 for storm in storms) > 15


def test_a_storm_is_a_function_of_its_seed() -> None:
    """What failed once can be looked at."""

    def told(seed: int) -> list[str]:
        storm = Storm(seed)
        storm.run(STEPS)
        return [str(step) for step in storm.trace]

    assert told(5) == told(5)
    assert told(5) != told(6)
