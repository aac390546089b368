"""The command ``replikv``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import replikv
from replikv.demo import run_demo

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="replikv", description="A replicated map inside your own processes.")
    parser.add_argument("--version", action="version", version=f"replikv {replikv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="three processes replicate a map, and one is killed: watch what happens")
    options = parser.parse_args(arguments)
    if options.command == "demo":
        return run_demo()
    raise AssertionError(options.command)


if __name__ == "__main__":
    sys.exit(main())
