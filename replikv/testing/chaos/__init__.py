"""Clusters of real processes that everything is done to which machines, disks and networks do.

``run`` starts peers, each in a process of its own and with clients of its own, behind proxies; kills, stops, cuts off,
fills up, adds and removes them at random for a time; heals everything; and judges what was seen. docs/chaos.md says
what of, and how to read it.

``nodes`` are the processes, ``network`` and ``disks`` what they stand on, ``storm`` what goes wrong; ``member`` is the
program of a process, with its ``clients``, ``holders`` and ``watchers``; ``records`` what they leave behind, and
``judge`` what that proves.
"""

from __future__ import annotations

from replikv.testing.chaos.judge import judge
from replikv.testing.chaos.options import Options
from replikv.testing.chaos.run import Report, run

__all__ = ["Options", "Report", "judge", "run"]
