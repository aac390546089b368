"""A failing run made smaller: fewer faults, fewer clients, less time, as long as the same thing breaks."""

from __future__ import annotations

from collections.abc import Callable

from replikv.testing.simulator.options import Options
from replikv.testing.simulator.simulation import Report, run

__all__ = ["shrink"]

RUNS_MAX = 150
"""A simplification that does not fail costs as much as one that does."""


def shrink(report: Report, *, runs_max: int = RUNS_MAX, tell: Callable[[Options], None] | None = None) -> Report:
    """The report of the smallest run that was found in which the same invariant breaks. Greedy, and deterministic."""
    runs = 0
    smaller = True
    while smaller and runs < runs_max:
        smaller = False
        for options in report.options.simpler():
            if runs >= runs_max:
                break
            runs += 1
            found = run(options)
            if found.kind == report.kind:
                report, smaller = found, True
                if tell is not None:
                    tell(options)
                break
    return report
