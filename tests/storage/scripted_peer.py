"""A scripted peer: everything that a peer does to its storage, step by step, and what must be there after each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from replikv.errors import StorageError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import Identity, StorageFullError
from replikv.storage.disk import DiskStorage
from replikv.testing.simulated_disk import SimulatedDisk

T = TypeVar("T")

DIRECTORY = Path("/data/a")
IDENTITY = Identity("cluster", "a", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")
MOVED = dataclasses.replace(IDENTITY, address="10.0.0.9:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})
ORIGIN = SnapshotMetadata(0, 0, MEMBERSHIP)
SEGMENT_BYTES = 2048


class State(NamedTuple):
    """All that a peer finds at its start."""

    identity: Identity | None = None
    hard_state: HardState = HardState()
    snapshot: tuple[int, int] = (0, 0)
    """Index and term."""
    content: tuple[bytes, ...] = ()
    """The chunks of the snapshot."""
    entries: tuple[Entry, ...] = ()
    """Those after the snapshot."""


class Model:
    """What the steps so far amount to, by the words of ``Storage`` alone."""

    def __init__(self) -> None:
        self.identity: Identity | None = None
        self.hard_state = HardState()
        self.log: dict[int, Entry] = {}
        # Index and term of what the log begins after.
        self.base = (0, 0)
        self.snapshot: tuple[int, int] = (0, 0)
        self.content: tuple[bytes, ...] = ()

    def write(self, writes: Sequence[Write]) -> None:
        for write in writes:
            if write.snapshot is not None:
                self.log.clear()
                self.base = (write.snapshot.index, write.snapshot.term)
            for entry in write.entries:
                for index in [index for index in self.log if index >= entry.index]:
                    del self.log[index]
                self.log[entry.index] = entry
            if write.hard_state is not None:
                self.hard_state = write.hard_state

    def state(self) -> State:
        if self.identity is None:
            return State()
        index, term = self.snapshot
        agrees = self.base == self.snapshot or (index in self.log and self.log[index].term == term)
        entries = tuple(entry for at, entry in sorted(self.log.items()) if at > index) if agrees else ()
        hard_state = self.hard_state if term <= self.hard_state.term else HardState(term, "", 0)
        commit = max(self.hard_state.commit, index)
        return State(self.identity, hard_state._replace(commit=commit), self.snapshot, self.content, entries)


class Step(NamedTuple):
    """One call, or several that belong together; made again from its beginning where it found no room."""

    name: str
    act: Callable[[DiskStorage], None]
    model: Callable[[Model], None]


def at(index: int, term: int) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, MEMBERSHIP)


def entries(first: int, last: int, *, term: int = 1, size: int = 40) -> tuple[Entry, ...]:
    """Of one term, each with other bytes."""
    return tuple(Entry(index, term, bytes([index, term]) * (size // 2)) for index in range(first, last + 1))


def initialize() -> Step:
    def model(model: Model) -> None:
        model.identity = IDENTITY

    def act(storage: DiskStorage) -> None:
        storage.draw_incarnation()
        storage.initialize(IDENTITY, ORIGIN)

    return Step("initialize", act, model)


def write(name: str, *writes: Write) -> Step:
    return Step(name, lambda storage: storage.write(writes), lambda model: model.write(writes))


def snapshot(index: int, term: int, *chunks: bytes) -> Step:
    def act(storage: DiskStorage) -> None:
        writer = storage.create_snapshot(at(index, term))
        try:
            for chunk in chunks:
                writer.write(chunk)
            writer.commit()
        finally:
            writer.abort()

    def model(model: Model) -> None:
        model.snapshot, model.content = (index, term), chunks

    return Step(f"snapshot at {index}", act, model)


def release(index: int) -> Step:
    return Step(f"release {index}", lambda storage: storage.release(index), lambda _: None)


def move() -> Step:
    def model(model: Model) -> None:
        model.identity = MOVED

    return Step("move", lambda storage: storage.move(MOVED.address, MOVED.listen), model)


RESTART = Step("restart", lambda _: None, lambda _: None)
"""Close, and open again."""

SCRIPT: Sequence[Step] = (
    initialize(),
    write("vote", Write(hard_state=HardState(1, "a", 0))),
    write("no-op", Write(entries=entries(1, 1, size=0))),
    write(
        "batch", Write(entries=entries(2, 4)), Write(entries=entries(5, 5, size=900), hard_state=HardState(1, "a", 3))
    ),
    write("next segment", Write(entries=entries(6, 6, size=1100))),
    snapshot(4, 1, b"four", b"", b"more of it"),
    write("overwrite", Write(entries=entries(5, 6, term=2), hard_state=HardState(2, "b", 4))),
    release(4),
    RESTART,
    write("larger than a segment", Write(entries=entries(7, 7, term=2, size=2600))),
    move(),
    write("small", Write(entries=entries(8, 8, term=2), hard_state=HardState(2, "b", 7))),
    snapshot(7, 2, b"seven"),
    release(7),
    snapshot(20, 3, b"received", b"from the leader"),
    RESTART,
    write("after the received", Write(snapshot=at(20, 3), hard_state=HardState(3, "", 20))),
    write("on", Write(entries=entries(21, 22, term=3, size=700))),
    snapshot(30, 4, b"received again"),
    write("replaced", Write(snapshot=at(30, 4), entries=entries(31, 31, term=4), hard_state=HardState(4, "c", 30))),
    release(30),
    write("last", Write(entries=entries(32, 33, term=4, size=600), hard_state=HardState(4, "c", 32))),
)


def states(script: Sequence[Step] = SCRIPT) -> list[State]:
    """What must be found before the first step, and after each."""
    model = Model()
    found = [model.state()]
    for step in script:
        step.model(model)
        found.append(model.state())
    return found


def open_disk(disk: SimulatedDisk) -> DiskStorage:
    return DiskStorage(DIRECTORY, segment_bytes=SEGMENT_BYTES, filesystem=disk, prepare_ahead=False)


def observe(storage: DiskStorage) -> State:
    """What an open storage has."""
    if storage.identity is None:
        return State()
    image, found = storage.image, storage.image.snapshot()
    content: tuple[bytes, ...] = ()
    if found.index:
        with storage.open_snapshot(found.index) as (_, chunks):
            content = tuple(chunks)
    following = image.entries(max(image.first_index(), found.index + 1), image.last_index() + 1)
    return State(storage.identity, image.hard_state, (found.index, found.term), content, tuple(following))


def recover(disk: SimulatedDisk) -> State:
    """What a start finds."""
    with contextlib.closing(open_disk(disk)) as storage:
        return observe(storage)


class Run:
    """The script on a disk, as far as it goes.

    ``done`` counts the steps that were acknowledged, ``begun`` one that was not, too.
    """

    def __init__(self, disk: SimulatedDisk, script: Sequence[Step] = SCRIPT) -> None:
        self.disk = disk
        self.script = script
        self.done = self.begun = 0
        self.full = 0
        """How often there was no room."""

    def go(self) -> None:
        """To the end. A full disk is asked again, and then healed. Raises StorageError, and what ends the process."""
        storage: DiskStorage | None = None
        try:
            storage = self._patiently(lambda: open_disk(self.disk))
            while self.done < len(self.script):
                step = self.script[self.done]
                self.begun = self.done + 1
                if step is RESTART:
                    storage.close()
                    storage = self._patiently(lambda: open_disk(self.disk))
                else:
                    self._step(storage, step)
                self.done += 1
        finally:
            if storage is not None:
                storage.close()

    def settle(self, expected: Sequence[State]) -> None:
        """Take up what a start finds now: what was acknowledged, and of the step that was not, all or nothing.

        And once it was found, it stays: somebody may have been told.
        """
        found = recover(self.disk)
        assert found in expected[self.done : self.begun + 1]
        self.disk.crash()
        assert found == recover(self.disk)
        self.done = self.begun = expected.index(found, self.done)

    def _step(self, storage: DiskStorage, step: Step) -> None:
        try:
            self._patiently(lambda: step.act(storage))
        except StorageError:
            if storage.identity is not None and not step.name.startswith(("snapshot", "move")):
                self._expect_final(storage)
            raise

    def _expect_final(self, storage: DiskStorage) -> None:
        """The log takes no more writes, and leaves the disk alone."""
        calls = len(self.disk.calls)
        try:
            storage.write([Write(hard_state=HardState(99, "z", 0))])
        except StorageFullError:
            raise AssertionError("a failure turned into a full disk") from None
        except StorageError:
            assert calls == len(self.disk.calls)
            return
        raise AssertionError(f"after a failure, {self.disk.calls[calls:]} was done to the disk")

    def _patiently(self, act: Callable[[], T]) -> T:
        for attempt in range(4):
            if attempt == 3:
                self.disk.heal()
                self.disk.capacity_bytes = None
            try:
                return act()
            except StorageFullError:
                self.full += 1
        return act()
