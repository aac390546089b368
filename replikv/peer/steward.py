"""What a leader does for the membership by itself: records what members tell of themselves, and appoints voters.

Looked after once per tick, on the leader. Whatever is proposed here is proposed again by the next tick, or the next
leader, if nothing comes of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import structlog

from replikv.peer.admission import LEARNER, ZONE, Admission
from replikv.peer.voters import Standing, appoint, objection
from replikv.raft.membership import MembershipChange
from replikv.raft.node import RawNode
from replikv.raft.progress import ProgressState
from replikv.raft.refusals import ProposalDroppedError
from replikv.settings import Settings

__all__ = ["Steward"]


class Steward:
    """What this peer, as the leader, knows of each member over time."""

    def __init__(self, node: RawNode, admission: Admission, settings: Settings) -> None:
        self._node = node
        self._admission = admission
        self._settings = settings
        # Node id -> the tick of its last frame: a connection may be up and nobody at its other end.
        self.heard: dict[str, int] = {}
        self._ticks = 0
        # The tick at which this leadership began, and its term. A follower hears nobody but its leader, so for a new
        # leader silence begins to count with its leadership.
        self._since = 0
        self._term = 0
        # The last index of the log at each of the last ticks, an election timeout back.
        self._last_indexes: deque[int] = deque(maxlen=settings.election_ticks)
        self._log = structlog.get_logger(component="steward")

    def tick(self, ticks: int) -> None:
        """Time has passed, and this peer leads."""
        raft = self._node.raft
        self._ticks = ticks
        if raft.term != self._term:
            self._term, self._since = raft.term, ticks
            self._last_indexes.clear()
        self._last_indexes.append(raft.log.last_index())
        if raft.pending_membership_index > raft.log.applied or raft.tracker.membership.joint:
            return
        change = self._admission.unrecorded() or self._appointments()
        if change is not None:
            try:
                self._node.propose_membership(change)
            except ProposalDroppedError:
                return

    @property
    def settled(self) -> bool:
        """Whether this leadership is old enough to tell who is there and who is not."""
        return self._ticks - self._since >= self._settings.election_ticks

    def standings(self) -> list[Standing]:
        """Each member, as this leader sees it."""
        raft = self._node.raft
        membership = raft.tracker.membership
        settings = self._settings
        # What everybody has who keeps up: what the log held an election timeout ago (thesis 4.2.1 asks that the last
        # round of catching up was shorter than that).
        enough = self._last_indexes[0] if len(self._last_indexes) == settings.election_ticks else raft.log.last_index()
        standings = []
        for node_id, progress in raft.tracker.progress.items():
            record = membership.members[node_id]
            own = node_id == raft.id
            silent_ticks = self._ticks - max(self.heard.get(node_id, 0), self._since)
            standings.append(
                Standing(
                    node_id=node_id,
                    voter=node_id in membership.voters,
                    zone=record.attributes.get(ZONE, ""),
                    willing=LEARNER not in record.attributes,
                    silent_s=0.0 if own else silent_ticks * settings.heartbeat_interval_s,
                    caught_up=own or (progress.state is ProgressState.REPLICATE and progress.match >= enough),
                )
            )
        return standings

    def objection(self, voters_after: Collection[str]) -> str | None:
        """Why a change to these voters would cost the quorum; None when it does not."""
        return objection(self.standings(), voters_after, alive_within_s=self._settings.election_timeout_s)

    def _appointments(self) -> MembershipChange | None:
        if not self.settled:
            return None
        settings = self._settings
        changes = appoint(
            self.standings(),
            voters_max=settings.voters_max,
            replace_after_s=settings.voter_replace_after_s,
            alive_within_s=settings.election_timeout_s,
        )
        if not changes:
            return None
        self._log.info("appointing", changes={change.node_id: str(change.kind) for change in changes})
        return MembershipChange(changes)
