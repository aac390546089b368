"""How a trace says what cores know: node ids, messages and changes of the membership, in the words of etcd's raft."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from replikv.raft.entries import NO_NODE
from replikv.raft.membership import Membership
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

__all__ = ["FIRST", "KINDS", "NodeNumbers", "describe", "identity", "is_traced", "sets", "single_change"]

FIRST: Final = 1
"""How many entries the first membership takes: all our indexes are moved by it."""
_FIRST_TERM: Final = 1
"""The term of those entries."""


KINDS: Final[dict[type[Message], tuple[str, str]]] = {
    AppendEntries: ("AppendEntriesRequest", "MsgApp"),
    Heartbeat: ("AppendEntriesRequest", "MsgHeartbeat"),
    InstallSnapshot: ("AppendEntriesRequest", "MsgSnap"),
    AppendEntriesResponse: ("AppendEntriesResponse", "MsgAppResp"),
    HeartbeatResponse: ("AppendEntriesResponse", "MsgHeartbeatResp"),
    RequestVote: ("RequestVoteRequest", "MsgVote"),
    RequestVoteResponse: ("RequestVoteResponse", "MsgVoteResp"),
}


class NodeNumbers:
    """Node ids as decimals."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {NO_NODE: "0"}

    def one(self, node_id: str) -> str:
        """The node id as a decimal: its own digits (``n7``, ``7``), or else a number made of a hash of it."""
        number = self._numbers.get(node_id)
        if number is None:
            number = node_id.removeprefix("n")
            plain = number.isascii() and number.isdecimal() and not number.startswith("0")
            if not plain or number in self._numbers.values():
                number = str(int.from_bytes(hashlib.sha256(node_id.encode()).digest()[:6]))
            self._numbers[node_id] = number
        return number

    def several(self, node_ids: frozenset[str]) -> list[str]:
        """Several of them, in order."""
        return sorted(map(self.one, node_ids), key=int)


def describe(message: Message, numbers: NodeNumbers) -> dict[str, Any]:
    """What is told of a message."""
    found: dict[str, Any] = {
        "type": KINDS[type(message)][1],
        "term": message.term,
        "from": numbers.one(message.sender),
        "to": numbers.one(message.to),
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
            last_index = message.previous_index + len(message.entries)
            found |= {"entries": len(message.entries), "commit": min(message.commit, last_index) + FIRST}
            found |= _position(message.previous_index, message.previous_term)
        case Heartbeat():
            found["commit"] = message.commit + FIRST
        case InstallSnapshot():
            found["entries"] = message.snapshot.index + FIRST
        case AppendEntriesResponse():
            found |= {"index": message.index + FIRST, "reject": message.reject}
            if message.reject:
                found |= {"rejectHint": message.hint_index + FIRST}
                found |= {"logTerm": _position(message.hint_index, message.hint_term)["logTerm"]}
        case RequestVote():
            found |= _position(message.last_index, message.last_term)
        case RequestVoteResponse():
            found["reject"] = message.reject
    return found


def _position(index: int, term: int) -> dict[str, int]:
    return {"index": index + FIRST, "logTerm": term if index else _FIRST_TERM}


def sets(membership: Membership) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Who votes, who is on the way out, who learns: what a change is there for. The rest is records."""
    return membership.voters, membership.outgoing, membership.learners


def single_change(before: Membership, after: Membership) -> tuple[str, str] | None:
    """Which node, and what is done to it; None when it cannot be said so."""
    if after.outgoing or before.outgoing:
        return None
    for node_id in sorted(before.ids ^ after.ids | after.voters ^ before.voters):
        alone = frozenset({node_id})
        if (after.voters, after.learners) == (before.voters | alone, before.learners - alone):
            return node_id, "AddNewServer"
        if (after.voters, after.learners) == (before.voters, before.learners | alone):
            return node_id, "AddLearner"
        if (after.voters, after.learners) == (before.voters - alone, before.learners - alone):
            return node_id, "RemoveServer"
    return None


def is_traced(message: Message) -> bool:
    """Whether the trace has such messages."""
    pre_vote = isinstance(message, RequestVote | RequestVoteResponse) and message.pre_vote
    return type(message) in KINDS and not pre_vote


def identity(message: Message) -> tuple[object, ...]:
    """What of the message comes to its receiver as it was sent, and tells it from others."""
    rest: tuple[object, ...] = ()
    match message:
        case AppendEntries():
            rest = message.previous_index, message.previous_term, len(message.entries), message.commit
        case Heartbeat():
            rest = message.commit, message.read_position
        case AppendEntriesResponse():
            rest = message.index, message.reject, message.hint_index, message.hint_term
        case RequestVote():
            rest = message.last_index, message.last_term
        case RequestVoteResponse():
            rest = (message.reject,)
        case HeartbeatResponse():
            rest = (message.read_position,)
    return type(message), message.sender, message.to, message.term, *rest
