"""The divergence alarm: replicas that should be equal compare digests, and the odd one out stops.

Rules:

1. Each voter tells all others its newest digest once per tick, if it is new. Digests of the same position are compared:
   what a replica holds there depends on the log alone, so whatever comes late, twice or never raises no false alarm.
2. Who finds that another one differs tells everybody its own digest of that position, once: so that all hear of all, at
   the same position.
3. Who differs from a majority of the voters, which agree among themselves, ends with an InternalError; the leader too.
   While there is no such majority (one against one of two) nobody can tell who is right: the doctor says so.

What is remembered is bounded: of positions that this replica has not reached yet, and of those behind it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import structlog

from replikv.errors import InternalError
from replikv.machine.digests import FORMAT, StateDigest
from replikv.machine.replica import Replica
from replikv.peer.admission import Admission
from replikv.peer.doctor import Divergence
from replikv.peer.governor import versions_in
from replikv.peer.protocol import Digest, encode_digest
from replikv.transport.base import Transport

__all__ = ["Auditor"]

POSITIONS_MAX: Final = 64
"""Positions ahead of this replica, and again behind it, of which digests of others are kept: some seconds of ticks."""


class Auditor:
    """Compares this peer's replica with the others'."""

    def __init__(self, node_id: str, replica: Replica, admission: Admission, transport: Transport) -> None:
        self._node_id = node_id
        self._replica = replica
        self._admission = admission
        self._transport = transport
        # The position of the digest that was told last.
        self._told = 0
        # Position -> node id -> digest: where this replica has not been yet; and where it has.
        self._ahead: dict[int, dict[str, StateDigest]] = {}
        self._behind: dict[int, dict[str, StateDigest]] = {}
        # Positions at which everybody was told our digest because somebody differs.
        self._disputed: dict[int, None] = {}
        self.divergences: dict[str, Divergence] = {}
        """Node id -> where it was found to differ, until it agrees again."""
        self._log = structlog.get_logger(component="auditor").bind(node=node_id)

    def tick(self) -> None:
        """Tell what is new, and compare what has been waited for. Raises InternalError, by rule 3."""
        notes = self._replica.notes
        if notes.newest != self._told and self._node_id in self._admission.membership.voters:
            self._told = notes.newest
            self._tell(self._told)
        reached = [position for position in self._ahead if position <= self._replica.position]
        for position in sorted(reached):
            self._remember(position, self._ahead.pop(position))
        for node_id in self.divergences.keys() - self._admission.membership.ids:
            del self.divergences[node_id]

    def take(self, sender: str, told: Digest) -> None:
        """Somebody tells its digest. Raises InternalError, by rule 3."""
        if told.format != FORMAT or sender not in self._admission.membership.ids:
            return
        position = told.position
        if position <= self._replica.position:
            self._remember(position, {sender: told.digest})
        elif position in self._ahead or len(self._ahead) < POSITIONS_MAX:  # others will follow
            self._ahead.setdefault(position, {})[sender] = told.digest

    def _tell(self, position: int) -> None:
        digest = self._replica.notes.get(position)
        if digest is None:
            return
        frame = encode_digest(Digest(FORMAT, position, digest))
        for node_id in sorted(self._admission.membership.ids - {self._node_id}):
            versions = versions_in(self._admission.attributes_of(node_id))
            if versions is not None and versions.commands >= 1:  # others do not know this frame
                self._transport.send(node_id, frame)

    def _remember(self, position: int, told: dict[str, StateDigest]) -> None:
        own = self._replica.notes.get(position)
        if own is None:
            return  # too long ago, or what was noted there was of another state
        all_told = self._behind.setdefault(position, {})
        all_told.update(told)
        while len(self._behind) > POSITIONS_MAX:
            del self._behind[next(iter(self._behind))]
        self._compare(position, own, all_told)

    def _compare(self, position: int, own: StateDigest, told: dict[str, StateDigest]) -> None:
        others = {node_id: digest for node_id, digest in told.items() if not own.agrees(digest)}
        for node_id in told.keys() - others.keys():
            if node_id in self.divergences and self.divergences[node_id].position < position:
                del self.divergences[node_id]
        if not others:
            return
        if position not in self._disputed:
            self._disputed[position] = None
            while len(self._disputed) > POSITIONS_MAX:
                del self._disputed[next(iter(self._disputed))]
            self._tell(position)
        for digest in set(others.values()):
            agreed = [node_id for node_id, other in told.items() if other == digest]
            if self._is_majority(agreed):
                raise InternalError(
                    f"the replica of {self._node_id} has diverged: at position {position} its digest is {own}, and"
                    f" {digest} is that of {', '.join(sorted(agreed))}, a majority of the voters; it stops here, before"
                    " anybody reads from it what the others do not hold. Start it again; if that does not mend it,"
                    " remove it and let it join with an empty data_dir. Either memory was damaged, or"
                    " StateMachine.apply depends on more than its commands, or this is a bug of replikv: please report"
                )
        right = self._is_majority([self._node_id, *(told.keys() - others.keys())])
        for node_id, digest in others.items():
            if node_id not in self.divergences:
                self._log.error(
                    "replicas differ", peer=node_id, position=position, own=str(own), other=str(digest), right=right
                )
            self.divergences[node_id] = Divergence(
                node_id=node_id, position=position, own=str(own), other=str(digest), outvoted=right
            )

    def _is_majority(self, node_ids: Collection[str]) -> bool:
        membership = self._admission.membership
        halves = [half for half in (membership.voters, membership.outgoing) if half]
        return all(2 * len(half.intersection(node_ids)) > len(half) for half in halves)
