"""The invariants in bad weather: many seeds, each a run of its own (storms.py).

``REPLIKV_STORMS=5000`` runs that many; ``python tests/raft/storms.py SEED`` runs one again.
"""

from __future__ import annotations

import collections
import os

import pytest
from storms import STEPS, Storm

STORMS = int(os.environ.get("REPLIKV_STORMS", "120"))
BLOCK = 30
"""Seeds to a test: a failing one is in its notes."""

ENOUGH = {
    "terms": 100,
    "entries committed": 600,
    "reads answered": 100,
    "reads under a lease": 10,
    "pauses of a leader": 10,
    "crashes that lost writes": 10,
    "snapshots taken": 60,
    "snapshots installed": 10,
    "campaigns by transfer": 10,
    "promotions": 10,
    "joint configurations left": 10,
    "joint replacements of several": 10,
    "joint demotions": 10,
}


@pytest.mark.parametrize("first", range(0, STORMS, BLOCK))
def test_a_storm_breaks_nothing_and_ends(first: int) -> None:
    """Whatever the weather, no invariant breaks and no read goes back; when it clears, the cluster works again."""
    for seed in range(first, min(first + BLOCK, STORMS)):
        Storm(seed).run(STEPS)


def test_storms_are_storms() -> None:
    """Together they see enough of everything that may go wrong, or they would prove little."""
    storms = [Storm(seed) for seed in range(60)]
    for storm in storms:
        storm.run(STEPS)

    seen = sum((storm.seen for storm in storms), collections.Counter[str]())
    seen["snapshots taken"] = sum(len(storm.snapshots) for storm in storms)
    seen["entries committed"] = sum(storm.committed for storm in storms)
    seen["terms"] = sum(max(node.node.raft.term for node in storm.nodes.values()) for storm in storms)
    missing = {what: (seen[what], enough) for what, enough in ENOUGH.items() if seen[what] < enough}
    assert {} == missing


def test_a_storm_is_a_function_of_its_seed() -> None:
    """What failed once can be looked at."""

    def told(seed: int) -> list[str]:
        storm = Storm(seed)
        storm.run(STEPS)
        return [str(step) for step in storm.trace]

    assert told(5) == told(5)
    assert told(5) != told(6)
