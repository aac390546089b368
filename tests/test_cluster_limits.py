"""Limits that all replicas keep: each is reached, on a follower too; what makes the state smaller always works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from clusters import HEALED_S, Peers, id_of, open_sessions, peer_of, running

from replikv import Cluster, QuotaExceededError, Settings, Store, ValueTooLargeError
from replikv.machine.commands import encode_grant
from replikv.machine.envelope import CommandKind
from replikv.machine.governance import Limits
from replikv.peer.governor import limits_of
from replikv.store.refusal import refusal

Operation = Callable[[Store], Awaitable[object]]

WRITES: dict[str, Operation] = {
    "put": lambda store: store.put("new", "x" * 4000),
    "update": lambda store: store.update({"new": "x" * 4000, "other": 1}),
    "setdefault": lambda store: store.setdefault("new", "x" * 4000),
    "compare_and_set": lambda store: store.compare_and_set("k0", 0, "x" * 4000),
    "replace": lambda store: store.replace("new", "x" * 4000, revision=0),
}


async def a_follower(peers: Peers) -> Cluster:
    return (await peers.followers())[0]


def limits(cluster: Cluster) -> Limits:
    return peer_of(cluster).replica.governance.limits


@pytest.mark.parametrize("name", WRITES)
async def test_bytes_of_the_state(autojump_clock: trio.abc.Clock, name: str) -> None:
    """Every write that would grow it over the limit is refused, and changes nothing; deletes and shrinking go on."""
    async with running(state_bytes_max=8_000) as peers:
        for cluster in (await peers.leader(), await a_follower(peers)):
            store = cluster.store
            for number in range(20):
                await store.put(f"k{number}", number)
            revision = store.revision
            with pytest.raises(QuotaExceededError, match=r"at most 8000 \(state_bytes_max\): delete some"):
                await WRITES[name](store)
            assert revision == store.revision
            assert await store.delete("k19")
            assert 0 == await store.pop("k0")
            await store.put("k1", 7)  # no larger than it was
            assert 8 == await store.increment("k1")
            assert 18 == await store.delete_prefix("k")
            await WRITES[name](store) if name != "compare_and_set" else await store.put("k0", "x" * 4000)
            await store.delete_prefix("")
        await peers.converge()


async def test_a_map_that_is_over_its_limit_may_shrink(autojump_clock: trio.abc.Clock) -> None:
    """The limit was lowered under it: a put that is smaller than what it replaces works, a larger one does not."""
    async with running(state_bytes_max=20_000) as peers:
        leader = await peers.leader()
        await leader.store.put("big", "x" * 15_000)
        leader = await lead_with(peers, state_bytes_max=5_000)
        for cluster in peers.all:
            assert 5_000 == limits(cluster).state_bytes
        await leader.store.put("big", "x" * 12_000)
        for larger in ("big", "other"):
            with pytest.raises(QuotaExceededError, match="state_bytes_max"):
                await leader.store.put(larger, "x" * 13_000)
        await leader.store.put("big", "small")
        await leader.store.put("other", "x" * 1_000)
        await peers.converge()


async def lead_with(peers: Peers, **changes: int) -> Cluster:
    """Another peer, with other settings, joins and leads; what it asks for holds everywhere then."""
    settings = Settings(**changes)  # type: ignore[arg-type]  # by name
    cluster = await peers.join("n", settings=settings)
    await peers.roles("abcn")
    await cluster.transfer_leadership("n")
    with trio.fail_after(HEALED_S):
        while {limits_of(settings)} != {limits(other) for other in peers.all}:  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.05)
    return cluster


async def test_keys(autojump_clock: trio.abc.Clock) -> None:
    """A new key is refused, alone or among others; old ones are set, and who deletes one may put another."""
    async with running(keys_max=3) as peers:
        for cluster in (await peers.leader(), await a_follower(peers)):
            store = cluster.store
            await store.update({"a": 1, "b": 1, "c": 1})
            for write in (store.put("d", 1), store.update({"a": 2, "d": 1}), store.increment("d")):
                with pytest.raises(
                    QuotaExceededError, match=r"3 keys, and no room for 1 more with at most 3 \(keys_max\)"
                ):
                    await write
            await store.update({"a": 3, "b": 3})
            await store.delete("a")
            await store.put("d", 1)
            assert {"b": 3, "c": 1, "d": 1} == dict(store.local)
            await store.delete_prefix("")
        await peers.converge()


async def test_leases(autojump_clock: trio.abc.Clock) -> None:
    """One more than there may be is refused; there is room again when one ends."""
    async with running(leases_max=2) as peers:
        for cluster in (await peers.leader(), await a_follower(peers)):
            await cluster.store.put("ready", 1)
            peer, replica = peer_of(cluster), peer_of(cluster).replica
            while (result := await peer.propose(CommandKind.MAP, encode_grant(60_000)))[0] == 0:
                assert len(replica.map.leases) <= 2
            with pytest.raises(QuotaExceededError, match=r"there are 2 leases already \(leases_max\)"):
                raise refusal(result)
        await peers.converge()


async def test_sessions(autojump_clock: trio.abc.Clock) -> None:
    """The table never has more; a peer whose session went goes on with another one, and loses nothing."""
    async with running(sessions_max=4) as peers:
        for cluster in peers.all:
            await cluster.store.increment("n")
        for number in range(3):
            await open_sessions(await peers.leader(), 10)
            for cluster in peers.all:
                await cluster.store.barrier()
                assert 4 == len(peer_of(cluster).replica.sessions.table)
            for place, cluster in enumerate(peers.all):
                assert 3 * (number + 1) + place + 1 == await cluster.store.increment("n")
        await peers.converge()


async def test_fewer_sessions_than_there_are(autojump_clock: trio.abc.Clock) -> None:
    """A lower limit evicts those that were used least recently, at once and on every replica alike."""
    async with running() as peers:
        await peers["a"].store.put("n", 0)
        await open_sessions(await peers.leader(), 50)
        await peers["a"].store.put("n", 1)
        await lead_with(peers, sessions_max=5)
        tables = [list(peer_of(cluster).replica.sessions.table) for cluster in peers.all]
        assert 5 == len(tables[0])
        assert [tables[0]] * 4 == tables
        assert 2 == await peers["a"].store.increment("n")
        await peers.converge()


async def test_operations_in_one_command(autojump_clock: trio.abc.Clock) -> None:
    """What all replicas keep counts, not the settings of who writes: neither lower nor higher ones."""
    async with running(operations_per_command_max=10) as peers:
        await peers.leader()
        other = await peers.join("d", settings=Settings(operations_per_command_max=1000))
        for cluster in (peers["a"], other):
            await cluster.store.update({f"k{number}": 0 for number in range(10)})
            with pytest.raises(ValueTooLargeError, match="at most 10 are atomic"):
                await cluster.store.update({f"k{number}": 0 for number in range(11)})
            await cluster.store.update({f"m{number}": 0 for number in range(10)})
            before = cluster.store.revision
            assert 20 == await cluster.store.delete_prefix("")
            assert before + 2 == cluster.store.revision
        await peers.converge()


async def test_who_leads_next_has_its_say(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Limits follow the settings of the leader, and outlive restarts from log and snapshot."""
    async with running(disks=tmp_path, keys_max=5) as peers:
        await peers["a"].store.put("k", 1)
        assert {5} == {limits(cluster).keys for cluster in peers.all}
        await peers["b"].snapshot()
        for node_id in "abc":
            await peers.shutdown(node_id)
            await peers.restart(node_id)
        leader = await peers.leader()
        await leader.store.put("k", 2)
        assert {5} == {limits(cluster).keys for cluster in peers.all}
        node_id, other = id_of(leader), id_of(peers.without(leader)[0])
        await peers.shutdown(node_id)
        await peers.restart(node_id, settings=Settings(keys_max=1))
        await peers[node_id].store.barrier()
        assert {5} == {limits(cluster).keys for cluster in peers.all}
        await peers[other].transfer_leadership(node_id)
        await peers[other].store.put("k", 3)
        await peers.converge()
        assert {1} == {limits(cluster).keys for cluster in peers.all}
        with pytest.raises(QuotaExceededError, match="keys_max"):
            await peers["b"].store.put("other", 1)
        await peers.converge()


async def test_the_doctor_warns_in_time(autojump_clock: trio.abc.Clock) -> None:
    """At nine tenths of the bytes and of the keys; below that not a word."""
    async with running(keys_max=10, state_bytes_max=10_000) as peers:
        store = peers["a"].store
        for number in range(8):
            await store.put(f"k{number}", 0)
        assert [] == peers["a"].doctor()
        await store.put("k8", 0)
        (words,) = peers["a"].doctor()
        assert words.startswith("the map has 9 of 10 keys: puts of new ones will be refused")
        await store.delete("k0")
        await store.put("k1", "x" * 7_800)
        (words,) = peers["a"].doctor()
        assert words.startswith("the map takes 9.2 KiB of 9.8 KiB: puts that make it larger will be refused")
