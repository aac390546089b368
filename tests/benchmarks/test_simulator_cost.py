"""The benchmark of the simulator runs as a user runs it, with one seed: nothing of that says anything about speed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_tells_what_a_simulated_minute_costs() -> None:
    """One line for bare cores, one for chaos; the cores are so much faster than real time that load cannot hide it."""
    command = [sys.executable, "-m", "benchmarks", "simulator", "--seeds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    core, chaos = done.stdout.splitlines()
    assert "three cores" in core
    assert chaos.startswith("chaos, 1 seeds, ")
    times = re.search(r"([\d,]+) times real time", core)
    assert times is not None
    assert int(times[1].replace(",", "")) >= 150
