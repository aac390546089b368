"""Stories of cores, told in text: what is done, and what comes of it.

A story is a text file. A line ``> command`` is done, and the lines after it, up to an empty one, are what comes of it:
messages that are sent, roles and commit indexes that change, entries that are applied, answers and refusals. All else
is prose. ``told`` plays a story and returns it with what really came of it.

    cluster 1 2 3 [learners 4 5] [others 6] [option ...]   start nodes; options: election=10 pre-vote check-quorum ...
    campaign N | tick N [COUNT] | propose N TEXT | read N NUMBER | transfer N TO | time N NOW | beat N
    change N v4 l5 r1 u2 [implicit|explicit]               without changes: leave the joint configuration
    deliver [KIND] [A->B]                                  what is on its way arrives; what follows is on its way then
    settle                                                 deliver until nothing is on its way
    lose [KIND] [A->B]                                     what is on its way is lost
    cut A B | isolate A | heal                             links lose everything from now on, or no more
    slow N | sync N [COUNT]                                the disk takes its time, until it is told to finish
    crash N                                                lose what is not on disk, and start again
    compact N | snapshot-lost N TO | unreachable N TO
    hand-snapshot N TO | hand-timeout N TO                 a message that the core would not have sent now
    state | log N | progress N | members N
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from random import Random
from typing import Any

from changes import change
from network import Peer

from replikv.raft.entries import NO_NODE, Entry, EntryKind, SnapshotMetadata
from replikv.raft.invariants import Invariants
from replikv.raft.membership import Membership, MembershipChange, Transition
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)
from replikv.raft.progress import ProgressState
from replikv.raft.refusals import ProposalDroppedError

OPTIONS = {
    "election": ("election_ticks", int),
    "heartbeat": ("heartbeat_ticks", int),
    "message-bytes": ("message_bytes_max", int),
    "inflight": ("inflight_messages_max", int),
    "inflight-bytes": ("inflight_bytes_max", int),
    "uncommitted-bytes": ("uncommitted_bytes_max", int),
    "pre-vote": ("pre_vote", bool),
    "check-quorum": ("check_quorum", bool),
    "lease": ("read_lease", bool),
}
COMMAND = "> "


def told(story: str) -> str:
    """The story, with what comes of its commands."""
    stage = Stage()
    lines: list[str] = []
    source = iter(story.splitlines())
    for line in source:
        lines.append(line)
        if line.startswith(COMMAND):
            lines += stage.play(line.removeprefix(COMMAND))
            for passed in source:
                if not passed:
                    lines.append(passed)
                    break
                if passed.startswith(COMMAND):
                    raise ValueError(f"an empty line is missing before {passed!r}")
    return "\n".join(lines) + "\n"


class Stage:
    """The cluster that a story is about."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._invariants = Invariants()
        self._config: dict[str, Any] = {}
        self._air: list[Message] = []
        self._links_cut: set[tuple[str, str]] = set()
        self._told: list[str] = []
        # Node id -> what was last told of it.
        self._known: dict[str, tuple[object, ...]] = {}

    def play(self, command: str) -> list[str]:
        """Do what the command says; what comes of it, line by line."""
        name, *words = shlex.split(command)
        self._told = []
        try:
            getattr(self, "_" + name.replace("-", "_"))(*words)
        except ProposalDroppedError as exc:
            self._told.append(f"refused: {exc}")
        self._look()
        return self._told or ["ok"]

    # -- who there is --------------------------------------------------------------------------------------------------

    def _cluster(self, *words: str) -> None:
        groups: dict[str, list[str]] = {"voters": [], "learners": [], "others": []}
        group = "voters"
        for word in words:
            name, _, value = word.partition("=")
            if name in OPTIONS:
                field, kind = OPTIONS[name]
                self._config[field] = kind(value or True)
            elif word in groups:
                group = word
            else:
                groups[group].append(word)
        members = Membership(voters=frozenset(groups["voters"]), learners=frozenset(groups["learners"]))
        for node_id in sorted(word for ids in groups.values() for word in ids):
            self._start(Peer(node_id, members, **self._config))

    def _start(self, peer: Peer) -> None:
        peer.invariants = self._invariants
        self._peers[peer.id] = peer
        # A story campaigns by command: nobody owes a promise from before it began.
        peer.raft.leader_silence = peer.raft.config.election_ticks
        # And nobody's patience is a matter of chance: the higher the number, the longer it waits.
        peer.raft.random = _Patience(sorted(self._peers).index(peer.id))
        peer.raft.randomized_election_ticks = peer.raft.random.randint(
            peer.raft.config.election_ticks, 2 * peer.raft.config.election_ticks
        )
        self._invariants.observe(peer.raft)

    def _crash(self, node_id: str) -> None:
        storage = self._peers[node_id].storage
        self._invariants.restarted(node_id)
        self._start(Peer(node_id, storage=storage, applied=storage.snapshot().index, **self._config))
        self._act(node_id)

    # -- what nodes do -------------------------------------------------------------------------------------------------

    def _act(self, node_id: str, action: Callable[[], object] | None = None) -> object:
        """Do something with a node, and everything that it wants done then."""
        peer = self._peers[node_id]
        applied, reads = len(peer.applied), len(peer.reads)
        outcome = action() if action else None
        sent = peer.take()
        self._look()
        self._told += [f"{node_id} applies {_entry(entry)}" for entry in peer.applied[applied:]]
        self._told += [f"{node_id} may answer read {read.context} at {read.index}" for read in peer.reads[reads:]]
        self._send(sent)
        return outcome

    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            lost = (message.sender, message.to) in self._links_cut or message.to not in self._peers
            self._told.append(f"  {_message(message)}{'  (lost)' if lost else ''}")
            self._air += [] if lost else [message]

    def _campaign(self, node_id: str) -> None:
        self._act(node_id, self._peers[node_id].node.campaign)

    def _tick(self, node_id: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self._act(node_id, self._peers[node_id].node.tick)

    def _beat(self, node_id: str) -> None:
        self._act(node_id, self._peers[node_id].beat)

    def _propose(self, node_id: str, text: str) -> None:
        self._act(node_id, lambda: self._peers[node_id].node.propose(text.encode()))

    def _read(self, node_id: str, number: str) -> None:
        if not self._act(node_id, lambda: self._peers[node_id].read(int(number))):
            self._told.append("refused: no leader")

    def _transfer(self, node_id: str, to: str) -> None:
        if not self._act(node_id, lambda: self._peers[node_id].node.transfer_leadership(to)):
            self._told.append(f"refused: {to} is nobody to hand over to")

    def _time(self, node_id: str, now: str) -> None:
        self._peers[node_id].node.tell_time(float(now))

    def _change(self, node_id: str, *words: str) -> None:
        transition = Transition.AUTO
        if words and words[-1] in ("implicit", "explicit"):
            transition, words = Transition(f"joint-{words[-1]}"), words[:-1]
        made = change(" ".join(words), transition)
        self._act(node_id, lambda: self._peers[node_id].node.propose_membership(made))

    # -- what lies between them ----------------------------------------------------------------------------------------

    def _some(self, words: tuple[str, ...]) -> list[Message]:
        """What is on its way and meant by the words, taken out of the air."""
        taken: list[Message] = []
        left: list[Message] = []
        for message in self._air:
            link = f"{message.sender}->{message.to}"
            meant = all(word in (link, type(message).__name__) for word in words)
            (taken if meant else left).append(message)
        self._air = left
        return taken

    def _deliver(self, *words: str) -> None:
        for message in self._some(words):
            self._act(message.to, lambda message=message: self._peers[message.to].node.step(message))  # type: ignore[misc]

    def _settle(self) -> None:
        while self._air:
            self._deliver()

    def _lose(self, *words: str) -> None:
        self._told += [f"  {_message(message)}  (lost)" for message in self._some(words)]

    def _isolate(self, node_id: str) -> None:
        for other in self._peers:
            self._links_cut |= {(node_id, other), (other, node_id)}

    def _cut(self, one: str, other: str) -> None:
        self._links_cut |= {(one, other), (other, one)}

    def _heal(self) -> None:
        self._links_cut.clear()

    def _unreachable(self, node_id: str, to: str) -> None:
        self._act(node_id, lambda: self._peers[node_id].node.report_unreachable(to))

    # -- disks ---------------------------------------------------------------------------------------------------------

    def _slow(self, node_id: str) -> None:
        self._peers[node_id].lazy = True

    def _sync(self, node_id: str, count: str = "") -> None:
        peer = self._peers[node_id]
        if not count:
            peer.lazy = False
        self._send(peer.persist(int(count) if count else None))
        self._act(node_id)

    def _compact(self, node_id: str) -> None:
        peer = self._peers[node_id]
        index = peer.raft.log.applied
        metadata = SnapshotMetadata(index, peer.raft.log.term(index), peer.raft.membership)
        peer.storage.record_snapshot(metadata)
        peer.storage.compact(index)
        self._told.append(f"{node_id} has a snapshot at {index}, and its log begins behind it")

    def _hand_snapshot(self, node_id: str, to: str) -> None:
        raft = self._peers[node_id].raft
        self._send([InstallSnapshot(to=to, sender=node_id, term=raft.term, snapshot=raft.log.snapshot())])

    def _hand_timeout(self, node_id: str, to: str) -> None:
        self._send([TimeoutNow(to=to, sender=node_id, term=self._peers[node_id].raft.term)])

    def _snapshot_lost(self, node_id: str, to: str) -> None:
        self._act(node_id, lambda: self._peers[node_id].node.report_snapshot(to, failed=True))

    # -- what can be seen ----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Tell what has changed in the nodes."""
        for peer in self._peers.values():
            raft = peer.raft
            now = (raft.role, raft.term, raft.leader, raft.log.committed, raft.membership)
            before = self._known.get(peer.id)
            self._known[peer.id] = now
            if before is None or before == now:
                continue
            if before[:3] != now[:3]:
                self._told.append(f"{peer.id} is {_standing(peer)}")
            if before[3] != now[3]:
                self._told.append(f"{peer.id} knows {raft.log.committed} to be committed")
            if before[4] != now[4]:
                self._told.append(f"{peer.id} counts with {_members(raft.membership)}")

    def _state(self) -> None:
        for peer in self._peers.values():
            log = peer.raft.log
            positions = f"log to {log.last_index()}, committed {log.committed}, applied {log.applied}"
            self._told.append(f"{peer.id}: {_standing(peer)}, {positions}")

    def _log(self, node_id: str) -> None:
        self._told += [_entry(entry) for entry in self._peers[node_id].log]

    def _members(self, node_id: str) -> None:
        self._told.append(_members(self._peers[node_id].raft.membership))

    def _progress(self, node_id: str) -> None:
        for to, progress in self._peers[node_id].raft.tracker.progress.items():
            line = f"{to}: {progress.state.value}, match {progress.match}, next {progress.next}"
            line += f", {progress.inflights.count} in flight" if progress.state is ProgressState.REPLICATE else ""
            line += f", snapshot {progress.pending_snapshot}" if progress.pending_snapshot else ""
            line += ", paused" if progress.is_paused() else ""
            self._told.append(line + (", learner" if progress.is_learner else ""))
        if self._peers[node_id].node.snapshot_wanted:
            self._told.append("wanted: a newer snapshot")


class _Patience(Random):
    """Every election timeout is so many ticks longer than the shortest."""

    def __init__(self, ticks: int) -> None:
        super().__init__(0)
        self._ticks = ticks

    def randint(self, a: int, b: int) -> int:
        return min(a + self._ticks, b)


def _standing(peer: Peer) -> str:
    raft = peer.raft
    following = f" of {raft.leader}" if raft.leader not in (NO_NODE, peer.id) else ""
    return f"{raft.role}{following} in term {raft.term}"


def _members(membership: Membership) -> str:
    parts = [f"voters {' '.join(sorted(membership.voters))}"]
    if membership.outgoing:
        parts.append(f"and outgoing {' '.join(sorted(membership.outgoing))}")
    if membership.learners:
        parts.append(f"learners {' '.join(sorted(membership.learners))}")
    if membership.learners_next:
        parts.append(f"learners to be {' '.join(sorted(membership.learners_next))}")
    return ", ".join(parts)


def _entry(entry: Entry) -> str:
    if entry.kind == EntryKind.MEMBERSHIP:
        change = MembershipChange.decode(entry.data)
        what = " ".join(f"{one.kind} {one.node_id}" for one in change.changes) or "leave the joint configuration"
    else:
        what = entry.data.decode() if entry.data else "-"
    return f"{entry.index}/{entry.term} {what}"


def _message(message: Message) -> str:
    text = f"{message.sender}->{message.to} {type(message).__name__}"
    if message.term:
        text += f" term {message.term}"
    match message:
        case AppendEntries():
            entries = ", ".join(_entry(entry) for entry in message.entries) or "nothing"
            text += f" behind {message.previous_index}/{message.previous_term}: {entries}; commit {message.commit}"
        case AppendEntriesResponse(reject=True):
            text += f" not at {message.index}, perhaps at {message.hint_index}/{message.hint_term}"
        case AppendEntriesResponse():
            text += f" up to {message.index}"
        case RequestVote():
            kind = ", only to know" if message.pre_vote else ", on the leader's wish" if message.transfer else ""
            text += f", log to {message.last_index}/{message.last_term}{kind}"
        case RequestVoteResponse():
            text += f" {'no' if message.reject else 'yes'}{', to the question' if message.pre_vote else ''}"
        case Heartbeat():
            text += f" commit {message.commit}{_position(message.read_position)}"
        case HeartbeatResponse():
            text += _position(message.read_position)
        case InstallSnapshot():
            text += f" at {message.snapshot.index}/{message.snapshot.term}"
        case TransferLeadership():
            text += f" to {message.transferee}"
        case ReadIndex():
            text += f" {message.context}"
        case ReadIndexResponse():
            text += f" {message.context} at {message.index}"
        case _:
            pass
    return text


def _position(position: int) -> str:
    return f", reads up to {position}" if position else ""
