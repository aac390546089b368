"""What a peer really asks of the operating system, seen from outside: every sync that is needed, and none that is not.

Needs ``strace``, and the right to trace a process of one's own.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os
import sys

import structlog
import trio

from replikv import Cluster, Settings


def mark(what):
    os.write(1, f"MARK {what}\\n".encode())


async def main():
    settings = Settings(wal_segment_bytes=64 * 1024, trailing_entries=1)
    async with Cluster("a", data_dir=sys.argv[1], settings=settings) as cluster:
        await cluster.store.put("first", 0)
        await trio.sleep(0.5)  # what a new leader has to say
        for number in range(5):
            mark("put")
            await cluster.store.put("key", number)
        mark("idle")
        await trio.sleep(0.5)
        await cluster.store.get("key")
        mark("together")
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(cluster.store.put, f"key/{number}", number)
        mark("segment")
        for _ in range(3):
            await cluster.store.put("large", bytes(30 * 1024))
        mark("snapshot")
        await cluster.snapshot()
        await trio.sleep(0.5)
        mark("end")


structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
trio.run(main)
"""

TRACED = "trace=pwrite64,fdatasync,fsync,rename,unlink,write"
FLAGS = ("-f", "--seccomp-bpf", "-y", "-qq", "-s", "24", "-e", "signal=none", "-e", TRACED)
# thread, call, and the first argument: a descriptor with its path, or a path.
CALL = re.compile(r'^\d+ +(\w+)\((?:\d+<([^>]*)>|"([^"]*)")(?:, (.*))?')
MARK = re.compile(r'"MARK (\w+)')


@functools.cache
def reason_to_skip() -> str:
    """Empty where processes can be traced."""
    if shutil.which("strace") is None:
        return "there is no strace here"
    tried = subprocess.run(["strace", *FLAGS, "-o", "/dev/null", "true"], capture_output=True, check=False)
    return f"strace cannot trace: {tried.stderr.decode().strip()}" if tried.returncode or tried.stderr else ""


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """Phase -> for each time that it came, its calls: "fdatasync segment", say, with what kind of file it was."""
    if reason_to_skip():
        pytest.skip(reason_to_skip())
    directory = tmp_path_factory.mktemp("traced")
    program, trace, data = directory / "program.py", directory / "trace", directory / "data"
    program.write_text(PROGRAM)
    done = subprocess.run(
        ["strace", *FLAGS, "-o", trace, sys.executable, program, data],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    found: dict[str, list[list[str]]] = {}
    calls: list[str] = []
    for mark, call in _calls(trace.read_text(), data):
        if mark:
            calls = []
            found.setdefault(mark, []).append(calls)
        else:
            calls.append(call)
    return found


def _calls(trace: str, data: Path) -> Iterator[tuple[str, str]]:
    """(phase, "") where one begins, ("", call) for each call to what is in the data directory, where it has ended."""
    unfinished: dict[str, str] = {}
    for printed in trace.splitlines():
        thread = printed.split(" ", 1)[0]
        if "<unfinished ...>" in printed:
            unfinished[thread] = printed
            continue
        line = unfinished.pop(thread) if " resumed>" in printed else printed
        match = CALL.match(line)
        if match is None:
            continue
        call, path = match[1], Path(match[2] or match[3])
        if call == "write":
            mark = MARK.search(line)
            if mark is not None:
                yield mark[1], ""
        elif path == data or data in path.parents:
            yield "", f"{call} {_kind(path, data)}"


def _kind(path: Path, data: Path) -> str:
    if path.suffix == ".tmp":
        return f"new {'segment' if path.name.startswith('segment') else path.name.split('.')[1]}"
    return {".wal": "segment", ".snap": "snapshot"}.get(path.suffix, str(path.relative_to(data)))


def by(calls: list[str], *kinds: str) -> list[str]:
    return [call for call in calls if call.split(" ", 1)[1] in kinds]


def test_a_put_is_one_write_and_one_sync(phases: dict[str, list[list[str]]]) -> None:
    """None missing, none spare; and it has ended before the put returns, in a cluster of one too (etcd#14370)."""
    assert [["pwrite64 segment", "fdatasync segment"]] * 5 == phases["put"]


def test_nothing_is_synced_without_a_reason(phases: dict[str, list[list[str]]]) -> None:
    """Neither while nothing happens, nor for a read."""
    assert [[]] == phases["idle"]


def test_puts_at_the_same_time_share_a_sync(phases: dict[str, list[list[str]]]) -> None:
    """As many syncs as writes, and far fewer than puts."""
    (calls,) = phases["together"]
    assert ["pwrite64 segment", "fdatasync segment"] * (len(calls) // 2) == calls
    assert 1 <= len(calls) // 2 <= 10


def test_a_segment_is_durable_before_it_is_used(phases: dict[str, list[list[str]]]) -> None:
    """Filled and synced ahead, given its head and synced, renamed, its directory synced; and only then written to."""
    (calls,) = phases["segment"]
    made = by(calls, "new segment", "wal")
    assert ["pwrite64 new segment", "fdatasync new segment"] == made[:2]
    assert ["pwrite64 new segment", "fsync new segment", "rename new segment", "fsync wal"] == made[2:6]
    frames = [call for call in calls if call in ("pwrite64 segment", "fdatasync segment", "fsync wal")]
    write = ["pwrite64 segment", "fdatasync segment"]
    assert [*write, "fsync wal", *write, *write] == frames


def test_a_snapshot_is_durable_before_it_counts(phases: dict[str, list[list[str]]]) -> None:
    """Synced, renamed, its directory synced; and only then are segments deleted, each durably."""
    (calls,) = phases["snapshot"]
    made = [call for call in by(calls, "new snap", "snapshots", "segment", "wal") if not call.startswith("pwrite64")]
    written, released = made[:3], made[3:]
    assert ["fsync new snap", "rename new snap", "fsync snapshots"] == written
    assert ["unlink segment", "fsync wal"] * (len(released) // 2) == released
    assert len(released) >= 2
