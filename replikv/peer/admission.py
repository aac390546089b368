"""Who may talk to this peer, and what it says of itself: cluster ids and incarnations.

A data directory draws a random incarnation when it is made, and the membership binds it to the node id. A peer that
comes with another incarnation than the bound one has lost its disk: it may have voted and acknowledged what it no
longer knows of, so it must not vote again under that id. Of two claims the one bound at the higher log index is newer,
so a peer that lags behind does not refuse one that was removed and has joined anew.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from replikv.raft.entries import Entry
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange
from replikv.storage.base import Identity
from replikv.transport.base import Hello

__all__ = [
    "COMMANDS",
    "GRANTED",
    "LEARNER",
    "LEASE",
    "MACHINE",
    "STORAGE",
    "VERSION",
    "VOLATILE",
    "ZONE",
    "Admission",
    "Refused",
    "cluster_id_of",
]


LEARNER: Final = "learner"
"""The attribute of a member that joined as a learner for good; its value says nothing."""
STORAGE: Final = "storage"
"""The attribute that tells where a member keeps its state: ``VOLATILE``, or on a disk."""
VOLATILE: Final = "memory"
ZONE: Final = "zone"
"""The attribute that tells where a member runs (``settings.zone``)."""
LEASE: Final = "lease"
"""The attribute that tells for how many seconds a member votes for nobody after it has answered a leader, with
``settings.lease_reads``."""
VERSION: Final = "version"
"""The attribute that tells which replikv a member runs."""
COMMANDS: Final = "commands"
"""The attribute that tells up to which version a member knows replikv's commands, in decimal."""
MACHINE: Final = "machine"
"""The attribute that tells the version of a member's StateMachine, in decimal; missing without one."""
GRANTED: Final = frozenset({LEARNER})
"""The attributes that the cluster gives a member, rather than the member itself."""


OTHERS_MAX: Final = 64
"""Nodes that were added later than our log goes, as they say: more members than a cluster has."""


class Refused(enum.StrEnum):
    """The word that begins every refusal, for whoever is refused to act on."""

    CLUSTER = "wrong-cluster"
    INCARNATION = "wrong-incarnation"
    NODE_ID = "node-id-taken"
    REMOVED = "removed"


def cluster_id_of(node_ids: Iterable[str], cluster_name: str) -> str:
    """The id that every first start of the same cluster computes without asking anybody."""
    digest = hashlib.sha256()
    for part in ("replikv cluster", cluster_name, *sorted(node_ids)):
        data = part.encode()
        digest.update(len(data).to_bytes(4) + data)
    return digest.hexdigest()[:32]


class Admission:
    """The answers to "who are you" and "may I come in"."""

    def __init__(
        self,
        identity: Identity,
        membership: Membership,
        applied_index: int = 0,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        self._identity = identity
        self._attributes = dict(attributes or {})
        self._membership = membership
        self.promises_alike = True
        """Whether all that were met promise not to vote for as long as this peer counts on: an acknowledgement comes
        over a connection, and behind a hello."""
        self.applied_index = applied_index
        """Up to where of the log the membership is known."""
        # Up to where it was known at the start, and had this node in it. A node that was named before it came is bound
        # later than it is a member.
        self._member_as_of = applied_index if identity.node_id in membership.members else 0
        # Node id -> what it said of itself last: a member that comes under another address is dialed there at once,
        # and the leader has it recorded.
        self._hellos: dict[str, Hello] = {}
        # Node id -> (log index at which it is bound, as it says, and incarnation), as told in a handshake since this
        # peer started. Not yet bound ones (at 0) count too: a peer that loses its disk before it is bound must not come
        # back as another.
        self._told: dict[str, tuple[int, str]] = {identity.node_id: (0, identity.incarnation)}
        # Node id -> (log index, incarnation) of the last binding in the log, committed or not: after a restart votes
        # are cast before the log is applied, and a peer that lost its disk must not cast one. What is applied is in the
        # membership, and counts there only: it may have been removed since.
        self._logged: dict[str, tuple[int, str]] = {}

    @property
    def membership(self) -> Membership:
        """The applied configuration: set anew whenever one is applied."""
        return self._membership

    @membership.setter
    def membership(self, membership: Membership) -> None:
        for node_id in self._membership.ids - membership.ids - {self._identity.node_id}:
            # Whoever joins under that id hereafter owes nothing to what this one has told.
            self._told.pop(node_id, None)
            self._hellos.pop(node_id, None)
        self._membership = membership
        for node_id in self._logged.keys() - membership.ids:
            if self._logged[node_id][0] <= self.applied_index:
                del self._logged[node_id]

    def note(self, entry: Entry) -> None:
        """A MEMBERSHIP entry stands in the log."""
        for change in MembershipChange.decode(entry.data).changes:
            if change.incarnation is not None:
                self._logged[change.node_id] = (entry.index, change.incarnation)

    def contradicted(self, node_id: str) -> bool:
        """Whether a peer that was admitted would be refused by now."""
        told = self._told.get(node_id)
        bound = self._bound(node_id)
        return bound is not None and told is not None and told[1] != bound[1] and told[0] <= bound[0]

    def _bound(self, node_id: str) -> tuple[int, str] | None:
        """(log index, incarnation) of the newest binding known of a node."""
        record = self.membership.members.get(node_id)
        applied = (record.bound_index, record.incarnation) if record is not None and record.incarnation else None
        logged = self._logged.get(node_id)
        if logged is not None and logged[0] <= self.applied_index:
            logged = None
        return max(applied, logged) if applied and logged else applied or logged

    def hello(self) -> Hello:
        """What we say of ourselves."""
        record = self.membership.members.get(self._identity.node_id)
        bound = record is not None and record.incarnation == self._identity.incarnation
        return Hello(
            cluster_id=self._identity.cluster_id,
            node_id=self._identity.node_id,
            incarnation=self._identity.incarnation,
            bound_index=record.bound_index if bound and record is not None else self._member_as_of,
            address=self._identity.address,
            attributes=self._attributes,
        )

    def replaces(self, hello: Hello) -> bool:
        """Whether this is another incarnation of a peer than the one that was admitted last."""
        told = self._told.get(hello.node_id)
        return told is not None and told[1] != hello.incarnation

    def admit(self, hello: Hello) -> str | None:
        """None, or why not; what is admitted is remembered."""
        reason = self._refusal(hello)
        if reason is None:
            self._told[hello.node_id] = (hello.bound_index, hello.incarnation)
            self._hellos[hello.node_id] = hello
            self._forget_others()
            own = self._attributes.get(LEASE)
            self.promises_alike = all(known.attributes.get(LEASE) == own for known in self._hellos.values())
        return reason

    def _forget_others(self) -> None:
        """Keep a bounded number of those that our log does not know: names cost nobody anything."""
        others = [node_id for node_id in self._hellos if node_id not in self.membership.ids]
        for node_id in others[: max(0, len(others) - OTHERS_MAX)]:
            del self._hellos[node_id]
            del self._told[node_id]

    def attributes_of(self, node_id: str) -> Mapping[str, str]:
        """What a member says of itself: as it said last to this peer, else as it is recorded."""
        hello = self._hellos.get(node_id)
        if hello is not None:
            return hello.attributes
        record = self.membership.members.get(node_id)
        return record.attributes if record is not None else {}

    def known_incarnation(self, node_id: str) -> str:
        """The incarnation that counts for the node, bound or only told so far; empty when there is none."""
        bound = self._bound(node_id)
        return bound[1] if bound is not None else self._told.get(node_id, (0, ""))[1]

    def _refusal(self, hello: Hello) -> str | None:
        node_id, own = hello.node_id, self._identity
        if hello.cluster_id != own.cluster_id:
            return (
                f"{Refused.CLUSTER}: {node_id!r} belongs to cluster {hello.cluster_id}, {own.node_id!r} to"
                f" {own.cluster_id}: check members= and Settings.cluster_name, and whose addresses these are"
            )
        if node_id == own.node_id:
            if hello.incarnation == own.incarnation:
                return f"{Refused.NODE_ID}: {node_id!r} reached itself: check members= for a wrong address"
            return f"{Refused.NODE_ID}: another process runs as {node_id!r} in this cluster: give each its own node id"
        if node_id not in self.membership.ids and hello.bound_index <= self.applied_index:
            return (
                f"{Refused.REMOVED}: {node_id!r} is no member of this cluster as of entry {self.applied_index}:"
                " it may join anew, with an empty data_dir and join="
            )
        # Of two claims the one bound at the higher index is newer, whether the other was bound or only told.
        index, known = self._bound(node_id) or self._told.get(node_id, (0, hello.incarnation))
        if hello.bound_index > index:
            known = hello.incarnation
        if hello.incarnation != known:
            return (
                f"{Refused.INCARNATION}: {node_id!r} is known with another data directory than the one it comes with"
                f" (incarnation {known[:8]}, not {hello.incarnation[:8]}): what it voted and acknowledged is lost,"
                f" so it must not vote again; bring its disk back, or remove {node_id!r} and let it join anew"
            )
        return None

    def moved(self) -> list[Hello]:
        """What those members said of themselves that are found elsewhere than the membership says."""
        members = self.membership.members
        return [
            hello
            for node_id, hello in self._hellos.items()
            if node_id in members and hello.address not in ("", members[node_id].address)
        ]

    def unrecorded(self) -> MembershipChange | None:
        """The change that records what members tell of themselves; None when all of it is recorded.

        It binds the incarnations of those that have none bound yet, and follows addresses and attributes.
        """
        changes = []
        for node_id, record in self.membership.members.items():
            if node_id == self._identity.node_id:
                hello = self.hello()
            elif node_id in self._hellos:
                hello = self._hellos[node_id]
            else:
                continue
            known = record.incarnation or self._told[node_id][1]
            if hello.incarnation != known:
                continue
            granted = {name: value for name, value in record.attributes.items() if name in GRANTED}
            attributes = {**hello.attributes, **granted}
            change = MemberChange(
                ChangeKind.UPDATE,
                node_id,
                address=hello.address if hello.address and hello.address != record.address else None,
                incarnation=None if record.incarnation else known,
                attributes=attributes if attributes != dict(record.attributes) else None,
            )
            if (change.address, change.incarnation, change.attributes) != (None, None, None):
                changes.append(change)
        return MembershipChange(tuple(changes)) if changes else None
