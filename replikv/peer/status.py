"""What a peer tells of itself and of the cluster, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["Member", "Progress", "Status"]


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
