"""The machine that a benchmark ran on: numbers without it say nothing."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Final

__all__ = ["Host"]

SYNCS: Final = 100
_SYNC_BYTES: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What decides how fast a durable put can be."""

    cpu: str
    cores: int
    system: str
    python: str
    directory: str
    fdatasync_p50_ms: float
    """One write of 4 KiB to a preallocated file in the directory, and its sync."""
    fdatasync_p99_ms: float

    @classmethod
    def look(cls, directory: Path) -> Host:
        """Look at this machine, and at the disk under the directory."""
        latencies_ms = _sync_latencies_ms(directory)
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
            system=f"{platform.system()} {platform.release()}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            directory=str(directory),
            fdatasync_p50_ms=round(statistics.median(latencies_ms), 3),
            fdatasync_p99_ms=round(sorted(latencies_ms)[int(len(latencies_ms) * 0.99)], 3),
        )

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.system}, {self.python}\n"
            f"{self.directory}: fdatasync {self.fdatasync_p50_ms} ms (p99 {self.fdatasync_p99_ms} ms)"
        )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _sync_latencies_ms(directory: Path) -> list[float]:
    path = directory / "fdatasync"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, bytes(SYNCS * _SYNC_BYTES), 0)
        os.fsync(file)
        latencies_ms = []
        for number in range(SYNCS):
            start = time.perf_counter()
            os.pwrite(file, b"x" * _SYNC_BYTES, number * _SYNC_BYTES)
            os.fdatasync(file)
            latencies_ms.append((time.perf_counter() - start) * 1e3)
        return latencies_ms
    finally:
        os.close(file)
        path.unlink()
