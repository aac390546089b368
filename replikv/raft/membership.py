"""The membership record: who votes, who learns, where each is found, and which incarnation of it counts.

The record stands in the log (as the changes that lead to it) and in every snapshot. Its bytes are canonical JSON, so
that it can be read in a hex dump and grow fields without a new format: unknown attributes of a member are kept.
Sources: thesis, chapter 4; joint consensus as in section 4.3.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any

from replikv.errors import InternalError

__all__ = ["ChangeKind", "MemberChange", "MemberRecord", "Membership", "MembershipChange", "Transition"]


@dataclasses.dataclass(frozen=True, slots=True)
class MemberRecord:
    """What the cluster knows about one member."""

    address: str
    """What others dial."""
    incarnation: str = ""
    """The random name of the data directory bound to this id; empty until the leader has learnt and bound it."""
    bound_index: int = 0
    """The log index at which the incarnation was bound: of two claims the higher one is newer."""
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Whatever else members tell of themselves: zone, software version."""


@dataclasses.dataclass(frozen=True, slots=True)
class Membership:
    """One configuration. Immutable: a change makes a new one.

    Invariants: voters and learners are disjoint; ``learners_next`` is a subset of ``outgoing``; ``outgoing`` is empty
    unless the configuration is joint; each id in any set has a record.
    """

    voters: frozenset[str] = frozenset()
    outgoing: frozenset[str] = frozenset()
    """The voters that are being left, while the configuration is joint."""
    learners: frozenset[str] = frozenset()
    learners_next: frozenset[str] = frozenset()
    """Outgoing voters that become learners when the joint configuration is left."""
    auto_leave: bool = False
    """Whether the leader leaves the joint configuration by itself."""
    members: Mapping[str, MemberRecord] = dataclasses.field(default_factory=dict)
    # What encode() has returned: every segment and every snapshot begins with it.
    _encoded: bytes | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    @property
    def joint(self) -> bool:
        """Whether decisions need a majority of the voters and of the outgoing voters (thesis 4.3)."""
        return bool(self.outgoing)

    @property
    def ids(self) -> frozenset[str]:
        """Everybody who gets the log."""
        return self.voters | self.outgoing | self.learners | self.learners_next

    def is_voter(self, node_id: str) -> bool:
        """Whether the node's vote and acknowledgements count, in either half of a joint configuration."""
        return node_id in self.voters or node_id in self.outgoing

    @classmethod
    def of_voters(cls, addresses: Mapping[str, str]) -> Membership:
        """The first configuration of a new cluster: node id -> address, all of them voters."""
        records = {node_id: MemberRecord(address) for node_id, address in sorted(addresses.items())}
        return cls(voters=frozenset(records), members=records)

    def with_records(self, records: Mapping[str, MemberRecord]) -> Membership:
        """The same configuration with these records in place of those of the same ids."""
        return dataclasses.replace(self, members=dict(sorted({**self.members, **records}.items())))

    def encode(self) -> bytes:
        """Canonical JSON: equal memberships have equal bytes."""
        if self._encoded is None:
            object.__setattr__(self, "_encoded", self._encode())
        assert self._encoded is not None
        return self._encoded

    def _encode(self) -> bytes:
        return _dumps(
            {
                "voters": sorted(self.voters),
                "outgoing": sorted(self.outgoing),
                "learners": sorted(self.learners),
                "learners_next": sorted(self.learners_next),
                "auto_leave": self.auto_leave,
                "members": {
                    node_id: {
                        "address": record.address,
                        "incarnation": record.incarnation,
                        "bound_index": record.bound_index,
                        "attributes": dict(record.attributes),
                    }
                    for node_id, record in self.members.items()
                },
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """The reverse of :meth:`encode`."""
        fields = _loads(data)
        return cls(
            voters=frozenset(fields["voters"]),
            outgoing=frozenset(fields["outgoing"]),
            learners=frozenset(fields["learners"]),
            learners_next=frozenset(fields["learners_next"]),
            auto_leave=fields["auto_leave"],
            members={node_id: MemberRecord(**record) for node_id, record in fields["members"].items()},
        )


class ChangeKind(enum.StrEnum):
    """What is done to one member."""

    ADD_VOTER = "add-voter"
    ADD_LEARNER = "add-learner"
    REMOVE = "remove"
    UPDATE = "update"
    """Its record alone: address, incarnation, attributes."""


class Transition(enum.StrEnum):
    """How a change takes effect (etcd's ConfChangeV2)."""

    AUTO = "auto"
    """One step where at most one voter changes, a joint configuration that is left by itself otherwise."""
    JOINT_IMPLICIT = "joint-implicit"
    """A joint configuration that the leader leaves by itself."""
    JOINT_EXPLICIT = "joint-explicit"
    """A joint configuration that is left by a change of its own, without changes in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemberChange:
    """One member's part in a change. ``None`` leaves what is known of the member as it is."""

    kind: ChangeKind
    node_id: str
    address: str | None = None
    incarnation: str | None = None
    attributes: Mapping[str, str] | None = None

    def recorded(self, record: MemberRecord, index: int) -> MemberRecord:
        """The member's record after this change, made by the entry at ``index``."""
        if self.address is not None:
            record = dataclasses.replace(record, address=self.address)
        if self.incarnation is not None and self.incarnation != record.incarnation:
            record = dataclasses.replace(record, incarnation=self.incarnation, bound_index=index)
        if self.attributes is not None:
            record = dataclasses.replace(record, attributes=dict(sorted(self.attributes.items())))
        return record


@dataclasses.dataclass(frozen=True, slots=True)
class MembershipChange:
    """The data of a MEMBERSHIP entry. Without changes it leaves the joint configuration."""

    changes: tuple[MemberChange, ...] = ()
    transition: Transition = Transition.AUTO

    @property
    def only_updates(self) -> bool:
        """Whether no set of voters or learners changes: such a change needs no quorum rule."""
        return bool(self.changes) and all(change.kind is ChangeKind.UPDATE for change in self.changes)

    def encode(self) -> bytes:
        """Canonical JSON."""
        changes = [
            {name: value for name, value in dataclasses.asdict(change).items() if value is not None}
            for change in self.changes
        ]
        return _dumps({"transition": self.transition, "changes": changes})

    @classmethod
    def decode(cls, data: bytes) -> MembershipChange:
        """The reverse of :meth:`encode`."""
        fields = _loads(data)
        return cls(
            tuple(MemberChange(**{**change, "kind": ChangeKind(change["kind"])}) for change in fields["changes"]),
            Transition(fields["transition"]),
        )

    def updated(self, membership: Membership, index: int) -> Membership:
        """The membership after the UPDATE changes of this entry at ``index``; members that are gone are passed over."""
        records: dict[str, MemberRecord] = {}
        for change in self.changes:
            record = records.get(change.node_id, membership.members.get(change.node_id))
            if change.kind is ChangeKind.UPDATE and record is not None:
                records[change.node_id] = change.recorded(record, index)
        return membership.with_records(records)


def _dumps(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _loads(data: bytes) -> dict[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise InternalError(f"a membership record must be a JSON object, not {data[:64]!r}")
    return fields
