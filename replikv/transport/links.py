"""What our transports have in common: a link per peer, which is dialed again for as long as the peer has an address."""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from replikv.errors import InternalError
from replikv.settings import Settings
from replikv.transport.base import Hello, Receiver, Transport
from replikv.transport.wire import DeclinedError, PeerConnectionError, RefusedError, UnauthenticatedError

__all__ = ["STRANGERS_MAX", "Backoff", "Link", "LinkedTransport", "admit_expected", "admit_stranger"]

log = structlog.get_logger(__name__)

STRANGERS_MAX: Final = 16
"""Strangers that are answered at once. They come to join, and changes of the membership go one by one: more would only
wait for each other. Members are counted apart: strangers take no room from them.
"""

JITTER: Final = 0.5
"""Up to this part of a pause is left out, at random: peers that lost each other at once do not dial at once."""


class Backoff:
    """The pauses between dials: doubling, capped, with jitter."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        self._first_s = min(settings.reconnect_delay_s, settings.reconnect_delay_max_s)
        self._max_s = settings.reconnect_delay_max_s
        self._next_s = self._first_s
        self._random = chance

    def pause_s(self) -> float:
        """The next pause, in seconds."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._max_s)
        return self._jittered(pause_s)

    def longest_s(self) -> float:
        """The pause that dialing a peer which refuses us is worth."""
        return self._jittered(self._max_s)

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next_s = self._first_s

    def _jittered(self, pause_s: float) -> float:
        return pause_s * (1 - JITTER * self._random.random())


def admit_expected(receiver: Receiver, node_id: str, address: str, hello: Hello) -> str | None:
    """The dialer's judgement on who answered: the one it meant to dial, and one the receiver will have."""
    if hello.node_id != node_id:
        return f"{address} was dialed as {node_id} and is {hello.node_id}"
    return receiver.admit(hello)


def admit_stranger(served: int) -> str | None:
    """The answer to one more stranger while so many are served."""
    if served >= STRANGERS_MAX:
        return f"{served} strangers are being answered already: call again later, or another member"
    return None


class Link(abc.ABC):
    """Our sending side to one peer. What the peer sends us comes over its own link to us.

    ``receiver.connected`` and ``receiver.disconnected`` alternate, and both are called from the link's task.
    """

    def __init__(self, node_id: str, receiver: Receiver, settings: Settings, chance: random.Random) -> None:
        self.node_id = node_id
        self.connected = False
        self.sent_frames = 0
        self.dropped_frames = 0
        self.received_frames = 0
        self._receiver = receiver
        self._settings = settings
        self._backoff = Backoff(settings, chance)
        self._address: str | None = None
        self._up_since: float | None = None
        """When ``receiver.connected`` was called, while ``receiver.disconnected`` has not been."""
        self._attempt = trio.CancelScope()
        """Around the present dial, connection or pause: cancelled when the address changes."""
        self._fault = ""
        """Why the last attempt ended; logged when it changes, not at every dial."""

    @property
    def address(self) -> str | None:
        """Where the peer is dialed; None once it is no peer any more."""
        return self._address

    def redirect(self, address: str | None) -> None:
        """Drop what there is, and dial this address from now on. None: never again."""
        if address == self._address:
            return
        self._address = address
        self._backoff.reset()
        self._drop()
        self._attempt.cancel()

    def send(self, frame: bytes) -> bool:
        """Queue a frame, if it can be."""
        if len(frame) > self._settings.frame_bytes_max:
            raise InternalError(
                f"a frame of {len(frame)} bytes for {self.node_id} is over frame_bytes_max"
                f" ({self._settings.frame_bytes_max}): whoever built it must split it"
            )
        if self.connected and self._enqueue(frame):
            self.sent_frames += 1
            return True
        self.dropped_frames += 1
        return False

    async def run(self) -> None:
        """Dial, hold, dial again, until there is no address."""
        while (address := self._address) is not None:
            self._attempt = trio.CancelScope()
            with self._attempt:
                pause_s = await self._attempt_once(address)
                await trio.sleep(pause_s)

    @property
    @abc.abstractmethod
    def queued_bytes(self) -> int:
        """Bytes held for the peer."""

    @abc.abstractmethod
    def _enqueue(self, frame: bytes) -> bool:
        """Keep a frame for the connection; False when there is no room."""

    @abc.abstractmethod
    def _discard(self) -> int:
        """Forget all queued frames; how many they were."""

    @abc.abstractmethod
    async def _connect_and_hold(self, address: str) -> None:
        """Dial, call ``_up`` once admitted, and return when the connection is over. Raises PeerConnectionError."""

    def _up(self) -> None:
        self.connected = True
        self._up_since = trio.current_time()
        self._fault = ""
        log.debug("connected to peer", node_id=self.node_id, address=self._address)
        self._receiver.connected(self.node_id)

    def _drop(self) -> None:
        self.connected = False
        self.dropped_frames += self._discard()

    async def _attempt_once(self, address: str) -> float:
        """One dial and what came of it; the pause in seconds before the next."""
        fault, held_s = "the connection was closed", 0.0
        refused = declined = False
        try:
            await self._connect_and_hold(address)
        except PeerConnectionError as exc:
            fault = str(exc)
            refused, declined = isinstance(exc, RefusedError | UnauthenticatedError), isinstance(exc, DeclinedError)
            if isinstance(exc, UnauthenticatedError):  # in our words: theirs must not pass for an authentic refusal
                fault = f"not authenticated: {exc}"
        finally:
            held_s = self._down()
        if fault != self._fault:
            self._fault = fault
            log.info("not connected to peer", node_id=self.node_id, address=address, reason=fault)
        if refused:
            self._receiver.refused(self.node_id, fault)
        if refused or declined:
            return self._backoff.longest_s()
        if held_s > self._settings.reconnect_delay_max_s:  # else a peer that hangs up at once is dialed without end
            self._backoff.reset()
        return self._backoff.pause_s()

    def _down(self) -> float:
        """The attempt is over, one way or another; for how many seconds the link was up."""
        self._drop()
        if self._up_since is None:
            return 0.0
        held_s = trio.current_time() - self._up_since
        self._up_since = None
        self._receiver.disconnected(self.node_id)
        return held_s


class LinkedTransport(Transport):
    """A transport that keeps one link per peer."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        """Where each peer is to be dialed, whether or not we run."""
        self._links: dict[str, Link] = {}
        """The links that have a task: a link is here from before its task starts until after it ends."""
        self._nursery: trio.Nursery | None = None
        """Holds every task; None before ``run`` and after."""

    def set_peer(self, node_id: str, address: str | None) -> None:
        """Keep a link to the peer at this address, before ``run`` or during it. The same address again does nothing.

        None also closes what the peer has dialed to us, for it to notice: it dials again, and is judged anew.
        """
        if address is not None:
            self.check_address(address)
            self._addresses[node_id] = address
        else:
            self._addresses.pop(node_id, None)
            self._hang_up(node_id)
        link = self._links.get(node_id)
        if link is not None:
            link.redirect(address)
        elif address is not None and self._nursery is not None:
            self._start_link(node_id, address)

    def send(self, node_id: str, frame: bytes) -> bool:
        """Queue a frame on the peer's link; False when it was dropped."""
        link = self._links.get(node_id)
        return link is not None and link.send(frame)

    def statistics(self) -> Mapping[str, Mapping[str, int]]:
        """Counters of the links that there are."""
        return {
            node_id: {
                "connected": int(link.connected),
                "queued_bytes": link.queued_bytes,
                "sent_frames": link.sent_frames,
                "dropped_frames": link.dropped_frames,
                "received_frames": link.received_frames,
            }
            for node_id, link in self._links.items()
            if link.address is not None
        }

    def _start_links(self) -> None:
        for node_id, address in self._addresses.items():
            self._start_link(node_id, address)

    def _start_link(self, node_id: str, address: str) -> None:
        assert self._nursery is not None
        link = self._links[node_id] = self._make_link(node_id)
        link.redirect(address)
        self._nursery.start_soon(self._run_link, link)

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            del self._links[link.node_id]

    def _count_received(self, node_id: str, frames: int) -> None:
        link = self._links.get(node_id)
        if link is not None:
            link.received_frames += frames

    @abc.abstractmethod
    def _hang_up(self, node_id: str) -> None:
        """Close every connection that the peer has dialed to us, calls aside: these are nobody's in particular."""

    @abc.abstractmethod
    def _make_link(self, node_id: str) -> Link:
        """A link without an address."""
