"""What every storage must do, as tests: subclass a suite, say how to open yours, and run it with pytest.

::

    class TestMyStorage(DurableStorageSuite):
        def open_storage(self, directory):
            return MyStorage(directory)

:class:`StorageSuite` holds for any storage, :class:`DurableStorageSuite` for one that is opened again on the same
directory. (openraft's ``Suite`` is the model.)
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from replikv.errors import InternalError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import Identity, Storage

__all__ = ["DurableStorageSuite", "StorageSuite"]

IDENTITY = Identity("cluster", "a", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001", "b": "10.0.0.2:7001"})
ORIGIN = SnapshotMetadata(0, 0, MEMBERSHIP)


def entries(first: int, last: int, *, term: int = 1) -> tuple[Entry, ...]:
    """Entries of one term, whose data tells index and term."""
    return tuple(Entry(index, term, f"{term}:{index}".encode()) for index in range(first, last + 1))


def write(storage: Storage, *writes: Write) -> None:
    """What the peer does with writes: make them durable, then let the image have them."""
    storage.write(writes)
    for each in writes:
        storage.image.apply(each)


def take_snapshot(storage: Storage, metadata: SnapshotMetadata, *chunks: bytes) -> None:
    """Write a snapshot and make it durable."""
    writer = storage.create_snapshot(metadata)
    for chunk in chunks:
        writer.write(chunk)
    writer.commit()


def held(storage: Storage) -> list[Entry]:
    """Every entry of the log."""
    return storage.image.entries(storage.image.first_index(), storage.image.last_index() + 1)


class StorageSuite(abc.ABC):
    """What holds for every storage, while it is open."""

    @abc.abstractmethod
    def open_storage(self, directory: Path) -> Storage:
        """A storage; an empty one for a directory that is empty."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        """An initialized storage."""
        with contextlib.closing(self.open_storage(tmp_path)) as storage:
            storage.initialize(IDENTITY, ORIGIN)
            yield storage

    def test_a_new_storage_is_empty(self, tmp_path: Path) -> None:
        """It has no identity and refuses writes until it is initialized."""
        with contextlib.closing(self.open_storage(tmp_path)) as storage:
            assert storage.identity is None
            with pytest.raises(InternalError):
                storage.write([Write(entries=entries(1, 1))])

    def test_initialize_gives_identity_and_membership(self, storage: Storage) -> None:
        """The image then begins at index 1 with the first membership, in term 0."""
        assert storage.identity == IDENTITY
        assert storage.image.initial_state() == (HardState(), MEMBERSHIP)
        assert (storage.image.first_index(), storage.image.last_index()) == (1, 0)
        assert storage.image.snapshot() == ORIGIN

    def test_initialize_at_a_snapshot_begins_in_its_term(self, tmp_path: Path) -> None:
        """Nobody may be voted for in a term before it, and what it covers is committed."""
        with contextlib.closing(self.open_storage(tmp_path)) as storage:
            take_snapshot(storage, SnapshotMetadata(10, 3, MEMBERSHIP), b"state")
            storage.initialize(IDENTITY, SnapshotMetadata(10, 3, MEMBERSHIP))
            assert storage.image.hard_state == HardState(3, "", 10)

    def test_initialize_happens_once(self, storage: Storage) -> None:
        """The identity of a storage never changes."""
        with pytest.raises(InternalError):
            storage.initialize(IDENTITY, ORIGIN)

    def test_an_incarnation_is_drawn_once(self, tmp_path: Path) -> None:
        """The same at each call, and another for each storage."""
        with (
            contextlib.closing(self.open_storage(tmp_path / "one")) as storage,
            contextlib.closing(self.open_storage(tmp_path / "other")) as other,
        ):
            incarnation = storage.draw_incarnation()
            assert incarnation
            assert incarnation == storage.draw_incarnation()
            assert incarnation != other.draw_incarnation()

    def test_a_move_changes_the_addresses_alone(self, storage: Storage) -> None:
        """Everything else that a storage says of whose it is stays."""
        storage.move("10.0.0.9:7001", "0.0.0.0:7009")
        assert storage.identity == dataclasses.replace(IDENTITY, address="10.0.0.9:7001", listen="0.0.0.0:7009")
        write(storage, Write(entries=entries(1, 1)))
        assert held(storage) == list(entries(1, 1))

    def test_an_empty_storage_cannot_move(self, tmp_path: Path) -> None:
        """It is nobody's yet."""
        with contextlib.closing(self.open_storage(tmp_path)) as storage, pytest.raises(InternalError):
            storage.move("10.0.0.9:7001", "0.0.0.0:7009")

    def test_write_leaves_the_image_to_the_caller(self, storage: Storage) -> None:
        """The image belongs to the loop's thread, which applies a write once it is durable."""
        storage.write([Write(entries=entries(1, 2), hard_state=HardState(1, "a", 0))])
        assert storage.image.last_index() == 0
        assert storage.image.hard_state == HardState()

    def test_a_write_of_nothing_is_taken(self, storage: Storage) -> None:
        """A write may be there for its place in the order alone."""
        write(storage, Write(), Write())
        assert held(storage) == []

    def test_snapshot_is_invisible_until_committed(self, storage: Storage) -> None:
        """Nothing of a snapshot that is being written, or was thrown away, can be opened."""
        write(storage, Write(entries=entries(1, 3)))
        writer = storage.create_snapshot(SnapshotMetadata(2, 1, MEMBERSHIP))
        writer.write(b"half")
        with pytest.raises(InternalError), storage.open_snapshot(1):
            pass
        writer.abort()
        with pytest.raises(InternalError), storage.open_snapshot(1):
            pass

    def test_snapshot_comes_back_in_its_chunks(self, storage: Storage) -> None:
        """Also an empty chunk, and one that is all zero."""
        write(storage, Write(entries=entries(1, 3)))
        metadata = SnapshotMetadata(2, 1, MEMBERSHIP)
        chunks = (b"one", b"", bytes(100_000), b"four")
        take_snapshot(storage, metadata, *chunks)
        with storage.open_snapshot(1) as (found, content):
            assert found == metadata
            assert tuple(content) == chunks

    def test_newest_snapshot_is_opened(self, storage: Storage) -> None:
        """``open_snapshot`` gives the newest, whatever older one would do; one beyond it cannot be had."""
        write(storage, Write(entries=entries(1, 5)))
        for index in (1, 3, 4):
            take_snapshot(storage, SnapshotMetadata(index, 1, MEMBERSHIP), b"%d" % index)
        with storage.open_snapshot(2) as (found, content):
            assert (found.index, list(content)) == (4, [b"4"])
        with pytest.raises(InternalError), storage.open_snapshot(5):
            pass

    def test_an_older_snapshot_that_comes_late_changes_nothing(self, storage: Storage) -> None:
        """The newest by index counts: one that was received while an older one was still being taken."""
        take_snapshot(storage, SnapshotMetadata(9, 3, MEMBERSHIP), b"nine")
        take_snapshot(storage, SnapshotMetadata(4, 2, MEMBERSHIP), b"four")
        with storage.open_snapshot(9) as (metadata, chunks):
            assert (metadata.index, list(chunks)) == (9, [b"nine"])

    def test_open_snapshot_outlives_newer_ones(self, storage: Storage) -> None:
        """A snapshot stays readable while it is open, however many come after it."""
        write(storage, Write(entries=entries(1, 9)))
        take_snapshot(storage, SnapshotMetadata(1, 1, MEMBERSHIP), b"old", b"state")
        with storage.open_snapshot(1) as (_, content):
            assert next(content) == b"old"
            for index in range(2, 9):
                take_snapshot(storage, SnapshotMetadata(index, 1, MEMBERSHIP), b"new")
            assert list(content) == [b"state"]

    def test_abort_after_commit_does_nothing(self, storage: Storage) -> None:
        """So that ``abort`` may stand in a ``finally``."""
        write(storage, Write(entries=entries(1, 1)))
        writer = storage.create_snapshot(SnapshotMetadata(1, 1, MEMBERSHIP))
        writer.commit()
        writer.abort()
        with storage.open_snapshot(1) as (_, content):
            assert list(content) == []

    def test_release_asks_for_a_snapshot(self, storage: Storage) -> None:
        """Entries that no durable snapshot covers are never given away."""
        write(storage, Write(entries=entries(1, 3)))
        with pytest.raises(InternalError):
            storage.release(2)
        take_snapshot(storage, SnapshotMetadata(2, 1, MEMBERSHIP))
        with pytest.raises(InternalError):
            storage.release(3)
        storage.release(2)

    def test_log_restarts_only_after_a_durable_snapshot(self, storage: Storage) -> None:
        """A write that replaces the log by a snapshot rests on the snapshot's data."""
        with pytest.raises(InternalError):
            storage.write([Write(snapshot=SnapshotMetadata(7, 2, MEMBERSHIP))])
        take_snapshot(storage, SnapshotMetadata(6, 2, MEMBERSHIP))
        with pytest.raises(InternalError):
            storage.write([Write(snapshot=SnapshotMetadata(7, 2, MEMBERSHIP))])

    def test_close_may_be_called_twice(self, tmp_path: Path) -> None:
        """Whether it was initialized or not."""
        storage = self.open_storage(tmp_path)
        storage.close()
        storage.close()


class DurableStorageSuite(StorageSuite):
    """What holds for a storage that is closed, or left by a crash, and opened again."""

    def reopened(self, storage: Storage, directory: Path) -> contextlib.closing[Storage]:
        """The storage after a restart."""
        storage.close()
        return contextlib.closing(self.open_storage(directory))

    def test_identity_and_membership_survive(self, storage: Storage, tmp_path: Path) -> None:
        """A storage that was only initialized comes back as it was."""
        with self.reopened(storage, tmp_path) as again:
            assert again.identity == IDENTITY
            assert again.image.snapshot() == ORIGIN
            assert (again.image.hard_state, held(again)) == (HardState(), [])

    def test_a_drawn_incarnation_survives(self, tmp_path: Path) -> None:
        """Until the storage is initialized with it, as often as it is opened."""
        storage = self.open_storage(tmp_path)
        incarnation = storage.draw_incarnation()
        for _ in range(2):
            storage.close()
            storage = self.open_storage(tmp_path)
            assert storage.identity is None
            assert incarnation == storage.draw_incarnation()
        identity = dataclasses.replace(IDENTITY, incarnation=incarnation)
        storage.initialize(identity, ORIGIN)
        with self.reopened(storage, tmp_path) as again:
            assert again.identity == identity

    def test_a_move_survives(self, storage: Storage, tmp_path: Path) -> None:
        """With the log and the snapshots untouched."""
        write(storage, Write(entries=entries(1, 3), hard_state=HardState(1, "a", 1)))
        storage.move("10.0.0.9:7001", "0.0.0.0:7009")
        write(storage, Write(entries=entries(4, 4)))
        with self.reopened(storage, tmp_path) as again:
            assert again.identity == dataclasses.replace(IDENTITY, address="10.0.0.9:7001", listen="0.0.0.0:7009")
            assert held(again) == list(entries(1, 4))
            assert again.image.hard_state == HardState(1, "a", 1)

    def test_entries_and_hard_state_survive(self, storage: Storage, tmp_path: Path) -> None:
        """Data, term and kind of each entry come back, from several writes made durable together."""
        mixed = (Entry(1, 1, b""), Entry(2, 1, bytes(2000), 1), Entry(3, 2, b"\xff" * 600))
        write(
            storage,
            Write(entries=mixed[:2], hard_state=HardState(1, "b", 1)),
            Write(entries=mixed[2:], hard_state=HardState(2, "", 2)),
        )
        with self.reopened(storage, tmp_path) as again:
            assert held(again) == list(mixed)
            assert again.image.hard_state == HardState(2, "", 2)

    def test_entries_replace_what_they_overlap(self, storage: Storage, tmp_path: Path) -> None:
        """An entry cuts everything from its index on (Raft paper, 5.3), be it in the same or in a later write."""
        write(storage, Write(entries=entries(1, 5)))
        write(storage, Write(entries=entries(3, 4, term=2)), Write(entries=entries(4, 4, term=3)))
        expected = [*entries(1, 2), *entries(3, 3, term=2), *entries(4, 4, term=3)]
        assert held(storage) == expected
        with self.reopened(storage, tmp_path) as again:
            assert held(again) == expected

    def test_log_goes_on_behind_a_snapshot(self, storage: Storage, tmp_path: Path) -> None:
        """After a restart the log begins behind the newest snapshot; what is committed includes it."""
        write(storage, Write(entries=entries(1, 6), hard_state=HardState(1, "a", 2)))
        take_snapshot(storage, SnapshotMetadata(4, 1, MEMBERSHIP), b"state")
        storage.release(4)
        with self.reopened(storage, tmp_path) as again:
            assert again.image.snapshot() == SnapshotMetadata(4, 1, MEMBERSHIP)
            assert held(again) == list(entries(5, 6))
            assert again.image.hard_state == HardState(1, "a", 4)
            with again.open_snapshot(4) as (_, content):
                assert list(content) == [b"state"]

    def test_received_snapshot_replaces_the_log(self, storage: Storage, tmp_path: Path) -> None:
        """After ``Write(snapshot=...)`` the log continues after it, whatever it held before."""
        write(storage, Write(entries=entries(1, 9), hard_state=HardState(1, "a", 1)))
        snapshot = SnapshotMetadata(7, 2, MEMBERSHIP)
        take_snapshot(storage, snapshot, b"state")
        write(storage, Write(snapshot=snapshot, hard_state=HardState(2, "", 7)))
        write(storage, Write(entries=entries(8, 8, term=2)))
        with self.reopened(storage, tmp_path) as again:
            assert again.image.snapshot() == snapshot
            assert held(again) == list(entries(8, 8, term=2))

    @pytest.mark.parametrize(
        ("term", "index", "remaining"),
        [
            pytest.param(1, 3, entries(4, 5), id="of this log"),
            pytest.param(2, 3, (), id="another term at its index"),
            pytest.param(1, 5, (), id="at the end of the log"),
            pytest.param(1, 8, (), id="beyond the end of the log"),
        ],
    )
    def test_crash_between_snapshot_and_log(
        self, storage: Storage, tmp_path: Path, term: int, index: int, remaining: tuple[Entry, ...]
    ) -> None:
        """A snapshot that is durable counts, also where the log had no time to say so; then writing goes on.

        A gap between snapshot and log: canonical/raft#199, hashicorp/raft#85, RATIS-2507.
        """
        write(storage, Write(entries=entries(1, 5), hard_state=HardState(1, "a", 0)))
        take_snapshot(storage, SnapshotMetadata(index, term, MEMBERSHIP), b"state")
        with self.reopened(storage, tmp_path) as again:
            assert again.image.snapshot() == SnapshotMetadata(index, term, MEMBERSHIP)
            assert held(again) == list(remaining)
            assert again.image.hard_state == HardState(term, "a" if term == 1 else "", index)
            last = again.image.last_index()
            added = entries(last + 1, last + 2, term=3)
            write(again, Write(entries=added))
            with self.reopened(again, tmp_path) as third:
                assert held(third) == [*remaining, *added]

    def test_half_a_snapshot_is_gone_after_a_restart(self, storage: Storage, tmp_path: Path) -> None:
        """What was received in part is never used again (etcd#18055, logcabin#174)."""
        write(storage, Write(entries=entries(1, 3)))
        half = storage.create_snapshot(SnapshotMetadata(2, 1, MEMBERSHIP))
        half.write(b"half")
        with self.reopened(storage, tmp_path) as again:
            assert again.image.snapshot() == ORIGIN
            assert held(again) == list(entries(1, 3))
            whole = SnapshotMetadata(2, 1, MEMBERSHIP)
            take_snapshot(again, whole, b"whole")
            with again.open_snapshot(2) as (_, content):
                assert list(content) == [b"whole"]
        half.abort()

    def test_begins_at_a_snapshot(self, tmp_path: Path) -> None:
        """An empty storage may be given a snapshot with its data first, and be initialized to begin after it."""
        snapshot = SnapshotMetadata(10, 3, MEMBERSHIP)
        storage = self.open_storage(tmp_path)
        take_snapshot(storage, snapshot, b"state")
        storage.initialize(IDENTITY, snapshot)
        write(storage, Write(entries=entries(11, 12, term=3)))
        with self.reopened(storage, tmp_path) as again:
            assert again.image.snapshot() == snapshot
            assert again.image.hard_state == HardState(3, "", 10)
            assert held(again) == list(entries(11, 12, term=3))

    def test_long_log_survives_its_restarts(self, storage: Storage, tmp_path: Path) -> None:
        """Written, covered, released and opened again and again, the log keeps its tail."""
        current, last = storage, 0
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                for _ in range(20):
                    added = tuple(Entry(last + 1 + i, 1, bytes([last % 251]) * 300) for i in range(3))
                    last += 3
                    write(current, Write(entries=added, hard_state=HardState(1, "a", last - 1)))
                expected = held(current)[-7:]
                take_snapshot(current, SnapshotMetadata(last - 7, 1, MEMBERSHIP))
                current.release(last - 7)
                current = stack.enter_context(self.reopened(current, tmp_path))
                assert held(current) == expected
                assert current.image.hard_state == HardState(1, "a", last - 1)
