"""What cores do, as lines of JSON in the form of etcd's state tracing: for a checker of its TLA+ specification.

::

    with Path("trace.ndjson").open("w") as file, tracing(file) as tracer:
        ...  # clusters of this process, in whatever loop
    print(tracer.ended)

The core knows nothing of it: what is traced is patched in while the context lasts, and costs nothing otherwise. All
cores of the process go to one file, in their real order: they have to be in one thread.

Our core is not etcd's, and the specification (``Traceetcdraft.tla`` of etcd-io/raft) knows less than either. What is
the same, said in other words, is said in its words:

- Its log begins with the first configuration, ours behind it: entry 1 of a trace is the first membership, of term 1,
  and entry N of ours is entry N + 1 there. So is every index.
- A pre-candidate is what it was before, a follower or a candidate; pre-votes are not traced.
- A commit index that is sent with entries counts up to the last of them only, as it does for who receives it.
- The answer that tells a leader of an old term about the newer one is a rejection.
- A change of members' records alone, or of nothing, is a normal entry.
- A request for a vote that is not answered (a leader was heard just now) was not received. Nor was one that is turned
  down because a leader of the same term is known, where the specification looks at the logs only.

Where that does not do, the trace ends before the event, and :attr:`Tracer.ended` says why; what was written until then
stands. These are: a newer term or commit index that was learnt of in votes; a message that was received twice; a
snapshot; a node that starts again, or that begins with a log or another first membership; a member that is added before
it has begun, as all are that join by a snapshot, or that was removed and comes back; a change of more than one member,
by a joint configuration, or of a voter into a learner; a second change of a leader that was deposed before its first
took effect; and a node that hears of several changes as committed at once, where no majority of the voters that it
knows has all that it knows to be committed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator
from random import Random
from typing import Any, Final, TextIO

from replikv.raft import changer, elections, replication
from replikv.raft.core import Config, Raft
from replikv.raft.entries import NO_NODE, Entry, EntryKind
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from replikv.raft.node import RawNode, Ready
from replikv.raft.progress import Tracker
from replikv.raft.roles import Role
from replikv.raft.stable import StableStorage
from replikv.testing.simulator.patching import Patch
from replikv.testing.trace_format import FIRST, KINDS, NodeNumbers, describe, identity, is_traced, sets, single_change

__all__ = ["Tracer", "tracing"]

_ROLES: Final = {Role.FOLLOWER: "StateFollower", Role.CANDIDATE: "StateCandidate", Role.LEADER: "StateLeader"}


@contextlib.contextmanager
def tracing(file: TextIO) -> Iterator[Tracer]:
    """Write what all cores of this process do into the file, one line an event, while the context lasts.

    Cores that were there before are not traced.
    """
    tracer = Tracer(file)
    with Patch() as patch:
        _trace_roles(patch, tracer)
        _trace_messages(patch, tracer)
        _trace_logs(patch, tracer)
        _trace_memberships(patch, tracer)
        yield tracer
    tracer.complete()


@dataclasses.dataclass(slots=True)
class _View:
    """What the specification knows of a core beside what the core knows."""

    role: Role = Role.FOLLOWER
    held: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Events that happened, and are written with the next one; or never."""
    receiving: bool = False
    """A traced message is being taken."""
    stale: bool = False
    """It is of an older term."""
    unheard: bool = False
    """One is being taken and answered that is not traced."""
    entering: bool = False
    """It has won, and not led yet."""
    pending_index: int = 0
    """The last change that it proposed and has not applied as the leader."""
    leaping: dict[str, Any] | None = None
    """The event of the first of several committed changes, which the specification applies as one."""


class Tracer:
    """Writes events. Made by :func:`tracing`."""

    def __init__(self, file: TextIO) -> None:
        self.ended: str | None = None
        """Why the trace ends where it does, if it does; None: it goes on."""
        self._file = file
        self._views: dict[Raft, _View] = {}
        self._numbers = NodeNumbers()
        self._first: Membership | None = None
        self._started: set[str] = set()
        self._removed: set[str] = set()
        # Message as it is -> as it was written, once for each time that it was sent; None where it was not written.
        self._sent: dict[tuple[object, ...], deque[dict[str, Any] | None]] = {}

    def end(self, reason: str) -> None:
        """Write no more."""
        if self.ended is None:
            self.complete()
            self.ended = reason

    def complete(self) -> None:
        """Write how the first members begin of which nothing was heard: the specification has to know each."""
        if self.ended is not None or self._first is None:
            return
        voters = self._numbers.several(self._first.voters)
        for node_id in sorted(self._first.voters - self._started):
            event = {
                "name": "InitState",
                "nid": self._numbers.one(node_id),
                "state": {"term": 0, "vote": "0", "commit": FIRST},
                "role": _ROLES[Role.FOLLOWER],
                "log": FIRST,
                "conf": [voters, []],
            }
            self._file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def view(self, raft: Raft) -> _View | None:
        """What is traced of the core; None when nothing is."""
        return None if self.ended else self._views.get(raft)

    # -- events --------------------------------------------------------------------------------------------------------

    def event(self, name: str, raft: Raft, **more: Any) -> dict[str, Any]:
        """An event of now."""
        membership = raft.tracker.membership
        return {
            "name": name,
            "nid": self._numbers.one(raft.id),
            "state": {"term": raft.term, "vote": self._numbers.one(raft.vote), "commit": raft.log.committed + FIRST},
            "role": _ROLES[self._views[raft].role],
            "log": raft.log.last_index() + FIRST,
            "conf": [self._numbers.several(membership.voters), self._numbers.several(membership.outgoing)],
            **more,
        }

    def hold(self, name: str, raft: Raft, **more: Any) -> None:
        """Write an event of now before the next one of this core."""
        self._views[raft].held.append(self.event(name, raft, **more))

    def write(self, name: str, raft: Raft, **more: Any) -> None:
        """Write an event of now, after what is held; while a message is being taken, when it has been."""
        self.hold(name, raft, **more)
        if not self._views[raft].receiving:
            self.flush(raft)

    def flush(self, raft: Raft) -> None:
        """Write what is held."""
        view = self._views[raft]
        held = view.held
        if view.leaping is not None and held:
            self.end(f"{raft.id} does something between two changes that were committed together")
        if not self.ended:
            self._file.writelines(json.dumps(event, separators=(",", ":")) + "\n" for event in held)
        held.clear()

    def begin(self, raft: Raft, *, fresh: bool) -> None:
        """A core is there."""
        membership = raft.tracker.membership
        if raft.id in self._started:
            self.end(f"{raft.id} starts again")
        elif not fresh:
            self.end(f"{raft.id} begins with a log or a snapshot")
        elif membership.outgoing or membership.learners:
            self.end(f"the first membership of {raft.id} is not of voters alone")
        elif self._first is not None and membership.voters != self._first.voters:
            self.end(f"{raft.id} begins with another membership than the others")
        if self.ended:
            return
        self._first = membership
        self._started.add(raft.id)
        self._views[raft] = _View()
        self.write("InitState", raft)

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, raft: Raft, view: _View, message: Message) -> None:
        """A message was made."""
        name = f"Send{KINDS[type(message)][0]}"
        if view.unheard:
            self._sent.setdefault(identity(message), deque()).append(None)
            return
        described = describe(message, self._numbers)
        if isinstance(message, Heartbeat) and not raft.tracker.progress[message.to].match:
            described["commit"] = 0
        elif isinstance(message, AppendEntriesResponse) and view.stale:
            described |= {"reject": True, "index": 0}
        self._sent.setdefault(identity(message), deque()).append(described)
        more: dict[str, Any] = {"msg": described}
        own = raft.tracker.progress.get(raft.id)
        if isinstance(message, AppendEntries) and own is not None:
            more["prop"] = {"match": own.match + FIRST, "next": own.next + FIRST}
        self.write(name, raft, **more)

    def receive(self, raft: Raft, view: _View, message: Message) -> None:
        """A message is about to be taken."""
        if isinstance(message, InstallSnapshot):
            self.end(f"{raft.id} receives a snapshot")
            return
        waiting = self._sent.get(identity(message))
        if not waiting:
            self.end(f"{raft.id} receives a message of {message.sender} again, or one from before the trace")
            return
        described = next((one for one in waiting if one is not None), None)
        waiting.remove(described)
        if described is None:
            return
        view.unheard = isinstance(message, RequestVote) and _known_leader_decides(raft, message)
        if view.unheard:
            return
        view.receiving = True
        view.stale = message.term < raft.term
        self.hold(f"Receive{KINDS[type(message)][0]}", raft, msg=described)

    def received(self, raft: Raft, view: _View, message: Message) -> None:
        """A message was taken."""
        if isinstance(message, RequestVote) and len(view.held) == 1:
            view.held.clear()  # it had no consequence
        if view.receiving and self._outvoted(raft):
            self.end(f"{raft.id} hears of several changes as committed, and a majority of its voters has not got them")
        view.receiving = view.stale = view.unheard = False
        self.flush(raft)

    # -- memberships ---------------------------------------------------------------------------------------------------

    def propose(self, raft: Raft, view: _View, data: bytes) -> None:
        """A leader is about to append a membership entry."""
        before = raft.tracker.membership
        after = changer.apply_change(before, MembershipChange.decode(data), raft.log.last_index() + 1)
        if sets(after) == sets(before):
            self.hold("Replicate", raft)
            return
        change = single_change(before, after)
        if change is None:
            self.end(f"{raft.id} proposes more than one simple change at once")
        elif change[0] in self._removed and change[1] != "RemoveServer":
            self.end(f"{change[0]} comes back, which was removed")
        elif change[0] not in self._started:
            self.end(f"{change[0]} is added before it has begun")
        elif view.pending_index:
            self.end(f"{raft.id} was deposed with a change of its own under way, and proposes another")
        else:
            view.pending_index = raft.log.last_index() + 1
            changes = [{"nid": self._numbers.one(change[0]), "action": change[1]}]
            self.hold("ChangeConf", raft, prop={"cc": {"changes": changes}})

    def apply(self, raft: Raft, view: _View, entry: Entry, after: Membership) -> None:
        """A committed change is about to take effect."""
        before = raft.tracker.membership
        if sets(after) == sets(before):
            return
        self._removed |= before.ids - after.ids
        event = view.leaping or self.event("ApplyConfChange", raft)
        view.leaping = event if _changes_between(raft, entry.index + 1, raft.log.committed) else None
        if view.leaping is None:
            if view.role is Role.LEADER and view.pending_index >= entry.index:
                view.pending_index = 0
            view.held.append(event | {"prop": {"cc": {"newconf": self._numbers.several(after.voters)}}})
            self.flush(raft)

    def _outvoted(self, raft: Raft) -> bool:
        """Whether a majority of the voters that the node knows lacks some of what it knows to be committed.

        Where two changes or more are committed and not applied, those voters need not be the ones who committed.
        """
        committed, voters = raft.log.committed, raft.tracker.membership.voters
        if _changes_between(raft, raft.membership_index + 1, committed) < 2:
            return False
        term = raft.log.term(committed)
        having = [other.id for other in self._views if other.id in voters and other.log.matches(committed, term)]
        return 2 * len(having) < len(voters)


def _changes_between(raft: Raft, low: int, high: int) -> int:
    """How many entries from ``low`` up to ``high`` change who votes or learns."""
    count = 0

    def look(entries: list[Entry]) -> bool:
        nonlocal count
        count += sum(
            entry.kind == EntryKind.MEMBERSHIP and not MembershipChange.decode(entry.data).only_updates
            for entry in entries
        )
        return True

    low = max(low, raft.log.applied + 1, raft.log.first_index())
    if low <= high:
        raft.log.scan(low, high + 1, elections.SCAN_PAGE_BYTES, look)
    return count


def _known_leader_decides(raft: Raft, message: RequestVote) -> bool:
    """Whether the vote is free and the candidate's log as good, and it is turned down all the same."""
    return (
        message.term == raft.term
        and raft.vote == NO_NODE
        and raft.leader != NO_NODE
        and raft.log.is_up_to_date(message.last_index, message.last_term)
    )


# -- where events happen -----------------------------------------------------------------------------------------------


def _trace_roles(patch: Patch, tracer: Tracer) -> None:
    def begin(self: Raft, config: Config, storage: StableStorage, random: Random) -> None:
        init(self, config, storage, random)
        if not tracer.ended:
            tracer.begin(self, fresh=not storage.snapshot().index and not storage.last_index())

    def follow(self: Raft, term: int, leader_id: str) -> None:
        view = tracer.view(self)  # none in the constructor, which calls this, too
        newer = view is not None and term > self.term
        become_follower(self, term, leader_id)
        if view is None:
            return
        if newer and not view.receiving:
            tracer.end(f"{self.id} learns of term {term} by a message that is not traced")
        was, view.role = view.role, Role.FOLLOWER
        if newer or was is not Role.FOLLOWER:
            tracer.write("BecomeFollower", self)

    def campaign(self: Raft) -> None:
        become_candidate(self)
        if (view := tracer.view(self)) is not None:
            view.role = Role.CANDIDATE
            tracer.write("BecomeCandidate", self)

    def lead(self: Raft) -> None:
        if (view := tracer.view(self)) is not None:
            view.entering = True
        become_leader(self)

    init = patch.set(Raft, "__init__", begin)
    become_follower = patch.set(Raft, "become_follower", follow)
    become_candidate = patch.set(Raft, "become_candidate", campaign)
    become_leader = patch.set(Raft, "become_leader", lead)


def _trace_messages(patch: Patch, tracer: Tracer) -> None:
    def send(self: Raft, message: Message) -> None:
        right_send(self, message)
        if is_traced(message) and (view := tracer.view(self)) is not None:
            tracer.send(self, view, message)

    def step(self: Raft, message: Message) -> None:
        if not is_traced(message) or (view := tracer.view(self)) is None:
            right_step(self, message)
            return
        tracer.receive(self, view, message)
        right_step(self, message)
        tracer.received(self, view, message)

    def learn_commit(raft: Raft, message: RequestVote | RequestVoteResponse) -> bool:
        news: bool = right_learn(raft, message)
        if news and tracer.view(raft) is not None:
            tracer.end(f"{raft.id} learns what is committed from {message.sender}, which does not lead")
        return news

    right_send = patch.set(Raft, "send", send)
    right_step = patch.set(Raft, "step", step)
    right_learn = patch.set(elections, "_learn_commit", learn_commit)


def _trace_logs(patch: Patch, tracer: Tracer) -> None:
    def append(raft: Raft, data: bytes, kind: EntryKind, **others: Any) -> int:
        view = tracer.view(raft)
        if view is not None:
            if view.entering:  # the empty entry of its term is an event of its own
                view.entering = False
                view.role = Role.LEADER
                tracer.write("BecomeLeader", raft)
            pending_index = view.pending_index
            if kind == EntryKind.MEMBERSHIP:
                tracer.propose(raft, view, data)
            else:
                tracer.hold("Replicate", raft)
        try:
            index: int = right_append(raft, data, kind, **others)
        except BaseException:
            if view is not None:
                view.held.clear()
                view.pending_index = pending_index
            raise
        return index

    def maybe_commit(raft: Raft) -> bool:
        moved: bool = right_commit(raft)
        if moved and tracer.view(raft) is not None:
            tracer.write("Commit", raft)
        return moved

    def ready(self: RawNode) -> Ready:
        taken: Ready = right_ready(self)
        if (taken.write is not None or taken.messages) and tracer.view(self.raft) is not None:
            tracer.write("Ready", self.raft)
        return taken

    right_append = patch.set(replication, "append", append)
    right_commit = patch.set(replication, "maybe_commit", maybe_commit)
    right_ready = patch.set(RawNode, "ready", ready)


def _trace_memberships(patch: Patch, tracer: Tracer) -> None:
    def apply_membership(self: Raft, entry: Entry) -> Membership:
        applying.append((self, entry))
        try:
            membership: Membership = right_apply(self, entry)
        finally:
            applying.pop()
        return membership

    def switch(self: Tracker, membership: Membership, next_index: int) -> None:
        if applying and applying[-1][0].tracker is self:
            raft, entry = applying[-1]
            if (view := tracer.view(raft)) is not None:
                tracer.apply(raft, view, entry, membership)
        right_switch(self, membership, next_index)

    applying: list[tuple[Raft, Entry]] = []
    right_apply = patch.set(Raft, "apply_membership", apply_membership)
    right_switch = patch.set(Tracker, "switch", switch)
