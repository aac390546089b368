"""Whether a trace of cores is one that the specification of etcd's raft allows: a checker of what ``tracing`` writes.

::

    verdict = check_trace(Path("trace.ndjson").read_text().splitlines())
    assert verdict.accepted, f"line {verdict.line}: {verdict.reason}"

or ``python -m replikv.testing check-trace FILE``.

What the TLA+ specification of etcd-io/raft (``etcdraft.tla``) has as its state is kept here, and each line is
taken as the step that its trace specification (``Traceetcdraft.tla``) takes for it. Messages go into a bag, leave
with the next ``Ready`` of their sender, and only what is there is received: once, in any order, or never. A line is
rejected when its step cannot be taken, when what it says is not the state there, or when the step breaks an invariant
(trace_invariants.py).

Any trace of that form can be checked, with or without etcd's envelope (``{"tag": "trace", "event": ...}``). Where the
specification does not look at a line's state (``Replicate``, ``ChangeConf``, ``ApplyConfChange``, ``Ready``, answers),
this one does. The faults of the network that it knows are loss and reordering: a repetition is a message that was
received and not sent.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from replikv.testing.trace_invariants import FIRST_TERM, NOBODY, Entry, Log, Node, Roles, TraceError, check_invariants

__all__ = ["Verdict", "check_trace"]

_BEGINNING: Final = frozenset({"InitState", "BecomeFollower", "ApplyConfChange"})
"""What a node begins with, before anything else: the last of these is the state that it begins in."""

_Key = tuple[object, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a check."""

    lines: int
    """How many lines the trace has."""
    line: int | None = None
    """The first line that cannot be, from 1; 0 for the trace as a whole, None when all can."""
    reason: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the whole trace is one of the specification."""
        return self.line is None


def check_trace(lines: Iterable[str]) -> Verdict:
    """Take each line as a step of the specification. Raises nothing: a line that cannot be read is rejected."""
    events: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            event = event.get("event", event)
            str(event["name"]), str(event["nid"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return Verdict(number, number, f"no event: {line[:80]!r}")
        events.append(event)
    number = 0
    try:
        checker = _Checker(events)
        for number, event in enumerate(events, 1):
            checker.take(number, event)
    except TraceError as exc:
        return Verdict(len(events), number, str(exc))
    except (KeyError, TypeError, IndexError, ValueError) as exc:
        return Verdict(len(events), number, f"the event lacks something, or it is of another type: {exc!r}")
    return Verdict(len(events))


class _Checker:
    """The state of the specification, and its steps."""

    def __init__(self, events: list[Mapping[str, Any]]) -> None:
        self._events = events
        self._number = 0
        self._nodes: dict[str, Node] = {}
        self._prefixes: dict[tuple[int, Entry], int] = {}
        self._pending: dict[str, collections.Counter[_Key]] = collections.defaultdict(collections.Counter)
        """Sender -> what it has made and not handed out yet."""
        self._messages: collections.Counter[_Key] = collections.Counter()
        self._entries: dict[_Key, list[Entry]] = {}
        """Appends that were made -> what is in them: the rest of a message decides that."""
        self._last: dict[str, int] = {}
        """Node -> the last line of it."""
        self._beginning = self._begin()
        self._steps: dict[str, Callable[[Node, Mapping[str, Any]], None]] = {
            "InitState": self._restart,
            "BecomeFollower": self._become_follower,
            "BecomeCandidate": self._become_candidate,
            "BecomeLeader": self._become_leader,
            "Commit": self._commit,
            "Replicate": self._replicate,
            "ChangeConf": self._change,
            "ApplyConfChange": self._apply_change,
            "Ready": self._ready,
            "SendAppendEntriesRequest": self._send_append,
            "SendAppendEntriesResponse": self._answer,
            "SendRequestVoteRequest": self._request_vote,
            "SendRequestVoteResponse": self._answer,
            "ReceiveAppendEntriesRequest": self._receive_append,
            "ReceiveAppendEntriesResponse": self._receive_acknowledgement,
            "ReceiveRequestVoteRequest": self._receive_vote_request,
            "ReceiveRequestVoteResponse": self._receive_vote,
        }

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _begin(self) -> set[int]:
        """Make the nodes as they are in the beginning; the numbers of the lines that say so."""
        beginning: dict[str, list[int]] = {}
        begun: set[str] = set()
        added: dict[str, int] = {}
        for number, event in enumerate(self._events, 1):
            node_id = event["nid"]
            if event["name"] not in _BEGINNING:
                begun.add(node_id)
            if node_id not in begun:
                beginning.setdefault(node_id, []).append(number)
            if event["name"] == "ChangeConf":
                for change in event["prop"]["cc"]["changes"][:1]:
                    if change["action"] != "RemoveServer":
                        added.setdefault(change["nid"], number)
        for node_id in sorted(begun | added.keys()):
            if node_id not in beginning:
                raise TraceError(f"node {node_id} does not begin: its first line must be an InitState")
        for node_id, numbers in beginning.items():
            self._nodes[node_id] = _first_state(node_id, self._events[numbers[-1] - 1], Log(self._prefixes))
        if self._events:
            missing = self._nodes[self._events[0]["nid"]].voters - self._nodes.keys()
            if missing:
                raise TraceError(f"voters of the first configuration have no line: {', '.join(sorted(missing))}")
        for node in self._nodes.values():
            check_invariants(node, self._nodes)
        return {number for numbers in beginning.values() for number in numbers}

    def take(self, number: int, event: Mapping[str, Any]) -> None:
        """Take the step of the next line. Raises TraceError when it cannot be taken."""
        self._number = number
        name = event["name"]
        node = self._nodes[event["nid"]]
        if number not in self._beginning and name != "ReduceNextIndex":
            if name not in self._steps:
                raise TraceError(f"there is no event {name!r}")
            self._steps[name](node, event)
            check_invariants(node, self._nodes)
        self._last[node.id] = number

    # -- roles and terms -----------------------------------------------------------------------------------------------

    def _restart(self, node: Node, event: Mapping[str, Any]) -> None:
        node.restart()
        self._pending[node.id].clear()
        _same_state(node, event)

    def _become_follower(self, node: Node, event: Mapping[str, Any]) -> None:
        if self._follows_a_receipt(node, event):
            # The message was taken as a whole with the line before, and this is from the middle of it.
            _same(node, event, "term", "role", "conf")
            self._in_the_middle(node, event)
            return
        if node.role not in (Roles.LEADER, Roles.CANDIDATE):
            raise TraceError(f"{node} becomes a follower, and nothing has made it one")
        node.role = Roles.FOLLOWER
        _same_state(node, event)

    def _follows_a_receipt(self, node: Node, event: Mapping[str, Any]) -> bool:
        last = self._events[self._last[node.id] - 1]
        if not last["name"].startswith("Receive"):
            return False
        before, message, after = last["state"]["term"], last["msg"]["term"], event["state"]["term"]
        if before < message == after:
            return True
        same_term = before == message == after
        from_candidate = last["name"] == "ReceiveAppendEntriesRequest" and last["role"] == Roles.CANDIDATE
        return bool(same_term and from_candidate)

    def _in_the_middle(self, node: Node, event: Mapping[str, Any]) -> None:
        before = self._events[self._last[node.id] - 1]
        newer = before["state"]["term"] < event["state"]["term"]
        expected = NOBODY if newer else before["state"]["vote"], before["state"]["commit"], before["log"]
        if expected != (told := (event["state"]["vote"], event["state"]["commit"], event["log"])):
            raise TraceError(f"{node}: its vote, commit and log are told to be {told}, and are {expected}")

    def _become_candidate(self, node: Node, event: Mapping[str, Any]) -> None:
        if node.role == Roles.LEADER or node.id not in node.voters:
            raise TraceError(f"{node} cannot campaign: it leads, or does not vote")
        if node.has_unapplied_change():
            raise TraceError(f"{node} campaigns with a committed change of the configuration that it has not applied")
        node.term += 1
        node.role, node.vote = Roles.CANDIDATE, node.id
        node.granted.clear()
        node.answered.clear()
        _same_state(node, event)

    def _become_leader(self, node: Node, event: Mapping[str, Any]) -> None:
        if node.role != Roles.CANDIDATE:
            raise TraceError(f"{node} becomes leader without a campaign")
        if not node.granted <= node.voters or 2 * len(node.granted) <= len(node.voters):
            raise TraceError(f"{node} becomes leader with the votes of {sorted(node.granted)}: no majority")
        node.role = Roles.LEADER
        node.match = collections.Counter({node.id: len(node.log)})
        _same_state(node, event)

    # -- the leader's log ----------------------------------------------------------------------------------------------

    def _replicate(self, node: Node, event: Mapping[str, Any]) -> None:
        _same_state(node, event)  # the event is that of before the entry
        node.must_lead()
        node.log.append((node.term, "value"))

    def _change(self, node: Node, event: Mapping[str, Any]) -> None:
        _same_state(node, event)
        node.must_lead()
        changes = event["prop"]["cc"]["changes"]
        if len(changes) != 1 or node.outgoing:
            raise TraceError(f"{node} changes more than one member, or a joint configuration")
        other, action = changes[0]["nid"], changes[0]["action"]
        alone = frozenset({other})
        if action == "AddNewServer" and other not in node.voters:
            config = node.voters | alone, node.learners
        elif action == "AddLearner" and other not in node.voters | node.learners:
            config = node.voters, node.learners | alone
        elif action == "RemoveServer" and other in node.voters | node.learners:
            config = node.voters - alone, node.learners - alone
        else:
            raise TraceError(f"{node} cannot do this to {other}: {action}")
        if node.pending_change:
            node.log.append((node.term, "refused"))  # as the specification has it: an entry without effect
        else:
            node.log.append((node.term, config))
            node.pending_change = len(node.log)

    def _apply_change(self, node: Node, event: Mapping[str, Any]) -> None:
        _same_state(node, event)  # the configuration is that of before the change
        change = node.last_committed_change()
        if change is None or node.outgoing:
            raise TraceError(f"{node} applies a change of the configuration, and none is committed")
        index, (voters, learners) = change
        newconf = event["prop"]["cc"]["newconf"]
        if frozenset(newconf) != voters:
            raise TraceError(f"{node} applies the configuration {newconf}, and entry {index} has {sorted(voters)}")
        node.voters, node.learners = voters, learners
        if node.role == Roles.LEADER and node.pending_change >= index:
            node.pending_change = 0

    def _commit(self, node: Node, event: Mapping[str, Any]) -> None:
        node.must_lead()
        matches = sorted((node.match[other] for other in node.voters), reverse=True)
        index = min(matches[len(matches) // 2], len(node.log)) if matches else 0
        if index and node.log.term(index) == node.term:
            node.commit = max(node.commit, index)
        _same_state(node, event)

    def _ready(self, node: Node, event: Mapping[str, Any]) -> None:
        _same_state(node, event)
        node.persist()
        self._messages += self._pending.pop(node.id, collections.Counter())

    # -- messages sent -------------------------------------------------------------------------------------------------

    def _make(self, key: _Key, event: Mapping[str, Any]) -> None:
        if key != _key(event["msg"]):
            raise TraceError(f"node {event['nid']} sends {_told(_key(event['msg']))}, and it would be {_told(key)}")
        self._pending[event["nid"]][key] += 1

    def _send_append(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        _from(node, message["from"])
        node.must_lead()
        to, count = message["to"], message["entries"]
        if to == node.id or to not in node.voters | node.learners:
            raise TraceError(f"{node} sends entries to {to}, which is no other member")
        match message["type"]:
            case "MsgHeartbeat":
                key: _Key = ("heartbeat", node.id, to, node.term, 0, min(node.commit, node.match[to]))
            case "MsgSnap":
                if not 1 <= count <= node.commit:
                    raise TraceError(f"{node} sends a snapshot of {count} entries, and has committed {node.commit}")
                key = ("snapshot", node.id, to, node.term, 0, 0, count, count)
                self._entries[key] = node.log.entries(0, count)
            case "MsgApp":
                previous = message["index"]
                last = previous + count
                if not node.match[to] <= previous <= last <= len(node.log):
                    raise TraceError(
                        f"{node} sends entries {previous + 1} to {last}: its log ends at {len(node.log)}, and"
                        f" {to} has acknowledged {node.match[to]}"
                    )
                term = node.log.term(previous)
                key = ("app", node.id, to, node.term, previous, term, count, min(node.commit, last))
                self._entries[key] = node.log.entries(previous, last)
            case kind:
                raise TraceError(f"{node} cannot send {kind} as a request")
        self._make(key, event)
        _same_state(node, event)

    def _request_vote(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        _from(node, message["from"])
        self._may_ask(node, message["to"])
        self._make(("vote", node.id, message["to"], node.term, *node.log.last()), event)
        _same_state(node, event)

    @staticmethod
    def _may_ask(node: Node, to: str) -> None:
        if node.role != Roles.CANDIDATE or to not in (node.voters | node.learners) - node.answered:
            raise TraceError(f"{node} asks for the vote of {to}: it is no candidate, or {to} has no vote left")

    def _answer(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        _from(node, message["from"])
        key = _key(message)
        if message["to"] == node.id:
            if event["name"] == "SendRequestVoteResponse":
                self._may_ask(node, node.id)
                self._make(("voted", node.id, node.id, node.term, True), event)
            else:
                node.must_lead()
                self._make(("appended", "app", node.id, node.id, node.term, True, len(node.log)), event)
        elif not self._pending[node.id][key]:
            # The specification has made the answer with the request.
            raise TraceError(f"{node} answers {_told(key)}, and was asked for no such answer")
        if event["name"] == "SendRequestVoteResponse" and message["to"] != node.id:
            _same(node, event, "term", "commit", "role", "log", "conf")  # the vote is told before it is kept
        else:
            _same_state(node, event)

    # -- messages received ---------------------------------------------------------------------------------------------

    def _receive(self, node: Node, event: Mapping[str, Any]) -> _Key:
        message = event["msg"]
        if message["to"] != node.id:
            raise TraceError(f"{node} receives a message to {message['to']}")
        _same_state(node, event)
        key = _key(message)
        if not self._messages[key]:
            raise TraceError(f"{node} receives {_told(key)}, which was not sent, or has been received")
        self._messages[key] -= 1
        if message["term"] > node.term:
            node.term, node.role, node.vote = message["term"], Roles.FOLLOWER, NOBODY
        return key

    def _reply(self, node: Node, *key: object) -> None:
        self._pending[node.id][key] += 1

    def _receive_vote_request(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        self._receive(node, event)
        sender = message["from"]
        up_to_date = (message["logTerm"], message["index"]) >= tuple(reversed(node.log.last()))
        granted = message["term"] == node.term and up_to_date and node.vote in (NOBODY, sender)
        if granted:
            node.vote = sender
        self._reply(node, "voted", node.id, sender, node.term, granted)

    def _receive_vote(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        self._receive(node, event)
        if message["term"] == node.term:
            node.answered.add(message["from"])
            if not message["reject"]:
                node.granted.add(message["from"])

    def _receive_acknowledgement(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        self._receive(node, event)
        if message["term"] == node.term and message["type"] == "MsgAppResp" and not message["reject"]:
            node.match[message["from"]] = max(node.match[message["from"]], message["index"])

    def _receive_append(self, node: Node, event: Mapping[str, Any]) -> None:
        message = event["msg"]
        key = self._receive(node, event)
        kind, sender = str(key[0]), message["from"]
        previous, term = (0, 0) if kind == "heartbeat" else (message["index"], message["logTerm"])
        if message["term"] == node.term:
            if node.role == Roles.LEADER:
                raise TraceError(f"{node} leads, and so does {sender}")
            node.role = Roles.FOLLOWER
        if message["term"] < node.term or not node.log.matches(previous, term):
            self._reply(node, "appended", "app", node.id, sender, node.term, False)
            return
        last = previous + message["entries"]
        if previous < node.commit:
            # It is there already. A heartbeat, which has no place in the log, counts as this, too.
            index = last if kind == "heartbeat" else node.commit
            if kind == "heartbeat":
                node.commit = max(node.commit, message["commit"])
        else:
            node.log.overwrite(previous, self._entries.get(key, []))
            index = last
            node.commit = max(node.commit, min(message["commit"] if kind != "snapshot" else last, last))
        if kind == "heartbeat":
            self._reply(node, "appended", kind, node.id, sender, node.term, True)
        else:
            self._reply(node, "appended", kind, node.id, sender, node.term, True, index)


def _first_state(node_id: str, event: Mapping[str, Any], log: Log) -> Node:
    voters = frozenset(event["prop"]["cc"]["newconf"] if event["name"] == "ApplyConfChange" else event["conf"][0])
    state = event["state"]
    node = Node(
        node_id, log, voters, term=state["term"], vote=state["vote"], role=event["role"], commit=state["commit"]
    )
    for _ in range(event["log"]):
        node.log.append((FIRST_TERM, (voters, frozenset())))
    node.persist()
    return node


def _key(message: Mapping[str, Any]) -> _Key:
    """What of a message has to be the same when it is received."""
    common = message["from"], message["to"], message["term"]
    match message["type"]:
        case "MsgApp":
            return "app", *common, message["index"], message["logTerm"], message["entries"], message["commit"]
        case "MsgSnap":
            return "snapshot", *common, message["index"], message["logTerm"], message["entries"], message["entries"]
        case "MsgHeartbeat":
            return "heartbeat", *common, message["entries"], message["commit"]
        case "MsgAppResp":
            index = () if message["reject"] else (message["index"],)
            return "appended", "app", *common, not message["reject"], *index
        case "MsgHeartbeatResp":
            return "appended", "heartbeat", *common, not message["reject"]
        case "MsgVote":
            return "vote", *common, message["index"], message["logTerm"]
        case "MsgVoteResp":
            return "voted", *common, not message["reject"]
        case kind:
            raise TraceError(f"there is no message {kind!r}")


def _told(key: _Key) -> str:
    return " ".join(map(str, key))


def _from(node: Node, sender: str) -> None:
    if sender != node.id:
        raise TraceError(f"{node} sends a message as {sender}")


def _same_state(node: Node, event: Mapping[str, Any]) -> None:
    _same(node, event, "term", "vote", "commit", "role", "log", "conf")


def _same(node: Node, event: Mapping[str, Any], *names: str) -> None:
    """What a line says of its node is so."""
    state, conf = event["state"], event["conf"]
    for name in names:
        told: object = state[name] if name in state else event[name]
        match name:
            case "conf":
                told = frozenset(conf[0]), frozenset(conf[1])
                found: object = node.voters, node.outgoing
            case "log":
                found = len(node.log)
            case _:
                found = getattr(node, name)
        if told != found:
            raise TraceError(f"{node}: its {name} is told to be {_plain(told)}, and is {_plain(found)}")


def _plain(value: object) -> object:
    return [sorted(part) for part in value] if isinstance(value, tuple) else value
