"""The state of a node in a trace, and what must hold between any two of them: the invariants of etcd's specification.

A log here is a list of entries beside a list of numbers, one for each position, which are the same in two logs exactly
where the logs are the same up to there. So prefixes are compared by looking at one number.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Mapping
from typing import Final

__all__ = ["FIRST_TERM", "NOBODY", "Entry", "Log", "Node", "Roles", "TraceError", "check_invariants"]

NOBODY: Final = "0"
FIRST_TERM: Final = 1
"""Of the entries that a node begins with."""

Configuration = tuple[frozenset[str], frozenset[str]]
"""Voters and learners."""
Entry = tuple[int, str | Configuration]
"""Its term, and what is in it: a configuration, or a word."""


class Roles:
    """How a trace calls them."""

    FOLLOWER: Final = "StateFollower"
    CANDIDATE: Final = "StateCandidate"
    LEADER: Final = "StateLeader"


class TraceError(Exception):
    """The trace is not one of the specification. The message says why."""


class Log:
    """Entries from 1 on. ``numbers`` is shared by all logs of a trace: (number of what is before, entry) -> number."""

    def __init__(self, numbers: dict[tuple[int, Entry], int]) -> None:
        self._numbers = numbers
        self._entries: list[Entry] = []
        self._terms: list[int] = []
        self._prefixes: list[int] = []

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: Entry) -> None:
        """One more."""
        before = self._prefixes[-1] if self._prefixes else 0
        self._prefixes.append(self._numbers.setdefault((before, entry), len(self._numbers) + 1))
        self._entries.append(entry)
        self._terms.append(entry[0])

    def truncate(self, length: int) -> None:
        """Keep the first ``length``."""
        del self._entries[length:], self._terms[length:], self._prefixes[length:]

    def overwrite(self, previous: int, entries: list[Entry]) -> None:
        """Take entries over that follow ``previous``; what is there stays, unless one of them conflicts."""
        for index, entry in enumerate(entries, previous + 1):
            if index <= len(self) and self.term(index) != entry[0]:
                self.truncate(index - 1)
            if index > len(self):
                self.append(entry)

    def entries(self, after: int, last: int) -> list[Entry]:
        """Those behind ``after`` up to ``last``."""
        return self._entries[after:last]

    def entry(self, index: int) -> Entry:
        """One of them."""
        return self._entries[index - 1]

    def term(self, index: int) -> int:
        """The term of one; 0 before the first."""
        return self._terms[index - 1] if index else 0

    def last(self) -> tuple[int, int]:
        """The index and the term of the last."""
        return len(self), self.term(len(self))

    def matches(self, index: int, term: int) -> bool:
        """Whether there is an entry of that term at the index. Nothing is before the first."""
        return index == 0 or (index <= len(self) and self.term(index) == term)

    def prefix(self, index: int) -> int | None:
        """The number of all up to the index; None beyond the end."""
        if index == 0:
            return 0
        return self._prefixes[index - 1] if index <= len(self) else None

    def last_of_term(self, term: int) -> int:
        """The index of the last entry of a term; 0 when there is none."""
        index = bisect.bisect_right(self._terms, term)
        return index if index and self._terms[index - 1] == term else 0

    def last_before_term(self, term: int, limit: int) -> int:
        """The index of the last entry up to ``limit`` of a term below ``term``."""
        return bisect.bisect_left(self._terms, term, 0, min(limit, len(self)))

    def same_term_up_to(self, other: Log) -> int:
        """The largest index at which both logs have an entry of the same term."""
        index = min(len(self), len(other))
        while index and self._terms[index - 1] != other._terms[index - 1]:
            index -= 1
        return index


@dataclasses.dataclass(slots=True)
class Node:
    """One node, as the specification has it."""

    id: str
    log: Log
    voters: frozenset[str]
    learners: frozenset[str] = frozenset()
    outgoing: frozenset[str] = frozenset()
    """Always empty: no step of the specification enters a joint configuration."""
    term: int = 0
    vote: str = NOBODY
    role: str = Roles.FOLLOWER
    commit: int = 0
    answered: set[str] = dataclasses.field(default_factory=set)
    granted: set[str] = dataclasses.field(default_factory=set)
    match: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    pending_change: int = 0
    durable: tuple[int, str, int, int, frozenset[str], frozenset[str]] = (0, NOBODY, 0, 0, frozenset(), frozenset())
    """Term, vote, end of the log, commit index, voters and learners, as of when a batch was last handed out."""

    def __str__(self) -> str:
        return f"node {self.id}"

    def persist(self) -> None:
        """All of it is durable."""
        self.durable = self.term, self.vote, len(self.log), self.commit, self.voters, self.learners

    def restart(self) -> None:
        """Only what is durable is there."""
        self.term, self.vote, length, self.commit, self.voters, self.learners = self.durable
        self.log.truncate(length)
        self.role, self.pending_change = Roles.FOLLOWER, 0
        self.answered, self.granted, self.match = set(), set(), collections.Counter()

    def must_lead(self) -> None:
        """Raise TraceError unless it leads."""
        if self.role != Roles.LEADER:
            raise TraceError(f"{self} does what only a leader may, and is {self.role}")

    def last_committed_change(self) -> tuple[int, Configuration] | None:
        """The last committed entry with a configuration: where it is, and what is in it."""
        for index in range(min(self.commit, len(self.log)), 0, -1):
            _, content = self.log.entry(index)
            if not isinstance(content, str):
                return index, content
        return None

    def has_unapplied_change(self) -> bool:
        """Whether the configuration is another one than that which was committed last."""
        change = self.last_committed_change()
        return change is not None and change[1] != (self.voters, self.learners)


def check_invariants(node: Node, nodes: Mapping[str, Node]) -> None:
    """Raise TraceError where something does not hold of a node that has changed, and of any other."""
    if node.role == Roles.LEADER and node.commit > node.durable[2]:
        raise TraceError(f"{node} leads, and has committed {node.commit} with {node.durable[2]} entries durable")
    for other in nodes.values():
        _check_pair(node, other)
        _check_pair(other, node)
    for one in nodes.values():
        _check_majority(one, nodes)


def _check_pair(node: Node, other: Node) -> None:
    log, other_log = node.log, other.log
    committed = min(node.commit, other.commit)
    if log.prefix(committed) != other_log.prefix(committed):
        raise TraceError(f"{node} and {other} have committed different entries up to {committed}")
    index = log.same_term_up_to(other_log)
    if log.prefix(index) != other_log.prefix(index):
        raise TraceError(f"entry {index} of {node} and of {other} is of the same term, and what is up to there differs")
    if tuple(reversed(log.last())) >= tuple(reversed(other_log.last())):
        _has_committed(node, other, other.commit)
    if node.role != Roles.LEADER:
        return
    if other.role == Roles.LEADER and other.term == node.term and other is not node:
        raise TraceError(f"{node} and {other} both lead term {node.term}")
    if log.last_of_term(node.term) < other_log.last_of_term(node.term):
        raise TraceError(f"{other} has more entries of term {node.term} than {node}, which leads it")
    _has_committed(node, other, other_log.last_before_term(node.term, other.commit))


def _has_committed(node: Node, other: Node, index: int) -> None:
    if node.log.prefix(index) != other.log.prefix(index):
        raise TraceError(f"{node} lacks what {other} has committed, up to entry {index}")


def _check_majority(node: Node, nodes: Mapping[str, Node]) -> None:
    """Every majority of the voters has somebody with all that the node has committed."""
    prefix = node.log.prefix(node.commit)
    lacking = [voter for voter in node.voters if nodes[voter].log.prefix(node.commit) != prefix]
    if node.voters and 2 * len(lacking) > len(node.voters):
        raise TraceError(f"{node} has committed {node.commit}, and a majority lacks some of it: {sorted(lacking)}")
