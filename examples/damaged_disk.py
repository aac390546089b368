"""A disk has changed a byte under a peer: it says so, the others go on, and it joins anew with an empty directory."""

import logging
import sys
import tempfile
from pathlib import Path

import structlog
import trio

from replikv import Cluster, CorruptionError, MemoryNetwork, MemoryTransport

MEMBERS = {"a": "memory-a", "b": "memory-b", "c": "memory-c"}


def rot(directory: Path) -> None:
    """What a bad disk does: one bit of the log is another now."""
    segment = min((directory / "wal").iterdir())
    data = bytearray(segment.read_bytes())
    data[1030] ^= 0x04
    segment.write_bytes(data)


async def main(directory: Path) -> None:
    network = MemoryNetwork()

    def peer(node_id: str, data_dir: Path, **arguments: object) -> Cluster:
        return Cluster(node_id, data_dir=data_dir, transport=MemoryTransport(network), **arguments)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        a, b, c = (peer(node_id, directory / node_id, members=MEMBERS) for node_id in MEMBERS)
        for cluster in (b, c):
            nursery.start_soon(cluster.run)
        async with a:
            await a.store.put("jobs/1", "ready")
        rot(directory / "a")

        try:
            async with peer("a", directory / "a"):
                pass
        except CorruptionError as error:
            print("a does not start:", Path(error.file).name, "is damaged at byte", error.offset)
        command = [sys.executable, "-m", "replikv", "verify", str(directory / "a")]
        told = await trio.run_process(command, capture_stdout=True, check=False)
        print("replikv verify:", told.returncode, told.stdout.decode().splitlines()[-1])

        await b.wait_leader()
        await b.store.put("jobs/2", "ready")
        print("b and c go on")
        await b.remove_member("a")
        (directory / "a").rename(directory / "a.damaged")
        async with peer("a", directory / "a", address="memory-a", join=["memory-b"]) as a:
            print("a has joined anew:", {key: await a.store.get(key) for key in ("jobs/1", "jobs/2")})
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as scratch:
        trio.run(main, Path(scratch))
