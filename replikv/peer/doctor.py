"""What is wrong, in words: a pure function of what a peer knows of itself, for whoever is called at night.

Each reason says what happened, to whom, for how long, and what to do. The order is that of importance: first what stops
the cluster (no leader, no quorum) and what may make it wrong, then what stops a member, then what is about to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from replikv.raft.lease import CLOCK_DRIFT_MAX
from replikv.raft.roles import Role

__all__ = ["Contact", "Divergence", "Following", "Observations", "SnapshotSending", "diagnose"]

ANSWER_TIMEOUTS: Final = 1
"""Election timeouts within which a leader's heartbeats arrive and are answered: one without is what CheckQuorum calls
silence (thesis 6.2)."""

CAMPAIGN_TIMEOUTS: Final = 2
"""Election timeouts within which, without a leader, every voter that is alive campaigns, so that all others hear of
it (paper, section 5.2: after a random time between one and two of them)."""

ELECTION_TIMEOUTS: Final = 5
"""Election timeouts after which an election among voters that reach each other should be over: split votes are rare
enough for two or three rounds (paper, section 9.3)."""

PROGRESS_TIMEOUTS: Final = 5
"""Election timeouts without progress that are no hiccup: of a follower that lacks entries, of a membership change, of
applying. Much longer than the slowest sync of a busy disk."""

BEHIND_ENTRIES: Final = 5_000
"""A follower that lacks more is far behind, even while it catches up: the default of ``Settings.trailing_entries``,
past which the log may be gone and a snapshot has to be sent."""

SNAPSHOT_UNMOVED_S: Final = 10.0
"""Without a byte for so long, a snapshot on its way is stuck: a receiver, too, gives up who is silent for as long."""

STALL_TIMEOUTS: Final = 0.5
"""A stall of half an election timeout is worth words: twice as long costs a leader its leadership."""

CLOCK_JUMP_S: Final = 1.0
"""What a wall clock may jump without a word where nothing rests on clocks. NTP steps by more than 0.128 s."""

LEASE_JUMP_TIMEOUTS: Final = CLOCK_DRIFT_MAX
"""With lease reads, what clocks may be off over an election timeout, in parts of it."""

QUOTA_SHARE: Final = 0.9
"""How full the map may be, as a part of its limits, without a word."""

RECENT_S: Final = 600.0
"""For how long a stall or a jump that is over is told of: as long as somebody who was alarmed by it looks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Another member, as this peer hears of it."""

    node_id: str
    silent_s: float = 0.0
    """Since its last frame; infinite if there was none since this peer started."""
    connected: bool = True
    """Whether the connection that this peer sends on is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSending:
    """A snapshot on its way to a follower."""

    since_s: float
    bytes_sent: int
    unmoved_s: float
    """Since its last byte left, or since it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A follower's log, as the leader knows it."""

    node_id: str
    lacks_entries: int = 0
    """The leader's last index less what the follower is known to have."""
    unmoved_s: float = 0.0
    """Since what it is known to have grew last, or since it lacks something."""
    snapshot: SnapshotSending | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Another member whose replica was found to differ from this peer's."""

    node_id: str
    position: int
    own: str
    other: str
    """The digests at that position."""
    outvoted: bool
    """Whether a majority of the voters agrees with this peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What a peer knows of itself, at one moment. The defaults are those of a peer that is well."""

    node_id: str
    role: str
    """As in :class:`~replikv.peer.status.Status`."""
    election_timeout_s: float
    leader: str | None
    leader_since_s: float
    """For how long ``leader`` is what it is: without one, for how long there was none."""

    # -- the membership ------------------------------------------------------------------------------------------------
    voters: Collection[str]
    outgoing: Collection[str] = ()
    """The voters that are being left, while the configuration is joint."""
    membership_change_s: float = 0.0
    """For how long a membership change is under way, the joint configuration included; 0 if none is."""
    waits_for: str = ""
    """What a learner or a joiner lacks until it is what it wants to be: "a leader to add it", "the log to 1,200"."""
    waiting_s: float = 0.0

    # -- the others ----------------------------------------------------------------------------------------------------
    contacts: Collection[Contact] = ()
    """Each other member."""
    followers: Collection[Following] = ()
    """On the leader, each other member."""
    refused_by: Mapping[str, str] = field(default_factory=dict)
    """Who would not have this peer, in their words: node id -> sentence."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Whom this peer would not have: node id -> sentence."""

    divergences: Collection[Divergence] = ()
    held_back_by: Mapping[str, str] = field(default_factory=dict)
    """Who holds back a version of the commands that this peer knows: node id -> why, in words."""

    # -- the map -------------------------------------------------------------------------------------------------------
    state_bytes: int = 0
    state_bytes_max: int = 1 << 62
    keys: int = 0
    keys_max: int = 1 << 62
    """The limits are those that all replicas keep."""

    # -- this process --------------------------------------------------------------------------------------------------
    unapplied_entries: int = 0
    """Committed and not applied here."""
    unapplied_s: float = 0.0
    """For how long there was always something to apply."""
    stall_s: float = 0.0
    """The longest time, lately, that the event loop stood still."""
    stall_ago_s: float = math.inf
    clock_jump_s: float = 0.0
    """How much further the wall clock went than the monotonic one; negative when it was set back."""
    clock_jump_ago_s: float = math.inf
    lease_reads: bool = False
    proposals_in_flight: int = 0
    proposals_max: int = 0
    """As in the settings; 0 if not known."""

    # -- its disk ------------------------------------------------------------------------------------------------------
    disk_full: bool = False
    """Whether a write waits for room."""
    disk_free_bytes: int | None = None
    """None if not known, and for a peer without a disk."""
    disk_needed_bytes: int = 0
    """What the next segment of the log and the next snapshot will take."""
    snapshot_failure: str = ""
    """Why the last snapshot of its own came to nothing; empty once one was taken."""


def diagnose(observations: Observations) -> list[str]:
    """What is wrong, in words, most important first; empty when all is well."""
    return [reason for rule in _RULES for reason in rule(observations)]


# -- the quorum --------------------------------------------------------------------------------------------------------


def _no_leader(seen: Observations) -> Iterator[str]:
    if seen.leader is not None:
        return
    lost = _lost_halves(seen)
    for half, ids, missing in lost:
        yield (
            f"no leader: {len(missing)} of {len(ids)} {half} unreachable for {_silence(seen, missing)}:"
            f" {_listed(missing)}; {_start(seen, missing)}"
        )
    everybody = {*seen.voters, *seen.outgoing}
    if lost:
        return
    if not everybody:
        if not seen.waits_for:
            yield f"no leader: {seen.node_id} knows of no voter, so it has joined no cluster yet; check join="
        return
    reachable = f"{len(everybody - _unreachable(seen))} of {len(everybody)} voters"
    if seen.leader_since_s < ELECTION_TIMEOUTS * seen.election_timeout_s:
        yield f"no leader for {seen.leader_since_s:.1f} s: an election is under way, {reachable} can be reached; wait"
    else:
        yield (
            f"no leader for {seen.leader_since_s:.1f} s although {reachable} can be reached: no election succeeds,"
            f" or who won it cannot reach {seen.node_id}; ask the doctor of the others, and if disks or event loops are"
            f" slow, raise Settings.election_timeout_s ({seen.election_timeout_s:.1f}) on every peer"
        )


def _no_quorum(seen: Observations) -> Iterator[str]:
    if seen.role != Role.LEADER:
        return
    for half, ids, missing in _lost_halves(seen):
        yield (
            f"no quorum: {seen.node_id} leads, but {len(missing)} of {len(ids)} {half} are unreachable for"
            f" {_silence(seen, missing)}: {_listed(missing)}; nothing is committed; {_start(seen, missing)}"
        )


def _refused(seen: Observations) -> Iterator[str]:
    for node_id, sentence in sorted(seen.refused_by.items()):
        yield f"{node_id} refuses {seen.node_id}: {sentence}"
    for node_id, sentence in sorted(seen.refused.items()):
        yield f"{seen.node_id} refuses {node_id}: {sentence}"


def _joint(seen: Observations) -> Iterator[str]:
    if seen.membership_change_s < PROGRESS_TIMEOUTS * seen.election_timeout_s:
        return
    missing = {*seen.voters, *seen.outgoing} & _unreachable(seen)
    remedy = f"bring back {_listed(missing)}" if missing else "ask the doctor of the leader what it waits for"
    if seen.outgoing:
        yield (
            f"the configuration has been joint for {seen.membership_change_s:.1f} s: until it is left, everything needs"
            f" a majority of {_listed(seen.outgoing)} and one of {_listed(seen.voters)}; {remedy}"
        )
    else:
        yield f"a membership change has been under way for {seen.membership_change_s:.1f} s; {remedy}"


def _diverged(seen: Observations) -> Iterator[str]:
    us = seen.node_id
    for found in sorted(seen.divergences, key=lambda found: found.node_id):
        them = found.node_id
        where = f"at position {found.position} the digest of {us} is {found.own}, that of {them} {found.other}"
        if found.outvoted:
            yield f"the replica of {them} has diverged from a majority: {where}; it stops when it hears of it"
        else:
            yield (
                f"the replicas of {us} and {them} differ, and nobody can tell which of them is right: {where}; restart"
                " both, one after the other; if they differ again, remove the one that is wrong and let it join anew"
            )


# -- the others --------------------------------------------------------------------------------------------------------


def _cut_off(seen: Observations) -> Iterator[str]:
    named = {node_id for _, _, missing in _lost_halves(seen) for node_id in missing} if _needs_quorum(seen) else set()
    told = named.union(seen.refused_by, seen.refused)
    us, contacts = seen.node_id, _contacts(seen)
    for node_id in sorted(_unreachable(seen) - told):
        contact = contacts[node_id]
        heard = "never heard of" if math.isinf(contact.silent_s) else f"last heard of {contact.silent_s:.1f} s ago"
        if contact.connected:
            yield (
                f"{node_id} is connected to {us} but silent, {heard}: its process is stopped or busy,"
                f" or the network loses what it sends; look at {node_id}"
            )
        elif contact.silent_s < ANSWER_TIMEOUTS * seen.election_timeout_s:
            yield (
                f"{us} cannot reach {node_id}, which reaches {us} ({heard}): check the address of"
                f" {node_id}, and what lies on the way there"
            )
        else:
            yield (
                f"{us} cannot reach {node_id}: no connection, {heard}; start {node_id}, or check its"
                f" address and the network between them"
            )


def _lagging(seen: Observations) -> Iterator[str]:
    silent = _unreachable(seen)
    for follower in sorted(seen.followers, key=lambda follower: follower.node_id):
        node_id, entries, snapshot = follower.node_id, follower.lacks_entries, follower.snapshot
        if node_id in silent:
            continue  # that is why
        if snapshot is not None:
            if snapshot.unmoved_s >= SNAPSHOT_UNMOVED_S:
                yield (
                    f"the snapshot for {node_id} is stuck: {_size(snapshot.bytes_sent)} sent in"
                    f" {snapshot.since_s:.1f} s, none for {snapshot.unmoved_s:.1f} s; ask the doctor of {node_id}"
                    " whether its disk is full, and look at the network between them"
                )
        elif entries and follower.unmoved_s >= PROGRESS_TIMEOUTS * seen.election_timeout_s:
            yield (
                f"{node_id} lags: {entries:,} entries behind and not moving for {follower.unmoved_s:.1f} s;"
                f" ask the doctor of {node_id} whether its disk is full or slow"
            )
        elif entries > BEHIND_ENTRIES:
            yield (
                f"{node_id} lags: {entries:,} entries behind, and catching up; wait, and do not stop other voters"
                " meanwhile"
            )


def _waiting(seen: Observations) -> Iterator[str]:
    if seen.waits_for:
        yield (
            f"{seen.node_id} waits for {seen.waits_for}, for {seen.waiting_s:.1f} s by now; if that goes on, ask the"
            " doctor of the leader"
        )


# -- this process ------------------------------------------------------------------------------------------------------


def _lease_clock(seen: Observations) -> Iterator[str]:
    if seen.lease_reads and _jumped(seen, LEASE_JUMP_TIMEOUTS * seen.election_timeout_s):
        yield (
            f"lease reads rest on clocks, and {_jump(seen)}: reads may have been stale then;"
            " unless somebody set the wall clock by hand, turn Settings.lease_reads off on every peer"
        )


def _clock(seen: Observations) -> Iterator[str]:
    if not seen.lease_reads and _jumped(seen, CLOCK_JUMP_S):
        yield f"{_jump(seen)}: nothing here rests on it, but your own timestamps may; look at its time synchronization"


def _stalled(seen: Observations) -> Iterator[str]:
    if seen.stall_s >= STALL_TIMEOUTS * seen.election_timeout_s and seen.stall_ago_s <= RECENT_S:
        yield (
            f"the event loop of {seen.node_id} stood still for {seen.stall_s:.1f} s, {seen.stall_ago_s:.1f} s ago: a"
            " call blocked it, or the process was stopped; a leader that does so for Settings.election_timeout_s"
            f" ({seen.election_timeout_s:.1f} s) is replaced: move what blocks into a thread (trio.to_thread)"
        )


def _unapplied(seen: Observations) -> Iterator[str]:
    if seen.unapplied_entries and seen.unapplied_s >= PROGRESS_TIMEOUTS * seen.election_timeout_s:
        yield (
            f"{seen.node_id} does not keep up: {seen.unapplied_entries:,} committed entries still to apply, and always"
            f" some for {seen.unapplied_s:.1f} s: its replica is that far behind; give the process more time to run,"
            " or send fewer commands"
        )


def _proposals(seen: Observations) -> Iterator[str]:
    if 0 < seen.proposals_max <= seen.proposals_in_flight:
        yield (
            f"{seen.proposals_in_flight:,} operations of {seen.node_id} are in flight, as many as may be: further ones"
            " wait; send fewer at once, or raise Settings.proposals_max"
        )


def _held_back(seen: Observations) -> Iterator[str]:
    for node_id, reason in sorted(seen.held_back_by.items()):
        yield f"commands that {seen.node_id} knows wait for {node_id}, which {reason}"


def _quota(seen: Observations) -> Iterator[str]:
    if seen.state_bytes >= QUOTA_SHARE * seen.state_bytes_max:
        yield (
            f"the map takes {_size(seen.state_bytes)} of {_size(seen.state_bytes_max)}: puts that make it larger will"
            " be refused; delete some keys, or raise Settings.state_bytes_max on every peer"
        )
    if seen.keys >= QUOTA_SHARE * seen.keys_max:
        yield (
            f"the map has {seen.keys:,} of {seen.keys_max:,} keys: puts of new ones will be refused; delete some, or"
            " raise Settings.keys_max on every peer"
        )


# -- its disk ----------------------------------------------------------------------------------------------------------


def _disk_full(seen: Observations) -> Iterator[str]:
    if seen.disk_full:
        free = "" if seen.disk_free_bytes is None else f" ({_size(seen.disk_free_bytes)} free)"
        yield (
            f"the disk of {seen.node_id} is full{free}: it acknowledges nothing; make room, and it goes on by itself"
        )


def _disk_ahead(seen: Observations) -> Iterator[str]:
    free = seen.disk_free_bytes
    if not seen.disk_full and free is not None and free < seen.disk_needed_bytes:
        yield (
            f"the disk of {seen.node_id} is about to be full: {_size(free)} free, and the next log segment and snapshot"
            f" take {_size(seen.disk_needed_bytes)}; make room"
        )


def _snapshot_failed(seen: Observations) -> Iterator[str]:
    if seen.snapshot_failure:
        yield (
            f"the last snapshot of {seen.node_id} failed: {seen.snapshot_failure}; until one is taken the log grows:"
            " mend that, and call cluster.snapshot()"
        )


_RULES: Final[tuple[Callable[[Observations], Iterable[str]], ...]] = (
    _no_leader,
    _no_quorum,
    _lease_clock,
    _diverged,
    _refused,
    _disk_full,
    _joint,
    _cut_off,
    _lagging,
    _waiting,
    _unapplied,
    _stalled,
    _disk_ahead,
    _snapshot_failed,
    _clock,
    _proposals,
    _quota,
    _held_back,
)
"""Most important first. Lease reads on a clock that jumps stand high: there an answer may have been wrong, not late."""


# -- what can be reached -----------------------------------------------------------------------------------------------


def _contacts(seen: Observations) -> dict[str, Contact]:
    """Everybody else; a voter of whom nothing is observed was never heard of."""
    known = {contact.node_id: contact for contact in seen.contacts}
    unknown = {*seen.voters, *seen.outgoing} - known.keys() - {seen.node_id}
    return known | {
        node_id: Contact(node_id=node_id, silent_s=math.inf, connected=False) for node_id in sorted(unknown)
    }


def _unreachable(seen: Observations) -> set[str]:
    """Who is not connected, or silent although it would speak if it could.

    A leader and its followers speak in both directions, and voters without a leader to each other. Followers of a
    leader have nothing to say to each other, and nobody has campaigned to a learner: there, silence says nothing. Nor
    does silence from before the present leader (or none) was there.
    """
    voting = seen.node_id in seen.voters or seen.node_id in seen.outgoing
    unreachable = set()
    for node_id, contact in _contacts(seen).items():
        if seen.role == Role.LEADER or node_id == seen.leader:
            expected_s = ANSWER_TIMEOUTS * seen.election_timeout_s
        elif seen.leader is None and voting and (node_id in seen.voters or node_id in seen.outgoing):
            expected_s = CAMPAIGN_TIMEOUTS * seen.election_timeout_s
        else:
            expected_s = math.inf
        if not contact.connected or min(contact.silent_s, seen.leader_since_s) >= expected_s:
            unreachable.add(node_id)
    return unreachable


def _lost_halves(seen: Observations) -> list[tuple[str, Collection[str], set[str]]]:
    """The sets of voters without a majority in reach: (what they are called, the voters, who cannot be reached)."""
    unreachable = _unreachable(seen)
    halves = (("voters", seen.voters), ("outgoing voters", seen.outgoing))
    return [
        (half, ids, unreachable & set(ids))
        for half, ids in halves
        if ids and len(ids) - len(unreachable & set(ids)) <= len(ids) // 2
    ]


def _needs_quorum(seen: Observations) -> bool:
    """Whether the quorum is this peer's business now, and a lost one was named: while it leads or nobody does."""
    return seen.leader is None or seen.role == Role.LEADER


def _silence(seen: Observations, node_ids: Iterable[str]) -> str:
    """For how long all of them have been silent, as far as that says anything."""
    contacts = _contacts(seen)
    return f"{min(seen.leader_since_s, *(contacts[node_id].silent_s for node_id in node_ids)):.1f} s"


def _start(seen: Observations, missing: Collection[str]) -> str:
    them = "it" if len(missing) == 1 else "them"
    return f"start {them}, or mend the network between {them} and {seen.node_id}"


def _jumped(seen: Observations, least_s: float) -> bool:
    return abs(seen.clock_jump_s) >= least_s and seen.clock_jump_ago_s <= RECENT_S


def _jump(seen: Observations) -> str:
    ago = f"{seen.clock_jump_ago_s:.1f} s ago"
    if seen.clock_jump_s < 0:
        return f"the wall clock of {seen.node_id} was set back by {-seen.clock_jump_s:.1f} s, {ago}"
    return (
        f"the wall clock of {seen.node_id} jumped ahead by {seen.clock_jump_s:.1f} s, {ago} (it was set, or the machine"
        " slept or was moved)"
    )


def _listed(node_ids: Iterable[str]) -> str:
    return ", ".join(sorted(node_ids))


def _size(size: int) -> str:
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
