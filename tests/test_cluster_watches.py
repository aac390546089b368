"""Watches on whole clusters: whatever befalls the peers, a watcher is told everything, once and in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
import trio
from clusters import Peers, id_of, running

from replikv import Change, Cluster, ClusterClosedError, ConfigurationError, Settings

SMALL = Settings(snapshot_log_entries=20, trailing_entries=5, request_timeout_s=60.0)
"""Settings under which a follower that missed two dozen entries needs a snapshot."""


class Watcher:
    """Watches a peer, and goes on behind the last change that it was told of when that peer has been restarted."""

    def __init__(self, peers: Peers, node_id: str) -> None:
        self._peers = peers
        self._node_id = node_id
        self.restarted = trio.Event()
        self.seen: list[Change] = []
        self.blocks = 0

    async def run(self) -> None:
        while True:
            bookmark = self.seen[-1].revision if self.seen else 0
            self.blocks += 1
            try:
                async with self._peers[self._node_id].store.watch("key/", since=bookmark) as changes:
                    async for change in changes:
                        self.seen.append(change)
            except ClusterClosedError:
                await self.restarted.wait()
                self.restarted = trio.Event()


class Story:
    """What happens to three peers while one key after the other is put and deleted."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.acknowledged: list[tuple[int, str, int]] = []
        self.leaders: list[str] = []
        self._number = 0

    async def write(self, cluster: Cluster, count: int) -> None:
        for _ in range(count):
            self._number += 1
            key = f"key/{self._number % 7}"
            revision = await cluster.store.put(key, self._number)
            self.acknowledged.append((revision, key, self._number))
            if self._number % 5 == 0:
                await cluster.store.delete(key)
                await cluster.store.put("other", self._number)

    async def note_leader(self) -> None:
        self.leaders.append(id_of(await self.peers.leader()))

    async def change_leader(self, *, willingly: bool) -> None:
        """Somebody else leads then, and everybody is there again."""
        leader = await self.peers.leader()
        others = self.peers.without(leader)
        if willingly:
            await trio.sleep(0.5)
            await leader.transfer_leadership(id_of(others[self._number % 2]))
        else:
            self.peers.network.isolate(id_of(leader))
            await self.write(await self.peers.leader(among=map(id_of, others)), 2)
            self.peers.network.heal()
        await self.note_leader()
        await self.write(self.peers.all[self._number % 3], 3)

    async def install_snapshot(self, node_id: str) -> None:
        """The peer misses so much that the others have the entries no longer; and gets a snapshot."""
        behind = self.peers[node_id]
        if behind.is_leader:
            await trio.sleep(0.5)
            await behind.transfer_leadership(id_of(self.peers.without(behind)[0]))
            await self.note_leader()
        missed = behind.status().last_index + 1
        self.peers.network.isolate(node_id)
        others = self.peers.without(behind)
        await self.write(await self.peers.leader(among=map(id_of, others)), 60)
        await trio.sleep(1.0)
        assert all(cluster.status().first_index > missed for cluster in others)
        self.peers.network.heal()
        await self.note_leader()
        await self.peers.converge()
        assert behind.status().first_index > missed

    def leader_changes(self) -> int:
        return sum(one != other for one, other in zip(self.leaders, self.leaders[1:], strict=False))


async def history(cluster: Cluster) -> list[Change]:
    """Every change there was, up to now."""
    found: list[Change] = []
    async with cluster.store.watch("key/", since=0, progress=True) as changes:
        async for change in changes:
            if change.kind == "progress":
                return found
            found.append(change)
    raise AssertionError("a watch has ended")


async def test_a_watcher_is_told_each_change_once_through_leaders_snapshots_and_a_restart(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """Twenty changes of leader, half of them unwilling, three snapshots installed under the watch, and a restart of its
    peer: what it was told is the history, each change once, in order, with the right values before and after.
    """
    async with running(settings=SMALL, disks=tmp_path) as peers, trio.open_nursery() as nursery:
        story, watcher = Story(peers), Watcher(peers, "c")
        await story.note_leader()
        nursery.start_soon(watcher.run)
        snapshots = 0
        for number in range(20):
            await story.change_leader(willingly=number % 2 == 0)
            if number in (3, 9, 15):
                await story.install_snapshot("c")
                snapshots += 1
            if number == 12:
                await peers.kill("c")
                await story.write(await peers.leader(), 10)
                await peers.restart("c")
                watcher.restarted.set()
                await story.note_leader()
        assert 20 <= story.leader_changes()
        assert 3 == snapshots
        await peers.converge()
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
        assert 2 == watcher.blocks

        told = [change.revision for change in watcher.seen]
        assert sorted(set(told)) == told
        assert await history(peers["a"]) == watcher.seen
        assert story.acknowledged == [(c.revision, c.key, c.value) for c in watcher.seen if c.kind == "put"]
        values: dict[str, int] = {}
        for change in watcher.seen:
            assert values.get(change.key) == change.previous
            assert (change.kind == "put" and change.key not in values) is change.created
            values.pop(change.key, None)
            if change.kind == "put":
                values[change.key] = change.value
        assert values == dict(peers["c"].store.items("key/"))


async def test_a_callback_that_raises_must_not_apply_twice(autojump_clock: trio.abc.Clock) -> None:
    """The command that it was told of was applied before it was called, once, on every peer; it is told of it once."""
    async with running() as peers:
        leader = await peers.leader()
        told: dict[str, list[int]] = {}
        errors: list[Exception] = []

        for node_id in "abc":
            mine = told[node_id] = []

            def callback(change: Change, mine: list[int] = mine) -> None:
                mine.append(change.value)
                raise RuntimeError("the application's own mistake")

            peers[node_id].store.subscribe(callback, key="n", on_error=errors.append)
        with structlog.testing.capture_logs():
            sums = [await leader.store.increment("n") for _ in range(5)]
            await trio.sleep(0.5)
            await leader.transfer_leadership(id_of(peers.without(leader)[0]))
            sums += [await leader.store.increment("n") for _ in range(5)]
            await peers.converge()
            await trio.sleep(1.0)
        assert list(range(1, 11)) == sums
        assert [list(range(1, 11))] * 3 == list(told.values())
        assert [10] * 3 == [cluster.store["n"] for cluster in peers.all]
        assert {10} == {cluster.store.entry("n").version for cluster in peers.all}
        assert 30 == len(errors)


async def test_a_limit_of_watches_belongs_to_a_peer(autojump_clock: trio.abc.Clock) -> None:
    """Two in this process, however many the others have; subscriptions count, and whoever leaves makes room."""
    async with running(watches_max=2) as peers:
        store, other = peers["a"].store, peers["b"].store
        async with store.watch("x"), other.watch("x"), other.watch("y"):
            subscription = store.subscribe(print)
            with pytest.raises(ConfigurationError, match="2 watches and subscriptions open, and watches_max allows 2"):
                async with store.watch(key="one too many"):
                    pytest.fail("the block must not be entered")
            with pytest.raises(ConfigurationError, match="watches_max"):
                store.subscribe(print)
            subscription.cancel()
            async with store.watch("y"):
                pass
