"""Where everybody is to be dialed: as the membership says, unless somebody has said otherwise since.

A peer that comes back under another address says so when it dials. Those whom it can reach pass it on
to the others: two that have moved at once know only each other's old addresses.
"""

from __future__ import annotations

from typing import Final

import structlog

from replikv.errors import ConfigurationError
from replikv.peer.admission import Admission
from replikv.peer.protocol import Moved, encode_moved
from replikv.raft.membership import Membership
from replikv.settings import Settings
from replikv.storage.base import Identity
from replikv.transport.base import Hello, Transport

__all__ = ["Whereabouts"]

NEWER_MAX: Final = 64
"""Nodes that are dialed though our log does not know them yet: more members than a cluster has."""


class Whereabouts:
    """Has the transport dial who is a member, and nobody else for long."""

    def __init__(self, identity: Identity, admission: Admission, transport: Transport, settings: Settings) -> None:
        self._identity = identity
        self._admission = admission
        self._transport = transport
        self._settings = settings
        self._ticks = 0
        # Node id -> its address in the membership that was applied last.
        self._recorded: dict[str, str] = {}
        # Node id -> what it says of itself, of those bound beyond what is applied here.
        self._newer: dict[str, Hello] = {}
        # Node id -> the tick at which its link is dropped: who was removed is told so first.
        self._leaving: dict[str, int] = {}
        self._log = structlog.get_logger(component="whereabouts").bind(node=identity.node_id)

    def follow(self, membership: Membership) -> None:
        """A membership was applied: whichever address came last counts, this one or one that was told before."""
        for node_id, record in membership.members.items():
            if node_id != self._identity.node_id and self._recorded.get(node_id) != record.address:
                self._recorded[node_id] = record.address
                if self._leaving.pop(node_id, None) is not None:
                    self._transport.set_peer(node_id, None)  # whoever was admitted before is not who is a member now
                self._dial(node_id, record.address)
        for node_id in self._recorded.keys() - membership.ids:
            del self._recorded[node_id]
            self._leaving[node_id] = self._ticks + 2 * self._settings.election_ticks

    def met(self, hello: Hello, *, replaces: bool) -> None:
        """A peer was admitted, and says where it is to be found.

        When it ``replaces`` another incarnation of itself, what that one has dialed is closed: it may still run, and
        nothing it says counts as the other's.
        """
        node_id = hello.node_id
        if replaces:
            self._transport.set_peer(node_id, None)
        if node_id not in self._admission.membership.ids:
            self.dial_newer(hello)
            return
        address = hello.address or self._recorded.get(node_id, "")
        if address:
            self._dial(node_id, address)

    def dial_newer(self, hello: Hello) -> None:
        """Dial somebody who was added later than our log goes, as it says: it may be all that is left of the members
        that we know of, and the leader that we have to answer.
        """
        newer = hello.bound_index > self._admission.applied_index
        if newer and hello.address and (hello.node_id in self._newer or len(self._newer) < NEWER_MAX):
            self._newer[hello.node_id] = hello
            self._dial(hello.node_id, hello.address)

    def passed_on(self, moved: Moved) -> None:
        """A member says where another one has moved: worth a try, while that one is not connected. If it is there, it
        says so itself.
        """
        if (
            moved.node_id in self._recorded
            and self._admission.known_incarnation(moved.node_id) in ("", moved.incarnation)
            and not self.connected(moved.node_id)
        ):
            self._dial(moved.node_id, moved.address)

    def part(self) -> None:
        """Hang up on everybody: who was admitted in this life is not in the next."""
        for node_id in {*self._recorded, *self._newer, *self._leaving}:
            self._transport.set_peer(node_id, None)
        self._recorded.clear()
        self._newer.clear()
        self._leaving.clear()

    def tick(self, ticks: int) -> None:
        """A heartbeat interval has passed."""
        self._ticks = ticks
        for node_id in [node_id for node_id, due in self._leaving.items() if due <= ticks]:
            del self._leaving[node_id]
            self._transport.set_peer(node_id, None)
        self._judge_newer()
        if ticks % self._settings.election_ticks == 0:
            self._pass_on()

    def _judge_newer(self) -> None:
        """Drop those of whom our log knows by now that they are no members."""
        ids, applied_index = self._admission.membership.ids, self._admission.applied_index
        for node_id, hello in list(self._newer.items()):
            if hello.bound_index > applied_index and node_id not in ids:
                continue
            del self._newer[node_id]
            if node_id not in ids:
                self._transport.set_peer(node_id, None)

    def _pass_on(self) -> None:
        for hello in self._admission.moved():
            if self.connected(hello.node_id):
                frame = encode_moved(Moved(hello.node_id, hello.incarnation, hello.address))
                for node_id in self._recorded.keys() - {hello.node_id}:
                    self._transport.send(node_id, frame)

    def addresses(self) -> list[str]:
        """Where others may be found: those who came forward by themselves first."""
        told = [hello.address for hello in self._newer.values()]
        others = [*told, *(record.address for record in self._admission.membership.members.values())]
        return list(dict.fromkeys(address for address in others if address not in ("", self._identity.address)))

    def connected(self, node_id: str) -> bool:
        """Whether the connection that we send on to the node is up."""
        statistics = self._transport.statistics()
        return node_id in statistics and bool(statistics[node_id]["connected"])

    def _dial(self, node_id: str, address: str) -> None:
        """Keep a connection to a member. Where its address makes no sense, only it is not heard of."""
        try:
            self._transport.set_peer(node_id, address)
        except ConfigurationError as exc:
            self._log.error("member cannot be dialed", peer=node_id, address=address, reason=str(exc))
