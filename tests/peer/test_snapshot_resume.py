"""A snapshot whose sender is lost: what has arrived is kept for a while, and who comes with the same sends the rest."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
import trio.testing
from snapshot_channels import (
    Follower,
    OneWay,
    WatchedStorage,
    begin,
    end_of,
    finish,
    metadata_at,
    sender,
    state,
    store,
    stored,
)

from replikv.peer.snapshot_stream import CHUNK, GO, REFUSED, SILENCE_MAX_S, encode_had
from replikv.raft.entries import SnapshotMetadata
from replikv.settings import Settings
from replikv.storage.memory import VolatileStorage

LARGE = state(2000)
CHUNKS = list(LARGE.snapshot())
RESUME_S = Settings().snapshot_resume_s


@pytest.fixture
async def follower(nursery: trio.Nursery) -> Follower:
    return Follower(nursery)


def writers(follower: Follower) -> int:
    assert isinstance(follower.storage, WatchedStorage)
    return follower.storage.open_writers


async def break_off(follower: Follower, chunks: Iterable[bytes], *, term: int = 1, index: int = 9) -> None:
    """A sender that is lost after so many chunks."""
    channel = await begin(follower, term=term, index=index)
    assert encode_had(0) == await channel.receive()
    for chunk in chunks:
        await channel.send(CHUNK + chunk)
    await trio.testing.wait_all_tasks_blocked()
    await channel.aclose()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_sender_goes_on_where_it_was_cut_off(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """Each chunk goes over the wire once, or a little more, however often the channel breaks."""
    transport = OneWay(follower, frames=[6, 5, 5])
    sending, reports = sender(stored(LARGE, 9), transport)
    for _ in range(3):
        await sending.send("b", 1, 9)
        await trio.testing.wait_all_tasks_blocked()
        assert 1 == writers(follower)
        await trio.sleep(RESUME_S * 0.9)
    await sending.send("b", 1, 9)
    assert [("b", True)] * 3 + [("b", False)] == reports
    assert [5, 4, 4] == [channel.chunks_sent for channel in transport.opened[:3]]
    assert len(CHUNKS) - 13 == transport.opened[3].chunks_sent
    assert LARGE.digest() == follower.replica.digest()
    with follower.storage.open_snapshot(9) as (_, chunks):
        assert CHUNKS == list(chunks)
    assert 0 == writers(follower)


async def test_a_sender_that_was_silent_too_long_may_go_on(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """Given up, not forgotten."""
    channel = await begin(follower)
    assert encode_had(0) == await channel.receive()
    await channel.send(CHUNK + CHUNKS[0])
    await trio.sleep(SILENCE_MAX_S * 2)
    with pytest.raises(trio.EndOfChannel):
        await channel.receive()
    channel = await begin(follower)
    assert encode_had(1) == await channel.receive()
    assert GO == await finish(channel, LARGE, had=1)


async def test_a_later_leader_goes_on_with_what_another_began(
    autojump_clock: trio.abc.Clock, follower: Follower
) -> None:
    """Equal logs give equal chunks. It takes the place of the other while that one is still connected."""
    stalled = await begin(follower, term=1, peer="a")
    assert encode_had(0) == await stalled.receive()
    for chunk in CHUNKS[:7]:
        await stalled.send(CHUNK + chunk)
    await trio.testing.wait_all_tasks_blocked()
    transport = OneWay(follower)
    sending, reports = sender(stored(LARGE, 9), transport)
    await sending.send("b", 2, 9)
    assert [("b", False)] == reports
    assert len(CHUNKS) - 7 == transport.opened[0].chunks_sent
    assert 2 == follower.installed[0].term
    assert LARGE.digest() == follower.replica.digest()
    with pytest.raises(trio.EndOfChannel):
        await stalled.receive()


async def test_senders_whose_chunks_differ_are_found_out(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """Nothing of either is installed or kept; the next attempt is from the beginning, and works."""
    await break_off(follower, list(state(2000, value=1).snapshot())[:7])
    transport = OneWay(follower)
    sending, reports = sender(stored(LARGE, 9), transport)
    await sending.send("b", 1, 9)
    assert [("b", True)] == reports
    assert [] == follower.installed
    assert 0 == writers(follower)
    await sending.send("b", 1, 9)
    assert [("b", True), ("b", False)] == reports
    assert len(CHUNKS) == transport.opened[1].chunks_sent
    assert LARGE.digest() == follower.replica.digest()


@pytest.mark.parametrize("frames", [[], CHUNKS[7:], [b"more"], [*CHUNKS[7:], b"more"]], ids=range(4))
async def test_an_end_too_early_or_too_late_is_found_out(
    autojump_clock: trio.abc.Clock, follower: Follower, frames: list[bytes]
) -> None:
    """The number of chunks is checked, too."""
    await break_off(follower, CHUNKS[:7])
    channel = await begin(follower)
    assert encode_had(7) == await channel.receive()
    for chunk in frames:
        await channel.send(CHUNK + chunk)
    await channel.send(end_of(CHUNKS[:-1]))
    assert REFUSED == (await channel.receive())[:1]
    assert [] == follower.installed
    assert 0 == writers(follower)


@pytest.mark.parametrize(
    "other", [metadata_at(10), metadata_at(8), SnapshotMetadata(9, 2, metadata_at(9).membership)], ids=range(3)
)
async def test_another_snapshot_puts_an_end_to_what_was_kept(
    autojump_clock: trio.abc.Clock, follower: Follower, other: SnapshotMetadata
) -> None:
    """It begins at its beginning, and so does the first one after that."""
    await break_off(follower, CHUNKS[:7])
    transport = OneWay(follower, frames=[3])
    storage = VolatileStorage()
    writer = storage.create_snapshot(other)
    for chunk in CHUNKS:
        writer.write(chunk)
    writer.commit()
    sending, _ = sender(storage, transport)
    await sending.send("b", 1, 1)
    assert 2 == transport.opened[0].chunks_sent
    assert 1 == writers(follower)
    channel = await begin(follower)
    assert encode_had(0) == await channel.receive()


async def test_what_was_kept_goes_when_its_time_has_passed(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """The lock is held until then, and not longer: the storage writes one snapshot at a time, and this one is begun."""
    for _ in range(2):
        await break_off(follower, CHUNKS[:7])
        await trio.sleep(RESUME_S - 0.1)
        assert follower.lock.locked()
        assert 1 == writers(follower)
        await trio.sleep(0.2)
        assert not follower.lock.locked()
        assert 0 == writers(follower)
    channel = await begin(follower)
    assert encode_had(0) == await channel.receive()
    assert GO == await finish(channel, LARGE)


async def test_how_long_it_is_kept_is_a_setting(autojump_clock: trio.abc.Clock, nursery: trio.Nursery) -> None:
    """Counted from when the sender was lost."""
    follower = Follower(nursery, settings=Settings(snapshot_resume_s=5.0))
    await break_off(follower, CHUNKS[:7])
    await trio.sleep(4.9)
    assert follower.lock.locked()
    await trio.sleep(0.2)
    assert not follower.lock.locked()


async def test_a_sender_of_an_earlier_term_does_not_go_on(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """Nor does it put an end to what a later one has begun."""
    await break_off(follower, CHUNKS[:7], term=5)
    assert REFUSED == (await (await begin(follower, term=4)).receive())[:1]
    assert encode_had(7) == await (await begin(follower, term=5)).receive()


async def test_a_peer_that_stops_throws_away_what_was_kept(autojump_clock: trio.abc.Clock) -> None:
    """Nobody comes to go on with it any more."""
    async with trio.open_nursery() as nursery:
        follower = Follower(nursery)
        await break_off(follower, CHUNKS[:7])
        assert 1 == writers(follower)
        nursery.cancel_scope.cancel()
    assert 0 == writers(follower)
    assert not follower.lock.locked()


async def test_what_was_lost_on_the_way_to_the_end_is_asked_for_again(
    autojump_clock: trio.abc.Clock, follower: Follower
) -> None:
    """All chunks have come, and the end has not: nothing but the end is sent."""
    await break_off(follower, CHUNKS)
    transport = OneWay(follower)
    sending, _ = sender(stored(LARGE, 9), transport)
    await sending.send("b", 1, 9)
    assert 0 == transport.opened[0].chunks_sent
    assert LARGE.digest() == follower.replica.digest()


async def test_a_full_disk_ends_it_also_for_whoever_goes_on(autojump_clock: trio.abc.Clock, follower: Follower) -> None:
    """Nothing is kept of what could not be written."""
    assert isinstance(follower.storage, WatchedStorage)
    await break_off(follower, CHUNKS[:7])
    follower.storage.chunks_until_full = 9
    sending, reports = sender(stored(LARGE, 9), OneWay(follower))
    await sending.send("b", 1, 9)
    assert 0 == writers(follower)
    assert not follower.lock.locked()
    follower.storage.chunks_until_full = None
    await sending.send("b", 1, 9)
    assert [("b", True), ("b", False)] == reports


async def test_a_snapshot_of_ones_own_waits_for_what_is_kept(
    autojump_clock: trio.abc.Clock, follower: Follower
) -> None:
    """Two are never written at once; here the storage itself would object."""
    await break_off(follower, CHUNKS[:7])
    waited = trio.current_time()
    async with follower.lock:
        store(follower.storage, CHUNKS, 5)
    assert trio.current_time() - waited == pytest.approx(RESUME_S)
