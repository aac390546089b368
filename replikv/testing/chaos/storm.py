"""What goes wrong in a run, and when: four parts that know nothing of each other, so all of it meets.

Each part draws from a generator of its own, seeded by the run's seed and its name: which fault comes next, for how
long, and how long nothing does then. Whom it befalls depends on who runs and leads at that moment.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio

from replikv.testing.chaos.nodes import CommandError, Node, Nodes
from replikv.testing.chaos.options import Options
from replikv.testing.chaos.records import Lines
from replikv.testing.proxy import Faults

__all__ = ["FAULTS", "Storm"]

FAULTS: Final = {
    "network": (
        "partition",
        "one way",
        "bridge",
        "isolated leader",
        "flapping",
        "delay",
        "bandwidth",
        "stall",
        "resets",
        "refusal",
        "half-open",
    ),
    "processes": ("kill", "kill the leader", "kill several", "stop", "stop the leader"),
    "disks": ("full disk",),
    "members": ("transfer", "join", "remove", "replace", "snapshot"),
}
"""All of them, by the part that they are of."""

_COMMAND_S: Final = 5.0
"""How long an answer is waited for. A process that is stopped, or was killed meanwhile, gives none."""
_JOINED_S: Final = 15.0
"""How long it is waited for that a newcomer is a member, before something else is begun with the members."""

Pair: TypeAlias = tuple[str, str]


class Storm:
    """Everything that goes wrong. What it has begun, and not ended when it is cancelled, is for others to heal."""

    def __init__(self, nodes: Nodes, options: Options, lines: Lines) -> None:
        self._nodes = nodes
        self._peers = options.peers
        self._rest = options.rest
        self._lines = lines
        self._chances = {part: random.Random(f"{options.seed}/{part}") for part in FAULTS}  # noqa: S311
        self._order: dict[str, list[str]] = {part: [] for part in FAULTS}
        self.counts: collections.Counter[str] = collections.Counter()
        """How often each fault was done."""

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._part, "network", self._network, 0.3, 2.0)
            nursery.start_soon(self._part, "processes", self._process, 0.5, 4.0)
            nursery.start_soon(self._part, "disks", self._disk, 1.0, 8.0)
            nursery.start_soon(self._part, "members", self._member, 0.5, 4.0)

    async def _part(
        self, part: str, strike: Callable[[str, random.Random], Awaitable[None]], least_s: float, most_s: float
    ) -> None:
        chance = self._chances[part]
        drawn = chance.choice((1.0, 2.0, 3.0))
        rest = drawn if self._rest is None else self._rest
        while True:
            await trio.sleep(chance.uniform(least_s, most_s) * rest)
            if not self._order[part]:  # each comes once before one comes again: a short run sees most of them
                self._order[part] = chance.sample(FAULTS[part], len(FAULTS[part]))
            # A generator of its own for each fault, so that what it needs does not change what comes next.
            await strike(self._order[part].pop(), random.Random(chance.random()))  # noqa: S311

    def _tell(self, fault: str, **fields: Any) -> None:
        self.counts[fault] += 1
        self._lines.write({"at": time.monotonic(), "fault": fault, **fields})

    # -- the network ---------------------------------------------------------------------------------------------------

    async def _network(self, fault: str, chance: random.Random) -> None:
        nodes = self._nodes
        network = nodes.network
        names = [node.node_id for node in nodes.of("running", "stopped", "joining")]
        if len(names) < (3 if fault == "bridge" else 2):
            return
        chance.shuffle(names)
        half = chance.randrange(1, len(names))
        pairs = list(itertools.permutations(names, 2))
        some = chance.sample(pairs, chance.randrange(1, len(pairs) + 1))
        leader = await self._leader()
        for_s = chance.uniform(0.5, 4.0)
        told: dict[str, Any] = {"for_s": round(for_s, 3)}
        match fault:
            case "partition":
                network.separate(names[:half], names[half:])
                told |= {"between": [names[:half], names[half:]]}
            case "one way":
                some = [(names[0], other) for other in names[1:]] if chance.random() < 0.5 else some
                network.afflict(some, Faults(drop=True))
                told |= {"from": some}
            case "bridge":
                middle = names.pop()
                half = len(names) // 2
                network.separate(names[:half], names[half:])
                told |= {"between": [names[:half], names[half:]], "bridge": middle}
            case "isolated leader":
                victim = leader.node_id if leader is not None else names[0]
                network.separate([victim], [name for name in names if name != victim])
                told |= {"node": victim}
            case "flapping":
                victim = leader.node_id if leader is not None and chance.random() < 0.5 else names[0]
                told |= {"node": victim}
                self._tell(fault, **told)
                await self._flap(victim, [name for name in names if name != victim], for_s, chance)
                return
            case "delay":
                faults = Faults(delay_s=chance.choice((0.005, 0.03, 0.1, 0.4)))
                network.afflict(some, faults)
                told |= {"pairs": some, "delay_s": faults.delay_s}
            case "bandwidth":
                faults = Faults(bytes_per_s=chance.choice((5_000, 20_000, 100_000)))
                network.afflict(some, faults)
                told |= {"pairs": some, "bytes_per_s": faults.bytes_per_s}
            case "stall":
                network.afflict(some, Faults(stall=True))
                told |= {"pairs": some}
            case "resets":
                told |= {"pairs": some, "connections": network.reset(some)}
                for_s = 0.0
            case "refusal":
                network.welcome(some, "refuse")
                told |= {"pairs": some}
            case _:
                network.welcome(some, "hold")
                told |= {"pairs": some}
        self._tell(fault, **told)
        await trio.sleep(for_s)
        network.heal()

    async def _flap(self, victim: str, others: list[str], for_s: float, chance: random.Random) -> None:
        with trio.move_on_after(for_s):
            while True:
                self._nodes.network.separate([victim], others)
                await trio.sleep(chance.uniform(0.05, 0.6))
                self._nodes.network.heal()
                await trio.sleep(chance.uniform(0.05, 0.6))
        self._nodes.network.heal()

    # -- processes -----------------------------------------------------------------------------------------------------

    async def _process(self, fault: str, chance: random.Random) -> None:
        nodes = self._nodes
        leader = await self._leader() if "leader" in fault else None
        victims = nodes.of("running") if "stop" in fault else nodes.of("running", "joining")
        if not victims:
            return
        chosen = [leader or chance.choice(victims)]
        if fault == "kill several":
            chosen = chance.sample(victims, chance.randrange(1, len(victims) + 1))
        for_s = chance.uniform(0.0, 3.0)
        self._tell(fault, nodes=[node.node_id for node in chosen], for_s=round(for_s, 3))
        if "stop" in fault:
            nodes.stop(chosen[0])
            await trio.sleep(for_s + 0.2)
            nodes.go_on(chosen[0])
            return
        async with trio.open_nursery() as nursery:
            for node in chosen:
                nursery.start_soon(nodes.kill, node)
        await trio.sleep(for_s)
        for node in chosen:
            if node.state == "down":
                await nodes.start(node)

    # -- disks ---------------------------------------------------------------------------------------------------------

    async def _disk(self, fault: str, chance: random.Random) -> None:
        leader = await self._leader()
        victims = self._nodes.of("running", "joining")
        if not victims:
            return
        node = leader if leader is not None and chance.random() < 0.4 else chance.choice(victims)
        for_s = chance.uniform(1.0, 5.0)
        self._tell(fault, nodes=[node.node_id], for_s=round(for_s, 3))
        node.was_full = True
        await trio.to_thread.run_sync(node.disk.fill)
        await trio.sleep(for_s)
        node.disk.drain()

    # -- members -------------------------------------------------------------------------------------------------------

    async def _member(self, fault: str, chance: random.Random) -> None:
        running = [node for node in self._nodes.of("running") if not node.leaving]
        if not running:
            return
        asked = chance.choice(running)
        match fault:
            case "transfer":
                to = chance.choice(running).node_id
                await self._ask(fault, asked, "transfer", to=to)
            case "snapshot":
                await self._ask(fault, asked, "snapshot")
            case "join":
                await self._join(fault, running)
            case _:
                if fault == "replace" or len(self._staying()) <= self._peers:
                    await self._join("join", running)
                await self._remove(fault, asked, chance)

    async def _join(self, fault: str, running: list[Node]) -> None:
        absent = self._nodes.of("absent")
        if not absent:
            return
        newcomer = absent[0]
        self._tell(fault, node=newcomer.node_id)
        await self._nodes.start(newcomer, via=[node.node_id for node in running])
        with trio.move_on_after(_JOINED_S):
            while newcomer.state in ("joining", "down"):
                await self._nodes.changed()

    async def _remove(self, fault: str, asked: Node, chance: random.Random) -> None:
        """Remove a member, as long as no fewer stay than there were in the beginning."""
        here = self._staying()
        if len(here) <= self._peers:
            return
        victim = chance.choice(here)
        victim.leaving = True
        if await self._ask(fault, asked, "remove", node_id=victim.node_id) in ("UnavailableError", "NotLeaderError"):
            victim.leaving = False  # surely not done

    def _staying(self) -> list[Node]:
        return [node for node in self._nodes.of("running", "stopped", "down") if not node.leaving]

    async def _ask(self, fault: str, node: Node, do: str, **arguments: Any) -> str | None:
        """The error that it ended with: None if all went well, "" for no answer."""
        error: str | None = ""
        try:
            with trio.move_on_after(_COMMAND_S):
                try:
                    await node.call(do, **arguments)
                    error = None
                except CommandError as exc:
                    error = str(exc.args[0])
        finally:  # also when the storm is over meanwhile: it may be done all the same
            self._tell(fault, asked=node.node_id, **arguments, error="no answer" if error == "" else error)
        return error

    async def _leader(self) -> Node | None:
        """Who leads, as far as the first that answers knows."""
        for node in self._nodes.of("running"):
            with trio.move_on_after(0.3), contextlib.suppress(CommandError):
                leader = self._nodes.nodes.get((await node.call("status"))["leader"] or "")
                if leader is not None and leader.runs:
                    return leader
        return None
