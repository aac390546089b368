"""``python -m replikv.testing``: ``simulate``, many simulations on all cores, and what came of them; ``chaos``, a
cluster of real processes that everything is done to; ``check-trace``, what the cores of either did, held to etcd's
specification.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import gc
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from replikv.testing.chaos.command import INTERRUPTED, add_arguments, run_command
from replikv.testing.linearizability import write_history
from replikv.testing.simulator.chaos import FAULTS
from replikv.testing.simulator.options import FIELDS, Options
from replikv.testing.simulator.planted import CATALOGUE, planted
from replikv.testing.simulator.shrinking import shrink
from replikv.testing.simulator.simulation import Report, Simulation, run
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
    """Run the command; its exit code: 0 when all is well, 1 when something broke, 2 for a mistake in the arguments, 130
    after Ctrl-C.
    """
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
    simulate.add_argument("--jobs", type=_jobs, default=os.cpu_count() or 1, metavar="N", help="processes (all cores)")
    simulate.add_argument("--seconds", type=_seconds, metavar="S", help="begin no more seeds after so long")
    simulate.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an option, whatever the seed"
    )
    simulate.add_argument("--planted", choices=sorted(CATALOGUE), metavar="BUG", help="with this bug in the code")
    simulate.add_argument("--transcript", action="store_true", help="write one line per event, of each seed")
    simulate.add_argument(
        "--history",
        metavar="FILE",
        help="write what clients saw in the first seed, as lines of JSON (for replikv.testing.linearizability)",
    )
    simulate.add_argument(
        "--watches",
        metavar="FILE",
        help="write what watchers of the first seed were told, as lines of JSON (for replikv.testing.watch_validation)",
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
        Simulation(Options.draw(options.seeds[0]).with_values(values))  # which the settings have to fit
        if options.transcript or options.history or options.watches or options.trace:
            return _tell(options.seeds, values, options)
        return _simulate(options.seeds, values, options)
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return INTERRUPTED


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        seeds = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"one number, or the first and the last as in 1..100, not {text!r}")
    return seeds


def _jobs(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"1 or more, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"more than 0, not {text!r}")
    return seconds


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


def _tell(seeds: range, values: dict[str, str], options: argparse.Namespace) -> int:
    """Runs one after the other, for what they leave behind: transcripts, and files of the first one."""
    files = bool(options.history or options.watches or options.trace)
    failed = False
    for seed in seeds if options.transcript else seeds[:1]:
        report = _keep(seed, values, options) if files and seed == seeds[0] else _told(seed, values, options)
        if options.transcript:
            sys.stdout.write(f"{report.options}\n")
            sys.stdout.writelines(f"{line}\n" for line in report.transcript or ())
        elif report.failure is not None:
            sys.stdout.write(f"seed {seed}: {report.failure}\n  {command_of(report.options, options.planted)}\n")
        failed |= report.failure is not None
    return int(failed)


def _told(seed: int, values: dict[str, str], options: argparse.Namespace, drawn: Options | None = None) -> Report:
    with planted(options.planted) if options.planted is not None else contextlib.nullcontext():
        return run((drawn or Options.draw(seed)).with_values(values), transcript=options.transcript)


def _keep(seed: int, values: dict[str, str], options: argparse.Namespace) -> Report:
    """One run, and what is asked for of it in files, which are opened first: nobody waits for what cannot be kept."""
    with contextlib.ExitStack() as stack:
        history, watches, trace = (
            None if path is None else stack.enter_context(Path(path).open("w", encoding="utf-8"))
            for path in (options.history, options.watches, options.trace)
        )
        if trace is None:
            report = _told(seed, values, options)
        else:
            with tracing(trace) as tracer:
                report = _told(seed, values, options, Options.draw(seed).traceable())
            if tracer.ended is not None:
                sys.stderr.write(
                    f"the trace ends before the run does, where the specification has no words: {tracer.ended}\n"
                )
        if history is not None:
            write_history(report.history, history)
        if watches is not None:
            write_streams(report.streams, watches)
    return report


def _check_trace(path: Path) -> int:
    try:
        with path.open(encoding="utf-8") as file:
            verdict = check_trace(file)
        if not verdict.lines:
            raise ValueError("there is no line in it")
    except (OSError, ValueError) as exc:
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
    with _interruptions() as interruptions, ProcessPoolExecutor(options.jobs, initializer=_begin_work) as pool:
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
            if interruptions:
                sys.stderr.write(f"{chr(10) * terminal}stopped: those that are running come to their end\n")
                pool.shutdown(cancel_futures=True)
                break
    stopped = bool(interruptions)
    if terminal:
        sys.stderr.write("\n")
    for report in failures[:_FAILURES_MAX]:
        _tell_failure(report, options, small=not (options.no_shrink or stopped))
    _tell_summary(done, simulated_s, time.monotonic() - began, counts, len(failures))
    return INTERRUPTED if stopped else int(bool(failures))


@contextlib.contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Ctrl-C is noted: raised wherever this process may be, it could leave a lock of the pool taken for ever."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _begin_work() -> None:
    """In each process of the pool: Ctrl-C is for its parent, and no collection has to look at what is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()


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


def _tell_failure(report: Report, options: argparse.Namespace, *, small: bool) -> None:
    write = sys.stdout.write
    write(f"seed {report.options.seed}: {report.failure}\n  {command_of(report.options, options.planted)}\n")
    if not small:
        return
    shrunk = _shrink(report, options.planted)
    write(f"  smaller: {shrunk.failure}\n  {command_of(shrunk.options, options.planted)}\n")
    for line in (shrunk.transcript or [])[-_LINES:]:
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
