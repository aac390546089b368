"""One process of the demo: an application with a peer inside, which does what it is told over its standard input.

``python -m replikv.demo.member OPTIONS``, with the options as JSON: ``root`` (the directory of the whole demo),
``node_id``, ``members`` (null when the process starts again, from its disk alone), ``since`` (the revision from which
on it tells of changes).

It ends when its standard input is closed, however that came about: so it never outlives its parent. Then it removes
``root``, too: a parent that was killed cannot.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from typing import Any, Final

import structlog
import trio

from replikv import Cluster, ReplikvError
from replikv.demo.pipes import Line, encode_line, read_lines

__all__ = ["main"]

KEYS: Final = "demo/"
LOOK_S: Final = 0.01
"""How often the process looks who leads: the precision of the times that the demo shows."""


def main() -> int:
    """Be a process of the demo; its exit code."""
    options = json.loads(sys.argv[1])
    # A program of its own, so it may say where its log goes: to standard error, which the parent has sent to a file.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    member = Member(**options)
    try:
        trio.run(member.run)
    except (ReplikvError, OSError) as exc:
        say({"news": "failed", "reason": f"{type(exc).__name__}: {exc}"})
        return 1
    finally:
        if member.told_to_end:
            # Each does it, once its own files are closed: so the last one leaves nothing.
            shutil.rmtree(member.root, ignore_errors=True)
    return 0


class Member:
    """The peer, and what is told of it."""

    def __init__(self, root: str, node_id: str, members: dict[str, str] | None, since: int) -> None:
        self.root = root
        self.told_to_end = False
        self._since = since
        directory = os.path.join(root, node_id)
        if members is None:
            self._cluster = Cluster(data_dir=directory)
        else:
            self._cluster = Cluster(node_id, members=members, data_dir=directory)

    async def run(self) -> None:
        """Until standard input ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_peer)
            await self._obey(nursery)
            self.told_to_end = True
            nursery.cancel_scope.cancel()

    async def _run_peer(self) -> None:
        async with self._cluster as cluster, trio.open_nursery() as nursery:
            await nursery.start(self._tell_changes)
            say({"news": "open"})
            nursery.start_soon(self._tell_leader, cluster)

    async def _tell_changes(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._cluster.store.watch(KEYS, since=self._since) as changes:
            task_status.started()
            async for change in changes:
                say({"news": "change", "revision": change.revision, "key": change.key, "value": change.value})

    async def _tell_leader(self, cluster: Cluster) -> None:
        told: tuple[int, str | None] | None = None
        while True:
            status = cluster.status()
            if (status.term, status.leader) != told:
                told = status.term, status.leader
                say({"news": "leader", "term": status.term, "leader": status.leader})
            await trio.sleep(LOOK_S)

    # -- requests ------------------------------------------------------------------------------------------------------

    async def _obey(self, nursery: trio.Nursery) -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            async for request in read_lines(stdin):
                nursery.start_soon(self._answer, request)

    async def _answer(self, request: Line) -> None:
        try:
            result = await self._do(**{name: value for name, value in request.items() if name != "id"})
        except ReplikvError as exc:
            say({"id": request["id"], "error": f"{type(exc).__name__}: {exc}"})
        else:
            say({"id": request["id"], "result": result})

    async def _do(self, do: str, key: str = "", value: Any = None) -> Any:
        store = self._cluster.store
        match do:
            case "put":
                return await store.put(key, value)
            case "get":
                return await store.get(key)
            case "items":
                return dict(store.items(KEYS))
            case "digest":
                return self._cluster.digest()
            case _:
                raise AssertionError(do)


def say(line: Line) -> None:
    """Tell the parent, who always reads: a pipe of 64 KiB never keeps this waiting. It may be gone, though."""
    try:
        sys.stdout.buffer.write(encode_line(line))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Standard input says the same, and ends the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
