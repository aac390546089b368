"""Nodes of a run, each a process after the other: started, told, stopped, killed, removed, and started anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import trio

from replikv.testing.chaos.disks import Disk
from replikv.testing.chaos.network import Network
from replikv.testing.chaos.options import Options
from replikv.testing.proxy import reserve_port

__all__ = ["CommandError", "Node", "Nodes"]

SECRET: Final = "not a secret of anybody's"  # noqa: S105

SETTINGS: Final[Mapping[str, Any]] = {
    "heartbeat_interval_s": 0.1,
    "election_timeout_s": 0.8,
    "request_timeout_s": 4.0,
    "connect_timeout_s": 1.5,
    "reconnect_delay_max_s": 0.4,
    "voter_replace_after_s": 5.0,
    "wal_segment_bytes": 32 * 1024,
    "snapshot_log_bytes": 256 * 1024,
    "snapshot_log_entries": 400,
    "trailing_entries": 100,
    "trailing_bytes": 64 * 1024,
    "snapshot_chunk_bytes": 4 * 1024,
    "snapshot_resume_s": 5.0,
    "watch_progress_interval_s": 0.5,
}
"""Times for machines that have other things to do; sizes so small that logs end and snapshots travel all the time."""

TTL_S: Final = 3.0
"""Of locks and leases: a change of leader costs none, and a partition some."""

END_S: Final = 30.0
"""How long a process may take to leave. A second, and half a minute on a machine with ten times the work it can do."""

State: TypeAlias = Literal["absent", "joining", "running", "stopped", "down"]


class CommandError(Exception):
    """What a command ended with: the name of the error, and its text; or "ended" for a process that is no more."""


class Node:
    """A place in the cluster: an address, a disk, and a process most of the time."""

    def __init__(self, node_id: str, listen: str, disk: Disk) -> None:
        self.node_id = node_id
        self.listen = listen
        self.disk = disk
        self.state: State = "absent"
        """joining: its process runs, and is no member yet; stopped: by SIGSTOP; down: it has a disk, and no process."""
        self.arguments: dict[str, Any] = {}
        self.starts = 0
        self.leaving = False
        """Whether somebody has asked to remove it: RemovedError is to be expected from now on."""
        self.was_full = False
        """Whether the disk has been without room since the process was started: a start needs some."""
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = trio.Event()
        self._answers: dict[int, dict[str, Any]] = {}
        self._news = trio.Event()
        self._commands = 0

    @property
    def runs(self) -> bool:
        """Whether it is a member, as far as its process knows, and gets its turn."""
        return self.state == "running"

    async def call(self, do: str, **arguments: object) -> Any:
        """Have it do something. Raises CommandError."""
        ended = self.ended
        if self.process is None or self.process.stdin is None or self.process.stdin.closed:
            raise CommandError("ended", f"{self.node_id} is not running")
        self._commands += 1
        number = self._commands
        with contextlib.suppress(BrokenPipeError):  # a line fits into the pipe, also while nobody reads
            self.process.stdin.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        while number not in self._answers:
            if ended.is_set():
                raise CommandError("ended", f"{self.node_id} has ended")
            await self._news.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise CommandError(answer["error"], answer["text"])
        return answer["result"]

    def begin(self, process: subprocess.Popen[bytes]) -> None:
        """It has this process now."""
        self.process = process
        self.ended = trio.Event()
        self._answers.clear()

    def take(self, message: dict[str, Any]) -> None:
        """An answer."""
        self._answers[message["id"]] = message
        self.wake()

    def wake(self) -> None:
        """Whoever waits for an answer has to look."""
        news, self._news = self._news, trio.Event()
        news.set()


class Nodes:
    """All of them, and the network between them."""

    def __init__(self, options: Options, lease_reads: bool) -> None:
        self._options = options
        self._settings = {**SETTINGS, "voters_max": options.peers, "lease_reads": lease_reads}
        self._ports = [reserve_port() for _ in range(options.peers + options.spares)]
        names = [f"n{number}" for number in range(1, len(self._ports) + 1)]
        listening = {name: _address(port) for name, port in zip(names, self._ports, strict=True)}
        self.network = Network(listening)
        self.nodes = {
            name: Node(name, listening[name], Disk(options.directory / "disks" / name, mount=options.mount))
            for name in names
        }
        self.first = names[: options.peers]
        self.failures: list[str] = []
        """Ends of processes that nothing explains."""
        self.ends: list[dict[str, str]] = []
        """All ends that processes gave a reason for."""
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Be there until cancelled; then every process is killed, and every disk taken away."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.network.run)
                task_status.started()
        finally:
            for node in self.nodes.values():
                if node.process is not None:
                    node.process.kill()
                    node.process.wait()
                    _close(node.process)
                node.disk.close()
            for port in self._ports:
                port.close()

    def of(self, *states: State) -> list[Node]:
        """Those in one of these states."""
        return [node for node in self.nodes.values() if node.state in states]

    async def changed(self) -> None:
        """Wait until the state of some node has changed."""
        await self._changed.wait()

    def _set(self, node: Node, state: State) -> None:
        node.state = state
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    # -- coming and going ----------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection  # else Ctrl-C could leave behind a process that nobody knows of yet
    async def start(self, node: Node, *, via: Iterable[str] = ()) -> None:
        """Start one: for the first time, by way of these members unless it is one of the first; or again."""
        options = self._options
        if node.state == "absent":
            joins = [Network.address(member) for member in via]
            node.arguments = {
                "node_id": node.node_id,
                "members": None if joins else {name: Network.address(name) for name in self.first},
                "join": joins,
                "address": Network.address(node.node_id) if joins else None,
                "listen": node.listen,
                "data_dir": str(node.disk.data_dir),
            }
            node.leaving = False
        load = {"clients": options.clients, "keys": options.keys, "pause_s": options.pause_s, "ttl_s": TTL_S}
        arguments = {
            **node.arguments,
            "routes": self.network.routes(node.node_id),
            "secret": SECRET,
            "settings": self._settings,
            "directory": str(options.directory),
            "start": node.starts,
            "flag": None if node.disk.mounted else str(node.disk.flag),
            "load": {**load, "seed": options.seed},
            "planted": options.planted,
        }
        program = "replikv.testing.chaos." + ("member" if options.planted is None else "planted")
        node.starts += 1
        node.was_full = node.disk.flag.exists()
        with (options.directory / f"{node.node_id}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220, S603
                [sys.executable, "-m", program, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,  # Ctrl-C is for the parent; and see member.py
            )
        node.begin(process)
        self._set(node, "joining")
        assert self._nursery is not None
        self._nursery.start_soon(self._listen, node, process)

    async def kill(self, node: Node) -> None:
        """``kill -9``; returns when it is dead."""
        if node.process is not None and node.state in ("joining", "running", "stopped"):
            self._set(node, "down")
            node.process.kill()
            await node.ended.wait()

    def stop(self, node: Node) -> None:
        """SIGSTOP."""
        assert node.process is not None
        self._set(node, "stopped")
        node.process.send_signal(signal.SIGSTOP)

    def go_on(self, node: Node) -> None:
        """SIGCONT, if it was stopped."""
        if node.state == "stopped" and node.process is not None:
            node.process.send_signal(signal.SIGCONT)
            self._set(node, "running")

    async def leave(self, node: Node) -> str | None:
        """Have it leave its block; killed when it takes too long. What was wrong; None if nothing was."""
        assert node.process is not None
        assert node.process.stdin is not None
        self._set(node, "down")
        node.process.stdin.close()
        with trio.move_on_after(END_S):
            await node.ended.wait()
        if not node.ended.is_set():
            node.process.kill()
            node.process.wait()
            return f"{node.node_id} was asked to leave, and had not after {END_S:g} s"
        code = node.process.wait()
        return f"{node.node_id} left with exit code {code}" if code else None

    async def _listen(self, node: Node, process: subprocess.Popen[bytes]) -> None:
        """Take what a process says until it ends, and judge its end."""
        ended = node.ended
        said: dict[str, Any] = {}
        buffer = b""
        assert process.stdout is not None
        async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as stdout:
            async for data in stdout:
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "ready" in message:
                        if node.state == "joining":
                            self._set(node, "running")
                    elif "ended" in message:
                        said = message
                    else:
                        node.take(message)
        code = process.wait()  # whose output has ended, has ended
        _close(process)
        ended.set()
        node.wake()
        if process is node.process:
            self._judge_end(node, code, said)

    def _judge_end(self, node: Node, code: int, said: dict[str, Any]) -> None:
        reason = said.get("ended")
        if reason is not None:
            self.ends.append({"node": node.node_id, "ended": reason, "text": said["text"]})
        if reason is None and node.state == "down" and code in (0, -signal.SIGKILL):
            return  # as it was asked to
        if reason == "RemovedError" and node.leaving:
            node.disk.wipe()
            self._set(node, "absent")
        elif reason == "StorageFullError" and node.was_full and node.state in ("joining", "down"):
            self._set(node, "down")
            assert self._nursery is not None
            self._nursery.start_soon(self._start_with_room, node)
        else:
            self.failures.append(
                f"{node.node_id} ended with {code}: {reason or 'without a word'} {said.get('text', '')}"
            )
            self._set(node, "down")

    async def _start_with_room(self, node: Node) -> None:
        """Start it again once its disk has room, unless somebody else does."""
        await node.disk.wait_room()
        if node.state == "down":
            await self.start(node)


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def _address(port: socket.socket) -> str:
    host, number = port.getsockname()
    return f"{host}:{number}"
