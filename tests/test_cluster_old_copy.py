"""An older copy of a disk, put back under its peer: it has forgotten what the peer has promised since."""

from __future__ import annotations

import shutil
from pathlib import Path

import trio
from clusters import id_of, running


async def test_an_old_copy_of_a_disk_is_recognised(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """The leader knows what it had acknowledged: the peer ends before it has a vote, and the others go on."""
    async with running(disks=tmp_path) as peers:
        leader = await peers.leader()
        follower = id_of((await peers.followers())[0])
        await leader.store.put("key", 1)
        await peers.converge()
        await peers.shutdown(follower)
        shutil.copytree(tmp_path / follower, tmp_path / "copy")
        await peers.restart(follower)
        for value in range(20):
            await leader.store.put("key", value)
        await peers.converge()
        await peers.shutdown(follower)
        shutil.rmtree(tmp_path / follower)
        shutil.copytree(tmp_path / "copy", tmp_path / follower)
        term = leader.status().term

        peers.may_diverge = True
        await peers.restart(follower)
        await trio.sleep(20.0)

        assert [follower] == list(peers.diverged)
        assert "as an older copy of a disk has; remove this peer" in str(peers.diverged[follower])
        assert term == leader.status().term
        assert 19 == await leader.store.get("key")
