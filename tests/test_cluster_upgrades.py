"""Rolling upgrades: what is new takes effect when every member knows it, and who knows too little stops before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio
from clusters import HEALED_S, Peers, id_of, peer_of, running

from replikv import Cluster, Settings, StateMachine, UpgradeRequiredError
from replikv.peer.admission import COMMANDS

SMALL = Settings(snapshot_log_entries=20, trailing_entries=5)


class One(StateMachine):
    """Adds; what it does not know it answers with "unknown"."""

    version = 1

    def __init__(self) -> None:
        self.total = 0
        self.active = 1

    def activate(self, version: int) -> None:
        self.active = version

    def apply(self, position: int, command: bytes) -> bytes:
        if command == b"add":
            self.total += 1
        elif command == b"double" and self.active >= 2:
            self.total *= 2
        else:
            return b"unknown"
        return b"%d" % self.total

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d" % self.total])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.total = int(b"".join(chunks))


class Two(One):
    """Of the next program: doubles, too."""

    version = 2


async def start_all(peers: Peers, machine: type[One], node_ids: str = "abc") -> None:
    for node_id in node_ids:
        await peers.start(node_id, machine=machine())


async def replace(peers: Peers, node_id: str, machine: type[One]) -> Cluster:
    """Restart a peer with another program."""
    await peers.shutdown(node_id)
    cluster = await peers.restart(node_id, machine=machine())
    await cluster.store.put(node_id, machine.version)
    return cluster


async def reach(peers: Peers, version: int) -> None:
    with trio.fail_after(HEALED_S):
        while {version} != {cluster.machine_version for cluster in peers.all}:  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.05)


async def all_told(peers: Peers) -> None:
    """What each member knows is recorded, everywhere: the first versions do not wait for that."""
    with trio.fail_after(HEALED_S):
        while not all(  # noqa: ASYNC110  # nothing to wait on
            COMMANDS in member.attributes
            for cluster in peers.all
            for member in peer_of(cluster)._alive.admission.membership.members.values()
        ):
            await trio.sleep(0.05)


async def stops(cluster: Cluster) -> str:
    """The peer ends because it knows too little; its words."""
    with trio.fail_after(HEALED_S), pytest.raises(UpgradeRequiredError) as caught:
        await cluster.run()
    return str(caught.value)


async def test_a_rolling_upgrade(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """The new command does nothing, on no replica, until the last member was restarted with the new program."""
    async with running(absent="abc", disks=tmp_path) as peers:
        await start_all(peers, One)
        assert b"1" == await peers["a"].propose(b"add")
        await reach(peers, 1)
        for node_id in "ab":
            upgraded = await replace(peers, node_id, Two)
            await trio.sleep(5)
            assert b"unknown" == await upgraded.propose(b"double")
            assert 1 == upgraded.machine_version == upgraded.status().machine_version
            assert [
                f"commands that {node_id} knows wait for {other}, which has a StateMachine of version 1:"
                " restart it with the newer program"
                for other in ("bc" if node_id == "a" else "c")
            ] == upgraded.doctor()
            await peers.converge()
        await replace(peers, "c", Two)
        await reach(peers, 2)
        assert [b"2", b"4"] == [await cluster.propose(b"double") for cluster in peers.all[:2]]
        assert [[], [], []] == [cluster.doctor() for cluster in peers.all]
        await peers.converge()
        await peers["b"].snapshot()
        await replace(peers, "b", Two)  # from its snapshot
        await replace(peers, "a", Two)  # from its log, with the old commands in it
        assert b"8" == await peers["b"].propose(b"double")
        await peers.converge()


@pytest.mark.parametrize("source", ["its log", "its snapshot", "the log of the others", "their snapshot"])
async def test_an_old_program_that_comes_back_stops(
    autojump_clock: trio.abc.Clock, tmp_path: Path, source: str
) -> None:
    """Before it applies anything that it does not know, wherever it meets that; with the new one it goes on."""
    async with running(absent="abcd", node_ids="abcd", disks=tmp_path, settings=SMALL) as peers:
        await start_all(peers, Two, "abc")  # d, a founding member, has never come
        if source.startswith("its"):
            await peers.start("d", machine=Two())
        await reach(peers, 2)
        await peers["a"].propose(b"add")
        if source == "its snapshot":
            await peers.converge()
            await peers["d"].snapshot()
        if source.startswith("its"):
            await peers["d"].propose(b"double")
            await peers.shutdown("d")
        for number in range(100 if source == "their snapshot" else 1):
            await peers["a"].store.put("k", number)
        await trio.sleep(1)

        words = await stops(peers.make("d", machine=One()))
        assert "version 2 of its StateMachine, and this peer has 1" in words
        assert "what it has on disk is whole" in words
        assert ("the snapshot is of a cluster" in words) == ("snapshot" in source)
        again = await stops(peers.make("d", machine=One()))
        assert "version 2 of its StateMachine" in again

        await peers.start("d", machine=Two())
        await peers["d"].propose(b"double")
        await peers.converge()


async def test_a_founding_member_that_comes_late_and_knows_enough(autojump_clock: trio.abc.Clock) -> None:
    """The cluster was usable without it, at once; it takes part as if it had been there."""
    async with running(absent="abc") as peers:
        await start_all(peers, Two, "ab")
        await reach(peers, 2)
        assert b"1" == await peers["a"].propose(b"add")
        await peers.start("c", machine=Two())
        assert b"2" == await peers["c"].propose(b"double")
        await peers.converge()


@pytest.mark.parametrize("machine", [One(), None])
async def test_a_newcomer_that_is_too_old_is_refused(
    autojump_clock: trio.abc.Clock, machine: StateMachine | None
) -> None:
    """When it asks, before it is a member: it would hold back every later upgrade, and stop at once."""
    async with running(absent="abc") as peers:
        await start_all(peers, Two)
        await peers["a"].propose(b"add")
        await reach(peers, 2)
        words = await stops(peers.make_joining("d", machine=machine))
        assert "memory-a refused d: the cluster uses version 2 of its StateMachine" in words
        assert {"a", "b", "c"} == set(peers["a"].status().members)
        newer = await peers.join("d", machine=Two())
        await newer.store.put("key", 1)
        await peers.converge()


async def test_a_member_that_is_gone_for_good_is_removed_for_the_upgrade(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """It holds the upgrade back, and the doctor of the others says what to do."""
    async with running(absent="abc", disks=tmp_path) as peers:
        await start_all(peers, One)
        await peers["c"].propose(b"add")
        await reach(peers, 1)
        await all_told(peers)
        await peers.shutdown("c")
        for node_id in "ab":
            await replace(peers, node_id, Two)
        await trio.sleep(5)
        assert {1} == {cluster.machine_version for cluster in peers.all}
        assert any("wait for c, which has a StateMachine of version 1" in words for words in peers["a"].doctor())
        await peers["a"].remove_member("c")
        await reach(peers, 2)
        assert [] == peers["a"].doctor()


async def test_an_upgrade_outlives_the_leader_that_proposed_it(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Lost with it, the next one proposes it; and a replica of an older version leads meanwhile, or not."""
    async with running(absent="abc", disks=tmp_path) as peers:
        await start_all(peers, One)
        await peers["a"].propose(b"add")
        for node_id in "abc":
            await peers.kill(node_id)
            await peers.restart(node_id, machine=Two())
        leader = await peers.leader()
        peers.network.isolate(id_of(leader))
        rest = [id_of(cluster) for cluster in peers.without(leader)]
        await peers[rest[0]].propose(b"add")
        peers.network.heal()
        await reach(peers, 2)
        assert b"4" == await peers["a"].propose(b"double")
        await peers.converge()


async def test_commands_of_replikv_itself_wait_for_the_last_member(
    autojump_clock: trio.abc.Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older replikv among them: no UPGRADE, so no limits and nothing new; once it is restarted, all of it."""
    async with running(absent="abc", disks=tmp_path, keys_max=3) as peers:
        monkeypatch.setattr("replikv.machine.replica.KNOWN_VERSION", 0)
        await peers.start("c")
        monkeypatch.undo()
        for node_id in "ab":
            await peers.start(node_id)
        await trio.sleep(5)
        for number in range(5):
            await peers["a"].store.put(f"k{number}", number)
        assert {0} == {cluster.status().commands_version for cluster in peers.all}
        await peers.converge()
        await peers.shutdown("c")
        await peers.restart("c")
        with trio.fail_after(HEALED_S):
            while {1} != {cluster.status().commands_version for cluster in peers.all}:  # noqa: ASYNC110  # as above
                await trio.sleep(0.05)
        await peers["a"].store.put("k0", 1)
        await peers.converge()
