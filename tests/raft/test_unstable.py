"""The unstable tail of the log: etcd-io/raft's log_unstable_test, table by table."""

from __future__ import annotations

import pytest
from logs import snapshot_at, terms

from replikv.errors import InternalError
from replikv.raft.entries import Entry, SnapshotMetadata
from replikv.raft.unstable import Unstable

SNAPSHOT_4 = snapshot_at(4, 1)


def tail(
    entries: list[Entry],
    offset: int,
    in_progress: int | None = None,
    snapshot: SnapshotMetadata | None = None,
    snapshot_in_progress: bool = False,
) -> Unstable:
    """An unstable tail in exactly this state."""
    unstable = Unstable(offset)
    unstable.entries = list(entries)
    unstable.offset_in_progress = offset if in_progress is None else in_progress
    unstable.snapshot = snapshot
    unstable.snapshot_in_progress = snapshot_in_progress
    return unstable


@pytest.mark.parametrize(
    ("entries", "offset", "snapshot", "first", "last"),
    [
        (terms(1, at=5), 5, None, None, 5),
        ([], 0, None, None, None),
        (terms(1, at=5), 5, SNAPSHOT_4, 5, 5),
        ([], 5, SNAPSHOT_4, 5, 4),
    ],
)
def test_first_and_last_index(
    entries: list[Entry], offset: int, snapshot: SnapshotMetadata | None, first: int | None, last: int | None
) -> None:
    """Only a snapshot decides the first index; entries or a snapshot decide the last (TestUnstableMaybeFirstIndex)."""
    unstable = tail(entries, offset, snapshot=snapshot)

    assert (first, last) == (unstable.first_index(), unstable.last_index())


@pytest.mark.parametrize(
    ("entries", "offset", "snapshot", "index", "term"),
    [
        (terms(1, at=5), 5, None, 5, 1),
        (terms(1, at=5), 5, None, 6, None),
        (terms(1, at=5), 5, None, 4, None),
        (terms(1, at=5), 5, SNAPSHOT_4, 5, 1),
        (terms(1, at=5), 5, SNAPSHOT_4, 6, None),
        (terms(1, at=5), 5, SNAPSHOT_4, 4, 1),
        (terms(1, at=5), 5, SNAPSHOT_4, 3, None),
        ([], 5, SNAPSHOT_4, 5, None),
        ([], 5, SNAPSHOT_4, 4, 1),
        ([], 0, None, 5, None),
    ],
)
def test_term(
    entries: list[Entry], offset: int, snapshot: SnapshotMetadata | None, index: int, term: int | None
) -> None:
    """The term is known of the entries and of the snapshot's index (TestMaybeTerm)."""
    assert term == tail(entries, offset, snapshot=snapshot).term(index)


def test_restore() -> None:
    """A snapshot takes the place of everything, and waits for the writer again (TestUnstableRestore)."""
    unstable = tail(terms(1, at=5), 5, 6, SNAPSHOT_4, snapshot_in_progress=True)
    snapshot = snapshot_at(6, 2)

    unstable.restore(snapshot)

    assert (7, 7) == (unstable.offset, unstable.offset_in_progress)
    assert [] == unstable.entries
    assert snapshot is unstable.snapshot
    assert not unstable.snapshot_in_progress


@pytest.mark.parametrize(("in_progress", "found"), [(5, terms(1, 1, at=5)), (6, terms(1, at=6)), (7, [])])
def test_next_entries(in_progress: int, found: list[Entry]) -> None:
    """The writer is given what it does not have yet (TestUnstableNextEntries)."""
    assert found == tail(terms(1, 1, at=5), 5, in_progress).next_entries()


@pytest.mark.parametrize(
    ("snapshot", "in_progress", "found"),
    [(None, False, None), (SNAPSHOT_4, False, SNAPSHOT_4), (SNAPSHOT_4, True, None)],
)
def test_next_snapshot(snapshot: SnapshotMetadata | None, in_progress: bool, found: SnapshotMetadata | None) -> None:
    """The writer is given a snapshot once (TestUnstableNextSnapshot)."""
    assert found == tail([], 5, snapshot=snapshot, snapshot_in_progress=in_progress).next_snapshot()


@pytest.mark.parametrize(("snapshot", "snapshot_in_progress"), [(None, False), (SNAPSHOT_4, False), (SNAPSHOT_4, True)])
@pytest.mark.parametrize(
    ("entries", "in_progress", "expected"),
    [
        ([], 5, 5),
        (terms(1, at=5), 5, 6),
        (terms(1, 1, at=5), 5, 7),
        (terms(1, 1, at=5), 6, 7),
        (terms(1, 1, at=5), 7, 7),
    ],
)
def test_accept_in_progress(
    entries: list[Entry],
    in_progress: int,
    expected: int,
    snapshot: SnapshotMetadata | None,
    snapshot_in_progress: bool,
) -> None:
    """The writer has everything then, the snapshot included if there is one (TestUnstableAcceptInProgress)."""
    unstable = tail(entries, 5, in_progress, snapshot, snapshot_in_progress)

    unstable.accept_in_progress()

    assert expected == unstable.offset_in_progress
    assert (snapshot is not None) == unstable.snapshot_in_progress
    assert [] == unstable.next_entries()


@pytest.mark.parametrize(
    ("entries", "offset", "in_progress", "snapshot", "index", "term", "expected"),
    [
        pytest.param([], 0, 0, None, 5, 1, (0, 0, 0), id="empty"),
        pytest.param(terms(1, at=5), 5, 6, None, 5, 1, (6, 6, 0), id="to the first entry"),
        pytest.param(terms(1, 1, at=5), 5, 6, None, 5, 1, (6, 6, 1), id="to the first entry, one more waiting"),
        pytest.param(terms(1, 1, at=5), 5, 7, None, 5, 1, (6, 7, 1), id="to the first entry, one more in progress"),
        pytest.param(terms(1, 1, at=5), 5, 5, None, 5, 1, (6, 6, 1), id="handed out anew meanwhile"),
        pytest.param(terms(2, at=6), 6, 7, None, 6, 1, (6, 7, 1), id="another term"),
        pytest.param(terms(1, at=5), 5, 6, None, 4, 1, (5, 6, 1), id="stable already"),
        pytest.param(terms(1, at=5), 5, 6, SNAPSHOT_4, 5, 1, (6, 6, 0), id="with a snapshot"),
        pytest.param(terms(1, at=5), 5, 6, SNAPSHOT_4, 4, 1, (5, 6, 1), id="the snapshot's own index"),
        pytest.param(terms(1, at=5), 5, 6, None, 6, 1, (5, 6, 1), id="beyond the end"),
    ],
)
def test_stable_to(
    entries: list[Entry],
    offset: int,
    in_progress: int,
    snapshot: SnapshotMetadata | None,
    index: int,
    term: int,
    expected: tuple[int, int, int],
) -> None:
    """Durable entries leave; an answer about an entry that was overwritten is ignored (TestUnstableStableTo)."""
    unstable = tail(entries, offset, in_progress, snapshot)

    unstable.stable_to(index, term)

    assert expected == (unstable.offset, unstable.offset_in_progress, len(unstable.entries))


@pytest.mark.parametrize(("index", "left"), [(4, None), (3, SNAPSHOT_4), (5, SNAPSHOT_4)])
def test_stable_snapshot_to(index: int, left: SnapshotMetadata | None) -> None:
    """A durable snapshot leaves; the answer for one that was replaced is ignored."""
    unstable = tail([], 5, snapshot=SNAPSHOT_4, snapshot_in_progress=True)

    unstable.stable_snapshot_to(index)

    assert left == unstable.snapshot
    assert (left is not None) == unstable.snapshot_in_progress


@pytest.mark.parametrize(
    ("entries", "in_progress", "new", "offset", "expected_in_progress", "expected"),
    [
        pytest.param(terms(1, at=5), 5, terms(1, 1, at=6), 5, 5, terms(1, 1, 1, at=5), id="append"),
        pytest.param(terms(1, at=5), 6, terms(1, 1, at=6), 5, 6, terms(1, 1, 1, at=5), id="append, in progress"),
        pytest.param(terms(1, at=5), 5, terms(2, 2, at=5), 5, 5, terms(2, 2, at=5), id="replace"),
        pytest.param(terms(1, at=5), 5, terms(2, 2, 2, at=4), 4, 4, terms(2, 2, 2, at=4), id="replace from before"),
        pytest.param(terms(1, at=5), 6, terms(2, 2, at=5), 5, 5, terms(2, 2, at=5), id="replace, in progress"),
        pytest.param(terms(1, 1, 1, at=5), 5, terms(2, at=6), 5, 5, terms(1, 2, at=5), id="truncate"),
        pytest.param(terms(1, 1, 1, at=5), 5, terms(2, 2, at=7), 5, 5, terms(1, 1, 2, 2, at=5), id="truncate the last"),
        pytest.param(terms(1, 1, 1, at=5), 6, terms(2, at=6), 5, 6, terms(1, 2, at=5), id="truncate, before in prog."),
        pytest.param(terms(1, 1, 1, at=5), 7, terms(2, at=6), 5, 6, terms(1, 2, at=5), id="truncate, in progress"),
    ],
)
def test_truncate_and_append(
    entries: list[Entry],
    in_progress: int,
    new: list[Entry],
    offset: int,
    expected_in_progress: int,
    expected: list[Entry],
) -> None:
    """Entries replace what follows; what the writer has of that, it gets anew (TestUnstableTruncateAndAppend)."""
    unstable = tail(entries, 5, in_progress)

    unstable.truncate_and_append(new)

    assert (offset, expected_in_progress) == (unstable.offset, unstable.offset_in_progress)
    assert expected == unstable.entries


def test_append_leaves_no_gap() -> None:
    """Entries that would leave a gap are a bug."""
    with pytest.raises(InternalError, match="gap"):
        tail(terms(1, at=5), 5).truncate_and_append(terms(1, at=7))


@pytest.mark.parametrize(("low", "high"), [(4, 6), (5, 8), (6, 5)])
def test_slice_out_of_bounds(low: int, high: int) -> None:
    """Bounds that are not within the tail are a bug."""
    with pytest.raises(InternalError):
        tail(terms(1, 1, at=5), 5).slice(low, high)


def test_handed_out_slices_do_not_change() -> None:
    """What was handed out stays as it was, whatever is appended, truncated or made durable afterwards."""
    unstable = tail(terms(1, 1, at=5), 5)
    waiting, sliced = unstable.next_entries(), unstable.slice(5, 7)

    unstable.truncate_and_append(terms(1, at=7))
    unstable.truncate_and_append(terms(2, 2, at=6))
    unstable.stable_to(6, 2)

    assert terms(1, 1, at=5) == waiting == sliced
