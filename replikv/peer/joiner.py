"""Becoming a member of a cluster that runs (thesis 4.2.1).

It is asked of any member, which has the leader add the newcomer as a learner, and then sends its newest snapshot over
the same channel. With that the newcomer knows the configuration that it is part of, and begins as any peer does after a
restart; what came since reaches it through the log.

The newcomer's incarnation is drawn once, and kept: whoever crashes while joining is known again.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
import trio

from replikv.errors import AuthenticationError, ConfigurationError, UpgradeRequiredError, WrongClusterError
from replikv.peer.admission import Refused
from replikv.peer.protocol import MalformedFrameError
from replikv.peer.reconfigurator import Reconfigurator
from replikv.peer.requests import (
    Accepted,
    ChangeRequest,
    CompareRequest,
    Denial,
    Denied,
    JoinRequest,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from replikv.peer.snapshot_receiver import receive_first
from replikv.peer.snapshot_stream import TransferError
from replikv.peer.snapshots import blocking
from replikv.settings import Settings
from replikv.storage.base import Identity, Storage, StorageFullError
from replikv.transport.base import Channel, Hello, Transport

__all__ = ["Joiner", "compare", "serve_joiner"]

TAKEN_TIMEOUTS: Final = 2
"""Connect timeouts for which a newcomer asks again though its node id is taken: the process that it was before may not
be known to be gone yet, and a connection to a machine that vanished lasts one of them."""


class Joiner:
    """A peer that is no member yet."""

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        *,
        node_id: str,
        address: str,
        listen: str,
        attributes: Mapping[str, str],
        cluster_id: str = "",
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._node_id = node_id
        self._address = address
        self._listen = listen
        self._attributes = attributes
        self._cluster_id = cluster_id
        self._since = trio.current_time()
        self.waiting_for = ""
        """What the last attempt came to, in words."""
        self._log = structlog.get_logger(component="joiner").bind(node=node_id)

    def diagnosis(self) -> str:
        """What this peer waits for, in words."""
        seconds = trio.current_time() - self._since
        return f"joining for {seconds:.1f} s: {self.waiting_for or 'no member has answered yet'}"

    async def join(self, storage: Storage, addresses: Sequence[str]) -> None:
        """Ask the members at these addresses, in turn, until one has let us in; ``storage``, which must be empty, is
        initialized then. There is no end to it but success, refusal and cancellation, which leaves an empty storage.

        Raises:
            WrongClusterError: the node id is taken, or its disk was lost, or it is another cluster.
            AuthenticationError: every address answers, and none of them knows our secret or trusts our certificate.
            ConfigurationError: an address, or something else in the request, makes no sense.
            UpgradeRequiredError: the cluster uses commands that this program does not know.
            StorageError: of the own disk.
        """
        incarnation = await blocking(storage, storage.draw_incarnation)
        taken_until = trio.current_time() + TAKEN_TIMEOUTS * self._settings.connect_timeout_s
        pause_s = self._settings.reconnect_delay_s
        said: dict[str, str] = {}  # by address: logged when it changes, not at every attempt
        strangers: set[str] = set()  # addresses that we have not authenticated each other with
        for address in itertools.cycle(addresses):
            try:
                denied = await self._ask(address, storage, incarnation)
            except StorageFullError as exc:
                denied = Denied(Denial.LATER, str(exc))
            except AuthenticationError as exc:
                strangers.add(address)
                if strangers.issuperset(addresses):
                    raise
                denied = Denied(Denial.ELSEWHERE, str(exc))
            else:
                strangers.discard(address)
            if denied is None:
                return
            if denied.denial is Denial.MISTAKE:
                raise ConfigurationError(denied.reason)
            if denied.denial is Denial.VERSION:
                raise UpgradeRequiredError(f"{address} refused {self._node_id}: {denied.reason}")
            taken = denied.reason.startswith(Refused.NODE_ID) and trio.current_time() < taken_until
            if denied.denial is Denial.IDENTITY and not taken:
                raise WrongClusterError(f"{address} refused {self._node_id}: {denied.reason}")
            self.waiting_for = denied.reason
            if said.get(address) != denied.reason:
                said[address] = denied.reason
                self._log.warning("waiting to join", asked=address, reason=denied.reason)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._settings.reconnect_delay_max_s)

    async def _ask(self, address: str, storage: Storage, incarnation: str) -> Denied | None:
        """None once we are a member. Raises AuthenticationError."""
        hello = Hello(
            cluster_id=self._cluster_id,
            node_id=self._node_id,
            incarnation=incarnation,
            address=self._address,
            attributes=self._attributes,
        )
        try:
            channel = await self._transport.call(address, hello, self._settings)
        except AuthenticationError:
            raise
        except (OSError, ConfigurationError) as exc:
            return Denied(Denial.ELSEWHERE, getattr(exc, "strerror", None) or str(exc))
        try:
            request = JoinRequest(self._node_id, incarnation, self._address, self._cluster_id, self._attributes)
            await channel.send(encode_request(request))
            with trio.fail_after(self._settings.request_timeout_s + self._settings.connect_timeout_s):
                answer = decode_answer(await channel.receive())
            if isinstance(answer, Denied):
                return answer
            self._log.info("joining", asked=address, cluster=answer.cluster_id)
            snapshot = await receive_first(channel, storage)
            identity = Identity(answer.cluster_id, self._node_id, incarnation, self._address, self._listen)
            await blocking(storage, storage.initialize, identity, snapshot)
        except (
            trio.BrokenResourceError,
            trio.EndOfChannel,
            trio.TooSlowError,
            MalformedFrameError,
            TransferError,
        ) as exc:
            return Denied(Denial.UNKNOWN, f"{address} broke off: {str(exc) or type(exc).__name__}")
        finally:
            await channel.aclose()
        self._log.info("joined", cluster=answer.cluster_id, index=snapshot.index)
        return None


async def compare(transport: Transport, settings: Settings, hello: Hello, addresses: Sequence[str]) -> None:
    """Ask whoever answers first at these addresses whether it is of our cluster.

    Raises WrongClusterError when it is not. Whoever does not answer says nothing.
    """
    for address in addresses:
        try:
            channel = await transport.call(address, hello, settings)
        except (OSError, ConfigurationError):
            continue
        try:
            await channel.send(encode_request(CompareRequest(hello.cluster_id)))
            with trio.fail_after(settings.connect_timeout_s):
                answer = decode_answer(await channel.receive())
        except (trio.BrokenResourceError, trio.EndOfChannel, trio.TooSlowError, MalformedFrameError):
            continue
        finally:
            await channel.aclose()
        if isinstance(answer, Denied) and answer.denial is Denial.IDENTITY:
            raise WrongClusterError(f"{address} refused {hello.node_id}: {answer.reason}")
        return


async def serve_joiner(
    channel: Channel,
    reconfigurator: Reconfigurator,
    deadline: float,
    send_snapshot: Callable[[Channel, str, int], Awaitable[None]],
) -> None:
    """A newcomer asks to join: have it added, and give it a snapshot that knows it. Raises trio's resource errors.

    Who says nothing until the deadline has had its time: few are served at once. ``send_snapshot(channel, node_id,
    index)`` sends one of at least that index.
    """
    try:
        with trio.fail_at(deadline):
            request = decode_request(await channel.receive())
    except (MalformedFrameError, trio.TooSlowError):
        return
    if isinstance(request, ChangeRequest):
        return  # a member's to ask
    answer = await reconfigurator.ask(request, deadline)
    await channel.send(encode_answer(answer))
    if isinstance(answer, Accepted) and isinstance(request, JoinRequest):
        await send_snapshot(channel, request.node_id, answer.index)
