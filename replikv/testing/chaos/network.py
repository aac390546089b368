"""The network between the nodes of a run: a proxy for each ordered pair of them."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from replikv.testing.proxy import Faults, TcpProxy, Welcome

__all__ = ["Network"]


class Network:
    """What one node says to another takes two ways: over connections that it has dialed, and back over those that the
    other has. Both fail together.

    Args:
        listening: node id -> ``host:port`` where it listens.
    """

    def __init__(self, listening: dict[str, str]) -> None:
        self._nodes = list(listening)
        self._proxies = {
            (one, other): TcpProxy(address) for one in listening for other, address in listening.items() if one != other
        }
        self._faults: dict[tuple[str, str], Faults] = {}

    def routes(self, node_id: str) -> dict[str, str]:
        """By what node ``node_id`` dials the others: address -> where a proxy listens."""
        return {self.address(other): self._proxies[node_id, other].address for other in self._nodes if other != node_id}

    @staticmethod
    def address(node_id: str) -> str:
        """What the log knows the node by. Nobody can dial it: whoever gets past the proxies gets nowhere."""
        return f"{node_id}.invalid:1"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Forward until cancelled."""
        async with trio.open_nursery() as nursery:
            for proxy in self._proxies.values():
                await nursery.start(proxy.run)
            task_status.started()

    # -- faults --------------------------------------------------------------------------------------------------------

    def afflict(self, pairs: Iterable[tuple[str, str]], faults: Faults) -> None:
        """Let this befall all that the first of each pair says to the second."""
        for one, other in pairs:
            self._faults[one, other] = faults
        self._apply()

    def separate(self, one: Iterable[str], other: Iterable[str]) -> None:
        """Let nothing pass between these groups."""
        others = list(other)
        self.afflict([pair for a in one for b in others for pair in ((a, b), (b, a)) if a != b], Faults(drop=True))

    def welcome(self, pairs: Iterable[tuple[str, str]], welcome: Welcome) -> None:
        """Have connections broken that the first of each pair has dialed to the second, and new ones treated so."""
        for pair in pairs:
            self._proxies[pair].welcome = welcome
            self._proxies[pair].reset()

    def reset(self, pairs: Iterable[tuple[str, str]]) -> int:
        """Break connections; how many there were."""
        return sum(self._proxies[pair].reset() for pair in pairs)

    def heal(self) -> None:
        """No faults any more."""
        self._faults.clear()
        self._apply()
        for proxy in self._proxies.values():
            proxy.welcome = "serve"

    def _apply(self) -> None:
        good = Faults()
        for (one, other), proxy in self._proxies.items():
            forward, backward = self._faults.get((one, other), good), self._faults.get((other, one), good)
            if proxy.forward != forward:
                proxy.forward = forward
            if proxy.backward != backward:
                proxy.backward = backward

    # -- what passed ---------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Counters of all proxies together."""
        totals: dict[str, int] = {}
        for proxy in self._proxies.values():
            for name, count in proxy.statistics().items():
                totals[name] = totals.get(name, 0) + count
        return totals
