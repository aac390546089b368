"""A peer in a process of its own that does everything a process can do, at constant size; told as ``child.py`` is.

Work comes in rounds: between two of them nothing runs that the round began, and the process tells what it holds then.
So what is left is what was left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio
from child import PR_SET_PDEATHSIG, Child, Pauses, main, resident_bytes

from replikv import Change, Cluster, CompactedError, Delete, LeaseExpiredError, Put, Transaction
from replikv.recipes import Counter, Lock, Queue, Semaphore, ServiceRegistry

KEYS = 200
VALUE_BYTES = 200
LEASE_S = 2.0
"""Four election timeouts."""
PAUSE_S = 0.02
"""About, between two operations of a task: three processes of these, on a busy machine, are to keep up."""


class Soaker(Child):
    """What is done with the cluster, by command."""

    def __init__(self, cluster: Cluster, nursery: trio.Nursery, history: Path, pauses: Pauses) -> None:
        super().__init__(cluster, nursery, history, pauses)
        store = cluster.store
        self._chance = random.Random(os.getpid())
        self._store = store
        self._queue = Queue(store, "work", visibility_s=LEASE_S)
        self._lock = Lock(store, "job", ttl_s=LEASE_S)
        self._semaphore = Semaphore(store, "rooms", 2, ttl_s=LEASE_S)
        self._registry = ServiceRegistry(store, ttl_s=LEASE_S)
        self._done = 0
        self._planted: list[object] = []

    # -- by command ----------------------------------------------------------------------------------------------------

    async def do_round(self, seconds: float) -> int:
        """Work for so long, and break off wherever it is; how much was done since the start."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for work in (
                    *(self._put, self._put, self._delete, self._read, self._count, self._transact, self._give_up),
                    *(self._watch, self._subscribe, self._hold_lease, self._forget_lease, self._exclude, self._share),
                    *(self._produce, self._consume, self._consume, self._lead, self._serve, self._iterate),
                ):
                    nursery.start_soon(self._repeat, work)
        return self._done

    async def do_leak(self, what: str) -> None:
        """Hold on to something, so that the judge can be judged."""
        match what:
            case "objects":
                self._planted.extend([number] for number in range(20_000))
            case "blocks":
                self._planted.extend(os.urandom(40) for _ in range(20_000))
            case "rss_bytes":
                self._planted.append(b"x" * 8_000_000)
            case "descriptors":
                self._planted.extend(os.dup(0) for _ in range(4))
            case "tasks":
                for _ in range(4):
                    self.nursery.start_soon(trio.sleep_forever)
            case "threads":
                for _ in range(4):
                    threading.Thread(target=threading.Event().wait, daemon=True).start()
            case "watches":
                for _ in range(4):
                    self._store.subscribe(print, key="nobody puts this")
            case _:
                raise ValueError(what)

    async def do_sample(self) -> dict[str, int]:
        """What this process holds, once what was begun in a round has come to an end."""
        peer = self.cluster._open_peer()
        driver, replica = peer._driver, peer.replica
        with trio.move_on_after(5.0):
            while driver.proposals.in_flight + len(driver.proposals._queue):  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.02)
        gc.collect()
        return {
            "rss_bytes": resident_bytes(),
            "objects": len(gc.get_objects()),
            "blocks": sys.getallocatedblocks(),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "threads": len(os.listdir("/proc/self/task")),
            "python_threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "watches": self._store._hub._open,
            "in_flight": driver.proposals.in_flight + len(driver.proposals._queue),
            "sessions": len(replica.sessions.table),
            "results": sum(len(session.results) for session in replica.sessions.table.values()),
            "keys": len(self._store),
            "leases": len(replica.map.leases),
            "first_index": driver.node.raft.log.first_index(),
            "done": self._done,
        }

    # -- the work ------------------------------------------------------------------------------------------------------

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            # The peers come and go: what is lost by that is not what is asked about here.
            with contextlib.suppress(TimeoutError, LeaseExpiredError, CompactedError, trio.WouldBlock):
                await work()
                self._done += 1
            await trio.sleep(self._chance.uniform(0.0, 2 * PAUSE_S))

    def _key(self) -> str:
        return f"key/{self._chance.randrange(KEYS):03}"

    async def _put(self) -> None:
        await self._store.put(self._key(), self._chance.randbytes(VALUE_BYTES))

    async def _delete(self) -> None:
        await self._store.delete(self._key())

    async def _read(self) -> None:
        await self._store.get(self._key())
        await self._store.get(self._key(), revision=self._store.revision)

    async def _count(self) -> None:
        await Counter(self._store, f"count-{self._chance.randrange(5)}").increment()

    async def _transact(self) -> None:
        def move(tx: Transaction) -> None:
            tx.put("moved/b", tx.get("moved/a", 0))
            tx.put("moved/a", tx.get("moved/b", 0) + 1)

        await self._store.transact(move)
        await self._store.txn([], [Put("moved/c", 1), Delete("moved/c2")])

    async def _give_up(self) -> None:
        """Operations that are cancelled on their way, or before."""
        for call in (self._put, self._read, self._count, self._transact):
            with trio.move_on_after(self._chance.uniform(0.0, 0.01)):
                await call()

    async def _watch(self) -> None:
        since = max(0, self._store.revision - 20)
        with trio.move_on_after(1.0):
            async with self._store.watch("key/", since=since, coalesce=self._chance.random() < 0.5) as changes:
                for _ in range(30):
                    await anext(changes)
        async with self._store.watch("key/", snapshot=True) as changes:
            await anext(changes)

    async def _subscribe(self) -> None:
        told = trio.Event()

        def tell(_: Change) -> None:
            told.set()

        subscription = self._store.subscribe(tell, prefix="key/")
        try:
            with trio.move_on_after(1.0):
                await told.wait()
        finally:
            subscription.cancel()

    async def _hold_lease(self) -> None:
        async with self._store.lease(LEASE_S) as lease:
            await self._store.put(f"held/{lease.id}", 1, lease=lease)
            await trio.sleep(self._chance.uniform(0.0, LEASE_S))

    async def _forget_lease(self) -> None:
        """One that nobody keeps alive."""
        number = await self._store.grant_lease(LEASE_S / 2)
        await self._store.put(f"forgotten/{number}", 1, lease=number)
        await trio.sleep(LEASE_S / 4)

    async def _exclude(self) -> None:
        async with self._lock:
            await trio.lowlevel.checkpoint()

    async def _share(self) -> None:
        async with self._semaphore:
            await trio.sleep(PAUSE_S)

    async def _produce(self) -> None:
        if self._queue.size < 20:
            await self._queue.put(self._done)

    async def _consume(self) -> None:
        async with self._queue.take():
            await trio.lowlevel.checkpoint()

    async def _lead(self) -> None:
        async with self.cluster.leading("job", ttl_s=LEASE_S):
            await trio.sleep(PAUSE_S)

    async def _serve(self) -> None:
        async with self._registry.register("payments", f"process-{os.getpid() % 5}", metadata={"done": self._done}):
            await trio.sleep(PAUSE_S)

    async def _iterate(self) -> None:
        """Iterators that are read to the end, and that are left halfway: they pin what they were made on."""
        for _ in self._store.items("key/"):
            await trio.lowlevel.checkpoint()
        halfway = iter(self._store.items("key/"))
        next(halfway, None)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    trio.run(main, json.loads(sys.argv[1]), Soaker)
