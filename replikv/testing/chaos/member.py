"""A peer in a process of its own, with clients, holders and watchers: ``python -m replikv.testing.chaos.member JSON``.

It works from its first moment, is told what to do by lines of JSON on standard input, and answers on standard output:
``{"id": 1, "do": "status"}`` with ``{"id": 1, "result": ...}``, or ``{"id": 1, "error": NAME, "text": ...}``. It says
``{"ready": true}`` when it is a member, and why it ends, if nobody asked it to: ``{"ended": NAME, "text": ...}``. It
leaves when standard input ends. So it does when its parent is killed; if it is stopped then, SIGHUP ends it, as its
process group, which it has alone, is orphaned.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog
import trio

from replikv import startup
from replikv.cluster import Cluster
from replikv.errors import ReplikvError
from replikv.settings import Settings
from replikv.storage.disk import DiskStorage
from replikv.testing.chaos.clients import Clients
from replikv.testing.chaos.disks import FlaggedFileSystem
from replikv.testing.chaos.holders import Holders
from replikv.testing.chaos.records import Lines, OperationFile
from replikv.testing.chaos.watchers import Watchers
from replikv.testing.proxy import RoutedTransport


class Member:
    """What is done with the cluster, by command."""

    def __init__(self, cluster: Cluster, directory: Path, start: int, load: dict[str, Any]) -> None:
        node_id = cluster.status().node_id
        name = f"{node_id}.{start}"
        chance = random.Random(f"{load['seed']}/{name}")  # noqa: S311
        self._cluster = cluster
        self._count = load["clients"]
        operations = OperationFile(directory / f"{name}.calls")
        self.clients = Clients(name, cluster, operations, load["keys"], load["pause_s"], chance)
        self.holders = Holders(name, cluster, Lines(directory / f"{name}.holds"), load["ttl_s"], chance)
        self.watchers = Watchers(directory, node_id, start, cluster.store, chance)
        self._working: dict[str, trio.Event] = {}

    def start(self, nursery: trio.Nursery) -> None:
        """Have everybody work."""
        self._working = {"clients": trio.Event(), "holders": trio.Event()}
        nursery.start_soon(self._work, "clients", self.clients.run, self._count)
        nursery.start_soon(self._work, "holders", self.holders.run)
        nursery.start_soon(self.watchers.run)

    async def _work(self, name: str, work: Any, *arguments: object) -> None:
        await work(*arguments)
        self._working[name].set()

    async def answer(self, command: dict[str, Any]) -> None:
        """Do it, and say what came of it."""
        number, name = command.pop("id"), command.pop("do")
        try:
            tell({"id": number, "result": await getattr(self, f"do_{name}")(**command)})
        except ReplikvError as exc:
            tell({"id": number, "error": type(exc).__name__, "text": str(exc)})

    async def do_status(self) -> dict[str, object]:
        """What it knows of the cluster."""
        status = self._cluster.status()
        return {
            "leader": status.leader,
            "term": status.term,
            "applied": status.applied_index,
            "members": {node_id: member.role for node_id, member in status.members.items()},
            "succeeded": self.clients.succeeded,
        }

    async def do_stop(self) -> None:
        """Have clients and holders end; answered when they have."""
        self.clients.stop()
        self.holders.stop()
        for working in self._working.values():
            await working.wait()

    async def do_read_all(self) -> dict[str, object]:
        """What the clients' keys hold, each read linearizably."""
        return await self.clients.read_all()

    async def do_items(self) -> dict[str, object]:
        """Everything that the map holds, as of now or later."""
        await self._cluster.store.barrier()
        return {"revision": self._cluster.store.revision, "items": dict(self._cluster.store.items())}

    async def do_watched(self, revision: int) -> None:
        """Wait until the watcher of all keys was told everything up to there."""
        await self.watchers.wait_told(revision)

    async def do_digest(self) -> tuple[int, str]:
        """Position and digest of the whole state."""
        return self._cluster.digest()

    async def do_transfer(self, to: str | None) -> None:
        """Hand leadership over."""
        await self._cluster.transfer_leadership(to)

    async def do_remove(self, node_id: str) -> None:
        """Remove a member."""
        await self._cluster.remove_member(node_id)

    async def do_snapshot(self) -> None:
        """Take a snapshot."""
        await self._cluster.snapshot()


def tell(message: dict[str, object]) -> None:
    """Say it to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def serve(arguments: dict[str, Any]) -> None:
    """Be a peer until standard input ends."""
    directory = Path(arguments["directory"])
    if arguments["flag"] is not None:
        startup.DiskStorage = functools.partial(  # type: ignore[assignment, attr-defined]
            DiskStorage, filesystem=FlaggedFileSystem(Path(arguments["flag"]))
        )
    cluster = Cluster(
        arguments["node_id"],
        members=arguments["members"],
        join=arguments["join"],
        address=arguments["address"],
        listen=arguments["listen"],
        data_dir=arguments["data_dir"],
        transport=RoutedTransport(arguments["routes"], secret=arguments["secret"]),
        settings=Settings(**arguments["settings"]),
    )
    async with cluster, trio.open_nursery() as nursery:
        member = Member(cluster, directory, arguments["start"], arguments["load"])
        member.start(nursery)
        tell({"ready": True})
        buffer = b""
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            while data := await stdin.receive_some():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    nursery.start_soon(member.answer, json.loads(line))
        nursery.cancel_scope.cancel()


def main() -> int:
    """Run, and say why it ended."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[_stamp, structlog.processors.KeyValueRenderer()],
    )
    try:
        trio.run(serve, json.loads(sys.argv[1]))
    except ReplikvError as exc:
        tell({"ended": type(exc).__name__, "text": str(exc)})
        return 1
    return 0


def _stamp(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {"at": round(time.monotonic(), 4), **event}


if __name__ == "__main__":
    sys.exit(main())
