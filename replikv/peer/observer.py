"""What a peer sees of itself over time, for the doctor: since when things are as they are."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import trio

from replikv.peer.doctor import Contact, Following, Observations, SnapshotSending
from replikv.peer.life import Life
from replikv.raft.progress import Progress
from replikv.raft.roles import Role

__all__ = ["Observer"]

FORGET_S = 600.0
"""After how long a stall or a jump makes way for a smaller one."""


@dataclass(slots=True)
class Peak:
    """The largest of what happened lately."""

    size: float = 0.0
    at: float = -math.inf

    def note(self, size: float, now: float) -> None:
        if abs(size) >= abs(self.size) or now - self.at > FORGET_S:
            self.size, self.at = size, now


class Observer:
    """Looks at one life of a peer, once per tick."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._now = trio.current_time()
        self._leader = ""
        self._leader_since = self._now
        self._settled_at = self._now
        self._applied_at = self._now
        # Follower -> (match, when that grew last, or when it lacked nothing).
        self._matches: dict[str, tuple[int, float]] = {}
        self._stall = Peak()
        self._jump = Peak()
        self._offset_s = wall_offset_s()

    def tick(self) -> None:
        """About a heartbeat interval has passed."""
        now = trio.current_time()
        life, driver = self._life, self._life.driver
        raft = driver.node.raft
        self._stall.note(now - self._now - life.settings.heartbeat_interval_s, now)
        offset_s = wall_offset_s()
        self._jump.note(offset_s - self._offset_s, now)
        self._now, self._offset_s = now, offset_s
        if raft.leader != self._leader:
            self._leader, self._leader_since = raft.leader, now
        if not raft.tracker.membership.joint and raft.pending_membership_index <= raft.log.applied:
            self._settled_at = now
        if driver.applier.index >= raft.log.committed:
            self._applied_at = now
        if raft.role is Role.LEADER:
            self._follow(raft.tracker.progress, raft.log.last_index(), now)
        else:
            self._matches.clear()

    def _follow(self, members: dict[str, Progress], last_index: int, now: float) -> None:
        for node_id in self._matches.keys() - members.keys():
            del self._matches[node_id]
        for node_id, progress in members.items():
            match, _ = self._matches.get(node_id, (-1, now))
            if progress.match != match or progress.match >= last_index:
                self._matches[node_id] = progress.match, now

    def observations(self) -> Observations:
        """What there is to see now."""
        life, driver = self._life, self._life.driver
        raft, settings, now = driver.node.raft, life.settings, trio.current_time()
        membership = raft.tracker.membership
        own = life.identity.node_id
        free, needed = driver.disk_room()
        return Observations(
            node_id=own,
            role=str(raft.role),
            election_timeout_s=settings.election_timeout_s,
            leader=raft.leader or None,
            leader_since_s=now - self._leader_since if raft.leader == self._leader else 0.0,
            voters=membership.voters,
            outgoing=membership.outgoing,
            membership_change_s=now - self._settled_at if membership.joint else 0.0,
            contacts=[self._contact(node_id) for node_id in sorted(membership.ids - {own})],
            followers=self._followers(raft.log.last_index(), now) if raft.role is Role.LEADER else (),
            divergences=list(driver.auditor.divergences.values()),
            held_back_by=driver.governor.holding_back(),
            state_bytes=driver.replica.keyspace.state_bytes,
            state_bytes_max=driver.replica.governance.limits.state_bytes,
            keys=len(driver.replica.keyspace),
            keys_max=driver.replica.governance.limits.keys,
            refused_by=dict(life.refusals),
            refused=dict(life.declined),
            unapplied_entries=max(0, raft.log.committed - driver.applier.index),
            unapplied_s=now - self._applied_at,
            stall_s=self._stall.size,
            stall_ago_s=now - self._stall.at,
            clock_jump_s=self._jump.size,
            clock_jump_ago_s=now - self._jump.at,
            lease_reads=settings.lease_reads,
            proposals_in_flight=driver.proposals.in_flight,
            proposals_max=settings.proposals_max,
            disk_full=driver.persister.full,
            disk_free_bytes=free,
            disk_needed_bytes=needed,
            snapshot_failure=str(driver.taker.failure or ""),
        )

    def _contact(self, node_id: str) -> Contact:
        life = self._life
        heard = life.driver.steward.heard.get(node_id)
        ticks = life.driver.ticks
        return Contact(
            node_id=node_id,
            silent_s=math.inf if heard is None else (ticks - heard) * life.settings.heartbeat_interval_s,
            connected=life.whereabouts.connected(node_id),
        )

    def _followers(self, last_index: int, now: float) -> list[Following]:
        life = self._life
        followers = []
        for node_id, progress in life.driver.node.raft.tracker.progress.items():
            if node_id == life.identity.node_id:
                continue
            transfer = life.sender.sending.get(node_id)
            sending = None
            if transfer is not None:
                sending = SnapshotSending(
                    since_s=now - transfer.since,
                    bytes_sent=transfer.moved_bytes,
                    unmoved_s=0.0 if transfer.waiting else now - transfer.moved_at,
                )
            _, moved_at = self._matches.get(node_id, (0, now))
            followers.append(
                Following(
                    node_id=node_id,
                    lacks_entries=max(0, last_index - progress.match),
                    unmoved_s=now - moved_at,
                    snapshot=sending,
                )
            )
        return followers


def wall_offset_s() -> float:
    """How far the wall clock is from the monotonic one: constant, but for what somebody sets it by."""
    return time.time() - time.monotonic()
