"""A TCP proxy that misbehaves when it is told to: on real sockets, so what the kernel does is part of it."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from replikv import Cluster, ConfigurationError, Settings
from replikv.testing import proxy as proxy_module
from replikv.testing.proxy import Faults, RoutedTransport, TcpProxy, reserve_port

SOON_S = 20.0
"""For what comes at once, on a busy machine."""
NEVER_S = 0.05
"""For what never comes."""


class Target:
    """A server that keeps what it was told, and says it back."""

    def __init__(self) -> None:
        self.told = bytearray()
        self.ends: list[str] = []
        self.reading = trio.Event()
        self.news = trio.Event()
        self.reading.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            await self.reading.wait()
            while data := await stream.receive_some(65536):
                self.told += data
                self._tell()
                await stream.send_all(data)
            self.ends.append("end")
            await stream.send_eof()
        except trio.BrokenResourceError:
            self.ends.append("reset")
        self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, trio.Event()
        news.set()

    async def wait(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(SOON_S):
            while not condition():
                await self.news.wait()


@contextlib.asynccontextmanager
async def proxied() -> AsyncIterator[tuple[TcpProxy, Target]]:
    target = Target()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, target.serve, listeners)
        proxy = TcpProxy(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        assert proxy.address == await nursery.start(proxy.run)
        yield proxy, target
        nursery.cancel_scope.cancel()


async def dial(proxy: TcpProxy) -> trio.SocketStream:
    host, _, port = proxy.address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    data = bytearray()
    with trio.fail_after(SOON_S):
        while len(data) < count:
            part = bytes(await stream.receive_some(count - len(data)))
            if not part:
                break
            data += part
    return bytes(data)


async def says_nothing(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(NEVER_S):
        await stream.receive_some(1)
        return False
    return True


async def refused(attempt: Callable[[], Awaitable[object]]) -> bool:
    try:
        await attempt()
    except OSError as exc:
        group = exc.__cause__
        assert isinstance(group, BaseExceptionGroup | OSError)
        causes = group.exceptions if isinstance(group, BaseExceptionGroup) else [group]
        return all(isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED for cause in causes)
    return False


async def test_bytes_and_ends_pass() -> None:
    """What is sent arrives whole and in order in both directions, and so does its end."""
    data = bytes(range(256)) * 4096
    async with proxied() as (proxy, target), await dial(proxy) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        assert data == await receive(stream, len(data))
        await stream.send_eof()
        await target.wait(lambda: target.ends == ["end"])
        assert b"" == await receive(stream, 1)
        assert data == target.told
        passed = proxy.statistics()
        assert (len(data), len(data), 0) == (
            passed["forward_bytes"],
            passed["backward_bytes"],
            passed["dropped_bytes"],
        )


async def test_a_delay_holds_each_way() -> None:
    """Bytes arrive so much later, and all that is under way arrives at once when the delay ends."""
    async with proxied() as (proxy, target), await dial(proxy) as stream:
        proxy.forward = Faults(delay_s=0.05)
        proxy.backward = Faults(delay_s=0.07)
        began = time.monotonic()
        await stream.send_all(b"a")
        assert b"a" == await receive(stream, 1)
        assert time.monotonic() - began >= 0.12
        proxy.forward = Faults(delay_s=1000)
        await stream.send_all(b"b")
        assert await says_nothing(stream)
        assert b"a" == target.told
        proxy.heal()
        assert b"b" == await receive(stream, 1)


async def test_bandwidth_is_kept() -> None:
    """So many bytes take so long, over all connections; what waits passes when the limit ends."""
    async with proxied() as (proxy, _), await dial(proxy) as one, await dial(proxy) as other:
        proxy.forward = Faults(bytes_per_s=100_000)
        began = time.monotonic()
        await one.send_all(bytes(5_000))
        await other.send_all(bytes(5_000))
        await receive(one, 5_000)
        await receive(other, 5_000)
        assert time.monotonic() - began >= 0.1
        proxy.forward = Faults(bytes_per_s=0.001)
        await one.send_all(b"slow")
        assert await says_nothing(one)
        proxy.heal()
        assert b"slow" == await receive(one, 4)


async def test_a_black_hole_swallows_and_tells_nobody() -> None:
    """Both sides keep their connections, and neither hears anything, not even the end; healing resets it."""
    async with proxied() as (proxy, target), await dial(proxy) as stream:
        await stream.send_all(b"a")
        assert b"a" == await receive(stream, 1)
        proxy.forward = proxy.backward = Faults(drop=True)
        await stream.send_all(b"lost")
        assert await says_nothing(stream)
        async with await dial(proxy) as late:
            await late.send_all(b"lost, too")
            assert await says_nothing(late)
            assert (b"a", []) == (bytes(target.told), target.ends)
            proxy.heal()
            for cut in (stream, late):
                with pytest.raises(trio.BrokenResourceError):
                    await receive(cut, 1)
        await target.wait(lambda: target.ends == ["reset"])
        assert len(b"lostlost, too") == proxy.statistics()["dropped_bytes"]
        async with await dial(proxy) as again:
            await again.send_all(b"b")
            assert b"b" == await receive(again, 1)


async def test_an_end_does_not_cross_a_black_hole() -> None:
    """Who closes during a partition is not heard closing before it is over."""
    async with proxied() as (proxy, target):
        async with await dial(proxy) as stream:
            await stream.send_all(b"a")
            assert b"a" == await receive(stream, 1)
            proxy.forward = Faults(drop=True)
        with trio.move_on_after(NEVER_S):
            await target.wait(lambda: target.ends != [])
        assert [] == target.ends
        proxy.heal()
        await target.wait(lambda: target.ends == ["reset"])


async def test_a_black_hole_may_have_one_way() -> None:
    """The other direction goes on, over the same connection."""
    async with proxied() as (proxy, target), await dial(proxy) as stream:
        await stream.send_all(b"a")
        assert b"a" == await receive(stream, 1)
        proxy.backward = Faults(drop=True)
        await stream.send_all(b"b")
        await target.wait(lambda: target.told == b"ab")
        assert await says_nothing(stream)


async def test_a_connection_without_a_gap_outlives_a_black_hole() -> None:
    """Where nothing was lost, there is nothing to break."""
    async with proxied() as (proxy, _), await dial(proxy) as stream:
        await stream.send_all(b"a")
        assert b"a" == await receive(stream, 1)
        proxy.forward = Faults(drop=True)
        proxy.heal()
        await stream.send_all(b"b")
        assert b"b" == await receive(stream, 1)


async def test_a_stall_loses_nothing() -> None:
    """Nothing arrives while it lasts, and everything afterwards; meanwhile the sender is held up, not our memory."""
    data = bytes(range(256)) * 4 * 12 * 1024
    async with proxied() as (proxy, target), await dial(proxy) as stream, trio.open_nursery() as nursery:
        proxy.forward = Faults(stall=True)
        sent: list[bool] = []

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_all(data)  # together 24 MiB: far more than the proxy and two kernels hold
            sent.append(True)

        nursery.start_soon(send)
        assert await says_nothing(stream)
        await trio.sleep(NEVER_S)
        assert (b"", []) == (bytes(target.told), sent)
        proxy.heal()
        assert data == await receive(stream, len(data))
        assert data == await receive(stream, len(data))
        assert [True] == sent


async def test_a_reset_is_heard_on_both_sides() -> None:
    """Both get RST, not the end of the stream, and may connect again at once."""
    async with proxied() as (proxy, target), await dial(proxy) as stream:
        await stream.send_all(b"a")
        assert b"a" == await receive(stream, 1)
        assert 1 == proxy.reset()
        with pytest.raises(trio.BrokenResourceError):
            await receive(stream, 1)
        await target.wait(lambda: target.ends == ["reset"])
        async with await dial(proxy) as again:
            await again.send_all(b"b")
            assert b"b" == await receive(again, 1)


async def test_refusing_is_of_new_ones_and_keeps_the_port() -> None:
    """Dialing is refused by the kernel; connections go on; the port is the same afterwards."""
    async with proxied() as (proxy, _), await dial(proxy) as stream:
        await stream.send_all(b"a")
        assert b"a" == await receive(stream, 1)
        for _ in range(3):
            proxy.welcome = "refuse"
            assert await refused(lambda: dial(proxy))
            await stream.send_all(b"b")
            assert b"b" == await receive(stream, 1)
            proxy.welcome = "serve"
            async with await dial(proxy) as again:
                await again.send_all(b"c")
                assert b"c" == await receive(again, 1)


async def test_half_open() -> None:
    """New ones are accepted and never answered, and the target hears nothing of them."""
    async with proxied() as (proxy, target):
        proxy.welcome = "hold"
        async with await dial(proxy) as stream:
            await stream.send_all(b"hello?")
            assert await says_nothing(stream)
            assert (b"", []) == (bytes(target.told), target.ends)
            proxy.heal()
            with pytest.raises(trio.BrokenResourceError):
                await receive(stream, 1)


async def test_a_target_that_is_away_is_a_reset() -> None:
    """Who dials learns of it at once; and may get through later, also to another target."""
    async with proxied() as (proxy, _):
        target, nobody = proxy.target, reserve_port()
        with nobody:
            proxy.target = f"127.0.0.1:{nobody.getsockname()[1]}"
            async with await dial(proxy) as stream:
                with pytest.raises(trio.BrokenResourceError):
                    await receive(stream, 1)
        proxy.target = target
        async with await dial(proxy) as again:
            await again.send_all(b"a")
            assert b"a" == await receive(again, 1)


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the oldest one goes: those that hang in a fault do not add up."""
    monkeypatch.setattr(proxy_module, "CONNECTIONS_MAX", 2)
    async with proxied() as (proxy, _):
        proxy.welcome = "hold"
        async with await dial(proxy) as oldest:
            await oldest.send_all(b"a")
            assert await says_nothing(oldest)
            async with await dial(proxy), await dial(proxy):
                with pytest.raises(trio.BrokenResourceError):
                    await receive(oldest, 1)
                assert 2 == proxy.statistics()["connections"]


async def test_nothing_is_left_when_it_ends() -> None:
    """Its connections break, whatever they hang in, and its port is free."""
    async with contextlib.AsyncExitStack() as stack:
        async with proxied() as (proxy, _):
            streams = [await stack.enter_async_context(await dial(proxy)) for _ in range(2)]
            for stream in streams:
                await stream.send_all(b"a")
                assert b"a" == await receive(stream, 1)
            proxy.forward = Faults(drop=True)
            proxy.backward = Faults(stall=True)
            await streams[0].send_all(b"b")
            proxy.welcome = "hold"
            streams.append(await stack.enter_async_context(await dial(proxy)))
        for stream in streams:
            with pytest.raises(trio.BrokenResourceError):
                await receive(stream, 1)
        assert await refused(lambda: dial(proxy))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Faults(delay_s=-1),
        lambda: Faults(bytes_per_s=0),
        lambda: TcpProxy("nowhere"),
        lambda: setattr(TcpProxy("127.0.0.1:1", listen="127.0.0.1:1"), "welcome", "no"),
    ],
)
def test_mistakes_are_told(wrong: Callable[[], object]) -> None:
    """What makes no sense is a ConfigurationError."""
    with pytest.raises(ConfigurationError):
        wrong()


async def test_peers_find_each_other_by_their_routes(tmp_path: Path) -> None:
    """Members keep addresses that nobody listens on, and each dials the others by proxies of its own; a black hole in
    one of them is felt, and over when it is healed."""
    settings = Settings(heartbeat_interval_s=0.02, election_timeout_s=0.2, connect_timeout_s=1.0)
    members = {name: f"{name}.invalid:1" for name in "ab"}
    async with trio.open_nursery() as nursery:
        with contextlib.ExitStack() as ports:
            listen = {name: f"127.0.0.1:{ports.enter_context(reserve_port()).getsockname()[1]}" for name in members}
            ways = {(one, other): TcpProxy(listen[other]) for one in members for other in members if one != other}
            for way in ways.values():
                await nursery.start(way.run)
            clusters = [
                Cluster(
                    name,
                    members=members,
                    listen=listen[name],
                    transport=RoutedTransport(
                        {members[other]: ways[name, other].address for other in members if other != name}
                    ),
                    settings=settings,
                )
                for name in members
            ]
            async with clusters[0], clusters[1]:
                with trio.fail_after(SOON_S):
                    await clusters[0].store.put("k", 1)
                ways["a", "b"].forward = Faults(drop=True)
                with trio.move_on_after(0.5):
                    await clusters[0].store.put("k", 2)
                    raise AssertionError("a majority of two is two")
                ways["a", "b"].heal()
                with trio.fail_after(SOON_S):
                    await clusters[0].store.put("k", 3)
                    assert 3 == await clusters[1].store.get("k")
        nursery.cancel_scope.cancel()
