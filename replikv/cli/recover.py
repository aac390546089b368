"""``replikv recover``: a person makes one survivor's data a new cluster, and is told before what that means."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replikv.errors import ConfigurationError
from replikv.peer.recovery import Recovered, Recovery, Survivor
from replikv.raft.membership import Membership
from replikv.transport.addresses import parse_address

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["Commands", "add_recover", "listed", "parse_members"]

WIDTH: Final = 100
_NO_ADDRESS: Final = "no address"

DESCRIPTION: Final = """\
Make the data of one survivor a new cluster, when a majority of the voters is lost for good.

What the lost peers acknowledged and the survivor has not received is lost with them. Stop every process of
the old cluster first. Of several survivors, recover the one whose log ends at the highest term, and in that
at the highest index: with nothing to answer from, and without --yes, the command shows that and ends.
"""


def add_recover(commands: Commands) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "recover",
        help="make one survivor's data a new cluster, when a majority is lost for good",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the data_dir of the survivor")
    parser.add_argument(
        "--members",
        nargs="+",
        action="extend",
        required=True,
        metavar="ID[=ADDRESS]",
        help="who is to be a member, the survivor included; the address is needed where it is new or has changed",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=run_recover)


def run_recover(options: argparse.Namespace) -> int:
    """The exit code: 0, or 1 when somebody said no, or 2 when there was nobody to ask. Raises ReplikvError."""
    with Recovery(options.directory, parse_members(options.members)) as recovery:
        print(_prospect(recovery.survivor, recovery.members))
        if not options.yes:
            if not sys.stdin.isatty():
                reason = "nothing was changed: there is no terminal to ask at, and --yes was not given"
                print(f"replikv recover: {reason}", file=sys.stderr)
                return 2
            if not _confirmed():
                print("Nothing was changed.")
                return 1
        print(_report(recovery.carry_out()))
    return 0


def parse_members(words: Iterable[str]) -> dict[str, str | None]:
    """Node id -> address, None where none is given. Raises ConfigurationError."""
    members: dict[str, str | None] = {}
    for member in ",".join(words).split(","):
        node_id, equals, address = member.partition("=")
        if node_id in members:
            raise ConfigurationError(f"{node_id!r} stands twice in --members")
        members[node_id] = str(parse_address(address)) if equals else None
    return members


def _confirmed() -> bool:
    try:
        return input("Type yes to go on: ").strip().lower() == "yes"
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def _prospect(survivor: Survivor, members: Membership) -> str:
    """What is there, what will be done, and what may be lost."""
    node_id, old, others = survivor.node_id, survivor.members, sorted(members.learners)
    address = members.members[node_id].address or _NO_ADDRESS
    does = [
        f"The data of {node_id!r} becomes a new cluster, in which {node_id!r}, at {address}, is the only voter.",
        f"{_names(others)} may join it, with empty directories." if others else "Nobody else is a member of it.",
        "No peer of the old cluster can take part in it with the data that it has.",
    ]
    loses = [f"Whatever the old cluster acknowledged after index {survivor.last_index} is gone. Nobody can tell what."]
    if survivor.uncertain:
        loses += [
            f"{survivor.uncertain} entries, from index {survivor.commit_index + 1} on, are not known to be committed.",
            "They are kept: they may have been acknowledged. An outcome that somebody was told is unknown is decided.",
        ]
    loses += [
        "If a majority of the voters can still be started, do not do this: start them.",
        "If the log of another survivor ends at a higher term, or in the same term at a higher index, recover that.",
    ]
    return f"""\
{survivor.directory} is the directory of {node_id!r}.

    cluster     {survivor.cluster_id}
    voters      {_names(old.voters | old.outgoing)}
    log         ends at term {survivor.last_term}, index {survivor.last_index}
    committed   at least up to index {survivor.commit_index}
    map         {survivor.keys} keys at revision {survivor.revision}

WHAT THIS DOES
{listed(does)}

WHAT MAY BE LOST
{listed(loses)}
"""


def _report(recovered: Recovered) -> str:
    """What was done, and what to do next."""
    directory, node_id = recovered.survivor.directory, recovered.survivor.node_id
    others = _names(recovered.members.learners)
    steps = [f"Start {node_id!r} with Cluster(data_dir={str(directory)!r}); without members=, the old cluster's."]
    if others:
        steps += [
            f"Move the old directories of {others} away. The new cluster would refuse them.",
            "A majority of the old voters that is started all the same is the old cluster, beside the new one.",
            f"Start {others} with node_id, address, an empty data_dir, and join=[{recovered.address!r}].",
            "Who joins catches up, and becomes a voter by itself.",
        ]
    steps += [
        f"Revisions go on at {recovered.revision + 1}: a watch since one of the old cluster gets CompactedError.",
        f"Keep {recovered.kept} until you are sure.",
        f"To undo this: stop {node_id!r}, move {directory} away, and rename what was kept back to it.",
    ]
    return f"""\
RECOVERED
    cluster     {recovered.cluster_id}
    voter       {node_id} at {recovered.address or _NO_ADDRESS}, listening at {recovered.listen or _NO_ADDRESS}
    learners    {others or "none"}
    log         goes on after term {recovered.term}, index {recovered.index}
    map         {recovered.survivor.keys} keys at revision {recovered.revision}
    kept        {recovered.kept}, which is {directory} as it was

NEXT
{listed(steps)}"""


def _names(node_ids: Iterable[str]) -> str:
    return ", ".join(sorted(node_ids))


def listed(sentences: Iterable[str]) -> str:
    """One item for each, wrapped; paths and addresses are never broken, so that they can be copied."""
    return "\n".join(
        textwrap.fill(
            sentence,
            WIDTH,
            initial_indent="  - ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for sentence in sentences
    )
