"""The counter: no count is lost, and none is given out twice."""

from __future__ import annotations

import pytest
import trio
from clusters import running

from replikv import Cluster, EncodingError
from replikv.recipes import Counter


async def test_processes_count_together_across_changes_of_leader(autojump_clock: trio.abc.Clock) -> None:
    """Each increment gets a number of its own, and all of them are in the sum."""
    numbers: list[int] = []
    async with running() as peers:

        async def count(node_id: str) -> None:
            counter = Counter(peers[node_id].store, "orders")
            for _ in range(50):
                numbers.append(await counter.increment())
                assert counter.local >= numbers[-1]
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            for node_id in "abc":
                nursery.start_soon(count, node_id)
            for _ in range(3):
                await trio.sleep(0.5)
                await (await peers.leader()).transfer_leadership()
        assert list(range(1, 151)) == sorted(numbers)
        assert 150 == await Counter(peers["a"].store, "orders").get()


async def test_it_goes_down_and_begins_again() -> None:
    """Nobody has to make it; reset says what it was."""
    async with Cluster("a") as cluster:
        counter = Counter(cluster.store, "orders")
        assert (0, 0) == (counter.local, await counter.get())
        assert 10**30 == await counter.increment(10**30)
        assert 10**30 - 2 == await counter.increment(-2)
        assert ["counters/orders"] == list(cluster.store.keys()) == [counter.key]
        assert 10**30 - 2 == await counter.reset()
        assert (0, 0) == (await counter.reset(), counter.local)
        with pytest.raises(EncodingError, match="adds an int"):
            await counter.increment(0.5)  # type: ignore[arg-type]  # what is tested
