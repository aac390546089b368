"""A peer in a process of its own that puts work into a queue, does it, and offers services; told as ``child.py`` is.

Of each item it writes a line before and after everything that counts, so ``kill -9`` hides nothing of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

import structlog
import trio
from child import PR_SET_PDEATHSIG, Child, Pauses, main

from replikv import Cluster, LeaseExpiredError, OutcomeUnknownError, UnavailableError
from replikv.recipes import Queue, ServiceRegistry


class Worker(Child):
    """What is done with the cluster, by command."""

    def __init__(self, cluster: Cluster, nursery: trio.Nursery, history: Path, pauses: Pauses) -> None:
        super().__init__(cluster, nursery, history, pauses)
        self._notes = history.with_suffix(".work").open("a", encoding="utf-8", buffering=1)
        self._producing = trio.CancelScope()
        self._consuming = trio.CancelScope()
        self._chance = random.Random(os.getpid())

    # -- a queue -------------------------------------------------------------------------------------------------------

    async def do_produce(self, tasks: int) -> None:
        """Have so many tasks put items until they are told to stop."""
        self.nursery.start_soon(self._run, self._producing, tasks, self._produce, Queue(self.cluster.store, "work"))

    async def do_consume(self, tasks: int, visibility_s: float) -> None:
        """Have so many tasks take items until they are told to stop."""
        queue = Queue(self.cluster.store, "work", visibility_s=visibility_s)
        self.nursery.start_soon(self._run, self._consuming, tasks, self._consume, queue)

    async def do_stop_producing(self) -> None:
        self._producing.cancel()

    async def do_stop_consuming(self) -> None:
        self._consuming.cancel()

    async def do_size(self) -> int:
        await self.cluster.store.barrier()
        return Queue(self.cluster.store, "work").size

    async def _run(self, scope: trio.CancelScope, tasks: int, task: object, queue: Queue) -> None:
        assert callable(task)
        with scope:
            async with trio.open_nursery() as nursery:
                for number in range(tasks):
                    nursery.start_soon(task, queue, number)

    async def _produce(self, queue: Queue, task: int) -> None:
        for number in itertools.count():
            item = f"{os.getpid()}/{task}/{number}"
            self._note("putting", item)
            with contextlib.suppress(OutcomeUnknownError):  # as who was cancelled, or killed
                try:
                    await queue.put(item)
                    self._note("put", item)
                except UnavailableError:
                    self._note("refused", item)
            await trio.sleep(self._chance.uniform(0.0, 0.1))

    async def _consume(self, queue: Queue, _: int) -> None:
        while True:
            with contextlib.suppress(LeaseExpiredError, TimeoutError):
                async with queue.receive() as delivery:
                    self._note("in", delivery.item, count=delivery.count)
                    try:
                        await trio.sleep(self._chance.uniform(0.0, 0.1))
                    finally:
                        self._note("out", delivery.item, count=delivery.count)
                self._note("acknowledged", delivery.item, count=delivery.count)

    def _note(self, event: str, item: str, **fields: int) -> None:
        note = {"event": event, "item": item, "pid": os.getpid(), "at": time.monotonic(), **fields}
        self._notes.write(json.dumps(note) + "\n")

    # -- services ------------------------------------------------------------------------------------------------------

    async def do_serve(self, address: str, ttl_s: float) -> None:
        """Offer a service for as long as this process is there."""
        await self.nursery.start(self._serve, address, ttl_s)

    async def _serve(self, address: str, ttl_s: float, task_status: trio.TaskStatus[None]) -> None:
        async with ServiceRegistry(self.cluster.store, ttl_s=ttl_s).register("payments", address):
            task_status.started()
            await trio.sleep_forever()

    async def do_wait_endpoints(self, addresses: list[str]) -> float:
        """Wait until exactly these are listed here; when that was, on the machine's clock."""
        async for endpoints in ServiceRegistry(self.cluster.store).watch("payments"):
            if [endpoint.address for endpoint in endpoints] == addresses:
                break
        return time.monotonic()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    trio.run(main, json.loads(sys.argv[1]), Worker)
