"""The storage in memory: etcd-io/raft's storage_test, table by table.

Where the shape differs: a snapshot's data lives elsewhere, so that CreateSnapshot is ``record_snapshot`` and
ApplySnapshot is ``install``, both of metadata alone; and "out of date" is an InternalError, because only a bug of the
peer can cause it.
"""

from __future__ import annotations

import pytest
from logs import indexes, snapshot_at, storage_of, terms

from replikv.errors import InternalError
from replikv.raft.entries import Entry, HardState
from replikv.raft.stable import CompactedIndexError, MemoryStorage, UnavailableIndexError, Write

BASE = (3, 3)
SIZED = [Entry(4, 4, b"four"), Entry(5, 5, b"fives"), Entry(6, 6, b"sixsix")]
S4, S5, S6 = (entry.size for entry in SIZED)


@pytest.mark.parametrize(("index", "term"), [(3, 3), (4, 4), (5, 5)])
def test_term(index: int, term: int) -> None:
    """The term is known from the last compacted index on (TestStorageTerm)."""
    assert term == storage_of(terms(4, 5, at=4), base=BASE).term(index)


@pytest.mark.parametrize(("index", "error"), [(2, CompactedIndexError), (6, UnavailableIndexError)])
def test_term_out_of_range(index: int, error: type[Exception]) -> None:
    """Before and after that the two errors tell which side was missed (TestStorageTerm)."""
    with pytest.raises(error):
        storage_of(terms(4, 5, at=4), base=BASE).term(index)


@pytest.mark.parametrize(
    ("low", "high", "bytes_max", "found"),
    [
        (4, 5, None, [4]),
        (4, 6, None, [4, 5]),
        (4, 7, None, [4, 5, 6]),
        (4, 7, 0, [4]),
        (4, 7, S4 + S5, [4, 5]),
        (4, 7, S4 + S5 + S6 // 2, [4, 5]),
        (4, 7, S4 + S5 + S6 - 1, [4, 5]),
        (4, 7, S4 + S5 + S6, [4, 5, 6]),
    ],
)
def test_entries(low: int, high: int, bytes_max: int | None, found: list[int]) -> None:
    """At least one entry, then as many as fit (TestStorageEntries)."""
    assert found == indexes(storage_of(SIZED, base=BASE).entries(low, high, bytes_max))


@pytest.mark.parametrize(
    ("low", "high", "error"), [(2, 6, CompactedIndexError), (3, 4, CompactedIndexError), (4, 8, UnavailableIndexError)]
)
def test_entries_out_of_range(low: int, high: int, error: type[Exception]) -> None:
    """Entries that are compacted, or not there yet, are refused (TestStorageEntries)."""
    with pytest.raises(error):
        storage_of(SIZED, base=BASE).entries(low, high)


def test_last_index() -> None:
    """The last index follows what is appended (TestStorageLastIndex)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)
    assert 5 == storage.last_index()

    storage.append(terms(5, at=6))

    assert 6 == storage.last_index()


def test_first_index() -> None:
    """The first index follows compaction (TestStorageFirstIndex)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)
    assert 4 == storage.first_index()

    storage.compact(4)

    assert 5 == storage.first_index()


@pytest.mark.parametrize(("index", "left"), [(4, terms(5, at=5)), (5, [])])
def test_compact(index: int, left: list[Entry]) -> None:
    """What is compacted is gone but for the last one's term (TestStorageCompact)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)

    storage.compact(index)

    assert left == storage.entries(storage.first_index(), storage.last_index() + 1)
    assert (index + 1, index) == (storage.first_index(), storage.term(index))
    assert sum(entry.size for entry in left) == storage.log_bytes


@pytest.mark.parametrize(
    ("index", "error"), [(2, CompactedIndexError), (3, CompactedIndexError), (6, UnavailableIndexError)]
)
def test_compact_refused(index: int, error: type[Exception]) -> None:
    """What is compacted already, or not there yet, cannot be; nothing changes (TestStorageCompact)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)

    with pytest.raises(error):
        storage.compact(index)

    assert (4, 5) == (storage.first_index(), storage.last_index())


@pytest.mark.parametrize(("index", "term"), [(4, 4), (5, 5)])
def test_record_snapshot(index: int, term: int) -> None:
    """A snapshot of the own state is noted; the entries stay until they are compacted (TestStorageCreateSnapshot)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)
    snapshot = snapshot_at(index, term, "1", "2", "3")

    storage.record_snapshot(snapshot)

    assert snapshot == storage.snapshot()
    assert snapshot.membership == storage.initial_state()[1]
    assert (4, 5) == (storage.first_index(), storage.last_index())


def test_record_snapshot_refused() -> None:
    """Neither one older than the newest, nor one that the log contradicts (TestStorageCreateSnapshot)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)
    storage.record_snapshot(snapshot_at(5, 5))

    with pytest.raises(InternalError, match="older"):
        storage.record_snapshot(snapshot_at(4, 4))
    with pytest.raises(InternalError, match="term"):
        storage.record_snapshot(snapshot_at(5, 4))

    assert snapshot_at(5, 5) == storage.snapshot()


@pytest.mark.parametrize(
    ("appended", "log"),
    [
        (terms(1, 2, at=1), terms(4, 5, at=4)),
        (terms(3, 4, 5, at=3), terms(4, 5, at=4)),
        (terms(3, 6, 6, at=3), terms(6, 6, at=4)),
        (terms(3, 4, 5, 5, at=3), terms(4, 5, 5, at=4)),
        (terms(3, 3, 5, at=2), terms(5, at=4)),
        (terms(5, at=4), terms(5, at=4)),
        (terms(5, at=6), terms(4, 5, 5, at=4)),
    ],
)
def test_append(appended: list[Entry], log: list[Entry]) -> None:
    """What is compacted is passed over, what conflicts is replaced (TestStorageAppend)."""
    storage = storage_of(terms(4, 5, at=4), base=BASE)

    storage.append(appended)

    assert log == storage.entries(4, storage.last_index() + 1)
    assert sum(entry.size for entry in log) == storage.log_bytes


def test_append_leaves_no_gap() -> None:
    """Entries that would leave a gap are a bug (TestStorageAppend)."""
    with pytest.raises(InternalError, match="gap"):
        storage_of(terms(4, 5, at=4), base=BASE).append(terms(5, at=7))


def test_install() -> None:
    """A received snapshot replaces the log; an older one afterwards is refused (TestStorageApplySnapshot)."""
    storage = storage_of(terms(1, 1))

    storage.install(snapshot_at(4, 4, "1"))

    assert (5, 4, 4) == (storage.first_index(), storage.last_index(), storage.term(4))
    assert 0 == storage.log_bytes
    with pytest.raises(InternalError, match="older"):
        storage.install(snapshot_at(3, 3, "1"))
    assert snapshot_at(4, 4, "1") == storage.snapshot()


def test_install_of_the_first_membership() -> None:
    """A snapshot at index 0 only says who the first members are (TestStorageApplySnapshot)."""
    storage = MemoryStorage()

    storage.install(snapshot_at(0, 0, "1", "2"))

    assert frozenset({"1", "2"}) == storage.initial_state()[1].voters
    assert (1, 0) == (storage.first_index(), storage.last_index())


def test_apply_keeps_the_order_of_a_write() -> None:
    """Of one write, the snapshot comes first, the entries go on top of it, and the hard state holds."""
    storage = storage_of(terms(1, 1, 1))

    storage.apply(Write(HardState(7, "2", 5), tuple(terms(7, at=6)), snapshot_at(5, 6)))

    assert terms(7, at=6) == storage.entries(6, 7)
    assert (6, HardState(7, "2", 5)) == (storage.first_index(), storage.hard_state)
