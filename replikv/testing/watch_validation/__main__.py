"""``python -m replikv.testing.watch_validation FILE...``: do the streams in these files tell one history?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from replikv.testing.watch_validation.history import ChangeHistory
from replikv.testing.watch_validation.streams import read_streams
from replikv.testing.watch_validation.validation import validate

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate files; the exit code: 0 when all is well, 1 for a violation, 2 for what cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m replikv.testing.watch_validation",
        description="Validate recorded streams of watches. The history is made of the streams of all changes of all"
        " keys among them: one that begins at 0, read in the end, says most. Exit code: 0 valid, 1 not, 2 unreadable.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="streams as lines of JSON")
    options = parser.parse_args(arguments)
    try:
        streams = [stream for file in options.files for stream in read_streams(file)]
        if not any(stream.whole for stream in streams):
            raise ValueError(
                f"{', '.join(options.files)}: no stream is of all changes of all keys, so there is nothing to hold the"
                f" {len(streams)} streams against: record one, that begins at 0"
            )
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    try:
        history = ChangeHistory.of_streams(stream for stream in streams if stream.whole)
    except ValueError as exc:
        sys.stdout.write(f"{exc}\n")
        return 1
    violations = validate(streams, history)
    sys.stdout.writelines(f"{violation}\n" for violation in violations)
    events = sum(len(stream.events) for stream in streams)
    sys.stdout.write(
        f"{len(streams)} streams with {events} events, {history.newest} revisions of which {len(history.unknown)} are"
        f" unknown: {len(violations) or 'no'} violations\n"
    )
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
