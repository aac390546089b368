"""What a peer tells of itself and of the cluster, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from replikv.peer.driver import Driver
from replikv.raft.roles import Role
from replikv.storage.base import Identity

__all__ = ["Member", "Progress", "Status", "status_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One member of the cluster."""

    address: str
    role: str
    """``"voter"`` or ``"learner"``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """What the leader knows of one follower."""

    match_index: int
    next_index: int
    state: str
    """``"probe"``, ``"replicate"`` or ``"snapshot"``."""
    active: bool
    """Whether it was heard of within the last election timeout."""


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What a peer knows of itself and the cluster, at one moment."""

    node_id: str
    cluster_id: str
    role: str
    """``"leader"``, ``"follower"``, ``"candidate"`` or ``"pre-candidate"``."""
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    first_index: int
    last_index: int
    members: Mapping[str, Member]
    progress: Mapping[str, Progress]
    """On the leader, what it knows of each other member; empty elsewhere."""
    commands_version: int
    """Up to which version replikv's commands take effect: what every member knows."""
    machine_version: int
    """Of the application's StateMachine, likewise; 0 without one."""


def status_of(identity: Identity, driver: Driver) -> Status:
    """What the peer knows at this moment."""
    raft = driver.node.raft
    membership = driver.admission.membership
    leading = raft.role is Role.LEADER
    return Status(
        node_id=identity.node_id,
        cluster_id=identity.cluster_id,
        role=str(raft.role),
        term=raft.term,
        leader=raft.leader or None,
        commit_index=raft.log.committed,
        applied_index=driver.applier.index,
        first_index=raft.log.first_index(),
        last_index=raft.log.last_index(),
        members=MappingProxyType(
            {
                node_id: Member(record.address, "voter" if membership.is_voter(node_id) else "learner")
                for node_id, record in membership.members.items()
            }
        ),
        progress=MappingProxyType(
            {
                node_id: Progress(progress.match, progress.next, progress.state.name.lower(), progress.recent_active)
                for node_id, progress in raft.tracker.progress.items()
                if leading and node_id != identity.node_id
            }
        ),
        commands_version=driver.replica.governance.versions.commands,
        machine_version=driver.replica.governance.versions.machine,
    )
