"""A process of the benchmark that embeds replikv."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

import trio

from benchmarks.children import Pipe, answer, run_child
from benchmarks.load import KEYS, VALUE, Window, read_window, window
from replikv import Cluster

__all__ = ["free_addresses", "serve"]


def free_addresses(node_ids: Iterable[str]) -> dict[str, str]:
    """An address on loopback for each node, free a moment ago."""
    with contextlib.ExitStack() as stack:
        addresses = {}
        for node_id in node_ids:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            addresses[node_id] = f"127.0.0.1:{probe.getsockname()[1]}"
        return addresses


def serve(pipe: Pipe, node_id: str, members: Mapping[str, str], directory: Path) -> None:
    """The process of one peer."""
    run_child(_serve, pipe, node_id, members, directory)


async def _serve(pipe: Pipe, node_id: str, members: Mapping[str, str], directory: Path) -> None:
    async with Cluster(node_id, members=members, data_dir=directory) as cluster:
        store = cluster.store

        async def fill() -> None:
            async with trio.open_nursery() as clients:
                for key in KEYS:
                    clients.start_soon(store.put, key, VALUE)

        async def put_one(key: str) -> None:
            await store.put(key, VALUE)

        async def get_one(key: str) -> None:
            check(await store.get(key))

        def read_one(key: str) -> None:
            check(store[key])

        async def put(concurrency: int, seconds: float) -> Window:
            return await window(put_one, concurrency, seconds)

        async def get(concurrency: int, seconds: float) -> Window:
            return await window(get_one, concurrency, seconds)

        async def read(_concurrency: int, seconds: float) -> Window:
            await store.barrier()
            return await read_window(read_one, seconds)

        await answer(pipe, {"leader": cluster.wait_leader, "fill": fill, "put": put, "get": get, "read": read})


def check(value: object) -> None:
    """What was read is what was put: a benchmark of wrong answers is worth nothing."""
    if value != VALUE:
        raise AssertionError(f"read {value!r}")
