"""Who should vote, and which changes would cost the quorum: pure functions of what the leader sees.

A cluster embedded in an application has as many peers as the application has processes; a few of them vote. Who these
are is nobody's task to keep up: the leader gives the vote of a voter that is gone to a learner that is caught up, as
dqlite's roles do (canonical/go-dqlite, ``app/roles.go``). Three rules keep it from doing harm:

1.  Slow to take a vote away, quick to see that somebody is silent. A voter is gone after a long silence only
    (``replace_after_s``: a restart fits into it), while whoever is to vote must have been heard of just now
    (``alive_within_s``) and have the log (thesis 4.2.1). Who comes back finds its place taken, and is a learner: a
    member that flaps moves a vote once, and not each time.
2.  The number of voters never goes down. Where nobody can take its place, a voter that is gone stays: it may come
    back, and a cluster of fewer voters survives fewer losses.
3.  Nothing is proposed without a quorum. Whoever is appointed is alive, so with a live majority before there is one
    after: each promotion adds one voter that lives, each replacement one for a voter that does not.

Both functions are for a configuration that is not joint: nothing else can be changed while it is (thesis 4.3).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from replikv.raft.membership import ChangeKind, MemberChange

__all__ = ["Standing", "appoint", "objection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One member as the leader sees it."""

    node_id: str
    voter: bool
    zone: str = ""
    """Where it runs: what fails together. Empty: a zone of its own."""
    willing: bool = True
    """Whether it votes when asked to; False: it joined as a learner for good."""
    silent_s: float = 0.0
    """For how long nothing was heard of it: 0 for the leader itself, infinite if never."""
    caught_up: bool = True
    """Whether it has everything that the leader had an election timeout ago."""


def appoint(
    standings: Sequence[Standing],
    *,
    voters_max: int,
    replace_after_s: float,
    alive_within_s: float,
    leading_s: float = math.inf,
) -> tuple[MemberChange, ...]:
    """The changes of roles that the leader should propose now, all in one change; empty when there is nothing to do.

    ADD_VOTER for who is to vote from now on, in the order of choice, then ADD_LEARNER for the voters that they replace.
    First those that are gone are replaced, the longest gone first; then the number of voters grows up to ``voters_max``
    (never beyond it, and nobody is demoted where it is exceeded already). Each choice falls on the zone with the fewest
    voters, and there on the smallest node id: the order of ``standings`` makes no difference.

    ``leading_s`` is for how long this leader leads. Before that it was a follower, who hears of the leader alone: that
    the others were silent towards it says nothing, so nobody is gone until it has led for ``replace_after_s``.
    """
    voters = [standing for standing in standings if standing.voter]
    alive = {standing.node_id for standing in standings if standing.silent_s < alive_within_s}
    if not _is_majority(alive, [voter.node_id for voter in voters]):
        return ()

    gone = {
        voter.node_id: voter.silent_s
        for voter in voters
        if voter.node_id not in alive and min(voter.silent_s, leading_s) >= replace_after_s
    }
    candidates = {
        standing.node_id: standing
        for standing in standings
        if not standing.voter and standing.willing and standing.caught_up and standing.node_id in alive
    }
    places = len(gone) + max(0, voters_max - len(voters))

    # Voters by zone, of those that stay. One that is silent but not gone counts: it is about to come back.
    taken = collections.Counter(_zone(voter) for voter in voters if voter.node_id not in gone)
    appointed: list[str] = []
    while candidates and len(appointed) < places:
        _, node_id = min((taken[_zone(standing)], standing.node_id) for standing in candidates.values())
        taken[_zone(candidates.pop(node_id))] += 1
        appointed.append(node_id)
    replaced = sorted(gone, key=lambda node_id: (-gone[node_id], node_id))[: len(appointed)]
    return (
        *(MemberChange(ChangeKind.ADD_VOTER, node_id) for node_id in appointed),
        *(MemberChange(ChangeKind.ADD_LEARNER, node_id) for node_id in replaced),
    )


def objection(standings: Sequence[Standing], voters_after: Collection[str], *, alive_within_s: float) -> str | None:
    """Why it would cost the quorum to have these voters instead of those of now, and what to do; None if it would not.

    Somebody in ``voters_after`` of whom there is no standing was never heard of. Voters that are down may be removed as
    long as enough of the others are alive.
    """
    silent_s = {standing.node_id: standing.silent_s for standing in standings}
    voters_before = {standing.node_id for standing in standings if standing.voter}
    lagging = {standing.node_id for standing in standings if not standing.caught_up}
    alive = {node_id for node_id, seconds in silent_s.items() if seconds < alive_within_s}

    def down(voters: Collection[str]) -> str:
        ids = sorted(set(voters) - alive)
        silences = "; ".join(_silence(node_id, silent_s.get(node_id, math.inf)) for node_id in ids)
        return f"{', '.join(ids)} {'is' if len(ids) == 1 else 'are'} down ({silences})"

    if not voters_after:
        return "the change leaves no voter, and a cluster needs at least one: keep one"
    if not _is_majority(alive, voters_before):
        missing = _majority(voters_before) - len(alive & voters_before)
        return (
            f"no change can be committed, by force=True neither: {_count(alive, voters_before)}"
            f" and {down(voters_before)}: bring back at least {missing} of them first"
        )
    for node_id in sorted(set(voters_after) - voters_before):
        if node_id not in alive:
            return (
                f"{node_id} cannot be reached: {_silence('it', silent_s.get(node_id, math.inf))}:"
                " bring it back first, or use force=True"
            )
        if node_id in lagging:
            return (
                f"{node_id} lags behind the leader's log, and a quorum that needs it would wait until it has caught up:"
                " wait for that first, or use force=True"
            )
    if not _is_majority(alive, voters_after):
        return (
            f"the change would cost the quorum: after it {_count(alive, voters_after)} and {down(voters_after)}:"
            " bring back who is down first, or use force=True"
        )
    return None


def _zone(standing: Standing) -> tuple[str, str]:
    """What tells zones apart: no name of a zone is that of a member without one."""
    return (standing.zone, "") if standing.zone else ("", standing.node_id)


def _majority(voters: Collection[str]) -> int:
    return len(voters) // 2 + 1


def _is_majority(alive: Collection[str], voters: Collection[str]) -> bool:
    return sum(voter in alive for voter in voters) >= _majority(voters)


def _count(alive: Collection[str], voters: Iterable[str]) -> str:
    """How many of the voters are alive, and how many must be."""
    ids = set(voters)
    return f"{len(ids & set(alive))} of {len(ids)} voters are alive where {_majority(ids)} must be,"


def _silence(who: str, seconds: float) -> str:
    if math.isinf(seconds):
        return f"nothing was ever heard of {who}"
    return f"nothing was heard of {who} for {seconds:.1f} s"
