"""The simulator can fail: each bug of the catalogue is noticed within as many seeds as its entry says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replikv.testing.simulator.planted import CATALOGUE, find
from replikv.testing.simulator.simulation import run

QUICK = (
    "acknowledge-alone-before-the-sync",
    "acknowledge-before-sync",
    "begin-a-segment-without-the-vote",
    "count-half-as-a-majority",
    "elect-by-one-vote",
    "end-leases-with-their-leader",
    "lead-on-without-a-quorum",
    "let-match-go-back",
    "lose-the-hard-state",
    "tell-a-watch-the-last-change-again",
)
"""Bugs that the short run plants, since they show soon: all others take too long for it."""


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_noticed(name: str) -> None:
    """The machinery works: what is planted is noticed, and is gone afterwards."""
    report = find(name, range(1, 6))

    assert report is not None
    assert find(name, []) is None


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_each_planted_bug_is_noticed(name: str) -> None:
    """Within the number of seeds that its entry states; and it is the bug that is: the same run is clean without it."""
    report = find(name)

    assert report is not None, f"no seed of {CATALOGUE[name].seeds} notices: {CATALOGUE[name].what}"
    assert run(report.options).failure is None


def test_the_catalogue_says_what_is_wrong() -> None:
    """Each entry has a sentence, and a bound; the page says how many there are."""
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
    assert f"a catalogue of {len(CATALOGUE)} bugs" in page
    assert [] == [bug.name for bug in CATALOGUE.values() if not bug.what.endswith(")") and not bug.what.endswith(".")]
    assert all(0 < bug.seeds <= 100 for bug in CATALOGUE.values()), os.linesep.join(CATALOGUE)
