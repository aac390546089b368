"""Reading the log across its two halves: etcd-io/raft's log_test, the tables of terms, slices and pages."""

from __future__ import annotations

import pytest
from logs import indexes, log_of, snapshot_at, span, terms

from replikv.errors import InternalError
from replikv.raft.entries import Entry
from replikv.raft.log import check_slice
from replikv.raft.stable import CompactedIndexError, UnavailableIndexError

# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "term"), [(100, 1), (150, 50), (199, 99)])
def test_term(index: int, term: int) -> None:
    """The term is known from the snapshot's index to the last (TestTerm)."""
    assert term == log_of(base=(100, 1), unstable=terms(*range(1, 100), at=101)).term(index)


@pytest.mark.parametrize(("index", "error"), [(99, CompactedIndexError), (200, UnavailableIndexError)])
def test_term_out_of_range(index: int, error: type[Exception]) -> None:
    """On each side of that its own error (TestTerm)."""
    with pytest.raises(error):
        log_of(base=(100, 1), unstable=terms(*range(1, 100), at=101)).term(index)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (100, CompactedIndexError),
        (101, CompactedIndexError),
        (104, CompactedIndexError),
        (105, 1),
        (106, UnavailableIndexError),
    ],
)
def test_term_with_unstable_snapshot(index: int, expected: int | type[Exception]) -> None:
    """A received snapshot hides what storage still has (TestTermWithUnstableSnapshot)."""
    log = log_of(base=(100, 1))
    log.restore(snapshot_at(105, 1))

    if isinstance(expected, int):
        assert expected == log.term(index)
    else:
        with pytest.raises(expected):
            log.term(index)


@pytest.mark.parametrize(
    ("low", "high", "error"),
    [
        (99, 102, CompactedIndexError),
        (100, 102, CompactedIndexError),
        (101, 101, None),
        (151, 151, None),
        (200, 200, None),
        (201, 201, None),
        (201, 202, InternalError),
        (202, 202, InternalError),
    ],
)
def test_slice_bounds(low: int, high: int, error: type[Exception] | None) -> None:
    """Compacted entries may be asked for, entries that never were may not (TestIsOutOfBounds)."""
    log = log_of(base=(100, 1), unstable=span(101, 200))

    if error is None:
        assert [] == log.slice(low, high)
    else:
        with pytest.raises(error):
            log.slice(low, high)


SEAM_LOG = log_of(span(101, 149, data=b"same"), span(150, 199, data=b"same"), base=(100, 1))
S = SEAM_LOG.all_entries()[0].size


@pytest.mark.parametrize(
    ("low", "high", "bytes_max", "found"),
    [
        (101, 199, None, range(101, 199)),
        (101, 150, None, range(101, 150)),
        (148, 151, None, range(148, 151)),
        (149, 150, None, [149]),
        (150, 200, None, range(150, 200)),
        (101, 199, 0, [101]),
        (149, 151, 0, [149]),
        (150, 199, 0, [150]),
        (148, 151, S - 1, [148]),
        (149, 151, S - 1, [149]),
        (150, 199, S - 1, [150]),
        (148, 151, S, [148]),
        (149, 151, S, [149]),
        (150, 199, S, [150]),
        (148, 151, S + 1, [148]),
        (149, 151, S + 1, [149]),
        (150, 199, S + 1, [150]),
        (101, 199, 2 * S, [101, 102]),
        (148, 151, 2 * S, [148, 149]),
        (149, 151, 2 * S, [149, 150]),
        (150, 199, 2 * S, [150, 151]),
        (148, 151, 3 * S - 1, [148, 149]),
        (149, 152, 3 * S, [149, 150, 151]),
    ],
)
def test_slice(low: int, high: int, bytes_max: int | None, found: list[int] | range) -> None:
    """Across the seam of the two halves: at least one entry, then as many as fit (TestSlice)."""
    assert list(found) == indexes(SEAM_LOG.slice(low, high, bytes_max))


def test_a_slice_has_no_gap_at_the_seam() -> None:
    """Where the bound ends among the durable entries, none of the others follows, be it ever so small."""
    log = log_of([Entry(1, 1), Entry(2, 1, b"x" * 100)], [Entry(3, 1)])

    assert [1] == indexes(log.slice(1, 4, 3 * Entry(1, 1).size))


@pytest.mark.parametrize(
    ("low", "high", "error"),
    [
        (99, 101, CompactedIndexError),
        (100, 101, CompactedIndexError),
        (100, 100, CompactedIndexError),
        (150, 149, InternalError),
        (199, 201, InternalError),
        (201, 201, InternalError),
    ],
)
def test_slice_refused(low: int, high: int, error: type[Exception]) -> None:
    """Compacted bounds, inverted ones, and those beyond the end (TestSlice)."""
    with pytest.raises(error):
        SEAM_LOG.slice(low, high)


def pages_of(low: int, high: int, page_bytes: int) -> list[list[Entry]]:
    """The pages of a whole scan."""
    pages = []

    def visit(page: list[Entry]) -> bool:
        pages.append(page)
        return True

    SEAM_LOG.scan(low, high, page_bytes, visit)
    return pages


@pytest.mark.parametrize("page_bytes", [0, 1, 10, 100, S, S + 1, 2 * S])
@pytest.mark.parametrize(("low", "high"), [(101, 200), (120, 130), (145, 155), (150, 200), (160, 160)])
def test_scan(low: int, high: int, page_bytes: int) -> None:
    """Pages of any size add up to the slice, and each has one entry or fits (TestScan)."""
    pages = pages_of(low, high, page_bytes)

    assert SEAM_LOG.slice(low, high) == [entry for page in pages for entry in page]
    assert all(len(page) == 1 or sum(entry.size for entry in page) <= page_bytes for page in pages)


def test_scan_fills_its_pages() -> None:
    """With room for two, an even number of entries comes in twos (TestScan)."""
    assert {2} == {len(page) for page in pages_of(101, 199, 2 * S)}


def test_scan_stops_when_told() -> None:
    """The visitor decides after each page whether to go on."""
    visited = []

    def visit(page: list[Entry]) -> bool:
        visited.append(page)
        return len(visited) < 3

    SEAM_LOG.scan(101, 199, 0, visit)

    assert 3 == len(visited)


def test_scan_stops_at_an_error() -> None:
    """An error of the visitor ends the scan, and is the caller's (TestScan)."""
    visited = []

    def visit(page: list[Entry]) -> bool:
        visited.append(page)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SEAM_LOG.scan(101, 199, 0, visit)

    assert 1 == len(visited)


# -- received slices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "previous", "entries", "valid"),
    [
        pytest.param(0, (0, 0), [], True, id="empty at the origin"),
        pytest.param(0, (123, 10), [], False, id="leader without a term"),
        pytest.param(9, (123, 10), [], False, id="leader below the previous term"),
        pytest.param(10, (123, 10), [], True, id="leader of the previous term"),
        pytest.param(11, (123, 10), [], True, id="leader above the previous term"),
        pytest.param(0, (0, 0), [(1, 1)], False, id="leader below the entry's term"),
        pytest.param(1, (0, 0), [(1, 1)], True, id="leader of the entry's term"),
        pytest.param(2, (0, 0), [(1, 1)], True, id="leader above the entry's term"),
        pytest.param(2, (0, 0), [(2, 1), (3, 1), (4, 2)], False, id="gap at the origin"),
        pytest.param(1, (1, 1), [(2, 1), (3, 1), (4, 2)], False, id="leader below the last entry's term"),
        pytest.param(2, (1, 1), [(2, 1), (3, 1), (4, 2)], True, id="three entries"),
        pytest.param(10, (123, 5), [(111, 5)], False, id="index falls"),
        pytest.param(10, (123, 5), [(124, 4)], False, id="term falls"),
        pytest.param(10, (123, 5), [(234, 6)], False, id="gap"),
        pytest.param(10, (123, 5), [(124, 6)], True, id="next"),
        pytest.param(10, (12, 2), [(13, 2), (12, 2)], False, id="index falls between entries"),
        pytest.param(10, (12, 2), [(13, 2), (15, 2)], False, id="gap between entries"),
        pytest.param(10, (12, 2), [(13, 2), (14, 1)], False, id="term falls between entries"),
        pytest.param(10, (12, 2), [(13, 2), (14, 3)], True, id="term grows between entries"),
    ],
)
def test_check_slice(term: int, previous: tuple[int, int], entries: list[tuple[int, int]], valid: bool) -> None:
    """What a leader of the term cannot have sent is told apart before it touches the log (TestLogSlice)."""
    received = [Entry(index, entry_term) for index, entry_term in entries]

    if valid:
        check_slice(term, *previous, received)
    else:
        with pytest.raises(ValueError, match=r"term|indexes"):
            check_slice(term, *previous, received)
