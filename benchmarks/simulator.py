"""What a simulated minute costs: of the bare cores, and of whole clusters in chaos with every invariant checked.

Processor time, not time: seeds run side by side on all cores.
"""

from __future__ import annotations

import collections
import gc
import time
from collections.abc import Sequence
from random import Random
from typing import Final

from replikv.raft.core import Config
from replikv.raft.membership import Membership
from replikv.raft.messages import Message
from replikv.raft.node import RawNode
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage
from replikv.testing.simulator import Options, run

__all__ = ["measure_simulator"]

TICK_S: Final = 0.1
TICKS_PER_ENTRY: Final = 2
"""A light load: five entries a second."""
NODE_IDS: Final = ("1", "2", "3")


def measure_simulator(seeds: Sequence[int], *, core_s: float = 600.0) -> str:
    """A few lines: cores alone, and these seeds. Raises AssertionError for a seed that fails."""
    committed, core_cpu_s = _run_cores(core_s)
    gc.freeze()
    simulated_s = 0.0
    began = time.process_time()
    for seed in seeds:
        report = run(Options.draw(seed))
        assert report.failure is None, f"seed {seed}: {report.failure}"
        simulated_s += report.simulated_s
    cpu_s = time.process_time() - began
    return (
        f"three cores, ticks of {TICK_S} s, {committed} entries: {core_s / core_cpu_s:,.0f} times real time,"
        f" {60 * core_cpu_s / core_s:.3f} s of processor time per simulated minute\n"
        f"chaos, {len(seeds)} seeds, {simulated_s:.0f} s simulated: {simulated_s / cpu_s:,.0f} times real time,"
        f" {60 * cpu_s / simulated_s:.3f} s of processor time per simulated minute"
    )


def _run_cores(seconds: float) -> tuple[int, float]:
    """How many entries were committed, and the processor time that it took."""
    membership = Membership.of_voters(dict.fromkeys(NODE_IDS, ""))
    storages = {node_id: MemoryStorage(membership) for node_id in NODE_IDS}
    nodes = {
        node_id: RawNode(
            Config(node_id=node_id, pre_vote=True, check_quorum=True),
            storages[node_id],
            Random(node_id),
        )
        for node_id in NODE_IDS
    }
    messages: collections.deque[Message] = collections.deque()
    began = time.process_time()
    for tick in range(round(seconds / TICK_S)):
        for node in nodes.values():
            node.tick()
            if tick % TICKS_PER_ENTRY == 0 and node.raft.role is Role.LEADER:
                node.propose(b"an entry")
            _work(node, storages[node.raft.id], messages)
        while messages:
            message = messages.popleft()
            node = nodes[message.to]
            node.step(message)
            _work(node, storages[message.to], messages)
    cpu_s = time.process_time() - began
    applied = {node.raft.log.applied for node in nodes.values()}
    assert max(applied) - min(applied) <= 1, f"they part: {applied}"
    return max(applied), cpu_s


def _work(node: RawNode, storage: MemoryStorage, messages: collections.deque[Message]) -> None:
    """Do what the core wants done: send, and make durable and apply at once."""
    while node.has_ready():
        ready = node.ready()
        messages += ready.messages
        if ready.write is not None:
            storage.apply(ready.write)
            messages += node.persisted(ready.write)
        node.applied(ready.committed)
