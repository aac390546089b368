"""``replikv export`` and ``replikv import``: the map as lines of JSON, and a new cluster out of such lines."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from replikv.cli.restore import add_directory, checked_address, report
from replikv.errors import EncodingError, StorageError
from replikv.peer.exchange import export_map, import_map
from replikv.settings import Settings
from replikv.startup import check_node_id

if TYPE_CHECKING:
    from replikv.cli.recover import Commands

__all__ = ["add_export", "add_import"]


def add_export(commands: Commands) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "export",
        help="write the map as lines of JSON",
        description="Write the map in a backup, or in the directory of a peer that is not running, as lines of JSON.",
    )
    parser.add_argument("source", type=Path, metavar="BACKUP|DATA_DIR", help="what to read")
    parser.set_defaults(run=run_export)


def add_import(commands: Commands) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "import",
        help="make a new cluster out of lines of JSON",
        description="Make a new cluster of one voter, whose map is what the lines of an export say. Others join it.",
    )
    parser.add_argument("file", metavar="FILE", help="the lines; - for standard input")
    add_directory(parser, required=True)
    parser.add_argument(
        "--value-bytes-max",
        type=int,
        metavar="N",
        help="as in the Settings of the cluster, where it is another than the default",
    )
    parser.set_defaults(run=run_import)


def run_export(options: argparse.Namespace) -> int:
    """The exit code. Raises ReplikvError."""
    try:
        for line in export_map(options.source):
            sys.stdout.buffer.write(line.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever reads has read enough: what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def run_import(options: argparse.Namespace) -> int:
    """The exit code. Raises ReplikvError."""
    check_node_id(options.node_id)
    settings = Settings()
    if options.value_bytes_max is not None:
        settings = dataclasses.replace(settings, value_bytes_max=options.value_bytes_max)
    with _opened(options.file) as lines:
        try:
            restored = import_map(
                lines,
                options.data_dir,
                options.node_id,
                address=checked_address(options.address),
                listen=checked_address(options.listen, listening=True) or None,
                settings=settings,
            )
        except EncodingError as exc:
            raise EncodingError(f"{options.file}, {exc}; nothing was imported") from exc
    print(report("IMPORTED", restored))
    return 0


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(Path(file).open("rb"))
        except OSError as exc:
            raise StorageError(f"cannot open {file}: {exc.strerror or exc}") from exc
        yield opened
