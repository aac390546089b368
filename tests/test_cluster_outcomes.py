"""What became of a command whose answer never came: settled from any peer, for good, and after a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio
from clusters import Peers, id_of, open_sessions, peer_of, running

from replikv import (
    Cluster,
    ClusterClosedError,
    ConfigurationError,
    EncodingError,
    Outcome,
    OutcomeUnknownError,
    StateMachine,
    UnavailableError,
)
from replikv.machine.commands import decode_put_result, encode_put
from replikv.machine.envelope import CommandKind, Envelope, pack_commands


async def put_in_vain(peers: Peers, cluster: Cluster) -> tuple[int, int]:
    """A put in the log of a leader that is cut off, which others overwrite."""
    peers.network.isolate(id_of(cluster))
    with pytest.raises(OutcomeUnknownError, match=r"cluster\.outcome") as caught:
        await cluster.store.put("key", "in vain")
    rest = [id_of(other) for other in peers.without(cluster)]
    await peers[rest[0]].store.put("other", 1)
    peers.network.heal()
    await peers.leader()
    return caught.value.token


async def put_unheard(peers: Peers, cluster: Cluster) -> tuple[int, int]:
    """A put of a follower that the leader has, and that has effect, without the follower hearing of it in time."""
    tokens: list[tuple[int, int]] = []

    async def put() -> None:
        with pytest.raises(OutcomeUnknownError) as caught:
            await cluster.store.put("key", "unheard")
        tokens.append(caught.value.token)

    async with trio.open_nursery() as nursery:
        peers.network.set_faults(delay_s=(0.01, 0.01))
        nursery.start_soon(put)
        await trio.sleep(0.015)
        peers.network.isolate(id_of(cluster))
        peers.network.set_faults()
    peers.network.heal()
    return tokens[0]


async def propose_late(leader: Cluster, token: tuple[int, int], value: bytes) -> None:
    """As if an attempt of the put had been on its way for all the time: it reaches the log now."""
    session, sequence = token
    command = Envelope(CommandKind.MAP, session, sequence, 0, encode_put(b"key", value)).encode()
    driver = peer_of(leader)._driver
    index = driver.node.propose(pack_commands([command]))
    driver.wake()
    while driver.applier.index < index:  # noqa: ASYNC110  # nothing to wait on
        await trio.sleep(0.01)


async def test_a_timed_out_put_must_not_be_applied_later_without_a_trace(autojump_clock: trio.abc.Clock) -> None:
    """After "not applied" was told, it never is: an attempt that comes even later changes nothing, on any peer."""
    async with running(request_timeout_s=4.0) as peers:
        await peers["a"].store.put("key", "first")
        token = await put_in_vain(peers, await peers.leader())
        outcome = await peers["b"].outcome(token)
        assert not outcome
        assert Outcome(False, b"", "it had not been applied when this was asked, and never will be") == outcome
        await propose_late(await peers.leader(), token, b"\x64late")
        await peers["a"].store.put("after", 1)
        await propose_late(await peers.leader(), token, b"\x64late")
        await peers.converge()
        assert ["first"] * 3 == [cluster.store["key"] for cluster in peers.all]


@pytest.mark.parametrize("asker", ["who sent it", "another peer"])
async def test_a_put_that_was_applied_is_told_with_its_revision(autojump_clock: trio.abc.Clock, asker: str) -> None:
    """From the peer that gave up, and from any other; nothing is applied again."""
    async with running(request_timeout_s=4.0) as peers:
        sender = (await peers.followers())[0]
        await sender.store.put("key", "first")
        token = await put_unheard(peers, sender)
        outcome = await (sender if asker == "who sent it" else peers.without(sender)[0]).outcome(token)
        assert outcome
        await sender.store.barrier()
        assert sender.store.entry("key").mod_revision == decode_put_result(outcome.result)
        assert "unheard" == sender.store["key"]
        await peers.converge()


async def test_an_outcome_is_settled_after_a_restart(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """The token is two integers, and all that is needed: the process that sent the command is another one by now."""
    async with running(request_timeout_s=4.0, disks=tmp_path) as peers:
        old = await peers.leader()
        await old.store.put("key", "first")
        token = await put_in_vain(peers, old)
        node_id = id_of(old)
        await peers.shutdown(node_id)
        restarted = await peers.restart(node_id)
        assert not await restarted.outcome(token)
        applied = await put_unheard(peers, (await peers.followers())[0])
        for again in "abc":
            await peers.shutdown(again)
            await peers.restart(again)
        assert await peers["a"].outcome(applied)


async def test_questions_from_every_peer_at_once_have_one_answer(autojump_clock: trio.abc.Clock) -> None:
    """Whoever comes first settles it; while frames are lost and doubled, and leaders change."""
    async with running("abcde", request_timeout_s=30.0) as peers:
        old = await peers.leader()
        await old.store.put("key", 1)
        token = await put_in_vain(peers, old)
        outcomes: list[Outcome] = []

        async def ask(cluster: Cluster) -> None:
            outcomes.append(await cluster.outcome(token))

        peers.network.set_faults(loss=0.1, duplication=0.2, delay_s=(0.001, 0.02))
        async with trio.open_nursery() as nursery:
            for cluster in peers.all:
                nursery.start_soon(ask, cluster)
            with contextlib.suppress(UnavailableError):  # the word to the successor may be among what is lost
                await (await peers.leader()).transfer_leadership()
        assert [False] * 5 == [outcome.applied for outcome in outcomes]


async def test_nobody_can_tell_of_a_session_that_was_evicted(autojump_clock: trio.abc.Clock) -> None:
    """So many peers have started since: the token is still the same, and the command will not be applied any more."""
    async with running(request_timeout_s=4.0, sessions_max=4) as peers:
        token = await put_in_vain(peers, await peers.leader())
        await open_sessions(await peers.leader(), 8)
        with pytest.raises(OutcomeUnknownError, match=r"nobody can tell any more.*evicted") as caught:
            await peers["a"].outcome(token)
        assert token == caught.value.token
        await propose_late(await peers.leader(), token, b"\x64late")
        assert "key" not in (await peers.leader()).store


async def test_nobody_can_tell_of_what_was_told_long_ago(autojump_clock: trio.abc.Clock) -> None:
    """The peer that sent it was told, and has gone on: the answer is not kept."""
    async with running(request_timeout_s=4.0) as peers:
        cluster = await peers.leader()
        token = await put_in_vain(peers, cluster)
        assert not await cluster.outcome(token)
        await cluster.store.put("key", 1)
        with pytest.raises(OutcomeUnknownError, match=r"nobody can tell any more.*was told"):
            await peers["a"].outcome(token)


async def test_a_question_without_a_majority_may_be_asked_again(autojump_clock: trio.abc.Clock) -> None:
    """UnavailableError, in time; the answer is there as soon as the cluster is."""
    async with running(request_timeout_s=4.0) as peers:
        cluster = await peers.leader()
        token = await put_in_vain(peers, cluster)
        peers.network.isolate(id_of(cluster))
        started = trio.current_time()
        with pytest.raises(UnavailableError, match=r"not settled: no answer within 4\.0 s.*ask again"):
            await cluster.outcome(token)
        assert 3.8 <= trio.current_time() - started <= 4.0
        peers.network.heal()
        assert not await cluster.outcome(token)


@pytest.mark.parametrize(
    "token", [(0, 0), (1, 0), (1,), (1, 2, 3), "ab", None, (True, 1), (1.0, 1), (-1, 1), (1 << 63, 1)]
)
async def test_what_is_no_token(autojump_clock: trio.abc.Clock, token: object) -> None:
    """Two integers that a command had; a change of the members has none."""
    async with running("a") as peers:
        with pytest.raises(ConfigurationError, match="not the token of a command"):
            await peers["a"].outcome(token)  # type: ignore[arg-type]  # that is the test


async def test_a_closed_cluster_settles_nothing() -> None:
    """Before and after its block."""
    cluster = Cluster("a")
    with pytest.raises(ClusterClosedError):
        await cluster.outcome((1, 1))


class Fragile(StateMachine):
    """Counts, and raises on demand."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, position: int, command: bytes) -> bytes:
        if command == b"raise":
            raise LookupError(f"details of {id(self)}")
        self.count += 1
        return b"%d" % self.count

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d" % self.count])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.count = int(b"".join(chunks))


async def test_a_command_whose_apply_fails_must_not_stop_the_log(autojump_clock: trio.abc.Clock) -> None:
    """The caller is told, on every peer alike; what stands beside it in the same entry, and follows, is applied."""
    async with running(absent="abc") as peers:
        for node_id in "abc":
            await peers.start(node_id, machine=Fragile())
        results: list[object] = []

        async def propose(cluster: Cluster, command: bytes) -> None:
            try:
                results.append(await cluster.propose(command))
            except EncodingError as exc:
                results.append(str(exc))

        for cluster in peers.all:
            async with trio.open_nursery() as nursery:
                for command in (b"add", b"raise", b"add"):
                    nursery.start_soon(propose, cluster, command)
        assert {b"%d" % number for number in range(1, 7)} | {"the state machine raised LookupError"} == set(results)
        await peers["a"].store.put("key", 1)
        await peers.converge()
