"""The result of a benchmark: rows of medians, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.host import Host
from benchmarks.load import KEYS, VALUE, Window

__all__ = ["Measurement", "Report", "Row"]


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One window, and the shares of a core that the leader's process and the busier of the others took in it."""

    window: Window
    leader_cpu: float
    follower_cpu: float


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The medians over all windows of one kind. None: not measured, or nothing to compare with."""

    operation: str
    subject: str
    concurrency: int
    per_s: int
    p50_ms: float | None
    p99_ms: float | None
    leader_cpu: float
    follower_cpu: float
    leader_us: float
    """Processor time of the leader's process per operation: hardly depends on what else the machine does."""
    ratio: float | None
    """To the bare pipeline's window of the same round and concurrency."""

    @classmethod
    def of(
        cls,
        operation: str,
        subject: str,
        concurrency: int,
        measurements: Sequence[Measurement],
        pipeline: Sequence[Measurement],
    ) -> Row:
        """The row of these windows; ``pipeline`` are those to compare with, round by round, if there are any."""
        windows = [measurement.window for measurement in measurements]
        ratios = [mine.per_s / bare.window.per_s for mine, bare in zip(windows, pipeline, strict=bool(pipeline))]
        return cls(
            operation,
            subject,
            concurrency,
            per_s=round(statistics.median(window.per_s for window in windows)),
            p50_ms=_median_ms(window.p50_s for window in windows),
            p99_ms=_median_ms(window.p99_s for window in windows),
            leader_cpu=round(statistics.median(one.leader_cpu for one in measurements), 2),
            follower_cpu=round(statistics.median(one.follower_cpu for one in measurements), 2),
            leader_us=round(statistics.median(one.leader_cpu / one.window.per_s for one in measurements) * 1e6, 2),
            ratio=round(statistics.median(ratios), 3) if ratios else None,
        )


def _median_ms(seconds: Iterable[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return round(statistics.median(known) * 1e3, 3) if known else None


_COLUMNS = (
    "operation",
    "from",
    "in flight",
    "per second",
    "p50 ms",
    "p99 ms",
    "leader cpu",
    "follower cpu",
    "leader us/op",
    "ratio",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found out."""

    host: Host
    seconds: float
    rounds: int
    rows: Sequence[Row]

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {"key_bytes": len(KEYS[0]), "value_bytes": len(VALUE), "keys": len(KEYS), **dataclasses.asdict(self)},
            indent=2,
        )

    def __str__(self) -> str:
        keys = f"{len(KEYS)} keys of {len(KEYS[0])} bytes, values of {len(VALUE)} bytes"
        lines = [
            str(self.host),
            f"3 processes on loopback, durable; {keys}; the puts of a turn are one batch",
            f"medians of {self.rounds} windows of {self.seconds} s, interleaved; ratio: to the bare pipeline",
            "",
        ]
        cells = [_COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
        for row in cells:
            texts = [
                cell.ljust(width) if n < 2 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(texts))
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    return (
        row.operation,
        row.subject,
        str(row.concurrency),
        f"{row.per_s:,}",
        number(row.p50_ms, 2),
        number(row.p99_ms, 2),
        f"{row.leader_cpu:.0%}",
        f"{row.follower_cpu:.0%}",
        number(row.leader_us, 1),
        number(row.ratio, 2),
    )
