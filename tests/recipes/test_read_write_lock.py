"""The lock of many readers or one writer: nobody starves."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import pytest
import trio
from clusters import id_of, running
from contending import EXPIRED_S, TTL_S, Stays, left_behind, stay_until, until_in, until_keys

from replikv import Claim, Cluster, Put, Store
from replikv.recipes import ReadWriteLock

KEYS = "read-write-locks/job/"


def block_of(store: Store, name: str) -> AbstractAsyncContextManager[Claim]:
    """A writer if the name begins with "w", else a reader."""
    lock = ReadWriteLock(store, "job", ttl_s=TTL_S)
    return lock.write() if name.startswith("w") else lock.read()


async def test_readers_share_it_and_a_writer_has_it_alone_in_the_order_in_which_they_came(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Readers that come while a writer waits, wait behind it: so it does not starve. Nor do they, behind the next."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        names = ["r1", "r2", "w1", "r3", "r4", "w2", "w3", "r5"]
        leave = {name: trio.Event() for name in names}
        async with trio.open_nursery() as nursery:
            for number, name in enumerate(names):
                block = block_of(peers["abc"[number % 3]].store, name)
                nursery.start_soon(stay_until, block, stays, name, leave[name])
                await until_keys(peers["a"].store, KEYS, number + 1)
            for group in (["r1", "r2"], ["w1"], ["r3", "r4"], ["w2"], ["w3"], ["r5"]):
                await until_in(stays, *group)
                await trio.sleep(0.5)
                await until_in(stays, *group)
                for name in reversed(group):
                    leave[name].set()
                    await trio.sleep(0.5)
        await trio.sleep(1.0)
        assert ([], 0) == left_behind(peers["a"])
    writers = [stay for stay in stays.done if stay.name.startswith("w")]
    for (
        writer
    ) in writers:  # its token is greater than those of all who left before it, and less than those who came after
        assert all(
            (stay.token < writer.token) == (stay.left <= writer.came) for stay in stays.done if stay is not writer
        )


@pytest.mark.parametrize(("lost", "next_in"), [("w", ["r1", "r2"]), ("r", ["w1"])])
async def test_the_next_ones_get_it_when_a_holder_is_cut_off(
    autojump_clock: trio.abc.Clock, lost: str, next_in: list[str]
) -> None:
    """A writer or a reader, after its time."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        holder, other = await peers.followers()
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay_until, block_of(holder.store, lost), stays, "lost", leave)
            await until_in(stays, "lost")
            for name in next_in:
                nursery.start_soon(stay_until, block_of(other.store, name), stays, name, leave)
            await until_keys(other.store, KEYS, 1 + len(next_in))
            peers.network.isolate(id_of(holder))
            with trio.fail_after(EXPIRED_S):
                await until_in(stays, *next_in)
            peers.network.heal()
            leave.set()


async def test_a_writer_that_gives_up_lets_the_readers_behind_it_in(autojump_clock: trio.abc.Clock) -> None:
    """Cancelled in the line, it is in nobody's way."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        store = peers["a"].store
        leave = trio.Event()
        impatient = trio.CancelScope()

        async def write_impatiently() -> None:
            with impatient:
                await stay_until(block_of(store, "w"), stays, "w", leave)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay_until, block_of(store, "r1"), stays, "r1", leave)
            await until_keys(store, KEYS, 1)
            nursery.start_soon(write_impatiently)
            await until_keys(store, KEYS, 2)
            nursery.start_soon(stay_until, block_of(store, "r2"), stays, "r2", leave)
            await until_keys(store, KEYS, 3)
            await until_in(stays, "r1")
            impatient.cancel()
            await until_in(stays, "r1", "r2")
            leave.set()


async def test_attempts_do_not_wait() -> None:
    """Readers get it beside readers; whoever would have to wait gets trio.WouldBlock."""
    async with Cluster("a") as cluster:
        one, two, three = (ReadWriteLock(cluster.store, "job") for _ in range(3))
        async with one.read_nowait(), two.read_nowait():
            with pytest.raises(trio.WouldBlock):
                async with three.write_nowait():
                    raise AssertionError("nobody may come here")
        async with one.write_nowait() as held:
            for attempt in (two.read_nowait, two.write_nowait):
                with pytest.raises(trio.WouldBlock):
                    async with attempt():
                        raise AssertionError("nobody may come here")
            assert (await cluster.store.txn([held.fence], [Put("key", 1)])).succeeded
        assert (["key"], 0) == left_behind(cluster)


async def test_a_task_that_reads_may_neither_read_nor_write_inside() -> None:
    """A writer that came between would wait for the one, and the other for that writer."""
    async with Cluster("a") as cluster:
        lock = ReadWriteLock(cluster.store, "job")
        for enter in (lock.read, lock.write):
            async with lock.read():
                with pytest.raises(RuntimeError, match="has read-write-locks/job already"):
                    async with enter():
                        raise AssertionError("nobody may come here")
