"""What a storm runs: a process with a core, a disk and a state machine that lag behind it, and what a crash leaves."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from random import Random
from typing import Any

from replikv.raft.core import Config
from replikv.raft.entries import Entry
from replikv.raft.membership import Membership
from replikv.raft.node import RawNode
from replikv.raft.stable import MemoryStorage, Write


@dataclasses.dataclass(slots=True)
class State:
    """A state machine that knows no more than what it was given, in order."""

    index: int = 0
    digest: bytes = b""

    def apply(self, entry: Entry) -> None:
        """The next entry."""
        assert entry.index == self.index + 1, f"{entry.index} is applied after {self.index}"
        self.index = entry.index
        self.digest = hashlib.blake2b(self.digest + entry.data + bytes([entry.kind]), digest_size=8).digest()


class Node:
    """One process: what it loses in a crash, and what it does not."""

    def __init__(self, node_id: str, first: Membership, config: dict[str, Any], random: Random) -> None:
        self.id = node_id
        self.storage = MemoryStorage(first)
        self._config = config
        self._random = random
        self.start({})

    def start(self, snapshots: dict[int, State]) -> None:
        """Begin with what is on disk."""
        index = self.storage.snapshot().index
        self.state = dataclasses.replace(snapshots[index]) if index else State()
        config = Config(node_id=self.id, applied=index, **self._config)
        self.node = RawNode(config, self.storage, Random(self._random.getrandbits(64)))
        self.writes: collections.deque[Write] = collections.deque()
        self.committed: collections.deque[Entry] = collections.deque()
        self.stopped_until = 0
