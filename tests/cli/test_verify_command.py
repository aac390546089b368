"""``replikv verify``: says what is in a data directory, explains what is wrong with it, and changes nothing."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from replikv.cli import main
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import Write
from replikv.storage.base import Identity
from replikv.storage.disk import DiskStorage

IDENTITY = Identity("cluster-id", "a", "incarnation-id", "10.0.0.1:7001", "0.0.0.0:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001", "b": "10.0.0.2:7001"})


def at(index: int) -> SnapshotMetadata:
    return SnapshotMetadata(index, 2 if index else 0, MEMBERSHIP)


def open_disk(directory: Path) -> contextlib.closing[DiskStorage]:
    return contextlib.closing(DiskStorage(directory, segment_bytes=4096, prepare_ahead=False))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of a peer with two snapshots, and six entries in three segments."""
    path = tmp_path / "data" / "a"
    with open_disk(path) as storage:
        storage.initialize(IDENTITY, at(0))
        for index in range(1, 7):
            storage.write([Write(entries=(Entry(index, 2, b"x" * 1200),), hard_state=HardState(2, "b", index - 1))])
            if index in (2, 4):
                writer = storage.create_snapshot(at(index))
                writer.write(b"state")
                writer.commit()
    return path


def content(directory: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


def change(path: Path, offset: int, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(data)] = data
    path.write_bytes(whole)


def verified(directory: Path, capsys: pytest.CaptureFixture[str], expected: int) -> str:
    """What is said, wrapped lines joined; the exit code is the expected one, and nothing was changed."""
    before = content(directory)
    assert expected == main(["verify", str(directory)])
    assert before == content(directory)
    said = capsys.readouterr()
    assert bool(said.out) is (expected != 2)
    return " ".join((said.out + said.err).split())


def expect(said: str, parts: Sequence[str]) -> None:
    for part in parts:
        assert part in said


def test_a_sound_directory_is_described(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose it is, what it has, and how much of it."""
    (directory / "wal" / "segment-1.tmp").write_bytes(b"half")
    said = verified(directory, capsys, 0)
    expect(
        said,
        [
            f"{directory} is the directory of 'a'.",
            "cluster cluster-id",
            "incarnation incarnation-id",
            "address 10.0.0.1:7001, listening at 0.0.0.0:7001",
            "term 2, voted for 'b'",
            "committed at least up to index 5",
            "snapshot at index 4, term 2",
            "log entries 5 to 6 after it",
            "0000000000000001-0000000000000001.wal 3 frames, 2 entries up to index 2, ",
            "0000000000000002-0000000000000003.wal 2 frames, 2 entries up to index 4, ",
            "0000000000000002-0000000000000002.snap index 2, term 2, 2 members, 1 chunk, 5 bytes",
            "UNFINISHED, removed by the next start wal/segment-1.tmp",
        ],
    )
    assert said.endswith("Sound.")


def test_a_torn_write_is_no_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says where it is, that nobody was promised anything, and that there is nothing to do; and so it is."""
    segment = max((directory / "wal").iterdir())
    used = len(segment.read_bytes().rstrip(b"\0"))
    start = (used // 512 - 2) * 512
    change(segment, start, bytes(512))
    said = verified(directory, capsys, 0)
    expect(said, [f"TORN - {segment}, from byte ", "Nobody was told that it was done", "There is nothing to do"])
    assert said.endswith("Sound, but for a write that was interrupted.")
    with open_disk(directory) as storage:
        assert storage.image.last_index() == 5
    assert "TORN" not in verified(directory, capsys, 0)


def test_all_damage_is_told_with_file_and_byte(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each segment and each snapshot, not only what a start stops at; what it means, and what to do."""
    first, second, *_ = sorted((directory / "wal").iterdir())
    older, newest = sorted((directory / "snapshots").iterdir())
    change(first, 700, b"\xff")
    change(second, 3, b"\xff")
    change(older, 40, b"\xff")
    change(newest, newest.stat().st_size - 1, b"\xff")
    said = verified(directory, capsys, 1)
    expect(
        said,
        [
            f"{first} is damaged at byte 512: frame 1 is damaged: it was synced, and reads otherwise now",
            f"{second} is damaged at byte 0: its head is not sound",
            f"{second.name} {second.stat().st_size} bytes, unreadable",
            f"the snapshot {older} is damaged at byte 0: its head does not have its checksum",
            f"{older.name} unreadable",
            f"the snapshot {newest} is damaged at byte",
            "WHAT IT MEANS - Bytes that were synced read otherwise now",
            "the peer does not start",
            "WHAT TO DO",
            "remove it, move DIR away, and let it join anew",
            "Do not put an older copy",
        ],
    )
    assert said.endswith("Damaged.")


def test_an_older_snapshot_is_no_reason_not_to_start(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is damage all the same, of a disk that may do it again."""
    change(min((directory / "snapshots").iterdir()), 40, b"\xff")
    said = verified(directory, capsys, 1)
    expect(said, ["Nothing rests on it", "log entries 5 to 6 after it"])
    assert said.endswith("Damaged, but not in what a start needs.")
    with open_disk(directory) as storage:
        assert storage.image.last_index() == 6


def test_parts_that_do_not_belong_together_are_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing, and what is another peer's, as a start would say it."""
    meta = (directory / "meta").read_bytes()
    (directory / "meta").unlink()
    expect(verified(directory, capsys, 1), ["has no readable meta.", "meta is damaged: it is missing"])
    (directory / "meta").write_bytes(meta[:-2])
    expect(verified(directory, capsys, 1), ["has no readable meta.", "the second line is not the checksum"])
    (directory / "meta").write_bytes(meta)
    segments = sorted((directory / "wal").iterdir())
    segments[1].rename(directory / "kept")
    expect(verified(directory, capsys, 1), [f"{segments[2]} is damaged at byte 0: segment 2 is missing before it"])
    (directory / "kept").rename(segments[1])
    for snapshot in (directory / "snapshots").iterdir():
        snapshot.unlink()
    expect(verified(directory, capsys, 1), ["the log says that there is a snapshot at 4, and there is none"])
    shutil.rmtree(directory / "wal")
    expect(verified(directory, capsys, 1), ["wal is damaged: it is empty"])


def test_a_directory_without_a_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made, but never initialized: sound."""
    with open_disk(tmp_path / "b") as storage:
        incarnation = storage.draw_incarnation()
    said = verified(tmp_path / "b", capsys, 0)
    expect(said, ["has not been given to a peer yet.", f"drew the incarnation {incarnation}."])
    assert said.endswith("Sound.")


def test_what_cannot_be_judged(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer has it, it is no data directory, it is not there, or a newer version has written it: exit code 2."""
    with open_disk(directory):
        expect(verified(directory, capsys, 2), ["is in use", "stop the peer first"])
    (tmp_path / "photos").mkdir()
    expect(verified(tmp_path / "photos", capsys, 2), ["is no data directory"])
    expect(verified(tmp_path / "missing", capsys, 2), ["cannot list", "missing"])
    meta = (directory / "meta").read_bytes()
    line = meta.split(b"\n")[0].replace(b'"format":1', b'"format":9')
    (directory / "meta").write_bytes(line + b"\ncrc32 %08x\n" % zlib.crc32(line))
    expect(verified(directory, capsys, 2), ["was written in format 9", "upgrade it"])
