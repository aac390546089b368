"""What a run is asked for."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

__all__ = ["Options"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Raises ValueError for a run that cannot be."""

    directory: Path
    """Where everything of the run is written; made, or empty."""
    peers: int = 3
    """Members in the beginning, each a process."""
    seconds: float = 60.0
    """How long things go wrong."""
    seed: int = 1
    """Of all that is drawn: which faults, when, for how long, and what clients do. What comes of it depends on when
    processes get their turn, too, so a seed is no promise that a failure comes again."""
    spares: int = 2
    """Nodes that may join, beside the first ones."""
    clients: int = 3
    """In each process."""
    keys: int = 4
    """Registers, counters and pairs, each so many. Few, so that whoever reads an old value reads a wrong one."""
    pause_s: float = 0.02
    """Of a client, between two operations."""
    rest: float | None = None
    """The pauses between faults are so many times longer. By default each part draws 1, 2 or 3: where all is broken at
    all times, little is done that could be wrong."""
    mount: bool = True
    """Whether disks are file systems of their own, where that is allowed."""
    planted: str | None = None
    """A bug of the simulator's catalogue that every process has. With one that is not in it, none starts."""
    calm_s: float = 60.0
    """Within this time after the last fault, all have to be well again."""
    check_s: float = 600.0
    """How long the judges of linearizability may take, each."""

    def __post_init__(self) -> None:
        if self.peers < 3:
            raise ValueError(f"a cluster that survives a fault has three peers at least, not {self.peers}")
        if not 0 < self.seconds < math.inf or self.clients < 1 or self.keys < 1 or self.spares < 0:
            raise ValueError("a run needs some seconds, a client and a key at least")
        if not self.pause_s >= 0:
            raise ValueError(f"clients pause for 0 s or more between two calls, not for {self.pause_s:g}")

    def save(self) -> None:
        """Write it into the directory."""
        told = {**dataclasses.asdict(self), "directory": str(self.directory)}
        (self.directory / "options.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, directory: Path) -> Options:
        """Of a run that was made. Raises OSError, ValueError."""
        told: dict[str, Any] = json.loads((directory / "options.json").read_text("utf-8"))
        return cls(**{**told, "directory": directory})
