"""Changes of the membership on request: anybody may ask, the leader makes them (thesis 4; rules: raft/changer.py).

A request names a configuration to reach rather than a step to take, so asking twice is harmless: what became of a lost
answer is found out by asking again. The leader makes one change at a time. It refuses those that would cost the quorum,
unless they are forced; refuses a second one that an operator asks for meanwhile; and lets newcomers wait in line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

import structlog
import trio

from replikv.errors import (
    ClusterClosedError,
    ConfigurationError,
    OutcomeUnknownError,
    UnavailableError,
    WrongClusterError,
)
from replikv.peer.admission import LEARNER, STORAGE, VOLATILE, Refused
from replikv.peer.driver import Driver
from replikv.peer.protocol import MalformedFrameError
from replikv.peer.requests import (
    Accepted,
    Answer,
    ChangeRequest,
    CompareRequest,
    Denial,
    Denied,
    JoinRequest,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from replikv.raft import changer
from replikv.raft.entries import NO_NODE
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange
from replikv.raft.refusals import InvalidChangeError, ProposalDroppedError
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.storage.base import Identity
from replikv.transport.base import Channel, Transport

__all__ = ["Reconfigurator"]

T = TypeVar("T", JoinRequest, ChangeRequest)

PATIENCE_TIMEOUTS: Final = 2
"""Election timeouts for which a change that would cost the quorum is held back rather than refused: who has just joined
catches up, and who was restarted comes back."""


class Reconfigurator:
    """Asks for changes, and makes them while this peer leads."""

    def __init__(self, identity: Identity, driver: Driver, transport: Transport, settings: Settings) -> None:
        self._identity = identity
        self._driver = driver
        self._transport = transport
        self._settings = settings
        # Held while a change is made: others wait in line.
        self._making = trio.Lock()
        # Whether one of those was asked for by an operator, who is told rather than made to wait.
        self._change_requested = False
        self._log = structlog.get_logger(component="reconfigurator").bind(node=identity.node_id)

    # -- asking --------------------------------------------------------------------------------------------------------

    async def change(self, changes: Sequence[MemberChange], *, forced: bool) -> None:
        """Have the membership changed; returns once this peer has applied the final configuration.

        Cancelled, the change may happen all the same.

        Raises:
            ConfigurationError: it makes no sense for this cluster.
            UnavailableError: surely not done: it would cost the quorum, or another change is under way, or no leader.
            OutcomeUnknownError: proposed, but not seen done within ``settings.request_timeout_s``.
        """
        deadline = self._driver.deadline()
        answer = await self.ask(ChangeRequest(tuple(changes), forced), deadline)
        if isinstance(answer, Accepted):
            try:
                await self._wait_applied(answer.index, deadline)
            except ClusterClosedError:
                # Who is removed may hear of it from those that refuse it, before it has applied it.
                own = self._identity.node_id
                if not any(change.kind is ChangeKind.REMOVE and change.node_id == own for change in changes):
                    raise
            return
        if answer.denial is Denial.MISTAKE:
            raise ConfigurationError(answer.reason)
        if answer.denial is Denial.IDENTITY:
            raise WrongClusterError(answer.reason)
        if answer.denial is Denial.UNKNOWN:
            raise OutcomeUnknownError(answer.reason, (0, 0))
        raise UnavailableError(answer.reason)

    async def _wait_applied(self, index: int, deadline: float) -> None:
        self._driver.wake()
        try:
            await self._driver.barriers.wait_applied(index, deadline)
        except UnavailableError as exc:
            raise OutcomeUnknownError(
                f"the membership was changed, but {self._identity.node_id} has not applied entry {index} within"
                f" {self._settings.request_timeout_s} s: {self._driver.why()}; it will when it is connected again",
                (0, 0),
            ) from exc

    async def ask(self, request: Request, deadline: float) -> Answer:
        """The leader's answer, whoever that is by then; ``deadline`` is on trio's clock."""
        unknown = False
        pause_s = self._settings.heartbeat_interval_s
        denied = Denied(Denial.LATER, f"{self._identity.node_id} is no member as of now: ask another one")
        while not self._driver.ended:
            answer = await self._ask_once(request, deadline)
            if isinstance(answer, Accepted):
                return answer
            denied = answer
            if answer.denial is Denial.UNKNOWN:
                unknown = True
                if isinstance(request, ChangeRequest):
                    request = dataclasses.replace(request, repeated=True)
            # What was proposed, and is not known to be lost, may come about yet: whatever a later attempt comes to.
            elif answer.denial is not Denial.ELSEWHERE and not (unknown and isinstance(request, ChangeRequest)):
                return answer
            if trio.current_time() + pause_s >= deadline:
                break
            await trio.sleep(pause_s)
        why = f"the membership was not seen changed: {denied.reason}"
        if unknown:
            return Denied(Denial.UNKNOWN, f"{why}; it may change yet: look at status().members")
        return Denied(Denial.LATER, f"{why}; surely nothing was changed: try again")

    async def _ask_once(self, request: Request, deadline: float) -> Answer:
        leader = self._driver.node.raft.leader
        if leader == self._identity.node_id or isinstance(request, CompareRequest):
            return await self._make(request, deadline)
        if leader == NO_NODE:
            return Denied(Denial.ELSEWHERE, self._driver.why())
        answer = Denied(Denial.ELSEWHERE, f"{leader} leads, but cannot be asked in time")
        with trio.move_on_at(deadline):
            try:
                channel = await self._transport.open_channel(leader)
            except OSError as exc:
                return Denied(Denial.ELSEWHERE, f"{leader} leads, but cannot be asked: {exc}")
            # From here on it may be proposed.
            answer = Denied(Denial.UNKNOWN, f"{leader} was asked, and gave no answer; {self._driver.why()}")
            try:
                await channel.send(encode_request(request))
                return decode_answer(await channel.receive())
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, MalformedFrameError):
                return answer
            finally:
                await channel.aclose()
        return answer

    # -- making --------------------------------------------------------------------------------------------------------

    async def serve(self, node_id: str, channel: Channel, frame: bytes) -> None:
        """Another member asks. Raises trio's resource errors."""
        try:
            request = decode_request(frame)
        except MalformedFrameError as exc:
            self._log.warning("malformed frame", sender=node_id, reason=str(exc))
            return
        # A little earlier than whoever asks gives up, so that he hears it.
        deadline = self._driver.deadline() - self._settings.heartbeat_interval_s
        await channel.send(encode_answer(await self._make(request, deadline)))

    async def _make(self, request: Request, deadline: float) -> Answer:
        """Do it, if this peer leads; returns once the final configuration is applied here."""
        if isinstance(request, CompareRequest):
            return self._compare(request.cluster_id, "it") or self._accepted()
        if isinstance(request, JoinRequest):
            return await self._in_turn(self._join, request, deadline)
        if self._change_requested:
            return Denied(
                Denial.LATER, "another change of the membership is under way: try again when that one is applied"
            )
        self._change_requested = True
        try:
            return await self._in_turn(self._make_change, request, deadline)
        finally:
            self._change_requested = False

    async def _in_turn(self, make: Callable[[T, float], Awaitable[Answer]], request: T, deadline: float) -> Answer:
        with trio.move_on_at(deadline) as waiting:
            await self._making.acquire()
        if waiting.cancelled_caught:
            return Denied(Denial.LATER, "others asked for changes of the membership before: try again")
        try:
            if not await self._wait_current(deadline):
                return Denied(Denial.LATER, "the changes before it were not applied in time: try again")
            return await make(request, deadline)
        finally:
            self._making.release()

    async def _wait_current(self, deadline: float) -> bool:
        """Wait until the membership that is applied here says what it says in the log: a new leader has more in its log
        than it has applied, and would judge by what was.
        """
        raft = self._driver.node.raft
        with trio.move_on_at(deadline):
            while raft.role is Role.LEADER and raft.pending_membership_index > raft.log.applied:  # noqa: ASYNC110  # it may be no change
                await trio.sleep(self._settings.heartbeat_interval_s)
            return True
        return False

    async def _join(self, request: JoinRequest, deadline: float) -> Answer:
        driver = self._driver
        if (denied := self._not_leading()) is not None:
            return denied
        if request.cluster_id and (denied := self._compare(request.cluster_id, request.node_id)) is not None:
            return denied
        if (reason := driver.governor.too_old(request.attributes)) is not None:
            return Denied(Denial.VERSION, reason)
        record = driver.node.raft.tracker.membership.members.get(request.node_id)
        if record is not None and self._is_known(record, request):
            return self._accepted()
        if record is not None and not record.incarnation:
            return Denied(Denial.LATER, f"what {request.node_id!r} has told of itself is not recorded yet: try again")
        if (reason := self._taken(request)) is not None:
            return Denied(Denial.IDENTITY, reason)
        change = MemberChange(
            ChangeKind.ADD_LEARNER, request.node_id, request.address, request.incarnation, request.attributes
        )
        return await self._make_change(ChangeRequest((change,)), deadline)

    def _compare(self, cluster_id: str, node_id: str) -> Denied | None:
        own = self._identity
        if cluster_id == own.cluster_id:
            return None
        return Denied(
            Denial.IDENTITY,
            f"{Refused.CLUSTER}: {node_id} belongs to cluster {cluster_id}, {own.node_id!r} to {own.cluster_id}:"
            " check join= and data_dir, and whose addresses these are",
        )

    def _is_known(self, record: MemberRecord, request: JoinRequest) -> bool:
        """Whether it is the member of that id: it asked before, or was named before it came."""
        if record.incarnation:
            return record.incarnation == request.incarnation
        return self._driver.admission.known_incarnation(request.node_id) in ("", request.incarnation)

    def _taken(self, request: JoinRequest) -> str | None:
        """Why the newcomer may not have this node id; None if it may."""
        node_id, own = request.node_id, self._identity
        record = self._driver.admission.membership.members.get(node_id)
        if record is None:
            return None
        statistics = self._transport.statistics()
        connected = node_id in statistics and bool(statistics[node_id]["connected"])
        if node_id == own.node_id or connected:
            return f"{Refused.NODE_ID}: another process runs as {node_id!r} in this cluster: give each its own node id"
        if record.attributes.get(STORAGE) == VOLATILE:
            return None  # it keeps nothing over a restart, and so comes back as a learner
        return (
            f"{Refused.INCARNATION}: {node_id!r} is a member with another data directory than the one it comes with:"
            f" what that one voted and acknowledged is lost with it; bring its disk back, or remove {node_id!r}"
            " and let it join anew"
        )

    def _not_leading(self) -> Denied | None:
        raft = self._driver.node.raft
        if raft.role is Role.LEADER:
            return None
        return Denied(Denial.ELSEWHERE, f"{self._identity.node_id} does not lead; {self._driver.why()}")

    def _accepted(self) -> Accepted:
        return Accepted(self._driver.node.raft.membership_index, self._identity.cluster_id)

    async def _make_change(self, request: ChangeRequest, deadline: float) -> Answer:
        answer: Answer | tuple[int, int] = Denied(
            Denial.LATER,
            "the change could not be proposed in time: another one, or a hand-over of leadership, is under way;"
            " try again",
        )
        with trio.move_on_at(deadline):
            answer = await self._propose(request, deadline)
        if not isinstance(answer, tuple):
            return answer
        index, term = answer
        with trio.move_on_at(deadline):
            return await self._wait_final(index, term)
        return Denied(Denial.UNKNOWN, f"the change was not seen committed in time: {self._driver.why()}")

    async def _propose(self, request: ChangeRequest, deadline: float) -> Answer | tuple[int, int]:
        """Index and term of the change, as soon as it may be proposed; or why not."""
        driver = self._driver
        patient_until = min(
            trio.current_time() + PATIENCE_TIMEOUTS * self._settings.election_timeout_s,
            deadline - 2 * self._settings.heartbeat_interval_s,  # or who asked would not be told why not
        )
        while (denied := self._not_leading()) is None:
            raft = driver.node.raft
            membership = raft.tracker.membership
            if self._fulfilled(membership, request):
                return self._accepted()
            mistake = mistake_in(membership, request.changes) or self._not_to_be_dialed(request.changes)
            if mistake is not None:
                return Denied(Denial.MISTAKE, mistake)
            try:
                objection = self._objection(membership, request)
                if objection is None:
                    changes = granted(membership, request.changes)
                    index = driver.node.propose_membership(MembershipChange(changes))
                    driver.wake()
                    self._log.info("changing the membership", changes={c.node_id: str(c.kind) for c in changes})
                    return index, raft.term
                if trio.current_time() >= patient_until:
                    return Denied(Denial.LATER, objection)
            except InvalidChangeError as exc:
                if not membership.joint:
                    return Denied(Denial.MISTAKE, str(exc))
            except ProposalDroppedError:
                pass  # the leader's own changes, a transfer, a full tail: they pass
            await trio.sleep(self._settings.heartbeat_interval_s)
        return denied

    async def _wait_final(self, index: int, term: int) -> Answer:
        driver = self._driver
        while True:
            if (index, term) in driver.applied_changes and not driver.node.raft.tracker.membership.joint:
                return self._accepted()
            if driver.ended or self._not_leading() is not None:
                return Denied(Denial.UNKNOWN, f"{self._identity.node_id} stopped leading before the change was applied")
            await driver.membership_changed.wait()

    @staticmethod
    def _fulfilled(membership: Membership, request: ChangeRequest) -> bool:
        removals = all(change.kind is ChangeKind.REMOVE for change in request.changes)
        return (request.repeated or not removals) and fulfilled(membership, request.changes)

    def _not_to_be_dialed(self, changes: Iterable[MemberChange]) -> str | None:
        for change in changes:
            try:
                if change.address is not None:
                    self._transport.check_address(change.address)
            except ConfigurationError as exc:
                return f"{change.node_id!r} could not be dialed: {exc}"
        return None

    def _objection(self, membership: Membership, request: ChangeRequest) -> str | None:
        """Why the change has to wait, or be refused. Raises InvalidChangeError."""
        after = changer.apply_change(membership, MembershipChange(request.changes), 0)
        if request.forced or after.voters == membership.voters:
            return None
        steward = self._driver.steward
        if not steward.settled:
            return f"{self._identity.node_id} has just begun to lead, and does not know yet who is there: try again"
        return steward.objection(after.voters)


def fulfilled(membership: Membership, changes: Iterable[MemberChange]) -> bool:
    """Whether the membership is what the changes are to lead to."""
    if membership.joint:
        return False
    for change in changes:
        record = membership.members.get(change.node_id)
        if change.kind is ChangeKind.REMOVE:
            if record is not None:
                return False
            continue
        if record is None or change.address not in (None, record.address):
            return False
        if change.incarnation not in (None, record.incarnation):
            return False
        wanted = membership.voters if change.kind is ChangeKind.ADD_VOTER else membership.learners
        if change.node_id not in wanted:
            return False
        if LEARNER in (change.attributes or {}) and LEARNER not in record.attributes:
            return False
    return True


def mistake_in(membership: Membership, changes: Iterable[MemberChange]) -> str | None:
    """What makes no sense about the changes, in words; None if they may be proposed."""
    addresses = {record.address: node_id for node_id, record in membership.members.items()}
    for change in changes:
        node_id = change.node_id
        record = membership.members.get(node_id)
        if record is None and change.kind is ChangeKind.REMOVE:
            return f"{node_id!r} is no member of this cluster: {', '.join(sorted(membership.ids))} are"
        if record is None and change.address is None:
            return f"{node_id!r} is no member of this cluster, and joins it with an address only"
        if change.address is not None and addresses.get(change.address, node_id) != node_id:
            return f"the address {change.address!r} is that of {addresses[change.address]!r}: give {node_id!r} its own"
        if change.incarnation is not None or record is None or change.kind is ChangeKind.REMOVE:
            continue
        if change.address not in (None, record.address):
            return (
                f"{node_id!r} is a member already, at {record.address!r} and not at {change.address!r}: start it with"
                " address= to move it, or remove it first"
            )
        if change.kind is ChangeKind.ADD_LEARNER and node_id in membership.voters:
            return f"{node_id!r} votes already: remove it first to have it join as a learner"
    return None


def granted(membership: Membership, changes: Iterable[MemberChange]) -> tuple[MemberChange, ...]:
    """The changes as they are proposed: who is made a voter by name is no learner for good any more, and who is made
    one for good is still what it told of itself.
    """
    proposed = []
    for change in changes:
        record = membership.members.get(change.node_id)
        attributes = change.attributes
        if record is not None and change.kind is ChangeKind.ADD_VOTER and LEARNER in record.attributes:
            attributes = {name: value for name, value in record.attributes.items() if name != LEARNER}
        elif record is not None and attributes is not None and change.incarnation is None:
            attributes = {**record.attributes, **attributes}
        proposed.append(dataclasses.replace(change, attributes=attributes))
    return tuple(proposed)
