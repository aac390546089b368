"""What ten thousand watches cost a put: a few turns of one task, and nothing that grows with their number."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv import Cluster, Store
from replikv.store.store import Store as StoreOfOne
from replikv.store.watch_hub import WatchHub

WATCHES = 10_000
KEYS = [f"key/{number:05}" for number in range(WATCHES)]


async def watch(store: Store, key: str, task_status: trio.TaskStatus[None]) -> None:
    async with store.watch(key=key) as changes:
        task_status.started()
        async for _ in changes:
            pass


async def cost_us(store: Store, tasks: int, puts: int, keys: list[str]) -> float:
    """The processor time of a put, in µs, of so many in so many tasks, to these keys in no order."""

    async def put(task: int) -> None:
        for number in range(task, puts, tasks):
            await store.put(keys[number * 7919 % len(keys)], number)

    began = time.process_time()
    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(put, task)
    await trio.testing.wait_all_tasks_blocked()  # those who were told of it are done with it, too
    return (time.process_time() - began) / puts * 1e6


@pytest.mark.long
@pytest.mark.parametrize(
    ("tasks", "keys", "limit"),
    [
        pytest.param(1, KEYS, 2.0, id="one-by-one"),
        pytest.param(50, KEYS[5000:5001], 2.0, id="fifty-tasks-to-one-of-them"),
        pytest.param(50, KEYS, 3.0, id="fifty-tasks-to-all-of-them"),
    ],
)
async def test_what_ten_thousand_watches_add_to_a_put(tasks: int, keys: list[str], limit: float) -> None:
    """A put to one of them costs at most twice a put with none, in a cluster of one in memory, where puts cost least.

    The last case is no put to one of them, but the worst there is: fifty puts share a turn of the peer, and each wakes
    a task of its own that has long gone out of the caches. It costs about twice as much, and thrice on a busy machine.

    In rounds with and without watches, and of each the best, since machines have their moods.
    """
    puts = 400 if tasks == 1 else 4000
    without: list[float] = []
    watched: list[float] = []
    async with Cluster("a") as cluster:
        store = cluster.store
        for first in range(0, WATCHES, 1000):
            await store.update(dict.fromkeys(KEYS[first : first + 1000], 0))
        for _ in range(3):
            without += [await cost_us(store, tasks, puts, keys) for _ in range(5)]
            async with trio.open_nursery() as watches:
                for key in KEYS:
                    await watches.start(watch, store, key)
                watched += [await cost_us(store, tasks, puts, keys) for _ in range(5)]
                watches.cancel_scope.cancel()
            gc.collect()
    ratio = min(watched) / min(without)
    assert ratio <= limit, f"{min(without):.1f} µs without, {min(watched):.1f} µs with watches"


async def test_a_watch_takes_little_memory() -> None:
    """Some 5 KB with the task that reads it, as Settings.watches_max says."""
    async with trio.open_nursery() as nursery:
        replicator = LocalReplicator(nursery)
        store = StoreOfOne(replicator, WatchHub(replicator))

        async def start(count: int) -> int:
            before = tracemalloc.get_traced_memory()[0]
            for key in KEYS[:count]:
                await nursery.start(watch, store, key)
            await trio.testing.wait_all_tasks_blocked()
            return tracemalloc.get_traced_memory()[0] - before

        tracemalloc.start()
        try:
            await start(1)
            taken = await start(1000)
        finally:
            tracemalloc.stop()
        assert taken / 1000 <= 6000
        nursery.cancel_scope.cancel()
