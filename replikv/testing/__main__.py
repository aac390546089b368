"""``python -m replikv.testing``: ``simulate``, many simulations on all cores, and what came of them; ``chaos``, a
cluster of real processes that everything is done to.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import gc
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from replikv.testing.chaos.command import add_arguments, run_command
from replikv.testing.linearizability import write_history
from replikv.testing.simulator.chaos import FAULTS
from replikv.testing.simulator.options import FIELDS, Options
from replikv.testing.simulator.planted import CATALOGUE, planted
from replikv.testing.simulator.shrinking import shrink
from replikv.testing.simulator.simulation import Report, run
from replikv.testing.traces import check_trace
from replikv.testing.tracing import tracing
from replikv.testing.watch_validation import write_streams

__all__ = ["main"]

_FAILURES_MAX: Final = 10
"""More are counted, and not told one by one."""
_LINES: Final = 40
"""Of a transcript, below a failure."""
_OPERATION: Final = "operation "
"""What the counts of operations of one kind begin with."""
_BAR: Final = 30
"""Characters of the progress bar."""
_SEEDS_AHEAD: Final = 8
"""Per process: a long run must not hold up what is told of others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0 when all is well, 1 when something broke, 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m replikv.testing", description="Tests for those who distrust us.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    chaos = commands.add_parser(
        "chaos",
        help="run a cluster of real processes through everything",
        description="Processes are killed, stopped, cut off, filled up, added and removed, under load; then all that"
        " clients, watchers and holders of locks have seen is judged. See docs/chaos.md.",
    )
    add_arguments(chaos)
    simulate = commands.add_parser(
        "simulate",
        help="run clusters in a simulator",
        description="Each seed is a cluster of its own, with its own settings, load and faults: a pure function of it.",
    )
    simulate.add_argument("--seeds", type=_seeds, default=range(1, 101), metavar="A..B", help="or one: 17 (1..100)")
    simulate.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (all cores)")
    simulate.add_argument("--seconds", type=float, metavar="S", help="begin no more seeds after so long")
    simulate.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an option, whatever the seed"
    )
    simulate.add_argument("--planted", choices=sorted(CATALOGUE), metavar="BUG", help="with this bug in the code")
    simulate.add_argument("--transcript", action="store_true", help="write one line per event, of each seed")
    simulate.add_argument(
        "--history", metavar="FILE", help="write what clients saw in the first seed, as lines of JSON"
    )
    simulate.add_argument(
        "--watches", metavar="FILE", help="write what watchers of the first seed were told, as lines of JSON"
    )
    simulate.add_argument(
        "--trace",
        metavar="FILE",
        help="write what the cores of the first seed do, as etcd traces it, in a run that its specification can follow:"
        " short, and without restarts, repetitions, snapshots, pre-votes and joint changes; --set comes after that",
    )
    simulate.add_argument("--no-shrink", action="store_true", help="leave a failing run as large as it is")
    checking = commands.add_parser(
        "check-trace",
        help="check a trace of cores against the specification of etcd's raft",
        description="Take each line of a trace (see simulate --trace) as a step of the specification.",
    )
    checking.add_argument("trace", metavar="FILE", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "chaos":
        return run_command(options)
    if options.command == "check-trace":
        return _check_trace(options.trace)
    try:
        values = dict(_setting(text) for text in options.set)
        Options.draw(1).with_values(values)
    except ValueError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    if options.transcript:
        return _tell(options.seeds, values, options.planted)
    if options.history or options.watches or options.trace:
        return _write(options.seeds[0], values, options)
    return _simulate(options.seeds, values, options)


def _seeds(text: str) -> range:
    first, _, last = text.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError(f"there is no seed from {first} to {last}")
    return seeds


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in FIELDS:
        raise ValueError(f"--set takes NAME=VALUE with one of the names {', '.join(FIELDS)}, not {text!r}")
    return name, value


def command_of(options: Options, bug: str | None = None) -> str:
    """The command that runs it again, and tells all of it."""
    words = ["python", "-m", "replikv.testing", "simulate", "--seeds", str(options.seed)]
    for name, value in options.differences().items():
        words += ["--set", f"{name}={value}"]
    if bug is not None:
        words += ["--planted", bug]
    return shlex.join([*words, "--transcript"])


def _run(seed: int, values: dict[str, str], bug: str | None) -> Report:
    with planted(bug) if bug is not None else contextlib.nullcontext():
        report = run(Options.draw(seed).with_values(values))
    return dataclasses.replace(report, history=[], streams=[])  # which are much to hand from process to process


def _shrink(report: Report, bug: str | None) -> Report:
    if bug is None:
        return run(shrink(report).options, transcript=True)
    with planted(bug):
        return run(shrink(report).options, transcript=True)


def _tell(seeds: range, values: dict[str, str], bug: str | None) -> int:
    failed = 0
    for seed in seeds:
        options = Options.draw(seed).with_values(values)
        sys.stdout.write(f"{options}\n")
        if bug is None:
            report = run(options, transcript=True)
        else:
            with planted(bug):
                report = run(options, transcript=True)
        sys.stdout.writelines(f"{line}\n" for line in report.transcript or ())
        failed |= report.failure is not None
    return int(failed)


def _write(seed: int, values: dict[str, str], options: argparse.Namespace) -> int:
    """One run, for what it leaves behind."""
    drawn = Options.draw(seed)
    tracer = None
    with contextlib.ExitStack() as stack:
        if options.planted is not None:
            stack.enter_context(planted(options.planted))
        if options.trace:
            drawn = drawn.traceable()
            tracer = stack.enter_context(tracing(stack.enter_context(Path(options.trace).open("w", encoding="utf-8"))))
        report = run(drawn.with_values(values))
    if tracer is not None and tracer.ended is not None:
        sys.stderr.write(f"the trace ends before the run does, where the specification has no words: {tracer.ended}\n")
    if options.history:
        write_history(report.history, Path(options.history))
    if options.watches:
        write_streams(report.streams, Path(options.watches))
    if report.failure is not None:
        sys.stdout.write(f"seed {seed}: {report.failure}\n  {command_of(report.options, options.planted)}\n")
    return int(report.failure is not None)


def _check_trace(path: Path) -> int:
    try:
        with path.open(encoding="utf-8") as file:
            verdict = check_trace(file)
    except (OSError, UnicodeDecodeError) as exc:
        sys.stderr.write(f"{path} cannot be read: {exc}\n")
        return 2
    if verdict.accepted:
        sys.stdout.write(f"{path}: {verdict.lines} lines, all of them steps of the specification\n")
        return 0
    sys.stdout.write(f"{path}:{verdict.line}: {verdict.reason}\n")
    return 1


def _simulate(seeds: range, values: dict[str, str], options: argparse.Namespace) -> int:
    began = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    failures: list[Report] = []
    simulated_s = 0.0
    done = 0
    terminal = sys.stderr.isatty()
    # What is imported stays: no collection has to look at it.
    with ProcessPoolExecutor(max(options.jobs, 1), initializer=gc.freeze) as pool:
        for report in _reports(pool, seeds, values, options, began):
            done += 1
            counts += report.counts
            simulated_s += report.simulated_s
            if report.failure is not None:
                failures.append(report)
                sys.stderr.write(f"{chr(10) * terminal}seed {report.options.seed}: {report.failure}\n")
            if terminal or done % 100 == 0:
                elapsed = time.monotonic() - began
                bar = f"\r[{'#' * (_BAR * done // len(seeds)):.<{_BAR}}] " if terminal else ""
                sys.stderr.write(
                    f"{bar}{done} of {len(seeds)} seeds, {simulated_s / 3600:.2f} h simulated in"
                    f" {elapsed:.0f} s, {len(failures)} failed{' ' if terminal else chr(10)}"
                )
                sys.stderr.flush()
    if terminal:
        sys.stderr.write("\n")
    for report in failures[:_FAILURES_MAX]:
        _tell_failure(report, options)
    _tell_summary(done, simulated_s, time.monotonic() - began, counts, len(failures))
    return int(bool(failures))


def _reports(
    pool: ProcessPoolExecutor, seeds: range, values: dict[str, str], options: argparse.Namespace, began: float
) -> Iterator[Report]:
    waiting: collections.deque[object] = collections.deque()
    for seed in seeds:
        if options.seconds is not None and time.monotonic() - began >= options.seconds:
            break
        waiting.append(pool.submit(_run, seed, values, options.planted))
        if len(waiting) >= _SEEDS_AHEAD * options.jobs:
            yield waiting.popleft().result()  # type: ignore[attr-defined]
    while waiting:
        yield waiting.popleft().result()  # type: ignore[attr-defined]


def _tell_failure(report: Report, options: argparse.Namespace) -> None:
    write = sys.stdout.write
    write(f"seed {report.options.seed}: {report.failure}\n  {command_of(report.options, options.planted)}\n")
    if options.no_shrink:
        return
    small = _shrink(report, options.planted)
    write(f"  smaller: {small.failure}\n  {command_of(small.options, options.planted)}\n")
    for line in (small.transcript or [])[-_LINES:]:
        write(f"    {line}\n")


def _tell_summary(
    seeds: int, simulated_s: float, elapsed_s: float, counts: collections.Counter[str], failed: int
) -> None:
    write = sys.stdout.write
    write(
        f"{seeds} seeds, {failed} failed; {simulated_s / 3600:.2f} hours simulated in {elapsed_s:.0f} s:"
        f" {simulated_s / max(elapsed_s, 0.001):.0f} times real time\n"
    )
    for group, names in _grouped(counts).items():
        if names:
            write(f"{group}\n")
        for name in names:
            write(f"  {counts[name]:>12,} {name.removeprefix(_OPERATION)}\n")


def _grouped(counts: collections.Counter[str]) -> dict[str, list[str]]:
    """Operations by their kind, faults by theirs, and all else that was counted."""
    operations = sorted(name for name in counts if name.startswith(_OPERATION))
    faults = sorted(name for name in counts if name in FAULTS)
    others = sorted(name for name in counts if name not in FAULTS and not name.startswith(_OPERATION))
    return {"operations of clients": operations, "faults": faults, "what came of them": others}


if __name__ == "__main__":
    sys.exit(main())
