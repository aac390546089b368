"""Peers that were away while all others were replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from clusters import peer_of, running

from replikv import Settings


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("snapshots", [True, False])
async def test_a_peer_knows_none_of_those_that_are_there_now(
    autojump_clock: trio.abc.Clock, tmp_path: Path, snapshots: bool, durable: bool
) -> None:
    """It was away while every other member was replaced: those that are there know it, and it answers whoever dials it.

    Without a disk it finds out that it is known from before in the same way, and joins anew.
    """
    settings = Settings(trailing_entries=1) if snapshots else Settings()
    async with running("abc", disks=tmp_path if durable else None, settings=settings) as peers:
        await peers["c"].store.put("k", 0)
        await trio.sleep(1)
        await peers.kill("c")
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
        third = await peers.start("c")
        with trio.fail_after(20):
            await third.store.put("k", 20)
            await peers["e"].store.barrier()
        assert 20 == peers["e"].store["k"]
        assert {"c", "d", "e"} == set(third.status().members)
        await peers.converge()
        await trio.sleep(1)
        assert {} == peer_of(third)._alive.whereabouts._newer
