"""Clusters of real processes that everything is done to: what clients, watchers and holders of locks saw was right.

``python -m replikv.testing chaos`` runs others; docs/chaos.md says what is done, and how to read what is left.
REPLIKV_CHAOS_SECONDS and REPLIKV_CHAOS_SEED make these longer, or other ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from replikv.testing.__main__ import main
from replikv.testing.chaos import Options, run
from replikv.testing.chaos.command import describe
from replikv.testing.chaos.nodes import Nodes
from replikv.testing.chaos.storm import FAULTS
from replikv.testing.linearizability.__main__ import main as check_file
from replikv.testing.simulator.planted import CATALOGUE

SEED = int(os.environ.get("REPLIKV_CHAOS_SEED", "1"))
SHORT_S = 6.0
LONG_S = float(os.environ.get("REPLIKV_CHAOS_SECONDS", "120"))

ENOUGH = {"operations ok": 1000, "locks held": 20, "leases held": 30, "stream events": 5000}
"""What two minutes reach on a machine that has ten other things to do; without it, they would prove little."""


async def test_nothing_breaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three peers, for some seconds; the history is a file that others can check."""
    report = await run(Options(directory=tmp_path / "run", peers=3, seconds=SHORT_S, seed=SEED, rest=0.5))
    assert [] == report.failures, describe(report)
    assert sum(report.faults.values()) >= 3
    assert report.counts["operations ok"] >= 100
    assert 0 == check_file([str(tmp_path / "run" / "history.jsonl"), "--revisions"])
    assert 0 == main(["chaos", "--judge", str(tmp_path / "run")]), capsys.readouterr()


@pytest.mark.long
@pytest.mark.parametrize("peers", [3, 5])
async def test_nothing_breaks_for_long(tmp_path: Path, peers: int) -> None:
    """Everything that there is goes wrong, again and again."""
    report = await run(Options(directory=tmp_path / "run", peers=peers, seconds=LONG_S, seed=SEED + peers))
    assert [] == report.failures, describe(report)
    if LONG_S >= 120:
        assert len(report.faults) >= sum(map(len, FAULTS.values())) * 2 // 3
        assert {} == {name: report.counts[name] for name, least in ENOUGH.items() if report.counts[name] < least}


@pytest.mark.long
@pytest.mark.parametrize("bug", ["apply-a-retry-twice", "vote-for-any-log"])
async def test_bugs_are_noticed(tmp_path: Path, bug: str) -> None:
    """The judges see what goes wrong among real processes: a run that all is well with says something."""
    assert bug in CATALOGUE
    for seed in range(1, 6):
        report = await run(Options(directory=tmp_path / f"run{seed}", seconds=30.0, seed=seed, planted=bug))
        if report.failures:
            return
    raise AssertionError(f"{bug} is in the code, and five runs found nothing wrong")


@pytest.mark.long
async def test_nothing_breaks_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    """Disks are full by word of the run then."""
    report = await run(Options(directory=tmp_path / "run", seconds=20.0, seed=SEED, mount=False))
    assert [] == report.failures, describe(report)
    assert report.faults["full disk"] >= 1


async def test_a_directory_is_of_one_run(tmp_path: Path) -> None:
    """What another run has left is not mixed with this one's."""
    (tmp_path / "history.jsonl").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        await run(Options(directory=tmp_path))


async def test_an_end_that_nothing_explains_is_told(tmp_path: Path) -> None:
    """Whoever was neither killed nor removed has no reason to end."""
    nodes = Nodes(Options(directory=tmp_path), lease_reads=False)
    node = nodes.nodes["n1"]
    node.disk.data_dir.write_text("a file, where a directory should be")
    async with trio.open_nursery() as nursery:
        await nursery.start(nodes.run)
        await nodes.start(node)
        await node.ended.wait()
        assert "down" == node.state
        (failure,) = nodes.failures
        assert "n1 ended with 1: StorageError" in failure
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "wrong", [["--peers", "2"], ["--seconds", "0"], ["--seconds", "inf"], ["--pause", "-1"], ["--judge", "nowhere"]]
)
def test_mistakes_are_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and a sentence."""
    assert 2 == main(["chaos", *wrong])
    assert capsys.readouterr().err


def test_a_run_that_has_no_end_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what it lacks."""
    Options(directory=tmp_path).save()
    assert 2 == main(["chaos", "--judge", str(tmp_path)])
    assert "no final.json: its run did not come to an end" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_can_be_interrupted(tmp_path: Path) -> None:
    """By Ctrl-C, at any time: no process and no file system is left of it."""
    command = [sys.executable, "-m", "replikv.testing", "chaos", "--dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "seed" in process.stderr.readline()
        while not list((tmp_path / "run").glob("n2.log")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert "Traceback" not in errors
    assert "stopped" in errors
    named = str(tmp_path).encode()
    assert [] == [path for path in Path("/proc").glob("[0-9]*/cmdline") if named in _read_if_there(path)]
    assert str(tmp_path) not in Path("/proc/mounts").read_text("utf-8")


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # has ended meanwhile
        return b""
