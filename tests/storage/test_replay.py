"""What the records of a log amount to, one after the other, and which cannot follow those before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import CorruptionError, InternalError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import MemoryStorage, Write
from replikv.storage.filesystem import SECTOR_BYTES
from replikv.storage.frames import encode_frame
from replikv.storage.records import Marker, Record, encode_head, encode_writes
from replikv.storage.recovery import LogScan, Replay
from replikv.storage.segments import SegmentHead

MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})


def snapshot(index: int, term: int = 1) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, MEMBERSHIP)


def marker(index: int) -> Marker:
    return Marker(*snapshot(index))


def entries(*indexes: int, term: int = 1) -> list[Record]:
    return [Entry(index, term, b"data") for index in indexes]


def replayed(*records: Record) -> Replay:
    replay = Replay()
    add(replay, records)
    return replay


def add(replay: Replay, records: Iterable[Record]) -> None:
    for record in records:
        replay.add(record)


@st.composite
def writes(draw: st.DrawFn) -> list[Write]:
    """A snapshot, then any that a core might ask for, and some that leave a gap."""
    newest = draw(st.integers(1, 3))
    found = [Write(snapshot=snapshot(newest))]
    for term in range(1, draw(st.integers(2, 8))):
        first, count = draw(st.integers(1, 12)), draw(st.integers(0, 3))
        newest += (step := draw(st.sampled_from([0, 0, 1, 4])))
        found.append(
            Write(
                entries=tuple(Entry(index, term, b"") for index in range(first, first + count)),
                snapshot=snapshot(newest, term) if step else None,
            )
        )
    return found


@given(asked=writes())
@settings(max_examples=60, deadline=None)
def test_the_log_is_what_the_core_reads(asked: list[Write]) -> None:
    """Snapshots that take the place of all, entries that replace others, or that one has covered: as in the image."""
    image, replay = MemoryStorage(), Replay()
    for write in asked:
        records: list[Record] = [*([] if write.snapshot is None else [write.snapshot]), *write.entries]
        try:
            image.apply(write)
        except InternalError:
            with pytest.raises(ValueError, match="there is a gap"):
                add(replay, records)
            return
        add(replay, records)
        assert image.last_index() == replay.last_index
        assert list(image.entries(image.first_index(), image.last_index() + 1)) == replay.entries


def test_an_entry_replaces_all_from_its_index_on() -> None:
    """Also where only later ones are left of the log: those before were released."""
    assert [10, 11] == [entry.index for entry in replayed(*entries(10, 11, 12), *entries(11, term=2)).entries]
    assert [8] == [entry.index for entry in replayed(*entries(10, 11, 12), *entries(8, term=2)).entries]


@pytest.mark.parametrize(
    "records",
    [
        [*entries(3, 5)],
        [*entries(3), snapshot(7), *entries(9)],
        [marker(4), snapshot(7), *entries(8, 10)],
    ],
)
def test_a_gap_is_told(records: list[Record]) -> None:
    """Behind an entry, and behind a snapshot that took the place of the log."""
    with pytest.raises(ValueError, match="there is a gap"):
        replayed(*records)


def test_markers_move_nothing() -> None:
    """They tell of snapshots beside the log, which ends where it does."""
    replay = replayed(marker(3), marker(7))
    assert (0, 7) == (replay.last_index, replay.marker and replay.marker.index)
    older = replayed(marker(7), marker(3))
    assert (0, 7) == (older.last_index, older.marker and older.marker.index)


def test_where_a_log_goes_on_whose_beginning_was_released() -> None:
    """Behind the end that it had, or before it, in place of some of it: those are gone."""
    for first in (4, 3, 1):
        replay = Replay()
        replay.begin(3)
        assert 3 == replay.last_index
        replay.add(Entry(first, 1, b"data"))
        assert first == replay.last_index


def test_a_log_is_of_one_peer() -> None:
    """Every segment says whose it is, and all of them the same."""
    assert b"one" == replayed(b"one", *entries(1), b"one").identity
    with pytest.raises(ValueError, match="of another log"):
        replayed(b"one", *entries(1), b"another")


@pytest.mark.parametrize("headed", [True, False])
def test_a_segment_says_whose_it_is_before_anything_else(headed: bool) -> None:
    """One that begins with something else was not made by this code, however sound its bytes are."""
    head = SegmentHead(sequence=1, first_index=1, length=4 * SECTOR_BYTES, frame_sequence=1, previous=0)
    parts = encode_writes([Write(entries=(Entry(1, 1, b"data"),))])
    if headed:
        parts = encode_head(b"me", snapshot(0, 0), HardState()) + parts
    frame, _ = encode_frame(parts, 1, 0)
    data = (head.encode().ljust(SECTOR_BYTES, b"\0") + frame).ljust(head.length, b"\0")
    scan = LogScan()
    if headed:
        scan.read_segment(Path(head.name), data, last=True)
        assert (b"me", 1) == (scan.replay.identity, scan.replay.last_index)
        return
    with pytest.raises(CorruptionError, match="does not say whose it is") as caught:
        scan.read_segment(Path(head.name), data, last=True)
    assert SECTOR_BYTES == caught.value.offset
