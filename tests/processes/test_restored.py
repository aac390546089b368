"""Processes that are backed up under load, and a cluster of three that is made of the backup."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from processes import CommandError, running_processes

from replikv.cli import main


async def test_a_backup_under_load_becomes_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was acknowledged before the backup is in the new cluster, which works like any; the old one goes on."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    async with running_processes(tmp_path / "old") as old:
        leader = await old.leader()
        follower = next(node_id for node_id in "abc" if node_id != leader)
        await old[leader].call("load", clients=8, prefix="key")
        await trio.sleep(0.5)
        acknowledged = dict(old.acknowledged)
        assert len(acknowledged) == 8
        await old[follower].call("backup", path=str(tmp_path / "the.backup"))
        await old[leader].call("stop_load")

        async with running_processes(tmp_path / "new", "") as new:
            await new.restore(tmp_path / "the.backup", "abc")
            await new.leader()
            for node_id in "abc":
                items = await new[node_id].call("items")
                lost = {key: n for key, n in acknowledged.items() if items.get(key, 0) < n}
                assert {} == lost
            await new["b"].call("put", key="new", value=1)
            await new.kill("a")
            await new["c"].call("put", key="new", value=2)
            await new.start("a")
            assert 2 == await new["a"].call("get", key="new")
            assert 1 == len(await new.digests())
        assert None is await old[leader].call("get", key="new")
        with pytest.raises(CommandError):
            await old[leader].call("backup", path=str(tmp_path / "missing" / "the.backup"))
    assert 0 == main(["restore", str(tmp_path / "the.backup"), "--check"])
    assert "is whole" in capsys.readouterr().out
