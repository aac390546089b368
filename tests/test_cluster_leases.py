"""Leases on whole clusters: kept alive by whichever leader, given up in time, and ended by the leader alone."""

from __future__ import annotations

import pytest
import trio
from clusters import id_of, running

from replikv import LeaseExpiredError


async def test_keys_vanish_when_the_block_ends(autojump_clock: trio.abc.Clock) -> None:
    """On every peer; within the block they stay, for many times the time to live."""
    async with running() as peers:
        holder = (await peers.followers())[0]
        async with holder.store.lease(ttl_s=3.0) as lease:
            await holder.store.put("key", 1, lease=lease)
            await trio.sleep(60)
            assert 1 == holder.store["key"]
            assert lease.id == holder.store.entry("key").lease
            assert 1.5 <= lease.remaining_s <= 2.7
        assert "key" not in holder.store
        await peers.converge()
        assert [{}] * 3 == [dict(cluster.store.local) for cluster in peers.all]


async def test_a_holder_that_is_cut_off_stops_before_the_cluster_lets_go(autojump_clock: trio.abc.Clock) -> None:
    """Its body is cancelled, and the block raises, while the others still see the key; then they see it go."""
    async with running() as peers:
        holder = (await peers.followers())[0]
        other = peers.without(holder)[0]
        with pytest.raises(LeaseExpiredError, match="could not be kept alive"):  # noqa: PT012  # the block is the point
            async with holder.store.lease(ttl_s=5.0) as lease:
                await holder.store.put("key", 1, lease=lease)
                await trio.sleep(10)
                peers.network.isolate(id_of(holder))
                cut = trio.current_time()
                await trio.sleep_forever()
        stopped = trio.current_time()
        assert 2.5 <= stopped - cut <= 4.5
        assert 1 == other.store["key"]
        with trio.fail_after(3.0):
            while "key" in other.store:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.05)
        assert 0.0 == lease.remaining_s
