"""A cluster in a simulator: the real cores, drivers, machines, log and snapshots over a simulated network, disk, clock.

A run is a pure function of its options, and those of a seed::

    report = run(Options.draw(17))
    assert report.failure is None, report.failure

``python -m replikv.testing simulate --seeds 1..1000`` runs many; docs/simulator.md says what is simulated, what is held
to what, and how to read a failure.
"""

from __future__ import annotations

from replikv.testing.simulator.options import Options
from replikv.testing.simulator.simulation import Report, Simulation, run

__all__ = ["Options", "Report", "Simulation", "run"]
