"""``replikv verify``: says what is in a data directory, and explains what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replikv.cli.recover import listed
from replikv.errors import CorruptionError, ReplikvError
from replikv.storage.verification import SegmentFound, SnapshotFound, Verification, verify

if TYPE_CHECKING:
    from replikv.cli.recover import Commands

__all__ = ["add_verify"]

DESCRIPTION: Final = """\
Read everything in the data directory of a peer that is not running, and say what is there, and what is damaged.

Nothing is changed, and no right to write is needed. The exit code is 0 for a directory that is sound, 1 for one
that is damaged, 2 when it could not be read at all. A torn write is sound: the next start cuts it off.
"""

TORN: Final = (
    "The last write was interrupted: some of its sectors are there, and some never were. Nobody was told that it was"
    " done, since that is told only after the sync. The next start cuts it off. There is nothing to do."
)

DAMAGED: Final = """\
Bytes that were synced read otherwise now: a disk, a controller or memory has failed, or somebody has changed them.
An interrupted write leaves other traces, so this is none.
What stood there may have been acknowledged. So nothing is cut off or guessed, and the peer does not start.
""".splitlines()

SPARE: Final = (
    "Only an older snapshot is damaged. Nothing rests on it: the peer starts, and a later snapshot removes it. But the"
    " disk has changed bytes that were synced: look at it."
)

ADVICE: Final = """\
Look at the disk and at the kernel's log: what has happened once may happen again.
While a majority runs without this peer, remove it, move DIR away, and let it join anew. Nothing is lost.
Do not put an older copy of the directory in its place: it has forgotten what the peer has promised since.
When a majority is lost for good: `replikv recover` on a survivor that is sound, or `replikv restore`.
""".splitlines()


def add_verify(commands: Commands) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "verify",
        help="say what is in a data directory, and explain what is damaged",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the data_dir of a peer that is not running")
    parser.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """The exit code: 0 sound, 1 damaged, 2 when nobody can tell."""
    try:
        found = verify(options.directory)
    except ReplikvError as exc:
        print(f"replikv verify: {exc}", file=sys.stderr)
        return 2
    print(_told(found))
    return 1 if found.damage else 0


def _told(found: Verification) -> str:
    parts = [_summary(found)]
    if found.segments:
        parts.append("SEGMENTS\n" + "\n".join(map(_segment, found.segments)))
    if found.snapshots:
        parts.append("SNAPSHOTS\n" + "\n".join(map(_snapshot, found.snapshots)))
    if found.unfinished:
        names = (f"    {path.relative_to(found.directory)}" for path in found.unfinished)
        parts.append("UNFINISHED, removed by the next start\n" + "\n".join(names))
    if found.torn is not None:
        torn = found.torn
        where = f"{torn.path}, from byte {torn.offset} on, {torn.bytes} bytes at the most."
        parts.append("TORN\n" + listed([where, TORN]))
    if found.damage:
        parts.append("DAMAGED\n" + listed(map(_place, found.damage)))
        parts.append("WHAT IT MEANS\n" + listed([SPARE] if found.starts else DAMAGED))
        parts.append("WHAT TO DO\n" + listed(ADVICE[:1] if found.starts else ADVICE))
    parts.append(_verdict(found))
    return "\n\n".join(parts)


def _summary(found: Verification) -> str:
    identity, assembly = found.identity, found.assembly
    if identity is None:
        known = f" A peer that has begun to join drew the incarnation {found.incarnation}." if found.incarnation else ""
        what = "has no readable meta" if found.damage else "has not been given to a peer yet"
        return f"{found.directory} {what}.{known}"
    lines = [
        f"{found.directory} is the directory of {identity.node_id!r}.",
        "",
        f"    cluster     {identity.cluster_id}",
        f"    incarnation {identity.incarnation}",
        f"    address     {identity.address or 'none'}, listening at {identity.listen or 'none'}",
    ]
    if assembly is not None:
        term, vote, commit = assembly.hard_state
        snapshot, following = assembly.snapshot, assembly.following
        log = f"entries {following[0].index} to {following[-1].index}" if following else "no entries"
        lines += [
            f"    term        {term}, {f'voted for {vote!r}' if vote else 'no vote'}",
            f"    committed   at least up to index {commit}",
            f"    snapshot    {f'at index {snapshot.index}, term {snapshot.term}' if snapshot.index else 'none'}",
            f"    log         {log} after it",
        ]
    return "\n".join(lines)


def _segment(found: SegmentFound) -> str:
    if not found.used_bytes:
        return f"    {found.path.name}  {found.bytes} bytes, unreadable"
    last = f" up to index {found.last_index}" if found.entries else ""
    frames, entries = _count(found.frames, "frame"), _count(found.entries, "entry", "entries")
    return f"    {found.path.name}  {frames}, {entries}{last}, {found.used_bytes} of {found.bytes} bytes"


def _snapshot(found: SnapshotFound) -> str:
    if found.metadata is None:
        return f"    {found.path.name}  unreadable"
    index, term, membership = found.metadata
    chunks, members = _count(found.chunks, "chunk"), _count(len(membership.members), "member")
    return f"    {found.path.name}  index {index}, term {term}, {members}, {chunks}, {found.chunk_bytes} bytes"


def _place(error: CorruptionError) -> str:
    """What is wrong and where, without the advice that follows in the message."""
    return str(error).partition(". ")[0]


def _verdict(found: Verification) -> str:
    if found.damage:
        return "Damaged, but not in what a start needs." if found.starts else "Damaged."
    return "Sound, but for a write that was interrupted." if found.torn else "Sound."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
