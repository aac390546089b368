"""The benchmark of puts runs as a user runs it, in windows far too short to say anything about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("benchmark")
    arguments = [
        "--seconds",
        "0.05",
        "--rounds",
        "1",
        "--concurrency",
        "1",
        "8",
        "--directory",
        str(directory),
        "--json",
    ]
    command = [sys.executable, "-m", "benchmarks", "puts", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert [] == list(directory.iterdir()), "it leaves nothing behind"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_row_for_each_operation_subject_and_concurrency(report: dict[str, Any]) -> None:
    """Puts of all three, gets of the leader and of a follower at each concurrency, and local reads."""
    expected = {("put", subject, n) for subject in ("pipeline", "leader", "follower") for n in (1, 8)}
    expected |= {("get", subject, n) for subject in ("leader", "follower") for n in (1, 8)}
    expected |= {("read", "leader", 1)}

    assert expected == {(row["operation"], row["subject"], row["concurrency"]) for row in report["rows"]}
    assert len(expected) == len(report["rows"])


def test_rows_are_plausible(report: dict[str, Any]) -> None:
    """Something was done in each window, latencies and processor time fit the rate, and puts have a ratio."""
    for row in report["rows"]:
        assert row["per_s"] > 0, row
        assert row["leader_us"] >= 0, row
        assert (row["operation"] == "put") is (row["ratio"] is not None), row
        if row["operation"] == "read":
            assert row["p50_ms"] is None, row
        else:
            assert 0 < row["p50_ms"] <= row["p99_ms"], row
            # Little's law bounds the mean latency, and no median is more than twice the mean.
            assert row["per_s"] * row["p50_ms"] / 1e3 <= 2 * row["concurrency"], row
    assert {1.0} == {row["ratio"] for row in report["rows"] if row["subject"] == "pipeline"}


def test_the_machine_is_named(report: dict[str, Any]) -> None:
    """Numbers come with the machine, the sync latency of the disk and the sizes."""
    assert report["host"]["cpu"]
    assert report["host"]["cores"] > 0
    assert report["host"]["fdatasync_p50_ms"] > 0
    assert (16, 256) == (report["key_bytes"], report["value_bytes"])
