"""Peers that were away while all others were replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from clusters import addresses, running

from replikv import Cluster, MemoryTransport, Settings


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("snapshots", [True, False])
async def test_a_peer_knows_none_of_those_that_are_there_now(
    autojump_clock: trio.abc.Clock, tmp_path: Path, durable: bool, snapshots: bool
) -> None:
    """It was away while every other member was replaced: those that are there know it, and it answers whoever dials it.

    Without a disk it finds out that it is known from before in the same way, and joins anew.
    """
    settings = Settings(trailing_entries=1) if snapshots else Settings()
    data_dir = tmp_path / "c" if durable else None
    async with running("abc", absent="c", settings=settings) as peers:
        arguments = {"members": addresses("abc"), "data_dir": data_dir, "settings": settings}
        async with Cluster("c", transport=MemoryTransport(peers.network), **arguments) as third:  # type: ignore[arg-type]
            await third.store.put("k", 0)
            await trio.sleep(1)
        await peers.join("d")
        await peers.join("e", via="d")
        await peers.roles("abcde")
        for gone in "ab":
            await peers["d"].remove_member(gone)
        await trio.sleep(5)
        for number in range(20):
            await peers["d"].store.put("k", number)
            if snapshots:
                await peers[peers["d"].status().leader or "d"].snapshot()
        async with Cluster("c", transport=MemoryTransport(peers.network), **arguments) as third:  # type: ignore[arg-type]
            with trio.fail_after(20):
                await third.store.put("k", 20)
                await peers["e"].store.barrier()
            assert 20 == peers["e"].store["k"]
            assert {"c", "d", "e"} == set(third.status().members)
