"""Cores connected by hand: each message is stepped where it goes, and its answers queue up, until nothing is left.

The disk of a peer is instant: what it has to persist is durable before its next message is taken, so that one step is
"take a message, sync, answer". A peer with ``lazy`` set keeps its writes until :meth:`Peer.persist`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import Any, TypeVar

from logs import indexes

from replikv.raft import replication
from replikv.raft.core import Config, Raft
from replikv.raft.entries import NO_NODE, Entry, EntryKind, HardState
from replikv.raft.invariants import Invariants
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntries, AppendEntriesResponse, Message, RequestVoteResponse
from replikv.raft.node import RawNode
from replikv.raft.reads import ReadState
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage, Write

M = TypeVar("M", bound=Message)


def voters(*node_ids: str) -> Membership:
    """A membership of these voters."""
    return Membership.of_voters(dict.fromkeys(node_ids, ""))


def storage_with(
    log: Iterable[Entry] = (),
    *,
    members: Membership | str = "123",
    term: int = 0,
    vote: str = NO_NODE,
    commit: int = 0,
    compacted: int = 0,
) -> MemoryStorage:
    """The storage of a node that has been there before."""
    storage = MemoryStorage(voters(*members) if isinstance(members, str) else members)
    storage.append(list(log))
    storage.hard_state = HardState(term, vote, commit)
    if compacted:
        storage.compact(compacted)
    return storage


class Peer:
    """One core with a storage in memory, a state machine that only collects, and its own seeded randomness."""

    def __init__(
        self,
        node_id: str = "1",
        members: Membership | str = "123",
        *,
        log: Iterable[Entry] = (),
        term: int = 0,
        vote: str = NO_NODE,
        commit: int = 0,
        storage: MemoryStorage | None = None,
        **config: Any,
    ) -> None:
        self.id = node_id
        self.storage = storage or storage_with(log, members=members, term=term, vote=vote, commit=commit)
        self.node = RawNode(Config(node_id=node_id, **config), self.storage, Random(node_id))
        self.lazy = False
        self.applied: list[Entry] = []
        # How many entries each batch had that was handed out for applying.
        self.batches: list[int] = []
        self.reads: list[ReadState] = []
        # Watches what this peer does, together with those of the same network.
        self.invariants: Invariants | None = None
        self._writes: collections.deque[Write] = collections.deque()

    @property
    def raft(self) -> Raft:
        """The core."""
        return self.node.raft

    def take(self) -> list[Message]:
        """Do everything there is to do; what was sent."""
        sent: list[Message] = []
        while self.node.has_ready():
            ready = self.node.ready()
            sent += ready.messages
            self.reads += ready.reads
            if self.invariants is not None:
                self.invariants.observe(self.raft)
                for read in ready.reads:
                    self.invariants.read_answered(self.id, read)
            if ready.write is not None:
                self._writes.append(ready.write)
            if not self.lazy:
                sent += self.persist()
            self._apply(ready.committed)
        if self.invariants is not None:
            self.invariants.observe(self.raft)
        return sent

    def persist(self, count: int | None = None) -> list[Message]:
        """All writes, or the first ones, become durable, in order; what may be sent then."""
        sent: list[Message] = []
        for _ in range(len(self._writes) if count is None else count):
            write = self._writes.popleft()
            self.storage.apply(write)
            outgoing = self.node.persisted(write)
            if self.invariants is not None:
                self.invariants.observe(self.raft)
                for message in outgoing:
                    self.invariants.observe_sent(message, self.storage)
            sent += outgoing
            if write.snapshot is not None:
                self.node.installed(write.snapshot.index)
        return sent

    def step(self, *messages: Message) -> list[Message]:
        """Take messages, and do what there is to do then; what was sent."""
        for message in messages:
            self.node.step(message)
        return self.take()

    def tick(self, count: int = 1) -> list[Message]:
        """Let time pass, doing what there is to do after each tick; what was sent."""
        sent: list[Message] = []
        for _ in range(count):
            self.node.tick()
            sent += self.take()
        return sent

    def read(self, context: int) -> bool:
        """Ask for a read position; whether anything will come of it."""
        if self.invariants is not None:
            self.invariants.read_asked(self.id, context)
        return self.node.read_index(context)

    def beat(self) -> None:
        """Queue heartbeats without time passing; only a leader has any."""
        if self.raft.role is Role.LEADER:
            replication.broadcast_heartbeat(self.raft)

    def lead(self, *, acknowledged: bool = True) -> None:
        """Become leader with everybody's votes; ``acknowledged``: everybody then takes over the log and the no-op."""
        self.node.campaign()
        self.take()
        for node_id in self.raft.tracker.voters():
            if node_id != self.id and self.raft.role is not Role.LEADER:
                self.node.step(RequestVoteResponse(to=self.id, sender=node_id, term=self.raft.term))
        sent = self.take()
        while acknowledged and sent:
            sent = self.step(*(accept(message) for message in sent if isinstance(message, AppendEntries)))

    @property
    def state(self) -> tuple[Role, int]:
        """(role, term), what most tables of elections are about."""
        return self.raft.role, self.raft.term

    @property
    def log(self) -> list[Entry]:
        """The whole log."""
        return self.raft.log.all_entries()

    @property
    def terms(self) -> list[int]:
        """The terms of the whole log, L[...] in the tables."""
        return [entry.term for entry in self.log]

    @property
    def payloads(self) -> list[bytes]:
        """What the state machine got, without the empty entries."""
        return [entry.data for entry in self.applied if entry.data]

    def _apply(self, committed: tuple[Entry, ...]) -> None:
        if self.invariants is not None:
            self.invariants.observe(self.raft)
            self.invariants.observe_applied(self.id, committed)
        first = self.applied[-1].index + 1 if self.applied else None
        assert first is None or not committed or indexes(committed)[0] >= first, "an entry was handed out twice"
        for entry in committed:
            if entry.kind == EntryKind.MEMBERSHIP:
                self.node.apply_membership(entry)
        self.applied += committed
        self.batches += [len(committed)] if committed else []
        self.node.applied(committed)


def accept(message: AppendEntries) -> AppendEntriesResponse:
    """The answer of a follower that takes it over."""
    return AppendEntriesResponse(
        to=message.sender,
        sender=message.to,
        term=message.term,
        index=message.previous_index + len(message.entries),
    )


def only(messages: Iterable[Message], kind: type[M]) -> list[M]:
    """The messages of one kind."""
    return [message for message in messages if isinstance(message, kind)]


class Network:
    """Peers by id, and what is between them. A peer that is None is a black hole: it swallows, and never answers."""

    def __init__(self, peers: Mapping[str, Peer | None], *, checked: bool = True) -> None:
        """``checked``: hold all that happens to the invariants. Not where a test makes up states that cannot be."""
        self._peers = peers
        if checked:
            invariants = Invariants()
            for peer in self:
                peer.invariants = invariants
        self._cut: set[tuple[str, str]] = set()
        self._ignored: set[type[Message]] = set()
        # Messages that are held back, if anything is: everything of the kinds in _held.
        self._held: set[type[Message]] = set()
        self.held: list[Message] = []
        # Everything that was sent, in order, whether it arrived or not.
        self.sent: list[Message] = []

    def __getitem__(self, node_id: str) -> Peer:
        peer = self._peers[node_id]
        assert peer is not None, f"{node_id} is a black hole"
        return peer

    def __iter__(self) -> Iterator[Peer]:
        return iter([peer for peer in self._peers.values() if peer is not None])

    # -- faults --------------------------------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Drop what goes between the two."""
        self._cut |= {(one, other), (other, one)}

    def isolate(self, node_id: str) -> None:
        """Drop what goes to and from the node."""
        for other in self._peers:
            self.cut(node_id, other)

    def ignore(self, kind: type[Message]) -> None:
        """Drop all messages of one kind."""
        self._ignored.add(kind)

    def hold(self, kind: type[Message]) -> None:
        """Keep all messages of one kind in ``held`` instead of delivering them."""
        self._held.add(kind)

    def recover(self) -> None:
        """No more faults. What is held stays held."""
        self._cut.clear()
        self._ignored.clear()
        self._held.clear()

    # -- what happens --------------------------------------------------------------------------------------------------

    def settle(self, *messages: Message) -> None:
        """Deliver these messages, whatever is between, and then all that follows from them and from what waits."""
        queue = collections.deque(messages)
        for peer in self:
            queue.extend(self._passed(peer.take()))
        while queue:
            message = queue.popleft()
            target = self._peers.get(message.to)
            if target is not None:
                queue.extend(self._passed(target.step(message)))

    def campaign(self, *node_ids: str) -> None:
        """Let nodes campaign, at the same time, and settle."""
        for node_id in node_ids:
            self[node_id].node.campaign()
        self.settle()

    def beat(self, node_id: str) -> None:
        """Let a leader send heartbeats, and settle."""
        self[node_id].beat()
        self.settle()

    def propose(self, node_id: str, data: bytes) -> None:
        """Propose at a leader, and settle."""
        self[node_id].node.propose(data)
        self.settle()

    def read(self, node_id: str, context: int) -> None:
        """Ask for a read position, and settle."""
        assert self[node_id].read(context)
        self.settle()

    def states(self) -> list[tuple[Role, int]]:
        """(role, term) of each peer."""
        return [peer.state for peer in self]

    def roles(self) -> list[Role]:
        """The role of each peer."""
        return [peer.raft.role for peer in self]

    def _passed(self, messages: list[Message]) -> list[Message]:
        self.sent += messages
        passed: list[Message] = []
        for message in messages:
            if (message.sender, message.to) in self._cut or type(message) in self._ignored:
                continue
            (self.held if type(message) in self._held else passed).append(message)
        return passed


HOLE = None
"""A peer that swallows everything, X in the tables."""

FRESH: dict[str, Any] = {}
"""A peer with an empty log, nil in the tables."""


def net(*peers: dict[str, Any] | None, **config: Any) -> Network:
    """A network of peers "1", "2", ..., all of them voters; each is what its Peer is made with, or HOLE."""
    members = "".join(str(number) for number in range(1, len(peers) + 1))
    return Network(
        {
            node_id: None if made is None else Peer(node_id, members, **{**config, **made})
            for node_id, made in zip(members, peers, strict=True)
        }
    )


def three(**config: Any) -> Network:
    """Three fresh voters."""
    return net(FRESH, FRESH, FRESH, **config)
