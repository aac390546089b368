"""What a transport is: it moves opaque frames between peers, at most once, in order while a connection lasts.

Raft needs no more: a frame that is lost is sent again by whoever needs its effect. A transport never blocks its
caller, never lets one peer delay another, and never holds more than a bounded number of bytes for a peer.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Protocol

import trio

from replikv.settings import Settings

__all__ = ["PROTOCOL_MAX", "PROTOCOL_MIN", "Channel", "Hello", "Receiver", "Transport"]

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
"""The versions of the peer protocol that this release speaks; two peers use the highest that both speak."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What each side of a connection says of itself before anything else."""

    cluster_id: str
    node_id: str
    incarnation: str
    bound_index: int = 0
    """The log index at which this incarnation was bound to the node id, as far as the speaker knows; while it is not,
    the one as of which the speaker knows itself a member."""
    address: str = ""
    """Where the speaker can be dialed."""
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Room for what later versions tell: unknown ones are ignored."""


class Channel(abc.ABC):
    """A connection of its own to one peer, for what is too long for the frames' connection (a snapshot).

    Frames arrive whole, once and in order, or the channel breaks: ``trio.BrokenResourceError``. ``send`` waits while
    the other side is slow. Cancelling either leaves a channel that is good for nothing but ``aclose``.
    """

    @abc.abstractmethod
    async def send(self, frame: bytes) -> None:
        """Send one frame. Raises trio.BrokenResourceError, trio.ClosedResourceError."""

    @abc.abstractmethod
    async def receive(self) -> bytes:
        """The next frame. Raises trio.EndOfChannel when the other side has closed, trio.BrokenResourceError."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close, at once and without fail."""


class Receiver(Protocol):
    """What a transport calls: the peer above it. All but ``serve_channel`` are plain calls that return at once."""

    def hello(self) -> Hello:
        """What to say of ourselves, as of now: asked anew for each connection."""
        ...

    def admit(self, hello: Hello) -> str | None:
        """None to accept the other side, or the sentence to refuse it with."""
        ...

    def receive(self, node_id: str, frame: bytes) -> None:
        """A frame of an admitted peer."""
        ...

    def connected(self, node_id: str) -> None:
        """Frames to the peer get through from now on (a connection that we send on is up)."""
        ...

    def disconnected(self, node_id: str) -> None:
        """... and no longer: frames that were on their way may be lost."""
        ...

    def refused(self, node_id: str, reason: str) -> None:
        """The peer that we dialed would not have us, in its words; or in ours, which begin with "not authenticated",
        where one of the two has not proved itself to the other. Dialing goes on, slowly.
        """
        ...

    def turned_away(self, hello: Hello, reason: str) -> None:
        """Somebody has dialed us, and would not have us when it heard who we are. Where peers authenticate, so is this:
        what others say does not get here.
        """
        ...

    async def serve_channel(self, node_id: str, channel: Channel) -> None:
        """The peer has opened a channel. It is closed when this returns or raises trio's resource errors."""
        ...

    async def serve_stranger(self, hello: Hello, channel: Channel) -> None:
        """Somebody who may be no member has called (:meth:`Transport.call`), to ask something. What he says of himself
        was not admitted, only authenticated. The channel is closed when this returns or raises trio's resource errors.
        It must end by itself also where he stays and says nothing: few strangers are served at once.
        """
        ...


class Transport(abc.ABC):
    """Moves frames between this peer and others. One instance serves one peer, once."""

    @abc.abstractmethod
    async def run(
        self,
        receiver: Receiver,
        *,
        listen: str,
        settings: Settings,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, dial and deliver until cancelled; ``task_status.started(address)`` once it listens.

        ``listen`` is the address to bind; the address started with is the bound one (a port 0 filled in).

        Raises ConfigurationError for an address that cannot be understood, OSError for one that cannot be bound.
        """

    @abc.abstractmethod
    def set_peer(self, node_id: str, address: str | None) -> None:
        """Keep a connection to the peer at this address from now on; None drops it and what is queued for it.

        None also closes, at once, whatever the peer has dialed to us, frames and channels, so that it notices. It may
        dial again, and ``admit`` is asked again. Calls are nobody's in particular, and stay.
        """

    def check_address(self, address: str) -> None:  # noqa: B027  # a transport whose addresses are any strings needs none
        """Raise ConfigurationError for an address that can never be dialed. By default any string may be one."""

    @abc.abstractmethod
    def send(self, node_id: str, frame: bytes) -> bool:
        """Queue a frame. False when it was dropped: the peer is unknown or not connected, or its outbox is full."""

    @abc.abstractmethod
    async def open_channel(self, node_id: str) -> Channel:
        """A channel to the peer. Raises OSError when it cannot be reached or refuses, AuthenticationError likewise."""

    @abc.abstractmethod
    async def call(self, address: str, hello: Hello, settings: Settings) -> Channel:
        """A channel to whoever listens at the address, whom one does not know yet: for who wants to join.

        Works without ``run``, and beside it; such a channel is the caller's alone to close. The other side is asked to
        serve a stranger (:meth:`Receiver.serve_stranger`), and neither side's ``admit`` is asked: the hello may name
        another cluster, or none, and a node id that is taken.

        Raises ConfigurationError for an address that cannot be understood, OSError when nobody answers there in time or
        who does refuses; AuthenticationError, which is one, when a side did not prove itself to the other.
        """

    @abc.abstractmethod
    def statistics(self) -> Mapping[str, Mapping[str, int]]:
        """Counters per peer.

        They are ``connected`` (0 or 1), ``queued_bytes``, ``sent_frames``, ``dropped_frames``, ``received_frames``.
        """
