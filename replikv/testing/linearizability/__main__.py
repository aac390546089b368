"""``python -m replikv.testing.linearizability FILE``: the verdict on a history."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from replikv.testing.linearizability.checker import check, check_revisions
from replikv.testing.linearizability.history import read_history

__all__ = ["main"]

_EXIT_CODES: Final = {"ok": 0, "violation": 1, "unknown": 2}
"""A file that cannot be read is 2 as well, as argparse has it: there is no verdict on it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one file; the exit code: 0 for ok, 1 for a violation, 2 for no verdict."""
    parser = argparse.ArgumentParser(
        prog="python -m replikv.testing.linearizability",
        description="Whether a history, as lines of JSON, is linearizable. Exit code: 0 yes, 1 no, 2 no verdict.",
    )
    parser.add_argument("file", help="the history; - for standard input")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long (default: never)")
    parser.add_argument(
        "--revisions", action="store_true", help="check that writes took effect by their revisions, too"
    )
    options = parser.parse_args(arguments)
    try:
        history = read_history(sys.stdin if options.file == "-" else options.file)
        if not history:
            raise ValueError("there is no operation in it, so there is nothing to judge")
        verdict = check(history, timeout_s=options.timeout)
        if options.revisions and verdict.outcome == "ok":
            verdict = check_revisions(history, timeout_s=options.timeout)
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{options.file}: {exc}\n")
        return 2
    sys.stdout.write(f"{verdict}\n")
    return _EXIT_CODES[verdict.outcome]


if __name__ == "__main__":
    sys.exit(main())
