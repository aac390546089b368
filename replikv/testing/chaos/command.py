"""``python -m replikv.testing chaos``: a run by hand, and a run judged again."""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import trio

from replikv.testing.chaos.judge import judge
from replikv.testing.chaos.options import Options
from replikv.testing.chaos.run import Report, run
from replikv.testing.simulator.planted import CATALOGUE

__all__ = ["INTERRUPTED", "add_arguments", "describe", "run_command"]

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it: 128, and the number of the signal."""


_TEMPORARY: Final = Path()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--peers", type=int, default=3, metavar="N", help="members in the beginning (3)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long things go wrong (60)")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is drawn (another one each time)")
    parser.add_argument("--clients", type=int, default=3, metavar="N", help="in each process (3)")
    parser.add_argument("--pause", type=float, default=0.02, metavar="S", help="of a client, between two calls (0.02)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="for all that is written; new, or empty (a temporary)")
    parser.add_argument("--planted", choices=sorted(CATALOGUE), metavar="BUG", help="with this bug in the code")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="judge what an earlier run has left, and run nothing")


def run_command(arguments: argparse.Namespace) -> int:
    """The exit code: 0 when all is well, 1 when something broke, 2 for a mistake in the arguments, 130 after Ctrl-C."""
    directory: Path = arguments.judge or arguments.dir or _TEMPORARY
    try:
        if arguments.judge is not None:
            report = _judge_again(arguments.judge)
        else:
            seed = random.randrange(1 << 31) if arguments.seed is None else arguments.seed  # noqa: S311
            options = Options(
                directory=directory,
                peers=arguments.peers,
                seconds=arguments.seconds,
                seed=seed,
                clients=arguments.clients,
                pause_s=arguments.pause,
                planted=arguments.planted,
            )
            if directory is _TEMPORARY:
                directory = Path(tempfile.mkdtemp(prefix="replikv-chaos-"))
                options = dataclasses.replace(options, directory=directory)
            sys.stderr.write(f"seed {seed}, {options.peers} peers, {options.seconds:g} s, in {directory}\n")
            report = trio.run(run, options)
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    except BaseExceptionGroup as exc:
        if exc.subgroup(KeyboardInterrupt) is None:
            raise
        sys.stderr.write(f"stopped, and its processes have ended; what they wrote is in {directory}\n")
        return INTERRUPTED
    sys.stdout.write(describe(report))
    return int(bool(report.failures))


def _judge_again(directory: Path) -> Report:
    for name, lack in (("options.json", "no run was made in it"), ("final.json", "its run did not come to an end")):
        if not (directory / name).exists():
            raise FileNotFoundError(f"{directory} has no {name}: {lack}")
    options = Options.load(directory)
    began = time.monotonic()
    verdicts, counts = judge(directory, options.check_s)
    return Report(options, {}, counts, verdicts, time.monotonic() - began)


def describe(report: Report) -> str:
    """What came of it, as a person reads it."""
    options = report.options
    lines = [f"seed {options.seed}, {options.peers} peers, {options.seconds:g} s: judged in {report.judged_s:.1f} s"]
    for counts in (report.counts, report.faults):
        lines += [f"  {count:>12,} {name}" for name, count in sorted(counts.items())]
    lines += [f"  {'well' if not found else 'BROKEN':>12} {name}" for name, found in report.verdicts.items()]
    lines += report.failures
    if report.failures:
        lines += [
            f"everything is in {options.directory}; to judge it again:",
            f"  python -m replikv.testing chaos --judge {options.directory}",
            f"  python -m replikv.testing.linearizability {options.directory / 'history.jsonl'}",
        ]
    return "\n".join(lines) + "\n"
