"""Peers that join a cluster that runs: with and without a disk, interrupted, let in late, and refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from clusters import id_of, membership_of, peer_of, record_of, running

from replikv import (
    Cluster,
    ClusterClosedError,
    ConfigurationError,
    MemoryNetwork,
    MemoryTransport,
    Settings,
    WrongClusterError,
)
from replikv.peer.joiner import Joiner
from replikv.peer.requests import JoinRequest, encode_request
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Hello

# -- with a disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["the same command line", "the directory alone"])
async def test_who_has_joined_goes_on_with_its_disk(autojump_clock: trio.abc.Clock, tmp_path: Path, again: str) -> None:
    """It is the same peer after a restart, and asks nobody: whom it was to ask may be gone by then."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        joined = await peers.join("d")
        assert 1 == joined.store["k"]
        await peers.roles("abcd")
        before = peer_of(joined).identity
        await peers.shutdown("d")
        await peers["b"].store.put("k", 2)
        if again == "the same command line":
            back = await peers.join("d", via="x")
        else:
            back = await peers.restart("d")
        assert before == peer_of(back).identity
        assert 2 == await back.store.get("k")
        await peers.roles("abcd")
        await peers.converge()


async def test_a_whole_cluster_grown_from_one_restarts(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Each from its directory alone: all of them know all of them."""
    async with running("a", disks=tmp_path) as peers:
        await peers.join("b")
        await peers.join("c", via="b")
        await peers.roles("abc")
        await peers["c"].store.put("k", 1)
        cluster_id = peers["a"].status().cluster_id
        for node_id in "abc":
            await peers.shutdown(node_id)
        for node_id in "abc":
            assert cluster_id == (await peers.restart(node_id)).status().cluster_id
        assert 1 == await peers["a"].store.get("k")
        await peers.roles("abc")


async def test_who_crashes_while_joining_is_known_again(
    autojump_clock: trio.abc.Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between having been added and having the state: it comes with the same incarnation, and is let in."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        with monkeypatch.context() as patch, trio.CancelScope() as crash:

            async def crashes(*_: object) -> None:
                crash.cancel()
                await trio.sleep_forever()

            patch.setattr("replikv.peer.joiner.receive_first", crashes)
            await peers.join("d")
        assert crash.cancelled_caught
        assert not (tmp_path / "d" / "meta").exists()
        with trio.fail_after(5):
            while "d" not in membership_of(peers["b"]).ids:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.1)
        incarnation = record_of(peers["b"], "d").incarnation
        assert incarnation
        await trio.sleep(20)  # as a learner it costs nobody anything
        joined = await peers.join("d", via="b")
        assert incarnation == peer_of(joined).identity.incarnation
        assert 1 == joined.store["k"]
        await peers.roles("abcd")


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_a_joiner_waits_for_a_member_that_is_cut_off(autojump_clock: trio.abc.Clock) -> None:
    """It says what it waits for, once, and gets in when the member hears the leader again."""
    async with running("abc") as peers, trio.open_nursery() as nursery:
        await peers["a"].store.put("k", 1)
        follower = id_of((await peers.followers())[0])
        peers.network.partition({follower, "d"}, {*"abc"} - {follower})
        with structlog.testing.capture_logs() as logs:
            nursery.start_soon(lambda: peers.join("d", via=follower))
            await trio.sleep(120)
            said = [line["reason"] for line in logs if line["event"] == "waiting to join" and line["node"] == "d"]
        assert any("no leader; 2 of 3 voters cannot be reached" in reason for reason in said)
        assert len(said) < 20
        assert "d" not in membership_of(peers[follower]).ids
        peers.network.heal()
        await peers.roles("abcd", within_s=30)
        assert 1 == peers["d"].store["k"]


async def test_a_joiner_waits_while_nobody_answers(autojump_clock: trio.abc.Clock) -> None:
    """There may be nobody yet. It is let in when there is; and says all the while what it tries."""
    async with running("abc", absent="abc") as peers, trio.open_nursery() as nursery:
        with structlog.testing.capture_logs() as logs:
            nursery.start_soon(lambda: peers.join("d", via="ab"))
            await trio.sleep(600)
        said = [line for line in logs if line["event"] == "waiting to join"]
        assert ["memory-a", "memory-b"] == sorted({line["asked"] for line in said})
        assert all("nobody listens" in line["reason"] for line in said)
        assert 2 == len(said)  # not at every attempt
        for node_id in "abc":
            await peers.start(node_id)
        await peers.roles("abcd", within_s=30)


async def test_a_joiner_may_be_cancelled(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Nothing is left of it but the name of its directory: it may try again, or become something else."""
    async with running("a", disks=tmp_path) as peers:
        joining = peers.make_joining("d", via="x")
        with trio.move_on_after(30) as scope:
            async with joining:
                pytest.fail("entered")
        assert scope.cancelled_caught
        with pytest.raises(ClusterClosedError):
            joining.status()
        assert ["incarnation", "lock", "snapshots", "wal"] == sorted(p.name for p in (tmp_path / "d").iterdir())
        await peers.join("d")
        await peers.roles("ad")


async def test_a_joiner_may_be_shut_down(autojump_clock: trio.abc.Clock) -> None:
    """From another task, while it waits."""
    async with running("a") as peers, trio.open_nursery() as nursery:
        joining = peers.make_joining("d", via="x")

        async def run() -> None:
            with pytest.raises(RuntimeError, match="started"):
                await nursery.start(joining.run)

        nursery.start_soon(run)
        await trio.sleep(5)
        with trio.fail_after(5):
            await joining.shutdown()


async def test_ten_join_at_once(autojump_clock: trio.abc.Clock) -> None:
    """They wait in line, and get in one after the other; as many as are wanted become voters."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        async with trio.open_nursery() as nursery:
            for number, node_id in enumerate("defghijklm"):
                nursery.start_soon(functools.partial(peers.join, node_id, via="abc"[number % 3]))
        assert [1] * 13 == [cluster.store["k"] for cluster in peers.all]
        await trio.sleep(10)
        roles = [member.role for member in peers["m"].status().members.values()]
        assert (5, 8) == (roles.count("voter"), roles.count("learner"))
        await peers.converge()


async def test_the_leader_is_lost_while_somebody_joins(autojump_clock: trio.abc.Clock, monkeypatch: Any) -> None:
    """Whoever leads next adds it, or knows it already."""
    async with running("abcde") as peers, trio.open_nursery() as nursery:
        leader = id_of(await peers.leader())
        peers.network.set_faults(delay_s=(0.05, 0.05))
        nursery.start_soon(lambda: peers.join("x", via="".join({*"abcde"} - {leader})))
        await trio.sleep(0.5)
        await peers.kill(leader)
        with trio.fail_after(30):
            while "x" not in {id_of(cluster) for cluster in peers.all}:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.1)
        await peers["x"].store.put("k", 1)
        assert "x" in peers["x"].status().members


# -- what they say of themselves ---------------------------------------------------------------------------------------


async def test_the_membership_tells_where_each_runs_and_what(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Zone, version, and whether it keeps anything over a restart: of the first members, and of who joins."""
    async with running("ab", settings=Settings(zone="east")) as peers:
        await peers.join("c", settings=Settings(zone="west"), learner=True)
        await peers.join("d")
        await peers.leader()
        await trio.sleep(5)
        for cluster in peers.all:
            known = {node_id: dict(record.attributes) for node_id, record in membership_of(cluster).members.items()}
            version = known["a"]["version"]
            assert version
            assert {
                "a": {"commands": "1", "storage": "memory", "version": version, "zone": "east"},
                "b": {"commands": "1", "storage": "memory", "version": version, "zone": "east"},
                "c": {"commands": "1", "learner": "always", "storage": "memory", "version": version, "zone": "west"},
                "d": {"commands": "1", "storage": "memory", "version": version, "zone": "east"},
            } == known


async def test_what_a_peer_tells_after_a_restart_is_recorded(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """It has moved to another zone: the others spread their votes by that from then on."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await peers.shutdown("b")
        await peers.restart("b", settings=Settings(zone="north"))
        await trio.sleep(5)
        assert ["north"] * 3 == [record_of(cluster, "b").attributes["zone"] for cluster in peers.all]
        assert "storage" not in record_of(peers["a"], "b").attributes


# -- refusals ----------------------------------------------------------------------------------------------------------


async def refused(cluster: Cluster, error: type[Exception], match: str, *, within_s: float = 60.0) -> None:
    """The block of the cluster is left by this error, whether it was entered or not."""
    with trio.fail_after(within_s), pytest.raises(error, match=match):
        async with cluster:
            await trio.sleep_forever()


@pytest.mark.parametrize("taken", ["a", "b", "c", "d"])
async def test_a_node_id_that_is_taken(autojump_clock: trio.abc.Clock, taken: str) -> None:
    """By somebody who is there: leader, follower, or learner. He notices nothing."""
    async with running("abc") as peers:
        await peers.join("d", learner=True)
        await peers["a"].store.put("k", 1)
        await trio.sleep(2)
        before = [cluster.status().term for cluster in peers.all]
        via = "".join({*"abc"} - {taken})
        for asked in (via, taken):
            second = peers.make_joining(taken, via=asked, address="memory-second")
            await refused(second, WrongClusterError, rf"another process runs as '{taken}'.*give each its own node id")
        assert before == [cluster.status().term for cluster in peers.all]
        await peers[taken].store.put("k", 2)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.1, 1.0])
async def test_two_join_under_one_name(autojump_clock: trio.abc.Clock, seconds: float) -> None:
    """At about the same time: one of them is a member in the end, and the other is told."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        entered: list[str] = []
        errors: list[str] = []
        async with trio.open_nursery() as nursery:

            async def join(address: str) -> None:
                try:
                    async with peers.make_joining("d", address=address) as cluster:
                        entered.append(address)
                        await trio.sleep(60)
                        assert 1 == await cluster.store.get("k")
                        await cluster.store.put("by", address)
                except WrongClusterError as exc:
                    errors.append(str(exc))

            nursery.start_soon(join, "memory-one")
            await trio.sleep(seconds)
            nursery.start_soon(join, "memory-other")
        assert 1 == len(errors)
        assert "another process runs as 'd'" in errors[0]
        assert peers["a"].store["by"] in entered


async def test_the_address_of_another_member(autojump_clock: trio.abc.Clock) -> None:
    """Named, with what to do; nothing was changed."""
    async with running("abc") as peers:
        leader = await peers.leader()
        await leader.store.put("k", 1)
        joining = peers.make_joining("d", address="memory-b", listen="memory-d")
        await refused(joining, ConfigurationError, "the address 'memory-b' is that of 'b': give 'd' its own")
        with pytest.raises(ConfigurationError, match="the address 'memory-b' is that of 'b'"):
            await leader.add_member("d", "memory-b", learner=True)
        assert {*"abc"} == set(leader.status().members)


@pytest.mark.parametrize("by", ["members", "join"])
async def test_a_wiped_disk(autojump_clock: trio.abc.Clock, tmp_path: Path, by: str) -> None:
    """Under its old id it may not come back, however it tries; removed by hand, it may join anew."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(5)
        await peers.shutdown("b")
        await trio.sleep(5)
        wiped = tmp_path / "wiped"
        make = peers.make if by == "members" else peers.make_joining
        await refused(
            make("b", data_dir=wiped),
            WrongClusterError,
            r"'b' is (known|a member) with another data directory.*bring its disk back, or remove 'b'",
        )
        leader = await peers.leader()
        await leader.remove_member("b")
        joined = await peers.join("b", data_dir=tmp_path / "anew")
        assert 1 == joined.store["k"]
        await peers.roles("abc")


async def test_a_wiped_disk_that_was_named_again(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Removed and named again before it comes: the id is free for whoever comes with it first."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(5)
        await peers.shutdown("b")
        leader = await peers.leader()
        await leader.remove_member("b")
        await leader.add_member("b", "memory-b", learner=True)
        joined = await peers.join("b", via="ac", data_dir=tmp_path / "anew")
        assert 1 == joined.store["k"]
        await trio.sleep(5)
        assert [peer_of(joined).identity.incarnation] * 3 == [record_of(c, "b").incarnation for c in peers.all]
        await joined.store.put("k", 2)


async def test_a_disk_of_another_cluster(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """With join= it is told so by whom it asks; as of itself it is a member of something else."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        async with peers.make("d", members={"d": "memory-d"}) as other:
            await other.store.put("k", "other")
            cluster_id = other.status().cluster_id
        await refused(
            peers.make_joining("d"), WrongClusterError, f"it belongs to cluster {cluster_id}.*check join= and data_dir"
        )
        assert {*"abc"} == set(peers["a"].status().members)
        async with peers.make("d", members={"d": "memory-d"}) as other:
            assert "other" == other.store["k"]


async def test_members_and_join_contradict_each_other() -> None:
    """One begins a cluster, the other enters one."""
    with pytest.raises(ConfigurationError, match="join= and members= contradict each other"):
        Cluster("a", members={"a": "m-a"}, join=["m-b"])


# -- strangers ---------------------------------------------------------------------------------------------------------


async def test_who_calls_and_says_nothing_is_left(autojump_clock: trio.abc.Clock) -> None:
    """Few strangers are served at once: one that says nothing takes a place for a while only."""
    async with running("abc") as peers:
        await peers.leader()
        transport = MemoryTransport(peers.network)
        hello = Hello(cluster_id="", node_id="x", incarnation="x1")
        channel = await transport.call("memory-a", hello, Settings())
        with trio.fail_after(15), pytest.raises(trio.EndOfChannel):
            await channel.receive()


class ParticularTransport(MemoryTransport):
    """Understands no addresses but its own kind, as any over a network does."""

    def _check_address(self, address: str) -> None:
        if not address.startswith("memory-"):
            raise ConfigurationError(f"{address!r} is no address")


async def test_an_address_that_nobody_can_dial_harms_nobody_else(autojump_clock: trio.abc.Clock) -> None:
    """It stands in the log of every peer: none may fail over it, now or after a restart."""
    network = MemoryNetwork()
    async with (
        Cluster("a", address="memory-a", transport=ParticularTransport(network)) as a,
        Cluster("b", address="memory-b", join=["memory-a"], transport=ParticularTransport(network)) as b,
    ):
        await a.add_member("c", "nonsense", learner=True)
        await trio.sleep(5)
        async with Cluster(
            "d", address="more nonsense", listen="memory-d", join=["memory-a"], transport=ParticularTransport(network)
        ):
            await trio.sleep(5)
            await b.store.put("k", 1)
            assert {*"abcd"} == set(a.status().members)


@pytest.mark.parametrize(
    "request_frame",
    [
        b"A{}",
        b"\x00",
        b'A{"kind":"join","node_id":"\\ud800","incarnation":"d1","address":"x:1"}',
        encode_request(JoinRequest("x", "x1", "")),
    ],
)
async def test_a_stranger_that_talks_nonsense_harms_nobody(
    autojump_clock: trio.abc.Clock, request_frame: bytes
) -> None:
    """His channel is closed, and nothing is changed."""
    async with running("abc") as peers:
        leader = await peers.leader()
        await leader.store.put("k", 1)
        await trio.sleep(5)
        index = leader.status().last_index
        for node_id in "abc":
            transport = MemoryTransport(peers.network)
            hello = Hello(cluster_id="", node_id="x", incarnation="x1")
            channel = await transport.call(f"memory-{node_id}", hello, Settings())
            await channel.send(request_frame)
            with trio.fail_after(15), pytest.raises(trio.EndOfChannel):
                await channel.receive()
        assert index == leader.status().last_index
        await leader.store.put("k", 2)


async def test_a_joiner_says_how_long_it_waits_and_for_what(autojump_clock: trio.abc.Clock) -> None:
    """In words, for whoever looks into why a peer does not come up."""
    joiner = Joiner(MemoryTransport(), Settings(), node_id="d", address="m-d", listen="m-d", attributes={})
    assert joiner.diagnosis() == "joining for 0.0 s: no member has answered yet"
    with trio.move_on_after(5):
        await joiner.join(VolatileStorage(), ["m-a"])
    assert joiner.diagnosis() == "joining for 5.0 s: no call to 'm-a': nobody listens on 'm-a'"


async def test_the_doctor_knows_whom_one_would_not_have(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Another cluster at a member's address: why there is no leader is no riddle."""
    network = MemoryNetwork()
    async with Cluster("b", address="memory-b", transport=MemoryTransport(network)):
        members = {"a": "memory-a", "b": "memory-b"}
        async with Cluster("a", members=members, transport=MemoryTransport(network)) as cluster:
            await trio.sleep(5)
            assert any("wrong-cluster" in reason and "'b'" in reason for reason in cluster.doctor())
