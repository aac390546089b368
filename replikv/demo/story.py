"""What the demo shows, step by step. Each step is verified before it is told: a claim that does not hold ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from replikv.demo.narrator import Narrator, duration
from replikv.demo.ports import HOST, free_ports
from replikv.demo.processes import DemoError, MemberProcess, News, Seen

__all__ = ["Story"]

NODE_IDS: Final = ("a", "b", "c")

PUT_PAUSE_S: Final = 0.02
"""Between two puts of the writer, so that a person can follow the numbers."""

PUTS_PER_STEP: Final = 20
"""Puts that are waited for where the story says that puts go on."""

LOOK_S: Final = 0.05
"""How often replicas are asked whether they have reached the same position."""


class Writer:
    """Puts one key after another on one process, and remembers what was acknowledged."""

    def __init__(self, process: MemberProcess, news: News) -> None:
        self.acknowledged: list[Seen] = []
        self.longest_s = 0.0
        self.node_id = process.node_id
        self._process = process
        self._news = news
        self._stopping = False
        self._stopped = trio.Event()

    async def run(self) -> None:
        """Until it is stopped. Raises DemoError for a put that fails."""
        number = 0
        while not self._stopping:
            number += 1
            key, began = f"demo/{number:03}", trio.current_time()
            revision = await self._process.ask("put", key=key, value=number)
            self.longest_s = max(self.longest_s, trio.current_time() - began)
            self.acknowledged.append(Seen(revision, key, number))
            self._news.post()
            await trio.sleep(PUT_PAUSE_S)
        self._stopped.set()

    async def wait_more(self) -> None:
        """Return when some more puts were acknowledged."""
        wanted = len(self.acknowledged) + PUTS_PER_STEP
        await self._news.wait_until(lambda: len(self.acknowledged) >= wanted)

    async def stop(self) -> None:
        """Return when the last put is acknowledged."""
        self._stopping = True
        await self._stopped.wait()


class Story:
    """Three processes and what befalls them. ``step`` is what was under way last, in words."""

    def __init__(self, root: Path, narrator: Narrator) -> None:
        self.step = "nothing had begun"
        self._root = root
        self._narrator = narrator
        self._news = News()
        self._members = dict(zip(NODE_IDS, (f"{HOST}:{port}" for port in free_ports(len(NODE_IDS))), strict=True))
        self._processes: dict[str, MemberProcess] = {}
        """Those that live, by node id."""
        self._nursery: trio.Nursery

    async def tell(self) -> None:
        """The whole of it. Raises DemoError, in groups, when anything does not hold."""
        self._narrator.title("replikv demo: three processes share a map, and the one that leads is killed")
        async with trio.open_nursery() as self._nursery:
            await self._start()
            leader = await self._elect()
            greeting = await self._put_and_watch(leader)
            writer = await self._keep_putting(leader)
            victim = await self._kill(writer)
            await self._bring_back(victim, writer)
            await self._compare([greeting, *writer.acknowledged])
            self.step = "the processes were ending"
            self._nursery.cancel_scope.cancel()

    # -- steps ---------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.step = "three processes were starting"
        for node_id in self._members:
            self._processes[node_id] = await self._start_process(node_id, self._members, [])
        await self._news.wait_until(lambda: all(process.is_open for process in self._living()))
        self._narrator.tell(
            "three processes are up, each with a peer inside and a disk of its own",
            *(f"{process.node_id}   pid {process.pid}, {self._members[process.node_id]}" for process in self._living()),
        )

    async def _elect(self) -> str:
        self.step = "a first leader was being elected"
        leader, term, elapsed_s = await self._wait_leader(above_term=0)
        self._narrator.tell(f"{leader} was elected leader of term {term}, {duration(elapsed_s)} after that")
        return leader

    async def _put_and_watch(self, leader: str) -> Seen:
        follower = self._follower(leader)
        self.step = f"all three waited for what was put on {follower.node_id}"
        key, value, began = "demo/greeting", "hello", trio.current_time()
        change = Seen(await follower.ask("put", key=key, value=value), key, value)
        elapsed_s = trio.current_time() - began
        await self._news.wait_until(lambda: all(process.seen for process in self._living()))
        for process in self._living():
            expect([change] == process.seen, f"the watch of {process.node_id} was told {process.seen}, not {change}")
        self._narrator.tell(
            f'put {key} = "{value}" on {follower.node_id}, a follower: on the disks of a majority'
            f" after {duration(elapsed_s)}",
            "watches were told:   "
            + ",   ".join(f"{process.node_id} after {duration(process.told_at - began)}" for process in self._living()),
        )
        return change

    async def _keep_putting(self, leader: str) -> Writer:
        follower = self._follower(leader)
        self.step = f"{follower.node_id} was putting"
        writer = Writer(follower, self._news)
        self._nursery.start_soon(writer.run)
        await writer.wait_more()
        self._narrator.tell(f"{follower.node_id} goes on putting, one key after the other: {PUTS_PER_STEP} so far")
        return writer

    async def _kill(self, writer: Writer) -> MemberProcess:
        """Kill the leader; its process."""
        leader, term, _ = await self._wait_leader(above_term=0)
        self.step = f"a new leader was being elected, {leader} being dead"
        expect(leader != writer.node_id, f"{leader} was elected though nobody had failed: this machine is too busy")
        victim, acknowledged = self._processes.pop(leader), len(writer.acknowledged)
        await victim.kill()
        self._narrator.tell(f"kill -9 {victim.pid}: {leader}, the leader, is dead")
        successor, term, elapsed_s = await self._wait_leader(above_term=term)
        self._narrator.tell(f"{successor} was elected leader of term {term}, {duration(elapsed_s)} after the kill")
        self.step = f"puts went on under {successor}"
        await writer.wait_more()
        self._narrator.tell(
            f"puts went on: {len(writer.acknowledged) - acknowledged} acknowledged since the kill, none failed;"
            f" the longest waited {duration(writer.longest_s)}"
        )
        return victim

    async def _bring_back(self, victim: MemberProcess, writer: Writer) -> None:
        node_id = victim.node_id
        self.step = f"{node_id} was coming back"
        process = await self._start_process(node_id, None, victim.seen)
        await self._news.wait_until(lambda: process.is_open)
        self._processes[node_id] = process
        began, known, newest = trio.current_time(), len(process.seen), writer.acknowledged[-1]
        self._narrator.tell(f"{node_id} is back as pid {process.pid}, with what is on its disk; puts still go on")
        self.step = f"{node_id} was catching up"
        await self._news.wait_until(lambda: process.position >= newest.revision)
        elapsed_s = trio.current_time() - began
        value = await process.ask("get", key=newest.key)
        expect(newest.value == value, f"{node_id} reads {value!r} under {newest.key}, where {newest.value!r} was put")
        self._narrator.tell(
            f"{node_id} has caught up, {duration(elapsed_s)} later: its watch was told of"
            f" {len(process.seen) - known} changes that it had missed"
        )
        await writer.stop()

    async def _compare(self, acknowledged: list[Seen]) -> None:
        """Each watch was told of what was acknowledged, nothing else, in that order; each replica is just that."""
        self.step = "the replicas were being compared"
        newest = acknowledged[-1].revision
        await self._news.wait_until(lambda: all(process.position >= newest for process in self._living()))
        expected = {key: value for _, key, value in acknowledged}
        for process in self._living():
            expect(acknowledged == process.seen, f"the watch of {process.node_id} missed changes, or made some up")
            expect(expected == await process.ask("items"), f"the map of {process.node_id} is not what was put")
        digests = await self._digests()
        while len({position for position, _ in digests.values()}) > 1:
            await trio.sleep(LOOK_S)
            digests = await self._digests()
        expect(len({digest for _, digest in digests.values()}) == 1, f"the replicas differ: {digests}")
        self._narrator.tell(
            f"all three replicas are equal, byte for byte; all {len(acknowledged)} puts are there, each once, in order",
            *(
                f"{node_id}   {position} commands, sha256 {digest}"
                for node_id, (position, digest) in sorted(digests.items())
            ),
        )

    # -- processes -----------------------------------------------------------------------------------------------------

    async def _start_process(self, node_id: str, members: dict[str, str] | None, history: list[Seen]) -> MemberProcess:
        process = MemberProcess(self._root, node_id, members, history, self._news)
        await self._nursery.start(process.run)
        return process

    def _living(self) -> list[MemberProcess]:
        """In the order of their ids."""
        return [self._processes[node_id] for node_id in NODE_IDS if node_id in self._processes]

    def _follower(self, leader: str) -> MemberProcess:
        """The same one at each call, so it must survive the leader."""
        return next(process for process in self._living() if process.node_id != leader)

    async def _wait_leader(self, above_term: int) -> tuple[str, int, float]:
        """Leader, term, and the seconds until all that live agreed on them."""
        began = trio.current_time()

        def agreed() -> bool:
            views = {(process.leader, process.term) for process in self._living()}
            return len(views) == 1 and all(leader in self._processes and term > above_term for leader, term in views)

        await self._news.wait_until(agreed)
        process = self._living()[0]
        assert process.leader is not None
        return process.leader, process.term, trio.current_time() - began

    async def _digests(self) -> dict[str, tuple[int, str]]:
        return {process.node_id: tuple(await process.ask("digest")) for process in self._living()}


def expect(holds: bool, otherwise: str) -> None:
    """Raise DemoError, with the sentence for when it does not hold."""
    if not holds:
        raise DemoError(otherwise)
