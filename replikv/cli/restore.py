"""``replikv restore``: a backup becomes the first state of a new cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replikv.cli.recover import listed, parse_members
from replikv.errors import ConfigurationError
from replikv.peer.restoration import Restored, check_backup, restore
from replikv.startup import check_node_id
from replikv.storage.backups import Backup
from replikv.transport.addresses import parse_address

if TYPE_CHECKING:
    from replikv.cli.recover import Commands

__all__ = ["add_directory", "add_restore", "checked_address", "report"]

DESCRIPTION: Final = """\
Make a new cluster that begins with what is in a backup. The cluster that it is of is left alone: it may go on.

With one member, the others join it with empty directories. With several, restore the same backup on each of
their machines, with the same --members.
"""


def add_restore(commands: Commands) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "restore",
        help="make a new cluster out of a backup",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("backup", type=Path, metavar="BACKUP", help="the file that cluster.backup() has written")
    parser.add_argument(
        "--check", action="store_true", help="only read the backup, and say what it is and if it is whole"
    )
    add_directory(parser, required=False)
    parser.add_argument(
        "--members",
        nargs="+",
        action="extend",
        default=[],
        metavar="ID=ADDRESS",
        help="the first voters, this peer included; by default, this peer alone",
    )
    parser.add_argument(
        "--cluster-name",
        default="",
        metavar="NAME",
        help="another one each time that a backup is restored again with the same several members",
    )
    parser.set_defaults(run=run_restore)


def add_directory(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Whose directory is to be made, and where."""
    parser.add_argument("--data-dir", type=Path, required=required, metavar="DIR", help="missing or empty: is made")
    parser.add_argument("--node-id", required=required, metavar="ID", help="whose directory it is to be")
    parser.add_argument("--address", metavar="HOST:PORT", help="what the others dial")
    parser.add_argument("--listen", metavar="HOST:PORT", help="what is bound, where that is something else")


def run_restore(options: argparse.Namespace) -> int:
    """The exit code. Raises ReplikvError."""
    if options.check:
        print(_told(options.backup, check_backup(options.backup)))
        return 0
    if options.data_dir is None or options.node_id is None:
        raise ConfigurationError("--data-dir and --node-id are needed, or --check to only look at the backup")
    members = _members(options.node_id, checked_address(options.address), options.members)
    restored = restore(
        options.backup,
        options.data_dir,
        options.node_id,
        members=members,
        listen=checked_address(options.listen, listening=True) or None,
        cluster_name=options.cluster_name,
    )
    print(report("RESTORED", restored))
    return 0


def checked_address(address: str | None, *, listening: bool = False) -> str:
    """The address, empty where there is none. Raises ConfigurationError."""
    return str(parse_address(address, listening=listening)) if address else ""


def _members(node_id: str, address: str, words: Sequence[str]) -> dict[str, str]:
    """Node id -> address of the first voters, this peer included."""
    members = {name: given or "" for name, given in parse_members(words).items()} if words else {node_id: address}
    for name in (node_id, *members):
        check_node_id(name)
    known = members.get(node_id)
    if address and known not in {None, "", address}:
        raise ConfigurationError(f"--address {address} contradicts --members, where {node_id!r} is at {known}")
    return members | ({node_id: address} if known == "" else {})


def _told(path: Path, backup: Backup) -> str:
    machine = "with" if backup.machine else "without"
    return f"""\
{path} is whole.

    cluster     {backup.cluster_id}
    written by  {backup.node_id}, at {backup.created.isoformat(timespec="seconds")}
    map         {backup.keys} keys at revision {backup.revision}
    machine     {machine} state of the application's own"""


def report(what: str, restored: Restored) -> str:
    """What was done, and what to do next."""
    node_id, members = restored.node_id, restored.members.members
    others = ", ".join(sorted(members.keys() - {node_id}))
    steps = [f"Start {node_id!r} with Cluster(data_dir={str(restored.directory)!r}); without members=."]
    if others:
        steps += [
            f"Restore the same backup for {others}, with the same --members, and start them likewise.",
            "Nobody leads before a majority of them is started.",
        ]
    elif restored.address:
        steps += [f"Others join with node_id, address, an empty data_dir, and join=[{restored.address!r}]."]
    else:
        steps += ["Nobody can join a peer without an address: start it with address= to have others join."]
    steps += [f"Revisions go on at {restored.revision + 1}: a watch since one of the old cluster gets CompactedError."]
    return f"""\
{what}
    cluster     {restored.cluster_id}
    voters      {", ".join(f"{name} at {one.address or 'no address'}" for name, one in sorted(members.items()))}
    map         {restored.keys} keys at revision {restored.revision}

NEXT
{listed(steps)}"""
