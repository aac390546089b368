"""The log out of its two halves: etcd-io/raft's log_test, table by table."""

from __future__ import annotations

import pytest
from logs import indexes, log_of, snapshot_at, span, storage_of, terms

from replikv.errors import InternalError
from replikv.raft.entries import Entry
from replikv.raft.log import RaftLog
from replikv.raft.stable import CompactedIndexError, UnavailableIndexError

# -- where two logs part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "conflict"),
    [
        ([], 0),
        (terms(1, 2, 3), 0),
        (terms(2, 3, at=2), 0),
        (terms(3, at=3), 0),
        (terms(1, 2, 3, 4, 4), 4),
        (terms(2, 3, 4, 5, at=2), 4),
        (terms(3, 4, 4, at=3), 4),
        (terms(4, 4, at=4), 4),
        (terms(4, 4, at=1), 1),
        (terms(1, 4, 4, at=2), 2),
        (terms(1, 2, 4, 4, at=3), 3),
    ],
)
def test_find_conflict(entries: list[Entry], conflict: int) -> None:
    """The first entry that conflicts or is new, 0 without one (TestFindConflict)."""
    assert conflict == log_of(unstable=terms(1, 2, 3)).find_conflict(entries)


LOG_A = log_of(terms(2, 2, 5), terms(5, 5, at=4))
LOG_B = log_of(terms(3, 3, 4, at=11), terms(4, 4, at=14), base=(10, 3))


@pytest.mark.parametrize(
    ("log", "index", "term", "found"),
    [
        (LOG_A, 100, 2, (100, 0)),
        (LOG_A, 5, 6, (5, 5)),
        (LOG_A, 5, 5, (5, 5)),
        (LOG_A, 5, 4, (2, 2)),
        (LOG_A, 5, 2, (2, 2)),
        (LOG_A, 5, 1, (0, 0)),
        (LOG_A, 1, 2, (1, 2)),
        (LOG_A, 1, 1, (0, 0)),
        (LOG_A, 0, 0, (0, 0)),
        (LOG_B, 30, 3, (30, 0)),
        (LOG_B, 14, 9, (14, 4)),
        (LOG_B, 14, 4, (14, 4)),
        (LOG_B, 14, 3, (12, 3)),
        (LOG_B, 14, 2, (9, 0)),
        (LOG_B, 11, 5, (11, 3)),
        (LOG_B, 10, 5, (10, 3)),
        (LOG_B, 10, 3, (10, 3)),
        (LOG_B, 10, 2, (9, 0)),
        (LOG_B, 9, 2, (9, 0)),
        (LOG_B, 4, 2, (4, 0)),
        (LOG_B, 0, 0, (0, 0)),
    ],
)
def test_find_conflict_by_term(log: RaftLog, index: int, term: int, found: tuple[int, int]) -> None:
    """The largest entry at or below both; outside of the log the index itself (TestFindConflictByTerm)."""
    assert found == log.find_conflict_by_term(index, term)


@pytest.mark.parametrize("index", [2, 3, 4])
@pytest.mark.parametrize(("term", "up_to_date"), [(4, {2, 3, 4}), (2, set()), (3, {3, 4})])
def test_is_up_to_date(index: int, term: int, up_to_date: set[int]) -> None:
    """The later last term wins, then the longer log (TestIsUpToDate, paper 5.4.1)."""
    assert (index in up_to_date) == log_of(unstable=terms(1, 2, 3)).is_up_to_date(index, term)


# -- appending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "last_index", "log", "offset"),
    [
        ([], 2, terms(1, 2), 3),
        (terms(2, at=3), 3, terms(1, 2, 2), 3),
        (terms(2, at=1), 1, terms(2), 1),
        (terms(3, 3, at=2), 3, terms(1, 3, 3), 2),
    ],
)
def test_append(entries: list[Entry], last_index: int, log: list[Entry], offset: int) -> None:
    """Entries take the place of what follows them, durable or not (TestAppend)."""
    raft_log = log_of(terms(1, 2))

    assert last_index == raft_log.append(entries)

    assert log == raft_log.all_entries()
    assert offset == raft_log.unstable.offset


def test_append_keeps_what_is_committed() -> None:
    """Nothing committed is ever overwritten (TestAppend)."""
    log = log_of(terms(1, 2))
    log.commit_to(2)

    with pytest.raises(InternalError, match="committed"):
        log.append(terms(3, at=2))


@pytest.mark.parametrize(
    ("previous", "entries", "committed", "last_new", "expected_committed", "log"),
    [
        pytest.param((3, 2), terms(4, at=4), 3, None, 1, terms(1, 2, 3), id="previous term differs"),
        pytest.param((4, 3), terms(4, at=5), 3, None, 1, terms(1, 2, 3), id="previous beyond the end"),
        pytest.param((3, 3), [], 3, 3, 3, terms(1, 2, 3), id="nothing new, all committed"),
        pytest.param((3, 3), [], 4, 3, 3, terms(1, 2, 3), id="committed not beyond the last new"),
        pytest.param((3, 3), [], 2, 3, 2, terms(1, 2, 3), id="committed below the last new"),
        pytest.param((3, 3), [], 0, 3, 1, terms(1, 2, 3), id="committed never falls"),
        pytest.param((0, 0), [], 3, 0, 1, terms(1, 2, 3), id="origin"),
        pytest.param((3, 3), terms(4, at=4), 3, 4, 3, terms(1, 2, 3, 4), id="one more"),
        pytest.param((3, 3), terms(4, at=4), 4, 4, 4, terms(1, 2, 3, 4), id="one more, committed"),
        pytest.param((3, 3), terms(4, at=4), 5, 4, 4, terms(1, 2, 3, 4), id="one more, more is committed"),
        pytest.param((3, 3), terms(4, 4, at=4), 4, 5, 4, terms(1, 2, 3, 4, 4), id="two more"),
        pytest.param((2, 2), terms(4, at=3), 3, 3, 3, terms(1, 2, 4), id="conflict at the last"),
        pytest.param((1, 1), terms(4, at=2), 2, 2, 2, terms(1, 4), id="conflict in the middle"),
        pytest.param((1, 1), terms(4, 4, at=2), 2, 3, 2, terms(1, 4, 4), id="conflict, then more"),
        pytest.param((0, 0), terms(1, 2), 1, 2, 1, terms(1, 2, 3), id="a late one never shortens (akka-raft#66)"),
    ],
)
def test_maybe_append(
    previous: tuple[int, int],
    entries: list[Entry],
    committed: int,
    last_new: int | None,
    expected_committed: int,
    log: list[Entry],
) -> None:
    """Own log L[1,2,3], committed 1: entries are taken over if the previous one matches (TestLogMaybeAppend)."""
    raft_log = log_of(unstable=terms(1, 2, 3))
    raft_log.commit_to(1)

    assert last_new == raft_log.maybe_append(*previous, entries, committed)

    assert expected_committed == raft_log.committed
    assert log == raft_log.all_entries()


def test_maybe_append_refuses_a_conflict_with_what_is_committed() -> None:
    """An entry that conflicts with a committed one proves a bug: stop rather than lose it (TestLogMaybeAppend)."""
    log = log_of(unstable=terms(1, 2, 3))
    log.commit_to(1)

    with pytest.raises(InternalError, match="conflicts"):
        log.maybe_append(0, 0, terms(4), 1)

    assert terms(1, 2, 3) == log.all_entries()


# -- compaction and snapshots ------------------------------------------------------------------------------------------


def test_compaction_side_effects() -> None:
    """Compacting the durable half leaves terms, matches and the unstable half alone (TestCompactionSideEffects)."""
    storage = storage_of([Entry(index, index) for index in range(1, 751)])
    log = RaftLog(storage)
    for index in range(751, 1001):
        log.append([Entry(index, index)])
    assert log.maybe_commit(1000, 1000)
    log.applied_to(log.committed, 0)

    storage.compact(500)

    assert 1000 == log.last_index()
    for index in range(500, 1001):
        assert index == log.term(index)
        assert log.matches(index, index)
    assert list(range(751, 1001)) == indexes(log.next_unstable_entries())
    assert 1001 == log.append([Entry(1001, 1001)])
    assert [1001] == indexes(log.entries(1001))
    assert [] == log.entries(1002)


@pytest.mark.parametrize(
    ("compacted", "left", "error"),
    [
        ([1001], [], UnavailableIndexError),
        ([300, 500, 800, 900], [700, 500, 200, 100], None),
        ([300, 299], [700], CompactedIndexError),
    ],
)
def test_compaction(compacted: list[int], left: list[int], error: type[Exception] | None) -> None:
    """Compaction takes exactly the entries up to its index, within what is there, never backwards (TestCompaction)."""
    storage = storage_of(span(1, 1000))
    log = RaftLog(storage)
    log.commit_to(1000)
    log.applied_to(1000, 0)

    for index, expected in zip(compacted, left, strict=False):
        storage.compact(index)
        assert expected == len(log.all_entries())

    if error is not None:
        with pytest.raises(error):
            storage.compact(compacted[-1])


def test_a_log_begins_at_the_snapshot() -> None:
    """Built over a snapshot, the log is empty, committed and applied up to it (TestLogRestore)."""
    log = log_of(base=(1000, 1000))

    assert [] == log.all_entries()
    assert (1001, 1000, 1000) == (log.first_index(), log.last_index(), log.term(1000))
    assert (1000, 1000, 1000) == (log.committed, log.applying, log.applied)
    assert (1001, 1000) == (log.unstable.offset, log.stable_index())


def test_restore() -> None:
    """A received snapshot is the log from its arrival on; what it says is committed, and it cannot undo a commit."""
    log = log_of(terms(1, 1, 1), terms(1, at=4))
    log.commit_to(2)
    snapshot = snapshot_at(9, 2)

    log.restore(snapshot)

    assert (10, (9, 2), 9) == (log.first_index(), log.last_entry_id(), log.committed)
    assert [] == log.all_entries()
    assert log.has_unstable_snapshot()
    assert snapshot is log.snapshot()
    assert snapshot is log.next_unstable_snapshot()
    with pytest.raises(InternalError, match="undo"):
        log.restore(snapshot_at(8, 2))


def test_a_durable_snapshot_is_read_from_storage() -> None:
    """Once the writer has stored it, the snapshot leaves the unstable half, and entries go on behind it."""
    storage = storage_of(terms(1, 1))
    log = RaftLog(storage)
    snapshot = snapshot_at(9, 2)
    log.restore(snapshot)
    log.append(terms(2, at=10))

    log.accept_unstable()
    assert not log.has_next_unstable_snapshot()
    assert not log.has_next_unstable_entries()
    assert log.has_unstable_snapshot()

    storage.install(snapshot)
    storage.append(terms(2, at=10))
    log.stable_snapshot_to(9)
    log.stable_to(10, 2)

    assert not log.has_unstable_snapshot()
    assert snapshot == log.snapshot()
    assert (10, terms(2, at=10)) == (log.stable_index(), log.all_entries())


# -- applying ----------------------------------------------------------------------------------------------------------


def applying_log(applied: int, applying_bytes_max: int | None = None) -> RaftLog:
    """Snapshot at (3, 1), L[1,1,1]@4, stable up to 4, committed up to 5."""
    storage = storage_of(base=(3, 1))
    log = RaftLog(storage, applying_bytes_max=applying_bytes_max)
    log.append(terms(1, 1, 1, at=4))
    storage.append(terms(1, at=4))
    log.stable_to(4, 1)
    assert log.maybe_commit(5, 1)
    log.applied_to(applied, 0)
    return log


@pytest.mark.parametrize(
    ("applied", "applying", "allow_unstable", "found"),
    [
        (3, 3, True, [4, 5]),
        (3, 4, True, [5]),
        (3, 5, True, []),
        (4, 4, True, [5]),
        (4, 5, True, []),
        (5, 5, True, []),
        (3, 3, False, [4]),
        (3, 4, False, []),
        (3, 5, False, []),
        (4, 4, False, []),
        (4, 5, False, []),
        (5, 5, False, []),
    ],
)
def test_next_committed_entries(applied: int, applying: int, allow_unstable: bool, found: list[int]) -> None:
    """What is committed and not handed out yet, once, and only if durable where that is asked for.

    TestHasNextCommittedEnts, TestNextCommittedEnts.
    """
    log = applying_log(applied)
    log.accept_applying(applying, 0, allow_unstable)

    assert found == indexes(log.next_committed_entries(allow_unstable))
    assert bool(found) == log.has_next_committed_entries(allow_unstable)


def test_nothing_is_handed_out_while_paused() -> None:
    """The last rows but one of TestNextCommittedEnts: the bound is reached."""
    log = applying_log(3)
    log.applying_paused = True

    assert [] == log.next_committed_entries(True)
    assert not log.has_next_committed_entries(True)


@pytest.mark.parametrize("in_progress", [False, True])
def test_nothing_is_handed_out_before_a_snapshot_is_stored(in_progress: bool) -> None:
    """The last row of TestNextCommittedEnts; the snapshot is at 5 here, as one at 4 would undo the commit of 5."""
    log = applying_log(3)
    log.restore(snapshot_at(5, 1))
    if in_progress:
        log.accept_unstable()

    assert [] == log.next_committed_entries(True)
    assert not log.has_next_committed_entries(True)


@pytest.mark.parametrize("size", [99, 100, 101])
@pytest.mark.parametrize(
    ("index", "allow_unstable", "room_below"),
    [(3, True, False), (4, True, False), (5, True, True), (3, False, False), (4, False, True), (5, False, True)],
)
def test_accept_applying(index: int, allow_unstable: bool, room_below: bool, size: int) -> None:
    """Paused by 100 outstanding bytes, or by having handed out less than there was (TestAcceptApplying)."""
    log = applying_log(3, applying_bytes_max=100)

    log.accept_applying(index, size, allow_unstable)

    assert (not (room_below and size < 100)) == log.applying_paused


@pytest.mark.parametrize(
    ("index", "size", "outstanding", "paused"),
    [
        (4, 4, 101, True),
        (4, 5, 100, True),
        (4, 6, 99, False),
        (5, 4, 101, True),
        (5, 5, 100, True),
        (5, 6, 99, False),
        (4, 105, 0, False),
        (4, 106, 0, False),
    ],
)
def test_applied_to(index: int, size: int, outstanding: int, paused: bool) -> None:
    """What is applied makes room; less than nothing is never outstanding (TestAppliedTo)."""
    log = applying_log(3, applying_bytes_max=100)
    log.accept_applying(5, 105, allow_unstable=False)

    log.applied_to(index, size)

    assert (index, 5) == (log.applied, log.applying)
    assert (outstanding, paused) == (log.applying_bytes, log.applying_paused)


def test_the_bound_cuts_batches() -> None:
    """A batch holds what fits the room that is left, at least one entry; what is applied makes room for the rest."""
    data = b"x" * 76
    log = log_of(span(1, 4, data=data), applying_bytes_max=250)
    log.commit_to(4)

    first = log.next_committed_entries(True)
    log.accept_applying(2, sum(entry.size for entry in first), True)
    assert [1, 2] == indexes(first)
    assert [] == log.next_committed_entries(True)

    log.applied_to(2, 200)
    assert [3, 4] == indexes(log.next_committed_entries(True))


def test_applying_stays_between_applied_and_committed() -> None:
    """Applying what is not committed, or going back, is a bug."""
    log = applying_log(4)

    with pytest.raises(InternalError, match="not committed"):
        log.accept_applying(6, 0, True)
    with pytest.raises(InternalError, match="applied"):
        log.applied_to(3, 0)
    with pytest.raises(InternalError, match="applied"):
        log.applied_to(6, 0)


# -- the way to the disk, and committing -------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", [2, 0])
def test_next_unstable_entries(stable: int) -> None:
    """The writer is given what is not durable; all is read from storage after that (TestNextUnstableEnts)."""
    entries = terms(1, 2)
    storage = storage_of(entries[:stable])
    log = RaftLog(storage)
    log.append(entries[stable:])

    assert entries[stable:] == log.next_unstable_entries()
    assert (stable == 0) == log.has_next_unstable_entries()

    storage.append(entries[stable:])
    log.accept_unstable()
    log.stable_to(2, 2)
    assert 3 == log.unstable.offset
    assert entries == log.all_entries()


@pytest.mark.parametrize(("index", "committed"), [(3, 3), (1, 2)])
def test_commit_to(index: int, committed: int) -> None:
    """The commit index never falls (TestCommitTo)."""
    log = log_of(unstable=terms(1, 2, 3))
    log.commit_to(2)

    log.commit_to(index)

    assert committed == log.committed


def test_commit_beyond_the_end() -> None:
    """A commit beyond the log says that the log was lost: stop (TestCommitTo)."""
    log = log_of(unstable=terms(1, 2, 3))

    with pytest.raises(InternalError, match="beyond"):
        log.commit_to(4)


@pytest.mark.parametrize(
    ("index", "term", "committed"), [(2, 2, 2), (3, 3, 3), (2, 3, 1), (1, 1, 1), (4, 3, 1), (0, 0, 1)]
)
def test_maybe_commit(index: int, term: int, committed: int) -> None:
    """Only an entry of the asked term commits what is before it, and only forwards (paper 5.4.2, logcabin#44)."""
    log = log_of(unstable=terms(1, 2, 3))
    log.commit_to(1)

    assert (committed > 1) == log.maybe_commit(index, term)

    assert committed == log.committed


@pytest.mark.parametrize(("index", "term", "offset"), [(1, 1, 2), (2, 2, 3), (2, 1, 1), (3, 1, 1)])
def test_stable_to(index: int, term: int, offset: int) -> None:
    """Only the entry that was written becomes durable, not another of its index (TestStableTo)."""
    log = log_of(unstable=terms(1, 2))

    log.stable_to(index, term)

    assert (offset, offset - 1) == (log.unstable.offset, log.stable_index())


@pytest.mark.parametrize("new", [[], terms(2, at=6)], ids=["no entries", "one entry"])
@pytest.mark.parametrize(("index", "term"), [(6, 2), (5, 2), (4, 2), (6, 3), (5, 3), (4, 3)])
def test_stable_to_with_snapshot(index: int, term: int, new: list[Entry]) -> None:
    """The snapshot's own index and those before it say nothing about entries (TestStableToWithSnap)."""
    log = log_of(unstable=new, base=(5, 2))

    log.stable_to(index, term)

    assert (7 if new and (index, term) == (6, 2) else 6) == log.unstable.offset
