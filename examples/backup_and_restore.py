"""A backup of a running cluster, looked at, and made a cluster of its own: to try a release on real data, say."""

import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import structlog
import trio

from replikv import Cluster


async def take_backup(directory: Path) -> None:
    async with Cluster("a", data_dir=directory / "a") as cluster:
        await cluster.store.update({"users/ann": {"name": "Ann"}, "users/bob": {"name": "Bob", "key": b"\x00\xff"}})
        backup = await cluster.backup(directory / "monday.backup")
        print(f"backup: {backup.keys} keys at revision {backup.revision}")
        await cluster.store.delete("users/bob")  # what comes later is not in it


def replikv(*arguments: str | Path) -> str:
    """The command, as you type it."""
    return subprocess.run(
        [sys.executable, "-m", "replikv", *arguments], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


async def look(directory: Path) -> None:
    async with Cluster(data_dir=directory) as cluster:
        print("restored:", await cluster.store.get("users/bob"))
        print("its next revision is", await cluster.store.put("users/cyd", {"name": "Cyd"}))


def main(directory: Path) -> None:
    trio.run(take_backup, directory)

    backup = directory / "monday.backup"
    print(replikv("restore", backup, "--check").splitlines()[0].removeprefix(f"{directory}/"))
    _, *lines = replikv("export", backup).splitlines()
    for line in map(json.loads, lines):
        print("exported:", line["key"], line["value"])

    replikv("restore", backup, "--data-dir", directory / "staging", "--node-id", "s")
    trio.run(look, directory / "staging")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory))
