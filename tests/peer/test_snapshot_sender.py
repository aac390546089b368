"""A snapshot on its way to a follower: one report for each, few at once, at a rate; nobody is waited for in vain."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
import trio
import trio.testing
from snapshot_channels import (
    Follower,
    MemoryChannel,
    OneWay,
    begin,
    channel_pair,
    end_of,
    finish,
    metadata_at,
    sender,
    state,
    store,
    stored,
)

from replikv.machine.base import StateMachine
from replikv.machine.replica import Replica
from replikv.peer.protocol import SnapshotHeader, decode
from replikv.peer.snapshot_stream import (
    ANSWER_MAX_S,
    CHUNK,
    GO,
    REFUSED,
    SILENCE_MAX_S,
    STILL,
    STILL_S,
    RefusedError,
    SilenceError,
    encode_had,
)
from replikv.settings import Settings
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Channel


@pytest.fixture
async def follower(nursery: trio.Nursery) -> Follower:
    return Follower(nursery)


class Stopped(OneWay):
    """Opens channels to processes that take a few frames and say what they are told to, and nothing more."""

    def __init__(self, follower: Follower, *answers: bytes) -> None:
        super().__init__(follower)
        self.theirs: dict[str, MemoryChannel] = {}
        self.asked: list[str] = []
        self._answers = answers

    async def open_channel(self, node_id: str) -> Channel:
        ours, theirs = channel_pair()
        for answer in self._answers:
            await theirs.send(answer)
        self.theirs[node_id] = theirs
        self.asked.append(node_id)
        return ours


async def test_a_snapshot_arrives_whole(follower: Follower) -> None:
    """The receiver has the sender's state, durable; the sender reports it, and may send another."""
    leader = state(1000)
    sending, reports = sender(stored(leader, 9), OneWay(follower))
    await sending.send("b", 3, 9)
    assert [("b", False)] == reports
    assert {} == sending.sending
    assert leader.digest() == follower.replica.digest()
    (received,) = follower.installed
    assert ("a", 3, metadata_at(9)) == (received.sender, received.term, received.metadata)
    with follower.storage.open_snapshot(9) as (_, chunks):
        assert list(leader.snapshot()) == list(chunks)


async def test_an_unreachable_follower_is_reported(follower: Follower) -> None:
    """It is no error: the core tries again when it sees fit."""
    sending, reports = sender(stored(state(1), 9), OneWay(follower))
    await sending.send("nobody", 1, 9)
    assert [("nobody", True)] == reports


async def test_one_snapshot_at_a_time_goes_to_a_follower(follower: Follower, nursery: trio.Nursery) -> None:
    """The core may ask again meanwhile; the attempt under way answers for both."""
    sending, reports = sender(stored(state(10), 9), OneWay(follower))
    await follower.lock.acquire()
    nursery.start_soon(sending.send, "b", 1, 9)
    await trio.testing.wait_all_tasks_blocked()
    await sending.send("b", 1, 9)
    assert [] == reports
    follower.lock.release()
    await trio.testing.wait_all_tasks_blocked()
    assert [("b", False)] == reports


async def test_a_follower_that_has_as_much_refuses(follower: Follower) -> None:
    """Its own snapshot is not replaced by an older one; its core is told of the offer, and says what it has."""
    channel = await begin(follower, index=9)
    assert encode_had(0) == await channel.receive()
    assert GO == await finish(channel, state(10))
    sending, reports = sender(stored(state(1), 9), OneWay(follower))
    await sending.send("b", 1, 9)
    assert [("b", True)] == reports
    assert 1 == len(follower.installed)
    assert [9] == follower.known


async def test_few_are_sent_at_once(follower: Follower, nursery: trio.Nursery) -> None:
    """The others wait for their turn in the order in which they were asked for, before they take anybody's channel."""
    transport = Stopped(follower)
    sending, reports = sender(stored(state(1), 9), transport, Settings(snapshot_sends_max=2))
    for node_id in "bcdef":
        nursery.start_soon(sending.send, node_id, 1, 9)
        await trio.testing.wait_all_tasks_blocked()
    assert ["b", "c"] == transport.asked
    assert list("bcdef") == list(sending.sending)
    assert list("def") == [node_id for node_id, transfer in sending.sending.items() if transfer.waiting]
    await transport.theirs["c"].aclose()
    await trio.testing.wait_all_tasks_blocked()
    await transport.theirs["b"].send(REFUSED + b"no")
    await trio.testing.wait_all_tasks_blocked()
    assert ["b", "c", "d", "e"] == transport.asked
    assert [("c", True), ("b", True)] == reports
    assert list("def") == list(sending.sending)


async def test_each_attempt_is_reported_once_also_when_cancelled(follower: Follower) -> None:
    """Before its turn, at it, and before it was begun at all; the storage is let go of."""
    transport = Stopped(follower, encode_had(0))
    sending, reports = sender(stored(state(5000), 9), transport, Settings(snapshot_sends_max=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending.send, "b", 1, 9)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sending.send, "c", 1, 9)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sending.send, "d", 1, 9)
        nursery.cancel_scope.cancel()
    assert [("b", True), ("c", True), ("d", True)] == sorted(reports)
    assert {} == sending.sending
    assert ["b"] == transport.asked


async def test_all_together_keep_to_the_rate(autojump_clock: trio.abc.Clock, nursery: trio.Nursery) -> None:
    """Twice as many take twice as long; whoever sleeps says so in time, and is not taken for silent."""
    chunks = list(state(3000).snapshot())
    size = sum(map(len, chunks))
    settings = Settings(snapshot_sends_max=4, snapshot_send_bytes_per_s=max(1, size // 60))
    followers = [Follower(nursery) for _ in range(4)]
    storage = stored(state(3000), 9)

    class Star(OneWay):
        async def open_channel(self, node_id: str) -> Channel:
            channel = followers[int(node_id)].accept()
            self.opened.append(channel)
            return channel

    for first, count in ((0, 1), (1, 3)):
        transport = Star(followers[0])
        sending, reports = sender(storage, transport, settings)
        started = trio.current_time()
        async with trio.open_nursery() as sends:
            for number in range(count):
                sends.start_soon(sending.send, str(first + number), 1, 9)
        took_s = trio.current_time() - started
        assert took_s == pytest.approx(60 * count, rel=0.1)
        assert [False] * count == [failed for _, failed in reports]
        gaps = [late - early for c in transport.opened for early, late in zip(c.sent_at, c.sent_at[1:], strict=False)]
        assert max(gaps) < SILENCE_MAX_S / 2
        assert all(channel.signs_of_life for channel in transport.opened)


async def test_what_is_sent_can_be_watched(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """Since when, how much, and when something moved last, on both sides."""
    chunks = list(state(3000).snapshot())
    size = sum(map(len, chunks))
    sending, _ = sender(stored(state(3000), 9), OneWay(follower), Settings(snapshot_send_bytes_per_s=size // 10))
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending.send, "b", 1, 9)
        await trio.sleep(5.0)
        out, incoming = sending.sending["b"], follower.receiver.receiving["a"]
        assert (started, False) == (out.since, out.waiting)
        assert out.moved_bytes == pytest.approx(size / 2, rel=0.15)
        assert incoming.moved_bytes == out.moved_bytes
        assert started + 4.0 < out.moved_at == incoming.moved_at <= started + 5.0
    assert {} == follower.receiver.receiving


@pytest.mark.parametrize(
    ("answers", "limit_s"),
    [((), ANSWER_MAX_S), ((encode_had(0),), SILENCE_MAX_S), ((encode_had(10**6),), ANSWER_MAX_S)],
    ids=["never-begins", "takes-nothing", "never-ends"],
)
async def test_a_follower_that_stopped_does_not_keep_others_from_theirs(
    autojump_clock: trio.abc.Clock, follower: Follower, answers: tuple[bytes, ...], limit_s: float
) -> None:
    """Its process was stopped, its connection lives: it is given up in the end, and reported."""
    transport = Stopped(follower, *answers)
    sending, reports = sender(stored(state(3000), 9), transport)
    started = trio.current_time()
    await sending.send("b", 1, 9)
    assert [("b", True)] == reports
    assert trio.current_time() - started == pytest.approx(limit_s, abs=1.0)


@pytest.mark.parametrize("answer", [b"", b"\x01", b"\x01\x00", b"\x07", REFUSED + b"\xff"])
async def test_an_answer_that_is_none_ends_the_attempt(follower: Follower, answer: bytes) -> None:
    """Nobody goes on with whoever speaks otherwise."""
    sending, reports = sender(stored(state(1), 9), Stopped(follower, answer))
    await sending.send("b", 1, 9)
    assert [("b", True)] == reports


async def test_a_chunk_that_fits_no_frame_is_not_sent(follower: Follower) -> None:
    """The connection would be closed over it, without a word."""
    storage = VolatileStorage()
    store(storage, [bytes(17 * 1024 * 1024)], 9)
    transport = OneWay(follower)
    sending, reports = sender(storage, transport)
    await sending.send("b", 1, 9)
    assert [("b", True)] == reports
    assert 0 == transport.opened[0].chunks_sent


class Blob(StateMachine):
    """State in one large piece."""

    def __init__(self, blob: bytes = b"") -> None:
        self.blob = blob

    def apply(self, position: int, command: bytes) -> bytes:
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter([self.blob])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.blob = b"".join(chunks)


async def test_a_large_chunk_of_a_custom_machine_goes_through(nursery: trio.Nursery) -> None:
    """Whatever the machine hands out at a time: frames stay far below what a frame may be."""
    blob = random.Random(1).randbytes(20 * 1024 * 1024)
    leader = Replica(Blob(blob))
    machine = Blob()
    follower = Follower(nursery, replica=Replica(machine))
    transport = OneWay(follower)
    sending, reports = sender(stored(leader, 9), transport)
    await sending.send("b", 1, 9)
    assert [("b", False)] == reports
    assert blob == machine.blob
    assert leader.digest() == follower.replica.digest()
    assert max(map(len, transport.opened[0].sent)) < 2 * 64 * 1024


class Answering:
    """Somebody who has asked for a snapshot over a channel of his own, and says ``had``."""

    def __init__(self, nursery: trio.Nursery, had: int = 0, last: bytes = GO) -> None:
        self.ours, self.theirs = channel_pair()
        self.frames: list[bytes] = []
        nursery.start_soon(self._serve, had, last)

    async def _serve(self, had: int, last: bytes) -> None:
        while (frame := await self.theirs.receive())[:1] == STILL:
            self.frames.append(frame)
        self.frames.append(frame)
        await self.theirs.send(encode_had(had))
        while not self.frames[-1].startswith(b"\x03"):
            self.frames.append(await self.theirs.receive())
        await self.theirs.send(last)


async def test_who_asks_over_a_channel_gets_the_newest(follower: Follower, nursery: trio.Nursery) -> None:
    """Header, chunks, end; what was sent is returned, nothing is reported, and meanwhile it can be watched."""
    sending, reports = sender(stored(state(3), 9), OneWay(follower))
    asker = Answering(nursery)
    assert metadata_at(9) == await sending.send_over(asker.ours, 4, 5, "d")
    header, *chunks, end = asker.frames
    assert SnapshotHeader(4, metadata_at(9)) == decode(header, "a", "d")
    assert [CHUNK + chunk for chunk in state(3).snapshot()] == chunks
    assert end_of(state(3).snapshot()) == end
    assert [] == reports
    assert {} == sending.joining


async def test_what_the_other_side_has_is_not_sent_and_yet_vouched_for(
    follower: Follower, nursery: trio.Nursery
) -> None:
    """The digest is of the whole."""
    sending, _ = sender(stored(state(1000), 9), OneWay(follower))
    asker = Answering(nursery, had=5)
    await sending.send_over(asker.ours, 4, 5, "d")
    _, *chunks, end = asker.frames
    assert [CHUNK + chunk for chunk in list(state(1000).snapshot())[5:]] == chunks
    assert end_of(state(1000).snapshot()) == end


async def test_who_asks_waits_for_its_turn_and_hears_so(
    autojump_clock: trio.abc.Clock, follower: Follower, nursery: trio.Nursery
) -> None:
    """Its channel is open meanwhile: silence would have it think that we are gone."""
    transport = Stopped(follower)
    sending, _ = sender(stored(state(1), 9), transport, Settings(snapshot_sends_max=1))
    nursery.start_soon(sending.send, "b", 1, 9)
    await trio.testing.wait_all_tasks_blocked()
    asker = Answering(nursery)
    nursery.start_soon(sending.send_over, asker.ours, 4, 9, "d")
    await trio.sleep(4.5 * STILL_S)
    assert [STILL] * 4 == asker.frames
    assert sending.joining["d"].waiting
    await transport.theirs["b"].aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert end_of(state(1).snapshot()) == asker.frames[-1]


async def test_who_asks_and_fails_is_told_why_not(
    autojump_clock: trio.abc.Clock, follower: Follower, nursery: trio.Nursery
) -> None:
    """Refused, silent or gone; it counts as sent no longer, and keeps nobody else's turn."""
    sending, _ = sender(stored(state(1), 9), OneWay(follower), Settings(snapshot_sends_max=1))
    with pytest.raises(RefusedError, match="no room"):
        await sending.send_over(Answering(nursery, last=REFUSED + b"no room").ours, 4, 9, "d")
    ours, theirs = channel_pair()
    with pytest.raises(SilenceError):
        await sending.send_over(ours, 4, 9, "d")
    ours, theirs = channel_pair()
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await sending.send_over(ours, 4, 9, "d")
    assert {} == sending.joining
    await sending.send_over(Answering(nursery).ours, 4, 9, "d")
