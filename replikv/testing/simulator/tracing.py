"""What the cores of a run do, as lines of JSON in the form of etcd's state tracing: for a checker of its specification.

The core knows nothing of it: what is traced is patched in for as long as a run is traced, and costs nothing otherwise.
One file has the events of all nodes in their real order. Nodes ``n1``, ``n2``, ... are "1", "2", ...; "0" is nobody.

A restart begins the node anew with another InitState, which that specification does not know: trace runs without
restarts (``--set crashes=0`` and so on) for a checker that is strict about it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from random import Random
from typing import Any, Final, TextIO

from replikv.raft import replication
from replikv.raft.core import Config, Raft
from replikv.raft.entries import Entry, EntryKind
from replikv.raft.membership import ChangeKind, Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from replikv.raft.node import RawNode, Ready
from replikv.raft.roles import Role
from replikv.raft.stable import StableStorage
from replikv.testing.simulator.patching import Patch

__all__ = ["tracing"]

_ROLES: Final = {
    Role.FOLLOWER: "StateFollower",
    Role.CANDIDATE: "StateCandidate",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.LEADER: "StateLeader",
}
_KINDS: Final[dict[type[Message], tuple[str, str]]] = {
    AppendEntries: ("AppendEntriesRequest", "MsgApp"),
    Heartbeat: ("AppendEntriesRequest", "MsgHeartbeat"),
    InstallSnapshot: ("AppendEntriesRequest", "MsgSnap"),
    AppendEntriesResponse: ("AppendEntriesResponse", "MsgAppResp"),
    HeartbeatResponse: ("AppendEntriesResponse", "MsgHeartbeatResp"),
    RequestVote: ("RequestVoteRequest", "MsgVote"),
    RequestVoteResponse: ("RequestVoteResponse", "MsgVoteResp"),
}
_ACTIONS: Final = {
    ChangeKind.ADD_VOTER: "AddNewServer",
    ChangeKind.REMOVE: "RemoveServer",
    ChangeKind.ADD_LEARNER: "AddLearner",
}


def _number(node_id: str) -> str:
    return node_id.lstrip("n") or "0"


def _numbers(node_ids: frozenset[str]) -> list[str]:
    return sorted(map(_number, node_ids), key=int)


def _describe(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": _KINDS[type(message)][1],
        "term": message.term,
        "from": _number(message.sender),
        "to": _number(message.to),
        "entries": 0,
        "logTerm": 0,
        "index": 0,
        "commit": 0,
        "vote": "0",
        "reject": False,
        "rejectHint": 0,
    }
    match message:
        case AppendEntries():
            found |= {"entries": len(message.entries), "commit": message.commit}
            found |= {"logTerm": message.previous_term, "index": message.previous_index}
        case Heartbeat():
            found["commit"] = message.commit
        case InstallSnapshot():
            found["entries"] = message.snapshot.index
        case AppendEntriesResponse():
            found |= {"index": message.index, "reject": message.reject}
            found |= {"rejectHint": message.hint_index, "logTerm": message.hint_term}
        case RequestVote():
            found |= {"index": message.last_index, "logTerm": message.last_term}
        case RequestVoteResponse():
            found["reject"] = message.reject
    return found


def _traced(message: Message) -> bool:
    pre_vote = isinstance(message, RequestVote | RequestVoteResponse) and message.pre_vote
    return type(message) in _KINDS and not pre_vote


class _Tracer:
    """Writes events."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, name: str, raft: Raft, **more: Any) -> None:
        membership = raft.tracker.membership
        event = {
            "name": name,
            "nid": _number(raft.id),
            "state": {"term": raft.term, "vote": _number(raft.vote), "commit": raft.log.committed},
            "role": _ROLES[raft.role],
            "log": raft.log.last_index(),
            "conf": [_numbers(membership.voters), _numbers(membership.outgoing)],
            **more,
        }
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")


@contextlib.contextmanager
def tracing(file: TextIO) -> Iterator[None]:
    """Trace all cores of this process into a file."""
    tracer = _Tracer(file)
    with Patch() as patch:
        _trace_roles(patch, tracer)
        _trace_messages(patch, tracer)
        _trace_logs(patch, tracer)
        yield


def _trace_roles(patch: Patch, tracer: _Tracer) -> None:
    # A core becomes a follower in its constructor, and is there only after it.
    begun: set[int] = set()

    def begin(self: Raft, config: Config, storage: StableStorage, random: Random) -> None:
        begun.discard(id(self))
        init(self, config, storage, random)
        begun.add(id(self))
        tracer.write("InitState", self)
        tracer.write("BecomeFollower", self)

    def follow(self: Raft, term: int, leader_id: str) -> None:
        become_follower(self, term, leader_id)
        if id(self) in begun:
            tracer.write("BecomeFollower", self)

    def campaign(self: Raft) -> None:
        become_candidate(self)
        tracer.write("BecomeCandidate", self)

    def lead(self: Raft) -> None:
        # Before the empty entry of its term, which is an event of its own.
        entering.append(self)
        become_leader(self)

    def append(raft: Raft, data: bytes, kind: EntryKind, **others: Any) -> int:
        if entering and entering[-1] is raft:
            entering.pop()
            tracer.write("BecomeLeader", raft)
        index: int = append_entry(raft, data, kind, **others)
        if kind == EntryKind.MEMBERSHIP:
            changes = [
                {"nid": _number(change.node_id), "action": _ACTIONS[change.kind]}
                for change in MembershipChange.decode(data).changes
                if change.kind in _ACTIONS
            ]
            tracer.write("ChangeConf", raft, prop={"cc": {"changes": changes}})
        else:
            tracer.write("Replicate", raft)
        return index

    entering: list[Raft] = []
    init = patch.set(Raft, "__init__", begin)
    become_follower = patch.set(Raft, "become_follower", follow)
    become_candidate = patch.set(Raft, "become_candidate", campaign)
    become_leader = patch.set(Raft, "become_leader", lead)
    append_entry = patch.set(replication, "append", append)


def _trace_messages(patch: Patch, tracer: _Tracer) -> None:
    def send(self: Raft, message: Message) -> None:
        right_send(self, message)
        if _traced(message):
            more: dict[str, Any] = {"msg": _describe(message)}
            own = self.tracker.progress.get(self.id)
            if isinstance(message, AppendEntries) and own is not None:
                more["prop"] = {"match": own.match, "next": own.next}
            tracer.write(f"Send{_KINDS[type(message)][0]}", self, **more)

    def step(self: Raft, message: Message) -> None:
        if _traced(message):
            tracer.write(f"Receive{_KINDS[type(message)][0]}", self, msg=_describe(message))
        right_step(self, message)

    right_send = patch.set(Raft, "send", send)
    right_step = patch.set(Raft, "step", step)


def _trace_logs(patch: Patch, tracer: _Tracer) -> None:
    def maybe_commit(raft: Raft) -> bool:
        moved: bool = right_commit(raft)
        if moved:
            tracer.write("Commit", raft)
        return moved

    def ready(self: RawNode) -> Ready:
        taken: Ready = right_ready(self)
        tracer.write("Ready", self.raft)
        return taken

    def apply_membership(self: Raft, entry: Entry) -> Membership:
        membership: Membership = right_apply(self, entry)
        tracer.write("ApplyConfChange", self, prop={"cc": {"newconf": _numbers(membership.voters)}})
        return membership

    right_commit = patch.set(replication, "maybe_commit", maybe_commit)
    right_ready = patch.set(RawNode, "ready", ready)
    right_apply = patch.set(Raft, "apply_membership", apply_membership)
