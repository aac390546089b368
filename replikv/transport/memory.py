"""Peers in one process, without sockets: for tests of applications, under any clock of trio's, with faults at will."""

from __future__ import annotations

import errno
import functools
import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

import trio

from replikv.errors import ConfigurationError
from replikv.settings import Settings
from replikv.transport.base import Channel, Hello, Receiver
from replikv.transport.links import Link, LinkedTransport, admit_expected, admit_stranger
from replikv.transport.outbox import FRAME_OVERHEAD_BYTES
from replikv.transport.wire import DeclinedError, PeerConnectionError, RefusedError

__all__ = ["MemoryNetwork", "MemoryTransport"]

CHANNEL_FRAMES_MAX: Final = 16
"""Frames on their way in one direction of a channel: about what the buffers of two sockets hold in snapshot chunks."""

HELD_BACK_S: Final = 0.01
"""How long a reordered frame is held back at most, where ``delay_s`` gives no measure."""


class MemoryNetwork:
    """What MemoryTransports are plugged into, and where faults enter it. All of them count by node id.

    Without faults every frame arrives at once. Chance comes from one generator with this seed. A partition is like one
    of a real network: connections stay up and frames get lost, new connections and channels fail.
    """

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a seed is the point
        self.loss = 0.0
        self.delay_s = (0.0, 0.0)
        self.duplication = 0.0
        self.reordering = 0.0
        self._listening: dict[str, MemoryTransport] = {}
        self._channels: set[_Pipe] = set()
        self._partitions: list[list[frozenset[str]]] = []
        self._isolated: set[str] = set()
        self._cuts: set[tuple[str, str]] = set()

    # -- faults --------------------------------------------------------------------------------------------------------

    def set_faults(
        self,
        *,
        loss: float = 0.0,
        delay_s: tuple[float, float] = (0.0, 0.0),
        duplication: float = 0.0,
        reordering: float = 0.0,
    ) -> None:
        """What befalls frames from now on, on every way. Whatever is left out is off; without arguments all are.

        ``loss``, ``duplication`` and ``reordering`` are the chances of a frame to be lost, to arrive twice, to be held
        back so that later ones overtake it; ``delay_s`` is the least and the most seconds it takes. Raises
        ConfigurationError.
        """
        for name, chance in (("loss", loss), ("duplication", duplication), ("reordering", reordering)):
            if not 0.0 <= chance <= 1.0:
                raise ConfigurationError(f"{name} must be a chance from 0 to 1, not {chance!r}")
        if not 0.0 <= delay_s[0] <= delay_s[1] < math.inf:
            raise ConfigurationError(f"delay_s must be the least and the most seconds, from 0 up, not {delay_s!r}")
        self.loss, self.delay_s, self.duplication, self.reordering = loss, delay_s, duplication, reordering

    def partition(self, *groups: Iterable[str]) -> None:
        """Nodes of different groups hear nothing of each other. One in no group, or in two, still reaches all of it:
        a bridge. Adds to what is cut already.
        """
        self._partitions.append([frozenset(group) for group in groups])
        self._break_channels()

    def isolate(self, node_id: str) -> None:
        """The node hears nobody and nobody hears it."""
        self._isolated.add(node_id)
        self._break_channels()

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing gets from one node to the other; the other direction works on."""
        self._cuts.add((sender, receiver))
        self._break_channels()

    def heal(self) -> None:
        """End every partition, isolation and cut. What ``set_faults`` has set stays."""
        self._partitions.clear()
        self._isolated.clear()
        self._cuts.clear()

    def reaches(self, sender: str, receiver: str) -> bool:
        """Whether frames get from one node to the other, chance aside."""
        if sender in self._isolated or receiver in self._isolated or (sender, receiver) in self._cuts:
            return False
        for groups in self._partitions:
            of_sender = [group for group in groups if sender in group]
            of_receiver = [group for group in groups if receiver in group]
            if of_sender and of_receiver and not any(group in of_receiver for group in of_sender):
                return False
        return True

    # -- what transports use -------------------------------------------------------------------------------------------

    def _listen(self, address: str, transport: MemoryTransport) -> None:
        if address in self._listening:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {address!r}: another transport of this network does")
        self._listening[address] = transport

    def _leave(self, address: str) -> None:
        transport = self._listening.pop(address)
        for pipe in [pipe for pipe in self._channels if transport in (pipe.near, pipe.far)]:
            pipe.snap()

    def _expel(self, node_id: str, target: MemoryTransport) -> None:
        """Break every channel that the node has opened to the transport."""
        for pipe in [pipe for pipe in self._channels if pipe.far is target]:
            if pipe.near is not None and pipe.near.node_id == node_id:
                pipe.snap()

    def _lag_s(self) -> float:
        """How long the next frame takes."""
        return self.random.uniform(*self.delay_s)

    async def _round_trip(self) -> None:
        """As long as a question and its answer take."""
        await trio.sleep(self._lag_s() + self._lag_s())

    def _connect(self, caller: MemoryTransport, node_id: str, address: str) -> MemoryTransport:
        """Who listens there, once both sides admit each other. Raises PeerConnectionError."""
        if caller.stopped:
            raise PeerConnectionError("this transport has stopped")
        us = caller.receiver.hello()
        target = self._reach(us, address)
        declined = admit_expected(caller.receiver, node_id, address, target.receiver.hello())
        if declined is not None:
            target.receiver.turned_away(us, declined)
            raise DeclinedError(declined)
        reason = target.receiver.admit(us)
        if reason is not None:
            raise RefusedError(reason)
        return target

    def _reach(self, us: Hello, address: str) -> MemoryTransport:
        """Who listens there, if each side hears the other. Raises PeerConnectionError."""
        target = self._listening.get(address)
        if target is None:
            raise PeerConnectionError(f"nobody listens on {address!r}")
        if not self._both_ways(us.node_id, target.node_id):
            raise PeerConnectionError(f"{address!r} did not answer")
        return target

    def _both_ways(self, one: str, other: str) -> bool:
        return self.reaches(one, other) and self.reaches(other, one)

    def _carry(self, session: _Session, frame: bytes) -> None:
        """Have a frame arrive, or not, or twice."""
        if self.random.random() < self.loss or not self.reaches(session.sender, session.target.node_id):
            return
        session.frames += 1
        session.queued_bytes += len(frame) + FRAME_OVERHEAD_BYTES
        session.target._expect(self._due(session), session, frame, len(frame) + FRAME_OVERHEAD_BYTES)
        if self.random.random() < self.duplication:
            session.target._expect(self._due(session), session, frame, 0)

    def _due(self, session: _Session) -> float:
        due = trio.current_time() + self._lag_s()
        if self.random.random() < self.reordering:
            return due + self.random.uniform(0.0, self.delay_s[1] or HELD_BACK_S)
        session.in_order_due = max(session.in_order_due, due)
        return session.in_order_due

    def _break_channels(self) -> None:
        for pipe in list(self._channels):
            if not self._both_ways(*pipe.node_ids):
                pipe.snap()


class _Session:
    """One connection from a link to the transport of its peer, from admission until either side is gone."""

    __slots__ = ("ended", "frames", "in_order_due", "open", "queued_bytes", "sender", "target")

    def __init__(self, sender: str, target: MemoryTransport) -> None:
        self.sender = sender
        self.target = target
        self.open = True
        """What arrives once it is closed is dropped."""
        self.ended = trio.Event()
        """Set when the target has closed it: what a closed socket tells the other side."""
        self.in_order_due = 0.0
        """No frame that keeps its place arrives before this."""
        self.frames = 0
        self.queued_bytes = 0
        """The cost of ``frames``, those on their way. A lost frame is never on its way, a copy costs nothing."""

    def hang_up(self) -> None:
        """Close it from the target's side."""
        self.open = False
        self.ended.set()


class _Delivery(NamedTuple):
    """A frame on its way. Compared by when it is due, then by who was sent first."""

    due: float
    number: int
    session: _Session
    frame: bytes
    cost: int


class MemoryTransport(LinkedTransport):
    """Peers of one process. Addresses are any strings, and so is what to listen on.

    Without a network of its own choice it is alone on one: enough for a cluster of one.
    """

    def __init__(self, network: MemoryNetwork | None = None) -> None:
        super().__init__()
        self.network = MemoryNetwork() if network is None else network
        self.node_id = ""
        """Whose transport it is, once it runs."""
        self._receiver: Receiver | None = None
        self._settings = Settings()
        self._arriving: list[_Delivery] = []
        """A heap of what others have sent us. Bounded on each link by ``outbox_bytes_max``."""
        self._numbers = itertools.count()
        self._arrival = trio.Event()
        self._incoming: set[_Session] = set()
        """What others' links have open to us."""
        self._strangers = 0
        """Calls that are being served, or are about to be."""
        self.stopped = False
        """Whether ``run`` has ended."""

    @property
    def receiver(self) -> Receiver:
        """Whom it delivers to."""
        assert self._receiver is not None
        return self._receiver

    async def run(
        self,
        receiver: Receiver,
        *,
        listen: str,
        settings: Settings,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, dial and deliver until cancelled; then the others see their connections closed.

        What the receiver raises ends it, in an exception group.
        """
        self.check_address(listen)
        self._receiver, self._settings = receiver, settings
        self.node_id = receiver.hello().node_id
        self.network._listen(listen, self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._start_links()
                task_status.started(listen)
                await self._deliver()
        finally:
            self._nursery = None
            self.network._leave(listen)
            self.stopped = True
            for session in self._incoming:
                session.hang_up()

    async def open_channel(self, node_id: str) -> Channel:
        """A channel to the peer; lost when a partition or the end of either side comes between. Raises OSError."""
        address = self._addresses.get(node_id)
        if self._nursery is None or address is None:
            raise OSError(errno.EHOSTUNREACH, f"no channel to {node_id}: its address is not known, or we do not run")
        await self.network._round_trip()
        try:
            target = self.network._connect(self, node_id, address)
        except PeerConnectionError as exc:
            raise OSError(errno.ECONNREFUSED, f"no channel to {node_id}: {exc}") from exc
        near_end, far_end = _Pipe(self.network, (self.node_id, target.node_id), self, target).ends
        target._serve_channel(self.node_id, far_end)
        return near_end

    async def call(self, address: str, hello: Hello, settings: Settings) -> Channel:
        """A channel to whoever listens there; lost when a partition or the end of that one comes between.

        Faults count the caller by the node id of its hello. Raises ConfigurationError, OSError.
        """
        self.check_address(address)
        with trio.move_on_after(settings.connect_timeout_s):
            await self.network._round_trip()
            try:
                target = self.network._reach(hello, address)
                reason = admit_stranger(target._strangers)
                if reason is not None:
                    raise RefusedError(reason)
            except PeerConnectionError as exc:
                raise OSError(errno.ECONNREFUSED, f"no call to {address!r}: {exc}") from exc
            near_end, far_end = _Pipe(self.network, (hello.node_id, target.node_id), None, target).ends
            target._serve_stranger(hello, far_end)
            return near_end
        raise OSError(
            errno.ETIMEDOUT, f"no call to {address!r}: it did not answer within {settings.connect_timeout_s} s"
        )

    # -- links ---------------------------------------------------------------------------------------------------------

    def check_address(self, address: str) -> None:
        """As :meth:`Transport.check_address`."""
        if not address:
            raise ConfigurationError("an address in memory is any string but the empty one")

    def _make_link(self, node_id: str) -> Link:
        return _MemoryLink(self, node_id, self._settings)

    def _hang_up(self, node_id: str) -> None:
        for session in self._incoming:
            if session.sender == node_id:
                session.hang_up()
        self.network._expel(node_id, self)

    # -- arriving ------------------------------------------------------------------------------------------------------

    def _expect(self, due: float, session: _Session, frame: bytes, cost: int) -> None:
        heapq.heappush(self._arriving, _Delivery(due, next(self._numbers), session, frame, cost))
        self._arrival.set()

    async def _deliver(self) -> None:
        while True:
            now = trio.current_time()
            while self._arriving and self._arriving[0].due <= now:
                self._take(heapq.heappop(self._arriving))
            self._arrival = trio.Event()
            with trio.move_on_at(self._arriving[0].due if self._arriving else math.inf):
                await self._arrival.wait()

    def _take(self, delivery: _Delivery) -> None:
        session = delivery.session
        if delivery.cost:
            session.frames -= 1
            session.queued_bytes -= delivery.cost
        if session.open and self.network.reaches(session.sender, self.node_id):
            self._count_received(session.sender, 1)
            self.receiver.receive(session.sender, delivery.frame)

    # -- channels ------------------------------------------------------------------------------------------------------

    def _serve_channel(self, node_id: str, channel: Channel) -> None:
        assert self._nursery is not None
        serve = functools.partial(self.receiver.serve_channel, node_id, channel)
        self._nursery.start_soon(_until_over, serve, channel)

    def _serve_stranger(self, hello: Hello, channel: Channel) -> None:
        assert self._nursery is not None
        self._strangers += 1  # now, not when the task starts: others may call before that

        async def serve() -> None:
            try:
                await self.receiver.serve_stranger(hello, channel)
            finally:
                self._strangers -= 1

        self._nursery.start_soon(_until_over, serve, channel)


class _MemoryLink(Link):
    """A session that our frames go out on. They are on their way at once: there is no writer to wait for."""

    def __init__(self, near: MemoryTransport, node_id: str, settings: Settings) -> None:
        super().__init__(node_id, near.receiver, settings, near.network.random)
        self._near = near
        self._session: _Session | None = None

    @property
    def queued_bytes(self) -> int:
        """What is on its way."""
        return 0 if self._session is None else self._session.queued_bytes

    def _enqueue(self, frame: bytes) -> bool:
        session = self._session
        assert session is not None
        queued = session.queued_bytes
        if queued and queued + len(frame) + FRAME_OVERHEAD_BYTES > self._settings.outbox_bytes_max:
            return False
        self._near.network._carry(session, frame)
        return True

    def _discard(self) -> int:
        if self._session is None:
            return 0
        session, self._session = self._session, None
        session.open = False
        return session.frames

    async def _connect_and_hold(self, address: str) -> None:
        await self._near.network._round_trip()
        target = self._near.network._connect(self._near, self.node_id, address)
        session = self._session = _Session(self._near.node_id, target)
        target._incoming.add(session)
        try:
            self._up()
            await session.ended.wait()
        finally:
            target._incoming.discard(session)
        raise PeerConnectionError("the other side has closed the connection")


# -- channels ----------------------------------------------------------------------------------------------------------


async def _until_over(serve: Callable[[], Awaitable[None]], channel: Channel) -> None:
    """Serve a channel until its server returns, or it breaks under it; then it is closed."""
    try:
        await serve()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
        pass
    finally:
        await channel.aclose()


class _Pipe:
    """Both directions of a channel, and the two transports that it lies between."""

    def __init__(
        self, network: MemoryNetwork, node_ids: tuple[str, str], near: MemoryTransport | None, far: MemoryTransport
    ) -> None:
        self.node_ids = node_ids
        """Of who opened it and of who serves it, for faults."""
        self.near = near
        """Whose end breaks it, beside that of ``far``; None for a call, which belongs to no transport."""
        self.far = far
        self.network = network
        self.snapped = False
        there_in, there_out = trio.open_memory_channel[bytes](CHANNEL_FRAMES_MAX)
        back_in, back_out = trio.open_memory_channel[bytes](CHANNEL_FRAMES_MAX)
        self.ends = (_MemoryChannel(self, there_in, back_out), _MemoryChannel(self, back_in, there_out))
        network._channels.add(self)

    def snap(self) -> None:
        """Break both ends, under whoever waits on them."""
        self.snapped = True
        for end in self.ends:
            end.release()

    def forget(self) -> None:
        """Nothing is left to break."""
        self.network._channels.discard(self)


class _MemoryChannel(Channel):
    """One end of a pipe."""

    def __init__(
        self, pipe: _Pipe, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self._pipe = pipe
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while the other side is slow."""
        self._check()
        await trio.sleep(self._pipe.network._lag_s())
        try:
            await self._outgoing.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._check()
            raise trio.BrokenResourceError("the other side has closed the channel") from exc

    async def receive(self) -> bytes:
        """The next frame."""
        self._check()
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            self._check()
            raise

    async def aclose(self) -> None:
        """Close; the other side still receives what was sent."""
        self._closed = True
        self.release()

    def release(self) -> None:
        """Let go of both directions."""
        self._outgoing.close()
        self._incoming.close()
        self._pipe.forget()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed by this side")
        if self._pipe.snapped:
            raise trio.BrokenResourceError("the channel was lost with the connection under it")
