"""When peers are dialed again."""

from __future__ import annotations

import random

import trio
import trio.testing

from replikv.settings import Settings
from replikv.testing.transport_fixture import RecordingReceiver
from replikv.transport.links import Backoff, Link
from replikv.transport.wire import DeclinedError, PeerConnectionError, RefusedError

SETTINGS = Settings(reconnect_delay_s=0.1, reconnect_delay_max_s=1.0)


class ScriptedLink(Link):
    """A link whose dials do what the script says: up for so many seconds, or an error."""

    def __init__(self, receiver: RecordingReceiver, script: list[float | PeerConnectionError]) -> None:
        super().__init__("b", receiver, SETTINGS, random.Random(1))
        self.script = script
        self.dials: list[float] = []

    queued_bytes = 0

    def _enqueue(self, frame: bytes) -> bool:
        return True

    def _discard(self) -> int:
        return 0

    async def _connect_and_hold(self, address: str) -> None:
        self.dials.append(trio.current_time())
        if not self.script:
            self.redirect(None)
            await trio.sleep_forever()
        step = self.script.pop(0)
        if isinstance(step, PeerConnectionError):
            raise step
        self._up()
        await trio.sleep(step)


async def pauses(script: list[float | PeerConnectionError]) -> tuple[list[float], RecordingReceiver]:
    """The pauses between dials, without the time that connections were up, and what the receiver heard."""
    receiver = RecordingReceiver("a")
    up = [step if isinstance(step, float) else 0.0 for step in script]
    link = ScriptedLink(receiver, list(script))
    link.redirect("address")
    await link.run()
    gaps = [later - earlier for earlier, later in zip(link.dials, link.dials[1:], strict=False)]
    return [gap - held for gap, held in zip(gaps, up, strict=True)], receiver


def test_backoff_doubles_up_to_its_cap() -> None:
    """Each pause is half to all of one that doubles from the first setting to the second."""
    backoff = Backoff(SETTINGS, random.Random(1))
    drawn = [backoff.pause_s() for _ in range(8)]
    for pause_s, longest_s in zip(drawn, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True):
        assert longest_s / 2 <= pause_s <= longest_s
    assert len(set(drawn)) == len(drawn)
    backoff.reset()
    assert backoff.pause_s() <= 0.1


async def test_failures_are_dialed_less_and_less(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that cannot be reached is dialed after longer and longer pauses, and nobody is told."""
    drawn, receiver = await pauses([PeerConnectionError("no route")] * 6)
    for pause_s, longest_s in zip(drawn, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], strict=True):
        assert longest_s / 2 <= round(pause_s, 6) <= longest_s
    assert [] == receiver.events


async def test_a_connection_that_was_up_starts_over(autojump_clock: trio.testing.MockClock) -> None:
    """After a connection that held the pauses are short again; after one that did not, they keep growing."""
    failure = PeerConnectionError("no route")
    drawn, _ = await pauses([failure, failure, failure, 5.0])
    assert drawn[3] <= 0.1
    drawn, _ = await pauses([failure, failure, failure, 0.01])
    assert drawn[3] >= 0.4


async def test_a_refusal_is_dialed_slowly(autojump_clock: trio.testing.MockClock) -> None:
    """A refusal is told in its words, and the next dial waits about as long as ever."""
    drawn, receiver = await pauses([RefusedError("lost its disk")])
    assert drawn[0] >= 0.5
    assert [("refused", "b", "lost its disk")] == receiver.events


async def test_whoever_we_decline_is_dialed_slowly(autojump_clock: trio.testing.MockClock) -> None:
    """That is our judgement on the other side: nobody has refused us, and nobody is told so."""
    drawn, receiver = await pauses([DeclinedError("lost its disk")])
    assert drawn[0] >= 0.5
    assert [] == receiver.events


async def test_connected_and_disconnected_alternate(autojump_clock: trio.testing.MockClock) -> None:
    """Each connection that was up is told once, and its end once, also when the link itself is dropped."""
    _, receiver = await pauses([1.0, PeerConnectionError("no route"), 1.0])
    assert ["connected", "disconnected"] * 2 == [event[0] for event in receiver.events]
    receiver = RecordingReceiver("a")
    link = ScriptedLink(receiver, [1000.0])
    link.redirect("address")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await receiver.wait_event("connected")
        assert link.send(b"frame")
        link.redirect(None)
        assert not link.send(b"frame")
    assert ["connected", "disconnected"] == [event[0] for event in receiver.events]
    assert 1000.0 > trio.current_time() - link.dials[0]


async def test_a_new_address_is_dialed_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """A pause ends when the address changes, and the next ones are short again."""
    failure = PeerConnectionError("no route")
    link = ScriptedLink(RecordingReceiver("a"), [failure] * 100)
    link.redirect("old")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await trio.sleep(5.0)
        before = len(link.dials)
        link.redirect("new")
        await trio.sleep(1.0)
        link.redirect(None)
    assert link.dials[before - 1] - link.dials[before - 2] > 0.4
    assert link.dials[before + 1] - link.dials[before] <= 0.1
    receiver = RecordingReceiver("a")
    link = ScriptedLink(receiver, [RefusedError("no"), 1.0])
    link.redirect("old")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await receiver.wait_event("refused")
        link.redirect("new")
        await receiver.wait_event("connected")
        assert link.dials[0] == link.dials[1]
        link.redirect(None)
