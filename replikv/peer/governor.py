"""What a leader does for all replicas by itself: lets commands of later versions take effect, and sets limits.

Rules:

1. A version takes effect when *every* member knows it: each says in its attributes what it knows, as it says where it
   is found. One that says less, or says nothing of versions, blocks.
   While one knows version 0 only, nothing is proposed at all: it would not know an UPGRADE of the machine alone, nor
   the snapshots behind one.
2. A member that has never said anything of itself blocks an upgrade, but not the first one: a new cluster is usable
   while a founding member has not come yet. If that one comes with too old a program, it stops at the UPGRADE.
3. Limits are the settings of who leads: proposed once per leadership, if others hold.
4. Nothing is proposed before this replica has applied what leaders before this one have left: until then it does not
   know what holds.

An UPGRADE never lowers a version, and either command may be repeated: so they belong to no session, and whatever is
lost is proposed again by the next tick or the next leader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from replikv.machine.envelope import CommandKind, Envelope, pack_commands
from replikv.machine.governance import Limits, Versions, encode_set_limits, encode_upgrade
from replikv.machine.replica import Replica
from replikv.peer.admission import COMMANDS, GRANTED, MACHINE, Admission
from replikv.raft.node import RawNode
from replikv.raft.refusals import ProposalDroppedError
from replikv.settings import Settings

__all__ = ["Governor", "limits_of", "versions_in"]

_FIRST: Final = Versions(0, 0)


def versions_in(attributes: Mapping[str, str]) -> Versions | None:
    """What a member with these attributes knows; None if it has never told anything of itself."""
    if not attributes.keys() - GRANTED:
        return None
    return Versions(_number(attributes.get(COMMANDS, "")), _number(attributes.get(MACHINE, "")))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def limits_of(settings: Settings) -> Limits:
    """The limits that a leader with these settings asks for."""
    return Limits(
        state_bytes=settings.state_bytes_max,
        keys=settings.keys_max,
        leases=settings.leases_max,
        sessions=settings.sessions_max,
        operations=settings.operations_per_command_max,
    )


class Governor:
    """Versions and limits, as this peer sees them; proposes them when it leads."""

    def __init__(self, settings: Settings, node: RawNode, replica: Replica, admission: Admission) -> None:
        self._limits = limits_of(settings)
        self._node = node
        self._replica = replica
        self._admission = admission
        # (term, tick) of the last look: one per tick is enough, but a new leader looks at once.
        self._looked = (0, 0)
        # The term in which the limits were proposed, and what the last UPGRADE was to, and in which term.
        self._limits_proposed = 0
        self._upgrade_proposed: tuple[int, Versions] = (0, _FIRST)
        self._log = structlog.get_logger(component="governor").bind(node=node.raft.id)

    def look(self, ticks: int) -> None:
        """Propose what is due. Called in each turn of a leader, before anything else is proposed."""
        term = self._node.raft.term
        look = (term, ticks)
        if self._looked == look or not self._caught_up():
            return
        self._looked = look
        now = self._replica.governance.versions
        wanted = now.raised(self._known_by_all())
        upgrade = wanted != now and self._upgrade_proposed != (term, wanted)
        # Limits take effect behind an UPGRADE, which may be the one just before them.
        limits = (
            wanted.commands > 0 and self._replica.governance.limits != self._limits and self._limits_proposed != term
        )
        payloads = [encode_upgrade(wanted)] if upgrade else []
        if limits:
            payloads.append(encode_set_limits(self._limits))
        if not payloads:
            return
        try:
            self._node.propose(
                pack_commands(Envelope(CommandKind.CLUSTER, 0, 0, 0, payload).encode() for payload in payloads)
            )
        except ProposalDroppedError:
            return  # looked at again with the next tick
        if limits:
            self._limits_proposed = term
        if upgrade:
            self._upgrade_proposed = (term, wanted)
            self._log.info("upgrade", commands=wanted.commands, machine=wanted.machine)

    def _caught_up(self) -> bool:
        """Whether all that is still to be applied is of this leadership."""
        raft = self._node.raft
        applied = raft.log.applied
        return applied == raft.log.last_index() or raft.log.term(applied + 1) == raft.term

    def _known_by_all(self) -> Versions:
        known = self._replica.known
        first = self._replica.governance.versions == _FIRST
        for versions in self._told().values():
            if versions is not None:
                known = known.capped(versions)
            elif not first:
                return _FIRST
        return known if known.commands else _FIRST

    def _told(self) -> dict[str, Versions | None]:
        """What each other member knows, as it says now or has said; None of who has never said anything."""
        admission = self._admission
        return {
            node_id: versions_in(admission.attributes_of(node_id))
            for node_id in admission.membership.members
            if node_id != self._node.raft.id
        }

    def too_old(self, attributes: Mapping[str, str]) -> str | None:
        """Why a newcomer that says this of itself would stop at once; None if it knows all that is in use."""
        versions, now = versions_in(attributes) or _FIRST, self._replica.governance.versions
        if versions.commands < now.commands:
            return (
                f"the cluster uses commands of version {now.commands} of replikv, and the newcomer knows"
                f" {versions.commands}: start it with the program that the others run"
            )
        if versions.machine < now.machine:
            return (
                f"the cluster uses version {now.machine} of its StateMachine, and the newcomer has"
                f" {versions.machine or 'none'}: start it with the program that the others run, and the same machine="
            )
        return None

    def holding_back(self) -> dict[str, str]:
        """Who holds back a version that this peer knows: node id -> why, in words. For the doctor, on any peer."""
        known, now = self._replica.known, self._replica.governance.versions
        if now.covers(known):
            return {}
        reasons = {}
        for node_id, versions in self._told().items():
            if versions is None and now != _FIRST:
                reasons[node_id] = "has never said what it knows: start it once, or remove it"
            elif versions is not None and versions.commands < known.commands > now.commands:
                reasons[node_id] = (
                    f"knows commands of version {versions.commands} only: restart it with a newer replikv"
                )
            elif versions is not None and versions.machine < known.machine > now.machine:
                reasons[node_id] = (
                    f"has a StateMachine of version {versions.machine}: restart it with the newer program"
                    if versions.machine
                    else "has no StateMachine: start it with the machine= of the others"
                )
        return reasons
