"""Peers that join, are promoted, replaced and removed, while the cluster goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from clusters import id_of, running

from replikv import Cluster, ConfigurationError, MemoryTransport, RemovedError, UnavailableError
from replikv.demo.ports import HOST, free_ports


async def test_a_lone_peer_grows(autojump_clock: trio.abc.Clock) -> None:
    """Who joins gets everything that is there, as a learner first, and becomes a voter by itself."""
    async with running("a") as peers:
        await peers["a"].store.put("k", 1)
        for node_id in "bc":
            joined = await peers.join(node_id)
            assert joined.store["k"] == 1
        await peers.roles("abc")
        await peers["c"].store.put("k", 2)
        await peers.converge()


async def test_whoever_joins_asks_any_member(autojump_clock: trio.abc.Clock) -> None:
    """A follower passes the request on, and a member that is not there is passed over."""
    async with running("abc") as peers:
        follower = (await peers.followers())[0]
        await peers.join("d", via="x" + id_of(follower))
        await peers.roles("abcd")


async def test_a_learner_for_good_does_not_vote(autojump_clock: trio.abc.Clock) -> None:
    """It has the reads and the puts of any peer, until it is promoted by name."""
    async with running("abc") as peers:
        joined = await peers.join("d", learner=True)
        await joined.store.put("k", 1)
        await trio.sleep(60)
        await peers.roles("abc", "d")
        assert await joined.store.get("k") == 1
        await (await peers.leader()).promote("d")
        await peers.roles("abcd")


async def test_no_more_voters_than_the_settings_say(autojump_clock: trio.abc.Clock) -> None:
    """The rest stay learners."""
    async with running("abc", voters_max=4) as peers:
        for node_id in "defg":
            await peers.join(node_id)
        await trio.sleep(10)
        roles = [member.role for member in peers["a"].status().members.values()]
        assert (4, 3) == (roles.count("voter"), roles.count("learner"))


async def test_a_removed_peer_ends_with_removed_error(autojump_clock: trio.abc.Clock) -> None:
    """Out of its block, whoever removed it; the others go on without it."""
    async with running("ab") as peers, trio.open_nursery() as nursery:
        raised: list[BaseException] = []

        async def third() -> None:
            try:
                async with Cluster(
                    "c",
                    address="memory-c",
                    join=["memory-a"],
                    transport=MemoryTransport(peers.network),
                ) as cluster:
                    await cluster.store.put("k", 1)
                    await trio.sleep_forever()
            except RemovedError as exc:
                raised.append(exc)

        nursery.start_soon(third)
        await peers.roles("abc")
        await peers["b"].remove_member("c")
        assert {"a", "b"} == set(peers["b"].status().members)
        await peers.roles("ab")
        with trio.fail_after(5):
            while not raised:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.1)
    assert "was removed" in str(raised[0])


async def test_the_leader_is_removed(autojump_clock: trio.abc.Clock) -> None:
    """It hands leadership over, and the call returns on whoever made it."""
    async with running("abc") as peers:
        leader = id_of(await peers.leader())
        follower = (await peers.followers())[0]
        await follower.remove_member(leader)
        await follower.store.put("k", 1)
        await trio.sleep(5)
        assert [leader] == list(peers.removed)


async def test_a_leader_removes_itself(autojump_clock: trio.abc.Clock) -> None:
    """The call returns on it before it ends."""
    async with running("abc") as peers:
        leader = await peers.leader()
        node_id = id_of(leader)
        await leader.remove_member(node_id)
        assert node_id not in leader.status().members
        await trio.sleep(5)
        assert [node_id] == list(peers.removed)
        await (await peers.leader()).store.put("k", 1)


async def test_the_last_voter_stays(autojump_clock: trio.abc.Clock) -> None:
    """A cluster without voters could never decide anything again."""
    async with running("a") as peers:
        await peers.join("b", learner=True)
        with pytest.raises(ConfigurationError, match="all voters"):
            await peers["b"].remove_member("a")
        with pytest.raises(ConfigurationError, match="no member"):
            await peers["b"].remove_member("x")


async def test_a_peer_without_a_disk_comes_back_as_a_learner(autojump_clock: trio.abc.Clock) -> None:
    """By itself: it has forgotten what it voted, so it may not go on under its old incarnation. Then it votes again."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        follower = (await peers.followers())[0]
        node_id = id_of(follower)
        await peers.shutdown(node_id)
        back = await peers.start(node_id)
        put = await back.store.put("k", 2)
        assert (put, 2) == (back.store.revision, back.store["k"])
        await peers.roles("abc")
        await peers.converge()


async def test_a_voter_that_cannot_be_reached_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """It would cost the quorum, unless the caller insists; as a learner it costs nothing."""
    async with running("ab") as peers:
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await peers["a"].add_member("c", "memory-c")
        await peers.roles("ab")
        await peers["a"].add_member("c", "memory-c", learner=True)
        await peers.roles("ab", "c")
        await peers["a"].add_member("d", "memory-d", force=True)
        await peers.roles("abd", "c")
        await peers.join("d")
        await peers.roles("abd", "c")
        await peers["d"].store.put("k", 1)


async def test_who_has_little_time_is_told_why_all_the_same(autojump_clock: trio.abc.Clock) -> None:
    """The leader waits a little for what stands in the way; it says what that was before the caller's time is up."""
    async with running("ab", request_timeout_s=1.0) as peers:
        await peers.leader()
        await trio.sleep(2.0)  # until it knows who is there
        with pytest.raises(UnavailableError, match="c cannot be reached"):
            await peers["a"].add_member("c", "memory-c")


async def test_a_live_voter_is_not_removed_while_others_are_down(autojump_clock: trio.abc.Clock) -> None:
    """Those left would have no majority."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        gone, other = map(id_of, await peers.followers())
        await peers.shutdown(gone)
        leader = await peers.leader()
        with pytest.raises(UnavailableError, match="cost the quorum"):
            await leader.remove_member(other)
        await leader.remove_member(gone)
        await leader.store.put("k", 2)


async def test_a_gone_voter_is_replaced(autojump_clock: trio.abc.Clock) -> None:
    """By a learner that is caught up, without a hand."""
    async with running("abc", voters_max=3) as peers:
        await peers.join("d")
        await peers.roles("abc", "d")
        gone = id_of((await peers.followers())[0])
        await peers.shutdown(gone)
        await peers.roles("".join(sorted({*"abcd"} - {gone})), gone, within_s=60)


@pytest.mark.parametrize(("node_id", "address"), [("\ud800", "m"), ("d\n", "m"), ("", "m"), ("d", "m\x00"), ("d", "")])
async def test_names_that_no_log_could_hold(autojump_clock: trio.abc.Clock, node_id: str, address: str) -> None:
    """Refused before anything is asked of anybody."""
    async with running("a") as peers:
        with pytest.raises(ConfigurationError):
            await peers["a"].add_member(node_id, address, learner=True)


async def test_an_address_that_nobody_could_dial_is_refused(tmp_path: Path) -> None:
    """Of a member that is named, and of a peer that is started: over TCP it has a port."""
    address = f"{HOST}:{free_ports(1)[0]}"
    async with Cluster("a", address=address, data_dir=tmp_path / "a") as cluster:
        with pytest.raises(ConfigurationError, match="lacks a host or a port"):
            await cluster.add_member("d", "10.0.0.4", learner=True)
        with pytest.raises(ConfigurationError, match="lacks a host or a port"):
            async with Cluster("d", address="10.0.0.4", listen="127.0.0.1:0", join=[address]):
                pytest.fail("entered")
