"""Peers in processes of their own, over TCP and on disk, which a test may kill, stop and start again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio
from workload import read_histories

from replikv.demo.ports import HOST, free_ports
from replikv.testing.linearizability import Operation, check, check_revisions

SETTLED_S = 30.0
"""Within this time, on a busy machine, peers that can reach each other have a leader and the same state."""
CHECKED_S = 120.0
"""The checker needs a second for a history of 20,000 operations."""


class CommandError(Exception):
    """What the child's command ended with; the name of the error is the first argument."""


class Process:
    """One peer."""

    def __init__(self, arguments: Mapping[str, object], errors: Path, program: str = "child.py") -> None:
        with errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(program)), json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        self._stdin = self._process.stdin
        self.pid = self._process.pid
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = trio.Event()
        self._commands = 0
        self._errors = errors
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.removed: str | None = None
        """What it said when it was removed from the cluster."""

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
        elif "removed" in message:
            self.removed = message["removed"]
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
                raise CommandError("ended", self.said())
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

    def leave(self) -> None:
        """Have it leave its block, and end."""
        self._stdin.close()

    def said(self) -> str:
        """The end of what it has said on standard error."""
        return self._errors.read_text()[-4000:]

    def end(self) -> None:
        """Kill it, if it lives, and wait for its end."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Group:
    """Peers by node id, some of them running, and what their clients were told."""

    def __init__(
        self,
        directory: Path,
        nursery: trio.Nursery,
        members: str,
        durable: bool,
        settings: dict[str, float],
        program: str = "child.py",
        clocks: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.directory = directory
        self.members = free_addresses(members)
        """The first members."""
        self.addresses = dict(self.members)
        self.running: dict[str, Process] = {}
        self.acknowledged: dict[str, int] = {}
        self._nursery = nursery
        self._durable = durable
        self._settings = settings
        self._program = program
        # Node id -> what its program is to think of time.
        self._clocks = clocks or {}
        # The answers to come of peers whose clients work.
        self._working: list[tuple[Process, int]] = []
        # Node id -> what it was started with, and is started with again.
        self._arguments: dict[str, dict[str, object]] = {}

    def __getitem__(self, node_id: str) -> Process:
        return self.running[node_id]

    # -- coming and going ----------------------------------------------------------------------------------------------

    async def start(self, node_ids: Iterable[str]) -> None:
        """Start these, as they were started first, and wait until they listen."""
        node_ids = list(node_ids)
        for node_id in node_ids:
            arguments = self._arguments.setdefault(node_id, {"node_id": node_id, "members": self.members})
            if self._durable:
                arguments.setdefault("data_dir", str(self.directory / node_id))
            history = str(self.directory / f"{node_id}.history")
            given = {**arguments, "settings": self._settings, "history": history}
            if node_id in self._clocks:
                given["clock"] = dict(self._clocks[node_id])
            process = Process(given, self.directory / f"{node_id}.log", self._program)
            self.running[node_id] = process
            self._nursery.start_soon(process.listen, self.acknowledged)
        for node_id in node_ids:
            await self.running[node_id].ready.wait()
            assert not self.running[node_id].ended.is_set(), self.running[node_id].said()

    async def join(self, node_ids: Iterable[str], *, via: Iterable[str], learner: bool = False) -> None:
        """Have new peers join by members; returns when they are members, too."""
        node_ids = list(node_ids)
        for node_id, address in free_addresses(node_ids).items():
            self.addresses[node_id] = address
            self._arguments[node_id] = {
                "node_id": node_id,
                "address": address,
                "join": [self.addresses[member] for member in via],
                "learner": learner,
            }
        await self.start(node_ids)

    async def move(self, node_id: str) -> None:
        """Start a peer that is not running with a copy of its directory, at another address, as on another machine."""
        directory = Path(str(self._arguments[node_id]["data_dir"]))
        moved = directory.with_name(directory.name + "-moved")
        await trio.to_thread.run_sync(shutil.copytree, directory, moved)
        await trio.to_thread.run_sync(shutil.rmtree, directory)
        self.addresses |= free_addresses([node_id])
        self._arguments[node_id] = {"data_dir": str(moved), "address": self.addresses[node_id]}
        await self.start([node_id])

    async def kill(self, node_ids: Iterable[str]) -> None:
        """``kill -9``, all at once; returns when everything they had said has been heard."""
        killed = [self.running.pop(node_id) for node_id in list(node_ids)]
        for process in killed:
            process.signal(signal.SIGKILL)
        for process in killed:
            await process.ended.wait()
            process.end()

    async def shut_down(self, node_id: str) -> None:
        """Have it leave its block, and wait for its end."""
        process = self.running.pop(node_id)
        process.leave()
        await self._wait_ended(process)

    async def forget(self, node_id: str) -> None:
        """Wait until one that was removed from the cluster has ended, because of that; its directory goes, too."""
        process = self.running.pop(node_id)
        await self._wait_ended(process)
        assert process.removed is not None, process.said()
        if self._durable:
            shutil.rmtree(str(self._arguments.pop(node_id)["data_dir"]))

    @staticmethod
    async def _wait_ended(process: Process) -> None:
        try:
            with trio.fail_after(SETTLED_S):
                await process.ended.wait()
        finally:
            process.end()

    # -- what they know ------------------------------------------------------------------------------------------------

    async def leader(self, *, among: Iterable[str] | None = None) -> str:
        """The leader, as soon as all that run agree on one; or those named, one of whom it is then."""
        with trio.fail_after(SETTLED_S):
            while True:
                ids = list(self.running if among is None else among)
                told = {(await self.running[node_id].call("status"))["leader"] for node_id in ids}
                leader = told.pop()
                if not told and leader in ids:
                    return str(leader)
                await trio.sleep(0.05)

    async def wait_status(self, name: str, wanted: Callable[[Any], bool]) -> None:
        """Wait until what all that run say of ``name`` is as wanted."""
        told: object = None
        with trio.move_on_after(SETTLED_S):
            while True:
                for process in self.running.values():
                    told = (await process.call("status"))[name]
                    if not wanted(told):
                        break
                else:
                    return
                await trio.sleep(0.05)
        raise AssertionError(f"the {name} are {told}")

    async def wait_roles(self, voters: Iterable[str], learners: Iterable[str] = ()) -> None:
        """Wait until all that run know exactly these members."""
        members = dict.fromkeys(voters, "voter") | dict.fromkeys(learners, "learner")
        await self.wait_status("members", lambda told: told == members)

    async def wait_voters(self, count: int, *, without: Collection[str]) -> None:
        """Wait until all that run know so many voters, and some of the members are not among them."""

        def wanted(members: dict[str, str]) -> bool:
            voters = {node_id for node_id, role in members.items() if role == "voter"}
            return len(voters) == count and voters.isdisjoint(without)

        await self.wait_status("members", wanted)

    async def wait_addresses(self) -> None:
        """Wait until all that run know where to find each other."""
        addresses = {node_id: self.addresses[node_id] for node_id in self.running}
        await self.wait_status("addresses", lambda told: told == addresses)

    async def digests(self) -> set[str]:
        """The digests of all replicas, once they have applied equally much."""
        with trio.fail_after(SETTLED_S):
            while True:
                digests = [await process.call("digest") for process in self.running.values()]
                if len({position for position, _ in digests}) == 1:
                    return {digest for _, digest in digests}
                await trio.sleep(0.05)

    # -- their clients -------------------------------------------------------------------------------------------------

    def work(
        self, node_ids: Iterable[str], *, keys: int, clients: int = 3, pause_s: float = 0.02, only: str | None = None
    ) -> None:
        """Have clients of these peers use the keys; see workload.py."""
        for node_id in node_ids:
            process = self.running[node_id]
            number = process.post("workload", clients=clients, keys=keys, pause_s=pause_s, only=only)
            self._working.append((process, number))

    async def finish_work(self, *, keys: int) -> list[Operation]:
        """Stop all clients, read all keys from each peer, and return the history.

        It is linearizable, and the operations of all processes that live have succeeded.
        """
        living = set(self.running.values())
        for process in living:
            await process.call("stop_workload")
        for process, number in self._working:
            if process in living:
                await process.answer(number)
        for process in living:
            await process.call("read_all", keys=keys)
        history = read_histories(self.directory.glob("*.history"))
        names = {f"{node_id}/{process.pid}" for node_id, process in self.running.items()}
        failed = [operation for operation in history if operation.status != "ok"]
        assert [] == [operation for operation in failed if str(operation.client).rpartition("/")[0] in names]
        for judge in (check, check_revisions):
            verdict = await trio.to_thread.run_sync(partial(judge, history, timeout_s=CHECKED_S))
            assert verdict.outcome == "ok", verdict
        return history


@contextlib.asynccontextmanager
async def running_processes(
    directory: Path,
    members: str = "abc",
    *,
    durable: bool = True,
    settings: Mapping[str, float] | None = None,
    program: str = "child.py",
    clocks: Mapping[str, Mapping[str, float]] | None = None,
) -> AsyncIterator[Group]:
    """The first members, who run. Whatever runs at the end is killed."""
    async with trio.open_nursery() as nursery:
        times = {"heartbeat_interval_s": 0.05, "election_timeout_s": 0.5}
        group = Group(directory, nursery, members, durable, {**times, **(settings or {})}, program, clocks)
        try:
            await group.start(members)
            yield group
        finally:
            for process in group.running.values():
                process.end()
        nursery.cancel_scope.cancel()


def free_addresses(node_ids: Iterable[str]) -> dict[str, str]:
    """Addresses of this machine that were free just now."""
    node_ids = list(node_ids)
    return dict(zip(node_ids, (f"{HOST}:{port}" for port in free_ports(len(node_ids))), strict=True))
