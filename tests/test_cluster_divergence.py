"""Replicas that differ: the odd one out stops, also when it leads; and no fault of network or disk looks like one."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio
from clusters import HEALED_S, Peers, id_of, peer_of, running

from replikv import Cluster, InternalError, Settings, StateMachine
from replikv.machine.digests import INTERVAL, NOTES_MAX

SMALL = Settings(snapshot_log_entries=20, trailing_entries=5)


class Balance(StateMachine):
    """Adds up; one made with an ``error`` is off by that, in its results or only in its state."""

    def __init__(self, error: int = 0, *, tells: bool = False, digests: bool = False) -> None:
        self.total = 0
        self._error = error
        self._tells = tells
        self._digests = digests

    def apply(self, position: int, command: bytes) -> bytes:
        self.total += int(command) + self._error
        return b"%d" % self.total if self._tells else b""

    def digest(self) -> bytes:
        return b"%d" % self.total if self._digests else b""

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d" % self.total])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.total = int(b"".join(chunks))


async def put_many(cluster: Cluster, count: int = 3 * INTERVAL, keys: int = 10) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(cluster.store.put, f"k{number % keys}", number)


async def alarm(peers: Peers, odd: str) -> InternalError:
    """Wait until the odd one has ended, and nobody else; the others go on without it, under a leader."""
    with trio.fail_after(HEALED_S):
        while odd not in peers.diverged:  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.05)
    assert [odd] == list(peers.diverged)
    await (await peers.leader()).store.put("after", 1)
    await trio.sleep(5)
    assert [odd] == list(peers.diverged)
    await peers.converge()
    return peers.diverged[odd]


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("how", ["tells", "digests"])
async def test_a_machine_that_is_not_the_same_everywhere(autojump_clock: trio.abc.Clock, role: str, how: str) -> None:
    """Seen by what it answers, or by the digest of its own, if it has one: its peer stops, the leader too."""
    async with running(absent="abc", node_ids="abc") as peers:
        peers.may_diverge = True
        for node_id in "abc":
            await peers.start(node_id, machine=Balance(int(node_id == "b"), **{how: True}))
        other = "b" if role == "leader" else "a"
        if (await peers.leader()) is not peers[other]:
            await peers["a"].transfer_leadership(other)
        await peers["a"].propose(b"5")
        await put_many(peers["a"])
        words = str(await alarm(peers, "b"))
        assert "the replica of b has diverged: at position" in words
        assert "a, c, a majority of the voters" in words


async def test_a_machine_that_tells_nothing_takes_no_part(autojump_clock: trio.abc.Clock) -> None:
    """Neither its answers nor a digest show that it differs: nobody can know, and nobody stops."""
    async with running(absent="abc") as peers:
        for node_id in "abc":
            await peers.start(node_id, machine=Balance(int(node_id == "b")))
        await peers["a"].propose(b"5")
        await put_many(peers["a"])
        await trio.sleep(5)
        assert [[], [], []] == [cluster.doctor() for cluster in peers.all]


def flip(cluster: Cluster, key: str) -> None:
    """As a bit of memory may: where it is, behind the back of all that keeps count of it."""
    record = peer_of(cluster).replica.keyspace.get(key)
    assert record is not None
    last = ctypes.c_ubyte.from_address(id(record) + bytes.__basicsize__ - 1 + len(record) - 1)
    last.value ^= 1


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_a_record_that_has_changed_in_memory(autojump_clock: trio.abc.Clock, role: str) -> None:
    """Found when it is touched, at the latest: by what the put that replaces it does to the sum over all records."""
    async with running() as peers:
        peers.may_diverge = True
        leader = await peers.leader()
        odd = leader if role == "leader" else peers.without(leader)[0]
        other = peers.without(odd)[0]
        await put_many(other)
        await odd.store.barrier()
        name = id_of(odd)
        flip(odd, "k9")
        await put_many(other, keys=9)
        await trio.sleep(1)
        await put_many(other)
        await alarm(peers, name)


async def test_who_was_stopped_is_well_after_a_restart(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """What was wrong was in memory alone: log and snapshot are right."""
    async with running(disks=tmp_path, settings=SMALL) as peers:
        peers.may_diverge = True
        await put_many(peers["a"])
        await peers["c"].store.barrier()
        flip(peers["c"], "k9")
        await put_many(peers["a"], keys=9)
        await trio.sleep(1)
        await put_many(peers["a"])
        await alarm(peers, "c")
        assert any(words.startswith("the replica of c has diverged") for words in peers["a"].doctor())
        restarted = await peers.restart("c")
        await put_many(restarted)
        await trio.sleep(5)
        assert [[], [], []] == [cluster.doctor() for cluster in peers.all]
        await peers.converge()


async def test_one_against_one(autojump_clock: trio.abc.Clock) -> None:
    """Of two voters nobody can tell which is right: both go on, and both say so."""
    async with running("ab", absent="ab") as peers:
        for node_id in "ab":
            await peers.start(node_id, machine=Balance(int(node_id == "b"), tells=True))
        await peers["a"].propose(b"5")
        await put_many(peers["a"])
        await trio.sleep(1)
        for cluster, other in zip(peers.all, "ba", strict=True):
            (words,) = cluster.doctor()
            assert words.startswith(f"the replicas of {id_of(cluster)} and {other} differ, and nobody can tell")


async def churn(peers: Peers, chance: random.Random, writers: Iterable[str]) -> None:
    for _ in range(8):
        cluster = peers[chance.choice(list(writers))]
        with trio.move_on_after(5):
            await put_many(cluster, chance.randint(20, 2 * INTERVAL))


@pytest.mark.parametrize("seed", range(4))
async def test_no_false_alarm_on_a_bad_network(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """Frames lost, doubled, late and out of order; peers cut off, and brought back by snapshots."""
    chance = random.Random(seed)
    async with running("abc", seed=seed, settings=dataclasses.replace(SMALL, request_timeout_s=30.0)) as peers:
        await peers.leader()
        await peers.join("d", learner=True)
        for _ in range(4):
            peers.network.set_faults(loss=0.05, duplication=0.2, delay_s=(0.0, 0.2))
            peers.network.isolate(chance.choice("abcd"))
            await churn(peers, chance, "abcd")
            peers.network.heal()
            peers.network.set_faults()
            await churn(peers, chance, "abcd")
        await trio.sleep(5)
        assert [[]] * 4 == [cluster.doctor() for cluster in peers.all]
        await peers.converge()


async def test_no_false_alarm_after_restarts(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """From log and snapshot, one after the other and all at once."""
    async with running(disks=tmp_path, settings=SMALL) as peers:
        for node_id in "abcabc":
            await put_many(peers["a"], INTERVAL + 7)
            await peers.kill(node_id)
            await peers.restart(node_id)
        for node_id in "abc":
            await peers.kill(node_id)
        for node_id in "abc":
            await peers.restart(node_id)
        await put_many(peers["b"])
        await trio.sleep(5)
        assert [[], [], []] == [cluster.doctor() for cluster in peers.all]
        await peers.converge()


async def test_no_false_alarm_in_another_life(autojump_clock: trio.abc.Clock) -> None:
    """A peer in memory that comes back has nothing of what it was: it is compared from its first snapshot on."""
    async with running(settings=SMALL) as peers:
        for node_id in "abc":
            await put_many(peers["a"], INTERVAL + 7)
            await peers.kill(node_id)
            await peers.start(node_id)
            await put_many(peers[node_id])
            await peers.roles("abc", within_s=60)
        await put_many(peers["b"])
        await trio.sleep(5)
        assert [[], [], []] == [cluster.doctor() for cluster in peers.all]
        await peers.converge()


async def test_what_is_noted_is_bounded(autojump_clock: trio.abc.Clock) -> None:
    """The last positions only, however long a peer runs."""
    async with Cluster("a") as cluster:
        replica = peer_of(cluster).replica
        await cluster.store.put("k", 1)
        for _ in range(NOTES_MAX + 10):
            replica.apply_many([b"no command"] * INTERVAL)
        assert NOTES_MAX == len(replica.notes)
