"""The barrier: all or nobody, again and again, and the dead are not waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from clusters import Peers, id_of, running
from contending import EXPIRED_S, TTL_S, left_behind, until_keys

from replikv import Cluster, ConfigurationError, Contenders, LeaseExpiredError, Store
from replikv.recipes import Barrier, Passage

KEYS = "barriers/job/"


def barrier_of(store: Store, parties: int = 3) -> Barrier:
    return Barrier(store, "job", parties, ttl_s=TTL_S)


async def pass_by(peers: Peers, node_id: str, passages: list[Passage]) -> None:
    passages.append(await barrier_of(peers[node_id].store).wait())


async def test_nobody_passes_before_all_have_come(autojump_clock: trio.abc.Clock) -> None:
    """Then all do, with the same generation, and each with a number of its own, in the order in which they came."""
    async with running() as peers:
        await peers.leader()
        passages: list[Passage] = []
        async with trio.open_nursery() as nursery:
            for number, node_id in enumerate("ca"):
                nursery.start_soon(pass_by, peers, node_id, passages)
                await until_keys(peers["a"].store, KEYS, number + 1)
            await trio.sleep(2 * TTL_S)
            assert [] == passages
            assert (2, 3) == (barrier_of(peers["a"].store).waiting(), barrier_of(peers["a"].store).parties)
            assert 2 == (await barrier_of(peers["b"].store).wait()).index
        assert [0, 1] == sorted(passage.index for passage in passages)
        assert 1 == len({passage.generation for passage in passages})
        await trio.sleep(1.0)
        assert ([], 0) == left_behind(peers["a"])


async def test_it_is_used_again_and_again(autojump_clock: trio.abc.Clock) -> None:
    """Parties that come back at once, some of them faster than others: each generation has one of each, in order."""
    rounds = 10
    async with running() as peers:
        await peers.leader()
        came = dict.fromkeys("abc", 0)
        generations: dict[str, list[int]] = {node_id: [] for node_id in "abc"}

        async def go_round(node_id: str, pause_s: float) -> None:
            barrier = barrier_of(peers[node_id].store)
            for number in range(1, rounds + 1):
                came[node_id] += 1
                generations[node_id].append((await barrier.wait()).generation)
                assert min(came.values()) >= number
                await trio.sleep(pause_s)

        async with trio.open_nursery() as nursery:
            for number, node_id in enumerate("abc"):
                nursery.start_soon(go_round, node_id, number * 0.05)
        assert generations["a"] == generations["b"] == generations["c"]
        assert sorted(set(generations["a"])) == generations["a"]
        assert rounds == len(generations["a"])


async def test_of_more_parties_than_it_takes_those_who_come_first_pass_first(autojump_clock: trio.abc.Clock) -> None:
    """Seven come for a barrier of three: two generations, and one waits on."""
    async with running() as peers:
        await peers.leader()
        passages: dict[int, Passage] = {}

        async def come(number: int) -> None:
            passages[number] = await barrier_of(peers["abc"[number % 3]].store).wait()

        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(come, number)
            with trio.fail_after(10.0):
                while len(passages) < 6:  # noqa: ASYNC110  # a test may look
                    await trio.sleep(0.01)
            await trio.sleep(1.0)
            assert 6 == len(passages)
            nursery.cancel_scope.cancel()
        generations = [passage.generation for passage in passages.values()]
        assert [3, 3] == [generations.count(generation) for generation in sorted(set(generations))]
        assert [0, 0, 1, 1, 2, 2] == sorted(passage.index for passage in passages.values())


async def test_who_dies_while_it_waits_is_not_counted(autojump_clock: trio.abc.Clock) -> None:
    """After its time another has to come in its place; it learns that it has not passed."""
    async with running() as peers:
        await peers.leader()
        lost, other = await peers.followers()
        passages: list[Passage] = []
        failed = trio.Event()

        async def be_lost() -> None:
            with pytest.raises(LeaseExpiredError):
                await barrier_of(lost.store).wait()
            failed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_lost)
            await until_keys(other.store, KEYS, 1)
            peers.network.isolate(id_of(lost))
            await failed.wait()
            with trio.fail_after(EXPIRED_S):
                await until_keys(other.store, KEYS, 0)
            for number in range(2):
                nursery.start_soon(pass_by, peers, id_of(other), passages)
                await until_keys(other.store, KEYS, number + 1)
            await trio.sleep(2 * TTL_S)
            assert [] == passages
            peers.network.heal()
            await peers.leader()
            await pass_by(peers, id_of(lost), passages)
        assert [0, 1, 2] == sorted(passage.index for passage in passages)


async def test_it_opens_for_nobody_if_one_of_them_is_gone_meanwhile() -> None:
    """The last to come has seen all of them, and one goes before its transaction is applied."""
    async with Cluster("a") as cluster:
        barrier = barrier_of(cluster.store, 2)
        contenders = Contenders(cluster.store, KEYS, TTL_S)
        async with contenders.join() as last:
            async with contenders.join():
                seen = contenders.all()
            await barrier._open(seen)
            assert [last.key] == list(cluster.store.keys(KEYS))
            assert contenders.entry_of(last).value is None


async def test_who_gives_up_has_not_come(autojump_clock: trio.abc.Clock) -> None:
    """Cancelled, nothing is left of it, and the others wait on."""
    async with Cluster("a") as cluster:
        with trio.move_on_after(1.0):
            await barrier_of(cluster.store).wait()
        assert ([], 0) == left_behind(cluster)
        with trio.move_on_after(1.0) as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(barrier_of(cluster.store).wait)
        assert scope.cancelled_caught


async def test_a_block_ends_when_all_have_left_theirs(autojump_clock: trio.abc.Clock) -> None:
    """A double barrier: nobody begins before all are there, nor goes on before all are done."""
    async with running() as peers:
        await peers.leader()
        story = []

        async def work(number: int, node_id: str) -> None:
            await trio.sleep(number)
            async with barrier_of(peers[node_id].store):
                story.append("in")
                await trio.sleep(3.0 - number)
                story.append("done")
            story.append("out")

        async with trio.open_nursery() as nursery:
            for number, node_id in enumerate("abc"):
                nursery.start_soon(work, number, node_id)
        assert ["in"] * 3 + ["done"] * 3 + ["out"] * 3 == story
        await trio.sleep(1.0)
        assert ([], 0) == left_behind(peers["a"])


async def test_a_block_does_not_wait_for_those_who_came_later(autojump_clock: trio.abc.Clock) -> None:
    """It ends when those have left who came with it, though others have passed meanwhile and are inside."""
    async with running() as peers, trio.open_nursery() as nursery:
        await peers.leader()
        story = []

        async def work(name: str, inside_s: float) -> None:
            async with barrier_of(peers["a"].store, 2):
                story.append(f"{name} in")
                await trio.sleep(inside_s)
            story.append(f"{name} out")

        for name, inside_s in (("early", 1.0), ("early too", 2.0), ("late", 60.0), ("late too", 60.0)):
            nursery.start_soon(work, name, inside_s)
            await trio.sleep(0.1)
        await trio.sleep(5.0)
        assert ["early in", "early too in", "late in", "late too in"] == sorted(story[:4])
        assert ["early out", "early too out"] == sorted(story[4:])
        nursery.cancel_scope.cancel()


async def test_a_block_does_not_wait_for_its_own_key(autojump_clock: trio.abc.Clock) -> None:
    """Which may stay, if the cluster cannot be reached to delete it, and whose end this process may not hear of."""
    async with running() as peers:
        await peers.leader()
        (lost, _) = await peers.followers()
        with trio.fail_after(30.0):
            async with barrier_of(lost.store, 1):
                peers.network.isolate(id_of(lost))
        assert 1 == len(lost.store)
        peers.network.heal()


async def test_a_block_waits_neither_for_the_dead_nor_with_those_who_fail(autojump_clock: trio.abc.Clock) -> None:
    """One is cut off in its block, one raises: the third goes on when the first one's time is over."""
    async with running() as peers:
        await peers.leader()
        lost, other = await peers.followers()
        ended: dict[str, Exception] = {}
        error = KeyError("mine")

        async def be_lost() -> None:
            async with barrier_of(lost.store):
                peers.network.isolate(id_of(lost))
                await trio.sleep_forever()

        async def fail() -> None:
            async with barrier_of(other.store):
                raise error

        async def meet(name: str, party: Callable[[], Awaitable[None]], expected: type[Exception]) -> None:
            with pytest.raises(expected) as caught:
                await party()
            ended[name] = caught.value

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meet, "lost", be_lost, LeaseExpiredError)
            nursery.start_soon(meet, "failed", fail, KeyError)
            async with barrier_of(other.store):
                with trio.fail_after(1.0):
                    while "failed" not in ended:  # noqa: ASYNC110  # a test may look
                        await trio.sleep(0.01)
            assert {"lost", "failed"} == ended.keys()
            assert error is ended["failed"]
            peers.network.heal()


async def test_a_task_is_in_one_block_of_a_barrier() -> None:
    """It would come twice, and leave once."""
    async with Cluster("a") as cluster:
        barrier = barrier_of(cluster.store, 1)
        async with barrier as passage:
            assert 0 == passage.index
            with pytest.raises(RuntimeError, match="has barriers/job already"):
                await barrier.wait()


@pytest.mark.parametrize("parties", [0, True, "2"])
async def test_a_number_of_parties_that_is_none_is_refused(parties: int) -> None:
    """It is an int of at least 1."""
    async with Cluster("a") as cluster:
        with pytest.raises(ConfigurationError, match="parties must be"):
            Barrier(cluster.store, "job", parties)
