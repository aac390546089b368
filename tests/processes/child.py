"""A peer in a process of its own, told what to do by lines of JSON on stdin; it answers on stdout.

``{"id": 1, "do": "put", "key": "k", "value": 1}`` is answered by ``{"id": 1, "result": ...}`` or by
``{"id": 1, "error": "UnavailableError", "text": ...}``; commands run concurrently. Under load it tells of each
acknowledged write: ``{"acknowledged": {key: value}}``; of what clients of a workload see, it writes a file. When it was
removed from the cluster it says so, ``{"removed": ...}``, and ends. It dies when its parent does.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import structlog
import trio
from turns import Contender
from workload import HistoryFile, Workload

from replikv import Cluster, RemovedError, ReplikvError, Settings

PR_SET_PDEATHSIG = 1
BEAT_S = 0.005


class Pauses:
    """The longest the event loop kept a task waiting.

    Other processes of a busy machine make any task late. What counts against us is the part of a delay in which this
    process itself, any thread of it, used the processor: ``own_s``. ``wall_s`` is told beside it.
    """

    def __init__(self) -> None:
        self.own_s = 0.0
        self.wall_s = 0.0

    async def measure(self) -> None:
        while True:
            before, used = time.perf_counter(), time.process_time()
            await trio.sleep(BEAT_S)
            excess = time.perf_counter() - before - BEAT_S
            self.wall_s = max(self.wall_s, excess)
            self.own_s = max(self.own_s, min(excess, time.process_time() - used))


class Child:
    """What is done with the cluster, by command."""

    def __init__(self, cluster: Cluster, nursery: trio.Nursery, history: Path, pauses: Pauses) -> None:
        self.cluster = cluster
        self.workload = Workload(f"{cluster.status().node_id}/{os.getpid()}", cluster.store, HistoryFile(history))
        self.contender = Contender(cluster, f"{cluster.status().node_id}-{os.getpid()}", history.parent)
        self.nursery = nursery
        self.pauses = pauses
        self.load = trio.CancelScope()
        self.acknowledged: dict[str, int] = {}

    async def answer(self, command: dict[str, Any]) -> None:
        number, name = command.pop("id"), command.pop("do")
        try:
            tell({"id": number, "result": await getattr(self, f"do_{name}")(**command)})
        except ReplikvError as exc:
            tell({"id": number, "error": type(exc).__name__, "text": str(exc)})

    async def do_put(self, key: str, value: object) -> int:
        return await self.cluster.store.put(key, value)

    async def do_get(self, key: str) -> object:
        return await self.cluster.store.get(key)

    async def do_backup(self, path: str) -> None:
        await self.cluster.backup(path)

    async def do_items(self) -> dict[str, object]:
        """Everything, linearizable."""
        await self.cluster.store.barrier()
        return dict(self.cluster.store.items())

    async def do_status(self) -> dict[str, object]:
        status = self.cluster.status()
        return {
            "leader": status.leader,
            "role": status.role,
            "term": status.term,
            "first_index": status.first_index,
            "last_index": status.last_index,
            "applied_index": status.applied_index,
            "match": {node_id: progress.match_index for node_id, progress in status.progress.items()},
            "members": {node_id: member.role for node_id, member in status.members.items()},
            "addresses": {node_id: member.address for node_id, member in status.members.items()},
        }

    async def do_remove_member(self, node_id: str) -> None:
        await self.cluster.remove_member(node_id)

    async def do_change_members(self, promote: list[str], remove: list[str]) -> None:
        await self.cluster.change_members(promote=promote, remove=remove)

    async def do_workload(self, clients: int, keys: int, pause_s: float, only: str | None = None) -> None:
        """Have clients work and record their history; answered when they have been stopped."""
        await self.workload.run(clients, keys, pause_s, only)

    async def do_stop_workload(self) -> None:
        self.workload.stop()

    async def do_read_all(self, keys: int) -> None:
        await self.workload.read_all(keys)

    async def do_contend(self, ttl_s: float) -> None:
        """Compete for a leadership until stopped; see turns.py."""
        self.nursery.start_soon(self.contender.contend, ttl_s)

    async def do_stop_contending(self) -> None:
        await self.contender.stop()

    async def do_leads(self) -> bool:
        return self.contender.leads

    async def do_write_late(self, ttl_s: float) -> dict[str, object]:
        return await self.contender.write_late(ttl_s)

    async def do_digest(self) -> tuple[int, str]:
        return self.cluster.digest()

    async def do_digest_sum(self) -> tuple[int, int]:
        """Position and digest of the map, at once: however large it is."""
        replica = self.cluster._open_peer().replica
        return replica.position, replica.keyspace.digest_sum

    async def do_load(self, clients: int, prefix: str) -> None:
        """Have so many clients write, each its own key, one number after the other, until they are stopped."""
        self.nursery.start_soon(self.run_load, [f"{prefix}/{client}" for client in range(clients)])

    async def run_load(self, keys: list[str]) -> None:
        self.load = trio.CancelScope()
        with self.load:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.tell_acknowledged)
                for key in keys:
                    nursery.start_soon(self.write, key)

    async def do_stop_load(self) -> None:
        self.load.cancel()

    async def write(self, key: str) -> None:
        for number in itertools.count(1):
            try:
                await self.cluster.store.put(key, number)
            except TimeoutError:
                key += "+"  # whose outcome is unknown may be applied after what follows: leave that key alone
            else:
                self.acknowledged[key] = number

    async def tell_acknowledged(self) -> None:
        while True:
            await trio.sleep(0.002)
            if self.acknowledged:
                tell({"acknowledged": self.acknowledged})
                self.acknowledged = {}

    async def do_fill(self, keys: int, clients: int, value_bytes: int) -> None:
        """Write so many keys, each twice."""
        names = (f"key/{number % keys:08}" for number in range(2 * keys))

        async def work() -> None:
            for name in names:
                await self.cluster.store.put(name, "." * value_bytes)

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(work)

    async def do_fill_at_once(self, keys: int, clients: int, value_bytes: int) -> None:
        """Write so many keys, a hundred at a revision."""
        starts = iter(range(0, keys, 100))

        async def work() -> None:
            for start in starts:
                names = (f"key/{number:08}" for number in range(start, min(start + 100, keys)))
                await self.cluster.store.update(dict.fromkeys(names, "." * value_bytes))

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(work)

    async def do_count(self) -> int:
        return len(self.cluster.store)

    async def do_snapshot(self) -> None:
        await self.cluster.snapshot()

    async def do_collect_garbage(self) -> int:
        """All of it, as Python does it every now and then."""
        return gc.collect()

    async def do_resident_bytes(self) -> int:
        return resident_bytes()

    async def do_measure_pauses(self) -> None:
        self.nursery.start_soon(self.pauses.measure)

    async def do_pauses(self) -> dict[str, float]:
        return {"own_s": self.pauses.own_s, "wall_s": self.pauses.wall_s}


def resident_bytes() -> int:
    """How much memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tell(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def main(arguments: dict[str, Any], make: type[Child] = Child) -> None:
    try:
        await run(make, **arguments)
    except* RemovedError as removed:  # out of the nursery beside which the cluster is measured
        tell({"removed": str(removed.exceptions[0])})


async def run(make: type[Child], settings: dict[str, Any], history: str, measured: bool, **arguments: Any) -> None:
    pauses = Pauses()
    async with trio.open_nursery() as measuring:
        if measured:
            measuring.start_soon(pauses.measure)
        await serve(make, Path(history), pauses, settings=Settings(**settings), **arguments)
        measuring.cancel_scope.cancel()


async def serve(make: type[Child], history: Path, pauses: Pauses, **arguments: Any) -> None:
    async with Cluster(**arguments) as cluster, trio.open_nursery() as nursery:
        child = make(cluster, nursery, history, pauses)
        tell({"ready": True})
        buffer = b""
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            while data := await stdin.receive_some():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    nursery.start_soon(child.answer, json.loads(line))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also for a process that is stopped
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    trio.run(main, json.loads(sys.argv[1]))
