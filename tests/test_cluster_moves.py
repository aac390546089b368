"""Peers that come back under another address: the others learn it from them, and find them there from then on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import trio
from clusters import record_of, running

from replikv import Cluster, Settings


async def test_a_peer_that_has_moved_is_found(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """By all, at once and for good; whoever is started later dials the new address."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await peers.shutdown("b")
        await peers.restart("b", address="elsewhere")
        assert 1 == await peers["b"].store.get("k")
        await trio.sleep(2)
        assert ["elsewhere"] * 3 == [cluster.status().members["b"].address for cluster in peers.all]
        await peers.shutdown("a")
        await peers.restart("a")
        assert "elsewhere" == record_of(peers["a"], "b").address
        await peers["a"].store.put("k", 2)
        # Without the third, these two have to hear each other.
        await peers.kill("c")
        await peers["a"].store.put("k", 3)
        assert 3 == await peers["b"].store.get("k")
        # Where it went is on its disk: nobody has to say it again.
        await peers.shutdown("b")
        await peers.restart("b")
        assert 3 == await peers["b"].store.get("k")


async def test_all_move_one_after_the_other(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """And leadership with them; in the end nobody is where he was, and everything is still there."""
    async with running("abc", disks=tmp_path) as peers:
        for number, node_id in enumerate("abc"):
            await peers["a"].store.put(f"k{number}", number)
            await peers.shutdown(node_id)
            await peers.restart(node_id, address=f"new-{node_id}")
            await peers[node_id].store.put(node_id, number)
            await trio.sleep(2)
        for cluster in peers.all:
            assert {node_id: f"new-{node_id}" for node_id in "abc"} == {
                node_id: member.address for node_id, member in cluster.status().members.items()
            }
            assert [0, 1, 2] == [await cluster.store.get(f"k{number}") for number in range(3)]
        for node_id in "abc":
            await peers.shutdown(node_id)
        for node_id in "abc":
            await peers.restart(node_id)
        assert 2 == await peers["a"].store.get("c")
        await peers.converge()


async def test_a_learner_moves_to_where_another_was(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """An address that is free again belongs to whoever comes there."""
    async with running("abc", disks=tmp_path) as peers:
        await peers.join("d", learner=True)
        await peers.shutdown("b")
        await peers.restart("b", address="elsewhere")
        await trio.sleep(2)
        await peers.shutdown("d")
        await peers.restart("d", address="memory-b")
        await peers["d"].store.put("k", 1)
        await trio.sleep(2)
        assert "memory-b" == peers["a"].status().members["d"].address
        assert 1 == await peers["b"].store.get("k")


async def test_two_swap_their_addresses(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Each finds the other where it was itself: no frame goes to the wrong one."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        for node_id in "bc":
            await peers.shutdown(node_id)
        await peers.restart("b", address="memory-c")
        await peers.restart("c", address="memory-b")
        await trio.sleep(5)
        await peers["a"].transfer_leadership("a")  # as long as it does not lead, these two find each other by chance
        await trio.sleep(5)
        await peers["b"].store.put("k", 2)
        assert ["memory-c", "memory-b"] == [peers["a"].status().members[node_id].address for node_id in "bc"]
        assert [2, 2, 2] == [await cluster.store.get("k") for cluster in peers.all]


async def test_only_what_is_bound_changes(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Behind a proxy: the others dial what they dialed before, and the log says nothing."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(5)
        await peers.shutdown("c")
        await peers.restart("c", listen="inside")
        peers.network._listening["memory-c"] = peers.network._listening["inside"]
        assert 1 == await peers["c"].store.get("k")
        before = (await peers.leader()).status().last_index
        await trio.sleep(10)
        assert before == (await peers.leader()).status().last_index
        assert ["memory-c"] * 3 == [cluster.status().members["c"].address for cluster in peers.all]
        del peers.network._listening["memory-c"]


# -- over TCP ----------------------------------------------------------------------------------------------------------


def free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@contextlib.asynccontextmanager
async def opened(cluster: Cluster) -> AsyncIterator[Cluster]:
    with trio.fail_after(20):
        async with cluster:
            yield cluster


async def test_a_peer_moves_over_tcp(tmp_path: Path) -> None:
    """With its data directory, to another port: it is dialed there; and one that joins is told where it is by now."""
    settings = Settings(heartbeat_interval_s=0.02, election_timeout_s=0.3, request_timeout_s=5.0)
    a, b, moved, c = free_addresses(4)
    members = {"a": a, "b": b}

    def make(node_id: str, **arguments: object) -> Cluster:
        return Cluster(node_id, data_dir=tmp_path / node_id, settings=settings, **arguments)  # type: ignore[arg-type]  # by name

    async with opened(make("a", members=members)) as first:
        async with opened(make("b", members=members)) as second:
            await second.store.put("k", 1)
        async with opened(make("b", address=moved)) as second:
            await second.store.put("k", 2)
            with trio.fail_after(10):
                while moved != first.status().members["b"].address:  # noqa: ASYNC110  # nothing to wait on
                    await trio.sleep(0.02)
            async with opened(make("c", address=c, join=[moved])) as third:
                assert 2 == third.store["k"]
                assert {"a": a, "b": moved, "c": c} == {
                    node_id: member.address for node_id, member in third.status().members.items()
                }
                await third.store.put("k", 3)
        async with opened(make("b")) as second:
            assert 3 == await second.store.get("k")


async def test_two_of_three_move_at_once(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """They know only each other's old addresses; the third passes on where each of them is, whoever leads."""
    async with running(disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        for node_id in "bc":
            await peers.shutdown(node_id)
        for node_id in "bc":
            await peers.restart(node_id, address=f"new-{node_id}")
        await trio.sleep(5)
        for node_id in "bca":  # whoever of them leads, it reaches the others
            await peers["a"].transfer_leadership(node_id)
            for other in "abc":
                await peers[other].store.put("k", other)
        await trio.sleep(2)
        for cluster in peers.all:
            assert ["memory-a", "new-b", "new-c"] == [member.address for member in cluster.status().members.values()]
