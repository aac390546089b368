"""Bugs to plant: what the simulator must notice, or it would prove nothing of the code without them.

Each is a function that is given a :class:`~replikv.testing.simulator.patching.Patch` and changes the real code with it,
with a sentence that says what is wrong, under the decorator :func:`bug`. It says within how many seeds the simulator
notices it, and which options make that likely. :func:`planted` has one in the code for a while::

    with planted("vote-twice"):
        assert find("vote-twice", range(50)) is not None

Those of consensus are in ``elections``, ``replication``, ``reads`` and ``membership``, those of the log on disk and of
snapshot files in ``storage``, those of what is replicated in ``machine``, those of who keeps time for it in ``leases``.
"""

from __future__ import annotations

from replikv.testing.simulator.planted import elections, leases, machine, membership, reads, replication, storage
from replikv.testing.simulator.planted.catalogue import CATALOGUE, Bug, bug, find, planted

__all__ = [
    "CATALOGUE",
    "Bug",
    "bug",
    "elections",
    "find",
    "leases",
    "machine",
    "membership",
    "planted",
    "reads",
    "replication",
    "storage",
]
