"""Each byte of a data directory is cut at, and each byte of it has a bit flipped: the synced state, or damage told.

The rule is that of ``storage/frames.py``. The directory is that of a peer that has done everything (``scripted_peer``):
a log of several segments, two snapshots, frames of several sectors. ``long`` flips all eight bits, of a larger one too,
and starts a peer on each; by default, what is wrong with a segment is found by the scan that each start begins with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
from scripted_peer import DIRECTORY, RESTART, Run, State, Step, entries, initialize, recover, release, snapshot, states
from scripted_peer import write as written

from replikv.errors import CorruptionError
from replikv.raft.entries import HardState
from replikv.raft.stable import Write
from replikv.storage.filesystem import SECTOR_BYTES
from replikv.storage.recovery import LogScan, scan_log
from replikv.storage.verification import verify
from replikv.testing.simulated_disk import SimulatedDisk

SCRIPT: Sequence[Step] = (
    initialize(),
    written("one", Write(entries=entries(1, 3), hard_state=HardState(1, "a", 0))),
    snapshot(2, 1, b"two"),
    written("two", Write(entries=entries(4, 5, size=500))),
    snapshot(4, 1, b"four", b"more of it"),
    release(2),
    RESTART,
    written("three", Write(entries=entries(6, 6, size=20), hard_state=HardState(2, "b", 5))),
    written("four", Write(entries=entries(7, 7, term=2, size=600))),
)
LARGER: Sequence[Step] = (
    *SCRIPT,
    *(written(str(index), Write(entries=entries(index, index, term=2, size=index * 97))) for index in range(8, 24)),
)


def directory_of(script: Sequence[Step]) -> tuple[dict[Path, bytes], State]:
    """What it leaves on the disk, but the lock; and what a start must find."""
    disk = SimulatedDisk(Random(0))
    Run(disk, script).go()
    files = disk.files()
    del files[DIRECTORY / "lock"]
    return files, states(script)[-1]


FILES, EXPECTED = directory_of(SCRIPT)
SEGMENTS = sorted(path for path in FILES if path.suffix == ".wal")
OLDER, NEWEST = sorted(path for path in FILES if path.suffix == ".snap")


def start(files: dict[Path, bytes], path: Path, data: bytes) -> State:
    """What is found where one file has another content."""
    return recover(SimulatedDisk(Random(0), files=files | {path: data}))


def scan(files: dict[Path, bytes], path: Path, data: bytes) -> object:
    """As ``start``, but the log is only read."""
    if path.suffix != ".wal":
        return start(files, path, data)
    found = LogScan()
    segments = sorted(each for each in files if each.suffix == ".wal")
    for each in segments:
        found.read_segment(each, data if each == path else files[each], last=each == segments[-1])
    return found


Look = Callable[[dict[Path, bytes], Path, bytes], object]


def expect_damage(files: dict[Path, bytes], path: Path, data: bytes, position: int, look: Look = start) -> None:
    """It is told, with the file, and an offset at or before the position."""
    with pytest.raises(CorruptionError) as caught:
        look(files, path, data)
    assert str(path) == caught.value.file
    assert 0 <= caught.value.offset <= position


def flips(data: bytes, bits: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    for position in range(len(data)):
        for bit in bits or [position % 8]:
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            yield position, bytes(changed)


def sweep_flips(files: dict[Path, bytes], expected: State, bits: Sequence[int] = (), look: Look = scan) -> None:
    newest = max(path for path in files if path.suffix == ".snap")
    for path, data in files.items():
        for position, changed in flips(data, bits):
            if path.suffix == ".snap" and path != newest:
                assert expected == start(files, path, changed)  # nothing rests on an older snapshot
            else:
                expect_damage(files, path, changed, position, look)


def sweep_cuts(files: dict[Path, bytes], expected: State, look: Look = scan) -> None:
    newest = max(path for path in files if path.suffix == ".snap")
    for path, data in files.items():
        for length in range(len(data)):
            if path.suffix == ".snap" and path != newest:
                assert expected == start(files, path, data[:length])
            else:
                expect_damage(files, path, data[:length], length, look)


def test_the_directory_has_everything() -> None:
    """Or the sweeps below would pass it over: segments, snapshots, frames of several sectors, free space at the end."""
    log = scan_log(SimulatedDisk(Random(0), files=FILES), DIRECTORY / "wal")
    assert len(log.segments) >= 3
    assert len(log.last_frame) >= 2 * SECTOR_BYTES
    assert log.offset < len(FILES[SEGMENTS[-1]])
    assert EXPECTED == recover(SimulatedDisk(Random(0), files=FILES))


def test_a_bit_flipped_in_any_byte_is_told() -> None:
    """With file and offset, and never taken for the torn end of the log (pebble#453), wherever it is."""
    sweep_flips(FILES, EXPECTED)


def test_a_file_cut_at_any_byte_is_told() -> None:
    """Segments and snapshots have their whole length before they are used: what is shorter was cut by somebody else."""
    sweep_cuts(FILES, EXPECTED)


@pytest.mark.long
@pytest.mark.parametrize("script", [SCRIPT, LARGER])
def test_any_bit_flipped_and_any_cut(script: Sequence[Step]) -> None:
    """All eight bits of each byte."""
    files, expected = directory_of(script)
    sweep_flips(files, expected, range(8), start)
    sweep_cuts(files, expected, start)


def test_any_sectors_of_the_last_frame_missing_are_torn() -> None:
    """Each subset of them: what was synced before is there, and what is appended after the next start, too."""
    path = SEGMENTS[-1]
    log = scan_log(SimulatedDisk(Random(0), files=FILES), DIRECTORY / "wal")
    sectors = range(log.offset - len(log.last_frame), log.offset, SECTOR_BYTES)
    before = states(SCRIPT)[-2]
    for count in range(1, len(sectors) + 1):
        for missing in itertools.combinations(sectors, count):
            data = bytearray(FILES[path])
            for sector in missing:
                data[sector : sector + SECTOR_BYTES] = bytes(SECTOR_BYTES)
            disk = SimulatedDisk(Random(0), files=FILES | {path: bytes(data)})
            torn = verify(DIRECTORY, disk).torn
            assert (torn is None) == (count == len(sectors))
            run = Run(disk, SCRIPT)
            run.done, run.begun = len(SCRIPT) - 1, len(SCRIPT)
            run.settle(states(SCRIPT))
            assert run.done == len(SCRIPT) - 1
            assert before == recover(disk)
            run.go()
            disk.crash()
            assert EXPECTED == recover(disk)


def test_any_sectors_of_an_earlier_frame_missing_are_damage() -> None:
    """Each subset of the sectors of each frame that has another one behind it, in whatever segment."""
    tried = 0
    for path in SEGMENTS:
        data = FILES[path]
        starts = [at for at in range(SECTOR_BYTES, len(data), SECTOR_BYTES) if data[at] == 0xA5]
        used = len(data.rstrip(b"\0")) + SECTOR_BYTES - 1
        ends = [*starts[1:], used // SECTOR_BYTES * SECTOR_BYTES]
        for begin, end in zip(starts, ends, strict=True):
            if path == SEGMENTS[-1] and begin == starts[-1]:
                continue
            sectors = range(begin, end, SECTOR_BYTES)
            for count in range(1, len(sectors) + 1):
                for missing in itertools.combinations(sectors, count):
                    changed = bytearray(data)
                    for sector in missing:
                        changed[sector : sector + SECTOR_BYTES] = bytes(SECTOR_BYTES)
                    expect_damage(FILES, path, bytes(changed), begin)
                    tried += 1
    assert tried >= 10


def test_a_missing_file_is_told() -> None:
    """Or nothing is lost: an older snapshot goes on with a longer log. Of the last segment nobody can tell."""
    told = set()
    for path in FILES:
        files = {name: data for name, data in FILES.items() if name != path}
        try:
            found = recover(SimulatedDisk(Random(0), files=files))
        except CorruptionError:
            told.add(path)
        else:
            lost = EXPECTED.entries[len(found.entries) :] if path == SEGMENTS[-1] else ()
            assert EXPECTED.entries == found.entries[-len(EXPECTED.entries) + len(lost) :] + lost
    assert {DIRECTORY / "meta", *SEGMENTS[1:-1]} <= told


def test_verify_finds_what_a_start_finds_and_more() -> None:
    """A bit in every place that has something of its own to say: each is told, an older snapshot's too."""
    for path, data in FILES.items():
        for position in range(0, len(data), 61):
            changed = bytearray(data)
            changed[position] ^= 0x10
            disk = SimulatedDisk(Random(0), files=FILES | {path: bytes(changed)})
            found = verify(DIRECTORY, disk)
            assert str(path) in {error.file for error in found.damage}
            assert found.starts == (path == OLDER)
            assert disk.files() == FILES | {path: bytes(changed)}
