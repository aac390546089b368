"""The parent's side of the demo's processes: starting, asking, killing, and what they have told."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from replikv.demo.pipes import Line, encode_line, read_lines

__all__ = ["DemoError", "MemberProcess", "News", "Seen"]

END_S: Final = 2.0
"""How long a process may take to end by itself once its standard input is closed."""

LOG_LINES: Final = 5
"""What is shown of the log of a process that ended unasked."""


class DemoError(Exception):
    """Something that the demo shows did not hold; the message is the reason."""


class News:
    """Wakes whoever waits for something that the processes tell."""

    def __init__(self) -> None:
        self._arrival = trio.Event()

    def post(self) -> None:
        """Something is new."""
        arrival, self._arrival = self._arrival, trio.Event()
        arrival.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; looked at whenever there is news."""
        while not condition():
            await self._arrival.wait()


class Seen(NamedTuple):
    """A change that a process was told of by its watch."""

    revision: int
    key: str
    value: Any


@dataclasses.dataclass(slots=True)
class _Request:
    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    answer: Line = dataclasses.field(default_factory=dict)


class MemberProcess:
    """One process, from its start to its end."""

    def __init__(
        self, root: Path, node_id: str, members: dict[str, str] | None, history: list[Seen], news: News
    ) -> None:
        self.node_id = node_id
        self.is_open = False
        """Whether its peer listens and its watch runs."""
        self.term = 0
        self.leader: str | None = None
        """Who leads, and in which term, as it told last."""
        self.seen = list(history)
        """What its watch was told, in that order, and before that the watch of the process that it takes up from."""
        self.told_at = 0.0
        """When it was told the last of it, by trio's clock."""
        self._options = {"root": str(root), "node_id": node_id, "members": members, "since": self.position}
        self._log = root / f"{node_id}.log"
        self._news = news
        self._requests: dict[int, _Request] = {}
        self._ids = itertools.count(1)
        self._ending = False
        """Whether its end is wanted."""
        self._silent = trio.Event()
        """Set when everything it has said was read."""
        self._process: trio.Process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def position(self) -> int:
        """The last revision that a watch of it was told of."""
        return self.seen[-1].revision if self.seen else 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the process; cancelled, end it. Raises DemoError when it ends unasked."""
        with self._log.open("ab") as log:
            # A group of its own: Ctrl-C is for the parent, which ends its processes in order.
            self._process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "replikv.demo.member", json.dumps(self._options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        try:
            task_status.started()
            await self._listen()
            if not self._ending:
                raise DemoError(f"{self.node_id} ended by itself: {self._last_words()}")
        finally:
            await self._end()

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have the process do something; its answer. Raises DemoError when it could not."""
        number, request = next(self._ids), _Request()
        self._requests[number] = request
        assert self._process.stdin is not None
        with contextlib.suppress(trio.BrokenResourceError):  # it has ended: run() says so
            await self._process.stdin.send_all(encode_line({"id": number, "do": do, **arguments}))
        await request.done.wait()
        if "error" in request.answer:
            raise DemoError(f"{do} on {self.node_id} failed: {request.answer['error']}")
        return request.answer["result"]

    async def kill(self) -> None:
        """``kill -9``; returns when it is dead, and all it has said before was read. Raises DemoError."""
        self._ending = True
        self._process.kill()
        code = await self._process.wait()
        await self._silent.wait()
        if code != -signal.SIGKILL:
            raise DemoError(f"{self.node_id} was to be killed, but had ended before, with exit code {code}")

    # -- its voice -----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in read_lines(self._process.stdout):
            if "id" in line:
                request = self._requests.pop(line["id"])
                request.answer = line
                request.done.set()
            else:
                self._note(line)
                self._news.post()
        self._silent.set()

    def _note(self, line: Line) -> None:
        match line["news"]:
            case "open":
                self.is_open = True
            case "leader":
                self.term, self.leader = line["term"], line["leader"]
            case "change":
                self.seen.append(Seen(line["revision"], line["key"], line["value"]))
                self.told_at = trio.current_time()
            case "failed":
                raise DemoError(f"{self.node_id} failed: {line['reason']}")

    def _last_words(self) -> str:
        with self._log.open(errors="replace") as log:
            lines = log.read().splitlines()[-LOG_LINES:]
        return " / ".join(lines) or "it has logged nothing"

    # -- its end -------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Close its standard input, which ends it; kill it when it does not."""
        self._ending = True
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(END_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()
