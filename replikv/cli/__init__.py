"""The command ``replikv``: this is what is common to its commands, of which the longer ones have a module each.

A command that cannot do what it was asked to says why in one sentence on standard error, and ends with 1. Arguments
that make no sense end with 2, as argparse has it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import replikv
from replikv.cli.exchange import add_export, add_import
from replikv.cli.recover import add_recover
from replikv.cli.restore import add_restore
from replikv.cli.verify import add_verify
from replikv.demo import run_demo

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="replikv", description="A replicated map inside your own processes.")
    parser.add_argument("--version", action="version", version=f"replikv {replikv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="three processes replicate a map, and one is killed: watch what happens")
    demo.set_defaults(run=lambda _: run_demo())
    add_recover(commands)
    add_restore(commands)
    add_export(commands)
    add_import(commands)
    add_verify(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except replikv.ReplikvError as exc:
        print(f"replikv {options.command}: {exc}", file=sys.stderr)
        return 1
