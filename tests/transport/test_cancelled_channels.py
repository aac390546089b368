"""Opening a channel, using and closing it, cancelled at each checkpoint: neither side is left with anything."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
from certificates import contexts
from steps import CancelAtStep

from replikv.testing.transport_fixture import RunningTransport, TransportFixture
from replikv.transport.base import Channel, Transport
from replikv.transport.memory import MemoryNetwork, MemoryTransport
from replikv.transport.tcp import TcpTransport

SETTLED_S = 10.0
"""Within this time, on a busy machine, the other side has noticed."""


class Memory(TransportFixture):
    def __init__(self) -> None:
        self._network = MemoryNetwork()

    def make_transport(self, node_id: str) -> Transport:
        return MemoryTransport(self._network)

    def listen_address(self, node_id: str) -> str:
        return f"memory-{node_id}"


class Tcp(TransportFixture):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport()


class TcpWithSecret(TransportFixture):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport(secret=b"a secret for this test only")


class TcpWithTls(TransportFixture):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport(tls=contexts(node_id))


def held() -> tuple[int, int]:
    """Tasks and descriptors of this process."""
    return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))


async def until_held(baseline: tuple[int, int]) -> None:
    """Wait until there is no more than that."""
    with trio.move_on_after(SETTLED_S):
        while any(now > before for now, before in zip(held(), baseline, strict=True)):  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.001)
        return
    raise AssertionError(f"tasks and descriptors: {baseline} before, {held()} now")


async def open_channel(a: RunningTransport, b: RunningTransport) -> Channel:
    return await a.transport.open_channel("b")


async def call(a: RunningTransport, b: RunningTransport) -> Channel:
    return await a.transport.call(b.address, a.receiver.hello(), Tcp.settings)


async def exchange(channel: Channel) -> None:
    """A frame that fits into no single packet, there and back."""
    await channel.send(bytes(200_000))
    assert bytes(200_000) == await channel.receive()


@pytest.mark.parametrize("kind", [Memory, Tcp, TcpWithSecret, TcpWithTls])
@pytest.mark.parametrize("opening", [open_channel, call])
async def test_cancelled_at_any_checkpoint(
    kind: type[TransportFixture], opening: Callable[[RunningTransport, RunningTransport], Awaitable[Channel]]
) -> None:
    """Whatever was open is closed, here and there, and the next one works."""
    async with kind().running("a", "b") as (a, b):
        await a.connect(b)
        await trio.sleep(0.05)  # what has made the connection ends
        baseline = held()
        step = 0
        while True:
            cancelling = CancelAtStep(step, own=True)
            with cancelling.counting():
                channel = await opening(a, b)
                try:
                    await exchange(channel)
                finally:
                    await channel.aclose()
            await until_held(baseline)
            if cancelling.too_late:
                break
            step += 1
        assert cancelling.ended
        assert step > 3
