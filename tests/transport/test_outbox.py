"""The queue of frames for one peer."""

from __future__ import annotations

import trio
import trio.testing

from replikv.transport.outbox import FRAME_OVERHEAD_BYTES, Outbox
from replikv.transport.wire import encode_frames

FRAME = bytes(100)
COST = len(FRAME) + FRAME_OVERHEAD_BYTES


async def test_takes_all_that_is_queued_at_once() -> None:
    """Many small frames are one piece of bytes, so one system call."""
    outbox = Outbox(10_000)
    frames = [b"", b"a", b"bc"]
    assert all(outbox.put(frame) for frame in frames)
    assert encode_frames(frames) == await outbox.take(encode_frames)


async def test_a_batch_is_bounded() -> None:
    """A batch holds whole frames up to half a MiB, or one larger frame."""
    outbox = Outbox(10_000_000)
    sizes = [400_000, 100_000, 100_000, 1_000_000, 1]
    for size in sizes:
        outbox.put(bytes(size))
    taken = []
    while outbox.queued_bytes:
        with trio.move_on_after(0):
            taken.append(len(await outbox.take(encode_frames)))
    assert [400_000 + 100_000 + 8, 100_000 + 4, 1_000_000 + 4, 1 + 4] == taken


async def test_the_bound_counts_what_is_in_hand() -> None:
    """A batch that the writer has taken counts until the writer comes back: a peer that reads nothing is bounded."""
    outbox = Outbox(3 * COST)
    assert [True, True, True, False] == [outbox.put(FRAME) for _ in range(4)]
    await outbox.take(encode_frames)
    assert 3 * COST == outbox.queued_bytes
    assert not outbox.put(FRAME)
    with trio.move_on_after(0):
        await outbox.take(encode_frames)
    assert 0 == outbox.queued_bytes
    assert outbox.put(FRAME)


def test_an_empty_outbox_takes_any_frame() -> None:
    """The largest frame gets through whatever the bound."""
    outbox = Outbox(10)
    assert [True, False] == [outbox.put(FRAME), outbox.put(b"")]


async def test_take_waits() -> None:
    """The writer sleeps until something is there, and wakes for the first frame."""
    outbox, taken = Outbox(1000), []

    async def write() -> None:
        taken.append(await outbox.take(encode_frames))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        outbox.put(b"x")
    assert [encode_frames([b"x"])] == taken


async def test_cleared_between_wake_up_and_take() -> None:
    """A writer that was woken for frames which are gone by its turn goes back to sleep."""
    outbox = Outbox(1000)
    taken: list[bytes] = []

    async def write() -> None:
        taken.append(await outbox.take(encode_frames))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        outbox.put(b"gone")
        assert 1 == outbox.clear()
        await trio.testing.wait_all_tasks_blocked()
        assert [] == taken
        outbox.put(b"here")
    assert [encode_frames([b"here"])] == taken


async def test_the_rest_of_a_frame_goes_first() -> None:
    """Its beginning is out: whatever came between the two would be taken for the rest of it."""
    outbox = Outbox(10_000)
    outbox.put_rest(b"rest")
    assert not outbox.empty
    outbox.put(FRAME)
    assert b"rest" == await outbox.take(encode_frames)
    assert 4 + COST == outbox.queued_bytes
    assert encode_frames([FRAME]) == await outbox.take(encode_frames)
    with trio.move_on_after(0):
        await outbox.take(encode_frames)
    assert (0, True) == (outbox.queued_bytes, outbox.empty)


async def test_the_rest_of_a_frame_wakes_the_reader() -> None:
    """It waits in ``take`` while frames go out without it."""
    outbox = Outbox(10_000)
    taken: list[bytes] = []

    async def take() -> None:
        taken.append(await outbox.take(encode_frames))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        outbox.put_rest(b"rest")
    assert [b"rest"] == taken


async def test_the_rest_of_a_frame_is_forgotten_with_its_connection() -> None:
    """On the next one it would be taken for a frame; it counts as one that was lost."""
    outbox = Outbox(10_000)
    outbox.put_rest(b"rest")
    outbox.put(FRAME)
    assert (2, 0) == (outbox.clear(), outbox.queued_bytes)
    outbox.put(b"new")
    assert encode_frames([b"new"]) == await outbox.take(encode_frames)
    outbox.put(FRAME)
    assert (1, True) == (outbox.clear(), outbox.empty)
    with trio.move_on_after(0) as scope:
        await outbox.take(encode_frames)
    assert scope.cancelled_caught
    assert 0 == outbox.queued_bytes
