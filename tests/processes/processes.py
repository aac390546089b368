"""Peers in processes of their own, over TCP and on disk, which a test may kill, stop and start again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import trio

CHILD = Path(__file__).with_name("child.py")
SETTLED_S = 30.0
"""Within this time, on a busy machine, peers that can reach each other have a leader and the same state."""


class CommandError(Exception):
    """What the child's command ended with; the name of the error is the first argument."""


class Process:
    """One peer."""

    def __init__(self, arguments: dict[str, object], errors: Path) -> None:
        with errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        self._stdin = self._process.stdin
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = trio.Event()
        self._commands = 0
        self._errors = errors
        self.ready = trio.Event()
        self.ended = trio.Event()

    async def listen(self, acknowledged: dict[str, int]) -> None:
        """Take what the child says until it ends; its acknowledgements go into ``acknowledged``."""
        buffer = b""
        try:
            async with trio.lowlevel.FdStream(os.dup(self._stdout)) as stdout:
                while data := await stdout.receive_some():
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line), acknowledged)
        finally:
            self.ended.set()
            self.ready.set()
            self._answered.set()

    def _take(self, message: dict[str, Any], acknowledged: dict[str, int]) -> None:
        if "acknowledged" in message:
            acknowledged.update(message["acknowledged"])
        elif "ready" in message:
            self.ready.set()
        else:
            self._answers[message["id"]] = message
            self._answered.set()
            self._answered = trio.Event()

    def post(self, do: str, **arguments: object) -> int:
        """Send a command; the number of its answer."""
        self._commands += 1
        self._stdin.write(json.dumps({"id": self._commands, "do": do, **arguments}).encode() + b"\n")
        self._stdin.flush()
        return self._commands

    async def answer(self, number: int) -> Any:
        """Wait for the answer to a command. Raises CommandError."""
        while number not in self._answers:
            if self.ended.is_set():
                raise CommandError("ended", self._errors.read_text()[-4000:])
            await self._answered.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise CommandError(answer["error"], answer["text"])
        return answer["result"]

    async def call(self, do: str, **arguments: object) -> Any:
        """Send a command and wait for its answer."""
        return await self.answer(self.post(do, **arguments))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process and no other."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Kill it, if it lives, and wait for its end."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Group:
    """The peers a, b and c, some of them running."""

    def __init__(self, directory: Path, nursery: trio.Nursery, settings: dict[str, float]) -> None:
        self.directory = directory
        self.members = dict(zip("abc", free_addresses(3), strict=True))
        self.running: dict[str, Process] = {}
        self.acknowledged: dict[str, int] = {}
        self._nursery = nursery
        self._settings = {"heartbeat_interval_s": 0.05, "election_timeout_s": 0.5, **settings}

    def __getitem__(self, node_id: str) -> Process:
        return self.running[node_id]

    async def start(self, node_ids: Iterable[str]) -> None:
        """Start these, and wait until they listen."""
        for node_id in node_ids:
            arguments: dict[str, object] = {
                "node_id": node_id,
                "members": self.members,
                "data_dir": str(self.directory / node_id),
                "settings": self._settings,
            }
            process = self.running[node_id] = Process(arguments, self.directory / f"{node_id}.log")
            self._nursery.start_soon(process.listen, self.acknowledged)
        for node_id in node_ids:
            await self.running[node_id].ready.wait()
            assert not self.running[node_id].ended.is_set(), (self.directory / f"{node_id}.log").read_text()[-4000:]

    async def kill(self, node_ids: Iterable[str]) -> None:
        """``kill -9``, all at once; returns when everything they had said has been heard."""
        killed = [self.running.pop(node_id) for node_id in list(node_ids)]
        for process in killed:
            process.signal(signal.SIGKILL)
        for process in killed:
            await process.ended.wait()
            process.end()

    async def leader(self) -> str:
        """The leader, as soon as all that run agree on one."""
        with trio.fail_after(SETTLED_S):
            while True:
                told = {(await process.call("status"))["leader"] for process in self.running.values()}
                leader = told.pop()
                if not told and leader in self.running:
                    return str(leader)
                await trio.sleep(0.05)

    async def digests(self) -> set[str]:
        """The digests of all replicas, once they have applied equally much."""
        with trio.fail_after(SETTLED_S):
            while True:
                digests = [await process.call("digest") for process in self.running.values()]
                if len({position for position, _ in digests}) == 1:
                    return {digest for _, digest in digests}
                await trio.sleep(0.05)


@contextlib.asynccontextmanager
async def running_processes(directory: Path, **settings: float) -> AsyncIterator[Group]:
    """Three peers that run. Whatever runs at the end is killed."""
    async with trio.open_nursery() as nursery:
        group = Group(directory, nursery, settings)
        try:
            await group.start("abc")
            yield group
        finally:
            for process in group.running.values():
                process.end()
        nursery.cancel_scope.cancel()


def free_addresses(count: int) -> list[str]:
    """Addresses of this machine that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
