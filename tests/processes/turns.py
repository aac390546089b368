"""Processes that take turns at a leadership, and tell when each of them believed that it led."""

from __future__ import annotations

import contextlib
import fcntl
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

import trio

from replikv import Cluster, Leadership, LeaseExpiredError

BEAT_S = 0.005


class Turn(NamedTuple):
    """One block in which a process led; times are of the machine's monotonic clock, which all processes share."""

    token: int
    who: str
    entered: float
    believed: float
    """The last time at which the body was running, and not over by its own clock."""


class Resource:
    """Something outside of the cluster that is fenced: a file which takes no smaller token than it has seen."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, token: int) -> bool:
        """Whether the write was taken."""
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            newest = int(file.read() or 0)
            if token < newest:
                return False
            file.seek(0)
            file.truncate()
            file.write(str(token))
            return True


class Contender:
    """What one process does."""

    def __init__(self, cluster: Cluster, who: str, directory: Path) -> None:
        self.cluster = cluster
        self.who = who
        self.resource = Resource(directory / "resource")
        self.leads = False
        self._turns = directory / f"{who.replace('/', '-')}.turns"
        self._flag = directory / "go-on"
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def contend(self, ttl_s: float) -> None:
        """Lead for short times, again and again, until stopped."""
        chance = random.Random(self.who)
        with self._scope:
            while True:
                with contextlib.suppress(LeaseExpiredError):
                    async with self.cluster.leading("job", ttl_s=ttl_s) as leadership:
                        self.leads = True
                        try:
                            await self._lead(leadership, chance.uniform(0.1, 0.5))
                        finally:
                            self.leads = False
        self._stopped.set()

    async def stop(self) -> None:
        """Returns when it has resigned."""
        self._scope.cancel()
        await self._stopped.wait()

    async def _lead(self, leadership: Leadership, for_s: float) -> None:
        until = trio.current_time() + for_s
        with self._turns.open("a") as file:
            entered = time.monotonic()
            while trio.current_time() < until:
                looked = time.monotonic()
                if leadership.remaining_s > 0:
                    # Whoever is killed has told by then until when he believed.
                    file.write(json.dumps([leadership.token, self.who, entered, looked]) + "\n")
                    file.flush()
                self.resource.write(leadership.token)
                await trio.sleep(BEAT_S)

    async def write_late(self, ttl_s: float) -> dict[str, object]:
        """Lead, and be stuck in the middle of the body, as a process is that is swapped out, until told to go on; then
        write, without another look at anything.
        """
        taken: list[bool] = []
        ended = "normally"
        try:
            async with self.cluster.leading("job", ttl_s=ttl_s) as leadership:
                taken.append(self.resource.write(leadership.token))
                while not self._flag.exists():
                    time.sleep(0.01)  # noqa: ASYNC251  # stuck, event loop and all
                taken.append(self.resource.write(leadership.token))
                await trio.sleep_forever()
        except LeaseExpiredError as exc:
            ended = str(exc)
        return {"taken": taken, "ended": ended}


def read_turns(directory: Path) -> list[Turn]:
    """All turns of all processes, by token."""
    turns: dict[int, Turn] = {}
    for path in directory.glob("*.turns"):
        for line in path.read_text().splitlines():
            turn = Turn(*json.loads(line))
            turns[turn.token] = turn  # the last line of a turn is its last belief
    return [turns[token] for token in sorted(turns)]
