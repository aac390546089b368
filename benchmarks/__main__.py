"""``python -m benchmarks BENCHMARK``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.children import ChildFailedError
from benchmarks.frames import measure_frames
from benchmarks.puts import CONCURRENCIES, measure_puts
from benchmarks.simulator import measure_simulator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    puts = commands.add_parser("puts", help="durable puts, gets and reads of three processes, beside a bare pipeline")
    puts.add_argument("--seconds", type=float, default=1.5, help="of each window (default: %(default)s)")
    puts.add_argument("--rounds", type=int, default=5, help="windows of each kind (default: %(default)s)")
    puts.add_argument("--quick", action="store_true", help="2 rounds of 0.4 s: an idea in less than half a minute")
    puts.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCIES, metavar="N", help="in flight")
    puts.add_argument("--directory", type=Path, help="on the disk to measure (default: that for temporary files)")
    puts.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    frames = commands.add_parser("frames", help="frames between two transports: plain, with a secret, with TLS")
    frames.add_argument("--rounds", type=int, default=5, help="of each kind (default: %(default)s)")
    frames.add_argument("--frames", type=int, default=5_000, help="at most, in a round (default: %(default)s)")
    simulator = commands.add_parser("simulator", help="what a simulated minute costs: bare cores, and chaos")
    simulator.add_argument("--seeds", type=int, default=100, help="of chaos, from 1 on (default: %(default)s)")
    for command in (puts, frames, simulator):
        command.set_defaults(benchmark=command.prog.rpartition(" ")[2])
    arguments = parser.parse_args()
    if arguments.benchmark == "frames":
        with tempfile.TemporaryDirectory(prefix="replikv-benchmark-") as directory:
            print(measure_frames(Path(directory), rounds=arguments.rounds, frames=arguments.frames))
        return
    if arguments.benchmark == "simulator":
        print(measure_simulator(range(1, arguments.seeds + 1)))
        return
    seconds, rounds = (0.4, 2) if arguments.quick else (arguments.seconds, arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="replikv-benchmark-", dir=arguments.directory) as directory:
        try:
            report = measure_puts(Path(directory), seconds=seconds, rounds=rounds, concurrencies=arguments.concurrency)
        except ChildFailedError as exc:
            sys.exit(str(exc))
    print(report.json() if arguments.json else report)


if __name__ == "__main__":
    main()
