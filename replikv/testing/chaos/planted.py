"""A member with a bug in its code, for who wants to see a run fail: ``python -m replikv.testing.chaos.planted``."""

from __future__ import annotations

import json
import sys

from replikv.testing.chaos import member
from replikv.testing.simulator.planted import planted

__all__ = ["main"]


def main() -> int:
    """As ``member.main``, with the bug of the simulator's catalogue that the arguments name."""
    with planted(json.loads(sys.argv[1])["planted"]):
        return member.main()


if __name__ == "__main__":
    sys.exit(main())
