"""All machines of a cluster are replaced, one by one, addresses included, while clients go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Group, running_processes

KEYS = 6


async def replace_by_newcomer(group: Group, old: str, new: str) -> None:
    """Another machine under another name: it joins, until it votes; then the old one is removed, by itself."""
    others = sorted(set(group.running) - {old})
    await group.join(new, via=others)
    group.work(new, keys=KEYS)
    await group.wait_roles([*others, old, new])
    await group[old].call("remove_member", node_id=old)
    await group.forget(old)
    await group.wait_roles([*others, new])


async def replace_by_copy(group: Group, node_id: str) -> None:
    """Another machine under the same name: the directory is copied, and the peer tells the others its address."""
    if node_id == await group.leader():
        await group.kill(node_id)
    else:
        await group.shut_down(node_id)
    await group.move(node_id)
    group.work(node_id, keys=KEYS)
    await group.wait_addresses()


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.long)])
async def test_three_machines_are_replaced_by_others(tmp_path: Path, rounds: int) -> None:
    """New node ids: each joins, and when it votes the old one goes. What clients of all six saw is linearizable."""
    async with running_processes(tmp_path) as group:
        group.work("abc", keys=KEYS)
        old, new = "abc", "def"
        for _ in range(rounds):
            for leaving, coming in zip(old, new, strict=True):
                await replace_by_newcomer(group, leaving, coming)
            old, new = new, old
        assert set(old) == set(group.running)
        history = await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
    assert set("abcdef") == {str(operation.client)[0] for operation in history}


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.long)])
async def test_three_machines_move(tmp_path: Path, rounds: int) -> None:
    """The same node ids and data, at other addresses: nothing is lost, and all find each other after a full restart.

    By then no address of the start is left. Leaders are killed, the others shut down, before their data is copied. The
    history that clients saw is linearizable.
    """
    async with running_processes(tmp_path) as group:
        group.work("abc", keys=KEYS)
        for _ in range(rounds):
            for node_id in "abc":
                await replace_by_copy(group, node_id)
        await group.kill("abc")
        await group.start("abc")
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
