"""The promises that matter most, on a real cluster of one: log, driver, sessions and all."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from replikv import ABSENT, Change, Cluster, ClusterClosedError, Store
from replikv.store import reads, store


async def test_operations_agree_with_their_replica() -> None:
    """Each is applied when it returns, once."""
    async with Cluster("a") as cluster:
        store = cluster.store
        assert await store.put("a", (1,)) == 1
        assert await store.update({"b": 2, "c": 3}) == 2
        assert await store.increment("b") == 3
        assert await store.setdefault("c", 4) == 3
        assert await store.compare_and_set("d", ABSENT, 5)
        assert await store.replace("d", 6, revision=store.entry("d").mod_revision)
        assert await store.pop("c") == 3
        assert await store.get("d") == 6
        assert await store.get("d", revision=4) == 5
        assert await store.delete("a")
        assert await store.delete_prefix("") == 2
        assert dict(store) == {}
        assert store.revision == 8
    with pytest.raises(ClusterClosedError):
        await store.put("a", 1)
    with pytest.raises(ClusterClosedError):
        store["a"]


async def test_thousands_of_concurrent_puts_are_watched_in_order() -> None:
    """Each one once; a slow reader costs the others nothing."""
    seen: list[Change] = []
    async with Cluster("a") as cluster, cluster.store.watch(buffer=5000) as changes, cluster.store.watch(buffer=1):
        async with trio.open_nursery() as puts:
            for number in range(3000):
                puts.start_soon(cluster.store.put, f"k{number}", number)
        while len(seen) < 3000:
            seen.append(await anext(changes))
    assert [change.revision for change in seen] == list(range(1, 3001))
    assert {change.value for change in seen} == set(range(3000))


async def test_watch_goes_on_after_a_restart(tmp_path: Path) -> None:
    """With since=, from the log and from a snapshot alike."""
    async with Cluster("a", data_dir=tmp_path) as cluster:
        for number in range(1, 6):
            await cluster.store.put("key", number)
        await cluster.snapshot()
        await cluster.store.put("key", 6)
    async with Cluster(data_dir=tmp_path) as cluster:
        await cluster.store.barrier()
        async with cluster.store.watch(since=2) as changes:
            await cluster.store.put("key", 7)
            assert [3, 4, 5, 6, 7] == [(await anext(changes)).value for _ in range(5)]


async def test_leaving_the_cluster_ends_watches_and_subscriptions() -> None:
    """A reader outside the block gets ClusterClosedError, no hang."""
    seen: list[Change] = []
    ended: list[Exception] = []

    async def read(store: Store, started: trio.Event) -> None:
        try:
            async with store.watch() as changes:
                started.set()
                await anext(changes)
                await anext(changes)
        except ClusterClosedError as exc:
            ended.append(exc)

    started = trio.Event()
    async with trio.open_nursery() as readers, Cluster("a") as cluster:
        readers.start_soon(read, cluster.store, started)
        await started.wait()
        cluster.store.subscribe(seen.append)
        await cluster.store.put("a", 1)
        await trio.testing.wait_all_tasks_blocked()
    assert len(seen) == len(ended) == 1


async def test_examples_in_the_docstrings() -> None:
    """They say what happens."""
    async with Cluster("a") as cluster:
        await cluster.store.update({"feature/dark-mode": True, "feature/search": "beta"})
        finder = doctest.DocTestFinder(exclude_empty=True)
        runner = doctest.DocTestRunner()
        modules: list[Any] = [reads, store]
        for module in modules:
            for example in finder.find(module, globs={"store": cluster.store}):
                runner.run(example)
        assert runner.tries >= 7
        assert runner.failures == 0


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with structlog.testing.capture_logs():
        yield
