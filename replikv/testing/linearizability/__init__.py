"""Could one map, used by one client at a time, have given these answers? A checker of histories.

::

    recorder = Recorder(trio.current_time)
    with recorder.call("client 1", "put", "x", value=1) as op:
        op.ok(rev=await store.put("x", 1))
    ...
    verdict = check(recorder.history())
    assert verdict.outcome == "ok", verdict

``history`` is what clients saw, ``recorder`` writes it down, ``model`` says what each operation means for the map,
``partition`` splits a history by key and makes it small, ``search`` looks for an order, ``evidence`` says why there is
none, ``revisions`` holds the revisions of writes to the same order. ``python -m replikv.testing.linearizability FILE``
checks a file; docs/linearizability.md has the format and the reasons.
"""

from __future__ import annotations

from replikv.testing.linearizability.checker import check, check_revisions
from replikv.testing.linearizability.history import Operation, read_history, write_history
from replikv.testing.linearizability.model import Condition, Model, Step, register_map
from replikv.testing.linearizability.recorder import Call, Recorder
from replikv.testing.linearizability.verdict import Verdict

__all__ = [
    "Call",
    "Condition",
    "Model",
    "Operation",
    "Recorder",
    "Step",
    "Verdict",
    "check",
    "check_revisions",
    "read_history",
    "register_map",
    "write_history",
]
