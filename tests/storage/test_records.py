"""The records in the frames of the write-ahead log."""

from __future__ import annotations

import struct

import pytest

from replikv.raft.entries import Entry, EntryKind, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.records import Marker, decode_records, encode_head, encode_writes

SNAPSHOT = SnapshotMetadata(7, 2, Membership.of_voters({"ä": "10.0.0.1:7001"}))


def test_writes_come_back_in_their_order() -> None:
    """Of a write the snapshot comes first, then the entries, then the hard state."""
    first = Write(
        hard_state=HardState(2, "node-ä", 7),
        entries=(Entry(8, 2, b"", EntryKind.MEMBERSHIP), Entry(9, 2**63, b"\0\xff")),
        snapshot=SNAPSHOT,
    )
    second = Write(hard_state=HardState(3))
    payload = b"".join(encode_writes([first, second]))
    assert [SNAPSHOT, *first.entries, first.hard_state, second.hard_state] == list(decode_records(payload))


def test_entry_data_is_passed_through() -> None:
    """The bytes that were proposed are the object that is written: nothing re-encodes them."""
    data = bytes(150_000)
    assert any(part is data for part in encode_writes([Write(entries=(Entry(1, 1, data),))]))


def test_head_says_whose_log_it_is_and_where_it_stands() -> None:
    """A marker differs from a snapshot that replaces the log."""
    identity, marker, hard_state = decode_records(b"".join(encode_head(b"me", SNAPSHOT, HardState(1, "a", 5))))
    assert (b"me", SNAPSHOT, HardState(1, "a", 5)) == (identity, marker, hard_state)
    assert isinstance(marker, Marker)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\x04", id="half a head"),
        pytest.param(struct.pack(">BI", 4, 100) + b"x", id="longer than its frame"),
        pytest.param(struct.pack(">BI", 4, 2) + b"xy", id="an entry without its fields"),
        pytest.param(struct.pack(">BI", 3, 18) + bytes(16) + b"[]", id="a membership that is none"),
        pytest.param(struct.pack(">BI", 5, 17) + bytes(16) + b"\xff", id="a vote that is no text"),
        pytest.param(struct.pack(">BI", 99, 0), id="an unknown kind"),
    ],
)
def test_what_nobody_writes_is_refused(payload: bytes) -> None:
    """Each by a ValueError, which the reader of the log turns into damage with its place."""
    with pytest.raises(ValueError, match=r"."):
        list(decode_records(payload))
