"""Many peers without a disk in one process, each of which joins by itself; told what to do as ``child.py`` is."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from typing import Any

import structlog
import trio
from child import PR_SET_PDEATHSIG, tell

from replikv import Cluster, Settings


class Crowd:
    """The peers of this process."""

    def __init__(self) -> None:
        self.clusters: list[Cluster] = []
        self.done = 0

    async def work(self, cluster: Cluster) -> None:
        """Count what this process has done, one after the other, for ever."""
        while True:
            await cluster.store.increment("done")
            self.done += 1
            await trio.sleep(0.2)

    async def do_done(self) -> int:
        return self.done

    async def do_digests(self) -> list[tuple[int, str]]:
        return [cluster.digest() for cluster in self.clusters]

    async def do_counted(self) -> int:
        """What all processes together have counted: no less than they were told of."""
        counted = self.clusters[0].store["done"]
        assert isinstance(counted, int)
        return counted

    async def do_roles(self) -> list[dict[str, str]]:
        return [{i: member.role for i, member in c.status().members.items()} for c in self.clusters]


async def main(peers: dict[str, str], join: list[str], settings: dict[str, Any]) -> None:
    crowd = Crowd()
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as joining:
            for node_id, address in peers.items():
                cluster = Cluster(node_id, address=address, join=join, settings=Settings(**settings))
                crowd.clusters.append(cluster)
                joining.start_soon(nursery.start, cluster.run)
        working = trio.CancelScope()
        nursery.start_soon(run_all, crowd, working)
        tell({"ready": True})
        buffer = b""
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            while data := await stdin.receive_some():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    if command["do"] == "stop":
                        working.cancel()
                        tell({"id": command["id"], "result": None})
                    else:
                        tell({"id": command["id"], "result": await getattr(crowd, f"do_{command['do']}")()})
        nursery.cancel_scope.cancel()


async def run_all(crowd: Crowd, working: trio.CancelScope) -> None:
    with working:
        async with trio.open_nursery() as nursery:
            for cluster in crowd.clusters:
                nursery.start_soon(crowd.work, cluster)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    arguments = json.loads(sys.argv[1])
    trio.run(main, arguments["peers"], arguments["join"], arguments["settings"])
