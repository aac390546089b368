"""Directories of every released format stay readable, and today's is written as it was."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from replikv.raft.entries import Entry, EntryKind, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import Identity
from replikv.storage.disk import DiskStorage

FORMAT_1 = Path(__file__).parent / "golden" / "format-1"
IDENTITY = Identity("cluster", "a", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001", "b": "10.0.0.2:7001"})


def write_format_1(directory: Path) -> None:
    """What the golden directory was made by: each kind of record, frames of one and of several sectors, a cut."""
    with contextlib.closing(DiskStorage(directory, segment_bytes=4096, prepare_ahead=False)) as storage:
        storage.initialize(IDENTITY, SnapshotMetadata(0, 0, MEMBERSHIP))
        storage.write([Write(entries=(Entry(1, 1),), hard_state=HardState(1, "a", 0))])
        storage.write([Write(entries=(Entry(2, 1, b"data" * 400), Entry(3, 1, b"{}", EntryKind.MEMBERSHIP)))])
        received = SnapshotMetadata(5, 2, MEMBERSHIP)
        writer = storage.create_snapshot(received)
        writer.write(b"first chunk")
        writer.write(b"second chunk")
        writer.commit()
        storage.write([Write(snapshot=received, hard_state=HardState(2, "", 5)), Write(entries=(Entry(6, 2, b"six"),))])
        storage.write([Write(entries=(Entry(7, 2, bytes(2000)),), hard_state=HardState(2, "b", 6))])


def test_format_1_is_readable(tmp_path: Path) -> None:
    """Identity, snapshot, entries and hard state of the golden directory."""
    directory = tmp_path / "copy"
    shutil.copytree(FORMAT_1, directory)
    with contextlib.closing(DiskStorage(directory, segment_bytes=4096)) as storage:
        assert storage.identity == IDENTITY
        assert storage.image.snapshot() == SnapshotMetadata(5, 2, MEMBERSHIP)
        assert storage.image.hard_state == HardState(2, "b", 6)
        assert storage.image.entries(6, 8) == [Entry(6, 2, b"six"), Entry(7, 2, bytes(2000))]
        with storage.open_snapshot(5) as (_, chunks):
            assert list(chunks) == [b"first chunk", b"second chunk"]


def test_format_1_is_what_is_written(tmp_path: Path) -> None:
    """Byte for byte: a change of the format is never an accident."""
    write_format_1(tmp_path)
    expected = {path.relative_to(FORMAT_1): path.read_bytes() for path in FORMAT_1.rglob("*") if path.is_file()}
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    del written[Path("lock")]
    assert expected == written
