"""Who may talk to this peer, and what it says of itself: cluster ids and incarnations.

A data directory draws a random incarnation when it is made, and the membership binds it to the node id. A peer that
comes with another incarnation than the bound one has lost its disk: it may have voted and acknowledged what it no
longer knows of, so it must not vote again under that id. Of two claims the one bound at the higher log index is newer,
so a peer that lags behind does not refuse one that was removed and has joined anew.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable

from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange
from replikv.storage.base import Identity
from replikv.transport.base import Hello

__all__ = ["Admission", "Refused", "cluster_id_of"]


class Refused(enum.StrEnum):
    """The word that begins every refusal, for whoever is refused to act on."""

    CLUSTER = "wrong-cluster"
    INCARNATION = "wrong-incarnation"
    NODE_ID = "node-id-taken"


def cluster_id_of(node_ids: Iterable[str], cluster_name: str) -> str:
    """The id that every first start of the same cluster computes without asking anybody."""
    digest = hashlib.sha256()
    for part in ("replikv cluster", cluster_name, *sorted(node_ids)):
        data = part.encode()
        digest.update(len(data).to_bytes(4) + data)
    return digest.hexdigest()[:32]


class Admission:
    """The answers to "who are you" and "may I come in"."""

    def __init__(self, identity: Identity, membership: Membership) -> None:
        self._identity = identity
        self.membership = membership
        """The applied configuration: set anew whenever one is applied."""
        # Node id -> incarnation, as told in a handshake since this peer started. Not yet bound ones count too: a peer
        # that loses its disk before it is bound must not come back as another.
        self._told: dict[str, str] = {identity.node_id: identity.incarnation}

    def hello(self) -> Hello:
        """What we say of ourselves."""
        record = self.membership.members.get(self._identity.node_id)
        bound = record is not None and record.incarnation == self._identity.incarnation
        return Hello(
            cluster_id=self._identity.cluster_id,
            node_id=self._identity.node_id,
            incarnation=self._identity.incarnation,
            bound_index=record.bound_index if bound and record is not None else 0,
            address=self._identity.address,
        )

    def admit(self, hello: Hello) -> str | None:
        """None, or why not; what is admitted is remembered."""
        reason = self._refusal(hello)
        if reason is None:
            self._told[hello.node_id] = hello.incarnation
        return reason

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
        record = self.membership.members.get(node_id)
        if record is not None and record.incarnation:
            newer = hello.bound_index > record.bound_index
            known = hello.incarnation if newer else record.incarnation
        else:
            known = self._told.get(node_id, hello.incarnation)
        if hello.incarnation != known:
            return (
                f"{Refused.INCARNATION}: {node_id!r} is known with another data directory than the one it comes with"
                f" (incarnation {known[:8]}, not {hello.incarnation[:8]}): what it voted and acknowledged is lost,"
                f" so it must not vote again; bring its disk back, or remove {node_id!r} and let it join anew"
            )
        return None

    def unbound(self) -> MembershipChange | None:
        """The change that binds the incarnations told by members that have none bound yet; None when there are none."""
        changes = tuple(
            MemberChange(ChangeKind.UPDATE, node_id, incarnation=self._told[node_id])
            for node_id, record in self.membership.members.items()
            if not record.incarnation and node_id in self._told
        )
        return MembershipChange(changes) if changes else None
