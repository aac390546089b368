"""Who is who: clusters keep apart, node ids are bound to data, and a peer that lost its disk does not come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from clusters import Peers, id_of, peer_of, running

from replikv import (
    Cluster,
    MemoryTransport,
    OutcomeUnknownError,
    Settings,
    UnavailableError,
    WrongClusterError,
)
from replikv.peer.protocol import Forwarded, decode, encode_refusal
from replikv.raft.entries import Entry, EntryKind
from replikv.raft.membership import ChangeKind, MemberChange, MembershipChange
from replikv.raft.messages import ReadIndexResponse
from replikv.transport.base import Hello


def records(cluster: Cluster) -> dict[str, tuple[str, bool]]:
    """Node id -> incarnation that is bound, and whether the log says since when."""
    members = peer_of(cluster)._alive.admission.membership.members
    return {node_id: (record.incarnation, record.bound_index > 0) for node_id, record in members.items()}


async def bound(peers: Peers) -> dict[str, tuple[str, bool]]:
    """The bindings, once every peer has applied them."""
    with trio.fail_after(10.0):
        while not all(incarnation for cluster in peers.all for incarnation, _ in records(cluster).values()):  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.1)
    return records(peers.all[0])


async def test_the_cluster_id_is_the_same_everywhere(autojump_clock: trio.abc.Clock) -> None:
    """It is computed from the member ids and the cluster's name: of the same, the same; of others, others."""
    async with running("abc") as peers, running("abc", seed=1) as again, running("abcd") as others:
        ids = {cluster.status().cluster_id for cluster in peers.all + again.all}
        assert 1 == len(ids)
        assert ids != {cluster.status().cluster_id for cluster in others.all}


async def test_lone_clusters_are_all_different(autojump_clock: trio.abc.Clock) -> None:
    """Nothing is known of what they will be part of: each draws an id."""
    async with Cluster("a") as one, Cluster("a") as other:
        assert one.status().cluster_id != other.status().cluster_id


async def test_the_leader_binds_every_incarnation(autojump_clock: trio.abc.Clock) -> None:
    """Soon after the first election each node id has its own, by a log entry, on every peer."""
    async with running() as peers:
        bindings = await bound(peers)
        assert {cluster_id: (peer_of(peers[cluster_id]).identity.incarnation, True) for cluster_id in "abc"} == bindings
        assert [bindings] * 3 == [records(cluster) for cluster in peers.all]
        term_and_last = [cluster.status().last_index for cluster in peers.all]
        await trio.sleep(5.0)
        assert term_and_last == [cluster.status().last_index for cluster in peers.all]  # once, not again and again


async def test_a_member_that_comes_late_is_bound_when_it_comes(autojump_clock: trio.abc.Clock) -> None:
    """The others do not wait for it, nor bind what they do not know."""
    async with running(absent="c") as peers:
        await peers["a"].store.put("key", 1)
        await trio.sleep(2.0)
        assert ("", False) == records(peers["a"])["c"]
        assert all(records(peers["b"])[node_id][1] for node_id in "ab")
        late = await peers.start("c")
        assert peer_of(late).identity.incarnation == (await bound(peers))["c"][0]


@pytest.mark.parametrize("wait_s", [0.5, 5.0])
async def test_a_peer_that_lost_its_disk_is_refused(
    autojump_clock: trio.abc.Clock, tmp_path: Path, wait_s: float
) -> None:
    """Under its old id, with nothing of what it promised: WrongClusterError out of its block; the others go on.

    Also before the incarnations are bound: who was told in a handshake remembers.
    """
    async with running(disks=tmp_path) as peers:
        await trio.sleep(wait_s)
        victim = id_of(peers["b"])
        await peers.shutdown(victim)
        with pytest.raises(WrongClusterError, match=r"'b' is known with another data directory.*remove 'b'"):
            async with peers.make(victim, data_dir=tmp_path / "wiped") as wiped:
                await wiped.store.put("key", "from the dead")
        rest = peers.all
        await rest[0].store.put("key", 1)
        assert 1 == await rest[1].store.get("key")
        assert "from the dead" not in dict(rest[0].store.local).values()
        await peers.start(victim)
        assert 1 == await peers[victim].store.get("key")  # its disk was brought back


async def test_a_peer_that_lost_its_disk_ends_nobody_but_itself(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """It is dialed, and knows nobody to dial: whoever will not have it is dialed back, and says so again."""
    async with running(disks=tmp_path) as peers:
        await bound(peers)
        await peers.shutdown("b")
        members = {"a": "nowhere-a", "b": peers.members["b"], "c": "nowhere-c"}
        with pytest.raises(WrongClusterError, match="wrong-incarnation"):
            async with peers.make("b", members=members, data_dir=tmp_path / "wiped"):
                await trio.sleep(20.0)
        assert 1 == await peers["a"].store.put("key", 1)
        assert 1 == await peers["c"].store.get("key")


async def test_a_binding_counts_on_a_follower_from_the_append_on(autojump_clock: trio.abc.Clock) -> None:
    """Committed or not (thesis 4.1): of who comes to whom first, and when, nothing is known."""
    async with running(absent="c") as peers:
        leader = await peers.leader(among="ab")
        (follower,) = peers.without(leader)
        await leader.store.put("key", 1)
        await trio.sleep(2.0)
        peers.network.cut(id_of(follower), id_of(leader))  # so it is never committed
        driver = peer_of(leader)._driver
        driver.node.propose_membership(MembershipChange((MemberChange(ChangeKind.UPDATE, "c", incarnation="c1"),)))
        driver.wake()
        await trio.sleep(0.01)
        assert ("", False) == records(follower)["c"]
        claim = Hello(cluster_id=follower.status().cluster_id, node_id="c", incarnation="c2")
        assert "known with another data directory" in str(peer_of(follower).admit(claim))


async def test_who_is_bound_with_another_disk_is_not_listened_to(autojump_clock: trio.abc.Clock) -> None:
    """Also when it was admitted before that was known: its votes and acknowledgements do not count."""
    async with running(request_timeout_s=3.0) as peers:
        await bound(peers)
        leader = await peers.leader()
        await leader.store.put("key", 1)
        others = peers.without(leader)
        for index, other in enumerate(others, start=1000):
            change = MemberChange(ChangeKind.UPDATE, id_of(other), incarnation="elsewhere")
            peer_of(leader)._alive.admission.note(
                Entry(index, 1, MembershipChange((change,)).encode(), EntryKind.MEMBERSHIP)
            )
        with pytest.raises(OutcomeUnknownError):
            await leader.store.put("key", 2)
        assert not leader.is_leader


async def test_a_peer_that_lost_its_disk_has_no_vote_before_the_log_is_applied(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """Nobody knows how far the log is committed when votes are cast: what was acknowledged must not get lost then."""
    async with running(disks=tmp_path) as peers:
        await bound(peers)
        await peers.shutdown("c")
        await peers["a"].store.put("key", "acknowledged")
        await peers.shutdown("a")
        await peers.shutdown("b")
        await peers.start("c")
        with trio.fail_after(60.0), pytest.raises(WrongClusterError, match="'b' is known with another"):  # noqa: PT012
            async with peers.make("b", data_dir=tmp_path / "b-wiped"):
                await peers["c"].wait_leader()
                pytest.fail("the vote of a peer that lost its disk has counted")
        await peers.start("a")
        assert "acknowledged" == await peers["c"].store.get("key")


@pytest.mark.parametrize("on_disk", [True, False])
async def test_a_second_process_under_the_same_id_is_refused(
    autojump_clock: trio.abc.Clock, tmp_path: Path, on_disk: bool
) -> None:
    """It is the newcomer that goes, whoever it reaches first, and the one that was there notices nothing.

    Also where it would come back as a learner if the one before it were gone.
    """
    async with running(disks=tmp_path if on_disk else None) as peers:
        await bound(peers)
        second = peers.make("a", listen="elsewhere", data_dir=tmp_path / "second" if on_disk else None)
        with pytest.raises(WrongClusterError, match="'a'"):
            async with second:
                await trio.sleep(30.0)
        term = peers["a"].status().term
        await peers["a"].store.put("key", 1)
        assert 1 == await peers["b"].store.get("key")
        assert term == peers["a"].status().term


@pytest.mark.parametrize(
    "settings", [Settings(cluster_name="other", request_timeout_s=3.0), Settings(request_timeout_s=3.0)]
)
async def test_a_peer_of_another_cluster_is_kept_out(autojump_clock: trio.abc.Clock, settings: Settings) -> None:
    """It finds no majority and says why, in vain; the cluster whose addresses it dials goes on."""
    async with running("abc") as peers:
        await peers["a"].store.put("key", 1)
        await peers.shutdown("c")
        members = {**peers.members, **({} if settings.cluster_name else {"d": "memory-d"})}
        stranger = Cluster("c", members=members, transport=MemoryTransport(peers.network), settings=settings)
        async with stranger:
            with pytest.raises(UnavailableError, match="voters cannot be reached from c: a, b"):
                await stranger.store.put("key", "strange")
        assert 1 == await peers["a"].store.get("key")
        assert {"a", "b"} == {id_of(cluster) for cluster in peers.all if cluster.status().leader in {"a", "b"}}


def with_disk(node_id: str, peers: Peers, data_dir: Path) -> Cluster:
    return Cluster(
        node_id,
        members=peers.members,
        data_dir=data_dir,
        transport=MemoryTransport(peers.network),
        settings=peers.settings,
    )


async def test_a_peer_comes_back_with_its_disk(tmp_path: Path) -> None:
    """The same directory is the same incarnation: admitted, and it has what it missed soon."""
    async with running(absent="c", heartbeat_interval_s=0.02, election_timeout_s=0.2) as peers:
        for value in range(3):
            await peers["a"].store.put("key", value)
            async with with_disk("c", peers, tmp_path) as c:
                assert value == await c.store.get("key")


async def test_an_answer_to_the_process_before_confirms_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader keeps a read until it can answer: by then the asker may be another process, whose reads came later."""
    answers: list[tuple[str, bytes]] = []
    async with running(absent="c", heartbeat_interval_s=0.02, election_timeout_s=0.3) as peers:
        await peers.leader()
        async with with_disk("c", peers, tmp_path) as before:
            receive = peer_of(before).receive

            def keep(sender: str, frame: bytes) -> None:
                if isinstance(decode(frame, sender, "c"), ReadIndexResponse):
                    answers.append((sender, frame))
                receive(sender, frame)

            monkeypatch.setattr(peer_of(before), "receive", keep)
            await before.store.put("key", "old")
            for _ in range(20):
                await before.store.barrier()
        assert len(answers) >= 20
        async with with_disk("c", peers, tmp_path) as after:
            await after.store.barrier()
            peers.network.isolate("c")
            await peers["a"].store.put("key", "new")
            found: list[object] = []

            async def get() -> None:
                found.append(await after.store.get("key"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(get)
                await trio.testing.wait_all_tasks_blocked()
                for sender, frame in answers:
                    peer_of(after).receive(sender, frame)
                await trio.testing.wait_all_tasks_blocked()
                peers.network.heal()
            assert ["new"] == found


async def test_a_refusal_to_the_process_before_is_none_of_a_later_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command was taken, and its caller is never told that it surely was not."""
    batches: list[int] = []
    async with running(absent="c", heartbeat_interval_s=0.05, election_timeout_s=0.3) as peers:
        await peers.leader()
        async with with_disk("c", peers, tmp_path) as before:
            transport = peer_of(before)._transport
            send = transport.send

            def keep(node_id: str, frame: bytes) -> bool:
                content = decode(frame, "c", node_id)
                if isinstance(content, Forwarded):
                    batches.append(content.batch)
                return send(node_id, frame)

            monkeypatch.setattr(transport, "send", keep)
            for _ in range(20):
                await before.store.increment("n")
        assert len(batches) >= 20
        async with trio.open_nursery() as nursery, with_disk("c", peers, tmp_path) as after:
            for _ in range(8):
                await after.store.increment("n")
            for other in "ab":
                peers.network.cut(other, "c")

            async def increment() -> None:
                with pytest.raises(OutcomeUnknownError):
                    await after.store.increment("n")

            nursery.start_soon(increment)
            await trio.testing.wait_all_tasks_blocked()
            for batch in batches:
                peer_of(after).receive("a", encode_refusal(batch, "a"))
            await trio.testing.wait_all_tasks_blocked()
        assert 29 == await peers["a"].store.get("n")
